"""``clinpeft study``: the cells of a grid as one piece of work that several processes share and that goes on after anything."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clinpeft.cli.console import finished, near, shown
from clinpeft.cli.launch import launched, made
from clinpeft.cli.options import HERE, Home, Overrides
from clinpeft.cli.progress import stoppable
from clinpeft.cli.search import Launch
from clinpeft.core.errors import (
    ClinpeftError,
    InputError,
    InterruptedRunError,
    RefusedError,
    StorageError,
    UsageError,
)

if TYPE_CHECKING:
    from clinpeft.recipe import Recipe, RecipePlan
    from clinpeft.runs.studies import CellPairComparison, StudyCell, StudyRecord

app = typer.Typer(
    no_args_is_help=True, help="Run the cells of a grid, see how far they are, go on with them."
)
File = Annotated[Path, typer.Argument(help="A recipe with [grid].")]


@app.command()
def run(file: File, set_: Overrides = None, home: Home = HERE, launch: Launch = None) -> None:
    """Run every cell of a recipe's grid that is not there yet, then its comparisons. The same command again adds a worker."""
    _study(file, set_ or [], home, launch, "run")


@app.command()
def resume(file: File, set_: Overrides = None, home: Home = HERE, launch: Launch = None) -> None:
    """Go on with a study: what has finished stays as it is, also when code or data are newer; what failed is tried again."""
    from clinpeft.runs.studies import STUDY_FILE

    if not (_folder(_asked(file, set_ or []), home) / STUDY_FILE).exists():
        raise UsageError(
            "there is no such study to go on with",
            location=str(file),
            hint=f"begin it with: clinpeft study run {file}",
        )
    _study(file, set_ or [], home, launch, "resume")


@app.command()
def status(
    file: Annotated[str, typer.Argument(help="Its recipe, its name or its id.")],
    set_: Overrides = None,
    home: Home = HERE,
) -> None:
    """What has become of every cell."""
    from clinpeft.reports.searches import comparisons_table, study_table
    from clinpeft.runs import studies

    if Path(file).is_file():
        folder = _folder(_asked(Path(file), set_ or []), home)
        if not (folder / studies.STUDY_FILE).exists():
            raise UsageError(
                "this study has not been run as it stands now",
                location=file,
                hint=f"run it with: clinpeft study run {file}",
            )
        found = studies.read_study(folder)
    else:
        found = studies.find_study(home.resolve(), file)
    shown(study_table(found))
    if any(comparison.pairs for comparison in found.compare):
        shown(comparisons_table(found))
    print(found.folder)


def _study(file: Path, overrides: list[str], home: Path, launch: str | None, verb: str) -> None:
    asked = _asked(file, overrides)
    folder = _folder(asked, home)
    again = ["study", verb, str(file.resolve()), "--home", str(home.resolve()), "--launch", "here"]
    again += [part for pair in overrides for part in ("--set", pair)]
    with stoppable() as stopping:
        begun = _opened(asked, folder)
        who = launched(asked, launch, folder, again, stopping)
        if who == "slurm":
            return
        keep = (
            verb == "resume" or who == "local"
        )  # what workers have just done need not be asked for again
        found = _worked(asked, begun, home.resolve(), stopping, keep=keep)
        found = _compared(asked, found)
    _told(found, home)


def _asked(file: Path, overrides: list[str]) -> RecipePlan:
    from clinpeft import recipe as recipes
    from clinpeft.workflows import get_workflow

    asked = recipes.load_recipe_plan(file, overrides, os.environ)
    get_workflow(asked)  # refuses a kind that trains nothing
    return asked


def _folder(asked: RecipePlan, home: Path) -> Path:
    from clinpeft.runs.studies import get_record_folder

    return get_record_folder(home.resolve(), asked.name, asked.study_id)


def _opened(asked: RecipePlan, folder: Path) -> StudyRecord:
    from clinpeft.runs import studies

    keyed = zip(_keys(asked), asked.cells, strict=True)
    cells = tuple(
        studies.StudyCell(key, cell.name or cell.recipe.name, cell.settings, cell.published)
        for key, cell in keyed
    )
    compare = tuple(
        studies.StudyComparison(
            entry.name or f"{_said(entry.second)} − {_said(entry.first)}", entry.first, entry.second
        )
        for entry in asked.comparisons
    )
    new = studies.StudyRecord(
        folder,
        asked.study_id,
        asked.name,
        asked.kind,
        str(asked.path),
        asked.file_sha256,
        _now(),
        _now(),
        cells,
        compare,
    )
    return studies.open_study(new)


def _keys(asked: RecipePlan) -> list[str]:
    """Of the cells in their study, in its order: the study's id says all the rest."""
    from clinpeft.recipe import compute_json_digest

    return [compute_json_digest([at, cell.name]) for at, cell in enumerate(asked.cells)]


