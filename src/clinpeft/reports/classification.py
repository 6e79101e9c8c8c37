"""The paper's Tables 3 and 4: how well each row of a grid answers each question, beside what it
must beat and what was published."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    DIFFERENCE_SEPARATOR,
    HELD_OUT_SPLIT,
    SUBGROUP_SEPARATOR,
    TFIDF_BASELINE_GROUP,
    CellResult,
    MetricKey,
    explain_missing_result,
    find_main_metric,
    get_estimate_value,
    get_task_names,
    read_estimates,
)
from clinpeft.reports.formats import format_count, format_duration, format_percent, format_score
from clinpeft.reports.tables import (
    CellValue,
    Estimate,
    ReportColumn,
    ReportTable,
    average_estimates,
    compute_seed_spread,
)
from clinpeft.runs import Run

MACRO_AVERAGE_COLUMN, PUBLISHED_MACRO_KEY = "macro average", "macro_average"

_ROUNDING_TOLERANCE = 0.00006  # means printed as percent with two decimals


@dataclass(frozen=True)
class ClassificationCell:
    """One entry, with what its recipe says and its run found.

    Attributes:
        entry: the cell.
        row_name: the name of the row that it belongs to.
        tasks: what it asks.
        seed: of its recipe; None where that is not known.
        estimates: every number of its run.
    """

    entry: CellResult
    row_name: str
    tasks: tuple[str, ...]
    seed: int | None
    estimates: Mapping[MetricKey, Estimate]


@dataclass(frozen=True)
class ClassificationRow:
    """The cells that differ by task and seed only.

    Attributes:
        name: what they have in common.
        cells: in the order of the grid.
    """

    name: str
    cells: tuple[ClassificationCell, ...]

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

    def find_first_run(self, task: str) -> Run | None:
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

    def find_metric(self, task: str) -> str | None:
        """Name of the task's main metric, as any of the runs measured it."""
        return next(
            (known for cell in self.cells if (known := find_main_metric(cell.estimates, task))),
            None,
        )

    def get_estimates_by_seed(
        self, rename_metric: Callable[[str], str], task: str, group: str = CLASSIFIER_GROUP
    ) -> dict[int | None, Estimate]:
        """Seed -> the number that the main metric's name leads to."""
        metrics = [(cell, find_main_metric(cell.estimates, task)) for cell in self.cells]
        keys = [
            (cell, MetricKey(rename_metric(metric), HELD_OUT_SPLIT, group, task))
            for cell, metric in metrics
            if metric
        ]
        return {
            cell.seed: cell.estimates[key]
            for cell, key in keys
            if key in cell.estimates and cell.estimates[key].value is not None
        }


def build_classification_table(
    entries: Sequence[CellResult], title: str, notes: Sequence[str] = ()
) -> ReportTable:
    """Tables 3 and 4 of the paper (arXiv 2307.03042): a row what is trained, a column a question
    with its main metric on the held-out stays.

    Cells whose names differ only in the part that says the task or the seed of their recipe are one
    row, and so are the tasks of a run that answers several. Of several seeds the mean is shown,
    with the mean of their intervals, which is sampling error; what the seeds change stands beside
    and is never mixed with it. The macro average is the plain mean over the tasks, the published
    one too. Above the rows stands what they must beat, and a row that does not beat TF-IDF with
    logistic regression says so, as does a cell that failed or has not ended.
    """
    rows = group_classification_rows(entries)
    cells = [_build_cell(entry) for entry in entries]
    asked = list(dict.fromkeys(task for cell in cells for task in cell.tasks))
    shown = [*_build_baseline_rows(cells, asked), *(_build_row_values(row, asked) for row in rows)]
    columns = [
        column
        for column in _list_columns(asked)
        if not column.parent_title or any(row.get(column.title) not in (None, "") for row in shown)
    ]
    texts = tuple(
        tuple(row.get(column.title, "" if column.is_text else None) for column in columns)
        for row in shown
    )
    return ReportTable(
        title,
        tuple(columns),
        texts,
        tuple(dict.fromkeys([*_list_notes(rows, cells, asked), *notes])),
    )


def group_classification_rows(entries: Sequence[CellResult]) -> list[ClassificationRow]:
    """The cells of a grid of questions as rows: those whose names differ only in their task or seed
    are one."""
    cells = [_build_cell(entry) for entry in entries]
    return [
        ClassificationRow(name, tuple(cell for cell in cells if cell.row_name == name))
        for name in dict.fromkeys(cell.row_name for cell in cells)
    ]


def _build_cell(entry: CellResult) -> ClassificationCell:
    recipe = entry.effective_recipe
    found = read_estimates(entry.run) if entry.run is not None else {}
    return ClassificationCell(
        entry,
        _strip_task_and_seed(entry),
        get_task_names(recipe),
        None if recipe is None else recipe.seed,
        found,
    )


