"""Frozen linear layers in eight bits a weight: float8 numbers and one scale an output row, which become the base's precision for each product.

A number has four bits of exponent and three of mantissa (e4m3, Micikevicius et al. 2022, arXiv 2209.05433), so that a weight is off by at most a
sixteenth of itself, or less than a thousandth of a scale where it is far smaller than the largest of its row. Nothing dequantized outlives a product:
the backward pass makes the weight again from what is kept anyway. Bias, norms, embeddings and heads stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max
"""448: what the largest weight of a row becomes."""


@dataclass(frozen=True)
class Float8Weight:
    """A frozen weight: row r is ``numbers[r] * scale[r]``.

    Attributes:
        numbers: (out, in) float8_e4m3fn.
        scale: (out, 1) float32.
        dtype: what it is multiplied in.
        requires_grad: never; as a tensor says it.
    """

    numbers: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype
    requires_grad: ClassVar[bool] = False

    @staticmethod
    def from_weight(weight: torch.Tensor) -> Float8Weight:
        """The nearest to a weight (out, in), rounded to the nearest number; a row without any weight but 0 stays so."""
        exact = weight.detach().float()
        scale = (exact.abs().amax(dim=1, keepdim=True) / FLOAT8_MAX).clamp_min(
            torch.finfo(torch.float32).tiny
        )
        return Float8Weight(
            (exact / scale).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn),
            scale,
            weight.dtype,
        )


def dequantize_float8(
    numbers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(out, in) in ``dtype``: the numbers fit into it, and their product with the float32 scale is rounded once."""
    return numbers.to(dtype).mul_(scale)


class Float8Linear(torch.nn.Linear):
    """A frozen linear layer whose weight is float8; ``weight`` is made anew whenever somebody asks for it, and a change to that is lost."""

    numbers: torch.nn.Parameter
    scale: torch.Tensor
    precision: torch.dtype

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """(out, in) in the base's precision: what peft looks at for its type and shape."""
        return dequantize_float8(self.numbers, self.scale, self.precision)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the base's precision or that of autocast."""
        device = x.device.type
        dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else self.precision
        )
        with torch.autocast(device, enabled=False):
            bias = None if self.bias is None else self.bias.to(dtype)
            return _Float8LinearFunction.apply(x.to(dtype), bias, self.numbers, self.scale)  # type: ignore[no-any-return, no-untyped-call]


class _Float8LinearFunction(torch.autograd.Function):
    """out = x W^T + bias, and dx = G W for the gradient G of out; weight and bias get none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        numbers: torch.Tensor,
        scale: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(numbers, scale)
        return functional.linear(x, dequantize_float8(numbers, scale, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        numbers, scale = ctx.saved_tensors
        return (
            gradient @ dequantize_float8(numbers, scale, gradient.dtype)
            if ctx.needs_input_grad[0]
            else None,
            None,
            None,
            None,
        )


def get_stored_weight(linear: Any) -> torch.Tensor | Float8Weight:
    """What a linear layer multiplies with, as it is kept."""
    return (
        Float8Weight(linear.numbers, linear.scale, linear.precision)
        if isinstance(linear, Float8Linear)
        else linear.weight
    )


def iterate_linear_layers(
    model: torch.nn.Module, targets: Sequence[str]
) -> Iterator[torch.nn.Linear]:
    """The plain linear layers of a model whose names end with one of ``targets``."""
    suffixes = tuple(f".{target}" for target in targets)
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and name.endswith(suffixes):
            yield module


def quantize_linear_layers(model: torch.nn.Module, targets: Sequence[str]) -> None:
    """Every plain linear layer whose name ends with one of ``targets`` becomes ``Float8Linear`` in its place; one after another, so that no second
    copy of the model is there at any time."""
    for linear in iterate_linear_layers(model, targets):
        _quantize_layer(linear)


def _quantize_layer(linear: Any) -> None:
    weight = Float8Weight.from_weight(linear.weight)
    del linear.weight
    linear.__class__ = Float8Linear
    linear.numbers = torch.nn.Parameter(
        weight.numbers, requires_grad=False
    )  # a parameter, so that it is counted, hashed and moved as one
    linear.register_buffer("scale", weight.scale)
    linear.precision = weight.dtype
