"""The paper's Tables 3 and 4: how well each row of a grid answers each question, beside what it must beat and what was published."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clinpeft.reports.facts import (
    MINUS,
    MODEL,
    SUBGROUP,
    TEST,
    TFIDF,
    Entry,
    Key,
    estimates,
    main_metric,
    remark,
    tasks,
    value,
)
from clinpeft.reports.formats import count, duration, score, share
from clinpeft.reports.tables import Column, Estimate, Table, Value, mean, spread
from clinpeft.runs import Run

MACRO, PRINTED_MACRO = "macro average", "macro_average"

_ROUNDING = 0.00006  # means printed as percent with two decimals


@dataclass(frozen=True)
class Asked:
    """One entry, with what its recipe says and its run found.

    Attributes:
        entry: the cell.
        row: the name of the row that it belongs to.
        tasks: what it asks.
        seed: of its recipe; None where that is not known.
        found: every number of its run.
    """

    entry: Entry
    row: str
    tasks: tuple[str, ...]
    seed: int | None
    found: Mapping[Key, Estimate]


@dataclass(frozen=True)
class Row:
    """The cells that differ by task and seed only.

    Attributes:
        name: what they have in common.
        cells: in the order of the grid.
    """

    name: str
    cells: tuple[Asked, ...]

    @property
    def runs(self) -> list[Run]:
        """Of the cells that have one."""
        return [cell.entry.run for cell in self.cells if cell.entry.run is not None]

    @property
    def seeds(self) -> list[int]:
        """Those that are known, in order."""
        return sorted({cell.seed for cell in self.cells if cell.seed is not None})

    @property
    def published(self) -> Mapping[str, str | int | float]:
        """What was printed for any of the cells."""
        return {key: known for cell in self.cells for key, known in cell.entry.published.items()}

    def first(self, task: str) -> Run | None:
        """The finished run with the smallest seed that asks a task: figures show one run a row."""
        asked = [
            cell.entry.run
            for cell in self.cells
            if task in cell.tasks and cell.entry.run is not None
        ]
        return min(
            (run for run in asked if run.record.state == "finished"),
            key=lambda run: run.recipe.seed,
            default=None,
        )

    def metric(self, task: str) -> str | None:
        """Name of the task's main metric, as any of the runs measured it."""
        return next(
            (known for cell in self.cells if (known := main_metric(cell.found, task))), None
        )

    def by_seed(
        self, name: Callable[[str], str], task: str, group: str = MODEL
    ) -> dict[int | None, Estimate]:
        """Seed -> the number that the main metric's name leads to."""
        metrics = [(cell, main_metric(cell.found, task)) for cell in self.cells]
        keys = [(cell, Key(name(metric), TEST, group, task)) for cell, metric in metrics if metric]
        return {
            cell.seed: cell.found[key]
            for cell, key in keys
            if key in cell.found and cell.found[key].value is not None
        }


def classification_table(entries: Sequence[Entry], title: str, notes: Sequence[str] = ()) -> Table:
    """Tables 3 and 4 of the paper (arXiv 2307.03042): a row what is trained, a column a question with its main metric on the held-out stays.

    Cells whose names differ only in the part that says the task or the seed of their recipe are one row, and so are the tasks of a run that
    answers several. Of several seeds the mean is shown, with the mean of their intervals, which is sampling error; what the seeds change stands
    beside and is never mixed with it. The macro average is the plain mean over the tasks, the published one too. Above the rows stands what they
    must beat, and a row that does not beat TF-IDF with logistic regression says so, as does a cell that failed or has not ended.
    """
    rows = rows_of(entries)
    cells = [_cell(entry) for entry in entries]
    asked = list(dict.fromkeys(task for cell in cells for task in cell.tasks))
    shown = [*_baselines(cells, asked), *(_shown(row, asked) for row in rows)]
    columns = [
        column
        for column in _columns(asked)
        if not column.under or any(row.get(column.title) not in (None, "") for row in shown)
    ]
    texts = tuple(
        tuple(row.get(column.title, "" if column.is_text else None) for column in columns)
        for row in shown
    )
    return Table(
        title, tuple(columns), texts, tuple(dict.fromkeys([*_notes(rows, cells, asked), *notes]))
    )


def rows_of(entries: Sequence[Entry]) -> list[Row]:
    """The cells of a grid of questions as rows: those whose names differ only in their task or seed are one."""
    cells = [_cell(entry) for entry in entries]
    return [
        Row(name, tuple(cell for cell in cells if cell.row == name))
        for name in dict.fromkeys(cell.row for cell in cells)
    ]


