"""The one call that makes a stack fast and small enough to train: ``optimize(stack, policy)``.

Two things are decided for each run after its adapters are attached: whether the activations of a
layer are kept for the backward pass or recomputed, and whether norms and gates are compiled. Both
decisions are written to the stack, for the run's record. Neither changes what is trained, but
compiling rounds differently, so that its decision is cached: a run that is resumed, or made again,
computes as it did before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from clinpeft.core.files import write_file_atomically
from clinpeft.runtime import compile as regional_compile
from clinpeft.runtime.checkpointing import (
    OptimizableStack,
    enable_activation_checkpointing,
    find_checkpointing_unsupported_reason,
)
from clinpeft.runtime.compile import CompileTiming

ActivationPolicy = Literal["keep", "recompute"]
"""What becomes of a layer's activations."""

USABLE_MEMORY_FRACTION = 0.9
"""Fraction of a device's memory that is planned with; the rest is for fragmentation and for the
library itself."""

COMPILE_TRIAL_MIN_SECONDS = 120.0
"""A run that spends less than this in norms and gates is not worth a trial: even a compiler that
made them free would not repay its own time."""

COMPILE_SAVING_MARGIN = 2.0
"""How many times its own compile time compilation has to save: times measured on random numbers
are no more accurate than that."""


@dataclass(frozen=True)
class RuntimePolicy:
    """What a run requests, and the numbers by which ``optimize`` decides the rest.

    Attributes:
        cache_folder: folder of the home in which compiled code and compile decisions are cached.
        activations: ``training.activations`` of the recipe.
        compilation: ``training.compilation`` of the recipe.
        largest_micro_batch_tokens: tokens of the largest micro-batch, summed over the trials that
            share a pass.
        kept_memory_bytes: estimated peak memory of such a micro-batch where activations are kept.
        device_memory_bytes: memory of the device, free or not, so that a run decides the same way
            every time; None where it is not known.
        micro_batch_tokens: tokens of a usual micro-batch; 0 where there is nothing to train on.
        total_tokens: tokens of the whole training.
        num_processes: processes that share the run.
        per_subject_gradients: whether gradients are taken one by one (differential privacy).
    """

    cache_folder: Path
    activations: Literal["auto", "keep", "recompute"] = "auto"
    compilation: Literal["auto", "never"] = "auto"
    largest_micro_batch_tokens: int = 0
    kept_memory_bytes: float = 0.0
    device_memory_bytes: float | None = None
    micro_batch_tokens: int = 0
    total_tokens: int = 0
    num_processes: int = 1
    per_subject_gradients: bool = False


@dataclass(frozen=True)
class CompileDecision:
    """Whether a run compiles norms and gates, and why, for its record."""

    compiled: bool
    reason: str


def optimize(
    stack: OptimizableStack, policy: RuntimePolicy, *sharing_stacks: OptimizableStack
) -> None:
    """Decide and apply everything that makes a stack's training fast or small.

    Args:
        stack: base and adapters, attached, before its first training step. Where it has no
            trained parameters (only a head is trained), nothing is done.
        policy: what the recipe requests, and the numbers by which the rest is decided.
        *sharing_stacks: other stacks on the same base, trained in the same pass; what is decided
            holds for them and is written to their record, too.

    Raises:
        AdapterError: the recipe asks to recompute activations that cannot be recomputed.
    """
    if not stack.trained_parameters:
        return
    activations, reason = choose_activation_policy(
        policy, find_checkpointing_unsupported_reason(stack)
    )
    if activations == "recompute":
        enable_activation_checkpointing(stack, reason)
    decision = decide_compilation(stack, policy)
    if decision.compiled:
        # The decision may come from the cache, and the compiler may have gone since.
        obstacle = regional_compile.compile_regions(
            stack.base.backbone, policy.cache_folder / "compiler"
        )
        if obstacle:
            decision = CompileDecision(False, f"it was found to pay before, and now {obstacle}")
    for each in (stack, *sharing_stacks):
        each.activations = f"{'recomputed' if activations == 'recompute' else 'kept'}: {reason}"
        each.compilation = f"{'' if decision.compiled else 'not '}compiled: {decision.reason}"


