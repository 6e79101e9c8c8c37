"""A frozen linear layer and the low-rank updates on it as one function: the input is kept once, and nothing takes a way round through float32.

peft (0.21) brings the whole input of every adapted layer to the adapter's float32 and keeps that copy for the backward pass. Here the masters stay
float32 and are rounded to the layer's precision when they are used; the products are those of the base's precision, which accumulate in float32.

In bfloat16 that means: rounded once are A, ``s B``, ``x A^T``, the base's own product, and then the sum of it and all updates on the same tokens, as
peft rounds it. Gradients of A and B are rounded once a call before they are added up in float32, which peft's are not; so is what goes down through
each adapter. For updates of a few percent of the base's output all this is far below the rounding of the base itself, and outputs and gradients are
about as near to those of float32 as peft's are, which a test holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable
from torch.nn import functional

from clinpeft.core.errors import AdapterError
from clinpeft.models import Float8, Float8Linear, dequantized, weight_of
from clinpeft.runtime.dropout import DRAWS, staying

EVERYTHING = slice(None)
WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their width in bytes."""

FACTORS = 5
"""Where A and B begin among what ``_Fused`` is given."""


@dataclass(frozen=True)
class Part:
    """One low-rank update: ``scaling * drop(x[rows]) A^T B^T`` is added to ``out[rows]`` (Hu et al. 2021, equation 3).

    Attributes:
        a: (rank, in) in any precision; a gradient comes back in the same.
        b: (out, rank).
        scaling: alpha / rank, or what the method makes of it.
        dropout: share of the input's numbers that are dropped, each by itself; 0 where nothing is trained or dropout rests.
        rows: which of the flattened tokens it is for; None: all.
        generator: what dropout is drawn from; None: torch's own of the device.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    dropout: float = 0.0
    rows: slice | None = None
    generator: torch.Generator | None = None


def fused_linear(
    x: torch.Tensor, weight: torch.Tensor | Float8, bias: torch.Tensor | None, parts: Sequence[Part]
) -> torch.Tensor:
    """``x W^T + bias`` and all parts, in the precision of ``weight`` (of autocast, where that is on). Weight and bias get no gradient.

    Args:
        x: (..., in); its leading dimensions are flattened for ``Part.rows``.
        weight: (out, in), frozen; of float8, it is dequantized for each product, and nothing dequantized is kept.
        bias: (out,), frozen.
        parts: whose ``a`` and ``b`` get gradients where they require them.

    Returns:
        (..., out).
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    factors = [factor for part in parts for factor in (part.a, part.b)]
    with torch.autocast(device, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        flat = x.to(dtype).reshape(-1, x.shape[-1])
        kept = (
            (weight.to(dtype), None)
            if isinstance(weight, torch.Tensor)
            else (weight.numbers, weight.scale)
        )
        out = _Fused.apply(flat, *kept, bias, tuple(map(_Plan.of, parts)), *factors)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[1])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Plan:
    """A part without its tensors."""

    rows: slice
    scaling: float
    dropped: int
    generator: torch.Generator | None

    @staticmethod
    def of(part: Part) -> _Plan:
        dropped = min(round(part.dropout * DRAWS), DRAWS - 1)
        return _Plan(
            part.rows or EVERYTHING,
            part.scaling * DRAWS / (DRAWS - dropped),
            dropped,
            part.generator,
        )


