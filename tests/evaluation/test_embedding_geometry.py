"""The shape of a set of vectors: by hand and against slow double loops."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from clinpeft.core.errors import InputError
from clinpeft.evaluation.embedding import shape as module
from clinpeft.evaluation.embedding.shape import (
    effective_rank,
    evaluate_geometry,
    hubness,
    mean_random_cosine,
    participation_ratio,
    uniformity,
)
from clinpeft.evaluation.embedding.vectors import EmbeddingArray, normalize_vectors


def spread(n: int, d: int, seed: int = 0, cone: float = 0.0) -> EmbeddingArray:
    found = np.random.default_rng(seed).normal(size=(n, d))
    found[:, 0] += cone
    return normalize_vectors(found, [str(at) for at in range(n)], "x")


def rows(found: pa.Table) -> dict[str, dict[str, float]]:
    return {row["name"]: row for row in found.to_pylist()}


def measured(vectors: np.ndarray, positives: np.ndarray) -> dict[str, dict[str, float]]:
    ids = [str(at) for at in range(len(vectors))]
    rng = np.random.default_rng(0)
    return rows(
        evaluate_geometry(
            vectors, positives, ids, [None] * len(ids), "base", resamples=200, level=0.95, rng=rng
        )
    )


def test_pairs_of_texts_are_compared_as_a_double_loop_compares_them() -> None:
    vectors = spread(12, 5).astype(np.float64)
    pairs = [(vectors[i], vectors[j]) for i in range(12) for j in range(i)]
    expected = math.log(np.mean([math.exp(-2 * ((x - y) ** 2).sum()) for x, y in pairs]))
    assert uniformity(spread(12, 5)) == pytest.approx(expected, abs=1e-6)
    assert mean_random_cosine(spread(12, 5)) == pytest.approx(
        np.mean([x @ y for x, y in pairs]), abs=1e-6
    )


def test_opposite_directions_have_the_cosine_and_distance_known_by_hand() -> None:
    cross = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
    assert mean_random_cosine(cross) == pytest.approx(-1 / 3)  # 2 of 6 pairs opposite
    assert uniformity(cross) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))
    assert effective_rank(cross) == pytest.approx(2)
    assert participation_ratio(cross) == pytest.approx(2)


def test_vectors_in_one_direction_have_rank_1_and_no_spread() -> None:
    same = np.tile(np.array([[0.6, 0.8]], np.float32), (20, 1))
    assert effective_rank(same) == pytest.approx(1, abs=1e-6)
    assert math.isnan(participation_ratio(same))
    assert uniformity(same) == pytest.approx(0, abs=1e-5)


def test_a_cone_has_a_higher_mean_cosine_less_uniformity_and_a_lower_effective_rank() -> None:
    even, narrow = spread(300, 16), spread(300, 16, cone=6.0)
    assert mean_random_cosine(narrow) > 0.5
    assert abs(mean_random_cosine(even)) < 0.05
    assert uniformity(narrow) > uniformity(even)
    assert effective_rank(narrow) < effective_rank(even)


def test_hubness_is_the_skewness_of_how_often_each_is_a_neighbour() -> None:
    star = np.zeros((5, 5), np.float32)
    star[:, 0] = (1, 0.9, 0.9, 0.9, 0.9)
    star[np.arange(1, 5), np.arange(1, 5)] = math.sqrt(1 - 0.81)
    counts = np.array(
        [4, 0, 0, 0, 1]
    )  # all four are nearest to the middle, which is equally near to all: the last id
    deviations = counts - 1
    assert hubness(star, neighbors=1) == pytest.approx(
        (deviations**3).mean() / (deviations**2).mean() ** 1.5
    )
    assert math.isnan(hubness(spread(10, 3)))


def test_alignment_is_the_mean_squared_distance_and_every_number_has_its_row() -> None:
    vectors = spread(60, 8)
    other = spread(60, 8, seed=1)
    found = measured(vectors, other)
    assert found["alignment"]["value"] == pytest.approx(
        ((vectors - other) ** 2).sum(axis=1).mean(), abs=1e-5
    )
    assert measured(vectors, 5 * vectors)["alignment"]["value"] == pytest.approx(0, abs=1e-6)
    assert set(found) == {
        "alignment",
        "uniformity",
        "mean_random_cosine",
        "effective_rank",
        "participation_ratio",
        "hubness",
    }
    for name in ("alignment", "uniformity", "mean_random_cosine"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["mean_random_cosine"]["value"] == pytest.approx(
        mean_random_cosine(vectors), abs=1e-6
    )
    assert found["hubness"]["low"] is None


def test_a_resample_does_not_compare_a_text_with_its_own_copy() -> None:
    vectors = spread(30, 6)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=1).astype(np.int32)
    at = np.repeat(np.arange(30), counts[0])
    pairs = [(vectors[i], vectors[j]) for i in at for j in at if i != j]
    assert module._PairMeans(vectors)(counts)[1, 0] == pytest.approx(
        np.mean([x @ y for x, y in pairs]), abs=1e-6
    )


def test_many_texts_are_sampled_and_the_definition_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COMPARED_TEXTS", 25)
    found = measured(spread(60, 8), spread(60, 8, seed=1))
    assert (found["alignment"]["n"], found["uniformity"]["n"]) == (60, 25)
    assert "25 texts" in str(found["uniformity"]["definition"])


def test_vectors_that_are_nan_are_refused() -> None:
    vectors = spread(5, 3).copy()
    vectors[2, 1] = np.nan
    with pytest.raises(InputError, match=r"1 vectors .*'2'"):
        measured(spread(5, 3), vectors)
