"""``clinpeft runs``: list runs, show one, compare two."""

from __future__ import annotations

from typing import Annotated

import typer

from clinpeft.cli.console import print_table
from clinpeft.cli.options import DEFAULT_HOME, HomeOption

runs_app = typer.Typer(
    invoke_without_command=True, help="List the runs of a home, show one, or compare two."
)
AnyRunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run: its id, a prefix of it, or its name.")
]


@runs_app.callback()
def list_home_runs(context: typer.Context, home: HomeOption = DEFAULT_HOME) -> None:
    """List the runs of a home, oldest first; show one, or compare two."""
    from clinpeft import reports, runs

    if context.invoked_subcommand is None:
        print_table(reports.build_runs_table(runs.find_all_runs(home.resolve())))


@runs_app.command("show", epilog="Example: `clinpeft runs show mortality`")
def show_run(run: AnyRunArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Show a run: its record, its data with attrition, and all its metrics."""
    from clinpeft import reports, runs

    shown_run = runs.find_run(home.resolve(), run)
    for build_table in (
        reports.build_run_summary,
        reports.build_run_attrition_table,
        reports.build_run_results_table,
        reports.build_run_subgroups_table,
    ):
        table = build_table(shown_run)
        if table.rows:
            print_table(table)
    print(shown_run.folder)


@runs_app.command("compare", epilog="Example: `clinpeft runs compare lora head-only`")
def compare_two_runs(
    first: AnyRunArgument, second: AnyRunArgument, home: HomeOption = DEFAULT_HOME
) -> None:
    """Compare two runs: what differs, their metrics, and the paired difference with interval."""
    from clinpeft import reports, workflows

    comparison = workflows.compare_run_results(home.resolve(), first, second)
    for table in reports.build_comparison_tables(*comparison):
        print_table(table)
