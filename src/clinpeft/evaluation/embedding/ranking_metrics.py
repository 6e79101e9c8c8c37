"""Retrieval: whether a query finds the passages that answer it. Definitions, ties included, are those of trec_eval (version 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import (
    METRIC_RESULT_SCHEMA,
    RELEVANCE_JUDGMENT_SCHEMA,
    RETRIEVED_PASSAGE_SCHEMA,
)
from clinpeft.evaluation.bootstrap import Float64Array, Int64Array, RowStatistics
from clinpeft.evaluation.embedding.rows import (
    MeasurementContext,
    bootstrap_metric_rows,
    number_clusters,
)

RETRIEVAL_METRICS = {
    "ndcg_at_10": "nDCG of the first 10: gain: grade, discount: log2(rank + 1), over that of the best order of the judged (trec_eval ndcg_cut_10)",
    "mrr_at_10": "reciprocal rank of the first relevant passage, 0 if none is among the first 10",
    "recall_at_1": "share of the relevant passages that are first (trec_eval recall_1)",
    "recall_at_10": "share of the relevant passages among the first 10 (trec_eval recall_10)",
    "recall_at_100": "share of the relevant passages among the first 100 (trec_eval recall_100)",
    "map_at_100": "precision at each relevant passage among the first 100, averaged over all relevant ones (trec_eval map_cut_100)",
}
"""Name -> definition for one query; a passage without a judgement counts as not relevant."""

PER_QUERY_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("cluster", pa.string()),
        pa.field("relevant", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in RETRIEVAL_METRICS),
    ]
)
"""One query: how many passages are relevant to it, and its value of each metric."""

_DUPLICATE_HINT = "give each passage once a query"


@dataclass(frozen=True)
class _RankedPassages:
    """Retrieved rows, sorted by query and place.

    Attributes:
        query_number: number of the query of each row, shape (n,).
        rank: from 0, shape (n,).
        grade: shape (n,), 0 where not judged.
    """

    query_number: Int64Array
    rank: Int64Array
    grade: Int64Array


def compute_query_metrics(
    rankings: pa.Table, judgments: pa.Table, min_relevant_grade: int = 1
) -> pa.Table:
    """Every metric of every query that has a relevant passage.

    Rows are put in order by descending score and, where scores are equal, descending passage id, as trec_eval does; ``rank`` is not looked at. A
    query for which nothing was retrieved has 0 everywhere (trec_eval ``-c``). Queries that were never judged, or have no relevant passage, are not
    among the rows.

    Args:
        rankings: of schema ``tables.RETRIEVED``.
        judgments: of schema ``tables.JUDGEMENT``.
        min_relevant_grade: the smallest grade that is relevant (trec_eval ``-l``); nDCG takes every positive grade as its gain whatever this is.

    Returns:
        Of schema ``PER_QUERY``, in the order of the query ids.

    Raises:
        InputError: scores that are NaN, or one passage twice for a query or judged twice, with how many and the first query.
    """
    rankings, judgments = (
        rankings.select(RETRIEVED_PASSAGE_SCHEMA.names),
        judgments.select(RELEVANCE_JUDGMENT_SCHEMA.names),
    )
    _check_finite_scores(rankings)
    queries, passages = (
        _number_ids(judgments, rankings, "query_id"),
        _number_ids(judgments, rankings, "passage_id"),
    )
    judged = queries.judgment_numbers * passages.size + passages.judgment_numbers
    _check_unique_pairs(judged, judgments, "judged")
    grades = np.asarray(judgments["grade"].to_numpy(), np.int64)
    relevant = np.bincount(
        queries.judgment_numbers[grades >= min_relevant_grade], minlength=queries.size
    )
    found = _rank_passages(rankings, queries, passages, judged, grades)
    values = np.stack(
        [
            _METRIC_FUNCTIONS[name](found, relevant, queries, grades, min_relevant_grade)
            for name in RETRIEVAL_METRICS
        ]
    )
    asked = np.flatnonzero(relevant)
    columns = [
        queries.ids.take(asked),
        _get_query_clusters(rankings, queries, asked),
        pa.array(relevant[asked], pa.int64()),
    ]
    return pa.Table.from_arrays(
        [*columns, *(pa.array(one[asked], pa.float64()) for one in values)], schema=PER_QUERY_SCHEMA
    )


def evaluate_retrieval(
    rankings: pa.Table,
    judgments: pa.Table,
    state: str,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
    min_relevant_grade: int = 1,
) -> pa.Table:
    """The mean over queries of each metric of ``METRICS``, with a percentile interval by bootstrap over clusters of queries.

    Args:
        rankings: of schema ``tables.RETRIEVED``, at least 100 passages a query for the metrics that look so far.
        judgments: of schema ``tables.JUDGEMENT``.
        state: of the model, for ``group``.
        resamples, level, rng: of the bootstrap.
        split, task: for the columns of these names.
        min_relevant_grade: as in ``per_query``.

    Returns:
        Of schema ``tables.RESULT``; ``n`` counts queries with a relevant passage (the definition says how many had none and were left out),
        ``n_events`` relevant passages, ``n_subjects`` clusters.

    Raises:
        InputError: as ``per_query``.
    """
    scored = compute_query_metrics(rankings, judgments, min_relevant_grade)
    asked = pc.count_distinct(
        pa.chunked_array([*rankings["query_id"].chunks, *judgments["query_id"].chunks], pa.string())
    ).as_py()
    definitions = {
        name: f"mean over queries of: {said}; {_describe_counts(scored, asked, min_relevant_grade)}"
        for name, said in RETRIEVAL_METRICS.items()
    }
    about = MeasurementContext(
        len(scored),
        pc.sum(scored["relevant"]).as_py() or 0,
        split,
        state,
        task,
        "clusters of queries",
    )
    clusters = number_clusters(scored["cluster"].to_pylist())
    rows = bootstrap_metric_rows(
        definitions, build_metric_means(scored), clusters, about, resamples, level, rng
    )
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def build_metric_means(
    query_metrics: pa.Table, metric_names: Sequence[str] = tuple(RETRIEVAL_METRICS)
) -> RowStatistics:
    """Counts of queries (resamples, q) -> the mean of each metric of a ``PER_QUERY`` table, shape (metrics, resamples); NaN without a query."""
    values = np.stack([query_metrics[name].to_numpy() for name in metric_names], axis=1)

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        drawn = counts.sum(axis=1)
        sums = (counts @ values).T
        found: Float64Array = np.divide(
            sums, drawn, out=np.full(sums.shape, np.nan), where=drawn > 0
        )
        return found

    return statistics


@dataclass(frozen=True)
class _NumberedIds:
    """A number for each id, in the byte order of the ids."""

    ids: pa.Array
    judgment_numbers: Int64Array
    ranking_numbers: Int64Array

    @property
    def size(self) -> int:
        return len(self.ids)


def _number_ids(judgments: pa.Table, rankings: pa.Table, column: str) -> _NumberedIds:
    together = pa.chunked_array([*judgments[column].chunks, *rankings[column].chunks], pa.string())
    names = together.unique().sort()  # Arrow compares the bytes of UTF-8, as strcmp does
    return _NumberedIds(
        names,
        *(
            pc.index_in(one[column], value_set=names).to_numpy().astype(np.int64)
            for one in (judgments, rankings)
        ),
    )


def _rank_passages(
    rankings: pa.Table,
    queries: _NumberedIds,
    passages: _NumberedIds,
    judged_pairs: Int64Array,
    grades: Int64Array,
) -> _RankedPassages:
    pairs = queries.ranking_numbers * passages.size + passages.ranking_numbers
    _check_unique_pairs(pairs, rankings, "retrieved")
    order = np.lexsort(
        (
            -passages.ranking_numbers,
            -np.asarray(rankings["score"].to_numpy()),
            queries.ranking_numbers,
        )
    )
    query = queries.ranking_numbers[order]
    starts = np.searchsorted(query, np.arange(queries.size))
    return _RankedPassages(
        query,
        np.arange(len(query)) - starts[query],
        _look_up_grades(pairs[order], judged_pairs, grades),
    )


def _look_up_grades(pairs: Int64Array, judged_pairs: Int64Array, grades: Int64Array) -> Int64Array:
    if not len(judged_pairs):
        return np.zeros(len(pairs), np.int64)
    order = np.argsort(judged_pairs)
    at = np.minimum(np.searchsorted(judged_pairs[order], pairs), len(judged_pairs) - 1)
    return np.where(judged_pairs[order][at] == pairs, grades[order][at], 0)


def _compute_ndcg(
    ranking: _RankedPassages,
    _relevant_counts: Int64Array,
    queries: _NumberedIds,
    grades: Int64Array,
    _min_relevant_grade: int,
) -> Float64Array:
    best = np.lexsort((-grades, queries.judgment_numbers))
    query = queries.judgment_numbers[best]
    location = np.arange(len(query)) - np.searchsorted(query, np.arange(queries.size))[query]
    ideal = _compute_dcg(query, location, grades[best], queries.size)
    return _divide_or_zero(
        _compute_dcg(ranking.query_number, ranking.rank, ranking.grade, queries.size), ideal
    )


def _compute_dcg(
    query_number: Int64Array, rank: Int64Array, grade: Int64Array, query_count: int
) -> Float64Array:
    """Discounted cumulative gain of the first 10 (Järvelin and Kekäläinen 2002): the grade over log2(rank + 1), ranks from 1."""
    counted = (rank < 10) & (grade > 0)
    weights = grade[counted] / np.log2(rank[counted] + 2)
    return np.bincount(query_number[counted], weights, minlength=query_count).astype(np.float64)


def _compute_mrr(
    ranking: _RankedPassages,
    _relevant_counts: Int64Array,
    queries: _NumberedIds,
    _grades: Int64Array,
    min_relevant_grade: int,
) -> Float64Array:
    hit = (ranking.rank < 10) & (ranking.grade >= min_relevant_grade)
    reciprocal = np.zeros(queries.size)
    np.maximum.at(reciprocal, ranking.query_number[hit], 1 / (ranking.rank[hit] + 1))
    return reciprocal


def _build_recall(
    depth: int,
) -> Callable[[_RankedPassages, Int64Array, _NumberedIds, Int64Array, int], Float64Array]:
    def recall(
        found: _RankedPassages,
        relevant: Int64Array,
        queries: _NumberedIds,
        _grades: Int64Array,
        relevant_from: int,
    ) -> Float64Array:
        hit = (found.rank < depth) & (found.grade >= relevant_from)
        return _divide_or_zero(
            np.bincount(found.query_number[hit], minlength=queries.size), relevant
        )

    return recall


def _compute_map(
    ranking: _RankedPassages,
    relevant_counts: Int64Array,
    queries: _NumberedIds,
    _grades: Int64Array,
    min_relevant_grade: int,
) -> Float64Array:
    hit = (ranking.rank < 100) & (ranking.grade >= min_relevant_grade)
    query = ranking.query_number[hit]
    so_far = np.arange(len(query)) - np.searchsorted(query, np.arange(queries.size))[query] + 1
    return _divide_or_zero(
        np.bincount(query, so_far / (ranking.rank[hit] + 1), minlength=queries.size),
        relevant_counts,
    )


_METRIC_FUNCTIONS: dict[
    str, Callable[[_RankedPassages, Int64Array, _NumberedIds, Int64Array, int], Float64Array]
] = {
    "ndcg_at_10": _compute_ndcg,
    "mrr_at_10": _compute_mrr,
    "recall_at_1": _build_recall(1),
    "recall_at_10": _build_recall(10),
    "recall_at_100": _build_recall(100),
    "map_at_100": _compute_map,
}


def _divide_or_zero(
    numerators: Float64Array | Int64Array, denominators: Float64Array | Int64Array
) -> Float64Array:
    return np.divide(
        numerators,
        denominators,
        out=np.zeros(len(numerators)),
        where=denominators > 0,
        dtype=np.float64,
    )


def _get_query_clusters(
    rankings: pa.Table, queries: _NumberedIds, query_numbers: Int64Array
) -> pa.Array:
    """The cluster that was retrieved with a query; null for a query without one, or for which nothing was retrieved."""
    first = np.full(queries.size, -1, np.int64)
    first[queries.ranking_numbers[::-1]] = np.arange(len(rankings))[::-1]
    at = pa.array(first[query_numbers], mask=first[query_numbers] < 0)
    return rankings["cluster"].combine_chunks().take(at)


def _describe_counts(query_metrics: pa.Table, query_count: int, min_relevant_grade: int) -> str:
    without = query_count - len(query_metrics)
    return f"relevant from grade {min_relevant_grade}; {without} queries without a relevant passage left out"


def _check_finite_scores(rankings: pa.Table) -> None:
    bad = ~np.isfinite(np.asarray(rankings["score"].to_numpy()))
    if bad.any():
        message = f"{int(bad.sum())} scores that are not finite (NaN), the first for query {rankings['query_id'][int(np.argmax(bad))].as_py()!r}"
        raise InputError(
            message,
            location="retrieved",
            hint="encode again; a NaN comes from numbers that overflowed, often in half precision",
        )


def _check_unique_pairs(pairs: Int64Array, rows: pa.Table, word: str) -> None:
    _, first = np.unique(pairs, return_index=True)
    if len(first) < len(pairs):
        again = np.setdiff1d(np.arange(len(pairs)), first)
        message = f"{len(again)} passages {word} twice for a query, the first for query {rows['query_id'][int(again[0])].as_py()!r}"
        raise InputError(message, location=word, hint=_DUPLICATE_HINT)
