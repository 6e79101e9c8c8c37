"""A run, said in full: TOML in, frozen specs out.

``specs`` says what a recipe can say, ``reading`` turns files, overrides and grids into recipes, ``writing`` turns a recipe back into TOML.
"""

from clinpeft.recipe.reading import Cell, read, validated
from clinpeft.recipe.specs import (
    RECIPES,
    AdapterSpec,
    AdaptionPromptSpec,
    AdaptRecipe,
    AnyAdapterSpec,
    BaseSpec,
    CohortRecipe,
    CohortSplitSpec,
    CorpusSpec,
    EvaluationSpec,
    Fraction,
    Fractions,
    Ia3Spec,
    LoraSpec,
    PrefixSpec,
    PromptSpec,
    PTuningSpec,
    Recipe,
    SourceSpec,
    Spec,
    SplitSpec,
    TaskSpec,
    TrainingSpec,
)
from clinpeft.recipe.writing import as_toml

__all__ = [
    "RECIPES",
    "AdaptRecipe",
    "AdapterSpec",
    "AdaptionPromptSpec",
    "AnyAdapterSpec",
    "BaseSpec",
    "Cell",
    "CohortRecipe",
    "CohortSplitSpec",
    "CorpusSpec",
    "EvaluationSpec",
    "Fraction",
    "Fractions",
    "Ia3Spec",
    "LoraSpec",
    "PTuningSpec",
    "PrefixSpec",
    "PromptSpec",
    "Recipe",
    "SourceSpec",
    "Spec",
    "SplitSpec",
    "TaskSpec",
    "TrainingSpec",
    "as_toml",
    "read",
    "validated",
]
