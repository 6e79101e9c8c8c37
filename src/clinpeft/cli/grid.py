"""The cells of a recipe's grid, run one after the other: one that fails says so in the table, and the others go on."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clinpeft.cli.audit import audit_run_attempt
from clinpeft.cli.console import print_and_write_table, to_relative_path
from clinpeft.cli.progress import show_training_progress, handle_stop_signals
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from clinpeft.recipe import Cell
    from clinpeft.reports import CellResult, ReportTable
    from clinpeft.runs import Run
    from clinpeft.training import StepEvent
    from clinpeft.workflows import RunContext


def check_recipe_kind(kind: str, cells: list[Cell], path: Path) -> None:
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


def run_recipe_cells(
    cells: list[Cell],
    home: Path,
    title: str,
    run_function: Callable[[Any, Path, RunContext], Run],
    build_table: Callable[[Sequence[CellResult], str], ReportTable],
    on_grid_finished: Callable[[Sequence[CellResult]], None] | None = None,
) -> None:
    """Every cell through ``run_function``, and the table of them all; of more than one cell also what ``on_grid_finished`` shows; exit code 1 when one failed."""
    with handle_stop_signals() as stopping:
        entries = [_run_cell(cell, home.resolve(), stopping, run_function) for cell in cells]
    print_and_write_table(build_table(entries, title), home, title)
    if on_grid_finished is not None and len(entries) > 1:
        on_grid_finished(entries)
    for entry in entries:
        if entry.run is not None:
            print(f"{entry.name or title}: {to_relative_path(entry.run.folder)}")
    if any(entry.run is None for entry in entries):
        raise typer.Exit(1)


def _run_cell(
    cell: Cell,
    home: Path,
    should_stop: Callable[[], bool],
    run_function: Callable[[Any, Path, RunContext], Run],
) -> CellResult:
    from clinpeft.reports import CellResult

    if should_stop():  # asked while the cell before was at its last step, or between two cells
        raise InterruptedRunError(
            "stopped between two runs",
            location=cell.name or cell.recipe.name,
            hint="give the same command to go on",
        )
    try:
        with (
            show_training_progress(cell.name or cell.recipe.name) as tell,
            audit_run_attempt(home, cell.recipe) as made,
        ):
            run = run_function(cell.recipe, home, create_run_context(tell, should_stop))
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
        return CellResult(
            cell.name, None, message=error.message, published=cell.published, recipe=cell.recipe
        )
    return CellResult(
        cell.name or cell.recipe.name, run, published=cell.published, recipe=cell.recipe
    )


def create_run_context(
    on_step: Callable[[StepEvent], None], should_stop: Callable[[], bool]
) -> RunContext:
    """The clock, the command, the versions: what only this room may look at."""
    from importlib.metadata import version

    from clinpeft import models
    from clinpeft.workflows import RunContext

    libraries = (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "numpy",
        "pyarrow",
        "duckdb",
        "tokenizers",
        "safetensors",
        "scikit-learn",
    )
    versions = {"python": sys.version.split()[0]} | {name: version(name) for name in libraries}
    command = shlex.join(["clinpeft", *sys.argv[1:]])
    return RunContext(
        lambda: datetime.now(UTC),
        command,
        _read_git_commit(),
        versions,
        on_step,
        should_stop,
        energy_meter=models.create_energy_meter(),
    )


def _read_git_commit() -> str | None:
    """Of the checkout that this file is in, if it is one; ``+`` marks uncommitted changes."""
    asked = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty=+",
        "--exclude=*",
    ]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
