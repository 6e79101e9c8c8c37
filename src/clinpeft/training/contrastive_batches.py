"""Pairs of texts, and which of them may share a step.

Each pair is a negative of all others in its step, so that none may be their answer. What may be an
answer is known from ids and never from vectors: with dropout, a text has another vector each time.
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
"""``apart_by`` -> attributes of which no two pairs of a step share a value."""


@dataclass(frozen=True)
class TextAttributes:
    """Attributes of each text, by its id, which is its position.

    Copies of a text that differ by their dropout only are two ids with the same ``text_codes``.

    Attributes:
        token_counts: (texts,) tokens.
        text_codes: (texts,) equal where the texts are equal.
        passage_codes: (texts,) the passage it is from; -1 where that is unknown, which conflicts
            with nothing.
        section_codes: (texts,) likewise, the section.
    """

    token_counts: IndexArray
    text_codes: IndexArray
    passage_codes: IndexArray
    section_codes: IndexArray


@dataclass(frozen=True)
class TextPairs:
    """Pairs of texts that belong together.

    Attributes:
        texts: attributes of all texts.
        anchors: (pairs,) ids of texts.
        positives: (pairs,) ids of the texts that belong to them.
        negatives: (pairs, negatives) ids of texts that do not, -1 where there is none; None where
            none were mined.
    """

    texts: TextAttributes
    anchors: IndexArray
    positives: IndexArray
    negatives: IndexArray | None = None

    def __post_init__(self) -> None:
        columns = [self.anchors, self.positives]
        if self.negatives is not None:
            columns.append(self.negatives)
        if len({len(ids) for ids in columns}) > 1:
            raise InputError(
                f"columns of {[len(ids) for ids in columns]} rows",
                location="pairs",
                hint="give every anchor one positive",
            )
        text_count = len(self.texts.token_counts)
        largest_ids = [int(ids.max(initial=-1)) for ids in columns]
        too_large = [text_id for text_id in largest_ids if text_id >= text_count]
        # -1 stands for no negative, and is no id of an anchor or a positive
        if too_large or min(self.anchors.min(initial=0), self.positives.min(initial=0)) < 0:
            raise InputError(
                f"a pair names text {(too_large or [-1])[0]}, and there are {text_count}",
                location="pairs",
                hint="build the pairs again",
            )

    def get_named_negatives(self, pair_ids: IndexArray) -> IndexArray:
        """Get the negatives of these pairs.

        Returns:
            (selected pairs, negatives); of 0 columns where none were mined.
        """
        if self.negatives is None:
            return np.zeros((len(pair_ids), 0), dtype=np.int64)
        return self.negatives[pair_ids]


@dataclass(frozen=True)
class ContrastiveEpoch:
    """One epoch.

    Attributes:
        steps: ids of the pairs of each step; each pair is in one of them, or skipped.
        skipped_pairs: pairs that can share a step with no other and have no negatives of their own,
            so that their loss would be 0.
        small_step_pair_count: number of pairs in steps that could not be filled.
    """

    steps: list[IndexArray]
    skipped_pairs: IndexArray
    small_step_pair_count: int


def sample_contrastive_epoch(
    pairs: TextPairs, batch_pairs: int, apart_by: str, rng: np.random.Generator
) -> ContrastiveEpoch:
    """Distribute all pairs over steps in which no two share a text, passage or section.

    Pairs come in random order. Each goes into the first step with space and without a conflict,
    among the ``LOOK_AHEAD_STEPS`` oldest and as many newest that are not full (first fit). A
    section with many pairs is in as many steps, some of them small; a pair that would be alone is
    joined by one of a fuller step.

    Args:
        pairs: to distribute.
        batch_pairs: pairs of a full step.
        apart_by: key of ``APART_BY_COLUMNS``.
        rng: order of pairs and of steps.
    """
    # of each pair: all its texts, passages and sections
    keys = _collect_conflict_keys(pairs, APART_BY_COLUMNS[apart_by])
    steps = _pack_first_fit(keys, batch_pairs, rng.permutation(len(keys)).tolist())
    _fill_single_pair_steps(steps, keys)
    is_named = pairs.get_named_negatives(np.arange(len(keys))) >= 0  # (pairs, negatives)
    has_named = np.asarray(is_named.any(axis=1))
    # a single pair with hard negatives of its own has a loss
    trained = [np.asarray(step) for step in steps if len(step) > 1 or has_named[step[0]]]
    skipped = sorted(step[0] for step in steps if len(step) == 1 and not has_named[step[0]])
    small = sum(len(step) for step in trained if len(step) < batch_pairs)
    # first fit fills the oldest steps, so that the last ones would be small in every epoch
    shuffled = [trained[index] for index in rng.permutation(len(trained))]
    return ContrastiveEpoch(shuffled, np.asarray(skipped, dtype=np.int64), small)


def _collect_conflict_keys(pairs: TextPairs, columns: Sequence[str]) -> list[frozenset[int]]:
    """For each pair the texts, passages and sections of both sides, as distinct numbers."""
    keys = []
    for offset, column in enumerate(columns):
        for side in (pairs.anchors, pairs.positives):
            codes = getattr(pairs.texts, column)[side]  # (pairs,)
            # codes of several columns are made distinct by their remainder
            keys.append(np.where(codes >= 0, codes * len(columns) + offset, -1))
    rows = np.stack(keys, axis=1).tolist()  # (pairs, 2 * columns)
    return [frozenset(key for key in row if key >= 0) for row in rows]


def _pack_first_fit(
    conflict_keys: Sequence[frozenset[int]], batch_pairs: int, order: Sequence[int]
) -> list[list[int]]:
    steps: list[list[int]] = []
    unfilled: dict[int, None] = {}  # an ordered set, the oldest step first
    steps_by_key: defaultdict[int, set[int]] = defaultdict(set)  # of unfilled steps
    for pair in order:
        # the oldest, so that steps are filled; the newest, so that pairs of two sections that are
        # in all of the oldest steps still meet
        candidates = chain(
            islice(unfilled, LOOK_AHEAD_STEPS), islice(reversed(unfilled), LOOK_AHEAD_STEPS)
        )
        # a step conflicts if it has a pair with a key in common
        keys = conflict_keys[pair]
        step = next(
            (step for step in candidates if not any(step in steps_by_key[key] for key in keys)),
            len(steps),
        )
        if step == len(steps):
            steps.append([])
            unfilled[step] = None
        steps[step].append(pair)
        for key in keys:
            steps_by_key[key].add(step)
        if len(steps[step]) == batch_pairs:
            # full steps are forgotten, or the search would take time quadratic in the pairs
            del unfilled[step]
            for key in frozenset().union(*(conflict_keys[member] for member in steps[step])):
                steps_by_key[key].discard(step)
    return steps


def _fill_single_pair_steps(
    steps: list[list[int]], conflict_keys: Sequence[frozenset[int]]
) -> None:
    """Move a pair of a fuller step to each single pair, the givers taking turns."""
    # fullest first; of a step of 3 or more, one may leave
    givers = deque(sorted((step for step in steps if len(step) > 2), key=len, reverse=True))
    for step in (step for step in steps if len(step) == 1):
        keys = conflict_keys[step[0]]
        for giver in list(islice(givers, LOOK_AHEAD_STEPS)):
            moved = next((pair for pair in giver if conflict_keys[pair].isdisjoint(keys)), None)
            givers.rotate(-1)
            if moved is None:
                continue
            giver.remove(moved)
            step.append(moved)
            if len(giver) == 2:  # with one pair less, another would be single
                givers.remove(giver)
            break


def find_text_conflicts(
    texts: TextAttributes, rows: Sequence[IndexArray], columns: Sequence[IndexArray], apart_by: str
) -> ConflictMask:
    """Find which rows share an attribute with which columns.

    Args:
        texts: attributes of all texts.
        rows: (rows,) ids of texts, for each side (anchor, positive) of what is in the rows.
        columns: (columns,) likewise.
        apart_by: key of ``APART_BY_COLUMNS``.

    Returns:
        (rows, columns) bool.
    """
    # any shared attribute of any side of the row with any side of the column
    conflicts = np.zeros((len(rows[0]), len(columns[0])), dtype=np.bool_)
    for attribute in APART_BY_COLUMNS[apart_by]:
        # (texts,)
        codes = getattr(texts, attribute)
        for row_ids in rows:
            for column_ids in columns:
                row_codes = codes[row_ids][:, None]  # (rows, 1)
                # -1 is unknown, and equal to nothing
                conflicts |= (row_codes == codes[column_ids][None, :]) & (row_codes >= 0)
    return conflicts
