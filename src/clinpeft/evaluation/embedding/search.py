"""Exact search: every query against every passage, the best k kept, ties broken as trec_eval breaks them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import RETRIEVED_PASSAGE_SCHEMA
from clinpeft.evaluation.bootstrap import Int64Array
from clinpeft.evaluation.embedding.vectors import iterate_similarities, normalize_vectors

SimilarityArray = NDArray[np.float32]


def rank_passages(
    queries: NDArray[np.floating[Any]],
    passages: NDArray[np.floating[Any]],
    k: int,
    *,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    own_passages: Int64Array | None = None,
    block_queries: int = 0,
) -> tuple[Int64Array, SimilarityArray]:
    """The k passages with the largest cosine for each query, exactly.

    Memory: both arrays at length 1 and one block of cosines.

    Args:
        queries: shape (q, d).
        passages: shape (p, d).
        k: how many to keep; all, where there are fewer.
        query_ids, passage_ids: of the rows, distinct.
        own_passages: the passage that each query is itself, which is not to be found, shape (q,), -1 for none; None: no query is a passage.
        block_queries: queries at a time; 0: as many as keep a block under 64 MB.

    Returns:
        Rows of passages, best first, and their cosines, each of shape (q, k). Of equal cosines the larger id is first (see ``best``).

    Raises:
        InputError: NaN or vectors of length 0, with how many and the first id; two passages with one id; different dimensions.
    """
    found, among = (
        normalize_vectors(queries, query_ids, "vectors of queries"),
        normalize_vectors(passages, passage_ids, "vectors of passages"),
    )
    if found.shape[1] != among.shape[1]:
        message = f"queries have {found.shape[1]} dimensions and passages {among.shape[1]}"
        raise InputError(message, location="vectors of queries", hint="encode both with one model")
    return select_top_k(
        iterate_similarities(found, among, block_queries), passage_ids, k, own_passages
    )


def select_top_k(
    score_blocks: Iterable[SimilarityArray],
    passage_ids: Sequence[str],
    k: int,
    own_passages: Int64Array | None = None,
) -> tuple[Int64Array, SimilarityArray]:
    """The k best passages of each query, from scores of all of them.

    Of equal scores the passage with the larger id is first, ids compared byte by byte: trec_eval sorts a run by descending score and then by
    descending document id, whatever the ranks in the file say (``comp_sim_docno`` in ``form_res_rels.c``, version 9). The cut at k knows this too.

    Args:
        score_blocks: scores of the next queries with all passages, shape (some, p); from vectors or from a lexical baseline.
        passage_ids: of the columns, distinct.
        k: how many to keep; all, where there are fewer.
        own_passages: as in ``ranked``; the own passage is not among the found, and where fewer than k others exist its place is filled by -1.

    Returns:
        Rows of passages and their scores, each of shape (q, k).

    Raises:
        InputError: two passages with one id, a score that is NaN, or k below 1.
    """
    order = _sort_by_descending_id(passage_ids)
    kept = min(k, len(order))
    if kept < 1:
        raise InputError(
            f"the best {k} of {len(order)} passages",
            location="search",
            hint="give at least one passage and k of at least 1",
        )
    rows, scores, seen = [np.zeros((0, kept), np.int64)], [np.zeros((0, kept), np.float32)], 0
    for block in score_blocks:
        part = np.ascontiguousarray(block[:, order], dtype=np.float32)
        _check_finite_scores(part, seen)
        if own_passages is not None:
            _mask_own_passages(part, own_passages[seen : seen + len(part)], order)
        at = _select_largest(part, kept)
        values = np.take_along_axis(part, at, axis=1)
        rows.append(np.where(np.isneginf(values), -1, order[at]))
        scores.append(values)
        seen += len(part)
    return np.concatenate(rows), np.concatenate(scores)


def to_retrieval_table(
    rows: Int64Array,
    scores: SimilarityArray,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    clusters: Sequence[str | None] | None = None,
) -> pa.Table:
    """What ``ranked`` or ``best`` gave, as a table of schema ``tables.RETRIEVED``; places filled by -1 are left out.

    Args:
        rows, scores: each of shape (q, k).
        query_ids, passage_ids: of queries and passages.
        clusters: of the queries; None: each stands alone.
    """
    queries, ranks = np.nonzero(rows >= 0)
    number = pa.array(queries)
    of_queries = pa.array(
        clusters if clusters is not None else [None] * len(query_ids), pa.string()
    )
    columns = [
        pa.array(query_ids, pa.string()).take(number),
        of_queries.take(number),
        pa.array(passage_ids, pa.string()).take(pa.array(rows[queries, ranks])),
        pa.array(ranks + 1, pa.int32()),
        pa.array(scores[queries, ranks], pa.float64()),
    ]
    return pa.Table.from_arrays(columns, schema=RETRIEVED_PASSAGE_SCHEMA)


def _sort_by_descending_id(passage_ids: Sequence[str]) -> Int64Array:
    keys = [identity.encode() for identity in passage_ids]
    if len(set(keys)) < len(keys):
        message = f"{len(keys) - len(set(keys))} passage ids are used twice"
        raise InputError(message, location="passages", hint="give every passage its own id")
    return np.array(sorted(range(len(keys)), key=keys.__getitem__, reverse=True), np.int64)


def _select_largest(scores: SimilarityArray, k: int) -> Int64Array:
    """Columns of the k largest of each row, largest first, of equals the first column; shape (rows, k)."""
    last = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k][:, None]  # the k-th largest
    above, tied = scores > last, scores == last
    wanted = k - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= wanted))
    columns = np.nonzero(chosen)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _mask_own_passages(
    scores: SimilarityArray, own_passages: Int64Array, order: Int64Array
) -> None:
    column = np.empty(len(order), np.int64)
    column[order] = np.arange(len(order))
    rows = np.flatnonzero(own_passages >= 0)
    scores[rows, column[own_passages[rows]]] = -np.inf


def _check_finite_scores(scores: SimilarityArray, query_offset: int) -> None:
    bad = ~np.isfinite(scores).all(axis=1)
    if bad.any():
        message = f"{int(bad.sum())} queries have scores that are not finite (NaN), the first is query {query_offset + int(np.argmax(bad)) + 1}"
        raise InputError(
            message,
            location="search",
            hint="encode again; a NaN comes from numbers that overflowed, often in half precision",
        )
