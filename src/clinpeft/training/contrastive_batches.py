"""Pairs of texts, and which of them may stand in one step: each is a negative for all others, so none may be their answer.

What may be an answer is told by ids and never by vectors: with dropout on, the same text has another vector each time.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from clinpeft.core.errors import InputError
from clinpeft.tokenization import IndexArray

ConflictMask = npt.NDArray[np.bool_]

LOOK_AHEAD_STEPS = 128
APART_BY_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "text": ("text_codes",),
    "passage": ("text_codes", "passage_codes"),
    "section": ("text_codes", "passage_codes", "section_codes"),
}
"""``apart_by`` -> what is compared."""


@dataclass(frozen=True)
class TextAttributes:
    """What is known of each text, by its id, which is its position. Twins that dropout alone tells apart are two ids with one ``text_codes``.

    Attributes:
        token_counts: (texts,) tokens.
        text_codes: (texts,) equal where the texts are equal.
        passage_codes: (texts,) the passage it is from; -1 where that is unknown, which nothing shares.
        section_codes: (texts,) likewise, the section.
    """

    token_counts: IndexArray
    text_codes: IndexArray
    passage_codes: IndexArray
    section_codes: IndexArray


@dataclass(frozen=True)
class TextPairs:
    """Texts that belong together.

    Attributes:
        texts: what is known of them.
        anchors: (pairs,) ids of texts.
        positives: (pairs,) ids of the texts that answer them.
        negatives: (pairs, negatives) ids of texts that do not, -1 where there is none; None where none were looked for.
    """

    texts: TextAttributes
    anchors: IndexArray
    positives: IndexArray
    negatives: IndexArray | None = None

    def __post_init__(self) -> None:
        named = [
            self.anchors,
            self.positives,
            *([] if self.negatives is None else [self.negatives]),
        ]
        if len({len(ids) for ids in named}) > 1:
            raise InputError(
                f"columns of {[len(ids) for ids in named]} rows",
                location="pairs",
                hint="give every anchor one positive",
            )
        outside = [
            int(ids.max(initial=-1))
            for ids in named
            if ids.max(initial=-1) >= len(self.texts.token_counts)
        ]
        if outside or min(self.anchors.min(initial=0), self.positives.min(initial=0)) < 0:
            message = f"a pair names text {outside[0] if outside else -1}, and there are {len(self.texts.token_counts)}"
            raise InputError(message, location="pairs", hint="build the pairs again")

    def get_named_negatives(self, pair_ids: IndexArray) -> IndexArray:
        """(chosen, negatives) the negatives of these pairs; of no columns where none were looked for."""
        return (
            np.zeros((len(pair_ids), 0), dtype=np.int64)
            if self.negatives is None
            else self.negatives[pair_ids]
        )


@dataclass(frozen=True)
class ContrastiveEpoch:
    """One epoch.

    Attributes:
        steps: for each step its pairs; each pair is in one of them, or left out.
        skipped_pairs: pairs that no other can stand beside and that have no negatives of their own, so that nothing can be learned from them.
        small_step_pair_count: how many pairs are in steps that could not be filled.
    """

    steps: list[IndexArray]
    skipped_pairs: IndexArray
    small_step_pair_count: int


def sample_contrastive_epoch(
    pairs: TextPairs, batch_pairs: int, apart_by: str, rng: np.random.Generator
) -> ContrastiveEpoch:
    """Every pair once, ``batch_pairs`` a step, no two of a step sharing a text, passage or section of either side.

    Pairs come in random order, and each goes into the first step that has room and nothing in common with it, of the ``LOOK_AHEAD_STEPS`` oldest and
    as many newest that are not full. A section with many pairs is in as many steps, some of them small; a pair that would be alone gets company from
    a fuller step.
    """
    keys = _collect_conflict_keys(pairs, APART_BY_COLUMNS[apart_by])
    steps = _pack_first_fit(keys, batch_pairs, rng.permutation(len(keys)).tolist())
    _fill_single_pair_steps(steps, keys)
    has_negatives = np.asarray((pairs.get_named_negatives(np.arange(len(keys))) >= 0).any(axis=1))
    whole = [np.asarray(step) for step in steps if len(step) > 1 or has_negatives[step[0]]]
    alone = np.asarray(
        sorted(step[0] for step in steps if len(step) == 1 and not has_negatives[step[0]]),
        dtype=np.int64,
    )
    small = sum(len(step) for step in whole if len(step) < batch_pairs)
    return ContrastiveEpoch([whole[at] for at in rng.permutation(len(whole))], alone, small)


def _collect_conflict_keys(pairs: TextPairs, columns: Sequence[str]) -> list[frozenset[int]]:
    """For each pair all that it has: texts, passages, sections of both sides as numbers that do not meet."""
    sides = [
        getattr(pairs.texts, kind)[side]
        for kind in columns
        for side in (pairs.anchors, pairs.positives)
    ]
    numbered = [
        np.where(side >= 0, side * len(columns) + at // 2, -1) for at, side in enumerate(sides)
    ]
    return [
        frozenset(key for key in row if key >= 0) for row in np.stack(numbered, axis=1).tolist()
    ]


def _pack_first_fit(
    conflict_keys: Sequence[frozenset[int]], batch_pairs: int, order: Sequence[int]
) -> list[list[int]]:
    steps: list[list[int]] = []
    unfilled: dict[int, None] = {}  # ordered: the oldest first
    holding: defaultdict[int, set[int]] = defaultdict(set)  # key -> unfilled steps that have it
    for pair in order:
        # the oldest, so that steps are filled; the newest, so that two sections that are in all of the oldest still meet each other
        near = chain(
            islice(unfilled, LOOK_AHEAD_STEPS), islice(reversed(unfilled), LOOK_AHEAD_STEPS)
        )
        at = next(
            (at for at in near if not any(at in holding[key] for key in conflict_keys[pair])),
            len(steps),
        )
        if at == len(steps):
            steps.append([])
            unfilled[at] = None
        steps[at].append(pair)
        for key in conflict_keys[pair]:
            holding[key].add(at)
        if len(steps[at]) == batch_pairs:
            del unfilled[at]
            for key in frozenset().union(*(conflict_keys[member] for member in steps[at])):
                holding[key].discard(at)
    return steps


def _fill_single_pair_steps(
    steps: list[list[int]], conflict_keys: Sequence[frozenset[int]]
) -> None:
    """Move a pair of a fuller step to each that would be alone, the givers taking turns."""
    givers = deque(sorted((step for step in steps if len(step) > 2), key=len, reverse=True))
    for step in (step for step in steps if len(step) == 1):
        for giver in list(islice(givers, LOOK_AHEAD_STEPS)):
            fitting = next(
                (pair for pair in giver if conflict_keys[pair].isdisjoint(conflict_keys[step[0]])),
                None,
            )
            givers.rotate(-1)
            if fitting is None:
                continue
            giver.remove(fitting)
            step.append(fitting)
            if len(giver) == 2:
                givers.remove(giver)
            break


def find_text_conflicts(
    texts: TextAttributes, rows: Sequence[IndexArray], columns: Sequence[IndexArray], apart_by: str
) -> ConflictMask:
    """Which rows share something with which columns.

    Args:
        texts: what is known of the texts.
        rows: for each side of what is in the rows, (rows,) ids of texts.
        columns: likewise.
        apart_by: a key of ``KINDS``.

    Returns:
        (rows, columns).
    """
    found = np.zeros((len(rows[0]), len(columns[0])), dtype=np.bool_)
    for kind in APART_BY_COLUMNS[apart_by]:
        known = getattr(texts, kind)
        for row in rows:
            for column in columns:
                found |= (known[row][:, None] == known[column][None, :]) & (
                    known[row][:, None] >= 0
                )
    return found
