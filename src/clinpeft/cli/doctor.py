"""``clinpeft doctor``: test what this machine can do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from clinpeft.cli.options import DEFAULT_HOME, HomeOption

FINDING_STATE_MARKS = {"good": "good   ", "warning": "WARNING", "failure": "FAILURE"}


def diagnose_machine(
    home: HomeOption = DEFAULT_HOME,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Measure the best number of threads and keep it in the home."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    test: Annotated[
        bool,
        typer.Option(
            "--self-test/--no-self-test", help="Train, save, reload and compare a small run."
        ),
    ] = True,
) -> None:
    """Check versions, processor, memory, disk, GPU, network and file locks, and try a small run.

    The exit code is 1 where a run would fail.
    """
    from clinpeft.cli.grid import format_command
    from clinpeft.workflows import adapt_language_model, create_context, doctor

    findings = []
    context = create_context(home.resolve(), command=format_command())
    adapt_function = adapt_language_model if test else None
    for finding in doctor.run_diagnostics(home.resolve(), os.environ, context, adapt_function):
        findings.append(finding)
        if not as_json:
            hint = f"\n         {finding.hint}" if finding.hint else ""
            mark = FINDING_STATE_MARKS[finding.state]
            print(f"{mark}  {finding.name}: {finding.message}{hint}", flush=True)
    if as_json:
        print(doctor.findings_to_json(findings))
    if tune:
        settings = doctor.tune_threads(home.resolve(), os.environ)
        summary = (
            f"tuned: {settings['threads']} threads of {settings['cores']}, "
            f"kept in {doctor.MACHINE_FILE} of the home"
        )
        print(json.dumps(settings) if as_json else summary)
    if any(finding.state == "failure" for finding in findings):
        raise typer.Exit(1)


def apply_tuned_threads(home: Path) -> None:
    """Use the number of threads that ``doctor --tune`` measured, unless the user set one.

    Has to be called before torch is imported.
    """
    try:
        threads = int(json.loads((home / "machine.json").read_text(encoding="utf-8"))["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
