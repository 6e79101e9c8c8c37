"""The loss in blocks against the loss all at once, on every family, with what may stand in its
way."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from torch.nn import functional

from clinpeft import models
from clinpeft.training.chunked_loss import (
    LanguageModelHead,
    VocabularyProjection,
    compute_chunked_cross_entropy,
)
from clinpeft.training.objectives import IGNORE_INDEX, LabeledBatch, compute_batch_likelihoods
from tests.models.test_families import SETTINGS, SHAPE

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 1, 1, 1], [14, 15, 1, 1, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
LABELS = torch.tensor(
    [
        [6, 7, 8, 9, 10, IGNORE_INDEX],
        [12, IGNORE_INDEX, 20, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX],
        [IGNORE_INDEX] * 6,
    ]
)


def model_of(family: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family, **SHAPE, **SETTINGS.get(family, {}), **settings
    )
    return models.MODEL_FAMILIES[family].auto_class.from_config(config).eval()


def scored(model: Any, vocabulary: LanguageModelHead | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the rows, and the gradient of the embedded words."""
    embedded: list[torch.Tensor] = []

    def keep(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        embedded.append(out.requires_grad_())
        return out

    hook = model.get_input_embeddings().register_forward_hook(keep)
    scores = compute_batch_likelihoods(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits,
        LabeledBatch(IDS, LABELS),
        MASK,
        vocabulary,
    )
    hook.remove()
    (gradient,) = torch.autograd.grad(
        (scores.negative_log_likelihood * torch.tensor([1.0, 3.0, 1.0])).sum(), embedded
    )
    assert scores.target_counts.tolist() == [5, 2, 0] and scores.negative_log_likelihood[2] == 0
    return scores.negative_log_likelihood.detach(), gradient


@pytest.mark.parametrize("family", models.MODEL_FAMILIES)
def test_in_blocks_losses_and_gradients_are_those_of_all_at_once(family: str) -> None:
    model = model_of(family).requires_grad_(False)
    assert LanguageModelHead(model).get_projection() is not None
    whole, whole_gradient = scored(model, None)
    blocks, gradient = scored(model, LanguageModelHead(model))
    torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=1e-6)
    assert float((gradient - whole_gradient).norm() / whole_gradient.norm()) < 1e-6


def test_the_cap_of_gemma_is_exact_where_it_bites() -> None:
    model = model_of("gemma2").requires_grad_(False)
    model.config.final_logit_softcapping = 0.05
    whole, whole_gradient = scored(model, None)
    blocks, gradient = scored(model, LanguageModelHead(model))
    assert model.config.final_logit_softcapping == 0.05
    torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-4, atol=1e-7)
    model.config.final_logit_softcapping = None
    assert not torch.allclose(scored(model, None)[1], whole_gradient, rtol=0.1)


