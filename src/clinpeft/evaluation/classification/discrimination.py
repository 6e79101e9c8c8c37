"""Discrimination: AUROC, average precision and their averages over classes.

A 95 % interval of an AUROC covered the truth in 93 to 95 % of simulated samples of 250 subjects
with one to six stays each, and in 92 to 94 % of samples of 60: with few subjects percentile
intervals are a little too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import special

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import LabelSpace, ProblemType
from clinpeft.evaluation.arrays import (
    Float64Array,
    Int64Array,
    ScoreArray,
    average_defined,
    divide_or_nan,
)
from clinpeft.evaluation.bootstrap import bootstrap_rows
from clinpeft.evaluation.classification.metric_set import (
    MetricDefinition,
    MetricSet,
    combine_metric_sets,
)
from clinpeft.evaluation.classification.ranks import (
    ScoreRanks,
    auroc,
    compute_curve_areas,
    rank_scores,
)
from clinpeft.evaluation.classification.scored_predictions import (
    ScoredPredictions,
    extract_scored_predictions,
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
"""One class against the rest: stays that have it in this split and in training, AUROC with its
interval, average precision, prevalence."""

FREQUENCY_BANDS = ("head", "torso", "tail")
CLASSIFICATION_MAIN_METRICS = ("auroc", "auroc_ovo", "auroc_macro")
"""Main metric of a binary, a multiclass and a multilabel task."""

_AUROC_DEFINITION = "area under the ROC curve (Mann-Whitney), ties counted half"
_AUPRC_DEFINITION = (
    "average precision: precision at each distinct score weighted by recall gained, "
    "without interpolation"
)
_BAND_DEFINITION = (
    "labels by descending count in training, each band a third of all training label occurrences"
)
_MAX_NAMED_CLASSES = 3  # absent classes that a definition names

ClassPair = tuple[NDArray[np.intp], ScoreRanks, ScoreRanks]
"""Rows of either class, shape (m,), and their ranks by the score of the first and of the second."""


def compute_label_metrics(
    predictions: pa.Table,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> pa.Table:
    """Compute AUROC and average precision of each class against the rest.

    Args:
        predictions: of schema ``PREDICTION_SCHEMA``.
        label_space: that of the task.
        split: of the rows that are scored.
        spec: resamples and level.
        rng: source of the resamples; the same state draws the same resamples.

    Returns:
        Of schema ``LABEL_METRICS_SCHEMA``, one row a class. An AUROC without positives or without
        negatives is null; ties count half.

    Raises:
        InputError: invalid predictions, with their stay_id.
    """
    scored = extract_scored_predictions(predictions, label_space, split)
    class_ranks = _rank_classes(scored)
    once = np.ones((1, len(scored.subjects)), np.int32)
    values = _compute_class_areas(class_ranks, once)[:, :, 0]  # (2, K)
    intervals = bootstrap_rows(
        scored.subjects,
        lambda counts: _compute_class_areas(class_ranks, counts)[0],
        resamples=spec.resamples,
        level=spec.level,
        rng=rng,
    )
    positives = scored.truth.sum(axis=0)  # (K,)
    columns = {
        "class": label_space.classes,
        "system": label_space.systems,
        "n_positives": positives,
        "train_count": label_space.train_counts,
        "auroc": values[0],
        "low": [interval.low for interval in intervals],
        "high": [interval.high for interval in intervals],
        "auprc": values[1],
        "prevalence": divide_or_nan(positives, np.full(len(positives), len(scored.truth))),
    }
    # from_pandas: NaN, a metric that is not defined, becomes null.
    arrays = [
        pa.array(columns[field.name], field.type, from_pandas=True)
        for field in LABEL_METRICS_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=LABEL_METRICS_SCHEMA)


def compute_main_metric(
    scores: ScoreArray, truth: Sequence[Sequence[int]] | Int64Array, label_space: LabelSpace
) -> float:
    """Compute ``label_space.metric`` without an interval, as on the tuning split in training.

    Args:
        scores: probabilities, shape (n, K).
        truth: the index of each row's class (binary, multiclass), or the indices of all that apply
            (multilabel).
        label_space: with its metric: ``auroc`` (binary, of the second class), ``auroc_ovo``
            (multiclass; Hand and Till 2001, equation 7) or ``auroc_macro`` (multilabel: unweighted
            mean over the labels that have both positive and negative rows).

    Returns:
        The value, ties counted half; NaN where the classes that it takes are absent.

    Raises:
        InputError: a metric that is none of these.
    """
    if label_space.metric not in CLASSIFICATION_MAIN_METRICS:
        raise InputError(
            f"unknown metric {label_space.metric!r}",
            location=label_space.name,
            hint=f"use one of {', '.join(CLASSIFICATION_MAIN_METRICS)}",
        )
    mask = np.zeros(scores.shape, np.bool_)  # (n, K)
    for row, classes in enumerate(truth):
        mask[row, np.asarray(classes, np.int64)] = True
    if label_space.metric == "auroc":
        return auroc(scores[:, 1], mask[:, 1])
    if label_space.metric == "auroc_ovo":
        rows = ScoredPredictions(np.arange(len(scores)), mask, scores, label_space.kind)
        once = np.ones((1, len(scores)), np.int32)
        return float(_average_pairwise_auroc(_rank_class_pairs(rows), once)[0])
    # An AUROC needs both classes: labels that no stay or every stay has are left out.
    columns = np.flatnonzero(mask.any(axis=0) & ~mask.all(axis=0))
    values = [auroc(scores[:, column], mask[:, column]) for column in columns]
    return float(np.mean(values)) if values else float("nan")


def build_discrimination_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> MetricSet:
    """Define the discrimination metrics of predictions.

    Binary: ``auroc`` and ``auprc`` of the event, ``prevalence``. Multiclass: ``auroc_ovo`` (Hand
    and Till 2001, equation 7), ``auroc_ovr`` and ``auprc_macro``, unweighted means over the classes
    present. Multilabel: ``auroc_macro`` and ``auprc_macro`` over the labels that have at least
    ``spec.min_positives`` positive stays and a negative one, ``auroc_micro`` over all pairs of stay
    and label, ``auroc_head`` to ``auroc_tail`` by frequency in training. With ``spec.compat``
    also the AUROC as the code of arXiv 2307.03042 computes it. Ties count half everywhere; a
    resample leaves out classes that it does not define.
    """
    parts = [_METRIC_BUILDERS[predictions.kind](predictions, label_space, split, spec)]
    if spec.compat:
        parts.append(_build_paper_metrics(predictions, label_space, split))
    metric_set = combine_metric_sets(parts)
    if len(predictions.subjects):
        return metric_set
    reason = f"unknown: the split {split} has no stay"
    metrics = tuple(
        replace(metric, definition=f"{metric.definition}; {reason}")
        for metric in metric_set.metrics
    )
    return replace(metric_set, metrics=metrics)


def _build_binary_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    is_event = predictions.truth[:, 1]
    events, ranks = int(is_event.sum()), rank_scores(predictions.scores[:, 1], is_event)
    absent = _describe_absent_classes(predictions, label_space, split)
    share = f"{events / len(is_event):.4f}" if len(is_event) else "unknown"

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        areas = compute_curve_areas(ranks, counts)  # (2, resamples)
        # counts.T is contiguous: see draw_row_counts.
        prevalence = divide_or_nan(counts.T[is_event].sum(axis=0), counts.sum(axis=1))
        return np.concatenate([areas, prevalence[None]])

    event = f"of the event {label_space.classes[1]!r}"
    auprc = f"{_AUPRC_DEFINITION}, {event}; a random ranking has the prevalence, {share}{absent}"
    prevalence = f"share of stays {event}{absent}"
    metrics = (
        MetricDefinition("auroc", f"{_AUROC_DEFINITION}, {event}{absent}", events),
        MetricDefinition("auprc", auprc, events),
        MetricDefinition("prevalence", prevalence, events, depends_on_model=False),
    )
    return MetricSet(metrics, compute_values)


def _build_multiclass_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    _: ClassificationEvaluationSpec,
) -> MetricSet:
    class_ranks, pairs = _rank_classes(predictions), _rank_class_pairs(predictions)
    present, total = int(predictions.truth.any(axis=0).sum()), len(label_space.classes)
    absent = _describe_absent_classes(predictions, label_space, split)

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        one_vs_rest = _compute_class_areas(class_ranks, counts)  # (2, classes, resamples)
        averages = [average_defined(areas) for areas in one_vs_rest]
        return np.stack([_average_pairwise_auroc(pairs, counts), *averages])

    over = (
        f"unweighted mean over the {present} of {total} classes present, each against the rest; "
        f"a resample leaves out what it cannot define{absent}"
    )
    ovo = (
        f"{_AUROC_DEFINITION}; one-vs-one: mean over unordered pairs of the {present} of {total} "
        "classes present, both directions of a pair (Hand and Till 2001); "
        f"a resample leaves out what it cannot define{absent}"
    )
    metrics = (
        MetricDefinition("auroc_ovo", ovo),
        MetricDefinition("auroc_ovr", f"{_AUROC_DEFINITION}; {over}"),
        MetricDefinition("auprc_macro", f"{_AUPRC_DEFINITION}; {over}"),
    )
    return MetricSet(metrics, compute_values)


def _build_multilabel_metrics(
    predictions: ScoredPredictions,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
) -> MetricSet:
    positives, rows = predictions.truth.sum(axis=0), len(predictions.truth)  # (K,)
    # With few positives an AUROC is mostly noise; the macro average leaves such labels out.
    evaluable = (positives >= spec.min_positives) & (positives < rows)
    bands = _assign_frequency_bands(label_space)
    band_masks = [evaluable & (bands == index) for index in range(len(FREQUENCY_BANDS))]
    class_ranks = _rank_classes(predictions)
    pooled_ranks = rank_scores(predictions.scores, predictions.truth)

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        roc_areas, precisions = _compute_class_areas(class_ranks, counts)  # (K, resamples) each
        return np.stack(
            [
                average_defined(roc_areas[evaluable]),
                compute_curve_areas(pooled_ranks, counts)[0],
                average_defined(precisions[evaluable]),
                *(average_defined(roc_areas[mask]) for mask in band_masks),
                np.full(len(counts), evaluable.sum()),
            ]
        )

    total, events = len(label_space.classes), int(positives[evaluable].sum())
    rule = (
        f"labels with at least {spec.min_positives} positive and one negative stay in this split "
        "are evaluable"
    )
    absent = _describe_absent_classes(predictions, label_space, split)
    none_evaluable = "" if evaluable.any() else " (unknown: none is)"
    macro = (
        f"unweighted mean over the {int(evaluable.sum())} evaluable of {total} labels"
        f"{none_evaluable}; {rule}; a resample leaves out labels that it cannot define{absent}"
    )
    micro = f"over all pairs of a stay and one of {total} labels pooled{absent}"
    metrics = [
        MetricDefinition("auroc_macro", f"{_AUROC_DEFINITION}; {macro}", events),
        MetricDefinition("auroc_micro", f"{_AUROC_DEFINITION}; {micro}", int(positives.sum())),
        MetricDefinition("auprc_macro", f"{_AUPRC_DEFINITION}; {macro}", events),
    ]
    unknown_bands = "; unknown: the counts in training are not known" if (bands < 0).any() else ""
    for index, (name, mask) in enumerate(zip(FREQUENCY_BANDS, band_masks, strict=True)):
        none_evaluable = "" if mask.any() else " (unknown: none is)"
        definition = (
            f"{_AUROC_DEFINITION}; unweighted mean over the {int(mask.sum())} evaluable of "
            f"{int((bands == index).sum())} labels of the {name}{none_evaluable}; "
            f"{_BAND_DEFINITION}{unknown_bands}; {rule}"
        )
        metrics.append(MetricDefinition(f"auroc_{name}", definition, int(positives[mask].sum())))
    metrics.append(
        MetricDefinition(
            "labels_evaluable",
            f"number of {total} labels; {rule}{absent}",
            events,
            depends_on_model=False,
            has_interval=False,
        )
    )
    return MetricSet(tuple(metrics), compute_values)


_METRIC_BUILDERS: dict[
    ProblemType,
    Callable[[ScoredPredictions, LabelSpace, str, ClassificationEvaluationSpec], MetricSet],
] = {
    "binary": _build_binary_metrics,
    "multiclass": _build_multiclass_metrics,
    "multilabel": _build_multilabel_metrics,
}


def _build_paper_metrics(
    predictions: ScoredPredictions, label_space: LabelSpace, split: str
) -> MetricSet:
    """The AUROC of the code of arXiv 2307.03042: a softmax over all labels, even multilabel ones.

    A softmax over labels that may apply together makes them compete, so that the value is lower
    than with a sigmoid a label; it is reported only for comparison with the published numbers.
    """
    absent = _describe_absent_classes(predictions, label_space, split)
    definition = (
        f"{_AUROC_DEFINITION}; as in the code of arXiv 2307.03042: "
        f"softmax over all {len(label_space.classes)} logits"
    )
    if predictions.logits is None:
        reason = f"{definition}; unknown: these answers have no logits"
        metric = MetricDefinition("auroc_clinical_peft", reason)
        return MetricSet((metric,), lambda counts: np.full((1, len(counts)), np.nan))
    softmax = special.softmax(predictions.logits.astype(np.float64), axis=1)  # (n, K)
    scored = replace(predictions, scores=softmax)
    # The AUROC of the second class is an average over one class.
    class_ranks = _rank_classes(scored)[1 if predictions.kind == "binary" else 0 :]
    pairs = _rank_class_pairs(scored) if predictions.kind == "multiclass" else []

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        if predictions.kind == "multiclass":
            return _average_pairwise_auroc(pairs, counts)[None]
        return average_defined(_compute_class_areas(class_ranks, counts)[0])[None]

    labels = int((scored.truth.any(axis=0) & ~scored.truth.all(axis=0)).sum())
    averaging = {
        "binary": "of the second class",
        "multiclass": "one-vs-one, mean over unordered pairs of the classes present",
        "multilabel": f"mean over the {labels} labels that some stays have and some have not",
    }[predictions.kind]
    metric = MetricDefinition("auroc_clinical_peft", f"{definition}; {averaging}{absent}")
    return MetricSet((metric,), compute_values)


def _rank_class_pairs(predictions: ScoredPredictions) -> list[ClassPair]:
    """For each two classes present: the rows of either, and their ranks by the score of each."""
    pairs = []
    for first, second in combinations(np.flatnonzero(predictions.truth.any(axis=0)), 2):
        # A(i|j) is computed on the stays of these two classes only.
        rows = np.flatnonzero(predictions.truth[:, first] | predictions.truth[:, second])
        first_ranks, second_ranks = (
            rank_scores(predictions.scores[rows, column], predictions.truth[rows, column])
            for column in (first, second)
        )
        pairs.append((rows, first_ranks, second_ranks))
    return pairs


def _average_pairwise_auroc(pairs: Sequence[ClassPair], counts: NDArray[np.int32]) -> Float64Array:
    """The M of Hand and Till 2001, equation 7: the mean of A(i, j) = (A(i|j) + A(j|i)) / 2 over
    pairs of classes; pairs that a resample does not define are left out. Shape (resamples,)."""
    row_counts = counts.T  # (n, resamples)
    values = [
        (
            compute_curve_areas(first, row_counts[rows].T)[0]
            + compute_curve_areas(second, row_counts[rows].T)[0]
        )
        / 2
        for rows, first, second in pairs
    ]
    return average_defined(np.stack(values) if values else np.empty((0, len(counts))))


def _rank_classes(predictions: ScoredPredictions) -> list[ScoreRanks]:
    return [
        rank_scores(predictions.scores[:, column], predictions.truth[:, column])
        for column in range(predictions.truth.shape[1])
    ]


def _compute_class_areas(
    class_ranks: Sequence[ScoreRanks], counts: NDArray[np.int32]
) -> Float64Array:
    """AUROC and average precision of each class against the rest, (2, classes, resamples)."""
    return np.stack([compute_curve_areas(ranks, counts) for ranks in class_ranks], axis=1)


def _assign_frequency_bands(label_space: LabelSpace) -> Int64Array:
    """The band of each class, shape (K,): 0, 1, 2 for head, torso and tail; -1 if unknown.

    Classes are ordered by descending count; the band is the third of all occurrences in training in
    which a class begins. A class that crosses a limit belongs to the earlier band.
    """
    occurrences = np.asarray(label_space.train_counts, np.int64)
    if not occurrences.sum():
        return np.full(len(label_space.classes), -1)
    # Stable: classes of equal count keep their order, so that bands do not depend on the platform.
    order = np.argsort(-occurrences, kind="stable")
    before = np.cumsum(occurrences[order]) - occurrences[order]
    bands = np.empty(len(order), np.int64)
    bands[order] = np.minimum(3 * before // occurrences.sum(), len(FREQUENCY_BANDS) - 1)
    return bands


def _describe_absent_classes(
    predictions: ScoredPredictions, label_space: LabelSpace, split: str
) -> str:
    """Which classes no stay has, as the end of a definition; empty where all are present."""
    absent = [
        label_space.classes[index] for index in np.flatnonzero(~predictions.truth.any(axis=0))
    ]
    if not absent or not len(predictions.truth):
        return ""
    names = [f"class {name!r} has no {split} stay" for name in absent[:_MAX_NAMED_CLASSES]]
    unnamed = len(absent) - _MAX_NAMED_CLASSES
    more = f", nor have {unnamed} more classes" if unnamed > 0 else ""
    return f"; {', '.join(names)}{more}"
