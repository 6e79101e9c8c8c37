"""What acting on the answers is worth: net benefit and decision curves (Vickers and Elkin 2006), and the distributions behind them.

Whoever acts from a probability t on says that one missed event is as bad as (1 - t) / t needless actions. The net benefit is then
TP / n - FP / n · t / (1 - t), in true positives a stay, with nothing to pay for. It is compared with acting on everybody and on nobody (0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.bootstrap import Float64Array, bootstrap_rows
from clinpeft.evaluation.classification.calibration import (
    BinaryTarget,
    average_over_targets,
    build_binary_targets,
    count_positives,
    describe_averaging,
    explain_missing_stays,
    select_curve_targets,
)
from clinpeft.evaluation.classification.discrimination import (
    MetricDefinition,
    MetricSet,
    ScoredPredictions,
)
from clinpeft.evaluation.classification.ranks import BoolArray, ScoreArray
from clinpeft.recipe import ClassificationEvaluationSpec

DECISION_THRESHOLDS = np.arange(1, 51) / 100
"""Of decision curves: 0.01 to 0.50, where clinicians act on the outcomes that are asked for."""

PROBABILITY_HISTOGRAM_BINS = 20

_NET_BENEFIT_DEFINITION = "net benefit TP/n - FP/n · t/(1 - t) of acting where p >= t (Vickers and Elkin 2006), t the prevalence in this split"
_COMPARISON_REMARK = "there acting on everybody and on nobody are both worth 0"


def net_benefit(scores: ScoreArray, truth: BoolArray, threshold: float) -> float:
    """True positives a stay, less false positives weighted by the odds of the threshold; acting where p >= threshold, NaN without a stay.

    Args:
        scores: shape (n,).
        truth: shape (n,).
        threshold: between 0 and 1, both excluded.
    """
    return (
        float(_compute_benefits(scores[:, None], truth[:, None], threshold).mean())
        if len(truth)
        else float("nan")
    )


def compute_treat_all_net_benefit(prevalence: float, threshold: float) -> float:
    """The net benefit of acting on everybody: prevalence - (1 - prevalence) · t / (1 - t)."""
    return prevalence - (1 - prevalence) * threshold / (1 - threshold)


def build_net_benefit_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    """The net benefit at the prevalence, to be scored by ``discrimination.scored``; a resample keeps the threshold of the sample."""
    each = build_binary_targets(predictions, label_space)
    thresholds = [float(one.truth.mean()) if one.truth.size else float("nan") for one in each]
    defined = np.array([0 < at < 1 for at in thresholds])
    benefits = [
        _compute_benefits(one.scores, one.truth, at) if kept else None
        for one, at, kept in zip(each, thresholds, defined, strict=True)
    ]
    of_stays = np.stack(
        [
            np.zeros(len(predictions.subjects)) if one is None else one.mean(axis=1)
            for one in benefits
        ],
        axis=1,
    )
    stated = f" (t = {thresholds[0]:.4f})" if len(each) == 1 and defined[0] else ""
    definition = f"{_NET_BENEFIT_DEFINITION}; {_COMPARISON_REMARK}{stated}; {describe_averaging(label_space, each, defined, 'net_benefit')}"

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        stays = counts.sum(axis=1).astype(np.float64)
        means = np.divide(
            (counts @ of_stays).T,
            stays,
            out=np.full((len(each), len(stays)), np.nan),
            where=stays > 0,
        )
        return average_over_targets(np.where(defined[:, None], means, np.nan))[None]

    return MetricSet(
        explain_missing_stays(
            [MetricDefinition("net_benefit", definition, count_positives(predictions))],
            predictions,
            split,
        ),
        statistics,
    )


def compute_decision_curve(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """Net benefit from threshold 0.01 to 0.50, of the answers, of acting on everybody and on nobody.

    Returns:
        Rows of ``tables.CURVE`` named ``net_benefit``, groups ``model``, ``treat all`` and ``treat none``, of a multiclass question each with
        `` · class``; intervals by bootstrap over subjects, none for 0.
    """
    each = select_curve_targets(predictions, label_space, spec.smallest_cell)
    if not each:
        return []
    lines = [
        (f"{group}{one.group_suffix}", _compute_benefit_line(one, acted))
        for one in each
        for group, acted in (("model", one.scores), ("treat all", None))
    ]
    of_stays = np.concatenate([line for _, line in lines], axis=1)  # (n, lines · thresholds)

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        means: Float64Array = (counts @ of_stays).T / counts.sum(axis=1)
        return means

    intervals = bootstrap_rows(
        predictions.subjects, statistics, resamples=spec.resamples, level=spec.level, rng=rng
    )
    groups = [(group, float(threshold)) for group, _ in lines for threshold in DECISION_THRESHOLDS]
    same = {
        "name": "net_benefit",
        "task": label_space.name,
        "split": split,
        "n": len(predictions.subjects),
    }
    rows = [
        {
            **same,
            "group": group,
            "x": threshold,
            "y": float(value),
            "low": interval.low,
            "high": interval.high,
        }
        for (group, threshold), value, interval in zip(
            groups, of_stays.mean(axis=0), intervals, strict=True
        )
    ]
    nothing = {"y": 0.0, "low": None, "high": None}
    return rows + [
        {**same, "group": f"treat none{one.group_suffix}", "x": float(threshold), **nothing}
        for one in each
        for threshold in DECISION_THRESHOLDS
    ]


def compute_probability_histogram(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> list[dict[str, object]]:
    """How probabilities are spread among those who had the event and those who had not, in 20 bins of equal width.

    Returns:
        Rows of ``tables.CURVE`` named ``probabilities``: x the middle of a bin, y the share of the true class that lies in it, n the size of that
        class; a true class that fewer than ``spec.smallest_cell`` subjects have is left out.
    """
    rows: list[dict[str, object]] = []
    for event in select_curve_targets(predictions, label_space, spec.smallest_cell):
        for name, chosen in (
            (event.negative_label, ~event.truth),
            (event.positive_label, event.truth),
        ):
            if len(np.unique(predictions.subjects[chosen.any(axis=1)])) < spec.smallest_cell:
                continue
            counted, edges = np.histogram(
                event.scores[chosen], bins=PROBABILITY_HISTOGRAM_BINS, range=(0.0, 1.0)
            )
            same = {
                "name": "probabilities",
                "task": label_space.name,
                "group": name,
                "split": split,
                "n": int(counted.sum()),
            }
            rows += [
                {**same, "x": float(x), "y": float(y)}
                for x, y in zip((edges[:-1] + edges[1:]) / 2, counted / counted.sum(), strict=True)
            ]
    return rows


def _compute_benefit_line(target: BinaryTarget, acting_scores: ScoreArray | None) -> Float64Array:
    """What each stay adds to the net benefit at every threshold, shape (n, thresholds); None acts on everybody."""
    scores = np.ones_like(target.scores) if acting_scores is None else acting_scores
    return np.stack(
        [
            _compute_benefits(scores, target.truth, float(threshold)).mean(axis=1)
            for threshold in DECISION_THRESHOLDS
        ],
        axis=1,
    )


def _compute_benefits(scores: ScoreArray, truth: BoolArray, threshold: float) -> Float64Array:
    """1 for a true positive, minus the odds of the threshold for a false one, else 0; as given, shape (n, k)."""
    worth: Float64Array = np.where(truth, 1.0, -threshold / (1 - threshold))
    return worth * (scores >= threshold)
