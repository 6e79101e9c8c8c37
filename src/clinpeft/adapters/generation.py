"""What a stack says next, greedily: for the audit of what it has learned by heart, and for nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.adapters.outputs import compute_token_logits
from clinpeft.adapters.stack import Stack, use_eval_mode

_TokenIdArray = npt.NDArray[np.int64]
GENERATION_BATCH_ROWS = 16


def generate_greedily(stack: Stack, prompts: _TokenIdArray, new_tokens: int) -> _TokenIdArray:
    """The most likely next token, ``new_tokens`` times, for prompts of one length.

    Every step reads the whole row again: slower than with kept keys and values, and the same for every method of adapter.

    Args:
        stack: a causal language model with its adapters.
        prompts: (rows, time) token ids, special tokens included.
        new_tokens: tokens to add.

    Returns:
        (rows, steps).
    """
    rows = torch.from_numpy(np.ascontiguousarray(prompts)).to(stack.base.model.device)
    found = []
    with use_eval_mode(stack.model), torch.inference_mode():
        for start in range(0, len(rows), GENERATION_BATCH_ROWS):
            said = rows[start : start + GENERATION_BATCH_ROWS]
            for _ in range(new_tokens):
                said = torch.cat(
                    [
                        said,
                        compute_token_logits(stack, said, torch.ones_like(said))[:, -1].argmax(
                            dim=1, keepdim=True
                        ),
                    ],
                    dim=1,
                )
            found.append(said[:, prompts.shape[1] :].cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, new_tokens), dtype=np.int64)