def _cell(entry: Entry) -> Asked:
    recipe = entry.asked
    found = estimates(entry.run) if entry.run is not None else {}
    return Asked(
        entry, _row_name(entry), tasks(recipe), None if recipe is None else recipe.seed, found
    )


def _row_name(entry: Entry) -> str:
    """The cell's name without the parts that say its task or its seed."""
    recipe = entry.asked
    said = {
        word
        for task in tasks(recipe)
        for word in (task, task.replace("_", " "), f"task.name={task}")
    }
    said |= set() if recipe is None else {f"seed={recipe.seed}", f"seed {recipe.seed}"}
    return " · ".join(part for part in entry.name.split(" · ") if part not in said) or entry.name


def _columns(asked: Sequence[str]) -> Iterator[Column]:
    """All that there can be; those that stand under another are left out where they are empty."""
    averaged = [*asked, MACRO] if len(asked) > 1 else asked
    yield Column("model", is_text=True)
    for task in averaged:
        yield Column(task, is_estimate=task in asked)
        yield Column(f"published {task}", score, under=task, mark="published ")
        yield Column(
            f"{task}, as scored by the paper",
            under=task,
            mark="scored as published ",
            is_estimate=task in asked,
        )
        yield Column(
            f"{task}, SD and range over seeds", under=task, mark="seeds SD ", is_estimate=True
        )
    yield from (Column("trained", count), Column("share", share), Column("time", duration))
    yield Column("remark", is_text=True, under="model")


def _shown(row: Row, asked: Sequence[str]) -> dict[str, Value]:
    """Column -> value."""
    named: dict[str, Value] = {
        "model": row.name,
        "remark": "; ".join(_remarks(row, asked)),
        "time": _seconds(row),
    }
    found = {task: row.by_seed(str, task) for task in asked}
    as_published = {task: mean(list(row.by_seed(_as_published, task).values())) for task in asked}
    means = {task: mean(list(of.values())) for task, of in found.items()}
    named |= {
        **means,
        **{
            f"{task}, as scored by the paper": scored
            for task, scored in as_published.items()
            if value(scored) != value(means[task])
        },
    }
    named |= {f"published {task}": row.published.get(task) for task in asked}
    macro = _macro(found)
    named |= {MACRO: _average(macro), f"published {MACRO}": _published_macro(row, asked)}
    over_seeds = {
        **{
            task: [e.value for e in of.values() if e.value is not None]
            for task, of in found.items()
        },
        MACRO: macro,
    }
    named |= {
        f"{column}, SD and range over seeds": spread(values)
        for column, values in over_seeds.items()
    }
    named["trained"] = _range([run.record.trained_parameters for run in row.runs], count)
    named["share"] = _range([run.record.trained_fraction for run in row.runs], share)
    return named


def _as_published(metric: str) -> str:
    """The AUROC of the paper's code, where ``evaluation.compat`` asked for it."""
    del metric
    return "auroc_clinical_peft"


