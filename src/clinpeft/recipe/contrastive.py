"""What a recipe can say of learning from pairs: which loss, which batches, which negatives."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from clinpeft.recipe.spec import RecipeSpec
from clinpeft.recipe.specs import OptimizationSpec, PositiveCount


class MiningSpec(RecipeSpec):
    """Which texts are looked for as hard negatives: what the model takes for the answer and is not.

    Attributes:
        hard_negatives: how many for each anchor; 0: none, the other pairs of a batch are the only negatives.
        positive_ratio: a candidate more similar to the anchor than this share of the positive's similarity is passed over, since it may well be an
            answer too (NV-Retriever, Moreira et al. 2024, arXiv 2407.15831: TopK-PercPos, 0.95).
        first_rank, last_rank: the negatives are drawn at random from these ranks, counted from 1 over the candidates that qualify, the most similar
            first; with ``last_rank`` equal to ``hard_negatives`` they are the most similar ones.
    """

    hard_negatives: Annotated[int, Field(ge=0)] = 0
    positive_ratio: Annotated[float, Field(gt=0.0)] = 0.95
    first_rank: PositiveCount = 1
    last_rank: PositiveCount = 20

    @pydantic.model_validator(mode="after")
    def _check_rank_window(self) -> Self:
        if self.last_rank - self.first_rank + 1 < self.hard_negatives:
            message = f"ranks {self.first_rank} to {self.last_rank} are fewer than the {self.hard_negatives} hard negatives"
            raise ValueError(f"{message}; raise last_rank")
        return self


class ContrastiveTrainingSpec(OptimizationSpec):
    """How a model learns which texts belong together.

    Attributes:
        learning_rate: peak of the schedule.
        warmup_fraction: share of the steps over which the learning rate rises linearly.
        fraction: of the training pairs that are learned from, drawn with the seed; a smaller share lies within a larger one.
        objective: ``info-nce``, also called multiple negatives ranking: the positive against all negatives at once; ``triplet``: against each
            negative by a margin.
        batch_pairs: pairs per optimiser step, over all micro-batches and processes; each is a negative for all others. Costs time, not memory.
        apart_by: what no two pairs of a step may share, so that no negative is an answer: a ``text``; also a ``passage``; also a ``section``.
        temperature: similarities are divided by it, of ``info-nce``; 0.05 is what sentence-transformers calls a scale of 20.
        symmetric: whether positives also have to find their anchors, of ``info-nce``.
        normalise: vectors of length 1, so that similarity is the cosine; without it, it is the dot product.
        mask_margin: a negative more similar to the anchor than the positive by more than this is left out as a likely answer; none: all stay.
        triplet_margin: by how much more similar the positive has to be than a negative, of ``triplet``.
        matryoshka_dims: the first so many numbers of a vector have to serve alone as well, besides the whole vector; empty: only the whole.
        matryoshka_weights: of the loss at each of these; empty: 1. The weight of the whole vector is 1.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    objective: Literal["info-nce", "triplet"] = "info-nce"
    batch_pairs: Annotated[int, Field(ge=2)] = 64
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
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka_dims):
            raise ValueError(
                f"{len(self.matryoshka_weights)} matryoshka_weights for {len(self.matryoshka_dims)} matryoshka_dims; give one for each"
            )
        return self
