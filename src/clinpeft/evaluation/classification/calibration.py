"""Calibration: whether of those who were told 20 % one in five had it.

A question is read as events: the one of a binary question, each class against the rest of a multiclass one, every pair of a stay and a label of a
multilabel one together. What is measured are sums over stays, so that a resample is one product of a matrix. The two regressions are fitted to the
sample; a resample takes one Newton step from there (Moulton and Zeger 1991, Bootstrapping generalized linear models), which also needs sums only.

Measures as in Van Calster et al. 2025 (arXiv 2412.10288), who want the curve first and the expected calibration error last. 95 % intervals of slope,
intercept and O:E held the truth in about 96 % of 400 simulated samples of 250 subjects of one to four stays, and in 92 to 93 % of samples of 60.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from clinpeft.core.schemas import LabelSpace, ProblemType
from clinpeft.evaluation.bootstrap import Float64Array, Int64Array
from clinpeft.evaluation.classification.discrimination import (
    MetricDefinition,
    MetricSet,
    ScoredPredictions,
)
from clinpeft.evaluation.classification.logistic import fit_logistic_regression, fit_logistic_spline
from clinpeft.evaluation.classification.paired import compute_squared_errors
from clinpeft.evaluation.classification.ranks import BoolArray, ScoreArray
from clinpeft.recipe import ClassificationEvaluationSpec

PROBABILITY_CLIP = 1e-6
"""Probabilities come no closer to 0 and 1 than this where their logit is taken."""

CALIBRATION_BINS = 10

SMOOTH_CURVE_POINTS = 25

_BRIER_DEFINITION = (
    "mean over stays of the squared difference of probability and truth, {}; 0 is best"
)
_BRIER_BY_KIND = {
    "binary": "of the event",
    "multiclass": "summed over the classes (Brier 1950)",
    "multilabel": "averaged over the labels",
}
_SCALED_BRIER_DEFINITION = "1 - Brier score / Brier score of answering every stay with the prevalences of this split; 1 is best, 0 no better than the prevalence"
_CLIP_REMARK = f"probabilities clipped to [{PROBABILITY_CLIP:g}, 1 - {PROBABILITY_CLIP:g}]; resamples take one Newton step from the fit"
_ECE_DEFINITION = f"expected calibration error, secondary: mean absolute difference of observed and predicted in {CALIBRATION_BINS} bins of equal count, equal p together"
_CALIBRATION_DEFINITIONS = (
    (
        "calibration_intercept",
        f"calibration in the large: intercept of a logistic regression with logit(p) as offset; 0 is ideal; {_CLIP_REMARK}",
    ),
    (
        "calibration_slope",
        f"slope of a logistic regression on logit(p); 1 is ideal, below 1 probabilities are too extreme; {_CLIP_REMARK}",
    ),
    ("observed_expected", "observed events / summed probabilities (O:E); 1 is ideal"),
    (
        "ece",
        f"{_ECE_DEFINITION}; never below 0, so chance alone raises it, and resamples more than the sample: its interval lies too high",
    ),
)

SumsFunction = Callable[[Float64Array], Float64Array]


@dataclass(frozen=True)
class BinaryTarget:
    """Something that happens or does not, k times a stay.

    Attributes:
        group_suffix: end of a group's name: empty, or `` · class``.
        positive_label, negative_label: what the two true classes are called.
        scores: probabilities that it happens, shape (n, k).
        truth: whether it did, shape (n, k).
    """

    group_suffix: str
    positive_label: str
    negative_label: str
    scores: ScoreArray
    truth: BoolArray


def build_binary_targets(
    predictions: ScoredPredictions, label_space: LabelSpace
) -> list[BinaryTarget]:
    """The answers as events: one, each class against the rest, or all labels pooled."""
    return _TARGET_BUILDERS[predictions.kind](predictions, label_space)


def select_curve_targets(
    predictions: ScoredPredictions, label_space: LabelSpace, smallest_cell: int
) -> list[BinaryTarget]:
    """Those that have a curve: of a multiclass question only classes that enough subjects have; none where the split itself has too few."""
    if len(np.unique(predictions.subjects)) < max(smallest_cell, 1):
        return []
    each = build_binary_targets(predictions, label_space)
    return (
        each
        if len(each) == 1
        else [
            one
            for one in each
            if len(np.unique(predictions.subjects[one.truth[:, 0]])) >= smallest_cell
        ]
    )


def build_calibration_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    """Brier score plain and scaled, calibration intercept and slope, O:E and expected calibration error, as ``discrimination.scored`` takes them."""
    each = build_binary_targets(predictions, label_space)
    parts = [_compute_stay_terms(one) for one in each]
    of_stays = np.concatenate([terms for terms, _ in parts], axis=1)
    places = np.cumsum([0, *(terms.shape[1] for terms, _ in parts)])
    brier = _build_brier_function(predictions)

    def by_event(counts: NDArray[np.int32]) -> Float64Array:
        sums = counts @ of_stays
        return np.stack(
            [number(sums[:, places[at] : places[at + 1]]) for at, (_, number) in enumerate(parts)]
        )  # (events, 4, resamples)

    once = np.ones((1, len(predictions.subjects)), np.int32)
    defined = ~np.isnan(by_event(once)[:, :, 0])
    happened = count_positives(predictions)
    told = (
        MetricDefinition(
            "brier", _BRIER_DEFINITION.format(_BRIER_BY_KIND[predictions.kind]), happened
        ),
        MetricDefinition(
            "brier_scaled",
            f"{_SCALED_BRIER_DEFINITION}{_describe_uniform_truth(predictions)}",
            happened,
        ),
    )
    numbers = [
        MetricDefinition(
            name, f"{text}; {describe_averaging(label_space, each, defined[:, at], name)}", happened
        )
        for at, (name, text) in enumerate(_CALIBRATION_DEFINITIONS)
    ]
    measures = explain_missing_stays((*told, *numbers), predictions, split)
    return MetricSet(
        measures,
        lambda counts: np.concatenate([brier(counts), average_over_targets(by_event(counts))]),
    )


def compute_calibration_curve(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> list[dict[str, object]]:
    """Predicted against observed in up to ten bins of equal count, each of at least ``spec.smallest_cell`` subjects.

    A bin with fewer subjects is joined with the next. The interval is Wilson's (1927) with the effective sample size of clustered stays: n over the
    design effect, and the number of subjects where all or none had the event.

    Returns:
        Rows of ``tables.CURVE`` named ``calibration``: x mean probability, y share observed, n stays (multilabel: stays times labels).
    """
    rows: list[dict[str, object]] = []
    for event in select_curve_targets(predictions, label_space, spec.smallest_cell):
        for cells, positives, expected in _sum_bins_by_subject(
            event, predictions.subjects, spec.smallest_cell
        ):
            total = float(cells.sum())
            low, high = _compute_wilson_interval(cells, positives, spec.level)
            point = {
                "x": float(expected.sum() / total),
                "y": float(positives.sum() / total),
                "low": low,
                "high": high,
                "n": int(total),
            }
            rows.append(
                {
                    "name": "calibration",
                    "task": label_space.name,
                    "group": f"model{event.group_suffix}",
                    "split": split,
                    **point,
                }
            )
    return rows


def compute_smooth_calibration_curve(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> list[dict[str, object]]:
    """The flexible calibration curve: a logistic regression on a restricted cubic spline of logit(p), from the 1st to the 99th percentile of p.

    Nothing where fewer than ``spec.smallest_cell`` subjects had the event or had not, where p takes few values, or separates the two.

    Returns:
        Rows of ``tables.CURVE`` named ``calibration_smooth``, intervals by the sandwich variance over subjects.
    """
    rows: list[dict[str, object]] = []
    for event in select_curve_targets(predictions, label_space, spec.smallest_cell):
        if min(
            len(np.unique(predictions.subjects[one.any(axis=1)]))
            for one in (event.truth, ~event.truth)
        ) < max(spec.smallest_cell, 1):
            continue
        x, happened = compute_clipped_logits(event.scores).ravel(), event.truth.ravel()
        points = np.linspace(np.quantile(x, 0.01), np.quantile(x, 0.99), SMOOTH_CURVE_POINTS)
        curve = fit_logistic_spline(
            x, happened, np.repeat(predictions.subjects, event.truth.shape[1]), points, spec.level
        )
        if curve is None:
            continue
        same = {
            "name": "calibration_smooth",
            "task": label_space.name,
            "group": f"model{event.group_suffix}",
            "split": split,
            "n": len(x),
        }
        lines = np.stack([special.expit(points), *curve], axis=1).tolist()
        rows += [{**same, "x": p, "y": y, "low": low, "high": high} for p, y, low, high in lines]
    return rows


def compute_clipped_logits(probabilities: ScoreArray) -> Float64Array:
    """log(p / (1 - p)) of clipped probabilities."""
    found: Float64Array = special.logit(
        np.clip(probabilities.astype(np.float64), PROBABILITY_CLIP, 1 - PROBABILITY_CLIP)
    )
    return found


def count_positives(predictions: ScoredPredictions) -> int | None:
    """Positives that a number rests on: of the event, of all labels together, None where one of several classes is asked."""
    counted = {"binary": predictions.truth[:, 1:].sum(), "multilabel": predictions.truth.sum()}
    return int(counted[predictions.kind]) if predictions.kind in counted else None


def describe_averaging(
    label_space: LabelSpace,
    targets: Sequence[BinaryTarget],
    is_defined: BoolArray,
    metric_name: str,
) -> str:
    """How a number comes from events, and where it does not, why."""
    reason = "" if is_defined.any() else f"; unknown: {_explain_undefined(targets, metric_name)}"
    if len(targets) > 1:
        return f"unweighted mean over the {int(is_defined.sum())} of {len(targets)} classes that define it, each against the rest{reason}"
    over = (
        f"of the event {targets[0].positive_label!r}"
        if label_space.kind == "binary"
        else f"over all pairs of a stay and one of {len(label_space.classes)} labels pooled"
    )
    return f"{over}{reason}"


def explain_missing_stays(
    metrics: Sequence[MetricDefinition], predictions: ScoredPredictions, split: str
) -> tuple[MetricDefinition, ...]:
    """The measures; where nobody was asked they say so."""
    if len(predictions.subjects):
        return tuple(metrics)
    return tuple(
        replace(
            one,
            definition=f"{one.definition.partition('; unknown')[0]}; unknown: the split {split} has no stay",
        )
        for one in metrics
    )


def average_over_targets(values: Float64Array) -> Float64Array:
    """Over the first axis, NaN left out; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return _divide_or_nan(
        np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64)
    )


