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

from clinpeft.tokenization import WindowBatch, EncodedCorpus, IndexArray, Tokenizer
from clinpeft.training.chunked_loss import LanguageModelHead, compute_chunked_cross_entropy

TokenLogitFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rows, time) ids and attention mask -> (rows, time, vocabulary) logits, aligned with the ids."""

IGNORE_INDEX = -100


@dataclass(frozen=True)
class BatchLikelihoods:
    """Per row of a batch.

    Attributes:
        negative_log_likelihood: (rows,) summed over the row's targets, nats, float32.
        target_counts: (rows,) how many tokens were scored.
    """

    negative_log_likelihood: torch.Tensor
    target_counts: torch.Tensor


@dataclass(frozen=True)
class LabeledBatch:
    """What a model is shown and asked: ids (rows, time), and labels (rows, time) with ``IGNORED`` where nothing is asked. The label at a position is
    answered by the logits of that same position."""

    input_ids: torch.Tensor
    labels: torch.Tensor


LabelFunction = Callable[[WindowBatch, Tokenizer, tuple[int, ...]], LabeledBatch]


def label_next_tokens(
    batch: WindowBatch, tokenizer: Tokenizer, key: tuple[int, ...]
) -> LabeledBatch:  # noqa: ARG001
    """Next-token prediction. Padding is told by the attention mask and never by an id, so that ``eos`` is learned even where it serves as pad."""
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
    labels[:, :-1] = batch.input_ids[:, 1:].masked_fill(
        batch.attention_mask[:, 1:] == 0, IGNORE_INDEX
    )
    return LabeledBatch(batch.input_ids, labels)


@dataclass(frozen=True)
class LanguageModelingData:
    """What is learned: the windows to learn from, those to choose the best weights by, and how a window becomes a question; and the vocabulary of
    the model that learns it, where its scores need not be made all at once."""

    encodings: EncodedCorpus
    tokenizer: Tokenizer
    label_batch: LabelFunction
    seed: int
    train_windows: IndexArray
    tuning_windows: IndexArray
    language_model_head: LanguageModelHead | None = None


MASKED_TOKEN_FRACTION, MASK_TOKEN_FRACTION, RANDOM_TOKEN_FRACTION = 0.15, 0.8, 0.1


def mask_tokens(batch: WindowBatch, tokenizer: Tokenizer, key: tuple[int, ...]) -> LabeledBatch:
    """Masked-token prediction (Devlin et al. 2019): 15 % of a window's text tokens, at least one, of which 80 % become the mask token, 10 % a
    random one, 10 % stay. The draw depends on ``key`` and the window alone, so neighbours, order and processes do not change it."""
    inputs, labels = batch.input_ids.clone(), torch.full_like(batch.input_ids, IGNORE_INDEX)
    specials = torch.tensor(sorted(tokenizer.all_special_ids))
    text = (batch.attention_mask.cpu() == 1) & ~torch.isin(batch.input_ids.cpu(), specials)
    for row, window in enumerate(batch.window_indices):
        places = np.flatnonzero(text[row].numpy())
        if not len(places):
            continue
        rng = np.random.default_rng([*key, int(window)])
        chosen = rng.choice(
            places, max(1, round(MASKED_TOKEN_FRACTION * len(places))), replace=False
        )
        fate, other = rng.random(len(chosen)), rng.integers(0, len(tokenizer), len(chosen))
        labels[row, chosen] = batch.input_ids[row, chosen]
        inputs[row, chosen[fate < MASK_TOKEN_FRACTION]] = tokenizer.mask_token_id
        swapped = (fate >= MASK_TOKEN_FRACTION) & (
            fate < MASK_TOKEN_FRACTION + RANDOM_TOKEN_FRACTION
        )
        inputs[row, chosen[swapped]] = torch.from_numpy(other[swapped]).to(inputs.device)
    return LabeledBatch(inputs, labels)


LANGUAGE_OBJECTIVES: dict[str, LabelFunction] = {
    "causal-lm": label_next_tokens,
    "masked-lm": mask_tokens,
}


def compute_batch_likelihoods(
    forward: TokenLogitFunction,
    labeled_batch: LabeledBatch,
    attention_mask: torch.Tensor,
    language_model_head: LanguageModelHead | None = None,
) -> BatchLikelihoods:
    """What the model thinks of the right answers. Softmax and logarithm in float32, and only where something is asked: (targets, vocabulary), of
    which no more than a block is made at a time where ``language_model_head`` is given, is that of the model in ``forward``, and is frozen."""
    asked = labeled_batch.labels != IGNORE_INDEX
    losses = _compute_token_losses(
        forward, labeled_batch, attention_mask, asked, language_model_head
    )
    rows = torch.nonzero(asked)[:, 0]
    summed = losses.new_zeros(len(asked)).index_add(0, rows, losses)
    return BatchLikelihoods(summed, asked.sum(dim=1))


def sum_packed_loss(
    packed_outputs: torch.Tensor,
    labeled_batch: LabeledBatch,
    attention_mask: torch.Tensor,
    language_model_head: LanguageModelHead | None = None,
) -> tuple[torch.Tensor, int]:
    """The surprise of everything that is asked, and how much that is, from what the model said at every token.

    Args:
        packed_outputs: (tokens, vocabulary) logits, row by row, without padding; or (tokens, width) where ``language_model_head`` makes scores of that.
        labeled_batch, attention_mask, language_model_head: as for ``score``.
    """
    asked = labeled_batch.labels != IGNORE_INDEX
    chosen, right = packed_outputs[asked[attention_mask != 0]], labeled_batch.labels[asked]
    projection = language_model_head.get_projection() if language_model_head else None
    losses = (
        functional.cross_entropy(chosen.float(), right, reduction="none")
        if projection is None
        else compute_chunked_cross_entropy(chosen, projection, right)
    )
    return losses.sum(), len(right)


def _compute_token_losses(
    forward: TokenLogitFunction,
    labeled_batch: LabeledBatch,
    attention_mask: torch.Tensor,
    label_mask: torch.Tensor,
    language_model_head: LanguageModelHead | None,
) -> torch.Tensor:
    """(targets,) in the order of the rows."""
    projection = language_model_head.get_projection() if language_model_head else None
    if language_model_head is None or projection is None:
        logits = forward(labeled_batch.input_ids, attention_mask)[label_mask].float()
        return functional.cross_entropy(logits, labeled_batch.labels[label_mask], reduction="none")
    with language_model_head.skip_projection():
        vectors = forward(labeled_batch.input_ids, attention_mask)
    return compute_chunked_cross_entropy(
        vectors[label_mask], projection, labeled_batch.labels[label_mask]
    )
