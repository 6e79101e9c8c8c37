"""Searches without training: a recipe, runs that are there at once, a surface of values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clinpeft import search
from clinpeft.recipe import Recipe, SearchSpec, validate_recipe
from clinpeft.runs import Run
from clinpeft.search import worker

RECIPE: dict[str, Any] = {
    "kind": "classify",
    "name": "toy",
    "source": {"name": "synthetic"},
    "task": {"name": "mortality"},
    "base": {"path": "/models/toy"},
    "adapters": [{"method": "lora"}],
}
SPACE: dict[str, Any] = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "adapters.0.rank": [2, 4, 8, 16],
}


def toy() -> Recipe:
    return validate_recipe(RECIPE, "toy")


def asked(**keys: Any) -> SearchSpec:
    return SearchSpec(
        **{
            "space": SPACE,
            "metric": "auroc",
            "direction": "maximize",
            "sampler": "random",
            "trials": 6,
            **keys,
        }
    )


@dataclass
class Maker:
    """Runs that are there at once, one for every settings; ``before`` is called with the recipe of
    one that is not there yet."""

    before: Callable[[Any], None] = lambda recipe: None
    made: list[Any] = field(default_factory=list)

    def __call__(self, recipe: Any) -> tuple[Run, bool]:
        key = settings_of(recipe)
        is_new = key not in self.made
        if is_new:
            self.before(recipe)
            self.made.append(key)
        run: Any = SimpleNamespace(id=f"run-{self.made.index(key)}", recipe=recipe)
        return run, is_new


def settings_of(recipe: Any) -> tuple[float, int]:
    return recipe.training.learning_rate, recipe.adapters[0].rank


@contextlib.contextmanager
def bench(
    folder: Path, spec: SearchSpec, make: Callable[[Any], tuple[Run, bool]], name: str = "toy"
) -> Iterator[search.WorkerConfig]:
    """A worker at its bench, with connections of its own."""
    space = search.build_search_space(spec, toy())
    with search.open_search_storage(spec.storage, folder, name) as (kept, claims):
        study = search.open_optuna_study(kept, name, spec)
        yield search.WorkerConfig(kept, study, claims, space, spec, toy(), make)


@pytest.fixture
def _surface(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a run is its rank, so that no run has to be measured."""
    monkeypatch.setattr(
        worker, "read_objective_value", lambda run, metric: float(settings_of(run.recipe)[1])
    )
