"""Recalibration: probabilities put right on the tuning split, and the same correction given to all.

``temperature`` divides all logits by one number (Guo et al. 2017): it moves how sure the answers are, never who comes before whom within a class of a
binary or multilabel question. ``isotonic`` takes the best non-decreasing step function of each probability (Zadrozny and Elkan 2002): it mends any
shape, needs more tuning stays, and makes ties, so that AUROC may change a little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import optimize, special
from sklearn.isotonic import IsotonicRegression

from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import PREDICTION_SCHEMA, LabelSpace, ProblemType
from clinpeft.evaluation.bootstrap import Float64Array
from clinpeft.evaluation.classification.calibration import PROBABILITY_CLIP, compute_clipped_logits
from clinpeft.evaluation.classification.discrimination import (
    ScoredPredictions,
    extract_scored_predictions,
)
from clinpeft.evaluation.classification.ranks import BoolArray, ScoreArray

RecalibrationMethod = Literal["none", "temperature", "isotonic"]

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""Where the temperature is looked for."""

MIN_ISOTONIC_STAYS = 10
"""Tuning stays that must have a class, and that must not, for a step function of its own."""


def recalibrate_predictions(
    predictions: pa.Table, label_space: LabelSpace, method: RecalibrationMethod
) -> tuple[pa.Table, str]:
    """Predictions with probabilities corrected by what the tuning split shows, and a sentence that says how.

    Args:
        predictions: of schema ``tables.PREDICTION``, all splits.
        label_space: that they answer.
        method: ``none`` returns the table as it is; ``temperature`` also divides the logits; ``isotonic`` has none, so they become null.

    Raises:
        RecipeError: there is no tuning stay to fit on.
        InputError: answers that are none, with their stay_id.
    """
    if method == "none":
        return predictions, "not recalibrated"
    for split in pc.unique(predictions["split"]).to_pylist():
        extract_scored_predictions(
            predictions, label_space, split
        )  # refuses what cannot be corrected
    tuning = extract_scored_predictions(predictions, label_space, "tuning")
    if not len(tuning.subjects):
        hint = 'keep some stays for tuning in [split], or set evaluation.recalibration = "none"'
        raise RecipeError(
            f"recalibration {method!r} without a tuning stay of {label_space.name}",
            location="evaluation.recalibration",
            hint=hint,
        )
    return _METHODS[method](predictions, label_space, tuning)


def _apply_temperature(
    predictions: pa.Table, label_space: LabelSpace, tuning: ScoredPredictions
) -> tuple[pa.Table, str]:
    if (tuning.truth == tuning.truth[:1]).all():
        return (
            predictions,
            f"temperature 1: the {len(tuning.truth)} tuning stays all have the same answer",
        )
    temperature = _fit_temperature(_get_logits(tuning.logits, tuning.scores, tuning.kind), tuning)
    classes = len(label_space.classes)
    known = predictions["logits"].null_count == 0
    given = _read_list_column(predictions, "logits", classes) if known else None
    logits = (
        _get_logits(
            given, _read_list_column(predictions, "probabilities", classes), label_space.kind
        )
        / temperature
    )
    changed = _replace_list_column(
        predictions, "probabilities", _INVERSE_LINKS[label_space.kind](logits)
    )
    limit = (
        ", the end of where it is looked for"
        if min(abs(np.log(temperature / np.array(TEMPERATURE_BOUNDS)))) < 1e-3
        else ""
    )
    said = f"temperature {temperature:.3g} fitted on {len(tuning.truth)} tuning stays{limit}"
    return (_replace_list_column(changed, "logits", logits) if known else changed), said


