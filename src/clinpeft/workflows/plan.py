"""What a run will take before it is begun: counted by formula for a named GPU, measured by its own first steps where the machine is at hand."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clinpeft import adapters, models, runs, training
from clinpeft.adapters import Stack
from clinpeft.core.errors import InterruptedRunError, UsageError
from clinpeft.models import ModelShape
from clinpeft.recipe import AdaptRecipe, AnyAdapterSpec, LoraSpec
from clinpeft.runs import Run
from clinpeft.training import Accelerator, StepEvent
from clinpeft.workflows.context import RunContext, TrainingRecipe
from clinpeft.workflows.doctor import read_memory_bytes as processor_memory

DRY_RUN_STEPS = 20
DRY_RUN_WARMUP_STEPS = 2
USABLE_MEMORY_FRACTION = 0.9
"""Share of a device's memory that is planned with; the rest is for fragments, and for the library itself."""

MODEL_FLOPS_UTILIZATION = (0.25, 0.45)
"""Share of a GPU's peak that LoRA training reaches, least and most: published trainers on one GPU are between 0.34 and 0.42 with full batches."""

PRECISION_BYTES = {"float32": 4, "bfloat16": 2}
TRAINED_PARAMETER_BYTES = 16  # master, gradient, two moments of AdamW, float32 each

ActivationPolicy = Literal["keep", "recompute"]
"""What becomes of the activations, as ``training.activations`` names it."""


@dataclass(frozen=True)
class GpuDataSheet:
    """A GPU by its data sheet: memory, and dense operations a second in bfloat16, or in float32 where it has no bfloat16."""

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
class PlanTerm:
    """One term of a sum: what it is, how it is counted, and its value."""

    name: str
    formula: str
    value: float


@dataclass(frozen=True)
class RunPlan:
    """What a run will take.

    Attributes:
        device: on which.
        policy: whether the run keeps activations, or recomputes them.
        memory_terms: terms of the peak, bytes, at the recipe's micro-batch.
        operation_terms: terms of the operations a trained token.
        max_micro_batch_tokens: the largest micro-batch that fits, in tokens; None where the memory of the device is not known.
        alternative: the same of the other policy.
        tokens: of the whole training; None where only reading the source would tell.
        seconds: of training: least and most; None where ``tokens`` is.
        basis: what the seconds rest on.
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
        return (
            float(self.dry_run.peak_bytes)
            if self.dry_run and self.dry_run.peak_bytes
            else sum(term.value for term in self.memory_terms)
        )


@dataclass(frozen=True)
class AlternativePolicy:
    """What the policy of a plan is not: terms of the peak in bytes, and the largest micro-batch that fits."""

    policy: ActivationPolicy
    memory_terms: tuple[PlanTerm, ...]
    max_micro_batch_tokens: int | None


@dataclass(frozen=True)
class DryRun:
    """The first steps of the run itself.

    Attributes:
        steps, total_steps: taken, and of the run.
        tokens_per_second: once it is warm.
        tokens_per_step: mean.
        warmup_seconds: of the first steps, beyond what later ones take.
        evaluation_seconds: of one look at the tuning split; 0 where there is none.
        training_seconds: of the whole run's training.
        peak_bytes: of this process; None where nobody tells.
        from_finished_run: the run is there already, and these are its own numbers.
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


# -------------------------------------------------------------------------------------------------------------------------------- formula


def count_trained_parameters(shape: ModelShape, specs: tuple[AnyAdapterSpec, ...]) -> int:
    """Weights of the adapters, as near as a plan needs them: of LoRA with the family's query and value, or as many modules as are named."""
    total = 0
    for spec in specs:
        if isinstance(spec, LoraSpec):
            modules = len(spec.targets) or 2
            total += shape.layers * modules * spec.rank * 2 * shape.width
        else:
            total += (
                getattr(spec, "tokens", 1)
                * shape.width
                * max(1, min(shape.layers, getattr(spec, "layers", 1)))
            )
    return total


