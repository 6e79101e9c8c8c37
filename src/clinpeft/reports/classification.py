"""Tables 3 and 4 of arXiv 2307.03042: how well each row of a grid predicts each task, beside the
baselines and the published values."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    HELD_OUT_SPLIT,
    TFIDF_DIFFERENCE_GROUP,
    CellResult,
    MetricKey,
    classify_difference,
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
    build_table_from_cells,
    compute_seed_spread,
    has_cell_values,
)
from clinpeft.runs import Run

MACRO_AVERAGE_COLUMN, PUBLISHED_MACRO_KEY = "macro average", "macro_average"

# The metric that arXiv 2307.03042's code computes, where ``evaluation.compat`` asks for it
PAPER_AUROC = "auroc_clinical_peft"

# Means printed as percent with two decimals differ by half of the last digit at most, and a little
# for the rounding of their binary fractions
_ROUNDING_TOLERANCE = 0.00006


@dataclass(frozen=True)
class ClassificationCell:
    """One cell of a grid, with the facts of its recipe and the numbers of its run.

    Attributes:
        entry: the cell.
        row_name: name of the row that it belongs to.
        tasks: of its recipe.
        seed: of its recipe; None if unknown.
        estimates: every number of its run.
    """

    entry: CellResult
    row_name: str
    tasks: tuple[str, ...]
    seed: int | None
    estimates: Mapping[MetricKey, Estimate]

    @classmethod
    def from_entry(cls, entry: CellResult) -> ClassificationCell:
        """A cell; its row is named by the parts of its name that give neither task nor seed."""
        recipe = entry.effective_recipe
        tasks = get_task_names(recipe)
        # The spellings that grids, studies and recipes use in the names of cells
        settings = {f"task.name={task}" for task in tasks} | {*tasks}
        settings |= {task.replace("_", " ") for task in tasks}
        if recipe is not None:
            settings |= {f"seed={recipe.seed}", f"seed {recipe.seed}"}
        parts = [part for part in entry.name.split(" · ") if part not in settings]
        return cls(
            entry,
            " · ".join(parts) or entry.name,
            tasks,
            None if recipe is None else recipe.seed,
            read_estimates(entry.run) if entry.run is not None else {},
        )

    def list_baselines(self, task: str) -> Iterator[tuple[MetricKey, Estimate]]:
        """The numbers of the baselines on the held-out split of a task, in their order."""
        for key, estimate in self.estimates.items():
            of_task = (key.task, key.split) == (task, HELD_OUT_SPLIT)
            if of_task and key.is_baseline and estimate.value is not None:
                yield key, estimate


@dataclass(frozen=True)
class ClassificationRow:
    """The cells that differ by task and seed only.

    Attributes:
        name: the part of their names that they share.
        cells: in the order of the grid.
    """

    name: str
    cells: tuple[ClassificationCell, ...]

    @property
    def runs(self) -> list[Run]:
        """The runs of the cells that have one."""
        return [cell.entry.run for cell in self.cells if cell.entry.run is not None]

    @property
    def seeds(self) -> list[int]:
        """The known seeds, in order."""
        return sorted({cell.seed for cell in self.cells if cell.seed is not None})

    @property
    def published(self) -> Mapping[str, str | int | float]:
        """The published values of all cells."""
        return {key: value for cell in self.cells for key, value in cell.entry.published.items()}

    @property
    def training_seconds(self) -> float | None:
        """Training time, the sum over tasks of the mean over seeds; None if unknown."""
        # Sorted, since ``groupby`` joins neighbors only
        timings = sorted(
            (cell.tasks, seconds)
            for cell in self.cells
            if cell.entry.run is not None
            and (seconds := cell.entry.run.record.training_seconds) is not None
        )
        means = [
            statistics.fmean(seconds for _, seconds in group)
            for _, group in itertools.groupby(timings, key=lambda timing: timing[0])
        ]
        return sum(means) if means else None

    def average_published(self, tasks: Sequence[str]) -> float | None:
        """The mean of the published values of all tasks; None if one is missing."""
        # Recomputed: three of the printed means of the paper are not the means of their rows
        published = [self.published.get(task) for task in tasks]
        values = [float(number) for number in published if isinstance(number, int | float)]
        return statistics.fmean(values) if values and len(values) == len(tasks) else None

    def find_first_run(self, task: str) -> Run | None:
        """The finished run of a task with the smallest seed: figures show one run per row."""
        # One run has one set of curves; a mean over seeds would be a model that does not exist
        runs = [cell.entry.run for cell in self.cells if task in cell.tasks]
        return min(
            (run for run in runs if run is not None and run.record.state == "finished"),
            key=lambda run: run.recipe.seed,
            default=None,
        )

    def find_metric(self, task: str) -> str | None:
        """Name of the task's main metric in the first run that has one."""
        # All runs of a task have the same main metric, but not every cell has a run
        metrics = (find_main_metric(cell.estimates, task) for cell in self.cells)
        return next((metric for metric in metrics if metric), None)

    def get_estimates_by_seed(
        self, rename_metric: Callable[[str], str], task: str, group: str = CLASSIFIER_GROUP
    ) -> dict[int | None, Estimate]:
        """A number of each seed that has it.

        Args:
            rename_metric: name of the main metric -> name of the number.
            task: of the number.
            group: of the number.

        Returns:
            Seed -> estimate.
        """
        estimates = {}
        for cell in self.cells:
            metric = find_main_metric(cell.estimates, task)
            if metric is None:
                continue
            # A run that failed in its evaluation has some of the numbers only
            estimate = cell.estimates.get(
                MetricKey(rename_metric(metric), HELD_OUT_SPLIT, group, task)
            )
            if estimate is not None and estimate.value is not None:
                estimates[cell.seed] = estimate
        return estimates

    def average_metric(self, name: str, task: str) -> Estimate | None:
        """A metric on the held-out split, averaged over seeds; None if no run has it."""
        key = MetricKey(name, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)
        estimates = [cell.estimates[key] for cell in self.cells if key in cell.estimates]
        return average_estimates([one for one in estimates if one.value is not None])

    def get_tfidf_differences(self, task: str) -> dict[int | None, Estimate]:
        """The model less TF-IDF with logistic regression, paired on the same stays, by seed."""
        return self.get_estimates_by_seed(
            lambda metric: f"{metric}_difference", task, TFIDF_DIFFERENCE_GROUP
        )

    def average_main_metric(self, task: str) -> Estimate | None:
        """The main metric, averaged over seeds; None if no run has it."""
        return average_estimates(list(self.get_estimates_by_seed(str, task).values()))


