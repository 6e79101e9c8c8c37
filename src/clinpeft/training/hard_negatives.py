"""Hard negatives: what is close to an anchor and is not its answer, by exact search and by id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.core.errors import InputError, TrainingError
from clinpeft.recipe.contrastive import MiningSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training.contrastive_batches import TextPairs, find_text_conflicts

_Float32Array = npt.NDArray[np.float32]
SIMILARITY_BLOCK_CELLS = 1 << 24
"""Similarities that are held at a time: 64 MiB."""


@dataclass(frozen=True)
class MinedNegatives:
    """What was found.

    Attributes:
        negatives: (pairs, negatives) ids of texts as ``Pairs.negatives`` holds them, -1 where the corpus holds no text that is allowed.
        random_count: how many of them are random texts, for want of enough that qualify.
        missing_count: how many are -1.
    """

    negatives: IndexArray
    random_count: int
    missing_count: int


def mine_hard_negatives(
    pairs: TextPairs,
    anchors: _Float32Array,
    positives: _Float32Array,
    corpus_ids: IndexArray,
    corpus_vectors: _Float32Array,
    spec: MiningSpec,
    rng: np.random.Generator,
    device: torch.device | None = None,
) -> MinedNegatives:
    """Texts of a corpus that are similar to each anchor, and for all that is known no answer to it.

    What shares text, passage or section with anchor or positive never qualifies, nor what is more similar to the anchor than ``positive_ratio`` of
    the positive is: s(a, n) <= s(a, p) - (1 - ratio) |s(a, p)|, which for a positive s(a, p) is TopK-PercPos (Moreira et al. 2024, arXiv
    2407.15831, section 3.2). The negatives are drawn from the ranks of ``spec`` among what qualifies, without repetition. Where that is too few,
    random texts that share nothing by id stand in; they are counted.

    Args:
        pairs: whose negatives are looked for; those that it has play no part.
        anchors: (pairs, width) vectors, of which the dot product is the similarity.
        positives: (pairs, width).
        corpus_ids: (candidates,) ids of texts, each text once.
        corpus_vectors: (candidates, width).
        spec: how many, and which.
        rng: draws.
        device: where similarities are computed; None: the CPU.

    Raises:
        InputError: vectors and ids do not fit together.
        TrainingError: a similarity is not a number.
    """
    if not (
        len(anchors) == len(positives) == len(pairs.anchors)
        and len(corpus_vectors) == len(corpus_ids)
    ):
        message = f"{len(anchors)} and {len(positives)} vectors for {len(pairs.anchors)} pairs, {len(corpus_vectors)} for {len(corpus_ids)} texts"
        raise InputError(message, location="mining", hint="give one vector a text")
    negatives = np.full((len(anchors), spec.hard_negatives), -1, dtype=np.int64)
    rows = max(1, SIMILARITY_BLOCK_CELLS // max(1, len(corpus_ids)))
    at_random = 0
    if spec.hard_negatives and len(corpus_ids):
        there = torch.from_numpy(np.ascontiguousarray(corpus_vectors, dtype=np.float32)).to(device)
        for start in range(0, len(anchors), rows):
            block = np.arange(start, min(start + rows, len(anchors)))
            open_to = ~find_text_conflicts(
                pairs.texts, [pairs.anchors[block], pairs.positives[block]], [corpus_ids], "section"
            )
            found = _sample_ranked_negatives(
                anchors[block], positives[block], there, open_to, spec, rng
            )
            at_random += _fill_with_random_texts(found, open_to, rng)
            negatives[block] = np.where(found >= 0, corpus_ids[found], -1)
    return MinedNegatives(negatives, at_random, int((negatives < 0).sum()))


def _sample_ranked_negatives(
    anchors: _Float32Array,
    positives: _Float32Array,
    corpus_vectors: torch.Tensor,
    eligible: npt.NDArray[np.bool_],
    spec: MiningSpec,
    rng: np.random.Generator,
) -> IndexArray:
    """(rows, negatives) positions in the corpus drawn from the ranks among what qualifies, -1 where that is too few."""
    asking, answers = (
        torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)).to(corpus_vectors.device)
        for side in (anchors, positives)
    )
    own = (asking * answers).sum(dim=1, keepdim=True)
    scores = asking @ corpus_vectors.T
    if not (torch.isfinite(scores).all() and torch.isfinite(own).all()):
        hint = "look at the vectors: a model whose similarities are no numbers cannot tell what is close"
        raise TrainingError(
            "a similarity is NaN or infinite", location="mining of hard negatives", hint=hint
        )
    qualifies = torch.from_numpy(eligible).to(corpus_vectors.device) & (
        scores <= own - (1 - spec.positive_ratio) * own.abs()
    )
    best = scores.masked_fill_(~qualifies, -torch.inf).topk(
        min(spec.last_rank, scores.shape[1]), dim=1
    )
    places, values = (
        best.indices.cpu().numpy()[:, spec.first_rank - 1 :],
        best.values.cpu().numpy()[:, spec.first_rank - 1 :],
    )
    drawn = np.where(np.isfinite(values), rng.random(values.shape), np.inf)
    order = np.argsort(drawn, axis=1, kind="stable")[:, : spec.hard_negatives]
    chosen = np.where(
        np.isfinite(np.take_along_axis(drawn, order, axis=1)),
        np.take_along_axis(places, order, axis=1),
        -1,
    )
    return np.pad(chosen, ((0, 0), (0, spec.hard_negatives - chosen.shape[1])), constant_values=-1)


def _fill_with_random_texts(
    negatives: IndexArray, eligible: npt.NDArray[np.bool_], rng: np.random.Generator
) -> int:
    """Random texts where a row has too few, none of them twice; says how many."""
    filled = 0
    for row in np.flatnonzero((negatives < 0).any(axis=1)):
        holes = np.flatnonzero(negatives[row] < 0)
        others = np.setdiff1d(np.flatnonzero(eligible[row]), negatives[row])
        drawn = rng.choice(others, min(len(holes), len(others)), replace=False)
        negatives[row, holes[: len(drawn)]] = drawn
        filled += len(drawn)
    return filled
