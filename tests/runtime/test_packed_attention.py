"""The seam by which many documents stand in one row: exact for every family that is declared so,
and refused where it is not."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clinpeft import adapters, models
from clinpeft.adapters import ADAPTER_METHODS, Stack
from clinpeft.core.errors import BaseModelError, InputError
from clinpeft.models import MODEL_FAMILIES, PoolingMode, SequenceLengths
from clinpeft.recipe import LoraSpec
from clinpeft.runtime import packed_attention
from tests.models.test_families import SETTINGS, SHAPE, shaken, spec_of

LENGTHS = (9, 7, 7, 1, 3, 12, 1)
NARROW: dict[str, dict[str, Any]] = {  # windows of attention that are shorter than the documents
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma2": {"sliding_window": 4},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}
FLAT = [name for name, family in MODEL_FAMILIES.items() if family.supports_packing]
BESIDE = [method for method in ADAPTER_METHODS if ADAPTER_METHODS[method].composition == "beside"]


@functools.cache
def made(family: str) -> models.FrozenBaseModel:
    config = transformers.AutoConfig.for_model(
        family, **SHAPE, **SETTINGS.get(family, {}), **NARROW.get(family, {})
    )
    torch.manual_seed(0)
    model = MODEL_FAMILIES[family].auto_class.from_config(config).eval()
    return models.FrozenBaseModel(
        model, None, MODEL_FAMILIES[family], Path("toy"), "", torch.float32, "", max_tokens=32
    )


def base_of(family: str) -> models.FrozenBaseModel:
    base = copy.deepcopy(made(family))
    models.enable_packing(base)
    return base


def stack_of(family: str, method: str = "lora") -> Stack:
    return shaken(adapters.attach_adapters(base_of(family), [spec_of(method)]))


@functools.cache
def texts() -> tuple[torch.Tensor, ...]:
    return torch.split(
        torch.randint(3, 96, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1)),
        list(LENGTHS),
    )


def rows(some: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(list(some), batch_first=True)
    lengths = torch.tensor([len(text) for text in some])
    return ids, (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()


def one_by_one(stack: Stack) -> torch.Tensor:
    """Every document alone, without padding, by transformers' own plainest attention."""
    stack.base.model.set_attn_implementation("eager")
    assert not models.has_packed_attention(stack.base.model)
    return torch.cat(
        [
            stack.base.backbone(
                input_ids=text[None], attention_mask=torch.ones_like(text[None])
            ).last_hidden_state[0]
            for text in texts()
        ]
    )


