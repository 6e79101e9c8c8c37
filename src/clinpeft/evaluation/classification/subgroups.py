"""The same question asked of parts of the patients: age bands, sex, race, language, insurance, ward, year, length of the note.

A model that is good on the whole may be bad for some. Of each group there is the main metric and the calibration in the large, and of each column the
largest gap between its groups. The groups of a column share their resamples, which draw subjects from the whole split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.bootstrap import Float64Array
from clinpeft.evaluation.classification.calibration import build_calibration_metrics
from clinpeft.evaluation.classification.discrimination import (
    MetricDefinition,
    MetricSet,
    ScoredPredictions,
    build_discrimination_metrics,
    evaluate_metric_set,
    extract_scored_predictions,
)
from clinpeft.evaluation.classification.ranks import BoolArray
from clinpeft.recipe import ClassificationEvaluationSpec

AGE_BANDS = ((0.0, "<40"), (40.0, "40–64"), (65.0, "65–79"), (80.0, "80+"))

MAX_RESAMPLED_CELLS = 2_000_000_000
"""Stays times classes times resamples of a column's groups; with more, fewer resamples are drawn (1,266 labels of 10,000 stays: 157), which the
definition says. Groups cost as much as the whole, once for every column."""

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
    """One group of stays, what is measured on it, and the function that gives it for counts of these stays."""

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
    """Main metric and calibration intercept of every group with at least ``spec.smallest_cell`` subjects, and the largest gap of every column.

    Smaller groups of a column are pooled as ``other (k)``, and left out where that is still too small. A column that is unknown for all, or that
    puts all in one group, gives nothing.

    Returns:
        Rows of ``tables.RESULT`` with group ``state · sex F``, and ``<metric>_largest_gap`` with group ``state · sex``.
    """
    found = extract_scored_predictions(predictions, label_space, split)
    asked = predictions.filter(pc.equal(predictions["split"], split))
    rows: list[dict[str, object]] = []
    for word, names in _assign_groups(asked).items():
        rows += _evaluate_column(
            found,
            word,
            _select_groups(names, found, spec.smallest_cell),
            label_space,
            split,
            spec,
            rng,
        )
    return [{**row, "group": f"{state} · {row['group']}"} for row in rows]


def _assign_groups(predictions: pa.Table) -> dict[str, NDArray[np.object_]]:
    """The group of each stay, by column; only columns that are known for some."""
    named = {
        word: _GROUP_ASSIGNERS.get(column, _as_string_groups)(predictions[column])
        for column, word in _COLUMN_LABELS.items()
        if _has_values(predictions[column])
    }
    if _has_values(predictions["tokens"]):
        named["note"] = _assign_length_thirds(predictions["tokens"])
    if _has_values(predictions["tokens"]) and _has_values(predictions["tokens_read"]):
        named["note read"] = _assign_truncation_groups(
            predictions["tokens"], predictions["tokens_read"]
        )
    return named


def _select_groups(
    group_names: NDArray[np.object_], predictions: ScoredPredictions, min_subjects: int
) -> dict[str, BoolArray]:
    each = {name: group_names == name for name in sorted(set(group_names.tolist()))}
    large = {
        name: chosen
        for name, chosen in each.items()
        if _count_subjects(predictions, chosen) >= min_subjects
    }
    small = [chosen for name, chosen in each.items() if name not in large]
    pooled = np.logical_or.reduce(small) if small else np.zeros(len(group_names), np.bool_)
    if small and _count_subjects(predictions, pooled) >= min_subjects:
        large[f"other ({len(small)})"] = pooled
    return {name: chosen for name, chosen in large.items() if not chosen.all()}


def _evaluate_column(
    predictions: ScoredPredictions,
    column_label: str,
    groups: Mapping[str, BoolArray],
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    if not groups:
        return []
    each = [
        _Subgroup(
            name,
            chosen,
            _build_subgroup_metrics(_select_rows(predictions, chosen), label_space, split, spec),
        )
        for name, chosen in groups.items()
    ]
    gap = MetricDefinition(
        f"{label_space.metric}_largest_gap",
        _GAP_DEFINITION.format(
            column_label, each[0].metric_set.metrics[0].definition.partition(";")[0]
        ),
    )

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        values = [one.metric_set.compute_values(counts.T[one.mask].T) for one in each]
        return np.concatenate(
            [*values, _compute_spread(np.stack([value[0] for value in values]))[None]]
        )

    measures = (*(measure for one in each for measure in one.metric_set.metrics), gap)
    rows = evaluate_metric_set(
        predictions,
        MetricSet(measures, statistics),
        label_space,
        split,
        limit_resamples(spec, predictions.scores.size),
        rng,
    )
    owners = [one for one in each for _ in one.metric_set.metrics]
    own = [
        _as_group_row(row, f"{column_label} {one.name}", predictions, one.mask)
        for row, one in zip(rows, owners, strict=False)
    ]
    if len(each) < 2:
        return own
    return [*own, _as_gap_row(rows[-1], column_label, own[:: len(_get_metric_names(label_space))])]


def limit_resamples(spec: ClassificationEvaluationSpec, cells: int) -> ClassificationEvaluationSpec:
    """The spec with as many resamples as ``RESAMPLED_CELLS`` leaves for answers of this many cells (stays times classes)."""
    most = max(MAX_RESAMPLED_CELLS // max(cells, 1), MIN_SUBGROUP_RESAMPLES)
    return spec.model_copy(update={"resamples": min(spec.resamples, most)})


def _build_subgroup_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> MetricSet:
    """The main metric and the calibration intercept, and nothing else."""
    ranking, calibration = (
        build_discrimination_metrics(predictions, label_space, split, _disable_compat(spec)),
        build_calibration_metrics(predictions, label_space, split, spec),
    )
    kept = [
        (one, at)
        for one in (ranking, calibration)
        for at, measure in enumerate(one.metrics)
        if measure.name in _get_metric_names(label_space)
    ]
    return MetricSet(
        tuple(one.metrics[at] for one, at in kept),
        lambda counts: np.stack([one.compute_values(counts)[at] for one, at in kept]),
    )


def _disable_compat(spec: ClassificationEvaluationSpec) -> ClassificationEvaluationSpec:
    """The same without the paper's own scoring, which no group is asked for."""
    return spec.model_copy(update={"compat": ""})


