"""A base in float8, behind a gate: a run goes on with it only if it still says of the run's own tuning texts what it said before.

The base is asked as it came, quantized in place, and asked again, so that there is one of it in memory at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc

from clinpeft import adapters, inference, models, training
from clinpeft.core.errors import RecipeError, RefusedError
from clinpeft.models import FrozenBaseModel, EmbeddingConfig
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe, PretrainedModelSpec
from clinpeft.training import Accelerator, LanguageModelingData
from clinpeft.workflows import language_model
from clinpeft.workflows.context import TrainingRecipe
from clinpeft.workflows.task_cohorts import EncodedCohort
from clinpeft.workflows.textbooks import EmbeddingData

MAX_QUANTIZATION_CHECK_TEXTS = 32
"""Tuning texts that are asked, at most: enough to find a base that float8 spoils, and seconds of work."""

DISABLE_QUANTIZATION_HINT = 'set base.quantization = "none"'

AnyModelSpec = TypeVar("AnyModelSpec", bound=PretrainedModelSpec)
QuantizationMeasurement = TypeVar("QuantizationMeasurement")


def check_base_options(recipe: TrainingRecipe, accelerator: Accelerator) -> None:
    """Stop before anything is read where the base cannot be had as it is asked for, or where weights would change that are quantized.

    Raises:
        UsageError: kernels are asked for that this device has not, or whose package is not installed.
        BaseModelError: there are no such kernels for this family.
        RecipeError: a quantized base is to be trained, or an adapter folded into it.
    """
    models.refuse_missing_kernels(recipe.base, accelerator.device)
    if recipe.base.quantization == "none":
        return
    said = f"with base.quantization = {recipe.base.quantization!r}"
    if getattr(recipe.base, "trainable", False):
        hint = f"leave base.trainable out, or {DISABLE_QUANTIZATION_HINT}"
        raise RecipeError(
            f"base.trainable = true {said}, whose weights are too coarse for a step",
            location="base.trainable",
            hint=hint,
        )
    for at, spec in enumerate(recipe.adapters):
        if spec.merged:
            hint = f"leave the adapter unmerged, or {DISABLE_QUANTIZATION_HINT}"
            raise RecipeError(
                f"merged = true {said}, between whose numbers an update is lost",
                location=f"adapters.{at}.merged",
                hint=hint,
            )


def disable_quantization(spec: AnyModelSpec) -> AnyModelSpec:
    """The base as it comes, to be asked before it is quantized."""
    return spec.model_copy(update={"quantization": "none"})


def quantize_checking_perplexity(
    recipe: AdaptRecipe,
    base: FrozenBaseModel,
    language_data: LanguageModelingData,
    accelerator: Accelerator,
) -> None:
    """Quantize a base, if the recipe asks for it and the perplexity of tuning windows allows it.

    Raises:
        RefusedError: it rises by more than the limit, or there is nothing to measure it on.
    """
    if recipe.base.quantization == "none":
        return
    windows, bare = (
        _select_check_texts(language_data.tuning_windows),
        language_model.build_base_forward(base),
    )
    budget = recipe.training.micro_batch_tokens
    _quantize_and_compare(
        recipe.base,
        base,
        len(windows),
        lambda: training.compute_window_perplexity(
            bare, language_data, windows, budget, accelerator
        ),
        _compare_perplexities,
    )


def quantize_checking_documents(
    recipe: ClassifyRecipe,
    base: FrozenBaseModel,
    encoded_cohort: EncodedCohort,
    accelerator: Accelerator,
) -> None:
    """Quantize a base, if the recipe asks for it and the vectors of tuning documents allow it; of the first question, where there are several.

    Raises:
        RefusedError: they turn by more than the limit, or there are none.
    """
    if recipe.base.quantization == "none":
        return
    chosen, bare = (
        _select_check_texts(encoded_cohort.documents.select_split("tuning")),
        adapters.attach_adapters(base, ()),
    )
    pooling, budget = (
        models.resolve_pooling_mode(base, recipe.head.pooling),
        recipe.training.micro_batch_tokens,
    )
    _quantize_and_compare(
        recipe.base,
        base,
        len(chosen),
        lambda: inference.encode_document_windows(
            bare, encoded_cohort.documents, chosen, pooling, budget, accelerator.device
        ),
        _compare_vectors,
    )


def quantize_checking_texts(
    recipe: EmbedRecipe,
    base: FrozenBaseModel,
    embedding_config: EmbeddingConfig,
    embedding_data: EmbeddingData,
    accelerator: Accelerator,
) -> None:
    """Quantize a base, if the recipe asks for it and the vectors of tuning texts allow it: of anchors, as they are learned from.

    Raises:
        RefusedError: they turn by more than the limit, or there are none.
    """
    if recipe.base.quantization == "none":
        return
    pairs = embedding_data.training_books.pairs
    anchors = np.asarray(
        pc.unique(pairs.filter(pc.equal(pairs["split"], "tuning"))["anchor"]), dtype=object
    )
    texts = [embedding_config.query_prompt + text for text in _select_check_texts(anchors)]
    read = inference.build_text_batch_encoder(
        adapters.attach_adapters(base, ()),
        embedding_config,
        texts,
        recipe.training.micro_batch_tokens,
        accelerator.device,
    )
    _quantize_and_compare(
        recipe.base, base, len(texts), lambda: inference.encode_text_batches(read), _compare_vectors
    )


def _select_check_texts(candidates: Any) -> Any:
    """At most ``ASKED`` of them, evenly over all; the same ones every time."""
    if not len(candidates):
        message = "a base that is to be quantized, and no tuning text on which it could be measured"
        raise RefusedError(
            message,
            location="split.tuning",
            hint=f"give the tuning split a share, or {DISABLE_QUANTIZATION_HINT}",
        )
    return candidates[:: max(1, -(-len(candidates) // MAX_QUANTIZATION_CHECK_TEXTS))]


def _quantize_and_compare(
    spec: PretrainedModelSpec,
    base: FrozenBaseModel,
    text_count: int,
    measure: Callable[[], QuantizationMeasurement],
    compare: Callable[[QuantizationMeasurement, QuantizationMeasurement, float], tuple[bool, str]],
) -> None:
    """Quantize, and let the base through or not; what was found is kept with it, for the record."""
    before = measure()
    models.quantize_base_model(base)
    holds, said = compare(before, measure(), spec.quantization_limit)
    said = f"{said}, on {text_count} tuning texts"
    if not holds:
        hint = f"raise base.quantization_limit, or {DISABLE_QUANTIZATION_HINT}"
        raise RefusedError(
            f"the base in {spec.quantization} is not what it was: {said}",
            location="base.quantization_limit",
            hint=hint,
        )
    base.quantization_reason = f"{spec.quantization}: {said}"


def _compare_perplexities(before: float, after: float, limit: float) -> tuple[bool, str]:
    """NaN does not hold."""
    times = after / before
    return (
        times <= 1 + limit,
        f"perplexity {before:.6g} before and {after:.6g} after, {times:.6f} times, where {1 + limit:.6g} is allowed",
    )


def _compare_vectors(before: Any, after: Any, limit: float) -> tuple[bool, str]:
    """Of (texts, width) twice, row by row; a vector of zeros is NaN, and does not hold."""
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    with np.errstate(invalid="ignore"):
        each = (first * second).sum(axis=1) / (
            np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        )
    mean = float(each.mean())
    return (
        mean >= 1 - limit,
        f"mean cosine {mean:.8f} of vectors before and after, where {1 - limit:.6g} is asked",
    )
