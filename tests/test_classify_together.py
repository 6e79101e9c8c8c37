"""Recipes of ``classify`` trained in one pass: each run is the run that it is alone."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clinpeft import recipe, workflows
from clinpeft.core.errors import InterruptedRunError, RecipeError
from clinpeft.recipe import ClassifyRecipe
from clinpeft.runs import Run
from tests.conftest import MakeFolder
from tests.test_classify import RECIPE, invented, write_rows

AROUND = workflows.RunContext(Path())
MEASURED = (
    "started",
    "created",
    "finished",
    "training_seconds",
    "total_seconds",
    "baselines_seconds",
    "peak_memory_bytes",
    "activations",
    "notices",
    "files",
    "name",
)


@pytest.fixture
def document(toy_llama: MakeFolder, tmp_path: Path) -> dict[str, Any]:
    notes = write_rows(tmp_path / "notes.csv", invented(60))
    asked = tomllib.loads(
        RECIPE.format(name="trial", notes=notes, base=toy_llama(), baselines="false")
    )
    asked["training"] |= {"epochs": 2, "evaluations": 2, "checkpoints": 2}
    asked["evaluation"]["resamples"] = 100
    return asked


def varied(
    document: dict[str, Any], rank: int, rate: float, dropout: float = 0.0, **training: Any
) -> ClassifyRecipe:
    adapter = {"method": "lora", "rank": rank, "dropout": dropout}
    changed = document | {
        "name": f"rank {rank}",
        "adapters": [adapter],
        "training": document["training"] | {"learning_rate": rate} | training,
    }
    found = recipe.validate_recipe(changed, "test")
    assert isinstance(found, ClassifyRecipe)
    return found


def test_each_run_is_what_it_is_alone_and_says_who_was_trained_with_it(
    document: dict[str, Any], tmp_path: Path
) -> None:
    asked = [
        varied(document, 2, 2e-2),
        varied(document, 4, 1e-2, 0.2, epochs=3, head_epochs=1),
        varied(document, 2, 2e-2),
    ]
    found = workflows.train_classifiers_jointly(
        asked[:2], [replace(AROUND, home=tmp_path / "together")] * 2
    )
    for at, one in enumerate(found):
        assert isinstance(one, Run)
        alone = workflows.train_classifier(asked[at], replace(AROUND, home=tmp_path / "alone"))
        assert one.id == alone.id and one.state == "finished"
        ours, theirs = (run.record.model_dump(exclude=set(MEASURED)) for run in (one, alone))
        liveness = [record.pop("liveness") for record in (ours, theirs)]
        assert ours == theirs
        assert (
            len({proved["frozen_sha256"] for proved in liveness})
            == len({proved["frozen_tensors"] for proved in liveness})
            == 1
        )
        assert {path.relative_to(one.folder) for path in one.folder.rglob("*")} == {
            path.relative_to(alone.folder) for path in alone.folder.rglob("*")
        }
        for ours_, theirs_ in zip(one.results.to_pylist(), alone.results.to_pylist(), strict=True):
            assert ours_["name"] == theirs_["name"] and ours_["value"] == pytest.approx(
                theirs_["value"], abs=1e-3, nan_ok=True
            )
        other = found[1 - at]
        assert isinstance(other, Run) and any(other.id in notice for notice in one.record.notices)
        assert one.record.notices[:-1] == alone.record.notices
    again = workflows.train_classifiers_jointly(
        asked[1:], [replace(AROUND, home=tmp_path / "together")] * 2
    )
    assert [run.record.finished for run in again if isinstance(run, Run)] == [
        found[1].record.finished,  # type: ignore[union-attr]
        found[0].record.finished,  # type: ignore[union-attr]
    ]


def test_stopped_runs_go_on_from_their_checkpoints(
    document: dict[str, Any], tmp_path: Path
) -> None:
    asked = [varied(document, 2, 2e-2), varied(document, 4, 1e-2)]
    steps: list[int] = []
    stopped = replace(
        AROUND,
        on_step=lambda event: steps.append(event.step),
        should_stop=lambda: len(steps) >= 2,
    )
    found = workflows.train_classifiers_jointly(asked, [replace(stopped, home=tmp_path)] * 2)
    assert all(isinstance(one, InterruptedRunError) for one in found)
    assert steps == [1, 1, 2]
    on = replace(AROUND, on_step=lambda event: steps.append(event.step))
    found = workflows.train_classifiers_jointly(asked, [replace(on, home=tmp_path)] * 2)
    assert all(isinstance(one, Run) and one.state == "finished" for one in found)
    assert sorted(steps) == sorted([*range(1, 7)] * 2)


def test_recipes_that_differ_in_more_are_not_shareable(
    document: dict[str, Any], tmp_path: Path
) -> None:
    one, other = varied(document, 2, 1e-2), varied(document, 4, 1e-3)
    assert workflows.can_train_jointly([one, other])
    elsewhere = recipe.validate_recipe(
        one.model_dump(mode="json") | {"split": {"train": 0.5, "tuning": 0.3, "held_out": 0.2}},
        "test",
    )
    dora = recipe.validate_recipe(
        one.model_dump(mode="json") | {"adapters": [{"method": "dora"}]}, "test"
    )
    bare = recipe.validate_recipe(one.model_dump(mode="json") | {"adapters": []}, "test")
    for odd in (elsewhere, dora, bare):
        assert isinstance(odd, ClassifyRecipe) and not workflows.can_train_jointly([one, odd])
        with pytest.raises(RecipeError, match="2 recipes that cannot be trained in one pass"):
            workflows.train_classifiers_jointly([one, odd], [replace(AROUND, home=tmp_path)] * 2)
