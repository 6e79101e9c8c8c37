"""The kinds of recipe there are."""

from __future__ import annotations

from clinpeft.recipe.embed import EmbedRecipe
from clinpeft.recipe.specs import AdaptRecipe, ClassifyRecipe, CohortRecipe, Recipe

RECIPE_CLASSES: dict[str, type[Recipe]] = {
    "adapt": AdaptRecipe,
    "classify": ClassifyRecipe,
    "cohort": CohortRecipe,
    "embed": EmbedRecipe,
}
