"""What the tables about runs read from a run: its numbers by key, its model and adapters in words,
why a cell of a grid has none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clinpeft.recipe import AdapterSpec, AdaptRecipe, ClassifyRecipe, EmbedRecipe, Recipe
from clinpeft.reports.tables import CellValue, Estimate
from clinpeft.runs import Run

TRAIN_SPLIT, HELD_OUT_SPLIT = "train", "held_out"

CLASSIFIER_GROUP = "model"  # the state of a model that answers questions, as results name it
SUBGROUP_SEPARATOR = " · "  # between a state and a subgroup
DIFFERENCE_SEPARATOR = " − "  # between two states whose difference was measured
TFIDF_BASELINE_GROUP = "TF-IDF + logistic regression"

REPORTED_MAIN_METRICS = ("auroc", "auroc_ovo", "auroc_macro")
"""The main metric of a question is the first of these that was measured: only one fits a kind of
question."""


@dataclass(frozen=True)
class CellResult:
    """One cell of a grid, for a table of results.

    Attributes:
        name: its row's.
        run: None where there is none, because the cell failed before one was opened.
        message: why there is none.
        published: what was printed for it: ``trained``, ``share``, ``train_perplexity``,
            ``test_perplexity``, ``time``; of questions, their names and ``macro_average``; of
            vectors, the keys of ``encoders.PUBLISHED``.
        recipe: what the cell asks; None where only its run tells.
    """

    name: str
    run: Run | None
    message: str = ""
    published: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def effective_recipe(self) -> Recipe | None:
        """The recipe, from wherever it is known."""
        return self.run.recipe if self.recipe is None and self.run is not None else self.recipe


@dataclass(frozen=True)
class SuppressedRun(Run):
    """A run as it may leave: its numbers go through ``suppress_results`` before anything reads
    them.

    Attributes:
        suppress_results: results, of schema ``tables.RESULT``, to those that may be told.
    """

    suppress_results: Callable[[pa.Table], pa.Table]

    @functools.cached_property
    def results(self) -> pa.Table:
        """Read once, and suppressed."""
        return self.suppress_results(Run.results.fget(self))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class MetricKey:
    """Which number: ``task`` is empty where no question was asked."""

    name: str
    split: str
    group: str
    task: str = ""


def read_estimates(run: Run) -> dict[MetricKey, Estimate]:
    """Every number of a run."""
    return {
        MetricKey(row["name"], row["split"], _normalize_group(row), row["task"] or ""): to_estimate(
            row
        )
        for row in run.results.to_pylist()
    }


def _normalize_group(row: Mapping[str, Any]) -> str:
    """As it stands there; of a difference with a minus between the two states, even where a hyphen
    was written."""
    group: str = row["group"] or ""
    return (
        group.replace(" - ", DIFFERENCE_SEPARATOR) if row["name"].endswith("_difference") else group
    )


def to_estimate(row: Mapping[str, Any]) -> Estimate:
    """The number of a row of ``tables.RESULT`` with its interval."""
    return Estimate(row["value"], row["low"], row["high"])


def find_main_metric(
    estimates: Mapping[MetricKey, Estimate], task: str, group: str = CLASSIFIER_GROUP
) -> str | None:
    """Name of the main metric of a question, as measured on the held-out stays; None where none
    was."""
    return next(
        (
            name
            for name in REPORTED_MAIN_METRICS
            if MetricKey(name, HELD_OUT_SPLIT, group, task) in estimates
        ),
        None,
    )


def get_estimate_value(value: CellValue) -> float | None:
    """The number without its interval."""
    return value.value if isinstance(value, Estimate) else None


def get_task_names(recipe: Recipe | None) -> tuple[str, ...]:
    """Names of the questions that a recipe asks; none where it asks none."""
    return (
        (recipe.task.name, *(task.name for task in recipe.more_tasks))
        if isinstance(recipe, ClassifyRecipe)
        else ()
    )


def get_base_model_name(recipe: Recipe) -> str:
    """The folder of the pretrained model; empty where there is none."""
    return (
        recipe.base.path.name
        if isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
        else ""
    )


def describe_adapters(recipe: Recipe) -> str:
    """``lora (frozen, from clinical-lora) + prefix``; without an adapter ``all weights``, or of a
    question ``head only``."""
    specs = (
        recipe.adapters if isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe) else ()
    )
    whole = (
        ["all weights"]
        if isinstance(recipe, ClassifyRecipe | EmbedRecipe) and recipe.base.trainable
        else []
    )
    words = [*whole, *(_describe_adapter(spec) for spec in specs)]
    return " + ".join(words) or ("head only" if isinstance(recipe, ClassifyRecipe) else "")


def _describe_adapter(spec: AdapterSpec) -> str:
    said = {
        "frozen": not spec.trainable,
        f"from {spec.from_run}": bool(spec.from_run),
        "merged": spec.merged,
        "inactive": not spec.active,
    }
    words = ", ".join(word for word, is_so in said.items() if is_so)
    return getattr(spec, "method", "") + (f" ({words})" if words else "")


def explain_missing_result(entry: CellResult) -> str:
    """Why a cell has no numbers, or not yet; empty for a run that has finished."""
    if entry.run is None:
        return f"failed: {entry.message}" if entry.message else "no run"
    if entry.run.state == "finished":
        return ""
    error = entry.run.record.error
    return f"{entry.run.state}: {error.message}" if error and error.message else entry.run.state


def describe_adapter_activity(activity: Mapping[str, Any] | None) -> str:
    """One line from the proof that every adapter takes part: ``1-lora frozen, changes the logits by
    0.12; 60 frozen tensors unchanged``.

    Args:
        activity: ``liveness`` of the record of a run (``adapters.Liveness``), which only a run has
            in which all was as intended; else None.
    """
    if not activity:
        return ""
    unchanged = (
        [f"{activity['frozen_tensors']:,} frozen tensors unchanged"]
        if activity.get("frozen_tensors")
        else []
    )
    return "; ".join(
        [*(_describe_evidence(proof) for proof in activity.get("proofs", ())), *unchanged]
    )


_EVIDENCE_LABELS = {
    "gradient": "gradient",
    "moved": "moved by",
    "change_when_off": "changes the logits by",
}


def _describe_evidence(evidence: Mapping[str, Any]) -> str:
    """``2-lora trained, gradient 0.5, moved by 0.03, changes the logits by 2``."""
    known = [
        f"{word} {evidence[name]:.3g}"
        for name, word in _EVIDENCE_LABELS.items()
        if evidence.get(name) is not None
    ]
    return ", ".join([f"{evidence['name']} {evidence['role']}", *known])


def compute_tokens_per_second(run: Run) -> float | None:
    """Over the training loop; None where either is not known."""
    tokens, seconds = run.record.tokens_seen, run.record.training_seconds
    return tokens / seconds if tokens is not None and seconds else None
