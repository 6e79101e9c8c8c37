"""Discrimination: whether those to whom it happened were given the higher probabilities.

A table of predictions becomes ``Answers``, these a ``Board``: what is measured, and one function that gives all of it for resamples. The value of
a metric is that of the resample which draws every row once, so that values and intervals cannot disagree; all metrics of a board share their
resamples, and two models on the same stays share them too (``paired``).

A 95 % interval of an AUROC held the truth in 93 to 95 % of simulated samples of 250 subjects with one to six stays each, and in 92 to 94 % of
samples of 60: with few subjects percentile intervals are a little too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import PREDICTION, Kind, Question
from clinpeft.evaluation.bootstrap import Floats, Integers, Interval, RowStatistics, row_bootstrap
from clinpeft.evaluation.classification.ranks import Flags, Ranks, Scores, areas, auroc, ranks
from clinpeft.recipe import ScoringSpec

LABELS = pa.schema(
    [
        pa.field("class", pa.string(), nullable=False),
        pa.field("system", pa.string(), nullable=False),
        pa.field("n_positives", pa.int64(), nullable=False),
        pa.field("train_count", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("auroc", "low", "high", "auprc", "prevalence")),
    ]
)
"""One class against the rest: stays that have it in this split and in training, AUROC with its interval, average precision, prevalence."""

BANDS = ("head", "torso", "tail")

_AUROC = "area under the ROC curve (Mann-Whitney), ties counted half"
_AUPRC = "average precision: precision at each distinct score weighted by recall gained, without interpolation"
_BAND = (
    "labels by descending count in training, each band a third of all training label occurrences"
)
_OVERFLOWED = "predict again; a NaN comes from numbers that overflowed, often in half precision"
_NAMED = 3  # absent classes that a definition names


@dataclass(frozen=True)
class Answers:
    """What was asked of n stays and what was answered, for K classes.

    Attributes:
        subjects: of the rows, shape (n,).
        truth: shape (n, K): one-hot for a binary or multiclass question, any number of labels a row for a multilabel one.
        scores: probabilities, shape (n, K).
        kind: of the question.
        logits: shape (n, K); None where a row has none.
    """

    subjects: Integers
    truth: Flags
    scores: Scores
    kind: Kind
    logits: Scores | None = None


@dataclass(frozen=True)
class Measure:
    """One line of a board.

    Attributes:
        name, definition: as in ``tables.RESULT``; the definition without its interval.
        n_events: positives that the number rests on; None where a question has no event.
        of_model: false for what describes the stays alone.
        resampled: whether the number has an interval.
    """

    name: str
    definition: str
    n_events: int | None = None
    of_model: bool = True
    resampled: bool = True


@dataclass(frozen=True)
class Board:
    """All that is measured on some answers: ``statistics`` takes counts (resamples, n) to values (measures, resamples)."""

    measures: tuple[Measure, ...]
    statistics: RowStatistics


def discrimination(
    predictions: pa.Table,
    question: Question,
    split: str,
    spec: ScoringSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """AUROC, average precision and what belongs beside them, each with a percentile interval by bootstrap over subjects.

    Args:
        predictions: of schema ``tables.PREDICTION``.
        question: that they answer.
        split: of the rows that are scored.
        spec: resamples, level, smallest number of positives of a label in an average, ``compat``.
        rng: for the resamples, which all metrics share.

    Returns:
        Rows of ``tables.RESULT`` without ``group``; null values where classes are absent, and ``definition`` says which.

    Raises:
        InputError: answers that are none, with their stay_id.
    """
    found = answers(predictions, question, split)
    return scored(found, board(found, question, split, spec), question, split, spec, rng)


def labels_table(
    predictions: pa.Table,
    question: Question,
    split: str,
    spec: ScoringSpec,
    rng: np.random.Generator,
) -> pa.Table:
    """Each class against the rest, of schema ``LABELS``; an AUROC without positives or without negatives is null.

    Args and errors as in ``discrimination``; the same state of ``rng`` draws the same resamples.
    """
    found = answers(predictions, question, split)
    each = _each_class(found)
    values = _areas_of(each, _once(len(found.subjects)))[:, :, 0]  # (2, K)
    intervals = row_bootstrap(
        found.subjects,
        lambda counts: _areas_of(each, counts)[0],
        resamples=spec.resamples,
        level=spec.level,
        rng=rng,
    )
    positives = found.truth.sum(axis=0)
    columns = {
        "class": question.classes,
        "system": question.systems,
        "n_positives": positives,
        "train_count": question.train_counts,
        "auroc": _or_null(values[0]),
        "low": [one.low for one in intervals],
        "high": [one.high for one in intervals],
        "auprc": _or_null(values[1]),
        "prevalence": _or_null(_ratio(positives, np.full(len(positives), len(found.truth)))),
    }
    return pa.Table.from_arrays(
        [pa.array(columns[field.name], field.type) for field in LABELS], schema=LABELS
    )


def main_metric(
    scores: Scores, truth: Sequence[Sequence[int]] | Integers, question: Question
) -> float:
    """The value of ``question.metric``, without an interval: quick enough for the tuning split during training.

    Args:
        scores: probabilities, shape (n, K).
        truth: the index of each row's class (binary, multiclass), or the indices of all that apply (multilabel).
        question: with its metric: ``auroc``, ``auroc_ovo`` or ``auroc_macro`` (labels with both kinds of rows).

    Returns:
        NaN where the classes that it takes are absent.

    Raises:
        InputError: a metric that is none of these.
    """
    if question.metric not in _MAIN:
        raise InputError(
            f"unknown metric {question.metric!r}",
            location=question.name,
            hint=f"use one of {', '.join(_MAIN)}",
        )
    known = np.zeros(scores.shape, np.bool_)
    for at, classes in enumerate(truth):
        known[at, np.asarray(classes, np.int64)] = True
    return _MAIN[question.metric](Answers(np.arange(len(scores)), known, scores, question.kind))


def answers(predictions: pa.Table, question: Question, split: str) -> Answers:
    """The answers to a question on one split, in the order of the table.

    Raises:
        InputError: missing columns; a stay asked twice at the same time; a number of probabilities that is not that of the classes; a probability
            outside 0 to 1; an unknown or impossible true class. The first stay_id is named.
    """
    missing = [name for name in PREDICTION.names if name not in predictions.schema.names]
    if missing:
        hint = f"give the columns {', '.join(PREDICTION.names)}"
        raise InputError(
            f"not a table of predictions: no column {', '.join(missing)}",
            location=question.name,
            hint=hint,
        )
    if question.kind == "binary" and len(question.classes) != 2:
        raise InputError(
            f"a binary question with {len(question.classes)} classes",
            location=question.name,
            hint="name two classes, the event second",
        )
    _refuse_twice(predictions, question)
    asked = predictions.filter(pc.equal(predictions["split"], split))
    location = f"{question.name}, {split}"
    scores = _matrix(asked, "probabilities", len(question.classes), location)
    wrong = ~np.logical_and.reduce((scores >= 0) & (scores <= 1), axis=1)  # NaN is neither
    _refuse(asked, wrong, "a probability that is not between 0 and 1", location, _OVERFLOWED)
    truth = _TRUTHS[question.kind](asked, len(question.classes), location)
    logits = (
        None
        if asked["logits"].null_count
        else _matrix(asked, "logits", len(question.classes), location)
    )
    if logits is not None:
        _refuse(
            asked,
            np.logical_or.reduce(~np.isfinite(logits), axis=1),
            "a logit that is not a number",
            location,
            _OVERFLOWED,
        )
    return Answers(
        np.asarray(asked["subject_id"].to_numpy(), np.int64), truth, scores, question.kind, logits
    )


def board(found: Answers, question: Question, split: str, spec: ScoringSpec) -> Board:
    """What is measured on the answers to a question of this kind."""
    parts = [_BOARDS[found.kind](found, question, split, spec)]
    if spec.compat:
        parts.append(_paper_board(found, question, split))
    measures = tuple(measure for part in parts for measure in part.measures)
    if not len(found.subjects):
        measures = tuple(
            replace(
                measure, definition=f"{measure.definition}; unknown: the split {split} has no stay"
            )
            for measure in measures
        )
    return Board(
        measures, lambda counts: np.concatenate([part.statistics(counts) for part in parts])
    )


def scored(
    found: Answers,
    measured: Board,
    question: Question,
    split: str,
    spec: ScoringSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """The lines of a board with values and intervals, as rows of ``tables.RESULT`` without ``group``."""
    values = measured.statistics(_once(len(found.subjects)))[:, 0]
    intervals = row_bootstrap(
        found.subjects, measured.statistics, resamples=spec.resamples, level=spec.level, rng=rng
    )
    subjects = len(np.unique(found.subjects))
    rows: list[dict[str, object]] = []
    for measure, value, interval in zip(
        measured.measures, _or_null(values), intervals, strict=True
    ):
        shown = (
            interval
            if measure.resampled and value is not None
            else Interval(None, None, spec.level)
        )
        remark = _remark(measure, value, shown, subjects, spec)
        rows.append(
            {
                "name": measure.name,
                "value": value,
                "low": shown.low,
                "high": shown.high,
                "level": None if shown.low is None else spec.level,
                "n": len(found.subjects),
                "n_subjects": subjects,
                "n_events": measure.n_events,
                "split": split,
                "definition": "; ".join(part for part in (measure.definition, remark) if part),
                "task": question.name,
            }
        )
    return rows


def _remark(
    measure: Measure, value: float | None, interval: Interval, subjects: int, spec: ScoringSpec
) -> str:
    if value is None or not measure.resampled:
        return ""
    if subjects < 2:
        return "no interval: one subject"
    left_out = (
        f", {interval.undefined} of them without the classes it takes left out"
        if interval.undefined
        else ""
    )
    return f"interval: percentile bootstrap over subjects, {spec.resamples} resamples{left_out}"


def _binary(found: Answers, question: Question, split: str, _: ScoringSpec) -> Board:
    event = found.truth[:, 1]
    events, ranked = int(event.sum()), ranks(found.scores[:, 1], event)
    absent = _absent(found, question, split)
    share = f"{events / len(event):.4f}" if len(event) else "unknown"

    def statistics(counts: NDArray[np.int32]) -> Floats:
        return np.concatenate(
            [areas(ranked, counts), _ratio(counts.T[event].sum(axis=0), counts.sum(axis=1))[None]]
        )

    named = f"of the event {question.classes[1]!r}"
    measures = (
        Measure("auroc", f"{_AUROC}, {named}{absent}", events),
        Measure(
            "auprc",
            f"{_AUPRC}, {named}; a random ranking has the prevalence, {share}{absent}",
            events,
        ),
        Measure("prevalence", f"share of stays {named}{absent}", events, of_model=False),
    )
    return Board(measures, statistics)


def _multiclass(found: Answers, question: Question, split: str, _: ScoringSpec) -> Board:
    each, pairs, present = _each_class(found), _pairs(found), int(found.truth.any(axis=0).sum())
    absent = _absent(found, question, split)

    def statistics(counts: NDArray[np.int32]) -> Floats:
        against_rest = _areas_of(each, counts)
        return np.stack(
            [_one_against_one(pairs, counts), *(_mean_of_defined(one) for one in against_rest)]
        )

    over = f"unweighted mean over the {present} of {len(question.classes)} classes present, each against the rest"
    left_out = "a resample leaves out what it cannot define"
    ovo = f"{_AUROC}; one-vs-one: mean over unordered pairs of the {present} of {len(question.classes)} classes present, both directions of a pair"
    measures = (
        Measure("auroc_ovo", f"{ovo} (Hand and Till 2001); {left_out}{absent}"),
        Measure("auroc_ovr", f"{_AUROC}; {over}; {left_out}{absent}"),
        Measure("auprc_macro", f"{_AUPRC}; {over}; {left_out}{absent}"),
    )
    return Board(measures, statistics)


def _multilabel(found: Answers, question: Question, split: str, spec: ScoringSpec) -> Board:
    positives, rows = found.truth.sum(axis=0), len(found.truth)
    evaluable = (positives >= spec.min_positives) & (positives < rows)
    bands = _bands(question)
    groups = [evaluable, *(evaluable & (bands == at) for at in range(len(BANDS)))]
    each, pooled = _each_class(found), ranks(found.scores, found.truth)

    def statistics(counts: NDArray[np.int32]) -> Floats:
        roc, precision = _areas_of(each, counts)
        macro = [_mean_of_defined(roc[group]) for group in groups]
        lines = [
            macro[0],
            areas(pooled, counts)[0],
            _mean_of_defined(precision[evaluable]),
            *macro[1:],
            np.full(len(counts), evaluable.sum()),
        ]
        return np.stack(lines)

    total = len(question.classes)
    rule = f"labels with at least {spec.min_positives} positive and one negative stay in this split are evaluable"
    absent = _absent(found, question, split)
    macro = [
        f"unweighted mean over {_counted(groups[0], total, 'labels')}; {rule}; a resample leaves out labels that it cannot define{absent}"
    ]
    macro += [
        f"unweighted mean over {_counted(group, int((bands == at).sum()), f'labels of the {name}')}; {_BAND}{_no_bands(bands)}; {rule}"
        for at, (name, group) in enumerate(zip(BANDS, groups[1:], strict=True))
    ]
    measures = (
        Measure("auroc_macro", f"{_AUROC}; {macro[0]}", int(positives[evaluable].sum())),
        Measure(
            "auroc_micro",
            f"{_AUROC}; over all pairs of a stay and one of {total} labels pooled{absent}",
            int(positives.sum()),
        ),
        Measure("auprc_macro", f"{_AUPRC}; {macro[0]}", int(positives[evaluable].sum())),
        *(
            Measure(
                f"auroc_{band}", f"{_AUROC}; {macro[1 + at]}", int(positives[groups[1 + at]].sum())
            )
            for at, band in enumerate(BANDS)
        ),
        Measure(
            "labels_evaluable",
            f"number of {total} labels; {rule}{absent}",
            int(positives[evaluable].sum()),
            of_model=False,
            resampled=False,
        ),
    )
    return Board(measures, statistics)


def _paper_board(found: Answers, question: Question, split: str) -> Board:
    """The AUROC of the code of arXiv 2307.03042: a softmax over all labels, even where several apply."""
    absent = _absent(found, question, split)
    how = f"{_AUROC}; as in the code of arXiv 2307.03042: softmax over all {len(question.classes)} logits"
    if found.logits is None:
        measure = Measure("auroc_clinical_peft", f"{how}; unknown: these answers have no logits")
        return Board((measure,), lambda counts: np.full((1, len(counts)), np.nan))
    softmax = replace(found, scores=_softmax(found.logits))
    statistics, averaged = _PAPER[found.kind](softmax)
    return Board(
        (Measure("auroc_clinical_peft", f"{how}; {averaged}{absent}"),),
        lambda counts: statistics(counts)[None],
    )


def _paper_binary(found: Answers) -> tuple[RowStatistics, str]:
    ranked = ranks(found.scores[:, 1], found.truth[:, 1])
    return lambda counts: areas(ranked, counts)[0], "of the second class"


def _paper_multiclass(found: Answers) -> tuple[RowStatistics, str]:
    pairs = _pairs(found)
    return lambda counts: _one_against_one(
        pairs, counts
    ), "one-vs-one, mean over unordered pairs of the classes present"


def _paper_multilabel(found: Answers) -> tuple[RowStatistics, str]:
    each = _each_class(found)
    both = int((found.truth.any(axis=0) & ~found.truth.all(axis=0)).sum())
    return lambda counts: _mean_of_defined(
        _areas_of(each, counts)[0]
    ), f"mean over the {both} labels that some stays have and some have not"


Pair = tuple[NDArray[np.intp], Ranks, Ranks]


def _pairs(found: Answers) -> list[Pair]:
    """For each two classes present: the rows of either, and how they rank by the score of each."""
    pairs = []
    for one, other in combinations(np.flatnonzero(found.truth.any(axis=0)), 2):
        rows = np.flatnonzero(found.truth[:, one] | found.truth[:, other])
        both = [ranks(found.scores[rows, at], found.truth[rows, at]) for at in (one, other)]
        pairs.append((rows, both[0], both[1]))
    return pairs


def _one_against_one(pairs: Sequence[Pair], counts: NDArray[np.int32]) -> Floats:
    """Hand and Till 2001, equation 7: shape (resamples,)."""
    drawn = counts.T
    values = [
        (areas(first, drawn[rows].T)[0] + areas(second, drawn[rows].T)[0]) / 2
        for rows, first, second in pairs
    ]
    return _mean_of_defined(np.stack(values) if values else np.empty((0, len(counts))))


def _each_class(found: Answers) -> list[Ranks]:
    return [ranks(found.scores[:, at], found.truth[:, at]) for at in range(found.truth.shape[1])]


def _areas_of(each: Sequence[Ranks], counts: NDArray[np.int32]) -> Floats:
    """AUROC and average precision, shape (2, classes, resamples)."""
    return np.stack([areas(ranked, counts) for ranked in each], axis=1)


def _bands(question: Question) -> Integers:
    """0, 1, 2 for head, torso and tail: the third of all occurrences in training in which a class begins, by descending count; -1 if unknown."""
    occurrences = np.asarray(question.train_counts, np.int64)
    if not occurrences.sum():
        return np.full(len(question.classes), -1)
    order = np.argsort(-occurrences, kind="stable")
    before = np.cumsum(occurrences[order]) - occurrences[order]
    bands = np.empty(len(order), np.int64)
    bands[order] = np.minimum(3 * before // occurrences.sum(), len(BANDS) - 1)
    return bands


def _no_bands(bands: Integers) -> str:
    return "; unknown: the counts in training are not known" if (bands < 0).any() else ""


def _counted(group: Flags, total: int, what: str) -> str:
    return f"the {int(group.sum())} evaluable of {total} {what}" + (
        "" if group.any() else " (unknown: none is)"
    )


def _absent(found: Answers, question: Question, split: str) -> str:
    """Which classes no stay has, as the end of a definition; empty where all are there."""
    absent = [question.classes[at] for at in np.flatnonzero(~found.truth.any(axis=0))]
    if not absent or not len(found.truth):
        return ""
    more = f", nor have {len(absent) - _NAMED} more classes" if len(absent) > _NAMED else ""
    return (
        "; " + ", ".join(f"class {name!r} has no {split} stay" for name in absent[:_NAMED]) + more
    )


def _mean_of_defined(values: Floats) -> Floats:
    """Over the first axis, NaN left out; NaN where nothing is left. Shape (k, resamples) to (resamples,)."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _ratio(numbers: NDArray[Any], of: NDArray[Any]) -> Floats:
    shares: Floats = np.divide(
        numbers, of, out=np.full(numbers.shape, np.nan), where=of > 0, dtype=np.float64
    )
    return shares


