"""Recalibration: probabilities corrected by what the tuning split shows, in all splits alike.

``temperature`` divides all logits by one number (Guo et al. 2017, arXiv 1706.04599, equation 9): it
changes how confident the model is, never the ranking within a class of a binary or multilabel task.
``isotonic`` applies the best non-decreasing step function of each probability (Zadrozny and Elkan
2002): it corrects any monotone shape, needs more tuning stays, and makes ties, so that the AUROC
may change a little.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression

from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import PREDICTION_SCHEMA, LabelSpace, ProblemType
from clinpeft.evaluation.arrays import BoolArray, Float64Array, ScoreArray
from clinpeft.evaluation.classification.calibration import PROBABILITY_CLIP, compute_clipped_logits
from clinpeft.evaluation.classification.scored_predictions import (
    ScoredPredictions,
    extract_scored_predictions,
    stack_list_column,
)

RecalibrationMethod = Literal["none", "temperature", "isotonic"]

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""The interval in which the temperature is searched."""

MIN_ISOTONIC_STAYS = 10
"""Tuning stays that must have a class, and that must not, for a step function of its own."""


def recalibrate_predictions(
    predictions: pa.Table, label_space: LabelSpace, method: RecalibrationMethod
) -> tuple[pa.Table, str]:
    """Correct the probabilities of all splits by a correction that is fitted on the tuning split.

    Args:
        predictions: of schema ``PREDICTION_SCHEMA``, all splits.
        label_space: that of the task.
        method: ``none`` returns the table as it is; ``temperature`` also divides the logits;
            ``isotonic`` makes the logits null, since it has none.

    Returns:
        The table, and a sentence that says what was done.

    Raises:
        RecipeError: there is no tuning stay to fit on.
        InputError: invalid predictions, with their stay_id.
    """
    if method == "none":
        return predictions, "not recalibrated"
    for split in pc.unique(predictions["split"]).to_pylist():
        # Every split is corrected, so every split is checked before anything is fitted.
        extract_scored_predictions(predictions, label_space, split)
    tuning = extract_scored_predictions(predictions, label_space, "tuning")
    if not len(tuning.subjects):
        raise RecipeError(
            f"recalibration {method!r} without a tuning stay of {label_space.name}",
            location="evaluation.recalibration",
            hint='keep some stays for tuning in [split], or set evaluation.recalibration = "none"',
        )
    if method == "temperature":
        return _apply_temperature(predictions, label_space, tuning)
    return _apply_isotonic(predictions, label_space, tuning)


