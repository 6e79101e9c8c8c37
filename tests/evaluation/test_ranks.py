"""Areas under curves: by hand, against scikit-learn, and on resamples against the rows written
out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from clinpeft.evaluation.arrays import BoolArray, ScoreArray
from clinpeft.evaluation.classification import ranks as module
from clinpeft.evaluation.classification.ranks import (
    auroc,
    average_precision,
    compute_curve_areas,
    rank_scores,
    resample_auroc,
)

SIZES = (
    (20, 0.5, 3),
    (200, 0.1, 8),
    (200, 0.9, 8),
    (500, 0.3, 10_000),
)  # rows, share of positives, distinct scores


def sample(rows: int, share: float, distinct: int, seed: int = 0) -> tuple[ScoreArray, BoolArray]:
    """Scores with ties, higher on average where positive, both classes there."""
    rng = np.random.default_rng(seed)
    positive = rng.random(rows) < share
    positive[:2] = True, False
    scores = (
        np.floor(distinct * np.clip(rng.normal(0.4 + 0.2 * positive, 0.2), 0, 0.999)) / distinct
    )
    return scores.astype(np.float32), positive


def drawn(rows: int, resamples: int = 20, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.int32)


def test_a_positive_above_all_negatives_gives_1_and_below_gives_0() -> None:
    positive = np.array([False, False, True])
    assert auroc(np.array([0.1, 0.2, 0.3]), positive) == 1.0
    assert auroc(np.array([0.4, 0.5, 0.3]), positive) == 0.0


def test_a_tie_of_a_positive_and_a_negative_counts_half() -> None:
    # positives .5 and .9 against negatives .5, .1 and .9: (.5 + 1 + 0) and (1 + 1 + .5) of 6 pairs
    scores, positive = (
        np.array([0.5, 0.9, 0.5, 0.1, 0.9]),
        np.array([True, True, False, False, False]),
    )
    assert auroc(scores, positive) == pytest.approx(4 / 6)


def test_average_precision_finds_tied_rows_together() -> None:
    # at .9: 1 of 1 positive; at .5: 2 positives of 4 rows; at .1: 3 of 5. The shares of positives
    # found there: a third each
    scores, positive = (
        np.array([0.9, 0.5, 0.5, 0.5, 0.1]),
        np.array([True, True, False, False, True]),
    )
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_without_a_class_there_is_no_auroc() -> None:
    scores = np.array([0.1, 0.2])
    assert np.isnan(auroc(scores, np.array([False, False])))
    assert np.isnan(auroc(scores, np.array([True, True])))
    assert np.isnan(auroc(scores[:0], np.array([], np.bool_)))
    assert np.isnan(average_precision(scores, np.array([False, False])))
    assert average_precision(scores, np.array([True, True])) == 1.0


@pytest.mark.parametrize(("rows", "share", "distinct"), SIZES)
def test_both_areas_are_those_of_scikit_learn_ties_included(
    rows: int, share: float, distinct: int
) -> None:
    for seed in range(5):
        scores, positive = sample(rows, share, distinct, seed)
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        assert average_precision(scores, positive) == pytest.approx(
            average_precision_score(positive, scores), abs=1e-12
        )


def test_weights_are_those_of_scikit_learn() -> None:
    scores, positive = sample(200, 0.3, 8)
    weights = np.random.default_rng(2).random(200)
    assert auroc(scores, positive, weights) == pytest.approx(
        roc_auc_score(positive, scores, sample_weight=weights), abs=1e-12
    )
    assert average_precision(scores, positive, weights) == pytest.approx(
        average_precision_score(positive, scores, sample_weight=weights), abs=1e-12
    )


@pytest.mark.parametrize(("rows", "share", "distinct"), SIZES)
def test_a_resample_is_the_sample_with_its_rows_repeated(
    rows: int, share: float, distinct: int
) -> None:
    scores, positive = sample(rows, share, distinct)
    counts = drawn(rows)
    written_out = [np.repeat(np.arange(rows), row) for row in counts]
    expected = [
        (roc_auc_score(positive[at], scores[at]), average_precision_score(positive[at], scores[at]))
        for at in written_out
    ]
    np.testing.assert_allclose(
        resample_auroc(scores, positive, counts),
        [pair[0] for pair in expected],
        rtol=0,
        atol=1e-12,
    )
    np.testing.assert_allclose(
        compute_curve_areas(rank_scores(scores, positive), counts)[1],
        [pair[1] for pair in expected],
        rtol=0,
        atol=1e-12,
    )


def test_a_resample_that_lost_a_class_is_not_defined_and_the_others_are() -> None:
    scores, positive = np.array([0.1, 0.6, 0.9]), np.array([False, True, False])
    counts = np.array([[1, 0, 2], [0, 3, 0], [1, 1, 1], [0, 0, 0]], np.int32)
    np.testing.assert_array_equal(
        resample_auroc(scores, positive, counts), [np.nan, np.nan, 0.5, np.nan]
    )
    np.testing.assert_array_equal(
        compute_curve_areas(rank_scores(scores, positive), counts)[1], [np.nan, 1.0, 0.5, np.nan]
    )


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.float32])
def test_the_type_of_the_counts_does_not_change_the_areas(kind: type[np.generic]) -> None:
    scores, positive = sample(300, 0.3, 8)
    counts = drawn(300)
    np.testing.assert_allclose(
        compute_curve_areas(rank_scores(scores, positive), counts.astype(kind)),
        compute_curve_areas(rank_scores(scores, positive), counts),
        rtol=1e-14,
    )


def test_the_order_of_memory_and_the_size_of_a_chunk_do_not_change_the_areas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, positive = sample(300, 0.3, 8)
    counts = drawn(300)
    expected = compute_curve_areas(rank_scores(scores, positive), counts)
    np.testing.assert_array_equal(
        compute_curve_areas(rank_scores(scores, positive), np.ascontiguousarray(counts.T).T),
        expected,
    )
    monkeypatch.setattr(module, "_MAX_CELLS", 60)
    np.testing.assert_array_equal(
        compute_curve_areas(rank_scores(scores, positive), counts), expected
    )


def test_counts_too_many_for_32_bits_are_added_in_64(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, positive = np.array([0.1, 0.5, 0.5]), np.array([False, True, False])
    many = np.array([[2**30, 2**30, 2**30]], np.int64)
    monkeypatch.setattr(module, "_MAX_INT32_CELLS", 0)
    np.testing.assert_array_equal(
        compute_curve_areas(rank_scores(scores, positive), many), [[0.75], [0.5]]
    )


def test_several_labels_pooled_are_the_flattened_scores_with_each_row_drawn_as_a_whole() -> None:
    scores, positive = sample(90, 0.3, 8)
    counts = drawn(30)
    pooled = compute_curve_areas(
        rank_scores(scores.reshape(30, 3), positive.reshape(30, 3)), counts
    )
    np.testing.assert_allclose(
        pooled,
        compute_curve_areas(rank_scores(scores, positive), np.repeat(counts, 3, axis=1)),
        rtol=1e-14,
    )


def test_no_resamples_give_no_areas() -> None:
    assert compute_curve_areas(rank_scores(*sample(20, 0.5, 3)), drawn(20)[:0]).shape == (2, 0)
