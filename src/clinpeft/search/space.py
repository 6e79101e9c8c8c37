"""What is searched: the keys of a recipe and their values, checked against the recipe before the first trial, and as the sampler sees them."""

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
        """Recipe key -> what the sampler draws; of rising numbers it draws the place in the list, so that it knows which are neighbours."""
        return {one.key: _build_distribution(one) for one in self.dimensions}

    def to_settings(self, sampled_params: Mapping[str, Any]) -> dict[str, SettingValue]:
        """Recipe key -> value, from what was drawn."""
        return {
            one.key: one.choices[sampled_params[one.key]]
            if one.is_ordered
            else sampled_params[one.key]
            for one in self.dimensions
        }

    def covers(self, sampled_params: Mapping[str, Any]) -> bool:
        """Whether there is a value for every key: a process that is killed while it proposes leaves a proposal with fewer."""
        return all(one.key in sampled_params for one in self.dimensions)


def build_search_space(spec: SearchSpec, recipe: Recipe) -> SearchSpace:
    """The space of a search; every choice and both ends of every range have been set in the recipe once.

    Raises:
        RecipeError: the recipe has no such key, with the nearest; a value does not fit; a single choice; a table that no paper has.
    """
    given = _expand_paper_space(spec, recipe) if isinstance(spec.space, str) else spec.space
    if not given:
        raise RecipeError(
            "a space without a key",
            location=SEARCH_SPACE_KEY,
            hint='write "training.learning_rate" = { low = 1e-4, high = 1e-2, log = true }',
        )
    dimensions = tuple(
        parse_search_dimension(key, choices, SEARCH_SPACE_KEY) for key, choices in given.items()
    )
    for one in dimensions:
        for value in one.example_values:
            apply_recipe_settings(recipe, {one.key: value}, f"{SEARCH_SPACE_KEY}: {one.key!r}")
    return SearchSpace(dimensions)


def _expand_paper_space(spec: SearchSpec, recipe: Recipe) -> dict[str, Any]:
    assert isinstance(spec.space, str)
    if spec.space not in PAPER_SEARCH_SPACES:
        near = difflib.get_close_matches(spec.space, PAPER_SEARCH_SPACES, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"the tables are: {', '.join(PAPER_SEARCH_SPACES)}"
        )
        raise RecipeError(f"there is no table {spec.space!r}", location=SEARCH_SPACE_KEY, hint=hint)
    adapters = len(getattr(recipe, "adapters", ()))
    at = adapters - 1 if spec.adapter < 0 else spec.adapter
    if not 0 <= at < adapters:
        raise RecipeError(
            f"{spec.space!r} is for an adapter, and the recipe has {adapters}",
            location="search.adapter",
            hint="add [[adapters]], or name another",
        )
    return {
        f"adapters.{at}.{key}": choices for key, choices in PAPER_SEARCH_SPACES[spec.space].items()
    }


def _build_distribution(axis: SearchDimension) -> BaseDistribution:
    if axis.range is None:
        return (
            IntDistribution(0, len(axis.choices) - 1)
            if axis.is_ordered
            else CategoricalDistribution(axis.choices)
        )
    low, high, step = axis.range.low, axis.range.high, axis.range.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=axis.range.log, step=int(step or 1))
    return FloatDistribution(low, high, log=axis.range.log, step=step)
