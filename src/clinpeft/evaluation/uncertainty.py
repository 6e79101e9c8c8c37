"""How far a number would move with other patients: the cluster bootstrap.

Notes of one person resemble each other, so a resample draws people, and all that belongs to a drawn person comes along (Davison and Hinkley
1997, section 3.8). Resampling notes instead would give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

Statistic = Callable[[Integers], Floats]
"""Counts of shape (resamples, clusters), how often each cluster was drawn, to one number a resample; NaN where it is not defined."""

_CELLS_AT_ONCE = 4_000_000  # (resamples, clusters) cells in memory together: 3 arrays of 8 bytes a cell, about 100 MB


@dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
        low, high: its ends; None where no interval can be given: fewer than two clusters, or a statistic that no resample defines.
        level: the share of intervals that should hold the true value.
        undefined: resamples on which the statistic was NaN, such as an AUROC with one class only; they are left out.
    """

    low: float | None
    high: float | None
    level: float
    undefined: int = 0


def cluster_bootstrap(clusters: int, statistic: Statistic, *, resamples: int, level: float, rng: np.random.Generator) -> Interval:
    """The percentile interval of a statistic when whole clusters (subjects) are drawn with replacement.

    Args:
        clusters: how many there are.
        statistic: how often each cluster was drawn, shape (resamples, clusters), to a value a resample, shape (resamples,).
        resamples: how many.
        level: of the interval, between 0 and 1.
        rng: where the draws come from; the same generator state gives the same interval.
    """
    if clusters < 2:
        return Interval(None, None, level)
    values = np.concatenate([statistic(counts) for counts in _drawn(clusters, resamples, rng)])
    defined = values[~np.isnan(values)]
    undefined = resamples - len(defined)
    if not len(defined):
        return Interval(None, None, level, undefined)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, undefined)


def cluster_sums(clusters: NDArray[np.int64], *columns: NDArray[np.generic]) -> Floats:
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


def _drawn(clusters: int, resamples: int, rng: np.random.Generator) -> Iterator[Integers]:
    """Multinomial counts, shape (some resamples, clusters), until ``resamples`` are drawn.

    Uniform draws that are counted: the multinomial distribution, several times faster than its sampler at 300,000 clusters.
    """
    at_once = max(1, _CELLS_AT_ONCE // clusters)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        draws = rng.integers(clusters, size=(rows, clusters))
        draws += np.arange(rows)[:, None] * clusters  # a range of its own for each row, so that one count serves all
        yield np.bincount(draws.ravel(), minlength=rows * clusters).reshape(rows, clusters)
