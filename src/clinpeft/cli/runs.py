"""``clinpeft runs``: list runs, show one, set two beside each other."""

from __future__ import annotations

from typing import Annotated

import typer

from clinpeft.cli.console import print_table
from clinpeft.cli.options import DEFAULT_HOME, HomeOption

runs_app = typer.Typer(
    invoke_without_command=True, help="List runs, show one, set two beside each other."
)


@runs_app.callback()
def print_runs(context: typer.Context, home: HomeOption = DEFAULT_HOME) -> None:
    """List the runs of a home, oldest first."""
    from clinpeft import reports, runs

    if context.invoked_subcommand is None:
        print_table(reports.build_runs_table(runs.list_runs(home.resolve())))


@runs_app.command()
def show(
    run: Annotated[str, typer.Argument(help="Id, the beginning of one, or name.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """What one run is, what it read, and every number of it."""
    from clinpeft import reports, runs

    found = runs.find_run(home.resolve(), run)
    for table in (
        reports.build_run_summary(found),
        reports.build_run_attrition_table(found),
        reports.build_run_results_table(found),
        reports.build_run_subgroups_table(found),
    ):
        if table.rows:
            print_table(table)
    print(found.folder)


@runs_app.command()
def compare(first: str, second: str, home: HomeOption = DEFAULT_HOME) -> None:
    """Two runs side by side: what differs, their numbers, and the paired difference where they answered or scored the same."""
    from clinpeft import reports, workflows

    for table in reports.build_comparison_tables(
        *workflows.compare_run_results(home.resolve(), first, second)
    ):
        print_table(table)
