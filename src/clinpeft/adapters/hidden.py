"""The ways to ask a stack: logits over the vocabulary, or the vectors below them, for every position of the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from clinpeft.adapters.methods import METHODS
from clinpeft.adapters.stack import Attached, Stack


def logits(stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """What the model answers at every position of the text.

    Padding may stand on either side. Rows are first moved to start at position 0, so that a row's logits depend on neither its padding nor its
    neighbours: with virtual tokens before it, left padding would otherwise come between prompt and text.

    Args:
        input_ids: (rows, time) token ids.
        attention_mask: (rows, time) 1 on text, 0 on padding, which is one block on the left or on the right of a row.

    Returns:
        (rows, time, vocabulary), aligned with ``input_ids``; logits of virtual tokens are dropped.
    """
    return _aligned(lambda **asked: stack.base.model(**asked).logits, stack, input_ids, attention_mask)


def hidden(stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The last layer's vector at every position of the text, after the final norm and before any language-modelling head.

    Nothing as wide as the vocabulary is computed. Padding, alignment and neighbours as for ``logits``.

    Returns:
        (rows, time, width), aligned with ``input_ids``, in the precision of the base; vectors of virtual tokens are dropped.
    """
    return _aligned(lambda **asked: stack.base.backbone(**asked).last_hidden_state, stack, input_ids, attention_mask)


def _aligned(call: Callable[..., torch.Tensor], stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    starts = attention_mask.argmax(dim=1, keepdim=True)  # (rows, 1)
    if not starts.any():
        return _left_aligned(call, stack, input_ids, attention_mask)
    time = torch.arange(input_ids.shape[1], device=input_ids.device)[None, :]
    there, back = (time + starts) % input_ids.shape[1], (time - starts) % input_ids.shape[1]
    answers = _left_aligned(call, stack, input_ids.gather(1, there), attention_mask.gather(1, there))
    return answers.gather(1, back[:, :, None].expand_as(answers))


def _left_aligned(call: Callable[..., torch.Tensor], stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    heard = [adapter for adapter in stack.adapters if adapter.name not in stack.silent]
    mixes = stack.base.precision != torch.float32 and any(METHODS[adapter.spec.method].mixes_precisions for adapter in heard)
    prompt = next((adapter for adapter in heard if METHODS[adapter.spec.method].prepends != "nothing"), None)
    asked = {"input_ids": input_ids, "attention_mask": attention_mask}
    with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=mixes):
        answers = call(**(asked if prompt is None else _prompted(stack, prompt, input_ids, attention_mask)))
    return answers[:, -input_ids.shape[1] :]


def _prompted(stack: Stack, prompt: Attached, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
    """The question with virtual tokens before it, as ``peft.PeftModel.forward`` asks it: keys and values of a past, or vectors before the text's."""
    rows, model = len(input_ids), prompt.model
    assert model is not None  # prompts are never merged
    before = model.get_prompt(batch_size=rows)
    seen = torch.cat([attention_mask.new_ones(rows, model.active_peft_config.num_virtual_tokens), attention_mask], dim=1)
    if METHODS[prompt.spec.method].prepends == "keys":
        return {"input_ids": input_ids, "attention_mask": seen, "past_key_values": before}
    text = stack.base.model.get_input_embeddings()(input_ids)  # (rows, time, width)
    return {"inputs_embeds": torch.cat([before.to(text.dtype), text], dim=1), "attention_mask": seen}
