"""Net benefit by hand, the two policies it is compared with, and the distributions of
probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clinpeft.core import schemas
from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.classification.decisions import (
    DECISION_THRESHOLDS,
    build_net_benefit_metrics,
    compute_decision_curve,
    compute_probability_histogram,
    net_benefit,
)
from clinpeft.evaluation.classification.metric_set import evaluate_metric_set
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions
from clinpeft.recipe import ClassificationEvaluationSpec
from tests.evaluation.test_calibration import patients
from tests.evaluation.test_discrimination import (
    asked,
    listed,
    multiclass_sample,
    multilabel_sample,
    of_event,
    predictions,
)

SPEC = ClassificationEvaluationSpec(resamples=100)


def at_prevalence(table: pa.Table, question: LabelSpace) -> dict[str, Any]:
    found = extract_scored_predictions(table, question, "held_out")
    return evaluate_metric_set(
        found,
        build_net_benefit_metrics(found, question, "held_out", SPEC),
        question,
        "held_out",
        SPEC,
        np.random.default_rng(0),
    )[0]


def lines(
    table: pa.Table, question: LabelSpace, spec: ClassificationEvaluationSpec = SPEC
) -> dict[str, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = compute_decision_curve(
        extract_scored_predictions(table, question, "held_out"),
        question,
        "held_out",
        spec,
        np.random.default_rng(0),
    )
    pa.Table.from_pylist(rows, schema=schemas.CURVE_POINT_SCHEMA)
    return {
        group: [row for row in rows if row["group"] == group]
        for group in dict.fromkeys(row["group"] for row in rows)
    }


def bars(
    table: pa.Table, question: LabelSpace, spec: ClassificationEvaluationSpec = SPEC
) -> dict[str, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = compute_probability_histogram(
        extract_scored_predictions(table, question, "held_out"), question, "held_out", spec
    )
    pa.Table.from_pylist(rows, schema=schemas.CURVE_POINT_SCHEMA)
    return {
        group: [row for row in rows if row["group"] == group]
        for group in dict.fromkeys(row["group"] for row in rows)
    }


def test_net_benefit_is_that_worked_out_by_hand() -> None:
    scores, truth = np.array([0.9, 0.6, 0.2, 0.3, 0.1]), np.array([True, False, True, False, False])
    assert net_benefit(scores, truth, 0.5) == pytest.approx(1 / 5 - 1 / 5 * 1.0)
    assert net_benefit(scores, truth, 0.2) == pytest.approx(
        2 / 5 - 2 / 5 * 0.25
    )  # a probability equal to the threshold is acted on
    assert np.isnan(net_benefit(scores[:0], truth[:0], 0.5))


def test_acting_on_everybody_is_worth_prevalence_less_the_weighted_rest() -> None:
    truth = np.array([True, False, False, True])
    assert net_benefit(np.ones(4), truth, 0.1) == pytest.approx(0.5 - 0.5 * 0.1 / 0.9)
    assert net_benefit(np.ones(4), truth, 0.5) == pytest.approx(0.0)


def test_the_number_at_the_prevalence_states_its_threshold() -> None:
    table = predictions(
        [1, 0, 1, 0, 0, 0, 0, 0], of_event([0.9, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    )
    row = at_prevalence(table, asked("binary", 2))
    assert row["name"] == "net_benefit"
    assert row["value"] == pytest.approx(1 / 8 - 1 / 8 * (0.25 / 0.75))
    assert "t = 0.2500" in row["definition"]
    assert row["n_events"] == 2


def test_the_number_of_several_classes_is_the_mean_of_each_at_its_own_prevalence() -> None:
    truth, scores = multiclass_sample(120, 3)
    expected = [
        net_benefit(scores[:, at], truth == at, float((truth == at).mean())) for at in range(3)
    ]
    assert at_prevalence(predictions(truth.tolist(), scores), asked("multiclass", 3))[
        "value"
    ] == pytest.approx(np.mean(expected))


def test_labels_are_pooled_at_one_threshold() -> None:
    truth, scores = multilabel_sample(120, 3)
    expected = net_benefit(scores.ravel(), truth.ravel(), float(truth.mean()))
    assert at_prevalence(predictions(listed(truth), scores), asked("multilabel", 3))[
        "value"
    ] == pytest.approx(expected)


@pytest.mark.parametrize("truth", [[0] * 4, [1] * 4])
def test_where_all_have_the_same_answer_there_is_no_threshold(truth: list[int]) -> None:
    row = at_prevalence(predictions(truth, of_event([0.1, 0.2, 0.6, 0.9])), asked("binary", 2))
    assert row["value"] is None
    assert "stay has the event" in row["definition"]


def test_a_decision_curve_has_the_answers_and_both_policies_from_1_to_50_percent() -> None:
    happened, told = patients(400, seed=1)
    found = lines(predictions(happened.astype(int).tolist(), of_event(told)), asked("binary", 2))
    assert list(found) == ["model", "treat all", "treat none"]
    for line in found.values():
        assert [point["x"] for point in line] == pytest.approx(DECISION_THRESHOLDS.tolist())
    prevalence = float(happened.mean())
    for model, everybody, nobody in zip(*found.values(), strict=True):
        assert model["y"] == pytest.approx(net_benefit(told, happened, model["x"]))
        assert everybody["y"] == pytest.approx(
            prevalence - (1 - prevalence) * everybody["x"] / (1 - everybody["x"])
        )
        assert (nobody["y"], nobody["low"]) == (0.0, None)
        assert model["low"] <= model["y"] <= model["high"]
        assert (
            model["y"] >= max(everybody["y"], 0.0) - 0.03
        )  # true probabilities are worth no less than a policy that ignores them


def test_several_classes_have_a_curve_each_and_a_small_split_has_none() -> None:
    truth, scores = multiclass_sample(120, 3)
    table = predictions(truth.tolist(), scores)
    assert "treat all · c2" in lines(table, asked("multiclass", 3))
    assert len(lines(table, asked("multiclass", 3))) == 9
    assert lines(table.slice(0, 9), asked("multiclass", 3)) == {}


def test_the_distribution_of_each_true_class_sums_to_1() -> None:
    table = predictions([1] * 10 + [0] * 20, of_event([0.92] * 10 + [0.01] * 15 + [1.0] * 5))
    found = bars(table, asked("binary", 2))
    assert list(found) == ["c0", "c1"]
    assert all(sum(bar["y"] for bar in bars_of) == pytest.approx(1.0) for bars_of in found.values())
    assert [(bar["x"], bar["y"]) for bar in found["c0"] if bar["y"]] == [
        (pytest.approx(0.025), 0.75),
        (pytest.approx(0.975), 0.25),
    ]
    assert {bar["n"] for bar in found["c1"]} == {10}


def test_a_class_of_few_people_has_no_distribution() -> None:
    table = predictions([1] * 9 + [0] * 20, of_event([0.9] * 9 + [0.1] * 20))
    assert list(bars(table, asked("binary", 2))) == ["c0"]
    assert list(bars(table, asked("binary", 2), ClassificationEvaluationSpec(smallest_cell=9))) == [
        "c0",
        "c1",
    ]