def assign_equal_count_bins(values: ScoreArray, bin_count: int) -> Int64Array:
    """The bin of each value, equal values together, shape as given; bins that ties leave empty are skipped over."""
    if not values.size:
        return np.zeros(values.shape, np.int64)
    edges = np.quantile(values.astype(np.float64), np.arange(1, bin_count) / bin_count)
    return np.searchsorted(edges, values.astype(np.float64), side="left")


def _build_binary_target(
    predictions: ScoredPredictions, label_space: LabelSpace
) -> list[BinaryTarget]:
    other, happened = label_space.classes
    return [BinaryTarget("", happened, other, predictions.scores[:, 1:], predictions.truth[:, 1:])]


def _build_multiclass_targets(
    predictions: ScoredPredictions, label_space: LabelSpace
) -> list[BinaryTarget]:
    columns = [(name, slice(at, at + 1)) for at, name in enumerate(label_space.classes)]
    return [
        BinaryTarget(
            f" · {name}", name, f"not {name}", predictions.scores[:, at], predictions.truth[:, at]
        )
        for name, at in columns
    ]


def _build_multilabel_target(predictions: ScoredPredictions, _: LabelSpace) -> list[BinaryTarget]:
    return [
        BinaryTarget(
            "", "labels that apply", "labels that do not", predictions.scores, predictions.truth
        )
    ]


