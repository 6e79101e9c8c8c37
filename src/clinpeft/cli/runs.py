"""``clinpeft runs``: list runs, show one, set two beside each other."""

from __future__ import annotations

from typing import Annotated

import typer

from clinpeft.cli.console import shown
from clinpeft.cli.options import HERE, Home

app = typer.Typer(
    invoke_without_command=True, help="List runs, show one, set two beside each other."
)


@app.callback()
def list_all(context: typer.Context, home: Home = HERE) -> None:
    """List the runs of a home, oldest first."""
    from clinpeft import reports, runs

    if context.invoked_subcommand is None:
        shown(reports.runs_list(runs.list_runs(home.resolve())))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Id, the beginning of one, or name.")],
    home: Home = HERE,
) -> None:
    """What one run is, what it read, and every number of it."""
    from clinpeft import reports, runs

    found = runs.find_run(home.resolve(), run)
    for table in (
        reports.run_summary(found),
        reports.run_attrition(found),
        reports.run_results(found),
        reports.run_subgroups(found),
    ):
        if table.rows:
            shown(table)
    print(found.folder)


@app.command()
def compare(first: str, second: str, home: Home = HERE) -> None:
    """Two runs side by side: what differs, their numbers, and the paired difference where they answered or scored the same."""
    from clinpeft import reports, workflows

    for table in reports.comparison(*workflows.compare_run_results(home.resolve(), first, second)):
        shown(table)