def choose_activation_policy(
    policy: RuntimePolicy, unsupported_reason: str
) -> tuple[ActivationPolicy, str]:
    """Choose whether activations are kept or recomputed.

    Args:
        policy: the request, the estimated memory and the memory of the device.
        unsupported_reason: why they cannot be recomputed; empty where they can.

    Returns:
        The choice, and why, for the record.
    """
    if policy.activations != "auto":
        return policy.activations, "asked for in the recipe"
    memory = policy.device_memory_bytes
    if unsupported_reason or memory is None:
        return "keep", unsupported_reason or "the memory of the device is not known"
    needed = policy.kept_memory_bytes
    reason = (
        f"by formula {policy.largest_micro_batch_tokens:,} tokens take {needed / 2**30:.1f} GB "
        f"where they are kept, of {memory / 2**30:.1f} GB"
    )
    return ("keep" if needed <= USABLE_MEMORY_FRACTION * memory else "recompute"), reason


def decide_compilation(stack: OptimizableStack, policy: RuntimePolicy) -> CompileDecision:
    """Decide whether norms and gates are compiled, by a timed trial on random numbers if need be.

    The decision of a trial is cached in ``policy.cache_folder`` under everything that its times
    depend on.
    """
    backbone = stack.base.backbone
    kernels = stack.base.kernels
    obstacles = {
        "asked for in the recipe": policy.compilation == "never",
        "no layer has a norm or gate to compile": not regional_compile.list_compilable_modules(
            backbone
        ),
        f"they are those of {kernels}": kernels != "torch",
        "several processes would have to agree": policy.num_processes > 1,
        "differential privacy takes gradients one by one": policy.per_subject_gradients,
        "there is nothing to train on": not policy.micro_batch_tokens,
    }
    for reason, applies in obstacles.items():
        if applies:
            return CompileDecision(False, reason)
    conditions = regional_compile.describe_timing_conditions(backbone)
    # Everything that the times depend on; the same key gives the same decision.
    key = [stack.base.sha256, policy.micro_batch_tokens, policy.total_tokens, *conditions]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = policy.cache_folder / f"compiled-{digest}.json"
    if not path.exists():
        write_file_atomically(path, json.dumps(asdict(_decide_by_trial(backbone, policy))))
    return CompileDecision(**json.loads(path.read_text(encoding="utf-8")))


def _decide_by_trial(backbone: object, policy: RuntimePolicy) -> CompileDecision:
    # fractional: steps are not filled evenly
    micro_batch_count = policy.total_tokens / policy.micro_batch_tokens
    seconds = micro_batch_count * regional_compile.time_regions(backbone, policy.micro_batch_tokens)
    if seconds < COMPILE_TRIAL_MIN_SECONDS:
        limit = f"{COMPILE_TRIAL_MIN_SECONDS:.0f} s"
        return CompileDecision(False, f"norms and gates take less than {limit} of the run")
    timing = regional_compile.time_compilation(
        backbone, policy.micro_batch_tokens, policy.cache_folder / "compiler"
    )
    return decide_from_timing(timing, micro_batch_count)


def decide_from_timing(timing: CompileTiming, micro_batch_count: float) -> CompileDecision:
    """Decide from the times of a trial.

    Args:
        timing: what compiling saves in one micro-batch, and what it takes.
        micro_batch_count: micro-batches of the run.
    """
    if timing.obstacle:
        return CompileDecision(False, timing.obstacle)
    saved = micro_batch_count * (timing.seconds_before - timing.seconds_after)
    return CompileDecision(
        saved > COMPILE_SAVING_MARGIN * timing.compile_seconds,
        f"saves some {saved:.0f} s of the run, and took {timing.compile_seconds:.0f} s",
    )
