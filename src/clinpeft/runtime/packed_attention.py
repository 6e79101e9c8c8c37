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

NAME = "clinpeft_documents"
BLOCK_TOKENS = 512  # of queries at a time where attention is local: keys are read for a block and its neighbourhood
EXACT = 1e-4  # of the largest number, in float32; what attends to a neighbour is off by a hundred times as much and more
ROUGH = 0.1  # the same in bfloat16
TRIED = (
    5,
    3,
    1,
)  # tokens of the documents that the seam is tried on; that in the middle is tried among others as well


@dataclass(frozen=True)
class Spans:
    """Where the documents of a row lie.

    Attributes:
        lengths: tokens of each document, in order; none is 0.
    """

    lengths: tuple[int, ...]

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(documents, length) for each run of neighbours of one length."""
        return tuple((len(list(same)), length) for length, same in groupby(self.lengths))

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each run."""
        return tuple(count * length for count, length in self.runs)

    def pieces(self, at_once: Callable[[int], int]) -> Iterator[tuple[int, int]]:
        """The runs, cut into pieces of at most ``at_once(length)`` documents."""
        for count, length in self.runs:
            most = at_once(length)
            yield from ((min(most, count - first), length) for first in range(0, count, most))

    def positions(self, first: int, device: torch.device) -> torch.Tensor:
        """(1, tokens) the position of every token in its document, counted from ``first``."""
        lengths = torch.tensor(self.lengths)
        starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return (torch.arange(len(starts)) - starts + first)[None].to(device)

    def boundaries(self, device: torch.device) -> torch.Tensor:
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
class _Manner:
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

    def allowed(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """(queries, keys) which of the positions ``keys`` each of the positions ``queries`` sees."""
        distance = queries[:, None] - keys[None, :]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if self.causal:
            seen &= distance >= 0
        return seen if self.window is None else seen & (distance.abs() < self.window)


def install(model: Any) -> None:
    """Let a transformers model answer what ``one_row`` asks; what it answers to rows with a mask stays the same."""
    model.set_attn_implementation(NAME)


def flattens(model: Any) -> bool:
    """Whether ``install`` was called on a model, or on the one that it is a copy of."""
    return bool(model.config._attn_implementation == NAME)


def one_row(input_ids: torch.Tensor, spans: Spans, first_position: int) -> dict[str, Any]:
    """Many documents in one row, as a transformers model with the seam installed is asked: its answers are of one row, of all tokens.

    Args:
        input_ids: (tokens,) of all documents, one after the other.
        spans: where each of them lies.
        first_position: of the first token of a document.
    """
    ready = torch.zeros(
        1, 1, 1, 1, dtype=torch.bool, device=input_ids.device
    )  # four dimensions: transformers makes no mask of its own
    positions = spans.positions(first_position, input_ids.device)
    return {
        "input_ids": input_ids[None],
        "attention_mask": ready,
        "position_ids": positions,
        "spans": spans,
    }


def check_exact(backbone: Any, first_position: int, location: str) -> None:
    """Try the seam on three short documents: in one row they have the vectors that each has alone.

    Raises:
        BaseModelError: they have not; a family that passes its attention by has this to say, and must not be declared flattening.
    """
    config, device = backbone.config, backbone.get_input_embeddings().weight.device
    reserved = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    usable = [each for each in range(min(config.vocab_size, 64)) if each not in reserved]
    ids = torch.tensor((usable * sum(TRIED))[: 2 * sum(TRIED)], device=device).view(
        2, -1
    )  # two rows of other documents
    first, middle = TRIED[0], TRIED[1]
    ids[1, first : first + middle] = ids[0, first : first + middle]  # and of one that is the same
    with torch.inference_mode():
        together, among = (
            backbone(**one_row(row, Spans(TRIED), first_position)).last_hidden_state[0].float()
            for row in ids
        )
        alone = [
            backbone(
                input_ids=part[None], attention_mask=torch.ones_like(part[None])
            ).last_hidden_state[0]
            for part in torch.split(ids[0], list(TRIED))
        ]
    expected = torch.cat(alone).float()
    scale = expected.abs().max()
    worst = float((together - expected).abs().max() / scale)
    moved = float((together - among)[first : first + middle].abs().max() / scale)
    if not (worst <= (EXACT if backbone.dtype == torch.float32 else ROUGH) and moved <= EXACT):
        message = f"vectors of documents in one row differ from those of each alone by {max(worst, moved):.1g} of the largest number"
        raise BaseModelError(
            message,
            location=location,
            hint=f"set flattens = False in the row of {config.model_type} in models/families.py",
        )


# ----------------------------------------------------------------------------------------------------------------------- what a layer calls


def attend(
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
    spans: Spans | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: (rows, heads, time, width of a head) three times -> (rows, time, heads, width of a head)."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    embedding_config = _Manner(causal, scaling, dropout, sliding_window, softcap)
    if spans is not None:
        return _documents(query, key, value, spans, embedding_config), None
    if softcap is not None:
        return _capped(query, key, value, embedding_config, attention_mask).transpose(1, 2), None
    found: torch.Tensor = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **others,
    )[0]
    return found, None


def _documents(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    embedding_config: _Manner,
) -> torch.Tensor:
    """(1, tokens, heads, width of a head), piece of a run by piece of a run."""
    if _has_kernel(query, embedding_config):
        return _varlen(query, key, value, spans, embedding_config)
    # split and cat, whose gradients are cat and split: slices would each give a gradient as large as the row
    pieces = list(spans.pieces(partial(cpu_attention.at_once, query.shape[1])))
    parts = [
        torch.split(part, [count * length for count, length in pieces], dim=2)
        for part in (query, key, value)
    ]
    found = []
    for piece, *some in zip(pieces, *parts, strict=True):
        queries, keys, values = (_side_by_side(part, *piece) for part in some)
        found.append(
            _run(queries, keys, values, embedding_config)
            .transpose(1, 2)
            .reshape(1, -1, query.shape[1], query.shape[3])
        )
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _side_by_side(part: torch.Tensor, documents: int, length: int) -> torch.Tensor:
    """(1, heads, documents * length, width of a head) -> (documents, heads, length, width of a head)."""
    return part[0].view(part.shape[1], documents, length, part.shape[3]).transpose(0, 1)


def _run(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, embedding_config: _Manner
) -> torch.Tensor:
    """Documents of one length: (documents, heads, length, width of a head)."""
    everywhere = embedding_config.window is None or embedding_config.window >= query.shape[2]
    if (
        everywhere
        and embedding_config.softcap is None
        and cpu_attention.pays(query, embedding_config.dropout)
    ):
        return cpu_attention.attention(
            query,
            key,
            value,
            embedding_config.scaling,
            embedding_config.causal,
            embedding_config.dropout,
        )
    return _fused(query, key, value, embedding_config, everywhere)


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embedding_config: _Manner,
    everywhere: bool,
) -> torch.Tensor:
    """By PyTorch's fused product, where scores are not capped."""
    length = query.shape[2]
    if embedding_config.softcap is not None:
        return _capped(query, key, value, embedding_config, None)
    if everywhere:
        return _product(
            query, key, value, embedding_config, None, embedding_config.causal and length > 1
        )
    if length <= 2 * BLOCK_TOKENS:
        places = torch.arange(length, device=query.device)
        return _product(
            query, key, value, embedding_config, embedding_config.allowed(places, places), False
        )
    return _local(query, key, value, embedding_config)


