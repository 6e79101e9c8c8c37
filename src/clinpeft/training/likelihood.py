"""Likelihoods of notes under a model: the table that perplexities are computed from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from accelerate import Accelerator

from clinpeft import tokenization
from clinpeft.core.schemas import LIKELIHOOD_SCHEMA
from clinpeft.tokenization import IndexArray
from clinpeft.training.objectives import (
    IGNORE_INDEX,
    LanguageModelingData,
    TokenLogitFunction,
    compute_batch_likelihoods,
)

UNIGRAM_BATCH_WINDOWS = 256
SCORING_MASK_KEY = (0,)
"""Entropy of the masks of masked language models: every table scores the same tokens."""

_Float64Array = npt.NDArray[np.float64]


def compute_note_likelihoods(
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    windows: IndexArray,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> pa.Table:
    """Compute targets and negative log-likelihood of each note.

    The caller sets evaluation mode.

    Args:
        forward: ids and mask to logits.
        data: windows and objective.
        windows: (windows,) of the notes.
        micro_batch_tokens: tokens of one forward pass.
        accelerator: the processes that share the work.

    Returns:
        One row for each note (schema ``LIKELIHOOD_SCHEMA``).
    """
    counts, losses = _score_windows(forward, data, windows, micro_batch_tokens, accelerator)
    return _aggregate_by_note(data, windows, counts, losses)


def compute_window_perplexity(
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    windows: IndexArray,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> float:
    """Compute exp of the mean negative log-likelihood of a target, over all given windows.

    Targets of all windows weigh the same, whatever the length of their window. The caller sets
    evaluation mode.
    """
    counts, losses = _score_windows(forward, data, windows, micro_batch_tokens, accelerator)
    return float(np.exp(losses.sum() / max(counts.sum(), 1.0)))


def compute_unigram_likelihoods(
    data: LanguageModelingData, train_windows: IndexArray, windows: IndexArray
) -> pa.Table:
    """Compute the unigram baseline on the same targets, with add-one smoothing.

    p(token) = (targets of it in ``train_windows`` + 1) / (all targets + vocabulary).

    Returns:
        One row for each note (schema ``LIKELIHOOD_SCHEMA``).
    """
    # ones: add-one smoothing, so that an unseen token has a finite loss
    token_counts = np.ones(len(data.tokenizer), dtype=np.float64)  # (vocabulary,)
    for targets in _iterate_targets(data, train_windows):
        token_counts += np.bincount(targets, minlength=len(token_counts))
    # nats, as the model's losses
    token_losses = -np.log(token_counts / token_counts.sum())  # (vocabulary,) nats
    counts, losses = np.zeros(len(windows)), np.zeros(len(windows))
    for index, targets in enumerate(_iterate_targets(data, windows)):
        counts[index], losses[index] = len(targets), token_losses[targets].sum()
    return _aggregate_by_note(data, windows, counts, losses)


def _iterate_targets(data: LanguageModelingData, windows: IndexArray) -> Iterator[IndexArray]:
    """(targets,) of each window, in order."""
    for start in range(0, len(windows), UNIGRAM_BATCH_WINDOWS):
        batch_windows = windows[start : start + UNIGRAM_BATCH_WINDOWS]
        batch = tokenization.gather_windows(data.encodings, batch_windows)
        # (rows, time)
        for labels in data.label_batch(batch, data.tokenizer, SCORING_MASK_KEY).labels.numpy():
            yield labels[labels != IGNORE_INDEX]


def _score_windows(
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    windows: IndexArray,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> tuple[_Float64Array, _Float64Array]:
    """(windows,) targets, and (windows,) negative log-likelihood, of each window in order."""
    scores = torch.zeros(2, len(windows), dtype=torch.float64, device=accelerator.device)
    lengths = data.encodings.lengths[windows]
    # micro-batches of windows of like length
    groups = tokenization.group_windows(lengths, np.arange(len(windows)), micro_batch_tokens)
    with torch.inference_mode():
        for group in groups[accelerator.process_index :: accelerator.num_processes]:
            batch = tokenization.gather_windows(data.encodings, windows[group])
            batch = batch.to(accelerator.device)
            likelihoods = compute_batch_likelihoods(
                forward,
                data.label_batch(batch, data.tokenizer, SCORING_MASK_KEY),
                batch.attention_mask,
                data.language_model_head,
            )
            # float64: sums over long notes
            scores[0, group] = likelihoods.target_counts.double()
            scores[1, group] = likelihoods.negative_log_likelihood.double()
    # windows of other processes are 0 here, so that the sum over processes fills them in
    counts, losses = accelerator.reduce(scores, "sum").cpu().numpy()
    return counts, losses


def _aggregate_by_note(
    data: LanguageModelingData,
    windows: IndexArray,
    target_counts: _Float64Array,
    negative_log_likelihoods: _Float64Array,
) -> pa.Table:
    """Sum over the windows of each note."""
    # rows: (windows,) the note of each window
    notes, rows = np.unique(data.encodings.window_notes[windows], return_inverse=True)
    table = data.encodings.note_table.take(pa.array(notes))
    columns = {name: table[name] for name in ("note_id", "subject_id", "category", "split")}
    # weights of bincount give sums: several windows of a note are one row
    columns["tokens"] = pa.array(np.bincount(rows, target_counts).astype(np.int64))
    columns["negative_log_likelihood"] = pa.array(
        np.bincount(rows, negative_log_likelihoods, minlength=len(notes))
    )
    return pa.table(columns, schema=LIKELIHOOD_SCHEMA)
