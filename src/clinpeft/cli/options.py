"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_HOME = Path("runs")

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="CLINPEFT_HOME", help="Folder of all runs and caches.")
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one recipe key; can be repeated."),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A finished run: its id, a prefix of it, or its name.")
]
LaunchOption = Annotated[
    str | None,
    typer.Option(
        "--launch",
        metavar="here|local:N|slurm:N",
        help="Where the workers run; overrides [workers] launch of the recipe.",
    ),
]

PREPARE, TRAIN, USE, REPORT, PROTECT = "Prepare", "Train", "Use", "Report", "Protect"
"""Panels of ``clinpeft --help``, in the order of a project."""
