"""Rows of ``METRIC_RESULT_SCHEMA`` from values and intervals, with the reason where one is
missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinpeft.evaluation.arrays import Float64Array, Int64Array
from clinpeft.evaluation.bootstrap import ConfidenceInterval, RowStatistics, bootstrap_rows

MIN_RELIABLE_CLUSTERS = 20
"""With fewer, a percentile interval is too narrow (with eight clusters some 89 % instead of 95 %
cover the truth), and the definition says so."""

MetricRow = dict[str, object]


@dataclass(frozen=True)
class MeasurementContext:
    """What a row is about, beside its number.

    Attributes:
        n: pairs, queries or texts.
        n_events: related pairs, or relevant passages; None where there are no events.
        split, group, task: as in ``METRIC_RESULT_SCHEMA``.
        resampled_unit: what is resampled, in the plural.
    """

    n: int
    n_events: int | None
    split: str
    group: str
    task: str | None = None
    resampled_unit: str = "clusters"


def number_clusters(clusters: Sequence[str | None]) -> Int64Array:
    """Number the clusters in the order of their first rows, shape (n,); None is a cluster of its
    own."""
    numbers: dict[str | tuple[int], int] = {}
    # A tuple cannot collide with the name of a cluster.
    keys: list[str | tuple[int]] = [
        (at,) if cluster is None else cluster for at, cluster in enumerate(clusters)
    ]
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(keys))


def bootstrap_metric_rows(
    definitions: dict[str, str],
    statistics: RowStatistics,
    clusters: Int64Array,
    context: MeasurementContext,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> list[MetricRow]:
    """Build a row for each statistic; its value is that of the resample that draws every row once.

    Args:
        definitions: name to definition, in the order of the statistics.
        statistics: counts of shape (resamples, n) to values of shape (statistics, resamples).
        clusters: cluster of each row, shape (n,).
        context: what the rows are about.
        resamples, level, rng: of the cluster bootstrap.
    """
    values = statistics(np.ones((1, len(clusters)), np.int32))[:, 0]  # (statistics,)
    intervals = bootstrap_rows(clusters, statistics, resamples=resamples, level=level, rng=rng)
    cluster_count = len(np.unique(clusters))
    results = zip(definitions.items(), values, intervals, strict=True)
    return [
        build_metric_row(name, value, interval, definition, context, cluster_count, resamples)
        for (name, definition), value, interval in results
    ]


def build_metric_row(
    name: str,
    value: float,
    interval: ConfidenceInterval | None,
    definition: str,
    context: MeasurementContext,
    cluster_count: int,
    resamples: int = 0,
) -> MetricRow:
    """Build one row; a value that is not finite becomes null, and so does its interval.

    Args:
        name, value, definition: of the metric.
        interval: None for a metric that describes the texts and has none.
        context: what the row is about.
        cluster_count: for the column ``n_subjects``.
        resamples: that the interval is from.
    """
    # JSON has no NaN, and null means unknown.
    is_defined = bool(np.isfinite(value))
    unit = f"{cluster_count} {context.resampled_unit}"
    # All three or none: a level without limits would be read as an interval.
    limits: dict[str, object] = {"low": None, "high": None, "level": None}
    if not is_defined:
        remark = "unknown: too little to measure it on"
    elif interval is None:
        remark = "no interval: it describes these texts"
    elif interval.low is None:
        remark = f"no interval: {unit}"
    else:
        limits = {"low": interval.low, "high": interval.high, "level": interval.level}
        if cluster_count < MIN_RELIABLE_CLUSTERS:
            unit += ", which are few: the interval is too narrow"
        undefined = interval.undefined_resamples
        left_out = f", {undefined} of them undefined and left out" if undefined else ""
        remark = f"percentile interval by bootstrap over {unit} ({resamples} resamples{left_out})"
    return {
        "name": name,
        "value": float(value) if is_defined else None,
        **limits,
        "n": context.n,
        "n_subjects": cluster_count,
        "n_events": context.n_events,
        "split": context.split,
        "group": context.group,
        "definition": f"{definition}; {remark}",
        "task": context.task,
    }


def subtract_statistics(before: RowStatistics, after: RowStatistics) -> RowStatistics:
    """Build the function that gives after less before on the same resamples."""

    def compute_change(counts: NDArray[np.int32]) -> Float64Array:
        return after(counts) - before(counts)

    return compute_change
