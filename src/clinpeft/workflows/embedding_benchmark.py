"""Evaluation sets of ``embed``: held-out pairs with their negatives, and retrieval sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.baselines import lexical
from clinpeft.core.schemas import (
    RELEVANCE_JUDGMENT_SCHEMA,
    Attrition,
    RetrievalSet,
    build_arrow_table,
)
from clinpeft.evaluation import embedding
from clinpeft.recipe import EmbeddingEvaluationSpec
from clinpeft.workflows.textbooks import EmbeddingData, PairData

MINING_CANDIDATES = 20
LEXICAL_RETRIEVERS: dict[str, Callable[[Sequence[str]], lexical.LexicalIndex]] = {
    "BM25": lexical.build_bm25_index,
    "TF-IDF": lexical.build_tfidf_index,
}


@dataclass(frozen=True)
class PairEvaluationSet:
    """Held-out pairs of books, and all texts of the books as distractors.

    Attributes:
        name: of the task, as it stands in results.
        texts: all that is searched: every passage and every positive, each text once; the columns
            of ``PASSAGE_SCHEMA`` that strata need.
        anchors: the different anchors.
        anchor_rows: (pairs,) the anchor of each pair.
        pairs: pairs and the rows of their positives among ``texts``.
        negatives: stratum -> a negative for each pair.
        judgments: which text answers which anchor.
        attrition: pairs for which a stratum had no negative.
    """

    name: str
    texts: pa.Table
    anchors: list[str]
    anchor_rows: Any
    pairs: embedding.AnchorPairs
    negatives: Mapping[str, Any]
    judgments: pa.Table
    attrition: Attrition

    @property
    def anchor_ids(self) -> list[str]:
        """(anchors,) an id of each."""
        return [f"a{position}" for position in range(len(self.anchors))]

    @property
    def text_ids(self) -> list[str]:
        """(texts,) an id of each."""
        return [f"t{row}" for row in range(len(self.texts))]

    @property
    def own_text_rows(self) -> Any:
        """(anchors,) the text that an anchor itself is, which must not be retrieved; -1 for
        none."""
        rows = np.full(len(self.anchors), -1, dtype=np.int64)
        assert self.pairs.own_passages is not None
        rows[self.anchor_rows] = self.pairs.own_passages
        return rows

    @property
    def anchor_clusters(self) -> list[str | None]:
        """(anchors,) the chapter of each, which is what a bootstrap resamples."""
        assert self.pairs.clusters is not None
        clusters: list[str | None] = [None] * len(self.anchors)
        for row, cluster in zip(self.anchor_rows.tolist(), self.pairs.clusters, strict=True):
            clusters[row] = clusters[row] or cluster
        return clusters


@dataclass(frozen=True)
class EmbeddingBenchmark:
    """Everything that every state of a model is evaluated on."""

    pair_sets: tuple[PairEvaluationSet, ...]
    embedding_data: EmbeddingData
    spec: EmbeddingEvaluationSpec
    seed: int

    def create_rng(self) -> np.random.Generator:
        """Create the generator of a bootstrap: the same resamples for every state."""
        return np.random.default_rng([self.seed, 1])

    @property
    def bootstrap_options(self) -> dict[str, Any]:
        """Resamples and level of every bootstrap."""
        return {"resamples": self.spec.resamples, "level": self.spec.level}

    @property
    def retrieval_sets(self) -> dict[str, RetrievalSet]:
        """Name -> retrieval set, those of another field last."""
        data = self.embedding_data
        return {**data.retrieval_sets, **data.general_retrieval_sets}


def build_embedding_benchmark(
    embedding_data: EmbeddingData, spec: EmbeddingEvaluationSpec, seed: int
) -> EmbeddingBenchmark:
    """Build the evaluation sets: held-out chapters, the other books, the retrieval sets.

    Args:
        embedding_data: pairs, passages and retrieval sets.
        spec: how many pairs and negatives.
        seed: of the split; negatives and resamples are drawn with it.
    """
    books = {"held-out chapters": embedding_data.training_books}
    if embedding_data.other_books is not None:
        books["other books"] = embedding_data.other_books
    pair_sets = [
        build_pair_evaluation_set(name, pair_data, spec, seed) for name, pair_data in books.items()
    ]
    return EmbeddingBenchmark(tuple(pair_sets), embedding_data, spec, seed)


def build_pair_evaluation_set(
    name: str, pair_data: PairData, spec: EmbeddingEvaluationSpec, seed: int
) -> PairEvaluationSet:
    """Draw negatives in strata for the held-out pairs of books.

    The mined negatives are texts that BM25 ranks first for an anchor and that are no answer.

    Args:
        name: of the task, as it stands in results.
        pair_data: of the books.
        spec: at most how many pairs.
        seed: of the draws.
    """
    held_out = pair_data.pairs.filter(pc.equal(pair_data.pairs["split"], "held_out"))
    if spec.max_pairs and len(held_out) > spec.max_pairs:
        rows = np.random.default_rng(seed).permutation(len(held_out))[: spec.max_pairs]
        held_out = held_out.take(pa.array(np.sort(rows)))
    texts = _collect_unique_texts(pair_data)
    row_of = {text: row for row, text in enumerate(texts["text"].to_pylist())}
    pair_anchors = held_out["anchor"].to_pylist()
    anchors = list(dict.fromkeys(pair_anchors))
    anchor_row_of = {text: row for row, text in enumerate(anchors)}
    anchor_rows = np.array([anchor_row_of[text] for text in pair_anchors], dtype=np.int64)
    positives = np.array(
        [row_of[text] for text in held_out["positive"].to_pylist()], dtype=np.int64
    )
    own_rows = np.array([row_of.get(text, -1) for text in pair_anchors], dtype=np.int64)
    origins = zip(held_out["book"].to_pylist(), held_out["chapter"].to_pylist(), strict=True)
    # A pair of unknown origin is a cluster of its own.
    clusters = [f"{book} · {chapter}" if book else None for book, chapter in origins]
    pairs = embedding.AnchorPairs(
        held_out["pair_id"].to_pylist(), positives, own_rows, pair_anchors, clusters
    )
    # The third stream of the seed: independent of split and resamples.
    attrition, rng = Attrition(f"negatives, {name}"), np.random.default_rng([seed, 3])
    ranking = _rank_with_bm25(texts, anchors, own_rows, anchor_rows)
    negatives = {
        stratum: embedding.draw_negatives(texts, pairs, stratum, rng, attrition, ranking)
        for stratum in embedding.NEGATIVE_STRATA
    }
    relevant = sorted(
        {
            (f"a{anchor}", f"t{text}")
            for anchor, text in zip(anchor_rows.tolist(), positives.tolist(), strict=True)
        }
    )
    columns = {
        "query_id": [anchor for anchor, _ in relevant],
        "passage_id": [text for _, text in relevant],
        "grade": [1] * len(relevant),
    }
    judgments = build_arrow_table(RELEVANCE_JUDGMENT_SCHEMA, columns)
    return PairEvaluationSet(
        name, texts, anchors, anchor_rows, pairs, negatives, judgments, attrition
    )


def _collect_unique_texts(pair_data: PairData) -> pa.Table:
    """Every passage and every positive, each text once, where it appears first.

    A positive that was imported without its origin is a book and a section of its own.
    """
    columns = ["book", "chapter", "section", "text"]
    positives = pair_data.pairs.select(["book", "chapter", "section", "positive"])
    all_texts = pa.concat_tables(
        [positives.rename_columns(columns), pair_data.passages.select(columns)],
        promote_options="permissive",
    )
    first: dict[str, int] = {}
    for row, text in enumerate(all_texts["text"].to_pylist()):
        first.setdefault(text, row)
    unique = all_texts.take(pa.array(sorted(first.values())))
    for name in ("book", "section"):
        unknown = pa.array([f"unknown {row}" for row in range(len(unique))], unique[name].type)
        column = pc.coalesce(unique[name], unknown)
        unique = unique.set_column(unique.schema.get_field_index(name), name, column)
    return unique


def _rank_with_bm25(
    texts: pa.Table, anchors: list[str], own_text_rows: Any, anchor_rows: Any
) -> Any:
    """(pairs, MINING_CANDIDATES) rows of the texts that BM25 ranks first for a pair's anchor."""
    index = lexical.build_bm25_index(texts["text"].to_pylist())
    names = [f"t{row}" for row in range(len(texts))]
    rows, _ = embedding.select_top_k(index.iterate_score_blocks(anchors), names, MINING_CANDIDATES)
    ranking = rows[anchor_rows].copy()
    ranking[ranking == own_text_rows[:, None]] = -1  # the anchor itself is no candidate
    return ranking
