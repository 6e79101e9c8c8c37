"""A whole run on a base in float8: let through by its gate or not, recorded, and opened again as it
was."""

from __future__ import annotations

import json
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from transformers import AutoModelForCausalLM

from clinpeft import adapters, inference, models, recipe, reports, training, workflows
from clinpeft.core.errors import RecipeError, RefusedError
from clinpeft.models import Float8Linear
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import Run
from clinpeft.runtime.optimization import USABLE_MEMORY_FRACTION
from clinpeft.workflows import base_loading, memory_estimates, plan
from tests.conftest import ROOT, MakeFolder
from tests.test_classify import RECIPE as CLASSIFY
from tests.test_classify import invented, write_rows
from tests.test_embed import RECIPE as EMBED

AROUND = workflows.RunContext(Path())
FLOAT8 = {"quantization": "float8", "quantization_limit": 0.05}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> AdaptRecipe:
    """Forty invented patients, and a base of random weights."""
    found = recipe.load_recipe_cells(ROOT / "recipes" / "smoke.toml")[0].recipe
    assert isinstance(found, AdaptRecipe)
    base = found.base.model_copy(
        update={
            "path": models.write_toy_model(tmp_path_factory.mktemp("tiny") / "base"),
            "precision": "float32",
        }
        | FLOAT8
    )
    return found.model_copy(update={"base": base})


@pytest.fixture
def question(toy_llama: MakeFolder, tmp_path: Path) -> dict[str, Any]:
    notes = write_rows(tmp_path / "notes.csv", invented(60))
    asked = tomllib.loads(
        CLASSIFY.format(name="question", notes=notes, base=toy_llama(), baselines="false")
    )
    asked["training"] |= {"epochs": 1, "evaluations": 1, "checkpoints": 1}
    return asked | {"adapters": [{"method": "lora", "rank": 2}], "base": asked["base"] | FLOAT8}


def asking(found: dict[str, Any], **base: Any) -> Any:
    return recipe.validate_recipe(found | {"base": found["base"] | base}, "test")


def with_base(found: AdaptRecipe, **changes: Any) -> AdaptRecipe:
    return found.model_copy(update={"base": found.base.model_copy(update=changes)})


