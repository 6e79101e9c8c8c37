"""Hard negatives: texts similar to an anchor that are no answer to it, by exact search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.core.errors import InputError, TrainingError
from clinpeft.recipe.contrastive import MiningSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training.contrastive_batches import ConflictMask, TextPairs, find_text_conflicts

_Float32Array = npt.NDArray[np.float32]
SIMILARITY_BLOCK_CELLS = 1 << 24
"""Similarities in memory at a time: 64 MiB."""


@dataclass(frozen=True)
class MinedNegatives:
    """Hard negatives of pairs.

    Attributes:
        negatives: (pairs, negatives) ids of texts as ``TextPairs.negatives`` holds them, -1 where
            the corpus has no eligible text.
        random_count: how many of them are random texts, because too few qualify.
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
    """Sample texts of a corpus that are similar to each anchor and likely no answer to it.

    A text that shares text, passage or section with anchor or positive is not eligible. Of the
    others, those qualify with s(a, n) <= s(a, p) - (1 - ratio) |s(a, p)|, which for a positive
    s(a, p) is TopK-PercPos (Moreira et al. 2024, arXiv 2407.15831, section 3.2). Negatives are
    drawn from the ranks of ``spec`` among what qualifies, without repetition. Where these are too
    few, random eligible texts are taken, and counted.

    Args:
        pairs: to mine negatives for; those that they have already are ignored.
        anchors: (pairs, width) vectors; their dot product is the similarity.
        positives: (pairs, width).
        corpus_ids: (texts,) ids of texts, each text once.
        corpus_vectors: (texts, width).
        spec: number of negatives, their ranks, and ``positive_ratio``.
        rng: of the draws.
        device: where similarities are computed; None: the CPU.

    Raises:
        InputError: numbers of vectors and ids differ.
        TrainingError: a similarity is not finite.
    """
    if not (
        len(anchors) == len(positives) == len(pairs.anchors)
        and len(corpus_vectors) == len(corpus_ids)
    ):
        raise InputError(
            f"{len(anchors)} and {len(positives)} vectors for {len(pairs.anchors)} pairs,"
            f" {len(corpus_vectors)} for {len(corpus_ids)} texts",
            location="mining",
            hint="give one vector for each text",
        )
    negatives = np.full((len(anchors), spec.hard_negatives), -1, dtype=np.int64)
    # (rows, texts) similarities of one block
    block_rows = max(1, SIMILARITY_BLOCK_CELLS // max(1, len(corpus_ids)))
    random_count = 0
    if spec.hard_negatives and len(corpus_ids):
        corpus = torch.from_numpy(np.ascontiguousarray(corpus_vectors, dtype=np.float32)).to(device)
        for start in range(0, len(anchors), block_rows):
            block = np.arange(start, min(start + block_rows, len(anchors)))
            sides = [pairs.anchors[block], pairs.positives[block]]
            # (rows, texts)
            eligible = ~find_text_conflicts(pairs.texts, sides, [corpus_ids], "section")
            positions = _sample_ranked_negatives(
                anchors[block], positives[block], corpus, eligible, spec, rng
            )
            random_count += _fill_with_random_texts(positions, eligible, rng)
            # positions in the corpus -> ids of texts
            negatives[block] = np.where(positions >= 0, corpus_ids[positions], -1)
    return MinedNegatives(negatives, random_count, int((negatives < 0).sum()))


def _sample_ranked_negatives(
    anchors: _Float32Array,
    positives: _Float32Array,
    corpus_vectors: torch.Tensor,
    eligible: ConflictMask,
    spec: MiningSpec,
    rng: np.random.Generator,
) -> IndexArray:
    """Sample from the ranks of ``spec`` among what qualifies.

    Returns:
        (rows, negatives) positions in the corpus, -1 where too few qualify.
    """
    anchor_vectors, positive_vectors = (
        torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)).to(corpus_vectors.device)
        for side in (anchors, positives)
    )
    own = (anchor_vectors * positive_vectors).sum(dim=1, keepdim=True)  # s(a, p), (rows, 1)
    scores = anchor_vectors @ corpus_vectors.T  # s(a, n), (rows, texts)
    if not (torch.isfinite(scores).all() and torch.isfinite(own).all()):
        raise TrainingError(
            "a similarity is NaN or infinite",
            location="mining of hard negatives",
            hint="check the vectors of the model: some of them are not finite",
        )
    # (rows, texts); s(a, p) - (1 - ratio) |s(a, p)| is ratio * s(a, p) where that is positive
    qualifies = torch.from_numpy(eligible).to(corpus_vectors.device) & (
        scores <= own - (1 - spec.positive_ratio) * own.abs()
    )
    top_count = min(spec.last_rank, scores.shape[1])
    top = scores.masked_fill_(~qualifies, -torch.inf).topk(top_count, dim=1)
    # (rows, ranks) from first_rank to last_rank, the more similar first
    positions = top.indices.cpu().numpy()[:, spec.first_rank - 1 :]
    values = top.values.cpu().numpy()[:, spec.first_rank - 1 :]
    # the smallest of uniform numbers are a draw without repetition; infinity is never drawn first
    priorities = np.where(np.isfinite(values), rng.random(values.shape), np.inf)
    order = np.argsort(priorities, axis=1, kind="stable")[:, : spec.hard_negatives]
    # (rows, at most hard_negatives)
    sampled = np.where(
        np.isfinite(np.take_along_axis(priorities, order, axis=1)),
        np.take_along_axis(positions, order, axis=1),
        -1,
    )
    # a small corpus has fewer ranks than negatives are wanted
    missing_columns = spec.hard_negatives - sampled.shape[1]
    return np.pad(sampled, ((0, 0), (0, missing_columns)), constant_values=-1)


def _fill_with_random_texts(
    positions: IndexArray, eligible: ConflictMask, rng: np.random.Generator
) -> int:
    """Fill in random texts where a row has too few, none of them twice; return their number."""
    random_count = 0
    for row in np.flatnonzero((positions < 0).any(axis=1)):
        empty = np.flatnonzero(positions[row] < 0)
        others = np.setdiff1d(np.flatnonzero(eligible[row]), positions[row])
        # uniform among eligible texts that the row does not have yet
        sampled = rng.choice(others, min(len(empty), len(others)), replace=False)
        positions[row, empty[: len(sampled)]] = sampled
        random_count += len(sampled)
    return random_count
