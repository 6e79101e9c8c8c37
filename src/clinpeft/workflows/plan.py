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
from clinpeft.core.errors import InterruptedRun, UsageError
from clinpeft.models import Shape
from clinpeft.recipe import AdaptRecipe, AnyAdapterSpec, LoraSpec
from clinpeft.runs import Run
from clinpeft.training import Crew, Event
from clinpeft.workflows.context import Circumstances, TrainedRecipe
from clinpeft.workflows.doctor import memory_bytes as processor_memory

PROBE_STEPS = 20
COLD_STEPS = 2
USABLE = 0.9
"""Share of a device's memory that is planned with; the rest is for fragments, and for the library itself."""

EFFICIENCY = (0.25, 0.45)
"""Share of a GPU's peak that LoRA training reaches, least and most: published trainers on one GPU are between 0.34 and 0.42 with full batches."""

BYTES = {"float32": 4, "bfloat16": 2}
TRAINED_BYTES = 16  # master, gradient, two moments of AdamW, float32 each

Policy = Literal["keep", "recompute"]
"""What becomes of the activations, as ``training.activations`` names it."""


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: memory, and dense operations a second in bfloat16, or in float32 where it has no bfloat16."""

    memory_gb: float
    peak: float
    precision: str = "bfloat16"


GPUS: Mapping[str, Device] = {
    "B200": Device(180, 2250e12),
    "H200": Device(141, 989e12),
    "H100": Device(80, 989e12),
    "A100-80GB": Device(80, 312e12),
    "A100-40GB": Device(40, 312e12),
    "L40S": Device(48, 362e12),
    "A6000": Device(48, 155e12),
    "RTX-4090": Device(24, 165e12),
    "A10": Device(24, 125e12),
    "L4": Device(24, 121e12),
    "V100-32GB": Device(32, 15.7e12, "float32"),
    "T4": Device(16, 8.1e12, "float32"),
}


@dataclass(frozen=True)
class Term:
    """One term of a sum: what it is, how it is counted, and its value."""

    name: str
    formula: str
    value: float


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        device: on which.
        policy: whether the run keeps activations, or recomputes them.
        memory: terms of the peak, bytes, at the recipe's micro-batch.
        operations: terms of the operations a trained token.
        fitting_tokens: the largest micro-batch that fits, in tokens; None where the memory of the device is not known.
        other: the same of the other policy.
        tokens: of the whole training; None where only reading the source would tell.
        seconds: of training: least and most; None where ``tokens`` is.
        basis: what the seconds rest on.
        probe: what was measured, where it was.
    """

    device: str
    policy: Policy
    memory: tuple[Term, ...]
    operations: tuple[Term, ...]
    fitting_tokens: int | None
    other: Other
    tokens: int | None
    seconds: tuple[float, float] | None
    basis: str
    probe: Probe | None = None

    @property
    def memory_bytes(self) -> float:
        """The peak: measured where it was, else the sum of the terms."""
        return (
            float(self.probe.peak_bytes)
            if self.probe and self.probe.peak_bytes
            else sum(term.value for term in self.memory)
        )


@dataclass(frozen=True)
class Other:
    """What the policy of a plan is not: terms of the peak in bytes, and the largest micro-batch that fits."""

    policy: Policy
    memory: tuple[Term, ...]
    fitting_tokens: int | None


@dataclass(frozen=True)
class Probe:
    """The first steps of the run itself.

    Attributes:
        steps, total_steps: taken, and of the run.
        tokens_per_second: once it is warm.
        tokens_a_step: mean.
        cold_seconds: of the first steps, beyond what later ones take.
        measuring_seconds: of one look at the tuning split; 0 where there is none.
        training_seconds: of the whole run's training.
        peak_bytes: of this process; None where nobody tells.
        finished: the run is there already, and these are its own numbers.
    """

    steps: int
    total_steps: int
    tokens_per_second: float
    tokens_a_step: float
    cold_seconds: float
    measuring_seconds: float
    training_seconds: float
    peak_bytes: int | None
    finished: bool = False


# -------------------------------------------------------------------------------------------------------------------------------- formula


