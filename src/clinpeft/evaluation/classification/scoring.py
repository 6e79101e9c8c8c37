"""Everything about the answers to a question: numbers with intervals, curves, groups; and what of it may leave the building."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import CURVE_POINT_SCHEMA, METRIC_RESULT_SCHEMA, LabelSpace
from clinpeft.evaluation.bootstrap import Float64Array
from clinpeft.evaluation.classification.calibration import (
    build_calibration_metrics,
    compute_calibration_curve,
    compute_smooth_calibration_curve,
)
from clinpeft.evaluation.classification.decisions import (
    build_net_benefit_metrics,
    compute_decision_curve,
    compute_probability_histogram,
)
from clinpeft.evaluation.classification.discrimination import (
    MetricSet,
    ScoredPredictions,
    build_discrimination_metrics,
    extract_scored_predictions,
)
from clinpeft.evaluation.classification.discrimination import evaluate_metric_set as with_intervals
from clinpeft.evaluation.classification.subgroups import evaluate_subgroups
from clinpeft.recipe import ClassificationEvaluationSpec

MODEL_GROUP = "model"
CLASSIFICATION_MAIN_METRICS = ("auroc", "auroc_ovo", "auroc_macro")

_LABEL_SPACE_KEY = b"question"
_MACRO_DEFINITION = "unweighted mean over the questions {} of their main metrics, as in Tables 3 and 4 of arXiv 2307.03042"
_WIDE_INTERVAL_REMARK = "interval: means of the questions' own limits, as wide as if all moved together, since they share subjects; too wide rather than too narrow"


def score_prediction_table(
    predictions: pa.Table,
    label_space: LabelSpace,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
    state: str = MODEL_GROUP,
) -> pa.Table:
    """Discrimination, calibration and net benefit on the tuning and the held-out split, and on held-out stays of the model by subgroup.

    The training split is scored only where the table has nothing else; a held-out split without a stay has rows that say so.

    Args:
        predictions: of schema ``tables.PREDICTION``.
        label_space: that they answer.
        spec: resamples, level, smallest cell and so on.
        rng: for the resamples; the same state gives tables of the same stays the same ones.
        state: for ``group``: ``model``, or the name of a baseline.

    Returns:
        Of schema ``tables.RESULT``.

    Raises:
        InputError: answers that are none, with their stay_id.
    """
    rows: list[dict[str, object]] = []
    for split in _select_splits(predictions):
        found = extract_scored_predictions(predictions, label_space, split)
        rows += [
            {**row, "group": state}
            for row in with_intervals(
                found,
                _combine_metric_sets(found, label_space, split, spec),
                label_space,
                split,
                spec,
                rng,
            )
        ]
    if spec.subgroups and state == MODEL_GROUP:
        rows += evaluate_subgroups(predictions, label_space, "held_out", spec, rng, state)
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def compute_classification_curves(
    predictions: pa.Table,
    label_space: LabelSpace,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> pa.Table:
    """Calibration curves (bins, and smooth), decision curve and distributions of probabilities on held-out stays, of schema ``tables.CURVE``.

    Empty where the split has fewer than ``spec.smallest_cell`` subjects. Args and errors as in ``scored``.
    """
    split = "held_out"
    found = extract_scored_predictions(predictions, label_space, split)
    rows = compute_calibration_curve(found, label_space, split, spec)
    rows += compute_smooth_calibration_curve(found, label_space, split, spec)
    rows += compute_decision_curve(found, label_space, split, spec, rng)
    rows += compute_probability_histogram(found, label_space, split, spec)
    return pa.Table.from_pylist(rows, schema=CURVE_POINT_SCHEMA)


def average_main_metric(
    results: Mapping[str, pa.Table], state: str = MODEL_GROUP, split: str = "held_out"
) -> dict[str, object]:
    """The mean of the main metric over questions, as the paper reports it.

    Args:
        results: of schema ``tables.RESULT``, by question.
        state: of the rows that are taken.
        split: of the rows that are taken.

    Returns:
        A row of ``tables.RESULT`` named ``macro_average``; null where a question has no value, and ``definition`` says which.
    """
    rows = {task: _find_main_row(table, state, split) for task, table in results.items()}
    known = [row for row in rows.values() if row is not None and row["value"] is not None]
    without = [task for task, row in rows.items() if row is None or row["value"] is None]
    complete = bool(known) and not without
    limits = complete and all(row["low"] is not None for row in known)
    remark = (
        f"unknown: no value for {', '.join(without) or 'any question'}"
        if not complete
        else _WIDE_INTERVAL_REMARK
        if limits
        else "no interval: a question has none"
    )
    return {
        "name": "macro_average",
        "value": _average_column(known, "value") if complete else None,
        "low": _average_column(known, "low") if limits else None,
        "high": _average_column(known, "high") if limits else None,
        "level": known[0]["level"] if limits else None,
        "n": sum(row["n"] for row in rows.values() if row is not None),
        "n_subjects": None,
        "n_events": None,
        "split": split,
        "group": state,
        "definition": f"{_MACRO_DEFINITION.format(', '.join(results))}; n counts answers; {remark}",
        "task": None,
    }


def suppress_small_cells(results: pa.Table, smallest_cell: int) -> pa.Table:
    """Results that may leave: numbers about fewer than ``smallest_cell`` subjects, events, or stays without the event become null.

    With the value go its interval, the small counts themselves, and all of the definition but its beginning, where such counts may stand too.
    """
    return pa.Table.from_pylist(
        [_suppress_row(row, smallest_cell) for row in results.to_pylist()],
        schema=METRIC_RESULT_SCHEMA,
    )


def read_prediction_label_space(predictions: pa.Table) -> LabelSpace:
    """The question that the schema's metadata holds.

    Raises:
        InputError: it holds none.
    """
    found = (predictions.schema.metadata or {}).get(_LABEL_SPACE_KEY)
    if found is None:
        hint = "give the table that clinpeft wrote; other tools may drop the metadata of a Parquet file"
        raise InputError(
            "predictions without their question", location="metadata of the table", hint=hint
        )
    try:
        return LabelSpace.from_json(json.loads(found))
    except (ValueError, KeyError, TypeError) as reason:
        raise InputError(
            "a question that cannot be read", location="metadata of the table", hint="predict again"
        ) from reason


def attach_label_space(predictions: pa.Table, label_space: LabelSpace) -> pa.Table:
    """The table with the question in its schema's metadata, beside what is there already."""
    return predictions.replace_schema_metadata(
        {
            **(predictions.schema.metadata or {}),
            _LABEL_SPACE_KEY: json.dumps(label_space.as_json()).encode(),
        }
    )


