"""Tables of classification beside those of the paper: every metric of a task, tested differences,
subgroups, cost, and where the numbers come from."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clinpeft.reports.classification import ClassificationRow
from clinpeft.reports.facts import (
    HELD_OUT_SPLIT,
    SUBGROUP_SEPARATOR,
    CellResult,
    classify_difference,
    compute_tokens_per_second,
    read_subgroup_estimates,
    to_estimate,
)
from clinpeft.reports.formats import (
    MISSING_VALUE_TEXT,
    format_count,
    format_duration,
    format_number,
    format_p_value,
    format_percent,
    format_suppressed_count,
)
from clinpeft.reports.tables import (
    CellValue,
    Estimate,
    ReportColumn,
    ReportTable,
    build_table_from_cells,
    create_text_columns,
)
from clinpeft.runs import RELEASE_SMALLEST_CELL, Run

# Name of a metric -> its column, in this order
CLASSIFICATION_METRIC_LABELS = {
    "auroc": "AUROC",
    "auroc_ovo": "AUROC, one against one",
    "auroc_ovr": "AUROC, one against the rest",
    "auroc_macro": "AUROC, macro",
    "auroc_micro": "AUROC, micro",
    "auroc_head": "frequent labels",
    "auroc_torso": "labels between",
    "auroc_tail": "rare labels",
    "labels_evaluable": "labels evaluable",
    "auprc": "AUPRC",
    "auprc_macro": "AUPRC, macro",
    "brier": "Brier",
    "brier_scaled": "Brier, scaled",
    "calibration_intercept": "calibration intercept",
    "calibration_slope": "calibration slope",
    "observed_expected": "observed / expected",
    "net_benefit": "net benefit",
    "ece": "ECE",
}

# Differences of main metrics, and the test of DeLong et al. (1988) of two AUROCs
_COMPARED_METRIC_PATTERN = re.compile(
    r"(auroc|auroc_ovo|auroc_macro|separation|ndcg_at_10)_difference|perplexity_ratio|delong_p"
)

_VERDICT_TEXTS = {
    "better": "yes",
    "worse": "no: worse",
    "no better": "no: cannot be told apart",
    "unknown": MISSING_VALUE_TEXT,
}


def build_metrics_table(rows: Sequence[ClassificationRow], task: str) -> ReportTable:
    """Every metric of one task on the held-out stays, of the baselines and of every row; of several
    seeds the mean."""
    metrics_by_model: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        for cell in row.cells:
            for key, estimate in cell.list_baselines(task):
                # Every run evaluates the baselines; the numbers of the first one are shown
                if key.name in CLASSIFICATION_METRIC_LABELS:
                    metrics_by_model.setdefault(key.group, {}).setdefault(key.name, estimate)
    for row in rows:
        if row.find_metric(task):
            metrics_by_model[row.name] = {
                name: mean
                for name in CLASSIFICATION_METRIC_LABELS
                if (mean := row.average_metric(name, task)) is not None
            }
    columns = [ReportColumn("model", is_text=True)]
    for name, label in CLASSIFICATION_METRIC_LABELS.items():
        if any(name in metrics for metrics in metrics_by_model.values()):
            # A number of labels, not a score
            formatter = format_count if name == "labels_evaluable" else format_number
            columns.append(ReportColumn(label, formatter, is_estimate=True))
    cells: list[dict[str, CellValue]] = [
        {"model": model}
        | {CLASSIFICATION_METRIC_LABELS[name]: estimate for name, estimate in metrics.items()}
        for model, metrics in metrics_by_model.items()
    ]
    notes = [
        f"Split {HELD_OUT_SPLIT}. Ideal: 1 for slope and observed / expected, 0 for intercept, "
        "Brier and ECE. An AUPRC is to be compared with the prevalence."
    ]
    if max((len(row.seeds) for row in rows), default=0) > 1:
        notes.append(
            "Of several seeds the mean, with the mean of their intervals, which is sampling error."
        )
    return build_table_from_cells(f"{task}: every measure", columns, cells, notes)


def build_baseline_comparison_table(
    rows: Sequence[ClassificationRow], tasks: Sequence[str]
) -> ReportTable:
    """Each row less TF-IDF with logistic regression on the same stays, seed by seed, with a
    verdict."""
    lines = [
        (
            row.name,
            task,
            "" if seed is None else str(seed),
            difference,
            _VERDICT_TEXTS[classify_difference(difference)],
        )
        for row in rows
        for task in tasks
        for seed, difference in row.get_tfidf_differences(task).items()
    ]
    columns = (
        *create_text_columns("model", "task", "seed"),
        ReportColumn("less TF-IDF", is_estimate=True),
        ReportColumn("beats TF-IDF", is_text=True),
    )
    # Both models are scored on the same resample, so their shared difficulty cancels out
    note = (
        "Difference of the main metric, subjects resampled for both at once. Yes: the whole "
        "interval is above 0; no: it is not."
    )
    return ReportTable("Against TF-IDF with logistic regression", columns, tuple(lines), (note,))


def build_subgroup_metrics_table(
    rows: Sequence[ClassificationRow], task: str, smallest_cell: int = RELEASE_SMALLEST_CELL
) -> ReportTable:
    """The main metric of every subgroup and row, by its run with the smallest seed; subgroups of
    fewer people than ``smallest_cell`` have no line."""
    by_row = {
        row.name: read_subgroup_estimates(run, task, row.find_metric(task), smallest_cell)
        for row in rows
        if (run := row.find_first_run(task))
    }
    # All rows are evaluated on the same people, so the first count of a subgroup is that of all
    people: dict[str, int] = {}
    for subgroups in by_row.values():
        for subgroup, (_, n) in subgroups.items():
            people.setdefault(subgroup, n)
    columns = (
        ReportColumn("group", is_text=True),
        ReportColumn("people", format_count),
        *(ReportColumn(name, is_estimate=True) for name in by_row),
    )
    lines = tuple(
        (
            subgroup,
            n,
            *(
                subgroups[subgroup][0] if subgroup in subgroups else None
                for subgroups in by_row.values()
            ),
        )
        for subgroup, n in people.items()
    )
    note = (
        f"Main metric on split {HELD_OUT_SPLIT}. A group of fewer than {smallest_cell} people "
        "is not shown, nor a number about fewer events."
    )
    return ReportTable(f"{task}: subgroups", columns, lines, (note,) if lines else ())


def build_cost_table(rows: Sequence[tuple[str, Sequence[Run]]]) -> ReportTable:
    """What each row took: parameters, tokens, times, energy; of several runs the mean.

    Args:
        rows: (name, finished runs).
    """
    columns = (
        ReportColumn("model", is_text=True),
        ReportColumn("runs", format_count),
        ReportColumn("trained", format_count),
        ReportColumn("share", format_percent),
        ReportColumn("tokens seen", format_count),
        ReportColumn("training", format_duration),
        ReportColumn("tokens/s", format_count),
        ReportColumn("features", format_duration),
        ReportColumn("baselines", format_duration),
        ReportColumn("whole run", format_duration),
        ReportColumn("energy", is_text=True),
        ReportColumn("hardware", is_text=True),
    )
    # Power is measured on some machines only: without a meter the energy is unknown, and not 0
    lines = tuple((name, len(runs), *_summarize_cost(runs)) for name, runs in rows if runs)
    notes = [
        "Times are means over the runs of a row, one run at a time on the machine named; other "
        "work on it makes them longer."
    ]
    if any(line[-2] == "unknown" for line in lines):
        notes.append("Energy is unknown where a run recorded no measured power.")
    meters = {run.record.energy_of for _, runs in rows for run in runs if run.record.energy_of}
    if meters:
        notes.append(
            f"Energy is that of training, of {'; '.join(sorted(meters))}, with all that ran there."
        )
    return ReportTable("Cost", columns, lines, tuple(notes))


def _summarize_cost(runs: Sequence[Run]) -> Iterator[CellValue]:
    """The values of the cost table from ``trained`` on."""

    def average(values: Iterable[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return statistics.fmean(numbers) if numbers else None

    records = [run.record for run in runs]
    yield average(record.trained_parameters for record in records)
    yield average(record.trained_fraction for record in records)
    yield average(record.tokens_seen for record in records)
    yield average(record.training_seconds for record in records)
    yield average(compute_tokens_per_second(run) for run in runs)
    yield average(record.features_seconds for record in records)
    yield average(record.baselines_seconds for record in records)
    yield average(record.total_seconds for record in records)
    joules = average(record.energy_joules for record in records)
    # 1 Wh = 3,600 J
    yield "unknown" if joules is None else f"{joules / 3600:.4g} Wh"
    hardware = [record.hardware for record in records if record.hardware]
    machines = dict.fromkeys(f"{one.devices} × {one.device}" for one in hardware)
    yield ", ".join(machines) or "unknown"


def build_paired_comparison_table(
    name: str, pairs: Sequence[tuple[str, str, str, Sequence[Mapping[str, Any]], str]]
) -> ReportTable:
    """One ``[[compare]]`` of a study: the paired difference of every pair of cells, second less
    first.

    Args:
        name: of the comparison.
        pairs: (the settings they share, first, second, rows of ``METRIC_RESULT_SCHEMA``, why there
            are none).
    """
    lines: list[tuple[CellValue, ...]] = []
    for shared, first, second, results, reason in pairs:
        main_rows = [
            row
            for row in results
            if row["value"] is not None
            and row["split"] == HELD_OUT_SPLIT
            and SUBGROUP_SEPARATOR not in (row["group"] or "")
            and _COMPARED_METRIC_PATTERN.fullmatch(row["name"])
        ]
        for row in main_rows:
            is_p_value = row["name"].endswith("_p")
            difference = f"p {format_p_value(row['value'])}" if is_p_value else to_estimate(row)
            metric = row["name"].replace("_", " ")
            lines.append(
                (shared, row["task"] or "", metric, difference, format_count(row["n"]), "")
            )
        if not main_rows:
            # Suppressed results are there, but have no value
            missing = f"no difference of {second} and {first} was measured"
            withheld = "withheld, or not defined"
            lines.append((shared, "", "", None, "", reason or (withheld if results else missing)))
    columns = (
        *create_text_columns("of", "task", "metric"),
        ReportColumn("difference", is_estimate=True),
        ReportColumn("n", is_text=True),
        ReportColumn("remark", is_text=True, parent_title="of"),
    )
    note = (
        "Second less first on the same people, resampled for both at once; the interval is "
        "sampling error, and each seed has a line of its own."
    )
    return ReportTable(f"Compared: {name}", columns, tuple(lines), (note,))


def describe_provenance(entries: Sequence[CellResult]) -> tuple[str, ...]:
    """The note that every table carries: data, split, seeds, commit, command, from the runs."""
    runs = [entry.run for entry in entries if entry.run is not None]
    if not runs:
        return ("No cell has a run.",)
    # The first 12 digits of a fingerprint are enough to tell two versions of a source apart
    sources = _join_first(
        f"{run.recipe.source.name}, fingerprint {(run.record.hashes.source or 'unknown')[:12]}"
        for run in runs
    )
    seeds = ", ".join(str(seed) for seed in sorted({run.recipe.seed for run in runs}))
    commits = _join_first(
        run.record.git_commit or f"unknown, code {run.record.versions.get('clinpeft', 'unknown')}"
        for run in runs
    )
    commands = _join_first(run.record.command or "unknown" for run in runs)
    sizes = _join_first((size for run in runs for size in _list_sample_sizes(run)), max_texts=8)
    return (
        f"Data: {sources}. Split {HELD_OUT_SPLIT}{f', {sizes}' if sizes else ''}. Seed {seeds}. "
        f"{len(runs)} runs. Commit {commits}. Command: {commands}.",
    )


def _list_sample_sizes(run: Run) -> list[str]:
    """``mortality: n = 1,165``, for each task or evaluation set of the held-out split."""
    # Backwards, so that the first number of a task is the one that stays in the dictionary
    sizes = {
        row["task"] or "": format_suppressed_count(row["n"])
        for row in reversed(run.results.to_pylist())
        if row["split"] == HELD_OUT_SPLIT and SUBGROUP_SEPARATOR not in (row["group"] or "")
    }
    return [f"{task}: n = {n}" if task else f"n = {n}" for task, n in reversed(sizes.items())]


def _join_first(texts: Iterable[str], max_texts: int = 3) -> str:
    """The first different texts, and how many more there are."""
    different = list(dict.fromkeys(text for text in texts if text))
    more = f" and {len(different) - max_texts} more" if len(different) > max_texts else ""
    return "; ".join(different[:max_texts]) + more
