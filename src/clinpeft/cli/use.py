"""``clinpeft predict``, ``encode`` and ``export``: use the model of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clinpeft.cli.audit import record_audit_entry
from clinpeft.cli.console import to_relative_path
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, RunArgument
from clinpeft.core.errors import UsageError


def predict_command(
    run: RunArgument,
    notes: Annotated[
        Path, typer.Option("--notes", help="CSV, TSV, JSON lines or Parquet, one note per row.")
    ],
    out: Annotated[Path, typer.Option("--out", help="A Parquet file that does not exist yet.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="A column that has another name."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Predict the labels of new notes: one row per note with a probability for each class."""
    from clinpeft import workflows

    pairs = [pair.split("=", 1) for pair in columns or []]
    if malformed := next((pair for pair in pairs if len(pair) < 2), None):
        raise UsageError(
            f"{malformed[0]!r} is not OURS=THEIRS",
            location="--column",
            hint="write --column text=note",
        )
    for path in workflows.predict_new_notes(home.resolve(), run, notes, dict(pairs), out):
        record_audit_entry(home, "predict", output_path=path)
        print(to_relative_path(path))


def encode_command(
    run: RunArgument,
    texts: Annotated[
        Path, typer.Option("--texts", help="CSV, TSV, JSON lines or Parquet with a column text.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A .npy or .parquet file that does not exist yet.")
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Encode texts as vectors with the embedding model of a run."""
    from clinpeft import workflows
    from clinpeft.cli.progress import show_encoding_progress

    with show_encoding_progress("encode") as on_progress:
        summary = workflows.encode_text_file(home.resolve(), run, texts, out, on_progress)
    record_audit_entry(home, "encode", output_path=out, counts={"texts": summary.texts})
    print(
        f"{to_relative_path(out)}: {summary.texts:,} vectors of {summary.width}, "
        f"{summary.seconds:.1f} s, {summary.precision_reason}"
    )


def export_command(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "--to", help="A new folder.")],
    format_: Annotated[
        Literal["sentence-transformers", "onnx"],
        typer.Option("--format", help="The library that opens it."),
    ] = "sentence-transformers",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Only the adapter and the name of its base.")
    ] = False,
    base: Annotated[
        str, typer.Option("--base", help="With --adapter: where a reader finds the base.")
    ] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Export an embedding model as a sentence-transformers folder with its card, or as ONNX."""
    from clinpeft import reports, workflows

    if format_ == "sentence-transformers":
        folder = workflows.export_run_encoder(
            home.resolve(),
            run,
            out,
            reports.render_model_card,
            merge_adapters=not adapter,
            base_name=base,
        )
        print(to_relative_path(folder))
        record_audit_entry(home, "export", output_path=out)
        return
    if adapter or base:
        raise UsageError(
            "an ONNX graph holds base and adapter in one",
            location="export --adapter, --base",
            hint="leave both options out",
        )
    parity = workflows.export_run_to_onnx(home.resolve(), run, out)
    record_audit_entry(home, "export", output_path=out)
    print(
        f"{to_relative_path(out)}: same vectors for {parity.texts} texts, {parity.engine}: largest "
        f"difference {parity.largest_difference:.1e} (tolerance {parity.tolerance:.0e}), smallest "
        f"cosine {parity.least_cosine:.6f}"
    )
