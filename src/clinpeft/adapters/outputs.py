"""The ways to ask a stack: the vectors of texts or of their tokens, and logits over the vocabulary, for every position of the text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from clinpeft import models
from clinpeft.adapters.methods import ADAPTER_METHODS
from clinpeft.adapters.stack import AttachedAdapter, Stack
from clinpeft.core.errors import InputError
from clinpeft.models import PoolingMode, SequenceLengths

ModelFunction = Callable[..., torch.Tensor]
"""A transformers model, asked with keywords -> (rows, time, width)."""

MIN_GROUP_LENGTH_FRACTION = 0.8  # of the longest text of a group, where texts have to be padded: at most a fifth of what is computed is padding


def compute_pooled_embeddings(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor, pooling: PoolingMode
) -> torch.Tensor:
    """One vector a text, without anything computed for padding, see ``flat``; and where one token is the text's, nothing in the last layer for
    others that it does not read (``models.ends``).

    Args:
        stack: what is asked.
        input_ids: (rows, time) token ids.
        attention_mask: (rows, time) 1 on text, 0 on padding, which is one block on the left or on the right of a row.
        pooling: where a text's vector is read.

    Returns:
        (rows, width), float32.

    Raises:
        InputError: a row without tokens.
    """
    lengths = _count_row_tokens(attention_mask)
    if 0 in lengths:
        message = f"{lengths.count(0)} of {len(lengths)} rows have no token to pool"
        raise InputError(
            message,
            location=f"row {lengths.index(0)} of the batch",
            hint="leave out what has no tokens, and count it",
        )
    spans = SequenceLengths(lengths)
    ends = (
        models.select_pooled_tokens(stack.base.backbone, spans, pooling)
        if _supports_packing(stack)
        else None
    )
    if ends is None:
        return models.pool_packed_hidden_states(
            compute_packed_hidden_states(stack, input_ids, attention_mask), spans, pooling
        )
    asked = models.build_packed_inputs(
        input_ids[attention_mask != 0], spans, stack.base.first_position
    )
    with _autocast_mixed_precision(stack, input_ids.device):
        vectors: torch.Tensor = stack.base.backbone(**asked, ends=ends).last_hidden_state[0]
    return vectors.float()


def compute_packed_hidden_states(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """The last layer's vector of every token of every text, after the final norm and before any language-modelling head.

    The rows only say which tokens belong together. Where family and methods allow it, all tokens go through the model in one row, each text seeing
    itself alone (``models.attention``). Where an attention cannot do that, texts go through side by side with those of their own length; and where
    peft puts virtual tokens before them or around their attention, with those of about their length, padded. A text's vectors depend on neither
    padding nor neighbours in any of these ways.

    Args:
        stack: what is asked.
        input_ids: (rows, time) token ids.
        attention_mask: (rows, time) 1 on text, 0 on padding, which is one block on the left or on the right of a row.

    Returns:
        (tokens, width), row by row, in the precision of the base: ``hidden(...)[attention_mask == 1]``.
    """
    return _forward_packed(
        stack,
        lambda **asked: stack.base.backbone(**asked).last_hidden_state,
        input_ids,
        attention_mask,
    )


def compute_hidden_states(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """``flat``, laid out like the rows.

    Returns:
        (rows, time, width), aligned with ``input_ids``, in the precision of the base; 0 on padding, and nothing of virtual tokens.
    """
    return _unpack_rows(
        compute_packed_hidden_states(stack, input_ids, attention_mask), attention_mask
    )


def compute_token_logits(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """What the model answers at every position of the text; padding as for ``flat``.

    Returns:
        (rows, time, vocabulary), aligned with ``input_ids``; 0 on padding, and nothing of virtual tokens.
    """
    return _unpack_rows(
        _forward_packed(
            stack, lambda **asked: stack.base.model(**asked).logits, input_ids, attention_mask
        ),
        attention_mask,
    )


def _unpack_rows(packed_tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    laid = packed_tokens.new_zeros(*attention_mask.shape, packed_tokens.shape[1])
    laid[attention_mask != 0] = packed_tokens
    return laid


def _forward_packed(
    stack: Stack,
    model_function: ModelFunction,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """(tokens, width) of what ``model_function`` answers."""
    lengths = _count_row_tokens(attention_mask)
    if _supports_packing(stack):
        spans = SequenceLengths(tuple(length for length in lengths if length))
        with _autocast_mixed_precision(stack, input_ids.device):
            return model_function(
                **models.build_packed_inputs(
                    input_ids[attention_mask != 0], spans, stack.base.first_position
                )
            )[0]
    return _forward_by_length(stack, model_function, input_ids, attention_mask, lengths)


def _count_row_tokens(attention_mask: torch.Tensor) -> tuple[int, ...]:
    return tuple((attention_mask != 0).sum(dim=1).tolist())


def _list_active_adapters(stack: Stack) -> list[AttachedAdapter]:
    return [adapter for adapter in stack.adapters if adapter.name not in stack.disabled_adapters]


def _supports_packing(stack: Stack) -> bool:
    """Adapters inside the layers work on tokens one by one; those beside them on rows."""
    return models.has_packed_attention(stack.base.model) and not any(
        adapter.is_prompt for adapter in _list_active_adapters(stack)
    )


def _autocast_mixed_precision(stack: Stack, device: torch.device) -> AbstractContextManager[Any]:
    """What computes in float32 beside a base in bfloat16 is brought together by autocast, where the method does not do so itself."""
    mixes = stack.base.precision != torch.float32 and any(
        ADAPTER_METHODS[adapter.spec.method].mixes_precisions
        for adapter in _list_active_adapters(stack)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixes)


def _forward_by_length(
    stack: Stack,
    model_function: ModelFunction,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    lengths: Sequence[int],
) -> torch.Tensor:
    """Group by group of texts of like length, and then in the order of the rows again."""
    present = attention_mask != 0
    text = torch.zeros_like(input_ids)
    mask = torch.arange(input_ids.shape[1], device=input_ids.device)[None, :] < present.sum(
        dim=1, keepdim=True
    )
    text[mask] = input_ids[present]  # moved to the left
    alike = (
        MIN_GROUP_LENGTH_FRACTION
        if any(adapter.is_prompt for adapter in _list_active_adapters(stack))
        else 1.0
    )
    prompt = _compute_virtual_tokens(stack, input_ids.device)
    found, rows = [], []
    for group in _group_by_length(lengths, alike):
        time = lengths[group[0]]
        some = mask[group, :time]
        found.append(
            _forward_padded(stack, model_function, prompt, text[group, :time], some.long())[some]
        )
        rows += group
    if rows == sorted(rows):
        return torch.cat(found)
    pieces = dict(
        zip(rows, torch.split(torch.cat(found), [lengths[row] for row in rows]), strict=True)
    )
    return torch.cat([pieces[row] for row in sorted(rows)])


def _group_by_length(lengths: Sequence[int], min_length_fraction: float) -> list[list[int]]:
    """Rows with tokens, longest first, none shorter than a share of the longest of its group."""
    groups: list[list[int]] = []
    for row in sorted(
        (row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row]
    ):
        if not groups or lengths[row] < min_length_fraction * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return groups


def _forward_padded(
    stack: Stack,
    model_function: ModelFunction,
    virtual_tokens: _VirtualTokens | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """Rows side by side, padded on the right, virtual tokens before them."""
    asked = {"input_ids": input_ids, "attention_mask": attention_mask}
    with _autocast_mixed_precision(stack, input_ids.device):
        answers = model_function(
            **(
                asked
                if virtual_tokens is None
                else _prepend_virtual_tokens(stack, virtual_tokens, input_ids, attention_mask)
            )
        )
    return answers[:, -input_ids.shape[1] :]


@dataclass(frozen=True)
class _VirtualTokens:
    """What stands before every text, for one row: vectors (1, tokens, width), or a transformers cache of keys and values, of so many tokens."""

    embeddings_or_cache: Any
    token_count: int
    are_keys: bool


def _compute_virtual_tokens(stack: Stack, device: torch.device) -> _VirtualTokens | None:
    """Computed once for all texts that are asked together, however many rows and groups they make: where an encoder makes the virtual tokens, peft
    would ask it again for every group, and for a prefix in every row."""
    adapter = next(
        (
            adapter
            for adapter in _list_active_adapters(stack)
            if ADAPTER_METHODS[adapter.spec.method].prepends != "nothing"
        ),
        None,
    )
    if adapter is None:
        return None
    model = adapter.model
    assert model is not None  # prompts are never merged
    with _autocast_mixed_precision(stack, device):
        before = model.get_prompt(batch_size=1)
    return _VirtualTokens(
        before,
        int(model.active_peft_config.num_virtual_tokens),
        ADAPTER_METHODS[adapter.spec.method].prepends == "keys",
    )


def _prepend_virtual_tokens(
    stack: Stack,
    virtual_tokens: _VirtualTokens,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> dict[str, Any]:
    """The question with virtual tokens before it, as ``peft.PeftModel.forward`` asks it: keys and values of a past, or vectors before the text's."""
    rows = len(input_ids)
    seen = torch.cat(
        [attention_mask.new_ones(rows, virtual_tokens.token_count), attention_mask], dim=1
    )
    if virtual_tokens.are_keys:
        return {
            "input_ids": input_ids,
            "attention_mask": seen,
            "past_key_values": _expand_cache(virtual_tokens.embeddings_or_cache, rows),
        }
    text = stack.base.model.get_input_embeddings()(input_ids)  # (rows, time, width)
    return {
        "inputs_embeds": torch.cat(
            [virtual_tokens.embeddings_or_cache.to(text.dtype).expand(rows, -1, -1), text], dim=1
        ),
        "attention_mask": seen,
    }


def _expand_cache(cache: Any, rows: int) -> Any:
    """A cache of one row as one of many, whose own the model may lengthen."""
    many = copy.copy(cache)
    many.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in many.layers:
        layer.keys, layer.values = (
            part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values)
        )
    return many
