"""Two or more models on the same queries: how much better, how surely, and how small a difference these queries could have shown.

Every test is paired: what is hard for one model is hard for the other. Clusters of queries (the questions about one disease) move together in the
bootstrap and change sides together in the permutation test. Over many comparisons p is adjusted by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from clinpeft.core.errors import RefusedError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.evaluation.bootstrap import (
    ConfidenceInterval,
    Float64Array,
    Int64Array,
    bootstrap_clusters,
    sum_by_cluster,
)
from clinpeft.evaluation.embedding.ranking_metrics import RETRIEVAL_METRICS, build_metric_means
from clinpeft.evaluation.embedding.rows import (
    MeasurementContext,
    MetricRow,
    bootstrap_metric_rows,
    number_clusters,
    subtract_statistics,
)

TEST_PERMUTATIONS = 10_000
TEST_POWER = 0.8
_MAX_EXACT_CLUSTERS = 13  # 2^13 = 8,192 sign patterns: all of them are fewer than a sample would be
_MAX_SIGN_CELLS = 8_000_000  # (permutations, clusters) cells in memory together: 64 MB

_P_DEFINITION = (
    "two-sided p of {}: share of {} sign patterns by cluster of queries whose absolute mean difference is at least the observed one"
    "; not adjusted for other comparisons"
)
_DETECTABLE_DEFINITION = (
    "smallest true difference that a two-sided test at {:g} would find with a power of {:g}: "
    "(z(1 - alpha / 2) + z(power)) standard errors of {}, by cluster"
)


def bootstrap_paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Int64Array,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> tuple[float, ConfidenceInterval]:
    """The mean of after less before over the same items, and its percentile interval by bootstrap over clusters.

    Args:
        before, after: one value an item, each of shape (n,).
        clusters: of the items, shape (n,).
        resamples, level, rng: as in ``cluster_bootstrap``.
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    sums = sum_by_cluster(clusters, change, np.ones(len(change)))

    def mean(counts: Int64Array) -> Float64Array:
        drawn = counts @ sums
        return np.asarray(drawn[:, 0] / drawn[:, 1], np.float64)

    return float(change.mean()), bootstrap_clusters(
        len(sums), mean, resamples=resamples, level=level, rng=rng
    )


