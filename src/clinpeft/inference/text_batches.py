"""Texts as they are learned from: tokenised once, in memory, and turned into vectors with their gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clinpeft import adapters
from clinpeft.adapters import Stack
from clinpeft.inference.encode import in_rows, limit, tokenised
from clinpeft.inference.predict import Floats
from clinpeft.models.embedding_config import Manner
from clinpeft.tokenization import Ints, micro_batches


@dataclass(frozen=True)
class Learning:
    """Texts by their ids, which are their positions.

    Attributes:
        lengths: (texts,) tokens.
        embed: ids -> (texts, width) pooled vectors, float32, through whatever is trained; not normalised.
        grouped: ids -> micro-batches of like length.
        truncated: how many texts were cut at their end.
    """

    lengths: Ints
    embed: Callable[[Ints], torch.Tensor]
    grouped: Callable[[Ints], list[Ints]]
    truncated: int


def learning(
    stack: Stack,
    embedding_config: Manner,
    texts: Sequence[str],
    micro_batch_tokens: int,
    device: torch.device,
) -> Learning:
    """Texts, prompts already before them, made ready to be learned from.

    Memory: eight bytes a token; a shelf of textbooks is a few megabytes.

    Args:
        stack: base and adapters.
        embedding_config: where a vector is read, and the longest text.
        texts: what stands in the pairs.
        micro_batch_tokens: tokens that go through the model together.
        device: where.
    """
    ids, truncated = tokenised(stack.base.tokenizer, list(texts), limit(stack, embedding_config))
    lengths = np.asarray([len(each) for each in ids], dtype=np.int64)

    def embed(chosen: Ints) -> torch.Tensor:
        input_ids, mask = in_rows([ids[at] for at in chosen])
        input_ids, mask = input_ids.to(device), mask.to(device)
        return adapters.pooled(stack, input_ids, mask, embedding_config.pooling)

    return Learning(
        lengths, embed, lambda chosen: micro_batches(lengths, chosen, micro_batch_tokens), truncated
    )


def text_vectors(texts: Learning) -> Floats:
    """The vectors (texts, width) of all texts without gradient, in an order that depends on their lengths alone."""
    with torch.inference_mode():
        found: Floats = np.concatenate(
            [
                texts.embed(group).cpu().numpy()
                for group in texts.grouped(np.arange(len(texts.lengths)))
            ]
        )
    return found
