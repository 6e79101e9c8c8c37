"""Loading the base, and checking that it survives quantization.

A base that is to be quantized is loaded as it is, measured on tuning texts of the run, quantized in
place and measured again, so that it is in memory only once. The run continues only if the
difference stays within ``base.quantization_limit``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from clinpeft import adapters, inference, models, training
from clinpeft.core.errors import RecipeError, RefusedError
from clinpeft.models import EmbeddingConfig, FrozenBaseModel
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import InputHashes
from clinpeft.runtime import kernels
from clinpeft.workflows.context import RunContext, TrainingRecipe
from clinpeft.workflows.language_model import build_language_data, prepare_corpus
from clinpeft.workflows.task_cohorts import TaskCohort, encode_cohort_documents
from clinpeft.workflows.textbooks import EmbeddingData

MAX_QUANTIZATION_CHECK_TEXTS = 32
"""Tuning texts that are measured, at most: enough to notice a base that float8 spoils, and seconds
of work."""

DISABLE_QUANTIZATION_HINT = 'set base.quantization = "none"'


@dataclass(frozen=True)
class QuantizationCheck:
    """What is measured before and after a base is quantized.

    Attributes:
        text_count: number of tuning texts.
        measure: measures the base as it is now.
        compare: (before, after, limit) -> whether the difference is allowed, and what it is.
    """

    text_count: int
    measure: Callable[[], Any]
    compare: Callable[[Any, Any, float], tuple[bool, str]]


def check_base_options(recipe: TrainingRecipe, context: RunContext) -> None:
    """Check, before anything is read, that the base can be used as requested.

    Raises:
        UsageError: kernels are requested that this device does not have, or whose package is not
            installed.
        BaseModelError: there are no such kernels for this family.
        RecipeError: a quantized base is to be trained, or an adapter to be merged into it.
    """
    base = recipe.base
    supported = [name for name, family in models.MODEL_FAMILIES.items() if family.liger_kernels]
    kernels.check_kernels_available(
        base,
        context.accelerator.device,
        supported,
        lambda: str(models.check_model_folder(base.path)["model_type"]),
    )
    if base.quantization == "none":
        return
    setting = f"with base.quantization = {base.quantization!r}"
    if recipe.trains_base:
        raise RecipeError(
            f"base.trainable = true {setting}, whose weights are too coarse for a step",
            location="base.trainable",
            hint=f"leave base.trainable out, or {DISABLE_QUANTIZATION_HINT}",
        )
    for position, spec in enumerate(recipe.adapters):
        if spec.merged:
            # Two neighbouring float8 numbers are farther apart than a usual update is large.
            raise RecipeError(
                f"merged = true {setting}, whose rounding would lose the update",
                location=f"adapters.{position}.merged",
                hint=f"leave the adapter unmerged, or {DISABLE_QUANTIZATION_HINT}",
            )


def load_base(
    recipe: TrainingRecipe,
    context: RunContext,
    prepare_check: Callable[[FrozenBaseModel], QuantizationCheck],
) -> FrozenBaseModel:
    """Load the base of a recipe, quantized where the recipe requests it.

    Args:
        recipe: of the run.
        context: its device.
        prepare_check: base -> what is measured before and after it is quantized; called only where
            the recipe requests quantization.

    Raises:
        BaseModelError: the folder is not a whole, plain, known model.
        RecipeError: a base is to be trained in bfloat16.
        RefusedError: quantization changes the base by more than ``base.quantization_limit``, or
            there are no tuning texts to measure it on.
    """
    base, _ = load_base_timed(recipe, context, prepare_check)
    return base


def load_base_timed(
    recipe: TrainingRecipe,
    context: RunContext,
    prepare_check: Callable[[FrozenBaseModel], QuantizationCheck],
) -> tuple[FrozenBaseModel, float]:
    """Load the base as ``load_base`` does.

    Returns:
        The base, and the seconds from its folder to a model on the device, without the check.
    """
    spec = recipe.base.model_copy(update={"quantization": "none"})
    if recipe.trains_base:
        if spec.precision == "bfloat16":
            raise RecipeError(
                "a trainable base in bfloat16",
                location="base.precision",
                hint='leave base.precision out, or set it to "float32"',
            )
        # An optimizer's small steps are lost in the 8 significant bits of bfloat16.
        spec = spec.model_copy(update={"precision": "float32"})
    start = time.perf_counter()
    purpose: models.LoadPurpose = "language" if recipe.compared_unit == "tokens" else "vectors"
    base = models.load_base_model(spec, context.accelerator.device, purpose)
    seconds = time.perf_counter() - start
    if recipe.base.quantization != "none":
        _quantize_and_check(recipe, base, prepare_check(base))
    return base, seconds


def _quantize_and_check(
    recipe: TrainingRecipe, base: FrozenBaseModel, check: QuantizationCheck
) -> None:
    """Quantize in place and compare; the comparison is stored with the base, for the record."""
    before = check.measure()
    models.quantize_base_model(base)
    allowed, difference = check.compare(before, check.measure(), recipe.base.quantization_limit)
    difference = f"{difference}, on {check.text_count} tuning texts"
    if not allowed:
        raise RefusedError(
            f"the base in {recipe.base.quantization} differs too much: {difference}",
            location="base.quantization_limit",
            hint=f"raise base.quantization_limit, or {DISABLE_QUANTIZATION_HINT}",
        )
    base.quantization_reason = f"{recipe.base.quantization}: {difference}"


def prepare_perplexity_check(
    recipe: AdaptRecipe, hashes: InputHashes, context: RunContext, base: FrozenBaseModel
) -> QuantizationCheck:
    """Prepare to compare the perplexity of tuning windows.

    Raises:
        RefusedError: there are no tuning windows.
    """
    corpus = prepare_corpus(recipe, base, hashes, context)
    language_data = build_language_data(recipe, base, corpus.encodings)
    windows = select_check_texts(language_data.tuning_windows)
    bare = adapters.attach_adapters(base, ())
    return QuantizationCheck(
        len(windows),
        lambda: training.compute_window_perplexity(
            functools.partial(adapters.compute_token_logits, bare),
            language_data,
            windows,
            recipe.training.micro_batch_tokens,
            context.accelerator,
        ),
        compare_perplexities,
    )


def prepare_document_check(
    recipe: ClassifyRecipe,
    cohorts: Sequence[TaskCohort],
    context: RunContext,
    base: FrozenBaseModel,
) -> QuantizationCheck:
    """Prepare to compare the vectors of tuning documents, those of the first task.

    Raises:
        RefusedError: there are no tuning documents.
    """
    documents = encode_cohort_documents(recipe, base, cohorts, context)[0].documents
    rows = select_check_texts(documents.select_split("tuning"))
    bare = adapters.attach_adapters(base, ())
    pooling = models.resolve_pooling_mode(base, recipe.head.pooling)
    budget, device = recipe.training.micro_batch_tokens, context.accelerator.device
    return QuantizationCheck(
        len(rows),
        lambda: inference.encode_document_windows(bare, documents, rows, pooling, budget, device),
        compare_vectors,
    )


def prepare_text_check(
    recipe: EmbedRecipe,
    embedding_data: EmbeddingData,
    embedding_config: EmbeddingConfig,
    context: RunContext,
    base: FrozenBaseModel,
) -> QuantizationCheck:
    """Prepare to compare the vectors of anchors of the tuning split, prompts included.

    Raises:
        RefusedError: there are no tuning pairs.
    """
    pairs = embedding_data.training_books.pairs
    tuning = pairs.filter(pc.equal(pairs["split"], "tuning"))
    anchors = np.asarray(pc.unique(tuning["anchor"]), dtype=object)
    texts = [embedding_config.query_prompt + text for text in select_check_texts(anchors)]
    encoder = inference.build_text_batch_encoder(
        adapters.attach_adapters(base, ()),
        embedding_config,
        texts,
        recipe.training.micro_batch_tokens,
        context.accelerator.device,
    )
    return QuantizationCheck(
        len(texts), lambda: inference.encode_text_batches(encoder), compare_vectors
    )


def select_check_texts(candidates: Any) -> Any:
    """Select at most ``MAX_QUANTIZATION_CHECK_TEXTS`` rows, evenly spaced, always the same.

    Raises:
        RefusedError: there are none.
    """
    if not len(candidates):
        raise RefusedError(
            "a base that is to be quantized, and no tuning text on which it could be measured",
            location="split.tuning",
            hint=f"give the tuning split a fraction, or {DISABLE_QUANTIZATION_HINT}",
        )
    # Ceiling division, so that the step never gives more than the limit.
    return candidates[:: max(1, -(-len(candidates) // MAX_QUANTIZATION_CHECK_TEXTS))]


def compare_perplexities(before: float, after: float, limit: float) -> tuple[bool, str]:
    """Compare two perplexities; NaN is not allowed.

    Returns:
        Whether ``after / before <= 1 + limit``, and the ratio in words.
    """
    ratio = after / before
    return ratio <= 1 + limit, (
        f"perplexity {before:.6g} before and {after:.6g} after, {ratio:.6f} times, "
        f"where {1 + limit:.6g} is allowed"
    )


def compare_vectors(before: Any, after: Any, limit: float) -> tuple[bool, str]:
    """Compare two arrays (texts, width) row by row; a row of zeros gives NaN, which is not allowed.

    Returns:
        Whether the mean cosine is at least ``1 - limit``, and the cosine in words.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    with np.errstate(invalid="ignore"):
        cosines = (first * second).sum(axis=1) / (
            np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        )  # (texts,)
    mean = float(cosines.mean())
    return mean >= 1 - limit, (
        f"mean cosine {mean:.8f} of vectors before and after, where {1 - limit:.6g} is required"
    )