def build_classification_table(
    entries: Sequence[CellResult], title: str, notes: Sequence[str] = ()
) -> ReportTable:
    """Tables 3 and 4 of arXiv 2307.03042: a row per method, a column per task with its main metric
    on the held-out stays.

    Cells whose names differ only in the part with the task or the seed of their recipe are one row,
    and so are the tasks of a run with several. Of several seeds the mean is shown, with the mean of
    their intervals, which is sampling error; the spread over seeds is a value of its own. The macro
    average is the plain mean over the tasks, the published one too. The baselines are above the
    rows, and a row that does not beat TF-IDF with logistic regression says so, as does a cell that
    failed or has not finished.
    """
    # Rows are methods: the cells of all tasks and seeds of one method are on one line
    rows = group_classification_rows(entries)
    cells = [ClassificationCell.from_entry(entry) for entry in entries]
    tasks = list(dict.fromkeys(task for cell in cells for task in cell.tasks))
    values = [*_build_baseline_rows(cells, tasks), *(_build_row_values(row, tasks) for row in rows)]
    # A column that belongs to another one, such as that of published values, only where it has
    # values
    columns = [
        column
        for column in _list_columns(tasks)
        if not column.parent_title or has_cell_values(values, column.title)
    ]
    return build_table_from_cells(
        title, columns, values, [*_list_notes(rows, cells, tasks), *notes]
    )


def group_classification_rows(entries: Sequence[CellResult]) -> list[ClassificationRow]:
    """The cells of a grid as rows: those whose names differ only in their task or seed are one."""
    cells = [ClassificationCell.from_entry(entry) for entry in entries]
    return [
        ClassificationRow(name, tuple(cell for cell in cells if cell.row_name == name))
        for name in dict.fromkeys(cell.row_name for cell in cells)
    ]


