"""A run whose activations are computed again is the run whose activations are kept, also when it
was stopped between; and its record says which."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from clinpeft import models, recipe, workflows
from clinpeft.core.errors import AdapterError, InterruptedRunError
from clinpeft.recipe import AdaptRecipe, LoraSpec, PrefixSpec
from clinpeft.runs import Run
from clinpeft.training import StepEvent
from clinpeft.workflows import memory_estimates

SMOKE = Path(__file__).parents[1] / "recipes" / "smoke.toml"
AROUND = workflows.RunContext(Path())


@pytest.fixture
def smoke(tmp_path: Path) -> AdaptRecipe:
    found = recipe.load_recipe_cells(SMOKE)[0].recipe
    assert isinstance(found, AdaptRecipe)
    base = found.base.model_copy(update={"path": models.write_toy_model(tmp_path / "base")})
    return found.model_copy(update={"base": base, "adapters": (LoraSpec(rank=4, dropout=0.2),)})


def asking(found: AdaptRecipe, policy: str) -> AdaptRecipe:
    return found.model_copy(
        update={
            "training": found.training.model_copy(
                update={"activations": policy, "micro_batch_tokens": 128}
            )
        }
    )


def made(found: AdaptRecipe, home: Path, stop_after: int = 99) -> tuple[Run, list[StepEvent]]:
    told: list[StepEvent] = []
    count = itertools.count(1)
    context = replace(
        AROUND, home=home, on_step=told.append, should_stop=lambda: next(count) >= stop_after
    )
    return workflows.adapt_language_model(found, context), told


def test_a_run_learns_the_same_and_goes_on_where_it_was_stopped(
    smoke: AdaptRecipe, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    kept, told = made(asking(smoke, "auto"), home)
    with pytest.raises(InterruptedRunError):
        made(asking(smoke, "recompute"), home, stop_after=2)
    again, rest = made(asking(smoke, "recompute"), home)
    assert [event.step for event in rest] == [3, 4]
    assert [event.loss for event in rest] == [event.loss for event in told[2:]]
    assert [event.metrics for event in rest] == [event.metrics for event in told[2:]]
    assert kept.record.activations.startswith("kept: by formula 128 tokens take")
    assert again.record.activations == "recomputed: asked for in the recipe"


def test_a_memory_that_is_too_small_by_formula_makes_auto_recompute(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimates, "read_device_memory_bytes", lambda _: 2**20)
    run, _ = made(asking(smoke, "auto"), tmp_path / "home")
    assert run.record.activations.startswith("recomputed: by formula")


def test_a_prefix_is_kept_and_refused_where_recomputing_is_asked_for(
    smoke: AdaptRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_estimates, "read_device_memory_bytes", lambda _: 2**20)
    smoke = smoke.model_copy(update={"adapters": (PrefixSpec(tokens=2, projection=False),)})
    run, _ = made(asking(smoke, "auto"), tmp_path / "home")
    assert run.record.activations.startswith("kept: prefix hands keys")
    with pytest.raises(AdapterError, match="prefix"):
        made(asking(smoke, "recompute"), tmp_path / "home")