@dataclass(frozen=True)
class TrainingWorkload:
    """What the formulas of memory ask of a recipe.

    Attributes:
        shape: of the base.
        trained_parameters: weights of adapters and head.
        precision: of the base.
        has_language_head: whether logits over the vocabulary are asked for.
        quantization: of the base.
        device_type: which decides how many tokens are scored at a time.
    """

    shape: ModelShape
    trained_parameters: int
    precision: str
    has_language_head: bool
    quantization: str = "none"
    device_type: str = "cuda"

    @staticmethod
    def from_recipe(
        recipe: TrainingRecipe, auto_precision: str, device_type: str
    ) -> TrainingWorkload:
        """That of a recipe, with the precision that ``auto`` usually is on such a device."""
        shape = models.read_model_shape(recipe.base.path)
        trained = (
            shape.parameter_count
            if getattr(recipe.base, "trainable", False)
            else count_trained_parameters(shape, recipe.adapters)
        )
        precision = auto_precision if recipe.base.precision == "auto" else recipe.base.precision
        return TrainingWorkload(
            shape,
            trained,
            precision,
            isinstance(recipe, AdaptRecipe),
            recipe.base.quantization,
            device_type,
        )


def estimate_memory(
    workload: TrainingWorkload, micro_batch_tokens: int, policy: ActivationPolicy = "keep"
) -> tuple[PlanTerm, ...]:
    """Bytes at the peak of a step.

    A token leaves behind in every layer what its backward pass reads: inputs of two norms and of the adapters, queries, keys, values, what attention
    gave, and three vectors of the feed-forward part, in the precision of the base. Recomputed, all layers leave their input, and one the whole.

    Args:
        workload: what is trained on what.
        micro_batch_tokens: tokens that go through together.
        policy: whether activations are kept or recomputed.
    """
    shape, trained = workload.shape, workload.trained_parameters
    size = PRECISION_BYTES[workload.precision]
    a_layer = 8 * shape.width + 2 * shape.key_width + 3 * shape.inner_width
    said = f"(8 × {shape.width} + 2 × {shape.key_width} + 3 × {shape.inner_width})"
    left, formula = {
        "keep": (shape.layers * a_layer, f"{shape.layers} layers × {said}"),
        "recompute": (
            shape.layers * shape.width + a_layer,
            f"({shape.layers} layers × {shape.width} + {said})",
        ),
    }[policy]
    terms = [
        _estimate_base_memory(shape, size, workload.quantization),
        PlanTerm(
            "adapters, gradients, optimiser",
            f"{trained:,} weights × {TRAINED_PARAMETER_BYTES} bytes",
            float(TRAINED_PARAMETER_BYTES * trained),
        ),
        PlanTerm(
            "activations",
            f"{micro_batch_tokens:,} tokens × {formula} × {size} bytes",
            float(micro_batch_tokens * left * size),
        ),
    ]
    if workload.has_language_head:
        rows = min(
            micro_batch_tokens,
            training.compute_loss_block_rows(shape.vocabulary_size, workload.device_type),
        )
        value = float(rows * shape.vocabulary_size * (size + 4))
        terms.append(
            PlanTerm(
                "logits over the vocabulary",
                f"{rows:,} tokens at a time × {shape.vocabulary_size:,} × ({size} + 4) bytes",
                value,
            )
        )
    return tuple(terms)


def _estimate_base_memory(shape: ModelShape, bytes_per_weight: int, quantization: str) -> PlanTerm:
    """Quantized linear layers take a byte a weight (and four a row, which is nothing beside it), and one at a time is there in full."""
    if quantization == "none":
        return PlanTerm(
            "base",
            f"{shape.parameter_count:,} weights × {bytes_per_weight} bytes",
            float(bytes_per_weight * shape.parameter_count),
        )
    rest = shape.parameter_count - shape.block_linear_weights + shape.largest_block_weights
    formula = f"{shape.block_linear_weights:,} weights × 1 byte + {rest:,} × {bytes_per_weight} bytes, the largest linear layer among them"
    return PlanTerm("base", formula, float(shape.block_linear_weights + bytes_per_weight * rest))


