"""Retrieval: whether a query finds the passages that answer it. Definitions, ties included, are those of trec_eval (version 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import JUDGEMENT, RESULT, RETRIEVED
from clinpeft.evaluation.bootstrap import Floats, Integers, RowStatistics
from clinpeft.evaluation.embedding.rows import Measured, bootstrapped, codes

METRICS = {
    "ndcg_at_10": "nDCG of the first 10: gain: grade, discount: log2(rank + 1), over that of the best order of the judged (trec_eval ndcg_cut_10)",
    "mrr_at_10": "reciprocal rank of the first relevant passage, 0 if none is among the first 10",
    "recall_at_1": "share of the relevant passages that are first (trec_eval recall_1)",
    "recall_at_10": "share of the relevant passages among the first 10 (trec_eval recall_10)",
    "recall_at_100": "share of the relevant passages among the first 100 (trec_eval recall_100)",
    "map_at_100": "precision at each relevant passage among the first 100, averaged over all relevant ones (trec_eval map_cut_100)",
}
"""Name -> definition for one query; a passage without a judgement counts as not relevant."""

PER_QUERY = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("cluster", pa.string()),
        pa.field("relevant", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in METRICS),
    ]
)
"""One query: how many passages are relevant to it, and its value of each metric."""

_TWICE = "give each passage once a query"


@dataclass(frozen=True)
class _Found:
    """Retrieved rows, sorted by query and place.

    Attributes:
        query: number of the query of each row, shape (n,).
        location: from 0, shape (n,).
        grade: shape (n,), 0 where not judged.
    """

    query: Integers
    location: Integers
    grade: Integers


def per_query(retrieved: pa.Table, judgements: pa.Table, relevant_from: int = 1) -> pa.Table:
    """Every metric of every query that has a relevant passage.

    Rows are put in order by descending score and, where scores are equal, descending passage id, as trec_eval does; ``rank`` is not looked at. A
    query for which nothing was retrieved has 0 everywhere (trec_eval ``-c``). Queries that were never judged, or have no relevant passage, are not
    among the rows.

    Args:
        retrieved: of schema ``tables.RETRIEVED``.
        judgements: of schema ``tables.JUDGEMENT``.
        relevant_from: the smallest grade that is relevant (trec_eval ``-l``); nDCG takes every positive grade as its gain whatever this is.

    Returns:
        Of schema ``PER_QUERY``, in the order of the query ids.

    Raises:
        InputError: scores that are NaN, or one passage twice for a query or judged twice, with how many and the first query.
    """
    retrieved, judgements = retrieved.select(RETRIEVED.names), judgements.select(JUDGEMENT.names)
    _refuse_nan(retrieved)
    queries, passages = (
        _numbered(judgements, retrieved, "query_id"),
        _numbered(judgements, retrieved, "passage_id"),
    )
    judged = queries.of_judgements * passages.size + passages.of_judgements
    _refuse_twice(judged, judgements, "judged")
    grades = np.asarray(judgements["grade"].to_numpy(), np.int64)
    relevant = np.bincount(queries.of_judgements[grades >= relevant_from], minlength=queries.size)
    found = _found(retrieved, queries, passages, judged, grades)
    values = np.stack(
        [_VALUES[name](found, relevant, queries, grades, relevant_from) for name in METRICS]
    )
    asked = np.flatnonzero(relevant)
    columns = [
        queries.names.take(asked),
        _clusters(retrieved, queries, asked),
        pa.array(relevant[asked], pa.int64()),
    ]
    return pa.Table.from_arrays(
        [*columns, *(pa.array(one[asked], pa.float64()) for one in values)], schema=PER_QUERY
    )


def retrieval(
    retrieved: pa.Table,
    judgements: pa.Table,
    state: str,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
    relevant_from: int = 1,
) -> pa.Table:
    """The mean over queries of each metric of ``METRICS``, with a percentile interval by bootstrap over clusters of queries.

    Args:
        retrieved: of schema ``tables.RETRIEVED``, at least 100 passages a query for the metrics that look so far.
        judgements: of schema ``tables.JUDGEMENT``.
        state: of the model, for ``group``.
        resamples, level, rng: of the bootstrap.
        split, task: for the columns of these names.
        relevant_from: as in ``per_query``.

    Returns:
        Of schema ``tables.RESULT``; ``n`` counts queries with a relevant passage (the definition says how many had none and were left out),
        ``n_events`` relevant passages, ``n_subjects`` clusters.

    Raises:
        InputError: as ``per_query``.
    """
    scored = per_query(retrieved, judgements, relevant_from)
    asked = pc.count_distinct(
        pa.chunked_array(
            [*retrieved["query_id"].chunks, *judgements["query_id"].chunks], pa.string()
        )
    ).as_py()
    definitions = {
        name: f"mean over queries of: {said}; {_counted(scored, asked, relevant_from)}"
        for name, said in METRICS.items()
    }
    about = Measured(
        len(scored),
        pc.sum(scored["relevant"]).as_py() or 0,
        split,
        state,
        task,
        "clusters of queries",
    )
    clusters = codes(scored["cluster"].to_pylist())
    rows = bootstrapped(definitions, means(scored), clusters, about, resamples, level, rng)
    return pa.Table.from_pylist(rows, schema=RESULT)


def means(scored: pa.Table, names: Sequence[str] = tuple(METRICS)) -> RowStatistics:
    """Counts of queries (resamples, q) -> the mean of each metric of a ``PER_QUERY`` table, shape (metrics, resamples); NaN without a query."""
    values = np.stack([scored[name].to_numpy() for name in names], axis=1)

    def statistics(counts: NDArray[np.int32]) -> Floats:
        drawn = counts.sum(axis=1)
        sums = (counts @ values).T
        found: Floats = np.divide(sums, drawn, out=np.full(sums.shape, np.nan), where=drawn > 0)
        return found

    return statistics


@dataclass(frozen=True)
class _Numbered:
    """A number for each id, in the byte order of the ids."""

    names: pa.Array
    of_judgements: Integers
    of_retrieved: Integers

    @property
    def size(self) -> int:
        return len(self.names)


def _numbered(judgements: pa.Table, retrieved: pa.Table, column: str) -> _Numbered:
    together = pa.chunked_array(
        [*judgements[column].chunks, *retrieved[column].chunks], pa.string()
    )
    names = together.unique().sort()  # Arrow compares the bytes of UTF-8, as strcmp does
    return _Numbered(
        names,
        *(
            pc.index_in(one[column], value_set=names).to_numpy().astype(np.int64)
            for one in (judgements, retrieved)
        ),
    )


def _found(
    retrieved: pa.Table, queries: _Numbered, passages: _Numbered, judged: Integers, grades: Integers
) -> _Found:
    pairs = queries.of_retrieved * passages.size + passages.of_retrieved
    _refuse_twice(pairs, retrieved, "retrieved")
    order = np.lexsort(
        (-passages.of_retrieved, -np.asarray(retrieved["score"].to_numpy()), queries.of_retrieved)
    )
    query = queries.of_retrieved[order]
    starts = np.searchsorted(query, np.arange(queries.size))
    return _Found(
        query, np.arange(len(query)) - starts[query], _looked_up(pairs[order], judged, grades)
    )


def _looked_up(pairs: Integers, judged: Integers, grades: Integers) -> Integers:
    if not len(judged):
        return np.zeros(len(pairs), np.int64)
    order = np.argsort(judged)
    at = np.minimum(np.searchsorted(judged[order], pairs), len(judged) - 1)
    return np.where(judged[order][at] == pairs, grades[order][at], 0)


def _ndcg(
    found: _Found, _relevant: Integers, queries: _Numbered, grades: Integers, _from: int
) -> Floats:
    best = np.lexsort((-grades, queries.of_judgements))
    query = queries.of_judgements[best]
    location = np.arange(len(query)) - np.searchsorted(query, np.arange(queries.size))[query]
    ideal = _gains(query, location, grades[best], queries.size)
    return _over(_gains(found.query, found.location, found.grade, queries.size), ideal)


def _gains(query: Integers, location: Integers, grade: Integers, size: int) -> Floats:
    """Discounted cumulative gain of the first 10 (Järvelin and Kekäläinen 2002): the grade over log2(rank + 1), ranks from 1."""
    counted = (location < 10) & (grade > 0)
    weights = grade[counted] / np.log2(location[counted] + 2)
    return np.bincount(query[counted], weights, minlength=size).astype(np.float64)


def _mrr(
    found: _Found, _relevant: Integers, queries: _Numbered, _grades: Integers, relevant_from: int
) -> Floats:
    hit = (found.location < 10) & (found.grade >= relevant_from)
    reciprocal = np.zeros(queries.size)
    np.maximum.at(reciprocal, found.query[hit], 1 / (found.location[hit] + 1))
    return reciprocal


def _recall(depth: int) -> Callable[[_Found, Integers, _Numbered, Integers, int], Floats]:
    def recall(
        found: _Found, relevant: Integers, queries: _Numbered, _grades: Integers, relevant_from: int
    ) -> Floats:
        hit = (found.location < depth) & (found.grade >= relevant_from)
        return _over(np.bincount(found.query[hit], minlength=queries.size), relevant)

    return recall


def _map(
    found: _Found, relevant: Integers, queries: _Numbered, _grades: Integers, relevant_from: int
) -> Floats:
    hit = (found.location < 100) & (found.grade >= relevant_from)
    query = found.query[hit]
    so_far = np.arange(len(query)) - np.searchsorted(query, np.arange(queries.size))[query] + 1
    return _over(
        np.bincount(query, so_far / (found.location[hit] + 1), minlength=queries.size), relevant
    )


_VALUES: dict[str, Callable[[_Found, Integers, _Numbered, Integers, int], Floats]] = {
    "ndcg_at_10": _ndcg,
    "mrr_at_10": _mrr,
    "recall_at_1": _recall(1),
    "recall_at_10": _recall(10),
    "recall_at_100": _recall(100),
    "map_at_100": _map,
}


def _over(numbers: Floats | Integers, of: Floats | Integers) -> Floats:
    return np.divide(numbers, of, out=np.zeros(len(numbers)), where=of > 0, dtype=np.float64)


def _clusters(retrieved: pa.Table, queries: _Numbered, asked: Integers) -> pa.Array:
    """The cluster that was retrieved with a query; null for a query without one, or for which nothing was retrieved."""
    first = np.full(queries.size, -1, np.int64)
    first[queries.of_retrieved[::-1]] = np.arange(len(retrieved))[::-1]
    at = pa.array(first[asked], mask=first[asked] < 0)
    return retrieved["cluster"].combine_chunks().take(at)


def _counted(scored: pa.Table, asked: int, relevant_from: int) -> str:
    without = asked - len(scored)
    return f"relevant from grade {relevant_from}; {without} queries without a relevant passage left out"


def _refuse_nan(retrieved: pa.Table) -> None:
    bad = ~np.isfinite(np.asarray(retrieved["score"].to_numpy()))
    if bad.any():
        message = f"{int(bad.sum())} scores that are not finite (NaN), the first for query {retrieved['query_id'][int(np.argmax(bad))].as_py()!r}"
        raise InputError(
            message,
            location="retrieved",
            hint="encode again; a NaN comes from numbers that overflowed, often in half precision",
        )


def _refuse_twice(pairs: Integers, rows: pa.Table, word: str) -> None:
    _, first = np.unique(pairs, return_index=True)
    if len(first) < len(pairs):
        again = np.setdiff1d(np.arange(len(pairs)), first)
        message = f"{len(again)} passages {word} twice for a query, the first for query {rows['query_id'][int(again[0])].as_py()!r}"
        raise InputError(message, location=word, hint=_TWICE)
