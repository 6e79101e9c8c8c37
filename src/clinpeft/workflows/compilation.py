"""Whether norms and gates of a run's base are compiled: measured before the first step, and remembered, so that a run goes on as it began."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clinpeft import models, runs, training
from clinpeft.adapters import Stack
from clinpeft.models import Tried
from clinpeft.training import Course, Crew
from clinpeft.workflows.context import TrainedRecipe, key

WORTH_TRYING_SECONDS = 120.0
"""Of a whole run's time in norms and gates: where it is less, not even a compiler that made them free would pay for itself."""

MARGIN = 2.0
"""By how much what is saved has to exceed what compiling took: times measured on random numbers are no better than that."""


COMPILER = Path("cache", "compiler")
"""In a home: what the compiler made."""


@dataclass(frozen=True)
class Decision:
    """Whether a run compiles, and why, for its record."""

    compiled: bool
    reason: str


def settle_compilation(
    recipes: Sequence[TrainedRecipe],
    stacks: Sequence[Stack],
    course: Course,
    home: Path,
    accelerator: Crew,
) -> None:
    """Compile norms and gates, or do not, as the recipes ask or, for ``auto``, as a trial on random numbers says; each stack says so afterwards.

    The same question gets the same answer for as long as the cache of ``home`` lasts: a run that is gone on with, or made again, rounds alike.

    Args:
        recipes: that are trained in one pass.
        stacks: of each recipe, all on one base.
        course: of the first of them, what tells how long they are.
        home: of all runs.
        accelerator: the processes.
    """
    if not stacks[0].trained:
        return
    decision = _asked(recipes, stacks[0], accelerator) or _remembered(
        recipes[0], stacks[0], course, home
    )
    obstacle = (
        models.compile_regions(stacks[0].base.backbone, home / COMPILER)
        if decision.compiled
        else ""
    )
    if obstacle:
        decision = Decision(False, f"it was found to pay before, and now {obstacle}")
    for stack in stacks:
        stack.compiled = f"{'compiled' if decision.compiled else 'not compiled'}: {decision.reason}"


def _asked(recipes: Sequence[TrainedRecipe], stack: Stack, accelerator: Crew) -> Decision | None:
    """What is decided without a trial."""
    if any(recipe.training.compilation == "never" for recipe in recipes):
        return Decision(False, "asked for in the recipe")
    if not models.regions(stack.base.backbone):
        return Decision(False, "no layer has a norm or gate to compile")
    if stack.base.kernels != "torch":
        return Decision(False, f"they are those of {stack.base.kernels}")
    if accelerator.num_processes > 1:
        return Decision(False, "several processes would have to agree")
    if any(getattr(recipe.training, "private", None) for recipe in recipes):
        return Decision(False, "differential privacy takes gradients one by one")
    return None


def _remembered(recipe: TrainedRecipe, stack: Stack, course: Course, home: Path) -> Decision:
    steps = [course.tokens(chosen) for chosen in course.epoch(0)]
    if not steps:
        return Decision(False, "there is nothing to learn from")
    rows = min(recipe.training.micro_batch_tokens, max(steps))
    tokens = (
        training.total_steps(course, recipe.training) * sum(steps) // len(steps)
    )  # of the whole training
    question = key(stack.base.sha256, rows, tokens, *models.conditions(stack.base.backbone))
    path = home / "cache" / f"compiled-{question}.json"
    if not path.exists():
        runs.write_atomically(
            path, json.dumps(asdict(_tried(stack, rows, tokens, home / COMPILER)))
        )
    return Decision(**json.loads(path.read_text(encoding="utf-8")))


def _tried(stack: Stack, rows: int, tokens: int, folder: Path) -> Decision:
    """By what all micro-batches together spend in norms and gates, and by what compiling leaves of that."""
    passes = tokens / rows
    spent = passes * models.present(stack.base.backbone, rows)
    if spent < WORTH_TRYING_SECONDS:
        return Decision(
            False, f"norms and gates take less than {WORTH_TRYING_SECONDS:.0f} s of the run"
        )
    return decided(models.tried(stack.base.backbone, rows, folder), passes)


def decided(tried: Tried, passes: float) -> Decision:
    """From what was tried to what is done.

    Args:
        tried: what compiling brings to one micro-batch, and what it takes.
        passes: micro-batches of the run.
    """
    if tried.obstacle:
        return Decision(False, tried.obstacle)
    saved = passes * (tried.before - tried.after)
    said = f"saves some {saved:.0f} s of the run, and took {tried.compiling:.0f} s"
    return Decision(saved > MARGIN * tried.compiling, said)
