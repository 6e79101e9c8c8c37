"""Calibration: whether predicted probabilities agree with observed frequencies.

Every task is reduced to binary targets: the event of a binary task, each class against the rest of
a multiclass one, all pairs of a stay and a label of a multilabel one together. All metrics are
functions of sums over stays, so that a resample is one matrix product. The two regressions are
fitted to the sample; a resample takes one Newton step from that fit (Moulton and Zeger 1991,
Bootstrapping generalized linear models), which needs sums only.

Metrics as in Van Calster et al. 2025 (arXiv 2412.10288), who recommend the curve first and the
expected calibration error last. 95 % intervals of slope, intercept and O:E covered the truth in
about 96 % of 400 simulated samples of 250 subjects with one to four stays, and in 92 to 93 % of
samples of 60.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.arrays import (
    BoolArray,
    Float64Array,
    Int64Array,
    ScoreArray,
    average_defined,
    divide_or_nan,
)
from clinpeft.evaluation.bootstrap import RowStatistics
from clinpeft.evaluation.classification.logistic import fit_logistic_regression, fit_logistic_spline
from clinpeft.evaluation.classification.metric_set import MetricDefinition, MetricSet
from clinpeft.evaluation.classification.paired import compute_squared_errors, reduce_brier_terms
from clinpeft.evaluation.classification.scored_predictions import ScoredPredictions
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
_SCALED_BRIER_DEFINITION = (
    "1 - Brier score / Brier score of answering every stay with the prevalences of this split; "
    "1 is best, 0 no better than the prevalence"
)
_CLIP_REMARK = (
    f"probabilities clipped to [{PROBABILITY_CLIP:g}, 1 - {PROBABILITY_CLIP:g}]; "
    "resamples take one Newton step from the fit"
)
_CALIBRATION_DEFINITIONS = {
    "calibration_intercept": (
        "calibration in the large: intercept of a logistic regression with logit(p) as offset; "
        f"0 is ideal; {_CLIP_REMARK}"
    ),
    "calibration_slope": (
        "slope of a logistic regression on logit(p); 1 is ideal, "
        f"below 1 probabilities are too extreme; {_CLIP_REMARK}"
    ),
    "observed_expected": "observed events / summed probabilities (O:E); 1 is ideal",
    "ece": (
        "expected calibration error, secondary: mean absolute difference of observed and predicted "
        f"in {CALIBRATION_BINS} bins of equal count, equal p together; never below 0, so chance "
        "alone raises it, and resamples more than the sample: its interval lies too high"
    ),
}

SumsFunction = Callable[[Float64Array], Float64Array]
"""Sums over stays, shape (resamples, terms), to numbers, shape (numbers, resamples)."""


@dataclass(frozen=True)
class BinaryTarget:
    """One binary outcome with its probabilities, k times a stay.

    Attributes:
        group_suffix: end of a group's name: empty, or `` · class``.
        positive_label, negative_label: names of the two true classes.
        scores: probabilities of the outcome, shape (n, k).
        truth: whether it occurred, shape (n, k).
    """

    group_suffix: str
    positive_label: str
    negative_label: str
    scores: ScoreArray
    truth: BoolArray


def build_binary_targets(
    predictions: ScoredPredictions, label_space: LabelSpace
) -> list[BinaryTarget]:
    """Reduce predictions to binary targets.

    Returns:
        Binary: the event, k = 1. Multiclass: each class against the rest, k = 1. Multilabel: all
        labels pooled, k = K.
    """
    scores, truth = predictions.scores, predictions.truth
    if predictions.kind == "multilabel":
        return [BinaryTarget("", "labels that apply", "labels that do not", scores, truth)]
    if predictions.kind == "binary":
        negative, positive = label_space.classes
        return [BinaryTarget("", positive, negative, scores[:, 1:], truth[:, 1:])]
    # A slice keeps the column two-dimensional: (n, 1).
    return [
        BinaryTarget(
            f" · {name}", name, f"not {name}", scores[:, at : at + 1], truth[:, at : at + 1]
        )
        for at, name in enumerate(label_space.classes)
    ]


def select_curve_targets(
    predictions: ScoredPredictions, label_space: LabelSpace, smallest_cell: int
) -> list[BinaryTarget]:
    """Select the binary targets that get a curve.

    Returns:
        None where the split has fewer than ``smallest_cell`` subjects; of a multiclass task only
        classes that at least so many subjects have.
    """
    if len(np.unique(predictions.subjects)) < max(smallest_cell, 1):
        return []
    targets = build_binary_targets(predictions, label_space)
    if len(targets) == 1:
        return targets
    return [
        target
        for target in targets
        if len(np.unique(predictions.subjects[target.truth[:, 0]])) >= smallest_cell
    ]


def build_calibration_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    """Define the calibration metrics of predictions.

    ``brier`` (Brier 1950; Steyerberg et al. 2010, Epidemiology 21), ``brier_scaled`` (1 - Brier /
    Brier of the prevalences), ``calibration_intercept`` and ``calibration_slope`` (Cox 1958),
    ``observed_expected``, and ``ece`` (Naeini, Cooper and Hauskrecht 2015, with bins of equal count
    and equal probabilities in one bin). Multiclass values are unweighted means over the classes
    that define them, each against the rest; multilabel values pool all pairs of stay and label.
    """
    targets = build_binary_targets(predictions, label_space)
    fits = [_fit_calibration(target) for target in targets]
    stay_terms = np.concatenate([terms for terms, _ in fits], axis=1)  # (n, targets · terms)
    limits = np.cumsum([0, *(terms.shape[1] for terms, _ in fits)])
    compute_brier = _build_brier_function(predictions)

    def compute_by_target(counts: NDArray[np.int32]) -> Float64Array:
        sums = counts @ stay_terms
        return np.stack(
            [
                compute_numbers(sums[:, limits[at] : limits[at + 1]])
                for at, (_, compute_numbers) in enumerate(fits)
            ]
        )  # (targets, 4, resamples)

    once = np.ones((1, len(predictions.subjects)), np.int32)
    defined = ~np.isnan(compute_by_target(once)[:, :, 0])  # (targets, 4)
    events = count_positives(predictions)
    has_uniform_truth = bool((predictions.truth == predictions.truth[:1]).all())
    uniform = "; unknown: all stays have the same answer, which the prevalence gets right"
    scaled = _SCALED_BRIER_DEFINITION
    if len(predictions.truth) and has_uniform_truth:
        scaled += uniform
    brier = _BRIER_DEFINITION.format(_BRIER_BY_KIND[predictions.kind])
    metrics = [
        MetricDefinition("brier", brier, events),
        MetricDefinition("brier_scaled", scaled, events),
    ]
    for at, (name, text) in enumerate(_CALIBRATION_DEFINITIONS.items()):
        averaging = describe_averaging(label_space, targets, defined[:, at], name)
        metrics.append(MetricDefinition(name, f"{text}; {averaging}", events))
    return MetricSet(
        explain_missing_stays(metrics, predictions, split),
        lambda counts: np.concatenate(
            [compute_brier(counts), average_defined(compute_by_target(counts))]
        ),
    )


def compute_calibration_curve(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> list[dict[str, object]]:
    """Compute observed against predicted frequencies in up to ten bins of equal count.

    A bin with fewer than ``spec.smallest_cell`` subjects is joined with the next. The interval is
    Wilson's (1927) with the effective sample size of clustered stays: n over the design effect
    (Korn and Graubard 1998), and the number of subjects where all or none had the event.

    Returns:
        Rows of ``CURVE_POINT_SCHEMA`` named ``calibration``: x mean probability, y observed share,
        n stays (multilabel: stays times labels).
    """
    rows: list[dict[str, object]] = []
    for target in select_curve_targets(predictions, label_space, spec.smallest_cell):
        bins = _sum_bins_by_subject(target, predictions.subjects, spec.smallest_cell)
        for cells, positives, expected in bins:
            total = float(cells.sum())
            low, high = _compute_wilson_interval(cells, positives, spec.level)
            rows.append(
                {
                    "name": "calibration",
                    "task": label_space.name,
                    "group": f"model{target.group_suffix}",
                    "split": split,
                    "x": float(expected.sum() / total),
                    "y": float(positives.sum() / total),
                    "low": low,
                    "high": high,
                    "n": int(total),
                }
            )
    return rows


def compute_smooth_calibration_curve(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> list[dict[str, object]]:
    """Compute the flexible calibration curve (Van Calster et al. 2016, J Clin Epidemiol 74).

    A logistic regression on a restricted cubic spline of logit(p), evaluated from the 1st to the
    99th percentile of p. No curve where fewer than ``spec.smallest_cell`` subjects had the event or
    had not, where p takes few values, or separates the two.

    Returns:
        Rows of ``CURVE_POINT_SCHEMA`` named ``calibration_smooth``, intervals by the sandwich
        variance over subjects.
    """
    rows: list[dict[str, object]] = []
    min_subjects = max(spec.smallest_cell, 1)
    for target in select_curve_targets(predictions, label_space, spec.smallest_cell):
        masks = (target.truth.any(axis=1), (~target.truth).any(axis=1))
        if min(len(np.unique(predictions.subjects[mask])) for mask in masks) < min_subjects:
            continue
        # All k cells of a stay enter, and the variance is clustered by subject.
        x, is_event = compute_clipped_logits(target.scores).ravel(), target.truth.ravel()
        points = np.linspace(np.quantile(x, 0.01), np.quantile(x, 0.99), SMOOTH_CURVE_POINTS)
        clusters = np.repeat(predictions.subjects, target.truth.shape[1])
        curve = fit_logistic_spline(x, is_event, clusters, points, spec.level)
        if curve is None:
            continue
        shared = {
            "name": "calibration_smooth",
            "task": label_space.name,
            "group": f"model{target.group_suffix}",
            "split": split,
            "n": len(x),
        }
        # The curve is computed on the logit scale and reported as probabilities.
        lines = np.stack([special.expit(points), *curve], axis=1).tolist()  # (points, 4)
        rows += [{**shared, "x": p, "y": y, "low": low, "high": high} for p, y, low, high in lines]
    return rows


def compute_clipped_logits(probabilities: ScoreArray) -> Float64Array:
    """Compute log(p / (1 - p)) of probabilities clipped by ``PROBABILITY_CLIP``, in their shape."""
    clipped = np.clip(probabilities.astype(np.float64), PROBABILITY_CLIP, 1 - PROBABILITY_CLIP)
    logits: Float64Array = special.logit(clipped)
    return logits


def count_positives(predictions: ScoredPredictions) -> int | None:
    """Count the positives that a metric depends on: of the event, or of all labels together.

    None for a multiclass task, which has no event.
    """
    if predictions.kind == "multiclass":
        return None
    truth = predictions.truth[:, 1:] if predictions.kind == "binary" else predictions.truth
    return int(truth.sum())


def describe_averaging(
    label_space: LabelSpace,
    targets: Sequence[BinaryTarget],
    is_defined: BoolArray,
    metric_name: str,
) -> str:
    """Describe how a metric is averaged over binary targets and, where undefined, why.

    Args:
        label_space: of the task.
        targets: from ``build_binary_targets``.
        is_defined: which targets define the metric, shape (targets,).
        metric_name: of the metric.
    """
    reason = ""
    if not is_defined.any():
        if not any(target.truth.any() for target in targets):
            cause = "no stay has the event"
        elif all(target.truth.all() or not target.truth.any() for target in targets):
            one_target = len(targets) == 1
            cause = "every stay has the event" if one_target else "all stays have the same class"
        elif metric_name == "calibration_slope":
            cause = "the probabilities do not vary, or separate the classes"
        else:
            cause = "the probabilities are all 0"
        reason = f"; unknown: {cause}"
    if len(targets) > 1:
        return (
            f"unweighted mean over the {int(is_defined.sum())} of {len(targets)} classes "
            f"that define it, each against the rest{reason}"
        )
    if label_space.kind == "binary":
        return f"of the event {targets[0].positive_label!r}{reason}"
    return f"over all pairs of a stay and one of {len(label_space.classes)} labels pooled{reason}"


def explain_missing_stays(
    metrics: Sequence[MetricDefinition], predictions: ScoredPredictions, split: str
) -> tuple[MetricDefinition, ...]:
    """Add to the definitions that a split has no stay; unchanged where it has."""
    if len(predictions.subjects):
        return tuple(metrics)
    reason = f"unknown: the split {split} has no stay"
    return tuple(
        replace(metric, definition=f"{metric.definition.partition('; unknown')[0]}; {reason}")
        for metric in metrics
    )


def assign_equal_count_bins(values: ScoreArray, bin_count: int) -> Int64Array:
    """Assign each value to one of ``bin_count`` bins of equal count, equal values to one bin.

    Returns:
        Bin numbers from 0, in the shape of ``values``; numbers of bins that ties leave empty are
        skipped.
    """
    if not values.size:
        return np.zeros(values.shape, np.int64)
    # searchsorted from the left puts values equal to an edge into one bin.
    edges = np.quantile(values.astype(np.float64), np.arange(1, bin_count) / bin_count)
    return np.searchsorted(edges, values.astype(np.float64), side="left")


def _fit_calibration(target: BinaryTarget) -> tuple[Float64Array, SumsFunction]:
    """Terms of every stay, shape (n, terms), and the function from their sums to four numbers:
    intercept, slope, O:E and expected calibration error, shape (4, resamples)."""
    x, truth = compute_clipped_logits(target.scores), target.truth  # (n, k)
    intercept, _ = fit_logistic_regression(x.ravel(), truth.ravel(), fit_slope=False)
    line_intercept, slope = fit_logistic_regression(x.ravel(), truth.ravel(), fit_slope=True)
    bins = assign_equal_count_bins(target.scores, CALIBRATION_BINS)
    residual: Float64Array = truth - target.scores.astype(np.float64)  # (n, k)
    # Cells, events, summed p; score and information of the intercept; of intercept and slope; bins.
    columns = [
        np.full(len(x), float(x.shape[1])),
        truth.sum(axis=1),
        target.scores.sum(axis=1, dtype=np.float64),
        *_compute_score_and_information(x, truth, intercept, 1.0)[::2],
        *_compute_score_and_information(x, truth, line_intercept, slope),
        *(np.where(bins == index, residual, 0.0).sum(axis=1) for index in range(CALIBRATION_BINS)),
    ]
    # NaN occur only where there is no fit, and intercept or slope keep those numbers NaN.
    terms = np.nan_to_num(np.stack(columns, axis=1).astype(np.float64))

    def compute_numbers(sums: Float64Array) -> Float64Array:
        cells, events, expected, score, information, _, *rest = sums.T  # (resamples,) each
        score_a, score_b, info_aa, info_ab, info_bb = rest[:5]
        has_both = (events > 0) & (events < cells)
        # One Newton step θ + I⁻¹ s from the fit to the sample (Moulton and Zeger 1991): a scalar
        # for the intercept, the second row of the inverse of a 2 x 2 matrix for the slope.
        new_intercept = intercept + divide_or_nan(score, information)
        determinant = info_aa * info_bb - info_ab * info_ab
        new_slope = slope + divide_or_nan(info_aa * score_b - info_ab * score_a, determinant)
        bin_gaps = np.abs(np.stack(rest[5:])).sum(axis=0)
        return np.stack(
            [
                np.where(has_both, new_intercept, np.nan),
                np.where(has_both, new_slope, np.nan),
                divide_or_nan(events, expected),
                divide_or_nan(bin_gaps, cells),
            ]
        )

    return terms, compute_numbers


def _compute_score_and_information(
    x: Float64Array, is_event: BoolArray, intercept: float, slope: float
) -> list[Float64Array]:
    """Derivatives of the log-likelihood of each stay, five arrays of shape (n,).

    Score of the intercept and of the slope; information of the intercept, of both, of the slope.
    Every second one is what a regression with the intercept alone needs.
    """
    p: Float64Array = special.expit(intercept + slope * x)  # (n, k)
    residual, variance = is_event - p, p * (1 - p)
    terms = (residual, residual * x, variance, variance * x, variance * x * x)
    return [term.sum(axis=1) for term in terms]


def _build_brier_function(predictions: ScoredPredictions) -> RowStatistics:
    """Brier score and scaled Brier score of resamples, shape (2, resamples)."""
    errors, truth = compute_squared_errors(predictions), predictions.truth.astype(np.float32)

    def compute_brier(counts: NDArray[np.int32]) -> Float64Array:
        stays = counts.sum(axis=1).astype(np.float64)
        brier = divide_or_nan(counts @ errors, stays)
        # A product of float32 is several times faster, and exact for counts below 2^24.
        positives = (counts.astype(np.float32) @ truth).astype(np.float64)  # (resamples, K)
        prevalence = divide_or_nan(positives, np.broadcast_to(stays[:, None], positives.shape))
        # The Brier score of the prevalence itself is the variance π(1 - π) of each class.
        reference = reduce_brier_terms(prevalence * (1 - prevalence), predictions.kind)
        return np.stack([brier, 1 - divide_or_nan(brier, reference)])

    return compute_brier


def _sum_bins_by_subject(
    target: BinaryTarget, subjects: Int64Array, min_subjects: int
) -> list[tuple[Float64Array, Float64Array, Float64Array]]:
    """For each bin: cells, positives and summed probabilities of every subject in it.

    Neighboring bins are joined until each has ``min_subjects`` subjects.
    """
    _, subject = np.unique(subjects, return_inverse=True)
    subject_count = int(subject.max()) + 1
    bins = assign_equal_count_bins(target.scores, CALIBRATION_BINS)
    cell = (subject[:, None] * CALIBRATION_BINS + bins).ravel()  # one number for subject and bin
    sums = [
        np.bincount(cell, weights=weights, minlength=subject_count * CALIBRATION_BINS)
        .reshape(subject_count, CALIBRATION_BINS)
        .astype(np.float64)
        for weights in (
            None,
            target.truth.ravel().astype(np.float64),
            target.scores.ravel().astype(np.float64),
        )
    ]
    joined: list[list[int]] = []
    pending: list[int] = []
    for index in range(CALIBRATION_BINS):
        pending = [*pending, index]
        if (sums[0][:, pending] > 0).any(axis=1).sum() >= max(min_subjects, 1):
            joined, pending = [*joined, pending], []
    if joined and pending:  # too few are left for a bin of their own
        joined[-1] = [*joined[-1], *pending]
    totals = []
    for columns in joined:
        cells, positives, expected = (values[:, columns].sum(axis=1) for values in sums)
        present = cells > 0
        totals.append((cells[present], positives[present], expected[present]))
    return totals


def _compute_wilson_interval(
    cells: Float64Array, positives: Float64Array, level: float
) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of clustered cells.

    Args:
        cells, positives: of each subject, shape (subjects,).
        level: of the interval.
    """
    total, subjects = float(cells.sum()), len(cells)
    share = float(positives.sum() / total)
    # Variance of a ratio over clusters by linearization (Cochran 1977, section 2.11).
    variance = (
        float(((positives - share * cells) ** 2).sum()) * subjects / max(subjects - 1, 1) / total**2
    )
    # Effective sample size p(1 - p) / Var(p), at most the number of cells.
    size = float(subjects) if variance == 0 else min(share * (1 - share) / variance, total)
    z = float(stats.norm.ppf((1 + level) / 2))
    # Wilson's center and half width.
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    spread = float(np.sqrt(share * (1 - share) / size + z * z / (4 * size * size)))
    half = z / (1 + z * z / size) * spread
    return max(middle - half, 0.0), min(middle + half, 1.0)
