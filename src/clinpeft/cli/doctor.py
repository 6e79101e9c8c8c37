"""``clinpeft doctor``: what this machine can do, tried and not believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from clinpeft.cli.options import DEFAULT_HOME, HomeOption

FINDING_STATE_MARKS = {"good": "good   ", "warning": "WARNING", "failure": "FAILURE"}


def doctor(
    home: HomeOption = DEFAULT_HOME,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Find the number of threads by a measured step, and keep it in the home."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For another program.")] = False,
    test: Annotated[
        bool,
        typer.Option(
            "--self-test/--no-self-test", help="Train, save, read again and compare a small run."
        ),
    ] = True,
) -> None:
    """Look at versions, processor, memory, disk, GPU, network and file locks, and try a small run; exit code 1 where a run would not come through."""
    from clinpeft import workflows
    from clinpeft.cli.grid import create_run_context
    from clinpeft.workflows import doctor as looks

    found = []
    context = create_run_context(lambda _: None, lambda: False)
    for finding in looks.run_diagnostics(
        home.resolve(), os.environ, context, workflows.adapt_language_model if test else None
    ):
        found.append(finding)
        if not as_json:
            hint = f"\n         {finding.hint}" if finding.hint else ""
            print(
                f"{FINDING_STATE_MARKS[finding.state]}  {finding.name}: {finding.message}{hint}",
                flush=True,
            )
    if as_json:
        print(looks.findings_to_json(found))
    if tune:
        settings = looks.tune_threads(home.resolve(), os.environ)
        said = f"tuned: {settings['threads']} threads of {settings['cores']}, kept in {looks.MACHINE_FILE} of the home"
        print(json.dumps(settings) if as_json else said)
    if any(finding.state == "failure" for finding in found):
        raise typer.Exit(1)


def apply_tuned_threads(home: Path) -> None:
    """Let torch take the number of threads that ``doctor --tune`` found, unless the user named one. Before torch is imported."""
    try:
        threads = int(json.loads((home / "machine.json").read_text(encoding="utf-8"))["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