def _list_columns(tasks: Sequence[str]) -> Iterator[ReportColumn]:
    """All possible columns; those below another are left out where they are empty."""
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
    yield ReportColumn("trained", format_count)
    yield ReportColumn("share", format_percent)
    yield ReportColumn("time", format_duration)
    yield ReportColumn("remark", is_text=True, parent_title="model")


def _build_row_values(row: ClassificationRow, tasks: Sequence[str]) -> dict[str, CellValue]:
    """Title of a column -> value."""
    by_seed = {task: row.get_estimates_by_seed(str, task) for task in tasks}
    # The macro average is computed per seed, so that its spread over seeds can be given
    macros = _compute_macro_averages(by_seed)
    cells: dict[str, CellValue] = {
        "model": row.name,
        "remark": "; ".join(_list_remarks(row, tasks)),
        "time": row.training_seconds,
        "trained": _format_range([run.record.trained_parameters for run in row.runs], format_count),
        "share": _format_range([run.record.trained_fraction for run in row.runs], format_percent),
        MACRO_AVERAGE_COLUMN: statistics.fmean(macros) if macros else None,
        f"published {MACRO_AVERAGE_COLUMN}": row.average_published(tasks),
        f"{MACRO_AVERAGE_COLUMN}, SD and range over seeds": compute_seed_spread(macros),
    }
    for task, estimates in by_seed.items():
        mean = average_estimates(list(estimates.values()))
        by_paper = average_estimates(
            list(row.get_estimates_by_seed(lambda _: PAPER_AUROC, task).values())
        )
        cells[task] = mean
        cells[f"published {task}"] = row.published.get(task)
        cells[f"{task}, SD and range over seeds"] = compute_seed_spread(
            [estimate.value for estimate in estimates.values() if estimate.value is not None]
        )
        # A second line only where the code of the paper arrives at another number
        if get_estimate_value(by_paper) != get_estimate_value(mean):
            cells[f"{task}, as scored by the paper"] = by_paper
    return cells


def _compute_macro_averages(
    estimates_by_task: Mapping[str, Mapping[int | None, Estimate]],
) -> list[float]:
    """The plain mean over the tasks, for each seed that has them all."""
    # A mean over other tasks than the column says would not be comparable: seeds that lack a task
    # are left out
    by_task = list(estimates_by_task.values())
    seeds = [
        seed
        for seed in (by_task[0] if by_task else {})
        if all(seed in estimates for estimates in by_task)
    ]
    return [
        statistics.fmean(
            value for estimates in by_task if (value := estimates[seed].value) is not None
        )
        for seed in seeds
    ]


def _format_range(values: Iterable[float | None], formatter: Callable[[float], str]) -> CellValue:
    """One number where all are printed alike, else the smallest and the largest: a head has as many
    rows as its task has classes."""
    # Compared as printed: two heads may differ by a few parameters in a million
    numbers = sorted({value for value in values if value is not None})
    if not numbers or formatter(numbers[0]) == formatter(numbers[-1]):
        return numbers[0] if numbers else None
    return f"{formatter(numbers[0])}–{formatter(numbers[-1])}"


def _list_remarks(row: ClassificationRow, tasks: Sequence[str]) -> Iterator[str]:
    """The cells that have not finished, and the tasks on which the row does not beat TF-IDF."""
    cells_by_reason: dict[str, list[str]] = {}
    for cell in row.cells:
        if reason := explain_missing_result(cell.entry):
            # Cells that failed for the same reason share one remark
            seed = f" with seed {cell.seed}" if len(row.seeds) > 1 else ""
            cells_by_reason.setdefault(reason, []).append(", ".join(cell.tasks) + seed)
    for reason, cells in cells_by_reason.items():
        yield f"{', '.join(cells)}: {reason}".removeprefix(": ")
    # The baseline costs seconds, so a row that does not beat it has to say so
    verdicts: dict[str, list[str]] = {"no better": [], "worse": []}
    for task in tasks:
        difference = average_estimates(list(row.get_tfidf_differences(task).values()))
        if difference is not None:
            verdicts.setdefault(classify_difference(difference), []).append(task)
    not_beaten = [
        f"{verdict} on {', '.join(verdicts[verdict])}"
        for verdict in ("no better", "worse")
        if verdicts[verdict]
    ]
    if not_beaten:
        yield f"does not beat TF-IDF: {', '.join(not_beaten)}"