def _strip_task_and_seed(entry: CellResult) -> str:
    """The cell's name without the parts that say its task or its seed."""
    recipe = entry.effective_recipe
    said = {
        word
        for task in get_task_names(recipe)
        for word in (task, task.replace("_", " "), f"task.name={task}")
    }
    said |= set() if recipe is None else {f"seed={recipe.seed}", f"seed {recipe.seed}"}
    return " · ".join(part for part in entry.name.split(" · ") if part not in said) or entry.name


def _list_columns(tasks: Sequence[str]) -> Iterator[ReportColumn]:
    """All that there can be; those that stand under another are left out where they are empty."""
    averaged = [*tasks, MACRO_AVERAGE_COLUMN] if len(tasks) > 1 else tasks
    yield ReportColumn("model", is_text=True)
    for task in averaged:
        yield ReportColumn(task, is_estimate=task in tasks)
        yield ReportColumn(
            f"published {task}", format_score, parent_title=task, value_prefix="published "
        )
        yield ReportColumn(
            f"{task}, as scored by the paper",
            parent_title=task,
            value_prefix="scored as published ",
            is_estimate=task in tasks,
        )
        yield ReportColumn(
            f"{task}, SD and range over seeds",
            parent_title=task,
            value_prefix="seeds SD ",
            is_estimate=True,
        )
    yield from (
        ReportColumn("trained", format_count),
        ReportColumn("share", format_percent),
        ReportColumn("time", format_duration),
    )
    yield ReportColumn("remark", is_text=True, parent_title="model")


def _build_row_values(row: ClassificationRow, tasks: Sequence[str]) -> dict[str, CellValue]:
    """Column -> value."""
    named: dict[str, CellValue] = {
        "model": row.name,
        "remark": "; ".join(_list_remarks(row, tasks)),
        "time": _sum_training_seconds(row),
    }
    found = {task: row.get_estimates_by_seed(str, task) for task in tasks}
    as_published = {
        task: average_estimates(list(row.get_estimates_by_seed(_to_paper_metric, task).values()))
        for task in tasks
    }
    means = {task: average_estimates(list(of.values())) for task, of in found.items()}
    named |= {
        **means,
        **{
            f"{task}, as scored by the paper": scored
            for task, scored in as_published.items()
            if get_estimate_value(scored) != get_estimate_value(means[task])
        },
    }
    named |= {f"published {task}": row.published.get(task) for task in tasks}
    macro = _compute_macro_averages(found)
    named |= {
        MACRO_AVERAGE_COLUMN: _average_values(macro),
        f"published {MACRO_AVERAGE_COLUMN}": _compute_published_macro(row, tasks),
    }
    over_seeds = {
        **{
            task: [e.value for e in of.values() if e.value is not None]
            for task, of in found.items()
        },
        MACRO_AVERAGE_COLUMN: macro,
    }
    named |= {
        f"{column}, SD and range over seeds": compute_seed_spread(values)
        for column, values in over_seeds.items()
    }
    named["trained"] = _format_range(
        [run.record.trained_parameters for run in row.runs], format_count
    )
    named["share"] = _format_range(
        [run.record.trained_fraction for run in row.runs], format_percent
    )
    return named


def _to_paper_metric(metric: str) -> str:
    """The AUROC of the paper's code, where ``evaluation.compat`` asked for it."""
    del metric
    return "auroc_clinical_peft"


