"""``clinpeft bundle``: carry a base, recipes and wheels into a place without a network."""

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
BundleArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A file that bundle make wrote.")
]


@bundle_app.command("make", epilog="Example: `clinpeft bundle make --base llama --out llama.tar`")
def make_bundle_file(
    base: Annotated[
        Path, typer.Option("--base", help="Folder of a base model, as models pull writes it.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A new .tar file.")],
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipes", help="A recipe file; can be repeated.")
    ] = None,
    wheels: Annotated[Path | None, typer.Option("--wheels", help="A folder of wheels.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Pack a base, recipes and wheels into one file with a SHA-256 of each file in it."""
    from clinpeft import models

    bundle = models.make_bundle(base, recipes or [], wheels, out)
    record_audit_entry(home, "bundle make", output_path=out)
    print_bundle(bundle, out)
    print(
        "on the other side: clinpeft bundle verify FILE; "
        "send the SHA-256 by another way, such as by telephone"
    )


@bundle_app.command("verify", epilog="Example: `clinpeft bundle verify llama.tar`")
def verify_bundle_file(file: BundleArgument) -> None:
    """Verify that a bundle is what was packed and holds no unsafe file, without unpacking it."""
    from clinpeft import models

    print_bundle(models.verify_bundle(file), file)


@bundle_app.command("unpack", epilog="Example: `clinpeft bundle unpack llama.tar --to models`")
def unpack_bundle_file(
    file: BundleArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Unpack a bundle into a new folder, each file verified."""
    from clinpeft import models

    bundle = models.unpack_bundle(file, to)
    record_audit_entry(home, "bundle unpack", output_path=to)
    print_bundle(bundle, file)
    base = to_relative_path(to / "base" / bundle.base_name)
    print(f"base: {base}; use it in a recipe with --set base.path=...")


def print_bundle(bundle: ModelBundle, file: Path) -> None:
    """Print what a bundle holds, and its SHA-256."""
    from clinpeft import runs

    print(
        f"{to_relative_path(file)}: base {bundle.base_name} ({bundle.base_sha256[:12]}), "
        f"{len(bundle.files)} files, {bundle.size_bytes:,} bytes"
    )
    print(f"sha256 {runs.compute_path_checksum(file)}")
