"""Texts for training: tokenized once, in memory, and embedded with their gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clinpeft import adapters
from clinpeft.adapters import Stack
from clinpeft.inference.encode import (
    compute_max_text_tokens,
    pad_token_ids,
    tokenize_with_truncation,
)
from clinpeft.inference.predict import Float32Array
from clinpeft.models.embedding_config import EmbeddingConfig
from clinpeft.tokenization import IndexArray, group_windows


@dataclass(frozen=True)
class TextBatchEncoder:
    """Texts by their index.

    Attributes:
        lengths: (texts,) tokens of each.
        embed: indices (batch,) -> pooled vectors (batch, width), float32, not normalized, with the
            gradient of whatever is trained.
        make_batches: indices -> micro-batches of texts of similar length.
        truncated_texts: number of texts that were truncated at their end.
    """

    lengths: IndexArray
    embed: Callable[[IndexArray], torch.Tensor]
    make_batches: Callable[[IndexArray], list[IndexArray]]
    truncated_texts: int


def build_text_batch_encoder(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    texts: Sequence[str],
    micro_batch_tokens: int,
    device: torch.device,
) -> TextBatchEncoder:
    """Tokenize texts for training.

    Memory: eight bytes per token, a few megabytes for some textbooks.

    Args:
        stack: base and adapters.
        embedding_config: pooling and maximum length.
        texts: of the pairs, with their prompts in front.
        micro_batch_tokens: tokens that go through the model together.
        device: of the model.
    """
    max_tokens = compute_max_text_tokens(stack, embedding_config)
    # one list of ids per text: training samples texts in any order
    ids, num_truncated = tokenize_with_truncation(stack.base.tokenizer, list(texts), max_tokens)
    lengths = np.asarray([len(tokens) for tokens in ids], dtype=np.int64)  # (texts,)

    def embed(indices: IndexArray) -> torch.Tensor:
        input_ids, mask = pad_token_ids([ids[index] for index in indices])  # (batch, time)
        # (batch, width)
        return adapters.compute_pooled_embeddings(
            stack, input_ids.to(device), mask.to(device), embedding_config.pooling
        )

    def make_batches(indices: IndexArray) -> list[IndexArray]:
        return group_windows(lengths, indices, micro_batch_tokens)

    return TextBatchEncoder(lengths, embed, make_batches, num_truncated)


def encode_text_batches(batch_encoder: TextBatchEncoder) -> Float32Array:
    """Return the vectors (texts, width) of all texts, without gradient.

    Their order is that of the batches, longest first, and depends on the lengths alone.
    """
    indices = np.arange(len(batch_encoder.lengths))
    with torch.inference_mode():
        batches = [
            batch_encoder.embed(group).cpu().numpy()  # (batch, width)
            for group in batch_encoder.make_batches(indices)
        ]
    vectors: Float32Array = np.concatenate(batches)
    return vectors
