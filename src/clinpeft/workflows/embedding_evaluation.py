"""Evaluation of vectors: separation of pairs, retrieval, geometry, the protocol of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.baselines.lexical import LexicalIndex
from clinpeft.core.schemas import PAIR_SCORE_SCHEMA, RetrievalSet, build_arrow_table
from clinpeft.data.retrieval import beir
from clinpeft.evaluation import embedding
from clinpeft.models import EmbeddingConfig
from clinpeft.recipe import EmbeddingEvaluationSpec
from clinpeft.workflows.embedding_benchmark import (
    LEXICAL_RETRIEVERS,
    EmbeddingBenchmark,
    PairEvaluationSet,
)
from clinpeft.workflows.textbooks import STUDY_PAIR_KINDS

EncodeFunction = Callable[[Sequence[str], str], Any]
"""(texts, prompt before each) -> vectors (texts, width), float32."""

RETRIEVED_PASSAGES = 100  # passages kept for a query


@dataclass(frozen=True)
class EmbeddingResults:
    """What was measured of one state of a model.

    Attributes:
        scores: task -> cosines of pairs and negatives, of schema ``PAIR_SCORE_SCHEMA``.
        queries: task -> metrics of every query.
        results: of schema ``METRIC_RESULT_SCHEMA``.
    """

    scores: Mapping[str, pa.Table]
    queries: Mapping[str, pa.Table]
    results: pa.Table


def evaluate_embeddings(
    benchmark: EmbeddingBenchmark,
    encode: EncodeFunction,
    embedding_config: EmbeddingConfig,
    state: str,
) -> EmbeddingResults:
    """Evaluate one state of a model on a whole benchmark.

    Args:
        benchmark: pair sets and retrieval sets.
        encode: texts -> vectors.
        embedding_config: its prompts of queries and documents.
        state: name of the state, as it stands in results.
    """
    scores, queries, results = {}, {}, []
    options = benchmark.bootstrap_options
    for pair_set in benchmark.pair_sets:
        name = pair_set.name
        # (anchors, width) and (texts, width)
        anchors = encode(pair_set.anchors, embedding_config.query_prompt)
        texts = encode(pair_set.texts["text"].to_pylist(), embedding_config.document_prompt)
        scores[name], retrieved = _score_pair_set(pair_set, anchors, texts, state)
        queries[name] = embedding.compute_query_metrics(retrieved, pair_set.judgments)
        results += [
            *_evaluate_pair_set(benchmark, pair_set, scores[name], retrieved, state),
            _measure_geometry(benchmark, pair_set, anchors, texts, state),
        ]
    for name, retrieval_set in benchmark.retrieval_sets.items():
        judgments = retrieval_set.relevance_judgments
        retrieved = _retrieve_by_vectors(retrieval_set, encode, embedding_config)
        queries[name] = embedding.compute_query_metrics(retrieved, judgments)
        rng = benchmark.create_rng()
        results.append(
            embedding.evaluate_retrieval(retrieved, judgments, state, rng=rng, task=name, **options)
        )
    if benchmark.embedding_data.study_pairs:
        scores["study"] = _score_study_pairs(benchmark, encode, embedding_config)
        cosines = {
            kind: table["score"].to_numpy()
            for kind in STUDY_PAIR_KINDS
            for table in [scores["study"].filter(pc.equal(scores["study"]["stratum"], kind))]
        }
        results.append(
            embedding.evaluate_study_protocol(
                cosines["similar"],
                cosines["different"],
                cosines["negation"],
                state,
                rng=benchmark.create_rng(),
                **options,
            )
        )
    return EmbeddingResults(scores, queries, pa.concat_tables(results))


def _evaluate_pair_set(
    benchmark: EmbeddingBenchmark,
    pair_set: PairEvaluationSet,
    scores: pa.Table,
    retrieved: pa.Table,
    state: str,
) -> list[pa.Table]:
    """Separation of pairs from negatives, and retrieval of the positives by their anchors."""
    task, options = pair_set.name, benchmark.bootstrap_options
    return [
        embedding.evaluate_separation(
            scores, state, rng=benchmark.create_rng(), task=task, **options
        ),
        embedding.evaluate_retrieval(
            retrieved,
            pair_set.judgments,
            state,
            rng=benchmark.create_rng(),
            task=task,
            **options,
        ),
    ]


def _score_pair_set(
    pair_set: PairEvaluationSet, anchors: Any, texts: Any, state: str
) -> tuple[pa.Table, pa.Table]:
    """Cosines of pairs and negatives, and the texts that each anchor retrieves.

    ``anchors`` is (anchors, width) and ``texts`` (texts, width).
    """
    queries = embedding.normalize_vectors(anchors, pair_set.anchor_ids, state)
    passages = embedding.normalize_vectors(texts, pair_set.text_ids, state)
    # queries[pair_set.anchor_rows]: (pairs, width)
    score = embedding.build_cosine_scorer(queries[pair_set.anchor_rows], passages)
    scores = embedding.score_anchor_pairs(score, pair_set.pairs, pair_set.negatives)
    rows, cosines = embedding.rank_passages(
        anchors,
        texts,
        RETRIEVED_PASSAGES,
        query_ids=pair_set.anchor_ids,
        passage_ids=pair_set.text_ids,
        own_passages=pair_set.own_text_rows,
    )
    return scores, embedding.to_retrieval_table(
        rows, cosines, pair_set.anchor_ids, pair_set.text_ids, pair_set.anchor_clusters
    )


def _measure_geometry(
    benchmark: EmbeddingBenchmark,
    pair_set: PairEvaluationSet,
    anchors: Any,
    texts: Any,
    state: str,
) -> pa.Table:
    """Alignment and uniformity (Wang and Isola 2020) of the first pair of every anchor."""
    first = np.unique(pair_set.anchor_rows, return_index=True)[1]
    return embedding.evaluate_geometry(
        anchors,
        texts[pair_set.pairs.positives[first]],
        pair_set.anchor_ids,
        pair_set.anchor_clusters,
        state,
        rng=benchmark.create_rng(),
        task=pair_set.name,
        **benchmark.bootstrap_options,
    )


def evaluate_retrieval_set(
    set_name: str,
    retrieval_set: RetrievalSet,
    encoders_by_state: Mapping[str, EncodeFunction],
    embedding_config: EmbeddingConfig,
    spec: EmbeddingEvaluationSpec,
    seed: int,
) -> pa.Table:
    """Evaluate retrieval in each state of a model, by words alone, and last state less the first.

    Args:
        set_name: of the set, as it stands in the results.
        retrieval_set: queries, passages and judgments.
        encoders_by_state: name of the state -> texts to vectors.
        embedding_config: prompts of queries and documents.
        spec: resamples and level of the intervals.
        seed: of the resamples, the same for every state.

    Returns:
        Table of schema ``METRIC_RESULT_SCHEMA``.
    """
    options: dict[str, Any] = {"task": set_name, "resamples": spec.resamples, "level": spec.level}
    judgments = retrieval_set.relevance_judgments
    retrieved = {
        state: _retrieve_by_vectors(retrieval_set, encode, embedding_config)
        for state, encode in encoders_by_state.items()
    }
    retrieved |= {
        state: _retrieve_by_words(retrieval_set, build_index)
        for state, build_index in LEXICAL_RETRIEVERS.items()
    }
    results = [
        embedding.evaluate_retrieval(
            table, judgments, state, rng=np.random.default_rng([seed, 1]), **options
        )
        for state, table in retrieved.items()
    ]
    first, *_, last = encoders_by_state
    before, after = (
        embedding.compute_query_metrics(retrieved[state], judgments) for state in (first, last)
    )
    rng = np.random.default_rng([seed, 1])
    results.append(embedding.compare_retrieval(before, after, (first, last), rng=rng, **options))
    return pa.concat_tables(results)


def _retrieve_by_vectors(
    retrieval_set: RetrievalSet, encode: EncodeFunction, embedding_config: EmbeddingConfig
) -> pa.Table:
    """The best passages of a set for each of its queries."""
    queries, passages = retrieval_set.queries, retrieval_set.passages
    query_ids, passage_ids = queries["query_id"].to_pylist(), passages["passage_id"].to_pylist()
    rows, scores = embedding.rank_passages(
        encode(queries["text"].to_pylist(), embedding_config.query_prompt),
        encode(beir.join_titles_and_texts(passages), embedding_config.document_prompt),
        RETRIEVED_PASSAGES,
        query_ids=query_ids,
        passage_ids=passage_ids,
    )
    clusters = queries["cluster"].to_pylist()
    return embedding.to_retrieval_table(rows, scores, query_ids, passage_ids, clusters)


def _retrieve_by_words(
    retrieval_set: RetrievalSet, build_index: Callable[[Sequence[str]], LexicalIndex]
) -> pa.Table:
    """The best passages of a set for each of its queries, by a lexical index."""
    queries, passages = retrieval_set.queries, retrieval_set.passages
    query_ids, passage_ids = queries["query_id"].to_pylist(), passages["passage_id"].to_pylist()
    score_blocks = build_index(beir.join_titles_and_texts(passages)).iterate_score_blocks(
        queries["text"].to_pylist()
    )
    rows, scores = embedding.select_top_k(score_blocks, passage_ids, RETRIEVED_PASSAGES)
    clusters = queries["cluster"].to_pylist()
    return embedding.to_retrieval_table(rows, scores, query_ids, passage_ids, clusters)


def _score_study_pairs(
    benchmark: EmbeddingBenchmark, encode: EncodeFunction, embedding_config: EmbeddingConfig
) -> pa.Table:
    """Cosines of the pairs of arXiv 2511.19739's protocol; the similar ones are the related."""
    parts = []
    for kind, pairs in benchmark.embedding_data.study_pairs.items():
        ids = pairs["pair_id"].to_pylist()
        anchors, positives = (
            embedding.normalize_vectors(
                encode(pairs[side].to_pylist(), embedding_config.query_prompt), ids, kind
            )
            for side in ("anchor", "positive")
        )
        columns = {
            "pair_id": ids,
            "stratum": [kind] * len(ids),
            "related": [kind == STUDY_PAIR_KINDS[0]] * len(ids),
            "score": embedding.compute_cosines(anchors, positives),
        }
        parts.append(build_arrow_table(PAIR_SCORE_SCHEMA, columns))
    return pa.concat_tables(parts)


