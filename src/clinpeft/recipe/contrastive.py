"""Contrastive training: which loss, which batches, which negatives."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from clinpeft.recipe.spec import PositiveCount, RecipeSpec
from clinpeft.recipe.training_specs import OptimizationSpec


class MiningSpec(RecipeSpec):
    """How hard negatives are mined: texts that the model takes for the answer and that are not.

    Attributes:
        hard_negatives: number for each anchor; 0: none, the other pairs of a batch are the only
            negatives.
        positive_ratio: a candidate more similar to the anchor than this fraction of the positive's
            similarity is passed over, since it may well be an answer too (NV-Retriever, Moreira et
            al. 2024, arXiv 2407.15831: TopK-PercPos, 0.95).
        first_rank, last_rank: the negatives are drawn at random from these ranks, counted from 1
            over the candidates that qualify, the most similar first; with ``last_rank`` equal to
            ``hard_negatives`` they are the most similar ones.
    """

    hard_negatives: Annotated[int, Field(ge=0)] = 0
    positive_ratio: Annotated[float, Field(gt=0.0)] = 0.95
    first_rank: PositiveCount = 1
    last_rank: PositiveCount = 20

    @pydantic.model_validator(mode="after")
    def _check_rank_window(self) -> Self:
        if self.last_rank - self.first_rank + 1 < self.hard_negatives:
            raise ValueError(
                f"ranks {self.first_rank} to {self.last_rank} are fewer than the "
                f"{self.hard_negatives} hard negatives; raise last_rank"
            )
        return self


class ContrastiveTrainingSpec(OptimizationSpec):
    """How a model is trained to place texts that belong together near one another.

    Attributes:
        learning_rate: peak of the schedule.
        warmup_fraction: of the steps, over which the learning rate rises linearly.
        fraction: of the training pairs that is used, drawn with the seed; a smaller fraction is
            part of a larger one.
        objective: ``info-nce`` (van den Oord et al. 2018, arXiv 1807.03748), also called multiple
            negatives ranking: the positive against all negatives at once; ``triplet``: against
            each negative by a margin.
        batch_pairs: pairs of an optimizer step, over all micro-batches and processes; each is a
            negative for all others. Costs time, not memory (GradCache, Gao et al. 2021, arXiv
            2101.06983).
        apart_by: what no two pairs of a step may share, so that no negative is an answer: a
            ``text``; also a ``passage``; also a ``section``.
        temperature: divides similarities, of ``info-nce``; 0.05 is a scale of 20 in
            sentence-transformers.
        symmetric: whether positives also have to retrieve their anchors, of ``info-nce``.
        normalise: vectors of length 1, so that similarity is the cosine; without it, it is the dot
            product.
        mask_margin: a negative more similar to the anchor than the positive by more than this is
            left out as a likely answer; none: all are used.
        triplet_margin: by how much more similar the positive has to be than a negative, of
            ``triplet``.
        matryoshka_dims: lengths at which a truncated vector is trained too, besides the whole
            vector (Kusupati et al. 2022, arXiv 2205.13147); empty: only the whole.
        matryoshka_weights: of the loss at each of these; empty: 1. The weight of the whole vector
            is 1.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    objective: Literal["info-nce", "triplet"] = "info-nce"
    batch_pairs: Annotated[int, Field(ge=2)] = 64  # one pair alone has no negative
    apart_by: Literal["text", "passage", "section"] = "section"
    temperature: Annotated[float, Field(gt=0)] = 0.05
    symmetric: bool = True
    normalise: bool = True
    mask_margin: Annotated[float, Field(ge=0)] | None = None
    triplet_margin: Annotated[float, Field(gt=0)] = 0.2
    matryoshka_dims: tuple[PositiveCount, ...] = ()
    matryoshka_weights: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @pydantic.model_validator(mode="after")
    def _check_matryoshka_weights(self) -> Self:
        weights, dims = len(self.matryoshka_weights), len(self.matryoshka_dims)
        if weights and weights != dims:
            raise ValueError(
                f"{weights} matryoshka_weights for {dims} matryoshka_dims; give one for each"
            )
        return self
