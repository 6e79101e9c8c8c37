"""What a plan says, held against numbers worked out by hand and against the run that follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from clinpeft import models, recipe, workflows
from clinpeft.cli.plan import format_run_plan
from clinpeft.core.errors import UsageError
from clinpeft.recipe import AdaptRecipe
from clinpeft.runtime import RuntimePolicy, choose_activation_policy
from clinpeft.runtime.optimization import USABLE_MEMORY_FRACTION
from clinpeft.training import StepEvent
from clinpeft.workflows.memory_estimates import (
    TrainingWorkload,
    estimate_max_micro_batch_tokens,
    estimate_memory,
    estimate_operations,
)
from clinpeft.workflows.plan import plan_from_dry_run, plan_from_formula, summarize_dry_run

RECIPES = Path(__file__).parents[1] / "recipes"
AROUND = workflows.RunContext(Path())
SHAPE = models.compute_model_shape(
    transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
)
ALL_LINEAR = 39_976_960
"""Weights of LoRA of rank 16 on all linear layers of LLaMA-7B: 16 × (4 × 2 × 4096 + 3 × (4096 +
11008)) × 32."""
LOAD = TrainingWorkload(SHAPE, ALL_LINEAR, "bfloat16", has_language_head=True)


def smoke(name: str = "smoke") -> AdaptRecipe:
    found = recipe.load_recipe_cells(RECIPES / f"{name}.toml")[0].recipe
    assert isinstance(found, AdaptRecipe)
    return found


def test_operations_a_token_of_a_7b_are_those_of_the_published_formula() -> None:
    terms = estimate_operations(SHAPE, ALL_LINEAR, 512, has_language_head=True)
    assert sum(term.value for term in terms) == pytest.approx(
        27.1e9, rel=2e-3
    )  # 4 N + 6 N_l + 6 s h L
    assert sum(
        term.value for term in estimate_operations(SHAPE, ALL_LINEAR, 2048, has_language_head=True)
    ) == pytest.approx(28.3e9, rel=2e-3)


def test_a_token_of_a_7b_leaves_some_4_to_5_megabytes_behind() -> None:
    (_, _, activations, _) = estimate_memory(LOAD, 1)
    assert (
        activations.value
        == 32 * (8 * 4096 + 2 * 4096 + 3 * 11_008) * 2
        == pytest.approx(4.7e6, rel=0.02)
    )


def test_logits_take_a_block_and_not_a_micro_batch() -> None:
    (*_, few), (*_, many) = (
        estimate_memory(replace(LOAD, device_type="cpu"), tokens) for tokens in (100, 8192)
    )
    assert few.value == 100 * 32_000 * 6  # fewer than a block
    assert many.value == 131 * 32_000 * 6  # 2 ** 24 bytes of float32 scores: 131 tokens at a time
    assert estimate_memory(LOAD, 8192)[-1].value == 4194 * 32_000 * 6  # 2 ** 29 on a GPU


def test_recomputed_a_layer_leaves_its_input_and_one_layer_the_rest() -> None:
    (_, _, activations, _) = estimate_memory(LOAD, 1, "recompute")
    assert activations.value == (32 * 4096 + 8 * 4096 + 2 * 4096 + 3 * 11_008) * 2
    kept, again = (
        estimate_operations(SHAPE, ALL_LINEAR, 512, True, policy=policy)
        for policy in ("keep", "recompute")
    )
    assert again[:3] == kept
    assert sum(term.value for term in again) / sum(term.value for term in kept) == pytest.approx(
        1.5, abs=0.02
    )


@pytest.mark.parametrize(
    ("asked", "memory", "policy"),
    [
        ("auto", 80e9, "keep"),
        ("auto", 14e9, "recompute"),
        ("keep", 14e9, "keep"),
        ("recompute", 80e9, "recompute"),
        ("auto", None, "keep"),
    ],
)
def test_activations_are_recomputed_where_a_micro_batch_would_not_fit(
    asked: str, memory: float | None, policy: str
) -> None:
    kept_bytes = sum(term.value for term in estimate_memory(LOAD, 512, "keep"))
    options: dict[str, Any] = {"activations": asked, "kept_memory_bytes": kept_bytes}
    request = RuntimePolicy(Path(), device_memory_bytes=memory, **options)
    choice, reason = choose_activation_policy(request, "")
    assert choice == policy and reason
    small = replace(request, activations="auto", device_memory_bytes=14e9)
    assert choose_activation_policy(small, "it cannot be") == ("keep", "it cannot be")


def test_the_micro_batch_that_fits_uses_the_memory_and_no_more() -> None:
    fits = estimate_max_micro_batch_tokens(LOAD, 80e9)
    used = sum(term.value for term in estimate_memory(LOAD, fits))
    assert 0.999 * USABLE_MEMORY_FRACTION * 80e9 < used <= USABLE_MEMORY_FRACTION * 80e9
    assert estimate_max_micro_batch_tokens(LOAD, 12e9) == 0


def test_an_unknown_gpu_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="P100") as caught:
        plan_from_formula(smoke(), "P100")
    assert "H100" in caught.value.hint


def test_a_named_gpu_is_planned_from_the_recipe_alone() -> None:
    plan = plan_from_formula(smoke(), "T4")
    assert plan.tokens == 4 * 512 and plan.seconds is not None and plan.seconds[0] < plan.seconds[1]
    said = "\n".join(format_run_plan(plan, 512))
    assert "on T4" in said and "activations: 512 tokens" in said and "fit" in said
    assert "and activations kept" in said and "activations recomputed" in said
    assert (
        plan.max_micro_batch_tokens
        and plan.alternative.max_micro_batch_tokens
        and plan.alternative.max_micro_batch_tokens > plan.max_micro_batch_tokens
    )


def test_the_first_steps_are_extended_to_the_whole_run() -> None:
    told = [
        StepEvent(step, 8, 1.0, 0.1, 100 * step, seconds, 0.0, 0.0, measured)
        for step, seconds, measured in _timed()
    ]
    probe = summarize_dry_run(told, total_steps=100, evaluations=4)
    assert probe.tokens_per_second == pytest.approx(100.0) and probe.tokens_per_step == 100
    assert probe.warmup_seconds == pytest.approx(
        3.0
    )  # two steps of 3 and 2 seconds, which take 1 each once warm
    assert probe.evaluation_seconds == pytest.approx(5.0)
    assert probe.training_seconds == pytest.approx(3.0 + 100 + 4 * 5)


def _timed() -> list[tuple[int, float, dict[str, float]]]:
    return [
        (1, 3.0, {}),
        (2, 5.0, {}),
        (3, 6.0, {}),
        (4, 12.0, {"tuning_perplexity": 9.0}),
        (5, 13.0, {}),
    ]


def test_a_plan_is_near_what_the_run_then_takes_and_leaves_nothing_but_the_cache(
    tmp_path: Path,
) -> None:
    """The bands are wide: four steps of a few milliseconds, on a machine that does other things as
    well. docs/plan.md has the measured figure."""
    home = tmp_path / "home"
    base = smoke().base.model_copy(update={"path": models.write_toy_model(tmp_path / "base")})
    asked = smoke().model_copy(update={"base": base})
    plan = plan_from_dry_run(asked, replace(AROUND, home=home), 8 * 2**30)
    assert [path.name for path in home.iterdir()] == ["cache"]
    run = workflows.adapt_language_model(asked, replace(AROUND, home=home))
    assert (
        plan.dry_run is not None
        and plan.seconds is not None
        and plan.dry_run.total_steps == run.record.counts["total_steps"]
    )
    assert run.record.training_seconds is not None and run.record.peak_memory_bytes is not None
    assert 0.1 < plan.seconds[0] / run.record.training_seconds < 10
    assert 0.5 < plan.memory_bytes / run.record.peak_memory_bytes <= 1
    again = plan_from_dry_run(asked, replace(AROUND, home=home), None)
    assert (
        again.dry_run is not None
        and again.dry_run.from_finished_run
        and again.seconds == (run.record.training_seconds,) * 2
    )