def _compute_stay_terms(target: BinaryTarget) -> tuple[Float64Array, SumsFunction]:
    """What every stay adds, shape (n, c), and how its sums, shape (resamples, c), become the four numbers, shape (4, resamples)."""
    x, happened = compute_clipped_logits(target.scores), target.truth
    intercept, _ = fit_logistic_regression(x.ravel(), happened.ravel(), fit_slope=False)
    at = fit_logistic_regression(x.ravel(), happened.ravel(), fit_slope=True)
    bins = assign_equal_count_bins(target.scores, CALIBRATION_BINS)
    residual: Float64Array = happened - target.scores.astype(np.float64)
    columns = [
        np.full(len(x), float(x.shape[1])),
        happened.sum(axis=1),
        target.scores.sum(axis=1, dtype=np.float64),
        *_compute_score_and_information(x, happened, intercept, 1.0)[::2],
        *_compute_score_and_information(x, happened, *at),
        *(np.where(bins == one, residual, 0.0).sum(axis=1) for one in range(CALIBRATION_BINS)),
    ]
    terms = np.nan_to_num(
        np.stack(columns, axis=1).astype(np.float64)
    )  # NaN only where there is no fit, whose numbers stay NaN
    return terms, lambda sums: _compute_calibration_numbers(sums, intercept, at[1])


