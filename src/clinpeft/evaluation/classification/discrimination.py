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
from clinpeft.core.schemas import PREDICTION_SCHEMA, LabelSpace, ProblemType
from clinpeft.evaluation.bootstrap import (
    ConfidenceInterval,
    Float64Array,
    Int64Array,
    RowStatistics,
    bootstrap_rows,
)
from clinpeft.evaluation.classification.ranks import (
    BoolArray,
    ScoreArray,
    ScoreRanks,
    auroc,
    compute_curve_areas,
    rank_scores,
)
from clinpeft.recipe import ClassificationEvaluationSpec

LABEL_METRICS_SCHEMA = pa.schema(
    [
        pa.field("class", pa.string(), nullable=False),
        pa.field("system", pa.string(), nullable=False),
        pa.field("n_positives", pa.int64(), nullable=False),
        pa.field("train_count", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("auroc", "low", "high", "auprc", "prevalence")),
    ]
)
"""One class against the rest: stays that have it in this split and in training, AUROC with its interval, average precision, prevalence."""

FREQUENCY_BANDS = ("head", "torso", "tail")

_AUROC_DEFINITION = "area under the ROC curve (Mann-Whitney), ties counted half"
_AUPRC_DEFINITION = "average precision: precision at each distinct score weighted by recall gained, without interpolation"
_BAND_DEFINITION = (
    "labels by descending count in training, each band a third of all training label occurrences"
)
_OVERFLOW_HINT = "predict again; a NaN comes from numbers that overflowed, often in half precision"
_MAX_NAMED_CLASSES = 3  # absent classes that a definition names


@dataclass(frozen=True)
class ScoredPredictions:
    """What was asked of n stays and what was answered, for K classes.

    Attributes:
        subjects: of the rows, shape (n,).
        truth: shape (n, K): one-hot for a binary or multiclass question, any number of labels a row for a multilabel one.
        scores: probabilities, shape (n, K).
        kind: of the question.
        logits: shape (n, K); None where a row has none.
    """

    subjects: Int64Array
    truth: BoolArray
    scores: ScoreArray
    kind: ProblemType
    logits: ScoreArray | None = None


@dataclass(frozen=True)
class MetricDefinition:
    """One line of a board.

    Attributes:
        name, definition: as in ``tables.RESULT``; the definition without its interval.
        n_events: positives that the number rests on; None where a question has no event.
        depends_on_model: false for what describes the stays alone.
        has_interval: whether the number has an interval.
    """

    name: str
    definition: str
    n_events: int | None = None
    depends_on_model: bool = True
    has_interval: bool = True


@dataclass(frozen=True)
class MetricSet:
    """All that is measured on some answers: ``compute_values`` takes counts (resamples, n) to values (measures, resamples)."""

    metrics: tuple[MetricDefinition, ...]
    compute_values: RowStatistics


