"""Tables of answers beside those of the paper: every measure of a question, the differences that were tested, subgroups, and what it cost."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clinpeft.reports.classification import Row
from clinpeft.reports.facts import (
    MINUS,
    MODEL,
    SUBGROUP,
    TEST,
    TFIDF,
    Entry,
    Key,
    estimate,
    tokens_a_second,
)
from clinpeft.reports.formats import MISSING, count, counted, duration, number, probability, share
from clinpeft.reports.tables import Column, Estimate, Table, Value, mean, printed
from clinpeft.runs import RELEASE_SMALLEST_CELL, Run

MEASURES = {
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

_TESTED = re.compile(
    r"(auroc|auroc_ovo|auroc_macro|separation|ndcg_at_10)_difference|perplexity_ratio|delong_p"
)


def measures_table(rows: Sequence[Row], task: str) -> Table:
    """Every measure of one question on the held-out stays, of the baselines and of every row; of several seeds the mean."""
    found = {row.name: _of_row(row, task) for row in rows if row.metric(task)}
    groups: dict[str, dict[str, Estimate]] = {}
    for row in rows:
        for group, name, known in _baselines(row, task):
            groups.setdefault(group, {}).setdefault(name, known)
    shown = {**groups, **found}
    names = [name for name in MEASURES if any(name in of for of in shown.values())]
    columns = (
        Column("model", is_text=True),
        *(
            Column(
                MEASURES[name], count if name == "labels_evaluable" else number, is_estimate=True
            )
            for name in names
        ),
    )
    lines = tuple((model, *(of.get(name) for name in names)) for model, of in shown.items())
    notes = [
        f"Split {TEST}. Ideal: 1 for slope and observed / expected, 0 for intercept, Brier and ECE. An AUPRC stands against the prevalence."
    ]
    return Table(f"{task}: every measure", columns, lines, (*notes, *_seeds_said(rows)))


def _of_row(row: Row, task: str) -> dict[str, Estimate]:
    found = {
        name: mean(
            [
                cell.found[key]
                for cell in row.cells
                if _known(cell.found, key := Key(name, TEST, MODEL, task))
            ]
        )
        for name in MEASURES
    }
    return {name: known for name, known in found.items() if known is not None}


def _known(found: Mapping[Key, Estimate], key: Key) -> bool:
    return key in found and found[key].value is not None


def _baselines(row: Row, task: str) -> Iterator[tuple[str, str, Estimate]]:
    for cell in row.cells:
        for key, known in cell.found.items():
            is_baseline = (
                key.group != MODEL and SUBGROUP not in key.group and MINUS not in key.group
            )
            if (
                is_baseline
                and (key.task, key.split) == (task, TEST)
                and key.name in MEASURES
                and known.value is not None
            ):
                yield key.group, key.name, known


def _seeds_said(rows: Sequence[Row]) -> list[str]:
    several = max((len(row.seeds) for row in rows), default=0) > 1
    return (
        ["Of several seeds the mean, with the mean of their intervals, which is sampling error."]
        if several
        else []
    )


def against_table(rows: Sequence[Row], tasks: Sequence[str]) -> Table:
    """Each row less TF-IDF with logistic regression on the same stays, seed by seed, and what it means."""
    lines: list[tuple[Value, ...]] = []
    for row in rows:
        for task in tasks:
            for seed, known in row.by_seed(
                lambda metric: f"{metric}_difference", task, f"{MODEL}{MINUS}{TFIDF}"
            ).items():
                lines.append(
                    (row.name, task, "" if seed is None else str(seed), known, _beats(known))
                )
    columns = [Column(title, is_text=True) for title in ("model", "task", "seed")]
    numbers = [Column("less TF-IDF", is_estimate=True), Column("beats TF-IDF", is_text=True)]
    note = "Difference of the main metric, subjects resampled for both at once. Yes: the whole interval is above 0; no: it is not."
    return Table(
        "Against TF-IDF with logistic regression", (*columns, *numbers), tuple(lines), (note,)
    )


def _beats(known: Estimate) -> str:
    low, high = (known.value if end is None else end for end in (known.low, known.high))
    if low is None or high is None:
        return MISSING
    return "yes" if low > 0 else "no: worse" if high < 0 else "no: cannot be told apart"


def subgroups_table(
    rows: Sequence[Row], task: str, smallest_cell: int = RELEASE_SMALLEST_CELL
) -> Table:
    """The main metric of every subgroup and row, by its run with the smallest seed; groups of fewer people than ``smallest_cell`` have no line."""
    found = {
        row.name: _groups(run, task, row.metric(task), smallest_cell)
        for row in rows
        if (run := row.first(task))
    }
    names = list(dict.fromkeys(group for of in found.values() for group in of))
    people = {
        group: next(
            (n for of in found.values() for other, (_, n) in of.items() if other == group), None
        )
        for group in names
    }
    columns = (
        Column("group", is_text=True),
        Column("people", count),
        *(Column(name, is_estimate=True) for name in found),
    )
    lines = tuple(
        (group, people[group], *(of[group][0] if group in of else None for of in found.values()))
        for group in names
    )
    note = f"Main metric on split {TEST}. A group of fewer than {smallest_cell} people is not shown, nor a number about fewer events."
    return Table(f"{task}: subgroups", columns, lines, (note,) if lines else ())


def _groups(
    run: Run, task: str, metric: str | None, smallest_cell: int
) -> dict[str, tuple[Estimate, int]]:
    found = {}
    for row in run.results.to_pylist():
        state, separator, group = (row["group"] or "").partition(SUBGROUP)
        is_asked = (row["name"], row["split"], row["task"], state) == (
            metric,
            TEST,
            task,
            MODEL,
        ) and bool(separator)
        if is_asked and row["value"] is not None and (row["n_subjects"] or 0) >= smallest_cell:
            found[group] = (estimate(row), row["n_subjects"])
    return found


def cost_table(rows: Sequence[tuple[str, Sequence[Run]]]) -> Table:
    """What each row took: parameters, tokens, times, energy; of several runs the mean, of trained parameters the range.

    Args:
        rows: name, and its finished runs.
    """
    numbers = (
        ("trained", count),
        ("share", share),
        ("tokens seen", count),
        ("training", duration),
        ("tokens/s", count),
    )
    rest = (("features", duration), ("baselines", duration), ("whole run", duration))
    columns = (
        *(Column("model", is_text=True), Column("runs", count)),
        *(Column(title, show) for title, show in (*numbers, *rest)),
        *(Column("energy", is_text=True), Column("hardware", is_text=True)),
    )
    lines = tuple((name, len(runs), *_spent(runs)) for name, runs in rows if runs)
    notes = [
        "Times are means over the runs of a row, one run at a time on the machine named; other work on it makes them longer."
    ]
    if any(line[-2] == "unknown" for line in lines):
        notes.append("Energy is unknown where a run recorded no measured power.")
    if counted := sorted(
        {run.record.energy_of for _, runs in rows for run in runs if run.record.energy_of}
    ):
        notes.append(
            f"Energy is that of training, of {'; '.join(counted)}, with all that ran there."
        )
    return Table("Cost", columns, lines, tuple(notes))


def _spent(runs: Sequence[Run]) -> Iterator[Value]:
    records = [run.record for run in runs]
    yield _mean([record.trained_parameters for record in records])
    yield _mean([record.trained_fraction for record in records])
    yield _mean([record.tokens_seen for record in records])
    yield _mean([record.training_seconds for record in records])
    yield _mean([tokens_a_second(run) for run in runs])
    yield _mean([record.features_seconds for record in records])
    yield _mean([record.baselines_seconds for record in records])
    yield _mean([record.total_seconds for record in records])
    joules = _mean([record.energy_joules for record in records])
    yield "unknown" if joules is None else f"{joules / 3600:.4g} Wh"
    yield (
        ", ".join(
            dict.fromkeys(
                f"{r.hardware.devices} × {r.hardware.device}" for r in records if r.hardware
            )
        )
        or "unknown"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def compared_table(
    name: str, pairs: Sequence[tuple[str, str, str, Sequence[Mapping[str, Any]], str]]
) -> Table:
    """One ``[[compare]]`` of a study: the paired difference of every pair of cells, second less first.

    Args:
        name: of the comparison.
        pairs: what both have in common, first, second, rows of ``tables.RESULT``, and why there are none.
    """
    lines: list[tuple[Value, ...]] = []
    for shared, first, second, results, reason in pairs:
        chosen = [row for row in results if _is_shown(row)]
        lines += [
            (
                shared,
                row["task"] or "",
                row["name"].replace("_", " "),
                _tested(row),
                count(row["n"]),
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
    words = [Column(title, is_text=True) for title in ("of", "task", "metric")]
    columns = [
        *words,
        Column("difference", is_estimate=True),
        Column("n", is_text=True),
        Column("remark", is_text=True, under="of"),
    ]
    notes = (
        "Second less first on the same people, resampled for both at once; the interval is sampling error, and seeds are lines of their own.",
    )
    return Table(f"Compared: {name}", tuple(columns), tuple(lines), notes)


def _is_shown(row: Mapping[str, Any]) -> bool:
    """A known difference of a main metric on the held-out split."""
    is_known = (
        row["value"] is not None and row["split"] == TEST and SUBGROUP not in (row["group"] or "")
    )
    return is_known and bool(_TESTED.fullmatch(row["name"]))


def _tested(row: Mapping[str, Any]) -> Value:
    is_p_value = row["name"].endswith("_p") and row["value"] is not None
    return f"p {printed(row['value'], probability)}" if is_p_value else estimate(row)


def provenance(entries: Sequence[Entry]) -> tuple[str, ...]:
    """What every table must say: data, split, seeds, commit, command; from the runs that have finished."""
    runs = [entry.run for entry in entries if entry.run is not None]
    if not runs:
        return ("No cell has a run.",)
    sources = _few(
        f"{run.recipe.source.name}, fingerprint {(run.record.hashes.source or 'unknown')[:12]}"
        for run in runs
    )
    seeds = ", ".join(str(seed) for seed in sorted({run.recipe.seed for run in runs}))
    commits = _few(
        run.record.git_commit or f"unknown, code {run.record.versions.get('clinpeft', 'unknown')}"
        for run in runs
    )
    commands = _few(run.record.command or "unknown" for run in runs)
    asked = _few(dict.fromkeys(part for run in runs for part in _asked(run).split("; ")), most=8)
    return (
        f"Data: {sources}. Split {TEST}{f', {asked}' if asked else ''}. Seed {seeds}. {len(runs)} runs. Commit {commits}. Command: {commands}.",
    )


def _asked(run: Run) -> str:
    """``mortality: n = 1,165``, for each question or set that was measured on the held-out split."""
    found = {
        row["task"] or "": row["n"]
        for row in reversed(run.results.to_pylist())
        if row["split"] == TEST and SUBGROUP not in (row["group"] or "")
    }
    return "; ".join(
        f"{task}: n = {counted(n)}" if task else f"n = {counted(n)}"
        for task, n in reversed(found.items())
    )


def _few(texts: Iterable[str], most: int = 3) -> str:
    known = list(dict.fromkeys(text for text in texts if text))
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return "; ".join(known[:most]) + more