def _average_values(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _compute_macro_averages(
    estimates_by_task: Mapping[str, Mapping[int | None, Estimate]],
) -> list[float]:
    """The plain mean over the tasks, for each seed that has them all."""
    seeds = [
        seed
        for seed in next(iter(estimates_by_task.values()), {})
        if all(seed in of for of in estimates_by_task.values())
    ]
    values = ([of[seed].value for of in estimates_by_task.values()] for seed in seeds)
    return [statistics.fmean(known for known in of if known is not None) for of in values]


def _compute_published_macro(row: ClassificationRow, tasks: Sequence[str]) -> float | None:
    """Recomputed from the published values, since three of the printed means are not the means of
    their rows."""
    known = [row.published.get(task) for task in tasks]
    values = [float(number) for number in known if isinstance(number, int | float)]
    return statistics.fmean(values) if values and len(values) == len(tasks) else None


def _format_range(values: Iterable[float | None], formatter: Callable[[float], str]) -> CellValue:
    """One number where all are shown alike, else the smallest and the largest: heads have as many
    rows as the question has classes."""
    known = sorted({known for known in values if known is not None})
    if not known or formatter(known[0]) == formatter(known[-1]):
        return known[0] if known else None
    return f"{formatter(known[0])}–{formatter(known[-1])}"


def _sum_training_seconds(row: ClassificationRow) -> float | None:
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


def _list_remarks(row: ClassificationRow, tasks: Sequence[str]) -> Iterator[str]:
    """What did not end well, cell by cell, and where the row is not better than the baseline that
    it should beat."""
    problems: dict[str, list[str]] = {}
    for cell in row.cells:
        seed = f" with seed {cell.seed}" if len(row.seeds) > 1 else ""
        problems.setdefault(explain_missing_result(cell.entry), []).append(
            ", ".join(cell.tasks) + seed
        )
    yield from (
        f"{', '.join(places)}: {message}".removeprefix(": ")
        for message, places in problems.items()
        if message
    )
    against = {
        task: average_estimates(
            list(
                row.get_estimates_by_seed(
                    _to_difference_metric,
                    task,
                    f"{CLASSIFIER_GROUP}{DIFFERENCE_SEPARATOR}{TFIDF_BASELINE_GROUP}",
                ).values()
            )
        )
        for task in tasks
    }
    verdicts = {
        task: _judge_difference(difference)
        for task, difference in against.items()
        if difference is not None
    }
    lost = [
        f"{verdict} on {', '.join(of)}"
        for verdict in ("no better", "worse")
        if (of := [task for task in verdicts if verdicts[task] == verdict])
    ]
    if lost:
        yield f"does not beat TF-IDF: {', '.join(lost)}"


def _to_difference_metric(metric: str) -> str:
    return f"{metric}_difference"


def _judge_difference(difference: Estimate) -> str:
    """``worse`` where the whole interval is below 0, ``no better`` where it holds 0; without an
    interval the value decides."""
    low, high = (
        difference.value if end is None else end for end in (difference.low, difference.high)
    )
    return "" if low is None or high is None or low > 0 else "worse" if high < 0 else "no better"


def _build_baseline_rows(
    cells: Sequence[ClassificationCell], tasks: Sequence[str]
) -> list[dict[str, CellValue]]:
    """One row for each baseline, in the order of the results; a task's number is that of the first
    run that has it."""
    rows: dict[str, dict[str, Estimate]] = {}
    for cell, task in itertools.product(cells, tasks):
        metric = find_main_metric(cell.estimates, task)
        of_task = {
            key.group: known
            for key, known in cell.estimates.items()
            if (key.name, key.split, key.task) == (metric, HELD_OUT_SPLIT, task)
        }
        for group, known in of_task.items():
            if (
                group != CLASSIFIER_GROUP
                and SUBGROUP_SEPARATOR not in group
                and DIFFERENCE_SEPARATOR not in group
                and known.value is not None
            ):
                rows.setdefault(group, {}).setdefault(task, known)
    macros = {
        group: _compute_macro_averages({task: {None: of[task]} for task in tasks})
        if len(of) == len(tasks)
        else []
        for group, of in rows.items()
    }
    return [
        {"model": group, **of, MACRO_AVERAGE_COLUMN: _average_values(macros[group])}
        for group, of in rows.items()
    ]


def _list_notes(
    rows: Sequence[ClassificationRow], cells: Sequence[ClassificationCell], tasks: Sequence[str]
) -> Iterator[str]:
    """How to read the table, as far as it has something to read."""
    yield from (note for task in tasks for cell in cells if (note := _describe_metric(cell, task)))
    if len(tasks) > 1:
        yield (
            "The macro average is the plain mean over the tasks; it has no interval, since the "
            "same people stand behind several tasks."
        )
    seeds = max((len(row.seeds) for row in rows), default=0)
    if seeds > 1:
        interval = (
            "the interval is the mean of theirs (sampling error alone), and what the seeds "
            "change stands beside: standard deviation, range"
        )
        yield f"A value is the mean over up to {seeds} seeds: {interval}."
    if any(len(row.runs) > 1 for row in rows):
        yield "Time is of training, all tasks of a row together; of several seeds the mean."
    misprints = [text for row in rows if (text := _describe_misprint(row, tasks))]
    if any(row.published for row in rows) and len(tasks) > 1:
        yield "Published macro averages are recomputed from the published values" + (
            f"; printed otherwise: {'; '.join(misprints)}." if misprints else "."
        )


def _describe_metric(cell: ClassificationCell, task: str) -> str:
    """``mortality: auroc, held_out, n = 9,822: <its definition>``, from the results themselves."""
    metric = find_main_metric(cell.estimates, task)
    if cell.entry.run is None or metric is None:
        return ""
    rows = cell.entry.run.results.to_pylist()
    row = next(
        row
        for row in rows
        if (row["name"], row["split"], row["group"], row["task"])
        == (metric, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)
    )
    return (
        f"{task}: {metric} on split {HELD_OUT_SPLIT}, {format_count(row['n'])} stays; "
        f"{row['definition'].rstrip('.')}."
    )


def _describe_misprint(row: ClassificationRow, tasks: Sequence[str]) -> str:
    """``LLaMA (0.5861, not 0.5994)`` where the printed mean is not the mean of its row."""
    printed, whole = (
        row.published.get(PUBLISHED_MACRO_KEY),
        set(row.published) - {PUBLISHED_MACRO_KEY} <= set(tasks),
    )
    mean = _compute_published_macro(row, tasks)
    if (
        not isinstance(printed, int | float)
        or mean is None
        or not whole
        or abs(printed - mean) < _ROUNDING_TOLERANCE
    ):
        return ""
    return f"{row.name} ({format_score(printed)}, not {format_score(mean)})"
