"""Vectors of texts, shape (n, d): normalization to length 1, validation, and cosines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.evaluation.arrays import BoolArray, Float64Array, Int64Array

EmbeddingArray = NDArray[np.float32]

PairScorer = Callable[[Int64Array, Int64Array], Float64Array]
"""Rows of texts and rows of passages, each of shape (n,), to the similarity of each pair, (n,)."""

_MAX_PRODUCT_CELLS = 16_000_000  # numbers of a product in memory together: 64 MB

_INVALID_VECTOR_HINT = (
    "encode again; a NaN comes from numbers that overflowed, often in half precision, "
    "a vector of zeros from a text without a token"
)


def normalize_vectors(
    vectors: NDArray[np.floating[Any]], ids: Sequence[str], location: str
) -> EmbeddingArray:
    """Divide each row by its length.

    Args:
        vectors: shape (n, d).
        ids: of the rows, for the error.
        location: what the vectors are of, for the error.

    Returns:
        float32, shape (n, d).

    Raises:
        InputError: a row that is not finite or has length 0, with how many and the first id; or not
            one id a row.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise InputError(
            f"vectors of shape {vectors.shape} for {len(ids)} texts",
            location=location,
            hint="give one vector a text, shape (n, d)",
        )
    # Squares of half precision overflow: the sum is taken in double precision.
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    check_valid_rows(~np.isfinite(lengths), "vectors that are not finite (NaN)", ids, location)
    check_valid_rows(lengths == 0, "vectors of length 0", ids, location)
    # float32 from here on: the products of the search run in it, at half the memory.
    unit: EmbeddingArray = vectors.astype(np.float32) / lengths[:, None].astype(np.float32)
    return unit


def compute_cosines(first: EmbeddingArray, second: EmbeddingArray) -> Float64Array:
    """Compute the cosine of each row of ``first`` with the same row of ``second``.

    Args:
        first, second: from ``normalize_vectors``, each of shape (n, d).

    Returns:
        Shape (n,).
    """
    # Summed in double precision: float32 sums of 768 products lose the last digits.
    cosines: Float64Array = np.einsum("nd,nd->n", first, second, dtype=np.float64)
    return cosines


def build_cosine_scorer(texts: EmbeddingArray, passages: EmbeddingArray) -> PairScorer:
    """Build the function that scores pairs by cosine, as a lexical baseline scores them by words.

    Args:
        texts, passages: from ``normalize_vectors``, shapes (n, d) and (p, d).
    """

    def score(rows: Int64Array, passage_rows: Int64Array) -> Float64Array:
        chunk_size = max(1, _MAX_PRODUCT_CELLS // max(texts.shape[1], 1))
        chunks = [slice(start, start + chunk_size) for start in range(0, len(rows), chunk_size)]
        cosines = [compute_cosines(texts[rows[at]], passages[passage_rows[at]]) for at in chunks]
        return np.concatenate([np.zeros(0), *cosines])

    return score


def iterate_similarities(
    queries: EmbeddingArray, passages: EmbeddingArray, block_queries: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Compute cosines of queries with all passages, a block of queries at a time.

    Equal vectors get equal cosines to the last bit: a product is computed once for each distinct
    passage and copied. Otherwise the order of summation could differ with the column, and ties
    would be decided by rounding. A negative zero counts as a zero.

    Args:
        queries, passages: from ``normalize_vectors``, shapes (q, d) and (p, d).
        block_queries: queries at a time; 0: as many as keep a block under 64 MB.

    Yields:
        Shape (some queries, p).
    """
    block_size = block_queries or max(1, _MAX_PRODUCT_CELLS // max(len(passages), 1))
    numbers: dict[bytes, int] = {}
    keys = (row.tobytes() for row in passages + np.float32(0))  # -0.0 + 0.0 is 0.0
    copies = np.fromiter(
        (numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(passages)
    )
    has_copies = len(numbers) < len(passages)
    distinct = passages[np.unique(copies, return_index=True)[1]] if has_copies else passages
    for start in range(0, len(queries), block_size):
        block = queries[start : start + block_size] @ distinct.T
        yield block[:, copies] if has_copies else block


def check_valid_rows(
    is_invalid: BoolArray,
    message: str,
    ids: Sequence[str],
    location: str,
    hint: str = _INVALID_VECTOR_HINT,
) -> None:
    """Raise an InputError if a row is invalid, with the number of such rows and the id of the
    first.

    Args:
        is_invalid: shape (n,).
        message: what is wrong, after the number of rows.
        ids: of the n rows.
        location, hint: of the error.
    """
    if is_invalid.any():
        first = ids[int(np.argmax(is_invalid))]
        raise InputError(
            f"{int(is_invalid.sum())} {message}, the first is {first!r}",
            location=location,
            hint=hint,
        )
