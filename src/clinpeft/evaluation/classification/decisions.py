"""Net benefit and decision curves (Vickers and Elkin 2006, Med Decis Making 26), and histograms.

Acting from a probability t on means that one missed event is as bad as (1 - t) / t unnecessary
actions. The net benefit is then TP / n - FP / n · t / (1 - t), in true positives a stay, without
costs of the test. It is compared with acting on all stays and on none (0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.arrays import (
    BoolArray,
    Float64Array,
    ScoreArray,
    average_defined,
    divide_or_nan,
)
from clinpeft.evaluation.bootstrap import bootstrap_rows
from clinpeft.evaluation.classification.calibration import (
    build_binary_targets,
    count_positives,
    describe_averaging,
    explain_missing_stays,
    select_curve_targets,
)
from clinpeft.evaluation.classification.metric_set import MetricDefinition, MetricSet
from clinpeft.evaluation.classification.scored_predictions import ScoredPredictions
from clinpeft.recipe import ClassificationEvaluationSpec

DECISION_THRESHOLDS = np.arange(1, 51) / 100
"""Of decision curves: 0.01 to 0.50, where clinicians act on the outcomes of the tasks."""

PROBABILITY_HISTOGRAM_BINS = 20

_NET_BENEFIT_DEFINITION = (
    "net benefit TP/n - FP/n · t/(1 - t) of acting where p >= t (Vickers and Elkin 2006), "
    "t the prevalence in this split"
)
_COMPARISON_REMARK = "there acting on everybody and on nobody are both worth 0"


def net_benefit(scores: ScoreArray, truth: BoolArray, threshold: float) -> float:
    """The net benefit TP / n - FP / n · t / (1 - t) (Vickers and Elkin 2006).

    Args:
        scores: shape (n,).
        truth: shape (n,).
        threshold: t, between 0 and 1, both excluded; stays with p >= t are acted on.

    Returns:
        At most the prevalence; NaN without a stay.
    """
    if not len(truth):
        return float("nan")
    return float(_compute_benefits(scores[:, None], truth[:, None], threshold).mean())


def build_net_benefit_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    """Define ``net_benefit`` at the prevalence; a resample keeps the threshold of the sample.

    Multiclass: unweighted mean over the classes that some stays have and some have not, each
    against the rest; multilabel: all pairs of stay and label pooled.
    """
    targets = build_binary_targets(predictions, label_space)
    # Acting on all and on none are worth the same at the prevalence, which makes it comparable.
    thresholds = [
        float(target.truth.mean()) if target.truth.size else float("nan") for target in targets
    ]
    defined = np.array([0 < threshold < 1 for threshold in thresholds])
    stay_terms = np.zeros((len(predictions.subjects), len(targets)))  # (n, targets)
    for at, (target, threshold) in enumerate(zip(targets, thresholds, strict=True)):
        if defined[at]:
            benefits = _compute_benefits(target.scores, target.truth, threshold)
            stay_terms[:, at] = benefits.mean(axis=1)
    stated = f" (t = {thresholds[0]:.4f})" if len(targets) == 1 and defined[0] else ""
    averaging = describe_averaging(label_space, targets, defined, "net_benefit")
    definition = f"{_NET_BENEFIT_DEFINITION}; {_COMPARISON_REMARK}{stated}; {averaging}"

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        stays = counts.sum(axis=1).astype(np.float64)
        means = divide_or_nan((counts @ stay_terms).T, stays)  # (targets, resamples)
        return average_defined(np.where(defined[:, None], means, np.nan))[None]

    metric = MetricDefinition("net_benefit", definition, count_positives(predictions))
    return MetricSet(explain_missing_stays([metric], predictions, split), compute_values)


def compute_decision_curve(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """Compute net benefit from threshold 0.01 to 0.50, of the model, of acting on all and on none.

    Returns:
        Rows of ``CURVE_POINT_SCHEMA`` named ``net_benefit``, groups ``model``, ``treat all`` and
        ``treat none``, of a multiclass task each with `` · class``; intervals by bootstrap over
        subjects, none for the constant 0.
    """
    targets = select_curve_targets(predictions, label_space, spec.smallest_cell)
    if not targets:
        return []
    groups, columns = [], []
    for target in targets:
        # Scores of 1 reach every threshold: the model acts on all stays.
        actions = {"model": target.scores, "treat all": np.ones_like(target.scores)}
        for name, scores in actions.items():
            for threshold in DECISION_THRESHOLDS:
                benefits = _compute_benefits(scores, target.truth, float(threshold))
                groups.append((f"{name}{target.group_suffix}", float(threshold)))
                columns.append(benefits.mean(axis=1))
    stay_terms = np.stack(columns, axis=1)  # (n, targets · 2 · thresholds)

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        means: Float64Array = (counts @ stay_terms).T / counts.sum(axis=1)
        return means

    # All lines and thresholds on the same resamples, in one matrix product.
    intervals = bootstrap_rows(
        predictions.subjects, compute_values, resamples=spec.resamples, level=spec.level, rng=rng
    )
    shared = {
        "name": "net_benefit",
        "task": label_space.name,
        "split": split,
        "n": len(predictions.subjects),
    }
    rows = [
        {**shared, "group": group, "x": x, "y": float(y), "low": limits.low, "high": limits.high}
        for (group, x), y, limits in zip(groups, stay_terms.mean(axis=0), intervals, strict=True)
    ]
    shared |= {"y": 0.0, "low": None, "high": None}
    return rows + [
        {**shared, "group": f"treat none{target.group_suffix}", "x": float(threshold)}
        for target in targets
        for threshold in DECISION_THRESHOLDS
    ]


def compute_probability_histogram(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> list[dict[str, object]]:
    """Compute histograms of the probabilities by true class, in 20 bins of equal width.

    Returns:
        Rows of ``CURVE_POINT_SCHEMA`` named ``probabilities``: x the middle of a bin, y the share
        of the true class that lies in it, n the size of that class; a true class that fewer than
        ``spec.smallest_cell`` subjects have is left out.
    """
    rows: list[dict[str, object]] = []
    for target in select_curve_targets(predictions, label_space, spec.smallest_cell):
        masks = {target.negative_label: ~target.truth, target.positive_label: target.truth}
        for name, mask in masks.items():
            if len(np.unique(predictions.subjects[mask.any(axis=1)])) < spec.smallest_cell:
                continue
            # The last bin includes 1.
            counts, edges = np.histogram(
                target.scores[mask], bins=PROBABILITY_HISTOGRAM_BINS, range=(0.0, 1.0)
            )
            shared = {
                "name": "probabilities",
                "task": label_space.name,
                "group": name,
                "split": split,
                "n": int(counts.sum()),
            }
            middles, shares = (edges[:-1] + edges[1:]) / 2, counts / counts.sum()
            rows += [
                {**shared, "x": float(x), "y": float(y)}
                for x, y in zip(middles, shares, strict=True)
            ]
    return rows


def _compute_benefits(scores: ScoreArray, truth: BoolArray, threshold: float) -> Float64Array:
    """1 for a true positive, minus the odds of the threshold for a false one, else 0: (n, k)."""
    benefits: Float64Array = np.where(truth, 1.0, -threshold / (1 - threshold))
    return benefits * (scores >= threshold)
