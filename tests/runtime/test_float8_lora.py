"""LoRA on a base in float8: peft's gradients over the dequantized weights, a standard folder, and a
clear no where weights would change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack, TrialAdapters
from clinpeft.core.errors import RefusedError
from clinpeft.models import Float8Linear, Float8Weight, dequantize_float8
from clinpeft.runtime.fused_lora import FusedLoraLinear, LowRankUpdate, compute_fused_linear
from tests.adapters.toys import (
    answers,
    copy_trained_state,
    earlier,
    finished,
    load,
    load_trained_state,
    shake,
    spec,
)
from tests.runtime.test_fused_lora import EVERY_LINEAR, distance, keeping, layers_of, learned, stock


@pytest.fixture(scope="module")
def llama(toy_llama: Callable[..., Path]) -> Path:
    return toy_llama()


def quantized(folder: Path, precision: str = "float32") -> models.FrozenBaseModel:
    base = load(folder, precision)
    models.quantize_base_model(base)
    return base


def plain(folder: Path, precision: str = "float32") -> models.FrozenBaseModel:
    """The same weights, dequantized, in plain layers."""
    base = load(folder, precision)
    for name, module in quantized(folder, precision).model.named_modules():
        if isinstance(module, Float8Linear):
            with torch.no_grad():
                base.model.get_submodule(name).weight.copy_(module.weight)
    return base


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_gradients_are_those_of_pefts_layer_over_the_dequantized_weights(
    method: str, dropout: float, llama: Path
) -> None:
    wanted = [spec(method, rank=4, dropout=dropout, targets=EVERY_LINEAR)]
    ours, theirs = (
        adapters.attach_adapters(base, wanted, seed=3) for base in (quantized(llama), plain(llama))
    )
    for stack in (ours, theirs):
        shake(stack)
        stack.train()
    assert (
        all(
            type(layer) is FusedLoraLinear and type(layer.base_layer) is Float8Linear
            for layer in layers_of(ours)
        )
        and len(layers_of(ours)) == 14
    )
    found, gradients = learned(ours)
    with stock(theirs):
        truth, their_gradients = learned(theirs)
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=1e-6)
    assert distance(gradients, their_gradients) < 5e-6
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    unquantized, _ = learned(_shaken(adapters.attach_adapters(load(llama), wanted, seed=3)))
    assert float((unquantized - truth).abs().max()) > 1e-3  # or the comparison would show nothing


def _shaken(stack: Stack) -> Stack:
    shake(stack)
    stack.train()
    return stack


def test_in_bfloat16_it_is_the_fused_layer_over_the_dequantized_weights_to_the_bit(
    llama: Path,
) -> None:
    found = [
        learned(
            _shaken(
                adapters.attach_adapters(
                    base(llama, "bfloat16"), [spec("lora", targets=EVERY_LINEAR)]
                )
            )
        )
        for base in (quantized, plain)
    ]
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], gradient) for name, gradient in found[1][1].items())


def test_one_function_of_float8_is_that_of_its_weights() -> None:
    torch.manual_seed(0)
    x, factors = (
        torch.randn(7, 6, requires_grad=True),
        [torch.randn(2, 6, requires_grad=True), torch.randn(4, 2, requires_grad=True)],
    )
    weight, bias = Float8Weight.from_weight(torch.randn(4, 6)), torch.randn(4)
    found = []
    for each in (weight, dequantize_float8(weight.numbers, weight.scale, torch.float32)):
        out = compute_fused_linear(x, each, bias, [LowRankUpdate(factors[0], factors[1], 0.5)])
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x, *factors])])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_an_adapted_layer_keeps_the_float8_numbers_and_no_weight_beside_them(llama: Path) -> None:
    stack = adapters.attach_adapters(quantized(llama), [spec("lora")])
    kept: list[torch.Tensor] = []
    with keeping(kept):
        stack.base.model.model.layers[0].mlp.up_proj(torch.randn(1, 5, 32, requires_grad=True))
        stack.base.model.model.layers[0].self_attn.q_proj(torch.randn(1, 5, 32, requires_grad=True))
    assert [tensor.dtype for tensor in kept if tensor.shape in ((64, 32), (32, 32))] == [
        torch.float8_e4m3fn
    ] * 2


def test_first_weights_are_those_on_any_base_and_not_rounded_to_eight_bits(llama: Path) -> None:
    first, second = (
        copy_trained_state(adapters.attach_adapters(base, [spec("lora")], seed=5))
        for base in (quantized(llama), load(llama))
    )
    assert (
        all(torch.equal(first[name], tensor) for name, tensor in second.items())
        and first.keys() == second.keys()
    )


def test_counts_are_those_of_the_base_as_it_comes(llama: Path) -> None:
    assert (
        adapters.attach_adapters(quantized(llama), [spec("lora")]).counts
        == adapters.attach_adapters(load(llama), [spec("lora")]).counts
    )


def test_switched_off_it_is_the_quantized_base(llama: Path) -> None:
    stack = adapters.attach_adapters(quantized(llama), [spec("lora", targets=EVERY_LINEAR)])
    shake(stack)
    with stack.disable_adapters():
        bare = answers(stack)
    assert torch.equal(bare, answers(adapters.attach_adapters(quantized(llama), ())))
    assert not torch.allclose(bare, answers(stack))


def test_an_adapter_is_saved_and_loaded_as_on_any_base(llama: Path, tmp_path: Path) -> None:
    stack = adapters.attach_adapters(quantized(llama), [spec("lora")])
    shake(stack)
    adapters.save_adapter(stack, tmp_path / "adapter")
    assert torch.equal(
        answers(adapters.load_adapter(quantized(llama), tmp_path / "adapter")), answers(stack)
    )
    assert torch.allclose(
        answers(adapters.load_adapter(load(llama), tmp_path / "adapter")), answers(stack), atol=0.2
    )


def test_recomputed_the_gradients_are_the_same(llama: Path) -> None:
    kept, again = (
        _shaken(adapters.attach_adapters(quantized(llama), [spec("lora", dropout=0.2)]))
        for _ in range(2)
    )
    adapters.enable_activation_checkpointing(again, "asked for")
    found, truth = learned(again), learned(kept)
    assert torch.equal(found[0], truth[0]) and distance(found[1], truth[1]) == 0.0


def test_trials_share_it(llama: Path) -> None:
    joint = adapters.attach_stacks(
        quantized(llama),
        [TrialAdapters([spec("lora", rank=2)], 1), TrialAdapters([spec("lora", rank=4)], 2)],
    )
    with joint.isolate_stack(1) as stack:
        shake(stack)
        alone = adapters.attach_adapters(quantized(llama), [spec("lora", rank=4)], seed=2)
        load_trained_state(alone, copy_trained_state(stack))
        assert torch.equal(answers(stack), answers(alone))


def _merge_first(base: models.FrozenBaseModel, tmp_path: Path, llama: Path) -> Any:
    folder = finished(llama, "lora", tmp_path / "clinical")
    return adapters.attach_adapters(
        base, [earlier("lora", merged=True), spec("lora")], folders={"clinical": folder}
    )


def _merge_all(base: models.FrozenBaseModel, tmp_path: Path, llama: Path) -> Any:
    return adapters.attach_adapters(base, [spec("lora")]).create_merged_model()


def _train_all(base: models.FrozenBaseModel, tmp_path: Path, llama: Path) -> Any:
    return adapters.attach_adapters(base, (), base_trainable=True)


@pytest.mark.parametrize("asked", [_merge_first, _merge_all, _train_all])
def test_what_would_change_its_weights_is_refused(
    asked: Callable[..., Any], llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match="float8") as caught:
        asked(quantized(llama), tmp_path, llama)
    assert caught.value.location == "base.quantization" and '"none"' in caught.value.hint
    asked(load(llama), tmp_path, llama)