def evaluate_lexical_controls(benchmark: EmbeddingBenchmark) -> pa.Table:
    """Evaluate BM25 and TF-IDF on the same pairs and retrieval sets; no model should lose to them.

    Returns:
        Table of schema ``METRIC_RESULT_SCHEMA``.
    """
    results = []
    for state, build_index in LEXICAL_RETRIEVERS.items():
        for pair_set in benchmark.pair_sets:
            index = build_index(pair_set.texts["text"].to_pylist())
            scorer = index.build_pair_scorer(
                [pair_set.anchors[row] for row in pair_set.anchor_rows]
            )
            scores = embedding.score_anchor_pairs(scorer, pair_set.pairs, pair_set.negatives)
            rows, top_scores = embedding.select_top_k(
                index.iterate_score_blocks(pair_set.anchors),
                pair_set.text_ids,
                RETRIEVED_PASSAGES,
                pair_set.own_text_rows,
            )
            retrieved = embedding.to_retrieval_table(
                rows, top_scores, pair_set.anchor_ids, pair_set.text_ids, pair_set.anchor_clusters
            )
            results += _evaluate_pair_set(benchmark, pair_set, scores, retrieved, state)
        for name, retrieval_set in benchmark.retrieval_sets.items():
            results.append(
                embedding.evaluate_retrieval(
                    _retrieve_by_words(retrieval_set, build_index),
                    retrieval_set.relevance_judgments,
                    state,
                    rng=benchmark.create_rng(),
                    task=name,
                    **benchmark.bootstrap_options,
                )
            )
    return pa.concat_tables(results)


def compare_embedding_results(
    benchmark: EmbeddingBenchmark,
    before: EmbeddingResults,
    after: EmbeddingResults,
    state_names: tuple[str, str],
) -> pa.Table:
    """Compute the differences of two states on the same pairs and queries, with paired intervals.

    Returns:
        Table of schema ``METRIC_RESULT_SCHEMA``: after less before.
    """
    options = benchmark.bootstrap_options
    rows = [
        embedding.compare_separation(
            scores,
            after.scores[name],
            state_names,
            rng=benchmark.create_rng(),
            task=name,
            **options,
        )
        for name, scores in before.scores.items()
    ]
    rows += [
        embedding.compare_retrieval(
            queries,
            after.queries[name],
            state_names,
            rng=benchmark.create_rng(),
            task=name,
            **options,
        )
        for name, queries in before.queries.items()
    ]
    return pa.concat_tables(rows)