def _softmax(logits: Scores) -> Floats:
    raised: Floats = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return raised


def _once(rows: int) -> NDArray[np.int32]:
    return np.ones((1, rows), np.int32)


def _or_null(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _refuse_twice(predictions: pa.Table, question: Question) -> None:
    asked = predictions.group_by(["stay_id", "prediction_time"]).aggregate([([], "count_all")])
    twice = asked.filter(pc.greater(asked["count_all"], 1))
    if len(twice):
        location = f"{question.name}, stay_id {twice['stay_id'][0].as_py()}"
        raise InputError(
            f"{len(twice)} stays answered more than once for the same time",
            location=location,
            hint="give one row a stay and time",
        )


def _refuse(
    asked: pa.Table, wrong: NDArray[np.bool_], message: str, location: str, hint: str
) -> None:
    if wrong.any():
        first = asked["stay_id"][int(np.flatnonzero(wrong)[0])].as_py()
        raise InputError(
            f"{message}, in {int(wrong.sum())} stays",
            location=f"{location}, stay_id {first}",
            hint=hint,
        )


def _matrix(asked: pa.Table, column: str, classes: int, location: str) -> Scores:
    """A column of lists, one number a class, as shape (n, classes)."""
    lists = asked[column].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    message = f"a number of {column} that is not the {classes} of the classes"
    _refuse(asked, lengths != classes, message, location, "predict with the head of this question")
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(len(asked), classes)


def _one_true(asked: pa.Table, classes: int, location: str) -> Flags:
    label = pc.fill_null(asked["label"], -1).to_numpy()
    _refuse(
        asked,
        (label < 0) | (label >= classes),
        f"a true class that is unknown or not one of {classes}",
        location,
        "give the index of a class",
    )
    return np.asarray(label[:, None] == np.arange(classes))


def _several_true(asked: pa.Table, classes: int, location: str) -> Flags:
    lists, hint = (
        asked["labels"].combine_chunks(),
        "give the indices of classes, an empty list where none applies",
    )
    _refuse(asked, np.asarray(lists.is_null()), "true classes that are unknown", location, hint)
    row, label = (
        np.asarray(pc.list_parent_indices(lists)),
        np.asarray(pc.fill_null(lists.flatten(), -1)),
    )
    wrong = np.bincount(row[(label < 0) | (label >= classes)], minlength=len(asked)) > 0
    _refuse(asked, wrong, f"a true class that is unknown or not one of {classes}", location, hint)
    truth = np.zeros((len(asked), classes), np.bool_)
    truth[row, label] = True
    return truth


def _macro_now(found: Answers) -> float:
    both = np.flatnonzero(found.truth.any(axis=0) & ~found.truth.all(axis=0))
    return (
        float(np.mean([auroc(found.scores[:, at], found.truth[:, at]) for at in both]))
        if len(both)
        else float("nan")
    )


_BOARDS: dict[Kind, Callable[[Answers, Question, str, ScoringSpec], Board]] = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
}
_PAPER: dict[Kind, Callable[[Answers], tuple[RowStatistics, str]]] = {
    "binary": _paper_binary,
    "multiclass": _paper_multiclass,
    "multilabel": _paper_multilabel,
}
_TRUTHS: dict[Kind, Callable[[pa.Table, int, str], Flags]] = {
    "binary": _one_true,
    "multiclass": _one_true,
    "multilabel": _several_true,
}
_MAIN: dict[str, Callable[[Answers], float]] = {
    "auroc": lambda found: auroc(found.scores[:, 1], found.truth[:, 1]),
    "auroc_ovo": lambda found: float(
        _one_against_one(_pairs(found), _once(len(found.subjects)))[0]
    ),
    "auroc_macro": _macro_now,
}