def estimate_operations(
    shape: ModelShape,
    trained_parameters: int,
    document_tokens: int,
    has_language_head: bool,
    base_is_frozen: bool = True,
    policy: ActivationPolicy = "keep",
) -> tuple[PlanTerm, ...]:
    """Floating-point operations a trained token.

    A frozen weight costs 2 forward and 2 for the gradient of its input; a trained one 2 more for its own. Attention costs, a layer and a number of
    the vector, 6 times the tokens of a document where each sees those before it, and 12 times where all see all. Where activations are recomputed,
    the forward pass of the layers comes on top once more.
    """
    multiplied = shape.linear_weights + (
        shape.vocabulary_size * shape.width if has_language_head else 0
    )
    each, sees = (4 if base_is_frozen else 6), (6 if shape.causal else 12)
    attention = float(sees * document_tokens * shape.width * shape.layers)
    again = 2.0 * (shape.linear_weights + trained_parameters) + attention / 3
    recomputed = (
        PlanTerm(
            "layers computed again",
            f"2 × {shape.linear_weights + trained_parameters:,} weights + attention / 3",
            again,
        ),
    )
    return (
        PlanTerm("linear layers", f"{each} × {multiplied:,} weights", float(each * multiplied)),
        PlanTerm("adapters", f"6 × {trained_parameters:,} weights", 6.0 * trained_parameters),
        PlanTerm(
            "attention",
            f"{sees} × {document_tokens:,} tokens × {shape.width} × {shape.layers} layers",
            attention,
        ),
        *(recomputed if policy == "recompute" else ()),
    )


def estimate_max_micro_batch_tokens(
    workload: TrainingWorkload, memory_bytes: float, policy: ActivationPolicy = "keep"
) -> int:
    """The largest micro-batch in tokens whose terms stay within the usable share of a memory, beside a whole block of logits; 0 where not even the
    base fits, as it comes."""
    if (
        PRECISION_BYTES[workload.precision] * workload.shape.parameter_count
        > USABLE_MEMORY_FRACTION * memory_bytes
    ):  # before it is quantized it is asked once, whole
        return 0
    many = 2**20
    base, trains, activations, *logits = estimate_memory(workload, many, policy)
    fixed = base.value + trains.value + sum(term.value for term in logits)
    return max(0, int((USABLE_MEMORY_FRACTION * memory_bytes - fixed) / (activations.value / many)))


def plan_from_formula(recipe: TrainingRecipe, gpu_name: str) -> RunPlan:
    """By formula alone, for a GPU that is named.

    Raises:
        UsageError: it is in no row of ``GPUS``.
        BaseModelError: the base cannot be read.
    """
    if gpu_name not in GPU_DATA_SHEETS:
        raise UsageError(
            f"{gpu_name!r} is no GPU that is known here",
            location="--gpu",
            hint=f"one of {', '.join(GPU_DATA_SHEETS)}",
        )
    device = GPU_DATA_SHEETS[gpu_name]
    memory = device.memory_gb * 1e9
    plan = _apply_formulas(recipe, gpu_name, device.precision, memory, memory, "cuda")
    operations = sum(term.value for term in plan.operation_terms)
    tokens = _compute_stated_tokens(recipe)
    seconds = (
        None
        if tokens is None
        else (
            tokens * operations / (device.peak_flops * MODEL_FLOPS_UTILIZATION[1]),
            tokens * operations / (device.peak_flops * MODEL_FLOPS_UTILIZATION[0]),
        )
    )
    rates = sorted(device.peak_flops * share / operations for share in MODEL_FLOPS_UTILIZATION)
    basis = f"{rates[0]:,.0f} to {rates[1]:,.0f} tokens/s: {MODEL_FLOPS_UTILIZATION[0]:.0%} to {MODEL_FLOPS_UTILIZATION[1]:.0%} of {device.peak_flops / 1e12:,.0f} TFLOP/s"
    return replace(plan, tokens=tokens, seconds=seconds, basis=basis)


