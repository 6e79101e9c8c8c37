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
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA, SPLIT_NAMES, LabelSpace, ProblemType
from clinpeft.evaluation.bootstrap import Float64Array
from clinpeft.evaluation.classification.discrimination import (
    MetricDefinition,
    MetricSet,
    ScoredPredictions,
    build_discrimination_metrics,
    evaluate_metric_set,
    extract_scored_predictions,
)
from clinpeft.evaluation.classification.ranks import BoolArray, ScoreArray
from clinpeft.recipe import ClassificationEvaluationSpec

_ROW_KEYS = [("stay_id", "ascending"), ("prediction_time", "ascending")]

_DELONG_DEFINITION = (
    "two-sided p of the difference of two AUROCs (DeLong 1988, midranks as Sun and Xu 2014); it takes the stays to be independent, "
    "so where subjects repeat read the bootstrap interval of auroc_difference"
)
_BRIER_DEFINITION = (
    "mean over stays of the squared difference of probability and truth: {}; lower is better"
)
_BRIER_BY_KIND = {
    "binary": "of the event",
    "multiclass": "summed over the classes",
    "multilabel": "averaged over the labels",
}


def compare_paired_predictions(
    before: pa.Table,
    after: pa.Table,
    label_space: LabelSpace,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
    names: tuple[str, str] = ("first", "second"),
) -> pa.Table:
    """Every metric of discrimination and the Brier score, after minus before on the same stays, with paired intervals.

    Args:
        before, after: of schema ``tables.PREDICTION``, in any order of rows.
        label_space: that both answer.
        spec: resamples and level.
        rng: for the resamples, which both share.
        names: of the two, for ``group``.

    Returns:
        Of schema ``tables.RESULT``, a row a split and metric, ``auroc_difference`` and so on; a binary question also has ``delong_p``.

    Raises:
        RefusedError: the two did not answer the same stays, or not with the same truth.
        InputError: answers that are none, with their stay_id.
    """
    reason = find_prediction_mismatch(before, after, names)
    if reason:
        hint = "compare models that were asked the same question about the same stays of one cohort"
        raise RefusedError(
            f"not the same question: {reason}", location=" and ".join(names), hint=hint
        )
    first, second = before.sort_by(_ROW_KEYS), after.sort_by(_ROW_KEYS)
    rows: list[dict[str, object]] = []
    for split in (name for name in SPLIT_NAMES if pc.any(pc.equal(first["split"], name)).as_py()):
        rows += _compare_split(
            extract_scored_predictions(first, label_space, split),
            extract_scored_predictions(second, label_space, split),
            label_space,
            split,
            spec,
            rng,
        )
    return pa.Table.from_pylist(
        [{**row, "group": f"{names[1]} - {names[0]}"} for row in rows], schema=METRIC_RESULT_SCHEMA
    )


