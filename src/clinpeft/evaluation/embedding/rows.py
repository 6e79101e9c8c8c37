"""Numbers and their intervals -> rows of ``tables.RESULT``; says in words why a number or an interval is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinpeft.evaluation.bootstrap import (
    ConfidenceInterval,
    Float64Array,
    Int64Array,
    RowStatistics,
    bootstrap_rows,
)

MIN_RELIABLE_CLUSTERS = 20
"""With fewer, a percentile interval is too narrow (with eight clusters some 89 % instead of 95 % hold the truth), and the definition says so."""

MetricRow = dict[str, object]


@dataclass(frozen=True)
class MeasurementContext:
    """What a row rests on, beside its number.

    Attributes:
        n: pairs, queries or texts.
        n_events: related pairs, or relevant passages; None where nothing is an event.
        split, group, task: as in ``tables.RESULT``.
        resampled_unit: what is resampled, in the plural.
    """

    n: int
    n_events: int | None
    split: str
    group: str
    task: str | None = None
    resampled_unit: str = "clusters"


def number_clusters(clusters: Sequence[str | None]) -> Int64Array:
    """A number for each cluster, shape (n,); a row without a cluster is one of its own."""
    numbered: dict[str | tuple[int], int] = {}
    keys: list[str | tuple[int]] = [
        (at,) if cluster is None else cluster for at, cluster in enumerate(clusters)
    ]
    return np.fromiter(
        (numbered.setdefault(key, len(numbered)) for key in keys), np.int64, len(keys)
    )


def bootstrap_metric_rows(
    definitions: dict[str, str],
    statistics: RowStatistics,
    clusters: Int64Array,
    context: MeasurementContext,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> list[MetricRow]:
    """A row for each statistic; its value is that of the resample which draws every row once.

    Args:
        definitions: name -> one line, in the order of the statistics.
        statistics: counts (resamples, n) -> (statistics, resamples).
        clusters: of the rows, shape (n,).
        context: what the rows rest on.
        resamples, level, rng: of the cluster bootstrap.
    """
    values = statistics(np.ones((1, len(clusters)), np.int32))[:, 0]
    intervals = bootstrap_rows(clusters, statistics, resamples=resamples, level=level, rng=rng)
    found = len(np.unique(clusters))
    return [
        build_metric_row(name, value, interval, definition, context, found, resamples)
        for (name, definition), value, interval in zip(
            definitions.items(), values, intervals, strict=True
        )
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
    """One row; a value that is NaN becomes null, and so does its interval."""
    known = bool(np.isfinite(value))
    given = interval if known and interval is not None and interval.low is not None else None
    return {
        "name": name,
        "value": float(value) if known else None,
        "low": given.low if given else None,
        "high": given.high if given else None,
        "level": given.level if given else None,
        "n": context.n,
        "n_subjects": cluster_count,
        "n_events": context.n_events,
        "split": context.split,
        "group": context.group,
        "definition": f"{definition}; {_describe_interval(known, interval, given, cluster_count, resamples, context)}",
        "task": context.task,
    }


def subtract_statistics(before: RowStatistics, after: RowStatistics) -> RowStatistics:
    """What the second gives less what the first gives, on the same resamples."""

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        return after(counts) - before(counts)

    return statistics


def _describe_interval(
    is_defined: bool,
    interval: ConfidenceInterval | None,
    usable_interval: ConfidenceInterval | None,
    cluster_count: int,
    resamples: int,
    context: MeasurementContext,
) -> str:
    if not is_defined:
        return "unknown: too little to measure it on"
    if interval is None:
        return "no interval: it describes these texts"
    if usable_interval is None:
        return f"no interval: {cluster_count} {context.resampled_unit}"
    few = (
        ", which are few: the interval is too narrow"
        if cluster_count < MIN_RELIABLE_CLUSTERS
        else ""
    )
    undefined = (
        f", {usable_interval.undefined_resamples} of them undefined and left out"
        if usable_interval.undefined_resamples
        else ""
    )
    return f"percentile interval by bootstrap over {cluster_count} {context.resampled_unit}{few} ({resamples} resamples{undefined})"
