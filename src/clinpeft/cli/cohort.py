"""``clinpeft cohort``: build the cohort of a task, show it, compare it with published counts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.audit import record_audit_entry
from clinpeft.cli.console import print_table
from clinpeft.cli.grid import check_recipe_kind
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption

if TYPE_CHECKING:
    from clinpeft.core.schemas import HospitalDatabase
    from clinpeft.recipe import CohortRecipe

cohort_app = typer.Typer(
    no_args_is_help=True, help="Build the cohort of a clinical task with labels and splits."
)
CohortRecipeArgument = Annotated[Path, typer.Argument(help="A recipe of kind cohort.")]


@cohort_app.command("build", epilog="Example: `clinpeft cohort build cohort.toml`")
def build_cohort_folder(
    recipe: CohortRecipeArgument,
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="A corpus that a model was adapted to, searched for copies of held-out notes."
        ),
    ] = None,
) -> None:
    """Build a cohort from tables and notes, with its leakage audit and its MEDS data set."""
    from clinpeft.core.schemas import Attrition
    from clinpeft.data import cohorts, sources

    for cohort_recipe, folder in load_cohort_recipes(recipe, set_, home.resolve() / "cohorts"):
        if cohorts.get_clinical_task(cohort_recipe.task).prediction_unit == "notes":
            attrition = Attrition("read")
            notes = sources.read_notes(cohort_recipe.source, attrition, folder.parent)
            cohorts.build_note_cohort(cohort_recipe, notes, attrition, folder, corpus)
        else:
            with open_hospital(cohort_recipe, folder) as hospital:
                cohorts.build_cohort(cohort_recipe, hospital, folder, corpus)
        record_audit_entry(home, "cohort build", output_path=folder / "cohort.parquet")
        show_cohort(folder)


@cohort_app.command("show", epilog="Example: `clinpeft cohort show runs/cohorts/mortality`")
def show_cohort(
    folder: Annotated[Path, typer.Argument(help="Folder of a cohort that was built.")],
) -> None:
    """Show splits, classes, stays and subjects of a cohort, and its attrition."""
    from clinpeft import reports
    from clinpeft.core.schemas import Attrition
    from clinpeft.data import cohorts

    print_table(reports.table_from_arrow("Cohort", cohorts.summarize_cohort(folder)))
    steps = json.loads((folder / "attrition.json").read_text(encoding="utf-8"))
    attrition = [Attrition.from_json(step) for step in steps]
    print_table(reports.build_attrition_table("Attrition by step and reason", attrition))
    print(folder)


@cohort_app.command("verify", epilog="Example: `clinpeft cohort verify cohort.toml`")
def compare_cohort_counts(
    recipe: CohortRecipeArgument,
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Compare a cohort, as published and as corrected, with the published counts."""
    from clinpeft.data import cohorts
    from clinpeft.reports import table_from_arrow

    for cohort_recipe, folder in load_cohort_recipes(recipe, set_, home.resolve() / "cohorts"):
        with open_hospital(cohort_recipe, folder) as hospital:
            counts = cohorts.compare_with_published_counts(
                cohort_recipe, hospital, folder / "verify"
            )
        title = f"{cohort_recipe.task.name}: published, as published, corrected"
        print_table(table_from_arrow(title, counts))


def load_cohort_recipes(
    path: Path, overrides: list[str] | None, home: Path
) -> Iterator[tuple[CohortRecipe, Path]]:
    """Load each recipe of a file, with the folder of its cohort."""
    from clinpeft.recipe import CohortRecipe, load_recipe_cells

    cells = load_recipe_cells(path, overrides or [], os.environ)
    check_recipe_kind("cohort", cells, path)
    for cell in cells:
        assert isinstance(cell.recipe, CohortRecipe)
        yield cell.recipe, home / re.sub(r"[^\w.-]+", "-", cell.recipe.name or path.stem)


@contextlib.contextmanager
def open_hospital(recipe: CohortRecipe, folder: Path) -> Iterator[HospitalDatabase]:
    """Open the tables of a recipe; the working database, clinical data, is removed afterwards."""
    from clinpeft.data import hospital

    working = folder / "working"
    try:
        tables = hospital.open_hospital_database(recipe.source, working)
        with contextlib.closing(tables.connection):
            yield tables
    finally:
        shutil.rmtree(working, ignore_errors=True)
