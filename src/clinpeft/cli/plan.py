"""``clinpeft plan``: what memory and time a run will take, before it is begun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption

if TYPE_CHECKING:
    from clinpeft.workflows.plan import PlanTerm, RunPlan

ACTIVATION_POLICY_LABELS = {"keep": "kept", "recompute": "recomputed"}


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind adapt, classify or embed.")],
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            help="By formula for this GPU, such as H100; without it the run's first steps are tried here.",
        ),
    ] = "",
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Say what memory and time a run will take, and which micro-batch fits: by its own first 20 steps here, or by formula for a named GPU."""
    from clinpeft import recipe as recipes

    cells = recipes.load_recipe_cells(recipe, set_ or [], os.environ)
    if len(cells) > 1:
        print(f"the first of {len(cells)} runs: {cells[0].name}")
    for line in _plan_recipe(cells[0].recipe, gpu, home.resolve()):
        print(line)


def _plan_recipe(recipe: object, gpu: str, home: Path) -> list[str]:
    from clinpeft import models, workflows
    from clinpeft.cli.grid import create_run_context
    from clinpeft.core.errors import UsageError
    from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
    from clinpeft.workflows import doctor
    from clinpeft.workflows.plan import plan_from_dry_run, plan_from_formula

    if not isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe):
        raise UsageError(
            "this kind of recipe trains nothing",
            location="kind",
            hint="give a recipe of kind adapt, classify or embed",
        )
    if gpu:
        return format_run_plan(plan_from_formula(recipe, gpu), recipe.training.micro_batch_tokens)
    verbs: dict[str, Any] = {
        "adapt": workflows.adapt_language_model,
        "classify": workflows.train_classifier,
        "embed": workflows.train_embedding_model,
    }
    here = models.detect_gpu()
    memory = here.memory_bytes if here else doctor.read_memory_bytes()[0]
    made = plan_from_dry_run(
        recipe, home, create_run_context(lambda _: None, lambda: False), verbs[recipe.kind], memory
    )
    return format_run_plan(made, recipe.training.micro_batch_tokens)


def format_run_plan(plan: RunPlan, micro_batch_tokens: int) -> list[str]:
    """A plan as it is read: every term of both sums, then what follows from them."""
    said = [f"on {plan.device}", "", "memory at the peak, by formula"]
    said += [_format_term(term, 2**20, "MB") for term in plan.memory_terms]
    with_tokens = f"with micro-batches of {micro_batch_tokens:,} tokens"
    said.append(
        f"  {sum(term.value for term in plan.memory_terms) / 2**20:>12,.0f} MB  together, {with_tokens} and activations {ACTIVATION_POLICY_LABELS[plan.policy]}"
    )
    said.append(
        f"  {sum(term.value for term in plan.alternative.memory_terms) / 2**20:>12,.0f} MB  the same, were they {ACTIVATION_POLICY_LABELS[plan.alternative.policy]}"
    )
    if plan.dry_run and plan.dry_run.peak_bytes:
        said.append(
            f"  {plan.dry_run.peak_bytes / 2**20:>12,.0f} MB  measured, of the whole process, libraries included"
        )
    if plan.max_micro_batch_tokens is not None:
        said.append(
            f"  micro-batches of up to {plan.max_micro_batch_tokens:,} tokens fit"
            if plan.max_micro_batch_tokens
            else "  the base does not fit"
        )
    if plan.alternative.max_micro_batch_tokens:
        said.append(
            f"  and of up to {plan.alternative.max_micro_batch_tokens:,}, were activations {ACTIVATION_POLICY_LABELS[plan.alternative.policy]}"
        )
    said += ["", "operations a trained token"]
    said += [_format_term(term, 1e6, "MFLOP") for term in plan.operation_terms]
    said += ["", "time"]
    said.append(f"  {plan.basis}")
    if plan.tokens is not None and plan.seconds is not None:
        said.append(f"  {plan.tokens:,} tokens: {_format_time_range(plan.seconds)} of training")
    else:
        said.append(
            "  how many tokens there are, only reading the source tells; training.max_steps bounds them"
        )
    return said


def _format_term(term: PlanTerm, unit: float, name: str) -> str:
    return f"  {term.value / unit:>12,.0f} {name}  {term.name}: {term.formula}"


def _format_time_range(seconds: tuple[float, float]) -> str:
    least, most = (_format_seconds(value) for value in seconds)
    return least if least == most else f"{least} to {most}"


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
