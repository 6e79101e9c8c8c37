"""The kinds of recipes."""

from __future__ import annotations

from clinpeft.recipe.embed import EmbedRecipe
from clinpeft.recipe.specs import AdaptRecipe, ClassifyRecipe, CohortRecipe, Recipe

# ``kind`` of a recipe -> its class
RECIPE_CLASSES: dict[str, type[Recipe]] = {
    "adapt": AdaptRecipe,
    "classify": ClassifyRecipe,
    "cohort": CohortRecipe,
    "embed": EmbedRecipe,
}
