"""What vectors are asked to do: held-out pairs told from unrelated texts, passages found again, sets searched, the study's protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.baselines import lexical
from clinpeft.core.schemas import (
    PAIR_SCORE_SCHEMA,
    RELEVANCE_JUDGMENT_SCHEMA,
    Attrition,
    RetrievalSet,
    build_arrow_table,
)
from clinpeft.data.retrieval import beir
from clinpeft.evaluation import embedding
from clinpeft.models import EmbeddingConfig
from clinpeft.recipe import EmbeddingEvaluationSpec
from clinpeft.workflows.textbooks import STUDY_PAIR_KINDS, EmbeddingData, PairData

EncodeFunction = Callable[[Sequence[str], str], Any]
"""(texts, what stands before each) -> vectors (texts, width), float32."""

RETRIEVED_PASSAGES = 100  # passages kept for a query
MINING_CANDIDATES = 20
QUERY_SIDE, DOCUMENT_SIDE = "query", "document"
LEXICAL_RETRIEVERS: dict[str, Callable[[Sequence[str]], Any]] = {
    "BM25": lexical.build_bm25_index,
    "TF-IDF": lexical.build_tfidf_index,
}


@dataclass(frozen=True)
class PairEvaluationSet:
    """Held-out pairs of books, and all texts of the books as distractors.

    Attributes:
        name: of the task, as it stands in results.
        texts: all that is searched: every passage and every positive, each text once; columns of ``tables.PASSAGE`` that strata need.
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
        """Names of the anchors."""
        return [f"a{at}" for at in range(len(self.anchors))]

    @property
    def own_text_rows(self) -> Any:
        """(anchors,) the text that an anchor is itself, which is not to be found; -1 for none."""
        own = np.full(len(self.anchors), -1, dtype=np.int64)
        assert self.pairs.own_passages is not None
        own[self.anchor_rows] = self.pairs.own_passages
        return own

    @property
    def anchor_clusters(self) -> list[str | None]:
        """(anchors,) the chapter of each."""
        assert self.pairs.clusters is not None
        clusters: list[str | None] = [None] * len(self.anchors)
        for at, cluster in zip(self.anchor_rows.tolist(), self.pairs.clusters, strict=True):
            clusters[at] = clusters[at] or cluster
        return clusters


@dataclass(frozen=True)
class EmbeddingResults:
    """What one state of a model did: the scores of all pairs, how well every query was answered, and results that are not compared.

    Attributes:
        scores: exam -> ``tables.PAIR_SCORE``.
        queries: search -> ``PER_QUERY``.
        results: of schema ``tables.RESULT``.
    """

    scores: Mapping[str, pa.Table]
    queries: Mapping[str, pa.Table]
    results: pa.Table


@dataclass(frozen=True)
class EmbeddingBenchmark:
    """All that every state of a model is asked."""

    pair_sets: tuple[PairEvaluationSet, ...]
    embedding_data: EmbeddingData
    spec: EmbeddingEvaluationSpec
    seed: int
    cache: dict[str, Any] = field(default_factory=dict)

    def create_rng(self) -> np.random.Generator:
        """The same resamples for every state."""
        return np.random.default_rng([self.seed, 1])

    @property
    def bootstrap_options(self) -> dict[str, Any]:
        """Of every bootstrap."""
        return {"resamples": self.spec.resamples, "level": self.spec.level}


def build_embedding_benchmark(
    embedding_data: EmbeddingData, spec: EmbeddingEvaluationSpec, seed: int
) -> EmbeddingBenchmark:
    """Held-out chapters, the other books, and the sets to search."""
    exams = [
        build_pair_evaluation_set("held-out chapters", embedding_data.training_books, spec, seed)
    ]
    if embedding_data.other_books is not None:
        exams.append(
            build_pair_evaluation_set("other books", embedding_data.other_books, spec, seed)
        )
    return EmbeddingBenchmark(tuple(exams), embedding_data, spec, seed)


