"""``clinpeft adapt``, ``classify``, ``embed``: train a run for each cell of a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.console import write_embedding_study
from clinpeft.cli.doctor import apply_tuned_threads
from clinpeft.cli.grid import check_recipe_kind, run_grid
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption

if TYPE_CHECKING:
    from clinpeft.recipe import Cell

AdaptRecipeArgument = Annotated[Path, typer.Argument(help="A recipe of kind adapt.")]
ClassifyRecipeArgument = Annotated[Path, typer.Argument(help="A recipe of kind classify.")]
EmbedRecipeArgument = Annotated[Path, typer.Argument(help="A recipe of kind embed.")]


def load_cells(kind: str, recipe: Path, overrides: list[str] | None, home: Path) -> list[Cell]:
    """Load the cells of a recipe file for a command.

    Raises:
        UsageError: the recipe is of another kind.
    """
    apply_tuned_threads(home)  # before torch is imported
    from clinpeft.recipe import load_recipe_cells

    cells = load_recipe_cells(recipe, overrides or [], os.environ)
    check_recipe_kind(kind, cells, recipe)
    return cells


def adapt_command(
    recipe: AdaptRecipeArgument, set_: OverridesOption = None, home: HomeOption = DEFAULT_HOME
) -> None:
    """Adapt a language model to clinical notes: domain-adaptive pretraining of a small adapter."""
    cells = load_cells("adapt", recipe, set_, home)
    from clinpeft import reports

    run_grid(cells, home, recipe.stem, reports.build_adaptation_table)


def classify_command(
    recipe: ClassifyRecipeArgument, set_: OverridesOption = None, home: HomeOption = DEFAULT_HOME
) -> None:
    """Train adapters and a head for a clinical question, and evaluate them on held-out subjects."""
    cells = load_cells("classify", recipe, set_, home)
    from clinpeft import reports

    run_grid(cells, home, recipe.stem, reports.build_classification_table)


def embed_command(
    recipe: EmbedRecipeArgument, set_: OverridesOption = None, home: HomeOption = DEFAULT_HOME
) -> None:
    """Adapt an embedding model to textbooks by contrastive training on pairs of texts."""
    cells = load_cells("embed", recipe, set_, home)
    from clinpeft import reports

    folder = home.resolve() / f"embed-{recipe.stem}"
    run_grid(
        cells,
        home,
        recipe.stem,
        reports.build_embedding_table,
        lambda results: write_embedding_study(results, folder),
    )
