"""Losses of vectors that belong together: by hand, and against sentence-transformers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from clinpeft.training.contrastive_losses import (
    ContrastiveLoss,
    build_matryoshka_loss,
    find_likely_negatives,
    has_negatives,
    info_nce_loss,
    triplet_loss,
)

ANCHORS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
POSITIVES = torch.tensor([[0.8, 0.6], [0.6, 0.8]])  # similarities [[0.8, 0.6], [0.6, 0.8]]
NEGATIVES = torch.tensor([[0.0, -1.0]])  # similarities [[0], [-1]]


def mean(loss: ContrastiveLoss, *vectors: torch.Tensor) -> float:
    sums = loss(*vectors, *([None] * (3 - len(vectors))))
    return sums.loss.item() / sums.targets


def test_two_pairs_by_hand() -> None:
    sums = info_nce_loss(ANCHORS, POSITIVES, temperature=0.5)
    assert sums.targets == 2
    assert sums.loss.item() == pytest.approx(2 * math.log(1 + math.exp((0.6 - 0.8) / 0.5)))


def test_hard_negatives_stand_behind_the_positives_of_all() -> None:
    first = math.log(1 + math.exp(-0.2 / 0.5) + math.exp(-0.8 / 0.5))
    second = math.log(1 + math.exp(-0.2 / 0.5) + math.exp(-1.8 / 0.5))
    assert info_nce_loss(
        ANCHORS, POSITIVES, NEGATIVES, temperature=0.5
    ).loss.item() == pytest.approx(first + second)


def test_symmetric_is_the_mean_of_both_ways() -> None:
    positives = torch.tensor([[0.8, 0.6], [1.0, 0.0]])  # similarities [[0.8, 1], [0.6, 0]]
    there = math.log(1 + math.exp(0.2 / 0.5)) + math.log(1 + math.exp(0.6 / 0.5))
    back = math.log(1 + math.exp(-0.2 / 0.5)) + math.log(1 + math.exp(1.0 / 0.5))
    sums = info_nce_loss(ANCHORS, positives, temperature=0.5, symmetric=True)
    assert sums.loss.item() == pytest.approx((there + back) / 2) and sums.targets == 2


def test_a_masked_candidate_is_not_there_and_an_anchor_without_negatives_is_not_asked() -> None:
    allowed = torch.tensor([[True, True, False], [False, True, False]])
    anchors = ANCHORS.clone().requires_grad_()
    sums = info_nce_loss(anchors, POSITIVES, NEGATIVES, temperature=0.5, candidate_mask=allowed)
    assert (
        sums.loss.item() == pytest.approx(math.log(1 + math.exp(-0.2 / 0.5))) and sums.targets == 1
    )
    (gradient,) = torch.autograd.grad(sums.loss, anchors)
    assert gradient[0].norm() > 0 and not gradient[1].any()
    assert has_negatives(allowed).tolist() == [True, False]


def test_the_triplet_loss_by_hand() -> None:
    sums = triplet_loss(
        ANCHORS, POSITIVES, NEGATIVES, margin=0.3
    )  # 0.6 - 0.8 + 0.3 = 0.1 is short, the hard negative is far
    assert sums.loss.item() == pytest.approx(0.1) and sums.targets == 2
    only_hard = torch.tensor([[True, False, True], [True, True, False]])
    sums = triplet_loss(
        ANCHORS, POSITIVES, NEGATIVES, margin=1.0, candidate_mask=only_hard
    )  # of the first 0 - 0.8 + 1, of the second 0.6 - 0.8 + 1
    assert sums.loss.item() == pytest.approx(0.2 + 0.8) and sums.targets == 2
    nothing = triplet_loss(
        ANCHORS, POSITIVES, margin=1.0, candidate_mask=torch.eye(2, dtype=torch.bool)
    )
    assert (nothing.loss.item(), nothing.targets) == (0.0, 0.0)


def test_matryoshka_cuts_normalises_again_and_adds() -> None:
    anchors, positives = (
        torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]]),
        torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]),
    )
    half = math.sqrt(0.5)
    whole = [[0.6 * half, 0.8 * half], [half, half]]  # cosines
    cut = [[half, 0.0], [half, 1.0]]  # of the first two numbers: the second positive is (0, 1)

    def by_hand(scores: list[list[float]]) -> float:
        return math.log(1 + math.exp(scores[0][1] - scores[0][0])) + math.log(
            1 + math.exp(scores[1][0] - scores[1][1])
        )

    sums = build_matryoshka_loss(
        partial(info_nce_loss, temperature=1.0), dims=(2,), weights=(0.25,)
    )(anchors, positives, None)
    assert (
        sums.loss.item() == pytest.approx(by_hand(whole) + 0.25 * by_hand(cut))
        and sums.targets == 2
    )
    plain = build_matryoshka_loss(partial(info_nce_loss, temperature=1.0), normalize=False)(
        anchors, positives, None
    )
    assert plain.loss.item() == pytest.approx(by_hand([[3.0, 4.0], [2.0, 2.0]]))


EXACT = torch.cat([torch.zeros(3, 3, dtype=torch.bool), torch.eye(3, dtype=torch.bool)], dim=1)
PARITY = [
    (
        "MultipleNegativesRankingLoss(scale=2)",
        build_matryoshka_loss(partial(info_nce_loss, temperature=0.5)),
        True,
        1.5117979,
    ),
    (
        "MultipleNegativesRankingLoss(scale=2), pairs",
        build_matryoshka_loss(partial(info_nce_loss, temperature=0.5)),
        False,
        1.3028170,
    ),
    (
        "MultipleNegativesSymmetricRankingLoss(scale=2)",
        build_matryoshka_loss(partial(info_nce_loss, temperature=0.5, symmetric=True)),
        True,
        1.4612192,
    ),
    (
        "TripletLoss(COSINE, 1)",
        build_matryoshka_loss(partial(triplet_loss, margin=1.0, candidate_mask=EXACT)),
        True,
        0.0329663,
    ),
    (
        "MatryoshkaLoss([4, 2], [1, 0.5])",
        build_matryoshka_loss(partial(info_nce_loss, temperature=0.5), (2,), (0.5,)),
        True,
        2.2745769,
    ),
]


@pytest.mark.parametrize(
    ("named", "loss", "hard", "expected"), PARITY, ids=[row[0] for row in PARITY]
)
def test_the_losses_equal_those_of_sentence_transformers(
    named: str, loss: ContrastiveLoss, hard: bool, expected: float
) -> None:
    """Numbers that sentence-transformers 6.2.0 gave for these vectors; it takes longer to import
    than all these tests to run."""
    anchors, positives, negatives = torch.sin(1.7 * torch.arange(36.0)).reshape(3, 3, 4)
    assert mean(loss, anchors, positives, *([negatives] if hard else [])) == pytest.approx(
        expected, rel=1e-5
    )


def test_what_is_more_similar_than_the_positive_by_the_margin_is_likely_an_answer() -> None:
    scores = torch.tensor([[0.5, 0.59, 0.61, 0.4], [0.9, 0.2, 0.25, float("nan")]])
    assert find_likely_negatives(scores, 0.1).tolist() == [
        [True, True, False, True],
        [False, True, True, True],
    ]
    assert find_likely_negatives(scores, 1.0).all()
