"""A table of predictions, checked and turned into arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import PREDICTION_SCHEMA, LabelSpace, ProblemType
from clinpeft.evaluation.arrays import BoolArray, Int64Array, ScoreArray

_OVERFLOW_HINT = "predict again; a NaN comes from numbers that overflowed, often in half precision"


@dataclass(frozen=True)
class ScoredPredictions:
    """Truth and predicted probabilities of n stays for K classes.

    Attributes:
        subjects: subject of each row, shape (n,).
        truth: shape (n, K): one-hot for a binary or multiclass task, any number of labels a row for
            a multilabel one.
        scores: probabilities, shape (n, K).
        kind: of the task.
        logits: shape (n, K); None where a row has none.
    """

    subjects: Int64Array
    truth: BoolArray
    scores: ScoreArray
    kind: ProblemType
    logits: ScoreArray | None = None


def extract_scored_predictions(
    predictions: pa.Table, label_space: LabelSpace, split: str
) -> ScoredPredictions:
    """Check the predictions of one split and turn them into arrays, in the order of the table.

    Args:
        predictions: of schema ``PREDICTION_SCHEMA``.
        label_space: that of the task.
        split: of the rows to take.

    Raises:
        InputError: missing columns; a stay predicted twice for the same time; a number of
            probabilities that is not that of the classes; a probability outside 0 to 1; an unknown
            or impossible true class. The location names the first stay_id.
    """
    missing = [name for name in PREDICTION_SCHEMA.names if name not in predictions.schema.names]
    if missing:
        raise InputError(
            f"not a table of predictions: no column {', '.join(missing)}",
            location=label_space.name,
            hint=f"give the columns {', '.join(PREDICTION_SCHEMA.names)}",
        )
    class_count = len(label_space.classes)
    if label_space.kind == "binary" and class_count != 2:
        raise InputError(
            f"a binary question with {class_count} classes",
            location=label_space.name,
            hint="name two classes, the event second",
        )
    # Over all splits: a stay must not be predicted in two of them either.
    groups = predictions.group_by(["stay_id", "prediction_time"]).aggregate([([], "count_all")])
    repeated = groups.filter(pc.greater(groups["count_all"], 1))
    if len(repeated):
        raise InputError(
            f"{len(repeated)} stays answered more than once for the same time",
            location=f"{label_space.name}, stay_id {repeated['stay_id'][0].as_py()}",
            hint="give one row a stay and time",
        )
    rows = predictions.filter(pc.equal(predictions["split"], split))
    location = f"{label_space.name}, {split}"
    scores = _check_list_column(rows, "probabilities", class_count, location)
    # Both bounds are included: a sigmoid can round to 0 or 1.
    in_range = np.logical_and.reduce((scores >= 0) & (scores <= 1), axis=1)  # NaN is not in range
    message = "a probability that is not between 0 and 1"
    _check_rows(rows, ~in_range, message, location, _OVERFLOW_HINT)
    truth = _extract_truth(rows, label_space.kind, class_count, location)
    logits = None
    if not rows["logits"].null_count:
        logits = _check_list_column(rows, "logits", class_count, location)
        infinite = np.logical_or.reduce(~np.isfinite(logits), axis=1)
        _check_rows(rows, infinite, "a logit that is not a number", location, _OVERFLOW_HINT)
    subjects = np.asarray(rows["subject_id"].to_numpy(), np.int64)
    return ScoredPredictions(subjects, truth, scores, label_space.kind, logits)


def stack_list_column(predictions: pa.Table, column: str, class_count: int) -> ScoreArray:
    """Stack a column of lists that all have one number a class, shape (n, classes)."""
    numbers = predictions[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(numbers).reshape(len(predictions), class_count)


def _check_list_column(
    predictions: pa.Table, column: str, class_count: int, location: str
) -> ScoreArray:
    lists = predictions[column].combine_chunks()
    # A null list has no length: -1 differs from every number of classes.
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    message = f"a number of {column} that is not the {class_count} of the classes"
    hint = "predict with the head of this question"
    _check_rows(predictions, lengths != class_count, message, location, hint)
    return stack_list_column(predictions, column, class_count)


def _extract_truth(
    predictions: pa.Table, kind: ProblemType, class_count: int, location: str
) -> BoolArray:
    """The true classes as a mask of shape (n, classes)."""
    message = f"a true class that is unknown or not one of {class_count}"
    if kind != "multilabel":
        # A null is an unknown truth and never class 0.
        label = pc.fill_null(predictions["label"], -1).to_numpy()
        is_invalid = (label < 0) | (label >= class_count)
        _check_rows(predictions, is_invalid, message, location, "give the index of a class")
        return np.asarray(label[:, None] == np.arange(class_count))
    lists = predictions["labels"].combine_chunks()
    hint = "give the indices of classes, an empty list where none applies"
    # A null list is an unknown truth; an empty list says that no label applies.
    is_unknown = np.asarray(lists.is_null())
    _check_rows(predictions, is_unknown, "true classes that are unknown", location, hint)
    row = np.asarray(pc.list_parent_indices(lists))  # of each label: (labels,)
    label = np.asarray(pc.fill_null(lists.flatten(), -1))
    invalid_rows = row[(label < 0) | (label >= class_count)]
    is_invalid = np.bincount(invalid_rows, minlength=len(predictions)) > 0
    _check_rows(predictions, is_invalid, message, location, hint)
    truth = np.zeros((len(predictions), class_count), np.bool_)
    truth[row, label] = True
    return truth


def _check_rows(
    predictions: pa.Table, is_invalid: BoolArray, message: str, location: str, hint: str
) -> None:
    """Raise an InputError that counts the invalid rows and names the first stay."""
    if is_invalid.any():
        stay_id = predictions["stay_id"][int(np.flatnonzero(is_invalid)[0])].as_py()
        raise InputError(
            f"{message}, in {int(is_invalid.sum())} stays",
            location=f"{location}, stay_id {stay_id}",
            hint=hint,
        )
