"""Cross-entropy over a vocabulary without the table (tokens, vocabulary), block by block.

The loss of a token depends on that token's vector alone, so that its gradient can be computed while
the logits are in memory, and scaled later by the gradient that arrives in the backward pass.
Nothing as wide as the vocabulary outlives its block, logits are computed for target tokens only,
and the frozen output layer gets no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

LOSS_BLOCK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}
"""Of a block's float32 logits. On a CPU they should stay in its cache: with a vocabulary of
8,192, blocks of 1,024 rows take 1.3 times as long as blocks of 512."""

MIN_LOSS_BLOCK_ROWS = 64
"""Of a block. With fewer rows, the products take longer than the cache saves (vocabulary of
128,256: 32 rows take 1.3 times as long as 64)."""

SOFTCAP_CONFIG_KEY = "final_logit_softcapping"
"""Key of a model's config: logits are c tanh(logit / c) (Gemma 2, arXiv 2408.00118, section 2)."""


@dataclass(frozen=True)
class VocabularyProjection:
    """A frozen output layer: ``softcap * tanh((x W^T + bias) / softcap)``.

    Attributes:
        weight: (vocabulary, width).
        bias: (vocabulary,); None: 0.
        softcap: None: no cap.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None


@dataclass(frozen=True, eq=False)
class LanguageModelHead:
    """The output layer of a language model, inspected at every call: adapters may come later.

    Attributes:
        model: a transformers model with its language-modeling head.
    """

    model: Any

    def get_projection(self) -> VocabularyProjection | None:
        """Get the output layer; None where it is not one frozen linear layer.

        That is where it is adapted, trained (tied embeddings), or spread over devices (accelerate
        replaces ``forward``).
        """
        head = self.model.get_output_embeddings()
        # a subclass (peft, float8) computes something else in its forward
        if (
            type(head) is not torch.nn.Linear
            or "forward" in vars(head)
            or any(parameter.requires_grad for parameter in head.parameters())
        ):
            return None
        softcap = getattr(self.model.config, SOFTCAP_CONFIG_KEY, None)
        return VocabularyProjection(head.weight, head.bias, softcap)

    @contextmanager
    def skip_projection(self) -> Iterator[None]:
        """Let the model return hidden states in place of logits, in the block."""
        head, config = self.model.get_output_embeddings(), self.model.config
        softcap = getattr(config, SOFTCAP_CONFIG_KEY, None)
        # the model applies the cap after its head, and would apply it to the hidden states
        if softcap is not None:
            setattr(config, SOFTCAP_CONFIG_KEY, None)
        head.forward = lambda hidden: hidden
        try:
            yield
        finally:
            del head.forward
            if softcap is not None:
                setattr(config, SOFTCAP_CONFIG_KEY, softcap)


def compute_loss_block_rows(vocabulary_size: int, device_type: str) -> int:
    """Compute how many tokens a block has."""
    block_bytes = LOSS_BLOCK_BYTES.get(device_type, LOSS_BLOCK_BYTES["cuda"])
    return max(MIN_LOSS_BLOCK_ROWS, block_bytes // (4 * vocabulary_size))


def compute_chunked_cross_entropy(
    vectors: torch.Tensor,
    projection: VocabularyProjection,
    targets: torch.Tensor,
    block_bytes: int | None = None,
) -> torch.Tensor:
    """Compute the negative log-likelihood of the target token at every position.

    The products are in the precision of the projection, the softmax in float32.

    Args:
        vectors: (tokens, width), of the positions that have a target.
        projection: to the vocabulary.
        targets: (tokens,) token ids.
        block_bytes: of the logits of one block; None: by the device.

    Returns:
        (tokens,) nats, float32; their gradient reaches ``vectors`` and nothing else.
    """
    vocabulary_size = len(projection.weight)
    block_rows = (
        compute_loss_block_rows(vocabulary_size, vectors.device.type)
        if block_bytes is None
        else max(1, block_bytes // (4 * vocabulary_size))
    )
    # as autocast would cast them for the product
    vectors = vectors.to(projection.weight.dtype)
    losses: torch.Tensor = _ChunkedCrossEntropy.apply(vectors, projection, targets, block_rows)  # type: ignore[no-untyped-call]
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient of each loss is computed in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        vectors: torch.Tensor,
        projection: VocabularyProjection,
        targets: torch.Tensor,
        block_rows: int,
    ) -> torch.Tensor:
        losses = torch.empty(len(vectors), dtype=torch.float32, device=vectors.device)  # (tokens,)
        gradients = torch.empty_like(vectors) if ctx.needs_input_grad[0] else None
        # the same two buffers for every block: new memory for each costs more than the softmax
        logits = vectors.new_empty(min(block_rows, len(vectors)), len(projection.weight))
        buffers = _BlockBuffers(projection, logits, torch.empty_like(logits, dtype=torch.float32))
        for start in range(0, len(vectors), block_rows):
            block = slice(start, start + block_rows)
            logit_gradients = buffers.fill_losses(vectors[block], targets[block], losses[block])
            if gradients is not None:
                # dl/dx = dl/dz W, (block, vocabulary) @ (vocabulary, width)
                logit_gradients = buffers.cast_to_vector_precision(logit_gradients)
                torch.mm(logit_gradients, projection.weight, out=gradients[block])
        # (tokens, width), as large as the vectors, in place of (tokens, vocabulary)
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors  # (tokens, width)
        return (gradients * gradient.to(gradients.dtype)[:, None], None, None, None)


@dataclass(frozen=True)
class _BlockBuffers:
    """Memory for the logits of one block, used for every block.

    Attributes:
        projection: to the vocabulary.
        logits: (block, vocabulary) in the precision of the vectors.
        probabilities: (block, vocabulary) float32.
    """

    projection: VocabularyProjection
    logits: torch.Tensor
    probabilities: torch.Tensor

    def fill_losses(
        self, vectors: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor
    ) -> torch.Tensor:
        """Fill in ``losses`` (block,) and return their gradient by the logits before the cap.

        Returns:
            (block, vocabulary) float32: softmax(z) - onehot(target), times dz/da = 1 - (z / c)^2
            where z = c tanh(a / c).
        """
        # the last block is shorter than the buffers
        logits, probabilities = self.logits[: len(vectors)], self.probabilities[: len(vectors)]
        weight, bias, cap = self.projection.weight, self.projection.bias, self.projection.softcap
        torch.mm(vectors, weight.T, out=logits)
        if bias is not None:
            logits.add_(bias)
        if cap is not None:
            logits.div_(cap).tanh_().mul_(cap)
        # p = softmax(z), in float32 whatever the precision of the logits
        torch.softmax(logits, dim=-1, dtype=torch.float32, out=probabilities)
        columns = targets[:, None]  # (block, 1)
        # -log p(target) = (z_max - z_target) - log p_max: p(target) itself underflows to 0 below
        # 1e-38, and p_max never does
        behind = logits.amax(dim=-1).float() - logits.gather(1, columns)[:, 0].float()
        losses.copy_(behind - probabilities.amax(dim=-1).log())
        # p - onehot(target), in place; no gradient is ever as wide twice
        minus_one = probabilities.new_full((), -1.0).expand(columns.shape)
        probabilities.scatter_add_(1, columns, minus_one)
        if cap is not None:
            probabilities.mul_(1.0 - (logits.float() / cap).square())
        return probabilities

    def cast_to_vector_precision(self, logit_gradients: torch.Tensor) -> torch.Tensor:
        """Cast to the precision of the vectors, in the memory of the logits, which are used up."""
        if logit_gradients.dtype == self.logits.dtype:
            return logit_gradients
        return self.logits[: len(logit_gradients)].copy_(logit_gradients)
