"""``clinpeft study``: the cells of a grid as one piece of work that processes share and resume."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clinpeft.cli.console import print_and_write_table, print_table, to_relative_path
from clinpeft.cli.grid import RESUME_HINT
from clinpeft.cli.launch import launch_workers, run_or_find_recipe
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, LaunchOption, OverridesOption
from clinpeft.cli.progress import handle_stop_signals
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

study_app = typer.Typer(
    no_args_is_help=True, help="Run the cells of a grid as a study that resumes and compares."
)
StudyRecipeArgument = Annotated[Path, typer.Argument(help="A recipe with a table [grid].")]


@study_app.command("run", epilog="Example: `clinpeft study run recipes/mtsamples-study.toml`")
def run_study(
    file: StudyRecipeArgument,
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
    launch: LaunchOption = None,
) -> None:
    """Run every cell of the grid that has not finished, then the comparisons.

    The same command in another process adds a worker.
    """
    _work_on_study(file, set_ or [], home, launch, "run")


@study_app.command("resume", epilog="Example: `clinpeft study resume recipes/mtsamples-study.toml`")
def resume_study(
    file: StudyRecipeArgument,
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
    launch: LaunchOption = None,
) -> None:
    """Resume a study: finished cells stay, also where code or data changed; failed cells rerun."""
    from clinpeft.runs.studies import STUDY_FILE

    plan = load_study_plan(file, set_ or [])
    if not (get_study_folder(plan, home) / STUDY_FILE).exists():
        raise UsageError(
            "there is no such study to resume",
            location=str(file),
            hint=f"start it with: clinpeft study run {file}",
        )
    _work_on_study(file, set_ or [], home, launch, "resume")


@study_app.command("status", epilog="Example: `clinpeft study status mtsamples-study`")
def show_study_status(
    file: Annotated[str, typer.Argument(help="The recipe, the name or the id of a study.")],
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show the state of every cell."""
    from clinpeft.reports.searches import build_comparisons_table, build_study_table
    from clinpeft.runs import studies

    if Path(file).is_file():
        folder = get_study_folder(load_study_plan(Path(file), set_ or []), home)
        if not (folder / studies.STUDY_FILE).exists():
            raise UsageError(
                "this study has not been run as its recipe stands now",
                location=file,
                hint=f"run it with: clinpeft study run {file}",
            )
        study = studies.read_study(folder)
    else:
        study = studies.find_study(home.resolve(), file)
    print_table(build_study_table(study))
    if any(comparison.pairs for comparison in study.compare):
        print_table(build_comparisons_table(study))
    print(study.folder)


def _work_on_study(
    file: Path, overrides: list[str], home: Path, launch: str | None, verb: str
) -> None:
    plan = load_study_plan(file, overrides)
    folder = get_study_folder(plan, home)
    command = ["study", verb, str(file.resolve()), "--home", str(home.resolve())]
    command += ["--launch", "here"]
    command += [part for pair in overrides for part in ("--set", pair)]
    with handle_stop_signals() as should_stop:
        start = open_study_record(plan, folder)
        method = launch_workers(plan, launch, folder, command, should_stop)
        if method == "slurm":
            return
        # What local workers have just finished need not be checked again.
        keep_finished = verb == "resume" or method == "local"
        study = run_cells(plan, start, home.resolve(), should_stop, keep_finished=keep_finished)
        study = compare_cells(plan, study)
    _print_study(study, home)


def load_study_plan(file: Path, overrides: list[str]) -> RecipePlan:
    """Load the recipe of a study.

    Raises:
        UsageError: its kind trains nothing.
    """
    from clinpeft.recipe import load_recipe_plan
    from clinpeft.workflows import get_workflow

    plan = load_recipe_plan(file, overrides, os.environ)
    get_workflow(plan.cells[0].recipe)
    return plan


def get_study_folder(plan: RecipePlan, home: Path) -> Path:
    """Folder of a study in the home."""
    from clinpeft.runs.studies import get_record_folder

    return get_record_folder(home.resolve(), plan.name, plan.study_id)