def trained_parameters(shape: Shape, specs: tuple[AnyAdapterSpec, ...]) -> int:
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
class Load:
    """What the formulas of memory ask of a recipe.

    Attributes:
        shape: of the base.
        trained: weights of adapters and head.
        precision: of the base.
        words: whether logits over the vocabulary are asked for.
        quantization: of the base.
        device_type: which decides how many tokens are scored at a time.
    """

    shape: Shape
    trained: int
    precision: str
    words: bool
    quantization: str = "none"
    device_type: str = "cuda"

    @staticmethod
    def of(recipe: TrainedRecipe, usual: str, device_type: str) -> Load:
        """That of a recipe, with the precision that ``auto`` usually is on such a device."""
        shape = models.shape(recipe.base.path)
        trained = (
            shape.parameters
            if getattr(recipe.base, "trainable", False)
            else trained_parameters(shape, recipe.adapters)
        )
        precision = usual if recipe.base.precision == "auto" else recipe.base.precision
        return Load(
            shape,
            trained,
            precision,
            isinstance(recipe, AdaptRecipe),
            recipe.base.quantization,
            device_type,
        )


def memory_terms(load: Load, micro_batch_tokens: int, policy: Policy = "keep") -> tuple[Term, ...]:
    """Bytes at the peak of a step.

    A token leaves behind in every layer what its backward pass reads: inputs of two norms and of the adapters, queries, keys, values, what attention
    gave, and three vectors of the feed-forward part, in the precision of the base. Recomputed, all layers leave their input, and one the whole.

    Args:
        load: what is trained on what.
        micro_batch_tokens: tokens that go through together.
        policy: whether activations are kept or recomputed.
    """
    shape, trained = load.shape, load.trained
    size = BYTES[load.precision]
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
        _base_term(shape, size, load.quantization),
        Term(
            "adapters, gradients, optimiser",
            f"{trained:,} weights × {TRAINED_BYTES} bytes",
            float(TRAINED_BYTES * trained),
        ),
        Term(
            "activations",
            f"{micro_batch_tokens:,} tokens × {formula} × {size} bytes",
            float(micro_batch_tokens * left * size),
        ),
    ]
    if load.words:
        rows = min(micro_batch_tokens, training.block_rows(shape.vocabulary, load.device_type))
        value = float(rows * shape.vocabulary * (size + 4))
        terms.append(
            Term(
                "logits over the vocabulary",
                f"{rows:,} tokens at a time × {shape.vocabulary:,} × ({size} + 4) bytes",
                value,
            )
        )
    return tuple(terms)


def _base_term(shape: Shape, size: int, quantization: str) -> Term:
    """Quantized linear layers take a byte a weight (and four a row, which is nothing beside it), and one at a time is there in full."""
    if quantization == "none":
        return Term(
            "base", f"{shape.parameters:,} weights × {size} bytes", float(size * shape.parameters)
        )
    rest = shape.parameters - shape.in_blocks + shape.largest
    formula = f"{shape.in_blocks:,} weights × 1 byte + {rest:,} × {size} bytes, the largest linear layer among them"
    return Term("base", formula, float(shape.in_blocks + size * rest))


def operation_terms(
    shape: Shape,
    trained: int,
    document_tokens: int,
    words: bool,
    frozen: bool = True,
    policy: Policy = "keep",
) -> tuple[Term, ...]:
    """Floating-point operations a trained token.

    A frozen weight costs 2 forward and 2 for the gradient of its input; a trained one 2 more for its own. Attention costs, a layer and a number of
    the vector, 6 times the tokens of a document where each sees those before it, and 12 times where all see all. Where activations are recomputed,
    the forward pass of the layers comes on top once more.
    """
    multiplied = shape.multiplied + (shape.vocabulary * shape.width if words else 0)
    each, sees = (4 if frozen else 6), (6 if shape.causal else 12)
    attention = float(sees * document_tokens * shape.width * shape.layers)
    again = 2.0 * (shape.multiplied + trained) + attention / 3
    recomputed = (
        Term(
            "layers computed again",
            f"2 × {shape.multiplied + trained:,} weights + attention / 3",
            again,
        ),
    )
    return (
        Term("linear layers", f"{each} × {multiplied:,} weights", float(each * multiplied)),
        Term("adapters", f"6 × {trained:,} weights", 6.0 * trained),
        Term(
            "attention",
            f"{sees} × {document_tokens:,} tokens × {shape.width} × {shape.layers} layers",
            attention,
        ),
        *(recomputed if policy == "recompute" else ()),
    )