def _apply_formulas(
    recipe: TrainingRecipe,
    device: str,
    precision: str,
    total_memory_bytes: float | None,
    free_memory_bytes: float | None,
    device_type: str,
) -> RunPlan:
    """What the formulas say; the policy is that of the whole memory, as in the run, and what fits that of what is free."""
    load = TrainingWorkload.from_recipe(recipe, precision, device_type)
    frozen = not getattr(recipe.base, "trainable", False)
    policy, _ = _choose_policy([recipe], load, total_memory_bytes, _find_unsupported_reason(recipe))
    rest: ActivationPolicy = "keep" if policy == "recompute" else "recompute"
    tokens = recipe.training.micro_batch_tokens
    operations = estimate_operations(
        load.shape,
        load.trained_parameters if frozen else 0,
        recipe.base.max_tokens,
        load.has_language_head,
        frozen,
        policy,
    )
    fits = {
        each: None
        if free_memory_bytes is None
        else estimate_max_micro_batch_tokens(load, free_memory_bytes, each)
        for each in (policy, rest)
    }
    other = AlternativePolicy(rest, estimate_memory(load, tokens, rest), fits[rest])
    return RunPlan(
        device,
        policy,
        estimate_memory(load, tokens, policy),
        operations,
        fits[policy],
        other,
        None,
        None,
        "",
    )


# ------------------------------------------------------------------------------------------------------------------------ activations


def choose_checkpointing(
    recipes: Sequence[TrainingRecipe], stacks: Sequence[Stack], accelerator: Accelerator
) -> None:
    """Keep activations, or recompute them, as the recipes ask or, for ``auto``, as the formula of memory says; each stack says so afterwards.

    Args:
        recipes: that are trained in one pass; one asking for recomputing makes it so for all.
        stacks: of each recipe, all on one base.
        accelerator: the processes.

    Raises:
        AdapterError: a recipe asks to recompute what cannot be recomputed.
    """
    stack = stacks[0]
    if not stack.trained_parameters:
        return
    load = TrainingWorkload.from_recipe(
        recipes[0], str(stack.base.precision).removeprefix("torch."), accelerator.device.type
    )
    policy, reason = _choose_policy(
        recipes,
        load,
        read_device_memory_bytes(accelerator),
        adapters.find_checkpointing_unsupported_reason(stack),
    )
    if policy == "recompute":
        adapters.enable_activation_checkpointing(stack, reason)
    for each in stacks:
        each.activations = f"{'recomputed' if policy == 'recompute' else 'kept'}: {reason}"


def read_device_memory_bytes(accelerator: Accelerator) -> int | None:
    """Bytes of the device that is trained on, whether free or not, so that a run decides alike every time; None where nobody tells."""
    found = training.describe_hardware(accelerator)["memory_bytes"] or processor_memory()[1]
    return None if found is None else int(found)


def _choose_policy(
    recipes: Sequence[TrainingRecipe],
    workload: TrainingWorkload,
    memory_bytes: float | None,
    unsupported_reason: str,
) -> tuple[ActivationPolicy, str]:
    """What becomes of the activations, and why."""
    asked = {recipe.training.activations for recipe in recipes}
    if "recompute" in asked or asked == {"keep"}:
        return ("recompute" if "recompute" in asked else "keep"), "asked for in the recipe"
    if unsupported_reason or memory_bytes is None:
        return "keep", unsupported_reason or "the memory of the device is not known"
    tokens = sum(map(_compute_largest_micro_batch_tokens, recipes))
    needed = sum(term.value for term in estimate_memory(workload, tokens, "keep"))
    said = f"by formula {tokens:,} tokens take {needed / 2**30:.1f} GB where they are kept, of {memory_bytes / 2**30:.1f} GB"
    return ("keep" if needed <= USABLE_MEMORY_FRACTION * memory_bytes else "recompute"), said