def open_study_record(plan: RecipePlan, folder: Path) -> StudyRecord:
    """Open the record of a study, or write a new one in which every cell waits."""
    from clinpeft.runs import studies

    cells = tuple(
        studies.StudyCell(key, cell.name or cell.recipe.name, cell.settings, cell.published)
        for key, cell in zip(compute_cell_keys(plan), plan.cells, strict=True)
    )
    comparisons = []
    for entry in plan.comparisons:
        sides = (" · ".join(map(str, side.values())) for side in (entry.second, entry.first))
        name = entry.name or " − ".join(sides)
        comparisons.append(studies.StudyComparison(name, entry.first, entry.second))
    return studies.open_study(
        studies.StudyRecord(
            folder,
            plan.study_id,
            plan.name,
            plan.kind,
            str(plan.path),
            plan.file_sha256,
            _format_now(),
            _format_now(),
            cells,
            tuple(comparisons),
        )
    )


def compute_cell_keys(plan: RecipePlan) -> list[str]:
    """Keys of the cells in their study, in its order; the id of the study says all the rest."""
    from clinpeft.recipe import compute_json_digest

    return [compute_json_digest([index, cell.name]) for index, cell in enumerate(plan.cells)]


def _format_now() -> str:
    return datetime.now(UTC).isoformat()


def run_cells(
    plan: RecipePlan,
    start: StudyRecord,
    home: Path,
    should_stop: Callable[[], bool],
    *,
    keep_finished: bool,
) -> StudyRecord:
    """Run cells that no other worker holds, one after another, until none is left to take.

    Args:
        plan: the recipe file.
        start: the study as it was when this worker started.
        home: folder of all runs.
        should_stop: whether this process was asked to end.
        keep_finished: whether finished cells are taken as they are.

    Raises:
        InterruptedRunError: asked to end.
        StorageError: nothing more can be written.
    """
    from clinpeft.core.locks import try_lock
    from clinpeft.runs.studies import read_study, update_study_cell

    recipes = {
        key: cell.recipe for key, cell in zip(compute_cell_keys(plan), plan.cells, strict=True)
    }
    folder, done = start.folder, set[str]()
    progressed = True
    while progressed:
        progressed = False
        for first in start.cells:
            key = first.key
            with try_lock(folder, key) as is_held:
                cell = next(cell for cell in read_study(folder).cells if cell.key == key)
                if not is_held or key in done:
                    continue
                if not should_run_cell(cell, first, home, keep_finished=keep_finished):
                    continue
                if should_stop():
                    raise InterruptedRunError(
                        "stopped between two runs", location=cell.label, hint=RESUME_HINT
                    )
                changes = {"state": "running", "reason": "", "attempts": cell.attempts + 1}
                update_study_cell(folder, key, _format_now(), **changes)
                outcome = _run_cell(folder, cell, recipes[key], home, should_stop)
                update_study_cell(folder, key, _format_now(), **outcome)
                if outcome["state"] != "waiting":
                    done.add(key)
                    progressed = True
    return read_study(folder)


def should_run_cell(
    cell: StudyCell, at_start: StudyCell, home: Path, *, keep_finished: bool
) -> bool:
    """Whether a worker runs a cell that no other worker holds.

    ``study run`` runs finished cells again, which finds their run, or sees that code or data have
    changed; failed cells are tried again. Neither happens where another worker has done so since
    this one started.
    """
    if cell.state in ("waiting", "interrupted", "running"):
        return True
    is_there = cell.run_id is not None and (home / cell.run_id).is_dir()
    if cell.state == "finished" and keep_finished and is_there:
        return False
    return cell.attempts == at_start.attempts


