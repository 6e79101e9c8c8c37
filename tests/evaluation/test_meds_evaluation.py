"""The table that meds-evaluation reads."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from clinpeft.core.errors import UsageError
from clinpeft.evaluation.classification.meds_evaluation import (
    MEDS_PREDICTION_SCHEMA,
    as_meds_predictions,
)
from tests.evaluation.test_discrimination import asked, of_event, predictions


def test_answers_of_one_split_have_the_columns_of_the_standard() -> None:
    table = predictions(
        [1, 0, 1],
        of_event([0.75, 0.5, 0.25]),
        split=["held_out", "held_out", "tuning"],
        subject_id=[7, 8, 9],
    )
    found = as_meds_predictions(table, asked("binary", 2), "held_out")
    assert found.schema.equals(MEDS_PREDICTION_SCHEMA)
    time = datetime.datetime(2100, 1, 1)
    same = {"prediction_time": time, "predicted_boolean_value": True}
    assert found.to_pylist() == [
        {"subject_id": 7, "boolean_value": True, "predicted_boolean_probability": 0.75, **same},
        {"subject_id": 8, "boolean_value": False, "predicted_boolean_probability": 0.5, **same},
    ]


def test_its_first_columns_are_the_label_schema_of_meds() -> None:
    label = pytest.importorskip("meds").LabelSchema.schema()
    for name in ("subject_id", "prediction_time", "boolean_value"):
        assert MEDS_PREDICTION_SCHEMA.field(name).type == label.field(name).type
    assert MEDS_PREDICTION_SCHEMA.field("predicted_boolean_probability").type == pa.float32()


def test_a_split_without_a_stay_is_an_empty_table() -> None:
    assert (
        len(as_meds_predictions(predictions([1], of_event([0.5])), asked("binary", 2), "tuning"))
        == 0
    )


def test_a_question_that_is_not_binary_is_refused() -> None:
    with pytest.raises(UsageError, match="multilabel"):
        as_meds_predictions(predictions([[0]], [[0.5, 0.5]]), asked("multilabel", 2), "held_out")