def build_pair_evaluation_set(
    name: str, pair_data: PairData, spec: EmbeddingEvaluationSpec, seed: int
) -> PairEvaluationSet:
    """The held-out pairs of books with their negatives in strata; the mined ones are those that BM25 takes for answers."""
    held = pair_data.pairs.filter(pc.equal(pair_data.pairs["split"], "held_out"))
    if spec.max_pairs and len(held) > spec.max_pairs:
        held = held.take(
            pa.array(np.sort(np.random.default_rng(seed).permutation(len(held))[: spec.max_pairs]))
        )
    texts = _collect_unique_texts(pair_data)
    row_of = {text: row for row, text in enumerate(texts["text"].to_pylist())}
    anchors = list(dict.fromkeys(held["anchor"].to_pylist()))
    at = {text: row for row, text in enumerate(anchors)}
    anchor_of = np.array([at[text] for text in held["anchor"].to_pylist()], dtype=np.int64)
    positives = np.array([row_of[text] for text in held["positive"].to_pylist()], dtype=np.int64)
    own = np.array([row_of.get(text, -1) for text in held["anchor"].to_pylist()], dtype=np.int64)
    places = zip(held["book"].to_pylist(), held["chapter"].to_pylist(), strict=True)
    clusters = [
        f"{book} · {chapter}" if book else None for book, chapter in places
    ]  # of unknown origin: on its own
    pairs = embedding.AnchorPairs(
        held["pair_id"].to_pylist(), positives, own, held["anchor"].to_pylist(), clusters
    )
    attrition, rng = Attrition(f"negatives, {name}"), np.random.default_rng([seed, 3])
    ranking = _rank_with_bm25(texts, anchors, own, anchor_of)
    drawn = {
        stratum: embedding.draw_negatives(texts, pairs, stratum, rng, attrition, ranking)
        for stratum in embedding.NEGATIVE_STRATA
    }
    grades = sorted(
        {(f"a{a}", f"t{p}") for a, p in zip(anchor_of.tolist(), positives.tolist(), strict=True)}
    )
    judged = {
        "query_id": [a for a, _ in grades],
        "passage_id": [p for _, p in grades],
        "grade": [1] * len(grades),
    }
    return PairEvaluationSet(
        name,
        texts,
        anchors,
        anchor_of,
        pairs,
        drawn,
        build_arrow_table(RELEVANCE_JUDGMENT_SCHEMA, judged),
        attrition,
    )


def _collect_unique_texts(pair_data: PairData) -> pa.Table:
    """Every passage and every positive, each text once: where it stands in which section is that of its first appearance.

    A positive that was imported without its place is a book and a section of its own.
    """
    columns = ["book", "chapter", "section", "text"]
    positives = pair_data.pairs.select(["book", "chapter", "section", "positive"]).rename_columns(
        columns
    )
    both = pa.concat_tables(
        [positives, pair_data.passages.select(columns)], promote_options="permissive"
    )
    first: dict[str, int] = {}
    for row, text in enumerate(both["text"].to_pylist()):
        first.setdefault(text, row)
    once = both.take(pa.array(sorted(first.values())))
    for name in ("book", "section"):
        alone = pa.array([f"unknown {row}" for row in range(len(once))], once[name].type)
        once = once.set_column(
            once.schema.get_field_index(name), name, pc.coalesce(once[name], alone)
        )
    return once


def _rank_with_bm25(
    texts: pa.Table, anchors: list[str], own_text_rows: Any, anchor_rows: Any
) -> Any:
    """What BM25 finds for each pair's anchor, best first."""
    words = lexical.build_bm25_index(texts["text"].to_pylist())
    names = [f"t{row}" for row in range(len(texts))]
    rows, _ = embedding.select_top_k(words.iterate_score_blocks(anchors), names, MINING_CANDIDATES)
    found = rows[anchor_rows].copy()
    found[found == own_text_rows[:, None]] = -1
    return found


def evaluate_embeddings(
    benchmark: EmbeddingBenchmark,
    encode: EncodeFunction,
    embedding_config: EmbeddingConfig,
    state: str,
) -> EmbeddingResults:
    """Everything that is asked, of one state of a model."""
    scores, queries, results = {}, {}, []
    for one in benchmark.pair_sets:
        anchors, texts = (
            encode(one.anchors, embedding_config.query_prompt),
            encode(one.texts["text"].to_pylist(), embedding_config.document_prompt),
        )
        table_of_scores, found = _score_pair_set(one, anchors, texts, state)
        scores[one.name], queries[one.name] = (
            table_of_scores,
            embedding.compute_query_metrics(found, one.judgments),
        )
        results += [
            embedding.evaluate_separation(
                table_of_scores,
                state,
                rng=benchmark.create_rng(),
                task=one.name,
                **benchmark.bootstrap_options,
            ),
            embedding.evaluate_retrieval(
                found,
                one.judgments,
                state,
                rng=benchmark.create_rng(),
                task=one.name,
                **benchmark.bootstrap_options,
            ),
            _measure_geometry(benchmark, one, anchors, texts, state),
        ]
    for name, found_set in {
        **benchmark.embedding_data.retrieval_sets,
        **benchmark.embedding_data.general_retrieval_sets,
    }.items():
        found = _retrieve_by_vectors(found_set, encode, embedding_config)
        queries[name] = embedding.compute_query_metrics(found, found_set.relevance_judgments)
        results.append(
            embedding.evaluate_retrieval(
                found,
                found_set.relevance_judgments,
                state,
                rng=benchmark.create_rng(),
                task=name,
                **benchmark.bootstrap_options,
            )
        )
    if benchmark.embedding_data.study_pairs:
        scores["study"] = _score_study_pairs(benchmark, encode, embedding_config)
        results.append(_summarize_study(benchmark, scores["study"], state))
    return EmbeddingResults(scores, queries, pa.concat_tables(results))


