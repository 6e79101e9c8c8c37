"""Calibration: by hand, against scikit-learn, on simulated patients who are told the truth or too
much, and where nothing can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import special
from sklearn.linear_model import LogisticRegression

from clinpeft.core import schemas
from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.classification.calibration import (
    assign_equal_count_bins,
    build_calibration_metrics,
    compute_calibration_curve,
    compute_clipped_logits,
    compute_smooth_calibration_curve,
)
from clinpeft.evaluation.classification.logistic import fit_logistic_regression, fit_logistic_spline
from clinpeft.evaluation.classification.metric_set import evaluate_metric_set
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions
from clinpeft.recipe import ClassificationEvaluationSpec
from tests.evaluation.test_discrimination import (
    asked,
    listed,
    multiclass_sample,
    multilabel_sample,
    of_event,
    predictions,
)

SPEC = ClassificationEvaluationSpec(resamples=200)


def measured(
    table: pa.Table, question: LabelSpace, spec: ClassificationEvaluationSpec = SPEC
) -> dict[str, dict[str, Any]]:
    found = extract_scored_predictions(table, question, "held_out")
    rows = evaluate_metric_set(
        found,
        build_calibration_metrics(found, question, "held_out", spec),
        question,
        "held_out",
        spec,
        np.random.default_rng(0),
    )
    return {str(row["name"]): row for row in rows}


def patients(
    rows: int, seed: int, sharpened: float = 1.0
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Who had it, and what they were told: the true probability, or one whose logit is
    multiplied."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, rows)
    return rng.random(rows) < special.expit(logits), special.expit(sharpened * logits)


def curve(
    table: pa.Table, question: LabelSpace, spec: ClassificationEvaluationSpec = SPEC
) -> list[dict[str, Any]]:
    return compute_calibration_curve(
        extract_scored_predictions(table, question, "held_out"), question, "held_out", spec
    )


HAND = predictions([1, 0, 1, 0], of_event([0.75, 0.25, 0.5, 0.5]))


def test_brier_observed_expected_and_calibration_error_are_those_worked_out_by_hand() -> None:
    found = measured(HAND, asked("binary", 2))
    brier = (0.0625 + 0.0625 + 0.25 + 0.25) / 4
    assert found["brier"]["value"] == pytest.approx(brier)
    assert found["brier_scaled"]["value"] == pytest.approx(1 - brier / 0.25)
    assert found["observed_expected"]["value"] == pytest.approx(1.0)
    assert found["ece"]["value"] == pytest.approx(
        (0.25 + 0.25 + 0.0) / 4
    )  # 0.5 and 0.5 lie in one bin, where half had it
    assert found["calibration_intercept"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert "secondary" in found["ece"]["definition"]
    assert "clipped to [1e-06, 1 - 1e-06]" in found["calibration_slope"]["definition"]
    assert found["brier"]["n_events"] == 2


def test_the_slope_is_that_of_a_logistic_regression_without_penalty() -> None:
    happened, told = patients(800, seed=3, sharpened=1.7)
    x = compute_clipped_logits(told)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[:, None], happened)
    intercept, slope = fit_logistic_regression(x, happened, fit_slope=True)
    assert slope == pytest.approx(float(reference.coef_[0, 0]), rel=1e-4)
    assert intercept == pytest.approx(float(reference.intercept_[0]), abs=1e-4)


def test_with_the_intercept_in_the_large_the_probabilities_sum_to_the_events() -> None:
    happened, told = patients(500, seed=4, sharpened=3.0)
    x = compute_clipped_logits(told)
    intercept, slope = fit_logistic_regression(x, happened, fit_slope=False)
    assert slope == 1.0
    assert special.expit(intercept + x).sum() == pytest.approx(happened.sum(), abs=1e-6)


def test_a_fit_from_far_away_converges() -> None:
    happened, x = np.array([True, False, True, False]), np.array([13.0, 12.0, -13.0, -12.5])
    intercept, _ = fit_logistic_regression(x - 13, happened, fit_slope=False)
    assert special.expit(intercept + x - 13).sum() == pytest.approx(2.0, abs=1e-6)


def test_patients_who_are_told_the_truth_have_slope_1_and_intercept_0_within_the_interval() -> None:
    happened, told = patients(2000, seed=5)
    found = measured(predictions(happened.astype(int).tolist(), of_event(told)), asked("binary", 2))
    assert found["calibration_slope"]["low"] < 1 < found["calibration_slope"]["high"]
    assert found["calibration_intercept"]["low"] < 0 < found["calibration_intercept"]["high"]
    assert found["observed_expected"]["low"] < 1 < found["observed_expected"]["high"]
    assert found["ece"]["value"] < 0.04


def test_answers_that_are_too_sure_have_a_slope_below_1() -> None:
    happened, told = patients(2000, seed=5, sharpened=2.0)
    slope = measured(
        predictions(happened.astype(int).tolist(), of_event(told)), asked("binary", 2)
    )["calibration_slope"]
    assert slope["value"] == pytest.approx(0.5, abs=0.1)
    assert slope["high"] < 1


def test_one_newton_step_a_resample_gives_the_interval_of_fitting_each_anew() -> None:
    happened, told = patients(400, seed=6, sharpened=1.3)
    found = measured(
        predictions(happened.astype(int).tolist(), of_event(told)),
        asked("binary", 2),
        ClassificationEvaluationSpec(resamples=400),
    )
    x, rng = compute_clipped_logits(told.astype(np.float32)), np.random.default_rng(9)
    drawn = [rng.integers(400, size=400) for _ in range(400)]
    for name, at, free in (("calibration_intercept", 0, False), ("calibration_slope", 1, True)):
        low, high = np.quantile(
            [
                fit_logistic_regression(x[rows], happened[rows], fit_slope=free)[at]
                for rows in drawn
            ],
            [0.025, 0.975],
        )
        assert found[name]["low"] == pytest.approx(low, abs=0.2 * (high - low))
        assert found[name]["high"] == pytest.approx(high, abs=0.2 * (high - low))


def test_stays_of_one_person_count_as_one_person() -> None:
    happened, told = patients(200, seed=7)
    alone = measured(predictions(happened.astype(int).tolist(), of_event(told)), asked("binary", 2))
    repeated = predictions(
        np.repeat(happened, 4).astype(int).tolist(),
        of_event(np.repeat(told, 4)),
        subject_id=np.repeat(np.arange(200), 4).tolist(),
    )
    fourfold = measured(repeated, asked("binary", 2))
    for name in ("brier", "calibration_slope", "calibration_intercept"):
        widths = [one[name]["high"] - one[name]["low"] for one in (alone, fourfold)]
        assert widths[1] == pytest.approx(widths[0], rel=1e-6)


def test_multiclass_numbers_are_means_over_classes_against_the_rest() -> None:
    truth, scores = multiclass_sample(150, 3)
    found = measured(predictions(truth.tolist(), scores), asked("multiclass", 3))
    one_hot = np.eye(3)[truth]
    assert found["brier"]["value"] == pytest.approx(
        ((scores - one_hot) ** 2).sum(axis=1).mean(), abs=1e-6
    )
    assert found["brier_scaled"]["value"] == pytest.approx(
        1 - found["brier"]["value"] / (1 - (one_hot.mean(axis=0) ** 2).sum()), abs=1e-6
    )
    slopes = [
        fit_logistic_regression(compute_clipped_logits(scores[:, at]), truth == at, fit_slope=True)[
            1
        ]
        for at in range(3)
    ]
    assert found["calibration_slope"]["value"] == pytest.approx(np.mean(slopes), abs=1e-9)
    assert "mean over the 3 of 3 classes" in found["calibration_slope"]["definition"]


def test_multilabel_numbers_pool_all_labels() -> None:
    truth, scores = multilabel_sample(150, 4)
    found = measured(predictions(listed(truth), scores), asked("multilabel", 4))
    prevalence = truth.mean(axis=0)
    assert found["brier"]["value"] == pytest.approx(((scores - truth) ** 2).mean(), abs=1e-6)
    assert found["brier_scaled"]["value"] == pytest.approx(
        1 - found["brier"]["value"] / (prevalence * (1 - prevalence)).mean(), abs=1e-6
    )
    assert found["calibration_slope"]["value"] == pytest.approx(
        fit_logistic_regression(
            compute_clipped_logits(scores).ravel(), truth.ravel(), fit_slope=True
        )[1],
        abs=1e-9,
    )
    assert found["observed_expected"]["value"] == pytest.approx(
        truth.sum() / scores.sum(), rel=1e-5
    )
    assert found["observed_expected"]["n_events"] == truth.sum()


@pytest.mark.parametrize(
    ("truth", "told", "unknown"),
    [
        (
            [0, 0, 0],
            [0.2, 0.5, 0.7],
            {"brier_scaled", "calibration_intercept", "calibration_slope"},
        ),
        (
            [1, 1, 1],
            [0.2, 0.5, 0.7],
            {"brier_scaled", "calibration_intercept", "calibration_slope"},
        ),
        ([0, 1, 1], [0.4, 0.4, 0.4], {"calibration_slope"}),
        ([0, 0, 1], [0.1, 0.4, 0.8], {"calibration_slope"}),
        ([0, 1, 1], [0.0, 0.0, 0.0], {"calibration_slope", "observed_expected"}),
        (
            [],
            [],
            {
                "brier",
                "brier_scaled",
                "calibration_intercept",
                "calibration_slope",
                "observed_expected",
                "ece",
            },
        ),
    ],
)
def test_what_cannot_be_said_is_null_and_says_why(
    truth: list[int], told: list[float], unknown: set[str]
) -> None:
    table = predictions(truth or [0], of_event(told or [0.5])).slice(0, len(truth))
    found = measured(table, asked("binary", 2))
    assert {name for name, row in found.items() if row["value"] is None} == unknown
    assert all("unknown: " in found[name]["definition"] for name in unknown)
    assert all(found[name]["low"] is None for name in unknown)


def test_a_class_that_nobody_has_leaves_the_mean() -> None:
    truth, scores = multiclass_sample(150, 3)
    found = measured(
        predictions(np.where(truth == 2, 0, truth).tolist(), scores), asked("multiclass", 3)
    )
    assert "mean over the 2 of 3 classes" in found["calibration_intercept"]["definition"]
    assert found["calibration_intercept"]["value"] is not None


def test_the_curve_has_ten_bins_of_equal_count_with_the_observed_share() -> None:
    happened, told = patients(1000, seed=8)
    points = curve(predictions(happened.astype(int).tolist(), of_event(told)), asked("binary", 2))
    pa.Table.from_pylist(points, schema=schemas.CURVE_POINT_SCHEMA)
    assert [point["n"] for point in points] == [100] * 10
    lowest = np.argsort(told)[:100]
    assert points[0]["x"] == pytest.approx(told[lowest].mean(), rel=1e-5)
    assert points[0]["y"] == pytest.approx(happened[lowest].mean())


def test_the_intervals_of_bins_hold_the_truth_as_often_as_they_say_where_people_come_back() -> None:
    held = []
    for seed in range(30):
        happened, told = patients(300, seed)
        rng = np.random.default_rng(seed)
        again = np.repeat(
            np.arange(300), rng.integers(1, 5, 300)
        )  # with the same answer: nothing new is learnt
        table = predictions(
            happened[again].astype(int).tolist(), of_event(told[again]), subject_id=again.tolist()
        )
        held += [
            point["low"] <= point["x"] <= point["high"]
            for point in curve(table, asked("binary", 2))
        ]
    assert 0.91 <= np.mean(held) <= 0.99


def test_the_interval_of_a_bin_is_wilsons_where_every_stay_is_a_person_of_its_own() -> None:
    points = curve(predictions([1] * 10 + [0] * 30, of_event([0.3] * 40)), asked("binary", 2))
    z, share, size = 1.959964, 0.25, 39.0  # variance over n - 1
    half = z * np.sqrt(share * (1 - share) / size + z * z / (4 * size**2)) / (1 + z * z / size)
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    assert len(points) == 1
    assert (points[0]["low"], points[0]["high"]) == pytest.approx(
        (middle - half, middle + half), abs=1e-5
    )


def test_bins_with_few_subjects_are_joined() -> None:
    happened, told = patients(100, seed=8)
    points = curve(
        predictions(happened.astype(int).tolist(), of_event(told)),
        asked("binary", 2),
        ClassificationEvaluationSpec(smallest_cell=25),
    )
    assert [point["n"] for point in points] == [30, 30, 40]
    same_person = predictions(happened.astype(int).tolist(), of_event(told), subject_id=[1] * 100)
    assert curve(same_person, asked("binary", 2)) == []


def test_a_bin_in_which_nobody_had_it_still_has_an_interval() -> None:
    point = curve(predictions([0] * 40, of_event([0.1] * 40)), asked("binary", 2))[0]
    assert point["y"] == 0.0
    assert point["low"] == 0.0
    assert 0.05 < point["high"] < 0.12


def test_only_classes_that_enough_people_have_get_a_curve() -> None:
    truth, scores = multiclass_sample(150, 4)
    truth = np.where(truth == 3, 0, truth)
    points = curve(predictions(truth.tolist(), scores), asked("multiclass", 4))
    assert {point["group"] for point in points} == {"model · c0", "model · c1", "model · c2"}


def test_equal_probabilities_share_a_bin() -> None:
    bins = assign_equal_count_bins(np.array([0.1] * 15 + [0.5] * 3 + [0.9, 0.95]), 10)
    assert len(set(bins[:15].tolist())) == 1
    assert len(set(bins[15:18].tolist())) == 1
    assert (np.diff(bins) >= 0).all()


def smoothed(table: pa.Table, question: LabelSpace) -> list[dict[str, Any]]:
    return compute_smooth_calibration_curve(
        extract_scored_predictions(table, question, "held_out"), question, "held_out", SPEC
    )


def test_the_smooth_curve_bends_where_the_truth_does() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, 4000)
    happened = rng.random(4000) < special.expit(
        np.abs(logits) - 1
    )  # as likely at both ends, which no line can say
    points = smoothed(
        predictions(happened.astype(int).tolist(), of_event(special.expit(logits))),
        asked("binary", 2),
    )
    pa.Table.from_pylist(points, schema=schemas.CURVE_POINT_SCHEMA)
    assert len(points) == 25
    observed = np.array([point["y"] for point in points])
    assert observed.argmin() in range(8, 17)
    assert min(observed[0], observed[-1]) > observed.min() + 0.2
    assert all(point["low"] < point["y"] < point["high"] for point in points)


def test_a_smooth_curve_is_the_logistic_regression_on_the_spline() -> None:
    happened, told = patients(600, seed=11, sharpened=1.5)
    x = compute_clipped_logits(told)
    low, middle, high = np.quantile(x, [0.1, 0.5, 0.9])

    def design(at: NDArray[np.float64]) -> NDArray[np.float64]:
        bent = (
            np.maximum(at - low, 0) ** 3 * (high - middle)
            - np.maximum(at - middle, 0) ** 3 * (high - low)
            + np.maximum(at - high, 0) ** 3 * (middle - low)
        )
        return np.stack([at, bent], axis=1)

    points = np.linspace(-3, 3, 7)
    reference = (
        LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
        .fit(design(x), happened)
        .predict_proba(design(points))[:, 1]
    )
    curve = fit_logistic_spline(x, happened, np.arange(600), points, 0.95)
    assert curve is not None
    assert curve[0] == pytest.approx(reference, abs=1e-3)
    assert np.diff(design(np.array([high + 1, high + 2, high + 3]))[:, 1], 2) == pytest.approx(
        0.0, abs=1e-9
    )  # straight beyond the last knot


def test_the_smooth_curve_is_no_surer_when_people_are_repeated() -> None:
    happened, told = patients(300, seed=12)
    x, points, thrice = (
        compute_clipped_logits(told),
        np.linspace(-3, 1, 5),
        np.repeat(np.arange(300), 3),
    )
    alone, repeated = (
        fit_logistic_spline(x[rows], happened[rows], rows, points, 0.95)
        for rows in (np.arange(300), thrice)
    )
    assert alone is not None
    assert repeated is not None
    assert repeated[2] - repeated[1] == pytest.approx(alone[2] - alone[1], rel=0.02)


@pytest.mark.parametrize(("events", "told"), [(5, "varied"), (20, "alike"), (20, "separating")])
def test_without_enough_to_bend_there_is_no_smooth_curve(events: int, told: str) -> None:
    happened = np.arange(60) < events
    probabilities = {
        "varied": np.random.default_rng(0).random(60),
        "alike": np.full(60, 0.3),
        "separating": np.where(happened, 0.8, 0.1),
    }[told]
    assert (
        smoothed(
            predictions(happened.astype(int).tolist(), of_event(probabilities)), asked("binary", 2)
        )
        == []
    )


def test_intervals_hold_the_truth_as_often_as_they_say_where_people_come_back() -> None:
    names = {"calibration_slope": 1.0, "calibration_intercept": 0.0, "observed_expected": 1.0}
    held: dict[str, list[bool]] = {name: [] for name in names}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        person = np.repeat(np.arange(250), rng.integers(1, 5, 250))
        logits = -1.2 + rng.normal(0, 1, len(person)) + rng.normal(0, 1, 250)[person]
        happened = rng.random(len(person)) < special.expit(logits)
        table = predictions(
            happened.astype(int).tolist(),
            of_event(special.expit(logits)),
            subject_id=person.tolist(),
        )
        found = measured(table, asked("binary", 2))
        for name, truth in names.items():
            held[name].append(found[name]["low"] <= truth <= found[name]["high"])
    assert all(0.90 <= np.mean(of) <= 0.99 for of in held.values())
