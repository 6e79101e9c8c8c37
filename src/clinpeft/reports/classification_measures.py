"""Tables of answers beside those of the paper: every measure of a question, the differences that
were tested, subgroups, and what it cost."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clinpeft.reports.classification import ClassificationRow
from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    DIFFERENCE_SEPARATOR,
    HELD_OUT_SPLIT,
    SUBGROUP_SEPARATOR,
    TFIDF_BASELINE_GROUP,
    CellResult,
    MetricKey,
    compute_tokens_per_second,
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
    average_estimates,
    format_cell,
)
from clinpeft.runs import RELEASE_SMALLEST_CELL, Run

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
"""Name of a metric -> its column, in this order."""

_COMPARED_METRIC_PATTERN = re.compile(
    r"(auroc|auroc_ovo|auroc_macro|separation|ndcg_at_10)_difference|perplexity_ratio|delong_p"
)


def build_metrics_table(rows: Sequence[ClassificationRow], task: str) -> ReportTable:
    """Every measure of one question on the held-out stays, of the baselines and of every row; of
    several seeds the mean."""
    found = {row.name: _average_row_metrics(row, task) for row in rows if row.find_metric(task)}
    groups: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        for group, name, known in _list_baseline_estimates(row, task):
            groups.setdefault(group, {}).setdefault(name, known)
    shown = {**groups, **found}
    names = [
        name for name in CLASSIFICATION_METRIC_LABELS if any(name in of for of in shown.values())
    ]
    columns = (
        ReportColumn("model", is_text=True),
        *(
            ReportColumn(
                CLASSIFICATION_METRIC_LABELS[name],
                format_count if name == "labels_evaluable" else format_number,
                is_estimate=True,
            )
            for name in names
        ),
    )
    lines = tuple((model, *(of.get(name) for name in names)) for model, of in shown.items())
    notes = [
        (
            f"Split {HELD_OUT_SPLIT}. Ideal: 1 for slope and observed / expected, 0 for "
            "intercept, Brier and ECE. An AUPRC stands against the prevalence."
        )
    ]
    return ReportTable(f"{task}: every measure", columns, lines, (*notes, *_describe_seeds(rows)))


def _average_row_metrics(row: ClassificationRow, task: str) -> dict[str, Estimate]:
    found = {
        name: average_estimates(
            [
                cell.estimates[key]
                for cell in row.cells
                if _has_value(
                    cell.estimates, key := MetricKey(name, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)
                )
            ]
        )
        for name in CLASSIFICATION_METRIC_LABELS
    }
    return {name: known for name, known in found.items() if known is not None}


def _has_value(estimates: Mapping[MetricKey, Estimate], key: MetricKey) -> bool:
    return key in estimates and estimates[key].value is not None


def _list_baseline_estimates(
    row: ClassificationRow, task: str
) -> Iterator[tuple[str, str, Estimate]]:
    for cell in row.cells:
        for key, known in cell.estimates.items():
            is_baseline = (
                key.group != CLASSIFIER_GROUP
                and SUBGROUP_SEPARATOR not in key.group
                and DIFFERENCE_SEPARATOR not in key.group
            )
            if (
                is_baseline
                and (key.task, key.split) == (task, HELD_OUT_SPLIT)
                and key.name in CLASSIFICATION_METRIC_LABELS
                and known.value is not None
            ):
                yield key.group, key.name, known


def _describe_seeds(rows: Sequence[ClassificationRow]) -> list[str]:
    several = max((len(row.seeds) for row in rows), default=0) > 1
    return (
        ["Of several seeds the mean, with the mean of their intervals, which is sampling error."]
        if several
        else []
    )


def build_baseline_comparison_table(
    rows: Sequence[ClassificationRow], tasks: Sequence[str]
) -> ReportTable:
    """Each row less TF-IDF with logistic regression on the same stays, seed by seed, and what it
    means."""
    lines: list[tuple[CellValue, ...]] = []
    for row in rows:
        for task in tasks:
            for seed, known in row.get_estimates_by_seed(
                lambda metric: f"{metric}_difference",
                task,
                f"{CLASSIFIER_GROUP}{DIFFERENCE_SEPARATOR}{TFIDF_BASELINE_GROUP}",
            ).items():
                lines.append(
                    (
                        row.name,
                        task,
                        "" if seed is None else str(seed),
                        known,
                        _judge_difference(known),
                    )
                )
    columns = [ReportColumn(title, is_text=True) for title in ("model", "task", "seed")]
    numbers = [
        ReportColumn("less TF-IDF", is_estimate=True),
        ReportColumn("beats TF-IDF", is_text=True),
    ]
    note = (
        "Difference of the main metric, subjects resampled for both at once. Yes: the whole "
        "interval is above 0; no: it is not."
    )
    return ReportTable(
        "Against TF-IDF with logistic regression", (*columns, *numbers), tuple(lines), (note,)
    )


def _judge_difference(difference: Estimate) -> str:
    low, high = (
        difference.value if end is None else end for end in (difference.low, difference.high)
    )
    if low is None or high is None:
        return MISSING_VALUE_TEXT
    return "yes" if low > 0 else "no: worse" if high < 0 else "no: cannot be told apart"


def build_subgroup_metrics_table(
    rows: Sequence[ClassificationRow], task: str, smallest_cell: int = RELEASE_SMALLEST_CELL
) -> ReportTable:
    """The main metric of every subgroup and row, by its run with the smallest seed; groups of fewer
    people than ``smallest_cell`` have no line."""
    found = {
        row.name: _collect_subgroup_estimates(run, task, row.find_metric(task), smallest_cell)
        for row in rows
        if (run := row.find_first_run(task))
    }
    names = list(dict.fromkeys(group for of in found.values() for group in of))
    people = {
        group: next(
            (n for of in found.values() for other, (_, n) in of.items() if other == group), None
        )
        for group in names
    }
    columns = (
        ReportColumn("group", is_text=True),
        ReportColumn("people", format_count),
        *(ReportColumn(name, is_estimate=True) for name in found),
    )
    lines = tuple(
        (group, people[group], *(of[group][0] if group in of else None for of in found.values()))
        for group in names
    )
    note = (
        f"Main metric on split {HELD_OUT_SPLIT}. A group of fewer than {smallest_cell} people "
        "is not shown, nor a number about fewer events."
    )
    return ReportTable(f"{task}: subgroups", columns, lines, (note,) if lines else ())


def _collect_subgroup_estimates(
    run: Run, task: str, metric: str | None, smallest_cell: int
) -> dict[str, tuple[Estimate, int]]:
    found = {}
    for row in run.results.to_pylist():
        state, separator, group = (row["group"] or "").partition(SUBGROUP_SEPARATOR)
        is_asked = (row["name"], row["split"], row["task"], state) == (
            metric,
            HELD_OUT_SPLIT,
            task,
            CLASSIFIER_GROUP,
        ) and bool(separator)
        if is_asked and row["value"] is not None and (row["n_subjects"] or 0) >= smallest_cell:
            found[group] = (to_estimate(row), row["n_subjects"])
    return found


def build_cost_table(rows: Sequence[tuple[str, Sequence[Run]]]) -> ReportTable:
    """What each row took: parameters, tokens, times, energy; of several runs the mean, of trained
    parameters the range.

    Args:
        rows: name, and its finished runs.
    """
    numbers = (
        ("trained", format_count),
        ("share", format_percent),
        ("tokens seen", format_count),
        ("training", format_duration),
        ("tokens/s", format_count),
    )
    rest = (
        ("features", format_duration),
        ("baselines", format_duration),
        ("whole run", format_duration),
    )
    columns = (
        *(ReportColumn("model", is_text=True), ReportColumn("runs", format_count)),
        *(ReportColumn(title, show) for title, show in (*numbers, *rest)),
        *(ReportColumn("energy", is_text=True), ReportColumn("hardware", is_text=True)),
    )
    lines = tuple((name, len(runs), *_summarize_cost(runs)) for name, runs in rows if runs)
    notes = [
        (
            "Times are means over the runs of a row, one run at a time on the machine named; "
            "other work on it makes them longer."
        )
    ]
    if any(line[-2] == "unknown" for line in lines):
        notes.append("Energy is unknown where a run recorded no measured power.")
    if counted := sorted(
        {run.record.energy_of for _, runs in rows for run in runs if run.record.energy_of}
    ):
        notes.append(
            f"Energy is that of training, of {'; '.join(counted)}, with all that ran there."
        )
    return ReportTable("Cost", columns, lines, tuple(notes))


def _summarize_cost(runs: Sequence[Run]) -> Iterator[CellValue]:
    records = [run.record for run in runs]
    yield _average_available([record.trained_parameters for record in records])
    yield _average_available([record.trained_fraction for record in records])
    yield _average_available([record.tokens_seen for record in records])
    yield _average_available([record.training_seconds for record in records])
    yield _average_available([compute_tokens_per_second(run) for run in runs])
    yield _average_available([record.features_seconds for record in records])
    yield _average_available([record.baselines_seconds for record in records])
    yield _average_available([record.total_seconds for record in records])
    joules = _average_available([record.energy_joules for record in records])
    yield "unknown" if joules is None else f"{joules / 3600:.4g} Wh"
    yield (
        ", ".join(
            dict.fromkeys(
                f"{r.hardware.devices} × {r.hardware.device}" for r in records if r.hardware
            )
        )
        or "unknown"
    )


def _average_available(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def build_paired_comparison_table(
    name: str, pairs: Sequence[tuple[str, str, str, Sequence[Mapping[str, Any]], str]]
) -> ReportTable:
    """One ``[[compare]]`` of a study: the paired difference of every pair of cells, second less
    first.

    Args:
        name: of the comparison.
        pairs: what both have in common, first, second, rows of ``tables.RESULT``, and why there are
            none.
    """
    lines: list[tuple[CellValue, ...]] = []
    for shared, first, second, results, reason in pairs:
        chosen = [row for row in results if _is_main_difference(row)]
        lines += [
            (
                shared,
                row["task"] or "",
                row["name"].replace("_", " "),
                _format_difference(row),
                format_count(row["n"]),
                "",
            )
            for row in chosen
        ]
        if not chosen:
            why = reason or (
                "withheld, or not defined"
                if results
                else f"no difference of {second} and {first} was measured"
            )
            lines.append((shared, "", "", None, "", why))
    words = [ReportColumn(title, is_text=True) for title in ("of", "task", "metric")]
    columns = [
        *words,
        ReportColumn("difference", is_estimate=True),
        ReportColumn("n", is_text=True),
        ReportColumn("remark", is_text=True, parent_title="of"),
    ]
    notes = (
        (
            "Second less first on the same people, resampled for both at once; the interval is "
            "sampling error, and seeds are lines of their own."
        ),
    )
    return ReportTable(f"Compared: {name}", tuple(columns), tuple(lines), notes)


def _is_main_difference(row: Mapping[str, Any]) -> bool:
    """A known difference of a main metric on the held-out split."""
    is_known = (
        row["value"] is not None
        and row["split"] == HELD_OUT_SPLIT
        and SUBGROUP_SEPARATOR not in (row["group"] or "")
    )
    return is_known and bool(_COMPARED_METRIC_PATTERN.fullmatch(row["name"]))


def _format_difference(row: Mapping[str, Any]) -> CellValue:
    is_p_value = row["name"].endswith("_p") and row["value"] is not None
    return f"p {format_cell(row['value'], format_p_value)}" if is_p_value else to_estimate(row)


def describe_provenance(entries: Sequence[CellResult]) -> tuple[str, ...]:
    """What every table must say: data, split, seeds, commit, command; from the runs that have
    finished."""
    runs = [entry.run for entry in entries if entry.run is not None]
    if not runs:
        return ("No cell has a run.",)
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
    asked = _join_first(
        dict.fromkeys(part for run in runs for part in _describe_sample_sizes(run).split("; ")),
        max_texts=8,
    )
    return (
        (
            f"Data: {sources}. Split {HELD_OUT_SPLIT}{f', {asked}' if asked else ''}. Seed "
            f"{seeds}. {len(runs)} runs. Commit {commits}. Command: {commands}."
        ),
    )


def _describe_sample_sizes(run: Run) -> str:
    """``mortality: n = 1,165``, for each question or set that was measured on the held-out
    split."""
    found = {
        row["task"] or "": row["n"]
        for row in reversed(run.results.to_pylist())
        if row["split"] == HELD_OUT_SPLIT and SUBGROUP_SEPARATOR not in (row["group"] or "")
    }
    return "; ".join(
        f"{task}: n = {format_suppressed_count(n)}" if task else f"n = {format_suppressed_count(n)}"
        for task, n in reversed(found.items())
    )


def _join_first(texts: Iterable[str], max_texts: int = 3) -> str:
    known = list(dict.fromkeys(text for text in texts if text))
    more = f" and {len(known) - max_texts} more" if len(known) > max_texts else ""
    return "; ".join(known[:max_texts]) + more
