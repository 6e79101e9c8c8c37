"""``clinpeft bundle``: a base, recipes and wheels, packed outside and checked inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.audit import noted
from clinpeft.cli.console import near
from clinpeft.cli.options import HERE, Home

if TYPE_CHECKING:
    from clinpeft.models import ModelBundle

app = typer.Typer(
    no_args_is_help=True, help="Carry a base, recipes and wheels to a place without a network."
)
Packed = Annotated[Path, typer.Argument(metavar="FILE", help="What bundle make wrote.")]


@app.command()
def make(
    base: Annotated[
        Path, typer.Option("--base", help="The folder of a base model, as models pull writes it.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A new .tar file.")],
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipes", help="A recipe file; may be repeated.")
    ] = None,
    wheels: Annotated[Path | None, typer.Option("--wheels", help="A folder of wheels.")] = None,
    home: Home = HERE,
) -> None:
    """Pack a base, recipes and wheels into one file, with a SHA-256 of everything in it."""
    from clinpeft import models

    bundle = models.make_bundle(base, recipes or [], wheels, out)
    noted(home, "bundle make", made=out)
    _told(bundle, out)
    print(
        "carry it in, and there: clinpeft bundle verify FILE; the SHA-256 goes another way, such as by telephone"
    )


@app.command()
def verify(file: Packed) -> None:
    """Whether a bundle is what was packed, and holds nothing that may not be opened; nothing is unpacked."""
    from clinpeft import models

    _told(models.verify_bundle(file), file)


@app.command()
def unpack(
    file: Packed, to: Annotated[Path, typer.Option("--to", help="A new folder.")], home: Home = HERE
) -> None:
    """The files of a bundle, each of them checked, into a new folder."""
    from clinpeft import models

    bundle = models.unpack_bundle(file, to)
    noted(home, "bundle unpack", made=to)
    _told(bundle, file)
    print(
        f"base: {near(to / 'base' / bundle.base_name)}; give it to a recipe with --set base.path=..."
    )


def _told(bundle: ModelBundle, file: Path) -> None:
    from clinpeft import runs

    print(
        f"{near(file)}: base {bundle.base_name} ({bundle.base_sha256[:12]}), {len(bundle.files)} files, {bundle.size_bytes:,} bytes"
    )
    print(f"sha256 {runs.compute_path_checksum(file)}")
