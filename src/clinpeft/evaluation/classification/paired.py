"""Two models on the same stays: how much better the second is, with an interval that knows they were asked the same.

The difference of two AUROCs moves far less from sample to sample than either, because what is hard for one is hard for the other. A resample draws
subjects for both at once; comparing two separate intervals would miss most of what the sample can show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from clinpeft.core.errors import RefusedError
from clinpeft.core.schemas import RESULT, SPLITS, Kind, Question
from clinpeft.evaluation.bootstrap import Floats
from clinpeft.evaluation.classification.discrimination import (
    Answers,
    Board,
    Measure,
    answers,
    board,
    scored,
)
from clinpeft.evaluation.classification.ranks import Flags, Scores
from clinpeft.recipe import ScoringSpec

_KEYS = [("stay_id", "ascending"), ("prediction_time", "ascending")]

_DELONG = (
    "two-sided p of the difference of two AUROCs (DeLong 1988, midranks as Sun and Xu 2014); it takes the stays to be independent, "
    "so where subjects repeat read the bootstrap interval of auroc_difference"
)
_BRIER = "mean over stays of the squared difference of probability and truth: {}; lower is better"
_BRIER_OF = {
    "binary": "of the event",
    "multiclass": "summed over the classes",
    "multilabel": "averaged over the labels",
}


def answers_difference(
    before: pa.Table,
    after: pa.Table,
    question: Question,
    spec: ScoringSpec,
    rng: np.random.Generator,
    names: tuple[str, str] = ("first", "second"),
) -> pa.Table:
    """Every metric of discrimination and the Brier score, after minus before on the same stays, with paired intervals.

    Args:
        before, after: of schema ``tables.PREDICTION``, in any order of rows.
        question: that both answer.
        spec: resamples and level.
        rng: for the resamples, which both share.
        names: of the two, for ``group``.

    Returns:
        Of schema ``tables.RESULT``, a row a split and metric, ``auroc_difference`` and so on; a binary question also has ``delong_p``.

    Raises:
        RefusedError: the two did not answer the same stays, or not with the same truth.
        InputError: answers that are none, with their stay_id.
    """
    reason = answers_mismatch(before, after, names)
    if reason:
        hint = "compare models that were asked the same question about the same stays of one cohort"
        raise RefusedError(
            f"not the same question: {reason}", location=" and ".join(names), hint=hint
        )
    first, second = before.sort_by(_KEYS), after.sort_by(_KEYS)
    rows: list[dict[str, object]] = []
    for split in (name for name in SPLITS if pc.any(pc.equal(first["split"], name)).as_py()):
        rows += _compared(
            answers(first, question, split),
            answers(second, question, split),
            question,
            split,
            spec,
            rng,
        )
    return pa.Table.from_pylist(
        [{**row, "group": f"{names[1]} - {names[0]}"} for row in rows], schema=RESULT
    )


def answers_mismatch(
    before: pa.Table, after: pa.Table, names: tuple[str, str] = ("first", "second")
) -> str:
    """Why two ``tables.PREDICTION`` tables cannot be compared; empty if they answer the same stays, with the same truth."""
    stays = [
        set(zip(one["stay_id"].to_pylist(), one["prediction_time"].to_pylist(), strict=True))
        for one in (before, after)
    ]
    only = [len(one - other) for one, other in (stays, stays[::-1])]
    if any(only):
        return f"{only[0]} stays are answered only by {names[0]}, {only[1]} only by {names[1]}"
    if len(before) != len(after):
        return f"{len(before)} rows by {names[0]}, {len(after)} by {names[1]} for the same {len(stays[0])} stays"
    first, second = before.sort_by(_KEYS), after.sort_by(_KEYS)
    for column, word in (
        ("subject_id", "subject"),
        ("split", "split"),
        ("label", "true class"),
        ("labels", "set of true classes"),
    ):
        differs = [
            at
            for at, (one, other) in enumerate(
                zip(_told(first, column), _told(second, column), strict=True)
            )
            if one != other
        ]
        if differs:
            return f"{len(differs)} stays have another {word}, the first is stay_id {first['stay_id'][differs[0]].as_py()}"
    return ""


def delong(before: Scores, after: Scores, positive: Flags) -> tuple[float, float, float]:
    """DeLong's test of two AUROCs on the same rows (DeLong, DeLong and Clarke-Pearson 1988), in n log n (Sun and Xu 2014, algorithm 2).

    Args:
        before, after: scores of the same rows, each of shape (n,).
        positive: shape (n,).

    Returns:
        The difference after - before, its standard error and the two-sided p. Where the difference cannot vary, as with equal rankings, the
        standard error is 0 and p is 1 for no difference and 0 for one. All are NaN with fewer than two rows of a class.
    """
    events, others = int(positive.sum()), int((~positive).sum())
    if min(events, others) < 2:
        return (float("nan"),) * 3
    of_positives, of_negatives = zip(
        *(_placements(scores, positive) for scores in (before, after)), strict=True
    )
    difference = float(of_positives[1].mean() - of_positives[0].mean())
    variance = (
        _variance(of_positives[1] - of_positives[0]) / events
        + _variance(of_negatives[1] - of_negatives[0]) / others
    )
    error = float(np.sqrt(variance))
    if not error:
        return difference, 0.0, float(difference == 0)
    return difference, error, float(2 * stats.norm.sf(abs(difference) / error))


def squared_errors(found: Answers) -> Floats:
    """What each stay adds to the Brier score, shape (n,): squared errors of the event, summed over classes, or averaged over labels."""
    errors = (found.scores.astype(np.float64) - found.truth) ** 2
    return _ERRORS[found.kind](errors)


def _compared(
    before: Answers,
    after: Answers,
    question: Question,
    split: str,
    spec: ScoringSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    first, second = board(before, question, split, spec), board(after, question, split, spec)
    kept = [at for at, measure in enumerate(first.measures) if measure.of_model]
    change = squared_errors(after) - squared_errors(before)

    def statistics(counts: NDArray[np.int32]) -> Floats:
        ranked = second.statistics(counts)[kept] - first.statistics(counts)[kept]
        return np.concatenate([ranked, (counts @ change / counts.sum(axis=1))[None]])

    brier = Measure("brier", _BRIER.format(_BRIER_OF[before.kind]))
    differences = tuple(
        _as_difference(measure) for measure in (*(first.measures[at] for at in kept), brier)
    )
    rows = scored(after, Board(differences, statistics), question, split, spec, rng)
    return [*rows, *_TESTS.get(before.kind, _no_test)(before, after, rows[0])]


def _as_difference(measure: Measure) -> Measure:
    definition = (
        f"difference, the second minus the first on the same stays, of: {measure.definition}"
    )
    return Measure(f"{measure.name}_difference", definition, measure.n_events)


def _delong_row(
    before: Answers, after: Answers, like: dict[str, object]
) -> list[dict[str, object]]:
    p = delong(before.scores[:, 1], after.scores[:, 1], after.truth[:, 1])[2]
    unknown = "; unknown: a class has fewer than two stays" if np.isnan(p) else ""
    value = None if unknown else p
    return [
        {
            **like,
            "name": "delong_p",
            "value": value,
            "low": None,
            "high": None,
            "level": None,
            "definition": f"{_DELONG}{unknown}",
        }
    ]


def _no_test(
    _before: Answers, _after: Answers, _like: dict[str, object]
) -> list[dict[str, object]]:
    return []


def _placements(scores: Scores, positive: Flags) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative the share of positives above it, ties counting half."""
    among_all = stats.rankdata(scores)
    events, others = int(positive.sum()), int((~positive).sum())
    below = (among_all[positive] - stats.rankdata(scores[positive])) / others
    above = 1 - (among_all[~positive] - stats.rankdata(scores[~positive])) / events
    return below, above


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1))


def _told(answered: pa.Table, column: str) -> list[Any]:
    """Values as they compare: the order in which a stay's labels are listed says nothing."""
    return [
        sorted(value) if isinstance(value, list) else value
        for value in answered[column].to_pylist()
    ]


_ERRORS: dict[Kind, Callable[[Floats], Floats]] = {
    "binary": lambda errors: errors[:, 1],
    "multiclass": lambda errors: errors.sum(axis=1),
    "multilabel": lambda errors: errors.mean(axis=1),
}
_TESTS: dict[Kind, Callable[[Answers, Answers, dict[str, object]], list[dict[str, object]]]] = {
    "binary": _delong_row
}
