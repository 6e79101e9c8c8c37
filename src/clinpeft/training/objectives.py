"""Objectives: batch -> loss, per row and per token, so that the caller alone decides what it is divided by.

A mean over a micro-batch cannot be accumulated: micro-batches hold different numbers of targets. So an objective gives sums and counts, and
the loop divides once, by the targets of the whole optimiser step over all micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from clinpeft.tokenization import Batch, Encodings, Ints, Tokenizer
from clinpeft.training.chunked_loss import Vocabulary, surprises

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rows, time) ids and attention mask -> (rows, time, vocabulary) logits, aligned with the ids."""

IGNORED = -100


@dataclass(frozen=True)
class Scores:
    """Per row of a batch.

    Attributes:
        negative_log_likelihood: (rows,) summed over the row's targets, nats, float32.
        targets: (rows,) how many tokens were scored.
    """

    negative_log_likelihood: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Question:
    """What a model is shown and asked: ids (rows, time), and labels (rows, time) with ``IGNORED`` where nothing is asked. The label at a position is
    answered by the logits of that same position."""

    input_ids: torch.Tensor
    labels: torch.Tensor


Asking = Callable[[Batch, Tokenizer, tuple[int, ...]], Question]


def causal(batch: Batch, tokenizer: Tokenizer, key: tuple[int, ...]) -> Question:  # noqa: ARG001
    """Next-token prediction. Padding is told by the attention mask and never by an id, so that ``eos`` is learned even where it serves as pad."""
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels[:, :-1] = batch.input_ids[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, IGNORED)
    return Question(batch.input_ids, labels)


@dataclass(frozen=True)
class Lesson:
    """What is learned: the windows to learn from, those to choose the best weights by, and how a window becomes a question; and the vocabulary of
    the model that learns it, where its scores need not be made all at once."""

    encodings: Encodings
    tokenizer: Tokenizer
    asking: Asking
    seed: int
    train: Ints
    tuning: Ints
    vocabulary: Vocabulary | None = None


MASKED_SHARE, REPLACED_SHARE, RANDOM_SHARE = 0.15, 0.8, 0.1


def masked(batch: Batch, tokenizer: Tokenizer, key: tuple[int, ...]) -> Question:
    """Masked-token prediction (Devlin et al. 2019): 15 % of a window's text tokens, at least one, of which 80 % become the mask token, 10 % a
    random one, 10 % stay. The draw depends on ``key`` and the window alone, so neighbours, order and processes do not change it."""
    inputs, labels = batch.input_ids.clone(), torch.full_like(batch.input_ids, IGNORED)
    specials = torch.tensor(sorted(tokenizer.all_special_ids))
    text = (batch.attention_mask.cpu() == 1) & ~torch.isin(batch.input_ids.cpu(), specials)
    for row, window in enumerate(batch.windows):
        places = np.flatnonzero(text[row].numpy())
        if not len(places):
            continue
        rng = np.random.default_rng([*key, int(window)])
        chosen = rng.choice(places, max(1, round(MASKED_SHARE * len(places))), replace=False)
        fate, other = rng.random(len(chosen)), rng.integers(0, len(tokenizer), len(chosen))
        labels[row, chosen] = batch.input_ids[row, chosen]
        inputs[row, chosen[fate < REPLACED_SHARE]] = tokenizer.mask_token_id
        swapped = (fate >= REPLACED_SHARE) & (fate < REPLACED_SHARE + RANDOM_SHARE)
        inputs[row, chosen[swapped]] = torch.from_numpy(other[swapped]).to(inputs.device)
    return Question(inputs, labels)


OBJECTIVES: dict[str, Asking] = {"causal-lm": causal, "masked-lm": masked}


def score(
    forward: Forward,
    question: Question,
    attention_mask: torch.Tensor,
    vocabulary: Vocabulary | None = None,
) -> Scores:
    """What the model thinks of the right answers. Softmax and logarithm in float32, and only where something is asked: (targets, vocabulary), of
    which no more than a block is made at a time where ``vocabulary`` is given, is that of the model in ``forward``, and is frozen."""
    asked = question.labels != IGNORED
    losses = _losses(forward, question, attention_mask, asked, vocabulary)
    rows = torch.nonzero(asked)[:, 0]
    summed = losses.new_zeros(len(asked)).index_add(0, rows, losses)
    return Scores(summed, asked.sum(dim=1))


def summed(
    found: torch.Tensor,
    question: Question,
    attention_mask: torch.Tensor,
    vocabulary: Vocabulary | None = None,
) -> tuple[torch.Tensor, int]:
    """The surprise of everything that is asked, and how much that is, from what the model said at every token.

    Args:
        found: (tokens, vocabulary) logits, row by row, without padding; or (tokens, width) where ``vocabulary`` makes scores of that.
        question, attention_mask, vocabulary: as for ``score``.
    """
    asked = question.labels != IGNORED
    chosen, right = found[asked[attention_mask != 0]], question.labels[asked]
    projection = vocabulary.projection() if vocabulary else None
    losses = (
        functional.cross_entropy(chosen.float(), right, reduction="none")
        if projection is None
        else surprises(chosen, projection, right)
    )
    return losses.sum(), len(right)


def _losses(
    forward: Forward,
    question: Question,
    mask: torch.Tensor,
    asked: torch.Tensor,
    vocabulary: Vocabulary | None,
) -> torch.Tensor:
    """(targets,) in the order of the rows."""
    projection = vocabulary.projection() if vocabulary else None
    if vocabulary is None or projection is None:
        logits = forward(question.input_ids, mask)[asked].float()
        return functional.cross_entropy(logits, question.labels[asked], reduction="none")
    with vocabulary.left_out():
        vectors = forward(question.input_ids, mask)
    return surprises(vectors[asked], projection, question.labels[asked])
