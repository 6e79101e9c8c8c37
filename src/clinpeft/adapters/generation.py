"""What a stack says next, greedily: for the audit of what it has learned by heart, and for nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.adapters.outputs import logits
from clinpeft.adapters.stack import Stack, at_rest

Ints = npt.NDArray[np.int64]
ROWS_AT_ONCE = 16


def continued(stack: Stack, prompts: Ints, steps: int) -> Ints:
    """The most likely next token, ``steps`` times, for prompts of one length.

    Every step reads the whole row again: slower than with kept keys and values, and the same for every method of adapter.

    Args:
        stack: a causal language model with its adapters.
        prompts: (rows, time) token ids, special tokens included.
        steps: tokens to add.

    Returns:
        (rows, steps).
    """
    rows = torch.from_numpy(np.ascontiguousarray(prompts)).to(stack.base.model.device)
    found = []
    with at_rest(stack.model), torch.inference_mode():
        for start in range(0, len(rows), ROWS_AT_ONCE):
            said = rows[start : start + ROWS_AT_ONCE]
            for _ in range(steps):
                said = torch.cat(
                    [
                        said,
                        logits(stack, said, torch.ones_like(said))[:, -1].argmax(
                            dim=1, keepdim=True
                        ),
                    ],
                    dim=1,
                )
            found.append(said[:, prompts.shape[1] :].cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, steps), dtype=np.int64)