def _compute_largest_micro_batch_tokens(recipe: TrainingRecipe) -> int:
    """Tokens of the largest micro-batch: no more than a step has, where that is said in tokens, and one document whatever its length."""
    asked = recipe.training.micro_batch_tokens
    return max(
        min(asked, int(getattr(recipe.training, "batch_tokens", asked))), recipe.base.max_tokens
    )


def _find_unsupported_reason(recipe: TrainingRecipe) -> str:
    """``adapters.obstacle`` as far as the recipe tells it."""
    keys = [
        spec.method
        for spec in recipe.adapters
        if spec.active and adapters.ADAPTER_METHODS[spec.method].prepends == "keys"
    ]
    return f"{keys[0]} cannot be recomputed" if keys else ""


def _compute_stated_tokens(recipe: TrainingRecipe) -> int | None:
    """Tokens of the training where the recipe bounds its steps by number and size."""
    steps, spec = recipe.training.max_steps, recipe.training
    a_step = getattr(spec, "batch_tokens", None)
    return steps * int(a_step) if steps and a_step else None


# ---------------------------------------------------------------------------------------------------------------------------------- probe


def plan_from_dry_run(
    recipe: TrainingRecipe,
    home: Path,
    context: RunContext,
    train_recipe: Callable[[TrainingRecipe, Path, RunContext], Run],
    memory_bytes: int | None,
) -> RunPlan:
    """By the run's own first steps on this machine, in a home beside the real one, which goes when they are taken.

    What a run prepares (corpus, tokens, cohorts) stays in the cache of ``home``, where the run will find it. Two looks: one step, which tells how
    many there will be, then at most ``PROBE_STEPS``, one look at the tuning split among them.

    Args:
        recipe: of one run.
        home: of all runs.
        context: clock and command; who watches and who may stop is seen to here.
        train_recipe: ``adapt``, ``classify`` or ``embed``.
        memory_bytes: of the device, what a micro-batch is to fit in; None where it is not known.

    Raises:
        ClinpeftError: whatever the run itself cannot do.
    """
    accelerator = training.create_accelerator()
    where = training.describe_hardware(accelerator)
    precision, _ = models.choose_precision("auto", accelerator.device)
    plan = _apply_formulas(
        recipe,
        str(where["device"]),
        str(precision).removeprefix("torch."),
        read_device_memory_bytes(accelerator),
        memory_bytes,
        accelerator.device.type,
    )
    finished, first = _run_first_steps(recipe, home, context, train_recipe, 1)
    probe = (
        _summarize_finished_run(finished)
        if finished
        else _measure_dry_run(recipe, home, context, train_recipe, first[-1])
    )
    if not finished:
        probe = replace(probe, peak_bytes=training.measure_peak_memory_bytes(accelerator.device))
    tokens = round(probe.total_steps * probe.tokens_per_step)
    measured = f"{probe.tokens_per_second:,.0f} tokens/s in {probe.steps} steps of the run itself"
    basis = "this very run is there already" if probe.from_finished_run else measured
    return replace(
        plan, tokens=tokens, seconds=(probe.training_seconds,) * 2, basis=basis, dry_run=probe
    )


