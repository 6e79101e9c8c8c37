"""Losses of vectors that belong together: pure functions, summed over anchors, with the number of anchors they were asked of.

In all of them row i of ``anchors`` belongs to row i of ``positives``. The candidates of every anchor are all positives, its own on the diagonal, and
behind them all negatives: (anchors, candidates) with candidates = anchors + negatives. Similarity is the dot product, so the caller normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from clinpeft.training.trainer import Sums

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Sums]
"""(anchors, positives, negatives) -> sums."""


def similarities(
    anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None = None
) -> torch.Tensor:
    """(anchors, candidates), float32."""
    candidates = positives if negatives is None else torch.cat([positives, negatives])
    return anchors.float() @ candidates.float().T


def info_nce(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    temperature: float = 0.05,
    symmetric: bool = False,
    allowed: torch.Tensor | None = None,
    allowed_back: torch.Tensor | None = None,
) -> Sums:
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
        allowed: (anchors, candidates) False where a candidate is left out; the diagonal is True. None: all.
        allowed_back: (anchors, anchors) the same of each positive among the anchors.
    """
    scores = similarities(anchors, positives, negatives)
    ways = [(scores, allowed), (scores[:, : len(anchors)].T, allowed_back)][: 1 + symmetric]
    sums = [_told_apart(some / temperature, mask) for some, mask in ways]
    return Sums(
        torch.stack([each.loss for each in sums]).mean(dim=0),
        sum(each.targets for each in sums) / len(sums),
    )


def _told_apart(logits: torch.Tensor, allowed: torch.Tensor | None) -> Sums:
    """Cross-entropy of the diagonal, summed."""
    if allowed is None:
        allowed = torch.ones_like(logits, dtype=torch.bool)
    own = torch.arange(len(logits), device=logits.device)
    whole = functional.cross_entropy(logits.masked_fill(~allowed, -torch.inf), own, reduction="sum")
    return Sums(whole, float(has_negatives(allowed).sum()))


def has_negatives(allowed: torch.Tensor) -> torch.Tensor:
    """(anchors,) whether anything but its own positive is allowed for an anchor."""
    return allowed.sum(dim=1) > 1


def triplet(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor | None = None,
    margin: float = 0.2,
    allowed: torch.Tensor | None = None,
) -> Sums:
    """The positive has to be more similar than each negative by a margin.

    l_i = mean over negatives c of max(0, s_ic - s_ii + margin), Schroff et al. 2015 (arXiv 1503.03832, equation 1) with 1 - similarity as the
    distance. An anchor without an allowed negative has loss 0, and is not asked.

    Args:
        anchors: (anchors, width).
        positives: (anchors, width).
        negatives: (negatives, width).
        margin: in units of the similarity.
        allowed: (anchors, candidates) False where a candidate is left out; the diagonal counts for nothing. None: all.
    """
    scores = similarities(anchors, positives, negatives)
    used = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.clone()
    used.fill_diagonal_(False)
    short = functional.relu(scores - scores.diagonal()[:, None] + margin).masked_fill(~used, 0.0)
    counts = used.sum(dim=1)
    return Sums((short.sum(dim=1) / counts.clamp(min=1)).sum(), float((counts > 0).sum()))


def matryoshka(
    loss: Loss, dims: Sequence[int] = (), weights: Sequence[float] = (), normalise: bool = True
) -> Loss:
    """The loss of the whole vectors, plus its weighted loss at each of their beginnings: sum over d of w_d l(v[:d]), each cut and then brought to
    length 1 again (Kusupati et al. 2022, arXiv 2205.13147, equation 1).

    Args:
        loss: at every length.
        dims: how many numbers of the vectors, besides all of them.
        weights: one for each of ``dims``; empty: 1. The whole vector weighs 1.
        normalise: to length 1; without it the vectors are only cut.
    """
    cuts = [(None, 1.0), *zip(dims, weights or [1.0] * len(dims), strict=True)]

    def cut(vectors: torch.Tensor | None, dim: int | None) -> torch.Tensor | None:
        if vectors is None:
            return None
        return (
            functional.normalize(vectors[:, :dim].float(), dim=-1)
            if normalise
            else vectors[:, :dim].float()
        )

    def nested(
        anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor | None
    ) -> Sums:
        sums = [
            loss(cut(anchors, dim), cut(positives, dim), cut(negatives, dim)) for dim, _ in cuts
        ]  # type: ignore[arg-type]  # None only for negatives
        whole = torch.stack(
            [weight * each.loss for (_, weight), each in zip(cuts, sums, strict=True)]
        ).sum(dim=0)
        return Sums(whole, sums[0].targets)

    return nested


def likely_negative(scores: torch.Tensor, margin: float) -> torch.Tensor:
    """(anchors, candidates) False where a candidate is more similar to the anchor than its own positive by more than ``margin``, and so is likely an
    answer that nobody paired with it; the diagonal is True. As ms-swift's ``INFONCE_MASK_FAKE_NEGATIVE``, which adds 0.1."""
    own = scores.diagonal()[:, None]
    kept = ~(scores > own + margin)  # what is not a number is kept, and stops the run in the loss
    return kept.fill_diagonal_(True)
