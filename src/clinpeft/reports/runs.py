"""The tables about runs: what one is, what all are, two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path

import pyarrow as pa

from clinpeft.core.schemas import Attrition
from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    DIFFERENCE_SEPARATOR,
    HELD_OUT_SPLIT,
    SUBGROUP_SEPARATOR,
    TFIDF_BASELINE_GROUP,
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
from clinpeft.reports.tables import CellValue, Estimate, ReportColumn, ReportTable, format_cell
from clinpeft.runs import Run, RunComparison, RunListing


def build_run_summary(run: Run) -> ReportTable:
    """What one run is, a line a fact; facts that are not known have no line."""
    rows = tuple((label, text) for label, text in _list_run_facts(run) if text)
    return ReportTable(
        f"Run {run.id}",
        (ReportColumn("fact", is_text=True), ReportColumn("value", is_text=True)),
        rows,
    )


def build_run_results_table(run: Run) -> ReportTable:
    """Every number of one run, with its interval and what it counts; the subgroups of a question
    are in ``run_subgroups``."""
    return build_scores_table(run.results, f"Results of run {run.id}")


def build_run_subgroups_table(run: Run) -> ReportTable:
    """The numbers of one run by sex, age band and so on; without rows where none were measured."""
    return build_subgroups_table(run.results, f"Subgroups of run {run.id}")


def build_run_attrition_table(run: Run) -> ReportTable:
    """What left at which step of a run, for which reason."""
    return build_attrition_table(f"What run {run.id} read, dropped and kept", run.attrition)


def build_attrition_table(title: str, steps: Sequence[Attrition]) -> ReportTable:
    """What entered, what left for which reason and what was kept, step by step; below, where the
    first damaged rows stand."""
    rows = [
        (step.step, word, n)
        for step in steps
        for word, n in _list_attrition_counts(step.entered_rows, step.dropped_rows, step.kept_rows)
    ]
    places = tuple(
        f"{step.step}, {reason}: {'; '.join(found)}"
        for step in steps
        for reason, found in step.locations.items()
    )
    return ReportTable(
        title,
        (
            ReportColumn("step", is_text=True),
            ReportColumn("what", is_text=True),
            ReportColumn("n", format_count),
        ),
        tuple(rows),
        places,
    )


def build_runs_table(listing: RunListing) -> ReportTable:
    """All runs of a home, oldest first, and what of it could not be read."""
    words = [
        ReportColumn(title, is_text=True, is_unbroken=title == "id")
        for title in ("id", "name", "kind", "state", "created", "base", "adapters")
    ]
    numbers = [
        ReportColumn("trained", format_count),
        ReportColumn("held out", is_text=True),
        ReportColumn("time", format_duration),
    ]
    rows: list[tuple[CellValue, ...]] = [_build_run_row(run) for run in listing.runs]
    rows += [
        (Path(error.location).parent.name, "", "", "unreadable", "", "", "", None, "", None)
        for error in listing.errors
    ]
    notes = tuple(f"{error.location}: {error.message}" for error in listing.errors)
    return ReportTable("Runs", (*words, *numbers), tuple(rows), notes)


def build_comparison_tables(
    run_comparison: RunComparison, paired_results: pa.Table | None = None, reason: str = ""
) -> tuple[ReportTable, ...]:
    """Two runs side by side: what differs between them, their results, and the paired comparison:
    of perplexities their ratio, of answers the differences of their metrics.

    Of two runs that answer questions only what both measured is shown, and no subgroups.

    Args:
        run_comparison: as ``registry.compare`` gives it.
        paired_results: of schema ``tables.RESULT``, from their likelihoods or their predictions;
            None where they cannot be compared.
        reason: why they cannot, when not ``run_comparison`` but their likelihoods or predictions
            show it.
    """
    kind = run_comparison.first.recipe.kind
    answers = kind != "adapt"
    why = run_comparison.incomparable_reason or reason
    notes = [f"Not comparable{'' if answers else ' on perplexity'}: {why}."] if why else []
    tables = (
        _build_differences_table(run_comparison),
        _build_side_by_side_table(run_comparison, answers, notes),
    )
    title = f"Paired, on the same {_COMPARISON_UNITS.get(kind, 'rows')}"
    return (
        tables if paired_results is None else (*tables, build_scores_table(paired_results, title))
    )


_COMPARISON_UNITS = {"adapt": "tokens", "classify": "stays", "embed": "pairs"}
"""Kind of run -> what two of them are compared on."""


def _build_differences_table(run_comparison: RunComparison) -> ReportTable:
    asked = tuple(
        (
            d.key,
            *(MISSING_VALUE_TEXT if value is None else str(value) for value in (d.first, d.second)),
        )
        for d in run_comparison.differences
    )
    return ReportTable(
        "What differs",
        (
            ReportColumn("key", is_text=True),
            *(
                ReportColumn(run.id, is_text=True)
                for run in (run_comparison.first, run_comparison.second)
            ),
        ),
        asked,
    )


def _build_side_by_side_table(
    run_comparison: RunComparison, has_tasks: bool, notes: list[str]
) -> ReportTable:
    first, second = read_estimates(run_comparison.first), read_estimates(run_comparison.second)
    keys = list(dict.fromkeys([*first, *second]))
    shown = [
        key
        for key in keys
        if not has_tasks or (key in first and key in second and SUBGROUP_SEPARATOR not in key.group)
    ]
    left_out = len([key for key in keys if (key in first) != (key in second) and key not in shown])
    notes = [
        *notes,
        *(
            [
                (
                    f"Not shown, since only one of the two has them: {left_out} "
                    f"number{'s' * (left_out > 1)}."
                )
            ]
            if left_out
            else []
        ),
    ]
    words = ("metric", "task", "split", "model") if has_tasks else ("metric", "split", "model")
    named = [
        (key.name, key.task, key.split, key.group)
        if has_tasks
        else (key.name, key.split, key.group)
        for key in shown
    ]
    rows = tuple(
        (*texts, first.get(key), second.get(key)) for texts, key in zip(named, shown, strict=True)
    )
    numbers = (
        ReportColumn(run.id, is_estimate=True)
        for run in (run_comparison.first, run_comparison.second)
    )
    return ReportTable(
        "Results",
        (*(ReportColumn(title, is_text=True) for title in words), *numbers),
        rows,
        tuple(notes),
    )


def _list_run_facts(run: Run) -> Iterator[tuple[str, str]]:
    record = run.record
    yield from (("id", run.id), ("name", record.name), ("kind", record.kind), ("state", run.state))
    if record.error:
        yield "error", record.error.message
        yield "where", record.error.location
        yield "hint", record.error.hint
    yield from (
        ("source", run.recipe.source.name),
        ("base", get_base_model_name(run.recipe)),
        ("adapters", describe_adapters(run.recipe)),
    )
    yield from (
        ("trained", _describe_trained_parameters(run)),
        ("precision", record.precision_reason or record.precision or ""),
    )
    yield from (("quantization", record.quantization), ("activations", record.activations))
    yield "kernels", record.kernels
    yield "norms and gates", record.compilation
    yield from _summarize_tasks(run)
    yield from _summarize_perplexities(read_estimates(run))
    yield "tokens seen", _format_or_empty(record.tokens_seen, format_count)
    yield "training time", _format_or_empty(record.training_seconds, format_duration)
    yield "tokens/s", _format_or_empty(compute_tokens_per_second(run), format_count)
    yield "time for features", _format_or_empty(record.features_seconds, format_duration)
    yield "time for baselines", _format_or_empty(record.baselines_seconds, format_duration)
    yield "total time", _format_or_empty(record.total_seconds, format_duration)
    yield (
        "hardware",
        f"{record.hardware.devices} x {record.hardware.device}" if record.hardware else "",
    )
    yield "created", f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    yield from (("notice", notice) for notice in record.notices)
    yield "folder", str(run.folder)


def _summarize_tasks(run: Run) -> Iterator[tuple[str, str]]:
    """A line a question: ``auroc 0.812 (0.790–0.834); TF-IDF + logistic regression 0.801
    (0.779–0.822), difference 0.011 (-0.004–0.026)``."""
    found = read_estimates(run)
    yield "tasks", ", ".join(get_task_names(run.recipe))
    yield "liveness", describe_adapter_activity(run.record.liveness)
    for task in get_task_names(run.recipe):
        metric = find_main_metric(found, task) or ""
        against, difference = (
            found.get(MetricKey(metric, HELD_OUT_SPLIT, TFIDF_BASELINE_GROUP, task)),
            found.get(
                MetricKey(
                    f"{metric}_difference",
                    HELD_OUT_SPLIT,
                    f"{CLASSIFIER_GROUP}{DIFFERENCE_SEPARATOR}{TFIDF_BASELINE_GROUP}",
                    task,
                )
            ),
        )
        parts = (
            [
                (
                    f"{metric} "
                    f"{_format_or_empty(found.get(MetricKey(metric, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)), format_number)}"  # noqa: E501
                )
            ]
            if metric
            else []
        )
        parts += (
            [f"{TFIDF_BASELINE_GROUP} {_format_or_empty(against, format_number)}"]
            if against
            else []
        )
        parts += [f"difference {_format_or_empty(difference, format_number)}"] if difference else []
        yield f"{task}, held out", "; ".join(parts)


def _summarize_perplexities(estimates: Mapping[MetricKey, Estimate]) -> Iterator[tuple[str, str]]:
    """``14.214 before, 9.810 (9.512–10.103) after, 0.690 (0.672–0.709) times``, a line a split."""
    for split, word in ((TRAIN_SPLIT, "train"), ("tuning", "tuning"), (HELD_OUT_SPLIT, "test")):
        before, after, times = (
            estimates.get(MetricKey(name, split, group))
            for name, group in (
                ("perplexity", "base"),
                ("perplexity", "adapted"),
                ("perplexity_ratio", "adapted / base"),
            )
        )
        parts = [
            (_format_or_empty(before, format_number), "before"),
            (_format_or_empty(after, format_number), "after"),
            (_format_or_empty(times, format_number), "times"),
        ]
        yield f"{word} perplexity", ", ".join(f"{text} {when}" for text, when in parts if text)


def _build_run_row(run: Run) -> tuple[CellValue, ...]:
    record = run.record
    created = f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M}"
    words = (
        run.id,
        record.name,
        record.kind,
        run.state,
        created,
        get_base_model_name(run.recipe),
        describe_adapters(run.recipe),
    )
    return (*words, record.trained_parameters, _summarize_held_out(run), record.training_seconds)


def _summarize_held_out(run: Run) -> str:
    """``perplexity 9.000``, or the main metric of each question: ``auroc 0.812 (mortality)``."""
    found = read_estimates(run)
    perplexity = found.get(MetricKey("perplexity", HELD_OUT_SPLIT, "adapted"))
    metrics = ((task, find_main_metric(found, task)) for task in get_task_names(run.recipe))
    words = [
        (
            f"{metric} "
            f"{format_cell(found[MetricKey(metric, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)].value, format_number)} "  # noqa: E501
            f"({task})"
        )
        for task, metric in metrics
        if metric
    ]
    return ", ".join(
        [
            *([f"perplexity {format_cell(perplexity.value, format_number)}"] if perplexity else []),
            *words,
        ]
    )


def _list_attrition_counts(
    entered_rows: int, dropped_rows: Mapping[str, int], kept_rows: int
) -> Iterator[tuple[str, int]]:
    yield "entered", entered_rows
    yield from ((f"dropped: {reason}", dropped_rows[reason]) for reason in sorted(dropped_rows))
    yield "kept", kept_rows


def _describe_trained_parameters(run: Run) -> str:
    record = run.record
    if record.trained_parameters is None:
        return ""
    of = f" of {format_count(record.base_parameters)}" if record.base_parameters else ""
    return f"{format_count(record.trained_parameters)}{of} parameters" + (
        f" ({format_percent(record.trained_fraction)})"
        if record.trained_fraction is not None
        else ""
    )


def _format_or_empty(value: CellValue, formatter: Callable[[float], str]) -> str:
    """Empty, and not a dash, where nothing is known."""
    known = value.value if isinstance(value, Estimate) else value
    return "" if known is None else format_cell(value, formatter)