def gradients(stack: Stack, vectors: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss that asks every number of every token, and what it makes of the adapter."""
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    loss = (vectors * weights).sum() + vectors.logsumexp(dim=1).sum()
    names, parameters = zip(*stack.trained_parameters.items(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_documents_in_one_row_are_what_each_is_alone_vectors_loss_and_gradient(family: str) -> None:
    stack, plain = stack_of(family), stack_of(family)
    assert models.has_packed_attention(stack.base.model) == (family in FLAT)
    found, expected = (
        adapters.compute_packed_hidden_states(stack, *rows(texts())),
        one_by_one(plain),
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (loss, gradient), (loss_alone, gradient_alone) = (
        gradients(stack, found),
        gradients(plain, expected),
    )
    torch.testing.assert_close(loss, loss_alone, atol=1e-5, rtol=1e-5)
    for name, wanted in gradient_alone.items():
        assert wanted.abs().max() > 1e-3, name
        torch.testing.assert_close(
            gradient[name], wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5
        )


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_logits_are_the_head_s_of_the_vectors_that_each_has_alone(family: str) -> None:
    stack, plain = stack_of(family), stack_of(family)
    ids, mask = rows(texts())
    with torch.no_grad():
        found = adapters.compute_token_logits(stack, ids, mask)[mask == 1]
        one_by_one(plain)  # which sets its attention
        alone = [
            plain.base.model(
                input_ids=text[None], attention_mask=torch.ones_like(text[None])
            ).logits[0]
            for text in texts()
        ]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FLAT)
def test_no_layer_sees_a_token_of_padding(family: str) -> None:
    stack, seen = stack_of(family), []
    for module in stack.base.backbone.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, given, __: seen.append(given[0].shape[:-1].numel())
            )
    with torch.no_grad():
        adapters.compute_packed_hidden_states(stack, *rows(texts()))
    assert seen and set(seen) == {sum(LENGTHS)}


@pytest.mark.parametrize("family", ["modernbert", "mistral", "gemma2"])
def test_long_documents_with_local_attention_are_read_in_blocks(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "LOCAL_ATTENTION_BLOCK_TOKENS", 4)
    stack, plain = stack_of(family), stack_of(family)
    found, expected = (
        adapters.compute_packed_hidden_states(stack, *rows(texts())),
        one_by_one(plain),
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(
        gradients(stack, found)[1].values(), gradients(plain, expected)[1].values(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_family_that_is_declared_flattening_and_is_not_is_refused() -> None:
    base = replace(
        copy.deepcopy(made("mpnet")), family=replace(MODEL_FAMILIES["mpnet"], supports_packing=True)
    )
    with pytest.raises(BaseModelError, match="differ from those of each alone") as refused:
        models.enable_packing(base)
    assert "flattens = False" in refused.value.hint


def first_seen_only(
    module: torch.nn.Module, *asked: Any, spans: SequenceLengths | None = None, **others: Any
) -> Any:
    """An attention that forgets where documents end."""
    others["spans"] = None if spans is None else SequenceLengths((sum(spans.lengths),))
    return packed_attention.attend_packed_documents(module, *asked, **others)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_an_attention_that_looks_over_the_edge_is_found_in_any_precision(
    family: str, precision: torch.dtype
) -> None:
    base = replace(copy.deepcopy(made(family)), precision=precision)
    base.model.to(precision)
    models.enable_packing(base)
    transformers.AttentionInterface.register(
        packed_attention.PACKED_ATTENTION_NAME, first_seen_only
    )
    try:
        with pytest.raises(BaseModelError, match="differ from those of each alone"):
            models.enable_packing(base)
    finally:
        transformers.AttentionInterface.register(
            packed_attention.PACKED_ATTENTION_NAME, packed_attention.attend_packed_documents
        )


@pytest.mark.parametrize("method", BESIDE)
def test_what_peft_can_only_run_padded_is_padded_among_its_like_and_the_same(method: str) -> None:
    stack = stack_of("llama", method)
    with torch.no_grad():
        alone = [adapters.compute_packed_hidden_states(stack, *rows((text,))) for text in texts()]
        together = adapters.compute_packed_hidden_states(stack, *rows(texts()))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_prompt_that_is_switched_off_leaves_one_row() -> None:
    stack, bare = stack_of("llama", "prompt"), adapters.attach_adapters(base_of("llama"), ())
    with torch.no_grad(), stack.disable_adapters():
        assert torch.equal(
            adapters.compute_packed_hidden_states(stack, *rows(texts())),
            adapters.compute_packed_hidden_states(bare, *rows(texts())),
        )


def test_groups_are_of_one_length_or_of_about_one() -> None:
    from clinpeft.adapters.outputs import group_rows_by_length

    assert group_rows_by_length([3, 9, 3, 0, 1], 1.0) == [[1], [0, 2], [4]]
    assert group_rows_by_length([10, 7, 8, 2], 0.8) == [[0, 2], [1], [3]]


@pytest.mark.parametrize("how", ["last", "cls", "mean", "max"])
@pytest.mark.parametrize("family", ["llama", "mpnet"])
def test_texts_are_pooled_by_where_they_lie(family: str, how: PoolingMode) -> None:
    stack = stack_of(family)
    ids, mask = rows(texts())
    with torch.no_grad():
        found, expected = (
            adapters.compute_pooled_embeddings(stack, ids, mask, how),
            models.pool_hidden_states(adapters.compute_hidden_states(stack, ids, mask), mask, how),
        )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("how", ["last", "cls", "mean", "max"])
def test_pooling_where_they_lie_has_the_gradient_of_pooling_rows(how: PoolingMode) -> None:
    ids, mask = rows(texts())
    vectors = torch.randn(sum(LENGTHS), 4, requires_grad=True)
    padded = torch.zeros(*ids.shape, 4).masked_scatter(mask[..., None] == 1, vectors)
    weights = torch.randn(len(LENGTHS), 4)
    found, expected = (
        torch.autograd.grad((each * weights).sum(), vectors)
        for each in pools(vectors, padded, mask, how)
    )
    torch.testing.assert_close(found, expected)


def pools(
    vectors: torch.Tensor, padded: torch.Tensor, mask: torch.Tensor, how: PoolingMode
) -> tuple[torch.Tensor, torch.Tensor]:
    return models.pool_packed_hidden_states(
        vectors, SequenceLengths(LENGTHS), how
    ), models.pool_hidden_states(padded, mask, how)


def test_left_padding_changes_nothing_and_a_row_without_tokens_is_refused() -> None:
    stack = stack_of("bert")
    ids, mask = rows(texts())
    with torch.no_grad():
        assert torch.equal(
            adapters.compute_packed_hidden_states(stack, ids, mask),
            adapters.compute_packed_hidden_states(
                stack, *(torch.stack(turned(each)) for each in (ids, mask))
            ),
        )
        with pytest.raises(InputError, match="1 of 7 rows have no token"):
            adapters.compute_pooled_embeddings(
                stack, ids, mask * (torch.arange(7) != 3)[:, None], "mean"
            )


def turned(rows_of: torch.Tensor) -> list[torch.Tensor]:
    """Padding from the right to the left."""
    return [
        torch.cat([row[length:], row[:length]])
        for row, length in zip(rows_of, LENGTHS, strict=True)
    ]


@pytest.mark.parametrize("family", ["llama", "bert", "modernbert"])
def test_nothing_below_the_lowest_adapter_needs_a_gradient(family: str) -> None:
    base, needed = base_of(family), []
    layers = next(
        module for module in base.backbone.modules() if isinstance(module, torch.nn.ModuleList)
    )
    target = MODEL_FAMILIES[family].lora_targets[0]
    inside = next(name for name, _ in layers[1].named_modules() if name.endswith(target))
    stack = adapters.attach_adapters(base, [LoraSpec(rank=2, targets=(f"1.{inside}",))])
    layers[0].register_forward_hook(
        lambda _, __, answer: needed.append(first(answer).requires_grad)
    )
    layers[1].register_forward_hook(
        lambda _, __, answer: needed.append(first(answer).requires_grad)
    )
    base.model.get_input_embeddings().register_forward_hook(
        lambda _, __, answer: needed.append(answer.requires_grad)
    )
    stack.train()
    adapters.compute_packed_hidden_states(stack, *rows(texts()))
    assert needed == [False, False, True]  # embeddings, the layer below, the adapted one


def first(answer: Any) -> torch.Tensor:
    found: torch.Tensor = answer if isinstance(answer, torch.Tensor) else answer[0]
    return found


@pytest.mark.parametrize("family", FLAT)
def test_a_model_with_the_seam_is_saved_and_opened_without_it(family: str, tmp_path: Path) -> None:
    base = base_of(family)
    base.backbone.save_pretrained(tmp_path)
    assert packed_attention.PACKED_ATTENTION_NAME not in (tmp_path / "config.json").read_text()
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    ids, mask = rows(texts())
    with torch.no_grad():
        expected = again(input_ids=ids, attention_mask=mask).last_hidden_state[mask == 1]
        torch.testing.assert_close(
            adapters.compute_packed_hidden_states(adapters.attach_adapters(base, ()), ids, mask),
            expected,
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("causal", [True, False])
def test_capped_and_local_scores_are_those_of_the_mask(causal: bool) -> None:
    query, key, value = (
        torch.randn(1, 2, 11, 4, generator=torch.Generator().manual_seed(at)) for at in range(3)
    )
    embedding_config = packed_attention._AttentionConfig(causal, None, 0.0, 4, None)
    places = torch.arange(11)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, embedding_config.compute_mask(places, places)
    )
    for found in (
        packed_attention._attend_with_softcap(query, key, value, embedding_config, None),
        packed_attention._attend_local_window(query, key, value, embedding_config),
    ):
        torch.testing.assert_close(found, expected)
