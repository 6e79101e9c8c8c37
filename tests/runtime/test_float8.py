"""A base in float8: what a weight becomes, worked out by hand, and every family and method on it
against the same weights in full."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clinpeft import adapters, models
from clinpeft.models import Float8Linear, Float8Weight
from clinpeft.recipe import PretrainedModelSpec
from clinpeft.runtime import float8
from tests.models.test_families import POSSIBLE, ROWS, base_of, folder_of, padded, shaken, spec_of

CPU = torch.device("cpu")
EXACT = torch.tensor(
    [
        [448.0, -224.0, 1.0, 0.3],
        [896.0, 3.0, -0.6, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [3.5, 2**-10, 1e-5, -3.5],
    ]
)
"""Scales 1, 2, any and 2^-7. Near 0.3 lie 0.28125 and 0.3125; 2^-10 is 2^-3 scales; 1e-5 is 0.66 of
the smallest step, 2^-9 scales."""
ROUNDED = torch.tensor(
    [
        [448.0, -224.0, 1.0, 0.3125],
        [896.0, 3.0, -0.625, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [3.5, 2**-10, 2**-16, -3.5],
    ]
)


@pytest.fixture(scope="module")
def folders(
    toy_llama: Callable[..., Path], toy_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root, llama = tmp_path_factory.mktemp("families"), toy_llama()
    tokenizers = {"causal-lm": llama, "masked-lm": toy_bert}
    return {
        name: folder_of(name, tokenizers[family.objective], root / name)
        for name, family in models.MODEL_FAMILIES.items()
    }


def in_float8(linear: torch.nn.Linear) -> torch.nn.Module:
    """A copy of a layer, quantized."""
    inside = torch.nn.ModuleDict(
        {"layer": torch.nn.ModuleDict({"proj": copy.deepcopy(linear).requires_grad_(False)})}
    )
    float8.quantize_linear_layers(inside, ("proj",))
    found = inside.get_submodule("layer.proj")
    assert type(found) is Float8Linear
    return found


def dequantized(layer: torch.nn.Module) -> torch.nn.Linear:
    """The same function as a plain layer."""
    assert isinstance(layer, Float8Linear)
    plain = torch.nn.Linear(
        layer.in_features, layer.out_features, layer.bias is not None, dtype=layer.precision
    ).requires_grad_(False)
    plain.weight.copy_(layer.weight)
    if layer.bias is not None:
        plain.bias.copy_(layer.bias)
    return plain


def drawn(precision: torch.dtype, bias: bool = True) -> torch.nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(48, 24, bias).to(precision)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_weight_becomes_the_nearest_number_times_the_scale_of_its_row(
    precision: torch.dtype,
) -> None:
    plain = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        plain.weight.copy_(EXACT)
    layer: Any = in_float8(plain)
    assert layer.scale[[0, 1, 3]].flatten().tolist() == [1.0, 2.0, 2**-7]
    assert layer.numbers.dtype == torch.float8_e4m3fn and layer.numbers[0].float().tolist() == [
        448.0,
        -224.0,
        1.0,
        0.3125,
    ]
    assert torch.equal(
        models.dequantize_float8(layer.numbers, layer.scale, precision), ROUNDED.to(precision)
    )


def test_no_weight_is_off_by_more_than_the_format_allows() -> None:
    weight = drawn(torch.float32).weight.detach()
    found = Float8Weight.from_weight(weight)
    apart = (models.dequantize_float8(found.numbers, found.scale, torch.float32) - weight).abs()
    allowed = torch.maximum(weight.abs() / 16, found.scale / 1024)
    assert bool((apart <= 1.0001 * allowed).all()) and bool((apart > allowed / 2).any())


def test_a_weight_that_is_no_number_stays_none() -> None:
    weight = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    found = Float8Weight.from_weight(weight)
    assert models.dequantize_float8(found.numbers, found.scale, torch.float32).isnan().tolist()[
        0
    ] == [
        True,
        True,
    ]
    assert found.numbers[1].float().tolist() == [224.0, 448.0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_a_plain_layer_with_the_dequantized_weights(
    precision: torch.dtype, bias: bool
) -> None:
    layer = in_float8(drawn(precision, bias))
    plain = dequantized(layer)
    assert not torch.equal(plain.weight, drawn(precision, bias).weight)
    found = []
    for each in (layer, plain):
        x = (
            torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
            .to(precision)
            .requires_grad_()
        )
        out = each(x)
        found.append((out.detach(), *torch.autograd.grad(out.float().square().sum(), x)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][0].dtype == precision and float(found[0][1].abs().sum()) > 0


def test_a_layer_computes_in_the_precision_of_autocast() -> None:
    layer = in_float8(drawn(torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 48)).dtype == torch.bfloat16


def test_nothing_dequantized_is_kept_for_the_way_back() -> None:
    layer = in_float8(drawn(torch.float32))
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(3, 48, requires_grad=True))
    assert {(tensor.dtype, tuple(tensor.shape)) for tensor in kept} == {
        (torch.float8_e4m3fn, (24, 48)),
        (torch.float32, (24, 1)),
    }


def bytes_of(module: Any) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in (*module.parameters(), *module.buffers())
    )


@pytest.mark.parametrize(("precision", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_layer_takes_a_byte_a_weight_and_a_scale_a_row(precision: torch.dtype, size: int) -> None:
    plain = drawn(precision, bias=False)
    assert bytes_of(plain) == 24 * 48 * size
    assert bytes_of(in_float8(plain)) == 24 * 48 + 24 * 4


@pytest.mark.parametrize("family", models.MODEL_FAMILIES)
def test_all_linear_layers_inside_the_blocks_are_quantized_and_nothing_else(
    family: str, folders: dict[str, Path]
) -> None:
    plain = base_of(folders[family])
    quantized = models.load_base_model(
        PretrainedModelSpec(
            path=folders[family], precision="float32", quantization="float8", max_tokens=32
        ),
        CPU,
    )
    linears = {
        name: module
        for name, module in plain.backbone.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    inside = {
        name: module
        for name, module in linears.items()
        if re.match(r"(encoder\.)?layers?\.\d+\.", name)
    }
    found = {
        name
        for name, module in quantized.backbone.named_modules()
        if isinstance(module, Float8Linear)
    }
    assert found == set(inside) and found
    assert sum(p.numel() for p in quantized.model.parameters()) == sum(
        p.numel() for p in plain.model.parameters()
    )
    weights = sum(module.in_features * module.out_features for module in inside.values())
    rows = sum(module.out_features for module in inside.values())
    assert bytes_of(plain.model) - bytes_of(quantized.model) == 3 * weights - 4 * rows
    assert (
        quantized.quantization == "float8"
        and plain.quantization == "none"
        and quantized.sha256 == plain.sha256
    )


def twins(folder: Path, precision: str) -> tuple[models.FrozenBaseModel, models.FrozenBaseModel]:
    """A base in float8, and one of plain layers with the same dequantized weights."""
    quantized, plain = base_of(folder, precision), base_of(folder, precision)
    models.quantize_base_model(quantized)
    for name, module in quantized.backbone.named_modules():
        if isinstance(module, Float8Linear):
            with torch.no_grad():
                plain.backbone.get_submodule(name).weight.copy_(module.weight)
    return quantized, plain


@pytest.mark.parametrize(("family", "method"), POSSIBLE)
def test_every_method_learns_on_it_what_it_learns_on_the_dequantized_weights(
    family: str, method: str, folders: dict[str, Path]
) -> None:
    ids, mask = padded(ROWS, "right")
    found = []
    for base in twins(folders[family], "float32"):
        stack = shaken(adapters.attach_adapters(base, [spec_of(method)]))
        assert all(
            parameter.dtype == torch.float32 for parameter in stack.trained_parameters.values()
        )
        logits = adapters.compute_token_logits(stack, ids, mask)
        logits.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append(
            (
                stack.counts,
                logits.detach(),
                {name: parameter.grad for name, parameter in stack.trained_parameters.items()},
            )
        )
    (counts, logits, gradients), (plain_counts, plain_logits, plain_gradients) = found
    assert counts == plain_counts and gradients.keys() == plain_gradients.keys()
    torch.testing.assert_close(logits, plain_logits, atol=1e-6, rtol=1e-6)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", adapters.ADAPTER_METHODS)
def test_in_bfloat16_too(method: str, folders: dict[str, Path]) -> None:
    ids, mask = padded(ROWS, "right")
    stacks = [
        shaken(adapters.attach_adapters(base, [spec_of(method)]))
        for base in twins(folders["llama"], "bfloat16")
    ]
    with torch.no_grad():
        first, second = (
            adapters.compute_token_logits(stack, ids, mask)[mask == 1].float() for stack in stacks
        )
    torch.testing.assert_close(first, second, atol=2e-2, rtol=2e-2)
    assert all(
        parameter.dtype == torch.float32
        for stack in stacks
        for parameter in stack.trained_parameters.values()
    )