def _compute_score_and_information(
    x: Float64Array, is_event: BoolArray, intercept: float, slope: float
) -> list[Float64Array]:
    """Derivatives of the log-likelihood of each stay, in an order such that every second one is that of the intercept alone.

    Score of the intercept, of the slope; information of the intercept, of both, of the slope: (n,) each.
    """
    p: Float64Array = special.expit(intercept + slope * x)
    missed, spread = is_event - p, p * (1 - p)
    return [one.sum(axis=1) for one in (missed, missed * x, spread, spread * x, spread * x * x)]


def _compute_calibration_numbers(
    sums: Float64Array, intercept: float, slope: float
) -> Float64Array:
    cells, happened, expected, score, information, _, *joint = sums.T
    first, second, ii, ib, bb = joint[:5]
    both = (happened > 0) & (happened < cells)
    moved = intercept + _divide_or_nan(score, information)
    steeper = slope + _divide_or_nan(ii * second - ib * first, ii * bb - ib * ib)
    numbers = [
        np.where(both, moved, np.nan),
        np.where(both, steeper, np.nan),
        _divide_or_nan(happened, expected),
    ]
    return np.stack([*numbers, _divide_or_nan(np.abs(np.stack(joint[5:])).sum(axis=0), cells)])


def _build_brier_function(
    predictions: ScoredPredictions,
) -> Callable[[NDArray[np.int32]], Float64Array]:
    """Brier score and scaled Brier score of resamples, shape (2, resamples)."""
    errors, truth = compute_squared_errors(predictions), predictions.truth.astype(np.float32)
    combined = _PREVALENCE_BRIER_REDUCTIONS[predictions.kind]

    def of_resamples(counts: NDArray[np.int32]) -> Float64Array:
        stays = counts.sum(axis=1).astype(np.float64)
        brier = _divide_or_nan(counts @ errors, stays)
        positives = (counts.astype(np.float32) @ truth).astype(np.float64)
        prevalence = _divide_or_nan(positives, np.broadcast_to(stays[:, None], positives.shape))
        return np.stack([brier, 1 - _divide_or_nan(brier, combined(prevalence * (1 - prevalence)))])

    return of_resamples


