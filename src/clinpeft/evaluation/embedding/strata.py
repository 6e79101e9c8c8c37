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
from clinpeft.core.schemas import PAIR_SCORE, Attrition
from clinpeft.evaluation.bootstrap import Integers
from clinpeft.evaluation.embedding.vectors import Score

_ROUNDS = 20  # draws before what is left is looked through passage by passage


@dataclass(frozen=True)
class Pairs:
    """Anchors and the passages that belong to them.

    Attributes:
        pair_ids: shape (n,).
        positives: the passage row of each, shape (n,).
        own: the passage row that each anchor is itself, -1 for a text that is no passage, shape (n,); None: none is.
        anchors: their texts, of which two that are equal share their positives; None: all differ.
        clusters: what is resampled together, usually the chapter of the positive; None: each pair alone.
    """

    pair_ids: Sequence[str]
    positives: Integers
    own: Integers | None = None
    anchors: Sequence[str] | None = None
    clusters: Sequence[str | None] | None = None


def negatives(
    passages: pa.Table,
    pairs: Pairs,
    stratum: str,
    rng: np.random.Generator,
    attrition: Attrition,
    ranking: Integers | None = None,
) -> Integers:
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
    if stratum not in STRATA:
        raise UsageError(
            f"there is no stratum {stratum!r}",
            location="strata",
            hint=f"the strata are: {', '.join(STRATA)}",
        )
    known = _Forbidden.of(passages, pairs)
    rows = STRATA[stratum](passages, known, rng, ranking)
    attrition.entered += len(rows)
    attrition.drop(f"no negative from {stratum}", int((rows < 0).sum()))
    return rows


def pair_scores(score: Score, pairs: Pairs, drawn: Mapping[str, Integers]) -> pa.Table:
    """Scores of the pairs and of their negatives.

    Args:
        score: rows of pairs and rows of passages -> how alike anchor and passage are: ``cosine_score(anchors, passages)``, or that of a baseline.
        pairs: n of them.
        drawn: stratum -> what ``negatives`` gave; pairs without a negative are left out of the stratum.

    Returns:
        Of schema ``tables.PAIR_SCORE``; the stratum of a related pair is ``related``.
    """
    everyone = np.arange(len(pairs.positives))
    parts = [_scored(score, pairs, everyone, pairs.positives, "related")]
    parts += [
        _scored(score, pairs, np.flatnonzero(found >= 0), found[found >= 0], stratum)
        for stratum, found in drawn.items()
    ]
    return pa.concat_tables(parts)


def shuffled(n: int, rng: np.random.Generator) -> Integers:
    """A control: for each pair another one, whose positive it is given; with these as related pairs an AUROC should be near 0.5.

    A uniformly drawn cycle through all n: nothing stays in its place, and every place is used once. With one pair it stays where it is.
    """
    cycle = rng.permutation(n)
    partner = np.empty(n, np.int64)
    partner[cycle] = np.roll(cycle, -1)
    return partner


def _scored(
    score: Score, pairs: Pairs, rows: Integers, passages: Integers, stratum: str
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
        pa.array(np.asarray(score(rows, passages), np.float64)),
    ]
    return pa.Table.from_arrays(columns, schema=PAIR_SCORE)


