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

from clinpeft.core.schemas import Kind, Question
from clinpeft.evaluation.bootstrap import Floats, Integers
from clinpeft.evaluation.classification.discrimination import Answers, Board, Measure
from clinpeft.evaluation.classification.logistic import logistic, smooth
from clinpeft.evaluation.classification.paired import squared_errors
from clinpeft.evaluation.classification.ranks import Flags, Scores
from clinpeft.recipe import ScoringSpec

CLIPPED = 1e-6
"""Probabilities come no closer to 0 and 1 than this where their logit is taken."""

BINS = 10

SMOOTH_POINTS = 25

_BRIER = "mean over stays of the squared difference of probability and truth, {}; 0 is best"
_BRIER_OF = {
    "binary": "of the event",
    "multiclass": "summed over the classes (Brier 1950)",
    "multilabel": "averaged over the labels",
}
_SCALED = "1 - Brier score / Brier score of answering every stay with the prevalences of this split; 1 is best, 0 no better than the prevalence"
_CLIP = f"probabilities clipped to [{CLIPPED:g}, 1 - {CLIPPED:g}]; resamples take one Newton step from the fit"
_ECE = f"expected calibration error, secondary: mean absolute difference of observed and predicted in {BINS} bins of equal count, equal p together"
_NUMBERS = (
    (
        "calibration_intercept",
        f"calibration in the large: intercept of a logistic regression with logit(p) as offset; 0 is ideal; {_CLIP}",
    ),
    (
        "calibration_slope",
        f"slope of a logistic regression on logit(p); 1 is ideal, below 1 probabilities are too extreme; {_CLIP}",
    ),
    ("observed_expected", "observed events / summed probabilities (O:E); 1 is ideal"),
    (
        "ece",
        f"{_ECE}; never below 0, so chance alone raises it, and resamples more than the sample: its interval lies too high",
    ),
)

RowFunction = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Event:
    """Something that happens or does not, k times a stay.

    Attributes:
        name: end of a group's name: empty, or `` · class``.
        happened, other: what the two true classes are called.
        scores: probabilities that it happens, shape (n, k).
        truth: whether it did, shape (n, k).
    """

    name: str
    happened: str
    other: str
    scores: Scores
    truth: Flags


def events(found: Answers, question: Question) -> list[Event]:
    """The answers as events: one, each class against the rest, or all labels pooled."""
    return _EVENTS[found.kind](found, question)


def curve_events(found: Answers, question: Question, smallest_cell: int) -> list[Event]:
    """Those that have a curve: of a multiclass question only classes that enough subjects have; none where the split itself has too few."""
    if len(np.unique(found.subjects)) < max(smallest_cell, 1):
        return []
    each = events(found, question)
    return (
        each
        if len(each) == 1
        else [
            one for one in each if len(np.unique(found.subjects[one.truth[:, 0]])) >= smallest_cell
        ]
    )


def calibration_board(found: Answers, question: Question, split: str, _: ScoringSpec) -> Board:
    """Brier score plain and scaled, calibration intercept and slope, O:E and expected calibration error, as ``discrimination.scored`` takes them."""
    each = events(found, question)
    parts = [_additive(one) for one in each]
    of_stays = np.concatenate([terms for terms, _ in parts], axis=1)
    places = np.cumsum([0, *(terms.shape[1] for terms, _ in parts)])
    brier = _brier(found)

    def by_event(counts: NDArray[np.int32]) -> Floats:
        sums = counts @ of_stays
        return np.stack(
            [number(sums[:, places[at] : places[at + 1]]) for at, (_, number) in enumerate(parts)]
        )  # (events, 4, resamples)

    once = np.ones((1, len(found.subjects)), np.int32)
    defined = ~np.isnan(by_event(once)[:, :, 0])
    happened = event_count(found)
    told = (
        Measure("brier", _BRIER.format(_BRIER_OF[found.kind]), happened),
        Measure("brier_scaled", f"{_SCALED}{_uniform(found)}", happened),
    )
    numbers = [
        Measure(name, f"{text}; {averaged(question, each, defined[:, at], name)}", happened)
        for at, (name, text) in enumerate(_NUMBERS)
    ]
    measures = with_reason((*told, *numbers), found, split)
    return Board(
        measures, lambda counts: np.concatenate([brier(counts), mean_of_events(by_event(counts))])
    )


def calibration_curve(
    found: Answers, question: Question, split: str, spec: ScoringSpec
) -> list[dict[str, object]]:
    """Predicted against observed in up to ten bins of equal count, each of at least ``spec.smallest_cell`` subjects.

    A bin with fewer subjects is joined with the next. The interval is Wilson's (1927) with the effective sample size of clustered stays: n over the
    design effect, and the number of subjects where all or none had the event.

    Returns:
        Rows of ``tables.CURVE`` named ``calibration``: x mean probability, y share observed, n stays (multilabel: stays times labels).
    """
    rows: list[dict[str, object]] = []
    for event in curve_events(found, question, spec.smallest_cell):
        for cells, positives, expected in _bins_of_subjects(
            event, found.subjects, spec.smallest_cell
        ):
            total = float(cells.sum())
            low, high = _wilson(cells, positives, spec.level)
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
                    "task": question.name,
                    "group": f"model{event.name}",
                    "split": split,
                    **point,
                }
            )
    return rows


