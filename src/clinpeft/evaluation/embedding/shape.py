"""The shape of a set of vectors: how close what belongs together lies, how evenly the rest fills the sphere, and how it treats a "no".

The same functions on general texts, before and after training, show what was forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.evaluation.bootstrap import Float64Array
from clinpeft.evaluation.embedding.rows import (
    MeasurementContext,
    MetricRow,
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
"""Texts, drawn at random where there are more, for what compares every two of them: 4 million pairs."""

_ALIGNMENT_DEFINITION = "mean squared distance of anchor and positive on the unit sphere (Wang and Isola 2020, alpha 2); lower is closer"
_UNIFORMITY_DEFINITION = "log of the mean of exp(-2 squared distance) over all pairs of {} texts (Wang and Isola 2020, t 2); lower is more even"
_RANDOM_COSINE_DEFINITION = "mean cosine over all pairs of {} texts; near 0 where vectors fill the sphere, near 1 where they lie in a narrow cone"
_EFFECTIVE_RANK_DEFINITION = "exp of the entropy of the singular values of the {} unit vectors (Roy and Vetterli 2007), not centred"
_PARTICIPATION_DEFINITION = (
    "squared sum over sum of squares of the eigenvalues of the covariance of the {} unit vectors"
)
_HUBNESS_DEFINITION = "skewness of how often each of {} texts is among the 10 nearest of the others (Radovanovic 2010); high where few are near to all"


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
    """Alignment of texts with their positives, and uniformity, mean cosine, effective rank, participation ratio and hubness of the texts.

    Args:
        vectors: of n distinct texts, shape (n, d).
        positive_vectors: of the text that belongs to each, shape (n, d).
        ids: of the texts.
        clusters: of the texts, None for one that stands alone.
        state: of the model, for ``group``.
        resamples, level, rng: of the bootstrap over clusters; ``rng`` also draws the texts, where there are more than ``MOST_COMPARED``.
        split, task: for the columns of these names.

    Returns:
        Of schema ``tables.RESULT``. The last three describe the texts and have no interval.

    Raises:
        InputError: NaN or vectors of length 0, with how many and the first id.
    """
    texts, others = (
        normalize_vectors(vectors, ids, "vectors of texts"),
        normalize_vectors(positive_vectors, ids, "vectors of positives"),
    )
    chosen = np.sort(rng.permutation(len(texts))[:MAX_COMPARED_TEXTS])
    sample, of_sample = texts[chosen], number_clusters([clusters[at] for at in chosen])
    apart = 2 - 2 * compute_cosines(texts, others)
    everyone, drawn = (
        MeasurementContext(n, None, split, state, task, "clusters of texts")
        for n in (len(texts), len(sample))
    )
    rows = bootstrap_metric_rows(
        {"alignment": _ALIGNMENT_DEFINITION},
        lambda counts: (counts @ apart / counts.sum(axis=1))[None],
        number_clusters(clusters),
        everyone,
        resamples,
        level,
        rng,
    )
    said = {
        "uniformity": _UNIFORMITY_DEFINITION.format(len(sample)),
        "mean_random_cosine": _RANDOM_COSINE_DEFINITION.format(len(sample)),
    }
    rows += bootstrap_metric_rows(said, _PairMeans(sample), of_sample, drawn, resamples, level, rng)
    return pa.Table.from_pylist(
        [*rows, *_build_descriptive_rows(sample, drawn, len(np.unique(of_sample)))],
        schema=METRIC_RESULT_SCHEMA,
    )


def evaluate_negation_sensitivity(
    statements: NDArray[np.floating[Any]],
    negations: NDArray[np.floating[Any]],
    paraphrases: NDArray[np.floating[Any]],
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
    """Whether "no X" is farther from X than a paraphrase of X is.

    Args:
        statements, negations, paraphrases: vectors of the same n statements said, denied and said otherwise, each of shape (n, d).
        ids, clusters, state, resamples, level, rng, split, task: as in ``geometry``.

    Returns:
        Of schema ``tables.RESULT``: ``negation_cosine``, ``paraphrase_cosine``, ``negation_gap`` (paraphrase less negation; a model that reads the
        "no" has a clear one) and ``negation_told_apart`` (share of statements nearer to their paraphrase than to their denial, ties counted half).

    Raises:
        InputError: as in ``geometry``.
    """
    places = ("vectors of statements", "vectors of negated statements", "vectors of paraphrases")
    said, denied, otherwise = (
        normalize_vectors(found, ids, location)
        for found, location in zip((statements, negations, paraphrases), places, strict=True)
    )
    to_denied, to_otherwise = compute_cosines(said, denied), compute_cosines(said, otherwise)
    told = (to_otherwise > to_denied) + 0.5 * (to_otherwise == to_denied)
    definitions = {
        "negation_cosine": "mean cosine of a statement and its denial",
        "paraphrase_cosine": "mean cosine of a statement and its paraphrase",
        "negation_gap": "mean cosine with the paraphrase less that with the denial",
        "negation_told_apart": "share of statements nearer to their paraphrase than to their denial, ties counted half",
    }
    values = np.stack([to_denied, to_otherwise, to_otherwise - to_denied, told])
    about = MeasurementContext(len(ids), None, split, state, task, "clusters of texts")
    rows = bootstrap_metric_rows(
        definitions,
        lambda counts: values @ counts.T / counts.sum(axis=1),
        number_clusters(clusters),
        about,
        resamples,
        level,
        rng,
    )
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def uniformity(vectors: EmbeddingArray) -> float:
    """log mean exp(-2 ||x - y||²) over all pairs of different rows of length 1 (Wang and Isola 2020, equation 2)."""
    return float(_PairMeans(vectors)(np.ones((1, len(vectors)), np.int32))[0, 0])


def mean_random_cosine(vectors: EmbeddingArray) -> float:
    """The mean cosine over all pairs of different rows of length 1: (||sum||² - n) / (n (n - 1)); NaN with fewer than two."""
    n, total = len(vectors), vectors.sum(axis=0, dtype=np.float64)
    return float((total @ total - n) / (n * (n - 1))) if n > 1 else float("nan")


def effective_rank(vectors: EmbeddingArray) -> float:
    """exp of the entropy of the singular values, divided by their sum (Roy and Vetterli 2007): between 1 and min(n, d)."""
    values = np.linalg.svd(np.asarray(vectors, np.float64), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def participation_ratio(vectors: EmbeddingArray) -> float:
    """(Σλ)² / Σλ² over the eigenvalues λ of the covariance: how many dimensions an evenly spread cloud would need; NaN where all are equal."""
    centred = np.asarray(vectors, np.float64) - vectors.mean(axis=0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    spread = (values**2).sum()
    return float(values.sum() ** 2 / spread) if spread > 1e-24 else float("nan")


def hubness(vectors: EmbeddingArray, neighbors: int = 10) -> float:
    """The skewness of N_k, how often each row is among the k nearest of the others (Radovanović, Nanopoulos and Ivanović 2010).

    Rows have length 1. Equal cosines are decided by row number. NaN with at most k rows, or where all are found equally often.
    """
    n = len(vectors)
    if n <= neighbors:
        return float("nan")
    ids = [f"{at:012d}" for at in range(n)]
    rows, _ = select_top_k(iterate_similarities(vectors, vectors), ids, neighbors, np.arange(n))
    found = np.bincount(rows.ravel(), minlength=n)
    return float(stats.skew(found)) if found.std() else float("nan")


class _PairMeans:
    """Uniformity and mean cosine of resamples of n texts; two copies of one text are no pair."""

    def __init__(self, vectors: EmbeddingArray) -> None:
        found = vectors @ vectors.T  # (n, n)
        np.fill_diagonal(found, 0.0)
        close = np.exp(4 * np.minimum(found, 1) - 4)  # exp(-2 (2 - 2 cos))
        np.fill_diagonal(close, 0.0)
        self.cosines, self.gaussian_kernel = found, close

    def __call__(self, counts: NDArray[np.int32]) -> Float64Array:
        """Counts (resamples, n) -> shape (2, resamples)."""
        weights = np.asarray(counts, np.float32)
        drawn = np.asarray(counts, np.float64)
        pairs = drawn.sum(axis=1) ** 2 - (drawn**2).sum(axis=1)
        sums = [
            np.einsum("rn,rn->r", weights @ one, drawn)
            for one in (self.gaussian_kernel, self.cosines)
        ]
        close, cosine = (
            np.divide(one, pairs, out=np.full(len(one), np.nan), where=pairs > 0) for one in sums
        )
        return np.stack([np.log(close), cosine])


def _build_descriptive_rows(
    sample: EmbeddingArray, context: MeasurementContext, cluster_count: int
) -> list[MetricRow]:
    measured = {
        "effective_rank": (effective_rank(sample), _EFFECTIVE_RANK_DEFINITION),
        "participation_ratio": (participation_ratio(sample), _PARTICIPATION_DEFINITION),
        "hubness": (hubness(sample), _HUBNESS_DEFINITION),
    }
    return [
        build_metric_row(name, value, None, said.format(len(sample)), context, cluster_count)
        for name, (value, said) in measured.items()
    ]
