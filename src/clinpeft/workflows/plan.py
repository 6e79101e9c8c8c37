"""Memory and time of a run before it is started.

For a named GPU both are computed by formula; where the machine is at hand, the run's own first
steps are measured.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clinpeft import adapters, models, runs, training
from clinpeft.core.errors import InterruptedRunError, UsageError
from clinpeft.runs import Run
from clinpeft.runtime import ActivationPolicy, RuntimePolicy, choose_activation_policy
from clinpeft.training import StepEvent
from clinpeft.workflows.context import RunContext, TrainingRecipe
from clinpeft.workflows.memory_estimates import (
    PlanTerm,
    TrainingWorkload,
    combine_activation_requests,
    compute_largest_micro_batch_tokens,
    estimate_max_micro_batch_tokens,
    estimate_memory,
    estimate_operations,
    read_device_memory_bytes,
)
from clinpeft.workflows.registry import get_workflow

DRY_RUN_STEPS = 20
DRY_RUN_WARMUP_STEPS = 2

MODEL_FLOPS_UTILIZATION = (0.25, 0.45)
"""Fraction of a GPU's peak that LoRA training reaches, least and most: published trainers on one
GPU are between 0.34 and 0.42 with full batches."""


@dataclass(frozen=True)
class GpuDataSheet:
    """A GPU by its data sheet: memory, and dense operations a second in bfloat16, or in float32
    where it has no bfloat16."""

    memory_gb: float
    peak_flops: float
    precision: str = "bfloat16"


GPU_DATA_SHEETS: Mapping[str, GpuDataSheet] = {
    "B200": GpuDataSheet(180, 2250e12),
    "H200": GpuDataSheet(141, 989e12),
    "H100": GpuDataSheet(80, 989e12),
    "A100-80GB": GpuDataSheet(80, 312e12),
    "A100-40GB": GpuDataSheet(40, 312e12),
    "L40S": GpuDataSheet(48, 362e12),
    "A6000": GpuDataSheet(48, 155e12),
    "RTX-4090": GpuDataSheet(24, 165e12),
    "A10": GpuDataSheet(24, 125e12),
    "L4": GpuDataSheet(24, 121e12),
    "V100-32GB": GpuDataSheet(32, 15.7e12, "float32"),
    "T4": GpuDataSheet(16, 8.1e12, "float32"),
}


@dataclass(frozen=True)
class RunPlan:
    """What a run will take.

    Attributes:
        device: that it is planned for.
        policy: whether the run keeps activations, or recomputes them.
        memory_terms: terms of the peak, in bytes, at the recipe's micro-batch.
        operation_terms: terms of the operations per trained token.
        max_micro_batch_tokens: the largest micro-batch that fits; None where the memory of the
            device is not known.
        alternative: the same of the other policy.
        tokens: of the whole training; None where only reading the source would tell.
        seconds: of training: least and most; None where ``tokens`` is.
        basis: what the seconds are based on.
        dry_run: what was measured, where it was.
    """

    device: str
    policy: ActivationPolicy
    memory_terms: tuple[PlanTerm, ...]
    operation_terms: tuple[PlanTerm, ...]
    max_micro_batch_tokens: int | None
    alternative: AlternativePolicy
    tokens: int | None
    seconds: tuple[float, float] | None
    basis: str
    dry_run: DryRun | None = None

    @property
    def memory_bytes(self) -> float:
        """The peak: measured where it was, else the sum of the terms."""
        if self.dry_run and self.dry_run.peak_bytes:
            return float(self.dry_run.peak_bytes)
        return sum(term.value for term in self.memory_terms)


@dataclass(frozen=True)
class AlternativePolicy:
    """The policy that a plan does not take, its terms of the peak, and the micro-batch that
    fits."""

    policy: ActivationPolicy
    memory_terms: tuple[PlanTerm, ...]
    max_micro_batch_tokens: int | None


@dataclass(frozen=True)
class DryRun:
    """The first steps of the run itself.

    Attributes:
        steps, total_steps: steps taken, and those of the run.
        tokens_per_second: after the warm-up.
        tokens_per_step: mean.
        warmup_seconds: of the first steps, beyond what later ones take.
        evaluation_seconds: of one evaluation on the tuning split; 0 where there is none.
        training_seconds: of the whole run's training.
        peak_bytes: of this process; None where the system does not say.
        from_finished_run: the run has finished before, and these are its own numbers.
    """

    steps: int
    total_steps: int
    tokens_per_second: float
    tokens_per_step: float
    warmup_seconds: float
    evaluation_seconds: float
    training_seconds: float
    peak_bytes: int | None
    from_finished_run: bool = False


# ------------------------------------------------------------------------------------------ formula


def plan_from_formula(recipe: TrainingRecipe, gpu_name: str) -> RunPlan:
    """Plan a run for a named GPU, by formula alone.

    Args:
        recipe: of the run.
        gpu_name: a key of ``GPU_DATA_SHEETS``.

    Raises:
        UsageError: the GPU is not known.
        BaseModelError: the base cannot be read.
    """
    if gpu_name not in GPU_DATA_SHEETS:
        raise UsageError(
            f"{gpu_name!r} is not a known GPU",
            location="--gpu",
            hint=f"one of {', '.join(GPU_DATA_SHEETS)}",
        )
    device = GPU_DATA_SHEETS[gpu_name]
    memory = device.memory_gb * 1e9
    plan = _apply_formulas(recipe, gpu_name, (device.precision, "cuda"), (memory, memory))
    operations = sum(term.value for term in plan.operation_terms)
    # tokens per second
    low, high = (device.peak_flops * fraction / operations for fraction in MODEL_FLOPS_UTILIZATION)
    spec, tokens = recipe.training, None
    step_tokens = getattr(spec, "batch_tokens", None)
    if spec.max_steps and step_tokens:  # else only reading the source tells
        tokens = spec.max_steps * int(step_tokens)
    least, most = MODEL_FLOPS_UTILIZATION
    basis = (
        f"{low:,.0f} to {high:,.0f} tokens/s: {least:.0%} to {most:.0%} of "
        f"{device.peak_flops / 1e12:,.0f} TFLOP/s"
    )
    seconds = None if tokens is None else (tokens / high, tokens / low)
    return replace(plan, tokens=tokens, seconds=seconds, basis=basis)


def _apply_formulas(
    recipe: TrainingRecipe,
    device: str,
    precision_and_type: tuple[str, str],
    total_and_free_bytes: tuple[float | None, float | None],
) -> RunPlan:
    """What the formulas say.

    The policy is chosen by the whole memory, as in the run, and the micro-batch that fits by what
    is free.
    """
    (precision, device_type), (total_bytes, free_bytes) = precision_and_type, total_and_free_bytes
    purpose = get_workflow(recipe).purpose
    workload = TrainingWorkload.from_recipe(recipe, purpose, precision, device_type)
    largest = compute_largest_micro_batch_tokens(recipe)
    runtime_policy = RuntimePolicy(
        Path(),
        activations=combine_activation_requests([recipe]),
        largest_micro_batch_tokens=largest,
        kept_memory_bytes=sum(term.value for term in estimate_memory(workload, largest, "keep")),
        device_memory_bytes=total_bytes,
    )
    key_methods = [
        spec.method
        for spec in recipe.adapters
        if spec.active and adapters.ADAPTER_METHODS[spec.method].prepends == "keys"
    ]
    unsupported = f"{key_methods[0]} cannot be recomputed" if key_methods else ""
    policy, _ = choose_activation_policy(runtime_policy, unsupported)
    other: ActivationPolicy = "keep" if policy == "recompute" else "recompute"
    fits = {
        each: None
        if free_bytes is None
        else estimate_max_micro_batch_tokens(workload, free_bytes, each)
        for each in (policy, other)
    }
    tokens = recipe.training.micro_batch_tokens
    return RunPlan(
        device,
        policy,
        estimate_memory(workload, tokens, policy),
        estimate_operations(
            workload.shape,
            0 if recipe.trains_base else workload.trained_parameters,
            recipe.base.max_tokens,
            workload.has_language_head,
            not recipe.trains_base,
            policy,
        ),
        fits[policy],
        AlternativePolicy(other, estimate_memory(workload, tokens, other), fits[other]),
        None,
        None,
        "",
    )


# ------------------------------------------------------------------------------------------ dry run


def plan_from_dry_run(
    recipe: TrainingRecipe, context: RunContext, memory_bytes: int | None
) -> RunPlan:
    """Plan a run by its own first steps on this machine.

    They are taken in a temporary home beside the real one. What the run prepares (corpus, tokens,
    cohorts) stays in the cache of the real home, where the run finds it. There are two attempts:
    one step, which tells how many there will be, then at most ``DRY_RUN_STEPS``, an evaluation on
    the tuning split among them.

    Args:
        recipe: of one run.
        context: home, clock and command; its callbacks are replaced.
        memory_bytes: of the device that are free for a micro-batch; None where it is not known.

    Raises:
        ClinpeftError: whatever the run itself cannot do.
    """
    accelerator = context.accelerator
    hardware = training.describe_hardware(accelerator)
    precision, _ = models.choose_precision("auto", accelerator.device)
    plan = _apply_formulas(
        recipe,
        str(hardware["device"]),
        (str(precision).removeprefix("torch."), accelerator.device.type),
        (read_device_memory_bytes(accelerator), memory_bytes),
    )
    finished, events = _run_first_steps(recipe, context, 1)
    if finished:
        dry_run = _summarize_finished_run(finished)
        basis = "this very run has finished before"
    else:
        dry_run = replace(
            _measure_dry_run(recipe, context, events[-1]),
            peak_bytes=training.measure_peak_memory_bytes(accelerator.device),
        )
        basis = (
            f"{dry_run.tokens_per_second:,.0f} tokens/s in {dry_run.steps} steps of the run itself"
        )
    tokens = round(dry_run.total_steps * dry_run.tokens_per_step)
    seconds = (dry_run.training_seconds,) * 2
    return replace(plan, tokens=tokens, seconds=seconds, basis=basis, dry_run=dry_run)


def _run_first_steps(
    recipe: TrainingRecipe, context: RunContext, steps: int
) -> tuple[Run | None, list[StepEvent]]:
    """Start the run in a temporary home and stop it after so many steps.

    Returns:
        The run where it had finished before, else None; and its steps.
    """
    temporary_home = context.home / ".plan"
    shutil.rmtree(temporary_home, ignore_errors=True)
    events: list[StepEvent] = []
    # The same recipe in another home is the same run, with the same id.
    watched = replace(
        context,
        home=temporary_home,
        on_step=events.append,
        should_stop=lambda: len(events) >= steps,
    )
    try:
        _link_home(temporary_home, context.home)
        run = get_workflow(recipe).run(recipe, watched)
        return (run, events) if not events else (None, events)
    except InterruptedRunError:
        return None, events
    finally:
        shutil.rmtree(temporary_home, ignore_errors=True)


def _link_home(temporary_home: Path, home: Path) -> None:
    """Link cache and finished runs of a home, so that adapters of earlier runs are found."""
    temporary_home.mkdir(parents=True, mode=0o700)
    (home / "cache").mkdir(parents=True, exist_ok=True, mode=0o700)
    (temporary_home / "cache").symlink_to((home / "cache").resolve(), target_is_directory=True)
    for run in runs.find_all_runs(home).runs:
        if run.record.state == "finished":
            link = temporary_home / run.folder.name
            link.symlink_to(run.folder.resolve(), target_is_directory=True)


def _measure_dry_run(recipe: TrainingRecipe, context: RunContext, first_event: StepEvent) -> DryRun:
    """Take so many steps that an evaluation falls between them, however long the run is."""
    steps = min(DRY_RUN_STEPS, first_event.total_steps)
    # The run is made longer than is measured, so that its last step, which evaluates and writes
    # a checkpoint in any case, is not among the measured ones.
    changes = {
        "max_steps": 2 * steps,
        "epochs": 2 * recipe.training.epochs + 1,
        "evaluations": 2 * steps // max(1, steps // 2),
        "checkpoints": 1,
        "patience": 0,
    }
    training_spec = recipe.training.model_copy(update=changes)
    longer = recipe.model_copy(update={"training": training_spec})
    _, events = _run_first_steps(longer, context, steps)
    evaluations = recipe.training.evaluations
    return summarize_dry_run(events[:steps], first_event.total_steps, evaluations)


def summarize_dry_run(events: list[StepEvent], total_steps: int, evaluations: int) -> DryRun:
    """Extend the first steps of a run to the whole.

    Later steps are counted by their tokens, the first ones as they were, and evaluations one by
    one.

    Args:
        events: the first steps.
        total_steps: of the run.
        evaluations: evaluations on the tuning split in the run.
    """
    times, counts = [event.seconds for event in events], [event.tokens for event in events]
    seconds = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    tokens = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    warmup = min(DRY_RUN_WARMUP_STEPS, len(events) - 1)
    is_evaluated = [bool(event.metrics) for event in events]
    warm = [step for step in range(warmup, len(events)) if not is_evaluated[step]]
    warm = warm or list(range(len(events)))
    token_seconds = sum(seconds[step] for step in warm) / sum(tokens[step] for step in warm)
    # What a step took beyond its tokens: warm-up, or an evaluation.
    extra = [taken - count * token_seconds for taken, count in zip(seconds, tokens, strict=True)]
    evaluation_extras = [extra[step] for step in range(len(events)) if is_evaluated[step]]
    evaluation_seconds = (
        max(0.0, sum(evaluation_extras) / len(evaluation_extras)) if evaluation_extras else 0.0
    )
    warmup_seconds = max(0.0, sum(extra[step] for step in range(warmup) if not is_evaluated[step]))
    step_tokens = sum(tokens) / len(tokens)
    training_seconds = (
        warmup_seconds
        + total_steps * step_tokens * token_seconds
        + min(evaluations, total_steps) * evaluation_seconds
    )
    return DryRun(
        len(events),
        total_steps,
        1 / token_seconds,
        step_tokens,
        warmup_seconds,
        evaluation_seconds,
        training_seconds,
        None,
    )


def _summarize_finished_run(run: Run) -> DryRun:
    record = run.record
    tokens, seconds = record.tokens_seen or 0, record.training_seconds or 0.0
    steps = record.counts.get("steps", 0)
    return DryRun(
        steps,
        steps,
        tokens / seconds if seconds else math.nan,
        tokens / max(1, steps),
        0.0,
        0.0,
        seconds,
        getattr(record, "peak_memory_bytes", None),
        from_finished_run=True,
    )