def smooth_calibration_curve(
    found: Answers, question: Question, split: str, spec: ScoringSpec
) -> list[dict[str, object]]:
    """The flexible calibration curve: a logistic regression on a restricted cubic spline of logit(p), from the 1st to the 99th percentile of p.

    Nothing where fewer than ``spec.smallest_cell`` subjects had the event or had not, where p takes few values, or separates the two.

    Returns:
        Rows of ``tables.CURVE`` named ``calibration_smooth``, intervals by the sandwich variance over subjects.
    """
    rows: list[dict[str, object]] = []
    for event in curve_events(found, question, spec.smallest_cell):
        if min(
            len(np.unique(found.subjects[one.any(axis=1)])) for one in (event.truth, ~event.truth)
        ) < max(spec.smallest_cell, 1):
            continue
        x, happened = logits_of(event.scores).ravel(), event.truth.ravel()
        points = np.linspace(np.quantile(x, 0.01), np.quantile(x, 0.99), SMOOTH_POINTS)
        curve = smooth(
            x, happened, np.repeat(found.subjects, event.truth.shape[1]), points, spec.level
        )
        if curve is None:
            continue
        same = {
            "name": "calibration_smooth",
            "task": question.name,
            "group": f"model{event.name}",
            "split": split,
            "n": len(x),
        }
        lines = np.stack([special.expit(points), *curve], axis=1).tolist()
        rows += [{**same, "x": p, "y": y, "low": low, "high": high} for p, y, low, high in lines]
    return rows


def logits_of(probabilities: Scores) -> Floats:
    """log(p / (1 - p)) of clipped probabilities."""
    found: Floats = special.logit(np.clip(probabilities.astype(np.float64), CLIPPED, 1 - CLIPPED))
    return found


def event_count(found: Answers) -> int | None:
    """Positives that a number rests on: of the event, of all labels together, None where one of several classes is asked."""
    counted = {"binary": found.truth[:, 1:].sum(), "multilabel": found.truth.sum()}
    return int(counted[found.kind]) if found.kind in counted else None


def averaged(question: Question, each: Sequence[Event], defined: Flags, name: str) -> str:
    """How a number comes from events, and where it does not, why."""
    reason = "" if defined.any() else f"; unknown: {_why(each, name)}"
    if len(each) > 1:
        return f"unweighted mean over the {int(defined.sum())} of {len(each)} classes that define it, each against the rest{reason}"
    over = (
        f"of the event {each[0].happened!r}"
        if question.kind == "binary"
        else f"over all pairs of a stay and one of {len(question.classes)} labels pooled"
    )
    return f"{over}{reason}"


def with_reason(measures: Sequence[Measure], found: Answers, split: str) -> tuple[Measure, ...]:
    """The measures; where nobody was asked they say so."""
    if len(found.subjects):
        return tuple(measures)
    return tuple(
        replace(
            one,
            definition=f"{one.definition.partition('; unknown')[0]}; unknown: the split {split} has no stay",
        )
        for one in measures
    )