@dataclass(frozen=True)
class _Forbidden:
    """What may not be drawn.

    Attributes:
        positives, own: as in ``Pairs``.
        text: a number for each distinct text of passages (white space and case levelled), shape (p,).
        anchor_text: the same number for the anchors, -1 where no passage has their text, shape (n,).
        first, last: the sections in an order in which a section is followed by those that lie in it; those of a passage, shape (p,).
        shared: anchor number * p + passage, for all positives, sorted.
        anchor: the number of each anchor, shape (n,).
    """

    positives: Integers
    own: Integers
    text: Integers
    anchor_text: Integers
    first: Integers
    last: Integers
    shared: Integers
    anchor: Integers

    @classmethod
    def of(cls, passages: pa.Table, pairs: Pairs) -> _Forbidden:
        count = len(pairs.positives)
        texts: dict[str, int] = {}
        text = np.array(
            [texts.setdefault(_levelled(one), len(texts)) for one in passages["text"].to_pylist()],
            np.int64,
        )
        anchors = [_levelled(one) for one in pairs.anchors] if pairs.anchors is not None else []
        anchor_text = np.array([texts.get(one, -1) for one in anchors] or [-1] * count, np.int64)
        numbers: dict[str, int] = {}
        anchor = np.array(
            [numbers.setdefault(one, len(numbers)) for one in anchors] or range(count), np.int64
        )
        first, last = _nested(
            list(zip(passages["book"].to_pylist(), passages["section"].to_pylist(), strict=True))
        )
        own = pairs.own if pairs.own is not None else np.full(count, -1, np.int64)
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

    def hit(self, rows: Integers, passages: Integers) -> NDArray[np.bool_]:
        """Whether each passage may not be drawn for the pair of the same place."""
        positive, own = self.positives[rows], self.own[rows]
        same_text = (self.text[passages] == self.text[positive]) | (
            self.text[passages] == self.anchor_text[rows]
        )
        same_text |= (own >= 0) & (self.text[passages] == self.text[own])
        inside = (self.first[positive] <= self.first[passages]) & (
            self.first[passages] <= self.last[positive]
        )
        context = (self.first[passages] <= self.first[positive]) & (
            self.first[positive] <= self.last[passages]
        )
        also = self.anchor[rows] * len(self.text) + passages
        at = np.minimum(np.searchsorted(self.shared, also), len(self.shared) - 1)
        hit: NDArray[np.bool_] = same_text | inside | context | (self.shared[at] == also)
        return hit


def _nested(sections: Sequence[tuple[str, str]]) -> tuple[Integers, Integers]:
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


def _levelled(text: str) -> str:
    return " ".join(text.casefold().split())


def _drawn_from(
    groups: Integers, also_not: Integers | None, known: _Forbidden, rng: np.random.Generator
) -> Integers:
    """A passage from the group of each positive that may be drawn, and is not in the same ``also_not``; -1 where there is none.

    Args:
        groups: of passages, shape (p,), -1 for none.
        also_not: of passages, shape (p,), or None.
        known: what may not be drawn.
        rng: for the draws.
    """
    order = np.argsort(groups, kind="stable")
    wanted = groups[known.positives]
    start, end = (
        np.searchsorted(groups[order], wanted, "left"),
        np.searchsorted(groups[order], wanted, "right"),
    )
    found = np.full(len(wanted), -1, np.int64)

    def allowed(rows: Integers, passages: Integers) -> NDArray[np.bool_]:
        inside = (
            np.zeros(len(rows), np.bool_)
            if also_not is None
            else also_not[passages] == also_not[known.positives[rows]]
        )
        return ~(known.hit(rows, passages) | inside)

    waiting = np.flatnonzero(wanted >= 0)
    for _ in range(_ROUNDS):
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


def _random(
    passages: pa.Table, known: _Forbidden, rng: np.random.Generator, _ranking: Integers | None
) -> Integers:
    return _drawn_from(np.zeros(len(passages), np.int64), None, known, rng)


def _same_book(
    passages: pa.Table, known: _Forbidden, rng: np.random.Generator, _ranking: Integers | None
) -> Integers:
    books = _numbers([(book,) for book in passages["book"].to_pylist()])
    chapters = _chapters(passages)
    return _drawn_from(
        books, np.where(chapters < 0, -1 - np.arange(len(chapters)), chapters), known, rng
    )


def _same_chapter(
    passages: pa.Table, known: _Forbidden, rng: np.random.Generator, _ranking: Integers | None
) -> Integers:
    return _drawn_from(_chapters(passages), None, known, rng)


def _mined(
    _passages: pa.Table, known: _Forbidden, _rng: np.random.Generator, ranking: Integers | None
) -> Integers:
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
        good = ~known.hit(waiting, passages)
        found[waiting[good]] = passages[good]
    return found


def _chapters(passages: pa.Table) -> Integers:
    pairs = zip(passages["book"].to_pylist(), passages["chapter"].to_pylist(), strict=True)
    return _numbers([None if chapter is None else (book, chapter) for book, chapter in pairs])


def _numbers(keys: Sequence[tuple[str, ...] | None]) -> Integers:
    numbered: dict[tuple[str, ...], int] = {}
    return np.array(
        [-1 if key is None else numbered.setdefault(key, len(numbered)) for key in keys], np.int64
    )


STRATA: dict[
    str, Callable[[pa.Table, _Forbidden, np.random.Generator, Integers | None], Integers]
] = {
    "random": _random,
    "same book": _same_book,
    "same chapter": _same_chapter,
    "mined": _mined,
}
"""Name -> how its passages are chosen, in ascending order of difficulty."""
