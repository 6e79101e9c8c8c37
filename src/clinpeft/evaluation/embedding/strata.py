"""Unrelated pairs of graded difficulty: random, from the same book or chapter, or mined.

A separation against random passages measures the sampler: any model tells the heart from the skin.
So negatives are drawn in strata, and each is reported by itself. A negative is never the anchor's
own passage, a passage with the text of anchor or positive, one from the section of the positive
(nor from a section that holds it or that it holds), nor another positive of the same anchor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import PAIR_SCORE_SCHEMA, Attrition
from clinpeft.evaluation.arrays import BoolArray, Int64Array
from clinpeft.evaluation.embedding.vectors import PairScorer

NEGATIVE_STRATA = ("random", "same book", "same chapter", "mined")
"""In ascending order of difficulty."""

_MAX_DRAW_ROUNDS = 20  # draws before the remaining pairs are searched passage by passage


@dataclass(frozen=True)
class AnchorPairs:
    """Anchors and the passages that belong to them.

    Attributes:
        pair_ids: shape (n,).
        positives: the passage row of each, shape (n,).
        own_passages: the passage row that each anchor is itself, -1 for a text that is no passage,
            shape (n,); None: none is.
        anchors: their texts, of which two that are equal share their positives; None: all differ.
        clusters: what is resampled together, usually the chapter of the positive; None: each pair
            is a cluster of its own.
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
    """Draw for each pair a passage that does not belong to its anchor.

    Args:
        passages: with the columns ``book``, ``chapter``, ``section`` and ``text`` of
            ``PASSAGE_SCHEMA``.
        pairs: n of them.
        stratum: ``random`` (any passage), ``same book`` (that of the positive, but not from its
            chapter), ``same chapter`` (but not its section) or ``mined`` (the first in ``ranking``
            that may be one). A chapter that is unknown is no chapter.
        rng: source of the draws, which are uniform over all passages that may be drawn.
        attrition: counts the pairs, and those for which no passage may be drawn.
        ranking: only for ``mined``: passage rows that a reference such as BM25 ranks best for each
            anchor, best first, -1 for none, shape (n, m).

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
    exclusions = _ExcludedPassages.from_passages(passages, pairs)
    if stratum == "mined":
        rows = _select_mined(exclusions, ranking)
    else:
        books = passages["book"].to_pylist()
        chapters = _number_keys(
            [
                None if chapter is None else (book, chapter)
                for book, chapter in zip(books, passages["chapter"].to_pylist(), strict=True)
            ]
        )
        # A passage without a chapter is in none: a negative number of its own.
        own_chapters = np.where(chapters < 0, -1 - np.arange(len(chapters)), chapters)
        if stratum == "random":
            whole = np.zeros(len(passages), np.int64)
            rows = _draw_from_groups(whole, None, exclusions, rng)
        elif stratum == "same book":
            book_numbers = _number_keys([(book,) for book in books])
            rows = _draw_from_groups(book_numbers, own_chapters, exclusions, rng)
        else:
            rows = _draw_from_groups(chapters, None, exclusions, rng)
    attrition.entered_rows += len(rows)
    attrition.drop_rows(f"no negative from {stratum}", int((rows < 0).sum()))
    return rows


def score_anchor_pairs(
    scorer: PairScorer, pairs: AnchorPairs, negatives: Mapping[str, Int64Array]
) -> pa.Table:
    """Score the pairs and their negatives.

    Args:
        scorer: rows of pairs and rows of passages to the similarity of anchor and passage:
            ``build_cosine_scorer(anchors, passages)``, or that of a lexical baseline.
        pairs: n of them.
        negatives: stratum to the result of ``draw_negatives``; pairs without a negative are left
            out of the stratum.

    Returns:
        Of schema ``PAIR_SCORE_SCHEMA``; the stratum of a related pair is ``related``.
    """
    count = len(pairs.pair_ids)
    pair_ids = pa.array(pairs.pair_ids, pa.string())
    clusters = pa.array(
        pairs.clusters if pairs.clusters is not None else [None] * count, pa.string()
    )
    tables = []
    for stratum, passages in {"related": pairs.positives, **negatives}.items():
        rows = np.flatnonzero(passages >= 0)
        scores = np.asarray(scorer(rows, passages[rows]), np.float64)
        columns = [
            pair_ids.take(pa.array(rows)),
            clusters.take(pa.array(rows)),
            pa.array([stratum] * len(rows), pa.string()),
            pa.array(np.full(len(rows), stratum == "related")),
            pa.array(scores),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=PAIR_SCORE_SCHEMA))
    return pa.concat_tables(tables)


def shuffle_partners(pair_count: int, rng: np.random.Generator) -> Int64Array:
    """Draw for each pair another one whose positive it gets, as a control: the AUROC is near 0.5.

    A uniformly drawn cycle through all n (Sattolo 1986): no pair keeps its positive, and every
    positive is used once. A single pair keeps its own.

    Returns:
        Rows of pairs, shape (n,).
    """
    # Each element's successor in a random cycle: a permutation without fixed points.
    cycle = rng.permutation(pair_count)
    partner = np.empty(pair_count, np.int64)
    partner[cycle] = np.roll(cycle, -1)
    return partner


@dataclass(frozen=True)
class _ExcludedPassages:
    """Passages that may not be drawn as a negative of a pair.

    Attributes:
        positives, own_passages: as in ``AnchorPairs``.
        text_numbers: a number for each distinct text of passages (white space and case folded),
            shape (p,).
        anchor_text_numbers: the same number for the anchors, -1 where no passage has their text,
            shape (n,).
        first_sections, last_sections: the sections in an order in which a section is followed by
            those that lie in it; those of a passage, shape (p,).
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
        numbers: dict[str, int] = {}
        texts = [_normalize_text(text) for text in passages["text"].to_pylist()]
        text_numbers = np.array(
            [numbers.setdefault(text, len(numbers)) for text in texts], np.int64
        )
        # Without texts every anchor differs from all others and from all passages.
        anchor_text_numbers, anchor_numbers = np.full(count, -1, np.int64), np.arange(count)
        if pairs.anchors:
            anchors = [_normalize_text(text) for text in pairs.anchors]
            anchor_text_numbers = np.array([numbers.get(text, -1) for text in anchors], np.int64)
            anchor_numbers = _number_keys([(text,) for text in anchors])
        sections = zip(passages["book"].to_pylist(), passages["section"].to_pylist(), strict=True)
        first_sections, last_sections = _index_nested_sections(list(sections))
        own = pairs.own_passages if pairs.own_passages is not None else np.full(count, -1, np.int64)
        return cls(
            pairs.positives,
            own,
            text_numbers,
            anchor_text_numbers,
            first_sections,
            last_sections,
            np.sort(anchor_numbers * len(text_numbers) + pairs.positives),
            anchor_numbers,
        )

    def is_excluded(self, rows: Int64Array, passages: Int64Array) -> BoolArray:
        """Whether each passage is excluded for the pair at the same position, shape (m,).

        Args:
            rows: of pairs, shape (m,).
            passages: rows of passages, shape (m,).
        """
        positive, own = self.positives[rows], self.own_passages[rows]
        text = self.text_numbers[passages]
        has_same_text = (text == self.text_numbers[positive]) | (
            text == self.anchor_text_numbers[rows]
        )
        has_same_text |= (own >= 0) & (text == self.text_numbers[own])
        # Sections are intervals that nest or are disjoint: either may lie in the other.
        section, positive_section = self.first_sections[passages], self.first_sections[positive]
        is_inside = (positive_section <= section) & (section <= self.last_sections[positive])
        is_around = (section <= positive_section) & (
            positive_section <= self.last_sections[passages]
        )
        # Equal anchors share their positives: looked up by anchor and passage.
        key = self.anchor_numbers[rows] * len(self.text_numbers) + passages
        at = np.minimum(np.searchsorted(self.positive_keys, key), len(self.positive_keys) - 1)
        is_positive = self.positive_keys[at] == key
        excluded: BoolArray = has_same_text | is_inside | is_around | is_positive
        return excluded


