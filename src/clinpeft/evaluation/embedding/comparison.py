"""Comparison of models on the same queries: paired tests, Holm's method, detectable differences.

Every test is paired: what is hard for one model is hard for the other. Clusters of queries (the
questions about one disease) stay together in the bootstrap and change sign together in the
permutation test. Over many comparisons p is adjusted by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from scipy import stats

from clinpeft.core.errors import RefusedError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.evaluation.arrays import Float64Array, Int64Array
from clinpeft.evaluation.bootstrap import sum_by_cluster
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
    "two-sided p of {}: share of {} sign patterns by cluster of queries "
    "whose absolute mean difference is at least the observed one"
    "; not adjusted for other comparisons"
)
_DETECTABLE_DEFINITION = (
    "smallest true difference that a two-sided test at {:g} would find with a power of {:g}: "
    "(z(1 - alpha / 2) + z(power)) standard errors of {}, by cluster"
)


def compute_permutation_p(
    before: ArrayLike,
    after: ArrayLike,
    clusters: Int64Array,
    rng: np.random.Generator,
    permutations: int = TEST_PERMUTATIONS,
) -> float:
    """Compute the two-sided p of a mean difference by exchanging before and after within clusters.

    Fisher's randomization test: p is the share of sign patterns under which the absolute summed
    difference is at least the observed one. With at most 13 clusters all patterns are enumerated,
    the observed one among them; with more, ``permutations`` are drawn and the observed one is added
    to both counts, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        before, after: one value an item, each of shape (n,).
        clusters: cluster of each item, shape (n,).
        rng: source of the sign patterns.
        permutations: how many are drawn, where not all are enumerated.
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    sums = sum_by_cluster(clusters, change)[:, 0]  # (clusters,)
    sums = sums[sums != 0]  # a cluster without a difference has the same sum under either sign
    # The tolerance keeps rounding from separating sums that are equal.
    observed = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    if len(sums) <= _MAX_EXACT_CLUSTERS:
        # The bits of 0 ... 2^C - 1 are all sign patterns: (patterns, C).
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= observed).mean())
    extreme, chunk_size = 0, max(1, _MAX_SIGN_CELLS // len(sums))
    for start in range(0, permutations, chunk_size):
        # Sum with signs s is Σd - 2 Σ_{flipped} d: bits suffice, at an eighth of the memory.
        flips = rng.integers(0, 2, (min(chunk_size, permutations - start), len(sums)), np.int8)
        extreme += int((np.abs(sums.sum() - 2 * (flips @ sums)) >= observed).sum())
    return (1 + extreme) / (1 + permutations)


def adjust_holm(p_values: ArrayLike) -> Float64Array:
    """Adjust p values for all comparisons together by the step-down method of Holm (1979).

    The i-th smallest of m is multiplied by m - i + 1, is not below the one before it, and at most
    1. Rejecting all with an adjusted p of at most alpha keeps the chance of any false rejection
    below alpha.

    Args:
        p_values: shape (m,); NaN is a comparison that could not be made, stays NaN and does not
            count.

    Returns:
        Shape (m,), in the order of the input.
    """
    values = np.asarray(p_values, np.float64)
    adjusted = np.full(values.shape, np.nan)
    defined = np.flatnonzero(~np.isnan(values))
    order = defined[np.argsort(values[defined], kind="stable")]
    steps = values[order] * (len(order) - np.arange(len(order)))
    # The running maximum keeps the adjusted values monotone in p.
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
    """Compute the smallest true mean difference that a two-sided test would find with this power.

    (z(1 - alpha / 2) + z(power)) · SE (Bloom 1995, Evaluation Review 19), with the standard error
    of a mean over clusters of unequal size (Cochran 1977, section 11.7), from how much the
    differences vary between clusters.

    Args:
        before, after, clusters: as in ``compute_permutation_p``.
        level: 1 less the chance of a false alarm.
        power: the chance of finding the difference.

    Returns:
        In the units of the items; NaN with fewer than two clusters.
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    sums = sum_by_cluster(clusters, change - change.mean())[:, 0]
    if len(sums) < 2:
        return float("nan")
    # Between-cluster variance of sums, C / (C - 1) for C clusters.
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
    """Compare retrieval metrics, after less before on the same queries.

    Each metric has a difference with a paired interval by bootstrap over clusters of queries, a p
    (``compute_permutation_p``) and the smallest difference that could have been detected.

    Args:
        before, after: of schema ``PER_QUERY_SCHEMA``, from the same judgments.
        names: of the two, for ``group``: ``after - before``.
        resamples, level, rng: of the bootstrap; ``TEST_PERMUTATIONS`` sign patterns are drawn.
        split, task: for the columns of these names.
        metric_names: keys of ``RETRIEVAL_METRICS``.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``, rows ``ndcg_at_10_difference``,
        ``ndcg_at_10_difference_p`` and ``ndcg_at_10_detectable`` for each metric.

    Raises:
        RefusedError: the two do not have the same queries, or not the same judgments.
    """
    columns = ["query_id", "relevant"]
    if not before.select(columns).equals(after.select(columns)):
        raise RefusedError(
            f"{len(before)} queries of {names[0]} and {len(after)} of {names[1]}, "
            "or their relevant passages, are not the same",
            location=" and ".join(names),
            hint="search the same queries with both models, with the same judgements",
        )
    # A query for which one model retrieved nothing has the cluster that it has in the other.
    pairs = zip(before["cluster"].to_pylist(), after["cluster"].to_pylist(), strict=True)
    clusters = number_clusters([first if first is not None else second for first, second in pairs])
    context = MeasurementContext(
        len(after),
        int(np.sum(after["relevant"].to_numpy())),
        split,
        f"{names[1]} - {names[0]}",
        task,
        "clusters of queries",
    )
    definitions = {
        f"{name}_difference": f"mean difference, {names[1]} less {names[0]} on the same queries, "
        f"of: {RETRIEVAL_METRICS[name]}"
        for name in metric_names
    }
    statistics = subtract_statistics(
        build_metric_means(before, metric_names), build_metric_means(after, metric_names)
    )
    differences = bootstrap_metric_rows(
        definitions, statistics, clusters, context, resamples, level, rng
    )
    cluster_count = len(np.unique(clusters))
    patterns = "all" if cluster_count <= _MAX_EXACT_CLUSTERS else f"{TEST_PERMUTATIONS}"
    rows: list[MetricRow] = []
    for row, name in zip(differences, metric_names, strict=True):
        values = before[name].to_numpy(), after[name].to_numpy()
        p = compute_permutation_p(*values, clusters, rng) if cluster_count > 1 else None
        detectable = compute_minimum_detectable_difference(*values, clusters, level=level)
        without_interval = {**row, "low": None, "high": None, "level": None}
        p_row = {
            "name": f"{row['name']}_p",
            "value": p,
            "definition": _P_DEFINITION.format(row["name"], patterns),
        }
        detectable_row = {
            "name": f"{name}_detectable",
            "value": None if np.isnan(detectable) else detectable,
            "definition": _DETECTABLE_DEFINITION.format(
                round(1 - level, 10), TEST_POWER, row["name"]
            ),
        }
        rows += [row, without_interval | p_row, without_interval | detectable_row]
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
    """Compare every two models on one retrieval metric, with p adjusted by Holm's method.

    Args:
        query_metrics_by_model: name to ``PER_QUERY_SCHEMA``; each is compared with all before it.
        metric_name: a key of ``RETRIEVAL_METRICS``.
        resamples, level, rng, split, task: as in ``compare_retrieval``.

    Returns:
        Rows as in ``compare_retrieval``, and ``<metric>_difference_p_holm`` for each pair of
        models, adjusted over all pairs.

    Raises:
        RefusedError: as in ``compare_retrieval``.
    """
    rows = []
    for names in combinations(query_metrics_by_model, 2):
        table = compare_retrieval(
            query_metrics_by_model[names[0]],
            query_metrics_by_model[names[1]],
            names,
            resamples=resamples,
            level=level,
            rng=rng,
            split=split,
            task=task,
            metric_names=[metric_name],
        )
        rows += table.to_pylist()
    # Holm's method over all pairs of models, for this metric alone.
    tests = [row for row in rows if row["name"] == f"{metric_name}_difference_p"]
    adjusted = adjust_holm([np.nan if row["value"] is None else row["value"] for row in tests])
    for row, p in zip(tests, adjusted, strict=True):
        beginning = row["definition"].partition("; not adj")[0]
        adjusted_row = {
            "name": f"{row['name']}_holm",
            "value": None if np.isnan(p) else p,
            "definition": f"{beginning}; adjusted over {len(tests)} comparisons (Holm 1979)",
        }
        rows.append(row | adjusted_row)
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)
