"""A recipe in the repository is a promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from clinpeft import recipe as recipes
from clinpeft.adapters import ADAPTER_METHODS
from clinpeft.core.errors import RecipeError
from clinpeft.data.sources import NOTE_SOURCES
from clinpeft.workflows.textbooks import BOOK_SOURCES
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
ENVIRONMENT = {
    "MIMIC_IV_NOTE": "/data/mimic-iv-note",
    "LLAMA_7B": "/models/llama",
    "PMC_LLAMA_7B": "/models/pmc",
    "MTSAMPLES": "/data/mtsamples",
}
ENVIRONMENT |= {
    "MIMIC_III": "/data/mimic-iii",
    "BLUEBERT": "/models/bluebert",
    "UMLSBERT": "/models/umlsbert",
}
ENVIRONMENT |= {
    "BIO_CLINICAL_BERT": "/models/bio-clinical-bert",
    "CORE": "/models/core",
    "MINILM": "/models/minilm",
}
ENVIRONMENT |= {"ANATOMY": "/data/anatomy", "NURSING": "/data/nursing", "MEDQUAD": "/data/medquad"}
ENVIRONMENT |= {"CARDIOLOGY_BOOKS": "/data/books", "BACKBONES": "/models"}
SMALLEST = 'kind = "adapt"\n[source]\nname = "synthetic"\n[base]\npath = "models/a"\n[[adapters]]\nmethod = "lora"\n'


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_and_names_what_exists(path: Path) -> None:
    for cell in recipes.load_recipe_cells(path, environment=ENVIRONMENT):
        assert cell.recipe.source.name in (
            BOOK_SOURCES if cell.recipe.kind == "embed" else NOTE_SOURCES
        )
        if isinstance(cell.recipe, recipes.AdaptRecipe):
            assert {spec.method for spec in cell.recipe.adapters} <= ADAPTER_METHODS.keys()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_resolved_recipe_reads_back_equal(path: Path, tmp_path: Path) -> None:
    for cell in recipes.load_recipe_cells(path, environment=ENVIRONMENT):
        (tmp_path / "resolved.toml").write_text(
            recipes.format_recipe_toml(cell.recipe), encoding="utf-8"
        )
        assert recipes.load_recipe_cells(tmp_path / "resolved.toml")[0].recipe == cell.recipe


def test_table_2_has_ten_cells_with_the_published_numbers() -> None:
    cells = recipes.load_recipe_cells(
        ROOT / "recipes" / "paper-table-2.toml", environment=ENVIRONMENT
    )
    assert len(cells) == 10 and {
        cell.recipe.base.path.name for cell in cells if isinstance(cell.recipe, recipes.AdaptRecipe)
    } == {"llama", "pmc"}
    best = {cell.name: cell.published["test_perplexity"] for cell in cells}
    assert min(best, key=lambda name: float(best[name])) == "LLaMA · LoRA"


def write(folder: Path, text: str = SMALLEST) -> Path:
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


@pytest.mark.parametrize(
    ("override", "message", "way_out"),
    [
        (
            "training.learnin_rate=1",
            "unknown key 'training.learnin_rate'",
            "did you mean 'learning_rate'?",
        ),
        ("adapters.0.ranks=4", "unknown key 'adapters.0.ranks'", "did you mean 'rank'?"),
        (
            "adapters.0.rank=0",
            "adapters.0.rank = 0: Input should be greater than or equal to 1",
            "see docs/recipes.md",
        ),
        ("adapters.0.method=lorra", "adapters.0", "'lora'"),
        ("adapters.7.rank=4", "'adapters.7.rank': there is no entry '7'", "the list has 1 entries"),
        ("split.train=0.9", "train + tuning + held_out = 1.2", "see docs/recipes.md"),
        ("base.path=$NOWHERE", "the variable $NOWHERE is not set", "export NOWHERE="),
        ("kind=adopt", "kind = 'adopt' is no kind of run", "did you mean 'adapt'?"),
        ("seed", "'seed' is not key=value", "write --set"),
        ("seed.deep=1", "'seed.deep' goes through a plain value", "name a key of a table"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place_and_way_out(
    tmp_path: Path, override: str, message: str, hint: str
) -> None:
    path = write(tmp_path, "seed = 1\n" + SMALLEST)
    with pytest.raises(RecipeError) as raised:
        recipes.load_recipe_cells(path, [override])
    assert message in str(raised.value) and hint in str(raised.value)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read") as raised:
        recipes.load_recipe_cells(write(tmp_path, "kind = [unclosed"))
    assert str(tmp_path) in raised.value.location


def test_paths_start_at_the_recipe_and_overrides_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    path = write(tmp_path / "there")
    (first,) = recipes.load_recipe_cells(path)
    (second,) = recipes.load_recipe_cells(path, ["base.path=models/b", "base.max_tokens=64"])
    assert isinstance(first.recipe, recipes.AdaptRecipe) and isinstance(
        second.recipe, recipes.AdaptRecipe
    )
    assert first.recipe.base.path == tmp_path / "there" / "models" / "a"
    assert (second.recipe.base.path, second.recipe.base.max_tokens) == (
        tmp_path / "models" / "b",
        64,
    )


def test_every_key_that_a_spec_takes_for_a_path_is_one_and_no_other(tmp_path: Path) -> None:
    text = 'kind = "cohort"\n[source]\nname = "files"\npath = "$DATA/x"\ncolumns = { path = "p" }\n[task]\nname = "mortality"\nsubject_lists = "lists"\n'
    (cell,) = recipes.load_recipe_cells(write(tmp_path, text), environment={"DATA": "/data"})
    assert isinstance(cell.recipe, recipes.CohortRecipe)
    assert (cell.recipe.source.path, cell.recipe.task.subject_lists) == (
        Path("/data/x"),
        tmp_path / "lists",
    )
    assert cell.recipe.source.columns == {"path": "p"}
    (cell,) = recipes.load_recipe_cells(
        write(tmp_path, text), ["task.subject_lists=$DATA/lists"], {"DATA": "/data"}
    )
    assert isinstance(cell.recipe, recipes.CohortRecipe) and cell.recipe.task.subject_lists == Path(
        "/data/lists"
    )


def test_a_grid_is_the_product_of_its_axes_and_overrides_win_over_it(tmp_path: Path) -> None:
    grid = '[grid]\nseed = [1, 2]\n[[grid.method]]\nname = "a"\n"adapters.0.rank" = 2\n[[grid.method]]\nname = "b"\nadapters = [{ method = "prefix" }]\n'
    cells = recipes.load_recipe_cells(write(tmp_path, SMALLEST + grid), ["training.epochs=3"])
    assert [cell.name for cell in cells] == ["seed=1 · a", "seed=1 · b", "seed=2 · a", "seed=2 · b"]
    assert [cell.recipe.seed for cell in cells] == [1, 1, 2, 2]
    assert all(
        isinstance(cell.recipe, recipes.AdaptRecipe) and cell.recipe.training.epochs == 3
        for cell in cells
    )


def test_a_grid_axis_that_is_no_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="grid axis 'seed' is not a list"):
        recipes.load_recipe_cells(write(tmp_path, SMALLEST + "[grid]\nseed = 1\n"))
