"""The objective of a search: one metric of a run on its tuning split, never on the held-out one."""

from __future__ import annotations

import difflib
from typing import Any

import pyarrow.compute as pc
import pydantic

from clinpeft.core.errors import UsageError
from clinpeft.recipe import Recipe
from clinpeft.runs import Run

OBJECTIVE_SPLIT = "tuning"

_EVENT_ADAPTER = pydantic.TypeAdapter(dict[str, Any])


def read_objective_value(run: Run, metric: str) -> float | None:
    """Read a metric of a run on the tuning split, of the first task where a run has several.

    The value is that of the trained model in ``metrics.json``, all notes together; or, where there
    is none, what training logged on the tuning split at the step whose weights were selected.

    Returns:
        None where the metric is not defined.

    Raises:
        UsageError: the run has no such metric on its tuning split, with the nearest that it has.
    """
    # The held-out split is filtered out first, so that no choice can depend on it.
    results = run.results.filter(pc.equal(run.results["split"], OBJECTIVE_SPLIT))
    state = get_trained_state(run.recipe)
    rows = [row for row in results.to_pylist() if row["group"] == state]
    for row in rows:
        if row["name"] == metric:
            return None if row["value"] is None else float(row["value"])
    events = []
    path = run.folder / "log.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            events.append(_EVENT_ADAPTER.validate_json(line))
        except pydantic.ValidationError:
            continue  # a line that a killed process left incomplete
    evaluations = [event for event in events if metric in event]
    if evaluations:
        best_step = run.record.counts.get("best_step")
        # The step of the best weights; without best_step the last evaluation
        # counts.
        selected = [event for event in evaluations if event.get("step") == best_step]
        value = (selected or evaluations)[-1][metric]
        return float(value) if isinstance(value, int | float) else None
    names = {row["name"] for row in rows}
    names |= {name for event in events for name in event if name.startswith("tuning_")}
    # Metrics that exist on this split only: a held-out one must not be suggested.
    nearest = difflib.get_close_matches(metric, sorted(names), n=1)
    listing = f"it has: {', '.join(sorted(names)) or 'none'}"
    raise UsageError(
        f"run {run.id} has no metric {metric!r} on its tuning split",
        location="search.metric",
        hint=f"did you mean {nearest[0]!r}?" if nearest else listing,
    )


def get_trained_state(recipe: Recipe) -> str:
    """The group under which ``metrics.json`` has the rows of the trained model."""
    # A recipe with tasks trains a model of its own; others adapt a base.
    default = "model" if hasattr(recipe, "task") else "adapted"
    return str(getattr(recipe, "trained_state", default))
