"""Pooling: one vector per sequence from the hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from clinpeft.core.errors import BaseModelError, InputError
from clinpeft.models.families import PoolingMode
from clinpeft.models.folder import POOLING_CONFIG_FILE, read_model_json
from clinpeft.models.load import FrozenBaseModel
from clinpeft.runtime.packed_attention import SequenceLengths

SENTENCE_TRANSFORMERS_POOLING_MODES: Mapping[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "lasttoken": "last",
}
"""Names of sentence-transformers -> pooling mode: switches of its older files, and values of
``pooling_mode`` in its newer ones."""


def pool_hidden_states(
    hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: PoolingMode
) -> torch.Tensor:
    """Return one vector per row.

    Tokens are identified by the mask, never by the id of the padding token, which in many decoders
    is also the end-of-text token.

    Args:
        hidden: (rows, time, width) hidden states, in any precision.
        attention_mask: (rows, time) 1 on text, 0 on padding, on either side.
        pooling: the ``last`` token of the text, the first (``cls``), the ``mean`` of all, or their
            elementwise ``max``.

    Returns:
        (rows, width), float32.

    Raises:
        InputError: a row without tokens.
    """
    is_token = attention_mask != 0  # (rows, time)
    empty = torch.nonzero(~is_token.any(dim=1)).flatten()
    if len(empty):
        raise InputError(
            f"{len(empty)} of {len(is_token)} rows have no token to pool",
            location=f"row {int(empty[0])} of the batch",
            hint="leave out texts without tokens, and count them",
        )
    if pooling == "mean":
        # masked, not multiplied with 0: hidden states of padding may be NaN
        token_states = hidden.float().masked_fill(~is_token[..., None], 0.0)  # (rows, time, width)
        return token_states.sum(dim=1) / is_token.sum(dim=1, keepdim=True)
    if pooling == "max":
        return hidden.float().masked_fill(~is_token[..., None], -torch.inf).amax(dim=1)
    # argmax returns the first of equal values: the first token, or the last one when flipped
    if pooling == "cls":
        position = is_token.int().argmax(dim=1)  # (rows,)
    else:
        position = is_token.shape[1] - 1 - is_token.int().flip(1).argmax(dim=1)  # (rows,)
    return hidden[torch.arange(len(hidden), device=hidden.device), position].float()


def pool_packed_hidden_states(
    vectors: torch.Tensor, sequence_lengths: SequenceLengths, pooling: PoolingMode
) -> torch.Tensor:
    """Return one vector per document of documents that are packed into one row.

    Each document is reduced alone and in the order of its tokens, so that its vector does not
    depend on its neighbors and is the same in every run.

    Args:
        vectors: (tokens, width) hidden states of all documents, one after the other, in any
            precision.
        sequence_lengths: tokens of each document.
        pooling: as for ``pool_hidden_states``.

    Returns:
        (documents, width), float32.
    """
    if pooling in ("cls", "last"):
        lengths = torch.tensor(sequence_lengths.lengths)  # (documents,)
        ends = lengths.cumsum(0)
        position = ends - 1 if pooling == "last" else ends - lengths
        # (documents, width)
        return vectors[position.to(vectors.device)].float()
    # documents of equal length that follow each other are reduced together
    runs = torch.split(vectors, list(sequence_lengths.run_tokens))  # each (tokens of run, width)
    blocks = [
        run.reshape(*shape, run.shape[1])  # (documents of run, length, width)
        for run, shape in zip(runs, sequence_lengths.equal_length_runs, strict=True)
    ]
    if pooling == "max":
        return torch.cat([block.amax(dim=1).float() for block in blocks])
    # float32 sums also for hidden states in bfloat16
    return torch.cat([block.mean(dim=1, dtype=torch.float32) for block in blocks])


def read_pooling_mode(folder: Path) -> PoolingMode | None:
    """Return the pooling that a sentence-transformers folder states; None where it states none.

    Raises:
        BaseModelError: a pooling that is not supported, such as a weighted mean, or several.
    """
    path = folder / POOLING_CONFIG_FILE
    if not path.is_file():
        return None
    config = read_model_json(path, "")
    value = config.get("pooling_mode")
    if value:
        # newer files: one name or a list of names
        modes = [str(name) for name in (value if isinstance(value, list) else [value])]
    else:
        # older files: one boolean per mode
        switches = (name for name, is_on in config.items() if is_on)
        # sorted, so that the message does not depend on the file
        modes = sorted(name for name in switches if name.startswith("pooling_mode_"))
    if not modes:
        return None
    # several modes are concatenated by sentence-transformers; that width is not supported
    if len(modes) > 1 or modes[0] not in SENTENCE_TRANSFORMERS_POOLING_MODES:
        supported = sorted(set(SENTENCE_TRANSFORMERS_POOLING_MODES.values()))
        raise BaseModelError(
            f"the vectors of this model are pooled by {' and '.join(modes)}, not supported here",
            location=str(path),
            hint=f'set pooling to one of {", ".join(supported)} instead of "auto"',
        )
    return SENTENCE_TRANSFORMERS_POOLING_MODES[modes[0]]


def resolve_pooling_mode(
    base: FrozenBaseModel, requested: Literal["auto", "last", "cls", "mean", "max"]
) -> PoolingMode:
    """Return the requested pooling; for ``auto`` that of the folder, else that of the family.

    Raises:
        BaseModelError: the folder states a pooling that is not supported.
    """
    if requested != "auto":
        return requested
    return read_pooling_mode(base.folder) or base.family.pooling
