"""The cluster bootstrap: reproducible, wide enough, small in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from clinpeft.evaluation import bootstrap
from clinpeft.evaluation.arrays import Float64Array, Int64Array
from clinpeft.evaluation.bootstrap import (
    ClusterStatistic,
    ConfidenceInterval,
    bootstrap_clusters,
    bootstrap_rows,
    draw_row_counts,
    sum_by_cluster,
)


def mean_of(values: Float64Array) -> ClusterStatistic:
    def statistic(counts: Int64Array) -> Float64Array:
        mean: Float64Array = counts @ values / counts.sum(axis=1)
        return mean

    return statistic


def interval(
    values: Float64Array, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> ConfidenceInterval:
    return bootstrap_clusters(
        len(values),
        mean_of(values),
        resamples=resamples,
        level=level,
        rng=np.random.default_rng(seed),
    )


def width(found: ConfidenceInterval) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_sums_within_clusters_stand_in_the_order_of_the_clusters() -> None:
    sums = sum_by_cluster(np.array([7, 2, 7]), np.array([1, 10, 2]), np.array([0.5, 0.25, 1.0]))
    assert sums.tolist() == [[10, 0.25], [3, 1.5]]


def test_a_resample_draws_as_many_clusters_as_there_are() -> None:
    drawn = np.concatenate(list(bootstrap._draw_cluster_counts(7, 50, np.random.default_rng(0))))
    assert drawn.shape == (50, 7)
    assert set(drawn.sum(axis=1)) == {7}


def test_every_cluster_is_drawn_once_a_resample_on_average_with_the_variance_of_a_multinomial() -> (
    None
):
    drawn = np.concatenate(
        list(bootstrap._draw_cluster_counts(10, 20_000, np.random.default_rng(0)))
    )
    np.testing.assert_allclose(drawn.mean(axis=0), 1.0, atol=0.03)
    np.testing.assert_allclose(
        drawn.var(axis=0), 0.9, atol=0.05
    )  # n p (1 - p) with n = 10, p = 1/10


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(size=400)
    assert width(interval(values, resamples=4000)) == pytest.approx(
        2 * 1.96 * values.std() / np.sqrt(400), rel=0.06
    )


def test_the_same_generator_state_gives_exactly_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=50)
    assert interval(values, seed=4) == interval(values, seed=4)
    assert interval(values, seed=4) != interval(values, seed=5)


def test_the_size_of_a_chunk_does_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(bootstrap._draw_cluster_counts(51, 100, np.random.default_rng(3))))
    monkeypatch.setattr(bootstrap, "_MAX_CLUSTER_CELLS", 130)
    chunks = list(bootstrap._draw_cluster_counts(51, 100, np.random.default_rng(3)))
    assert {len(chunk) for chunk in chunks} == {2}
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(3).normal(size=50)
    assert width(interval(values, level=0.99)) > width(interval(values, level=0.8))


@pytest.mark.parametrize("clusters", [0, 1])
def test_fewer_than_two_clusters_give_no_interval_and_not_one_of_no_width(clusters: int) -> None:
    assert interval(np.ones(clusters)) == ConfidenceInterval(None, None, 0.95)


def test_resamples_that_do_not_define_the_statistic_are_left_out_and_counted() -> None:
    def first_cluster_only(counts: Int64Array) -> Float64Array:
        return np.where(counts[:, 0] > 0, 1.0, np.nan)

    found = bootstrap_clusters(
        3, first_cluster_only, resamples=1000, level=0.95, rng=np.random.default_rng(0)
    )
    assert (found.low, found.high) == (1.0, 1.0)
    assert found.undefined_resamples == pytest.approx(1000 * (2 / 3) ** 3, rel=0.2)


def test_a_statistic_that_is_never_defined_has_no_interval() -> None:
    found = bootstrap_clusters(
        3,
        lambda counts: np.full(len(counts), np.nan),
        resamples=100,
        level=0.95,
        rng=np.random.default_rng(0),
    )
    assert found == ConfidenceInterval(None, None, 0.95, undefined_resamples=100)


def test_three_hundred_thousand_subjects_stay_far_under_500_megabytes() -> None:
    values = np.random.default_rng(0).normal(size=300_000)
    tracemalloc.start()
    interval(values, resamples=40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_rows_of_a_cluster_are_drawn_together_and_as_often_as_in_the_bootstrap_of_clusters() -> (
    None
):
    clusters = np.array([9, 4, 9, 7])
    rows = np.concatenate(list(draw_row_counts(clusters, 50, np.random.default_rng(3))))
    of_clusters = np.concatenate(
        list(bootstrap._draw_cluster_counts(3, 50, np.random.default_rng(3)))
    )  # 4, 7, 9
    np.testing.assert_array_equal(rows, of_clusters[:, [2, 0, 2, 1]])


def test_rows_come_in_chunks_with_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = np.arange(51) // 2
    whole = np.concatenate(list(draw_row_counts(clusters, 100, np.random.default_rng(3))))
    monkeypatch.setattr(bootstrap, "_MAX_ROW_CELLS", 51 * 7)
    chunks = list(draw_row_counts(clusters, 100, np.random.default_rng(3)))
    assert {len(chunk) for chunk in chunks} == {7, 100 % 7}
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_no_rows_have_no_resamples() -> None:
    assert list(draw_row_counts(np.array([], np.int64), 100, np.random.default_rng(0))) == []


def test_several_statistics_of_rows_share_the_resamples_of_the_bootstrap_of_clusters() -> None:
    clusters, values = np.array([0, 1, 1, 2, 2, 2]), np.array([1.0, 5.0, 2.0, 0.0, 4.0, 3.0])

    def sums(counts: NDArray[np.int32]) -> Float64Array:
        return np.stack([counts @ values, -(counts @ values)])

    found = bootstrap_rows(clusters, sums, resamples=200, level=0.9, rng=np.random.default_rng(5))
    by_cluster = bootstrap_clusters(
        3,
        lambda counts: counts @ np.array([1.0, 7.0, 7.0]),
        resamples=200,
        level=0.9,
        rng=np.random.default_rng(5),
    )
    assert found[0] == by_cluster
    assert (found[1].low, found[1].high) == (
        -by_cluster.high if by_cluster.high else None,
        -by_cluster.low if by_cluster.low else None,
    )


def test_rows_of_one_cluster_give_no_interval_for_any_statistic() -> None:
    found = bootstrap_rows(
        np.zeros(4, np.int64),
        lambda counts: np.ones((3, len(counts))),
        resamples=100,
        level=0.9,
        rng=np.random.default_rng(5),
    )
    assert found == [ConfidenceInterval(None, None, 0.9)] * 3
