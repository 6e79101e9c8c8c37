"""The tables about runs: one run, all runs of a home, two runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path

import pyarrow as pa

from clinpeft.core.schemas import Attrition
from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    HELD_OUT_SPLIT,
    SUBGROUP_SEPARATOR,
    TFIDF_BASELINE_GROUP,
    TFIDF_DIFFERENCE_GROUP,
    TRAIN_SPLIT,
    MetricKey,
    compute_tokens_per_second,
    describe_adapter_activity,
    describe_adapters,
    find_main_metric,
    get_base_model_name,
    get_task_names,
    read_estimates,
)
from clinpeft.reports.formats import (
    MISSING_VALUE_TEXT,
    format_count,
    format_duration,
    format_number,
    format_percent,
)
from clinpeft.reports.scores import build_scores_table, build_subgroups_table
from clinpeft.reports.tables import (
    CellValue,
    Estimate,
    ReportColumn,
    ReportTable,
    create_text_columns,
    format_cell,
)
from clinpeft.runs import Run, RunComparison, RunListing


def build_run_summary(run: Run) -> ReportTable:
    """One run, a line per fact; unknown facts have no line."""
    # A run of any kind and state has this table: most facts are unknown in the beginning
    rows = tuple((label, text) for label, text in _list_run_facts(run) if text)
    return ReportTable(f"Run {run.id}", create_text_columns("fact", "value"), rows)


def build_run_results_table(run: Run) -> ReportTable:
    """Every number of one run, with its interval and counts; the subgroups of a task are in
    ``build_run_subgroups_table``."""
    return build_scores_table(run.results, f"Results of run {run.id}")


def build_run_subgroups_table(run: Run) -> ReportTable:
    """The numbers of one run by sex, age band and so on; without rows if none were measured."""
    return build_subgroups_table(run.results, f"Subgroups of run {run.id}")


def build_run_attrition_table(run: Run) -> ReportTable:
    """The rows that each step of a run dropped, with reasons."""
    return build_attrition_table(f"What run {run.id} read, dropped and kept", run.attrition)


def build_attrition_table(title: str, steps: Sequence[Attrition]) -> ReportTable:
    """Rows that entered, were dropped for each reason and were kept, step by step; the notes give
    the locations of the first damaged rows."""
    rows: list[tuple[CellValue, ...]] = []
    for step in steps:
        rows.append((step.step, "entered", step.entered_rows))
        # Sorted, so that equal runs give equal tables
        for reason, n in sorted(step.dropped_rows.items()):
            rows.append((step.step, f"dropped: {reason}", n))
        rows.append((step.step, "kept", step.kept_rows))
    columns = (*create_text_columns("step", "what"), ReportColumn("n", format_count))
    notes = tuple(
        f"{step.step}, {reason}: {'; '.join(locations)}"
        for step in steps
        for reason, locations in step.locations.items()
    )
    return ReportTable(title, columns, tuple(rows), notes)


def build_runs_table(listing: RunListing) -> ReportTable:
    """All runs of a home, oldest first, and the folders that could not be read."""
    columns = (
        # The id is what is copied from this table
        ReportColumn("id", is_text=True, is_unbroken=True),
        *create_text_columns("name", "kind", "state", "created", "base", "adapters"),
        ReportColumn("trained", format_count),
        ReportColumn("held out", is_text=True),
        ReportColumn("time", format_duration),
    )
    rows: list[tuple[CellValue, ...]] = [
        (
            run.id,
            run.record.name,
            run.record.kind,
            run.state,
            f"{run.record.created.astimezone(UTC):%Y-%m-%d %H:%M}",
            get_base_model_name(run.recipe),
            describe_adapters(run.recipe),
            run.record.trained_parameters,
            _summarize_held_out(run),
            run.record.training_seconds,
        )
        for run in listing.runs
    ]
    # A folder that cannot be read has a row as well, since it takes space
    rows += [
        (Path(error.location).parent.name, "", "", "unreadable", "", "", "", None, "", None)
        for error in listing.errors
    ]
    notes = tuple(f"{error.location}: {error.message}" for error in listing.errors)
    return ReportTable("Runs", columns, tuple(rows), notes)


def build_comparison_tables(
    run_comparison: RunComparison, paired_results: pa.Table | None = None, reason: str = ""
) -> tuple[ReportTable, ...]:
    """Two runs side by side: how their recipes and data differ, their results, and the paired
    comparison: of perplexities their ratio, of predictions the differences of their metrics.

    Of two runs with tasks only the numbers that both have are shown, and no subgroups.

    Args:
        run_comparison: from ``runs.compare_runs``.
        paired_results: of ``METRIC_RESULT_SCHEMA``, from their likelihoods or their predictions;
            None if they cannot be compared.
        reason: why they cannot, if their likelihoods or predictions show it and not
            ``run_comparison``.
    """
    # Perplexities are comparable on the same tokens, predictions on the same stays
    unit = run_comparison.first.recipe.compared_unit
    compares_perplexity = unit == "tokens"
    why = run_comparison.incomparable_reason or reason
    subject = " on perplexity" if compares_perplexity else ""
    notes = [f"Not comparable{subject}: {why}."] if why else []
    differences = tuple(
        (
            difference.key,
            *(
                MISSING_VALUE_TEXT if value is None else str(value)
                for value in (difference.first, difference.second)
            ),
        )
        for difference in run_comparison.differences
    )
    ids = (run_comparison.first.id, run_comparison.second.id)
    tables = [
        ReportTable("What differs", create_text_columns("key", *ids), differences),
        _build_side_by_side_table(run_comparison, not compares_perplexity, notes),
    ]
    if paired_results is not None:
        title = f"Paired, on the same {unit or 'rows'}"
        tables.append(build_scores_table(paired_results, title))
    return tuple(tables)


def _build_side_by_side_table(
    run_comparison: RunComparison, has_tasks: bool, notes: list[str]
) -> ReportTable:
    first, second = read_estimates(run_comparison.first), read_estimates(run_comparison.second)
    # In the order of the first run, then what only the second one has
    keys = list(dict.fromkeys([*first, *second]))
    columns: tuple[str, ...] = ("metric", "split", "model")
    if has_tasks:
        columns = ("metric", "task", "split", "model")
        keys = [
            key
            for key in keys
            if key in first and key in second and SUBGROUP_SEPARATOR not in key.group
        ]
        # Numbers that one run has alone, such as those of a task that the other one lacks
        left_out = len(first.keys() ^ second.keys())
        if left_out:
            plural = "s" * (left_out > 1)
            notes = [
                *notes,
                f"Not shown, since only one of the two has them: {left_out} number{plural}.",
            ]
    rows: list[tuple[CellValue, ...]] = []
    for key in keys:
        task = (key.task,) if has_tasks else ()
        rows.append((key.name, *task, key.split, key.group, first.get(key), second.get(key)))
    runs = (run_comparison.first, run_comparison.second)
    estimates = (ReportColumn(run.id, is_estimate=True) for run in runs)
    return ReportTable(
        "Results", (*create_text_columns(*columns), *estimates), tuple(rows), tuple(notes)
    )


def _list_run_facts(run: Run) -> Iterator[tuple[str, str]]:
    """(label, text) of each fact, empty if it is unknown."""
    record = run.record
    yield from (("id", run.id), ("name", record.name), ("kind", record.kind), ("state", run.state))
    if record.error:
        yield "error", record.error.message
        yield "where", record.error.location
        yield "hint", record.error.hint
    yield "source", run.recipe.source.name
    yield "base", get_base_model_name(run.recipe)
    yield "adapters", describe_adapters(run.recipe)
    yield "trained", _describe_trained_parameters(run)
    yield "precision", record.precision_reason or record.precision or ""
    yield "quantization", record.quantization
    yield "activations", record.activations
    yield "kernels", record.kernels
    yield "norms and gates", record.compilation
    # Read once: results are a file
    estimates = read_estimates(run)
    yield "tasks", ", ".join(get_task_names(run.recipe))
    yield "liveness", describe_adapter_activity(record.liveness)
    for task in get_task_names(run.recipe):
        yield f"{task}, held out", _summarize_task(estimates, task)
    for split, word in ((TRAIN_SPLIT, "train"), ("tuning", "tuning"), (HELD_OUT_SPLIT, "test")):
        yield f"{word} perplexity", _summarize_perplexity(estimates, split)
    yield "tokens seen", _format_or_empty(record.tokens_seen, format_count)
    yield "training time", _format_or_empty(record.training_seconds, format_duration)
    yield "tokens/s", _format_or_empty(compute_tokens_per_second(run), format_count)
    yield "time for features", _format_or_empty(record.features_seconds, format_duration)
    yield "time for baselines", _format_or_empty(record.baselines_seconds, format_duration)
    yield "total time", _format_or_empty(record.total_seconds, format_duration)
    hardware = record.hardware
    yield "hardware", f"{hardware.devices} x {hardware.device}" if hardware else ""
    yield "created", f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    # Notices come last, since there may be many
    yield from (("notice", notice) for notice in record.notices)
    yield "folder", str(run.folder)


def _summarize_task(estimates: Mapping[MetricKey, Estimate], task: str) -> str:
    """``auroc 0.812 (0.790–0.834); TF-IDF + logistic regression 0.801 (0.779–0.822); difference
    0.011 (-0.004–0.026)``."""
    metric = find_main_metric(estimates, task) or ""
    # (label, name of the number, group)
    numbers = (
        (metric, metric, CLASSIFIER_GROUP),
        (TFIDF_BASELINE_GROUP, metric, TFIDF_BASELINE_GROUP),
        ("difference", f"{metric}_difference", TFIDF_DIFFERENCE_GROUP),
    )
    parts = []
    for label, name, group in numbers:
        estimate = estimates.get(MetricKey(name, HELD_OUT_SPLIT, group, task))
        if metric and estimate is not None:
            parts.append(f"{label} {_format_or_empty(estimate, format_number)}")
    return "; ".join(parts)


def _summarize_perplexity(estimates: Mapping[MetricKey, Estimate], split: str) -> str:
    """``14.214 before, 9.810 (9.512–10.103) after, 0.690 (0.672–0.709) times``."""
    numbers = (
        ("before", "perplexity", "base"),
        ("after", "perplexity", "adapted"),
        ("times", "perplexity_ratio", "adapted / base"),
    )
    parts = []
    for word, name, group in numbers:
        text = _format_or_empty(estimates.get(MetricKey(name, split, group)), format_number)
        parts += [f"{text} {word}"] if text else []
    return ", ".join(parts)


def _summarize_held_out(run: Run) -> str:
    """``perplexity 9.000``, or the main metric of each task: ``auroc 0.812 (mortality)``."""
    estimates = read_estimates(run)
    perplexity = estimates.get(MetricKey("perplexity", HELD_OUT_SPLIT, "adapted"))
    parts = []
    if perplexity is not None:
        parts.append(f"perplexity {format_cell(perplexity.value, format_number)}")
    for task in get_task_names(run.recipe):
        if metric := find_main_metric(estimates, task):
            estimate = estimates[MetricKey(metric, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)]
            parts.append(f"{metric} {format_cell(estimate.value, format_number)} ({task})")
    return ", ".join(parts)


def _describe_trained_parameters(run: Run) -> str:
    """``8,192 of 1,000,000 parameters (.82%)``."""
    record = run.record
    if record.trained_parameters is None:
        return ""
    total = f" of {format_count(record.base_parameters)}" if record.base_parameters else ""
    text = f"{format_count(record.trained_parameters)}{total} parameters"
    if record.trained_fraction is not None:
        text += f" ({format_percent(record.trained_fraction)})"
    return text


def _format_or_empty(value: CellValue, formatter: Callable[[float], str]) -> str:
    """Empty, and not a dash, for an unknown value."""
    number = value.value if isinstance(value, Estimate) else value
    return "" if number is None else format_cell(value, formatter)
