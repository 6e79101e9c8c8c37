"""Comparison of models: p by hand and by enumeration, false alarms at their nominal rate, Holm by
hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from clinpeft.core.errors import RefusedError
from clinpeft.evaluation.arrays import Float64Array, Int64Array
from clinpeft.evaluation.bootstrap import (
    ClusterStatistic,
    bootstrap_clusters,
    sum_by_cluster,
)
from clinpeft.evaluation.embedding import comparison
from clinpeft.evaluation.embedding.comparison import (
    adjust_holm,
    compare_models_pairwise,
    compare_retrieval,
    compute_minimum_detectable_difference,
    compute_permutation_p,
)
from clinpeft.evaluation.embedding.ranking_metrics import PER_QUERY_SCHEMA, RETRIEVAL_METRICS

ALONE = np.arange(1000)


def queries(
    values: np.ndarray, clusters: Sequence[str | None] | None = None, relevant: int = 1
) -> pa.Table:
    count = len(values)
    columns = {
        "query_id": [f"q{at:04d}" for at in range(count)],
        "cluster": list(clusters or [None] * count),
        "relevant": [relevant] * count,
        **dict.fromkeys(RETRIEVAL_METRICS, values.tolist()),
    }
    return pa.table(columns, schema=PER_QUERY_SCHEMA)


def test_with_few_clusters_p_is_the_share_of_all_sign_patterns() -> None:
    # differences 1, 2 and 3 reach |6| in 2 of 8 patterns; with 3 and -1: |2| or more in all 4
    assert compute_permutation_p([0, 0, 0], [1, 2, 3], ALONE[:3], np.random.default_rng(0)) == 2 / 8
    assert compute_permutation_p([0, 0], [3, -1], ALONE[:2], np.random.default_rng(0)) == 1.0
    assert compute_permutation_p([1, 2], [1, 2], ALONE[:2], np.random.default_rng(0)) == 1.0


def test_items_of_a_cluster_change_sides_together() -> None:
    before, after = np.zeros(4), np.array([1.0, 1, 1, 1])
    assert (
        compute_permutation_p(before, after, np.array([0, 0, 1, 1]), np.random.default_rng(0))
        == 2 / 4
    )
    assert compute_permutation_p(before, after, ALONE[:4], np.random.default_rng(0)) == 2 / 16


def test_drawn_patterns_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    change = np.random.default_rng(4).normal(0.4, 1, 12)
    observed = abs(change.sum())
    exact = np.mean(
        [
            abs(np.dot(signs, change)) >= observed - 1e-9
            for signs in itertools.product((1, -1), repeat=12)
        ]
    )
    assert compute_permutation_p(
        np.zeros(12), change, ALONE[:12], np.random.default_rng(0)
    ) == pytest.approx(exact)
    monkeypatch.setattr(comparison, "_MAX_EXACT_CLUSTERS", 2)
    monkeypatch.setattr(comparison, "_MAX_SIGN_CELLS", 12 * 777)
    drawn = compute_permutation_p(
        np.zeros(12), change, ALONE[:12], np.random.default_rng(0), permutations=20_000
    )
    assert drawn == pytest.approx(exact, abs=0.01)
    assert (
        compute_permutation_p(
            np.zeros(12), np.ones(12), ALONE[:12], np.random.default_rng(0), permutations=99
        )
        >= 1 / 100
    )


def test_equal_models_are_told_apart_in_5_of_100_samples_and_a_better_one_in_most() -> None:
    """Queries in clusters that share most of their difference: a test that took them to be
    independent would call far more."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(30), rng.integers(1, 6, 30))

    def share(gain: float, given: np.ndarray, samples: int) -> float:
        found = 0
        for _ in range(samples):
            change = gain + rng.normal(0, 1, 30)[clusters] + rng.normal(0, 0.5, len(clusters))
            found += (
                compute_permutation_p(np.zeros(len(clusters)), change, given, rng, permutations=199)
                <= 0.05
            )
        return found / samples

    assert 0.04 <= share(0, clusters, 3000) <= 0.06
    assert share(0, ALONE[: len(clusters)], 300) > 0.15
    assert share(0.9, clusters, 100) > 0.9


