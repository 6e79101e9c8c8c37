"""Memory and operations of a training by formula, and the runtime policy of a run.

The formulas count what a training step of a frozen base with adapters holds and computes. They are
used by ``clinpeft plan`` before a run and by the run itself, to decide whether the activations of a
micro-batch fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clinpeft import models, training
from clinpeft.adapters import Stack
from clinpeft.models import LoadPurpose, ModelShape
from clinpeft.recipe import AnyAdapterSpec, LoraSpec
from clinpeft.runtime import ActivationPolicy, RuntimePolicy
from clinpeft.runtime.optimization import USABLE_MEMORY_FRACTION
from clinpeft.training import Accelerator, Trainable
from clinpeft.workflows.context import RunContext, TrainingRecipe
from clinpeft.workflows.doctor import read_memory_bytes

PRECISION_BYTES = {"float32": 4, "bfloat16": 2}
TRAINED_PARAMETER_BYTES = 16  # weight, gradient, two moments of AdamW, float32 each


@dataclass(frozen=True)
class PlanTerm:
    """One term of a sum: its name, its formula in words, its value."""

    name: str
    formula: str
    value: float


def count_trained_parameters(shape: ModelShape, specs: tuple[AnyAdapterSpec, ...]) -> int:
    """Estimate the number of trained parameters of adapters, from their specs alone.

    LoRA is counted with the family's query and value, or with as many modules as are named.
    """
    total = 0
    for spec in specs:
        if isinstance(spec, LoraSpec):
            # A: rank x width, B: width x rank (Hu et al. 2021, equation 3)
            total += shape.layers * (len(spec.targets) or 2) * spec.rank * 2 * shape.width
        else:
            layers = max(1, min(shape.layers, getattr(spec, "layers", 1)))
            total += getattr(spec, "tokens", 1) * shape.width * layers
    return total


@dataclass(frozen=True)
class TrainingWorkload:
    """What the formulas of memory need of a recipe.

    Attributes:
        shape: of the base.
        trained_parameters: of adapters and head.
        precision: of the base.
        has_language_head: whether logits over the vocabulary are computed.
        quantization: of the base.
        device_type: decides how many tokens are scored at a time.
    """

    shape: ModelShape
    trained_parameters: int
    precision: str
    has_language_head: bool
    quantization: str = "none"
    device_type: str = "cuda"

    @staticmethod
    def from_recipe(
        recipe: TrainingRecipe, purpose: LoadPurpose, auto_precision: str, device_type: str
    ) -> TrainingWorkload:
        """Get the workload of a recipe.

        Args:
            recipe: of the run.
            purpose: what its base is loaded for.
            auto_precision: what ``base.precision = "auto"`` is on the device.
            device_type: of the device.
        """
        shape = models.read_model_shape(recipe.base.path)
        trained = (
            shape.parameter_count
            if recipe.trains_base
            else count_trained_parameters(shape, recipe.adapters)
        )
        precision = auto_precision if recipe.base.precision == "auto" else recipe.base.precision
        has_language_head = purpose == "language"
        return TrainingWorkload(
            shape, trained, precision, has_language_head, recipe.base.quantization, device_type
        )


def estimate_memory(
    workload: TrainingWorkload, micro_batch_tokens: int, policy: ActivationPolicy = "keep"
) -> tuple[PlanTerm, ...]:
    """Estimate the bytes at the peak of a training step.

    Of each token and layer the backward pass reads the inputs of two norms and of the adapters,
    queries, keys, values, the output of attention, and three vectors of the feed-forward part, in
    the precision of the base. Recomputed, every layer keeps its input, and one layer all of it
    (compare Korthikanti et al. 2022, arXiv 2205.05198, section 4).

    Args:
        workload: what is trained on what.
        micro_batch_tokens: tokens of a forward pass.
        policy: whether activations are kept or recomputed.

    Returns:
        Base, trained parameters, activations and, with a language head, logits.
    """
    shape, trained = workload.shape, workload.trained_parameters
    size = PRECISION_BYTES[workload.precision]
    layer_numbers = 8 * shape.width + 2 * shape.key_width + 3 * shape.inner_width
    layer_formula = f"(8 × {shape.width} + 2 × {shape.key_width} + 3 × {shape.inner_width})"
    token_numbers, formula = {
        "keep": (shape.layers * layer_numbers, f"{shape.layers} layers × {layer_formula}"),
        "recompute": (
            shape.layers * shape.width + layer_numbers,
            f"({shape.layers} layers × {shape.width} + {layer_formula})",
        ),
    }[policy]
    terms = [
        _estimate_base_memory(shape, size, workload.quantization),
        PlanTerm(
            "adapters, gradients, optimizer",
            f"{trained:,} weights × {TRAINED_PARAMETER_BYTES} bytes",
            float(TRAINED_PARAMETER_BYTES * trained),
        ),
        PlanTerm(
            "activations",
            f"{micro_batch_tokens:,} tokens × {formula} × {size} bytes",
            float(micro_batch_tokens * token_numbers * size),
        ),
    ]
    if workload.has_language_head:
        block = training.compute_loss_block_rows(shape.vocabulary_size, workload.device_type)
        rows = min(micro_batch_tokens, block)
        terms.append(
            PlanTerm(
                "logits over the vocabulary",
                f"{rows:,} tokens at a time × {shape.vocabulary_size:,} × ({size} + 4) bytes",
                float(rows * shape.vocabulary_size * (size + 4)),
            )
        )
    return tuple(terms)


def _estimate_base_memory(shape: ModelShape, bytes_per_weight: int, quantization: str) -> PlanTerm:
    if quantization == "none":
        return PlanTerm(
            "base",
            f"{shape.parameter_count:,} weights × {bytes_per_weight} bytes",
            float(bytes_per_weight * shape.parameter_count),
        )
    # Quantized linear layers take a byte a weight (and four a row, which is negligible), and one
    # of them at a time is dequantized.
    rest = shape.parameter_count - shape.block_linear_weights + shape.largest_block_weights
    formula = (
        f"{shape.block_linear_weights:,} weights × 1 byte + {rest:,} × {bytes_per_weight} bytes, "
        "the largest linear layer among them"
    )
    return PlanTerm("base", formula, float(shape.block_linear_weights + bytes_per_weight * rest))


def estimate_operations(
    shape: ModelShape,
    trained_parameters: int,
    document_tokens: int,
    has_language_head: bool,
    base_is_frozen: bool = True,
    policy: ActivationPolicy = "keep",
) -> tuple[PlanTerm, ...]:
    """Estimate the floating-point operations per trained token.

    A frozen weight costs 2 forward and 2 for the gradient of its input; a trained one 2 more for
    its own (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Attention costs, per layer and
    number of the vector, 6 times the tokens of a document where each token sees those before it,
    and 12 times where all see all. Recomputed activations add one forward pass of the layers.

    Args:
        shape: of the base.
        trained_parameters: of the adapters.
        document_tokens: tokens of a document.
        has_language_head: whether logits over the vocabulary are computed.
        base_is_frozen: whether the base has no gradient of its own.
        policy: whether activations are kept or recomputed.
    """
    multiplied = shape.linear_weights + (
        shape.vocabulary_size * shape.width if has_language_head else 0
    )
    weight_factor, context_factor = (4 if base_is_frozen else 6), (6 if shape.causal else 12)
    attention = float(context_factor * document_tokens * shape.width * shape.layers)
    again = 2.0 * (shape.linear_weights + trained_parameters) + attention / 3
    recomputed = PlanTerm(
        "layers computed again",
        f"2 × {shape.linear_weights + trained_parameters:,} weights + attention / 3",
        again,
    )
    return (
        PlanTerm(
            "linear layers",
            f"{weight_factor} × {multiplied:,} weights",
            float(weight_factor * multiplied),
        ),
        PlanTerm("adapters", f"6 × {trained_parameters:,} weights", 6.0 * trained_parameters),
        PlanTerm(
            "attention",
            f"{context_factor} × {document_tokens:,} tokens × {shape.width} × "
            f"{shape.layers} layers",
            attention,
        ),
        *((recomputed,) if policy == "recompute" else ()),
    )


def estimate_max_micro_batch_tokens(
    workload: TrainingWorkload, memory_bytes: float, policy: ActivationPolicy = "keep"
) -> int:
    """Estimate the largest micro-batch, in tokens, that fits a memory.

    Returns:
        Tokens; 0 where not even the base fits before it is quantized.
    """
    # A base that is quantized is in memory unquantized first, see ``base_loading``.
    base_bytes = PRECISION_BYTES[workload.precision] * workload.shape.parameter_count
    if base_bytes > USABLE_MEMORY_FRACTION * memory_bytes:
        return 0
    many = 2**20
    base, trained, activations, *logits = estimate_memory(workload, many, policy)
    fixed = base.value + trained.value + sum(term.value for term in logits)
    return max(0, int((USABLE_MEMORY_FRACTION * memory_bytes - fixed) / (activations.value / many)))


def read_device_memory_bytes(accelerator: Accelerator) -> int | None:
    """Read the whole memory of the device, free or not, so that a run always decides alike.

    Returns:
        Bytes; None where the system does not say.
    """
    memory = training.describe_hardware(accelerator)["memory_bytes"] or read_memory_bytes()[1]
    return None if memory is None else int(memory)


def create_runtime_policy(
    recipes: Sequence[TrainingRecipe], stack: Stack, trainable: Trainable, context: RunContext
) -> RuntimePolicy:
    """Create the policy by which ``runtime.optimize`` decides.

    Args:
        recipes: that are trained in one pass; one that requests recomputing requests it for all.
        stack: of the first of them.
        trainable: of the first of them, for the length of the training.
        context: processes, device and cache.
    """
    if not stack.trained_parameters:
        return RuntimePolicy(context.cache)  # only a head is trained: there is nothing to decide
    accelerator = context.accelerator
    precision = str(stack.base.precision).removeprefix("torch.")
    workload = TrainingWorkload.from_recipe(
        recipes[0], stack.base.purpose, precision, accelerator.device.type
    )
    compilations = {recipe.training.compilation for recipe in recipes}
    # (steps,) tokens of the steps of the first epoch
    step_tokens = [trainable.count_tokens(items) for items in trainable.make_epoch_batches(0)]
    # mean tokens of a step times steps
    total_steps = training.count_total_steps(trainable, recipes[0].training)
    total_tokens = (total_steps * sum(step_tokens) // len(step_tokens)) if step_tokens else 0
    budget = recipes[0].training.micro_batch_tokens
    tokens = sum(map(compute_largest_micro_batch_tokens, recipes))
    return RuntimePolicy(
        cache_folder=context.cache,
        activations=combine_activation_requests(recipes),
        compilation="never" if "never" in compilations else "auto",
        largest_micro_batch_tokens=tokens,
        kept_memory_bytes=sum(term.value for term in estimate_memory(workload, tokens, "keep")),
        device_memory_bytes=read_device_memory_bytes(accelerator),
        micro_batch_tokens=min(budget, max(step_tokens, default=0)),
        total_tokens=total_tokens,
        num_processes=accelerator.num_processes,
        per_subject_gradients=any(recipe.differential_privacy for recipe in recipes),
    )


def combine_activation_requests(
    recipes: Sequence[TrainingRecipe],
) -> Literal["auto", "keep", "recompute"]:
    """Combine ``training.activations`` of recipes that are trained in one pass."""
    requests = {recipe.training.activations for recipe in recipes}
    if "recompute" in requests:
        return "recompute"
    return "keep" if requests == {"keep"} else "auto"


def compute_largest_micro_batch_tokens(recipe: TrainingRecipe) -> int:
    """Compute the tokens of the largest micro-batch of a recipe.

    That is no more than a step has, where its size is given in tokens, and at least one document.
    """
    budget = recipe.training.micro_batch_tokens
    step = int(getattr(recipe.training, "batch_tokens", budget))
    return max(min(budget, step), recipe.base.max_tokens)
