"""Greedy generation with a stack, for the audit of memorized training text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.adapters.outputs import compute_token_logits
from clinpeft.adapters.stack import Stack, use_eval_mode

_TokenIdArray = npt.NDArray[np.int64]
GENERATION_BATCH_ROWS = 16


def generate_greedily(stack: Stack, prompts: _TokenIdArray, new_tokens: int) -> _TokenIdArray:
    """Append the most likely next token to prompts of one length, ``new_tokens`` times.

    Every step runs the model over the whole row again: slower than with a cache of keys and values,
    and the same for every adapter method.

    Args:
        stack: a causal language model with its adapters.
        prompts: (rows, time) token ids, special tokens included.
        new_tokens: tokens to append.

    Returns:
        (rows, new_tokens) token ids.
    """
    rows = torch.from_numpy(np.ascontiguousarray(prompts)).to(stack.base.model.device)
    # an empty first part, so that no prompts give (0, new_tokens)
    generated = [np.zeros((0, new_tokens), dtype=np.int64)]
    with use_eval_mode(stack.model), torch.inference_mode():
        for start in range(0, len(rows), GENERATION_BATCH_ROWS):
            ids = rows[start : start + GENERATION_BATCH_ROWS]  # (batch, time), then longer
            for _ in range(new_tokens):
                logits = compute_token_logits(stack, ids, torch.ones_like(ids))
                # prompts of one length need no padding, so that the last column is the last token
                next_ids = logits[:, -1].argmax(dim=1, keepdim=True)  # (batch, 1)
                ids = torch.cat([ids, next_ids], dim=1)
            generated.append(ids[:, prompts.shape[1] :].cpu().numpy())
    return np.concatenate(generated)
