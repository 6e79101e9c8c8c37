"""Percentile intervals by the cluster bootstrap: subjects are resampled, not notes.

Notes of one subject resemble each other, so a resample draws subjects with replacement, and every
row of a drawn subject comes with it (Davison and Hinkley 1997, Bootstrap Methods and Their
Application, section 3.8). Resampling notes instead gives intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinpeft.evaluation.arrays import Float64Array, Int64Array

ClusterStatistic = Callable[[Int64Array], Float64Array]
"""Counts of shape (resamples, clusters), how often each cluster was drawn, to a value a resample,
shape (resamples,); NaN where it is not defined."""

RowStatistics = Callable[[NDArray[np.int32]], Float64Array]
"""Counts of shape (resamples, rows), how often each row was drawn, to several values a resample,
shape (statistics, resamples)."""

# Cells (resamples, clusters) in memory together: 3 arrays of 8 bytes a cell, about 100 MB.
_MAX_CLUSTER_CELLS = 4_000_000
# Cells (resamples, rows) of 4 bytes in memory together: 160 MB.
_MAX_ROW_CELLS = 40_000_000


@dataclass(frozen=True)
class ConfidenceInterval:
    """A percentile interval.

    Attributes:
        low, high: the limits; None where there is no interval: fewer than two clusters, or a
            statistic that is undefined on every resample.
        level: nominal coverage, such as 0.95.
        undefined_resamples: resamples on which the statistic was NaN, such as an AUROC with one
            class only; they are left out.
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
    """Compute the percentile interval of a statistic by drawing whole clusters with replacement.

    Args:
        cluster_count: number of clusters (subjects).
        statistic: counts of shape (resamples, clusters) to values of shape (resamples,).
        resamples: number of resamples.
        level: of the interval, between 0 and 1.
        rng: source of the draws; the same generator state gives the same interval.

    Returns:
        The interval, without limits for fewer than two clusters (Davison and Hinkley 1997,
        section 5.3: percentiles of the resampled values).
    """
    # One cluster has the same value on every resample: an interval of width 0 would mislead.
    if cluster_count < 2:
        return ConfidenceInterval(None, None, level)
    values = [statistic(counts) for counts in _draw_cluster_counts(cluster_count, resamples, rng)]
    return compute_percentile_interval(np.concatenate(values), level)


def compute_percentile_interval(values: Float64Array, level: float) -> ConfidenceInterval:
    """Compute the percentile interval from the values of a statistic on the resamples.

    Args:
        values: shape (resamples,); NaN are left out and counted.
        level: of the interval, between 0 and 1.
    """
    # A resample may define no value, such as one without a positive: the interval is over the
    # others.
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if not len(defined):
        return ConfidenceInterval(None, None, level, undefined)
    # Percentile interval: empirical quantiles of the resampled values.
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return ConfidenceInterval(float(low), float(high), level, undefined)


def draw_row_counts(
    clusters: Int64Array, resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int32]]:
    """Draw clusters with replacement and count how often each row is drawn.

    Args:
        clusters: the cluster (subject) of each row, shape (rows,).
        resamples: number of resamples.
        rng: source of the draws; the same state draws the same clusters as in
            ``bootstrap_clusters``.

    Yields:
        Counts of shape (some resamples, rows), the transpose of a contiguous array, until all
        resamples are drawn.
    """
    distinct, position = np.unique(clusters, return_inverse=True)
    if not len(distinct):
        return
    # Chunks draw from the generator one after the other, so that their size does not change the
    # draws.
    chunk_size = max(1, _MAX_ROW_CELLS // len(clusters))
    remaining = resamples
    while remaining:
        draws = [
            counts.T.astype(np.int32)
            for counts in _draw_cluster_counts(len(distinct), min(chunk_size, remaining), rng)
        ]  # (clusters, some resamples) each
        # All rows of a cluster get its count: (rows, some resamples), contiguous in the resamples,
        # which is the layout that the products of the metrics are fastest with.
        yield np.concatenate(draws, axis=1)[position].T
        remaining -= min(chunk_size, remaining)


def bootstrap_rows(
    clusters: Int64Array,
    statistics: RowStatistics,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> list[ConfidenceInterval]:
    """Compute percentile intervals of several statistics of rows on the same resamples.

    Args:
        clusters: the cluster (subject) of each row, shape (rows,).
        statistics: counts of shape (resamples, rows) to values of shape (statistics, resamples).
        resamples, level, rng: as in ``bootstrap_clusters``.

    Returns:
        One interval a statistic; without limits where there are fewer than two clusters.
    """
    if len(np.unique(clusters)) < 2:
        statistic_count = len(statistics(np.ones((1, len(clusters)), np.int32)))
        return [ConfidenceInterval(None, None, level)] * statistic_count
    values = np.concatenate(
        [statistics(counts) for counts in draw_row_counts(clusters, resamples, rng)], axis=1
    )  # (statistics, resamples)
    return [compute_percentile_interval(row, level) for row in values]


def sum_by_cluster(clusters: NDArray[np.int64], *columns: NDArray[np.generic]) -> Float64Array:
    """Sum each column within each cluster.

    Args:
        clusters: the cluster of each row, shape (rows,).
        columns: numbers, each of shape (rows,).

    Returns:
        Shape (clusters, columns), clusters in ascending order of their number.
    """
    distinct, position = np.unique(clusters, return_inverse=True)
    # bincount adds in the order of the rows, in double precision.
    sums = [np.bincount(position, weights=column, minlength=len(distinct)) for column in columns]
    return np.stack(sums, axis=1)


def _draw_cluster_counts(
    cluster_count: int, resamples: int, rng: np.random.Generator
) -> Iterator[Int64Array]:
    """Multinomial counts, shape (some resamples, clusters), until ``resamples`` are drawn.

    Uniform draws that are counted have the multinomial distribution, and are several times faster
    than ``rng.multinomial`` at 300,000 clusters.
    """
    chunk_size = max(1, _MAX_CLUSTER_CELLS // cluster_count)
    for start in range(0, resamples, chunk_size):
        rows = min(chunk_size, resamples - start)
        draws = rng.integers(cluster_count, size=(rows, cluster_count))
        # Each resample gets a range of numbers of its own, so that one bincount serves all.
        draws += np.arange(rows)[:, None] * cluster_count
        counts = np.bincount(draws.ravel(), minlength=rows * cluster_count)
        yield counts.reshape(rows, cluster_count)
