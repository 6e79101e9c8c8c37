"""Evaluation of the predictions of a task: metrics with intervals, curves, subgroups,
suppression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import CURVE_POINT_SCHEMA, METRIC_RESULT_SCHEMA, LabelSpace
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
    CLASSIFICATION_MAIN_METRICS,
    build_discrimination_metrics,
)
from clinpeft.evaluation.classification.metric_set import combine_metric_sets, evaluate_metric_set
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions
from clinpeft.evaluation.classification.subgroups import evaluate_subgroups
from clinpeft.recipe import ClassificationEvaluationSpec

MODEL_GROUP = "model"

_LABEL_SPACE_KEY = b"question"
_LABEL_SPACE_ADAPTER = pydantic.TypeAdapter(LabelSpace)
_MACRO_DEFINITION = (
    "unweighted mean over the questions {} of their main metrics, "
    "as in Tables 3 and 4 of arXiv 2307.03042"
)
_WIDE_INTERVAL_REMARK = (
    "interval: means of the questions' own limits, as wide as if all moved together, "
    "since they share subjects; too wide rather than too narrow"
)


def score_prediction_table(
    predictions: pa.Table,
    label_space: LabelSpace,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
    state: str = MODEL_GROUP,
) -> pa.Table:
    """Compute discrimination, calibration and net benefit on the tuning and the held-out split.

    Of the model also the main metric by subgroup on held-out stays. The training split is scored
    only where the table has nothing else; a held-out split without a stay has rows that say so.
    Averaging, absent classes and ties are those of each metric, stated in ``definition``.

    Args:
        predictions: of schema ``PREDICTION_SCHEMA``.
        label_space: that of the task.
        spec: resamples, level, smallest cell and so on.
        rng: source of the resamples; the same state draws the same resamples for tables of the
            same stays.
        state: for ``group``: ``model``, or the name of a baseline.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``.

    Raises:
        InputError: invalid predictions, with their stay_id.
    """
    has_split = "split" in predictions.schema.names
    present = set(pc.unique(predictions["split"]).to_pylist()) if has_split else set()
    # A held-out split is always reported, so that its absence is seen.
    splits = ["tuning", "held_out"] if "tuning" in present else ["held_out"]
    if present == {"train"}:
        splits = ["train"]
    rows: list[dict[str, object]] = []
    for split in splits:
        scored = extract_scored_predictions(predictions, label_space, split)
        metric_set = combine_metric_sets(
            [
                build_discrimination_metrics(scored, label_space, split, spec),
                build_calibration_metrics(scored, label_space, split, spec),
                build_net_benefit_metrics(scored, label_space, split, spec),
            ]
        )
        results = evaluate_metric_set(scored, metric_set, label_space, split, spec, rng)
        rows += [{**row, "group": state} for row in results]
    if spec.subgroups and state == MODEL_GROUP:
        rows += evaluate_subgroups(predictions, label_space, "held_out", spec, rng, state)
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def compute_classification_curves(
    predictions: pa.Table,
    label_space: LabelSpace,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> pa.Table:
    """Compute calibration curves, decision curve and histograms of probabilities, held-out stays.

    Args and errors as in ``score_prediction_table``.

    Returns:
        Of schema ``CURVE_POINT_SCHEMA``; empty where the split has fewer than
        ``spec.smallest_cell`` subjects.
    """
    split = "held_out"
    scored = extract_scored_predictions(predictions, label_space, split)
    rows = compute_calibration_curve(scored, label_space, split, spec)
    rows += compute_smooth_calibration_curve(scored, label_space, split, spec)
    rows += compute_decision_curve(scored, label_space, split, spec, rng)
    rows += compute_probability_histogram(scored, label_space, split, spec)
    return pa.Table.from_pylist(rows, schema=CURVE_POINT_SCHEMA)


def average_main_metric(
    results: Mapping[str, pa.Table], state: str = MODEL_GROUP, split: str = "held_out"
) -> dict[str, object]:
    """Average the main metric over tasks without weights, as Tables 3 and 4 of arXiv 2307.03042.

    Args:
        results: of schema ``METRIC_RESULT_SCHEMA``, by task.
        state: of the rows that are taken.
        split: of the rows that are taken.

    Returns:
        A row of ``METRIC_RESULT_SCHEMA`` named ``macro_average``; null where a task has no value,
        and ``definition`` says which. Its interval is the mean of the tasks' limits, an upper bound
        of the width, since tasks share subjects.
    """
    rows: dict[str, dict[str, Any] | None] = {}
    for task, table in results.items():
        matches = (
            row
            for row in table.to_pylist()
            if (row["group"], row["split"]) == (state, split)
            and row["name"] in CLASSIFICATION_MAIN_METRICS
        )
        rows[task] = next(matches, None)
    valued = [row for row in rows.values() if row is not None and row["value"] is not None]
    missing = [task for task, row in rows.items() if row is None or row["value"] is None]
    is_complete = bool(valued) and not missing
    has_limits = is_complete and all(row["low"] is not None for row in valued)
    if not is_complete:
        remark = f"unknown: no value for {', '.join(missing) or 'any question'}"
    else:
        remark = _WIDE_INTERVAL_REMARK if has_limits else "no interval: a question has none"
    # A macro average needs all of its tasks: with one missing it would be another number.
    means = {
        column: float(np.mean(np.array([row[column] for row in valued], np.float64)))
        for column in ("value", *(("low", "high") if has_limits else ()))
        if is_complete
    }
    return {
        "name": "macro_average",
        "value": means.get("value"),
        "low": means.get("low"),
        "high": means.get("high"),
        "level": valued[0]["level"] if has_limits else None,
        "n": sum(row["n"] for row in rows.values() if row is not None),
        "n_subjects": None,
        "n_events": None,
        "split": split,
        "group": state,
        "definition": f"{_MACRO_DEFINITION.format(', '.join(results))}; n counts answers; {remark}",
        "task": None,
    }


def suppress_small_cells(results: pa.Table, smallest_cell: int) -> pa.Table:
    """Suppress numbers about fewer than ``smallest_cell`` subjects, events, or stays without event.

    With the value go its interval, the small counts themselves, and all of the definition but its
    beginning, where such counts may occur too.

    Args:
        results: of schema ``METRIC_RESULT_SCHEMA``.
        smallest_cell: the smallest count that is shown; 0 itself is shown.
    """
    rows = results.to_pylist()
    for row in rows:
        events = row["n_events"]
        counts = {
            "subjects": row["n_subjects"],
            "events": events,
            "stays without the event": None if events is None else row["n"] - events,
        }
        # A count of 0 is shown: it is about no person.
        small = [
            noun
            for noun, count in counts.items()
            if count is not None and 0 < count < smallest_cell
        ]
        if small:
            row.update(dict.fromkeys(("value", "low", "high", "n_subjects", "n_events")))
            beginning = row["definition"].partition(";")[0]
            reason = f"fewer than {smallest_cell} {' and '.join(small)}"
            row["definition"] = f"{beginning}; suppressed: {reason}"
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def read_prediction_label_space(predictions: pa.Table) -> LabelSpace:
    """Read the label space from the metadata of a table of predictions.

    Raises:
        InputError: the metadata hold none.
    """
    document = (predictions.schema.metadata or {}).get(_LABEL_SPACE_KEY)
    location = "metadata of the table"
    if document is None:
        hint = (
            "give the table that clinpeft wrote; other tools may drop the metadata of a Parquet "
            "file"
        )
        raise InputError("predictions without their question", location=location, hint=hint)
    try:
        return _LABEL_SPACE_ADAPTER.validate_json(document)
    except pydantic.ValidationError as error:
        raise InputError(
            "a question that cannot be read", location=location, hint="predict again"
        ) from error
