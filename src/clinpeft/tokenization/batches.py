"""Windows side by side in a batch, and which of them, or of the documents, make a step of the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clinpeft.tokenization.special_tokens import IndexArray
from clinpeft.tokenization.storage import MappedTokens
from clinpeft.tokenization.windows import EncodedCorpus

MAX_CELLS_PER_TOKEN = 4  # cells a token, of a group of windows that stand in rows


@dataclass(frozen=True)
class WindowBatch:
    """Windows side by side, padded on the right.

    Attributes:
        input_ids: (rows, time) token ids, 0 where padded.
        attention_mask: (rows, time) 1 on real tokens. What is padding is told by this mask alone, never by an id: pad may equal eos.
        boundaries: (rows + 1,) cumulative lengths of the documents, which is all that a layout without padding needs.
        window_indices: (rows,) which windows these are, for whatever must depend on the window and not on its neighbours.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    boundaries: torch.Tensor
    window_indices: IndexArray

    def to(self, device: torch.device) -> WindowBatch:
        """The same batch on a device."""
        return WindowBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.boundaries,
            self.window_indices,
        )


@dataclass(frozen=True)
class DocumentBatch:
    """Documents side by side, each in one window or several, padded on the right.

    Attributes:
        input_ids: (windows, time) token ids, 0 where padded.
        attention_mask: (windows, time) 1 on real tokens; it alone tells what is padding.
        boundaries: (windows + 1,) cumulative lengths of the windows.
        document_index: (windows,) which of the batch's documents a window belongs to: its position among those asked for.
        num_documents: how many there are.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    boundaries: torch.Tensor
    document_index: torch.Tensor
    num_documents: int

    def to(self, device: torch.device) -> DocumentBatch:
        """The same batch on a device."""
        input_ids, attention_mask, document = (
            part.to(device) for part in (self.input_ids, self.attention_mask, self.document_index)
        )
        return DocumentBatch(
            input_ids, attention_mask, self.boundaries, document, self.num_documents
        )


def pad_token_slices(
    tokens: MappedTokens, starts: IndexArray, lengths: IndexArray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slices of ``tokens`` side by side: ids (rows, time), mask (rows, time) and boundaries (rows + 1,)."""
    input_ids = np.zeros((len(starts), int(lengths.max(initial=0))), dtype=np.int64)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        input_ids[row, :length] = tokens[start : start + length]
    mask = np.arange(input_ids.shape[1])[None, :] < lengths[:, None]
    boundaries = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)), boundaries


def gather_windows(encodings: EncodedCorpus, window_indices: IndexArray) -> WindowBatch:
    """A padded batch of the given windows, in their order."""
    return WindowBatch(
        *pad_token_slices(
            encodings.tokens, encodings.starts[window_indices], encodings.lengths[window_indices]
        ),
        np.asarray(window_indices),
    )


def shuffle_window_steps(
    lengths: IndexArray, batch_tokens: int, rng: np.random.Generator
) -> list[IndexArray]:
    """One epoch as optimiser steps: shuffled windows, cut where ``batch_tokens`` real tokens are reached.

    Which windows make a step depends on neither the micro-batch size nor the number of processes, so neither changes what is learned; and a step
    is a random draw, so windows of one length do not follow each other.

    Args:
        lengths: (windows,) real tokens of each.

    Returns:
        For each step the positions in ``lengths`` that belong to it.
    """
    order = rng.permutation(len(lengths))
    before = np.concatenate([[0], np.cumsum(lengths[order])[:-1]])
    step_of = before // batch_tokens
    cuts = np.flatnonzero(np.diff(step_of)) + 1
    return [np.asarray(part) for part in np.split(order, cuts)]


def shuffle_document_steps(
    document_indices: IndexArray, batch_notes: int, rng: np.random.Generator
) -> list[IndexArray]:
    """One epoch as optimiser steps: every document once, shuffled, ``batch_notes`` a step; the last step is as small as what is left."""
    order = document_indices[rng.permutation(len(document_indices))]
    return [order[start : start + batch_notes] for start in range(0, len(order), batch_notes)]


def group_windows(
    lengths: IndexArray, window_indices: IndexArray, micro_batch_tokens: int
) -> list[IndexArray]:
    """``window_indices`` windows in groups of like length, longest first, each of at most ``micro_batch_tokens`` real tokens, or of one window.

    Padding costs nothing but the ids themselves, see ``filled``.
    """
    ordered = window_indices[np.argsort(-lengths[window_indices], kind="stable")]
    return group_by_token_budget(
        ordered,
        lengths[ordered],
        lengths[ordered],
        np.ones(len(ordered), dtype=np.int64),
        micro_batch_tokens,
    )


def group_by_token_budget(
    items: IndexArray,
    token_counts: IndexArray,
    longest_row_tokens: IndexArray,
    row_counts: IndexArray,
    micro_batch_tokens: int,
) -> list[IndexArray]:
    """Items in groups, in their order, each of at most ``micro_batch_tokens`` tokens, or of one item.

    No model computes anything for padding, but ids stand in rows of the longest of their group until then: a group has at most ``WIDEST`` cells a
    token of the budget, so that a note of thousands of tokens does not stand beside thousands of a few.

    Args:
        items: what is grouped.
        token_counts: (items,) real tokens of each.
        longest_row_tokens: (items,) tokens of the longest row of each, falling.
        row_counts: (items,) of each.
        micro_batch_tokens: the budget.
    """
    groups: list[list[int]] = []
    tokens = cells = width = 0
    for item, count, long, some in zip(
        items.tolist(),
        token_counts.tolist(),
        longest_row_tokens.tolist(),
        row_counts.tolist(),
        strict=True,
    ):
        if (
            not groups
            or tokens + count > micro_batch_tokens
            or cells + some * width > MAX_CELLS_PER_TOKEN * micro_batch_tokens
        ):
            groups.append([])
            tokens, cells, width = 0, 0, long
        groups[-1].append(item)
        tokens, cells = tokens + count, cells + some * width
    return [np.asarray(group, dtype=np.int64) for group in groups]


def select_process_groups(
    groups: Sequence[IndexArray], process_index: int, process_count: int
) -> list[IndexArray]:
    """The micro-batches of one process of several."""
    return list(groups[process_index::process_count])