def _index_nested_sections(sections: Sequence[tuple[str, str]]) -> tuple[Int64Array, Int64Array]:
    """The position of each passage's section among all, and the last position of a section that
    lies in it (``a/b`` lies in ``a``), shape (p,) each."""
    paths = {section: (section[0], *section[1].split("/")) for section in set(sections)}
    order = sorted(paths.values())  # a parent is followed by all that it holds
    positions = {path: at for at, path in enumerate(order)}
    last, open_positions = [0] * len(order), list[int]()
    for at, path in enumerate(order):
        # Close the sections that do not hold this one; what is open is a chain of parents.
        while (
            open_positions and path[: len(order[open_positions[-1]])] != order[open_positions[-1]]
        ):
            last[open_positions.pop()] = at - 1
        open_positions.append(at)
    for at in open_positions:
        last[at] = len(order) - 1
    first_sections = np.array([positions[paths[section]] for section in sections], np.int64)
    return first_sections, np.array(last, np.int64)[first_sections]


def _normalize_text(text: str) -> str:
    return " ".join(text.casefold().split())


def _draw_from_groups(
    groups: Int64Array,
    excluded_groups: Int64Array | None,
    exclusions: _ExcludedPassages,
    rng: np.random.Generator,
) -> Int64Array:
    """A passage from the group of each positive that may be drawn; -1 where there is none.

    Args:
        groups: of passages, shape (p,), -1 for none.
        excluded_groups: of passages, shape (p,); a negative is not in that of the positive. None:
            no further exclusion.
        exclusions: what may not be drawn.
        rng: source of the draws.
    """
    order = np.argsort(groups, kind="stable")
    group = groups[exclusions.positives]  # (n,)
    start = np.searchsorted(groups[order], group, "left")
    end = np.searchsorted(groups[order], group, "right")
    negatives = np.full(len(group), -1, np.int64)

    def is_allowed(rows: Int64Array, passages: Int64Array) -> BoolArray:
        excluded = exclusions.is_excluded(rows, passages)
        if excluded_groups is not None:
            positives = exclusions.positives[rows]
            excluded = excluded | (excluded_groups[passages] == excluded_groups[positives])
        return ~excluded

    # Rejection sampling is uniform over the allowed passages, and almost always ends after a few
    # rounds; pairs that it leaves open have few allowed passages, which are then listed.
    pending = np.flatnonzero(group >= 0)
    for _ in range(_MAX_DRAW_ROUNDS):
        passages = order[rng.integers(start[pending], end[pending])] if len(pending) else pending
        accepted = is_allowed(pending, passages)
        negatives[pending[accepted]] = passages[accepted]
        pending = pending[~accepted]
    for row in pending:
        members = order[start[row] : end[row]]
        allowed = members[is_allowed(np.full(len(members), row), members)]
        if len(allowed):
            negatives[row] = rng.choice(allowed)
    return negatives


def _select_mined(exclusions: _ExcludedPassages, ranking: Int64Array | None) -> Int64Array:
    """The first passage of each row of a ranking that is not excluded; -1 where there is none."""
    if ranking is None:
        raise UsageError(
            "mined negatives without a ranking",
            location="strata",
            hint="rank the passages for every anchor first, such as by BM25",
        )
    negatives = np.full(len(ranking), -1, np.int64)
    for rank in range(ranking.shape[1]):
        pending = np.flatnonzero((negatives < 0) & (ranking[:, rank] >= 0))
        passages = ranking[pending, rank]
        accepted = ~exclusions.is_excluded(pending, passages)
        negatives[pending[accepted]] = passages[accepted]
    return negatives


def _number_keys(keys: Sequence[tuple[str, ...] | None]) -> Int64Array:
    """A number for each distinct key in the order of their first rows, -1 for None, shape (n,)."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.array(
        [-1 if key is None else numbers.setdefault(key, len(numbers)) for key in keys], np.int64
    )
