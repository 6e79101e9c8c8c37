"""The cells of a recipe's grid, run one after the other: one that fails says so in the table, and the others go on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clinpeft.cli.audit import attempted
from clinpeft.cli.console import finished, near
from clinpeft.cli.progress import progress, stoppable
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from clinpeft.recipe import Cell
    from clinpeft.reports import Entry, Table
    from clinpeft.runs import Run
    from clinpeft.training import StepEvent
    from clinpeft.workflows import RunContext


def only(kind: str, cells: list[Cell], path: Path) -> None:
    """Refuse a recipe that is for another verb.

    Raises:
        UsageError: it is of another kind.
    """
    for cell in cells:
        if cell.recipe.kind != kind:
            hint = f"give it to: clinpeft {cell.recipe.kind}"
            raise UsageError(
                f"this is a recipe of kind {cell.recipe.kind!r}", location=str(path), hint=hint
            )


def run_all(
    cells: list[Cell],
    home: Path,
    title: str,
    verb: Callable[[Any, RunContext], Run],
    table: Callable[[Sequence[Entry], str], Table],
    of_grid: Callable[[Sequence[Entry]], None] | None = None,
) -> None:
    """Every cell through ``verb``, and the table of them all; of more than one cell also what ``of_grid`` shows; exit code 1 when one failed."""
    with stoppable() as stopping:
        entries = [_entry(cell, home.resolve(), stopping, verb) for cell in cells]
    finished(table(entries, title), home, title)
    if of_grid is not None and len(entries) > 1:
        of_grid(entries)
    for entry in entries:
        if entry.run is not None:
            print(f"{entry.name or title}: {near(entry.run.folder)}")
    if any(entry.run is None for entry in entries):
        raise typer.Exit(1)


def _entry(
    cell: Cell,
    home: Path,
    stopping: Callable[[], bool],
    verb: Callable[[Any, RunContext], Run],
) -> Entry:
    from clinpeft.reports import Entry

    if stopping():  # asked while the cell before was at its last step, or between two cells
        raise InterruptedRunError(
            "stopped between two runs",
            location=cell.name or cell.recipe.name,
            hint="give the same command to go on",
        )
    try:
        with progress(cell.name or cell.recipe.name) as tell, attempted(home, cell.recipe) as made:
            run = verb(cell.recipe, circumstances(home, tell, stopping))
            made.append(run)
    except InterruptedRunError:
        raise
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            "stopped at once",
            location=cell.name or cell.recipe.name,
            hint="give the same command to go on",
        ) from error
    except ClinpeftError as error:
        if not cell.name:
            raise
        print(f"{cell.name}: {error}", file=sys.stderr)
        return Entry(
            cell.name, None, message=error.message, published=cell.published, recipe=cell.recipe
        )
    return Entry(cell.name or cell.recipe.name, run, published=cell.published, recipe=cell.recipe)


def circumstances(
    home: Path, tell: Callable[[StepEvent], None], stopping: Callable[[], bool]
) -> RunContext:
    """The context of a run that this command makes."""
    from clinpeft.workflows import create_context

    command = shlex.join(["clinpeft", *sys.argv[1:]])
    return create_context(home, command=command, on_step=tell, should_stop=stopping)
