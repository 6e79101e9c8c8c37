"""The command line: one function per command, grouped by the steps of a project.

A command imports the packages that it needs inside its function, so that ``clinpeft --help`` loads
neither torch nor transformers.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import clinpeft
from clinpeft.cli import (
    audit,
    bundle,
    cohort,
    doctor,
    evaluate,
    models,
    plan,
    protect,
    report,
    runs,
    search,
    study,
    synthetic,
    train,
    use,
)
from clinpeft.cli.options import PREPARE, PROTECT, REPORT, TRAIN, USE
from clinpeft.core.offline import set_offline_mode

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def example(command: str) -> str:
    """The last line of a command's help."""
    return f"Example: `clinpeft {command}`"


app.command("doctor", rich_help_panel=PREPARE, epilog=example("doctor --home runs"))(
    doctor.diagnose_machine
)
app.command("plan", rich_help_panel=PREPARE, epilog=example("plan question.toml --gpu A100-80GB"))(
    plan.plan_run
)
app.add_typer(models.models_app, name="models", rich_help_panel=PREPARE)
app.add_typer(cohort.cohort_app, name="cohort", rich_help_panel=PREPARE)
app.command(
    "synthetic", rich_help_panel=PREPARE, epilog=example("synthetic --to hospital --subjects 200")
)(synthetic.write_synthetic_tables)
app.add_typer(bundle.bundle_app, name="bundle", rich_help_panel=PREPARE)

app.command("adapt", rich_help_panel=TRAIN, epilog=example("adapt recipes/quickstart.toml"))(
    train.adapt_command
)
app.command("classify", rich_help_panel=TRAIN, epilog=example("classify question.toml"))(
    train.classify_command
)
app.command("embed", rich_help_panel=TRAIN, epilog=example("embed recipes/quickstart-embed.toml"))(
    train.embed_command
)
app.command("search", rich_help_panel=TRAIN, epilog=example("search question.toml --trials 20"))(
    search.search_command
)
app.add_typer(study.study_app, name="study", rich_help_panel=TRAIN)

app.command(
    "predict",
    rich_help_panel=USE,
    epilog=example("predict mortality --notes new.csv --out predictions.parquet"),
)(use.predict_command)
app.command(
    "encode",
    rich_help_panel=USE,
    epilog=example("encode quickstart-embed --texts texts.csv --out vectors.npy"),
)(use.encode_command)
app.command("export", rich_help_panel=USE, epilog=example("export quickstart-embed --out encoder"))(
    use.export_command
)

app.add_typer(runs.runs_app, name="runs", rich_help_panel=REPORT)
app.command("evaluate", rich_help_panel=REPORT, epilog=example("evaluate mortality --to tables"))(
    evaluate.evaluate_command
)
app.command("report", rich_help_panel=REPORT, epilog=example("report mortality --out report"))(
    report.write_report_command
)

app.command("verify", rich_help_panel=PROTECT, epilog=example("verify mortality"))(
    protect.verify_run
)
app.command("privacy", rich_help_panel=PROTECT, epilog=example("privacy mortality"))(
    protect.audit_privacy_command
)
app.command(
    "release",
    rich_help_panel=PROTECT,
    epilog=example('release mortality --to out --data-licence "DUA 1.5"'),
)(protect.release_run)
app.command("purge", rich_help_panel=PROTECT, epilog=example("purge mortality --caches"))(
    protect.purge_run
)
app.add_typer(audit.audit_app, name="audit", rich_help_panel=PROTECT)


def print_version(requested: bool) -> None:
    """Print the version and end, where ``--version`` was given."""
    if requested:
        print(f"clinpeft {clinpeft.__version__}")
        raise typer.Exit


@app.callback()
def configure_app(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Adapt a frozen language model to clinical notes with small adapters, without a network."""


def main() -> None:
    """Run the command ``clinpeft``: errors end as three lines and an exit code.

    What it writes can be read by this user alone (umask 077).
    """
    set_offline_mode(os.environ)  # before a command imports a library that reads the variables
    mask = os.umask(0o077)
    try:
        app(standalone_mode=True)
    except Exception as error:
        from clinpeft.cli.exit import print_error

        sys.exit(print_error(error))
    finally:
        os.umask(mask)
