"""``clinpeft plan``: what memory and time a run will take, before it is begun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clinpeft.cli.options import HERE, Home, Overrides

if TYPE_CHECKING:
    from clinpeft.workflows.plan import Plan, Term

DONE = {"keep": "kept", "recompute": "recomputed"}


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind adapt, classify or embed.")],
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            help="By formula for this GPU, such as H100; without it the run's first steps are tried here.",
        ),
    ] = "",
    set_: Overrides = None,
    home: Home = HERE,
) -> None:
    """Say what memory and time a run will take, and which micro-batch fits: by its own first 20 steps here, or by formula for a named GPU."""
    from clinpeft import recipe as recipes

    cells = recipes.read(recipe, set_ or [], os.environ)
    if len(cells) > 1:
        print(f"the first of {len(cells)} runs: {cells[0].name}")
    for line in _lines_of(cells[0].recipe, gpu, home.resolve()):
        print(line)


def _lines_of(recipe: object, gpu: str, home: Path) -> list[str]:
    from clinpeft import models, workflows
    from clinpeft.cli.grid import circumstances
    from clinpeft.core.errors import UsageError
    from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
    from clinpeft.workflows import doctor
    from clinpeft.workflows.plan import planned, probed

    if not isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe):
        raise UsageError(
            "this kind of recipe trains nothing",
            location="kind",
            hint="give a recipe of kind adapt, classify or embed",
        )
    if gpu:
        return lines(planned(recipe, gpu), recipe.training.micro_batch_tokens)
    verbs: dict[str, Any] = {
        "adapt": workflows.adapt,
        "classify": workflows.classify,
        "embed": workflows.embed,
    }
    here = models.gpu()
    memory = here.memory_bytes if here else doctor.memory_bytes()[0]
    made = probed(
        recipe, home, circumstances(lambda _: None, lambda: False), verbs[recipe.kind], memory
    )
    return lines(made, recipe.training.micro_batch_tokens)


def lines(plan: Plan, micro_batch_tokens: int) -> list[str]:
    """A plan as it is read: every term of both sums, then what follows from them."""
    said = [f"on {plan.device}", "", "memory at the peak, by formula"]
    said += [_said(term, 2**20, "MB") for term in plan.memory]
    with_tokens = f"with micro-batches of {micro_batch_tokens:,} tokens"
    said.append(
        f"  {sum(term.value for term in plan.memory) / 2**20:>12,.0f} MB  together, {with_tokens} and activations {DONE[plan.policy]}"
    )
    said.append(
        f"  {sum(term.value for term in plan.other.memory) / 2**20:>12,.0f} MB  the same, were they {DONE[plan.other.policy]}"
    )
    if plan.probe and plan.probe.peak_bytes:
        said.append(
            f"  {plan.probe.peak_bytes / 2**20:>12,.0f} MB  measured, of the whole process, libraries included"
        )
    if plan.fitting_tokens is not None:
        said.append(
            f"  micro-batches of up to {plan.fitting_tokens:,} tokens fit"
            if plan.fitting_tokens
            else "  the base does not fit"
        )
    if plan.other.fitting_tokens:
        said.append(
            f"  and of up to {plan.other.fitting_tokens:,}, were activations {DONE[plan.other.policy]}"
        )
    said += ["", "operations a trained token"]
    said += [_said(term, 1e6, "MFLOP") for term in plan.operations]
    said += ["", "time"]
    said.append(f"  {plan.basis}")
    if plan.tokens is not None and plan.seconds is not None:
        said.append(f"  {plan.tokens:,} tokens: {_time(plan.seconds)} of training")
    else:
        said.append(
            "  how many tokens there are, only reading the source tells; training.max_steps bounds them"
        )
    return said


def _said(term: Term, unit: float, name: str) -> str:
    return f"  {term.value / unit:>12,.0f} {name}  {term.name}: {term.formula}"


def _time(seconds: tuple[float, float]) -> str:
    least, most = (_short(value) for value in seconds)
    return least if least == most else f"{least} to {most}"


def _short(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
