"""Attention of a processor as plain matrix products, its weights kept for the backward pass.

PyTorch's fused product on a CPU takes, with its backward, 1.3 to 2 times as long as this in bfloat16, and three times as long where weights are
dropped out, which it leaves to another way that keeps several tables in float32. Here the weights of a document are kept once, in the precision of
the base, and no score above the diagonal is made but in the blocks that hold it. That is length times length numbers a head, and of longer documents
the fused product is as fast, so that only those up to ``LONGEST`` tokens go this way.

In bfloat16, scores are rounded to it before the softmax and weights after it, as transformers' own "eager" attention does; sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clinpeft.runtime.dropout import DROPOUT_LEVELS, sample_dropout_mask

MAX_CPU_ATTENTION_TOKENS = 1024
"""Tokens of a document: up to here the weights kept are at most as large as what a layer's other products keep."""

QUERY_BLOCK_TOKENS = 256
"""Queries at a time, whose weights stay near the processor: of a causal document of 1,024 tokens five eighths of the scores are made."""

MAX_WEIGHTS_PER_CALL = 2 << 20
"""Weights of a block, of all documents that are multiplied at once: more of them, and softmax reads and writes them from afar."""

MIN_INFERENCE_WEIGHTS = 1 << 19
"""Weights of one call, from which on this is the faster way where none are kept: of fewer, what oneDNN does before it multiplies is not won back."""


def choose_chunk_size(num_heads: int, length_tokens: int) -> int:
    """How many documents of a length are best multiplied in one call: many short ones, of long ones each alone."""
    return max(
        1,
        MAX_WEIGHTS_PER_CALL
        // (num_heads * min(length_tokens, QUERY_BLOCK_TOKENS) * length_tokens),
    )


def is_cpu_attention_faster(query: torch.Tensor, dropout: float) -> bool:
    """Whether ``attention`` is the faster way for (documents, heads, length, width of a head) of a CPU.

    Where no graph can follow (inference mode) the fused product is as fast, but for many long documents. Without a graph that might follow the way is
    the same as with one, so that a text that is read twice, as gradient caching does, is read alike.
    """
    documents, heads, length, _ = query.shape
    if (
        query.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or length > MAX_CPU_ATTENTION_TOKENS
    ):
        return False
    if torch.is_inference_mode_enabled():
        return (
            query.dtype == torch.bfloat16
            and documents * heads * length * length >= MIN_INFERENCE_WEIGHTS
        )
    return query.dtype == torch.bfloat16 or dropout > 0.0


