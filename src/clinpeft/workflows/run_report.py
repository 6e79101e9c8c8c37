"""The report of a study or of some runs, with small cells suppressed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from clinpeft import __version__
from clinpeft.core.errors import UsageError
from clinpeft.reports import CellResult
from clinpeft.runs import Run
from clinpeft.runs.studies import StudyRecord

NAME_SEPARATOR = " · "


def write_runs_report(
    home: Path, names: Sequence[str], folder: Path, title: str = ""
) -> list[Path]:
    """Write a self-contained page of a study or of runs, with tables and figures beside it.

    Args:
        home: folder of all runs.
        names: one study, or runs: ids, prefixes of ids, or names.
        folder: where the files are written.
        title: of the page; empty: the name of the study, or what the names of the runs share.

    Returns:
        The page, then the other files.

    Raises:
        UsageError: there is no such run, or matplotlib is not installed.
    """
    from clinpeft.reports import html
    from clinpeft.reports.figures.style import import_matplotlib

    import_matplotlib()  # fails before anything is read where it is not installed
    study = find_named_study(home, names)
    results = list(list_study_results(study) if study else list_run_results(home, names))
    shared_name = find_shared_name([result.name for result in results])
    name = title or (study.name if study else shared_name or "Report")
    contents = html.build_report_contents(
        shorten_names(results), name, study.kind if study else "classify"
    )
    if study:
        contents = html.add_study_section(contents, suppress_study(study))
    return list(
        html.write_html_report(
            folder,
            name,
            [summarize_states(results, study)],
            contents,
            render_texts(results, name),
            f"Made with clinpeft {__version__}",
        )
    )


def find_named_study(home: Path, names: Sequence[str]) -> StudyRecord | None:
    """Find the study of a name; None where there is none, and a run may be meant."""
    from clinpeft.runs.studies import find_study

    if len(names) != 1:
        return None
    try:
        return find_study(home, names[0])
    except UsageError:
        return None


def list_study_results(study: StudyRecord) -> Iterator[CellResult]:
    """List the cells that were started; those that wait are only counted."""
    from clinpeft.reports import CellResult
    from clinpeft.runs import read_run

    for cell in study.cells:
        folder = study.home / (cell.run_id or "")
        run = read_run(folder) if cell.run_id and (folder / "run.json").exists() else None
        if run is not None or cell.state == "failed":
            yield CellResult(
                cell.label,
                None if run is None else suppress_run(run),
                message=cell.reason,
                published=cell.published,
            )


def list_run_results(home: Path, names: Sequence[str]) -> Iterator[CellResult]:
    """List the runs of names as cells of a grid."""
    from clinpeft.reports import CellResult
    from clinpeft.runs import find_run

    for name in names:
        run = find_run(home, name)
        yield CellResult(run.record.name or run.id, suppress_run(run))


def suppress_run(run: Run) -> Run:
    """The run without numbers about fewer than ten people; a run on textbooks is about none."""
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


def suppress_study(study: StudyRecord) -> StudyRecord:
    """The study with its comparisons suppressed like ``suppress_run``."""
    import pyarrow as pa

    from clinpeft import evaluation
    from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
    from clinpeft.runs import RELEASE_SMALLEST_CELL

    if study.kind == "embed":
        return study
    comparisons = []
    for comparison in study.compare:
        pairs = []
        for pair in comparison.pairs:
            rows = [dict(row) for row in pair.results]
            results = pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)
            results = evaluation.suppress_small_cells(results, RELEASE_SMALLEST_CELL)
            pairs.append(dataclasses.replace(pair, results=tuple(results.to_pylist())))
        comparisons.append(dataclasses.replace(comparison, pairs=tuple(pairs)))
    return dataclasses.replace(study, compare=tuple(comparisons))


def find_shared_name(names: Sequence[str]) -> str:
    """Find the parts with which all names begin."""
    shared = []
    for column in zip(*(name.split(NAME_SEPARATOR) for name in names), strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return NAME_SEPARATOR.join(shared)


def shorten_names(results: Sequence[CellResult]) -> list[CellResult]:
    """Remove the shared part from all names, where something remains of each."""
    shared = find_shared_name([result.name for result in results])
    names = [result.name.removeprefix(shared).removeprefix(NAME_SEPARATOR) for result in results]
    if not all(names):
        return list(results)
    return [
        dataclasses.replace(result, name=name) for result, name in zip(results, names, strict=True)
    ]


def summarize_states(results: Sequence[CellResult], study: StudyRecord | None) -> str:
    """Say how many runs there are and how they ended, and what is withheld."""
    from clinpeft.runs import RELEASE_SMALLEST_CELL

    states = [result.run.state if result.run is not None else "failed" for result in results]
    waiting = sum(cell.state == "waiting" for cell in study.cells) if study else 0
    counts: dict[str, int] = {state: states.count(state) for state in dict.fromkeys(states)}
    counts |= {"waiting": waiting} if waiting else {}
    total = len(results) + waiting
    listed = ", ".join(f"{count} {state}" for state, count in counts.items())
    return (
        f"{total} run{'s' * (total > 1)}: {listed}. Numbers about fewer than "
        f"{RELEASE_SMALLEST_CELL} people, events, or stays without the event are withheld."
    )


def render_texts(results: Sequence[CellResult], name: str) -> dict[str, str]:
    """Render a card for each run that can be released, and the checklist.

    Returns:
        Path in the report's folder -> text.
    """
    from clinpeft.reports import cards, checklist

    runs = [
        result.run
        for result in results
        if result.run is not None and result.run.record.state == "finished"
    ]
    texts = {
        f"cards/{run.id}.md": cards.render_model_card(run)
        for run in runs
        if cards.has_model_card(run)
    }
    return texts | (
        {"checklist.md": checklist.render_reporting_checklist(runs, name)} if runs else {}
    )
