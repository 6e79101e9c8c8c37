"""Retrieval metrics with the definitions, ties included, of trec_eval (version 9)."""

from __future__ import annotations

from collections.abc import Sequence
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
from clinpeft.evaluation.arrays import BoolArray, Float64Array, Int64Array, divide_or_nan
from clinpeft.evaluation.bootstrap import RowStatistics
from clinpeft.evaluation.embedding.rows import (
    MeasurementContext,
    bootstrap_metric_rows,
    number_clusters,
)

RETRIEVAL_METRICS = {
    "ndcg_at_10": "nDCG of the first 10: gain: grade, discount: log2(rank + 1), "
    "over that of the best order of the judged (trec_eval ndcg_cut_10)",
    "mrr_at_10": "reciprocal rank of the first relevant passage, 0 if none is among the first 10",
    "recall_at_1": "share of the relevant passages that are first (trec_eval recall_1)",
    "recall_at_10": "share of the relevant passages among the first 10 (trec_eval recall_10)",
    "recall_at_100": "share of the relevant passages among the first 100 (trec_eval recall_100)",
    "map_at_100": "precision at each relevant passage among the first 100, "
    "averaged over all relevant ones (trec_eval map_cut_100)",
}
"""Name -> definition for one query; a passage without a judgment counts as not relevant."""

PER_QUERY_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("cluster", pa.string()),
        pa.field("relevant", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in RETRIEVAL_METRICS),
    ]
)
"""One query: how many passages are relevant to it, and its value of each metric."""


