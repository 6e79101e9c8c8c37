"""Which pairs stand in one step: each once, none beside what may be its answer."""

from __future__ import annotations

import numpy as np
import pytest

from clinpeft.core.errors import InputError
from clinpeft.training.contrastive_batches import (
    ContrastiveEpoch,
    TextAttributes,
    TextPairs,
    find_text_conflicts,
    sample_contrastive_epoch,
)


def numbers(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def invented(seed: int, pairs: int = 300, sections: int = 40, negatives: int = 0) -> TextPairs:
    """Pairs of two passages of one section; some texts stand in several pairs, some passages are
    unknown."""
    rng = np.random.default_rng(seed)
    section = rng.integers(0, sections, pairs)
    passages = rng.integers(0, 5, (2, pairs)) + 5 * section
    same = rng.integers(0, 3 * pairs, 2 * pairs)
    unknown = rng.random((2, pairs)) < 0.1
    texts = TextAttributes(
        np.full(2 * pairs, 7),
        same,
        np.where(unknown, -1, passages).reshape(-1),
        np.where(rng.random((2, pairs)) < 0.1, -1, section).reshape(-1),
    )
    named = rng.integers(0, 2 * pairs, (pairs, negatives)) if negatives else None
    return TextPairs(texts, np.arange(pairs), np.arange(pairs, 2 * pairs), named)


def draw(
    pairs: TextPairs, batch: int = 16, apart_by: str = "section", seed: int = 0
) -> ContrastiveEpoch:
    return sample_contrastive_epoch(pairs, batch, apart_by, np.random.default_rng([seed, 0]))


def owned(pairs: TextPairs, pair: int, kinds: tuple[str, ...]) -> set[tuple[str, int]]:
    sides = (int(pairs.anchors[pair]), int(pairs.positives[pair]))
    epoch = {(kind, int(getattr(pairs.texts, kind)[side])) for kind in kinds for side in sides}
    return {(kind, number) for kind, number in epoch if number >= 0}


WHAT = {
    "text": ("text_codes",),
    "passage": ("text_codes", "passage_codes"),
    "section": ("text_codes", "passage_codes", "section_codes"),
}


@pytest.mark.parametrize("apart_by", WHAT)
def test_no_two_pairs_of_a_step_share_anything_and_every_pair_comes_once(apart_by: str) -> None:
    for seed in range(12):
        pairs = invented(seed, sections=(3, 40)[seed % 2])
        epoch = draw(pairs, seed=seed, apart_by=apart_by)
        for step in epoch.steps:
            owners = [owned(pairs, pair, WHAT[apart_by]) for pair in step]
            assert sum(len(owner) for owner in owners) == len(set[tuple[str, int]]().union(*owners))
            assert len(step) <= 16
        assert sorted(np.concatenate([*epoch.steps, epoch.skipped_pairs]).tolist()) == list(
            range(300)
        )
        assert epoch.small_step_pair_count == sum(
            len(step) for step in epoch.steps if len(step) < 16
        )


def test_where_there_is_enough_choice_nearly_every_step_is_full() -> None:
    pairs = invented(0, pairs=640, sections=400)
    epoch = draw(pairs)
    assert sum(len(step) == 16 for step in epoch.steps) >= 38 and not len(epoch.skipped_pairs)


def test_the_order_follows_the_seed() -> None:
    pairs = invented(1)
    first, again, other = draw(pairs, seed=3), draw(pairs, seed=3), draw(pairs, seed=4)
    assert [step.tolist() for step in first.steps] == [step.tolist() for step in again.steps]
    assert [step.tolist() for step in first.steps] != [step.tolist() for step in other.steps]


def chapters(*sizes: int) -> TextPairs:
    """So many pairs of each section, and nothing else in common."""
    count = sum(sizes)
    section = np.tile(np.repeat(np.arange(len(sizes)), sizes), 2)
    return TextPairs(
        TextAttributes(
            np.ones(2 * count, dtype=np.int64), np.arange(2 * count), np.arange(2 * count), section
        ),
        np.arange(count),
        np.arange(count) + count,
    )


def test_a_section_with_half_of_all_pairs_makes_small_steps_and_leaves_nobody_alone() -> None:
    epoch = draw(chapters(10, *[1] * 10), batch=4)
    assert sorted(len(step) for step in epoch.steps) == [2] * 10
    assert (len(epoch.skipped_pairs), epoch.small_step_pair_count) == (0, 20)


def test_two_sections_that_outnumber_the_look_ahead_still_meet() -> None:
    epoch = draw(chapters(600, 500, *[1] * 100), batch=4)
    assert (len(epoch.steps), len(epoch.skipped_pairs)) == (600, 0)


def test_what_nothing_can_stand_beside_is_left_out_and_counted() -> None:
    epoch = draw(chapters(10, 1, 1), batch=4)
    assert (len(epoch.steps), len(epoch.skipped_pairs)) == (2, 8)
    assert all(len(step) == 2 for step in epoch.steps)
    lonely = chapters(3)
    named = TextPairs(lonely.texts, lonely.anchors, lonely.positives, np.array([[-1], [0], [-1]]))
    epoch = draw(named)
    assert [step.tolist() for step in epoch.steps] == [[1]] and epoch.skipped_pairs.tolist() == [
        0,
        2,
    ]  # the one with a negative stays


def test_what_is_unknown_is_shared_with_nothing() -> None:
    unknown = numbers(-1, -1, -1, -1)
    pairs = TextPairs(
        TextAttributes(numbers(1, 1, 1, 1), np.arange(4), unknown, unknown),
        numbers(0, 1),
        numbers(2, 3),
    )
    assert [len(step) for step in draw(pairs).steps] == [2]
    assert not find_text_conflicts(pairs.texts, [numbers(0)], [numbers(1, 2)], "section").any()


def test_the_same_text_on_the_other_side_is_shared() -> None:
    texts = TextAttributes(
        numbers(1, 1, 1, 1), numbers(5, 6, 7, 5), numbers(0, 1, 2, 3), numbers(0, 1, 2, 3)
    )
    assert find_text_conflicts(texts, [numbers(0)], [numbers(1, 2, 3)], "text").tolist() == [
        [False, False, True]
    ]
    assert draw(TextPairs(texts, numbers(0, 2), numbers(1, 3))).skipped_pairs.tolist() == [0, 1]


def test_pairs_that_do_not_fit_their_texts_are_refused() -> None:
    texts = chapters(2).texts
    with pytest.raises(InputError, match="text 4, and there are 4"):
        TextPairs(texts, numbers(0), numbers(4))
    with pytest.raises(InputError, match=r"\[2, 1\]") as error:
        TextPairs(texts, numbers(0, 1), numbers(2))
    assert error.value.location == "pairs"
