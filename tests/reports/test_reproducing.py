"""The page on the papers names only recipes that exist, every table of both papers, and results
that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")


def test_every_recipe_that_is_named_exists() -> None:
    named = set(re.findall(r"recipes/[\w.-]+\.toml", TEXT))
    assert len(named) >= 8
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_recipe_of_a_published_table_is_named() -> None:
    papers = {path.name for path in (ROOT / "recipes").glob("paper-table-*.toml")} | {
        "cardiology-embedding.toml"
    }
    assert all(name in TEXT for name in papers)


def test_every_table_of_both_papers_has_a_line() -> None:
    first, second = TEXT.split("## arXiv ")[1:3]
    for part, tables in ((first, range(1, 5)), (second, range(1, 6))):
        assert [int(number) for number in re.findall(r"^\| (\d), ", part, re.MULTILINE)] == list(
            tables
        )


def test_every_result_that_is_linked_is_there() -> None:
    linked = re.findall(r"\]\((results/[\w.-]+)\)", TEXT)
    assert linked and all((ROOT / "docs" / name).is_file() for name in linked)


def test_misprints_are_those_that_the_recipes_know() -> None:
    """Printed and recomputed means as they stand in the head of the recipes, there as fractions."""
    notes = (ROOT / "recipes" / "paper-table-3.toml").read_text(encoding="utf-8") + (
        ROOT / "recipes" / "paper-table-4.toml"
    ).read_text(encoding="utf-8")
    for printed, mean in re.findall(r"mean printed ([\d.]+), of its row ([\d.]+)", TEXT):
        assert f"{float(printed) / 100:.4f}" in notes and f"{float(mean) / 100:.4f}" in notes