def _describe_uniform_truth(predictions: ScoredPredictions) -> str:
    same = (predictions.truth == predictions.truth[:1]).all()
    return (
        "; unknown: all stays have the same answer, which the prevalence gets right"
        if len(predictions.truth) and same
        else ""
    )


def _explain_undefined(targets: Sequence[BinaryTarget], metric_name: str) -> str:
    if all(not one.truth.any() for one in targets):
        return "no stay has the event"
    if all(one.truth.all() or not one.truth.any() for one in targets):
        return "every stay has the event" if len(targets) == 1 else "all stays have the same class"
    if metric_name == "calibration_slope":
        return "the probabilities do not vary, or separate the classes"
    return "the probabilities are all 0"


def _sum_bins_by_subject(
    target: BinaryTarget, subjects: Int64Array, min_subjects: int
) -> list[tuple[Float64Array, Float64Array, Float64Array]]:
    """For each bin: cells, positives and summed probabilities of every subject in it."""
    _, subject = np.unique(subjects, return_inverse=True)
    people = int(subject.max()) + 1
    location = (
        subject[:, None] * CALIBRATION_BINS
        + assign_equal_count_bins(target.scores, CALIBRATION_BINS)
    ).ravel()
    columns = (
        None,
        target.truth.ravel().astype(np.float64),
        target.scores.ravel().astype(np.float64),
    )
    sums = [
        np.bincount(location, weights=one, minlength=people * CALIBRATION_BINS)
        .reshape(people, CALIBRATION_BINS)
        .astype(np.float64)
        for one in columns
    ]
    found = []
    for bins in _merge_sparse_bins(sums[0] > 0, min_subjects):
        inside = [one[:, bins].sum(axis=1) for one in sums]
        there = inside[0] > 0
        found.append((inside[0][there], inside[1][there], inside[2][there]))
    return found


def _merge_sparse_bins(has_cells: BoolArray, min_subjects: int) -> list[list[int]]:
    """Neighbouring bins joined until each has enough subjects; ``has_cells`` is of shape (subjects, bins)."""
    joined: list[list[int]] = []
    waiting: list[int] = []
    for at in range(has_cells.shape[1]):
        waiting = [*waiting, at]
        if has_cells[:, waiting].any(axis=1).sum() >= max(min_subjects, 1):
            joined, waiting = [*joined, waiting], []
    if joined and waiting:
        joined[-1] = [*joined[-1], *waiting]
    return joined


def _compute_wilson_interval(
    cells: Float64Array, positives: Float64Array, level: float
) -> tuple[float, float]:
    total, subjects = float(cells.sum()), len(cells)
    share = float(positives.sum() / total)
    spread = (
        float(((positives - share * cells) ** 2).sum()) * subjects / max(subjects - 1, 1) / total**2
    )
    size = float(subjects) if spread == 0 else min(share * (1 - share) / spread, total)
    z = float(stats.norm.ppf((1 + level) / 2))
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = (
        z
        / (1 + z * z / size)
        * float(np.sqrt(share * (1 - share) / size + z * z / (4 * size * size)))
    )
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _divide_or_nan(numerators: Float64Array, denominators: Float64Array) -> Float64Array:
    shares: Float64Array = np.divide(
        numerators, denominators, out=np.full(np.shape(numerators), np.nan), where=denominators > 0
    )
    return shares


_TARGET_BUILDERS: dict[
    ProblemType, Callable[[ScoredPredictions, LabelSpace], list[BinaryTarget]]
] = {
    "binary": _build_binary_target,
    "multiclass": _build_multiclass_targets,
    "multilabel": _build_multilabel_target,
}
_PREVALENCE_BRIER_REDUCTIONS: dict[ProblemType, Callable[[Float64Array], Float64Array]] = {
    "binary": lambda spread: spread[:, 1],
    "multiclass": lambda spread: spread.sum(axis=1),
    "multilabel": lambda spread: spread.mean(axis=1),
}
