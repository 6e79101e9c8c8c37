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
from clinpeft.recipe import Dimension, Recipe, SearchSpec, dimension, varied
from clinpeft.recipe.search import Setting
from clinpeft.search.paper_spaces import PAPER

PLACE = "search.space"


@dataclass(frozen=True)
class Space:
    """A flat space: every key has a value in every trial.

    Attributes:
        dimensions: in the order of the recipe.
    """

    dimensions: tuple[Dimension, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Recipe key -> what the sampler draws; of rising numbers it draws the place in the list, so that it knows which are neighbours."""
        return {one.key: _distribution(one) for one in self.dimensions}

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Setting]:
        """Recipe key -> value, from what was drawn."""
        return {
            one.key: one.choices[drawn[one.key]] if one.ordered else drawn[one.key]
            for one in self.dimensions
        }

    def covers(self, drawn: Mapping[str, Any]) -> bool:
        """Whether there is a value for every key: a process that is killed while it proposes leaves a proposal with fewer."""
        return all(one.key in drawn for one in self.dimensions)


def space_of(spec: SearchSpec, recipe: Recipe) -> Space:
    """The space of a search; every choice and both ends of every range have been set in the recipe once.

    Raises:
        RecipeError: the recipe has no such key, with the nearest; a value does not fit; a single choice; a table that no paper has.
    """
    given = _of_paper(spec, recipe) if isinstance(spec.space, str) else spec.space
    if not given:
        raise RecipeError(
            "a space without a key",
            location=PLACE,
            hint='write "training.learning_rate" = { low = 1e-4, high = 1e-2, log = true }',
        )
    dimensions = tuple(dimension(key, choices, PLACE) for key, choices in given.items())
    for one in dimensions:
        for value in one.examples:
            varied(recipe, {one.key: value}, f"{PLACE}: {one.key!r}")
    return Space(dimensions)


def _of_paper(spec: SearchSpec, recipe: Recipe) -> dict[str, Any]:
    assert isinstance(spec.space, str)
    if spec.space not in PAPER:
        near = difflib.get_close_matches(spec.space, PAPER, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the tables are: {', '.join(PAPER)}"
        raise RecipeError(f"there is no table {spec.space!r}", location=PLACE, hint=hint)
    adapters = len(getattr(recipe, "adapters", ()))
    at = adapters - 1 if spec.adapter < 0 else spec.adapter
    if not 0 <= at < adapters:
        raise RecipeError(
            f"{spec.space!r} is for an adapter, and the recipe has {adapters}",
            location="search.adapter",
            hint="add [[adapters]], or name another",
        )
    return {f"adapters.{at}.{key}": choices for key, choices in PAPER[spec.space].items()}


def _distribution(one: Dimension) -> BaseDistribution:
    if one.range is None:
        return (
            IntDistribution(0, len(one.choices) - 1)
            if one.ordered
            else CategoricalDistribution(one.choices)
        )
    low, high, step = one.range.low, one.range.high, one.range.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=one.range.log, step=int(step or 1))
    return FloatDistribution(low, high, log=one.range.log, step=step)