@pytest.mark.parametrize("block_bytes", [1, 4 * 50 * 3, 1 << 20])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_size_of_a_block_changes_nothing(block_bytes: int, softcap: float | None) -> None:
    torch.manual_seed(0)
    vectors, weight, bias = (
        torch.randn(11, 8, requires_grad=True),
        torch.randn(50, 8),
        torch.randn(50),
    )
    answers, weights = torch.randint(0, 50, (11,)), torch.rand(11)
    scores = vectors @ weight.T + bias
    capped = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    whole = functional.cross_entropy(capped, answers, reduction="none")
    blocks = compute_chunked_cross_entropy(
        vectors, VocabularyProjection(weight, bias, softcap), answers, block_bytes
    )
    torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=1e-6)
    ours, theirs = (
        torch.autograd.grad((each * weights).sum(), vectors)[0] for each in (blocks, whole)
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


def test_a_word_that_was_all_but_impossible_has_a_finite_surprise() -> None:
    vectors = torch.tensor([[1000.0]], requires_grad=True)
    blocks = compute_chunked_cross_entropy(
        vectors, VocabularyProjection(torch.tensor([[1.0], [0.0]])), torch.tensor([1])
    )
    assert blocks.item() == 1000.0
    blocks.sum().backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None and vectors.grad.item() == 1.0


def test_no_token_asked_is_no_loss() -> None:
    vectors = torch.zeros(0, 4, requires_grad=True)
    blocks = compute_chunked_cross_entropy(
        vectors, VocabularyProjection(torch.ones(5, 4)), torch.zeros(0, dtype=torch.long)
    )
    assert blocks.shape == (0,)
    blocks.sum().backward()  # type: ignore[no-untyped-call]


def test_in_bfloat16_it_is_as_near_to_the_truth_as_all_at_once() -> None:
    torch.manual_seed(0)
    rounded, weight = torch.randn(64, 32).bfloat16(), torch.randn(500, 32).bfloat16()
    answers = torch.randint(0, 500, (64,))
    exact, stock, ours = (
        rounded.to(dtype).clone().requires_grad_()
        for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    losses = {
        "exact": functional.cross_entropy(exact @ weight.float().T, answers, reduction="none"),
        "stock": functional.cross_entropy((stock @ weight.T).float(), answers, reduction="none"),
        "ours": compute_chunked_cross_entropy(
            ours, VocabularyProjection(weight), answers, 4 * 500 * 10
        ),
    }
    for each in losses.values():
        each.sum().backward()  # type: ignore[no-untyped-call]
    assert losses["ours"].dtype == torch.float32
    assert (losses["ours"] - losses["stock"]).abs().max() < 1e-5
    assert exact.grad is not None and stock.grad is not None and ours.grad is not None
    reference = exact.grad
    errors = (grad.float() - reference for grad in (ours.grad, stock.grad))
    wrong = [float(error.norm() / reference.norm()) for error in errors]
    assert wrong[0] <= 1.1 * wrong[1] and wrong[1] < 0.02


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning"
)  # peft 0.21 on transformers 5.23
def test_an_adapter_on_the_head_is_not_passed_over() -> None:
    model = model_of("llama").requires_grad_(False)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    )
    assert LanguageModelHead(model).get_projection() is None
    whole, blocks = (
        scored(model, vocabulary)[0] for vocabulary in (None, LanguageModelHead(model))
    )
    torch.testing.assert_close(whole, blocks)
    with adapted.disable_adapter():
        assert not torch.allclose(scored(model, LanguageModelHead(model))[0], blocks)


def test_a_head_that_is_trained_gets_its_gradient() -> None:
    model = model_of("llama", tie_word_embeddings=True).requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert LanguageModelHead(model).get_projection() is None
    scores = compute_batch_likelihoods(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits,
        LabeledBatch(IDS, LABELS),
        MASK,
        LanguageModelHead(model),
    )
    scores.negative_log_likelihood.sum().backward()  # type: ignore[no-untyped-call]
    gradient = model.get_output_embeddings().weight.grad
    assert bool(
        (gradient[50:60] != 0).any()
    )  # words that were neither shown nor asked: through the head alone


def test_the_model_scores_again_afterwards_even_after_an_error() -> None:
    model = model_of("gemma2").requires_grad_(False)
    before = model(IDS).logits
    with pytest.raises(RuntimeError), LanguageModelHead(model).skip_projection():
        assert model(IDS).logits.shape[-1] == SHAPE["hidden_size"]
        raise RuntimeError
    assert torch.equal(model(IDS).logits, before)


def test_a_table_of_all_scores_is_never_made() -> None:
    vectors, weight = torch.randn(400, 8, requires_grad=True), torch.randn(1000, 8)
    answers = torch.randint(0, 1000, (400,))
    with torch.profiler.profile(profile_memory=True) as watched:
        compute_chunked_cross_entropy(
            vectors, VocabularyProjection(weight), answers, 4 * 1000 * 10
        ).sum().backward()  # type: ignore[no-untyped-call]
    assert max(event.cpu_memory_usage for event in watched.events()) <= 4 * 1000 * 10
