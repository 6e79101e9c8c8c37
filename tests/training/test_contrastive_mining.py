"""Hard negatives: close, and no answer for all that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clinpeft.core.errors import InputError, TrainingError
from clinpeft.recipe.contrastive import MiningSpec
from clinpeft.training import hard_negatives
from clinpeft.training.contrastive_batches import TextAttributes, TextPairs
from clinpeft.training.hard_negatives import MinedNegatives, mine_hard_negatives


def circle(*degrees: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


DEGREES = (0, 30, 0, 34, 40, 60, 90, 28)
"""Anchor, its positive (similarity 0.866), its own text again, then others: 34 degrees is above
0.95 of the positive, 40 is below."""


def one(
    same: tuple[int, ...] = (0, 1, 0, 3, 4, 5, 6, 7),
    passages: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7),
) -> TextPairs:
    sections = np.array([10, 11, 12, 13, 14, 15, 16, 11])  # the last is of the positive's section
    return TextPairs(
        TextAttributes(np.ones(8, dtype=np.int64), np.array(same), np.array(passages), sections),
        np.array([0]),
        np.array([1]),
    )


def search(
    spec: MiningSpec,
    pairs: TextPairs | None = None,
    corpus: tuple[int, ...] = tuple(range(8)),
    seed: int = 0,
) -> MinedNegatives:
    vectors = circle(*DEGREES)
    chosen = np.array(corpus, dtype=np.int64)
    return mine_hard_negatives(
        pairs or one(),
        vectors[[0]],
        vectors[[1]],
        chosen,
        vectors[chosen],
        spec,
        np.random.default_rng(seed),
    )


def test_the_closest_that_is_no_answer_by_similarity_text_passage_or_section() -> None:
    mined = search(MiningSpec(hard_negatives=2, last_rank=2))
    assert sorted(mined.negatives[0].tolist()) == [4, 5] and (
        mined.random_count,
        mined.missing_count,
    ) == (
        0,
        0,
    )
    assert (
        3 in search(MiningSpec(hard_negatives=2, last_rank=2, positive_ratio=0.96)).negatives
    )  # cos 34 = 0.829 <= 0.96 * 0.866
    assert sorted(
        search(MiningSpec(hard_negatives=2, last_rank=2), one(passages=(0, 1, 2, 3, 1, 5, 6, 7)))
        .negatives[0]
        .tolist()
    ) == [5, 6]
    assert sorted(
        search(MiningSpec(hard_negatives=2, last_rank=2), one(same=(0, 1, 0, 3, 4, 0, 6, 7)))
        .negatives[0]
        .tolist()
    ) == [4, 6]


def test_ranks_count_what_qualifies() -> None:
    assert search(MiningSpec(hard_negatives=1, first_rank=2, last_rank=2)).negatives.tolist() == [
        [5]
    ]
    sampled = {
        int(
            search(MiningSpec(hard_negatives=1, first_rank=1, last_rank=2), seed=seed).negatives[
                0, 0
            ]
        )
        for seed in range(20)
    }
    assert sampled == {4, 5}


def test_where_nothing_qualifies_random_texts_stand_in_and_are_counted() -> None:
    mined = search(
        MiningSpec(hard_negatives=2), corpus=(0, 1, 2, 3, 7)
    )  # only 3 shares nothing, and it is too similar
    assert mined.negatives.tolist() == [[3, -1]] and (mined.random_count, mined.missing_count) == (
        1,
        1,
    )
    empty = search(MiningSpec(hard_negatives=2), corpus=())
    assert empty.negatives.tolist() == [[-1, -1]] and empty.missing_count == 2
    assert search(MiningSpec()).negatives.shape == (1, 0)


def test_below_zero_the_limit_lies_below_the_positive() -> None:
    vectors = circle(0, 120, 118, 125)  # similarities -0.5, -0.469, -0.574
    texts = TextAttributes(np.ones(4, dtype=np.int64), np.arange(4), np.arange(4), np.arange(4))
    pairs = TextPairs(texts, np.array([0]), np.array([1]))
    mined = mine_hard_negatives(
        pairs,
        vectors[[0]],
        vectors[[1]],
        np.array([2, 3]),
        vectors[2:],
        MiningSpec(hard_negatives=1, last_rank=1),
        np.random.default_rng(0),
    )
    assert mined.negatives.tolist() == [[3]] and mined.random_count == 0


def test_blocks_find_what_one_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[50:100] = vectors[:50] + 0.1 * vectors[50:100]  # positives are close to their anchors
    texts = TextAttributes(
        np.ones(200, dtype=np.int64), np.arange(200), np.arange(200) // 2, np.tile(np.arange(50), 4)
    )
    pairs = TextPairs(texts, np.arange(50), np.arange(50, 100))
    spec = MiningSpec(hard_negatives=3, last_rank=3)

    def search() -> MinedNegatives:
        return mine_hard_negatives(
            pairs,
            vectors[:50],
            vectors[50:100],
            np.arange(200),
            vectors,
            spec,
            np.random.default_rng(0),
            torch.device("cpu"),
        )

    whole = search()
    monkeypatch.setattr(hard_negatives, "SIMILARITY_BLOCK_CELLS", 7 * 200)
    assert (
        np.array_equal(np.sort(search().negatives), np.sort(whole.negatives))
        and whole.random_count == whole.missing_count == 0
    )
    scores = vectors[:50] @ vectors.T
    for row, negatives in enumerate(whole.negatives):  # by brute force
        limit = 0.95 * scores[row, 50 + row]
        shares = [
            texts.section_codes[at] == row or texts.passage_codes[at] in (row // 2, (50 + row) // 2)
            for at in range(200)
        ]
        best = sorted(
            (at for at in range(200) if not shares[at] and scores[row, at] <= limit),
            key=lambda at: -scores[row, at],
        )[:3]
        assert set(negatives) == set(best)


def test_a_similarity_that_is_no_number_stops_the_search() -> None:
    vectors = circle(*DEGREES)
    vectors[5, 0] = np.nan
    with pytest.raises(TrainingError, match="NaN"):
        mine_hard_negatives(
            one(),
            vectors[[0]],
            vectors[[1]],
            np.arange(8),
            vectors,
            MiningSpec(hard_negatives=1),
            np.random.default_rng(0),
        )
    with pytest.raises(InputError, match="2 and 1 vectors for 1 pairs"):
        mine_hard_negatives(
            one(),
            vectors[[0, 1]],
            vectors[[1]],
            np.arange(8),
            vectors,
            MiningSpec(hard_negatives=1),
            np.random.default_rng(0),
        )


def test_a_window_narrower_than_what_is_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks 5 to 6 are fewer than the 3 hard negatives"):
        MiningSpec(hard_negatives=3, first_rank=5, last_rank=6)
