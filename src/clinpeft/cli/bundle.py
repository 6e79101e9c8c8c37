"""``clinpeft bundle``: a base, recipes and wheels, packed outside and checked inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.audit import record_audit_entry
from clinpeft.cli.console import to_relative_path
from clinpeft.cli.options import DEFAULT_HOME, HomeOption

if TYPE_CHECKING:
    from clinpeft.models import ModelBundle

bundle_app = typer.Typer(
    no_args_is_help=True, help="Carry a base, recipes and wheels to a place without a network."
)
BundleArgument = Annotated[Path, typer.Argument(metavar="FILE", help="What bundle make wrote.")]


@bundle_app.command()
def make(
    base: Annotated[
        Path, typer.Option("--base", help="The folder of a base model, as models pull writes it.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A new .tar file.")],
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipes", help="A recipe file; may be repeated.")
    ] = None,
    wheels: Annotated[Path | None, typer.Option("--wheels", help="A folder of wheels.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Pack a base, recipes and wheels into one file, with a SHA-256 of everything in it."""
    from clinpeft import models

    bundle = models.make_bundle(base, recipes or [], wheels, out)
    record_audit_entry(home, "bundle make", output_path=out)
    _print_bundle(bundle, out)
    print(
        "carry it in, and there: clinpeft bundle verify FILE; the SHA-256 goes another way, such as by telephone"
    )


@bundle_app.command()
def verify(file: BundleArgument) -> None:
    """Whether a bundle is what was packed, and holds nothing that may not be opened; nothing is unpacked."""
    from clinpeft import models

    _print_bundle(models.verify_bundle(file), file)


@bundle_app.command()
def unpack(
    file: BundleArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """The files of a bundle, each of them checked, into a new folder."""
    from clinpeft import models

    bundle = models.unpack_bundle(file, to)
    record_audit_entry(home, "bundle unpack", output_path=to)
    _print_bundle(bundle, file)
    print(
        f"base: {to_relative_path(to / 'base' / bundle.base_name)}; give it to a recipe with --set base.path=..."
    )


def _print_bundle(bundle: ModelBundle, file: Path) -> None:
    from clinpeft import runs

    print(
        f"{to_relative_path(file)}: base {bundle.base_name} ({bundle.base_sha256[:12]}), {len(bundle.files)} files, {bundle.size_bytes:,} bytes"
    )
    print(f"sha256 {runs.compute_path_checksum(file)}")
