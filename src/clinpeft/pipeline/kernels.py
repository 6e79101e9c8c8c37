"""Kernels of a GPU, as a whole run sees them: what is refused."""

from __future__ import annotations

from clinpeft import adapters, models
from clinpeft.errors import RecipeError
from clinpeft.pipeline.runs import TrainedRecipe
from clinpeft.training import Crew


def refuse_impossible(recipe: TrainedRecipe, crew: Crew) -> None:
    """Stop before anything is read where the kernels that a recipe asks for cannot be had, or would change what an adapter reads.

    Raises:
        UsageError: this is no CUDA device, or the package is not installed.
        BaseModelError: there are none for this family.
        RecipeError: an adapter reads queries, which liger's rotation overwrites.
    """
    models.refuse_missing_kernels(recipe.base, crew.device)
    readers = [spec.method for spec in recipe.adapters if adapters.METHODS[spec.method].reads_queries]
    if recipe.base.kernels == "liger" and readers:
        problem = f'kernels = "liger" with {readers[0]}, which reads queries that its rotation overwrites'
        raise RecipeError(problem, place="base.kernels", way_out='leave base.kernels out, or set it to "torch"')