def _run_cell(
    folder: Path, cell: StudyCell, recipe: Recipe, home: Path, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Run a cell; the fields of its record afterwards."""
    from clinpeft.core.locks import is_locked_elsewhere
    from clinpeft.runs.studies import update_study_cell

    try:
        run, _ = run_or_find_recipe(recipe, home, cell.label, should_stop)
    except (InterruptedRunError, StorageError) as error:
        changes = {"state": "interrupted", "reason": error.message}
        update_study_cell(folder, cell.key, _format_now(), **changes)
        raise
    except RefusedError as error:
        # Held by another study, or run by hand: this worker comes back to it later.
        state = "waiting" if is_locked_elsewhere(error) else "failed"
        return {"state": state, "reason": error.message}
    except ClinpeftError as error:
        return {"state": "failed", "reason": error.message}
    except Exception as error:  # its message is not kept: it may quote a note
        return {"state": "failed", "reason": f"an unforeseen {type(error).__name__}"}
    return {"state": "finished", "run_id": run.id, "reason": ""}


def compare_cells(plan: RecipePlan, study: StudyRecord) -> StudyRecord:
    """Make the comparisons of the file for all pairs whose runs have finished.

    One process at a time does so; comparisons that were made before are kept.
    """
    from clinpeft.core.locks import try_lock
    from clinpeft.recipe import pair_compared_cells
    from clinpeft.runs.studies import update_study

    with try_lock(study.folder, "compare") as is_held:
        if not is_held or not plan.comparisons:
            return study
        cells = {
            cell.name: study_cell for cell, study_cell in zip(plan.cells, study.cells, strict=True)
        }
        comparisons = []
        for comparison, entry in zip(study.compare, plan.comparisons, strict=True):
            earlier = {
                (pair.first_run, pair.second_run): pair for pair in comparison.pairs if pair.results
            }
            pairs = [
                _compare_pair(study, cells[first.name], cells[second.name], shared, earlier)
                for first, second, shared in pair_compared_cells(entry, plan.cells)
            ]
            comparisons.append(dataclasses.replace(comparison, pairs=tuple(pairs)))
        return update_study(
            study.folder,
            lambda latest: dataclasses.replace(
                latest, compare=tuple(comparisons), updated=_format_now()
            ),
        )


def _compare_pair(
    study: StudyRecord,
    first_cell: StudyCell,
    second_cell: StudyCell,
    shared: dict[str, Any],
    earlier: dict[tuple[str | None, str | None], CellPairComparison],
) -> CellPairComparison:
    from clinpeft import workflows
    from clinpeft.runs.studies import CellPairComparison

    cells = (first_cell, second_cell)
    first, second = (cell.run_id if cell.state == "finished" else None for cell in cells)
    if (first, second) in earlier:
        return earlier[first, second]
    pair = CellPairComparison(shared, first_cell.label, second_cell.label, first, second)
    if first is None or second is None:
        reasons = (f"{cell.label} is {cell.state}" for cell in cells if cell.state != "finished")
        return dataclasses.replace(pair, reason="; ".join(reasons))
    try:
        _, table, reason = workflows.compare_run_results(study.home, first, second)
    except (InputError, UsageError) as error:
        return dataclasses.replace(pair, reason=error.message)
    if table is None:
        return dataclasses.replace(pair, reason=reason)
    return dataclasses.replace(pair, results=tuple(table.to_pylist()))


def _print_study(study: StudyRecord, home: Path) -> None:
    """Print the tables; the exit code is 1 where a cell failed."""
    from clinpeft.reports.searches import build_comparisons_table, build_study_table

    print_and_write_table(build_study_table(study), home, f"{study.name}-study")
    if any(comparison.pairs for comparison in study.compare):
        print_and_write_table(build_comparisons_table(study), home, f"{study.name}-compare")
    elsewhere = sum(cell.state in ("running", "waiting") for cell in study.cells)
    if elsewhere:
        print(
            f"{elsewhere} of {len(study.cells)} cells are held by other workers; "
            "repeat the command when they have finished"
        )
    print(to_relative_path(study.folder))
    if any(cell.state in ("failed", "interrupted") for cell in study.cells):
        raise typer.Exit(1)
