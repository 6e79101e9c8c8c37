"""A search space: keys of a recipe and their values, checked against the recipe beforehand."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from clinpeft.core.errors import RecipeError
from clinpeft.recipe import (
    Recipe,
    SearchDimension,
    SearchSpec,
    apply_recipe_settings,
    parse_search_dimension,
)
from clinpeft.recipe.search import SettingValue
from clinpeft.search.paper_spaces import PAPER_SEARCH_SPACES

SEARCH_SPACE_KEY = "search.space"


@dataclass(frozen=True)
class SearchSpace:
    """A flat space: every key has a value in every trial.

    Attributes:
        dimensions: in the order of the recipe.
    """

    dimensions: tuple[SearchDimension, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Recipe key -> optuna distribution.

        Of ordered choices the sampler draws the index, so that it knows which are neighbors.
        """
        return {dimension.key: _build_distribution(dimension) for dimension in self.dimensions}

    def to_settings(self, sampled_params: Mapping[str, Any]) -> dict[str, SettingValue]:
        """Convert sampled parameters to recipe key -> value."""
        settings = {}
        for dimension in self.dimensions:
            value = sampled_params[dimension.key]
            settings[dimension.key] = dimension.choices[value] if dimension.is_ordered else value
        return settings

    def covers(self, sampled_params: Mapping[str, Any]) -> bool:
        """Whether there is a value for every key.

        A process that is killed while it proposes leaves a trial with fewer.
        """
        return all(dimension.key in sampled_params for dimension in self.dimensions)


def build_search_space(spec: SearchSpec, recipe: Recipe) -> SearchSpace:
    """Build the space of a search; every choice and both ends of every range are tried in the
    recipe.

    Raises:
        RecipeError: the recipe has no such key, with the nearest; a value does not fit; a single
            choice; a table that is not among ``PAPER_SEARCH_SPACES``.
    """
    choices = spec.space
    if isinstance(choices, str):
        choices = _expand_paper_space(choices, spec, recipe)
    if not choices:
        raise RecipeError(
            "a space without a key",
            location=SEARCH_SPACE_KEY,
            hint='write "training.learning_rate" = { low = 1e-4, high = 1e-2, log = true }',
        )
    dimensions = tuple(
        parse_search_dimension(key, values, SEARCH_SPACE_KEY) for key, values in choices.items()
    )
    # An error now costs nothing; in trial 17 it costs the search.
    for dimension in dimensions:
        for value in dimension.example_values:
            location = f"{SEARCH_SPACE_KEY}: {dimension.key!r}"
            apply_recipe_settings(recipe, {dimension.key: value}, location)
    return SearchSpace(dimensions)


def _expand_paper_space(name: str, spec: SearchSpec, recipe: Recipe) -> dict[str, Any]:
    """The choices of a table of a paper, as keys of one adapter of the recipe."""
    if name not in PAPER_SEARCH_SPACES:
        nearest = difflib.get_close_matches(name, PAPER_SEARCH_SPACES, n=1)
        tables = f"the tables are: {', '.join(PAPER_SEARCH_SPACES)}"
        hint = f"did you mean {nearest[0]!r}?" if nearest else tables
        raise RecipeError(f"there is no table {name!r}", location=SEARCH_SPACE_KEY, hint=hint)
    adapter_count = len(getattr(recipe, "adapters", ()))
    # A negative index means the last adapter, the one on top of the stack.
    index = adapter_count - 1 if spec.adapter < 0 else spec.adapter
    if not 0 <= index < adapter_count:
        raise RecipeError(
            f"{name!r} is for an adapter, and the recipe has {adapter_count}",
            location="search.adapter",
            hint="add [[adapters]], or name another",
        )
    return {f"adapters.{index}.{key}": values for key, values in PAPER_SEARCH_SPACES[name].items()}


def _build_distribution(dimension: SearchDimension) -> BaseDistribution:
    if dimension.range is None:
        if dimension.is_ordered:
            return IntDistribution(0, len(dimension.choices) - 1)
        # Without an order the sampler must not assume neighbors.
        return CategoricalDistribution(dimension.choices)
    # Integer limits mean an integer key.
    low, high, step = dimension.range.low, dimension.range.high, dimension.range.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=dimension.range.log, step=int(step or 1))
    return FloatDistribution(low, high, log=dimension.range.log, step=step)