def _average(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _macro(found: Mapping[str, Mapping[int | None, Estimate]]) -> list[float]:
    """The plain mean over the tasks, for each seed that has them all."""
    seeds = [
        seed for seed in next(iter(found.values()), {}) if all(seed in of for of in found.values())
    ]
    values = ([of[seed].value for of in found.values()] for seed in seeds)
    return [statistics.fmean(known for known in of if known is not None) for of in values]


def _published_macro(row: Row, asked: Sequence[str]) -> float | None:
    """Recomputed from the published values, since three of the printed means are not the means of their rows."""
    known = [row.published.get(task) for task in asked]
    values = [float(number) for number in known if isinstance(number, int | float)]
    return statistics.fmean(values) if values and len(values) == len(asked) else None


def _range(values: Iterable[float | None], show: Callable[[float], str]) -> Value:
    """One number where all are shown alike, else the smallest and the largest: heads have as many rows as the question has classes."""
    known = sorted({known for known in values if known is not None})
    if not known or show(known[0]) == show(known[-1]):
        return known[0] if known else None
    return f"{show(known[0])}–{show(known[-1])}"


def _seconds(row: Row) -> float | None:
    """Of training, all tasks together; of several seeds the mean."""
    timed = [
        (cell.tasks, cell.entry.run.record.training_seconds)
        for cell in row.cells
        if cell.entry.run is not None
    ]
    known = sorted((asked, seconds) for asked, seconds in timed if seconds is not None)
    means = [
        statistics.fmean(s for _, s in of)
        for _, of in itertools.groupby(known, key=lambda pair: pair[0])
    ]
    return sum(means) if means else None


def _remarks(row: Row, asked: Sequence[str]) -> Iterator[str]:
    """What did not end well, cell by cell, and where the row is not better than the baseline that it should beat."""
    problems: dict[str, list[str]] = {}
    for cell in row.cells:
        seed = f" with seed {cell.seed}" if len(row.seeds) > 1 else ""
        problems.setdefault(remark(cell.entry), []).append(", ".join(cell.tasks) + seed)
    yield from (
        f"{', '.join(places)}: {message}".removeprefix(": ")
        for message, places in problems.items()
        if message
    )
    against = {
        task: mean(list(row.by_seed(_difference, task, f"{MODEL}{MINUS}{TFIDF}").values()))
        for task in asked
    }
    verdicts = {
        task: _verdict(difference) for task, difference in against.items() if difference is not None
    }
    lost = [
        f"{verdict} on {', '.join(of)}"
        for verdict in ("no better", "worse")
        if (of := [task for task in verdicts if verdicts[task] == verdict])
    ]
    if lost:
        yield f"does not beat TF-IDF: {', '.join(lost)}"


def _difference(metric: str) -> str:
    return f"{metric}_difference"


def _verdict(difference: Estimate) -> str:
    """``worse`` where the whole interval is below 0, ``no better`` where it holds 0; without an interval the value decides."""
    low, high = (
        difference.value if end is None else end for end in (difference.low, difference.high)
    )
    return "" if low is None or high is None or low > 0 else "worse" if high < 0 else "no better"


def _baselines(cells: Sequence[Asked], asked: Sequence[str]) -> list[dict[str, Value]]:
    """One row for each baseline, in the order of the results; a task's number is that of the first run that has it."""
    rows: dict[str, dict[str, Estimate]] = {}
    for cell, task in itertools.product(cells, asked):
        metric = main_metric(cell.found, task)
        of_task = {
            key.group: known
            for key, known in cell.found.items()
            if (key.name, key.split, key.task) == (metric, TEST, task)
        }
        for group, known in of_task.items():
            if (
                group != MODEL
                and SUBGROUP not in group
                and MINUS not in group
                and known.value is not None
            ):
                rows.setdefault(group, {}).setdefault(task, known)
    macros = {
        group: _macro({task: {None: of[task]} for task in asked}) if len(of) == len(asked) else []
        for group, of in rows.items()
    }
    return [{"model": group, **of, MACRO: _average(macros[group])} for group, of in rows.items()]


def _notes(rows: Sequence[Row], cells: Sequence[Asked], asked: Sequence[str]) -> Iterator[str]:
    """How to read the table, as far as it has something to read."""
    yield from (note for task in asked for cell in cells if (note := _definition(cell, task)))
    if len(asked) > 1:
        yield "The macro average is the plain mean over the tasks; it has no interval, since the same people stand behind several tasks."
    seeds = max((len(row.seeds) for row in rows), default=0)
    if seeds > 1:
        interval = "the interval is the mean of theirs (sampling error alone), and what the seeds change stands beside: standard deviation, range"
        yield f"A value is the mean over up to {seeds} seeds: {interval}."
    if any(len(row.runs) > 1 for row in rows):
        yield "Time is of training, all tasks of a row together; of several seeds the mean."
    misprints = [text for row in rows if (text := _misprint(row, asked))]
    if any(row.published for row in rows) and len(asked) > 1:
        yield "Published macro averages are recomputed from the published values" + (
            f"; printed otherwise: {'; '.join(misprints)}." if misprints else "."
        )


def _definition(cell: Asked, task: str) -> str:
    """``mortality: auroc, held_out, n = 9,822: <its definition>``, from the results themselves."""
    metric = main_metric(cell.found, task)
    if cell.entry.run is None or metric is None:
        return ""
    rows = cell.entry.run.results.to_pylist()
    row = next(
        row
        for row in rows
        if (row["name"], row["split"], row["group"], row["task"]) == (metric, TEST, MODEL, task)
    )
    return f"{task}: {metric} on split {TEST}, {count(row['n'])} stays; {row['definition'].rstrip('.')}."


def _misprint(row: Row, asked: Sequence[str]) -> str:
    """``LLaMA (0.5861, not 0.5994)`` where the printed mean is not the mean of its row."""
    printed, whole = (
        row.published.get(PRINTED_MACRO),
        set(row.published) - {PRINTED_MACRO} <= set(asked),
    )
    mean = _published_macro(row, asked)
    if (
        not isinstance(printed, int | float)
        or mean is None
        or not whole
        or abs(printed - mean) < _ROUNDING
    ):
        return ""
    return f"{row.name} ({score(printed)}, not {score(mean)})"
