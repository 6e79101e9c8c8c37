"""Forward passes of a stack: pooled vectors, hidden states and logits, at every text position.

Where family and methods allow it, all tokens of a batch go through the model in one packed row,
each text attending to itself alone, and nothing is computed for padding. Elsewhere texts are
grouped by length. The result depends neither on padding nor on the other texts of the batch.
"""

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
"""A transformers model, called with keywords -> (rows, time, width)."""

MIN_GROUP_LENGTH_FRACTION = 0.8
"""Of the longest text of a group, where texts are padded: at most a fifth is padding."""


def compute_pooled_embeddings(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor, pooling: PoolingMode
) -> torch.Tensor:
    """Compute one vector for each text.

    Where the vector is that of a single token, the last layer computes nothing for tokens that it
    does not depend on (``models.select_pooled_tokens``).

    Args:
        stack: base and adapters.
        input_ids: (rows, time) token ids.
        attention_mask: (rows, time) 1 on text, 0 on padding, which is one block on the left or on
            the right of a row.
        pooling: which tokens a text's vector is made of.

    Returns:
        (rows, width), float32.

    Raises:
        InputError: a row without tokens.
    """
    # a row without tokens has no vector, and would be a division by 0 for the mean
    lengths = _count_row_tokens(attention_mask)
    if 0 in lengths:
        raise InputError(
            f"{lengths.count(0)} of {len(lengths)} rows have no token to pool",
            location=f"row {lengths.index(0)} of the batch",
            hint="leave out what has no tokens, and count it",
        )
    sequence_lengths = SequenceLengths(lengths)
    pooled_tokens = (
        models.select_pooled_tokens(stack.base.backbone, sequence_lengths, pooling)
        if _supports_packing(stack)
        else None
    )
    if pooled_tokens is None:
        hidden = compute_packed_hidden_states(stack, input_ids, attention_mask)  # (tokens, width)
        return models.pool_packed_hidden_states(hidden, sequence_lengths, pooling)
    text_ids = input_ids[attention_mask != 0]  # (tokens,)
    inputs = models.build_packed_inputs(text_ids, sequence_lengths, stack.base.first_position)
    with _autocast_mixed_precision(stack, input_ids.device):
        output = stack.base.backbone(**inputs, ends=pooled_tokens)
    # the last layer computed the pooled tokens only
    vectors: torch.Tensor = output.last_hidden_state[0]  # (rows, width)
    return vectors.float()