def _get_metric_names(label_space: LabelSpace) -> tuple[str, str]:
    return label_space.metric, "calibration_intercept"


def _as_group_row(
    row: dict[str, object], group: str, predictions: ScoredPredictions, mask: BoolArray
) -> dict[str, object]:
    """A row with the counts of its group instead of those of the split; one subject has no interval."""
    subjects = _count_subjects(predictions, mask)
    alone = {"low": None, "high": None, "level": None} if subjects < 2 else {}
    return {**row, "group": group, "n": int(mask.sum()), "n_subjects": subjects, **alone}


def _as_gap_row(
    row: dict[str, object], column_label: str, groups: Sequence[dict[str, Any]]
) -> dict[str, object]:
    """A gap rests on its smallest group, and where that is suppressed so is the gap."""
    events = [one["n_events"] for one in groups if one["n_events"] is not None]
    fewest = {
        "n_subjects": min(one["n_subjects"] for one in groups),
        "n_events": min(events) if events else None,
    }
    return {
        **row,
        "group": column_label,
        **fewest,
        "definition": f"{row['definition']}; {len(groups)} groups, subjects and events of the smallest",
    }


def _select_rows(predictions: ScoredPredictions, mask: BoolArray) -> ScoredPredictions:
    logits = None if predictions.logits is None else predictions.logits[mask]
    return replace(
        predictions,
        subjects=predictions.subjects[mask],
        truth=predictions.truth[mask],
        scores=predictions.scores[mask],
        logits=logits,
    )


def _count_subjects(predictions: ScoredPredictions, mask: BoolArray) -> int:
    return len(np.unique(predictions.subjects[mask]))


def _compute_spread(values: Float64Array) -> Float64Array:
    """Largest minus smallest of the groups that have a value, at least two, shape (groups, resamples) to (resamples,)."""
    enough = (~np.isnan(values)).sum(axis=0) >= 2
    highest, lowest = (
        np.where(np.isnan(values), -np.inf, values).max(axis=0),
        np.where(np.isnan(values), np.inf, values).min(axis=0),
    )
    return np.where(enough, np.where(enough, highest, 0.0) - np.where(enough, lowest, 0.0), np.nan)


def _has_values(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count < len(column))


def _as_string_groups(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.array(
        [_UNKNOWN_GROUP if value is None else value for value in column.to_pylist()], dtype=object
    )


def _assign_age_bands(column: pa.ChunkedArray) -> NDArray[np.object_]:
    starts = [start for start, _ in AGE_BANDS]
    named = [
        _UNKNOWN_GROUP
        if years is None
        else AGE_BANDS[max(int(np.searchsorted(starts, years, "right")) - 1, 0)][1]
        for years in column.to_pylist()
    ]
    return np.array(named, dtype=object)


def _assign_length_thirds(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Thirds of equal count; notes of the same length are together, so that a third may be empty."""
    edges = np.quantile(column.drop_null().to_numpy(), [1 / 3, 2 / 3])
    named = [
        _UNKNOWN_GROUP
        if tokens is None
        else _LENGTH_THIRDS[int(np.searchsorted(edges, tokens, "left"))]
        for tokens in column.to_pylist()
    ]
    return np.array(named, dtype=object)


def _assign_truncation_groups(
    tokens: pa.ChunkedArray, read_tokens: pa.ChunkedArray
) -> NDArray[np.object_]:
    pairs = zip(tokens.to_pylist(), read_tokens.to_pylist(), strict=True)
    return np.array(
        [
            _UNKNOWN_GROUP if None in pair else "whole" if pair[1] >= pair[0] else "cut"
            for pair in pairs
        ],
        dtype=object,
    )


_GROUP_ASSIGNERS: dict[str, Callable[[pa.ChunkedArray], NDArray[np.object_]]] = {
    "age_years": _assign_age_bands
}
