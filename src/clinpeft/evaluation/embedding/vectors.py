"""Vectors of texts, of shape (n, d): brought to length 1, compared row by row, and refused where they are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.evaluation.bootstrap import Float64Array, Int64Array

EmbeddingArray = NDArray[np.float32]

PairScorer = Callable[[Int64Array, Int64Array], Float64Array]
"""Rows of texts and rows of passages, each of shape (n,) -> how alike each pair is, shape (n,)."""

_MAX_PRODUCT_CELLS = 16_000_000  # numbers of a product in memory together: 64 MB

_INVALID_VECTOR_HINT = "encode again; a NaN comes from numbers that overflowed, often in half precision, a vector of zeros from a text without a token"


def normalize_vectors(
    vectors: NDArray[np.floating[Any]], ids: Sequence[str], location: str
) -> EmbeddingArray:
    """Each row divided by its length, as float32.

    Args:
        vectors: shape (n, d).
        ids: of the rows, for the error.
        location: what they are the vectors of, for the error.

    Raises:
        InputError: a row that is not finite or has length 0, with how many and the first id; or not one id a row.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError(
            f"vectors of shape {vectors.shape} for {len(ids)} texts",
            location=location,
            hint="give one vector a text, shape (n, d)",
        )
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    check_valid_rows(~np.isfinite(lengths), "vectors that are not finite (NaN)", ids, location)
    check_valid_rows(lengths == 0, "vectors of length 0", ids, location)
    found: EmbeddingArray = vectors.astype(np.float32) / lengths[:, None].astype(np.float32)
    return found


def compute_cosines(first: EmbeddingArray, second: EmbeddingArray) -> Float64Array:
    """The cosine of each row of ``first`` with the same row of ``second``, both from ``unit``, each of shape (n, d); shape (n,)."""
    found: Float64Array = np.einsum("nd,nd->n", first, second, dtype=np.float64)
    return found


def build_cosine_scorer(texts: EmbeddingArray, passages: EmbeddingArray) -> PairScorer:
    """How alike texts (n, d) and passages (p, d) are, both from ``unit``: the same kind of function as a lexical baseline gives."""

    def score(rows: Int64Array, found: Int64Array) -> Float64Array:
        at_once = max(1, _MAX_PRODUCT_CELLS // max(texts.shape[1], 1))
        parts = [slice(start, start + at_once) for start in range(0, len(rows), at_once)]
        return np.concatenate(
            [
                np.zeros(0),
                *(compute_cosines(texts[rows[part]], passages[found[part]]) for part in parts),
            ]
        )

    return score


def iterate_similarities(
    queries: EmbeddingArray, passages: EmbeddingArray, block_queries: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Cosines of queries (q, d) with all passages (p, d), both from ``unit``, shape (some queries, p) at a time.

    Equal vectors get equal cosines to the last bit: a product is made once for each distinct passage and copied. Otherwise the sums of a product
    could differ with the column, and a tie would be decided by chance.

    Args:
        queries, passages: rows of length 1.
        block_queries: queries at a time; 0: as many as keep a block under 64 MB.
    """
    at_once = block_queries or max(1, _MAX_PRODUCT_CELLS // max(len(passages), 1))
    distinct, copies = _find_distinct_rows(passages)
    for start in range(0, len(queries), at_once):
        found = queries[start : start + at_once] @ distinct.T
        yield found if copies is None else found[:, copies]


def check_valid_rows(
    is_invalid: NDArray[np.bool_],
    message: str,
    ids: Sequence[str],
    location: str,
    hint: str = _INVALID_VECTOR_HINT,
) -> None:
    """Raise an InputError if a row is bad, with how many there are and the id of the first."""
    if is_invalid.any():
        first = ids[int(np.argmax(is_invalid))]
        raise InputError(
            f"{int(is_invalid.sum())} {message}, the first is {first!r}",
            location=location,
            hint=hint,
        )


def _find_distinct_rows(passages: EmbeddingArray) -> tuple[EmbeddingArray, Int64Array | None]:
    """The distinct rows, and which of them each row is; None where all are distinct. A negative zero counts as a zero."""
    numbered: dict[bytes, int] = {}
    rows = passages + np.float32(0)
    copies = np.fromiter(
        (numbered.setdefault(row.tobytes(), len(numbered)) for row in rows), np.int64, len(rows)
    )
    if len(numbered) == len(passages):
        return passages, None
    _, first = np.unique(copies, return_index=True)
    return passages[first], copies
