"""Texts as they are learned from: tokenised once, in memory, and turned into vectors with their gradient."""

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
    """Texts by their ids, which are their positions.

    Attributes:
        lengths: (texts,) tokens.
        embed: ids -> (texts, width) pooled vectors, float32, through whatever is trained; not normalised.
        make_batches: ids -> micro-batches of like length.
        truncated_texts: how many texts were cut at their end.
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
    """Texts, prompts already before them, made ready to be learned from.

    Memory: eight bytes a token; a shelf of textbooks is a few megabytes.

    Args:
        stack: base and adapters.
        embedding_config: where a vector is read, and the longest text.
        texts: what stands in the pairs.
        micro_batch_tokens: tokens that go through the model together.
        device: where.
    """
    ids, truncated = tokenize_with_truncation(
        stack.base.tokenizer, list(texts), compute_max_text_tokens(stack, embedding_config)
    )
    lengths = np.asarray([len(each) for each in ids], dtype=np.int64)

    def embed(chosen: IndexArray) -> torch.Tensor:
        input_ids, mask = pad_token_ids([ids[at] for at in chosen])
        input_ids, mask = input_ids.to(device), mask.to(device)
        return adapters.compute_pooled_embeddings(stack, input_ids, mask, embedding_config.pooling)

    return TextBatchEncoder(
        lengths, embed, lambda chosen: group_windows(lengths, chosen, micro_batch_tokens), truncated
    )


def encode_text_batches(batch_encoder: TextBatchEncoder) -> Float32Array:
    """The vectors (texts, width) of all texts without gradient, in an order that depends on their lengths alone."""
    with torch.inference_mode():
        found: Float32Array = np.concatenate(
            [
                batch_encoder.embed(group).cpu().numpy()
                for group in batch_encoder.make_batches(np.arange(len(batch_encoder.lengths)))
            ]
        )
    return found
