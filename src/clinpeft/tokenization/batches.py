"""Padded batches of windows, and which windows or documents make up one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clinpeft.tokenization.special_tokens import IndexArray
from clinpeft.tokenization.storage import MappedTokens
from clinpeft.tokenization.windows import EncodedCorpus

MAX_CELLS_PER_TOKEN = 4
"""Cells (rows * time, padding included) of a padded batch per token of its budget, at most."""


@dataclass(frozen=True)
class WindowBatch:
    """Windows side by side, padded on the right.

    Attributes:
        input_ids: (rows, time) token ids, 0 where padded.
        attention_mask: (rows, time) 1 on real tokens. Only this mask identifies padding, never a
            token id: the padding token may be the end-of-text token.
        boundaries: (rows + 1,) int32 cumulative lengths of the rows, as attention kernels for
            sequences without padding take them (``cu_seqlens``).
        window_indices: (rows,) the windows in the batch, for whatever must depend on a window and
            not on its neighbors.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    boundaries: torch.Tensor
    window_indices: IndexArray

    def to(self, device: torch.device) -> WindowBatch:
        """Return the batch on a device; the boundaries stay on the CPU."""
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
        attention_mask: (windows, time) 1 on real tokens; only this mask identifies padding.
        boundaries: (windows + 1,) int32 cumulative lengths of the windows.
        document_index: (windows,) the document of each window, as its position in the batch.
        num_documents: number of documents.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    boundaries: torch.Tensor
    document_index: torch.Tensor
    num_documents: int

    def to(self, device: torch.device) -> DocumentBatch:
        """Return the batch on a device; the boundaries stay on the CPU."""
        return DocumentBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.boundaries,
            self.document_index.to(device),
            self.num_documents,
        )


def pad_token_slices(
    tokens: MappedTokens, starts: IndexArray, lengths: IndexArray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put slices of a flat token array side by side, padded on the right with 0.

    Args:
        tokens: (all tokens,) the flat array.
        starts: (rows,) first token of each slice.
        lengths: (rows,) tokens of each slice.

    Returns:
        Ids (rows, time) int64, mask (rows, time) int64, boundaries (rows + 1,) int32.
    """
    input_ids = np.zeros((len(starts), int(lengths.max(initial=0))), dtype=np.int64)  # (rows, time)
    # row by row: a gather with a (rows, time) index array would be as large as the batch again
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        input_ids[row, :length] = tokens[start : start + length]
    mask = np.arange(input_ids.shape[1])[None, :] < lengths[:, None]  # (rows, time)
    # int32 is what attention kernels take for cumulative lengths
    boundaries = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)), boundaries


def gather_windows(encodings: EncodedCorpus, window_indices: IndexArray) -> WindowBatch:
    """Return a padded batch of the given windows (rows,), in their order."""
    # ids (rows, time), mask (rows, time), boundaries (rows + 1,)
    parts = pad_token_slices(
        encodings.tokens, encodings.starts[window_indices], encodings.lengths[window_indices]
    )
    return WindowBatch(*parts, np.asarray(window_indices))


def shuffle_window_steps(
    lengths: IndexArray, batch_tokens: int, rng: np.random.Generator
) -> list[IndexArray]:
    """Split one epoch into optimizer steps of shuffled windows with about ``batch_tokens`` tokens.

    A step ends where its real tokens reach ``batch_tokens``. Which windows make a step depends on
    neither the micro-batch size nor the number of processes, so neither changes the training; and
    a step is a random sample, so windows of one length do not follow each other.

    Args:
        lengths: (windows,) real tokens of each.
        batch_tokens: real tokens of a step.
        rng: source of the shuffle.

    Returns:
        For each step the positions in ``lengths`` that belong to it.
    """
    order = rng.permutation(len(lengths))  # (windows,)
    # tokens before each window in shuffled order, so that a window that crosses the limit
    # still belongs to the step in which it begins
    tokens_before = np.concatenate([[0], np.cumsum(lengths[order])[:-1]])  # (windows,)
    step_of_window = tokens_before // batch_tokens
    # positions at which the step number changes
    cuts = np.flatnonzero(np.diff(step_of_window)) + 1
    return [np.asarray(step) for step in np.split(order, cuts)]


def shuffle_document_steps(
    document_indices: IndexArray, batch_notes: int, rng: np.random.Generator
) -> list[IndexArray]:
    """Split one epoch into optimizer steps of ``batch_notes`` shuffled documents.

    Args:
        document_indices: (documents,) the documents, each of which appears once.
        batch_notes: documents in a step; the last step has the remainder.
        rng: source of the shuffle.
    """
    # one permutation per epoch: every document is in exactly one step
    order = document_indices[rng.permutation(len(document_indices))]
    return [order[start : start + batch_notes] for start in range(0, len(order), batch_notes)]


def group_windows(
    lengths: IndexArray, window_indices: IndexArray, micro_batch_tokens: int
) -> list[IndexArray]:
    """Group windows of similar length into micro-batches, longest first.

    Args:
        lengths: (all windows,) real tokens of each.
        window_indices: (windows,) the windows to group.
        micro_batch_tokens: real tokens of a group at most, unless it is a single window.

    Returns:
        The window indices of each group.
    """
    # a stable sort, so that the groups depend on the lengths alone
    order = window_indices[np.argsort(-lengths[window_indices], kind="stable")]
    # a window is one row
    rows_per_window = np.ones(len(order), dtype=np.int64)
    return group_by_token_budget(
        order, lengths[order], lengths[order], rows_per_window, micro_batch_tokens
    )


def group_by_token_budget(
    items: IndexArray,
    token_counts: IndexArray,
    longest_row_tokens: IndexArray,
    row_counts: IndexArray,
    micro_batch_tokens: int,
) -> list[IndexArray]:
    """Group items in their order, each group of at most ``micro_batch_tokens`` tokens or one item.

    No model computes anything for padding, but until the model packs them the ids of a group are a
    rectangle as wide as its longest row. So a group also has at most ``MAX_CELLS_PER_TOKEN`` cells
    per token of the budget: one note of thousands of tokens is not padded with thousands of notes
    of a few.

    Args:
        items: (items,) what is grouped.
        token_counts: (items,) real tokens of each.
        longest_row_tokens: (items,) tokens of the longest row of each, descending.
        row_counts: (items,) rows of each.
        micro_batch_tokens: the budget.
    """
    max_cells = MAX_CELLS_PER_TOKEN * micro_batch_tokens
    # Python integers: indexing NumPy scalars one by one is slower than this loop
    columns = (items, token_counts, longest_row_tokens, row_counts)
    groups: list[list[int]] = []
    group_tokens = group_cells = width = 0
    for item, tokens, longest, rows in zip(*(c.tolist() for c in columns), strict=True):
        exceeds_tokens = group_tokens + tokens > micro_batch_tokens
        if not groups or exceeds_tokens or group_cells + rows * width > max_cells:
            groups.append([])
            # lengths descend, so the first item of a group decides its width
            group_tokens, group_cells, width = 0, 0, longest
        groups[-1].append(item)
        group_tokens, group_cells = group_tokens + tokens, group_cells + rows * width
    return [np.asarray(group, dtype=np.int64) for group in groups]


def select_process_groups(
    groups: Sequence[IndexArray], process_index: int, process_count: int
) -> list[IndexArray]:
    """Return the micro-batches of one of several processes, every ``process_count``-th of them."""
    # strided rather than in blocks: groups descend in length, so every process gets long ones
    return list(groups[process_index::process_count])
