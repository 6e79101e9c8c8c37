"""Unrelated pairs of graded difficulty: passages that do not answer an anchor, drawn at random, from its book, from its chapter, or mined.

A separation against random passages measures the sampler: any model tells the heart from the skin. So negatives are drawn in strata, and each is
reported by itself. A negative is never the anchor's own passage, a passage with the text of anchor or positive, one from the section of the
positive (nor from a section that holds it or that it holds), nor another positive of the same anchor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import PAIR_SCORE_SCHEMA, Attrition
from clinpeft.evaluation.bootstrap import Int64Array
from clinpeft.evaluation.embedding.vectors import PairScorer

_MAX_DRAW_ROUNDS = 20  # draws before what is left is looked through passage by passage


@dataclass(frozen=True)
class AnchorPairs:
    """Anchors and the passages that belong to them.

    Attributes:
        pair_ids: shape (n,).
        positives: the passage row of each, shape (n,).
        own_passages: the passage row that each anchor is itself, -1 for a text that is no passage, shape (n,); None: none is.
        anchors: their texts, of which two that are equal share their positives; None: all differ.
        clusters: what is resampled together, usually the chapter of the positive; None: each pair alone.
    """

    pair_ids: Sequence[str]
    positives: Int64Array
    own_passages: Int64Array | None = None
    anchors: Sequence[str] | None = None
    clusters: Sequence[str | None] | None = None


def draw_negatives(
    passages: pa.Table,
    pairs: AnchorPairs,
    stratum: str,
    rng: np.random.Generator,
    attrition: Attrition,
    ranking: Int64Array | None = None,
) -> Int64Array:
    """For each pair a passage that does not belong to its anchor.

    Args:
        passages: with the columns ``book``, ``chapter``, ``section`` and ``text`` of ``tables.PASSAGE``.
        pairs: n of them.
        stratum: ``random`` (any passage), ``same book`` (that of the positive, but not from its chapter), ``same chapter`` (but not its section) or
            ``mined`` (the first in ``ranking`` that may be one). A chapter that is unknown is no chapter.
        rng: for the draws, which are uniform over all that may be drawn.
        attrition: counts the pairs, and those for which no passage may be drawn.
        ranking: only for ``mined``: passage rows that a reference such as BM25 ranks best for each anchor, best first, -1 for none, shape (n, m).

    Returns:
        Rows of passages, shape (n,); -1 where there is none.

    Raises:
        UsageError: there is no such stratum, or ``mined`` without a ranking.
    """
    if stratum not in NEGATIVE_STRATA:
        raise UsageError(
            f"there is no stratum {stratum!r}",
            location="strata",
            hint=f"the strata are: {', '.join(NEGATIVE_STRATA)}",
        )
    known = _ExcludedPassages.from_passages(passages, pairs)
    rows = NEGATIVE_STRATA[stratum](passages, known, rng, ranking)
    attrition.entered_rows += len(rows)
    attrition.drop_rows(f"no negative from {stratum}", int((rows < 0).sum()))
    return rows


def score_anchor_pairs(
    scorer: PairScorer, pairs: AnchorPairs, negatives: Mapping[str, Int64Array]
) -> pa.Table:
    """Scores of the pairs and of their negatives.

    Args:
        scorer: rows of pairs and rows of passages -> how alike anchor and passage are: ``cosine_score(anchors, passages)``, or that of a baseline.
        pairs: n of them.
        negatives: stratum -> what ``negatives`` gave; pairs without a negative are left out of the stratum.

    Returns:
        Of schema ``tables.PAIR_SCORE``; the stratum of a related pair is ``related``.
    """
    everyone = np.arange(len(pairs.positives))
    parts = [_score_stratum(scorer, pairs, everyone, pairs.positives, "related")]
    parts += [
        _score_stratum(scorer, pairs, np.flatnonzero(found >= 0), found[found >= 0], stratum)
        for stratum, found in negatives.items()
    ]
    return pa.concat_tables(parts)


def shuffle_partners(pair_count: int, rng: np.random.Generator) -> Int64Array:
    """A control: for each pair another one, whose positive it is given; with these as related pairs an AUROC should be near 0.5.

    A uniformly drawn cycle through all n: nothing stays in its place, and every place is used once. With one pair it stays where it is.
    """
    cycle = rng.permutation(pair_count)
    partner = np.empty(pair_count, np.int64)
    partner[cycle] = np.roll(cycle, -1)
    return partner


def _score_stratum(
    scorer: PairScorer, pairs: AnchorPairs, rows: Int64Array, passages: Int64Array, stratum: str
) -> pa.Table:
    count = len(rows)
    at = pa.array(rows)
    clusters = pa.array(
        pairs.clusters if pairs.clusters is not None else [None] * len(pairs.pair_ids), pa.string()
    )
    columns = [
        pa.array(pairs.pair_ids, pa.string()).take(at),
        clusters.take(at),
        pa.array([stratum] * count, pa.string()),
        pa.array(np.full(count, stratum == "related")),
        pa.array(np.asarray(scorer(rows, passages), np.float64)),
    ]
    return pa.Table.from_arrays(columns, schema=PAIR_SCORE_SCHEMA)


@dataclass(frozen=True)
class _ExcludedPassages:
    """What may not be drawn.

    Attributes:
        positives, own_passages: as in ``Pairs``.
        text_numbers: a number for each distinct text of passages (white space and case levelled), shape (p,).
        anchor_text_numbers: the same number for the anchors, -1 where no passage has their text, shape (n,).
        first_sections, last_sections: the sections in an order in which a section is followed by those that lie in it; those of a passage, shape (p,).
        positive_keys: anchor number * p + passage, for all positives, sorted.
        anchor_numbers: the number of each anchor, shape (n,).
    """

    positives: Int64Array
    own_passages: Int64Array
    text_numbers: Int64Array
    anchor_text_numbers: Int64Array
    first_sections: Int64Array
    last_sections: Int64Array
    positive_keys: Int64Array
    anchor_numbers: Int64Array

    @classmethod
    def from_passages(cls, passages: pa.Table, pairs: AnchorPairs) -> _ExcludedPassages:
        count = len(pairs.positives)
        texts: dict[str, int] = {}
        text = np.array(
            [
                texts.setdefault(_normalize_text(one), len(texts))
                for one in passages["text"].to_pylist()
            ],
            np.int64,
        )
        anchors = (
            [_normalize_text(one) for one in pairs.anchors] if pairs.anchors is not None else []
        )
        anchor_text = np.array([texts.get(one, -1) for one in anchors] or [-1] * count, np.int64)
        numbers: dict[str, int] = {}
        anchor = np.array(
            [numbers.setdefault(one, len(numbers)) for one in anchors] or range(count), np.int64
        )
        first, last = _index_nested_sections(
            list(zip(passages["book"].to_pylist(), passages["section"].to_pylist(), strict=True))
        )
        own = pairs.own_passages if pairs.own_passages is not None else np.full(count, -1, np.int64)
        return cls(
            pairs.positives,
            own,
            text,
            anchor_text,
            first,
            last,
            np.sort(anchor * len(text) + pairs.positives),
            anchor,
        )

    def is_excluded(self, rows: Int64Array, passages: Int64Array) -> NDArray[np.bool_]:
        """Whether each passage may not be drawn for the pair of the same place."""
        positive, own = self.positives[rows], self.own_passages[rows]
        same_text = (self.text_numbers[passages] == self.text_numbers[positive]) | (
            self.text_numbers[passages] == self.anchor_text_numbers[rows]
        )
        same_text |= (own >= 0) & (self.text_numbers[passages] == self.text_numbers[own])
        inside = (self.first_sections[positive] <= self.first_sections[passages]) & (
            self.first_sections[passages] <= self.last_sections[positive]
        )
        context = (self.first_sections[passages] <= self.first_sections[positive]) & (
            self.first_sections[positive] <= self.last_sections[passages]
        )
        also = self.anchor_numbers[rows] * len(self.text_numbers) + passages
        at = np.minimum(np.searchsorted(self.positive_keys, also), len(self.positive_keys) - 1)
        hit: NDArray[np.bool_] = same_text | inside | context | (self.positive_keys[at] == also)
        return hit


def _index_nested_sections(sections: Sequence[tuple[str, str]]) -> tuple[Int64Array, Int64Array]:
    """The place of each passage's section among all, and the last place of one that lies in it (``a/b`` lies in ``a``)."""
    paths = {one: (one[0], *one[1].split("/")) for one in set(sections)}
    order = sorted(paths.values())
    location = {path: at for at, path in enumerate(order)}
    last, open_paths = [0] * len(order), list[int]()
    for at, path in enumerate(order):
        while open_paths and path[: len(order[open_paths[-1]])] != order[open_paths[-1]]:
            last[open_paths.pop()] = at - 1
        open_paths.append(at)
    for at in open_paths:
        last[at] = len(order) - 1
    firsts = np.array([location[paths[one]] for one in sections], np.int64)
    return firsts, np.array(last, np.int64)[firsts]