def find_prediction_mismatch(
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
    first, second = before.sort_by(_ROW_KEYS), after.sort_by(_ROW_KEYS)
    for column, word in (
        ("subject_id", "subject"),
        ("split", "split"),
        ("label", "true class"),
        ("labels", "set of true classes"),
    ):
        differs = [
            at
            for at, (one, other) in enumerate(
                zip(
                    _get_comparable_values(first, column),
                    _get_comparable_values(second, column),
                    strict=True,
                )
            )
            if one != other
        ]
        if differs:
            return f"{len(differs)} stays have another {word}, the first is stay_id {first['stay_id'][differs[0]].as_py()}"
    return ""


def delong_test(
    before: ScoreArray, after: ScoreArray, is_positive: BoolArray
) -> tuple[float, float, float]:
    """DeLong's test of two AUROCs on the same rows (DeLong, DeLong and Clarke-Pearson 1988), in n log n (Sun and Xu 2014, algorithm 2).

    Args:
        before, after: scores of the same rows, each of shape (n,).
        is_positive: shape (n,).

    Returns:
        The difference after - before, its standard error and the two-sided p. Where the difference cannot vary, as with equal rankings, the
        standard error is 0 and p is 1 for no difference and 0 for one. All are NaN with fewer than two rows of a class.
    """
    events, others = int(is_positive.sum()), int((~is_positive).sum())
    if min(events, others) < 2:
        return (float("nan"),) * 3
    of_positives, of_negatives = zip(
        *(_compute_placements(scores, is_positive) for scores in (before, after)), strict=True
    )
    difference = float(of_positives[1].mean() - of_positives[0].mean())
    variance = (
        _compute_variance(of_positives[1] - of_positives[0]) / events
        + _compute_variance(of_negatives[1] - of_negatives[0]) / others
    )
    error = float(np.sqrt(variance))
    if not error:
        return difference, 0.0, float(difference == 0)
    return difference, error, float(2 * stats.norm.sf(abs(difference) / error))


def compute_squared_errors(predictions: ScoredPredictions) -> Float64Array:
    """What each stay adds to the Brier score, shape (n,): squared errors of the event, summed over classes, or averaged over labels."""
    errors = (predictions.scores.astype(np.float64) - predictions.truth) ** 2
    return _SQUARED_ERROR_REDUCTIONS[predictions.kind](errors)


def _compare_split(
    before: ScoredPredictions,
    after: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    first, second = (
        build_discrimination_metrics(before, label_space, split, spec),
        build_discrimination_metrics(after, label_space, split, spec),
    )
    kept = [at for at, measure in enumerate(first.metrics) if measure.depends_on_model]
    change = compute_squared_errors(after) - compute_squared_errors(before)

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        ranked = second.compute_values(counts)[kept] - first.compute_values(counts)[kept]
        return np.concatenate([ranked, (counts @ change / counts.sum(axis=1))[None]])

    brier = MetricDefinition("brier", _BRIER_DEFINITION.format(_BRIER_BY_KIND[before.kind]))
    differences = tuple(
        _as_difference_metric(measure) for measure in (*(first.metrics[at] for at in kept), brier)
    )
    rows = evaluate_metric_set(
        after, MetricSet(differences, statistics), label_space, split, spec, rng
    )
    return [*rows, *_PAIRED_TESTS.get(before.kind, _skip_test)(before, after, rows[0])]


def _as_difference_metric(metric: MetricDefinition) -> MetricDefinition:
    definition = (
        f"difference, the second minus the first on the same stays, of: {metric.definition}"
    )
    return MetricDefinition(f"{metric.name}_difference", definition, metric.n_events)


def _build_delong_rows(
    before: ScoredPredictions, after: ScoredPredictions, template_row: dict[str, object]
) -> list[dict[str, object]]:
    p = delong_test(before.scores[:, 1], after.scores[:, 1], after.truth[:, 1])[2]
    unknown = "; unknown: a class has fewer than two stays" if np.isnan(p) else ""
    value = None if unknown else p
    return [
        {
            **template_row,
            "name": "delong_p",
            "value": value,
            "low": None,
            "high": None,
            "level": None,
            "definition": f"{_DELONG_DEFINITION}{unknown}",
        }
    ]


def _skip_test(
    _before: ScoredPredictions, _after: ScoredPredictions, _template_row: dict[str, object]
) -> list[dict[str, object]]:
    return []


def _compute_placements(
    scores: ScoreArray, is_positive: BoolArray
) -> tuple[Float64Array, Float64Array]:
    """For each positive the share of negatives below it, for each negative the share of positives above it, ties counting half."""
    among_all = stats.rankdata(scores)
    events, others = int(is_positive.sum()), int((~is_positive).sum())
    below = (among_all[is_positive] - stats.rankdata(scores[is_positive])) / others
    above = 1 - (among_all[~is_positive] - stats.rankdata(scores[~is_positive])) / events
    return below, above


def _compute_variance(values: Float64Array) -> float:
    return float(values.var(ddof=1))


def _get_comparable_values(predictions: pa.Table, column: str) -> list[Any]:
    """Values as they compare: the order in which a stay's labels are listed says nothing."""
    return [
        sorted(value) if isinstance(value, list) else value
        for value in predictions[column].to_pylist()
    ]


_SQUARED_ERROR_REDUCTIONS: dict[ProblemType, Callable[[Float64Array], Float64Array]] = {
    "binary": lambda errors: errors[:, 1],
    "multiclass": lambda errors: errors.sum(axis=1),
    "multilabel": lambda errors: errors.mean(axis=1),
}
_PAIRED_TESTS: dict[
    ProblemType,
    Callable[[ScoredPredictions, ScoredPredictions, dict[str, object]], list[dict[str, object]]],
] = {"binary": _build_delong_rows}
