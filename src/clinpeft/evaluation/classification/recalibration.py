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
from clinpeft.core.schemas import PREDICTION, Kind, Question
from clinpeft.evaluation.bootstrap import Floats
from clinpeft.evaluation.classification.calibration import CLIPPED, logits_of
from clinpeft.evaluation.classification.discrimination import Answers, answers
from clinpeft.evaluation.classification.ranks import Flags, Scores

How = Literal["none", "temperature", "isotonic"]

TEMPERATURES = (0.05, 20.0)
"""Where the temperature is looked for."""

ENOUGH_STAYS = 10
"""Tuning stays that must have a class, and that must not, for a step function of its own."""


def recalibrated(predictions: pa.Table, question: Question, how: How) -> tuple[pa.Table, str]:
    """Predictions with probabilities corrected by what the tuning split shows, and a sentence that says how.

    Args:
        predictions: of schema ``tables.PREDICTION``, all splits.
        question: that they answer.
        how: ``none`` returns the table as it is; ``temperature`` also divides the logits; ``isotonic`` has none, so they become null.

    Raises:
        RecipeError: there is no tuning stay to fit on.
        InputError: answers that are none, with their stay_id.
    """
    if how == "none":
        return predictions, "not recalibrated"
    for split in pc.unique(predictions["split"]).to_pylist():
        answers(predictions, question, split)  # refuses what cannot be corrected
    tuning = answers(predictions, question, "tuning")
    if not len(tuning.subjects):
        hint = 'keep some stays for tuning in [split], or set evaluation.recalibration = "none"'
        raise RecipeError(
            f"recalibration {how!r} without a tuning stay of {question.name}",
            location="evaluation.recalibration",
            hint=hint,
        )
    return _HOW[how](predictions, question, tuning)


def _by_temperature(
    predictions: pa.Table, question: Question, tuning: Answers
) -> tuple[pa.Table, str]:
    if (tuning.truth == tuning.truth[:1]).all():
        return (
            predictions,
            f"temperature 1: the {len(tuning.truth)} tuning stays all have the same answer",
        )
    temperature = _best_temperature(_logits(tuning.logits, tuning.scores, tuning.kind), tuning)
    classes = len(question.classes)
    known = predictions["logits"].null_count == 0
    given = _matrix(predictions, "logits", classes) if known else None
    logits = (
        _logits(given, _matrix(predictions, "probabilities", classes), question.kind) / temperature
    )
    changed = _with(predictions, "probabilities", _LINKS[question.kind](logits))
    limit = (
        ", the end of where it is looked for"
        if min(abs(np.log(temperature / np.array(TEMPERATURES)))) < 1e-3
        else ""
    )
    said = f"temperature {temperature:.3g} fitted on {len(tuning.truth)} tuning stays{limit}"
    return (_with(changed, "logits", logits) if known else changed), said


def _best_temperature(logits: Floats, tuning: Answers) -> float:
    """The temperature with the smallest negative log-likelihood of the tuning stays, which is convex in its inverse."""
    low, high = np.log(TEMPERATURES)
    loss = _LOSSES[tuning.kind]
    found = optimize.minimize_scalar(
        lambda log_temperature: loss(logits / np.exp(log_temperature), tuning.truth),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _by_steps(predictions: pa.Table, question: Question, tuning: Answers) -> tuple[pa.Table, str]:
    found = _matrix(predictions, "probabilities", len(question.classes)).astype(np.float64)
    corrected, positives = found.copy(), tuning.truth.sum(axis=0)
    enough = (positives >= ENOUGH_STAYS) & (len(tuning.truth) - positives >= ENOUGH_STAYS)
    for at in np.flatnonzero(enough):
        steps = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        steps.fit(tuning.scores[:, at].astype(np.float64), tuning.truth[:, at].astype(np.float64))
        corrected[:, at] = steps.predict(found[:, at])
    left = (
        f", {int((~enough).sum())} classes with fewer than {ENOUGH_STAYS} stays for or against left as they are"
        if not enough.all()
        else ""
    )
    said = f"isotonic regression of {int(enough.sum())} classes fitted on {len(tuning.truth)} tuning stays{left}"
    if not enough.any():
        return predictions, said
    changed = _with(predictions, "probabilities", _COMPLETED[question.kind](corrected, found))
    at = changed.schema.get_field_index("logits")
    return changed.set_column(
        at, PREDICTION.field("logits"), pa.nulls(len(changed), PREDICTION.field("logits").type)
    ), said


def _summing_to_one(corrected: Floats, before: Floats) -> Floats:
    """Each row over its sum; a row that no class wants stays as it was."""
    total = corrected.sum(axis=1, keepdims=True)
    return np.where(total > 0, corrected / np.where(total > 0, total, 1.0), before)


def _event_and_rest(corrected: Floats, _before: Floats) -> Floats:
    return np.stack([1 - corrected[:, 1], corrected[:, 1]], axis=1)


def _logits(known: Scores | None, probabilities: Scores, kind: Kind) -> Floats:
    """The logits, or where there are none, numbers that the question's link turns back into these probabilities."""
    if known is not None:
        return known.astype(np.float64)
    return (
        logits_of(probabilities)
        if kind == "multilabel"
        else np.log(np.clip(probabilities.astype(np.float64), CLIPPED, 1.0))
    )


def _one_of_several(logits: Floats, truth: Flags) -> float:
    return float((special.logsumexp(logits, axis=1) - logits[truth]).mean())


def _all_that_apply(logits: Floats, truth: Flags) -> float:
    return float((np.logaddexp(0, logits) - np.where(truth, logits, 0.0)).mean())


def _softmax(logits: Floats) -> Floats:
    return np.asarray(special.softmax(logits, axis=1))


def _matrix(predictions: pa.Table, column: str, classes: int) -> Scores:
    lists = predictions[column].combine_chunks()
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(
        len(predictions), classes
    )


def _with(predictions: pa.Table, column: str, values: Floats) -> pa.Table:
    """The table with one column of lists replaced, its metadata kept."""
    rows, classes = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * classes)
    lists = pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).ravel()))
    return predictions.set_column(
        predictions.schema.get_field_index(column),
        PREDICTION.field(column),
        lists.cast(PREDICTION.field(column).type),
    )


_HOW: dict[str, Callable[[pa.Table, Question, Answers], tuple[pa.Table, str]]] = {
    "temperature": _by_temperature,
    "isotonic": _by_steps,
}
_LINKS: dict[Kind, Callable[[Floats], Floats]] = {
    "binary": _softmax,
    "multiclass": _softmax,
    "multilabel": lambda logits: np.asarray(special.expit(logits)),
}
_LOSSES: dict[Kind, Callable[[Floats, Flags], float]] = {
    "binary": _one_of_several,
    "multiclass": _one_of_several,
    "multilabel": _all_that_apply,
}
_COMPLETED: dict[Kind, Callable[[Floats, Floats], Floats]] = {
    "binary": _event_and_rest,
    "multiclass": _summing_to_one,
    "multilabel": lambda corrected, _before: corrected,
}
