"""What the reports read from a run: its numbers by key, its model and adapters in words, and why a
cell of a grid has no numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clinpeft.recipe import Recipe
from clinpeft.reports.tables import CellValue, Estimate
from clinpeft.runs import Run

TRAIN_SPLIT, HELD_OUT_SPLIT = "train", "held_out"

CLASSIFIER_GROUP = "model"  # group of a trained classifier in the results
SUBGROUP_SEPARATOR = " · "  # between the state of a model and a subgroup
DIFFERENCE_SEPARATOR = " − "  # between two states whose difference was measured
TFIDF_BASELINE_GROUP = "TF-IDF + logistic regression"
TFIDF_DIFFERENCE_GROUP = f"{CLASSIFIER_GROUP}{DIFFERENCE_SEPARATOR}{TFIDF_BASELINE_GROUP}"

# The main metric of a task is the first of these in its results: only one fits a kind of task
REPORTED_MAIN_METRICS = ("auroc", "auroc_ovo", "auroc_macro")

# Field of the evidence that an adapter takes part -> how a report names it
EVIDENCE_LABELS = {
    "gradient": "gradient",
    "moved": "moved by",
    "change_when_off": "changes the logits by",
}


@dataclass(frozen=True)
class CellResult:
    """One cell of a grid, for a table of results.

    Attributes:
        name: of its row.
        run: None if the cell failed before a run was opened.
        message: why there is no run.
        published: published values of the cell: ``trained``, ``share``, ``train_perplexity``,
            ``test_perplexity``, ``time``; for classification the names of tasks and
            ``macro_average``; for embeddings the keys of ``PUBLISHED_ENCODER_KEYS``.
        recipe: of the cell; None if only its run has one.
    """

    name: str
    run: Run | None
    message: str = ""
    published: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def effective_recipe(self) -> Recipe | None:
        """The recipe of the cell, else that of its run."""
        return self.run.recipe if self.recipe is None and self.run is not None else self.recipe


@dataclass(frozen=True)
class SuppressedRun(Run):
    """A run as it may be released: its results are suppressed before anything reads them.

    Attributes:
        suppress_results: results of ``METRIC_RESULT_SCHEMA`` -> those that may be released.
    """

    suppress_results: Callable[[pa.Table], pa.Table]

    @functools.cached_property
    def results(self) -> pa.Table:
        """Read once, and suppressed."""
        return self.suppress_results(super().results)


@dataclass(frozen=True)
class MetricKey:
    """Identifies a number of a run; ``task`` is empty for a run without tasks."""

    name: str
    split: str
    group: str
    task: str = ""

    @property
    def is_baseline(self) -> bool:
        """Whether the number is about a baseline: not the model, a subgroup or a difference."""
        return (
            self.group != CLASSIFIER_GROUP
            and SUBGROUP_SEPARATOR not in self.group
            and DIFFERENCE_SEPARATOR not in self.group
        )


def read_estimates(run: Run) -> dict[MetricKey, Estimate]:
    """Every number of a run by its key."""
    estimates = {}
    for row in run.results.to_pylist():
        group: str = row["group"] or ""
        if row["name"].endswith("_difference"):
            # Some evaluations write a hyphen between the two states, others a minus sign
            group = group.replace(" - ", DIFFERENCE_SEPARATOR)
        key = MetricKey(row["name"], row["split"], group, row["task"] or "")
        estimates[key] = to_estimate(row)
    return estimates


def read_subgroup_estimates(
    run: Run, task: str, metric: str | None, smallest_cell: int
) -> dict[str, tuple[Estimate, int]]:
    """One metric of each subgroup on the held-out split.

    Args:
        run: a run with tasks.
        task: of the metric.
        metric: its name; None gives no subgroups.
        smallest_cell: subgroups of fewer people are left out.

    Returns:
        Subgroup -> (estimate, number of people).
    """
    subgroups = {}
    for row in run.results.to_pylist():
        # ``model · sex F`` is the state ``model`` in the subgroup ``sex F``
        state, separator, subgroup = (row["group"] or "").partition(SUBGROUP_SEPARATOR)
        key = (row["name"], row["split"], row["task"], state)
        if not separator or key != (metric, HELD_OUT_SPLIT, task, CLASSIFIER_GROUP):
            continue
        # Results of a run that is not suppressed hold small subgroups too
        if row["value"] is not None and (row["n_subjects"] or 0) >= smallest_cell:
            subgroups[subgroup] = (to_estimate(row), row["n_subjects"])
    return subgroups


def to_estimate(row: Mapping[str, Any]) -> Estimate:
    """The number of a row of ``METRIC_RESULT_SCHEMA`` with its interval."""
    return Estimate(row["value"], row["low"], row["high"])


def find_main_metric(
    estimates: Mapping[MetricKey, Estimate], task: str, group: str = CLASSIFIER_GROUP
) -> str | None:
    """Name of a task's main metric on the held-out split; None if the results have none."""
    # In order of preference: a binary task has auroc, a multiclass one auroc_ovo, a multilabel one
    # auroc_macro
    names = (
        name
        for name in REPORTED_MAIN_METRICS
        if MetricKey(name, HELD_OUT_SPLIT, group, task) in estimates
    )
    return next(names, None)


