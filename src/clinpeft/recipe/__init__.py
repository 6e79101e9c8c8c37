"""Recipes: everything that is needed to repeat a run, as TOML or as frozen specs.

```
specs.py            data, tasks and models, and one class for each kind of run
adapter_specs.py    adapters          contrastive.py    contrastive training
training_specs.py   training          textbooks.py      books and pairs
privacy.py          privacy           embed.py          embedding recipes
load.py             files, overrides and grids -> recipes
dump.py             recipes -> TOML
search.py           searches, comparisons and workers of a recipe file
```
"""

from clinpeft.recipe.adapter_specs import (
    AdapterSpec,
    AdaptionPromptSpec,
    AnyAdapterSpec,
    Ia3Spec,
    LoraSpec,
    PrefixSpec,
    PromptSpec,
    PTuningSpec,
)
from clinpeft.recipe.contrastive import ContrastiveTrainingSpec, MiningSpec
from clinpeft.recipe.dump import format_recipe_toml
from clinpeft.recipe.embed import (
    EmbeddingEvaluationSpec,
    EmbeddingModelSpec,
    EmbedRecipe,
    RetrievalSetSpec,
)
from clinpeft.recipe.kinds import RECIPE_CLASSES
from clinpeft.recipe.load import RENAMED_KEYS, Cell, load_recipe, load_recipe_cells, validate_recipe
from clinpeft.recipe.privacy import DifferentialPrivacySpec, PrivacySpec
from clinpeft.recipe.search import (
    ComparisonSpec,
    RecipePlan,
    SearchDimension,
    SearchSpec,
    WorkersSpec,
    apply_recipe_settings,
    compute_json_digest,
    load_recipe_plan,
    override_trial_count,
    pair_compared_cells,
    parse_search_dimension,
)
from clinpeft.recipe.spec import RecipeSpec, UnitFraction
from clinpeft.recipe.specs import (
    AdaptRecipe,
    ClassifyRecipe,
    CohortRecipe,
    CohortSplitSpec,
    CorpusSpec,
    EncoderModelSpec,
    HeadSpec,
    LanguageModelSpec,
    LossSpec,
    PretrainedModelSpec,
    Recipe,
    SourceSpec,
    SplitFractionsSpec,
    SplitSpec,
    TaskSpec,
    TruncationSpec,
)
from clinpeft.recipe.textbooks import ImportedPairsSpec, PairSplitSpec, PairsSpec, PassagesSpec
from clinpeft.recipe.training_specs import (
    ClassificationEvaluationSpec,
    ClassifierTrainingSpec,
    EvaluationSpec,
    OptimizationSpec,
    TrainingSpec,
)

__all__ = [
    "RECIPE_CLASSES",
    "RENAMED_KEYS",
    "AdaptRecipe",
    "AdapterSpec",
    "AdaptionPromptSpec",
    "AnyAdapterSpec",
    "Cell",
    "ClassificationEvaluationSpec",
    "ClassifierTrainingSpec",
    "ClassifyRecipe",
    "CohortRecipe",
    "CohortSplitSpec",
    "ComparisonSpec",
    "ContrastiveTrainingSpec",
    "CorpusSpec",
    "DifferentialPrivacySpec",
    "EmbedRecipe",
    "EmbeddingEvaluationSpec",
    "EmbeddingModelSpec",
    "EncoderModelSpec",
    "EvaluationSpec",
    "HeadSpec",
    "Ia3Spec",
    "ImportedPairsSpec",
    "LanguageModelSpec",
    "LoraSpec",
    "LossSpec",
    "MiningSpec",
    "OptimizationSpec",
    "PTuningSpec",
    "PairSplitSpec",
    "PairsSpec",
    "PassagesSpec",
    "PrefixSpec",
    "PretrainedModelSpec",
    "PrivacySpec",
    "PromptSpec",
    "Recipe",
    "RecipePlan",
    "RecipeSpec",
    "RetrievalSetSpec",
    "SearchDimension",
    "SearchSpec",
    "SourceSpec",
    "SplitFractionsSpec",
    "SplitSpec",
    "TaskSpec",
    "TrainingSpec",
    "TruncationSpec",
    "UnitFraction",
    "WorkersSpec",
    "apply_recipe_settings",
    "compute_json_digest",
    "format_recipe_toml",
    "load_recipe",
    "load_recipe_cells",
    "load_recipe_plan",
    "override_trial_count",
    "pair_compared_cells",
    "parse_search_dimension",
    "validate_recipe",
]
