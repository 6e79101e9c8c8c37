"""What a run is judged by: one number of its tuning split. Nothing here looks at what was held out."""

from __future__ import annotations

import difflib
import json
from typing import Any

import pyarrow.compute as pc

from clinpeft.core.errors import UsageError
from clinpeft.runs import Run

OBJECTIVE_SPLIT = "tuning"
TRAINED_MODEL_GROUP = {"adapt": "adapted", "classify": "model", "embed": "adapted"}
"""Kind of recipe -> what ``metrics.json`` calls the model that was trained."""


def read_objective_value(run: Run, metric: str) -> float | None:
    """The metric on the tuning split: of the first question where a run answers several; None where it is not known.

    It is the one in ``metrics.json`` for the trained model, all notes together; or, where there is none, what training measured on the tuning split
    at the step whose weights were kept.

    Raises:
        UsageError: the run has no such metric on its tuning split, with the nearest that it has.
    """
    rows = run.results.filter(pc.equal(run.results["split"], OBJECTIVE_SPLIT)).to_pylist()
    rows = [row for row in rows if row["group"] == TRAINED_MODEL_GROUP[run.recipe.kind]]
    for row in rows:
        if row["name"] == metric:
            return None if row["value"] is None else float(row["value"])
    events = _read_log_events(run)
    if any(metric in event for event in events):
        return _get_best_step_value(run, [event for event in events if metric in event], metric)
    known = {row["name"] for row in rows} | {
        name for event in events for name in event if name.startswith("tuning_")
    }
    near = difflib.get_close_matches(metric, sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known)) or 'none'}"
    raise UsageError(
        f"run {run.id} has no metric {metric!r} on its tuning split",
        location="search.metric",
        hint=hint,
    )


def _get_best_step_value(run: Run, events: list[dict[str, Any]], metric: str) -> float | None:
    best = run.record.counts.get("best_step")
    chosen = [event for event in events if event.get("step") == best] or events
    value = chosen[-1][metric]
    return float(value) if isinstance(value, int | float) else None


def _read_log_events(run: Run) -> list[dict[str, Any]]:
    """The lines of the log; one that a process died in is left out."""
    path = run.folder / "log.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [event for event in found if isinstance(event, dict)]
