"""What a model thinks of every note: the table that perplexities are computed from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from accelerate import Accelerator

from clinpeft import tokenization
from clinpeft.core.schemas import LIKELIHOOD
from clinpeft.tokenization import Ints
from clinpeft.training.objectives import IGNORED, Forward, Lesson, score

WINDOWS_A_TIME = 256
SCORING_KEY = (0,)  # the same masks are asked in every row of a table
Floats = npt.NDArray[np.float64]


def likelihoods(
    forward: Forward,
    lesson: Lesson,
    windows: Ints,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> pa.Table:
    """One row a note with its scored tokens and their negative log-likelihood (schema ``tables.LIKELIHOOD``). The caller sets eval mode."""
    targets, summed = _per_window(forward, lesson, windows, micro_batch_tokens, accelerator)
    return _by_note(lesson, windows, targets, summed)


def perplexity_of(
    forward: Forward,
    lesson: Lesson,
    windows: Ints,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> float:
    """exp of the mean negative log-likelihood a token, over all given windows. The caller sets eval mode."""
    targets, summed = _per_window(forward, lesson, windows, micro_batch_tokens, accelerator)
    return float(np.exp(summed.sum() / max(targets.sum(), 1.0)))


def unigram(lesson: Lesson, train: Ints, windows: Ints) -> pa.Table:
    """The trivial baseline on the same tokens: how often each token was asked in ``train``, plus one, and nothing else."""
    counts = np.ones(len(lesson.tokenizer), dtype=np.float64)
    for labels in _labels(lesson, train):
        counts += np.bincount(labels[labels != IGNORED], minlength=len(counts))
    surprise = -np.log(counts / counts.sum())
    targets, summed = np.zeros(len(windows)), np.zeros(len(windows))
    for at, labels in enumerate(_labels(lesson, windows)):
        asked = labels[labels != IGNORED]
        targets[at], summed[at] = len(asked), surprise[asked].sum()
    return _by_note(lesson, windows, targets, summed)


def _labels(lesson: Lesson, windows: Ints) -> Iterator[npt.NDArray[np.int64]]:
    """The labels of each window, in order."""
    for start in range(0, len(windows), WINDOWS_A_TIME):
        batch = tokenization.gather(lesson.encodings, windows[start : start + WINDOWS_A_TIME])
        yield from lesson.asking(batch, lesson.tokenizer, SCORING_KEY).labels.numpy()


def _per_window(
    forward: Forward,
    lesson: Lesson,
    windows: Ints,
    micro_batch_tokens: int,
    accelerator: Accelerator,
) -> tuple[Floats, Floats]:
    """(targets, negative log-likelihood) of each window, in the order of ``windows``, summed over the processes that scored them."""
    found = torch.zeros(2, len(windows), dtype=torch.float64, device=accelerator.device)
    lengths = lesson.encodings.lengths[windows]
    groups = tokenization.micro_batches(lengths, np.arange(len(windows)), micro_batch_tokens)
    with torch.inference_mode():
        for group in groups[accelerator.process_index :: accelerator.num_processes]:
            batch = tokenization.gather(lesson.encodings, windows[group]).to(accelerator.device)
            scores = score(
                forward,
                lesson.asking(batch, lesson.tokenizer, SCORING_KEY),
                batch.attention_mask,
                lesson.vocabulary,
            )
            found[0, group], found[1, group] = (
                scores.targets.double(),
                scores.negative_log_likelihood.double(),
            )
    found = accelerator.reduce(found, "sum").cpu().numpy()
    return found[0], found[1]


def _by_note(lesson: Lesson, windows: Ints, targets: Floats, summed: Floats) -> pa.Table:
    notes, at = np.unique(lesson.encodings.notes[windows], return_inverse=True)
    table = lesson.encodings.table.take(pa.array(notes))
    counted = pa.array(np.bincount(at, targets).astype(np.int64))
    losses = pa.array(np.bincount(at, summed, minlength=len(notes)))
    columns = {name: table[name] for name in ("note_id", "subject_id", "category", "split")}
    return pa.table(
        columns | {"tokens": counted, "negative_log_likelihood": losses}, schema=LIKELIHOOD
    )
