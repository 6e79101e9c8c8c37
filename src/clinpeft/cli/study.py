"""``clinpeft study``: the cells of a grid as one piece of work that several processes share and that goes on after anything."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clinpeft.cli.console import print_and_write_table, to_relative_path, print_table
from clinpeft.cli.launch import launch_workers, run_or_find_recipe, get_run_function
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption
from clinpeft.cli.progress import handle_stop_signals
from clinpeft.cli.search import LaunchOption
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
    no_args_is_help=True, help="Run the cells of a grid, see how far they are, go on with them."
)
RecipeFileArgument = Annotated[Path, typer.Argument(help="A recipe with [grid].")]


@study_app.command()
def run(
    file: RecipeFileArgument,
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
    launch: LaunchOption = None,
) -> None:
    """Run every cell of a recipe's grid that is not there yet, then its comparisons. The same command again adds a worker."""
    _run_study(file, set_ or [], home, launch, "run")


@study_app.command()
def resume(
    file: RecipeFileArgument,
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
    launch: LaunchOption = None,
) -> None:
    """Go on with a study: what has finished stays as it is, also when code or data are newer; what failed is tried again."""
    from clinpeft.runs.studies import STUDY_FILE

    if not (_get_study_folder(_load_plan(file, set_ or []), home) / STUDY_FILE).exists():
        raise UsageError(
            "there is no such study to go on with",
            location=str(file),
            hint=f"begin it with: clinpeft study run {file}",
        )
    _run_study(file, set_ or [], home, launch, "resume")


