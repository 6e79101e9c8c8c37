"""``clinpeft report``: a study or some runs as one page, with every table and figure as files beside it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.console import to_relative_path
from clinpeft.cli.options import DEFAULT_HOME, HomeOption
from clinpeft.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from clinpeft.reports import CellResult
    from clinpeft.runs import Run
    from clinpeft.runs.studies import CellPairComparison, StudyRecord


def report(
    what: Annotated[
        list[str], typer.Argument(help="A study, or runs: id, the beginning of one, or name.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="A folder; report.html, tables/, figures/ and cards/ are written there and nowhere else.",
        ),
    ],
    home: HomeOption = DEFAULT_HOME,
    title: Annotated[
        str, typer.Option("--title", help="Of the page; else the name of the study.")
    ] = "",
) -> None:
    """One self-contained page of a study or of some runs, with every table as Markdown, CSV and LaTeX and every figure as SVG and PNG."""
    from clinpeft import __version__
    from clinpeft.reports import html
    from clinpeft.reports.figures.style import import_matplotlib

    import_matplotlib()
    study = _find_study(home.resolve(), what)
    entries = (
        list(_list_study_results(study)) if study else list(_list_run_results(home.resolve(), what))
    )
    name = title or (
        study.name if study else _find_shared_name([entry.name for entry in entries]) or "Report"
    )
    made = html.build_report_contents(
        _shorten_names(entries), name, study.kind if study else "classify"
    )
    if study:
        made = html.add_study_section(made, _suppress_study(study))
    written = html.write_html_report(
        out,
        name,
        [_summarize_states(entries, study)],
        made,
        _render_texts(entries, name),
        f"Made with clinpeft {__version__}",
    )
    print(f"{to_relative_path(written[0].resolve())}, and {len(written) - 1} files beside it")


def _find_study(home: Path, names: Sequence[str]) -> StudyRecord | None:
    """The study that is meant, if it is one; a run of the same name is taken where there is no study."""
    from clinpeft.runs.studies import find_study

    if len(names) != 1:
        return None
    try:
        return find_study(home, names[0])
    except UsageError:
        return None


def _list_study_results(study: StudyRecord) -> Iterator[CellResult]:
    """Cells that were begun; those that wait are counted elsewhere."""
    from clinpeft.reports import CellResult
    from clinpeft.runs import read_run

    for cell in study.cells:
        folder = study.home / (cell.run_id or "")
        found = read_run(folder) if cell.run_id and (folder / "run.json").exists() else None
        if found is not None or cell.state == "failed":
            yield CellResult(
                cell.label,
                None if found is None else _suppress_run(found),
                message=cell.reason,
                published=cell.published,
            )


def _list_run_results(home: Path, names: Sequence[str]) -> Iterator[CellResult]:
    from clinpeft.reports import CellResult
    from clinpeft.runs import find_run

    for text in names:
        run = find_run(home, text)
        yield CellResult(run.record.name or run.id, _suppress_run(run))


def _suppress_run(run: Run) -> Run:
    """Without numbers about fewer than ten people; books have none."""
    from clinpeft import evaluation
    from clinpeft.reports.facts import SuppressedRun
    from clinpeft.runs import RELEASE_SMALLEST_CELL

    if run.recipe.kind == "embed":
        return run
    return SuppressedRun(
        run.folder,
        run.recipe,
        run.record,
        functools.partial(evaluation.suppress_small_cells, smallest_cell=RELEASE_SMALLEST_CELL),
    )


def _suppress_study(study: StudyRecord) -> StudyRecord:
    """The same with what it compared as it may leave."""
    import dataclasses

    import pyarrow as pa

    from clinpeft import evaluation
    from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
    from clinpeft.runs import RELEASE_SMALLEST_CELL

    def told(pair: CellPairComparison) -> CellPairComparison:
        found = pa.Table.from_pylist(
            [dict(row) for row in pair.results], schema=METRIC_RESULT_SCHEMA
        )
        return dataclasses.replace(
            pair,
            results=tuple(
                evaluation.suppress_small_cells(found, RELEASE_SMALLEST_CELL).to_pylist()
            ),
        )

    if study.kind == "embed":
        return study
    compared = tuple(
        dataclasses.replace(one, pairs=tuple(told(pair) for pair in one.pairs))
        for one in study.compare
    )
    return dataclasses.replace(study, compare=compared)


def _find_shared_name(names: Sequence[str]) -> str:
    """What all names begin with, part by part."""
    parts = [name.split(" · ") for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return " · ".join(shared)


def _shorten_names(entries: Sequence[CellResult]) -> list[CellResult]:
    """Names without the part that they share, where something is left of each."""
    import dataclasses

    shared = _find_shared_name([entry.name for entry in entries])
    left = [entry.name.removeprefix(shared).removeprefix(" · ") for entry in entries]
    return (
        [dataclasses.replace(entry, name=name) for entry, name in zip(entries, left, strict=True)]
        if all(left)
        else list(entries)
    )


def _summarize_states(entries: Sequence[CellResult], study: StudyRecord | None) -> str:
    """How many cells there are, and how many have ended how."""
    from clinpeft.runs import RELEASE_SMALLEST_CELL

    states = [entry.run.state if entry.run is not None else "failed" for entry in entries]
    waiting = sum(cell.state == "waiting" for cell in study.cells) if study else 0
    counted = {state: states.count(state) for state in dict.fromkeys(states)} | (
        {"waiting": waiting} if waiting else {}
    )
    said = ", ".join(f"{n} {state}" for state, n in counted.items())
    runs = len(entries) + waiting
    withheld = f"Numbers about fewer than {RELEASE_SMALLEST_CELL} people, events, or stays without the event are withheld."
    return f"{runs} run{'s' * (runs > 1)}: {said}. {withheld}"


def _render_texts(entries: Sequence[CellResult], name: str) -> dict[str, str]:
    """A card for each adapter that can be given away, and the checklist."""
    from clinpeft.reports import cards, checklist

    runs = [
        entry.run
        for entry in entries
        if entry.run is not None and entry.run.record.state == "finished"
    ]
    texts = {
        f"cards/{run.id}.md": cards.render_model_card(run)
        for run in runs
        if cards.has_model_card(run)
    }
    return texts | (
        {"checklist.md": checklist.render_reporting_checklist(runs, name)} if runs else {}
    )
