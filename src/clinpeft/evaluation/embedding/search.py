"""Exact search: every query against every passage, ties broken as trec_eval breaks them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import RETRIEVED_PASSAGE_SCHEMA
from clinpeft.evaluation.arrays import Int64Array
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
    """Search the k passages with the largest cosine for each query, exactly.

    Memory: both arrays at length 1 and one block of cosines.

    Args:
        queries: shape (q, d).
        passages: shape (p, d).
        k: number of passages a query; all, where there are fewer.
        query_ids, passage_ids: of the rows, distinct.
        own_passages: the passage that each query is itself, which is excluded, shape (q,), -1 for
            none; None: no query is a passage.
        block_queries: queries at a time; 0: as many as keep a block under 64 MB.

    Returns:
        Rows of passages, best first, and their cosines, each of shape (q, k). Of equal cosines the
        larger id is first (see ``select_top_k``).

    Raises:
        InputError: NaN or vectors of length 0, with how many and the first id; two passages with
            one id; different dimensions.
    """
    unit_queries = normalize_vectors(queries, query_ids, "vectors of queries")
    unit_passages = normalize_vectors(passages, passage_ids, "vectors of passages")
    if unit_queries.shape[1] != unit_passages.shape[1]:
        raise InputError(
            f"queries have {unit_queries.shape[1]} dimensions "
            f"and passages {unit_passages.shape[1]}",
            location="vectors of queries",
            hint="encode both with one model",
        )
    blocks = iterate_similarities(unit_queries, unit_passages, block_queries)
    return select_top_k(blocks, passage_ids, k, own_passages)


def select_top_k(
    score_blocks: Iterable[SimilarityArray],
    passage_ids: Sequence[str],
    k: int,
    own_passages: Int64Array | None = None,
) -> tuple[Int64Array, SimilarityArray]:
    """Select the k best passages of each query from the scores of all passages.

    Of equal scores the passage with the larger id is first, ids compared byte by byte: trec_eval
    sorts a run by descending score and then by descending document id, whatever the ranks in the
    file say (``comp_sim_docno`` in ``form_res_rels.c``, version 9). The cut at k follows this
    order.

    Args:
        score_blocks: scores of the next queries with all passages, shape (some, p); from vectors or
            from a lexical baseline.
        passage_ids: of the columns, distinct.
        k: number of passages a query; all, where there are fewer.
        own_passages: as in ``rank_passages``; where fewer than k others exist, -1 fills the place.

    Returns:
        Rows of passages and their scores, each of shape (q, k).

    Raises:
        InputError: two passages with one id, a score that is NaN, or k below 1.
    """
    keys = [passage_id.encode() for passage_id in passage_ids]
    if len(set(keys)) < len(keys):
        message = f"{len(keys) - len(set(keys))} passage ids are used twice"
        raise InputError(message, location="passages", hint="give every passage its own id")
    # Columns are put in descending order of ids, so that of equal scores the first column wins.
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__, reverse=True), np.int64)
    depth = min(k, len(order))
    if depth < 1:
        raise InputError(
            f"the best {k} of {len(order)} passages",
            location="search",
            hint="give at least one passage and k of at least 1",
        )
    column = np.empty(len(order), np.int64)
    column[order] = np.arange(len(order))
    rows, scores = [np.zeros((0, depth), np.int64)], [np.zeros((0, depth), np.float32)]
    query_offset = 0
    for block in score_blocks:
        part = np.ascontiguousarray(block[:, order], dtype=np.float32)  # a copy: (some, p)
        infinite = ~np.isfinite(part).all(axis=1)
        if infinite.any():
            first = query_offset + int(np.argmax(infinite)) + 1
            raise InputError(
                f"{int(infinite.sum())} queries have scores that are not finite (NaN), "
                f"the first is query {first}",
                location="search",
                hint="encode again; a NaN comes from numbers that overflowed, "
                "often in half precision",
            )
        if own_passages is not None:
            own = own_passages[query_offset : query_offset + len(part)]
            queries = np.flatnonzero(own >= 0)
            part[queries, column[own[queries]]] = -np.inf
        top = _select_largest(part, depth)  # (some, depth)
        top_scores = np.take_along_axis(part, top, axis=1)
        rows.append(np.where(np.isneginf(top_scores), -1, order[top]))
        scores.append(top_scores)
        query_offset += len(part)
    return np.concatenate(rows), np.concatenate(scores)


def to_retrieval_table(
    rows: Int64Array,
    scores: SimilarityArray,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    clusters: Sequence[str | None] | None = None,
) -> pa.Table:
    """Convert the result of ``rank_passages`` or ``select_top_k`` to ``RETRIEVED_PASSAGE_SCHEMA``.

    Args:
        rows, scores: each of shape (q, k); rows of -1 are left out.
        query_ids, passage_ids: of queries and passages.
        clusters: of the queries; None: each is a cluster of its own.
    """
    # Row-major order: by query, then by rank.
    queries, ranks = np.nonzero(rows >= 0)
    query = pa.array(queries)
    query_clusters = pa.array(
        clusters if clusters is not None else [None] * len(query_ids), pa.string()
    )
    columns = [
        pa.array(query_ids, pa.string()).take(query),
        query_clusters.take(query),
        pa.array(passage_ids, pa.string()).take(pa.array(rows[queries, ranks])),
        pa.array(ranks + 1, pa.int32()),
        pa.array(scores[queries, ranks], pa.float64()),
    ]
    return pa.Table.from_arrays(columns, schema=RETRIEVED_PASSAGE_SCHEMA)


def _select_largest(scores: SimilarityArray, k: int) -> Int64Array:
    """Columns of the k largest of each row, largest first, of equals the first column: (rows,
    k)."""
    # argpartition would choose among ties at the cut by chance; the k-th value is found instead,
    # and ties with it are taken from the left.
    kth = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k][:, None]
    above, tied = scores > kth, scores == kth
    free = k - above.sum(axis=1, keepdims=True)
    # Exactly k per row: all above the k-th value, and ties until the places are used.
    selected = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= free))
    columns = np.nonzero(selected)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)
