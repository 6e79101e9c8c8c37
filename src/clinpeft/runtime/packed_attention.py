"""The seam: many documents in one row of tokens, each attending to itself alone, without padding and without a mask.

A model whose family flattens (``Family.flattens``) is loaded with an attention of this file in place of its own, through transformers' interface for
that. A question that brings ``spans`` is many documents in one row; one without them is answered by scaled dot-product attention with a mask, as
before. What stands in between, the linear layers and norms, works on tokens one by one and never sees where a document ends.

On a processor a few documents of one length are one call, of plain products (``products``) or of scaled dot-product attention; on CUDA all of them
are one call of ``torch.nn.attention.varlen``. Nothing as large as length times length is kept but by plain products, and where scores are capped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from clinpeft.core.errors import BaseModelError
from clinpeft.runtime import cpu_attention

PACKED_ATTENTION_NAME = "clinpeft_documents"
LOCAL_ATTENTION_BLOCK_TOKENS = 512  # of queries at a time where attention is local: keys are read for a block and its neighbourhood
FLOAT32_PACKING_TOLERANCE = 1e-4  # of the largest number, in float32; what attends to a neighbour is off by a hundred times as much and more
BFLOAT16_PACKING_TOLERANCE = 0.1  # the same in bfloat16
PACKING_CHECK_LENGTHS = (
    5,
    3,
    1,
)  # tokens of the documents that the seam is tried on; that in the middle is tried among others as well


@dataclass(frozen=True)
class SequenceLengths:
    """Where the documents of a row lie.

    Attributes:
        lengths: tokens of each document, in order; none is 0.
    """

    lengths: tuple[int, ...]

    @cached_property
    def equal_length_runs(self) -> tuple[tuple[int, int], ...]:
        """(documents, length) for each run of neighbours of one length."""
        return tuple((len(list(same)), length) for length, same in groupby(self.lengths))

    @cached_property
    def run_tokens(self) -> tuple[int, ...]:
        """Tokens of each run."""
        return tuple(count * length for count, length in self.equal_length_runs)

    def iterate_chunks(self, get_chunk_size: Callable[[int], int]) -> Iterator[tuple[int, int]]:
        """The runs, cut into pieces of at most ``at_once(length)`` documents."""
        for count, length in self.equal_length_runs:
            most = get_chunk_size(length)
            yield from ((min(most, count - first), length) for first in range(0, count, most))

    def compute_positions(self, first_position: int, device: torch.device) -> torch.Tensor:
        """(1, tokens) the position of every token in its document, counted from ``first_position``."""
        lengths = torch.tensor(self.lengths)
        starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return (torch.arange(len(starts)) - starts + first_position)[None].to(device)

    def compute_boundaries(self, device: torch.device) -> torch.Tensor:
        """(documents + 1,) int32, cumulative lengths; made once a device."""
        if device not in self._boundaries:
            self._boundaries[device] = (
                torch.tensor([0, *self.lengths]).cumsum(0, dtype=torch.int32).to(device)
            )
        return self._boundaries[device]

    @cached_property
    def _boundaries(self) -> dict[torch.device, torch.Tensor]:
        return {}


@dataclass(frozen=True)
class _AttentionConfig:
    """What a layer asks of its attention.

    Attributes:
        causal: a token sees none after it.
        scaling: of the scores; None: one over the root of the head's width.
        dropout: share of the weights that is left out.
        window: a token sees others at a distance below this; None: all.
        softcap: scores are pressed below this by a hyperbolic tangent; None: they are not.
    """

    causal: bool
    scaling: float | None
    dropout: float
    window: int | None
    softcap: float | None

    def compute_mask(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """(queries, keys) which of the positions ``keys`` each of the positions ``queries`` sees."""
        distance = queries[:, None] - keys[None, :]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if self.causal:
            seen &= distance >= 0
        return seen if self.window is None else seen & (distance.abs() < self.window)


def install_packed_attention(model: Any) -> None:
    """Let a transformers model answer what ``one_row`` asks; what it answers to rows with a mask stays the same."""
    model.set_attn_implementation(PACKED_ATTENTION_NAME)


def has_packed_attention(model: Any) -> bool:
    """Whether ``install`` was called on a model, or on the one that it is a copy of."""
    return bool(model.config._attn_implementation == PACKED_ATTENTION_NAME)


def build_packed_inputs(
    input_ids: torch.Tensor, sequence_lengths: SequenceLengths, first_position: int
) -> dict[str, Any]:
    """Many documents in one row, as a transformers model with the seam installed is asked: its answers are of one row, of all tokens.

    Args:
        input_ids: (tokens,) of all documents, one after the other.
        sequence_lengths: where each of them lies.
        first_position: of the first token of a document.
    """
    ready = torch.zeros(
        1, 1, 1, 1, dtype=torch.bool, device=input_ids.device
    )  # four dimensions: transformers makes no mask of its own
    positions = sequence_lengths.compute_positions(first_position, input_ids.device)
    return {
        "input_ids": input_ids[None],
        "attention_mask": ready,
        "position_ids": positions,
        "spans": sequence_lengths,
    }


def check_packed_attention(backbone: Any, first_position: int, location: str) -> None:
    """Try the seam on three short documents: in one row they have the vectors that each has alone.

    Raises:
        BaseModelError: they have not; a family that passes its attention by has this to say, and must not be declared flattening.
    """
    config, device = backbone.config, backbone.get_input_embeddings().weight.device
    reserved = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    usable = [each for each in range(min(config.vocab_size, 64)) if each not in reserved]
    ids = torch.tensor(
        (usable * sum(PACKING_CHECK_LENGTHS))[: 2 * sum(PACKING_CHECK_LENGTHS)], device=device
    ).view(2, -1)  # two rows of other documents
    first, middle = PACKING_CHECK_LENGTHS[0], PACKING_CHECK_LENGTHS[1]
    ids[1, first : first + middle] = ids[0, first : first + middle]  # and of one that is the same
    with torch.inference_mode():
        together, among = (
            backbone(
                **build_packed_inputs(row, SequenceLengths(PACKING_CHECK_LENGTHS), first_position)
            )
            .last_hidden_state[0]
            .float()
            for row in ids
        )
        alone = [
            backbone(
                input_ids=part[None], attention_mask=torch.ones_like(part[None])
            ).last_hidden_state[0]
            for part in torch.split(ids[0], list(PACKING_CHECK_LENGTHS))
        ]
    expected = torch.cat(alone).float()
    scale = expected.abs().max()
    worst = float((together - expected).abs().max() / scale)
    moved = float((together - among)[first : first + middle].abs().max() / scale)
    if not (
        worst
        <= (
            FLOAT32_PACKING_TOLERANCE
            if backbone.dtype == torch.float32
            else BFLOAT16_PACKING_TOLERANCE
        )
        and moved <= FLOAT32_PACKING_TOLERANCE
    ):
        message = f"vectors of documents in one row differ from those of each alone by {max(worst, moved):.1g} of the largest number"
        raise BaseModelError(
            message,
            location=location,
            hint=f"set flattens = False in the row of {config.model_type} in models/families.py",
        )


# ----------------------------------------------------------------------------------------------------------------------- what a layer calls


def attend_packed_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    spans: SequenceLengths | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: (rows, heads, time, width of a head) three times -> (rows, time, heads, width of a head)."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    embedding_config = _AttentionConfig(causal, scaling, dropout, sliding_window, softcap)
    if spans is not None:
        return _attend_documents(query, key, value, spans, embedding_config), None
    if softcap is not None:
        return _attend_with_softcap(query, key, value, embedding_config, attention_mask).transpose(
            1, 2
        ), None
    found: torch.Tensor = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )[0]
    return found, None


def _attend_documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequence_lengths: SequenceLengths,
    attention_config: _AttentionConfig,
) -> torch.Tensor:
    """(1, tokens, heads, width of a head), piece of a run by piece of a run."""
    if _supports_varlen(query, attention_config):
        return _attend_varlen(query, key, value, sequence_lengths, attention_config)
    # split and cat, whose gradients are cat and split: slices would each give a gradient as large as the row
    pieces = list(
        sequence_lengths.iterate_chunks(partial(cpu_attention.choose_chunk_size, query.shape[1]))
    )
    parts = [
        torch.split(part, [count * length for count, length in pieces], dim=2)
        for part in (query, key, value)
    ]
    found = []
    for piece, *some in zip(pieces, *parts, strict=True):
        queries, keys, values = (_split_documents(part, *piece) for part in some)
        found.append(
            _attend_equal_lengths(queries, keys, values, attention_config)
            .transpose(1, 2)
            .reshape(1, -1, query.shape[1], query.shape[3])
        )
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _split_documents(states: torch.Tensor, num_documents: int, length_tokens: int) -> torch.Tensor:
    """(1, heads, documents * length, width of a head) -> (documents, heads, length, width of a head)."""
    return (
        states[0]
        .view(states.shape[1], num_documents, length_tokens, states.shape[3])
        .transpose(0, 1)
    )


def _attend_equal_lengths(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_config: _AttentionConfig
) -> torch.Tensor:
    """Documents of one length: (documents, heads, length, width of a head)."""
    everywhere = attention_config.window is None or attention_config.window >= query.shape[2]
    if (
        everywhere
        and attention_config.softcap is None
        and cpu_attention.is_cpu_attention_faster(query, attention_config.dropout)
    ):
        return cpu_attention.compute_cpu_attention(
            query,
            key,
            value,
            attention_config.scaling,
            attention_config.causal,
            attention_config.dropout,
        )
    return _attend_fused(query, key, value, attention_config, everywhere)


def _attend_fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_config: _AttentionConfig,
    is_global: bool,
) -> torch.Tensor:
    """By PyTorch's fused product, where scores are not capped."""
    length = query.shape[2]
    if attention_config.softcap is not None:
        return _attend_with_softcap(query, key, value, attention_config, None)
    if is_global:
        return _compute_scaled_dot_product(
            query, key, value, attention_config, None, attention_config.causal and length > 1
        )
    if length <= 2 * LOCAL_ATTENTION_BLOCK_TOKENS:
        places = torch.arange(length, device=query.device)
        return _compute_scaled_dot_product(
            query,
            key,
            value,
            attention_config,
            attention_config.compute_mask(places, places),
            False,
        )
    return _attend_local_window(query, key, value, attention_config)


