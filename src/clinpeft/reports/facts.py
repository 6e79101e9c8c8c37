"""What the tables about runs read from a run: its numbers by key, its model and adapters in words, why a cell of a grid has none."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clinpeft.recipe import AdapterSpec, AdaptRecipe, ClassifyRecipe, EmbedRecipe, Recipe
from clinpeft.reports.tables import Estimate, Value
from clinpeft.runs import Run

TRAIN, TEST = "train", "held_out"

MODEL = "model"  # the state of a model that answers questions, as results name it
SUBGROUP = " · "  # between a state and a subgroup
MINUS = " − "  # between two states whose difference was measured
TFIDF = "TF-IDF + logistic regression"

MAIN_METRICS = ("auroc", "auroc_ovo", "auroc_macro")
"""The main metric of a question is the first of these that was measured: only one fits a kind of question."""


@dataclass(frozen=True)
class Entry:
    """One cell of a grid, for a table of results.

    Attributes:
        name: its row's.
        run: None where there is none, because the cell failed before one was opened.
        message: why there is none.
        published: what was printed for it: ``trained``, ``share``, ``train_perplexity``, ``test_perplexity``, ``time``; of questions, their names
            and ``macro_average``; of vectors, the keys of ``encoders.PUBLISHED``.
        recipe: what the cell asks; None where only its run tells.
    """

    name: str
    run: Run | None
    message: str = ""
    published: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def asked(self) -> Recipe | None:
        """The recipe, from wherever it is known."""
        return self.run.recipe if self.recipe is None and self.run is not None else self.recipe


@dataclass(frozen=True)
class Outgoing(Run):
    """A run as it may leave: its numbers go through ``suppress`` before anything reads them.

    Attributes:
        suppress: results, of schema ``tables.RESULT``, to those that may be told.
    """

    suppress: Callable[[pa.Table], pa.Table]

    @functools.cached_property
    def results(self) -> pa.Table:
        """Read once, and suppressed."""
        return self.suppress(Run.results.fget(self))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Key:
    """Which number: ``task`` is empty where no question was asked."""

    name: str
    split: str
    group: str
    task: str = ""


def estimates(run: Run) -> dict[Key, Estimate]:
    """Every number of a run."""
    return {
        Key(row["name"], row["split"], _group(row), row["task"] or ""): estimate(row)
        for row in run.results.to_pylist()
    }


def _group(row: Mapping[str, Any]) -> str:
    """As it stands there; of a difference with a minus between the two states, even where a hyphen was written."""
    group: str = row["group"] or ""
    return group.replace(" - ", MINUS) if row["name"].endswith("_difference") else group


def estimate(row: Mapping[str, Any]) -> Estimate:
    """The number of a row of ``tables.RESULT`` with its interval."""
    return Estimate(row["value"], row["low"], row["high"])


def main_metric(found: Mapping[Key, Estimate], task: str, group: str = MODEL) -> str | None:
    """Name of the main metric of a question, as measured on the held-out stays; None where none was."""
    return next((name for name in MAIN_METRICS if Key(name, TEST, group, task) in found), None)


def value(known: Value) -> float | None:
    """The number without its interval."""
    return known.value if isinstance(known, Estimate) else None


def tasks(recipe: Recipe | None) -> tuple[str, ...]:
    """Names of the questions that a recipe asks; none where it asks none."""
    return (
        (recipe.task.name, *(task.name for task in recipe.more_tasks))
        if isinstance(recipe, ClassifyRecipe)
        else ()
    )


def base_name(recipe: Recipe) -> str:
    """The folder of the pretrained model; empty where there is none."""
    return (
        recipe.base.path.name
        if isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
        else ""
    )


def adapters(recipe: Recipe) -> str:
    """``lora (frozen, from clinical-lora) + prefix``; without an adapter ``all weights``, or of a question ``head only``."""
    specs = (
        recipe.adapters if isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe) else ()
    )
    whole = (
        ["all weights"]
        if isinstance(recipe, ClassifyRecipe | EmbedRecipe) and recipe.base.trainable
        else []
    )
    words = [*whole, *(_adapter(spec) for spec in specs)]
    return " + ".join(words) or ("head only" if isinstance(recipe, ClassifyRecipe) else "")


def _adapter(spec: AdapterSpec) -> str:
    said = {
        "frozen": not spec.trainable,
        f"from {spec.from_run}": bool(spec.from_run),
        "merged": spec.merged,
        "inactive": not spec.active,
    }
    words = ", ".join(word for word, is_so in said.items() if is_so)
    return getattr(spec, "method", "") + (f" ({words})" if words else "")


def remark(entry: Entry) -> str:
    """Why a cell has no numbers, or not yet; empty for a run that has finished."""
    if entry.run is None:
        return f"failed: {entry.message}" if entry.message else "no run"
    if entry.run.state == "finished":
        return ""
    error = entry.run.record.error
    return f"{entry.run.state}: {error.message}" if error and error.message else entry.run.state


def liveness(found: Mapping[str, Any] | None) -> str:
    """One line from the proof that every adapter takes part: ``1-lora frozen, changes the logits by 0.12; 60 frozen tensors unchanged``.

    Args:
        found: ``liveness`` of the record of a run (``adapters.Liveness``), which only a run has in which all was as intended; else None.
    """
    if not found:
        return ""
    unchanged = (
        [f"{found['frozen_tensors']:,} frozen tensors unchanged"]
        if found.get("frozen_tensors")
        else []
    )
    return "; ".join([*(_proof(proof) for proof in found.get("proofs", ())), *unchanged])


_PROVED = {"gradient": "gradient", "moved": "moved by", "change_when_off": "changes the logits by"}


def _proof(proof: Mapping[str, Any]) -> str:
    """``2-lora trained, gradient 0.5, moved by 0.03, changes the logits by 2``."""
    known = [
        f"{word} {proof[name]:.3g}" for name, word in _PROVED.items() if proof.get(name) is not None
    ]
    return ", ".join([f"{proof['name']} {proof['role']}", *known])


def tokens_a_second(run: Run) -> float | None:
    """Over the training loop; None where either is not known."""
    tokens, seconds = run.record.tokens_seen, run.record.training_seconds
    return tokens / seconds if tokens is not None and seconds else None
