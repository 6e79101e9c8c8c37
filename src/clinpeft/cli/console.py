"""Tables on the terminal and in files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clinpeft.reports import CellResult, ReportTable

PAGE_COLUMNS = 160
"""Width of a table where the output is no terminal."""


def to_relative_path(path: Path) -> Path:
    """The path from the working folder, where it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def print_table(table: ReportTable) -> None:
    """Print a table at the width of the terminal."""
    from rich.console import Console

    from clinpeft.reports import as_rich_table

    width = None if sys.stdout.isatty() else PAGE_COLUMNS
    Console(width=width).print(as_rich_table(table))


def print_and_write_table(table: ReportTable, home: Path, name: str) -> None:
    """Print a table and write it in every format into the home."""
    from clinpeft.reports import write_table

    print_table(table)
    for path in write_table(home, name, table):
        print(path)


def write_embedding_study(results: Sequence[CellResult], folder: Path) -> None:
    """Write tables and figures of the embedding study; without matplotlib only the tables.

    Args:
        results: of the cells of a grid of kind embed.
        folder: for the files.
    """
    from clinpeft import reports
    from clinpeft.core.errors import UsageError

    tables = reports.build_embedding_study_tables(results)
    for table in tables:
        reports.write_table(folder, table.title.partition(":")[0].lower(), table)
    location = to_relative_path(folder)
    print(f"{location}: {len(tables)} tables")
    try:
        *figures, index = reports.write_embedding_figures(results, folder / "figures")
    except UsageError as error:
        print(f"{location}: no figures: {error.message}; {error.hint}")
    else:
        names = {path.stem for path in figures}
        print(f"{location}: {len(names)} figures, {to_relative_path(index)}")