def _attend_local_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_config: _AttentionConfig
) -> torch.Tensor:
    """A block of queries at a time, with the keys that any of them sees."""
    length, reach = query.shape[2], (attention_config.window or 1) - 1
    found = []
    for start in range(0, length, LOCAL_ATTENTION_BLOCK_TOKENS):
        end = min(start + LOCAL_ATTENTION_BLOCK_TOKENS, length)
        first, last = (
            max(0, start - reach),
            end if attention_config.causal else min(length, end + reach),
        )
        places = torch.arange(length, device=query.device)
        allowed = attention_config.compute_mask(places[start:end], places[first:last])
        found.append(
            _compute_scaled_dot_product(
                query[:, :, start:end],
                key[:, :, first:last],
                value[:, :, first:last],
                attention_config,
                allowed,
                False,
            )
        )
    return torch.cat(found, dim=2)


def _compute_scaled_dot_product(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_config: _AttentionConfig,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    shared = query.shape[1] != key.shape[1]  # several heads of queries read the same keys
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        attention_config.dropout,
        is_causal=is_causal,
        scale=attention_config.scaling,
        enable_gqa=shared,
    )


def _attend_with_softcap(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_config: _AttentionConfig,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """With capped scores (Gemma 2, arXiv 2408.00118, section 2), which no fused product has; softmax in float32, as in transformers' own."""
    shared = query.shape[1] // key.shape[1]
    key, value = (
        part.repeat_interleave(shared, dim=1) if shared > 1 else part for part in (key, value)
    )
    scaling = (
        query.shape[-1] ** -0.5 if attention_config.scaling is None else attention_config.scaling
    )
    scores = query @ key.transpose(2, 3) * scaling
    if attention_config.softcap is not None:
        scores = torch.tanh(scores / attention_config.softcap) * attention_config.softcap
    if mask is None:
        places = torch.arange(key.shape[2], device=key.device)
        mask = attention_config.compute_mask(places[key.shape[2] - query.shape[2] :], places)
    scores = scores.masked_fill(
        ~mask, torch.finfo(scores.dtype).min
    )  # a number and not infinity: a row of padding sees nothing
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return functional.dropout(weights, attention_config.dropout) @ value


# ---------------------------------------------------------------------------------------------------------------------------------- CUDA


def _supports_varlen(query: torch.Tensor, attention_config: _AttentionConfig) -> bool:
    """What the kernel of variable length takes; the rest goes document by document."""
    plain = (
        attention_config.softcap is None
        and attention_config.dropout == 0.0
        and query.shape[-1] <= 256
    )
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and plain


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequence_lengths: SequenceLengths,
    attention_config: _AttentionConfig,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # here, because it registers CUDA's operators

    boundaries, longest = (
        sequence_lengths.compute_boundaries(query.device),
        max(sequence_lengths.lengths),
    )
    reach = -1 if attention_config.window is None else attention_config.window - 1
    queries, keys, values = (
        part[0].transpose(0, 1) for part in (query, key, value)
    )  # (tokens, heads, width of a head)
    window = (reach, 0 if attention_config.causal else reach)
    shared = query.shape[1] != key.shape[1]
    found = varlen_attn(
        queries,
        keys,
        values,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=attention_config.scaling,
        window_size=window,
        enable_gqa=shared,
    )
    assert isinstance(found, torch.Tensor)  # nothing beside it was asked for
    return found[None]


AttentionInterface.register(PACKED_ATTENTION_NAME, attend_packed_documents)
AttentionMaskInterface.register(PACKED_ATTENTION_NAME, sdpa_mask)
