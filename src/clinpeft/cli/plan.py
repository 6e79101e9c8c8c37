"""``clinpeft plan``: memory and time of a run before it is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption

if TYPE_CHECKING:
    from clinpeft.workflows.memory_estimates import PlanTerm
    from clinpeft.workflows.plan import RunPlan

ACTIVATION_POLICY_TITLES = {"keep": "kept", "recompute": "recomputed"}
MEGABYTE = 2**20
INDENT = "  "


def plan_run(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind adapt, classify or embed.")],
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu", help="Compute for this GPU, such as H100, instead of measuring here."
        ),
    ] = "",
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Estimate memory and time of a run, and the largest micro-batch that fits.

    Measured by the run's own first 20 steps on this machine, or computed for a named GPU.
    """
    from clinpeft import models
    from clinpeft.cli.grid import format_command
    from clinpeft.recipe import load_recipe_cells
    from clinpeft.workflows import create_context, doctor, get_workflow
    from clinpeft.workflows.plan import plan_from_dry_run, plan_from_formula

    cells = load_recipe_cells(recipe, set_ or [], os.environ)
    if len(cells) > 1:
        print(f"the first of {len(cells)} runs: {cells[0].name}")
    planned: Any = cells[0].recipe
    get_workflow(planned)  # fails where the kind trains nothing
    if gpu:
        run_plan = plan_from_formula(planned, gpu)
    else:
        context = create_context(home.resolve(), command=format_command())
        device = models.detect_gpu()
        memory_bytes = device.memory_bytes if device else doctor.read_memory_bytes()[0]
        run_plan = plan_from_dry_run(planned, context, memory_bytes)
    for line in format_run_plan(run_plan, planned.training.micro_batch_tokens):
        print(line)


def format_run_plan(plan: RunPlan, micro_batch_tokens: int) -> list[str]:
    """Format a plan as lines: each term of both sums, then what follows from them.

    Args:
        plan: of the run.
        micro_batch_tokens: of its recipe.
    """
    policy = ACTIVATION_POLICY_TITLES[plan.policy]
    alternative = ACTIVATION_POLICY_TITLES[plan.alternative.policy]
    total = sum(term.value for term in plan.memory_terms) / MEGABYTE
    other_total = sum(term.value for term in plan.alternative.memory_terms) / MEGABYTE
    lines = [f"on {plan.device}", "", "peak memory, by formula"]
    lines += [_format_term(term, MEGABYTE, "MB") for term in plan.memory_terms]
    lines += [
        f"{INDENT}{total:>12,.0f} MB  in total, with micro-batches of {micro_batch_tokens:,} "
        f"tokens and activations {policy}",
        f"{INDENT}{other_total:>12,.0f} MB  in total, were activations {alternative}",
    ]
    if plan.dry_run and plan.dry_run.peak_bytes:
        peak = plan.dry_run.peak_bytes / MEGABYTE
        lines.append(
            f"{INDENT}{peak:>12,.0f} MB  measured, of the whole process with its libraries"
        )
    if plan.max_micro_batch_tokens is not None:
        largest = plan.max_micro_batch_tokens
        fits = f"micro-batches of up to {largest:,} tokens fit"
        lines.append(INDENT + (fits if largest else "the base does not fit"))
    if plan.alternative.max_micro_batch_tokens:
        largest = plan.alternative.max_micro_batch_tokens
        lines.append(f"{INDENT}and of up to {largest:,}, were activations {alternative}")
    lines += ["", "operations per trained token"]
    lines += [_format_term(term, 1e6, "MFLOP") for term in plan.operation_terms]
    lines += ["", "time", f"{INDENT}{plan.basis}"]
    if plan.tokens is not None and plan.seconds is not None:
        shortest, longest = map(_format_seconds, plan.seconds)
        duration = shortest if shortest == longest else f"{shortest} to {longest}"
        lines.append(f"{INDENT}{plan.tokens:,} tokens: {duration} of training")
    else:
        lines.append(
            f"{INDENT}the number of tokens is known once the source is read; "
            "training.max_steps bounds it"
        )
    return lines


def _format_term(term: PlanTerm, unit: float, unit_name: str) -> str:
    return f"{INDENT}{term.value / unit:>12,.0f} {unit_name}  {term.name}: {term.formula}"


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