@pytest.fixture(scope="module")
def made(smoke: AdaptRecipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The run on the base as it comes, and after it, in the same home, that on float8."""
    home = tmp_path_factory.mktemp("home")
    return {
        name: workflows.adapt_language_model(
            with_base(smoke, quantization=name), replace(AROUND, home=home)
        )
        for name in ("none", "float8")
    }


def test_patients_become_a_recorded_run_that_stock_peft_opens(
    smoke: AdaptRecipe, made: dict[str, Run]
) -> None:
    whole, run = made.values()
    assert run.record.state == "finished"
    assert (
        run.record.quantization.startswith("float8: perplexity ")
        and "where 1.05 is allowed, on 8 tuning texts" in run.record.quantization
    )
    assert whole.id != run.id and whole.record.quantization == ""
    assert (run.record.base_parameters, run.record.trained_parameters) == (
        whole.record.base_parameters,
        whole.record.trained_parameters,
    )
    assert ("quantization", run.record.quantization) in reports.build_run_summary(run).rows
    assert "quantization" not in [row[0] for row in reports.build_run_summary(whole).rows]
    assert (
        json.loads((run.folder / "adapter" / "clinpeft.json").read_text(encoding="utf-8"))[
            "quantization"
        ]
        == "float8"
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # peft reads an attribute that transformers has renamed
        peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(smoke.base.path), str(run.folder / "adapter")
        )
    _, checks = workflows.verify_run_provenance(run.folder.parent, run.id)
    assert {check.item: check.state for check in checks}["probe"] == "same" and all(
        check.state != "changed" for check in checks
    )


def test_what_the_base_says_is_not_taken_from_the_cache_of_the_base_as_it_comes(
    made: dict[str, Run],
) -> None:
    asked = ("perplexity", "base", "tuning")
    whole, quantized = (
        row["value"]
        for run in made.values()
        for row in run.results.to_pylist()
        if (row["name"], row["group"], row["split"]) == asked
    )
    assert whole != quantized == pytest.approx(whole, rel=0.05)


def test_a_second_run_measures_the_same(
    smoke: AdaptRecipe, made: dict[str, Run], tmp_path: Path
) -> None:
    assert (
        workflows.adapt_language_model(smoke, replace(AROUND, home=tmp_path)).record.quantization
        == made["float8"].record.quantization
    )


def test_a_base_that_float8_changes_too_much_is_refused_before_anything_is_trained(
    tmp_path: Path, small_base: Path
) -> None:
    found = recipe.load_recipe_cells(ROOT / "recipes" / "smoke.toml")[0].recipe
    assert isinstance(found, AdaptRecipe)
    told: list[training.StepEvent] = []
    context = replace(AROUND, on_step=told.append)
    with pytest.raises(
        RefusedError,
        match=r"perplexity \d+\.\d+ before and \d+\.\d+ after, 1\.00\d+ times, where 1 is allowed",
    ) as caught:
        workflows.adapt_language_model(
            with_base(found, path=small_base, quantization="float8", quantization_limit=0.0),
            replace(context, home=tmp_path / "home"),
        )
    assert caught.value.location == "base.quantization_limit"
    assert (
        "raise base.quantization_limit" in caught.value.hint
        and 'quantization = "none"' in caught.value.hint
    )
    assert not told


def test_without_tuning_texts_nothing_can_be_measured(smoke: AdaptRecipe, tmp_path: Path) -> None:
    split = smoke.split.model_copy(update={"train": 0.8, "tuning": 0.0})
    with pytest.raises(RefusedError, match="no tuning text"):
        workflows.adapt_language_model(
            smoke.model_copy(update={"split": split}), replace(AROUND, home=tmp_path / "home")
        )


def test_a_question_is_answered_on_it_and_asked_again(
    question: dict[str, Any], tmp_path: Path
) -> None:
    asked = asking(question)
    assert isinstance(asked, ClassifyRecipe)
    run = workflows.train_classifier(asked, replace(AROUND, home=tmp_path))
    assert (
        run.record.quantization.startswith("float8: mean cosine 0.99")
        and "13 tuning texts" in run.record.quantization
    )
    served = inference.load_classifier(
        run.folder, asked.base, models.get_cpu_device()
    )  # answers the probe to the bit
    assert any(isinstance(module, Float8Linear) for module in served.stack.base.model.modules())
    with pytest.raises(RefusedError, match="probe"):
        inference.load_classifier(
            run.folder,
            asked.base.model_copy(update={"quantization": "none"}),
            models.get_cpu_device(),
        )
    with pytest.raises(
        RefusedError, match=r"mean cosine 0\.99\d+ of vectors before and after, where 1 is "
    ):
        workflows.train_classifier(
            asking(question, quantization_limit=0.0), replace(AROUND, home=tmp_path)
        )


def test_trials_in_one_pass_are_behind_the_gate_too(
    question: dict[str, Any], tmp_path: Path
) -> None:
    asked = [asking(question | {"seed": seed}) for seed in (1, 2)]
    together = workflows.train_classifiers_jointly(
        asked, [replace(AROUND, home=tmp_path / "together")] * 2
    )
    alone = workflows.train_classifier(asked[0], replace(AROUND, home=tmp_path / "alone"))
    assert all(
        isinstance(run, Run) and run.record.quantization == alone.record.quantization
        for run in together
    )


def test_books_are_learned_on_it(tmp_path: Path, toy_llama: MakeFolder) -> None:
    said = EMBED.format(
        name="books", source='name = "handbook"', base=toy_llama(), pooling="mean", controls="true"
    )
    document = tomllib.loads(said)
    asked = asking(document, **FLOAT8)
    assert isinstance(asked, EmbedRecipe)
    run = workflows.train_embedding_model(asked, replace(AROUND, home=tmp_path))
    assert run.record.quantization.startswith(
        "float8: mean cosine 0.99"
    ) and run.record.quantization.endswith("on 24 tuning texts")
    stack, _ = inference.load_encoder(run.folder, asked.base, models.get_cpu_device())
    assert adapters.check_stack_reference_output(stack, run.folder)  # answered as when it was kept
    with pytest.raises(RefusedError, match="float8"):
        stack.create_merged_model()
    with pytest.raises(RefusedError, match="where 1 is "):
        workflows.train_embedding_model(
            asking(document, quantization="float8", quantization_limit=0.0),
            replace(AROUND, home=tmp_path),
        )


@pytest.mark.parametrize(
    ("base", "adapter", "location"),
    [
        ({"trainable": True}, [], "base.trainable"),
        (
            {},
            [{"method": "lora", "from_run": "x", "trainable": False, "merged": True}],
            "adapters.0.merged",
        ),
    ],
)
def test_what_would_change_its_weights_is_refused_before_anything_is_read(
    question: dict[str, Any],
    tmp_path: Path,
    base: dict[str, Any],
    adapter: list[Any],
    location: str,
) -> None:
    asked = asking(question | {"adapters": adapter}, **base)
    with pytest.raises(RecipeError, match="float8") as caught:
        workflows.train_classifier(asked, replace(AROUND, home=tmp_path / "home"))
    assert caught.value.location == location and 'base.quantization = "none"' in caught.value.hint
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("after", "limit", "holds"),
    [(10.1, 0.01, True), (10.11, 0.01, False), (9.0, 0.0, True), (float("nan"), 0.5, False)],
)
def test_perplexity_may_rise_by_the_limit(after: float, limit: float, holds: bool) -> None:
    found, said = base_loading.compare_perplexities(10.0, after, limit)
    assert found is holds and f"perplexity 10 before and {after:g} after" in said


def test_the_mean_cosine_may_fall_by_the_limit() -> None:
    before, after = (
        np.array([[1.0, 0.0], [0.0, 2.0]]),
        np.array([[3.0, 0.0], [3.0, 4.0]]),
    )  # cosines 1 and 0.8
    assert (
        base_loading.compare_vectors(before, after, 0.11)[0]
        and not base_loading.compare_vectors(before, after, 0.09)[0]
    )
    assert "mean cosine 0.90000000" in base_loading.compare_vectors(before, after, 0.09)[1]
    assert not base_loading.compare_vectors(before, np.zeros((2, 2)), 0.5)[0]


def test_at_most_so_many_texts_are_asked_from_first_to_last() -> None:
    assert [
        len(base_loading.select_check_texts(np.arange(count))) for count in (1, 32, 33, 64, 1000)
    ] == [
        1,
        32,
        17,
        32,
        32,
    ]
    assert base_loading.select_check_texts(np.arange(1000))[-1] > 900


def test_a_plan_counts_a_byte_a_weight_inside_the_blocks(smoke: AdaptRecipe) -> None:
    shape = models.read_model_shape(smoke.base.path)
    inside = 2 * (4 * 64 * 64 + 3 * 64 * 128)  # attention and feed-forward of two layers
    assert (shape.block_linear_weights, shape.largest_block_weights) == (inside, 64 * 128)
    base = memory_estimates.estimate_memory(
        memory_estimates.TrainingWorkload(shape, 0, "bfloat16", True, "float8"), 1
    )[0]
    assert base.value == inside + 2 * (shape.parameter_count - inside + 64 * 128)
    plain, quantized = (
        plan.plan_from_formula(with_base(smoke, quantization=name), "H100").memory_terms
        for name in ("none", "float8")
    )
    assert (
        plain[0].value - quantized[0].value == 3 * inside - 4 * 64 * 128
        and plain[1:] == quantized[1:]
    )


def test_a_memory_that_does_not_hold_the_base_as_it_comes_holds_nothing(smoke: AdaptRecipe) -> None:
    shape = models.read_model_shape(smoke.base.path)
    whole = 4 * shape.parameter_count / USABLE_MEMORY_FRACTION
    load = memory_estimates.TrainingWorkload(
        shape, 0, "float32", has_language_head=False, quantization="float8"
    )
    assert memory_estimates.estimate_max_micro_batch_tokens(load, 0.99 * whole) == 0
    assert memory_estimates.estimate_max_micro_batch_tokens(load, 1.01 * whole) > 0


@pytest.mark.parametrize("method", ["prefix", "adaption-prompt"])
def test_a_method_beside_the_weights_runs_on_it(
    method: str, smoke: AdaptRecipe, tmp_path: Path
) -> None:
    adapter = recipe.validate_recipe(
        smoke.model_dump(mode="json") | {"adapters": [{"method": method}]}, "test"
    )
    assert isinstance(adapter, AdaptRecipe)
    assert (
        workflows.adapt_language_model(
            adapter, replace(AROUND, home=tmp_path / "home")
        ).record.state
        == "finished"
    )
