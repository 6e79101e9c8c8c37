"""A recipe that asks for kernels which cannot be had is refused before anything is read, in every
verb that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clinpeft import models, recipe, workflows
from clinpeft.core.errors import UsageError
from clinpeft.data import sources
from clinpeft.recipe import AdaptRecipe, LoraSpec
from clinpeft.training import create_accelerator
from clinpeft.workflows import classify, embed

RECIPES = Path(__file__).parents[1] / "recipes"
AROUND = workflows.RunContext(Path())
VERBS: dict[str, Any] = {
    "adapt": workflows.adapt_language_model,
    "classify": workflows.train_classifier,
    "embed": workflows.train_embedding_model,
}


NAMES = {"adapt": "smoke", "classify": "smoke-classify", "embed": "smoke-embed"}


def asking(kind: str) -> Any:
    """A recipe that asks for liger's kernels."""
    found: Any = recipe.load_recipe_cells(RECIPES / f"{NAMES[kind]}.toml")[0].recipe
    return found.model_copy(update={"base": found.base.model_copy(update={"kernels": "liger"})})


@pytest.mark.parametrize("kind", list(VERBS))
def test_a_processor_is_refused_before_anything_is_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> str:
        raise AssertionError("something was read")

    monkeypatch.setattr(sources, "fingerprint_notes", never)
    monkeypatch.setattr(classify, "fingerprint_cohort_sources", never)
    monkeypatch.setattr(embed, "fingerprint_embedding_data", never)
    monkeypatch.setattr(models, "fingerprint_base_model", never)
    with pytest.raises(UsageError, match='kernels = "liger" on cpu') as caught:
        VERBS[kind](asking(kind), replace(AROUND, home=tmp_path / "home"))
    assert caught.value.location == "base.kernels" and not (tmp_path / "home").exists()


def test_trials_in_one_pass_are_refused_together(tmp_path: Path) -> None:
    asked = asking("classify").model_copy(update={"adapters": (LoraSpec(),)})
    trials = [asked, asked.model_copy(update={"adapters": (LoraSpec(rank=4),)})]
    with pytest.raises(UsageError, match='kernels = "liger" on cpu'):
        workflows.train_classifiers_jointly(trials, [replace(AROUND, home=tmp_path / "home")] * 2)


def test_a_run_says_whose_kernels_it_had(tmp_path: Path) -> None:
    smoke = recipe.load_recipe_cells(RECIPES / "smoke.toml")[0].recipe
    assert isinstance(smoke, AdaptRecipe) and torch.device("cpu") == create_accelerator().device
    base = smoke.base.model_copy(update={"path": models.write_toy_model(tmp_path / "base")})
    run = workflows.adapt_language_model(
        smoke.model_copy(update={"base": base}), replace(AROUND, home=tmp_path / "home")
    )
    assert run.record.kernels == "torch"
