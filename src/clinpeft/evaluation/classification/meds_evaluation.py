"""Predictions of a binary task in the schema of the package meds-evaluation, for its metrics.

Its ``PredictionSchema`` (Medical Event Data Standard, meds-evaluation of November 2025) is the MEDS
label schema, closed, and two columns: ``predicted_boolean_value`` and
``predicted_boolean_probability`` (float32; its first releases required float64).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions

MEDS_DECISION_THRESHOLD = 0.5
"""``predicted_boolean_value`` is true from this probability on. The schema leaves it open; for rare
events hardly any stay reaches it."""

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
    """Convert the predictions of one split to ``MEDS_PREDICTION_SCHEMA``, in the same order.

    Args:
        predictions: of schema ``PREDICTION_SCHEMA``.
        label_space: of a binary task.
        split: of the rows to take.

    Raises:
        UsageError: the task is not binary; the schema has no column for other tasks.
        InputError: invalid predictions, with their stay_id.
    """
    if label_space.kind != "binary":
        raise UsageError(
            f"a {label_space.kind} question in the schema of meds-evaluation",
            location=label_space.name,
            hint="use a binary task; the table of predictions has all classes",
        )
    scored = extract_scored_predictions(predictions, label_space, split)
    rows = predictions.filter(pc.equal(predictions["split"], split))
    # The event is the second class of a binary label space.
    probability = scored.scores[:, 1]
    columns = [
        rows["subject_id"],
        rows["prediction_time"],
        scored.truth[:, 1],
        probability >= MEDS_DECISION_THRESHOLD,
        probability,
    ]
    # float64 probabilities are rounded to float32 here, after the threshold.
    arrays = [
        column if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        for column, field in zip(columns, MEDS_PREDICTION_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=MEDS_PREDICTION_SCHEMA)