def ratio_of(sums: Float64Array) -> ClusterStatistic:
    """The mean over all rows, from sums and numbers of rows by cluster."""

    def statistic(counts: Int64Array) -> Float64Array:
        totals = counts @ sums
        return np.asarray(totals[:, 0] / totals[:, 1], np.float64)

    return statistic


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    clusters = np.repeat(np.arange(60), 3)
    held = 0
    for _ in range(400):
        before = rng.normal(size=180)
        after = before + 0.2 + rng.normal(0, 1, 60)[clusters]
        sums = sum_by_cluster(clusters, after - before, np.ones(180))
        interval = bootstrap_clusters(60, ratio_of(sums), resamples=300, level=0.95, rng=rng)
        assert interval.low is not None and interval.high is not None
        held += interval.low <= 0.2 <= interval.high
    assert 0.91 <= held / 400 <= 0.98


def test_holm_is_the_hand_computed_one() -> None:
    # sorted .01 .02 .03 .04: times 4, 3, 2, 1 = .04 .06 .06 .04, and never below the one before
    assert adjust_holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert adjust_holm([0.5, 0.9]).tolist() == pytest.approx([1.0, 1.0])
    with_unknown = adjust_holm([0.01, math.nan, 0.04])
    assert with_unknown[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert math.isnan(with_unknown[1])
    assert len(adjust_holm([])) == 0


def test_the_detectable_difference_is_found_with_the_power_it_says() -> None:
    rng = np.random.default_rng(9)
    clusters = np.repeat(np.arange(50), 4)
    noise = rng.normal(0, 1, 50)[clusters]
    detectable = compute_minimum_detectable_difference(np.zeros(200), noise, clusters)
    sums = 4 * (noise[::4] - noise.mean())
    assert detectable == pytest.approx(
        (1.959964 + 0.841621) * np.sqrt(50 * sums.var(ddof=1)) / 200, rel=1e-5
    )
    found = sum(
        compute_permutation_p(
            np.zeros(200),
            detectable + rng.normal(0, noise[::4].std(ddof=1), 50)[clusters],
            clusters,
            rng,
            permutations=199,
        )
        <= 0.05
        for _ in range(400)
    )
    assert found / 400 == pytest.approx(0.8, abs=0.07)
    assert math.isnan(compute_minimum_detectable_difference([0, 0], [1, 2], np.zeros(2, np.int64)))


def test_a_difference_of_retrieval_has_an_interval_a_p_and_what_could_have_been_found() -> None:
    rng = np.random.default_rng(1)
    before = rng.random(100)
    after = before + 0.1 + rng.normal(0, 0.05, 100)
    clusters: list[str | None] = [str(at // 2) for at in range(100)]
    found = compare_retrieval(
        queries(before, clusters),
        queries(after, [None, None, *clusters[2:]]),
        ("zero-shot", "adapted"),
        resamples=300,
        level=0.95,
        rng=rng,
    )
    rows = {row["name"]: row for row in found.to_pylist()}
    assert len(rows) == 3 * len(RETRIEVAL_METRICS)
    row = rows["ndcg_at_10_difference"]
    assert row["value"] == pytest.approx((after - before).mean())
    assert 0 < row["low"] < row["value"] < row["high"]
    assert (row["group"], row["n"], row["n_subjects"]) == ("adapted - zero-shot", 100, 50)
    assert rows["ndcg_at_10_difference_p"]["value"] == pytest.approx(1 / 10_001)
    assert 0 < rows["ndcg_at_10_detectable"]["value"] < 0.05


def test_models_that_were_asked_other_queries_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"3 .* a .* 2 .* b\b"):
        compare_retrieval(
            queries(np.ones(3)),
            queries(np.ones(2)),
            ("a", "b"),
            resamples=100,
            level=0.95,
            rng=np.random.default_rng(0),
        )
    with pytest.raises(RefusedError, match="where: a and b"):
        other = queries(np.ones(3), relevant=2)
        compare_retrieval(
            queries(np.ones(3)),
            other,
            ("a", "b"),
            resamples=100,
            level=0.95,
            rng=np.random.default_rng(0),
        )


def test_every_two_models_are_compared_and_p_is_adjusted_over_all() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(40)
    models = {
        name: queries(base + gain + rng.normal(0, 0.1, 40))
        for name, gain in (("one", 0.0), ("two", 0.05), ("three", 0.0))
    }
    rows = compare_models_pairwise(
        models, "mrr_at_10", resamples=100, level=0.95, rng=rng
    ).to_pylist()
    given = {row["group"]: row["value"] for row in rows if row["name"] == "mrr_at_10_difference_p"}
    adjusted = {
        row["group"]: row["value"] for row in rows if row["name"] == "mrr_at_10_difference_p_holm"
    }
    assert list(given) == ["two - one", "three - one", "three - two"]
    assert list(adjusted.values()) == pytest.approx(adjust_holm(list(given.values())).tolist())
    assert any("adjusted over 3 comparisons" in row["definition"] for row in rows)