def _said(settings: Any) -> str:
    return " · ".join(str(choice) for choice in settings.values())


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _worked(
    asked: RecipePlan, begun: StudyRecord, home: Path, stopping: Callable[[], bool], *, keep: bool
) -> StudyRecord:
    """This process as a worker: cells that nobody holds, one after another, until none is left that it may take."""
    from clinpeft.core.locks import try_lock
    from clinpeft.runs.studies import read_study, update_study_cell

    recipes = {key: cell.recipe for key, cell in zip(_keys(asked), asked.cells, strict=True)}
    at_first = {cell.key: cell for cell in begun.cells}
    had: set[str] = set()
    took_one = True
    while took_one:
        took_one = False
        for key, first in at_first.items():
            with try_lock(begun.folder, key) as is_mine:
                cell = next(one for one in read_study(begun.folder).cells if one.key == key)
                if not is_mine or key in had or not _wanted(cell, first, home, keep=keep):
                    continue
                if stopping():
                    raise InterruptedRunError(
                        "stopped between two runs",
                        location=cell.label,
                        hint="give the same command to go on",
                    )
                update_study_cell(
                    begun.folder,
                    key,
                    _now(),
                    state="running",
                    reason="",
                    attempts=cell.attempts + 1,
                )
                facts = _outcome(begun.folder, cell, recipes[key], home, stopping)
                update_study_cell(begun.folder, key, _now(), **facts)
                had |= {key} if facts["state"] != "waiting" else set()
                took_one = took_one or facts["state"] != "waiting"
    return read_study(begun.folder)


def _wanted(cell: StudyCell, at_first: StudyCell, home: Path, *, keep: bool) -> bool:
    """Whether a cell that nobody holds is to be asked for: one that has finished is asked for again by ``run``, which finds its run or sees that code
    or data have changed; one that failed is tried again; neither where another worker of today has done so meanwhile."""
    if cell.state in ("waiting", "interrupted", "running"):
        return True
    if (
        cell.state == "finished"
        and keep
        and cell.run_id is not None
        and (home / cell.run_id).is_dir()
    ):
        return False
    return cell.attempts == at_first.attempts


def _outcome(
    folder: Path, cell: StudyCell, recipe: Recipe, home: Path, stopping: Callable[[], bool]
) -> dict[str, Any]:
    """What is to be written down of a cell: its run, or why there is none.

    Raises:
        InterruptedRun: asked to end.
        StorageError: nothing more can be written.
    """
    from clinpeft.core.locks import is_locked_elsewhere
    from clinpeft.runs.studies import update_study_cell

    try:
        run, _ = made(recipe, home, cell.label, stopping)
    except (InterruptedRunError, StorageError) as error:
        update_study_cell(folder, cell.key, _now(), state="interrupted", reason=error.message)
        raise
    except RefusedError as error:
        if is_locked_elsewhere(error):  # by another study, or by hand: asked for again later
            return {"state": "waiting", "reason": error.message}
        return {"state": "failed", "reason": error.message}
    except ClinpeftError as error:
        return {"state": "failed", "reason": error.message}
    except Exception as error:  # what nobody foresaw: its message is not kept, it may quote a note
        return {"state": "failed", "reason": f"an unforeseen {type(error).__name__}"}
    return {"state": "finished", "run_id": run.id, "reason": ""}


def _compared(asked: RecipePlan, found: StudyRecord) -> StudyRecord:
    """The comparisons of the file, of all pairs whose runs are there; by one process at a time."""
    from clinpeft import recipe as recipes
    from clinpeft.core.locks import try_lock
    from clinpeft.runs.studies import update_study

    with try_lock(found.folder, "compare") as is_mine:
        if not is_mine or not asked.comparisons:
            return found
        cells = dict(zip(_keys(asked), found.cells, strict=True))
        key_of = {cell.name: key for key, cell in zip(cells, asked.cells, strict=True)}
        made_ = []
        for comparison, entry in zip(found.compare, asked.comparisons, strict=True):
            known = {
                (pair.first_run, pair.second_run): pair for pair in comparison.pairs if pair.results
            }
            pairs = recipes.pair_compared_cells(entry, asked.cells)
            done = [
                _pair(found, cells[key_of[one.name]], cells[key_of[other.name]], shared, known)
                for one, other, shared in pairs
            ]
            made_.append(dataclasses.replace(comparison, pairs=tuple(done)))
        return update_study(
            found.folder,
            lambda study: dataclasses.replace(study, compare=tuple(made_), updated=_now()),
        )


def _pair(
    study: StudyRecord,
    one: StudyCell,
    other: StudyCell,
    shared: dict[str, Any],
    known: dict[tuple[str | None, str | None], CellPairComparison],
) -> CellPairComparison:
    from clinpeft import workflows
    from clinpeft.runs.studies import CellPairComparison

    first, second = (cell.run_id if cell.state == "finished" else None for cell in (one, other))
    if (first, second) in known:
        return known[first, second]
    pair = CellPairComparison(shared, one.label, other.label, first, second)
    if first is None or second is None:
        missing = [cell for cell in (one, other) if cell.state != "finished"]
        return dataclasses.replace(
            pair, reason="; ".join(f"{cell.label} is {cell.state}" for cell in missing)
        )
    try:
        _, table, reason = workflows.compare_run_results(study.home, first, second)
    except (InputError, UsageError) as error:
        return dataclasses.replace(pair, reason=error.message)
    return dataclasses.replace(
        pair,
        results=tuple(table.to_pylist()) if table is not None else (),
        reason="" if table is not None else reason,
    )


def _told(found: StudyRecord, home: Path) -> None:
    """Tables; exit code 1 where a cell failed."""
    from clinpeft.reports.searches import comparisons_table, study_table

    finished(study_table(found), home, f"{found.name}-study")
    if any(comparison.pairs for comparison in found.compare):
        finished(comparisons_table(found), home, f"{found.name}-compare")
    elsewhere = sum(cell.state in ("running", "waiting") for cell in found.cells)
    if elsewhere:
        print(
            f"{elsewhere} of {len(found.cells)} cells are in other hands; give the command again when they are done"
        )
    print(near(found.folder))
    if any(cell.state in ("failed", "interrupted") for cell in found.cells):
        raise typer.Exit(1)
