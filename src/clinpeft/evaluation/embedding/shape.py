"""Geometry of a set of vectors: alignment, uniformity, effective rank and hubness.

The same metrics on general texts, before and after training, show what was lost by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.evaluation.arrays import Float64Array, divide_or_nan
from clinpeft.evaluation.embedding.rows import (
    MeasurementContext,
    bootstrap_metric_rows,
    build_metric_row,
    number_clusters,
)
from clinpeft.evaluation.embedding.search import select_top_k
from clinpeft.evaluation.embedding.vectors import (
    EmbeddingArray,
    compute_cosines,
    iterate_similarities,
    normalize_vectors,
)

MAX_COMPARED_TEXTS = 2000
"""Texts, drawn at random where there are more, of which every two are compared: 4 million pairs."""

_ALIGNMENT_DEFINITION = (
    "mean squared distance of anchor and positive on the unit sphere "
    "(Wang and Isola 2020, alpha 2); lower is closer"
)
_UNIFORMITY_DEFINITION = (
    "log of the mean of exp(-2 squared distance) over all pairs of {} texts "
    "(Wang and Isola 2020, t 2); lower is more even"
)
_RANDOM_COSINE_DEFINITION = (
    "mean cosine over all pairs of {} texts; near 0 where vectors fill the sphere, "
    "near 1 where they lie in a narrow cone"
)
_EFFECTIVE_RANK_DEFINITION = (
    "exp of the entropy of the singular values of the {} unit vectors "
    "(Roy and Vetterli 2007), not centred"
)
_PARTICIPATION_DEFINITION = (
    "squared sum over sum of squares of the eigenvalues of the covariance of the {} unit vectors"
)
_HUBNESS_DEFINITION = (
    "skewness of how often each of {} texts is among the 10 nearest of the others "
    "(Radovanovic 2010); high where few are near to all"
)


def evaluate_geometry(
    vectors: NDArray[np.floating[Any]],
    positive_vectors: NDArray[np.floating[Any]],
    ids: Sequence[str],
    clusters: Sequence[str | None],
    state: str,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
) -> pa.Table:
    """Compute alignment, uniformity, mean cosine, effective rank, participation ratio and hubness.

    Args:
        vectors: of n distinct texts, shape (n, d).
        positive_vectors: of the positive of each text, shape (n, d).
        ids: of the texts.
        clusters: of the texts; None is a cluster of its own.
        state: of the model, for ``group``.
        resamples, level, rng: of the bootstrap over clusters; ``rng`` also draws the texts, where
            there are more than ``MAX_COMPARED_TEXTS``.
        split, task: for the columns of these names.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``. The last three describe the texts and have no interval.

    Raises:
        InputError: NaN or vectors of length 0, with how many and the first id.
    """
    texts = normalize_vectors(vectors, ids, "vectors of texts")
    positives = normalize_vectors(positive_vectors, ids, "vectors of positives")
    # Sorted, so that the sample keeps the order of the texts.
    selected = np.sort(rng.permutation(len(texts))[:MAX_COMPARED_TEXTS])
    sample = texts[selected]
    sample_clusters = number_clusters([clusters[row] for row in selected])
    unit = "clusters of texts"
    context = MeasurementContext(len(texts), None, split, state, task, unit)
    sample_context = MeasurementContext(len(sample), None, split, state, task, unit)
    # ||x - y||² = 2 - 2 cos for unit vectors (Wang and Isola 2020, alignment with alpha = 2).
    distances = 2 - 2 * compute_cosines(texts, positives)  # (n,)
    rows = bootstrap_metric_rows(
        {"alignment": _ALIGNMENT_DEFINITION},
        lambda counts: (counts @ distances / counts.sum(axis=1))[None],
        number_clusters(clusters),
        context,
        resamples,
        level,
        rng,
    )
    rows += bootstrap_metric_rows(
        {
            "uniformity": _UNIFORMITY_DEFINITION.format(len(sample)),
            "mean_random_cosine": _RANDOM_COSINE_DEFINITION.format(len(sample)),
        },
        _PairMeans(sample),
        sample_clusters,
        sample_context,
        resamples,
        level,
        rng,
    )
    cluster_count = len(np.unique(sample_clusters))
    descriptive = {
        "effective_rank": (effective_rank(sample), _EFFECTIVE_RANK_DEFINITION),
        "participation_ratio": (participation_ratio(sample), _PARTICIPATION_DEFINITION),
        "hubness": (hubness(sample), _HUBNESS_DEFINITION),
    }
    for name, (value, definition) in descriptive.items():
        text = definition.format(len(sample))
        rows.append(build_metric_row(name, value, None, text, sample_context, cluster_count))
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def uniformity(vectors: EmbeddingArray) -> float:
    """The uniformity log mean exp(-2 ||x - y||²) (Wang and Isola 2020, equation 2, t = 2).

    Args:
        vectors: rows of length 1, shape (n, d).

    Returns:
        The mean over all pairs of different rows, at most 0; NaN with fewer than two.
    """
    return float(_PairMeans(vectors)(np.ones((1, len(vectors)), np.int32))[0, 0])


def mean_random_cosine(vectors: EmbeddingArray) -> float:
    """The mean cosine over all pairs of different rows: (||Σx||² - n) / (n (n - 1)).

    A measure of anisotropy (Ethayarajh 2019).

    Args:
        vectors: rows of length 1, shape (n, d).

    Returns:
        Between -1 / (n - 1) and 1; NaN with fewer than two rows.
    """
    # ||Σx||² sums the cosines of all ordered pairs, n of them of a row with itself.
    n, total = len(vectors), vectors.sum(axis=0, dtype=np.float64)
    return float((total @ total - n) / (n * (n - 1))) if n > 1 else float("nan")


def effective_rank(vectors: EmbeddingArray) -> float:
    """The effective rank exp(-Σ p log p), p the singular values over their sum.

    Roy and Vetterli 2007.

    Args:
        vectors: shape (n, d); not centered.

    Returns:
        Between 1 and min(n, d).
    """
    # The singular values of the vectors themselves: the mean direction counts as one dimension.
    values = np.linalg.svd(np.asarray(vectors, np.float64), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def participation_ratio(vectors: EmbeddingArray) -> float:
    """The participation ratio (Σλ)² / Σλ² over the eigenvalues λ of the covariance.

    The number of dimensions that an evenly spread cloud would need (Gao et al. 2017).

    Args:
        vectors: shape (n, d).

    Returns:
        Between 1 and min(n - 1, d); NaN where all rows are equal.
    """
    centered = np.asarray(vectors, np.float64) - vectors.mean(axis=0, dtype=np.float64)
    # Squared singular values are the eigenvalues up to a factor, which cancels.
    eigenvalues = np.linalg.svd(centered, compute_uv=False) ** 2
    square_sum = (eigenvalues**2).sum()
    return float(eigenvalues.sum() ** 2 / square_sum) if square_sum > 1e-24 else float("nan")


def hubness(vectors: EmbeddingArray, neighbors: int = 10) -> float:
    """The hubness: the skewness of N_k, how often each row is among the k nearest of the others.

    Radovanović, Nanopoulos and Ivanović 2010. Equal cosines are decided by row number.

    Args:
        vectors: rows of length 1, shape (n, d).
        neighbors: k.

    Returns:
        NaN with at most k rows, or where all rows are neighbors equally often.
    """
    n = len(vectors)
    if n <= neighbors:
        return float("nan")
    ids = [f"{row:012d}" for row in range(n)]
    rows, _ = select_top_k(iterate_similarities(vectors, vectors), ids, neighbors, np.arange(n))
    occurrences = np.bincount(rows.ravel(), minlength=n)  # N_k: (n,)
    return float(stats.skew(occurrences)) if occurrences.std() else float("nan")


class _PairMeans:
    """Uniformity and mean cosine of resamples of n texts; two copies of one text are no pair."""

    def __init__(self, vectors: EmbeddingArray) -> None:
        cosines = vectors @ vectors.T  # (n, n)
        np.fill_diagonal(cosines, 0.0)
        # exp(-2 ||x - y||²) = exp(-2 (2 - 2 cos)), cosines above 1 by rounding cut to 1.
        kernel = np.exp(4 * np.minimum(cosines, 1) - 4)
        np.fill_diagonal(kernel, 0.0)
        self.cosines, self.gaussian_kernel = cosines, kernel

    def __call__(self, counts: NDArray[np.int32]) -> Float64Array:
        """Counts of shape (resamples, n) to values of shape (2, resamples)."""
        weights, draws = np.asarray(counts, np.float32), np.asarray(counts, np.float64)
        # Pairs of different texts: (Σc)² - Σc².
        pairs = draws.sum(axis=1) ** 2 - (draws**2).sum(axis=1)
        kernel, cosine = (
            divide_or_nan(np.einsum("rn,rn->r", weights @ matrix, draws), pairs)
            for matrix in (self.gaussian_kernel, self.cosines)
        )
        return np.stack([np.log(kernel), cosine])
