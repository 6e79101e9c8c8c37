"""The surprise of every asked token without the table of (tokens, vocabulary): a block of tokens at a time, its gradient made on the spot.

The loss of a token depends on that token's vector alone, so the gradient can be taken while the token's scores are at hand, and be scaled by whatever
comes down later. Nothing as wide as the vocabulary outlives its block, no token is scored that is not asked, and the frozen head gets no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

LOSS_BLOCK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}
"""Of a block's float32 scores. On a CPU they are to stay in its cache: of 8,192 words 1,024 rows at a time take 1.3 times as long as 512."""

MIN_LOSS_BLOCK_ROWS = 64
"""Of a block: with fewer, the products take longer than what stays in the cache saves (128,256 words: 32 rows take 1.3 times as long as 64)."""

SOFTCAP_CONFIG_KEY = "final_logit_softcapping"
"""In a config: scores are c tanh(score / c) (Gemma 2, arXiv 2408.00118, section 2)."""


@dataclass(frozen=True)
class VocabularyProjection:
    """From vectors to scores of every word: ``softcap * tanh((x W^T + bias) / softcap)``, without the cap where it is None; all of it frozen."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None


@dataclass(frozen=True, eq=False)
class LanguageModelHead:
    """The last layer of a language model, looked at anew whenever it is asked, because adapters may have come to it since.

    Attributes:
        model: a transformers model with its language-modelling head.
    """

    model: Any

    def get_projection(self) -> VocabularyProjection | None:
        """What turns vectors into scores; None where it is not one frozen linear layer: adapted, trained (tied embeddings), spread over devices."""
        head = self.model.get_output_embeddings()
        if (
            type(head) is not torch.nn.Linear
            or "forward" in vars(head)
            or any(parameter.requires_grad for parameter in head.parameters())
        ):
            return None
        return VocabularyProjection(
            head.weight, head.bias, getattr(self.model.config, SOFTCAP_CONFIG_KEY, None)
        )

    @contextmanager
    def skip_projection(self) -> Iterator[None]:
        """For as long as the block lasts the model answers with the vectors that would have been scored, in place of the scores."""
        head, config = self.model.get_output_embeddings(), self.model.config
        cap = getattr(config, SOFTCAP_CONFIG_KEY, None)
        if cap is not None:
            setattr(config, SOFTCAP_CONFIG_KEY, None)
        head.forward = _return_input
        try:
            yield
        finally:
            del head.forward
            if cap is not None:
                setattr(config, SOFTCAP_CONFIG_KEY, cap)


def _return_input(vectors: torch.Tensor) -> torch.Tensor:
    return vectors


def compute_loss_block_rows(vocabulary_size: int, device_type: str) -> int:
    """Tokens that are scored at a time, of a vocabulary of so many entries."""
    return max(
        MIN_LOSS_BLOCK_ROWS,
        LOSS_BLOCK_BYTES.get(device_type, LOSS_BLOCK_BYTES["cuda"]) // (4 * vocabulary_size),
    )


def compute_chunked_cross_entropy(
    vectors: torch.Tensor,
    projection: VocabularyProjection,
    targets: torch.Tensor,
    block_bytes: int | None = None,
) -> torch.Tensor:
    """-log of the probability of the right word, of every token.

    The products are in the precision of the projection, the softmax in float32.

    Args:
        vectors: (tokens, width), of the tokens that are asked.
        projection: to the vocabulary.
        targets: (tokens,) the right words.
        block_bytes: of the scores of one block; None: by the device.

    Returns:
        (tokens,) nats, float32; their gradient goes to ``vectors`` and nowhere else.
    """
    entries = len(projection.weight)
    at_once = (
        compute_loss_block_rows(entries, vectors.device.type)
        if block_bytes is None
        else max(1, block_bytes // (4 * entries))
    )
    logits_dtype = projection.weight.dtype
    return _ChunkedCrossEntropy.apply(vectors.to(logits_dtype), projection, targets, at_once)  # type: ignore[no-any-return, no-untyped-call]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients of a token's surprise by its vector are made in the forward pass, and multiplied by what comes down in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        vectors: torch.Tensor,
        projection: VocabularyProjection,
        targets: torch.Tensor,
        block_rows: int,
    ) -> torch.Tensor:
        losses = torch.empty(len(vectors), dtype=torch.float32, device=vectors.device)
        slopes = torch.empty_like(vectors) if ctx.needs_input_grad[0] else None
        room = _BlockBuffers.allocate(vectors, projection, min(block_rows, len(vectors)))
        for start in range(0, len(vectors), block_rows):
            block = slice(start, start + block_rows)
            odds = room.fill_losses(vectors[block], targets[block], losses[block])
            if slopes is not None:
                torch.mm(room.cast_to_vector_precision(odds), projection.weight, out=slopes[block])
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * gradient.to(slopes.dtype)[:, None], None, None, None)


@dataclass(frozen=True)
class _BlockBuffers:
    """What one block is worked out in, used for every block: fresh memory for each would cost more than the softmax.

    Attributes:
        projection: to the vocabulary.
        scores: (tokens, vocabulary) in the precision of the vectors.
        probabilities: (tokens, vocabulary) float32.
    """

    projection: VocabularyProjection
    scores: torch.Tensor
    probabilities: torch.Tensor

    @staticmethod
    def allocate(
        vectors: torch.Tensor, projection: VocabularyProjection, tokens: int
    ) -> _BlockBuffers:
        scores = vectors.new_empty(tokens, len(projection.weight))
        return _BlockBuffers(projection, scores, torch.empty_like(scores, dtype=torch.float32))

    def fill_losses(
        self, vectors: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor
    ) -> torch.Tensor:
        """Fill in ``losses``, and give the slope of each by the scores before the cap: probabilities, with 1 taken from the right word's."""
        scores, odds = self.scores[: len(vectors)], self.probabilities[: len(vectors)]
        weight, bias, cap = self.projection.weight, self.projection.bias, self.projection.softcap
        torch.mm(vectors, weight.T, out=scores)
        if bias is not None:
            scores.add_(bias)
        if cap is not None:
            scores.div_(cap).tanh_().mul_(cap)
        torch.softmax(scores, dim=-1, dtype=torch.float32, out=odds)
        right = targets[:, None]
        # -log odds[right] would be infinite where the odds are below 1e-38; those of the likeliest word never are
        behind = scores.amax(dim=-1).float() - scores.gather(1, right)[:, 0].float()
        losses.copy_(behind - odds.amax(dim=-1).log())
        odds.scatter_add_(1, right, odds.new_full((), -1.0).expand(right.shape))
        if cap is not None:
            odds.mul_(1.0 - (scores.float() / cap).square())
        return odds

    def cast_to_vector_precision(self, score_gradients: torch.Tensor) -> torch.Tensor:
        """In the precision of the vectors; the scores are done with, and their place is taken."""
        return (
            score_gradients
            if score_gradients.dtype == self.scores.dtype
            else self.scores[: len(score_gradients)].copy_(score_gradients)
        )
