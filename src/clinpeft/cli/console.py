"""Tables on the terminal and into files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clinpeft.reports import Entry, Table


def near(path: Path) -> Path:
    """A path as short as it can be said from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def shown(table: Table) -> None:
    """On the terminal, or as wide as a page where there is none."""
    from rich.console import Console

    from clinpeft.reports import as_terminal

    Console(width=None if sys.stdout.isatty() else 160).print(as_terminal(table))


def finished(table: Table, home: Path, name: str) -> None:
    """On the terminal, and in every format into the home of the runs."""
    from clinpeft.reports import write

    shown(table)
    for path in write(home, name, table):
        print(path)


def studied(entries: Sequence[Entry], folder: Path) -> None:
    """Tables and figures of the embedding study into a folder, from what the runs of a grid recorded; without matplotlib the tables alone."""
    from clinpeft import reports
    from clinpeft.core.errors import UsageError

    tables = reports.study_tables(entries)
    for table in tables:
        reports.write(folder, table.title.partition(":")[0].lower(), table)
    print(f"{near(folder)}: {len(tables)} tables")
    try:
        drawn = reports.write_figures(entries, folder / "figures")
    except UsageError as error:
        print(f"{near(folder)}: no figures: {error.message}; {error.hint}")
    else:
        print(
            f"{near(folder)}: {len({path.stem for path in drawn[:-1]})} figures, {near(drawn[-1])}"
        )


def cohort_shown(folder: Path) -> None:
    """What a built cohort holds, and who left for which reason."""
    from clinpeft import reports
    from clinpeft.core.schemas import Attrition
    from clinpeft.data import cohorts

    shown(reports.plain("Cohort", cohorts.show(folder)))
    steps = json.loads((folder / "attrition.json").read_text(encoding="utf-8"))
    shown(
        reports.attrition_table(
            "Who left, at which step, for which reason",
            [Attrition.from_json(step) for step in steps],
        )
    )
    print(folder)
