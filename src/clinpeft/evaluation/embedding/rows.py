"""Numbers and their intervals -> rows of ``tables.RESULT``; says in words why a number or an interval is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clinpeft.evaluation.bootstrap import Floats, Integers, Interval, RowStatistics, row_bootstrap

FEW_CLUSTERS = 20
"""With fewer, a percentile interval is too narrow (with eight clusters some 89 % instead of 95 % hold the truth), and the definition says so."""

Row = dict[str, object]


@dataclass(frozen=True)
class Measured:
    """What a row rests on, beside its number.

    Attributes:
        n: pairs, queries or texts.
        n_events: related pairs, or relevant passages; None where nothing is an event.
        split, group, task: as in ``tables.RESULT``.
        unit: what is resampled, in the plural.
    """

    n: int
    n_events: int | None
    split: str
    group: str
    task: str | None = None
    unit: str = "clusters"


def codes(clusters: Sequence[str | None]) -> Integers:
    """A number for each cluster, shape (n,); a row without a cluster is one of its own."""
    numbered: dict[str | tuple[int], int] = {}
    keys: list[str | tuple[int]] = [
        (at,) if cluster is None else cluster for at, cluster in enumerate(clusters)
    ]
    return np.fromiter(
        (numbered.setdefault(key, len(numbered)) for key in keys), np.int64, len(keys)
    )


def bootstrapped(
    definitions: dict[str, str],
    statistics: RowStatistics,
    clusters: Integers,
    about: Measured,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> list[Row]:
    """A row for each statistic; its value is that of the resample which draws every row once.

    Args:
        definitions: name -> one line, in the order of the statistics.
        statistics: counts (resamples, n) -> (statistics, resamples).
        clusters: of the rows, shape (n,).
        about: what the rows rest on.
        resamples, level, rng: of the cluster bootstrap.
    """
    values = statistics(np.ones((1, len(clusters)), np.int32))[:, 0]
    intervals = row_bootstrap(clusters, statistics, resamples=resamples, level=level, rng=rng)
    found = len(np.unique(clusters))
    return [
        row(name, value, interval, definition, about, found, resamples)
        for (name, definition), value, interval in zip(
            definitions.items(), values, intervals, strict=True
        )
    ]


def row(
    name: str,
    value: float,
    interval: Interval | None,
    definition: str,
    about: Measured,
    clusters: int,
    resamples: int = 0,
) -> Row:
    """One row; a value that is NaN becomes null, and so does its interval."""
    known = bool(np.isfinite(value))
    given = interval if known and interval is not None and interval.low is not None else None
    return {
        "name": name,
        "value": float(value) if known else None,
        "low": given.low if given else None,
        "high": given.high if given else None,
        "level": given.level if given else None,
        "n": about.n,
        "n_subjects": clusters,
        "n_events": about.n_events,
        "split": about.split,
        "group": about.group,
        "definition": f"{definition}; {_remark(known, interval, given, clusters, resamples, about)}",
        "task": about.task,
    }


def difference(before: RowStatistics, after: RowStatistics) -> RowStatistics:
    """What the second gives less what the first gives, on the same resamples."""

    def statistics(counts: NDArray[np.int32]) -> Floats:
        return after(counts) - before(counts)

    return statistics


def _remark(
    known: bool,
    interval: Interval | None,
    given: Interval | None,
    clusters: int,
    resamples: int,
    about: Measured,
) -> str:
    if not known:
        return "unknown: too little to measure it on"
    if interval is None:
        return "no interval: it describes these texts"
    if given is None:
        return f"no interval: {clusters} {about.unit}"
    few = ", which are few: the interval is too narrow" if clusters < FEW_CLUSTERS else ""
    undefined = f", {given.undefined} of them undefined and left out" if given.undefined else ""
    return f"percentile interval by bootstrap over {clusters} {about.unit}{few} ({resamples} resamples{undefined})"
