"""``clinpeft cohort``: who is asked what, when, with which answer."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.audit import noted
from clinpeft.cli.console import cohort_shown, shown
from clinpeft.cli.grid import only
from clinpeft.cli.options import HERE, Home, Overrides

if TYPE_CHECKING:
    from clinpeft.core.schemas import HospitalDatabase
    from clinpeft.recipe import CohortRecipe

app = typer.Typer(no_args_is_help=True, help="Who is asked what, when, with which answer.")


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind cohort.")],
    set_: Overrides = None,
    home: Home = HERE,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="A corpus a model was adapted to: searched for copies of what is held out."
        ),
    ] = None,
) -> None:
    """Tables and notes in, one Parquet file of questions with their answers out, with its leakage audit and its MEDS form."""
    from clinpeft.core.schemas import Attrition
    from clinpeft.data import cohorts
    from clinpeft.data.notes import sources

    for asking, folder in _asked(recipe, set_, home.resolve() / "cohorts"):
        if cohorts.task_of(asking.task).asks == "notes":
            read = Attrition("read")
            cohorts.build_from_notes(
                asking, sources.read(asking.source, read, folder.parent), read, folder, corpus
            )
        else:
            with _opened(asking, folder) as hospital:
                cohorts.build(asking, hospital, folder, corpus)
        noted(home, "cohort build", made=folder / "cohort.parquet")
        cohort_shown(folder)


@app.command()
def show(folder: Annotated[Path, typer.Argument(help="The folder of a built cohort.")]) -> None:
    """Splits, classes, stays and subjects of a cohort, and who left for which reason."""
    cohort_shown(folder)


@app.command()
def verify(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind cohort.")],
    set_: Overrides = None,
    home: Home = HERE,
) -> None:
    """The cohort as published and corrected, beside the published counts, with every difference explained."""
    from clinpeft.data import cohorts
    from clinpeft.reports import plain

    for asking, folder in _asked(recipe, set_, home.resolve() / "cohorts"):
        with _opened(asking, folder) as hospital:
            shown(
                plain(
                    f"{asking.task.name}: published, as published, corrected",
                    cohorts.verify(asking, hospital, folder / "verify"),
                )
            )


def _asked(path: Path, set_: list[str] | None, home: Path) -> Iterator[tuple[CohortRecipe, Path]]:
    """Each recipe of a file with its folder."""
    from clinpeft import recipe as recipes

    cells = recipes.load_recipe_cells(path, set_ or [], os.environ)
    only("cohort", cells, path)
    for cell in cells:
        assert isinstance(cell.recipe, recipes.CohortRecipe)
        yield cell.recipe, home / re.sub(r"[^\w.-]+", "-", cell.recipe.name or path.stem)


@contextlib.contextmanager
def _opened(asking: CohortRecipe, folder: Path) -> Iterator[HospitalDatabase]:
    """The open tables of a recipe; the working database goes when the caller is done with it."""
    from clinpeft.data import hospital

    working = folder / "working"  # clinical data, which goes when the cohort stands
    try:
        tables = hospital.open_tables(asking.source, working)
        with contextlib.closing(tables.connection):
            yield tables
    finally:
        shutil.rmtree(working, ignore_errors=True)
