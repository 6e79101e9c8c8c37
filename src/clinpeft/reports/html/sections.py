"""Runs to the sections of a report, by the kind of their recipe."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clinpeft.core.errors import InputError
from clinpeft.reports.adaptation import build_adaptation_table
from clinpeft.reports.classification import (
    ClassificationRow,
    build_classification_table,
    group_classification_rows,
)
from clinpeft.reports.classification_measures import (
    build_baseline_comparison_table,
    build_cost_table,
    build_metrics_table,
    build_paired_comparison_table,
    build_subgroup_metrics_table,
    describe_provenance,
)
from clinpeft.reports.embedding import build_embedding_table
from clinpeft.reports.embedding_study import build_embedding_study_tables
from clinpeft.reports.facts import (
    HELD_OUT_SPLIT,
    TFIDF_BASELINE_GROUP,
    CellResult,
    MetricKey,
    get_task_names,
)
from clinpeft.reports.figures import (
    EMBEDDING_FIGURES,
    classification,
    draw_embedding_figures,
    training,
)
from clinpeft.reports.figures.panels import ClassificationPanel
from clinpeft.reports.figures.style import apply_plot_style
from clinpeft.reports.formats import format_suppressed_count
from clinpeft.reports.html.elements import ReportFigure
from clinpeft.reports.html.page import ReportSection
from clinpeft.reports.html.svg import render_svg
from clinpeft.reports.runs import build_attrition_table
from clinpeft.reports.tables import ReportTable, create_text_columns
from clinpeft.runs import RELEASE_SMALLEST_CELL, Run
from clinpeft.runs.studies import StudyRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ReportBlock = tuple[str, ReportTable] | ReportFigure
BuildSections = Callable[[Sequence[CellResult], str], Iterator[ReportSection]]

_FIRST_SEED_NOTE = "Of each row the run with the smallest seed."


@dataclass(frozen=True)
class ReportContents:
    """The contents of a report.

    Attributes:
        sections: in their order.
        tasks: by which it can be filtered.
        row_names: of all grids, likewise.
    """

    sections: tuple[ReportSection, ...]
    tasks: tuple[str, ...]
    row_names: tuple[str, ...]


@dataclass(frozen=True)
class ReportSections:
    """The report of one kind of run.

    Attributes:
        title: what a section calls the results of this kind.
        build_sections: (cells, title) -> sections.
        list_row_names: names of the rows by which the page can be filtered.
    """

    title: str
    build_sections: BuildSections
    list_row_names: Callable[[Sequence[CellResult]], Iterable[str]]


def build_report_contents(
    entries: Sequence[CellResult], title: str, kind: str = "classify"
) -> ReportContents:
    """The sections of a report.

    Args:
        entries: cells of one or several kinds; of a run that may not be released as it is, a copy
            with suppressed results.
        title: of the study.
        kind: of a cell that failed before it had a run.

    Raises:
        UsageError: matplotlib is not installed.
    """
    sections: list[ReportSection] = []
    row_names: list[str] = []
    # A report may hold runs of several kinds
    for recipe_kind, report in REPORT_SECTIONS.items():
        of_kind = []
        for entry in entries:
            recipe = entry.effective_recipe
            if (recipe.kind if recipe is not None else kind) == recipe_kind:
                of_kind.append(entry)
        if of_kind:
            sections += report.build_sections(of_kind, title)
            row_names += report.list_row_names(of_kind)
    # Kinds without tasks add none
    tasks = _list_tasks(group_classification_rows(entries))
    return ReportContents(tuple(sections), tuple(tasks), tuple(dict.fromkeys(row_names)))


def add_study_section(report: ReportContents, study: StudyRecord) -> ReportContents:
    """The same report with the comparisons of a study, and with its cells that have not
    finished."""
    tables = []
    for comparison in study.compare:
        pairs = [
            (
                ", ".join(str(value) for value in pair.settings.values()),
                pair.first,
                pair.second,
                pair.results,
                pair.reason,
            )
            for pair in comparison.pairs
        ]
        if pairs:
            tables.append(build_paired_comparison_table(comparison.name, pairs))
    cells = tuple(
        (cell.label, cell.state, cell.reason) for cell in study.cells if cell.state != "finished"
    )
    if cells:
        columns = create_text_columns("cell", "state", "reason")
        tables.append(ReportTable("Cells that have not finished", columns, cells))
    # A study without comparisons whose cells all finished
    if not tables:
        return report
    section = ReportSection(
        "compared",
        "Comparisons and cells of the study",
        f"Study {study.name} of {study.recipe}.",
        tuple(("", table) for table in tables),
    )
    return dataclasses.replace(report, sections=(*report.sections, section))


def build_classification_sections(
    entries: Sequence[CellResult], title: str
) -> Iterator[ReportSection]:
    """All tasks in one table, then a section per task, then learning curves and cost."""
    rows = group_classification_rows(entries)
    tasks, notes = _list_tasks(rows), describe_provenance(entries)
    tables = (
        build_classification_table(entries, f"{title}: main metric of every question", notes),
        build_baseline_comparison_table(rows, tasks).add_notes(notes),
    )
    yield ReportSection(
        "answers",
        "Answers to questions",
        "Each row is compared with TF-IDF and logistic regression, which reads the whole note and "
        "costs seconds. Intervals resample people.",
        tuple(("", table) for table in tables if table.rows),
    )
    for task in tasks:
        task_entries = [e for e in entries if task in get_task_names(e.effective_recipe)]
        blocks = _list_task_blocks(rows, task, describe_provenance(task_entries))
        yield ReportSection(f"task-{_slugify(task)}", f"Question: {task}", "", tuple(blocks))
    yield build_cost_section({row.name: row.runs for row in rows}, "classify", notes)


def _list_tasks(rows: Sequence[ClassificationRow]) -> list[str]:
    return list(dict.fromkeys(task for row in rows for cell in row.cells for task in cell.tasks))


def _list_task_blocks(
    rows: Sequence[ClassificationRow], task: str, notes: Sequence[str]
) -> Iterator[ReportBlock]:
    """Metrics, figures, subgroups and attrition of one task."""
    runs = [(row.name, row.find_first_run(task)) for row in rows]
    panels = [ClassificationPanel(name, run, task) for name, run in runs if run is not None]
    seeds = sorted({panel.run.recipe.seed for panel in panels})
    seed_note = f", seed {', '.join(map(str, seeds))}" if seeds else ""
    first = f"Of each row the run with the smallest seed{seed_note}."
    few = f"fewer than {RELEASE_SMALLEST_CELL}"
    # Name of the files, title, caption, function of the panels
    draws: list[tuple[str, str, str, Callable[[Sequence[ClassificationPanel]], Figure]]] = [
        (
            "auroc",
            "Main metric with intervals",
            "Points: mean over seeds, intervals of the sample. Dashed: the baseline to beat.",
            lambda _: _draw_forest_plot(rows, task),
        ),
        (
            "calibration",
            "Calibration",
            f"On the dotted line predictions come true as often as they say. {first}",
            classification.draw_calibration,
        ),
        (
            "decision",
            "Decision curve",
            "Net benefit, in true positives per stay, beside treating all and treating none. "
            f"{first}",
            classification.draw_decision_curves,
        ),
        (
            "distributions",
            "Probabilities by class",
            f"Bins of {few} answers are joined. {first}",
            classification.draw_probability_histograms,
        ),
        (
            "subgroups",
            "Subgroups",
            f"Dashed: all people. Groups of {few} people are not drawn. {first}",
            classification.draw_subgroups,
        ),
    ]
    if any(panel.read_table("labels") is not None for panel in panels):
        caption = f"A point per label; labels of {few} stays are not drawn. {first}"
        draws.append(
            ("labels", "Rare and frequent labels", caption, classification.draw_label_auroc)
        )
    # Every block carries the task, by which the page is filtered
    yield task, build_metrics_table(rows, task).add_notes(notes)
    for name, title, caption, draw in draws:
        figure = ReportFigure(f"{_slugify(task)}-{name}", f"{title}: {task}", caption, task=task)
        yield _draw_report_figure(figure, draw, panels)
    subgroups = build_subgroup_metrics_table(rows, task, RELEASE_SMALLEST_CELL)
    if subgroups.rows:
        yield task, subgroups.add_notes(notes)
    # One flow for all rows: they share the cohort of the task
    if panels:
        yield from _list_attrition_blocks(panels[0].run, task)


def _draw_forest_plot(rows: Sequence[ClassificationRow], task: str) -> Figure:
    """The main metric of every row, and the first measurement of the TF-IDF baseline."""
    # Rows without a number have no point, and no line of their own
    pairs = [(row, mean) for row in rows if (mean := row.average_main_metric(task)) is not None]
    published, baselines = [], []
    for row, _ in pairs:
        value = row.published.get(task)
        published.append(float(value) if isinstance(value, int | float) else None)
        key = MetricKey(row.find_metric(task) or "", HELD_OUT_SPLIT, TFIDF_BASELINE_GROUP, task)
        baselines += [
            cell.estimates[key]
            for cell in row.cells
            if task in cell.tasks and key in cell.estimates
        ]
    metric = pairs[0][0].find_metric(task) or "" if pairs else ""
    return classification.draw_forest_plot(
        [row.name for row, _ in pairs],
        [mean for _, mean in pairs],
        published,
        baselines[0] if baselines else None,
        metric.replace("_", " ").upper(),
    )


def _list_attrition_blocks(run: Run, task: str) -> Iterator[ReportBlock]:
    """The dropped rows as a flow chart and as a table with suppressed counts."""
    if not run.attrition:
        return
    name = f"{_slugify(task)}-attrition" if task else f"attrition-{run.id}"
    title = f"Who left{f': {task}' if task else ''}"
    caption = (
        f"Run {run.id}. Counts below {RELEASE_SMALLEST_CELL} are suppressed; steps that dropped "
        "nothing are in the table alone."
    )
    figure = ReportFigure(name, title, caption, task=task)
    yield _draw_report_figure(figure, training.draw_attrition_flow, run.attrition)
    # The locations of damaged rows name files, which a report does not
    steps = [dataclasses.replace(step, locations={}) for step in run.attrition]
    table = build_attrition_table(title, steps)
    rows = tuple(
        (
            *texts,
            format_suppressed_count(n)
            if isinstance(n, int) and 0 < n < RELEASE_SMALLEST_CELL
            else n,
        )
        for *texts, n in table.rows
    )
    yield task, dataclasses.replace(table, rows=rows)


def build_adaptation_sections(entries: Sequence[CellResult], title: str) -> Iterator[ReportSection]:
    """Perplexities and attrition, then learning curves and cost."""
    notes = describe_provenance(entries)
    runs = {entry.name: [entry.run] for entry in entries if entry.run is not None}
    table = build_adaptation_table(entries, f"{title}: perplexity of every method", notes)
    # One flow chart, since the cells of a grid usually read the same notes
    first_run = next((entry.run for entry in entries if entry.run is not None), None)
    attrition = _list_attrition_blocks(first_run, "") if first_run is not None else ()
    yield ReportSection(
        "adaptation",
        "Language of the notes",
        "How well each adapter models the language of the notes: perplexity per token on notes of "
        "people that it was not trained on.",
        (("", table), *attrition),
    )
    yield build_cost_section(runs, "adapt", notes)


def build_embedding_sections(entries: Sequence[CellResult], title: str) -> Iterator[ReportSection]:
    """Tables and figures of the study of embeddings, then learning curves and cost."""
    notes = describe_provenance(entries)
    tables = [
        build_embedding_table(entries, f"{title}: every backbone and state", notes),
        *(table.add_notes(notes) for table in build_embedding_study_tables(entries)),
    ]
    yield ReportSection(
        "vectors",
        "Vectors of texts",
        "Measured on chapters that were held out, before and after.",
        tuple(("", table) for table in tables),
    )
    # Figures without data are named with the reason, so that the numbering of the study remains
    figures, skipped = draw_embedding_figures(entries)
    blocks = []
    for name in [*figures, *skipped]:
        caption = EMBEDDING_FIGURES[name][0] if name in figures else ""
        block = ReportFigure(name, name.replace("-", " ").capitalize(), caption)
        if name in figures:
            blocks.append(_add_drawing(block, figures[name]))
        else:
            blocks.append(dataclasses.replace(block, reason=skipped[name]))
    yield ReportSection("figures", "The figures of the study on embeddings", "", tuple(blocks))
    runs = {entry.name: [entry.run] for entry in entries if entry.run is not None}
    yield build_cost_section(runs, "embed", notes)


def build_cost_section(
    rows: Mapping[str, Sequence[Run]], kind: str, notes: Sequence[str]
) -> ReportSection:
    """Learning curves of one run of every row and set of tasks, and the cost of all runs.

    Args:
        rows: name -> runs; only finished ones count.
        kind: of the runs.
        notes: of the table.
    """
    finished = {
        name: [run for run in runs if run.record.state == "finished"] for name, runs in rows.items()
    }
    finished = {name: runs for name, runs in finished.items() if runs}
    # Losses of different tasks are not comparable: one figure per set of tasks
    task_sets = dict.fromkeys(
        get_task_names(run.recipe) for runs in finished.values() for run in runs
    )
    # One bar per row; the table has the means over seeds
    first_runs = [_find_first_seed_run(runs) for runs in finished.values()]
    table = build_cost_table(list(finished.items())).add_notes(notes)
    costs = _draw_report_figure(
        ReportFigure(f"{kind}-cost", "Cost", _FIRST_SEED_NOTE),
        lambda names: training.draw_training_cost(names, first_runs),
        list(finished),
    )
    return ReportSection(
        f"{kind}-cost-of",
        f"Learning and cost of {REPORT_SECTIONS[kind].title}",
        "",
        (
            *(_draw_learning_curves(finished, kind, tasks) for tasks in task_sets),
            ("", table),
            costs,
        ),
    )


def _find_first_seed_run(runs: Sequence[Run]) -> Run:
    return min(runs, key=lambda run: run.recipe.seed)


def _draw_learning_curves(
    rows: Mapping[str, Sequence[Run]], kind: str, task_names: tuple[str, ...]
) -> ReportFigure:
    """The learning curves of the runs with the same tasks."""
    curves = []
    for name, runs in rows.items():
        of_tasks = [run for run in runs if get_task_names(run.recipe) == task_names]
        if of_tasks:
            curves.append(training.read_training_curve(name, _find_first_seed_run(of_tasks)))
    title = f"Learning: {' and '.join(task_names)}" if task_names else "Learning"
    figure = ReportFigure(
        "-".join([kind, *map(_slugify, task_names), "learning"]),
        title,
        f"Right: what was measured on the tuning split. {_FIRST_SEED_NOTE}",
        task=task_names[0] if len(task_names) == 1 else "",
    )
    return _draw_report_figure(figure, training.draw_learning_curves, curves)


def _draw_report_figure(
    figure: ReportFigure, draw: Callable[[Any], Figure], data: object
) -> ReportFigure:
    """The figure with its drawing, or with the reason why there is none."""
    try:
        with apply_plot_style():
            drawing = draw(data)
    except InputError as error:
        return dataclasses.replace(figure, reason=error.message)
    return _add_drawing(figure, drawing)


def _add_drawing(figure: ReportFigure, drawing: Figure) -> ReportFigure:
    """The figure with its files."""
    buffer = io.BytesIO()
    with apply_plot_style():
        drawing.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    # The layout is final: another pass, at the resolution of SVG, would move things
    drawing.set_layout_engine("none")
    return dataclasses.replace(figure, svg=render_svg(drawing), png=buffer.getvalue())


def _slugify(text: str) -> str:
    """For a file name and an anchor."""
    return re.sub(r"[^A-Za-z0-9]", "-", text).strip("-").lower() or "all"


# Kind of a recipe -> its report; sections appear in this order
REPORT_SECTIONS: Mapping[str, ReportSections] = {
    "classify": ReportSections(
        title="answers",
        build_sections=build_classification_sections,
        list_row_names=lambda entries: [row.name for row in group_classification_rows(entries)],
    ),
    "adapt": ReportSections(
        title="adapting",
        build_sections=build_adaptation_sections,
        list_row_names=lambda entries: [entry.name for entry in entries],
    ),
    "embed": ReportSections(
        title="vectors",
        build_sections=build_embedding_sections,
        list_row_names=lambda _: (),
    ),
}