def _select_splits(predictions: pa.Table) -> list[str]:
    present = (
        set(pc.unique(predictions["split"]).to_pylist())
        if "split" in predictions.schema.names
        else set()
    )
    if present == {"train"}:
        return ["train"]
    return [split for split in ("tuning", "held_out") if split in present or split == "held_out"]


def _combine_metric_sets(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> MetricSet:
    boards = [
        of(predictions, label_space, split, spec)
        for of in (
            build_discrimination_metrics,
            build_calibration_metrics,
            build_net_benefit_metrics,
        )
    ]

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        return np.concatenate([one.compute_values(counts) for one in boards])

    return MetricSet(tuple(measure for one in boards for measure in one.metrics), statistics)


def _find_main_row(results: pa.Table, state: str, split: str) -> dict[str, Any] | None:
    rows = [
        row
        for row in results.to_pylist()
        if (row["group"], row["split"]) == (state, split)
        and row["name"] in CLASSIFICATION_MAIN_METRICS
    ]
    return rows[0] if rows else None


def _average_column(rows: list[dict[str, Any]], column: str) -> float:
    return float(np.mean(np.array([row[column] for row in rows], np.float64)))


def _suppress_row(row: dict[str, Any], smallest_cell: int) -> dict[str, object]:
    n, subjects, events = row["n"], row["n_subjects"], row["n_events"]
    rest = None if events is None else n - events
    small = [
        what
        for what, count in (
            ("subjects", subjects),
            ("events", events),
            ("stays without the event", rest),
        )
        if _is_small(count, smallest_cell)
    ]
    if not small:
        return row
    begun = row["definition"].partition(";")[0]
    hidden = {"value": None, "low": None, "high": None, "n_subjects": None, "n_events": None}
    return {
        **row,
        **hidden,
        "definition": f"{begun}; suppressed: fewer than {smallest_cell} {' and '.join(small)}",
    }


def _is_small(count: int | None, smallest_cell: int) -> bool:
    return count is not None and 0 < count < smallest_cell
