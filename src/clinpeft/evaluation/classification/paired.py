"""Two models on the same stays: differences of metrics with paired intervals, and DeLong's test.

The difference of two AUROCs varies far less from sample to sample than either, because stays that
are hard for one model are hard for the other. A resample draws subjects for both models at once;
comparing two separate intervals would miss most of what the sample can show.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from clinpeft.core.errors import RefusedError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA, SPLIT_NAMES, LabelSpace, ProblemType
from clinpeft.evaluation.arrays import BoolArray, Float64Array, ScoreArray
from clinpeft.evaluation.classification.discrimination import build_discrimination_metrics
from clinpeft.evaluation.classification.metric_set import (
    MetricDefinition,
    MetricSet,
    evaluate_metric_set,
)
from clinpeft.evaluation.classification.scored_predictions import (
    ScoredPredictions,
    extract_scored_predictions,
)
from clinpeft.recipe import ClassificationEvaluationSpec

_ROW_KEYS = [("stay_id", "ascending"), ("prediction_time", "ascending")]

_DELONG_DEFINITION = (
    "two-sided p of the difference of two AUROCs "
    "(DeLong 1988, midranks as Sun and Xu 2014); it takes the stays to be independent, "
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
    """Compare two models: every discrimination metric and the Brier score, after minus before.

    Averaging, absent classes and ties are those of each metric (``build_discrimination_metrics``,
    ``compute_squared_errors``); intervals by bootstrap over subjects, drawn for both models at
    once.

    Args:
        before, after: of schema ``PREDICTION_SCHEMA``, in any order of rows.
        label_space: that both predict.
        spec: resamples and level.
        rng: source of the resamples.
        names: of the two, for ``group``.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``, a row a split and metric, ``auroc_difference`` and so
        on; a binary task also has ``delong_p``.

    Raises:
        RefusedError: the two did not predict the same stays, or not with the same truth.
        InputError: invalid predictions, with their stay_id.
    """
    reason = find_prediction_mismatch(before, after, names)
    if reason:
        raise RefusedError(
            f"not the same question: {reason}",
            location=" and ".join(names),
            hint="compare models of the same task on the same stays of one cohort",
        )
    first, second = before.sort_by(_ROW_KEYS), after.sort_by(_ROW_KEYS)
    rows: list[dict[str, object]] = []
    for split in (name for name in SPLIT_NAMES if pc.any(pc.equal(first["split"], name)).as_py()):
        pair = (
            extract_scored_predictions(first, label_space, split),
            extract_scored_predictions(second, label_space, split),
        )
        rows += _compare_split(*pair, label_space, split, spec, rng)
    group = f"{names[1]} - {names[0]}"
    return pa.Table.from_pylist(
        [{**row, "group": group} for row in rows], schema=METRIC_RESULT_SCHEMA
    )


def find_prediction_mismatch(
    before: pa.Table, after: pa.Table, names: tuple[str, str] = ("first", "second")
) -> str:
    """Say why two tables of predictions cannot be compared.

    Args:
        before, after: of schema ``PREDICTION_SCHEMA``, in any order of rows.
        names: of the two, for the reason.

    Returns:
        The reason; empty if both predict the same stays at the same times, with the same truth.
    """
    # A stay can be predicted at several times, so that both identify a row.
    stays = [
        set(zip(table["stay_id"].to_pylist(), table["prediction_time"].to_pylist(), strict=True))
        for table in (before, after)
    ]
    only_before, only_after = len(stays[0] - stays[1]), len(stays[1] - stays[0])
    if only_before or only_after:
        return (
            f"{only_before} stays are answered only by {names[0]}, {only_after} only by {names[1]}"
        )
    if len(before) != len(after):
        return (
            f"{len(before)} rows by {names[0]}, {len(after)} by {names[1]} "
            f"for the same {len(stays[0])} stays"
        )
    first, second = before.sort_by(_ROW_KEYS), after.sort_by(_ROW_KEYS)
    for column, noun in {
        "subject_id": "subject",
        "split": "split",
        "label": "true class",
        "labels": "set of true classes",
    }.items():
        # The order in which the labels of a stay are listed carries no meaning.
        values = [
            [
                sorted(value) if isinstance(value, list) else value
                for value in table[column].to_pylist()
            ]
            for table in (first, second)
        ]
        pairs = enumerate(zip(*values, strict=True))
        differing = [row for row, (value, other) in pairs if value != other]
        if differing:
            stay_id = first["stay_id"][differing[0]].as_py()
            return f"{len(differing)} stays have another {noun}, the first is stay_id {stay_id}"
    return ""


def delong_test(
    before: ScoreArray, after: ScoreArray, is_positive: BoolArray
) -> tuple[float, float, float]:
    """Test the difference of two AUROCs on the same rows.

    DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44), with midranks in
    n log n (Sun and Xu 2014, algorithm 2). Ties count half. Rows are taken to be independent.

    Args:
        before, after: scores of the same rows, each of shape (n,).
        is_positive: shape (n,).

    Returns:
        The difference after - before, its standard error and the two-sided p. Where the difference
        cannot vary, as with equal rankings, the standard error is 0, and p is 1 for no difference
        and 0 for one. All are NaN with fewer than two rows of a class.
    """
    # m and n of DeLong et al. 1988.
    events, others = int(is_positive.sum()), int((~is_positive).sum())
    if min(events, others) < 2:
        return (float("nan"),) * 3
    below, above = [], []
    for scores in (before, after):
        # The placement values V10 and V01: for each positive the share of negatives below it, for
        # each negative the share of positives above it. rankdata gives midranks, ties half.
        ranks = stats.rankdata(scores)
        below.append((ranks[is_positive] - stats.rankdata(scores[is_positive])) / others)
        above.append(1 - (ranks[~is_positive] - stats.rankdata(scores[~is_positive])) / events)
    # The mean of the placement values is the AUROC itself.
    difference = float(below[1].mean() - below[0].mean())
    # S10 / m + S01 / n for the contrast (-1, 1).
    variance = (
        float((below[1] - below[0]).var(ddof=1)) / events
        + float((above[1] - above[0]).var(ddof=1)) / others
    )
    error = float(np.sqrt(variance))
    if not error:
        return difference, 0.0, float(difference == 0)
    return difference, error, float(2 * stats.norm.sf(abs(difference) / error))


def compute_squared_errors(predictions: ScoredPredictions) -> Float64Array:
    """Compute the contribution of each stay to the Brier score (Brier 1950), shape (n,).

    Binary: the squared error of the event. Multiclass: summed over the classes, so that the score
    lies between 0 and 2. Multilabel: averaged over the labels. Absent classes count as any other.
    """
    errors = (predictions.scores.astype(np.float64) - predictions.truth) ** 2  # (n, K)
    return reduce_brier_terms(errors, predictions.kind)


def reduce_brier_terms(terms: Float64Array, kind: ProblemType) -> Float64Array:
    """Reduce a term a class to one a row as the Brier score does, (rows, K) to (rows,)."""
    if kind == "binary":
        return terms[:, 1]
    reduced: Float64Array = terms.sum(axis=1) if kind == "multiclass" else terms.mean(axis=1)
    return reduced


def _compare_split(
    before: ScoredPredictions,
    after: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    first = build_discrimination_metrics(before, label_space, split, spec)
    second = build_discrimination_metrics(after, label_space, split, spec)
    # The prevalence is the same for both models, and so has no difference.
    compared = [index for index, metric in enumerate(first.metrics) if metric.depends_on_model]
    error_change = compute_squared_errors(after) - compute_squared_errors(before)  # (n,)

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        change = second.compute_values(counts)[compared] - first.compute_values(counts)[compared]
        brier_change = counts @ error_change / counts.sum(axis=1)
        return np.concatenate([change, brier_change[None]])

    brier = MetricDefinition("brier", _BRIER_DEFINITION.format(_BRIER_BY_KIND[before.kind]))
    differences = tuple(
        MetricDefinition(
            f"{metric.name}_difference",
            "difference, the second minus the first on the same stays, of: " + metric.definition,
            metric.n_events,
        )
        for metric in (*(first.metrics[index] for index in compared), brier)
    )
    metric_set = MetricSet(differences, compute_values)
    rows = evaluate_metric_set(after, metric_set, label_space, split, spec, rng)
    if before.kind != "binary":
        return rows
    p = delong_test(before.scores[:, 1], after.scores[:, 1], after.truth[:, 1])[2]
    # With a single stay of a class the variance of its placement values is undefined.
    unknown = "; unknown: a class has fewer than two stays" if np.isnan(p) else ""
    delong = {
        "name": "delong_p",
        "value": None if unknown else p,
        "low": None,
        "high": None,
        "level": None,
        "definition": f"{_DELONG_DEFINITION}{unknown}",
    }
    return [*rows, rows[0] | delong]
