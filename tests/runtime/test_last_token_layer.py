"""Pooled vectors, the last layer computed for them alone, beside those that are pooled from all
tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.models import MODEL_FAMILIES, SequenceLengths
from clinpeft.recipe import LoraSpec
from clinpeft.runtime.last_token_layer import POOLED_LAYER_CLASSES
from tests.models.test_families import shaken
from tests.runtime.test_packed_attention import LENGTHS, base_of, rows, texts

ENDING = ("llama", "mistral", "qwen2", "qwen3", "bert", "roberta", "xlm-roberta")
ASKED = [
    (family, how)
    for family in ENDING
    for how in ("last", "cls")
    if how == "last" or MODEL_FAMILIES[family].objective == "masked-lm"
]


def stack_of(family: str, precision: torch.dtype = torch.float32, **options: Any) -> Stack:
    base = base_of(family)
    base.precision = precision
    base.model.to(precision)
    return shaken(
        adapters.attach_adapters(
            base, [LoraSpec(rank=2, targets=base.family.linear_targets, **options)]
        )
    )


def from_all(stack: Stack, how: Any) -> torch.Tensor:
    return models.pool_packed_hidden_states(
        adapters.compute_packed_hidden_states(stack, *rows(texts())), SequenceLengths(LENGTHS), how
    )


def gradients(stack: Stack, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*stack.trained_parameters.items(), strict=True)
    return dict(zip(names, torch.autograd.grad((vectors * weights).sum(), parameters), strict=True))


@pytest.mark.parametrize(("family", "how"), ASKED)
def test_vectors_and_gradients_are_those_pooled_from_all_tokens(family: str, how: Any) -> None:
    stack = stack_of(family)
    assert (
        models.select_pooled_tokens(stack.base.backbone, SequenceLengths(LENGTHS), how) is not None
    )
    found, wanted = (
        adapters.compute_pooled_embeddings(stack, *rows(texts()), how),
        from_all(stack, how),
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    whole = gradients(stack, wanted)
    for name, gradient in gradients(stack, found).items():
        assert whole[name].abs().max() > 0, name
        torch.testing.assert_close(
            gradient, whole[name], atol=1e-5 * float(whole[name].abs().max()), rtol=1e-4
        )


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_so_they_are_where_activations_are_recomputed_and_in_bfloat16_nearly(family: str) -> None:
    stack, again = stack_of(family), stack_of(family)
    adapters.enable_activation_checkpointing(again, "a test")
    for module in stack.base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    again.base.model.load_state_dict(stack.base.model.state_dict())
    for module in again.base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    again.train()
    ours, wanted = (
        gradients(again, adapters.compute_pooled_embeddings(again, *rows(texts()), "last")),
        gradients(stack, adapters.compute_pooled_embeddings(stack, *rows(texts()), "last")),
    )
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient)
    rough = stack_of(family, torch.bfloat16)
    with torch.no_grad():
        found, near = (
            adapters.compute_pooled_embeddings(rough, *rows(texts()), "last"),
            from_all(rough, "last"),
        )
    assert (
        found.dtype == torch.float32
        and torch.nn.functional.cosine_similarity(found, near).min() > 0.999
    )


@pytest.mark.parametrize(
    ("family", "location"),
    [("llama", "layers.1.mlp.down_proj"), ("bert", "encoder.layer.1.output.dense")],
)
def test_the_feed_forward_part_of_the_last_layer_sees_a_token_a_document(
    family: str, location: str
) -> None:
    stack, seen = stack_of(family), []
    stack.base.backbone.get_submodule(location).register_forward_hook(
        lambda _, given, __: seen.append(given[0].shape[:-1].numel())
    )
    with torch.no_grad():
        adapters.compute_pooled_embeddings(stack, *rows(texts()), "last")
        adapters.compute_pooled_embeddings(stack, *rows(texts()), "mean")
    assert seen == [len(LENGTHS), sum(LENGTHS)]


def test_with_dropout_all_tokens_are_computed_so_that_trials_together_draw_what_each_draws_alone() -> (  # noqa: E501
    None
):
    stack, spans = stack_of("llama", dropout=0.3), SequenceLengths(LENGTHS)
    assert models.select_pooled_tokens(stack.base.backbone, spans, "last") is not None
    stack.train()
    assert models.select_pooled_tokens(stack.base.backbone, spans, "last") is None
    assert (
        models.select_pooled_tokens(
            copy.deepcopy(stack_of("bert")).base.backbone.train(), spans, "cls"
        )
        is None
    )


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("llama", "cls"),
        ("llama", "mean"),
        ("bert", "max"),
        ("gemma2", "last"),
        ("modernbert", "cls"),
        ("mpnet", "cls"),
    ],
)
def test_others_compute_all_tokens(family: str, how: Any) -> None:
    stack = stack_of(family)
    assert models.select_pooled_tokens(stack.base.backbone, SequenceLengths(LENGTHS), how) is None
    torch.testing.assert_close(
        adapters.compute_pooled_embeddings(stack, *rows(texts()), how), from_all(stack, how)
    )
    assert len(POOLED_LAYER_CLASSES) == len(ENDING)
