"""What the record of a run says for the card of its adapter: purpose, training, results with
intervals, and where it does not beat the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clinpeft.reports.classification import group_classification_rows
from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    HELD_OUT_SPLIT,
    TFIDF_BASELINE_GROUP,
    CellResult,
    MetricKey,
    classify_difference,
    describe_adapter_activity,
    describe_adapters,
    find_main_metric,
    get_base_model_name,
    get_task_names,
    read_estimates,
)
from clinpeft.reports.formats import format_count, format_percent
from clinpeft.reports.tables import Estimate
from clinpeft.runs import RELEASE_SMALLEST_CELL, Run

# Precedes what no record has
CARD_GAP_MARK = "**To be written:**"

ADAPTER_CARD_GAPS = (
    "intended use, and who decides with it",
    "for whom it must not be used",
    "licence of these weights, which the agreement on the notes may restrict",
    "what has been done to find out whether the weights give away text of the notes",
    "who looks after it, and until when",
)

ADAPTER_LIMITATIONS = (
    "It was trained on notes and may have memorized some of their text: treat the weights as the "
    "notes they were trained on.",
    "Not a medical device, and not validated for decisions about patients.",
    "Measured on held-out people of the same source; notes of other hospitals differ.",
)


@dataclass(frozen=True)
class AdapterMetric:
    """A number on the held-out split.

    Attributes:
        task: empty for language modeling.
        name: of the metric, or of metric and baseline.
        estimate: with its interval.
    """

    task: str
    name: str
    estimate: Estimate


@dataclass(frozen=True)
class AdapterCard:
    """The facts of a run for the card of its adapter.

    Attributes:
        name: of the model.
        base_model: name of the base.
        adapters: in words; empty if there are none.
        methods: of the adapters, for the tags.
        is_classifier: whether it has tasks, or else models language.
        source: name of the data source.
        purpose: a sentence.
        training: facts, a line each.
        metrics: of the adapter.
        baseline_metrics: of TF-IDF with logistic regression, for the same tasks.
        not_beaten: (task, difference) where the adapter does not beat that baseline.
        version: of this program.
        run_id: of the run.
        git_commit: of the code; empty if unknown.
    """

    name: str
    base_model: str
    adapters: str
    methods: tuple[str, ...]
    is_classifier: bool
    source: str
    purpose: str
    training: tuple[str, ...]
    metrics: tuple[AdapterMetric, ...]
    baseline_metrics: tuple[AdapterMetric, ...]
    not_beaten: tuple[tuple[str, Estimate], ...]
    version: str
    run_id: str
    git_commit: str


def collect_adapter_card(run: Run) -> AdapterCard:
    """Collect the facts from the record of a run of adapt or classify."""
    record, recipe = run.record, run.recipe
    name, tasks = record.name or run.id, get_task_names(run.recipe)
    # A grid of one cell: the differences to TF-IDF are read as in the tables
    (row,) = group_classification_rows([CellResult(name, run)])
    return AdapterCard(
        name=name,
        base_model=get_base_model_name(recipe),
        adapters=describe_adapters(recipe),
        methods=tuple(dict.fromkeys(str(getattr(s, "method", "")) for s in recipe.adapters)),
        is_classifier=bool(tasks),
        source=recipe.source.name,
        purpose=(
            f"To predict from the notes of a stay: {', '.join(tasks)}."
            if tasks
            else "To model the language of clinical notes."
        ),
        training=tuple(_list_training_facts(run)),
        metrics=tuple(_list_metrics(run)),
        baseline_metrics=tuple(_list_baseline_metrics(run)),
        not_beaten=tuple(
            (task, difference)
            for task in tasks
            for difference in row.get_tfidf_differences(task).values()
            if classify_difference(difference) in ("worse", "no better")
        ),
        version=record.versions.get("clinpeft", ""),
        run_id=run.id,
        git_commit=record.git_commit or "",
    )


def _list_metrics(run: Run) -> Iterator[AdapterMetric]:
    """Perplexity and its ratio to the base, or the main metric of each task with those that
    describe calibration and rare events."""
    estimates = read_estimates(run)
    # The first of each kind that the run has: a classifier has no perplexity
    keys = [
        MetricKey("perplexity", HELD_OUT_SPLIT, "adapted"),
        MetricKey("perplexity_ratio", HELD_OUT_SPLIT, "adapted / base"),
    ]
    if run.recipe.tasks:
        keys = [
            MetricKey(name, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)
            for task in get_task_names(run.recipe)
            for name in (
                find_main_metric(estimates, task) or "",
                "auprc",
                "brier",
                "calibration_slope",
            )
        ]
    for key in keys:
        if key in estimates and estimates[key].value is not None:
            yield AdapterMetric(key.task, key.name, estimates[key])


def _list_baseline_metrics(run: Run) -> Iterator[AdapterMetric]:
    """The main metric of TF-IDF with logistic regression on each task."""
    estimates = read_estimates(run)
    # Beside the adapter's own numbers, for a reader who sees the card alone
    for task in get_task_names(run.recipe):
        metric = find_main_metric(estimates, task)
        key = MetricKey(metric or "", HELD_OUT_SPLIT, TFIDF_BASELINE_GROUP, task)
        if key in estimates:
            yield AdapterMetric(task, f"{metric}, {TFIDF_BASELINE_GROUP}", estimates[key])


def _list_training_facts(run: Run) -> Iterator[str]:
    record, recipe = run.record, run.recipe
    yield f"data: {recipe.source.name}, SHA-256 {record.hashes.source or 'unknown'}"
    yield f"base: {get_base_model_name(recipe)}, SHA-256 {record.hashes.base or 'unknown'}"
    if record.trained_parameters is not None:
        fraction = record.trained_fraction
        share = "" if fraction is None else f", {format_percent(fraction)} of the base"
        yield f"trained: {format_count(record.trained_parameters)} parameters{share}"
    if record.tokens_seen is not None:
        yield f"tokens seen: {format_count(record.tokens_seen)}"
    yield f"seed: {recipe.seed}"
    for key, n in record.counts.items():
        # A card is released, and small counts are not
        if n >= RELEASE_SMALLEST_CELL:
            yield f"{key.replace('.', ', ')}: {format_count(n)}"
    if (noise := record.differential_privacy) is not None:
        yield (
            f"differential privacy: epsilon {noise['epsilon']:.3g}, delta {noise['delta']:g}, "
            f"for {noise['adjacency']}"
        )
    if activity := describe_adapter_activity(record.liveness):
        yield f"proof that every adapter takes part: {activity}"
    yield from (f"notice: {notice}" for notice in record.notices)