def fitting_tokens(load: Load, memory_bytes: float, policy: Policy = "keep") -> int:
    """The largest micro-batch in tokens whose terms stay within the usable share of a memory, beside a whole block of logits; 0 where not even the
    base fits, as it comes."""
    if (
        BYTES[load.precision] * load.shape.parameters > USABLE * memory_bytes
    ):  # before it is quantized it is asked once, whole
        return 0
    many = 2**20
    base, trains, activations, *logits = memory_terms(load, many, policy)
    fixed = base.value + trains.value + sum(term.value for term in logits)
    return max(0, int((USABLE * memory_bytes - fixed) / (activations.value / many)))


def planned(recipe: TrainedRecipe, gpu: str) -> Plan:
    """By formula alone, for a GPU that is named.

    Raises:
        UsageError: it is in no row of ``GPUS``.
        BaseModelError: the base cannot be read.
    """
    if gpu not in GPUS:
        raise UsageError(
            f"{gpu!r} is no GPU that is known here",
            location="--gpu",
            hint=f"one of {', '.join(GPUS)}",
        )
    device = GPUS[gpu]
    memory = device.memory_gb * 1e9
    plan = _counted(recipe, gpu, device.precision, memory, memory, "cuda")
    operations = sum(term.value for term in plan.operations)
    tokens = _said_tokens(recipe)
    seconds = (
        None
        if tokens is None
        else (
            tokens * operations / (device.peak * EFFICIENCY[1]),
            tokens * operations / (device.peak * EFFICIENCY[0]),
        )
    )
    rates = sorted(device.peak * share / operations for share in EFFICIENCY)
    basis = f"{rates[0]:,.0f} to {rates[1]:,.0f} tokens/s: {EFFICIENCY[0]:.0%} to {EFFICIENCY[1]:.0%} of {device.peak / 1e12:,.0f} TFLOP/s"
    return replace(plan, tokens=tokens, seconds=seconds, basis=basis)


def _counted(
    recipe: TrainedRecipe,
    device: str,
    precision: str,
    whole_memory: float | None,
    free_memory: float | None,
    device_type: str,
) -> Plan:
    """What the formulas say; the policy is that of the whole memory, as in the run, and what fits that of what is free."""
    load = Load.of(recipe, precision, device_type)
    frozen = not getattr(recipe.base, "trainable", False)
    policy, _ = _policy([recipe], load, whole_memory, _unable(recipe))
    rest: Policy = "keep" if policy == "recompute" else "recompute"
    tokens = recipe.training.micro_batch_tokens
    operations = operation_terms(
        load.shape,
        load.trained if frozen else 0,
        recipe.base.max_tokens,
        load.words,
        frozen,
        policy,
    )
    fits = {
        each: None if free_memory is None else fitting_tokens(load, free_memory, each)
        for each in (policy, rest)
    }
    other = Other(rest, memory_terms(load, tokens, rest), fits[rest])
    return Plan(
        device,
        policy,
        memory_terms(load, tokens, policy),
        operations,
        fits[policy],
        other,
        None,
        None,
        "",
    )


# ------------------------------------------------------------------------------------------------------------------------ activations


