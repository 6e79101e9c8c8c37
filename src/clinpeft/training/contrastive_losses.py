"""Losses of vectors that belong together: pure functions, summed over anchors, with the number of anchors they were asked of.

In all of them row i of ``anchors`` belongs to row i of ``positives``. The candidates of every anchor are all positives, its own on the diagonal, and
behind them all negatives: (anchors, candidates) with candidates = anchors + negatives. Similarity is the dot product, so the caller normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from clinpeft.training.trainer import LossSum

ContrastiveLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], LossSum]
"""(anchors, positives, negatives) -> sums."""


def compute_similarities(
    anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None = None
) -> torch.Tensor:
    """(anchors, candidates), float32."""
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
    """The positive has to be told from all negatives at once.

    l_i = -log( exp(s_ii / t) / sum over candidates c of exp(s_ic / t) ), van den Oord et al. 2018 (arXiv 1807.03748, equation 4); with the other
    pairs' positives as negatives it is the multiple negatives ranking of Henderson et al. 2017 (arXiv 1705.00652, section 4.4), which
    sentence-transformers writes with a scale of 1 / t. Symmetric adds the same of each positive among all anchors, and is the mean of the two
    (Radford et al. 2021, arXiv 2103.00020, figure 3). An anchor without an allowed negative has loss 0, and is not asked.

    Args:
        anchors: (anchors, width).
        positives: (anchors, width).
        negatives: (negatives, width), of all anchors alike.
        temperature: t.
        symmetric: both ways.
        candidate_mask: (anchors, candidates) False where a candidate is left out; the diagonal is True. None: all.
        reverse_mask: (anchors, anchors) the same of each positive among the anchors.
    """
    scores = compute_similarities(anchors, positives, negatives)
    ways = [(scores, candidate_mask), (scores[:, : len(anchors)].T, reverse_mask)][: 1 + symmetric]
    sums = [_sum_diagonal_cross_entropy(some / temperature, mask) for some, mask in ways]
    return LossSum(
        torch.stack([each.loss for each in sums]).mean(dim=0),
        sum(each.targets for each in sums) / len(sums),
    )


def _sum_diagonal_cross_entropy(
    logits: torch.Tensor, candidate_mask: torch.Tensor | None
) -> LossSum:
    """Cross-entropy of the diagonal, summed."""
    if candidate_mask is None:
        candidate_mask = torch.ones_like(logits, dtype=torch.bool)
    own = torch.arange(len(logits), device=logits.device)
    whole = functional.cross_entropy(
        logits.masked_fill(~candidate_mask, -torch.inf), own, reduction="sum"
    )
    return LossSum(whole, float(has_negatives(candidate_mask).sum()))


def has_negatives(candidate_mask: torch.Tensor) -> torch.Tensor:
    """(anchors,) whether anything but its own positive is allowed for an anchor."""
    return candidate_mask.sum(dim=1) > 1


def triplet_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    margin: float = 0.2,
    candidate_mask: torch.Tensor | None = None,
) -> LossSum:
    """The positive has to be more similar than each negative by a margin.

    l_i = mean over negatives c of max(0, s_ic - s_ii + margin), Schroff et al. 2015 (arXiv 1503.03832, equation 1) with 1 - similarity as the
    distance. An anchor without an allowed negative has loss 0, and is not asked.

    Args:
        anchors: (anchors, width).
        positives: (anchors, width).
        negatives: (negatives, width).
        margin: in units of the similarity.
        candidate_mask: (anchors, candidates) False where a candidate is left out; the diagonal counts for nothing. None: all.
    """
    scores = compute_similarities(anchors, positives, negatives)
    used = (
        torch.ones_like(scores, dtype=torch.bool)
        if candidate_mask is None
        else candidate_mask.clone()
    )
    used.fill_diagonal_(False)
    short = functional.relu(scores - scores.diagonal()[:, None] + margin).masked_fill(~used, 0.0)
    counts = used.sum(dim=1)
    return LossSum((short.sum(dim=1) / counts.clamp(min=1)).sum(), float((counts > 0).sum()))


def build_matryoshka_loss(
    loss: ContrastiveLoss,
    dims: Sequence[int] = (),
    weights: Sequence[float] = (),
    normalize: bool = True,
) -> ContrastiveLoss:
    """The loss of the whole vectors, plus its weighted loss at each of their beginnings: sum over d of w_d l(v[:d]), each cut and then brought to
    length 1 again (Kusupati et al. 2022, arXiv 2205.13147, equation 1).

    Args:
        loss: at every length.
        dims: how many numbers of the vectors, besides all of them.
        weights: one for each of ``dims``; empty: 1. The whole vector weighs 1.
        normalize: to length 1; without it the vectors are only cut.
    """
    cuts = [(None, 1.0), *zip(dims, weights or [1.0] * len(dims), strict=True)]

    def cut(vectors: torch.Tensor | None, dim: int | None) -> torch.Tensor | None:
        if vectors is None:
            return None
        return (
            functional.normalize(vectors[:, :dim].float(), dim=-1)
            if normalize
            else vectors[:, :dim].float()
        )

    def nested(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None
    ) -> LossSum:
        sums = [
            loss(cut(anchors, dim), cut(positives, dim), cut(negatives, dim))  # type: ignore[arg-type]  # None only for negatives
            for dim, _ in cuts
        ]
        whole = torch.stack(
            [weight * each.loss for (_, weight), each in zip(cuts, sums, strict=True)]
        ).sum(dim=0)
        return LossSum(whole, sums[0].targets)

    return nested


def find_likely_negatives(scores: torch.Tensor, margin: float) -> torch.Tensor:
    """(anchors, candidates) False where a candidate is more similar to the anchor than its own positive by more than ``margin``, and so is likely an
    answer that nobody paired with it; the diagonal is True. As ms-swift's ``INFONCE_MASK_FAKE_NEGATIVE``, which adds 0.1."""
    own = scores.diagonal()[:, None]
    kept = ~(scores > own + margin)  # what is not a number is kept, and stops the run in the loss
    return kept.fill_diagonal_(True)
