"""Predictions of a binary question as the package meds-evaluation reads them, so that others can score them with their own tools.

Its ``PredictionSchema`` (Medical Event Data Standard, meds-evaluation of November 2025) is the MEDS label schema, closed, and two columns:
``predicted_boolean_value`` and ``predicted_boolean_probability`` (float32; its first releases asked for float64).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.classification.discrimination import extract_scored_predictions

MEDS_DECISION_THRESHOLD = 0.5
"""``predicted_boolean_value`` is true from this probability on. The schema leaves it open; for rare events hardly any stay reaches it."""

MEDS_PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
        pa.field("boolean_value", pa.bool_()),
        pa.field("predicted_boolean_value", pa.bool_()),
        pa.field("predicted_boolean_probability", pa.float32()),
    ]
)


def as_meds_predictions(predictions: pa.Table, label_space: LabelSpace, split: str) -> pa.Table:
    """The answers of one split, of schema ``MEDS_PREDICTION``, in the order of the table.

    Raises:
        UsageError: the question is not binary, and the schema knows no other.
        InputError: answers that are none, with their stay_id.
    """
    if label_space.kind != "binary":
        hint = "ask it of a binary question; the table of predictions has all classes"
        raise UsageError(
            f"a {label_space.kind} question in the schema of meds-evaluation",
            location=label_space.name,
            hint=hint,
        )
    found = extract_scored_predictions(predictions, label_space, split)
    asked = predictions.filter(pc.equal(predictions["split"], split))
    probability = found.scores[:, 1]
    columns = [
        asked["subject_id"],
        asked["prediction_time"],
        found.truth[:, 1],
        probability >= MEDS_DECISION_THRESHOLD,
        probability,
    ]
    arrays = [
        pa.array(column, field.type) if not isinstance(column, pa.ChunkedArray) else column
        for column, field in zip(columns, MEDS_PREDICTION_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=MEDS_PREDICTION_SCHEMA)
