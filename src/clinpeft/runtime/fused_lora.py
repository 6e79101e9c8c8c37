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
from clinpeft.models import Float8Weight, Float8Linear, dequantize_float8, get_stored_weight
from clinpeft.runtime.dropout import DROPOUT_LEVELS, sample_dropout_mask

ALL_ROWS = slice(None)
INTEGER_DTYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their width in bytes."""

FIRST_FACTOR_ARGUMENT = 5
"""Where A and B begin among what ``_Fused`` is given."""


@dataclass(frozen=True)
class LowRankUpdate:
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


def compute_fused_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Float8Weight,
    bias: torch.Tensor | None,
    updates: Sequence[LowRankUpdate],
) -> torch.Tensor:
    """``x W^T + bias`` and all parts, in the precision of ``weight`` (of autocast, where that is on). Weight and bias get no gradient.

    Args:
        x: (..., in); its leading dimensions are flattened for ``Part.rows``.
        weight: (out, in), frozen; of float8, it is dequantized for each product, and nothing dequantized is kept.
        bias: (out,), frozen.
        updates: whose ``a`` and ``b`` get gradients where they require them.

    Returns:
        (..., out).
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    factors = [factor for part in updates for factor in (part.a, part.b)]
    with torch.autocast(device, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        flat = x.to(dtype).reshape(-1, x.shape[-1])
        kept = (
            (weight.to(dtype), None)
            if isinstance(weight, torch.Tensor)
            else (weight.numbers, weight.scale)
        )
        out = _FusedLinearFunction.apply(
            flat, *kept, bias, tuple(map(_UpdatePlan.from_update, updates)), *factors
        )  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[1])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _UpdatePlan:
    """A part without its tensors."""

    rows: slice
    scaling: float
    drop_threshold: int
    generator: torch.Generator | None

    @staticmethod
    def from_update(update: LowRankUpdate) -> _UpdatePlan:
        dropped = min(round(update.dropout * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)
        return _UpdatePlan(
            update.rows or ALL_ROWS,
            update.scaling * DROPOUT_LEVELS / (DROPOUT_LEVELS - dropped),
            dropped,
            update.generator,
        )


class _FusedLinearFunction(torch.autograd.Function):
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
        plans: tuple[_UpdatePlan, ...],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        out = functional.linear(x, _dequantize_weight(weight, scale, x.dtype), bias)
        kept: list[torch.Tensor | None] = []
        updates: dict[tuple[int | None, int | None], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for at, plan in enumerate(plans):
            a, b = factors[2 * at].to(x.dtype), (factors[2 * at + 1] * plan.scaling).to(x.dtype)
            stays = _sample_keep_mask(x[plan.rows], plan)
            low = _apply_keep_mask(x[plan.rows], stays) @ a.T  # (rows, rank)
            updates.setdefault((plan.rows.start, plan.rows.stop), []).append((low, b))
            kept += [
                a,
                b,
                stays,
                low if ctx.needs_input_grad[FIRST_FACTOR_ARGUMENT + 1 + 2 * at] else None,
            ]
        for (
            (start, stop),
            of_these,
        ) in (
            updates.items()
        ):  # all on the same tokens in one product, so that the sum is rounded once
            lows, ups = zip(*of_these, strict=True)
            out[start:stop].addmm_(_concatenate_columns(lows), _concatenate_columns(ups).T)
        ctx.plans = plans
        ctx.save_for_backward(
            weight, scale, x if any(ctx.needs_input_grad[FIRST_FACTOR_ARGUMENT::2]) else None, *kept
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale, x, *kept = ctx.saved_tensors
        back = (
            gradient @ _dequantize_weight(weight, scale, gradient.dtype)
            if ctx.needs_input_grad[0]
            else None
        )
        found: list[torch.Tensor | None] = []
        for at, plan in enumerate(ctx.plans):
            a, b, stays, low = kept[4 * at : 4 * at + 4]
            for_a, for_b = ctx.needs_input_grad[
                FIRST_FACTOR_ARGUMENT + 2 * at : FIRST_FACTOR_ARGUMENT + 2 + 2 * at
            ]
            above = gradient[plan.rows]
            between = (
                above @ b if for_a or back is not None else None
            )  # (rows, rank); b has the scaling in it
            if back is not None and between is not None:
                _add_masked_product(back[plan.rows], between, a, stays)
            found.append(
                (between.T @ _apply_keep_mask(x[plan.rows], stays)).float()
                if for_a and between is not None
                else None
            )
            found.append((above.T @ low).float().mul_(plan.scaling) if for_b else None)
        return back, None, None, None, None, *found


def _dequantize_weight(
    weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return weight if scale is None else dequantize_float8(weight, scale, dtype)


def _sample_keep_mask(x: torch.Tensor, plan: _UpdatePlan) -> torch.Tensor | None:
    """(rows, in) all bits set where a number stays, none where it is dropped, as whole numbers as wide as those of ``x``, for a logical and."""
    if not plan.drop_threshold:
        return None
    return (
        sample_dropout_mask(x.shape, plan.drop_threshold, x.device, plan.generator)
        .to(INTEGER_DTYPES[x.element_size()])
        .neg_()
    )


def _concatenate_columns(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)


def _apply_keep_mask(x: torch.Tensor, keep_mask: torch.Tensor | None) -> torch.Tensor:
    return x if keep_mask is None else x.view(keep_mask.dtype).bitwise_and(keep_mask).view(x.dtype)


def _add_masked_product(
    input_gradient: torch.Tensor,
    low_rank_gradient: torch.Tensor,
    a: torch.Tensor,
    keep_mask: torch.Tensor | None,
) -> None:
    """``back += between a``, where nothing was dropped."""
    if keep_mask is None:
        input_gradient.addmm_(low_rank_gradient, a)
    else:
        input_gradient.add_(_apply_keep_mask(low_rank_gradient @ a, keep_mask))


# -------------------------------------------------------------------------------------------------------------------------- in peft's layers


@dataclass(frozen=True)
class TokenRoute:
    """Which tokens an adapter of a layer is for, and what its dropout is drawn from, as in ``Part``."""

    rows: slice
    generator: torch.Generator | None = None


@dataclass
class TokenRouting:
    """Shared by all layers of a base: adapter (peft's name) -> its tokens, for as long as ``route_tokens`` lasts; empty: peft's active adapters, on all
    tokens. ``token_count`` is how many there are."""

    routes: Mapping[str, TokenRoute] = field(default_factory=dict)
    token_count: int = 0

    @contextmanager
    def route_tokens(self, routes: Mapping[str, TokenRoute], token_count: int) -> Iterator[None]:
        """Set for as long as the block lasts."""
        before = self.routes, self.token_count
        self.routes, self.token_count = routes, token_count
        try:
            yield
        finally:
            self.routes, self.token_count = before


class FusedLoraLinear(Linear):  # type: ignore[misc]
    """peft's LoRA layer with ``fused_linear`` as its forward pass; weights, names, switching and merging are peft's own."""

    routing: TokenRouting

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """peft's own where it is switched off, merged, asked for several adapters in one batch, or where the base is trained too."""
        base = self.base_layer
        weight, bias = get_stored_weight(base), base.bias
        elsewhere = self.disable_adapters or self.merged or args or kwargs
        if elsewhere or weight.requires_grad or (bias is not None and bias.requires_grad):
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        return compute_fused_linear(
            x, weight, bias, self._collect_updates(x.numel() // x.shape[-1])
        )

    def _collect_updates(self, token_count: int) -> list[LowRankUpdate]:
        routes = self.routing.routes
        if not routes:
            return [
                self._create_update(name, None)
                for name in self.active_adapters
                if name in self.lora_A
            ]
        if token_count != self.routing.token_count:
            message = f"{token_count} vectors reach a layer, and the trials' slices are of {self.routing.token_count}"
            raise AdapterError(message, location="routed", hint="adapt layers that see every token")
        return [
            self._create_update(name, route)
            for name, route in routes.items()
            if name in self.lora_A
        ]

    def _create_update(self, adapter_name: str, route: TokenRoute | None) -> LowRankUpdate:
        dropout = self.lora_dropout[adapter_name]
        share = dropout.p if dropout.training and isinstance(dropout, torch.nn.Dropout) else 0.0
        rows, generator = (route.rows, route.generator) if route else (None, None)
        return LowRankUpdate(
            self.lora_A[adapter_name].weight,
            self.lora_B[adapter_name].weight,
            self.scaling[adapter_name],
            share,
            rows,
            generator,
        )


def fuse_lora_layers(model: torch.nn.Module, adapter_names: Iterable[str]) -> TokenRouting:
    """Every plain LoRA layer of a peft model that carries none but the adapters of these (peft's) names gets ``fused_linear``.

    A layer is plain when its base is ``torch.nn.Linear`` itself, or that in float8, and none of its adapters has a bias, a variant such as DoRA, or
    transposed weights.
    """
    routing, allowed = TokenRouting(), set(adapter_names)
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if type(layer) is Linear and allowed.issuperset(layer.lora_A) and _is_fusible(layer):
            layer.__class__ = FusedLoraLinear
            layer.routing = routing
    return routing


def _is_fusible(layer: Linear) -> bool:
    known = all(
        isinstance(module, torch.nn.Dropout | torch.nn.Identity)
        for module in layer.lora_dropout.values()
    )
    plain = type(layer.base_layer) in (torch.nn.Linear, Float8Linear) and known
    return plain and not (
        layer.lora_variant or any(layer.lora_bias.values()) or layer.fan_in_fan_out
    )
