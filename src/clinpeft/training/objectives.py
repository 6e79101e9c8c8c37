"""Language-modeling objectives: batch -> loss for each row and token.

A mean over a micro-batch cannot be accumulated, since micro-batches hold different numbers of
targets. So an objective returns sums and counts, and the training loop divides once, by the targets
of the whole optimizer step over all micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from clinpeft.tokenization import EncodedCorpus, IndexArray, Tokenizer, WindowBatch
from clinpeft.training.chunked_loss import LanguageModelHead, compute_chunked_cross_entropy

TokenLogitFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rows, time) ids and attention mask -> (rows, time, vocabulary) logits, aligned with the ids."""

IGNORE_INDEX = -100
"""Label of positions without a target, as in torch and transformers."""


@dataclass(frozen=True)
class BatchLikelihoods:
    """Likelihoods of the rows of a batch.

    Attributes:
        negative_log_likelihood: (rows,) summed over the row's targets, nats, float32.
        target_counts: (rows,) number of targets.
    """

    negative_log_likelihood: torch.Tensor
    target_counts: torch.Tensor


@dataclass(frozen=True)
class LabeledBatch:
    """Inputs and labels of a batch.

    Attributes:
        input_ids: (rows, time).
        labels: (rows, time), ``IGNORE_INDEX`` where there is no target. A label is predicted by the
            logits of the same position; they are not shifted again.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor


LabelFunction = Callable[[WindowBatch, Tokenizer, tuple[int, ...]], LabeledBatch]
"""(batch, tokenizer, entropy of a random draw) -> labeled batch."""


def label_next_tokens(
    batch: WindowBatch,
    tokenizer: Tokenizer,  # noqa: ARG001
    key: tuple[int, ...],  # noqa: ARG001
) -> LabeledBatch:
    """Label every position with the token after it (causal language modeling)."""
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)  # (rows, time)
    # padding is known from the mask and not from an id, so that ``eos`` is a target also where the
    # tokenizer pads with it
    is_padding = batch.attention_mask[:, 1:] == 0  # (rows, time - 1)
    labels[:, :-1] = batch.input_ids[:, 1:].masked_fill(is_padding, IGNORE_INDEX)
    return LabeledBatch(batch.input_ids, labels)


@dataclass(frozen=True)
class LanguageModelingData:
    """Data of language-model training.

    Attributes:
        encodings: windows of tokens.
        tokenizer: of the base.
        label_batch: the objective's inputs and labels.
        seed: of order, masks and dropout.
        train_windows: (windows,) trained on.
        tuning_windows: (windows,) that select the best weights.
        language_model_head: of the trained model, where its logits can be computed in blocks.
    """

    encodings: EncodedCorpus
    tokenizer: Tokenizer
    label_batch: LabelFunction
    seed: int
    train_windows: IndexArray
    tuning_windows: IndexArray
    language_model_head: LanguageModelHead | None = None


MASKED_TOKEN_FRACTION, MASK_TOKEN_FRACTION, RANDOM_TOKEN_FRACTION = 0.15, 0.8, 0.1


def mask_tokens(batch: WindowBatch, tokenizer: Tokenizer, key: tuple[int, ...]) -> LabeledBatch:
    """Mask tokens to be predicted (Devlin et al. 2019, arXiv 1810.04805, section 3.1).

    15 % of a window's text tokens, at least one, are targets; of those, 80 % become the mask token,
    10 % a random token, and 10 % stay.

    Args:
        batch: windows.
        tokenizer: with a mask token.
        key: entropy of the draw, together with each window; neither neighbors nor order nor the
            number of processes change it.
    """
    input_ids = batch.input_ids.clone()  # (rows, time)
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
    # special tokens are never masked; padding is known from the mask
    special_ids = torch.tensor(sorted(tokenizer.all_special_ids))
    is_text = (batch.attention_mask.cpu() == 1) & ~torch.isin(batch.input_ids.cpu(), special_ids)
    for row, window in enumerate(batch.window_indices):
        text_positions = np.flatnonzero(is_text[row].numpy())
        if not len(text_positions):
            continue
        # one generator for each window: its masks do not depend on its neighbors
        rng = np.random.default_rng([*key, int(window)])
        target_count = max(1, round(MASKED_TOKEN_FRACTION * len(text_positions)))
        positions = rng.choice(text_positions, target_count, replace=False)
        # below 0.8: mask token; below 0.9: random token; else: unchanged
        action = rng.random(target_count)
        random_ids = rng.integers(0, len(tokenizer), target_count)
        labels[row, positions] = batch.input_ids[row, positions]
        input_ids[row, positions[action < MASK_TOKEN_FRACTION]] = tokenizer.mask_token_id
        is_random = (action >= MASK_TOKEN_FRACTION) & (
            action < MASK_TOKEN_FRACTION + RANDOM_TOKEN_FRACTION
        )
        replacements = torch.from_numpy(random_ids[is_random]).to(input_ids.device)
        input_ids[row, positions[is_random]] = replacements
    return LabeledBatch(input_ids, labels)


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
    """Compute the negative log-likelihood of the targets of each row.

    Softmax and logarithm are in float32, and computed at targets only.

    Args:
        forward: ids and mask to logits.
        labeled_batch: inputs and labels.
        attention_mask: (rows, time).
        language_model_head: of the model in ``forward``; where it is frozen, logits are computed
            block by block.
    """
    has_target = labeled_batch.labels != IGNORE_INDEX  # (rows, time)
    targets = labeled_batch.labels[has_target]  # (targets,)
    projection = language_model_head.get_projection() if language_model_head else None
    if language_model_head is None or projection is None:
        logits = forward(labeled_batch.input_ids, attention_mask)  # (rows, time, vocabulary)
        losses = compute_target_losses(logits[has_target], targets)
    else:
        with language_model_head.skip_projection():
            hidden = forward(labeled_batch.input_ids, attention_mask)  # (rows, time, width)
        losses = compute_chunked_cross_entropy(hidden[has_target], projection, targets)
    rows = torch.nonzero(has_target)[:, 0]  # (targets,)
    # (targets,) -> (rows,)
    row_losses = losses.new_zeros(len(has_target)).index_add(0, rows, losses)
    return BatchLikelihoods(row_losses, has_target.sum(dim=1))


def compute_target_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the negative log-likelihood of each target, in float32.

    Args:
        logits: (targets, vocabulary).
        targets: (targets,) token ids.

    Returns:
        (targets,) nats.
    """
    return functional.cross_entropy(logits.float(), targets, reduction="none")


def sum_packed_loss(
    packed_outputs: torch.Tensor,
    labeled_batch: LabeledBatch,
    attention_mask: torch.Tensor,
    language_model_head: LanguageModelHead | None = None,
) -> tuple[torch.Tensor, int]:
    """Sum the negative log-likelihood of all targets of a packed batch.

    Args:
        packed_outputs: (tokens, vocabulary) logits, row by row, without padding; or (tokens, width)
            hidden states where ``language_model_head`` is given and frozen.
        labeled_batch, attention_mask, language_model_head: as for ``compute_batch_likelihoods``.

    Returns:
        The sum, and the number of targets.
    """
    has_target = labeled_batch.labels != IGNORE_INDEX  # (rows, time)
    # boolean indexing walks row by row, as the packed tokens do
    outputs = packed_outputs[has_target[attention_mask != 0]]  # (targets, vocabulary or width)
    targets = labeled_batch.labels[has_target]  # (targets,)
    projection = language_model_head.get_projection() if language_model_head else None
    losses = (
        compute_target_losses(outputs, targets)
        if projection is None
        else compute_chunked_cross_entropy(outputs, projection, targets)
    )
    return losses.sum(), len(targets)
