"""Where a sequence's vector is read: one vector a row, from the vectors of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from clinpeft.core.errors import BaseModelError, InputError
from clinpeft.models.families import PoolingMode
from clinpeft.models.folder import POOLING_CONFIG_FILE, JsonObject, read_model_json
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
"""Names of sentence-transformers, as switches in its older files and as values of ``pooling_mode`` in its newer ones -> ours."""


def pool_hidden_states(
    hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: PoolingMode
) -> torch.Tensor:
    """One vector a row.

    Tokens are found by the mask, never by the id of the padding token, which in many decoders is also the one that ends a text.

    Args:
        hidden: (rows, time, width) vectors of tokens, in any precision.
        attention_mask: (rows, time) 1 on text, 0 on padding, on either side.
        pooling: the ``last`` token of the text, the first (``cls``), the ``mean`` of all, or number by number their ``max``.

    Returns:
        (rows, width), float32.

    Raises:
        InputError: a row without tokens.
    """
    present = attention_mask != 0
    empty = torch.nonzero(~present.any(dim=1)).flatten()
    if len(empty):
        hint = "leave out what has no tokens, and count it"
        raise InputError(
            f"{len(empty)} of {len(present)} rows have no token to pool",
            location=f"row {int(empty[0])} of the batch",
            hint=hint,
        )
    if pooling == "mean":
        texts = hidden.float().masked_fill(
            ~present[..., None], 0.0
        )  # masked, not multiplied: what stands on padding may be NaN
        return texts.sum(dim=1) / present.sum(dim=1, keepdim=True)
    if pooling == "max":
        return hidden.float().masked_fill(~present[..., None], -torch.inf).amax(dim=1)
    at = (
        present.int().argmax(dim=1)
        if pooling == "cls"
        else present.shape[1] - 1 - present.int().flip(1).argmax(dim=1)
    )
    return hidden[torch.arange(len(hidden), device=hidden.device), at].float()


def pool_packed_hidden_states(
    vectors: torch.Tensor, sequence_lengths: SequenceLengths, pooling: PoolingMode
) -> torch.Tensor:
    """``pool`` of documents in one row.

    A document is added up or compared by itself, in the order of its tokens, so that neighbours change nothing and two runs give the same numbers.

    Args:
        vectors: (tokens, width) of all documents, one after the other, in any precision.
        sequence_lengths: where each of them lies.
        pooling: as for ``pool``.

    Returns:
        (documents, width), float32.
    """
    if pooling in ("cls", "last"):
        ends = torch.tensor(sequence_lengths.lengths).cumsum(0)
        at = ends - 1 if pooling == "last" else ends - torch.tensor(sequence_lengths.lengths)
        return vectors[at.to(vectors.device)].float()
    parts = zip(
        torch.split(vectors, list(sequence_lengths.run_tokens)),
        sequence_lengths.equal_length_runs,
        strict=True,
    )
    blocks = (
        part.reshape(*run, part.shape[1]) for part, run in parts
    )  # (documents, length, width)
    if pooling == "max":
        return torch.cat([block.amax(dim=1).float() for block in blocks])
    return torch.cat([block.mean(dim=1, dtype=torch.float32) for block in blocks])


def read_pooling_mode(folder: Path) -> PoolingMode | None:
    """How the vectors of a sentence-transformers folder are read, by its own word; None where it does not say.

    Raises:
        BaseModelError: in a way that is not known here, such as a weighted mean, or in several at once.
    """
    path = folder / POOLING_CONFIG_FILE
    if not path.is_file():
        return None
    wanted = _list_pooling_modes(read_model_json(path, ""))
    if not wanted:
        return None
    if len(wanted) > 1 or wanted[0] not in SENTENCE_TRANSFORMERS_POOLING_MODES:
        hint = f"name one of {', '.join(sorted(set(SENTENCE_TRANSFORMERS_POOLING_MODES.values())))} instead of auto"
        raise BaseModelError(
            f"the vectors of this model are pooled by {' and '.join(wanted)}",
            location=str(path),
            hint=hint,
        )
    return SENTENCE_TRANSFORMERS_POOLING_MODES[wanted[0]]


def _list_pooling_modes(pooling_config: JsonObject) -> list[str]:
    """What is switched on, under whichever name."""
    named = pooling_config.get("pooling_mode")
    if named:
        return [str(name) for name in (named if isinstance(named, list) else [named])]
    return sorted(
        name for name, on in pooling_config.items() if name.startswith("pooling_mode_") and on
    )


def resolve_pooling_mode(
    base: FrozenBaseModel, requested: Literal["auto", "last", "cls", "mean", "max"]
) -> PoolingMode:
    """What was asked for; for ``auto`` what the folder says, else what is usual in the family.

    Raises:
        BaseModelError: the folder says what is not known here.
    """
    if requested != "auto":
        return requested
    return read_pooling_mode(base.folder) or base.family.pooling