def _run_first_steps(
    recipe: TrainingRecipe,
    home: Path,
    context: RunContext,
    train_recipe: Callable[[TrainingRecipe, Path, RunContext], Run],
    steps: int,
) -> tuple[Run | None, list[StepEvent]]:
    """The run, begun in a home of its own and stopped after so many steps; the run itself where it was finished before, or had no more steps."""
    beside = home / ".plan"
    shutil.rmtree(beside, ignore_errors=True)
    told: list[StepEvent] = []
    watched = replace(context, on_step=told.append, should_stop=lambda: len(told) >= steps)
    try:
        _link_home(beside, home)
        run = train_recipe(recipe, beside, watched)
        return (run, told) if not told else (None, told)
    except InterruptedRunError:
        return None, told
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _link_home(temporary_home: Path, home: Path) -> None:
    """The cache and the finished runs of a home, by links: adapters of earlier runs are found, and nothing of it is changed."""
    temporary_home.mkdir(parents=True, mode=0o700)
    (home / "cache").mkdir(parents=True, exist_ok=True, mode=0o700)
    (temporary_home / "cache").symlink_to((home / "cache").resolve(), target_is_directory=True)
    for run in runs.list_runs(home).runs:
        if run.record.state == "finished":
            (temporary_home / run.folder.name).symlink_to(
                run.folder.resolve(), target_is_directory=True
            )


def _measure_dry_run(
    recipe: TrainingRecipe,
    home: Path,
    context: RunContext,
    train_recipe: Callable[[TrainingRecipe, Path, RunContext], Run],
    first_event: StepEvent,
) -> DryRun:
    """So many steps that one look at the tuning split falls between them, however long the run is."""
    steps = min(DRY_RUN_STEPS, first_event.total_steps)
    looks = 2 * steps // max(1, steps // 2)
    longer = {
        "max_steps": 2 * steps,
        "epochs": 2 * recipe.training.epochs + 1,
        "evaluations": looks,
        "checkpoints": 1,
        "patience": 0,
    }
    brief = recipe.training.model_copy(update=longer)
    _, told = _run_first_steps(
        recipe.model_copy(update={"training": brief}), home, context, train_recipe, steps
    )
    return summarize_dry_run(told[:steps], first_event.total_steps, recipe.training.evaluations)


def summarize_dry_run(events: list[StepEvent], total_steps: int, evaluations: int) -> DryRun:
    """What the first steps say of the whole run: warm steps by their tokens, cold ones as they were, and each look at the tuning split.

    Args:
        events: the first steps.
        total_steps: of the run.
        evaluations: looks at the tuning split in the run.
    """
    seconds = [
        event.seconds - before
        for event, before in zip(events, [0.0, *(event.seconds for event in events)], strict=False)
    ]
    tokens = [
        event.tokens - before
        for event, before in zip(events, [0, *(event.tokens for event in events)], strict=False)
    ]
    cold = min(DRY_RUN_WARMUP_STEPS, len(events) - 1)
    warm = [at for at in range(cold, len(events)) if not events[at].metrics] or list(
        range(len(events))
    )
    a_token = sum(seconds[at] for at in warm) / sum(tokens[at] for at in warm)
    a_step = sum(tokens) / len(tokens)
    looks = [seconds[at] - tokens[at] * a_token for at in range(len(events)) if events[at].metrics]
    looking = max(0.0, sum(looks) / len(looks)) if looks else 0.0
    extra = max(
        0.0, sum(seconds[at] - tokens[at] * a_token for at in range(cold) if not events[at].metrics)
    )
    whole = extra + total_steps * a_step * a_token + min(evaluations, total_steps) * looking
    return DryRun(len(events), total_steps, 1 / a_token, a_step, extra, looking, whole, None)


def _summarize_finished_run(run: Run) -> DryRun:
    """A run that is there already says it best."""
    record = run.record
    tokens, seconds, steps = (
        record.tokens_seen or 0,
        record.training_seconds or 0.0,
        record.counts.get("steps", 0),
    )
    rate = tokens / seconds if seconds else math.nan
    return DryRun(
        steps,
        steps,
        rate,
        tokens / max(1, steps),
        0.0,
        0.0,
        seconds,
        getattr(record, "peak_memory_bytes", None),
        from_finished_run=True,
    )
