"""Recipes of kind embed: books, pairs, a backbone, contrastive training, evaluation of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from clinpeft.recipe.adapter_specs import AnyAdapterSpec
from clinpeft.recipe.contrastive import ContrastiveTrainingSpec, MiningSpec
from clinpeft.recipe.spec import RecipeSpec
from clinpeft.recipe.specs import EncoderModelSpec, Recipe
from clinpeft.recipe.textbooks import PairSplitSpec, PairsSpec, PassagesSpec


class EmbeddingModelSpec(EncoderModelSpec):
    """The model that turns texts into vectors.

    Attributes:
        path, max_tokens, precision, quantization, quantization_limit, trainable: as for every
            model of a task.
        backbone: its entry in the table of backbones (a hub id); empty: recognized by the folder;
            without an entry the configuration in the folder counts.
        pooling: how the token vectors of a text become one; ``auto`` takes that of the entry, of
            the folder, or of the model family.
        query_prompt, document_prompt: put before anchors and queries, and before positives and
            passages; none: those of the entry.
    """

    backbone: str = ""
    pooling: Literal["auto", "last", "cls", "mean", "max"] = "auto"
    query_prompt: str | None = None
    document_prompt: str | None = None


class RetrievalSetSpec(RecipeSpec):
    """Queries, passages to search, and which passage answers which query.

    Attributes:
        name: in results.
        layout: ``beir`` (a folder), ``medquad`` (questions and answers as JSON lines) or
            ``liveqa`` (a folder with graded answers of MedQuAD).
        path: file or folder.
        queries: of ``medquad``, a file with those questions that are queries; of ``liveqa``, the
            file of the test questions.
    """

    name: str
    layout: Literal["beir", "medquad", "liveqa"] = "beir"
    path: Path
    queries: Path | None = None


class EmbeddingEvaluationSpec(RecipeSpec):
    """How vectors are evaluated.

    Attributes:
        resamples: bootstrap resamples of chapters, or of queries.
        level: of the interval.
        negatives: unrelated texts for each related pair, in each stratum.
        max_pairs: use at most so many held-out pairs, the same ones every time; 0: all.
        study: folder with ``similar.jsonl``, ``different.jsonl`` and ``negation.jsonl``: the
            protocol of arXiv 2511.19739.
        retrieval: retrieval sets, besides the held-out passages.
        general: retrieval sets of other fields, which show what training made worse.
        other_books: a folder of books that are not trained on, whose pairs are evaluated too.
        controls: whether BM25, TF-IDF and a backbone with random weights are evaluated too.
        profile_texts: held-out texts on which speed and memory are measured; 0: none.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    # The intervals are those of clusters: pairs of one chapter are not independent
    negatives: Annotated[int, Field(ge=1)] = 1
    max_pairs: Annotated[int, Field(ge=0)] = 0
    study: Path | None = None
    retrieval: tuple[RetrievalSetSpec, ...] = ()
    general: tuple[RetrievalSetSpec, ...] = ()
    other_books: Path | None = None
    controls: bool = True
    profile_texts: Annotated[int, Field(ge=0)] = 256


class EmbedRecipe(Recipe):
    """Text embeddings adapted to a field: books become pairs, and a backbone is trained on them."""

    trained_state: ClassVar[str] = "adapted"
    compared_unit: ClassVar[str] = "pairs"

    kind: Literal["embed"]
    passages: PassagesSpec = PassagesSpec()
    pairs: PairsSpec = PairsSpec()
    split: PairSplitSpec = PairSplitSpec()
    base: EmbeddingModelSpec
    adapters: tuple[AnyAdapterSpec, ...] = ()
    mining: MiningSpec = MiningSpec()
    training: ContrastiveTrainingSpec = ContrastiveTrainingSpec()
    evaluation: EmbeddingEvaluationSpec = EmbeddingEvaluationSpec()

    @property
    def trains_base(self) -> bool:
        """Whether the weights of the base are trained too (full fine-tuning)."""
        return self.base.trainable
