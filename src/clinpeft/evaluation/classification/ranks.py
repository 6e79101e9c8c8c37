"""Areas under the ROC and the precision-recall curve, for a sample and all its resamples at once.

Only the distinct scores of positives matter. Between two of them rows are counted and not ordered:
one pass over the rows of a label gives, for every resample, how many rows score below, at and above
each positive, and both areas follow from these counts. A resample says how often each row was
drawn; the sample itself is the resample that draws every row once, so that a value and its interval
come from the same lines of code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from clinpeft.evaluation.arrays import BoolArray, CountArray, Float64Array, ScoreArray

# Cells (positions, resamples) in memory together: about 250 MB with all that is computed from them.
_MAX_CELLS = 8_000_000
# Scores drawn in one resample that 32 bits surely hold, even where the largest subjects were drawn
# often.
_MAX_INT32_CELLS = 2**28


@dataclass(frozen=True)
class ScoreRanks:
    """Where rows rank among the distinct scores of the positives, ascending.

    Attributes:
        positions: 2 j + 1 at the j-th of these scores, 2 j below it and above the previous one,
            shape (n, k): k scores a row.
        positive_matrix: which of the ``distinct_count`` scores the positives of a row have, shape
            (distinct, n).
        distinct_count: number of distinct scores of positives.
    """

    positions: NDArray[np.int32]
    positive_matrix: sparse.csr_array
    distinct_count: int


def rank_scores(scores: ScoreArray, is_positive: BoolArray) -> ScoreRanks:
    """Rank the scores of one label, shape (n,), or of k labels pooled, shape (n, k).

    Args:
        scores: higher means more likely positive.
        is_positive: the truth, in the shape of ``scores``.
    """
    if scores.ndim == 1:
        scores, is_positive = scores[:, None], is_positive[:, None]  # (n, 1)
    distinct = np.unique(scores[is_positive])  # ascending
    # left + right insertion index: 2 j + 1 for the j-th distinct score itself, 2 j between two.
    positions = (
        np.searchsorted(distinct, scores, "left") + np.searchsorted(distinct, scores, "right")
    ).astype(np.int32)
    rows, _ = np.nonzero(is_positive)  # row of each positive cell
    score_index = positions[is_positive] // 2
    positive_matrix = sparse.csr_array(
        (np.ones(len(rows), np.int32), (score_index, rows)), shape=(len(distinct), len(scores))
    )
    return ScoreRanks(positions, positive_matrix, len(distinct))


def compute_curve_areas(score_ranks: ScoreRanks, counts: CountArray) -> Float64Array:
    """Compute AUROC and average precision of every resample.

    Args:
        score_ranks: of n rows.
        counts: how often each row was drawn, shape (resamples, n); fastest as the transpose of a
            contiguous int32 array of shape (n, resamples).

    Returns:
        Shape (2, resamples): the definitions of ``auroc`` and ``average_precision``. NaN where a
        resample has no positive, and for the AUROC where it has no negative.
    """
    if not score_ranks.distinct_count or not len(counts):
        return np.full((2, len(counts)), np.nan)
    # 2 j + 1 positions a label: between, at, and beyond the distinct scores.
    chunk_size = max(1, _MAX_CELLS // (2 * score_ranks.distinct_count + 1))
    # Counts add up exactly as integers where they fit; weights add up in double precision.
    dtype = np.dtype(np.int32 if score_ranks.positions.size < _MAX_INT32_CELLS else np.int64)
    if counts.dtype.kind == "f":
        dtype = np.dtype(np.float64)
    chunks = [
        np.ascontiguousarray(counts[start : start + chunk_size].T, dtype=dtype)
        for start in range(0, len(counts), chunk_size)
    ]
    return np.concatenate([_compute_areas(score_ranks, chunk) for chunk in chunks], axis=1)


def auroc(scores: ScoreArray, is_positive: BoolArray, weights: Float64Array | None = None) -> float:
    """The area under the ROC curve: the chance that a positive scores higher than a negative.

    This is the Mann-Whitney statistic U / (positives · negatives) (Mann and Whitney 1947; Hanley
    and McNeil 1982, Radiology 143). A tie of a positive with a negative counts half.

    Args:
        scores: shape (n,).
        is_positive: shape (n,).
        weights: of the rows, shape (n,); None: all equal.

    Returns:
        Between 0 and 1; NaN where a class is absent.
    """
    row_weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    return float(compute_curve_areas(rank_scores(scores, is_positive), row_weights[None])[0, 0])


def average_precision(
    scores: ScoreArray, is_positive: BoolArray, weights: Float64Array | None = None
) -> float:
    """The average precision: Σ (R_i - R_{i-1}) P_i over the distinct scores, descending.

    P_i and R_i are precision and recall of the rows that score at least the i-th distinct score;
    rows that tie enter together. Without interpolation, as ``average_precision_score`` of
    scikit-learn. A random ranking has the prevalence as its expected value.

    Args:
        scores, is_positive, weights: as in ``auroc``.

    Returns:
        Between 0 and 1; NaN without a positive, 1 without a negative.
    """
    row_weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    return float(compute_curve_areas(rank_scores(scores, is_positive), row_weights[None])[1, 0])


def resample_auroc(scores: ScoreArray, is_positive: BoolArray, counts: CountArray) -> Float64Array:
    """Compute ``auroc`` of every resample.

    Args:
        scores, is_positive: shape (n,).
        counts: as in ``compute_curve_areas``.

    Returns:
        Shape (resamples,); NaN where a class was not drawn.
    """
    areas: Float64Array = compute_curve_areas(rank_scores(scores, is_positive), counts)[0]
    return areas


def _compute_areas(score_ranks: ScoreRanks, counts: CountArray) -> Float64Array:
    """As ``compute_curve_areas``, with ``counts`` of shape (n, resamples)."""
    rows, scores_per_row = score_ranks.positions.shape
    starts = np.arange(rows + 1, dtype=np.int64) * scores_per_row
    ones = np.ones(score_ranks.positions.size, counts.dtype)
    # Column n of this matrix marks the positions of row n: (positions, rows).
    position_matrix = sparse.csc_array(
        (ones, score_ranks.positions.ravel(), starts),
        shape=(2 * score_ranks.distinct_count + 1, rows),
    )
    position_counts = np.asarray(position_matrix @ counts)  # (positions, resamples)
    cumulative = np.cumsum(position_counts, axis=0, dtype=np.float64)
    total = cumulative[-1]  # (resamples,)
    # All rows at, and at or below, each distinct score: (distinct, resamples).
    at_score, cumulative = position_counts[1::2], cumulative[1::2]
    positives = np.asarray(score_ranks.positive_matrix @ counts, dtype=np.float64)
    cumulative_positives = np.cumsum(positives, axis=0)  # (distinct, resamples)
    positive_total = cumulative_positives[-1]  # (resamples,)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a class was not drawn
        # Negatives below each positive; those at the same score count half (Mann and Whitney 1947).
        negatives_below = cumulative - cumulative_positives - (at_score - positives) / 2
        auroc_values = np.einsum("dr,dr->r", positives, negatives_below) / (
            positive_total * (total - positive_total)
        )
        positives_above = positive_total - cumulative_positives + positives  # at or above
        rows_above = total - cumulative + at_score  # at or above
        precision = np.divide(
            positives_above, rows_above, out=np.zeros_like(positives_above), where=rows_above > 0
        )
        precision_values = np.einsum("dr,dr->r", positives, precision) / positive_total
        return np.stack([auroc_values, precision_values])
