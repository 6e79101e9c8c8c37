"""``clinpeft evaluate``: score predictions again, or a model on a retrieval set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.audit import record_audit_entry
from clinpeft.cli.console import print_table, to_relative_path
from clinpeft.cli.options import DEFAULT_HOME, HomeOption

if TYPE_CHECKING:
    from clinpeft.reports import ReportTable


def evaluate_command(
    what: Annotated[
        str,
        typer.Argument(
            help="A finished run of classify, a Parquet file of predictions, or, with --search, "
            "a run of embed."
        ),
    ],
    home: HomeOption = DEFAULT_HOME,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of subjects.")] = 1000,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="Also write the tables here, numbers of fewer than 10 subjects withheld."
        ),
    ] = None,
    retrieval_set: Annotated[
        Path | None,
        typer.Option(
            "--search", help="A retrieval set in BEIR layout, for a run of embed and its base."
        ),
    ] = None,
) -> None:
    """Evaluate predictions again: each metric with its interval, by subgroup, with calibration."""
    from clinpeft import evaluation, reports, workflows
    from clinpeft.runs import RELEASE_SMALLEST_CELL

    if retrieval_set is not None:
        results = workflows.evaluate_run_retrieval(home.resolve(), what, retrieval_set, resamples)
        title = f"{what}: {retrieval_set.resolve().name}"
        table = reports.build_scores_table(results, title)
        tables: Sequence[ReportTable] = [table]
        released: Sequence[ReportTable] = [table]
    else:
        results, curves = workflows.rescore_predictions(home.resolve(), what, resamples)
        tables = reports.build_scores_tables(results, curves, what)
        suppressed = evaluation.suppress_small_cells(results, RELEASE_SMALLEST_CELL)
        released = reports.build_scores_tables(suppressed, curves, Path(what).stem)
    for table in tables:
        print_table(table)
    if to is None:
        return
    for table in released:
        for path in reports.write_table(to, table.title, table):
            record_audit_entry(home, "evaluate", output_path=path)
            print(to_relative_path(path))
