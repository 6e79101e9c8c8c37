"""How well scores rank: areas under the ROC and the precision-recall curve, for a sample and for all its resamples at once.

Only the distinct scores of positives matter. Between two of them rows are counted and not ordered: one pass over the rows of a label gives, for
every resample, how many stand below, at and above each positive, and both areas follow from these counts. A resample says how often each row
was drawn; the sample itself is the resample that draws every row once, so that a value and its interval come from the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from clinpeft.evaluation.bootstrap import Floats

Scores = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
Counts = NDArray[np.number[Any]]

_CELLS_AT_ONCE = 8_000_000  # (places, resamples) in memory together: about 250 MB with all that is computed from them
_SAFE_CELLS = (
    2**28
)  # scores drawn in one resample that 32 bits surely hold, even where the largest subjects were drawn often


@dataclass(frozen=True)
class Ranks:
    """Where rows stand among the distinct scores of the positives, ascending.

    Attributes:
        places: 2 j + 1 at the j-th of these scores, 2 j below it and above the one before, shape (n, k): k scores a row.
        positives: which of the ``distinct`` scores the positives of a row have, shape (distinct, n).
        distinct: how many.
    """

    places: NDArray[np.int32]
    positives: sparse.csr_array
    distinct: int


def ranks(scores: Scores, positive: Flags) -> Ranks:
    """The ranks of one label, scores of shape (n,), or of k labels pooled, shape (n, k)."""
    if scores.ndim == 1:
        scores, positive = scores[:, None], positive[:, None]
    found = np.unique(scores[positive])
    places = (
        np.searchsorted(found, scores, "left") + np.searchsorted(found, scores, "right")
    ).astype(np.int32)
    rows, _ = np.nonzero(positive)
    at = places[positive] // 2
    return Ranks(
        places,
        sparse.csr_array(
            (np.ones(len(rows), np.int32), (at, rows)), shape=(len(found), len(scores))
        ),
        len(found),
    )


def areas(ranked: Ranks, counts: Counts) -> Floats:
    """AUROC and average precision of every resample.

    Args:
        ranked: n rows.
        counts: how often each row was drawn, shape (resamples, n); fastest as the transpose of contiguous int32 (n, resamples).

    Returns:
        Shape (2, resamples); NaN where a resample has no positive, and for AUROC where it has no negative.
    """
    if not ranked.distinct or not len(counts):
        return np.full((2, len(counts)), np.nan)
    at_once = max(1, _CELLS_AT_ONCE // (2 * ranked.distinct + 1))
    kind = _sums_without_error(ranked, counts)
    parts = [
        np.ascontiguousarray(counts[at : at + at_once].T, dtype=kind)
        for at in range(0, len(counts), at_once)
    ]
    return np.concatenate([_areas(ranked, drawn) for drawn in parts], axis=1)


def auroc(scores: Scores, positive: Flags, weights: Floats | None = None) -> float:
    """The chance that a positive scores higher than a negative (Mann and Whitney 1947), a tie counting half; NaN where a class is absent.

    Args:
        scores: shape (n,).
        positive: shape (n,).
        weights: of the rows, shape (n,); None: all alike.
    """
    return float(areas(ranks(scores, positive), _once(scores, weights))[0, 0])


def average_precision(scores: Scores, positive: Flags, weights: Floats | None = None) -> float:
    """The precision at each distinct score, weighted by the share of positives that have this score: rows that tie are found together.

    Without interpolation, as in scikit-learn. A random ranking has the prevalence. NaN without a positive, 1 without a negative.
    """
    return float(areas(ranks(scores, positive), _once(scores, weights))[1, 0])


def auroc_resampled(scores: Scores, positive: Flags, counts: Counts) -> Floats:
    """``auroc`` of every resample, shape (resamples,); ``counts`` as in ``areas``, NaN where a class was not drawn."""
    return _line(0, scores, positive, counts)


def average_precision_resampled(scores: Scores, positive: Flags, counts: Counts) -> Floats:
    """``average_precision`` of every resample, shape (resamples,); ``counts`` as in ``areas``, NaN where no positive was drawn."""
    return _line(1, scores, positive, counts)


def _line(which: int, scores: Scores, positive: Flags, counts: Counts) -> Floats:
    found: Floats = areas(ranks(scores, positive), counts)[which]
    return found


def _once(scores: Scores, weights: Floats | None) -> Counts:
    return (np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64))[None]


def _sums_without_error(ranked: Ranks, counts: Counts) -> np.dtype[Any]:
    """Whole numbers add up exactly where they fit; weights that are no counts are added in double precision."""
    if counts.dtype.kind == "f":
        return np.dtype(np.float64)
    return np.dtype(np.int32 if ranked.places.size < _SAFE_CELLS else np.int64)


def _areas(ranked: Ranks, drawn: Counts) -> Floats:
    """As ``areas``, with ``drawn`` of shape (n, resamples)."""
    rows, scores_a_row = ranked.places.shape
    starts = np.arange(rows + 1, dtype=np.int64) * scores_a_row
    ones = np.ones(ranked.places.size, drawn.dtype)
    standing = sparse.csc_array(
        (ones, ranked.places.ravel(), starts), shape=(2 * ranked.distinct + 1, rows)
    )
    counted = np.asarray(standing @ drawn)  # (places, resamples)
    reached = np.cumsum(counted, axis=0, dtype=np.float64)
    total = reached[-1]
    at_score, reached = (
        counted[1::2],
        reached[1::2],
    )  # all rows at, and at or below, each distinct score: (distinct, resamples)
    positives = np.asarray(ranked.positives @ drawn, dtype=np.float64)
    positives_reached = np.cumsum(positives, axis=0)
    events = positives_reached[-1]
    with np.errstate(invalid="ignore"):  # 0 / 0 where a class was not drawn
        negatives_below = (
            reached - positives_reached - (at_score - positives) / 2
        )  # those at the score count half
        auroc_values = np.einsum("dr,dr->r", positives, negatives_below) / (
            events * (total - events)
        )
        found = events - positives_reached + positives  # positives at or above
        among = total - reached + at_score  # all at or above
        precision = np.divide(found, among, out=np.zeros_like(found), where=among > 0)
        return np.stack([auroc_values, np.einsum("dr,dr->r", positives, precision) / events])