@study_app.command()
def status(
    file: Annotated[str, typer.Argument(help="Its recipe, its name or its id.")],
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """What has become of every cell."""
    from clinpeft.reports.searches import build_comparisons_table, build_study_table
    from clinpeft.runs import studies

    if Path(file).is_file():
        folder = _get_study_folder(_load_plan(Path(file), set_ or []), home)
        if not (folder / studies.STUDY_FILE).exists():
            raise UsageError(
                "this study has not been run as it stands now",
                location=file,
                hint=f"run it with: clinpeft study run {file}",
            )
        found = studies.read_study(folder)
    else:
        found = studies.find_study(home.resolve(), file)
    print_table(build_study_table(found))
    if any(comparison.pairs for comparison in found.compare):
        print_table(build_comparisons_table(found))
    print(found.folder)


def _run_study(file: Path, overrides: list[str], home: Path, launch: str | None, verb: str) -> None:
    asked = _load_plan(file, overrides)
    folder = _get_study_folder(asked, home)
    again = ["study", verb, str(file.resolve()), "--home", str(home.resolve()), "--launch", "here"]
    again += [part for pair in overrides for part in ("--set", pair)]
    with handle_stop_signals() as stopping:
        begun = _open_study(asked, folder)
        who = launch_workers(asked, launch, folder, again, stopping)
        if who == "slurm":
            return
        keep = (
            verb == "resume" or who == "local"
        )  # what workers have just done need not be asked for again
        found = _run_worker(asked, begun, home.resolve(), stopping, keep_finished=keep)
        found = _compare_cells(asked, found)
    _print_study(found, home)


def _load_plan(file: Path, overrides: list[str]) -> RecipePlan:
    from clinpeft import recipe as recipes

    asked = recipes.load_recipe_plan(file, overrides, os.environ)
    get_run_function(asked.kind)
    return asked


def _get_study_folder(recipe_plan: RecipePlan, home: Path) -> Path:
    from clinpeft.runs.studies import get_record_folder

    return get_record_folder(home.resolve(), recipe_plan.name, recipe_plan.study_id)


def _open_study(recipe_plan: RecipePlan, folder: Path) -> StudyRecord:
    from clinpeft.runs import studies

    keyed = zip(_compute_cell_keys(recipe_plan), recipe_plan.cells, strict=True)
    cells = tuple(
        studies.StudyCell(key, cell.name or cell.recipe.name, cell.settings, cell.published)
        for key, cell in keyed
    )
    compare = tuple(
        studies.StudyComparison(
            entry.name or f"{_format_settings(entry.second)} − {_format_settings(entry.first)}",
            entry.first,
            entry.second,
        )
        for entry in recipe_plan.comparisons
    )
    new = studies.StudyRecord(
        folder,
        recipe_plan.study_id,
        recipe_plan.name,
        recipe_plan.kind,
        str(recipe_plan.path),
        recipe_plan.file_sha256,
        _format_now(),
        _format_now(),
        cells,
        compare,
    )
    return studies.open_study(new)


def _compute_cell_keys(recipe_plan: RecipePlan) -> list[str]:
    """Of the cells in their study, in its order: the study's id says all the rest."""
    from clinpeft.recipe import compute_json_digest

    return [compute_json_digest([at, cell.name]) for at, cell in enumerate(recipe_plan.cells)]


def _format_settings(settings: Any) -> str:
    return " · ".join(str(choice) for choice in settings.values())


def _format_now() -> str:
    return datetime.now(UTC).isoformat()


def _run_worker(
    recipe_plan: RecipePlan,
    initial_study: StudyRecord,
    home: Path,
    should_stop: Callable[[], bool],
    *,
    keep_finished: bool,
) -> StudyRecord:
    """This process as a worker: cells that nobody holds, one after another, until none is left that it may take."""
    from clinpeft.core.locks import try_lock
    from clinpeft.runs.studies import read_study, update_study_cell

    recipes = {
        key: cell.recipe
        for key, cell in zip(_compute_cell_keys(recipe_plan), recipe_plan.cells, strict=True)
    }
    at_first = {cell.key: cell for cell in initial_study.cells}
    had: set[str] = set()
    took_one = True
    while took_one:
        took_one = False
        for key, first in at_first.items():
            with try_lock(initial_study.folder, key) as is_mine:
                cell = next(one for one in read_study(initial_study.folder).cells if one.key == key)
                if (
                    not is_mine
                    or key in had
                    or not _should_run(cell, first, home, keep_finished=keep_finished)
                ):
                    continue
                if should_stop():
                    raise InterruptedRunError(
                        "stopped between two runs",
                        location=cell.label,
                        hint="give the same command to go on",
                    )
                update_study_cell(
                    initial_study.folder,
                    key,
                    _format_now(),
                    state="running",
                    reason="",
                    attempts=cell.attempts + 1,
                )
                facts = _run_cell(initial_study.folder, cell, recipes[key], home, should_stop)
                update_study_cell(initial_study.folder, key, _format_now(), **facts)
                had |= {key} if facts["state"] != "waiting" else set()
                took_one = took_one or facts["state"] != "waiting"
    return read_study(initial_study.folder)


def _should_run(
    cell: StudyCell, initial_cell: StudyCell, home: Path, *, keep_finished: bool
) -> bool:
    """Whether a cell that nobody holds is to be asked for: one that has finished is asked for again by ``run``, which finds its run or sees that code
    or data have changed; one that failed is tried again; neither where another worker of today has done so meanwhile."""
    if cell.state in ("waiting", "interrupted", "running"):
        return True
    if (
        cell.state == "finished"
        and keep_finished
        and cell.run_id is not None
        and (home / cell.run_id).is_dir()
    ):
        return False
    return cell.attempts == initial_cell.attempts


def _run_cell(
    folder: Path, cell: StudyCell, recipe: Recipe, home: Path, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """What is to be written down of a cell: its run, or why there is none.

    Raises:
        InterruptedRun: asked to end.
        StorageError: nothing more can be written.
    """
    from clinpeft.core.locks import is_locked_elsewhere
    from clinpeft.runs.studies import update_study_cell

    try:
        run, _ = run_or_find_recipe(recipe, home, cell.label, should_stop)
    except (InterruptedRunError, StorageError) as error:
        update_study_cell(
            folder, cell.key, _format_now(), state="interrupted", reason=error.message
        )
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


def _compare_cells(recipe_plan: RecipePlan, study_record: StudyRecord) -> StudyRecord:
    """The comparisons of the file, of all pairs whose runs are there; by one process at a time."""
    from clinpeft import recipe as recipes
    from clinpeft.core.locks import try_lock
    from clinpeft.runs.studies import update_study

    with try_lock(study_record.folder, "compare") as is_mine:
        if not is_mine or not recipe_plan.comparisons:
            return study_record
        cells = dict(zip(_compute_cell_keys(recipe_plan), study_record.cells, strict=True))
        key_of = {cell.name: key for key, cell in zip(cells, recipe_plan.cells, strict=True)}
        made_ = []
        for comparison, entry in zip(study_record.compare, recipe_plan.comparisons, strict=True):
            known = {
                (pair.first_run, pair.second_run): pair for pair in comparison.pairs if pair.results
            }
            pairs = recipes.pair_compared_cells(entry, recipe_plan.cells)
            done = [
                _compare_pair(
                    study_record, cells[key_of[one.name]], cells[key_of[other.name]], shared, known
                )
                for one, other, shared in pairs
            ]
            made_.append(dataclasses.replace(comparison, pairs=tuple(done)))
        return update_study(
            study_record.folder,
            lambda study: dataclasses.replace(study, compare=tuple(made_), updated=_format_now()),
        )


def _compare_pair(
    study: StudyRecord,
    first_cell: StudyCell,
    second_cell: StudyCell,
    shared_settings: dict[str, Any],
    pairs_by_runs: dict[tuple[str | None, str | None], CellPairComparison],
) -> CellPairComparison:
    from clinpeft import workflows
    from clinpeft.runs.studies import CellPairComparison

    first, second = (
        cell.run_id if cell.state == "finished" else None for cell in (first_cell, second_cell)
    )
    if (first, second) in pairs_by_runs:
        return pairs_by_runs[first, second]
    pair = CellPairComparison(shared_settings, first_cell.label, second_cell.label, first, second)
    if first is None or second is None:
        missing = [cell for cell in (first_cell, second_cell) if cell.state != "finished"]
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


def _print_study(study_record: StudyRecord, home: Path) -> None:
    """Tables; exit code 1 where a cell failed."""
    from clinpeft.reports.searches import build_comparisons_table, build_study_table

    print_and_write_table(build_study_table(study_record), home, f"{study_record.name}-study")
    if any(comparison.pairs for comparison in study_record.compare):
        print_and_write_table(
            build_comparisons_table(study_record), home, f"{study_record.name}-compare"
        )
    elsewhere = sum(cell.state in ("running", "waiting") for cell in study_record.cells)
    if elsewhere:
        print(
            f"{elsewhere} of {len(study_record.cells)} cells are in other hands; give the command again when they are done"
        )
    print(to_relative_path(study_record.folder))
    if any(cell.state in ("failed", "interrupted") for cell in study_record.cells):
        raise typer.Exit(1)
