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
from clinpeft.core.schemas import CURVE, RESULT, Question
from clinpeft.evaluation.bootstrap import Floats
from clinpeft.evaluation.classification.calibration import (
    calibration_board,
    calibration_curve,
    smooth_calibration_curve,
)
from clinpeft.evaluation.classification.decisions import (
    decision_board,
    decision_curve,
    probability_histogram,
)
from clinpeft.evaluation.classification.discrimination import Answers, Board, answers, board
from clinpeft.evaluation.classification.discrimination import scored as with_intervals
from clinpeft.evaluation.classification.subgroups import subgroup_rows
from clinpeft.recipe import ScoringSpec

MODEL = "model"
MAIN_METRICS = ("auroc", "auroc_ovo", "auroc_macro")

_KEY = b"question"
_MACRO = "unweighted mean over the questions {} of their main metrics, as in Tables 3 and 4 of arXiv 2307.03042"
_AS_WIDE = "interval: means of the questions' own limits, as wide as if all moved together, since they share subjects; too wide rather than too narrow"


def scored(
    predictions: pa.Table,
    question: Question,
    spec: ScoringSpec,
    rng: np.random.Generator,
    state: str = MODEL,
) -> pa.Table:
    """Discrimination, calibration and net benefit on the tuning and the held-out split, and on held-out stays of the model by subgroup.

    The training split is scored only where the table has nothing else; a held-out split without a stay has rows that say so.

    Args:
        predictions: of schema ``tables.PREDICTION``.
        question: that they answer.
        spec: resamples, level, smallest cell and so on.
        rng: for the resamples; the same state gives tables of the same stays the same ones.
        state: for ``group``: ``model``, or the name of a baseline.

    Returns:
        Of schema ``tables.RESULT``.

    Raises:
        InputError: answers that are none, with their stay_id.
    """
    rows: list[dict[str, object]] = []
    for split in _splits(predictions):
        found = answers(predictions, question, split)
        rows += [
            {**row, "group": state}
            for row in with_intervals(
                found, _all_of(found, question, split, spec), question, split, spec, rng
            )
        ]
    if spec.subgroups and state == MODEL:
        rows += subgroup_rows(predictions, question, "held_out", spec, rng, state)
    return pa.Table.from_pylist(rows, schema=RESULT)


def curves(
    predictions: pa.Table, question: Question, spec: ScoringSpec, rng: np.random.Generator
) -> pa.Table:
    """Calibration curves (bins, and smooth), decision curve and distributions of probabilities on held-out stays, of schema ``tables.CURVE``.

    Empty where the split has fewer than ``spec.smallest_cell`` subjects. Args and errors as in ``scored``.
    """
    split = "held_out"
    found = answers(predictions, question, split)
    rows = calibration_curve(found, question, split, spec)
    rows += smooth_calibration_curve(found, question, split, spec)
    rows += decision_curve(found, question, split, spec, rng)
    rows += probability_histogram(found, question, split, spec)
    return pa.Table.from_pylist(rows, schema=CURVE)


def macro_average(
    results: Mapping[str, pa.Table], state: str = MODEL, split: str = "held_out"
) -> dict[str, object]:
    """The mean of the main metric over questions, as the paper reports it.

    Args:
        results: of schema ``tables.RESULT``, by question.
        state: of the rows that are taken.
        split: of the rows that are taken.

    Returns:
        A row of ``tables.RESULT`` named ``macro_average``; null where a question has no value, and ``definition`` says which.
    """
    rows = {task: _main_row(table, state, split) for task, table in results.items()}
    known = [row for row in rows.values() if row is not None and row["value"] is not None]
    without = [task for task, row in rows.items() if row is None or row["value"] is None]
    complete = bool(known) and not without
    limits = complete and all(row["low"] is not None for row in known)
    remark = (
        f"unknown: no value for {', '.join(without) or 'any question'}"
        if not complete
        else _AS_WIDE
        if limits
        else "no interval: a question has none"
    )
    return {
        "name": "macro_average",
        "value": _mean(known, "value") if complete else None,
        "low": _mean(known, "low") if limits else None,
        "high": _mean(known, "high") if limits else None,
        "level": known[0]["level"] if limits else None,
        "n": sum(row["n"] for row in rows.values() if row is not None),
        "n_subjects": None,
        "n_events": None,
        "split": split,
        "group": state,
        "definition": f"{_MACRO.format(', '.join(results))}; n counts answers; {remark}",
        "task": None,
    }


def suppressed(results: pa.Table, smallest: int) -> pa.Table:
    """Results that may leave: numbers about fewer than ``smallest`` subjects, events, or stays without the event become null.

    With the value go its interval, the small counts themselves, and all of the definition but its beginning, where such counts may stand too.
    """
    return pa.Table.from_pylist(
        [_suppressed(row, smallest) for row in results.to_pylist()], schema=RESULT
    )


def question_of(predictions: pa.Table) -> Question:
    """The question that the schema's metadata holds.

    Raises:
        InputError: it holds none.
    """
    found = (predictions.schema.metadata or {}).get(_KEY)
    if found is None:
        hint = "give the table that clinpeft wrote; other tools may drop the metadata of a Parquet file"
        raise InputError(
            "predictions without their question", location="metadata of the table", hint=hint
        )
    try:
        return Question.from_json(json.loads(found))
    except (ValueError, KeyError, TypeError) as reason:
        raise InputError(
            "a question that cannot be read", location="metadata of the table", hint="predict again"
        ) from reason


def with_question(table: pa.Table, question: Question) -> pa.Table:
    """The table with the question in its schema's metadata, beside what is there already."""
    return table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _KEY: json.dumps(question.as_json()).encode()}
    )


def _splits(predictions: pa.Table) -> list[str]:
    present = (
        set(pc.unique(predictions["split"]).to_pylist())
        if "split" in predictions.schema.names
        else set()
    )
    if present == {"train"}:
        return ["train"]
    return [split for split in ("tuning", "held_out") if split in present or split == "held_out"]


def _all_of(found: Answers, question: Question, split: str, spec: ScoringSpec) -> Board:
    boards = [of(found, question, split, spec) for of in (board, calibration_board, decision_board)]

    def statistics(counts: NDArray[np.int32]) -> Floats:
        return np.concatenate([one.statistics(counts) for one in boards])

    return Board(tuple(measure for one in boards for measure in one.measures), statistics)


def _main_row(results: pa.Table, state: str, split: str) -> dict[str, Any] | None:
    rows = [
        row
        for row in results.to_pylist()
        if (row["group"], row["split"]) == (state, split) and row["name"] in MAIN_METRICS
    ]
    return rows[0] if rows else None


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return float(np.mean(np.array([row[column] for row in rows], np.float64)))


def _suppressed(row: dict[str, Any], smallest: int) -> dict[str, object]:
    n, subjects, events = row["n"], row["n_subjects"], row["n_events"]
    rest = None if events is None else n - events
    small = [
        what
        for what, count in (
            ("subjects", subjects),
            ("events", events),
            ("stays without the event", rest),
        )
        if _small(count, smallest)
    ]
    if not small:
        return row
    begun = row["definition"].partition(";")[0]
    hidden = {"value": None, "low": None, "high": None, "n_subjects": None, "n_events": None}
    return {
        **row,
        **hidden,
        "definition": f"{begun}; suppressed: fewer than {smallest} {' and '.join(small)}",
    }


def _small(count: int | None, smallest: int) -> bool:
    return count is not None and 0 < count < smallest