def _normalize_text(text: str) -> str:
    return " ".join(text.casefold().split())


def _draw_from_groups(
    groups: Int64Array,
    excluded_groups: Int64Array | None,
    exclusions: _ExcludedPassages,
    rng: np.random.Generator,
) -> Int64Array:
    """A passage from the group of each positive that may be drawn, and is not in the same ``excluded_groups``; -1 where there is none.

    Args:
        groups: of passages, shape (p,), -1 for none.
        excluded_groups: of passages, shape (p,), or None.
        exclusions: what may not be drawn.
        rng: for the draws.
    """
    order = np.argsort(groups, kind="stable")
    wanted = groups[exclusions.positives]
    start, end = (
        np.searchsorted(groups[order], wanted, "left"),
        np.searchsorted(groups[order], wanted, "right"),
    )
    found = np.full(len(wanted), -1, np.int64)

    def allowed(rows: Int64Array, passages: Int64Array) -> NDArray[np.bool_]:
        inside = (
            np.zeros(len(rows), np.bool_)
            if excluded_groups is None
            else excluded_groups[passages] == excluded_groups[exclusions.positives[rows]]
        )
        return ~(exclusions.is_excluded(rows, passages) | inside)

    waiting = np.flatnonzero(wanted >= 0)
    for _ in range(_MAX_DRAW_ROUNDS):
        passages = order[rng.integers(start[waiting], end[waiting])] if len(waiting) else waiting
        good = allowed(waiting, passages)
        found[waiting[good]] = passages[good]
        waiting = waiting[~good]
    for row in waiting:
        members = order[start[row] : end[row]]
        left = members[allowed(np.full(len(members), row), members)]
        if len(left):
            found[row] = rng.choice(left)
    return found


