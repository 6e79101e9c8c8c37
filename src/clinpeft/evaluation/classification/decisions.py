"""What acting on the answers is worth: net benefit and decision curves (Vickers and Elkin 2006), and the distributions behind them.

Whoever acts from a probability t on says that one missed event is as bad as (1 - t) / t needless actions. The net benefit is then
TP / n - FP / n · t / (1 - t), in true positives a stay, with nothing to pay for. It is compared with acting on everybody and on nobody (0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.schemas import Question
from clinpeft.evaluation.bootstrap import Floats, row_bootstrap
from clinpeft.evaluation.classification.calibration import (
    Event,
    averaged,
    curve_events,
    event_count,
    events,
    mean_of_events,
    with_reason,
)
from clinpeft.evaluation.classification.discrimination import Answers, Board, Measure
from clinpeft.evaluation.classification.ranks import Flags, Scores
from clinpeft.recipe import ScoringSpec

THRESHOLDS = np.arange(1, 51) / 100
"""Of decision curves: 0.01 to 0.50, where clinicians act on the outcomes that are asked for."""

HISTOGRAM_BINS = 20

_NET_BENEFIT = "net benefit TP/n - FP/n · t/(1 - t) of acting where p >= t (Vickers and Elkin 2006), t the prevalence in this split"
_COMPARED = "there acting on everybody and on nobody are both worth 0"


def net_benefit(scores: Scores, truth: Flags, threshold: float) -> float:
    """True positives a stay, less false positives weighted by the odds of the threshold; acting where p >= threshold, NaN without a stay.

    Args:
        scores: shape (n,).
        truth: shape (n,).
        threshold: between 0 and 1, both excluded.
    """
    return (
        float(_benefits(scores[:, None], truth[:, None], threshold).mean())
        if len(truth)
        else float("nan")
    )


def treat_all(prevalence: float, threshold: float) -> float:
    """The net benefit of acting on everybody: prevalence - (1 - prevalence) · t / (1 - t)."""
    return prevalence - (1 - prevalence) * threshold / (1 - threshold)


def decision_board(found: Answers, question: Question, split: str, _: ScoringSpec) -> Board:
    """The net benefit at the prevalence, to be scored by ``discrimination.scored``; a resample keeps the threshold of the sample."""
    each = events(found, question)
    thresholds = [float(one.truth.mean()) if one.truth.size else float("nan") for one in each]
    defined = np.array([0 < at < 1 for at in thresholds])
    benefits = [
        _benefits(one.scores, one.truth, at) if kept else None
        for one, at, kept in zip(each, thresholds, defined, strict=True)
    ]
    of_stays = np.stack(
        [np.zeros(len(found.subjects)) if one is None else one.mean(axis=1) for one in benefits],
        axis=1,
    )
    stated = f" (t = {thresholds[0]:.4f})" if len(each) == 1 and defined[0] else ""
    definition = (
        f"{_NET_BENEFIT}; {_COMPARED}{stated}; {averaged(question, each, defined, 'net_benefit')}"
    )

    def statistics(counts: NDArray[np.int32]) -> Floats:
        stays = counts.sum(axis=1).astype(np.float64)
        means = np.divide(
            (counts @ of_stays).T,
            stays,
            out=np.full((len(each), len(stays)), np.nan),
            where=stays > 0,
        )
        return mean_of_events(np.where(defined[:, None], means, np.nan))[None]

    return Board(
        with_reason([Measure("net_benefit", definition, event_count(found))], found, split),
        statistics,
    )


def decision_curve(
    found: Answers, question: Question, split: str, spec: ScoringSpec, rng: np.random.Generator
) -> list[dict[str, object]]:
    """Net benefit from threshold 0.01 to 0.50, of the answers, of acting on everybody and on nobody.

    Returns:
        Rows of ``tables.CURVE`` named ``net_benefit``, groups ``model``, ``treat all`` and ``treat none``, of a multiclass question each with
        `` · class``; intervals by bootstrap over subjects, none for 0.
    """
    each = curve_events(found, question, spec.smallest_cell)
    if not each:
        return []
    lines = [
        (f"{group}{one.name}", _line(one, acted))
        for one in each
        for group, acted in (("model", one.scores), ("treat all", None))
    ]
    of_stays = np.concatenate([line for _, line in lines], axis=1)  # (n, lines · thresholds)

    def statistics(counts: NDArray[np.int32]) -> Floats:
        means: Floats = (counts @ of_stays).T / counts.sum(axis=1)
        return means

    intervals = row_bootstrap(
        found.subjects, statistics, resamples=spec.resamples, level=spec.level, rng=rng
    )
    groups = [(group, float(threshold)) for group, _ in lines for threshold in THRESHOLDS]
    same = {"name": "net_benefit", "task": question.name, "split": split, "n": len(found.subjects)}
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
        {**same, "group": f"treat none{one.name}", "x": float(threshold), **nothing}
        for one in each
        for threshold in THRESHOLDS
    ]


def probability_histogram(
    found: Answers, question: Question, split: str, spec: ScoringSpec
) -> list[dict[str, object]]:
    """How probabilities are spread among those who had the event and those who had not, in 20 bins of equal width.

    Returns:
        Rows of ``tables.CURVE`` named ``probabilities``: x the middle of a bin, y the share of the true class that lies in it, n the size of that
        class; a true class that fewer than ``spec.smallest_cell`` subjects have is left out.
    """
    rows: list[dict[str, object]] = []
    for event in curve_events(found, question, spec.smallest_cell):
        for name, chosen in ((event.other, ~event.truth), (event.happened, event.truth)):
            if len(np.unique(found.subjects[chosen.any(axis=1)])) < spec.smallest_cell:
                continue
            counted, edges = np.histogram(
                event.scores[chosen], bins=HISTOGRAM_BINS, range=(0.0, 1.0)
            )
            same = {
                "name": "probabilities",
                "task": question.name,
                "group": name,
                "split": split,
                "n": int(counted.sum()),
            }
            rows += [
                {**same, "x": float(x), "y": float(y)}
                for x, y in zip((edges[:-1] + edges[1:]) / 2, counted / counted.sum(), strict=True)
            ]
    return rows


def _line(event: Event, acted: Scores | None) -> Floats:
    """What each stay adds to the net benefit at every threshold, shape (n, thresholds); None acts on everybody."""
    scores = np.ones_like(event.scores) if acted is None else acted
    return np.stack(
        [_benefits(scores, event.truth, float(threshold)).mean(axis=1) for threshold in THRESHOLDS],
        axis=1,
    )


def _benefits(scores: Scores, truth: Flags, threshold: float) -> Floats:
    """1 for a true positive, minus the odds of the threshold for a false one, else 0; as given, shape (n, k)."""
    worth: Floats = np.where(truth, 1.0, -threshold / (1 - threshold))
    return worth * (scores >= threshold)
