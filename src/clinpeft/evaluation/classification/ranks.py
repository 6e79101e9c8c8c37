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

from clinpeft.evaluation.bootstrap import Float64Array

ScoreArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
CountArray = NDArray[np.number[Any]]

_MAX_CELLS = 8_000_000  # (places, resamples) in memory together: about 250 MB with all that is computed from them
_MAX_INT32_CELLS = (
    2**28
)  # scores drawn in one resample that 32 bits surely hold, even where the largest subjects were drawn often


@dataclass(frozen=True)
class ScoreRanks:
    """Where rows stand among the distinct scores of the positives, ascending.

    Attributes:
        positions: 2 j + 1 at the j-th of these scores, 2 j below it and above the one before, shape (n, k): k scores a row.
        positive_matrix: which of the ``distinct_count`` scores the positives of a row have, shape (distinct, n).
        distinct_count: how many.
    """

    positions: NDArray[np.int32]
    positive_matrix: sparse.csr_array
    distinct_count: int


def rank_scores(scores: ScoreArray, is_positive: BoolArray) -> ScoreRanks:
    """The ranks of one label, scores of shape (n,), or of k labels pooled, shape (n, k)."""
    if scores.ndim == 1:
        scores, is_positive = scores[:, None], is_positive[:, None]
    found = np.unique(scores[is_positive])
    places = (
        np.searchsorted(found, scores, "left") + np.searchsorted(found, scores, "right")
    ).astype(np.int32)
    rows, _ = np.nonzero(is_positive)
    at = places[is_positive] // 2
    return ScoreRanks(
        places,
        sparse.csr_array(
            (np.ones(len(rows), np.int32), (at, rows)), shape=(len(found), len(scores))
        ),
        len(found),
    )


def compute_curve_areas(score_ranks: ScoreRanks, counts: CountArray) -> Float64Array:
    """AUROC and average precision of every resample.

    Args:
        score_ranks: n rows.
        counts: how often each row was drawn, shape (resamples, n); fastest as the transpose of contiguous int32 (n, resamples).

    Returns:
        Shape (2, resamples); NaN where a resample has no positive, and for AUROC where it has no negative.
    """
    if not score_ranks.distinct_count or not len(counts):
        return np.full((2, len(counts)), np.nan)
    at_once = max(1, _MAX_CELLS // (2 * score_ranks.distinct_count + 1))
    kind = _choose_sum_dtype(score_ranks, counts)
    parts = [
        np.ascontiguousarray(counts[at : at + at_once].T, dtype=kind)
        for at in range(0, len(counts), at_once)
    ]
    return np.concatenate([_compute_areas(score_ranks, drawn) for drawn in parts], axis=1)


def auroc(scores: ScoreArray, is_positive: BoolArray, weights: Float64Array | None = None) -> float:
    """The chance that a positive scores higher than a negative (Mann and Whitney 1947), a tie counting half; NaN where a class is absent.

    Args:
        scores: shape (n,).
        is_positive: shape (n,).
        weights: of the rows, shape (n,); None: all alike.
    """
    return float(
        compute_curve_areas(rank_scores(scores, is_positive), _as_single_resample(scores, weights))[
            0, 0
        ]
    )


def average_precision(
    scores: ScoreArray, is_positive: BoolArray, weights: Float64Array | None = None
) -> float:
    """The precision at each distinct score, weighted by the share of positives that have this score: rows that tie are found together.

    Without interpolation, as in scikit-learn. A random ranking has the prevalence. NaN without a positive, 1 without a negative.
    """
    return float(
        compute_curve_areas(rank_scores(scores, is_positive), _as_single_resample(scores, weights))[
            1, 0
        ]
    )


def resample_auroc(scores: ScoreArray, is_positive: BoolArray, counts: CountArray) -> Float64Array:
    """``auroc`` of every resample, shape (resamples,); ``counts`` as in ``areas``, NaN where a class was not drawn."""
    return _select_area(0, scores, is_positive, counts)


def resample_average_precision(
    scores: ScoreArray, is_positive: BoolArray, counts: CountArray
) -> Float64Array:
    """``average_precision`` of every resample, shape (resamples,); ``counts`` as in ``areas``, NaN where no positive was drawn."""
    return _select_area(1, scores, is_positive, counts)


def _select_area(
    area_index: int, scores: ScoreArray, is_positive: BoolArray, counts: CountArray
) -> Float64Array:
    found: Float64Array = compute_curve_areas(rank_scores(scores, is_positive), counts)[area_index]
    return found


def _as_single_resample(scores: ScoreArray, weights: Float64Array | None) -> CountArray:
    return (np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64))[None]


def _choose_sum_dtype(score_ranks: ScoreRanks, counts: CountArray) -> np.dtype[Any]:
    """Whole numbers add up exactly where they fit; weights that are no counts are added in double precision."""
    if counts.dtype.kind == "f":
        return np.dtype(np.float64)
    return np.dtype(np.int32 if score_ranks.positions.size < _MAX_INT32_CELLS else np.int64)


def _compute_areas(score_ranks: ScoreRanks, counts: CountArray) -> Float64Array:
    """As ``areas``, with ``counts`` of shape (n, resamples)."""
    rows, scores_a_row = score_ranks.positions.shape
    starts = np.arange(rows + 1, dtype=np.int64) * scores_a_row
    ones = np.ones(score_ranks.positions.size, counts.dtype)
    standing = sparse.csc_array(
        (ones, score_ranks.positions.ravel(), starts),
        shape=(2 * score_ranks.distinct_count + 1, rows),
    )
    counted = np.asarray(standing @ counts)  # (places, resamples)
    reached = np.cumsum(counted, axis=0, dtype=np.float64)
    total = reached[-1]
    at_score, reached = (
        counted[1::2],
        reached[1::2],
    )  # all rows at, and at or below, each distinct score: (distinct, resamples)
    positives = np.asarray(score_ranks.positive_matrix @ counts, dtype=np.float64)
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
