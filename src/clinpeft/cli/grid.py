"""The cells of a recipe's grid, one after the other; a cell that fails does not stop the others."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clinpeft.cli.audit import audit_run_attempt
from clinpeft.cli.console import print_and_write_table, to_relative_path
from clinpeft.cli.progress import handle_stop_signals, show_training_progress
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clinpeft.recipe import Cell, Recipe
    from clinpeft.reports import CellResult, ReportTable
    from clinpeft.runs import Run

RESUME_HINT = "repeat the command to resume"


def check_recipe_kind(kind: str, cells: list[Cell], path: Path) -> None:
    """Check that a recipe is for this command.

    Raises:
        UsageError: it is of another kind; the hint names the command.
    """
    for cell in cells:
        if cell.recipe.kind != kind:
            raise UsageError(
                f"this is a recipe of kind {cell.recipe.kind!r}",
                location=str(path),
                hint=f"give it to: clinpeft {cell.recipe.kind}",
            )


def format_command() -> str:
    """The command as typed, for the record of a run."""
    return shlex.join(["clinpeft", *sys.argv[1:]])


def run_recipe(recipe: Recipe, home: Path, title: str, should_stop: Callable[[], bool]) -> Run:
    """Run a recipe with a progress line and entries in the audit log.

    Args:
        recipe: of a kind that trains.
        home: folder of all runs.
        title: in front of the progress.
        should_stop: whether training stops after the current step.

    Raises:
        ClinpeftError: as the recipe's workflow.
        InterruptedRunError: stopped by a signal or by Ctrl-C.
    """
    from clinpeft.workflows import create_context, get_workflow

    with show_training_progress(title) as on_step, audit_run_attempt(home, recipe) as runs:
        context = create_context(
            home, command=format_command(), on_step=on_step, should_stop=should_stop
        )
        try:
            runs.append(get_workflow(recipe).run(recipe, context))
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "stopped at once", location=title, hint=RESUME_HINT
            ) from error
    return runs[0]


def run_grid(
    cells: list[Cell],
    home: Path,
    title: str,
    build_table: Callable[[Sequence[CellResult], str], ReportTable],
    write_study: Callable[[Sequence[CellResult]], None] | None = None,
) -> None:
    """Run every cell, print the table of all and write it into the home.

    Args:
        cells: of the recipe.
        home: folder of all runs.
        title: of the table; the name of its files.
        build_table: the table of a grid of this kind.
        write_study: writes what else there is about several cells.

    Raises:
        typer.Exit: with code 1, after everything else, where a cell failed.
    """
    with handle_stop_signals() as should_stop:
        results = [_run_cell(cell, home.resolve(), should_stop) for cell in cells]
    print_and_write_table(build_table(results, title), home, title)
    if write_study is not None and len(results) > 1:
        write_study(results)
    for result in results:
        if result.run is not None:
            print(f"{result.name or title}: {to_relative_path(result.run.folder)}")
    if any(result.run is None for result in results):
        raise typer.Exit(1)


def _run_cell(cell: Cell, home: Path, should_stop: Callable[[], bool]) -> CellResult:
    from clinpeft.reports import CellResult

    name = cell.name or cell.recipe.name
    # The signal may have come during the last step of the cell before, or between two cells.
    if should_stop():
        raise InterruptedRunError("stopped between two runs", location=name, hint=RESUME_HINT)
    try:
        run = run_recipe(cell.recipe, home, name, should_stop)
    except InterruptedRunError:
        raise
    except ClinpeftError as error:
        if not cell.name:
            raise
        print(f"{cell.name}: {error}", file=sys.stderr)
        return CellResult(
            cell.name, None, message=error.message, published=cell.published, recipe=cell.recipe
        )
    return CellResult(name, run, published=cell.published, recipe=cell.recipe)
