"""Tables on the terminal and into files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clinpeft.reports import CellResult, ReportTable


def to_relative_path(path: Path) -> Path:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def print_table(table: ReportTable) -> None:
    """On the terminal, or as wide as a page where there is none."""
    from rich.console import Console

    from clinpeft.reports import as_rich_table

    Console(width=None if sys.stdout.isatty() else 160).print(as_rich_table(table))


def print_and_write_table(table: ReportTable, home: Path, name: str) -> None:
    """On the terminal, and in every format into the home of the runs."""
    from clinpeft.reports import write_table

    print_table(table)
    for path in write_table(home, name, table):
        print(path)


def write_embedding_study(entries: Sequence[CellResult], folder: Path) -> None:
    """Tables and figures of the embedding study into a folder, from what the runs of a grid recorded; without matplotlib the tables alone."""
    from clinpeft import reports
    from clinpeft.core.errors import UsageError

    tables = reports.build_embedding_study_tables(entries)
    for table in tables:
        reports.write_table(folder, table.title.partition(":")[0].lower(), table)
    print(f"{to_relative_path(folder)}: {len(tables)} tables")
    try:
        drawn = reports.write_embedding_figures(entries, folder / "figures")
    except UsageError as error:
        print(f"{to_relative_path(folder)}: no figures: {error.message}; {error.hint}")
    else:
        print(
            f"{to_relative_path(folder)}: {len({path.stem for path in drawn[:-1]})} figures, {to_relative_path(drawn[-1])}"
        )


def print_cohort(folder: Path) -> None:
    """What a built cohort holds, and who left for which reason."""
    from clinpeft import reports
    from clinpeft.core.schemas import Attrition
    from clinpeft.data import cohorts

    print_table(reports.table_from_arrow("Cohort", cohorts.summarize_cohort(folder)))
    steps = json.loads((folder / "attrition.json").read_text(encoding="utf-8"))
    print_table(
        reports.build_attrition_table(
            "Who left, at which step, for which reason",
            [Attrition.from_json(step) for step in steps],
        )
    )
    print(folder)