def mean_of_events(values: Floats) -> Floats:
    """Over the first axis, NaN left out; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return _ratio(
        np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64)
    )


def equal_count_bins(values: Scores, bins: int) -> Integers:
    """The bin of each value, equal values together, shape as given; bins that ties leave empty are skipped over."""
    if not values.size:
        return np.zeros(values.shape, np.int64)
    edges = np.quantile(values.astype(np.float64), np.arange(1, bins) / bins)
    return np.searchsorted(edges, values.astype(np.float64), side="left")


def _binary(found: Answers, question: Question) -> list[Event]:
    other, happened = question.classes
    return [Event("", happened, other, found.scores[:, 1:], found.truth[:, 1:])]


def _multiclass(found: Answers, question: Question) -> list[Event]:
    columns = [(name, slice(at, at + 1)) for at, name in enumerate(question.classes)]
    return [
        Event(f" · {name}", name, f"not {name}", found.scores[:, at], found.truth[:, at])
        for name, at in columns
    ]


def _multilabel(found: Answers, _: Question) -> list[Event]:
    return [Event("", "labels that apply", "labels that do not", found.scores, found.truth)]


def _additive(event: Event) -> tuple[Floats, RowFunction]:
    """What every stay adds, shape (n, c), and how its sums, shape (resamples, c), become the four numbers, shape (4, resamples)."""
    x, happened = logits_of(event.scores), event.truth
    intercept, _ = logistic(x.ravel(), happened.ravel(), free_slope=False)
    at = logistic(x.ravel(), happened.ravel(), free_slope=True)
    bins = equal_count_bins(event.scores, BINS)
    residual: Floats = happened - event.scores.astype(np.float64)
    columns = [
        np.full(len(x), float(x.shape[1])),
        happened.sum(axis=1),
        event.scores.sum(axis=1, dtype=np.float64),
        *_score_and_information(x, happened, intercept, 1.0)[::2],
        *_score_and_information(x, happened, *at),
        *(np.where(bins == one, residual, 0.0).sum(axis=1) for one in range(BINS)),
    ]
    terms = np.nan_to_num(
        np.stack(columns, axis=1).astype(np.float64)
    )  # NaN only where there is no fit, whose numbers stay NaN
    return terms, lambda sums: _numbers(sums, intercept, at[1])


def _score_and_information(
    x: Floats, happened: Flags, intercept: float, slope: float
) -> list[Floats]:
    """Derivatives of the log-likelihood of each stay, in an order such that every second one is that of the intercept alone.

    Score of the intercept, of the slope; information of the intercept, of both, of the slope: (n,) each.
    """
    p: Floats = special.expit(intercept + slope * x)
    missed, spread = happened - p, p * (1 - p)
    return [one.sum(axis=1) for one in (missed, missed * x, spread, spread * x, spread * x * x)]


def _numbers(sums: Floats, intercept: float, slope: float) -> Floats:
    cells, happened, expected, score, information, _, *joint = sums.T
    first, second, ii, ib, bb = joint[:5]
    both = (happened > 0) & (happened < cells)
    moved = intercept + _ratio(score, information)
    steeper = slope + _ratio(ii * second - ib * first, ii * bb - ib * ib)
    numbers = [
        np.where(both, moved, np.nan),
        np.where(both, steeper, np.nan),
        _ratio(happened, expected),
    ]
    return np.stack([*numbers, _ratio(np.abs(np.stack(joint[5:])).sum(axis=0), cells)])


def _brier(found: Answers) -> Callable[[NDArray[np.int32]], Floats]:
    """Brier score and scaled Brier score of resamples, shape (2, resamples)."""
    errors, truth = squared_errors(found), found.truth.astype(np.float32)
    combined = _PREVALENCE_BRIER[found.kind]

    def of_resamples(counts: NDArray[np.int32]) -> Floats:
        stays = counts.sum(axis=1).astype(np.float64)
        brier = _ratio(counts @ errors, stays)
        positives = (counts.astype(np.float32) @ truth).astype(np.float64)
        prevalence = _ratio(positives, np.broadcast_to(stays[:, None], positives.shape))
        return np.stack([brier, 1 - _ratio(brier, combined(prevalence * (1 - prevalence)))])

    return of_resamples


def _uniform(found: Answers) -> str:
    same = (found.truth == found.truth[:1]).all()
    return (
        "; unknown: all stays have the same answer, which the prevalence gets right"
        if len(found.truth) and same
        else ""
    )


def _why(each: Sequence[Event], name: str) -> str:
    if all(not one.truth.any() for one in each):
        return "no stay has the event"
    if all(one.truth.all() or not one.truth.any() for one in each):
        return "every stay has the event" if len(each) == 1 else "all stays have the same class"
    if name == "calibration_slope":
        return "the probabilities do not vary, or separate the classes"
    return "the probabilities are all 0"


def _bins_of_subjects(
    event: Event, subjects: Integers, smallest: int
) -> list[tuple[Floats, Floats, Floats]]:
    """For each bin: cells, positives and summed probabilities of every subject in it."""
    _, subject = np.unique(subjects, return_inverse=True)
    people = int(subject.max()) + 1
    location = (subject[:, None] * BINS + equal_count_bins(event.scores, BINS)).ravel()
    columns = (
        None,
        event.truth.ravel().astype(np.float64),
        event.scores.ravel().astype(np.float64),
    )
    sums = [
        np.bincount(location, weights=one, minlength=people * BINS)
        .reshape(people, BINS)
        .astype(np.float64)
        for one in columns
    ]
    found = []
    for bins in _joined(sums[0] > 0, smallest):
        inside = [one[:, bins].sum(axis=1) for one in sums]
        there = inside[0] > 0
        found.append((inside[0][there], inside[1][there], inside[2][there]))
    return found


def _joined(present: Flags, smallest: int) -> list[list[int]]:
    """Neighbouring bins joined until each has enough subjects; ``present`` is of shape (subjects, bins)."""
    joined: list[list[int]] = []
    waiting: list[int] = []
    for at in range(present.shape[1]):
        waiting = [*waiting, at]
        if present[:, waiting].any(axis=1).sum() >= max(smallest, 1):
            joined, waiting = [*joined, waiting], []
    if joined and waiting:
        joined[-1] = [*joined[-1], *waiting]
    return joined


def _wilson(cells: Floats, positives: Floats, level: float) -> tuple[float, float]:
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


def _ratio(numbers: Floats, of: Floats) -> Floats:
    shares: Floats = np.divide(numbers, of, out=np.full(np.shape(numbers), np.nan), where=of > 0)
    return shares


_EVENTS: dict[Kind, Callable[[Answers, Question], list[Event]]] = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
}
_PREVALENCE_BRIER: dict[Kind, Callable[[Floats], Floats]] = {
    "binary": lambda spread: spread[:, 1],
    "multiclass": lambda spread: spread.sum(axis=1),
    "multilabel": lambda spread: spread.mean(axis=1),
}
