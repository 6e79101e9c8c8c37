"""Evaluation by subgroup: age bands, sex, race, language, insurance, ward, year, note length.

A model that is good on the whole may be bad for some patients. Each group gets the main metric and
the calibration in the large, each column the largest gap between its groups. The groups of a column
share their resamples, which draw subjects from the whole split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.arrays import BoolArray, Float64Array
from clinpeft.evaluation.classification.calibration import build_calibration_metrics
from clinpeft.evaluation.classification.discrimination import build_discrimination_metrics
from clinpeft.evaluation.classification.metric_set import (
    MetricDefinition,
    MetricSet,
    combine_metric_sets,
    evaluate_metric_set,
)
from clinpeft.evaluation.classification.scored_predictions import (
    ScoredPredictions,
    extract_scored_predictions,
)
from clinpeft.recipe import ClassificationEvaluationSpec

AGE_BANDS = ((0.0, "<40"), (40.0, "40–64"), (65.0, "65–79"), (80.0, "80+"))

MAX_RESAMPLED_CELLS = 2_000_000_000
"""Stays times classes times resamples of a column's groups; with more, fewer resamples are drawn
(1,266 labels of 10,000 stays: 157), which the definition says. Groups cost as much as the whole,
once for every column."""

MIN_SUBGROUP_RESAMPLES = 100

_UNKNOWN_GROUP = "unknown"
_LENGTH_THIRDS = ("shortest third", "middle third", "longest third")
_COLUMN_LABELS = {
    "age_years": "age",
    "sex": "sex",
    "race": "race",
    "language": "language",
    "insurance": "insurance",
    "admission_type": "admission type",
    "care_unit": "care unit",
    "year_group": "year group",
}
_GAP_DEFINITION = (
    "largest difference between groups of {}, never below 0 and above it by chance alone, of: {}"
)


@dataclass(frozen=True)
class _Subgroup:
    """One group of stays and its metrics, which take counts of these stays only."""

    name: str
    mask: BoolArray
    metric_set: MetricSet


def evaluate_subgroups(
    predictions: pa.Table,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
    state: str = "model",
) -> list[dict[str, object]]:
    """Compute main metric and calibration intercept of every group, and the largest gaps.

    Groups with fewer than ``spec.smallest_cell`` subjects are pooled as ``other (k)``, and left out
    where that is still too small. A column that is unknown for all stays, or that puts all in one
    group, gives nothing.

    Args:
        predictions: of schema ``PREDICTION_SCHEMA``.
        label_space, split, spec, rng: as in ``evaluate_metric_set``.
        state: first part of the groups' names.

    Returns:
        Rows of ``METRIC_RESULT_SCHEMA`` with group ``state · sex F``, and
        ``<metric>_largest_gap`` with group ``state · sex``. A gap counts the subjects and events of
        the smallest group, so that it is suppressed with it.
    """
    scored = extract_scored_predictions(predictions, label_space, split)
    split_rows = predictions.filter(pc.equal(predictions["split"], split))
    rows: list[dict[str, object]] = []
    for label, group_names in _assign_groups(split_rows).items():
        groups = _select_groups(group_names, scored, spec.smallest_cell)
        if groups:
            rows += _evaluate_column(scored, label, groups, label_space, split, spec, rng)
    return [{**row, "group": f"{state} · {row['group']}"} for row in rows]


def limit_resamples(spec: ClassificationEvaluationSpec, cells: int) -> ClassificationEvaluationSpec:
    """Limit the resamples of a spec so that they stay within ``MAX_RESAMPLED_CELLS``.

    Args:
        spec: with the resamples of the recipe.
        cells: stays times classes.
    """
    # Cost grows with cells times resamples.
    limit = max(MAX_RESAMPLED_CELLS // max(cells, 1), MIN_SUBGROUP_RESAMPLES)
    return spec.model_copy(update={"resamples": min(spec.resamples, limit)})


def _assign_groups(predictions: pa.Table) -> dict[str, NDArray[np.object_]]:
    """The group of each stay, shape (n,), by column; only columns with a value for some stay."""
    groups: dict[str, list[str]] = {}
    starts = [start for start, _ in AGE_BANDS]
    for column, label in _COLUMN_LABELS.items():
        values = predictions[column].to_pylist()
        if column == "age_years":
            bands = (
                None if years is None else max(int(np.searchsorted(starts, years, "right")) - 1, 0)
                for years in values
            )
            values = [None if band is None else AGE_BANDS[band][1] for band in bands]
        if predictions[column].null_count < len(values):
            groups[label] = [_UNKNOWN_GROUP if value is None else value for value in values]
    lengths, read_lengths = predictions["tokens"], predictions["tokens_read"]
    if lengths.null_count < len(lengths):
        # Notes of the same length are in one third, so that a third may be empty.
        edges = np.quantile(lengths.drop_null().to_numpy(), [1 / 3, 2 / 3])
        groups["note"] = [
            _UNKNOWN_GROUP
            if tokens is None
            else _LENGTH_THIRDS[int(np.searchsorted(edges, tokens, "left"))]
            for tokens in lengths.to_pylist()
        ]
        if read_lengths.null_count < len(read_lengths):
            pairs = zip(lengths.to_pylist(), read_lengths.to_pylist(), strict=True)
            groups["note read"] = [
                _UNKNOWN_GROUP if None in pair else "whole" if pair[1] >= pair[0] else "cut"
                for pair in pairs
            ]
    return {label: np.array(names, dtype=object) for label, names in groups.items()}


def _select_groups(
    group_names: NDArray[np.object_], predictions: ScoredPredictions, min_subjects: int
) -> dict[str, BoolArray]:
    """Masks of the groups with enough subjects, shape (n,) each, small ones pooled."""
    # Sorted, so that groups and their resamples do not depend on the order of rows.
    masks = {name: group_names == name for name in sorted(set(group_names.tolist()))}
    large, small = {}, []
    for name, mask in masks.items():
        if _count_subjects(predictions, mask) >= min_subjects:
            large[name] = mask
        else:
            small.append(mask)
    pooled = np.logical_or.reduce(small) if small else np.zeros(len(group_names), np.bool_)
    if small and _count_subjects(predictions, pooled) >= min_subjects:
        large[f"other ({len(small)})"] = pooled
    return {name: mask for name, mask in large.items() if not mask.all()}


def _evaluate_column(
    predictions: ScoredPredictions,
    column_label: str,
    groups: Mapping[str, BoolArray],
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """Rows of all groups of a column on shared resamples, then the row of the gap."""
    subgroups = [
        _build_subgroup(predictions, name, mask, label_space, split, spec)
        for name, mask in groups.items()
    ]
    main_definition = subgroups[0].metric_set.metrics[0].definition.partition(";")[0]
    # The gap is computed on each resample, so that its interval is of the gap itself.
    gap = MetricDefinition(
        f"{label_space.metric}_largest_gap", _GAP_DEFINITION.format(column_label, main_definition)
    )

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        row_counts = counts.T  # (n, resamples)
        values = [group.metric_set.compute_values(row_counts[group.mask].T) for group in subgroups]
        gaps = _compute_spread(np.stack([value[0] for value in values]))
        return np.concatenate([*values, gaps[None]])

    metrics = [metric for group in subgroups for metric in group.metric_set.metrics]
    metric_set = MetricSet((*metrics, gap), compute_values)
    limited = limit_resamples(spec, predictions.scores.size)
    *group_rows, gap_row = evaluate_metric_set(
        predictions, metric_set, label_space, split, limited, rng
    )
    owners = [group for group in subgroups for _ in group.metric_set.metrics]
    rows: list[dict[str, Any]] = []
    for row, group in zip(group_rows, owners, strict=True):
        # The counts are those of the group and not of the split; one subject has no interval.
        subjects = _count_subjects(predictions, group.mask)
        limits = dict.fromkeys(("low", "high", "level")) if subjects < 2 else {}
        counts = {"n": int(group.mask.sum()), "n_subjects": subjects}
        rows.append({**row, "group": f"{column_label} {group.name}", **counts, **limits})
    if len(subgroups) < 2:
        return rows
    # A gap depends on its smallest group, and where that is suppressed so is the gap.
    main_rows = [row for row in rows if row["name"] == label_space.metric]
    events = [row["n_events"] for row in main_rows if row["n_events"] is not None]
    remark = f"{len(main_rows)} groups, subjects and events of the smallest"
    gap_row |= {
        "group": column_label,
        "n_subjects": min(row["n_subjects"] for row in main_rows),
        "n_events": min(events) if events else None,
        "definition": f"{gap_row['definition']}; {remark}",
    }
    return [*rows, gap_row]


def _build_subgroup(
    predictions: ScoredPredictions,
    name: str,
    mask: BoolArray,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> _Subgroup:
    """A group with the main metric and the calibration intercept, and nothing else."""
    rows = replace(
        predictions,
        subjects=predictions.subjects[mask],
        truth=predictions.truth[mask],
        scores=predictions.scores[mask],
        logits=None if predictions.logits is None else predictions.logits[mask],
    )
    # The scoring of the paper's code is not reported by group.
    plain = spec.model_copy(update={"compat": ""})
    whole = combine_metric_sets(
        [
            build_discrimination_metrics(rows, label_space, split, plain),
            build_calibration_metrics(rows, label_space, split, spec),
        ]
    )
    names = (label_space.metric, "calibration_intercept")
    selected = [index for index, metric in enumerate(whole.metrics) if metric.name in names]
    metrics = tuple(whole.metrics[index] for index in selected)
    metric_set = MetricSet(metrics, lambda counts: whole.compute_values(counts)[selected])
    return _Subgroup(name, mask, metric_set)


def _count_subjects(predictions: ScoredPredictions, mask: BoolArray) -> int:
    return len(np.unique(predictions.subjects[mask]))


def _compute_spread(values: Float64Array) -> Float64Array:
    """Largest minus smallest of the groups that have a value, shape (groups, resamples) to
    (resamples,); NaN where fewer than two have one."""
    undefined = np.isnan(values)
    enough = (~undefined).sum(axis=0) >= 2
    highest = np.where(undefined, -np.inf, values).max(axis=0)
    lowest = np.where(undefined, np.inf, values).min(axis=0)
    # The inner zeros keep inf - inf, and its warning, out of columns that become NaN.
    return np.where(enough, np.where(enough, highest, 0.0) - np.where(enough, lowest, 0.0), np.nan)