def settle_activations(
    recipes: Sequence[TrainedRecipe], stacks: Sequence[Stack], accelerator: Crew
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
    if not stack.trained:
        return
    load = Load.of(
        recipes[0], str(stack.base.precision).removeprefix("torch."), accelerator.device.type
    )
    policy, reason = _policy(recipes, load, device_memory(accelerator), adapters.obstacle(stack))
    if policy == "recompute":
        adapters.recompute(stack, reason)
    for each in stacks:
        each.activations = f"{'recomputed' if policy == 'recompute' else 'kept'}: {reason}"


def device_memory(accelerator: Crew) -> int | None:
    """Bytes of the device that is trained on, whether free or not, so that a run decides alike every time; None where nobody tells."""
    found = training.hardware(accelerator)["memory_bytes"] or processor_memory()[1]
    return None if found is None else int(found)


def _policy(
    recipes: Sequence[TrainedRecipe], load: Load, memory: float | None, unable: str
) -> tuple[Policy, str]:
    """What becomes of the activations, and why."""
    asked = {recipe.training.activations for recipe in recipes}
    if "recompute" in asked or asked == {"keep"}:
        return ("recompute" if "recompute" in asked else "keep"), "asked for in the recipe"
    if unable or memory is None:
        return "keep", unable or "the memory of the device is not known"
    tokens = sum(map(_largest, recipes))
    needed = sum(term.value for term in memory_terms(load, tokens, "keep"))
    said = f"by formula {tokens:,} tokens take {needed / 2**30:.1f} GB where they are kept, of {memory / 2**30:.1f} GB"
    return ("keep" if needed <= USABLE * memory else "recompute"), said


def _largest(recipe: TrainedRecipe) -> int:
    """Tokens of the largest micro-batch: no more than a step has, where that is said in tokens, and one document whatever its length."""
    asked = recipe.training.micro_batch_tokens
    return max(
        min(asked, int(getattr(recipe.training, "batch_tokens", asked))), recipe.base.max_tokens
    )


def _unable(recipe: TrainedRecipe) -> str:
    """``adapters.obstacle`` as far as the recipe tells it."""
    keys = [
        spec.method
        for spec in recipe.adapters
        if spec.active and adapters.METHODS[spec.method].prepends == "keys"
    ]
    return f"{keys[0]} cannot be recomputed" if keys else ""


def _said_tokens(recipe: TrainedRecipe) -> int | None:
    """Tokens of the training where the recipe bounds its steps by number and size."""
    steps, spec = recipe.training.max_steps, recipe.training
    a_step = getattr(spec, "batch_tokens", None)
    return steps * int(a_step) if steps and a_step else None


# ---------------------------------------------------------------------------------------------------------------------------------- probe


def probed(
    recipe: TrainedRecipe,
    home: Path,
    context: Circumstances,
    verb: Callable[[TrainedRecipe, Path, Circumstances], Run],
    memory_bytes: int | None,
) -> Plan:
    """By the run's own first steps on this machine, in a home beside the real one, which goes when they are taken.

    What a run prepares (corpus, tokens, cohorts) stays in the cache of ``home``, where the run will find it. Two looks: one step, which tells how
    many there will be, then at most ``PROBE_STEPS``, one look at the tuning split among them.

    Args:
        recipe: of one run.
        home: of all runs.
        context: clock and command; who watches and who may stop is seen to here.
        verb: ``adapt``, ``classify`` or ``embed``.
        memory_bytes: of the device, what a micro-batch is to fit in; None where it is not known.

    Raises:
        ClinpeftError: whatever the run itself cannot do.
    """
    accelerator = training.assemble()
    where = training.hardware(accelerator)
    precision, _ = models.precision_for("auto", accelerator.device)
    plan = _counted(
        recipe,
        str(where["device"]),
        str(precision).removeprefix("torch."),
        device_memory(accelerator),
        memory_bytes,
        accelerator.device.type,
    )
    finished, first = _looked(recipe, home, context, verb, 1)
    probe = (
        _of_finished(finished) if finished else _measured(recipe, home, context, verb, first[-1])
    )
    if not finished:
        probe = replace(probe, peak_bytes=training.peak_bytes(accelerator.device))
    tokens = round(probe.total_steps * probe.tokens_a_step)
    measured = f"{probe.tokens_per_second:,.0f} tokens/s in {probe.steps} steps of the run itself"
    basis = "this very run is there already" if probe.finished else measured
    return replace(
        plan, tokens=tokens, seconds=(probe.training_seconds,) * 2, basis=basis, probe=probe
    )


def _looked(
    recipe: TrainedRecipe,
    home: Path,
    context: Circumstances,
    verb: Callable[[TrainedRecipe, Path, Circumstances], Run],
    steps: int,
) -> tuple[Run | None, list[Event]]:
    """The run, begun in a home of its own and stopped after so many steps; the run itself where it was finished before, or had no more steps."""
    beside = home / ".plan"
    shutil.rmtree(beside, ignore_errors=True)
    told: list[Event] = []
    watched = replace(context, tell=told.append, stopping=lambda: len(told) >= steps)
    try:
        _furnish(beside, home)
        run = verb(recipe, beside, watched)
        return (run, told) if not told else (None, told)
    except InterruptedRun:
        return None, told
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _furnish(beside: Path, home: Path) -> None:
    """The cache and the finished runs of a home, by links: adapters of earlier runs are found, and nothing of it is changed."""
    beside.mkdir(parents=True, mode=0o700)
    (home / "cache").mkdir(parents=True, exist_ok=True, mode=0o700)
    (beside / "cache").symlink_to((home / "cache").resolve(), target_is_directory=True)
    for run in runs.list_runs(home).runs:
        if run.record.state == "finished":
            (beside / run.folder.name).symlink_to(run.folder.resolve(), target_is_directory=True)


def _measured(
    recipe: TrainedRecipe,
    home: Path,
    context: Circumstances,
    verb: Callable[[TrainedRecipe, Path, Circumstances], Run],
    first: Event,
) -> Probe:
    """So many steps that one look at the tuning split falls between them, however long the run is."""
    steps = min(PROBE_STEPS, first.total_steps)
    looks = 2 * steps // max(1, steps // 2)
    longer = {
        "max_steps": 2 * steps,
        "epochs": 2 * recipe.training.epochs + 1,
        "evaluations": looks,
        "checkpoints": 1,
        "patience": 0,
    }
    brief = recipe.training.model_copy(update=longer)
    _, told = _looked(recipe.model_copy(update={"training": brief}), home, context, verb, steps)
    return probe_of(told[:steps], first.total_steps, recipe.training.evaluations)


def probe_of(told: list[Event], total_steps: int, evaluations: int) -> Probe:
    """What the first steps say of the whole run: warm steps by their tokens, cold ones as they were, and each look at the tuning split.

    Args:
        told: the first steps.
        total_steps: of the run.
        evaluations: looks at the tuning split in the run.
    """
    seconds = [
        event.seconds - before
        for event, before in zip(told, [0.0, *(event.seconds for event in told)], strict=False)
    ]
    tokens = [
        event.tokens - before
        for event, before in zip(told, [0, *(event.tokens for event in told)], strict=False)
    ]
    cold = min(COLD_STEPS, len(told) - 1)
    warm = [at for at in range(cold, len(told)) if not told[at].measured] or list(range(len(told)))
    a_token = sum(seconds[at] for at in warm) / sum(tokens[at] for at in warm)
    a_step = sum(tokens) / len(tokens)
    looks = [seconds[at] - tokens[at] * a_token for at in range(len(told)) if told[at].measured]
    looking = max(0.0, sum(looks) / len(looks)) if looks else 0.0
    extra = max(
        0.0, sum(seconds[at] - tokens[at] * a_token for at in range(cold) if not told[at].measured)
    )
    whole = extra + total_steps * a_step * a_token + min(evaluations, total_steps) * looking
    return Probe(len(told), total_steps, 1 / a_token, a_step, extra, looking, whole, None)


def _of_finished(run: Run) -> Probe:
    """A run that is there already says it best."""
    record = run.record
    tokens, seconds, steps = (
        record.tokens_seen or 0,
        record.training_seconds or 0.0,
        record.counts.get("steps", 0),
    )
    rate = tokens / seconds if seconds else math.nan
    return Probe(
        steps,
        steps,
        rate,
        tokens / max(1, steps),
        0.0,
        0.0,
        seconds,
        getattr(record, "peak_memory_bytes", None),
        finished=True,
    )
