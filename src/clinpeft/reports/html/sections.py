"""Runs to the sections of a report: what there is of adapting, of questions and of vectors, each with what a reader must know of it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clinpeft.core.errors import InputError
from clinpeft.reports.adaptation import adaptation_table
from clinpeft.reports.classification import Row, classification_table, rows_of
from clinpeft.reports.classification_measures import (
    against_table,
    compared_table,
    cost_table,
    measures_table,
    provenance,
    subgroups_table,
)
from clinpeft.reports.embedding import embedding_table, study_tables
from clinpeft.reports.facts import TEST, TFIDF, Entry, Key, tasks
from clinpeft.reports.figures import FIGURES, classification, drawn, training
from clinpeft.reports.figures.panels import Panel
from clinpeft.reports.figures.style import styled
from clinpeft.reports.formats import counted
from clinpeft.reports.html.elements import Drawing
from clinpeft.reports.html.page import Section
from clinpeft.reports.html.svg import svg
from clinpeft.reports.runs import attrition_table
from clinpeft.reports.tables import Column, Estimate, Table, mean
from clinpeft.runs import RELEASE_SMALLEST_CELL, Run
from clinpeft.runs.studies import CellPairComparison, StudyRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure"]
Block = tuple[str, Table] | Drawing


@dataclass(frozen=True)
class Contents:
    """What a report holds.

    Attributes:
        sections: in their order.
        tasks: that it can be filtered by.
        rows: of all grids, likewise.
    """

    sections: tuple[Section, ...]
    tasks: tuple[str, ...]
    rows: tuple[str, ...]


def contents(entries: Sequence[Entry], title: str, kind: str = "classify") -> Contents:
    """The sections of a report.

    Args:
        entries: cells of one or several kinds; of a run that may not leave as it is, a copy whose results are suppressed.
        title: of the study.
        kind: of a cell that failed before it had a run.

    Raises:
        UsageError: matplotlib is not installed.
    """
    kinds = {
        one: [entry for entry in entries if (entry.asked.kind if entry.asked else kind) == one]
        for one in _PARTS
    }
    sections = [section for one, of in kinds.items() if of for section in _PARTS[one](of, title)]
    known = rows_of(kinds["classify"])
    asked = dict.fromkeys(task for row in known for cell in row.cells for task in cell.tasks)
    rows = dict.fromkeys([*(row.name for row in known), *(entry.name for entry in kinds["adapt"])])
    return Contents(tuple(sections), tuple(asked), tuple(rows))


def with_study(made: Contents, study: StudyRecord) -> Contents:
    """The same with what a study compared, and with what became of the cells that have not finished."""
    tables = [
        compared_table(one.name, [_pair(pair) for pair in one.pairs])
        for one in study.compare
        if one.pairs
    ]
    cells = [
        (cell.label, cell.state, cell.reason) for cell in study.cells if cell.state != "finished"
    ]
    columns = tuple(Column(title, is_text=True) for title in ("cell", "state", "reason"))
    tables += [Table("Cells that have not finished", columns, tuple(cells))] if cells else []
    section = Section(
        "compared",
        "Comparisons and cells of the study",
        f"Study {study.name} of {study.recipe}.",
        tuple(("", table) for table in tables),
    )
    return dataclasses.replace(made, sections=(*made.sections, section)) if tables else made


def _pair(pair: CellPairComparison) -> tuple[str, str, str, Sequence[Mapping[str, Any]], str]:
    return (
        ", ".join(str(value) for value in pair.settings.values()),
        pair.first,
        pair.second,
        pair.results,
        pair.reason,
    )


def _classified(entries: Sequence[Entry], title: str) -> Iterator[Section]:
    """Of questions: all of them in one table, then one section a question, then how it was learned and what it cost."""
    rows = rows_of(entries)
    asked = list(dict.fromkeys(task for row in rows for cell in row.cells for task in cell.tasks))
    said = provenance(entries)
    tables = [
        classification_table(entries, f"{title}: main metric of every question", said),
        _noted(against_table(rows, asked), said),
    ]
    lead = "Each row is compared with TF-IDF and logistic regression, which reads the whole note and costs seconds. Intervals resample people."
    yield Section(
        "answers",
        "Answers to questions",
        lead,
        tuple(("", table) for table in tables if table.rows),
    )
    for task in asked:
        about = provenance([entry for entry in entries if task in tasks(entry.asked)])
        yield Section(
            f"task-{_word(task)}", f"Question: {task}", "", tuple(_of_task(rows, task, about))
        )
    yield from _spent({row.name: row.runs for row in rows}, "classify", said)


def _of_task(rows: Sequence[Row], task: str, said: Sequence[str]) -> Iterator[Block]:
    panels = [Panel(row.name, run, task) for row in rows if (run := row.first(task))]
    first = f"Of each row the run with the smallest seed{_seeds(panels)}."
    draws: dict[str, tuple[str, str, Draw]] = {
        "auroc": (
            "Main metric with intervals",
            "Points: mean over seeds, intervals of the sample. Dashed: what has to be beaten.",
            lambda: _forest(rows, task),
        ),
        "calibration": (
            "Calibration",
            f"On the dotted line predictions come true as often as they say. {first}",
            lambda: classification.calibration(panels),
        ),
        "decision": (
            "Decision curve",
            f"Net benefit, in true positives a stay, beside acting on everybody and on nobody. {first}",
            lambda: classification.decisions(panels),
        ),
        "distributions": (
            "Probabilities by class",
            f"Bins of fewer than {RELEASE_SMALLEST_CELL} answers are joined. {first}",
            lambda: classification.distributions(panels),
        ),
        "subgroups": (
            "Subgroups",
            f"Dashed: everybody. Groups of fewer than {RELEASE_SMALLEST_CELL} people are not drawn. {first}",
            lambda: classification.subgroups(panels),
        ),
    }
    if any(panel.kept("labels") is not None for panel in panels):
        words = f"A point a label; labels of fewer than {RELEASE_SMALLEST_CELL} stays are not drawn. {first}"
        draws["labels"] = ("Rare and frequent labels", words, lambda: classification.labels(panels))
    yield task, _noted(measures_table(rows, task), said)
    for name, (title, caption, draw) in draws.items():
        yield _drawing(f"{_word(task)}-{name}", f"{title}: {task}", caption, draw, task)
    subgroups = subgroups_table(rows, task, RELEASE_SMALLEST_CELL)
    if subgroups.rows:
        yield task, _noted(subgroups, said)
    if panels and panels[0].run.attrition:
        yield from _left(panels[0].run, task)


def _seeds(panels: Sequence[Panel]) -> str:
    seeds = sorted({panel.run.recipe.seed for panel in panels})
    return f", seed {', '.join(map(str, seeds))}" if seeds else ""


def _forest(rows: Sequence[Row], task: str) -> Figure:
    known = [(row, found) for row in rows if (found := mean(list(row.by_seed(str, task).values())))]
    against = [
        cell.found.get(Key(row.metric(task) or "", TEST, TFIDF, task))
        for row, _ in known
        for cell in row.cells
        if task in cell.tasks
    ]
    printed = [row.published.get(task) for row, _ in known]
    published = [float(value) if isinstance(value, int | float) else None for value in printed]
    beat: Estimate | None = next((one for one in against if one is not None), None)
    metric = known[0][0].metric(task) or "" if known else ""
    return classification.forest(
        [row.name for row, _ in known],
        [found for _, found in known],
        published,
        beat,
        metric.replace("_", " ").upper(),
    )


def _left(run: Run, task: str) -> Iterator[Block]:
    """Who left at which step, as a flow and as a table whose small counts are not told."""
    name = f"{_word(task)}-attrition" if task else f"attrition-{run.id}"
    caption = f"Run {run.id}. Counts below {RELEASE_SMALLEST_CELL} are not told; steps that nothing left are in the table alone."
    yield _drawing(
        name,
        f"Who left{f': {task}' if task else ''}",
        caption,
        lambda: training.attrition(run.attrition),
        task,
    )
    table = attrition_table(
        f"Who left{f': {task}' if task else ''}",
        [dataclasses.replace(step, locations={}) for step in run.attrition],
    )
    yield (
        task,
        dataclasses.replace(table, rows=tuple((*row[:-1], _small(row[-1])) for row in table.rows)),
    )


def _small(n: object) -> str | int | None:
    return (
        counted(n)
        if isinstance(n, int) and 0 < n < RELEASE_SMALLEST_CELL
        else n
        if isinstance(n, int)
        else None
    )


def _adapted(entries: Sequence[Entry], title: str) -> Iterator[Section]:
    said = provenance(entries)
    table = adaptation_table(entries, f"{title}: perplexity of every method", said)
    runs = [entry.run for entry in entries if entry.run is not None]
    lead = "How well each adapter learned the language of the notes: perplexity a token on notes of people that it has not read."
    yield Section(
        "adaptation",
        "Language of the notes",
        lead,
        (("", table), *(_left(runs[0], "") if runs and runs[0].attrition else ())),
    )
    yield from _spent(
        {entry.name: [entry.run] for entry in entries if entry.run is not None}, "adapt", said
    )


def _embedded(entries: Sequence[Entry], title: str) -> Iterator[Section]:
    said = provenance(entries)
    tables = [
        embedding_table(entries, f"{title}: every backbone and state", said),
        *(_noted(table, said) for table in study_tables(entries)),
    ]
    yield Section(
        "vectors",
        "Vectors of texts",
        "Measured on chapters that were held out, before and after.",
        tuple(("", table) for table in tables),
    )
    figures, skipped = drawn(entries)
    shown = [
        _finished(name, name.replace("-", " ").capitalize(), FIGURES[name][0], figure)
        for name, figure in figures.items()
    ]
    absent = [
        Drawing(name, name.replace("-", " ").capitalize(), "", reason=reason)
        for name, reason in skipped.items()
    ]
    yield Section("figures", "The figures of the study on embeddings", "", (*shown, *absent))
    yield from _spent(
        {entry.name: [entry.run] for entry in entries if entry.run is not None}, "embed", said
    )


_PARTS: Mapping[str, Callable[[Sequence[Entry], str], Iterator[Section]]] = {
    "classify": _classified,
    "adapt": _adapted,
    "embed": _embedded,
}
"""Kind of run -> its sections."""


def _spent(rows: Mapping[str, Sequence[Run]], kind: str, said: Sequence[str]) -> Iterator[Section]:
    """Learning curves of one run of every row and task, and what all cost."""
    finished = {
        name: [run for run in runs if run.record.state == "finished"] for name, runs in rows.items()
    }
    rows = {name: runs for name, runs in finished.items() if runs}
    asked = dict.fromkeys(tasks(run.recipe) for runs in rows.values() for run in runs)
    learned = [_learned(rows, kind, of) for of in asked]
    table = _noted(cost_table(list(rows.items())), said)
    bars = _drawing(
        f"{kind}-cost",
        "Cost",
        _FIRST,
        lambda: training.cost(list(rows), [_first(runs) for runs in rows.values()]),
    )
    yield Section(
        f"{kind}-cost-of", f"Learning and cost of {_OF[kind]}", "", (*learned, ("", table), bars)
    )


_FIRST = "Of each row the run with the smallest seed."
_OF = {"classify": "answers", "adapt": "adapting", "embed": "vectors"}


def _first(runs: Sequence[Run]) -> Run:
    return min(runs, key=lambda run: run.recipe.seed)


def _learned(rows: Mapping[str, Sequence[Run]], kind: str, of: tuple[str, ...]) -> Drawing:
    """The learning curves of the runs that ask the same."""
    chosen = {name: [run for run in runs if tasks(run.recipe) == of] for name, runs in rows.items()}
    courses = [training.course(name, _first(runs)) for name, runs in chosen.items() if runs]
    word, task = " and ".join(of), of[0] if len(of) == 1 else ""
    name = "-".join(part for part in (kind, *(_word(one) for one in of), "learning"))
    caption = f"Right: what was measured on the tuning split. {_FIRST}"
    return _drawing(
        name,
        f"Learning{f': {word}' if word else ''}",
        caption,
        lambda: training.learning(courses),
        task,
    )


def _noted(table: Table, said: Sequence[str]) -> Table:
    return dataclasses.replace(table, notes=(*table.notes, *said))


def _drawing(name: str, title: str, caption: str, draw: Draw, task: str = "") -> Drawing:
    try:
        with styled():
            figure = draw()
    except InputError as error:
        return Drawing(name, title, caption, reason=error.message, task=task)
    return _finished(name, title, caption, figure, task)


def _finished(name: str, title: str, caption: str, figure: Figure, task: str = "") -> Drawing:
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    figure.set_layout_engine("none")  # it has been laid out
    return Drawing(name, title, caption, svg(figure), buffer.getvalue(), task=task)


def _word(text: str) -> str:
    """For a file name and an anchor."""
    return (
        "".join(
            character if character.isascii() and character.isalnum() else "-" for character in text
        )
        .strip("-")
        .lower()
        or "all"
    )
