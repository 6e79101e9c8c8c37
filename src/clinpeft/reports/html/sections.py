"""Runs to the sections of a report: what there is of adapting, of questions and of vectors, each
with what a reader must know of it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from clinpeft.reports.embedding import build_embedding_study_tables, build_embedding_table
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
from clinpeft.reports.tables import Estimate, ReportColumn, ReportTable, average_estimates
from clinpeft.runs import RELEASE_SMALLEST_CELL, Run
from clinpeft.runs.studies import CellPairComparison, StudyRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DrawFigure = Callable[[], "Figure"]
ReportBlock = tuple[str, ReportTable] | ReportFigure


@dataclass(frozen=True)
class ReportContents:
    """What a report holds.

    Attributes:
        sections: in their order.
        tasks: that it can be filtered by.
        row_names: of all grids, likewise.
    """

    sections: tuple[ReportSection, ...]
    tasks: tuple[str, ...]
    row_names: tuple[str, ...]


def build_report_contents(
    entries: Sequence[CellResult], title: str, kind: str = "classify"
) -> ReportContents:
    """The sections of a report.

    Args:
        entries: cells of one or several kinds; of a run that may not leave as it is, a copy whose
            results are suppressed.
        title: of the study.
        kind: of a cell that failed before it had a run.

    Raises:
        UsageError: matplotlib is not installed.
    """
    kinds = {
        one: [
            entry
            for entry in entries
            if (entry.effective_recipe.kind if entry.effective_recipe else kind) == one
        ]
        for one in _SECTION_BUILDERS
    }
    sections = [
        section for one, of in kinds.items() if of for section in _SECTION_BUILDERS[one](of, title)
    ]
    known = group_classification_rows(kinds["classify"])
    asked = dict.fromkeys(task for row in known for cell in row.cells for task in cell.tasks)
    rows = dict.fromkeys([*(row.name for row in known), *(entry.name for entry in kinds["adapt"])])
    return ReportContents(tuple(sections), tuple(asked), tuple(rows))


def add_study_section(report: ReportContents, study: StudyRecord) -> ReportContents:
    """The same with what a study compared, and with what became of the cells that have not
    finished."""
    tables = [
        build_paired_comparison_table(one.name, [_to_comparison_row(pair) for pair in one.pairs])
        for one in study.compare
        if one.pairs
    ]
    cells = [
        (cell.label, cell.state, cell.reason) for cell in study.cells if cell.state != "finished"
    ]
    columns = tuple(ReportColumn(title, is_text=True) for title in ("cell", "state", "reason"))
    tables += [ReportTable("Cells that have not finished", columns, tuple(cells))] if cells else []
    section = ReportSection(
        "compared",
        "Comparisons and cells of the study",
        f"Study {study.name} of {study.recipe}.",
        tuple(("", table) for table in tables),
    )
    return dataclasses.replace(report, sections=(*report.sections, section)) if tables else report


def _to_comparison_row(
    pair: CellPairComparison,
) -> tuple[str, str, str, Sequence[Mapping[str, Any]], str]:
    return (
        ", ".join(str(value) for value in pair.settings.values()),
        pair.first,
        pair.second,
        pair.results,
        pair.reason,
    )


def _build_classification_sections(
    entries: Sequence[CellResult], title: str
) -> Iterator[ReportSection]:
    """Of questions: all of them in one table, then one section a question, then how it was learned
    and what it cost."""
    rows = group_classification_rows(entries)
    asked = list(dict.fromkeys(task for row in rows for cell in row.cells for task in cell.tasks))
    said = describe_provenance(entries)
    tables = [
        build_classification_table(entries, f"{title}: main metric of every question", said),
        _add_notes(build_baseline_comparison_table(rows, asked), said),
    ]
    lead = (
        "Each row is compared with TF-IDF and logistic regression, which reads the whole note "
        "and costs seconds. Intervals resample people."
    )
    yield ReportSection(
        "answers",
        "Answers to questions",
        lead,
        tuple(("", table) for table in tables if table.rows),
    )
    for task in asked:
        about = describe_provenance(
            [entry for entry in entries if task in get_task_names(entry.effective_recipe)]
        )
        yield ReportSection(
            f"task-{_slugify(task)}",
            f"Question: {task}",
            "",
            tuple(_build_task_blocks(rows, task, about)),
        )
    yield from _build_cost_sections({row.name: row.runs for row in rows}, "classify", said)


def _build_task_blocks(
    rows: Sequence[ClassificationRow], task: str, notes: Sequence[str]
) -> Iterator[ReportBlock]:
    panels = [
        ClassificationPanel(row.name, run, task)
        for row in rows
        if (run := row.find_first_run(task))
    ]
    first = f"Of each row the run with the smallest seed{_describe_seeds(panels)}."
    draws: dict[str, tuple[str, str, DrawFigure]] = {
        "auroc": (
            "Main metric with intervals",
            "Points: mean over seeds, intervals of the sample. Dashed: what has to be beaten.",
            lambda: _draw_forest_plot(rows, task),
        ),
        "calibration": (
            "Calibration",
            f"On the dotted line predictions come true as often as they say. {first}",
            lambda: classification.draw_calibration(panels),
        ),
        "decision": (
            "Decision curve",
            (
                "Net benefit, in true positives a stay, beside acting on everybody and on "
                f"nobody. {first}"
            ),
            lambda: classification.draw_decision_curves(panels),
        ),
        "distributions": (
            "Probabilities by class",
            f"Bins of fewer than {RELEASE_SMALLEST_CELL} answers are joined. {first}",
            lambda: classification.draw_probability_histograms(panels),
        ),
        "subgroups": (
            "Subgroups",
            (
                f"Dashed: everybody. Groups of fewer than {RELEASE_SMALLEST_CELL} people are "
                f"not drawn. {first}"
            ),
            lambda: classification.draw_subgroups(panels),
        ),
    }
    if any(panel.read_table("labels") is not None for panel in panels):
        words = (
            f"A point a label; labels of fewer than {RELEASE_SMALLEST_CELL} stays are not "
            f"drawn. {first}"
        )
        draws["labels"] = (
            "Rare and frequent labels",
            words,
            lambda: classification.draw_label_auroc(panels),
        )
    yield task, _add_notes(build_metrics_table(rows, task), notes)
    for name, (title, caption, draw) in draws.items():
        yield _draw_report_figure(
            f"{_slugify(task)}-{name}", f"{title}: {task}", caption, draw, task
        )
    subgroups = build_subgroup_metrics_table(rows, task, RELEASE_SMALLEST_CELL)
    if subgroups.rows:
        yield task, _add_notes(subgroups, notes)
    if panels and panels[0].run.attrition:
        yield from _build_attrition_blocks(panels[0].run, task)


def _describe_seeds(panels: Sequence[ClassificationPanel]) -> str:
    seeds = sorted({panel.run.recipe.seed for panel in panels})
    return f", seed {', '.join(map(str, seeds))}" if seeds else ""


def _draw_forest_plot(rows: Sequence[ClassificationRow], task: str) -> Figure:
    known = [
        (row, found)
        for row in rows
        if (found := average_estimates(list(row.get_estimates_by_seed(str, task).values())))
    ]
    against = [
        cell.estimates.get(
            MetricKey(row.find_metric(task) or "", HELD_OUT_SPLIT, TFIDF_BASELINE_GROUP, task)
        )
        for row, _ in known
        for cell in row.cells
        if task in cell.tasks
    ]
    printed = [row.published.get(task) for row, _ in known]
    published = [float(value) if isinstance(value, int | float) else None for value in printed]
    beat: Estimate | None = next((one for one in against if one is not None), None)
    metric = known[0][0].find_metric(task) or "" if known else ""
    return classification.draw_forest_plot(
        [row.name for row, _ in known],
        [found for _, found in known],
        published,
        beat,
        metric.replace("_", " ").upper(),
    )


def _build_attrition_blocks(run: Run, task: str) -> Iterator[ReportBlock]:
    """Who left at which step, as a flow and as a table whose small counts are not told."""
    name = f"{_slugify(task)}-attrition" if task else f"attrition-{run.id}"
    caption = (
        f"Run {run.id}. Counts below {RELEASE_SMALLEST_CELL} are not told; steps that nothing "
        "left are in the table alone."
    )
    yield _draw_report_figure(
        name,
        f"Who left{f': {task}' if task else ''}",
        caption,
        lambda: training.draw_attrition_flow(run.attrition),
        task,
    )
    table = build_attrition_table(
        f"Who left{f': {task}' if task else ''}",
        [dataclasses.replace(step, locations={}) for step in run.attrition],
    )
    yield (
        task,
        dataclasses.replace(
            table, rows=tuple((*row[:-1], _suppress_count(row[-1])) for row in table.rows)
        ),
    )


def _suppress_count(n: object) -> str | int | None:
    return (
        format_suppressed_count(n)
        if isinstance(n, int) and 0 < n < RELEASE_SMALLEST_CELL
        else n
        if isinstance(n, int)
        else None
    )


def _build_adaptation_sections(
    entries: Sequence[CellResult], title: str
) -> Iterator[ReportSection]:
    said = describe_provenance(entries)
    table = build_adaptation_table(entries, f"{title}: perplexity of every method", said)
    runs = [entry.run for entry in entries if entry.run is not None]
    lead = (
        "How well each adapter learned the language of the notes: perplexity a token on notes "
        "of people that it has not read."
    )
    yield ReportSection(
        "adaptation",
        "Language of the notes",
        lead,
        (
            ("", table),
            *(_build_attrition_blocks(runs[0], "") if runs and runs[0].attrition else ()),
        ),
    )
    yield from _build_cost_sections(
        {entry.name: [entry.run] for entry in entries if entry.run is not None}, "adapt", said
    )


def _build_embedding_sections(entries: Sequence[CellResult], title: str) -> Iterator[ReportSection]:
    said = describe_provenance(entries)
    tables = [
        build_embedding_table(entries, f"{title}: every backbone and state", said),
        *(_add_notes(table, said) for table in build_embedding_study_tables(entries)),
    ]
    yield ReportSection(
        "vectors",
        "Vectors of texts",
        "Measured on chapters that were held out, before and after.",
        tuple(("", table) for table in tables),
    )
    figures, skipped = draw_embedding_figures(entries)
    shown = [
        _render_report_figure(
            name, name.replace("-", " ").capitalize(), EMBEDDING_FIGURES[name][0], figure
        )
        for name, figure in figures.items()
    ]
    absent = [
        ReportFigure(name, name.replace("-", " ").capitalize(), "", reason=reason)
        for name, reason in skipped.items()
    ]
    yield ReportSection("figures", "The figures of the study on embeddings", "", (*shown, *absent))
    yield from _build_cost_sections(
        {entry.name: [entry.run] for entry in entries if entry.run is not None}, "embed", said
    )


_SECTION_BUILDERS: Mapping[str, Callable[[Sequence[CellResult], str], Iterator[ReportSection]]] = {
    "classify": _build_classification_sections,
    "adapt": _build_adaptation_sections,
    "embed": _build_embedding_sections,
}
"""Kind of run -> its sections."""


def _build_cost_sections(
    rows: Mapping[str, Sequence[Run]], kind: str, notes: Sequence[str]
) -> Iterator[ReportSection]:
    """Learning curves of one run of every row and task, and what all cost."""
    finished = {
        name: [run for run in runs if run.record.state == "finished"] for name, runs in rows.items()
    }
    rows = {name: runs for name, runs in finished.items() if runs}
    asked = dict.fromkeys(get_task_names(run.recipe) for runs in rows.values() for run in runs)
    learned = [_draw_learning_curves(rows, kind, of) for of in asked]
    table = _add_notes(build_cost_table(list(rows.items())), notes)
    bars = _draw_report_figure(
        f"{kind}-cost",
        "Cost",
        _FIRST_SEED_NOTE,
        lambda: training.draw_training_cost(
            list(rows), [_find_first_seed_run(runs) for runs in rows.values()]
        ),
    )
    yield ReportSection(
        f"{kind}-cost-of",
        f"Learning and cost of {_KIND_TITLES[kind]}",
        "",
        (*learned, ("", table), bars),
    )


_FIRST_SEED_NOTE = "Of each row the run with the smallest seed."
_KIND_TITLES = {"classify": "answers", "adapt": "adapting", "embed": "vectors"}


def _find_first_seed_run(runs: Sequence[Run]) -> Run:
    return min(runs, key=lambda run: run.recipe.seed)


def _draw_learning_curves(
    rows: Mapping[str, Sequence[Run]], kind: str, task_names: tuple[str, ...]
) -> ReportFigure:
    """The learning curves of the runs that ask the same."""
    chosen = {
        name: [run for run in runs if get_task_names(run.recipe) == task_names]
        for name, runs in rows.items()
    }
    courses = [
        training.read_training_curve(name, _find_first_seed_run(runs))
        for name, runs in chosen.items()
        if runs
    ]
    word, task = " and ".join(task_names), task_names[0] if len(task_names) == 1 else ""
    name = "-".join(part for part in (kind, *(_slugify(one) for one in task_names), "learning"))
    caption = f"Right: what was measured on the tuning split. {_FIRST_SEED_NOTE}"
    return _draw_report_figure(
        name,
        f"Learning{f': {word}' if word else ''}",
        caption,
        lambda: training.draw_learning_curves(courses),
        task,
    )


def _add_notes(table: ReportTable, notes: Sequence[str]) -> ReportTable:
    return dataclasses.replace(table, notes=(*table.notes, *notes))


def _draw_report_figure(
    name: str, title: str, caption: str, draw: DrawFigure, task: str = ""
) -> ReportFigure:
    try:
        with apply_plot_style():
            figure = draw()
    except InputError as error:
        return ReportFigure(name, title, caption, reason=error.message, task=task)
    return _render_report_figure(name, title, caption, figure, task)


def _render_report_figure(
    name: str, title: str, caption: str, figure: Figure, task: str = ""
) -> ReportFigure:
    buffer = io.BytesIO()
    with apply_plot_style():
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    figure.set_layout_engine("none")  # it has been laid out
    return ReportFigure(name, title, caption, render_svg(figure), buffer.getvalue(), task=task)


def _slugify(text: str) -> str:
    """For a file name and an anchor."""
    return (
        "".join(
            character if character.isascii() and character.isalnum() else "-" for character in text
        )
        .strip("-")
        .lower()
        or "all"
    )