def compute_packed_hidden_states(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Compute the last layer's vector of every text token, after the final norm.

    Args:
        stack: base and adapters.
        input_ids: (rows, time) token ids.
        attention_mask: (rows, time) 1 on text, 0 on padding, which is one block on the left or on
            the right of a row.

    Returns:
        (tokens, width), row by row, in the precision of the base; equal to
        ``compute_hidden_states(...)[attention_mask == 1]``.
    """
    return _forward_packed(
        stack,
        lambda **inputs: stack.base.backbone(**inputs).last_hidden_state,
        input_ids,
        attention_mask,
    )


def compute_hidden_states(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Compute ``compute_packed_hidden_states`` in the layout of the rows.

    Returns:
        (rows, time, width), aligned with ``input_ids``, in the precision of the base; 0 on padding,
        without virtual tokens.
    """
    hidden = compute_packed_hidden_states(stack, input_ids, attention_mask)  # (tokens, width)
    return _unpack_rows(hidden, attention_mask)


def compute_token_logits(
    stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Compute the logits over the vocabulary at every position of the text.

    Returns:
        (rows, time, vocabulary), aligned with ``input_ids``; 0 on padding, without virtual tokens.
    """
    logits = _forward_packed(
        stack, lambda **inputs: stack.base.model(**inputs).logits, input_ids, attention_mask
    )  # (tokens, vocabulary)
    return _unpack_rows(logits, attention_mask)


def _unpack_rows(packed: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(tokens, width) -> (rows, time, width), 0 on padding."""
    rows = packed.new_zeros(*attention_mask.shape, packed.shape[1])
    rows[attention_mask != 0] = packed
    return rows


def _count_row_tokens(attention_mask: torch.Tensor) -> tuple[int, ...]:
    return tuple((attention_mask != 0).sum(dim=1).tolist())


def _list_active_adapters(stack: Stack) -> list[AttachedAdapter]:
    return [adapter for adapter in stack.adapters if adapter.name not in stack.disabled_adapters]


def _supports_packing(stack: Stack) -> bool:
    # adapters inside the layers see single tokens; prompts are put before whole rows
    return models.has_packed_attention(stack.base.model) and not any(
        adapter.is_prompt for adapter in _list_active_adapters(stack)
    )


def _autocast_mixed_precision(stack: Stack, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast where a method computes in float32 on a base in bfloat16, and casts nothing."""
    # an adaption prompt computes softmax(q k) of its float32 prompt with bfloat16 queries
    mixes = stack.base.precision != torch.float32 and any(
        ADAPTER_METHODS[adapter.spec.method].mixes_precisions
        for adapter in _list_active_adapters(stack)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixes)


def _forward_packed(
    stack: Stack,
    model_function: ModelFunction,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """(tokens, width) of ``model_function``, row by row, without padding."""
    lengths = _count_row_tokens(attention_mask)
    is_text = attention_mask != 0  # (rows, time)
    if _supports_packing(stack):
        # rows without tokens are no sequences, and have no rows in the result
        sequence_lengths = SequenceLengths(tuple(length for length in lengths if length))
        inputs = models.build_packed_inputs(
            input_ids[is_text], sequence_lengths, stack.base.first_position
        )
        with _autocast_mixed_precision(stack, input_ids.device):
            return model_function(**inputs)[0]  # (1, tokens, width) -> (tokens, width)
    # every text to the left of its row, so that a group is cut to its longest text
    left_ids = torch.zeros_like(input_ids)  # (rows, time)
    times = torch.arange(input_ids.shape[1], device=input_ids.device)
    left_mask = times[None, :] < is_text.sum(dim=1, keepdim=True)  # (rows, time)
    left_ids[left_mask] = input_ids[is_text]
    # without prompts, only texts of one length share a group, and nothing is padded; prompts make
    # the attention mask necessary anyway
    has_prompt = any(adapter.is_prompt for adapter in _list_active_adapters(stack))
    groups = group_rows_by_length(lengths, MIN_GROUP_LENGTH_FRACTION if has_prompt else 1.0)
    virtual_tokens = _compute_virtual_tokens(stack, input_ids.device)
    outputs = []
    for group in groups:
        longest = lengths[group[0]]
        ids, mask = left_ids[group, :longest], left_mask[group, :longest]  # (group, longest)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        with _autocast_mixed_precision(stack, input_ids.device):
            if virtual_tokens is not None:
                inputs = virtual_tokens.prepend(stack, ids, mask.long())
            output = model_function(**inputs)  # (group, virtual + longest, width)
        outputs.append(output[:, -longest:][mask])  # (tokens of the group, width)
    packed = torch.cat(outputs)
    # groups are by length, so that rows are put back into their order
    order = [row for group in groups for row in group]
    if order == sorted(order):
        return packed
    row_outputs = dict(
        zip(order, torch.split(packed, [lengths[row] for row in order]), strict=True)
    )
    return torch.cat([row_outputs[row] for row in sorted(order)])


def group_rows_by_length(lengths: Sequence[int], min_length_fraction: float) -> list[list[int]]:
    """Group rows with tokens, longest first.

    Args:
        lengths: (rows,) tokens of each.
        min_length_fraction: of the longest row of a group; a shorter row starts another group.

    Returns:
        Indices of the rows of each group.
    """
    groups: list[list[int]] = []
    rows = [row for row, length in enumerate(lengths) if length]
    # sorted() is stable: rows of one length stay in order
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if not groups or lengths[row] < min_length_fraction * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return groups


@dataclass(frozen=True)
class _VirtualTokens:
    """What is put before every text, for a single row.

    Attributes:
        embeddings_or_cache: input vectors (1, virtual, width), or a transformers cache of keys and
            values.
        token_count: number of virtual tokens.
        are_keys: whether it is a cache.
    """

    embeddings_or_cache: Any
    token_count: int
    are_keys: bool

    def prepend(
        self, stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, Any]:
        """Build the model's inputs (rows, virtual + time), as ``peft.PeftModel.forward`` does."""
        rows = len(input_ids)
        virtual_mask = attention_mask.new_ones(rows, self.token_count)
        mask = torch.cat([virtual_mask, attention_mask], dim=1)  # (rows, virtual + time)
        if self.are_keys:
            # prefix tuning: keys and values of a past that the text attends to
            # one cache object for each call, since the model appends the text's keys to it
            cache = copy.copy(self.embeddings_or_cache)
            cache.layers = [copy.copy(layer) for layer in cache.layers]
            for layer in cache.layers:
                layer.keys, layer.values = (
                    part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values)
                )  # (rows, heads, virtual, head width)
            return {"input_ids": input_ids, "attention_mask": mask, "past_key_values": cache}
        # prompt tuning and P-tuning: vectors before the embeddings of the text
        text = stack.base.model.get_input_embeddings()(input_ids)  # (rows, time, width)
        virtual = self.embeddings_or_cache.to(text.dtype).expand(rows, -1, -1)
        return {"inputs_embeds": torch.cat([virtual, text], dim=1), "attention_mask": mask}


def _compute_virtual_tokens(stack: Stack, device: torch.device) -> _VirtualTokens | None:
    """Compute the virtual tokens of the active prompt once for all rows and groups.

    peft would run their encoder again for every group, and that of a prefix for every row.
    """
    for adapter in _list_active_adapters(stack):
        prepends = ADAPTER_METHODS[adapter.spec.method].prepends
        if prepends != "nothing":
            model = adapter.model
            assert model is not None  # prompts are never merged
            with _autocast_mixed_precision(stack, device):
                prompt = model.get_prompt(batch_size=1)
            token_count = int(model.active_peft_config.num_virtual_tokens)
            return _VirtualTokens(prompt, token_count, prepends == "keys")
    return None