def _fit_temperature(logits: Float64Array, tuning: ScoredPredictions) -> float:
    """The temperature with the smallest negative log-likelihood of the tuning stays, which is convex in its inverse."""
    low, high = np.log(TEMPERATURE_BOUNDS)
    loss = _LOSSES[tuning.kind]
    found = optimize.minimize_scalar(
        lambda log_temperature: loss(logits / np.exp(log_temperature), tuning.truth),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _apply_isotonic(
    predictions: pa.Table, label_space: LabelSpace, tuning: ScoredPredictions
) -> tuple[pa.Table, str]:
    found = _read_list_column(predictions, "probabilities", len(label_space.classes)).astype(
        np.float64
    )
    corrected, positives = found.copy(), tuning.truth.sum(axis=0)
    enough = (positives >= MIN_ISOTONIC_STAYS) & (
        len(tuning.truth) - positives >= MIN_ISOTONIC_STAYS
    )
    for at in np.flatnonzero(enough):
        steps = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        steps.fit(tuning.scores[:, at].astype(np.float64), tuning.truth[:, at].astype(np.float64))
        corrected[:, at] = steps.predict(found[:, at])
    left = (
        f", {int((~enough).sum())} classes with fewer than {MIN_ISOTONIC_STAYS} stays for or against left as they are"
        if not enough.all()
        else ""
    )
    said = f"isotonic regression of {int(enough.sum())} classes fitted on {len(tuning.truth)} tuning stays{left}"
    if not enough.any():
        return predictions, said
    changed = _replace_list_column(
        predictions, "probabilities", _NORMALIZERS[label_space.kind](corrected, found)
    )
    at = changed.schema.get_field_index("logits")
    return changed.set_column(
        at,
        PREDICTION_SCHEMA.field("logits"),
        pa.nulls(len(changed), PREDICTION_SCHEMA.field("logits").type),
    ), said


def _normalize_rows(
    probabilities: Float64Array, uncorrected_probabilities: Float64Array
) -> Float64Array:
    """Each row over its sum; a row that no class wants stays as it was."""
    total = probabilities.sum(axis=1, keepdims=True)
    return np.where(
        total > 0, probabilities / np.where(total > 0, total, 1.0), uncorrected_probabilities
    )


def _complement_event(
    probabilities: Float64Array, _uncorrected_probabilities: Float64Array
) -> Float64Array:
    return np.stack([1 - probabilities[:, 1], probabilities[:, 1]], axis=1)


def _get_logits(
    logits: ScoreArray | None, probabilities: ScoreArray, kind: ProblemType
) -> Float64Array:
    """The logits, or where there are none, numbers that the question's link turns back into these probabilities."""
    if logits is not None:
        return logits.astype(np.float64)
    return (
        compute_clipped_logits(probabilities)
        if kind == "multilabel"
        else np.log(np.clip(probabilities.astype(np.float64), PROBABILITY_CLIP, 1.0))
    )


def _compute_cross_entropy(logits: Float64Array, truth: BoolArray) -> float:
    return float((special.logsumexp(logits, axis=1) - logits[truth]).mean())


def _compute_binary_cross_entropy(logits: Float64Array, truth: BoolArray) -> float:
    return float((np.logaddexp(0, logits) - np.where(truth, logits, 0.0)).mean())


def _compute_softmax(logits: Float64Array) -> Float64Array:
    return np.asarray(special.softmax(logits, axis=1))


def _read_list_column(predictions: pa.Table, column: str, class_count: int) -> ScoreArray:
    lists = predictions[column].combine_chunks()
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(
        len(predictions), class_count
    )


def _replace_list_column(predictions: pa.Table, column: str, values: Float64Array) -> pa.Table:
    """The table with one column of lists replaced, its metadata kept."""
    rows, classes = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * classes)
    lists = pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).ravel()))
    return predictions.set_column(
        predictions.schema.get_field_index(column),
        PREDICTION_SCHEMA.field(column),
        lists.cast(PREDICTION_SCHEMA.field(column).type),
    )


_METHODS: dict[str, Callable[[pa.Table, LabelSpace, ScoredPredictions], tuple[pa.Table, str]]] = {
    "temperature": _apply_temperature,
    "isotonic": _apply_isotonic,
}
_INVERSE_LINKS: dict[ProblemType, Callable[[Float64Array], Float64Array]] = {
    "binary": _compute_softmax,
    "multiclass": _compute_softmax,
    "multilabel": lambda logits: np.asarray(special.expit(logits)),
}
_LOSSES: dict[ProblemType, Callable[[Float64Array, BoolArray], float]] = {
    "binary": _compute_cross_entropy,
    "multiclass": _compute_cross_entropy,
    "multilabel": _compute_binary_cross_entropy,
}
_NORMALIZERS: dict[ProblemType, Callable[[Float64Array, Float64Array], Float64Array]] = {
    "binary": _complement_event,
    "multiclass": _normalize_rows,
    "multilabel": lambda corrected, _before: corrected,
}
