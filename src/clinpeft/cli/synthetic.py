"""``clinpeft synthetic``: the tables of a synthetic hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def write_synthetic_tables(
    to: Annotated[Path, typer.Option("--to", help="A folder.")],
    subjects: Annotated[int, typer.Option(help="Number of patients.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed writes the same files.")] = 1234,
    shape: Annotated[
        Literal["mimic-iii", "mimic-iv"], typer.Option(help="Whose file and column names.")
    ] = "mimic-iv",
) -> None:
    """Write a synthetic hospital in the files and columns of MIMIC-III or MIMIC-IV-Note."""
    from clinpeft.data import synthetic

    synthetic.write_synthetic_hospital(to, subjects, seed, shape)
    print(to)
    for task, auroc in synthetic.compute_best_auroc(to).items():
        print(f"{task}: best AUROC that can be expected from the admission note: {auroc:.3f}")
