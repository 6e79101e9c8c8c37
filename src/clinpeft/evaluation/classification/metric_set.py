"""Several metrics of the same predictions, computed together on shared resamples.

The value of a metric is that of the resample which draws every row once, so that values and
intervals cannot disagree; all metrics of a set share their resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.bootstrap import ConfidenceInterval, RowStatistics, bootstrap_rows
from clinpeft.evaluation.classification.scored_predictions import ScoredPredictions
from clinpeft.recipe import ClassificationEvaluationSpec


@dataclass(frozen=True)
class MetricDefinition:
    """One metric of a set.

    Attributes:
        name, definition: as in ``METRIC_RESULT_SCHEMA``; the definition without its interval.
        n_events: positives that the number depends on; None where a task has no event.
        depends_on_model: false for what describes the stays alone.
        has_interval: whether the number has an interval.
    """

    name: str
    definition: str
    n_events: int | None = None
    depends_on_model: bool = True
    has_interval: bool = True


@dataclass(frozen=True)
class MetricSet:
    """Metrics and the one function that computes all of them.

    Attributes:
        metrics: their definitions, in the order of the values.
        compute_values: counts of shape (resamples, n) to values of shape (metrics, resamples).
    """

    metrics: tuple[MetricDefinition, ...]
    compute_values: RowStatistics


def combine_metric_sets(metric_sets: Sequence[MetricSet]) -> MetricSet:
    """Put several sets on the same predictions together, so that they share resamples."""
    return MetricSet(
        tuple(metric for metric_set in metric_sets for metric in metric_set.metrics),
        lambda counts: np.concatenate(
            [metric_set.compute_values(counts) for metric_set in metric_sets]
        ),
    )


def evaluate_metric_set(
    predictions: ScoredPredictions,
    metric_set: MetricSet,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """Compute the values of a set and their percentile intervals by bootstrap over subjects.

    Args:
        predictions: n rows.
        metric_set: what is computed on them.
        label_space, split: for the columns ``task`` and ``split``.
        spec: resamples and level.
        rng: source of the resamples.

    Returns:
        Rows of ``METRIC_RESULT_SCHEMA`` without ``group``. A value that is not defined is null, and
        the end of ``definition`` states the interval, or why there is none.
    """
    row_count = len(predictions.subjects)
    values = metric_set.compute_values(np.ones((1, row_count), np.int32))[:, 0]  # (metrics,)
    intervals = bootstrap_rows(
        predictions.subjects,
        metric_set.compute_values,
        resamples=spec.resamples,
        level=spec.level,
        rng=rng,
    )
    # Subjects are what the bootstrap resamples, so that they decide whether there is an interval.
    subject_count = len(np.unique(predictions.subjects))
    rows: list[dict[str, object]] = []
    for metric, value, interval in zip(metric_set.metrics, values, intervals, strict=True):
        # A value that the sample does not define has no interval, even if some resample defines it.
        is_interval_reported = metric.has_interval and not np.isnan(value)
        if not is_interval_reported:
            interval = ConfidenceInterval(None, None, spec.level)  # noqa: PLW2901
            remark = ""
        elif subject_count < 2:
            remark = "no interval: one subject"
        else:
            remark = f"interval: percentile bootstrap over subjects, {spec.resamples} resamples"
            if interval.undefined_resamples:
                undefined = interval.undefined_resamples
                remark += f", {undefined} of them without the classes it takes left out"
        rows.append(
            {
                "name": metric.name,
                "value": None if np.isnan(value) else float(value),
                "low": interval.low,
                "high": interval.high,
                "level": None if interval.low is None else spec.level,
                "n": row_count,
                "n_subjects": subject_count,
                "n_events": metric.n_events,
                "split": split,
                "definition": f"{metric.definition}; {remark}" if remark else metric.definition,
                "task": label_space.name,
            }
        )
    return rows