def compute_permutation_p(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Int64Array,
    rng: np.random.Generator,
    permutations: int = TEST_PERMUTATIONS,
) -> float:
    """Two-sided p of the mean difference when in each cluster before and after could as well be the other way round (Fisher's randomisation).

    p is the share of sign patterns under which the absolute summed difference is at least the observed one. With at most 13 clusters all patterns
    are gone through and the observed one is among them; with more, ``permutations`` are drawn, and the observed one is added to both counts, so
    that p is never 0.

    Args:
        before, after: one value an item, each of shape (n,).
        clusters: of the items, shape (n,).
        rng: for the draws.
        permutations: how many, where not all are gone through.
    """
    sums = sum_by_cluster(clusters, np.asarray(after, np.float64) - np.asarray(before, np.float64))[
        :, 0
    ]
    sums = sums[sums != 0]  # a cluster without a difference has the same sum under either sign
    observed = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()  # rounding must not part what is equal
    if len(sums) <= _MAX_EXACT_CLUSTERS:
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= observed).mean())
    reached, at_once = 0, max(1, _MAX_SIGN_CELLS // len(sums))
    for start in range(0, permutations, at_once):
        flips = rng.integers(0, 2, (min(at_once, permutations - start), len(sums)), np.int8)
        reached += int((np.abs(sums.sum() - 2 * (flips @ sums)) >= observed).sum())
    return (1 + reached) / (1 + permutations)


def adjust_holm(p_values: ArrayLike) -> Float64Array:
    """p adjusted for all comparisons together (Holm 1979): the i-th smallest of m times m - i + 1, not below the one before it, at most 1.

    Args:
        p_values: shape (m,); NaN is a comparison that could not be made, stays NaN and does not count.

    Returns:
        In the order given. Refusing all with an adjusted p of at most alpha keeps the chance of any false refusal below alpha.
    """
    given = np.asarray(p_values, np.float64)
    adjusted = np.full(given.shape, np.nan)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    steps = given[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def compute_minimum_detectable_difference(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Int64Array,
    *,
    level: float = 0.95,
    power: float = TEST_POWER,
) -> float:
    """The smallest true mean difference that a two-sided test at 1 - level would find with this power: (z(1 - alpha / 2) + z(power)) standard errors.

    The standard error is that of a mean over clusters of unequal size (Cochran 1977, section 11.7), from how much the differences vary between
    clusters. NaN with fewer than two clusters.

    Args:
        before, after, clusters: as in ``paired_permutation``.
        level: 1 less the chance of a false alarm.
        power: the chance of finding it.
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    sums = sum_by_cluster(clusters, change - change.mean())[:, 0]
    if len(sums) < 2:
        return float("nan")
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(change)
    return float((stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) * error)


def compare_retrieval(
    before: pa.Table,
    after: pa.Table,
    names: tuple[str, str],
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
    metric_names: Sequence[str] = tuple(RETRIEVAL_METRICS),
) -> pa.Table:
    """Each metric of retrieval, after less before on the same queries: difference with a paired interval, p, and what could have been found.

    Args:
        before, after: of schema ``ranking_metrics.PER_QUERY``, from the same judgements.
        names: of the two, for ``group``: ``after - before``.
        resamples, level, rng: of bootstrap; ``PERMUTATIONS`` sign patterns are drawn.
        split, task: for the columns of these names.
        metric_names: those that are wanted.

    Returns:
        Of schema ``tables.RESULT``, rows ``ndcg_at_10_difference``, ``ndcg_at_10_difference_p`` and ``ndcg_at_10_detectable`` for each metric.

    Raises:
        RefusedError: the two were not asked the same queries, or not with the same judgements.
    """
    clusters = _get_shared_clusters(before, after, names)
    about = MeasurementContext(
        len(after),
        int(np.sum(after["relevant"].to_numpy())),
        split,
        f"{names[1]} - {names[0]}",
        task,
        "clusters of queries",
    )
    said = {
        f"{name}_difference": f"mean difference, {names[1]} less {names[0]} on the same queries, of: {RETRIEVAL_METRICS[name]}"
        for name in metric_names
    }
    rows: list[MetricRow] = []
    statistics = subtract_statistics(
        build_metric_means(before, metric_names), build_metric_means(after, metric_names)
    )
    for row, name in zip(
        bootstrap_metric_rows(said, statistics, clusters, about, resamples, level, rng),
        metric_names,
        strict=True,
    ):
        first, second = before[name].to_numpy(), after[name].to_numpy()
        rows += [
            row,
            _build_p_row(row, first, second, clusters, rng),
            _build_detectable_row(row, name, first, second, clusters, level),
        ]
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def compare_models_pairwise(
    query_metrics_by_model: Mapping[str, pa.Table],
    metric_name: str,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
) -> pa.Table:
    """One metric of retrieval between every two models, with p adjusted over all these comparisons by Holm's method.

    Args:
        query_metrics_by_model: name -> ``ranking_metrics.PER_QUERY``; each is compared with all that stand before it.
        metric_name: a key of ``ranking_metrics.METRICS``.
        resamples, level, rng, split, task: as in ``retrieval_difference``.

    Returns:
        Rows as in ``retrieval_difference``, and ``<metric>_difference_p_holm`` for each pair of models.

    Raises:
        RefusedError: as in ``retrieval_difference``.
    """
    parts = [
        compare_retrieval(
            query_metrics_by_model[one],
            query_metrics_by_model[other],
            (one, other),
            resamples=resamples,
            level=level,
            rng=rng,
            split=split,
            task=task,
            metric_names=[metric_name],
        )
        for one, other in combinations(query_metrics_by_model, 2)
    ]
    rows = [row for part in parts for row in part.to_pylist()]
    tested = [row for row in rows if row["name"] == f"{metric_name}_difference_p"]
    adjusted = adjust_holm(
        [float("nan") if row["value"] is None else row["value"] for row in tested]
    )
    said = f"; adjusted over {len(tested)} comparisons (Holm 1979)"
    rows += [
        {
            **row,
            "name": f"{row['name']}_holm",
            "value": None if np.isnan(p) else p,
            "definition": row["definition"].partition("; not adj")[0] + said,
        }
        for row, p in zip(tested, adjusted, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def _get_shared_clusters(before: pa.Table, after: pa.Table, names: tuple[str, str]) -> Int64Array:
    """The clusters of the queries of both; one that found nothing in one of them has the cluster it has in the other."""
    columns = ["query_id", "relevant"]
    if not before.select(columns).equals(after.select(columns)):
        message = f"{len(before)} queries of {names[0]} and {len(after)} of {names[1]}, or their relevant passages, are not the same"
        raise RefusedError(
            message,
            location=" and ".join(names),
            hint="search the same queries with both models, with the same judgements",
        )
    pairs = zip(before["cluster"].to_pylist(), after["cluster"].to_pylist(), strict=True)
    return number_clusters([one if one is not None else other for one, other in pairs])


def _build_p_row(
    row: MetricRow,
    first_values: NDArray[np.float64],
    second_values: NDArray[np.float64],
    clusters: Int64Array,
    rng: np.random.Generator,
) -> MetricRow:
    found = len(np.unique(clusters))
    value = compute_permutation_p(first_values, second_values, clusters, rng) if found > 1 else None
    patterns = "all" if found <= _MAX_EXACT_CLUSTERS else f"{TEST_PERMUTATIONS}"
    return _derive_row(row, f"{row['name']}_p", value, _P_DEFINITION.format(row["name"], patterns))


def _build_detectable_row(
    row: MetricRow,
    metric_name: str,
    first_values: NDArray[np.float64],
    second_values: NDArray[np.float64],
    clusters: Int64Array,
    level: float,
) -> MetricRow:
    value = compute_minimum_detectable_difference(
        first_values, second_values, clusters, level=level
    )
    return _derive_row(
        row,
        f"{metric_name}_detectable",
        None if np.isnan(value) else value,
        _DETECTABLE_DEFINITION.format(round(1 - level, 10), TEST_POWER, row["name"]),
    )


def _derive_row(row: MetricRow, name: str, value: float | None, definition: str) -> MetricRow:
    return {
        **row,
        "name": name,
        "value": value,
        "low": None,
        "high": None,
        "level": None,
        "definition": definition,
    }