def _local(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, embedding_config: _Manner
) -> torch.Tensor:
    """A block of queries at a time, with the keys that any of them sees."""
    length, reach = query.shape[2], (embedding_config.window or 1) - 1
    found = []
    for start in range(0, length, BLOCK_TOKENS):
        end = min(start + BLOCK_TOKENS, length)
        first, last = (
            max(0, start - reach),
            end if embedding_config.causal else min(length, end + reach),
        )
        places = torch.arange(length, device=query.device)
        allowed = embedding_config.allowed(places[start:end], places[first:last])
        found.append(
            _product(
                query[:, :, start:end],
                key[:, :, first:last],
                value[:, :, first:last],
                embedding_config,
                allowed,
                False,
            )
        )
    return torch.cat(found, dim=2)


def _product(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embedding_config: _Manner,
    allowed: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    shared = query.shape[1] != key.shape[1]  # several heads of queries read the same keys
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        allowed,
        embedding_config.dropout,
        is_causal=causal,
        scale=embedding_config.scaling,
        enable_gqa=shared,
    )


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embedding_config: _Manner,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """With capped scores (Gemma 2, arXiv 2408.00118, section 2), which no fused product has; softmax in float32, as in transformers' own."""
    shared = query.shape[1] // key.shape[1]
    key, value = (
        part.repeat_interleave(shared, dim=1) if shared > 1 else part for part in (key, value)
    )
    scaling = (
        query.shape[-1] ** -0.5 if embedding_config.scaling is None else embedding_config.scaling
    )
    scores = query @ key.transpose(2, 3) * scaling
    if embedding_config.softcap is not None:
        scores = torch.tanh(scores / embedding_config.softcap) * embedding_config.softcap
    if mask is None:
        places = torch.arange(key.shape[2], device=key.device)
        mask = embedding_config.allowed(places[key.shape[2] - query.shape[2] :], places)
    scores = scores.masked_fill(
        ~mask, torch.finfo(scores.dtype).min
    )  # a number and not infinity: a row of padding sees nothing
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return functional.dropout(weights, embedding_config.dropout) @ value


# ---------------------------------------------------------------------------------------------------------------------------------- CUDA


def _has_kernel(query: torch.Tensor, embedding_config: _Manner) -> bool:
    """What the kernel of variable length takes; the rest goes document by document."""
    plain = (
        embedding_config.softcap is None
        and embedding_config.dropout == 0.0
        and query.shape[-1] <= 256
    )
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and plain


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    embedding_config: _Manner,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # here, because it registers CUDA's operators

    boundaries, longest = spans.boundaries(query.device), max(spans.lengths)
    reach = -1 if embedding_config.window is None else embedding_config.window - 1
    queries, keys, values = (
        part[0].transpose(0, 1) for part in (query, key, value)
    )  # (tokens, heads, width of a head)
    window = (reach, 0 if embedding_config.causal else reach)
    shared = query.shape[1] != key.shape[1]
    found = varlen_attn(
        queries,
        keys,
        values,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=embedding_config.scaling,
        window_size=window,
        enable_gqa=shared,
    )
    assert isinstance(found, torch.Tensor)  # nothing beside it was asked for
    return found[None]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
