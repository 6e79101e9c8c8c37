"""How far a number would move with other patients: the cluster bootstrap.

Notes of one person resemble each other, so a resample draws people, and all that belongs to a drawn person comes along (Davison and Hinkley
1997, section 3.8). Resampling notes instead would give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

ClusterStatistic = Callable[[Int64Array], Float64Array]
"""Counts of shape (resamples, clusters), how often each cluster was drawn, to one number a resample; NaN where it is not defined."""

RowStatistics = Callable[[NDArray[np.int32]], Float64Array]
"""Counts of shape (resamples, rows), how often each row was drawn, to several numbers a resample, shape (statistics, resamples)."""

_MAX_CLUSTER_CELLS = 4_000_000  # (resamples, clusters) cells in memory together: 3 arrays of 8 bytes a cell, about 100 MB
_MAX_ROW_CELLS = 40_000_000  # (resamples, rows) cells of 4 bytes: 160 MB


@dataclass(frozen=True)
class ConfidenceInterval:
    """A percentile interval.

    Attributes:
        low, high: its ends; None where no interval can be given: fewer than two clusters, or a statistic that no resample defines.
        level: the share of intervals that should hold the true value.
        undefined_resamples: resamples on which the statistic was NaN, such as an AUROC with one class only; they are left out.
    """

    low: float | None
    high: float | None
    level: float
    undefined_resamples: int = 0


def bootstrap_clusters(
    cluster_count: int,
    statistic: ClusterStatistic,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> ConfidenceInterval:
    """The percentile interval of a statistic when whole clusters (subjects) are drawn with replacement.

    Args:
        cluster_count: how many there are.
        statistic: how often each cluster was drawn, shape (resamples, clusters), to a value a resample, shape (resamples,).
        resamples: how many.
        level: of the interval, between 0 and 1.
        rng: where the draws come from; the same generator state gives the same interval.
    """
    if cluster_count < 2:
        return ConfidenceInterval(None, None, level)
    return compute_percentile_interval(
        np.concatenate(
            [statistic(counts) for counts in _draw_cluster_counts(cluster_count, resamples, rng)]
        ),
        level,
    )


def compute_percentile_interval(values: Float64Array, level: float) -> ConfidenceInterval:
    """The percentile interval of a statistic from its values on the resamples, shape (resamples,); NaN are left out and counted."""
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if not len(defined):
        return ConfidenceInterval(None, None, level, undefined)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return ConfidenceInterval(float(low), float(high), level, undefined)


def draw_row_counts(
    clusters: Int64Array, resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int32]]:
    """How often each row is drawn when whole clusters are: all rows of a cluster come together.

    Args:
        clusters: the cluster (subject) of each row, shape (rows,).
        resamples: how many.
        rng: where the draws come from; the same state draws the same clusters as in ``cluster_bootstrap``.

    Yields:
        Shape (some resamples, rows), the transpose of a contiguous array, until all resamples are drawn.
    """
    found, position = np.unique(clusters, return_inverse=True)
    if not len(found):
        return
    at_once = max(1, _MAX_ROW_CELLS // len(clusters))
    waiting = resamples
    while waiting:
        drawn = [
            counts.T.astype(np.int32)
            for counts in _draw_cluster_counts(len(found), min(at_once, waiting), rng)
        ]
        yield np.concatenate(drawn, axis=1)[position].T
        waiting -= min(at_once, waiting)


def bootstrap_rows(
    clusters: Int64Array,
    statistics: RowStatistics,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> list[ConfidenceInterval]:
    """The percentile intervals of several statistics of rows on the same resamples of clusters.

    Args:
        clusters: the cluster (subject) of each row, shape (rows,).
        statistics: how often each row was drawn, shape (resamples, rows), to the values, shape (statistics, resamples).
        resamples, level, rng: as in ``cluster_bootstrap``.

    Returns:
        One a statistic; without ends where there are fewer than two clusters.
    """
    if len(np.unique(clusters)) < 2:
        return [ConfidenceInterval(None, None, level)] * len(
            statistics(np.ones((1, len(clusters)), np.int32))
        )
    values = np.concatenate(
        [statistics(counts) for counts in draw_row_counts(clusters, resamples, rng)], axis=1
    )
    return [compute_percentile_interval(one, level) for one in values]


def sum_by_cluster(clusters: NDArray[np.int64], *columns: NDArray[np.generic]) -> Float64Array:
    """Each column summed within each cluster.

    Args:
        clusters: the cluster of each row, shape (rows,).
        columns: numbers, each of shape (rows,).

    Returns:
        Shape (clusters, columns), clusters in ascending order of their number.
    """
    found, position = np.unique(clusters, return_inverse=True)
    sums = [np.bincount(position, weights=column, minlength=len(found)) for column in columns]
    return np.stack(sums, axis=1)


def _draw_cluster_counts(
    cluster_count: int, resamples: int, rng: np.random.Generator
) -> Iterator[Int64Array]:
    """Multinomial counts, shape (some resamples, clusters), until ``resamples`` are drawn.

    Uniform draws that are counted: the multinomial distribution, several times faster than its sampler at 300,000 clusters.
    """
    at_once = max(1, _MAX_CLUSTER_CELLS // cluster_count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        draws = rng.integers(cluster_count, size=(rows, cluster_count))
        draws += (
            np.arange(rows)[:, None] * cluster_count
        )  # a range of its own for each row, so that one count serves all
        yield np.bincount(draws.ravel(), minlength=rows * cluster_count).reshape(
            rows, cluster_count
        )