def _draw_random(
    passages: pa.Table,
    exclusions: _ExcludedPassages,
    rng: np.random.Generator,
    _ranking: Int64Array | None,
) -> Int64Array:
    return _draw_from_groups(np.zeros(len(passages), np.int64), None, exclusions, rng)


def _draw_same_book(
    passages: pa.Table,
    exclusions: _ExcludedPassages,
    rng: np.random.Generator,
    _ranking: Int64Array | None,
) -> Int64Array:
    books = _number_keys([(book,) for book in passages["book"].to_pylist()])
    chapters = _number_chapters(passages)
    return _draw_from_groups(
        books, np.where(chapters < 0, -1 - np.arange(len(chapters)), chapters), exclusions, rng
    )


def _draw_same_chapter(
    passages: pa.Table,
    exclusions: _ExcludedPassages,
    rng: np.random.Generator,
    _ranking: Int64Array | None,
) -> Int64Array:
    return _draw_from_groups(_number_chapters(passages), None, exclusions, rng)


def _select_mined(
    _passages: pa.Table,
    exclusions: _ExcludedPassages,
    _rng: np.random.Generator,
    ranking: Int64Array | None,
) -> Int64Array:
    if ranking is None:
        raise UsageError(
            "mined negatives without a ranking",
            location="strata",
            hint="rank the passages for every anchor first, such as by BM25",
        )
    found = np.full(len(ranking), -1, np.int64)
    for location in range(ranking.shape[1]):
        waiting = np.flatnonzero((found < 0) & (ranking[:, location] >= 0))
        passages = ranking[waiting, location]
        good = ~exclusions.is_excluded(waiting, passages)
        found[waiting[good]] = passages[good]
    return found


def _number_chapters(passages: pa.Table) -> Int64Array:
    pairs = zip(passages["book"].to_pylist(), passages["chapter"].to_pylist(), strict=True)
    return _number_keys([None if chapter is None else (book, chapter) for book, chapter in pairs])


def _number_keys(keys: Sequence[tuple[str, ...] | None]) -> Int64Array:
    numbered: dict[tuple[str, ...], int] = {}
    return np.array(
        [-1 if key is None else numbered.setdefault(key, len(numbered)) for key in keys], np.int64
    )


NEGATIVE_STRATA: dict[
    str, Callable[[pa.Table, _ExcludedPassages, np.random.Generator, Int64Array | None], Int64Array]
] = {
    "random": _draw_random,
    "same book": _draw_same_book,
    "same chapter": _draw_same_chapter,
    "mined": _select_mined,
}
"""Name -> how its passages are chosen, in ascending order of difficulty."""