def _score_pair_set(
    pair_set: PairEvaluationSet, anchors: Any, texts: Any, state: str
) -> tuple[pa.Table, pa.Table]:
    """Scores of pairs and negatives, and the texts found for each anchor."""
    names = [f"t{row}" for row in range(len(texts))]
    queries, passages = (
        embedding.normalize_vectors(anchors, pair_set.anchor_ids, state),
        embedding.normalize_vectors(texts, names, state),
    )
    score = embedding.build_cosine_scorer(queries[pair_set.anchor_rows], passages)
    scores = embedding.score_anchor_pairs(score, pair_set.pairs, pair_set.negatives)
    rows, found = embedding.rank_passages(
        anchors,
        texts,
        RETRIEVED_PASSAGES,
        query_ids=pair_set.anchor_ids,
        passage_ids=names,
        own_passages=pair_set.own_text_rows,
    )
    return scores, embedding.to_retrieval_table(
        rows, found, pair_set.anchor_ids, names, pair_set.anchor_clusters
    )


def _measure_geometry(
    benchmark: EmbeddingBenchmark, pair_set: PairEvaluationSet, anchors: Any, texts: Any, state: str
) -> pa.Table:
    """Of the positives of the first pair of every anchor."""
    first = np.unique(pair_set.anchor_rows, return_index=True)[1]
    ids, clusters = pair_set.anchor_ids, pair_set.anchor_clusters
    return embedding.evaluate_geometry(
        anchors,
        texts[pair_set.pairs.positives[first]],
        ids,
        clusters,
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
    """How well a set is searched in each state of a model, by words alone, and the last state less the first.

    Args:
        set_name: of the set, as it stands in the results.
        retrieval_set: the set.
        encoders_by_state: name -> texts to vectors.
        embedding_config: how a text becomes a vector.
        spec: resamples and level of the intervals.
        seed: of the resamples, the same for every state.

    Returns:
        Of schema ``tables.RESULT``.
    """
    options: dict[str, Any] = {"task": set_name, "resamples": spec.resamples, "level": spec.level}
    found = {
        state: _retrieve_by_vectors(retrieval_set, encode, embedding_config)
        for state, encode in encoders_by_state.items()
    }
    found |= {
        state: _retrieve_by_words(retrieval_set, made) for state, made in LEXICAL_RETRIEVERS.items()
    }
    rows = [
        embedding.evaluate_retrieval(
            one,
            retrieval_set.relevance_judgments,
            state,
            rng=np.random.default_rng([seed, 1]),
            **options,
        )
        for state, one in found.items()
    ]
    first, *_, last = encoders_by_state
    queries = [
        embedding.compute_query_metrics(found[state], retrieval_set.relevance_judgments)
        for state in (first, last)
    ]
    rows.append(
        embedding.compare_retrieval(
            queries[0], queries[1], (first, last), rng=np.random.default_rng([seed, 1]), **options
        )
    )
    return pa.concat_tables(rows)


def _retrieve_by_vectors(
    retrieval_set: RetrievalSet, encode: EncodeFunction, embedding_config: EmbeddingConfig
) -> pa.Table:
    """The best passages of a set for each of its queries."""
    queries, passages = retrieval_set.queries, retrieval_set.passages
    ids, names = queries["query_id"].to_pylist(), passages["passage_id"].to_pylist()
    rows, scores = embedding.rank_passages(
        encode(queries["text"].to_pylist(), embedding_config.query_prompt),
        encode(beir.join_titles_and_texts(passages), embedding_config.document_prompt),
        RETRIEVED_PASSAGES,
        query_ids=ids,
        passage_ids=names,
    )
    return embedding.to_retrieval_table(rows, scores, ids, names, queries["cluster"].to_pylist())


def _retrieve_by_words(
    retrieval_set: RetrievalSet, build_index: Callable[[Sequence[str]], Any]
) -> pa.Table:
    """The same by words alone."""
    ids, names = (
        retrieval_set.queries["query_id"].to_pylist(),
        retrieval_set.passages["passage_id"].to_pylist(),
    )
    rows, found = embedding.select_top_k(
        build_index(beir.join_titles_and_texts(retrieval_set.passages)).scores(
            retrieval_set.queries["text"].to_pylist()
        ),
        names,
        RETRIEVED_PASSAGES,
    )
    return embedding.to_retrieval_table(
        rows, found, ids, names, retrieval_set.queries["cluster"].to_pylist()
    )


def _score_study_pairs(
    benchmark: EmbeddingBenchmark, encode: EncodeFunction, embedding_config: EmbeddingConfig
) -> pa.Table:
    """The pairs of the protocol of arXiv 2511.19739 with their cosines; the similar ones are the related."""
    parts = []
    for kind, pairs in benchmark.embedding_data.study_pairs.items():
        ids = pairs["pair_id"].to_pylist()
        sides = [
            embedding.normalize_vectors(
                encode(pairs[side].to_pylist(), embedding_config.query_prompt), ids, kind
            )
            for side in ("anchor", "positive")
        ]
        columns = {
            "pair_id": ids,
            "stratum": [kind] * len(ids),
            "related": [kind == STUDY_PAIR_KINDS[0]] * len(ids),
            "score": embedding.compute_cosines(*sides),
        }
        parts.append(build_arrow_table(PAIR_SCORE_SCHEMA, columns))
    return pa.concat_tables(parts)


def _summarize_study(benchmark: EmbeddingBenchmark, scores: pa.Table, state: str) -> pa.Table:
    """Its numbers, with intervals over pairs."""
    of = {
        kind: scores.filter(pc.equal(scores["stratum"], kind))["score"].to_numpy()
        for kind in STUDY_PAIR_KINDS
    }
    return embedding.evaluate_study_protocol(
        of["similar"],
        of["different"],
        of["negation"],
        state,
        rng=benchmark.create_rng(),
        **benchmark.bootstrap_options,
    )


def evaluate_lexical_controls(benchmark: EmbeddingBenchmark) -> pa.Table:
    """BM25 and TF-IDF on the same pairs and searches, which no vector should lose to."""
    results = []
    for state, made in LEXICAL_RETRIEVERS.items():
        for one in benchmark.pair_sets:
            words = made(one.texts["text"].to_pylist())
            names = [f"t{row}" for row in range(len(one.texts))]
            scores = embedding.score_anchor_pairs(
                words.build_pair_scorer([one.anchors[at] for at in one.anchor_rows]),
                one.pairs,
                one.negatives,
            )
            rows, found = embedding.select_top_k(
                words.iterate_score_blocks(one.anchors),
                names,
                RETRIEVED_PASSAGES,
                one.own_text_rows,
            )
            retrieved = embedding.to_retrieval_table(
                rows, found, one.anchor_ids, names, one.anchor_clusters
            )
            results += [
                embedding.evaluate_separation(
                    scores,
                    state,
                    rng=benchmark.create_rng(),
                    task=one.name,
                    **benchmark.bootstrap_options,
                ),
                embedding.evaluate_retrieval(
                    retrieved,
                    one.judgments,
                    state,
                    rng=benchmark.create_rng(),
                    task=one.name,
                    **benchmark.bootstrap_options,
                ),
            ]
        for name, found_set in {
            **benchmark.embedding_data.retrieval_sets,
            **benchmark.embedding_data.general_retrieval_sets,
        }.items():
            retrieved = _retrieve_by_words(found_set, made)
            results.append(
                embedding.evaluate_retrieval(
                    retrieved,
                    found_set.relevance_judgments,
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
    """After less before, on the same pairs and queries, with paired intervals."""
    rows = [
        embedding.compare_separation(
            scores,
            after.scores[name],
            state_names,
            rng=benchmark.create_rng(),
            task=name,
            **benchmark.bootstrap_options,
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
            **benchmark.bootstrap_options,
        )
        for name, queries in before.queries.items()
    ]
    return pa.concat_tables(rows)
