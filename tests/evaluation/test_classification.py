"""All numbers of a question together: which splits and groups have rows, what is put away before it
leaves, and the mean over questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from clinpeft import evaluation
from clinpeft.core import schemas
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import LabelSpace, ProblemType
from clinpeft.evaluation.classification.calibration import compute_clipped_logits
from clinpeft.evaluation.classification.logistic import fit_logistic_regression
from clinpeft.evaluation.classification.ranks import auroc
from clinpeft.evaluation.classification.subgroups import evaluate_subgroups, limit_resamples
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
BINARY = asked("binary", 2)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def hospital(rows: int = 400, **columns: Any) -> pa.Table:
    """A binary question on held-out stays of their own subjects."""
    happened, told = patients(rows, seed=1)
    return predictions(happened.astype(int).tolist(), of_event(told), **columns)


def by_group(rows: list[dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    return {row["group"]: row for row in rows if row["name"] == name}


def test_tuning_and_held_out_stays_are_scored_by_every_measure() -> None:
    table = hospital(400, split=["train"] * 100 + ["tuning"] * 100 + ["held_out"] * 200)
    found = evaluation.score_prediction_table(table, BINARY, SPEC, rng())
    assert found.schema.equals(schemas.METRIC_RESULT_SCHEMA)
    rows = found.to_pylist()
    names = (
        "auroc auprc prevalence brier brier_scaled calibration_intercept calibration_slope "
        "observed_expected ece net_benefit"
    ).split()
    assert [(row["split"], row["name"]) for row in rows] == [
        (split, name) for split in ("tuning", "held_out") for name in names
    ]
    assert {row["group"] for row in rows} == {"model"}
    assert {(row["split"], row["n"]) for row in rows} == {("tuning", 100), ("held_out", 200)}
    assert all(
        row["low"] <= row["value"] <= row["high"] for row in rows if row["name"] != "ece"
    )  # a resample's error is larger than the sample's


def test_training_stays_are_scored_only_where_there_is_nothing_else() -> None:
    found = evaluation.score_prediction_table(
        hospital(100, split=["train"] * 100), BINARY, SPEC, rng()
    )
    assert set(found["split"].to_pylist()) == {"train"}


def test_without_a_held_out_stay_its_rows_say_so() -> None:
    found = evaluation.score_prediction_table(
        hospital(100, split=["tuning"] * 100), BINARY, SPEC, rng()
    ).to_pylist()
    held_out = [row for row in found if row["split"] == "held_out"]
    assert len(held_out) == 10
    assert all(
        row["value"] is None
        and row["n"] == 0
        and "the split held_out has no stay" in row["definition"]
        for row in held_out
    )
    assert (
        len(
            evaluation.compute_classification_curves(
                hospital(100, split=["tuning"] * 100), BINARY, SPEC, rng()
            )
        )
        == 0
    )


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_held_out_stays_of_one_class_or_none_never_stop_a_run(kind: ProblemType, rows: int) -> None:
    answer: Any = [0] if kind == "multilabel" else 0
    full = predictions(
        [answer] * 40, np.full((40, 2 if kind == "binary" else 3), 0.4), sex=["F", "M"] * 20
    )
    question = asked(kind, 2 if kind == "binary" else 3)
    found = evaluation.score_prediction_table(
        full.slice(0, rows), question, SPEC, rng()
    ).to_pylist()
    main = next(row for row in found if row["name"] == question.metric and row["group"] == "model")
    assert main["value"] is None
    evaluation.compute_classification_curves(full.slice(0, rows), question, SPEC, rng())


def test_the_same_state_gives_the_same_numbers_and_baselines_are_named() -> None:
    first, second = (
        evaluation.score_prediction_table(hospital(sex=["F", "M"] * 200), BINARY, SPEC, rng())
        for _ in range(2)
    )
    assert first.equals(second)
    baseline = evaluation.score_prediction_table(
        hospital(sex=["F", "M"] * 200), BINARY, SPEC, rng(), state="note length"
    ).to_pylist()
    assert {row["group"] for row in baseline} == {"note length"}
    without = evaluation.score_prediction_table(
        hospital(sex=["F", "M"] * 200), BINARY, SPEC.model_copy(update={"subgroups": False}), rng()
    )
    assert set(without["group"].to_pylist()) == {"model"}


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_curves_of_every_kind_of_question_have_the_schema(kind: ProblemType) -> None:
    truth: Any
    if kind == "binary":
        table, question = hospital(200), BINARY
    elif kind == "multiclass":
        truth, scores = multiclass_sample(120, 3)
        table, question = predictions(truth.tolist(), scores), asked("multiclass", 3)
    else:
        truth, scores = multilabel_sample(120, 3)
        table, question = predictions(listed(truth), scores), asked("multilabel", 3)
    found = evaluation.compute_classification_curves(table, question, SPEC, rng())
    assert found.schema.equals(schemas.CURVE_POINT_SCHEMA)
    assert set(found["name"].to_pylist()) == {
        "calibration",
        "calibration_smooth",
        "net_benefit",
        "probabilities",
    }


def test_a_group_has_the_numbers_of_its_own_stays() -> None:
    sex = np.array(["F", "M", "M", "F", "M"] * 80)
    table = hospital(400, sex=sex.tolist())
    rows = evaluate_subgroups(table, BINARY, "held_out", SPEC, rng())
    pa.Table.from_pylist(rows, schema=schemas.METRIC_RESULT_SCHEMA)
    found = evaluation.extract_scored_predictions(table, BINARY, "held_out")
    told, happened = found.scores[:, 1], found.truth[:, 1]
    areas = by_group(rows, "auroc")
    assert list(areas) == ["model · sex F", "model · sex M"]
    for group in "FM":
        row, chosen = areas[f"model · sex {group}"], sex == group
        assert row["value"] == pytest.approx(auroc(told[chosen], happened[chosen]))
        assert (row["n"], row["n_subjects"], row["n_events"]) == (
            chosen.sum(),
            chosen.sum(),
            happened[chosen].sum(),
        )
        assert row["low"] < row["value"] < row["high"]
        intercept = by_group(rows, "calibration_intercept")[f"model · sex {group}"]
        assert intercept["value"] == pytest.approx(
            fit_logistic_regression(
                compute_clipped_logits(told[chosen]), happened[chosen], fit_slope=False
            )[0]
        )
    gap = by_group(rows, "auroc_largest_gap")["model · sex"]
    assert gap["value"] == pytest.approx(
        abs(areas["model · sex F"]["value"] - areas["model · sex M"]["value"])
    )
    assert (gap["n"], gap["n_subjects"]) == (400, 160)


def test_small_groups_are_pooled_and_left_out_where_they_are_still_too_small() -> None:
    insurance = ["a"] * 300 + ["b"] * 88 + ["c"] * 6 + ["d"] * 6
    pooled = by_group(
        evaluate_subgroups(hospital(400, insurance=insurance), BINARY, "held_out", SPEC, rng()),
        "auroc",
    )
    assert {group: row["n"] for group, row in pooled.items()} == {
        "model · insurance a": 300,
        "model · insurance b": 88,
        "model · insurance other (2)": 12,
    }
    insurance = ["a"] * 300 + ["b"] * 92 + ["c"] * 4 + ["d"] * 4
    left_out = by_group(
        evaluate_subgroups(hospital(400, insurance=insurance), BINARY, "held_out", SPEC, rng()),
        "auroc",
    )
    assert list(left_out) == ["model · insurance a", "model · insurance b"]


def test_many_stays_of_few_people_are_a_small_group() -> None:
    people = [*range(200), *[999] * 200]
    table = hospital(400, sex=["F"] * 200 + ["M"] * 200, subject_id=people)
    assert list(by_group(evaluate_subgroups(table, BINARY, "held_out", SPEC, rng()), "auroc")) == [
        "model · sex F"
    ]


def test_a_column_that_is_unknown_or_has_one_group_gives_nothing_and_some_unknown_are_a_group() -> (
    None
):
    assert (
        evaluate_subgroups(
            hospital(400, sex=[None] * 400, race=["same"] * 400), BINARY, "held_out", SPEC, rng()
        )
        == []
    )
    some = by_group(
        evaluate_subgroups(
            hospital(400, sex=["F"] * 200 + [None] * 200), BINARY, "held_out", SPEC, rng()
        ),
        "auroc",
    )
    assert list(some) == ["model · sex F", "model · sex unknown"]


def test_ages_are_in_bands_and_notes_in_thirds_and_by_what_was_read() -> None:
    ages = [39.9, 40.0, 64.9, 65.0, 79.9, 80.0, 90.0, 18.0] * 50
    tokens = [10, 20, 30, 400] * 100
    table = hospital(
        400, age_years=ages, tokens=tokens, tokens_read=[min(one, 100) for one in tokens]
    )
    found = by_group(evaluate_subgroups(table, BINARY, "held_out", SPEC, rng()), "auroc")
    assert {group.removeprefix("model · "): row["n"] for group, row in found.items()} == {
        "age 40–64": 100,
        "age 65–79": 100,
        "age 80+": 100,
        "age <40": 100,
        "note longest third": 100,
        "note middle third": 100,
        "note shortest third": 200,
        "note read cut": 100,
        "note read whole": 300,
    }


def test_groups_of_very_many_answers_are_resampled_less_often() -> None:
    spec = ClassificationEvaluationSpec(resamples=1000)
    assert limit_resamples(spec, 2 * 10_000) == spec
    assert limit_resamples(spec, 1_266 * 10_000).resamples == 157
    assert limit_resamples(spec, 10**9).resamples == 100
    assert limit_resamples(spec, 0) == spec


def test_a_group_without_the_event_is_unknown_and_leaves_the_gap() -> None:
    happened, told = patients(300, seed=1)
    ward = np.where(np.arange(300) < 100, "a", np.where(np.arange(300) < 200, "b", "c"))
    happened[:100] = False
    rows = evaluate_subgroups(
        predictions(happened.astype(int).tolist(), of_event(told), care_unit=ward.tolist()),
        BINARY,
        "held_out",
        SPEC,
        rng(),
    )
    areas = by_group(rows, "auroc")
    assert areas["model · care unit a"]["value"] is None
    others = [areas[f"model · care unit {one}"]["value"] for one in "bc"]
    assert by_group(rows, "auroc_largest_gap")["model · care unit"]["value"] == pytest.approx(
        abs(others[0] - others[1])
    )


@pytest.mark.parametrize(
    ("counts", "hidden"),
    [
        ((100, 100, 20), False),
        ((100, 9, 20), True),
        ((100, 100, 9), True),
        ((100, 100, 0), False),
        ((100, 100, 95), True),
        ((100, 100, None), False),
        ((100, None, None), False),
        ((100, 10, 10), False),
    ],
)
def test_numbers_about_few_people_do_not_leave(
    counts: tuple[int, int | None, int | None], hidden: bool
) -> None:
    n, subjects, events = counts
    row = {
        "name": "auprc",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "level": 0.95,
        "n": n,
        "n_subjects": subjects,
        "n_events": events,
        "split": "held_out",
        "group": "model",
        "definition": "average precision; a random ranking has the prevalence, 0.0900",
        "task": "toy",
    }
    kept = evaluation.suppress_small_cells(
        pa.Table.from_pylist([row], schema=schemas.METRIC_RESULT_SCHEMA), 10
    ).to_pylist()[0]
    if not hidden:
        assert kept == row
        return
    assert all(kept[name] is None for name in ("value", "low", "high", "n_subjects", "n_events"))
    assert kept["definition"].startswith("average precision; suppressed: fewer than 10 ")
    assert "0.09" not in kept["definition"]


def test_what_was_scored_can_be_suppressed() -> None:
    table = predictions([1] * 5 + [0] * 95, of_event(np.linspace(0.9, 0.1, 100)))
    found = evaluation.suppress_small_cells(
        evaluation.score_prediction_table(table, BINARY, SPEC, rng()), 10
    ).to_pylist()
    assert all(
        row["value"] is None and "fewer than 10 events" in row["definition"] for row in found
    )
    assert not any("0.05" in row["definition"] for row in found)


def result(
    value: float | None, low: float | None, high: float | None, name: str = "auroc"
) -> pa.Table:
    row = {
        "name": name,
        "value": value,
        "low": low,
        "high": high,
        "level": 0.95,
        "n": 50,
        "split": "held_out",
        "group": "model",
        "definition": "d",
    }
    return pa.Table.from_pylist(
        [row, {**row, "group": "prevalence", "value": 0.5}], schema=schemas.METRIC_RESULT_SCHEMA
    )


def test_the_macro_average_is_the_mean_of_main_metrics_with_the_means_of_their_limits() -> None:
    row = evaluation.average_main_metric(
        {"a": result(0.6, 0.5, 0.7), "b": result(0.8, 0.75, 0.85, "auroc_macro")}
    )
    assert (row["value"], row["low"], row["high"], row["n"]) == (
        pytest.approx(0.7),
        pytest.approx(0.625),
        pytest.approx(0.775),
        100,
    )
    assert "questions a, b" in str(row["definition"])
    assert pa.Table.from_pylist([row], schema=schemas.METRIC_RESULT_SCHEMA)["name"].to_pylist() == [
        "macro_average"
    ]


def test_a_question_without_a_value_leaves_no_average_and_is_named() -> None:
    row = evaluation.average_main_metric(
        {"a": result(0.6, 0.5, 0.7), "b": result(None, None, None)}
    )
    assert row["value"] is None
    assert "no value for b" in str(row["definition"])
    assert evaluation.average_main_metric({})["value"] is None
    no_limits = evaluation.average_main_metric(
        {"a": result(0.6, 0.5, 0.7), "b": result(0.8, None, None)}
    )
    assert (no_limits["value"], no_limits["low"]) == (pytest.approx(0.7), None)


def test_the_question_travels_with_the_table(tmp_path: Any) -> None:
    document = pydantic.TypeAdapter(LabelSpace).dump_json(BINARY)
    table = hospital(20).replace_schema_metadata({b"other": b"kept", b"question": document})
    assert evaluation.read_prediction_label_space(table) == BINARY
    assert table.schema.metadata[b"other"] == b"kept"
    pq.write_table(table, tmp_path / "predictions.parquet")
    assert (
        evaluation.read_prediction_label_space(pq.read_table(tmp_path / "predictions.parquet"))
        == BINARY
    )


@pytest.mark.parametrize(
    "metadata",
    [None, {b"other": b""}, {b"question": b"no json"}, {b"question": b"{}"}, {b"question": b"[]"}],
)
def test_a_table_without_a_question_is_refused(metadata: dict[bytes, bytes] | None) -> None:
    with pytest.raises(InputError, match="where: metadata of the table"):
        evaluation.read_prediction_label_space(hospital(20).replace_schema_metadata(metadata))
