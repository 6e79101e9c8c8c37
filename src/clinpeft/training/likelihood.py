"""What a model thinks of every note: the table that perplexities are computed from."""

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
SCORING_MASK_KEY = (0,)  # the same masks are asked in every row of a table
_Float64Array = npt.NDArray[np.float64]


def compute_note_likelihoods(
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    windows: IndexArray,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> pa.Table:
    """One row a note with its scored tokens and their negative log-likelihood (schema ``tables.LIKELIHOOD``). The caller sets eval mode."""
    targets, summed = _score_windows(forward, data, windows, micro_batch_tokens, accelerator)
    return _aggregate_by_note(data, windows, targets, summed)


def compute_window_perplexity(
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    windows: IndexArray,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> float:
    """exp of the mean negative log-likelihood a token, over all given windows. The caller sets eval mode."""
    targets, summed = _score_windows(forward, data, windows, micro_batch_tokens, accelerator)
    return float(np.exp(summed.sum() / max(targets.sum(), 1.0)))


def compute_unigram_likelihoods(
    data: LanguageModelingData, train_windows: IndexArray, windows: IndexArray
) -> pa.Table:
    """The trivial baseline on the same tokens: how often each token was asked in ``train_windows``, plus one, and nothing else."""
    counts = np.ones(len(data.tokenizer), dtype=np.float64)
    for labels in _iterate_labels(data, train_windows):
        counts += np.bincount(labels[labels != IGNORE_INDEX], minlength=len(counts))
    surprise = -np.log(counts / counts.sum())
    targets, summed = np.zeros(len(windows)), np.zeros(len(windows))
    for at, labels in enumerate(_iterate_labels(data, windows)):
        asked = labels[labels != IGNORE_INDEX]
        targets[at], summed[at] = len(asked), surprise[asked].sum()
    return _aggregate_by_note(data, windows, targets, summed)


def _iterate_labels(
    data: LanguageModelingData, windows: IndexArray
) -> Iterator[npt.NDArray[np.int64]]:
    """The labels of each window, in order."""
    for start in range(0, len(windows), UNIGRAM_BATCH_WINDOWS):
        batch = tokenization.gather_windows(
            data.encodings, windows[start : start + UNIGRAM_BATCH_WINDOWS]
        )
        yield from data.label_batch(batch, data.tokenizer, SCORING_MASK_KEY).labels.numpy()


def _score_windows(
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    windows: IndexArray,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> tuple[_Float64Array, _Float64Array]:
    """(targets, negative log-likelihood) of each window, in the order of ``windows``, summed over the processes that scored them."""
    found = torch.zeros(2, len(windows), dtype=torch.float64, device=accelerator.device)
    lengths = data.encodings.lengths[windows]
    groups = tokenization.group_windows(lengths, np.arange(len(windows)), micro_batch_tokens)
    with torch.inference_mode():
        for group in groups[accelerator.process_index :: accelerator.num_processes]:
            batch = tokenization.gather_windows(data.encodings, windows[group]).to(
                accelerator.device
            )
            scores = compute_batch_likelihoods(
                forward,
                data.label_batch(batch, data.tokenizer, SCORING_MASK_KEY),
                batch.attention_mask,
                data.language_model_head,
            )
            found[0, group], found[1, group] = (
                scores.target_counts.double(),
                scores.negative_log_likelihood.double(),
            )
    found = accelerator.reduce(found, "sum").cpu().numpy()
    return found[0], found[1]


def _aggregate_by_note(
    data: LanguageModelingData,
    windows: IndexArray,
    target_counts: _Float64Array,
    negative_log_likelihoods: _Float64Array,
) -> pa.Table:
    notes, at = np.unique(data.encodings.window_notes[windows], return_inverse=True)
    table = data.encodings.note_table.take(pa.array(notes))
    counted = pa.array(np.bincount(at, target_counts).astype(np.int64))
    losses = pa.array(np.bincount(at, negative_log_likelihoods, minlength=len(notes)))
    columns = {name: table[name] for name in ("note_id", "subject_id", "category", "split")}
    return pa.table(
        columns | {"tokens": counted, "negative_log_likelihood": losses}, schema=LIKELIHOOD_SCHEMA
    )
