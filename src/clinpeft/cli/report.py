"""``clinpeft report``: a study or some runs as one HTML page with tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clinpeft.cli.console import to_relative_path
from clinpeft.cli.options import DEFAULT_HOME, HomeOption


def write_report_command(
    what: Annotated[
        list[str], typer.Argument(help="A study, or runs: ids, prefixes of them, or names.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A folder for report.html, tables, figures and cards.")
    ],
    home: HomeOption = DEFAULT_HOME,
    title: Annotated[str, typer.Option("--title", help="Of the page; else the study's name.")] = "",
) -> None:
    """Write a self-contained HTML report, its tables (Markdown, CSV, LaTeX) and figures."""
    from clinpeft.workflows.run_report import write_runs_report

    page, *files = write_runs_report(home.resolve(), what, out, title)
    print(f"{to_relative_path(page.resolve())}, and {len(files)} files beside it")
