"""What a recipe of kind embed can say: books, pairs, a backbone, contrastive training, and what vectors are asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from clinpeft.recipe.contrastive import ContrastiveTrainingSpec, MiningSpec
from clinpeft.recipe.spec import RecipeSpec
from clinpeft.recipe.specs import AnyAdapterSpec, EncoderModelSpec, Recipe
from clinpeft.recipe.textbooks import PairSplitSpec, PairsSpec, PassagesSpec


class EmbeddingModelSpec(EncoderModelSpec):
    """The model that turns texts into vectors.

    Attributes:
        path, max_tokens, precision, quantization, quantization_limit, trainable: as for every model that reads.
        backbone: its row in ``models.BACKBONES`` (a hub id); empty: found by the folder, and where it is in no row, the folder's own word counts.
        pooling: where a text's vector is read; ``auto`` takes the row's, the folder's, or the family's own.
        query_prompt, document_prompt: put before anchors and queries, and before positives and passages; none: the row's own.
    """

    backbone: str = ""
    pooling: Literal["auto", "last", "cls", "mean", "max"] = "auto"
    query_prompt: str | None = None
    document_prompt: str | None = None


class RetrievalSetSpec(RecipeSpec):
    """Questions, texts to search, and which text answers which question.

    Attributes:
        name: as it stands in results.
        layout: ``beir`` (a folder), ``medquad`` (questions and answers as JSON lines) or ``liveqa`` (a folder with graded answers of MedQuAD).
        path: file or folder.
        queries: of ``medquad``, a file with the part of the questions that are asked; of ``liveqa``, the file of the test questions.
    """

    name: str
    layout: Literal["beir", "medquad", "liveqa"] = "beir"
    path: Path
    queries: Path | None = None


class EmbeddingEvaluationSpec(RecipeSpec):
    """How vectors are measured.

    Attributes:
        resamples: bootstrap resamples of chapters, or of queries.
        level: of the interval.
        negatives: unrelated texts for each related pair, in each stratum.
        max_pairs: measure at most so many held-out pairs, the same ones every time; 0 for all.
        study: folder with ``similar.jsonl``, ``different.jsonl`` and ``negation.jsonl``: the protocol of arXiv 2511.19739.
        retrieval: sets to search, besides the held-out passages.
        general: a set of another field, to see what was forgotten.
        other_books: a folder of books that were not learned from, whose pairs are asked as well.
        controls: whether BM25, TF-IDF and a backbone with random weights are measured beside.
        profile_texts: held-out texts on which speed and memory are measured; 0: not.
    """

    resamples: Annotated[int, Field(ge=100)] = 1000
    level: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    negatives: Annotated[int, Field(ge=1)] = 1
    max_pairs: Annotated[int, Field(ge=0)] = 0
    study: Path | None = None
    retrieval: tuple[RetrievalSetSpec, ...] = ()
    general: tuple[RetrievalSetSpec, ...] = ()
    other_books: Path | None = None
    controls: bool = True
    profile_texts: Annotated[int, Field(ge=0)] = 256


class EmbedRecipe(Recipe):
    """Text embeddings adapted to a field: books become pairs, and a backbone learns which texts belong together."""

    kind: Literal["embed"]
    passages: PassagesSpec = PassagesSpec()
    pairs: PairsSpec = PairsSpec()
    split: PairSplitSpec = PairSplitSpec()
    base: EmbeddingModelSpec
    adapters: tuple[AnyAdapterSpec, ...] = ()
    mining: MiningSpec = MiningSpec()
    training: ContrastiveTrainingSpec = ContrastiveTrainingSpec()
    evaluation: EmbeddingEvaluationSpec = EmbeddingEvaluationSpec()
    compared_unit: ClassVar[str] = "pairs"