@dataclass(frozen=True)
class _NumberedIds:
    """A number for each id, in the byte order of the ids."""

    ids: pa.Array
    judgment_numbers: Int64Array
    ranking_numbers: Int64Array

    @property
    def size(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _GradedRows:
    """Judged passages, sorted by query and rank; the rank starts at 0. Each of shape (n,)."""

    query_number: Int64Array
    rank: Int64Array
    grade: Int64Array


def compute_query_metrics(
    rankings: pa.Table, judgments: pa.Table, min_relevant_grade: int = 1
) -> pa.Table:
    """Compute every metric of every query that has a relevant passage.

    Rows are ordered by descending score and, where scores are equal, descending passage id, as
    trec_eval does; ``rank`` is ignored. A query for which nothing was retrieved has 0 everywhere
    (trec_eval ``-c``). Queries that were never judged, or have no relevant passage, are left out.
    nDCG: Järvelin and Kekäläinen 2002; average precision: Buckley and Voorhees 2005.

    Args:
        rankings: of schema ``RETRIEVED_PASSAGE_SCHEMA``.
        judgments: of schema ``RELEVANCE_JUDGMENT_SCHEMA``.
        min_relevant_grade: the smallest grade that is relevant (trec_eval ``-l``); nDCG takes every
            positive grade as its gain whatever this is.

    Returns:
        Of schema ``PER_QUERY_SCHEMA``, in the order of the query ids.

    Raises:
        InputError: scores that are NaN, or one passage twice for a query or judged twice, with how
            many and the first query.
    """
    rankings = rankings.select(RETRIEVED_PASSAGE_SCHEMA.names)
    judgments = judgments.select(RELEVANCE_JUDGMENT_SCHEMA.names)
    scores = np.asarray(rankings["score"].to_numpy())
    infinite = ~np.isfinite(scores)
    if infinite.any():
        query_id = rankings["query_id"][int(np.argmax(infinite))].as_py()
        raise InputError(
            f"{int(infinite.sum())} scores that are not finite (NaN), "
            f"the first for query {query_id!r}",
            location="retrieved",
            hint="encode again; a NaN comes from numbers that overflowed, often in half precision",
        )
    queries = _number_ids(judgments, rankings, "query_id")
    passages = _number_ids(judgments, rankings, "passage_id")
    # One number for each pair of query and passage, by which judgments are looked up.
    judged_pairs = queries.judgment_numbers * passages.size + passages.judgment_numbers
    ranked_pairs = queries.ranking_numbers * passages.size + passages.ranking_numbers
    _check_unique_pairs(judged_pairs, judgments, "judged")
    _check_unique_pairs(ranked_pairs, rankings, "retrieved")
    grades = np.asarray(judgments["grade"].to_numpy(), np.int64)
    relevant_queries = queries.judgment_numbers[grades >= min_relevant_grade]
    relevant = np.bincount(relevant_queries, minlength=queries.size)  # (queries,)

    # lexsort: by query, then by descending score, then by descending passage id.
    order = np.lexsort((-passages.ranking_numbers, -scores, queries.ranking_numbers))
    ranked_grades = np.zeros(len(order), np.int64)
    if len(judged_pairs):
        by_pair = np.argsort(judged_pairs)
        at = np.searchsorted(judged_pairs[by_pair], ranked_pairs[order])
        judgment = by_pair[np.minimum(at, len(judged_pairs) - 1)]
        is_judged = judged_pairs[judgment] == ranked_pairs[order]
        ranked_grades = np.where(is_judged, grades[judgment], 0)
    ranking = _rank_rows(queries.ranking_numbers[order], ranked_grades, queries.size)
    best_order = np.lexsort((-grades, queries.judgment_numbers))
    ideal = _rank_rows(queries.judgment_numbers[best_order], grades[best_order], queries.size)
    metrics = _compute_metrics(ranking, ideal, relevant, min_relevant_grade)

    # Queries without a relevant passage have no recall, and are left out of all means.
    numbers = np.flatnonzero(relevant)
    # The cluster of the first retrieved row of each query; null where nothing was retrieved.
    first_row = np.full(queries.size, -1, np.int64)
    first_row[queries.ranking_numbers[::-1]] = np.arange(len(rankings))[::-1]
    row = pa.array(first_row[numbers], mask=first_row[numbers] < 0)
    columns = [
        queries.ids.take(numbers),
        rankings["cluster"].combine_chunks().take(row),
        pa.array(relevant[numbers], pa.int64()),
        *(pa.array(metrics[name][numbers], pa.float64()) for name in RETRIEVAL_METRICS),
    ]
    return pa.Table.from_arrays(columns, schema=PER_QUERY_SCHEMA)


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
    """Average each metric of ``RETRIEVAL_METRICS`` over queries, every query with equal weight.

    Percentile intervals by bootstrap over clusters of queries.

    Args:
        rankings: of schema ``RETRIEVED_PASSAGE_SCHEMA``, at least 100 passages a query for the
            metrics at 100.
        judgments: of schema ``RELEVANCE_JUDGMENT_SCHEMA``.
        state: of the model, for ``group``.
        resamples, level, rng: of the bootstrap.
        split, task: for the columns of these names.
        min_relevant_grade: as in ``compute_query_metrics``.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``; ``n`` counts queries with a relevant passage (the
        definition says how many had none and were left out), ``n_events`` relevant passages,
        ``n_subjects`` clusters.

    Raises:
        InputError: as ``compute_query_metrics``.
    """
    query_metrics = compute_query_metrics(rankings, judgments, min_relevant_grade)
    query_ids = [*rankings["query_id"].chunks, *judgments["query_id"].chunks]
    query_count = pc.count_distinct(pa.chunked_array(query_ids, pa.string())).as_py()
    remark = (
        f"relevant from grade {min_relevant_grade}; "
        f"{query_count - len(query_metrics)} queries without a relevant passage left out"
    )
    definitions = {
        name: f"mean over queries of: {definition}; {remark}"
        for name, definition in RETRIEVAL_METRICS.items()
    }
    context = MeasurementContext(
        len(query_metrics),
        pc.sum(query_metrics["relevant"]).as_py() or 0,
        split,
        state,
        task,
        "clusters of queries",
    )
    clusters = number_clusters(query_metrics["cluster"].to_pylist())
    statistics = build_metric_means(query_metrics)
    rows = bootstrap_metric_rows(definitions, statistics, clusters, context, resamples, level, rng)
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def build_metric_means(
    query_metrics: pa.Table, metric_names: Sequence[str] = tuple(RETRIEVAL_METRICS)
) -> RowStatistics:
    """Build the function from counts of queries to the mean of each metric.

    Args:
        query_metrics: of schema ``PER_QUERY_SCHEMA``, q rows.
        metric_names: keys of ``RETRIEVAL_METRICS``.

    Returns:
        Counts of shape (resamples, q) to means of shape (metrics, resamples); NaN without a query.
    """
    values = np.stack([query_metrics[name].to_numpy() for name in metric_names], axis=1)

    def compute_means(counts: NDArray[np.int32]) -> Float64Array:
        return divide_or_nan((counts @ values).T, counts.sum(axis=1))

    return compute_means


def _number_ids(judgments: pa.Table, rankings: pa.Table, column: str) -> _NumberedIds:
    chunks = [*judgments[column].chunks, *rankings[column].chunks]
    ids = pa.chunked_array(chunks, pa.string()).unique().sort()
    # Arrow compares the bytes of UTF-8, as strcmp does in trec_eval.
    judgment_numbers, ranking_numbers = (
        pc.index_in(table[column], value_set=ids).to_numpy().astype(np.int64)
        for table in (judgments, rankings)
    )
    return _NumberedIds(ids, judgment_numbers, ranking_numbers)


def _rank_rows(query_number: Int64Array, grade: Int64Array, query_count: int) -> _GradedRows:
    """Number the rows of each query from 0; rows of a query are contiguous and in ascending
    order."""
    starts = np.searchsorted(query_number, np.arange(query_count))  # first row of each query
    return _GradedRows(query_number, np.arange(len(query_number)) - starts[query_number], grade)


def _compute_metrics(
    ranking: _GradedRows, ideal: _GradedRows, relevant: Int64Array, min_relevant_grade: int
) -> dict[str, Float64Array]:
    """Every metric of every query, shape (queries,) each; 0 for a query without a relevant passage.

    Args:
        ranking: retrieved rows; unjudged ones have grade 0.
        ideal: judged rows in the best order.
        relevant: relevant passages of each query, shape (queries,).
        min_relevant_grade: the smallest grade that is relevant.
    """
    query_count = len(relevant)

    def sum_by_query(rows: _GradedRows, mask: BoolArray, weights: Float64Array) -> Float64Array:
        sums = np.bincount(rows.query_number[mask], weights, minlength=query_count)
        return sums.astype(np.float64)

    def compute_dcg(rows: _GradedRows) -> Float64Array:
        # DCG of the first 10: grade / log2(rank + 1) with ranks from 1 (Järvelin and Kekäläinen
        # 2002, with log2 from the first rank on as in trec_eval).
        mask = (rows.rank < 10) & (rows.grade > 0)
        return sum_by_query(rows, mask, rows.grade[mask] / np.log2(rows.rank[mask] + 2))

    is_hit = ranking.grade >= min_relevant_grade  # (n,)
    # 0 / 0 for a query without a judged gain becomes 0 below, as in trec_eval.
    metrics = {"ndcg_at_10": divide_or_nan(compute_dcg(ranking), compute_dcg(ideal))}
    mask = is_hit & (ranking.rank < 10)
    # The largest reciprocal rank is that of the first hit.
    metrics["mrr_at_10"] = np.zeros(query_count)
    reciprocals = 1 / (ranking.rank[mask] + 1)
    np.maximum.at(metrics["mrr_at_10"], ranking.query_number[mask], reciprocals)
    for depth in (1, 10, 100):
        mask = is_hit & (ranking.rank < depth)
        hits = sum_by_query(ranking, mask, np.ones(int(mask.sum())))
        metrics[f"recall_at_{depth}"] = divide_or_nan(hits, relevant)
    mask = is_hit & (ranking.rank < 100)
    # Number of hits of a query up to and including each hit, from 1.
    hit_rank = _rank_rows(ranking.query_number[mask], ranking.grade[mask], query_count).rank + 1
    precisions = sum_by_query(ranking, mask, hit_rank / (ranking.rank[mask] + 1))
    metrics["map_at_100"] = divide_or_nan(precisions, relevant)
    return {name: np.nan_to_num(values) for name, values in metrics.items()}


def _check_unique_pairs(pairs: Int64Array, rows: pa.Table, verb: str) -> None:
    """Raise an InputError that counts the repeated pairs and names the first query."""
    _, first = np.unique(pairs, return_index=True)
    if len(first) < len(pairs):
        repeated = np.setdiff1d(np.arange(len(pairs)), first)
        query_id = rows["query_id"][int(repeated[0])].as_py()
        raise InputError(
            f"{len(repeated)} passages {verb} twice for a query, the first for query {query_id!r}",
            location=verb,
            hint="give each passage once a query",
        )
