"""Whether norms and gates of a run's base are compiled: measured before the first step, and remembered, so that a run goes on as it began."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clinpeft import models, runs, training
from clinpeft.adapters import Stack
from clinpeft.models import CompileTiming
from clinpeft.training import Accelerator, Trainable
from clinpeft.workflows.context import TrainingRecipe, compute_cache_key

COMPILE_TRIAL_MIN_SECONDS = 120.0
"""Of a whole run's time in norms and gates: where it is less, not even a compiler that made them free would pay for itself."""

COMPILE_SAVING_MARGIN = 2.0
"""By how much what is saved has to exceed what compiling took: times measured on random numbers are no better than that."""


COMPILER_CACHE_PATH = Path("cache", "compiler")
"""In a home: what the compiler made."""


@dataclass(frozen=True)
class CompileDecision:
    """Whether a run compiles, and why, for its record."""

    compiled: bool
    reason: str


def choose_compilation(
    recipes: Sequence[TrainingRecipe],
    stacks: Sequence[Stack],
    trainable: Trainable,
    home: Path,
    accelerator: Accelerator,
) -> None:
    """Compile norms and gates, or do not, as the recipes ask or, for ``auto``, as a trial on random numbers says; each stack says so afterwards.

    The same question gets the same answer for as long as the cache of ``home`` lasts: a run that is gone on with, or made again, rounds alike.

    Args:
        recipes: that are trained in one pass.
        stacks: of each recipe, all on one base.
        trainable: of the first of them, what tells how long they are.
        home: of all runs.
        accelerator: the processes.
    """
    if not stacks[0].trained_parameters:
        return
    decision = _decide_without_trial(recipes, stacks[0], accelerator) or _decide_with_cache(
        recipes[0], stacks[0], trainable, home
    )
    obstacle = (
        models.compile_norms_and_gates(stacks[0].base.backbone, home / COMPILER_CACHE_PATH)
        if decision.compiled
        else ""
    )
    if obstacle:
        decision = CompileDecision(False, f"it was found to pay before, and now {obstacle}")
    for stack in stacks:
        stack.compilation = (
            f"{'compiled' if decision.compiled else 'not compiled'}: {decision.reason}"
        )


def _decide_without_trial(
    recipes: Sequence[TrainingRecipe], stack: Stack, accelerator: Accelerator
) -> CompileDecision | None:
    """What is decided without a trial."""
    if any(recipe.training.compilation == "never" for recipe in recipes):
        return CompileDecision(False, "asked for in the recipe")
    if not models.find_compile_targets(stack.base.backbone):
        return CompileDecision(False, "no layer has a norm or gate to compile")
    if stack.base.kernels != "torch":
        return CompileDecision(False, f"they are those of {stack.base.kernels}")
    if accelerator.num_processes > 1:
        return CompileDecision(False, "several processes would have to agree")
    if any(getattr(recipe.training, "differential_privacy", None) for recipe in recipes):
        return CompileDecision(False, "differential privacy takes gradients one by one")
    return None


def _decide_with_cache(
    recipe: TrainingRecipe, stack: Stack, trainable: Trainable, home: Path
) -> CompileDecision:
    steps = [trainable.count_tokens(chosen) for chosen in trainable.make_epoch_batches(0)]
    if not steps:
        return CompileDecision(False, "there is nothing to learn from")
    rows = min(recipe.training.micro_batch_tokens, max(steps))
    tokens = (
        training.count_total_steps(trainable, recipe.training) * sum(steps) // len(steps)
    )  # of the whole training
    question = compute_cache_key(
        stack.base.sha256, rows, tokens, *models.describe_timing_conditions(stack.base.backbone)
    )
    path = home / "cache" / f"compiled-{question}.json"
    if not path.exists():
        runs.write_file_atomically(
            path,
            json.dumps(asdict(_decide_by_trial(stack, rows, tokens, home / COMPILER_CACHE_PATH))),
        )
    return CompileDecision(**json.loads(path.read_text(encoding="utf-8")))


def _decide_by_trial(stack: Stack, rows: int, tokens: int, folder: Path) -> CompileDecision:
    """By what all micro-batches together spend in norms and gates, and by what compiling leaves of that."""
    passes = tokens / rows
    spent = passes * models.measure_eager_seconds(stack.base.backbone, rows)
    if spent < COMPILE_TRIAL_MIN_SECONDS:
        return CompileDecision(
            False, f"norms and gates take less than {COMPILE_TRIAL_MIN_SECONDS:.0f} s of the run"
        )
    return decide_from_timing(models.measure_compilation(stack.base.backbone, rows, folder), passes)


def decide_from_timing(timing: CompileTiming, micro_batch_count: float) -> CompileDecision:
    """From what was tried to what is done.

    Args:
        timing: what compiling brings to one micro-batch, and what it takes.
        micro_batch_count: micro-batches of the run.
    """
    if timing.failure_reason:
        return CompileDecision(False, timing.failure_reason)
    saved = micro_batch_count * (timing.eager_seconds - timing.compiled_seconds)
    said = f"saves some {saved:.0f} s of the run, and took {timing.compilation_seconds:.0f} s"
    return CompileDecision(saved > COMPILE_SAVING_MARGIN * timing.compilation_seconds, said)