def compute_cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    causal: bool,
    dropout: float,
) -> torch.Tensor:
    """softmax(scaling * Q K^T) V of documents of one length.

    Args:
        query: (documents, heads, length, width of a head).
        key: (documents, heads of keys, length, width of a head); heads of queries are a multiple of those of keys.
        value: likewise.
        scaling: of the scores; None: one over the root of the head's width.
        causal: a token sees none after it.
        dropout: share of the weights that is left out, drawn from torch's own generator.

    Returns:
        As ``query``.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _CpuAttentionFunction.apply(
        query, key, value, scale, causal, min(round(dropout * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)
    )  # type: ignore[no-any-return, no-untyped-call]


class _CpuAttentionFunction(torch.autograd.Function):
    """With P the weights, D what dropout leaves of them (scaled), G the gradient of O = D V, and o the product number by number:

    dV = D^T G;  dD = G V^T;  dP = dD where it was left;  dS = P o (dP - rowsum(P o dP));  dQ = s dS K;  dK = s dS^T Q.

    P is never negative, so a weight that was dropped is kept with its sign turned: one table says both.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        causal: bool,
        drop_threshold: int,
    ) -> torch.Tensor:
        queries, keys, values = (
            _group_query_heads(query * scale, key.shape[1]),
            _merge_heads(key),
            _merge_heads(value),
        )
        out = query.new_empty(query.shape[0], query.shape[2], *query.shape[1::2]).transpose(1, 2)
        kept = []
        for first, last, seen in _iterate_query_blocks(query.shape[2], causal):
            weights = _compute_attention_weights(
                queries[:, :, first:last], keys[:, :seen], first if causal else None
            )
            if drop_threshold:
                weights = _mark_dropped_weights(weights, drop_threshold)
            _copy_attention_output(
                out[:, :, first:last], _apply_dropout(weights, drop_threshold) @ values[:, :seen]
            )
            kept.append(weights)
        ctx.shape, ctx.scale, ctx.causal, ctx.dropped = query.shape, scale, causal, drop_threshold
        ctx.save_for_backward(queries, keys, values, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        for_query, for_key, for_value = ctx.needs_input_grad[:3]
        documents, heads, length, width = ctx.shape
        above = _group_query_heads(gradient, keys.shape[0] // documents)
        back = gradient.new_empty(documents, length, heads, width).transpose(1, 2)
        sums = (
            torch.float32 if len(kept) > 1 and gradient.dtype == torch.bfloat16 else gradient.dtype
        )
        for_keys, for_values = (
            torch.zeros_like(keys, dtype=sums),
            torch.zeros_like(values, dtype=sums),
        )
        for weights, (first, last, seen) in zip(
            kept, _iterate_query_blocks(length, ctx.causal), strict=True
        ):
            some = above[:, :, first:last].reshape(len(keys), -1, width)
            if for_value:
                for_values[:, :seen] += _apply_dropout(weights, ctx.dropped).transpose(1, 2) @ some
            if for_query or for_key:
                slopes = _compute_score_gradient(
                    some @ values[:, :seen].transpose(1, 2), weights, ctx.dropped
                )
                _copy_attention_output(back[:, :, first:last], slopes @ keys[:, :seen])
                for_keys[:, :seen] += slopes.transpose(1, 2) @ queries[:, :, first:last].reshape(
                    len(keys), -1, width
                )
        as_keys = (documents, -1, length, width)
        return (
            back.mul_(ctx.scale) if for_query else None,
            for_keys.to(keys.dtype).view(as_keys) if for_key else None,
            for_values.to(values.dtype).view(as_keys) if for_value else None,
            None,
            None,
            None,
        )


def _iterate_query_blocks(length: int, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(first query, the one after the last, how many keys they see)."""
    for first in range(0, length, QUERY_BLOCK_TOKENS):
        last = min(first + QUERY_BLOCK_TOKENS, length)
        yield first, last, last if causal else length


def _merge_heads(states: torch.Tensor) -> torch.Tensor:
    """(documents, heads, length, width) -> (documents * heads, length, width)."""
    return states.reshape(-1, *states.shape[2:])


def _group_query_heads(states: torch.Tensor, num_key_heads: int) -> torch.Tensor:
    """(documents, heads of queries, length, width) -> (documents * heads of keys, heads that share them, length, width)."""
    return states.reshape(len(states) * num_key_heads, -1, *states.shape[2:])


def _compute_attention_weights(
    queries: torch.Tensor, keys: torch.Tensor, diagonal_start: int | None
) -> torch.Tensor:
    """(n, sharing heads * queries, keys) the softmax of the scores; ``diagonal_start``: the place of the first query among the keys."""
    scores = queries.reshape(len(keys), -1, keys.shape[-1]) @ keys.transpose(1, 2)
    if diagonal_start is not None:
        asked = queries.shape[2]
        scores.view(*queries.shape[:3], -1)[..., diagonal_start:].masked_fill_(
            _get_future_mask(keys.device)[:asked, :asked], -torch.inf
        )
    return torch.softmax(scores, dim=-1)


@cache
def _get_future_mask(device: torch.device) -> torch.Tensor:
    """(queries, keys) of a block on the diagonal: keys that come after the query."""
    return torch.ones(
        QUERY_BLOCK_TOKENS, QUERY_BLOCK_TOKENS, dtype=torch.bool, device=device
    ).triu_(1)


def _copy_attention_output(target: torch.Tensor, product: torch.Tensor) -> None:
    """Into (documents, heads of queries, queries, width) what is (documents * heads of keys, sharing heads * queries, width)."""
    target.copy_(product.view(target.shape))


def _mark_dropped_weights(weights: torch.Tensor, drop_threshold: int) -> torch.Tensor:
    """Those dropped, negative (or minus nought)."""
    return torch.where(
        sample_dropout_mask(weights.shape, drop_threshold, weights.device), weights, -weights
    )


def _apply_dropout(weights: torch.Tensor, drop_threshold: int) -> torch.Tensor:
    """What dropout leaves, scaled by the share that it leaves."""
    return (
        torch.relu(weights).mul_(DROPOUT_LEVELS / (DROPOUT_LEVELS - drop_threshold))
        if drop_threshold
        else weights
    )


def _compute_score_gradient(
    weight_gradient: torch.Tensor, weights: torch.Tensor, drop_threshold: int
) -> torch.Tensor:
    """The gradient of the scores from that of what dropout left."""
    if drop_threshold:
        weight_gradient = weight_gradient.mul_(
            DROPOUT_LEVELS / (DROPOUT_LEVELS - drop_threshold)
        ).masked_fill_(torch.signbit(weights), 0.0)
        weights = weights.abs()
    return torch._softmax_backward_data(weight_gradient, weights, -1, weights.dtype)
