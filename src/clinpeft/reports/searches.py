"""Tables of searches and studies: the trials of a search, the cells of a study, and how the cells
that it compares differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clinpeft.reports.tables import CellValue, Estimate, ReportColumn, ReportTable
from clinpeft.runs.searches import SearchRecord, Trial
from clinpeft.runs.studies import CellPairComparison, StudyRecord


def build_search_table(search: SearchRecord) -> ReportTable:
    """A row per trial, in the order of the proposals."""
    # A space may have conditional keys: not every trial has all of them
    keys = list(dict.fromkeys(key for trial in search.trials for key in trial.settings))
    columns = (
        ReportColumn("trial", "{:.0f}".format),
        *(ReportColumn(key, "{:.4g}".format) for key in keys),
        ReportColumn(f"{search.metric} (tuning)"),
        ReportColumn("run", is_text=True, is_unbroken=True),
        ReportColumn("what became of it", is_text=True),
    )
    rows: list[tuple[CellValue, ...]] = []
    for trial in search.trials:
        settings = (trial.settings.get(key) for key in keys)
        # TOML's spelling: true, not True, which the number format would print as 1
        values = (str(value).lower() if isinstance(value, bool) else value for value in settings)
        rows.append(
            (trial.number, *values, trial.value, trial.run_id, _describe_trial_outcome(trial))
        )
    return ReportTable(f"Search {search.name}", columns, tuple(rows), _list_search_notes(search))


def _list_search_notes(search: SearchRecord) -> tuple[str, ...]:
    """Counts, the best trial, its run on the held-out split, importance of the keys."""
    # A proposal that equals an earlier one is not trained again
    trained = sum(bool(trial.newly_trained) for trial in search.trials)
    repeated = sum(trial.repeats is not None for trial in search.trials)
    notes = [
        f"{len(search.trials)} of {search.wanted} proposals by {search.sampler}; {trained} "
        f"trained, {repeated} equal to an earlier one."
    ]
    if search.best_trial is not None and search.best_trial.value is not None:
        notes.append(
            f"Best: trial {search.best_trial.number}, {search.metric} "
            f"{search.best_trial.value:.4g} on the tuning split."
        )
    if search.held_out:
        row = next(
            (row for row in search.held_out if row["name"] == search.metric), search.held_out[0]
        )
        text = f"{row['name']} is not known"
        if row["value"] is not None:
            interval = "" if row["low"] is None else f" ({row['low']:.4g}–{row['high']:.4g})"
            text = f"{row['name']} {row['value']:.4g}{interval}"
        notes.append(f"Its run on the held-out split, looked at once: {text}.")
    if search.importance:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in search.importance.items())
        notes.append(f"What the values vary by, {search.importance_by}: {shares}.")
    elif search.importance_by:
        notes.append(f"What the values vary by: {search.importance_by}.")
    return tuple(notes)


def build_study_table(study: StudyRecord) -> ReportTable:
    """A row per cell, in the order of the grid."""
    # Cells may lack an axis
    axes = list(dict.fromkeys(axis for cell in study.cells for axis in cell.settings))
    columns = (
        *(ReportColumn(axis, is_text=True) for axis in axes),
        ReportColumn("state", is_text=True),
        ReportColumn("run", is_text=True, is_unbroken=True),
        ReportColumn("reason", is_text=True),
    )
    rows = tuple(
        (*(str(cell.settings.get(axis, "")) for axis in axes), cell.state, cell.run_id, cell.reason)
        for cell in study.cells
    )
    states = [cell.state for cell in study.cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return ReportTable(
        f"Study {study.name}",
        columns,
        rows,
        (f"{len(states)} cells: {counts}.", f"Recipe: {study.recipe}, study {study.id}."),
    )


def build_comparisons_table(study: StudyRecord) -> ReportTable:
    """A row per pair of cells and task, with the main difference: second minus first, with its
    paired interval."""
    columns = (
        ReportColumn("comparison", is_text=True),
        ReportColumn("of", is_text=True),
        ReportColumn("metric", is_text=True),
        ReportColumn("difference", is_estimate=True),
        ReportColumn("runs", is_text=True, is_unbroken=True),
        ReportColumn("why none", is_text=True),
    )
    rows = [
        row
        for comparison in study.compare
        for pair in comparison.pairs
        for row in _build_pair_rows(comparison.name, pair)
    ]
    return ReportTable(
        f"Comparisons of study {study.name}",
        columns,
        tuple(rows),
        ("Second minus first, paired over the same subjects, held-out split.",),
    )


def _build_pair_rows(name: str, pair: CellPairComparison) -> list[tuple[CellValue, ...]]:
    settings = " · ".join(f"{axis}={choice}" for axis, choice in pair.settings.items())
    # In the order of the difference: second minus first
    runs = f"{pair.second_run or '?'} − {pair.first_run or '?'}"
    if not pair.results:
        return [(name, settings, "", None, runs, pair.reason)]
    # The first row of a task is its main metric; held-out rows come first where there are any
    rows = [row for row in pair.results if row["split"] == "held_out"] or list(pair.results)
    first_rows: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        first_rows.setdefault(row["task"], row)
    return [
        (
            name,
            settings,
            str(row["name"]),
            Estimate(row["value"], row["low"], row["high"]),
            runs,
            "",
        )
        for row in first_rows.values()
    ]


def _describe_trial_outcome(trial: Trial) -> str:
    """``finished · as trial 3``."""
    if trial.state == "open":
        return "open"
    repeats = f"as trial {trial.repeats}" if trial.repeats is not None else ""
    reused = "was there already" if trial.newly_trained is False and not repeats else ""
    return " · ".join(part for part in (trial.state, repeats, reused, trial.reason) if part)
