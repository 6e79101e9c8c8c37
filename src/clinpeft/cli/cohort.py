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

from clinpeft.cli.audit import record_audit_entry
from clinpeft.cli.console import print_cohort, print_table
from clinpeft.cli.grid import check_recipe_kind
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption

if TYPE_CHECKING:
    from clinpeft.core.schemas import HospitalDatabase
    from clinpeft.recipe import CohortRecipe

cohort_app = typer.Typer(no_args_is_help=True, help="Who is asked what, when, with which answer.")


@cohort_app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind cohort.")],
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
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

    for asking, folder in _load_cohort_recipes(recipe, set_, home.resolve() / "cohorts"):
        if cohorts.get_clinical_task(asking.task).prediction_unit == "notes":
            read = Attrition("read")
            cohorts.build_note_cohort(
                asking, sources.read_notes(asking.source, read, folder.parent), read, folder, corpus
            )
        else:
            with _open_hospital(asking, folder) as hospital:
                cohorts.build_cohort(asking, hospital, folder, corpus)
        record_audit_entry(home, "cohort build", output_path=folder / "cohort.parquet")
        print_cohort(folder)


@cohort_app.command()
def show(folder: Annotated[Path, typer.Argument(help="The folder of a built cohort.")]) -> None:
    """Splits, classes, stays and subjects of a cohort, and who left for which reason."""
    print_cohort(folder)


@cohort_app.command()
def verify(
    recipe: Annotated[Path, typer.Argument(help="A recipe of kind cohort.")],
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """The cohort as published and corrected, beside the published counts, with every difference explained."""
    from clinpeft.data import cohorts
    from clinpeft.reports import table_from_arrow

    for asking, folder in _load_cohort_recipes(recipe, set_, home.resolve() / "cohorts"):
        with _open_hospital(asking, folder) as hospital:
            print_table(
                table_from_arrow(
                    f"{asking.task.name}: published, as published, corrected",
                    cohorts.compare_with_published_counts(asking, hospital, folder / "verify"),
                )
            )


def _load_cohort_recipes(
    path: Path, overrides: list[str] | None, home: Path
) -> Iterator[tuple[CohortRecipe, Path]]:
    """Each recipe of a file with its folder."""
    from clinpeft import recipe as recipes

    cells = recipes.load_recipe_cells(path, overrides or [], os.environ)
    check_recipe_kind("cohort", cells, path)
    for cell in cells:
        assert isinstance(cell.recipe, recipes.CohortRecipe)
        yield cell.recipe, home / re.sub(r"[^\w.-]+", "-", cell.recipe.name or path.stem)


@contextlib.contextmanager
def _open_hospital(recipe: CohortRecipe, folder: Path) -> Iterator[HospitalDatabase]:
    """The open tables of a recipe; the working database goes when the caller is done with it."""
    from clinpeft.data import hospital

    working = folder / "working"  # clinical data, which goes when the cohort stands
    try:
        tables = hospital.open_hospital_database(recipe.source, working)
        with contextlib.closing(tables.connection):
            yield tables
    finally:
        shutil.rmtree(working, ignore_errors=True)
