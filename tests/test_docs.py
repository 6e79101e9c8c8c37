"""The pages are true: generated parts are fresh, names exist, and recipes shown are valid."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import write_docs
from packaging.requirements import Requirement

from clinpeft import recipe
from clinpeft.adapters import list_adapter_combinations

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = [page.relative_to(ROOT).as_posix() for page in PAGES]


def text_of(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_every_package_is_in_the_tree() -> None:
    page = text_of("docs/architecture.md")
    tree = page.partition(write_docs.TREE[0])[2].partition(write_docs.TREE[1])[0]
    names = [line.split()[0].rstrip("/") for line in tree.strip().splitlines()[2:-1]]
    package = ROOT / "src" / "clinpeft"
    folders = sorted(path.parent.name for path in package.rglob("__init__.py"))
    assert sorted([*names, "clinpeft"]) == folders


def test_every_file_in_the_tree_has_a_purpose() -> None:
    assert not [path for path in (ROOT / "src").rglob("*.py") if not write_docs.read_purpose(path)]


def test_generated_parts_are_as_new_as_the_code() -> None:
    stale = [
        page.name
        for page, text in write_docs.build_pages(ROOT).items()
        if page.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run `make docs`"


def test_a_page_that_is_older_than_the_code_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "src" / "clinpeft"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text('"""The package."""\n')
    (package / "data" / "__init__.py").write_text('"""Old chairs: dusty. And more."""\n')
    assert write_docs.format_package_tree(tmp_path).splitlines() == [
        "```",
        "src/clinpeft/",
        "  data/  Old chairs: dusty",
        "```",
    ]
    marks = ("<1>", "<2>")
    assert write_docs.replace_between("a <1> old <2> b", marks, "new") == "a <1>\nnew\n<2> b"


def test_every_recipe_key_has_a_meaning_of_its_own_spec() -> None:
    todo: list[type[recipe.RecipeSpec]] = list(recipe.RECIPE_CLASSES.values())
    for kind in todo:
        todo += [
            spec
            for field in kind.model_fields.values()
            for spec in write_docs._list_specs(field.annotation)
        ]
    assert len(todo) > 10
    nameless = {
        f"{kind.__name__}.{key}"
        for kind in todo
        for key in write_docs._list_plain_keys(kind)
        if key not in {"method", *write_docs.read_meanings(kind)}
    }
    assert not nameless, "say in the spec's docstring what the key means"


def test_a_key_in_the_table_carries_its_type_bounds_and_default() -> None:
    rows = text_of("docs/recipes.md").splitlines()
    assert "| `rank` | integer, ≥ 1 | `8` | rows of A and columns of B. |" in rows
    assert any(row.startswith("| `train` | number, ≥ 0 and ≤ 1 | `0.7` |") for row in rows)
    assert any(row.startswith("| `path` | path | required | a local folder") for row in rows)


def test_every_kind_of_recipe_has_its_own_keys_where_they_differ() -> None:
    page = text_of("docs/recipes.md")
    _, _, of_classify = page.partition("## `[training]` of `classify`")
    assert "| `batch_notes` | integer, ≥ 1 | `16` |" in of_classify.partition("\n## ")[0]
    assert "| `batch_tokens` |" not in of_classify.partition("\n## ")[0]


def test_the_table_of_stacks_has_a_cell_for_every_pair_of_methods() -> None:
    rows = [
        line.split(" | ")
        for line in text_of("docs/adapters.md")
        .partition(write_docs.STACKS[0])[2]
        .split("\n\n")[0]
        .splitlines()
        if "`" in line
    ]
    header, *body = [[cell.strip("|` ") for cell in row] for row in rows]
    told = {
        (row[0], second): how
        for row in body
        for second, how in zip(header[1:], row[1:], strict=True)
    }
    assert told == {(first, second): how for first, second, how, _ in list_adapter_combinations()}


@pytest.mark.parametrize("page", NAMED)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page))
    dead = [
        target
        for target in targets
        if "://" not in target and not ((ROOT / page).parent / target).exists()
    ]
    assert not dead


@pytest.mark.parametrize("page", NAMED)
def test_every_link_into_a_page_meets_a_heading(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text_of(page)):
        headings = re.findall(
            r"^#+ (.+)$",
            text_of((ROOT / page).parent / target if target else page),
            flags=re.MULTILINE,
        )
        assert anchor in {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
        }


def test_every_page_is_reached_from_the_index() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", text_of("docs/index.md")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


@pytest.mark.parametrize("page", NAMED)
def test_paths_named_in_a_page_exist(page: str) -> None:
    shown = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    named = re.findall(r"`((?:src|tests|docs|recipes|scripts|assets|benchmarks)/[\w./-]*)`", shown)
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", NAMED)
def test_a_recipe_in_a_page_is_a_recipe(page: str, tmp_path: Path) -> None:
    shown = [
        re.sub(r"(?m)^   ", "", block)
        for block in re.findall(r"```toml\n(.*?)```", text_of(page), flags=re.DOTALL)
    ]
    for block in shown:
        if "kind" in tomllib.loads(block):
            (tmp_path / "shown.toml").write_text(block, encoding="utf-8")
            assert recipe.load_recipe_cells(
                tmp_path / "shown.toml", environment={"MIMIC_III": "/data/mimic-iii"}
            )


@pytest.mark.parametrize("page", NAMED)
def test_targets_of_make_named_in_a_page_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))
    code = "\n".join(re.findall(r"`[^`]*`", text_of(page)))
    called = re.findall(
        r"^`*(?:[A-Z_]+=\S+ )*make ((?:[A-Z_]+=\S+ )*)([a-z-]+)\b", code, flags=re.MULTILINE
    )  # a sentence may make something too
    assert {target for _, target in called} <= targets


def test_the_readme_opens_with_the_two_commands() -> None:
    commands = re.findall(r"^make \w+", text_of("README.md"), flags=re.MULTILINE)
    assert commands[:2] == ["make quickstart", "make test"]


def test_every_dependency_has_a_row_that_says_why() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    rows = dict(
        re.findall(r"^\| `([\w-]+)` \|(.+)\|$", text_of("docs/dependencies.md"), flags=re.MULTILINE)
    )
    names = {Requirement(line).name for line in asked}
    assert set(rows) == names
    assert all(
        all(cell.strip() for cell in row.split("|")) and row.count("|") == 3
        for row in rows.values()
    )


@pytest.mark.parametrize("page", NAMED)
def test_no_page_names_a_path_of_somebodys_machine(page: str) -> None:
    assert not re.findall(r"/(?:home|root|Users|tmp|work)/\S*", text_of(page))