def classify_difference(difference: Estimate) -> str:
    """Whether a difference is above 0: ``better``, ``worse``, ``no better`` or ``unknown``.

    The interval decides: ``better`` if it is above 0, ``worse`` if it is below 0, ``no better`` if
    it contains 0. A missing end counts as the value itself.
    """
    # A difference that was averaged over seeds may lack an interval
    ends = (difference.low, difference.high)
    low, high = (difference.value if end is None else end for end in ends)
    if low is None or high is None:
        return "unknown"
    return "better" if low > 0 else "worse" if high < 0 else "no better"


def get_estimate_value(value: CellValue) -> float | None:
    """The number without its interval."""
    return value.value if isinstance(value, Estimate) else None


def get_task_names(recipe: Recipe | None) -> tuple[str, ...]:
    """Names of the tasks of a recipe, the main one first; empty for a kind without tasks."""
    return tuple(task.name for task in recipe.tasks) if recipe is not None else ()


def get_base_model_name(recipe: Recipe) -> str:
    """Name of the folder of the pretrained model; empty for a kind without one."""
    return recipe.base.path.name if recipe.base is not None else ""


def describe_adapters(recipe: Recipe) -> str:
    """``lora (frozen, from clinical-lora) + prefix``; ``all weights`` for full fine-tuning, and
    ``head only`` for a classifier with neither."""
    parts = ["all weights"] if recipe.trains_base else []
    for spec in recipe.adapters:
        # Where it differs from an adapter that is new, trained and active
        options = {
            "frozen": not spec.trainable,
            f"from {spec.from_run}": bool(spec.from_run),
            "merged": spec.merged,
            "inactive": not spec.active,
        }
        words = ", ".join(option for option, is_set in options.items() if is_set)
        parts.append(getattr(spec, "method", "") + (f" ({words})" if words else ""))
    return " + ".join(parts) or ("head only" if recipe.tasks else "")


def explain_missing_result(entry: CellResult) -> str:
    """Why a cell has no numbers, or not yet; empty for a finished run."""
    if entry.run is None:
        return f"failed: {entry.message}" if entry.message else "no run"
    if entry.run.state == "finished":
        return ""
    # A run that was killed has a state, and no error
    error = entry.run.record.error
    return f"{entry.run.state}: {error.message}" if error and error.message else entry.run.state


def describe_adapter_activity(activity: Mapping[str, Any] | None) -> str:
    """One line with the evidence that every adapter takes part: ``1-lora frozen, changes the
    logits by 0.12; 60 frozen tensors unchanged``.

    Args:
        activity: ``liveness`` of the record of a run; None gives an empty text.
    """
    if not activity:
        return ""
    parts = []
    # A field that was not measured is None or absent
    for evidence in activity.get("proofs", ()):
        numbers = [
            f"{label} {evidence[field]:.3g}"
            for field, label in EVIDENCE_LABELS.items()
            if evidence.get(field) is not None
        ]
        parts.append(", ".join([f"{evidence['name']} {evidence['role']}", *numbers]))
    if activity.get("frozen_tensors"):
        parts.append(f"{activity['frozen_tensors']:,} frozen tensors unchanged")
    return "; ".join(parts)


def compute_tokens_per_second(run: Run) -> float | None:
    """Throughput of the training loop; None if tokens or time are unknown."""
    tokens, seconds = run.record.tokens_seen, run.record.training_seconds
    return tokens / seconds if tokens is not None and seconds else None