def evaluate_discrimination(
    predictions: pa.Table,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """AUROC, average precision and what belongs beside them, each with a percentile interval by bootstrap over subjects.

    Args:
        predictions: of schema ``tables.PREDICTION``.
        label_space: that they answer.
        split: of the rows that are scored.
        spec: resamples, level, smallest number of positives of a label in an average, ``compat``.
        rng: for the resamples, which all metrics share.

    Returns:
        Rows of ``tables.RESULT`` without ``group``; null values where classes are absent, and ``definition`` says which.

    Raises:
        InputError: answers that are none, with their stay_id.
    """
    found = extract_scored_predictions(predictions, label_space, split)
    return evaluate_metric_set(
        found,
        build_discrimination_metrics(found, label_space, split, spec),
        label_space,
        split,
        spec,
        rng,
    )


def compute_label_metrics(
    predictions: pa.Table,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> pa.Table:
    """Each class against the rest, of schema ``LABELS``; an AUROC without positives or without negatives is null.

    Args and errors as in ``discrimination``; the same state of ``rng`` draws the same resamples.
    """
    found = extract_scored_predictions(predictions, label_space, split)
    each = _rank_each_class(found)
    values = _compute_class_areas(each, _count_rows_once(len(found.subjects)))[:, :, 0]  # (2, K)
    intervals = bootstrap_rows(
        found.subjects,
        lambda counts: _compute_class_areas(each, counts)[0],
        resamples=spec.resamples,
        level=spec.level,
        rng=rng,
    )
    positives = found.truth.sum(axis=0)
    columns = {
        "class": label_space.classes,
        "system": label_space.systems,
        "n_positives": positives,
        "train_count": label_space.train_counts,
        "auroc": _replace_nan_with_none(values[0]),
        "low": [one.low for one in intervals],
        "high": [one.high for one in intervals],
        "auprc": _replace_nan_with_none(values[1]),
        "prevalence": _replace_nan_with_none(
            _divide_or_nan(positives, np.full(len(positives), len(found.truth)))
        ),
    }
    return pa.Table.from_arrays(
        [pa.array(columns[field.name], field.type) for field in LABEL_METRICS_SCHEMA],
        schema=LABEL_METRICS_SCHEMA,
    )


def compute_main_metric(
    scores: ScoreArray, truth: Sequence[Sequence[int]] | Int64Array, label_space: LabelSpace
) -> float:
    """The value of ``question.metric``, without an interval: quick enough for the tuning split during training.

    Args:
        scores: probabilities, shape (n, K).
        truth: the index of each row's class (binary, multiclass), or the indices of all that apply (multilabel).
        label_space: with its metric: ``auroc``, ``auroc_ovo`` or ``auroc_macro`` (labels with both kinds of rows).

    Returns:
        NaN where the classes that it takes are absent.

    Raises:
        InputError: a metric that is none of these.
    """
    if label_space.metric not in _MAIN_METRIC_FUNCTIONS:
        raise InputError(
            f"unknown metric {label_space.metric!r}",
            location=label_space.name,
            hint=f"use one of {', '.join(_MAIN_METRIC_FUNCTIONS)}",
        )
    known = np.zeros(scores.shape, np.bool_)
    for at, classes in enumerate(truth):
        known[at, np.asarray(classes, np.int64)] = True
    return _MAIN_METRIC_FUNCTIONS[label_space.metric](
        ScoredPredictions(np.arange(len(scores)), known, scores, label_space.kind)
    )


def extract_scored_predictions(
    predictions: pa.Table, label_space: LabelSpace, split: str
) -> ScoredPredictions:
    """The answers to a question on one split, in the order of the table.

    Raises:
        InputError: missing columns; a stay asked twice at the same time; a number of probabilities that is not that of the classes; a probability
            outside 0 to 1; an unknown or impossible true class. The first stay_id is named.
    """
    missing = [name for name in PREDICTION_SCHEMA.names if name not in predictions.schema.names]
    if missing:
        hint = f"give the columns {', '.join(PREDICTION_SCHEMA.names)}"
        raise InputError(
            f"not a table of predictions: no column {', '.join(missing)}",
            location=label_space.name,
            hint=hint,
        )
    if label_space.kind == "binary" and len(label_space.classes) != 2:
        raise InputError(
            f"a binary question with {len(label_space.classes)} classes",
            location=label_space.name,
            hint="name two classes, the event second",
        )
    _check_unique_rows(predictions, label_space)
    asked = predictions.filter(pc.equal(predictions["split"], split))
    location = f"{label_space.name}, {split}"
    scores = _read_list_column(asked, "probabilities", len(label_space.classes), location)
    wrong = ~np.logical_and.reduce((scores >= 0) & (scores <= 1), axis=1)  # NaN is neither
    _check_rows(asked, wrong, "a probability that is not between 0 and 1", location, _OVERFLOW_HINT)
    truth = _TRUTH_READERS[label_space.kind](asked, len(label_space.classes), location)
    logits = (
        None
        if asked["logits"].null_count
        else _read_list_column(asked, "logits", len(label_space.classes), location)
    )
    if logits is not None:
        _check_rows(
            asked,
            np.logical_or.reduce(~np.isfinite(logits), axis=1),
            "a logit that is not a number",
            location,
            _OVERFLOW_HINT,
        )
    return ScoredPredictions(
        np.asarray(asked["subject_id"].to_numpy(), np.int64),
        truth,
        scores,
        label_space.kind,
        logits,
    )


def build_discrimination_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> MetricSet:
    """What is measured on the answers to a question of this kind."""
    parts = [_METRIC_BUILDERS[predictions.kind](predictions, label_space, split, spec)]
    if spec.compat:
        parts.append(_build_paper_metrics(predictions, label_space, split))
    measures = tuple(measure for part in parts for measure in part.metrics)
    if not len(predictions.subjects):
        measures = tuple(
            replace(
                measure, definition=f"{measure.definition}; unknown: the split {split} has no stay"
            )
            for measure in measures
        )
    return MetricSet(
        measures, lambda counts: np.concatenate([part.compute_values(counts) for part in parts])
    )


def evaluate_metric_set(
    predictions: ScoredPredictions,
    metric_set: MetricSet,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    """The lines of a board with values and intervals, as rows of ``tables.RESULT`` without ``group``."""
    values = metric_set.compute_values(_count_rows_once(len(predictions.subjects)))[:, 0]
    intervals = bootstrap_rows(
        predictions.subjects,
        metric_set.compute_values,
        resamples=spec.resamples,
        level=spec.level,
        rng=rng,
    )
    subjects = len(np.unique(predictions.subjects))
    rows: list[dict[str, object]] = []
    for measure, value, interval in zip(
        metric_set.metrics, _replace_nan_with_none(values), intervals, strict=True
    ):
        shown = (
            interval
            if measure.has_interval and value is not None
            else ConfidenceInterval(None, None, spec.level)
        )
        remark = _describe_interval(measure, value, shown, subjects, spec)
        rows.append(
            {
                "name": measure.name,
                "value": value,
                "low": shown.low,
                "high": shown.high,
                "level": None if shown.low is None else spec.level,
                "n": len(predictions.subjects),
                "n_subjects": subjects,
                "n_events": measure.n_events,
                "split": split,
                "definition": "; ".join(part for part in (measure.definition, remark) if part),
                "task": label_space.name,
            }
        )
    return rows


def _describe_interval(
    metric: MetricDefinition,
    value: float | None,
    interval: ConfidenceInterval,
    subject_count: int,
    spec: ClassificationEvaluationSpec,
) -> str:
    if value is None or not metric.has_interval:
        return ""
    if subject_count < 2:
        return "no interval: one subject"
    left_out = (
        f", {interval.undefined_resamples} of them without the classes it takes left out"
        if interval.undefined_resamples
        else ""
    )
    return f"interval: percentile bootstrap over subjects, {spec.resamples} resamples{left_out}"


def _build_binary_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    event = predictions.truth[:, 1]
    events, ranked = int(event.sum()), rank_scores(predictions.scores[:, 1], event)
    absent = _describe_absent_classes(predictions, label_space, split)
    share = f"{events / len(event):.4f}" if len(event) else "unknown"

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        return np.concatenate(
            [
                compute_curve_areas(ranked, counts),
                _divide_or_nan(counts.T[event].sum(axis=0), counts.sum(axis=1))[None],
            ]
        )

    named = f"of the event {label_space.classes[1]!r}"
    measures = (
        MetricDefinition("auroc", f"{_AUROC_DEFINITION}, {named}{absent}", events),
        MetricDefinition(
            "auprc",
            f"{_AUPRC_DEFINITION}, {named}; a random ranking has the prevalence, {share}{absent}",
            events,
        ),
        MetricDefinition(
            "prevalence", f"share of stays {named}{absent}", events, depends_on_model=False
        ),
    )
    return MetricSet(measures, statistics)


def _build_multiclass_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    each, pairs, present = (
        _rank_each_class(predictions),
        _rank_class_pairs(predictions),
        int(predictions.truth.any(axis=0).sum()),
    )
    absent = _describe_absent_classes(predictions, label_space, split)

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        against_rest = _compute_class_areas(each, counts)
        return np.stack(
            [
                _average_pairwise_auroc(pairs, counts),
                *(_average_defined(one) for one in against_rest),
            ]
        )

    over = f"unweighted mean over the {present} of {len(label_space.classes)} classes present, each against the rest"
    left_out = "a resample leaves out what it cannot define"
    ovo = f"{_AUROC_DEFINITION}; one-vs-one: mean over unordered pairs of the {present} of {len(label_space.classes)} classes present, both directions of a pair"
    measures = (
        MetricDefinition("auroc_ovo", f"{ovo} (Hand and Till 2001); {left_out}{absent}"),
        MetricDefinition("auroc_ovr", f"{_AUROC_DEFINITION}; {over}; {left_out}{absent}"),
        MetricDefinition("auprc_macro", f"{_AUPRC_DEFINITION}; {over}; {left_out}{absent}"),
    )
    return MetricSet(measures, statistics)


def _build_multilabel_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> MetricSet:
    positives, rows = predictions.truth.sum(axis=0), len(predictions.truth)
    evaluable = (positives >= spec.min_positives) & (positives < rows)
    bands = _assign_frequency_bands(label_space)
    groups = [evaluable, *(evaluable & (bands == at) for at in range(len(FREQUENCY_BANDS)))]
    each, pooled = _rank_each_class(predictions), rank_scores(predictions.scores, predictions.truth)

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        roc, precision = _compute_class_areas(each, counts)
        macro = [_average_defined(roc[group]) for group in groups]
        lines = [
            macro[0],
            compute_curve_areas(pooled, counts)[0],
            _average_defined(precision[evaluable]),
            *macro[1:],
            np.full(len(counts), evaluable.sum()),
        ]
        return np.stack(lines)

    total = len(label_space.classes)
    rule = f"labels with at least {spec.min_positives} positive and one negative stay in this split are evaluable"
    absent = _describe_absent_classes(predictions, label_space, split)
    macro = [
        f"unweighted mean over {_describe_evaluable(groups[0], total, 'labels')}; {rule}; a resample leaves out labels that it cannot define{absent}"
    ]
    macro += [
        f"unweighted mean over {_describe_evaluable(group, int((bands == at).sum()), f'labels of the {name}')}; {_BAND_DEFINITION}{_describe_unknown_bands(bands)}; {rule}"
        for at, (name, group) in enumerate(zip(FREQUENCY_BANDS, groups[1:], strict=True))
    ]
    measures = (
        MetricDefinition(
            "auroc_macro", f"{_AUROC_DEFINITION}; {macro[0]}", int(positives[evaluable].sum())
        ),
        MetricDefinition(
            "auroc_micro",
            f"{_AUROC_DEFINITION}; over all pairs of a stay and one of {total} labels pooled{absent}",
            int(positives.sum()),
        ),
        MetricDefinition(
            "auprc_macro", f"{_AUPRC_DEFINITION}; {macro[0]}", int(positives[evaluable].sum())
        ),
        *(
            MetricDefinition(
                f"auroc_{band}",
                f"{_AUROC_DEFINITION}; {macro[1 + at]}",
                int(positives[groups[1 + at]].sum()),
            )
            for at, band in enumerate(FREQUENCY_BANDS)
        ),
        MetricDefinition(
            "labels_evaluable",
            f"number of {total} labels; {rule}{absent}",
            int(positives[evaluable].sum()),
            depends_on_model=False,
            has_interval=False,
        ),
    )
    return MetricSet(measures, statistics)


def _build_paper_metrics(
    predictions: ScoredPredictions, label_space: LabelSpace, split: str
) -> MetricSet:
    """The AUROC of the code of arXiv 2307.03042: a softmax over all labels, even where several apply."""
    absent = _describe_absent_classes(predictions, label_space, split)
    how = f"{_AUROC_DEFINITION}; as in the code of arXiv 2307.03042: softmax over all {len(label_space.classes)} logits"
    if predictions.logits is None:
        measure = MetricDefinition(
            "auroc_clinical_peft", f"{how}; unknown: these answers have no logits"
        )
        return MetricSet((measure,), lambda counts: np.full((1, len(counts)), np.nan))
    softmax = replace(predictions, scores=_compute_softmax(predictions.logits))
    statistics, averaged = _PAPER_METRIC_BUILDERS[predictions.kind](softmax)
    return MetricSet(
        (MetricDefinition("auroc_clinical_peft", f"{how}; {averaged}{absent}"),),
        lambda counts: statistics(counts)[None],
    )


def _build_paper_binary_auroc(predictions: ScoredPredictions) -> tuple[RowStatistics, str]:
    ranked = rank_scores(predictions.scores[:, 1], predictions.truth[:, 1])
    return lambda counts: compute_curve_areas(ranked, counts)[0], "of the second class"


def _build_paper_multiclass_auroc(predictions: ScoredPredictions) -> tuple[RowStatistics, str]:
    pairs = _rank_class_pairs(predictions)
    return lambda counts: _average_pairwise_auroc(
        pairs, counts
    ), "one-vs-one, mean over unordered pairs of the classes present"


def _build_paper_multilabel_auroc(predictions: ScoredPredictions) -> tuple[RowStatistics, str]:
    each = _rank_each_class(predictions)
    both = int((predictions.truth.any(axis=0) & ~predictions.truth.all(axis=0)).sum())
    return lambda counts: _average_defined(
        _compute_class_areas(each, counts)[0]
    ), f"mean over the {both} labels that some stays have and some have not"


ClassPair = tuple[NDArray[np.intp], ScoreRanks, ScoreRanks]


def _rank_class_pairs(predictions: ScoredPredictions) -> list[ClassPair]:
    """For each two classes present: the rows of either, and how they rank by the score of each."""
    pairs = []
    for one, other in combinations(np.flatnonzero(predictions.truth.any(axis=0)), 2):
        rows = np.flatnonzero(predictions.truth[:, one] | predictions.truth[:, other])
        both = [
            rank_scores(predictions.scores[rows, at], predictions.truth[rows, at])
            for at in (one, other)
        ]
        pairs.append((rows, both[0], both[1]))
    return pairs


def _average_pairwise_auroc(pairs: Sequence[ClassPair], counts: NDArray[np.int32]) -> Float64Array:
    """Hand and Till 2001, equation 7: shape (resamples,)."""
    drawn = counts.T
    values = [
        (
            compute_curve_areas(first, drawn[rows].T)[0]
            + compute_curve_areas(second, drawn[rows].T)[0]
        )
        / 2
        for rows, first, second in pairs
    ]
    return _average_defined(np.stack(values) if values else np.empty((0, len(counts))))


def _rank_each_class(predictions: ScoredPredictions) -> list[ScoreRanks]:
    return [
        rank_scores(predictions.scores[:, at], predictions.truth[:, at])
        for at in range(predictions.truth.shape[1])
    ]


def _compute_class_areas(
    class_ranks: Sequence[ScoreRanks], counts: NDArray[np.int32]
) -> Float64Array:
    """AUROC and average precision, shape (2, classes, resamples)."""
    return np.stack([compute_curve_areas(ranked, counts) for ranked in class_ranks], axis=1)


def _assign_frequency_bands(label_space: LabelSpace) -> Int64Array:
    """0, 1, 2 for head, torso and tail: the third of all occurrences in training in which a class begins, by descending count; -1 if unknown."""
    occurrences = np.asarray(label_space.train_counts, np.int64)
    if not occurrences.sum():
        return np.full(len(label_space.classes), -1)
    order = np.argsort(-occurrences, kind="stable")
    before = np.cumsum(occurrences[order]) - occurrences[order]
    bands = np.empty(len(order), np.int64)
    bands[order] = np.minimum(3 * before // occurrences.sum(), len(FREQUENCY_BANDS) - 1)
    return bands


def _describe_unknown_bands(bands: Int64Array) -> str:
    return "; unknown: the counts in training are not known" if (bands < 0).any() else ""


def _describe_evaluable(is_evaluable: BoolArray, total: int, noun: str) -> str:
    return f"the {int(is_evaluable.sum())} evaluable of {total} {noun}" + (
        "" if is_evaluable.any() else " (unknown: none is)"
    )


def _describe_absent_classes(
    predictions: ScoredPredictions, label_space: LabelSpace, split: str
) -> str:
    """Which classes no stay has, as the end of a definition; empty where all are there."""
    absent = [label_space.classes[at] for at in np.flatnonzero(~predictions.truth.any(axis=0))]
    if not absent or not len(predictions.truth):
        return ""
    more = (
        f", nor have {len(absent) - _MAX_NAMED_CLASSES} more classes"
        if len(absent) > _MAX_NAMED_CLASSES
        else ""
    )
    return (
        "; "
        + ", ".join(f"class {name!r} has no {split} stay" for name in absent[:_MAX_NAMED_CLASSES])
        + more
    )


def _average_defined(values: Float64Array) -> Float64Array:
    """Over the first axis, NaN left out; NaN where nothing is left. Shape (k, resamples) to (resamples,)."""
    defined = ~np.isnan(values)
    return _divide_or_nan(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _divide_or_nan(numerators: NDArray[Any], denominators: NDArray[Any]) -> Float64Array:
    shares: Float64Array = np.divide(
        numerators,
        denominators,
        out=np.full(numerators.shape, np.nan),
        where=denominators > 0,
        dtype=np.float64,
    )
    return shares


def _compute_softmax(logits: ScoreArray) -> Float64Array:
    raised: Float64Array = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return raised


def _count_rows_once(row_count: int) -> NDArray[np.int32]:
    return np.ones((1, row_count), np.int32)


def _replace_nan_with_none(values: Float64Array) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _check_unique_rows(predictions: pa.Table, label_space: LabelSpace) -> None:
    asked = predictions.group_by(["stay_id", "prediction_time"]).aggregate([([], "count_all")])
    twice = asked.filter(pc.greater(asked["count_all"], 1))
    if len(twice):
        location = f"{label_space.name}, stay_id {twice['stay_id'][0].as_py()}"
        raise InputError(
            f"{len(twice)} stays answered more than once for the same time",
            location=location,
            hint="give one row a stay and time",
        )


def _check_rows(
    predictions: pa.Table, is_invalid: NDArray[np.bool_], message: str, location: str, hint: str
) -> None:
    if is_invalid.any():
        first = predictions["stay_id"][int(np.flatnonzero(is_invalid)[0])].as_py()
        raise InputError(
            f"{message}, in {int(is_invalid.sum())} stays",
            location=f"{location}, stay_id {first}",
            hint=hint,
        )


def _read_list_column(
    predictions: pa.Table, column: str, class_count: int, location: str
) -> ScoreArray:
    """A column of lists, one number a class, as shape (n, classes)."""
    lists = predictions[column].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    message = f"a number of {column} that is not the {class_count} of the classes"
    _check_rows(
        predictions,
        lengths != class_count,
        message,
        location,
        "predict with the head of this question",
    )
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(
        len(predictions), class_count
    )


def _read_single_label_truth(predictions: pa.Table, class_count: int, location: str) -> BoolArray:
    label = pc.fill_null(predictions["label"], -1).to_numpy()
    _check_rows(
        predictions,
        (label < 0) | (label >= class_count),
        f"a true class that is unknown or not one of {class_count}",
        location,
        "give the index of a class",
    )
    return np.asarray(label[:, None] == np.arange(class_count))


def _read_multilabel_truth(predictions: pa.Table, class_count: int, location: str) -> BoolArray:
    lists, hint = (
        predictions["labels"].combine_chunks(),
        "give the indices of classes, an empty list where none applies",
    )
    _check_rows(
        predictions, np.asarray(lists.is_null()), "true classes that are unknown", location, hint
    )
    row, label = (
        np.asarray(pc.list_parent_indices(lists)),
        np.asarray(pc.fill_null(lists.flatten(), -1)),
    )
    wrong = np.bincount(row[(label < 0) | (label >= class_count)], minlength=len(predictions)) > 0
    _check_rows(
        predictions,
        wrong,
        f"a true class that is unknown or not one of {class_count}",
        location,
        hint,
    )
    truth = np.zeros((len(predictions), class_count), np.bool_)
    truth[row, label] = True
    return truth


def _compute_macro_auroc(predictions: ScoredPredictions) -> float:
    both = np.flatnonzero(predictions.truth.any(axis=0) & ~predictions.truth.all(axis=0))
    return (
        float(np.mean([auroc(predictions.scores[:, at], predictions.truth[:, at]) for at in both]))
        if len(both)
        else float("nan")
    )


_METRIC_BUILDERS: dict[
    ProblemType,
    Callable[[ScoredPredictions, LabelSpace, str, ClassificationEvaluationSpec], MetricSet],
] = {
    "binary": _build_binary_metrics,
    "multiclass": _build_multiclass_metrics,
    "multilabel": _build_multilabel_metrics,
}
_PAPER_METRIC_BUILDERS: dict[
    ProblemType, Callable[[ScoredPredictions], tuple[RowStatistics, str]]
] = {
    "binary": _build_paper_binary_auroc,
    "multiclass": _build_paper_multiclass_auroc,
    "multilabel": _build_paper_multilabel_auroc,
}
_TRUTH_READERS: dict[ProblemType, Callable[[pa.Table, int, str], BoolArray]] = {
    "binary": _read_single_label_truth,
    "multiclass": _read_single_label_truth,
    "multilabel": _read_multilabel_truth,
}
_MAIN_METRIC_FUNCTIONS: dict[str, Callable[[ScoredPredictions], float]] = {
    "auroc": lambda found: auroc(found.scores[:, 1], found.truth[:, 1]),
    "auroc_ovo": lambda found: float(
        _average_pairwise_auroc(_rank_class_pairs(found), _count_rows_once(len(found.subjects)))[0]
    ),
    "auroc_macro": _compute_macro_auroc,
}