class _Fused(torch.autograd.Function):
    """out = x W^T + bias + sum of s_k x_k A_k^T B_k^T. With G the gradient of out and H_k = x_k A_k^T:

    dx = G W + sum of s_k G_k B_k A_k;  dA_k = (s_k G_k B_k)^T x_k;  dB_k = s_k G_k^T H_k;  x_k is what dropout left, and dx_k goes where it left it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        plans: tuple[_Plan, ...],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        out = functional.linear(x, _whole(weight, scale, x.dtype), bias)
        kept: list[torch.Tensor | None] = []
        updates: dict[tuple[int | None, int | None], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for at, plan in enumerate(plans):
            a, b = factors[2 * at].to(x.dtype), (factors[2 * at + 1] * plan.scaling).to(x.dtype)
            stays = _stays(x[plan.rows], plan)
            low = _masked(x[plan.rows], stays) @ a.T  # (rows, rank)
            updates.setdefault((plan.rows.start, plan.rows.stop), []).append((low, b))
            kept += [a, b, stays, low if ctx.needs_input_grad[FACTORS + 1 + 2 * at] else None]
        for (
            (start, stop),
            of_these,
        ) in (
            updates.items()
        ):  # all on the same tokens in one product, so that the sum is rounded once
            lows, ups = zip(*of_these, strict=True)
            out[start:stop].addmm_(_side_by_side(lows), _side_by_side(ups).T)
        ctx.plans = plans
        ctx.save_for_backward(
            weight, scale, x if any(ctx.needs_input_grad[FACTORS::2]) else None, *kept
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale, x, *kept = ctx.saved_tensors
        back = gradient @ _whole(weight, scale, gradient.dtype) if ctx.needs_input_grad[0] else None
        found: list[torch.Tensor | None] = []
        for at, plan in enumerate(ctx.plans):
            a, b, stays, low = kept[4 * at : 4 * at + 4]
            for_a, for_b = ctx.needs_input_grad[FACTORS + 2 * at : FACTORS + 2 + 2 * at]
            above = gradient[plan.rows]
            between = (
                above @ b if for_a or back is not None else None
            )  # (rows, rank); b has the scaling in it
            if back is not None and between is not None:
                _add_product(back[plan.rows], between, a, stays)
            found.append(
                (between.T @ _masked(x[plan.rows], stays)).float()
                if for_a and between is not None
                else None
            )
            found.append((above.T @ low).float().mul_(plan.scaling) if for_b else None)
        return back, None, None, None, None, *found


def _whole(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return weight if scale is None else dequantized(weight, scale, dtype)


def _stays(x: torch.Tensor, plan: _Plan) -> torch.Tensor | None:
    """(rows, in) all bits set where a number stays, none where it is dropped, as whole numbers as wide as those of ``x``, for a logical and."""
    if not plan.dropped:
        return None
    return (
        staying(x.shape, plan.dropped, x.device, plan.generator).to(WHOLE[x.element_size()]).neg_()
    )


def _side_by_side(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)


def _masked(x: torch.Tensor, stays: torch.Tensor | None) -> torch.Tensor:
    return x if stays is None else x.view(stays.dtype).bitwise_and(stays).view(x.dtype)


def _add_product(
    back: torch.Tensor, between: torch.Tensor, a: torch.Tensor, stays: torch.Tensor | None
) -> None:
    """``back += between a``, where nothing was dropped."""
    if stays is None:
        back.addmm_(between, a)
    else:
        back.add_(_masked(between @ a, stays))


# -------------------------------------------------------------------------------------------------------------------------- in peft's layers


@dataclass(frozen=True)
class Route:
    """Which tokens an adapter of a layer is for, and what its dropout is drawn from, as in ``Part``."""

    rows: slice
    generator: torch.Generator | None = None


@dataclass
class Routing:
    """Shared by all layers of a base: adapter (peft's name) -> its tokens, for as long as ``routed`` lasts; empty: peft's active adapters, on all
    tokens. ``tokens`` is how many there are."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    tokens: int = 0

    @contextmanager
    def routed(self, routes: Mapping[str, Route], tokens: int) -> Iterator[None]:
        """Set for as long as the block lasts."""
        before = self.routes, self.tokens
        self.routes, self.tokens = routes, tokens
        try:
            yield
        finally:
            self.routes, self.tokens = before


class FusedLinear(Linear):  # type: ignore[misc]
    """peft's LoRA layer with ``fused_linear`` as its forward pass; weights, names, switching and merging are peft's own."""

    routing: Routing

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """peft's own where it is switched off, merged, asked for several adapters in one batch, or where the base is trained too."""
        base = self.base_layer
        weight, bias = weight_of(base), base.bias
        elsewhere = self.disable_adapters or self.merged or args or kwargs
        if elsewhere or weight.requires_grad or (bias is not None and bias.requires_grad):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        return fused_linear(x, weight, bias, self._parts(x.numel() // x.shape[-1]))

    def _parts(self, tokens: int) -> list[Part]:
        routes = self.routing.routes
        if not routes:
            return [self._part(name, None) for name in self.active_adapters if name in self.lora_A]
        if tokens != self.routing.tokens:
            message = f"{tokens} vectors reach a layer, and the trials' slices are of {self.routing.tokens}"
            raise AdapterError(message, location="routed", hint="adapt layers that see every token")
        return [self._part(name, route) for name, route in routes.items() if name in self.lora_A]

    def _part(self, name: str, route: Route | None) -> Part:
        dropout = self.lora_dropout[name]
        share = dropout.p if dropout.training and isinstance(dropout, torch.nn.Dropout) else 0.0
        rows, generator = (route.rows, route.generator) if route else (None, None)
        return Part(
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
            share,
            rows,
            generator,
        )


def fuse(model: torch.nn.Module, names: Iterable[str]) -> Routing:
    """Every plain LoRA layer of a peft model that carries none but the adapters of these (peft's) names gets ``fused_linear``.

    A layer is plain when its base is ``torch.nn.Linear`` itself, or that in float8, and none of its adapters has a bias, a variant such as DoRA, or
    transposed weights.
    """
    routing, allowed = Routing(), set(names)
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if type(layer) is Linear and allowed.issuperset(layer.lora_A) and _is_plain(layer):
            layer.__class__ = FusedLinear
            layer.routing = routing
    return routing


def _is_plain(layer: Linear) -> bool:
    known = all(
        isinstance(module, torch.nn.Dropout | torch.nn.Identity)
        for module in layer.lora_dropout.values()
    )
    plain = type(layer.base_layer) in (torch.nn.Linear, Float8Linear) and known
    return plain and not (
        layer.lora_variant or any(layer.lora_bias.values()) or layer.fan_in_fan_out
    )
