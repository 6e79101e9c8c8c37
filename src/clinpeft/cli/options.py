"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="CLINPEFT_HOME", help="Folder of all runs and caches.")
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override one key of the recipe; may be repeated."
    ),
]
DEFAULT_HOME = Path("runs")