def _build_baseline_rows(
    cells: Sequence[ClassificationCell], tasks: Sequence[str]
) -> list[dict[str, CellValue]]:
    """One row for each baseline, in the order of the results; a task's number is that of the first
    run that has it."""
    baselines: dict[str, dict[str, Estimate]] = {}
    for cell, task in itertools.product(cells, tasks):
        metric = find_main_metric(cell.estimates, task)
        for key, estimate in cell.list_baselines(task):
            # A baseline has all metrics; the table shows the one that its column is about
            if key.name == metric:
                baselines.setdefault(key.group, {}).setdefault(task, estimate)
    rows: list[dict[str, CellValue]] = []
    for group, estimates in baselines.items():
        row: dict[str, CellValue] = {"model": group, **estimates}
        if len(estimates) == len(tasks):
            by_seed: dict[str, dict[int | None, Estimate]] = {
                task: {None: estimates[task]} for task in tasks
            }
            row[MACRO_AVERAGE_COLUMN] = statistics.fmean(_compute_macro_averages(by_seed))
        rows.append(row)
    return rows


def _list_notes(
    rows: Sequence[ClassificationRow], cells: Sequence[ClassificationCell], tasks: Sequence[str]
) -> Iterator[str]:
    """How to read the table, as far as it has something to read."""
    yield from (note for task in tasks for cell in cells if (note := _describe_metric(cell, task)))
    if len(tasks) > 1:
        yield (
            "The macro average is the plain mean over the tasks; it has no interval, since the "
            "tasks share people."
        )
    seeds = max((len(row.seeds) for row in rows), default=0)
    if seeds > 1:
        yield describe_seed_average(seeds)
    if any(len(row.runs) > 1 for row in rows):
        yield "Time is that of training, summed over the tasks of a row; of several seeds the mean."
    if any(row.published for row in rows) and len(tasks) > 1:
        misprints = [text for row in rows if (text := _describe_misprint(row, tasks))]
        yield "Published macro averages are recomputed from the published values" + (
            f"; printed otherwise: {'; '.join(misprints)}." if misprints else "."
        )


def describe_seed_average(seeds: int) -> str:
    """The note of a table whose values are means over seeds."""
    return (
        f"A value is the mean over up to {seeds} seeds: the interval is the mean of theirs "
        "(sampling error alone); the spread over seeds is given beside it: standard deviation, "
        "range."
    )


def _describe_metric(cell: ClassificationCell, task: str) -> str:
    """``mortality: auroc on split held_out, 9,822 stays: <its definition>``, from the results."""
    metric = find_main_metric(cell.estimates, task)
    if cell.entry.run is None or metric is None:
        return ""
    # The definition comes from the results, where the metric was computed, and not from here
    key = (metric, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)
    row = next(
        row
        for row in cell.entry.run.results.to_pylist()
        if (row["name"], row["split"], row["group"], row["task"]) == key
    )
    return (
        f"{task}: {metric} on split {HELD_OUT_SPLIT}, {format_count(row['n'])} stays; "
        f"{row['definition'].rstrip('.')}."
    )


def _describe_misprint(row: ClassificationRow, tasks: Sequence[str]) -> str:
    """``LLaMA (0.5861, not 0.5994)`` where the printed mean is not the mean of its row."""
    printed, mean = row.published.get(PUBLISHED_MACRO_KEY), row.average_published(tasks)
    # A grid of some of the tasks has another mean than the paper's row of all
    is_complete = set(row.published) - {PUBLISHED_MACRO_KEY} <= set(tasks)
    if not isinstance(printed, int | float) or mean is None or not is_complete:
        return ""
    if abs(printed - mean) < _ROUNDING_TOLERANCE:
        return ""
    return f"{row.name} ({format_score(printed)}, not {format_score(mean)})"
