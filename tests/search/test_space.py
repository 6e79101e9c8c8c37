"""What is searched is checked before the first trial."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from clinpeft.core.errors import RecipeError
from clinpeft.recipe import ComparisonSpec, SearchSpec, WorkersSpec, validate_recipe
from clinpeft.search import PAPER_SEARCH_SPACES, build_search_space
from tests.conftest import ROOT
from tests.search.conftest import RECIPE, asked, toy

METHOD_OF = {"paper:downstream": "lora"}


@pytest.mark.parametrize(
    ("space", "message", "hint"),
    [
        (
            {"training.learnin_rate": [1e-3, 1e-2]},
            "unknown key 'training.learnin_rate'",
            "did you mean 'learning_rate'?",
        ),
        ({"adapters.0.tokens": [1, 5]}, "unknown key 'adapters.0.tokens'", ""),
        ({"adapters.3.rank": [2, 4]}, "there is no entry '3'", "the list has 1 entries"),
        ({"adapters.0.rank": [8]}, "1 choice", "belongs into the recipe itself"),
        (
            {"adapters.0.rank": [8, 8]},
            "a choice that stands there twice",
            "at least two that differ",
        ),
        ({"adapters.0.rank": [8, 0]}, "adapters.0.rank = 0", ""),
        ({"adapters.0.rank": 8}, "neither a list nor a range", "write [2, 4, 8]"),
        (
            {"training.learning_rate": {"low": 1e-3, "hihg": 1e-2}},
            "unknown key 'hihg'",
            "did you mean 'high'?",
        ),
        (
            {"training.learning_rate": {"low": 1e-2, "high": 1e-3}},
            "nothing lies between 0.01 and 0.001",
            "low must be less",
        ),
        (
            {"training.weight_decay": {"low": 0.0, "high": 1.0, "log": True}},
            "nothing lies between 0.0 and 1.0",
            "above 0 where log",
        ),
        ({}, "a space without a key", "learning_rate"),
        ("paper:lore", "there is no table 'paper:lore'", "did you mean 'paper:lora'?"),
        ("paper:prefix", "unknown key 'adapters.0.tokens'", ""),
    ],
)
def test_a_wrong_space_is_named_with_its_place_and_way_out(
    space: Any, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        build_search_space(asked(space=space), toy())
    assert message in raised.value.message and hint in raised.value.hint
    assert "space" in raised.value.location


@pytest.mark.parametrize("name", PAPER_SEARCH_SPACES)
def test_every_value_of_a_papers_table_fits_the_recipe_of_its_method(name: str) -> None:
    method = METHOD_OF.get(name, name.partition(":")[2])
    recipe = validate_recipe(RECIPE | {"adapters": [{"method": "ia3"}, {"method": method}]}, "toy")
    space = build_search_space(asked(space=name), recipe)
    assert [one.key for one in space.dimensions] == [
        f"adapters.1.{key}" for key in PAPER_SEARCH_SPACES[name]
    ]


def test_a_papers_table_needs_an_adapter() -> None:
    with pytest.raises(RecipeError, match=r" 0\b.*\n.*where: search\.adapter"):
        build_search_space(
            asked(space="paper:lora"), validate_recipe(RECIPE | {"adapters": []}, "toy")
        )


def test_rising_numbers_are_drawn_by_their_place_and_names_are_not() -> None:
    space = build_search_space(
        asked(
            space={
                "adapters.0.rank": [2, 4, 16],
                "truncation.keep": ["head", "tail"],
                "evaluation.subgroups": [True, False],
            }
        ),
        toy(),
    )
    drawn = space.distributions
    assert drawn["adapters.0.rank"] == IntDistribution(0, 2)
    assert isinstance(drawn["truncation.keep"], CategoricalDistribution) and isinstance(
        drawn["evaluation.subgroups"], CategoricalDistribution
    )
    settings = space.to_settings(
        {"adapters.0.rank": 2, "truncation.keep": "tail", "evaluation.subgroups": False}
    )
    assert settings == {
        "adapters.0.rank": 16,
        "truncation.keep": "tail",
        "evaluation.subgroups": False,
    }


def test_every_key_is_on_its_page() -> None:
    for page, spec in (
        ("search", SearchSpec),
        ("studies", ComparisonSpec),
        ("search", WorkersSpec),
    ):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        assert not [
            key for key in spec.model_fields if f"`{key}`" not in text and f"{key} = " not in text
        ]


def test_the_papers_lora_space_is_the_published_one() -> None:
    """Released configurations, June 2023: r {2, 4, 8, 16}, alpha {4, 8, 16, 32}, dropout {0, 0.1,
    0.2}."""
    assert PAPER_SEARCH_SPACES["paper:lora"] == {
        "rank": (2, 4, 8, 16),
        "alpha": (4, 8, 16, 32),
        "dropout": (0.0, 0.1, 0.2),
    }