def _apply_temperature(
    predictions: pa.Table, label_space: LabelSpace, tuning: ScoredPredictions
) -> tuple[pa.Table, str]:
    """Divide all logits by the temperature with the smallest loss on the tuning stays."""
    stay_count, kind = len(tuning.truth), label_space.kind
    if (tuning.truth == tuning.truth[:1]).all():  # the loss then falls without end
        return (
            predictions,
            f"temperature 1: the {stay_count} tuning stays all have the same answer",
        )
    tuning_logits = _get_logits(tuning.logits, tuning.scores, kind)
    # The loss is convex in the inverse temperature; the search runs over log T.
    optimum = optimize.minimize_scalar(
        lambda log_t: _compute_loss(tuning_logits / np.exp(log_t), tuning.truth, kind),
        bounds=tuple(np.log(TEMPERATURE_BOUNDS)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = float(np.exp(optimum.x))
    class_count, has_logits = len(label_space.classes), not predictions["logits"].null_count
    logits = _get_logits(
        stack_list_column(predictions, "logits", class_count) if has_logits else None,
        stack_list_column(predictions, "probabilities", class_count),
        kind,
    )
    logits = logits / temperature
    inverse_link = (
        special.expit(logits) if kind == "multilabel" else special.softmax(logits, axis=1)
    )
    corrected = _replace_list_column(predictions, "probabilities", np.asarray(inverse_link))
    if has_logits:
        corrected = _replace_list_column(corrected, "logits", logits)
    # The optimum lies outside: the user should know.
    at_bound = min(abs(np.log(temperature / np.array(TEMPERATURE_BOUNDS)))) < 1e-3
    limit = ", the end of where it is looked for" if at_bound else ""
    return corrected, f"temperature {temperature:.3g} fitted on {stay_count} tuning stays{limit}"


def _apply_isotonic(
    predictions: pa.Table, label_space: LabelSpace, tuning: ScoredPredictions
) -> tuple[pa.Table, str]:
    """Apply a step function to each class that enough tuning stays have and have not."""
    class_count, stay_count = len(label_space.classes), len(tuning.truth)
    probabilities = stack_list_column(predictions, "probabilities", class_count).astype(np.float64)
    corrected, positives = probabilities.copy(), tuning.truth.sum(axis=0)
    # Fewer stays fit steps that are noise; such classes keep their probabilities.
    fitted = (positives >= MIN_ISOTONIC_STAYS) & (stay_count - positives >= MIN_ISOTONIC_STAYS)
    for column in np.flatnonzero(fitted):
        regression = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        scores, truth = tuning.scores[:, column], tuning.truth[:, column]
        regression.fit(scores.astype(np.float64), truth.astype(np.float64))
        corrected[:, column] = regression.predict(probabilities[:, column])
    remark = (
        f"isotonic regression of {int(fitted.sum())} classes fitted on {stay_count} tuning stays"
    )
    if not fitted.all():
        remark += (
            f", {int((~fitted).sum())} classes with fewer than {MIN_ISOTONIC_STAYS} stays "
            "for or against left as they are"
        )
    if not fitted.any():
        return predictions, remark
    if label_space.kind == "binary":  # the other class is the complement of the event
        corrected = np.stack([1 - corrected[:, 1], corrected[:, 1]], axis=1)
    elif label_space.kind == "multiclass":
        # One-vs-rest corrections are normalized (Zadrozny and Elkan 2002); a row of
        # zeros stays as it was.
        total = corrected.sum(axis=1, keepdims=True)
        normalized = corrected / np.where(total > 0, total, 1.0)
        corrected = np.where(total > 0, normalized, probabilities)
    # A step function has no logit that the link maps to its values.
    table = _replace_list_column(predictions, "probabilities", corrected)
    field = PREDICTION_SCHEMA.field("logits")
    nulls = pa.nulls(len(table), field.type)
    return table.set_column(table.schema.get_field_index("logits"), field, nulls), remark


def _get_logits(
    logits: ScoreArray | None, probabilities: ScoreArray, kind: ProblemType
) -> Float64Array:
    """The logits or, where there are none, numbers that the task's link turns back into these
    probabilities, shape (n, K)."""
    if logits is not None:
        return logits.astype(np.float64)
    if kind == "multilabel":
        return compute_clipped_logits(probabilities)
    # softmax(log p) = p for probabilities that sum to 1.
    return np.log(np.clip(probabilities.astype(np.float64), PROBABILITY_CLIP, 1.0))


def _compute_loss(logits: Float64Array, truth: BoolArray, kind: ProblemType) -> float:
    """Mean negative log-likelihood: of labels by a sigmoid each, else of classes by a softmax."""
    if kind == "multilabel":
        return float((np.logaddexp(0, logits) - np.where(truth, logits, 0.0)).mean())
    return float((special.logsumexp(logits, axis=1) - logits[truth]).mean())


def _replace_list_column(predictions: pa.Table, column: str, values: Float64Array) -> pa.Table:
    """The table with one column of lists replaced by ``values``, (n, K); metadata are kept."""
    rows, classes = values.shape
    # Lists of equal length in one buffer, without a Python list a row.
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * classes)
    lists = pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).ravel()))
    field, at = PREDICTION_SCHEMA.field(column), predictions.schema.get_field_index(column)
    return predictions.set_column(at, field, lists.cast(field.type))
