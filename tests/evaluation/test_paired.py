"""Two models on the same stays: differences by hand, DeLong against pairs one by one, intervals
that are paired."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.metrics import brier_score_loss, roc_auc_score

from clinpeft.core import schemas
from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import ProblemType
from clinpeft.evaluation.classification.paired import (
    compare_paired_predictions,
    compute_squared_errors,
    delong_test,
    find_prediction_mismatch,
)
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions
from clinpeft.recipe import ClassificationEvaluationSpec
from tests.evaluation.test_discrimination import (
    HAND,
    METRICS,
    asked,
    listed,
    measured,
    multiclass_sample,
    multilabel_sample,
    of_event,
    predictions,
)

SPEC = ClassificationEvaluationSpec(resamples=100)

Pair = tuple[pa.Table, pa.Table]


def compared(
    before: pa.Table,
    after: pa.Table,
    kind: ProblemType = "binary",
    classes: int = 2,
    spec: ClassificationEvaluationSpec = SPEC,
) -> dict[str, dict[str, Any]]:
    found = compare_paired_predictions(
        before, after, asked(kind, classes), spec, np.random.default_rng(0)
    )
    assert found.schema == schemas.METRIC_RESULT_SCHEMA
    return {row["name"]: row for row in found.to_pylist()}


def toys(kind: ProblemType) -> Pair:
    """Two models on 80 stays of 40 subjects."""
    truth: Any
    if kind == "multilabel":
        flags, scores = multilabel_sample(80, 4)
        truth, others = listed(flags), np.roll(scores, 1, axis=0)
    else:
        labels, scores = multiclass_sample(80, 2 if kind == "binary" else 4)
        truth, others = labels.tolist(), np.roll(scores, 1, axis=0)
    subjects = np.arange(80) // 2
    return predictions(truth, scores, subject_id=subjects), predictions(
        truth, others, subject_id=subjects
    )


def delong_pair_by_pair(
    before: NDArray[Any], after: NDArray[Any], positive: NDArray[np.bool_]
) -> tuple[float, float]:
    """Difference and its variance from the kernel of every pair of a positive and a negative
    (DeLong 1988, equations 4 to 6)."""
    kernels = []
    for scores in (before, after):
        gap = scores[positive][:, None] - scores[~positive][None]
        kernels.append((gap > 0) + 0.5 * (gap == 0))
    by_positive, by_negative = ([kernel.mean(axis=axis) for kernel in kernels] for axis in (1, 0))
    contrast = np.array([-1.0, 1.0])
    covariance = np.cov(by_positive) / positive.sum() + np.cov(by_negative) / (~positive).sum()
    return float(kernels[1].mean() - kernels[0].mean()), float(contrast @ covariance @ contrast)


def test_the_differences_are_after_minus_before() -> None:
    truth = np.array([0, 1, 1, 0, 1, 0])
    scores = np.array([0.1, 0.2, 0.9, 0.5, 0.5, 0.3]), np.array([0.2, 0.4, 0.8, 0.3, 0.9, 0.1])
    found = compared(*(predictions(truth.tolist(), of_event(one)) for one in scores))
    aurocs = [roc_auc_score(truth, one) for one in scores]
    briers = [brier_score_loss(truth, one) for one in scores]
    assert found["auroc_difference"]["value"] == pytest.approx(aurocs[1] - aurocs[0])
    assert found["brier_difference"]["value"] == pytest.approx(briers[1] - briers[0], abs=1e-7)
    row = found["auroc_difference"]
    assert (
        row["group"],
        row["split"],
        row["task"],
        row["n"],
        row["n_subjects"],
        row["n_events"],
    ) == ("second - first", "held_out", "toy", 6, 6, 3)
    assert "the second minus the first on the same stays" in row["definition"]
    assert list(found) == ["auroc_difference", "auprc_difference", "brier_difference", "delong_p"]


@pytest.mark.parametrize("kind", METRICS)
def test_the_difference_of_each_kind_is_that_of_the_two_evaluations(kind: ProblemType) -> None:
    before, after = toys(kind)
    classes = len(before["probabilities"][0])
    found = compared(before, after, kind, classes)
    alone = [measured(one, asked(kind, classes)) for one in (before, after)]
    names = {name.removesuffix("_difference") for name in found} - {"brier", "delong_p"}
    assert METRICS[kind] in names
    assert not names & {"prevalence", "labels_evaluable"}
    for name in names:
        assert found[f"{name}_difference"]["value"] == pytest.approx(
            alone[1][name]["value"] - alone[0][name]["value"], abs=1e-12
        )
        assert found[f"{name}_difference"]["low"] < found[f"{name}_difference"]["high"]


@pytest.mark.parametrize("kind", METRICS)
def test_equal_answers_differ_by_exactly_nothing(kind: ProblemType) -> None:
    table, _ = toys(kind)
    found = compared(table, table, kind, len(table["probabilities"][0]))
    p = found.pop("delong_p", {"value": 1.0})
    assert p["value"] == 1.0
    for row in found.values():
        assert (row["value"], row["low"], row["high"]) == (0.0, 0.0, 0.0)


def test_every_split_that_was_answered_has_its_rows_with_the_names_of_the_two() -> None:
    split = ["train", "train", "tuning", "tuning"]
    table = predictions([0, 1, 0, 1], of_event([0.1, 0.2, 0.3, 0.4]), split=split)
    rows = compare_paired_predictions(
        table,
        table,
        asked("binary", 2),
        SPEC,
        np.random.default_rng(0),
        names=("frozen", "trained"),
    ).to_pylist()
    assert {(row["split"], row["group"]) for row in rows} == {
        ("train", "trained - frozen"),
        ("tuning", "trained - frozen"),
    }


def test_the_order_of_the_rows_says_nothing() -> None:
    before, after = toys("binary")
    shuffled = after.take(np.random.default_rng(3).permutation(len(after)))
    assert compared(before, shuffled) == compared(before, after)


def test_a_paired_interval_is_narrower_than_either_of_models_that_agree() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(200) < 0.4).astype(int)
    z = truth + rng.normal(size=200)
    before, after = (
        predictions(truth.tolist(), of_event(special.expit(z + 0.1 * rng.normal(size=200))))
        for _ in range(2)
    )
    row, alone = (
        compared(before, after)["auroc_difference"],
        measured(before, asked("binary", 2))["auroc"],
    )
    assert row["high"] - row["low"] < 0.5 * (alone["high"] - alone["low"])


def test_models_of_equal_merit_differ_by_an_interval_around_nothing_as_often_as_it_says() -> None:
    rng, held, samples = np.random.default_rng(1), 0, 200
    for _ in range(samples):
        subjects = np.repeat(np.arange(100), 3)
        event = (rng.random(100) < 0.5)[subjects]
        z = event + rng.normal(size=100)[subjects]
        one, other = (of_event(special.expit(z + 0.7 * rng.normal(size=300))) for _ in range(2))
        before, after = (
            predictions(event.astype(int).tolist(), scores, subject_id=subjects)
            for scores in (one, other)
        )
        row = compare_paired_predictions(before, after, asked("binary", 2), SPEC, rng).to_pylist()[
            0
        ]
        held += row["low"] <= 0 <= row["high"]
    assert held / samples == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize("distinct", [4, 10_000])
def test_delong_is_that_of_all_pairs_ties_included(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    positive = rng.random(80) < 0.3
    before, after = (
        np.round(special.expit(positive + rng.normal(size=80)) * distinct) for _ in range(2)
    )
    difference, variance = delong_pair_by_pair(before, after, positive)
    found = delong_test(before, after, positive)
    assert found[0] == pytest.approx(difference, abs=1e-12)
    assert found[1] == pytest.approx(np.sqrt(variance), rel=1e-10)
    assert found[2] == pytest.approx(
        2 * stats.norm.cdf(-abs(difference) / np.sqrt(variance)), rel=1e-8
    )


def test_delong_is_1_for_equal_rankings_0_without_variance_and_nan_for_too_few() -> None:
    positive = np.array([True, True, False, False])
    rising = np.array([0.8, 0.9, 0.1, 0.2])
    assert delong_test(rising, rising**2, positive) == (0.0, 0.0, 1.0)
    assert delong_test(rising, -rising, positive) == (-1.0, 0.0, 0.0)
    assert np.isnan(delong_test(rising, rising, np.array([True, False, False, False]))).all()


def test_delong_s_p_is_in_the_table_and_its_row_says_that_it_takes_stays_to_be_independent() -> (
    None
):
    before, after = toys("binary")
    row = compared(before, after)["delong_p"]
    first, second = (
        extract_scored_predictions(one, asked("binary", 2), "held_out") for one in (before, after)
    )
    assert (
        row["value"] == delong_test(first.scores[:, 1], second.scores[:, 1], first.truth[:, 1])[2]
    )
    assert (row["low"], row["high"], row["level"]) == (None, None, None)
    assert "independent" in row["definition"]
    assert "delong_p" not in compared(*toys("multiclass"), "multiclass", 4)


def test_a_class_that_is_absent_leaves_differences_unknown_and_the_brier_score_known() -> None:
    found = compared(
        *(predictions([0, 0, 0], of_event(one)) for one in ([0.1, 0.2, 0.3], [0.2, 0.2, 0.4]))
    )
    assert found["auroc_difference"]["value"] is found["delong_p"]["value"] is None
    assert "class 'c1' has no held_out stay" in found["auroc_difference"]["definition"]
    assert "fewer than two stays" in found["delong_p"]["definition"]
    assert found["brier_difference"]["value"] == pytest.approx((0.03 + 0.07) / 3, abs=1e-6)


def test_the_brier_score_sums_over_classes_and_averages_over_labels() -> None:
    several = extract_scored_predictions(
        predictions([2], [[0.5, 0.2, 0.3]]), asked("multiclass", 3), "held_out"
    )
    assert compute_squared_errors(several) == pytest.approx([0.25 + 0.04 + 0.49])
    labels = extract_scored_predictions(
        predictions([[2]], [[0.5, 0.2, 0.3]]), asked("multilabel", 3), "held_out"
    )
    assert compute_squared_errors(labels) == pytest.approx([(0.25 + 0.04 + 0.49) / 3])


LATER = [datetime.datetime(2100, 1, 1)] * 4 + [datetime.datetime(2100, 1, 2)]
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "other stays": (
        {"stay_id": [0, 1, 2, 3, 9]},
        "1 stays are answered only by first, 1 only by second",
    ),
    "another time": (
        {"prediction_time": LATER},
        "1 stays are answered only by first, 1 only by second",
    ),
    "another truth": (
        {"label": [1, 1, 0, 1, 0]},
        "1 stays have another true class, the first is stay_id 3",
    ),
    "another split": (
        {"split": ["held_out"] * 4 + ["train"]},
        "1 stays have another split, the first is stay_id 4",
    ),
    "other subjects": (
        {"subject_id": [1, 1, 2, 3, 4]},
        "1 stays have another subject, the first is stay_id 4",
    ),
}


@pytest.mark.parametrize(("columns", "reason"), OTHERS.values(), ids=OTHERS)
def test_answers_to_another_question_are_not_compared(columns: dict[str, Any], reason: str) -> None:
    given = {"subject_id": [1, 1, 2, 3, 3], "label": [1, 1, 0, 0, 0]} | columns
    other = predictions(
        given["label"],
        of_event([0.5, 0.9, 0.5, 0.1, 0.9]),
        **{name: given[name] for name in given if name != "label"},
    )
    assert find_prediction_mismatch(HAND, other) == reason
    with pytest.raises(RefusedError, match="where: "):
        compare_paired_predictions(HAND, other, asked("binary", 2), SPEC, np.random.default_rng(0))


def test_labels_in_another_order_are_the_same_and_other_labels_are_not() -> None:
    scores = np.full((2, 3), 0.5)
    assert (
        find_prediction_mismatch(
            predictions([[0, 2], []], scores), predictions([[2, 0], []], scores)
        )
        == ""
    )
    assert "another set of true classes" in find_prediction_mismatch(
        predictions([[0, 2], []], scores), predictions([[0, 2], [1]], scores)
    )


def test_the_same_stay_twice_is_refused() -> None:
    twice = pa.concat_tables([HAND, HAND.slice(0, 1)])
    assert (
        find_prediction_mismatch(HAND, twice) == "5 rows by first, 6 by second for the same 5 stays"
    )
    with pytest.raises(InputError, match=r"where: .*stay_id"):
        compare_paired_predictions(twice, twice, asked("binary", 2), SPEC, np.random.default_rng(0))
