"""``clinpeft models``: base models in local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

models_app = typer.Typer(
    no_args_is_help=True, help="Download a base model, the only command that uses the network."
)


@models_app.command(
    "pull", epilog="Example: `clinpeft models pull meta-llama/Llama-3.2-1B --to models/llama-1b`"
)
def pull_model(
    name: Annotated[str, typer.Argument(help="A name on the model hub.")],
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
) -> None:
    """Download a base model. Run it outside the research environment and carry the folder in."""
    from clinpeft import models

    models.download_model(name, to)
    print(f"{to}: {models.fingerprint_base_model(to)}")
