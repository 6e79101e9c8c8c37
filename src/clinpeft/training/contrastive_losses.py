"""Contrastive losses: pure functions, summed over anchors, with the number of anchors.

In all of them row i of ``anchors`` belongs to row i of ``positives``. The candidates of every
anchor are all positives, its own on the diagonal, and after them all negatives:
(anchors, candidates) with candidates = anchors + negatives. Similarity is the dot product, so that
the caller normalizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from clinpeft.training.trainer import LossSum

ContrastiveLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], LossSum]
"""(anchors, positives, negatives) -> summed loss."""


def compute_similarities(
    anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the dot products of anchors and candidates.

    Returns:
        (anchors, candidates), float32.
    """
    # (candidates, width), positives first
    candidates = positives if negatives is None else torch.cat([positives, negatives])
    return anchors.float() @ candidates.float().T


def info_nce_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    temperature: float = 0.05,
    symmetric: bool = False,
    candidate_mask: torch.Tensor | None = None,
    reverse_mask: torch.Tensor | None = None,
) -> LossSum:
    """Compute InfoNCE: the cross-entropy of the positive among all candidates.

    l_i = -log( exp(s_ii / t) / sum over candidates c of exp(s_ic / t) ), van den Oord et al. 2018
    (arXiv 1807.03748, equation 4). With the other pairs' positives as negatives it is the multiple
    negatives ranking loss of Henderson et al. 2017 (arXiv 1705.00652, section 4.4), which
    sentence-transformers writes with a scale of 1 / t. The symmetric loss is the mean of this one
    and the same of each positive among all anchors (Radford et al. 2021, arXiv 2103.00020,
    figure 3). An anchor without an allowed negative has loss 0, and is not counted.

    Args:
        anchors: (anchors, width).
        positives: (anchors, width).
        negatives: (negatives, width), candidates of every anchor.
        temperature: t.
        symmetric: whether positives are matched to anchors, too.
        candidate_mask: (anchors, candidates) False where a candidate is left out; the diagonal is
            True. None: all candidates.
        reverse_mask: (anchors, anchors) the same of each positive among the anchors.
    """
    scores = compute_similarities(anchors, positives, negatives)
    directions = [(scores, candidate_mask)]
    if symmetric:
        # candidates of a positive are the anchors; hard negatives have no anchor of their own
        directions.append((scores[:, : len(anchors)].T, reverse_mask))
    losses, counts = [], []
    for similarities, direction_mask in directions:
        # (anchors, candidates)
        logits = similarities / temperature
        mask = (
            torch.ones_like(logits, dtype=torch.bool) if direction_mask is None else direction_mask
        )
        own = torch.arange(len(logits), device=logits.device)  # the positive is on the diagonal
        # exp(-inf) = 0 leaves a masked candidate out of the sum
        masked = logits.masked_fill(~mask, -torch.inf)
        losses.append(functional.cross_entropy(masked, own, reduction="sum"))
        counts.append(float(has_negatives(mask).sum()))
    return LossSum(torch.stack(losses).mean(dim=0), sum(counts) / len(counts))


def has_negatives(candidate_mask: torch.Tensor) -> torch.Tensor:
    """Find anchors that have a candidate beside their own positive.

    Returns:
        (anchors,) bool.
    """
    return candidate_mask.sum(dim=1) > 1


def triplet_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    margin: float = 0.2,
    candidate_mask: torch.Tensor | None = None,
) -> LossSum:
    """Compute the triplet loss, averaged over the negatives of each anchor.

    l_i = mean over negatives c of max(0, s_ic - s_ii + margin), Schroff et al. 2015
    (arXiv 1503.03832, equation 1) with 1 - similarity as the distance. An anchor without an allowed
    negative has loss 0, and is not counted.

    Args:
        anchors: (anchors, width).
        positives: (anchors, width).
        negatives: (negatives, width).
        margin: in units of the similarity.
        candidate_mask: (anchors, candidates) False where a candidate is left out; the diagonal is
            ignored. None: all candidates.
    """
    scores = compute_similarities(anchors, positives, negatives)
    is_negative = (
        torch.ones_like(scores, dtype=torch.bool)
        if candidate_mask is None
        else candidate_mask.clone()
    )
    # (anchors, candidates), without the positive itself
    is_negative.fill_diagonal_(False)
    violations = functional.relu(scores - scores.diagonal()[:, None] + margin)
    violations = violations.masked_fill(~is_negative, 0.0)  # (anchors, candidates)
    counts = is_negative.sum(dim=1)  # (anchors,)
    # (anchors,); clamp, since an anchor without negatives would be 0 / 0
    losses = violations.sum(dim=1) / counts.clamp(min=1)
    return LossSum(losses.sum(), float((counts > 0).sum()))


def truncate_vectors(
    vectors: torch.Tensor, dim: int | None = None, normalize: bool = True
) -> torch.Tensor:
    """Cut vectors to their first numbers.

    Args:
        vectors: (rows, width).
        dim: numbers to keep; None: all.
        normalize: to length 1.

    Returns:
        (rows, dim), float32.
    """
    # (rows, dim); a slice up to None is the whole vector
    truncated = vectors[:, :dim].float()
    return functional.normalize(truncated, dim=-1) if normalize else truncated


def build_matryoshka_loss(
    loss: ContrastiveLoss,
    dims: Sequence[int] = (),
    weights: Sequence[float] = (),
    normalize: bool = True,
) -> ContrastiveLoss:
    """Build the loss of whole vectors plus its weighted losses at several truncated widths.

    l(v) + sum over d of w_d l(v[:d]), each truncated vector normalized again (Kusupati et al. 2022,
    arXiv 2205.13147, equation 1).

    Args:
        loss: at every width.
        dims: truncated widths.
        weights: one for each of ``dims``; empty: 1. The whole vector has weight 1.
        normalize: whether vectors are normalized.
    """
    terms = [(None, 1.0), *zip(dims, weights or [1.0] * len(dims), strict=True)]

    def matryoshka_loss(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None
    ) -> LossSum:
        loss_sums = [
            loss(
                truncate_vectors(anchors, dim, normalize),
                truncate_vectors(positives, dim, normalize),
                None if negatives is None else truncate_vectors(negatives, dim, normalize),
            )
            for dim, _ in terms
        ]
        # one scalar for each width
        weighted = [
            weight * loss_sum.loss for (_, weight), loss_sum in zip(terms, loss_sums, strict=True)
        ]
        # the masks, and so the anchors that count, are the same at every width
        return LossSum(torch.stack(weighted).sum(dim=0), loss_sums[0].targets)

    return matryoshka_loss


def find_likely_negatives(scores: torch.Tensor, margin: float) -> torch.Tensor:
    """Find candidates that are no more similar to an anchor than its own positive plus a margin.

    The others are likely answers that no pair names. As ms-swift's ``INFONCE_MASK_FAKE_NEGATIVE``,
    whose margin is 0.1.

    Args:
        scores: (anchors, candidates) similarities.
        margin: in units of the similarity.

    Returns:
        (anchors, candidates) bool; the diagonal is True.
    """
    own = scores.diagonal()[:, None]  # (anchors, 1)
    # not "<=": NaN has to stay a candidate, so that the loss is NaN and the run stops
    return (~(scores > own + margin)).fill_diagonal_(True)
