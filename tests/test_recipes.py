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
SMALLEST = """
kind = "adapt"
[source]
name = "synthetic"
[base]
path = "models/a"
[[adapters]]
method = "lora"
"""


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
    ("override", "message", "hint"),
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
            "docs/recipes.md",
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
def test_a_wrong_key_or_value_is_named_with_its_location_and_a_hint(
    tmp_path: Path, override: str, message: str, hint: str
) -> None:
    path = write(tmp_path, "seed = 1\n" + SMALLEST)
    with pytest.raises(RecipeError) as error:
        recipes.load_recipe_cells(path, [override])
    assert message in str(error.value) and hint in str(error.value)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        recipes.load_recipe_cells(write(tmp_path, "kind = [unclosed"))
    assert error.value.location == str(tmp_path / "recipe.toml")


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
    text = """
kind = "cohort"
[source]
name = "files"
path = "$DATA/x"
columns = { path = "p" }
[task]
name = "mortality"
subject_lists = "lists"
"""
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
    grid = """
[grid]
seed = [1, 2]
[[grid.method]]
name = "a"
"adapters.0.rank" = 2
[[grid.method]]
name = "b"
adapters = [{ method = "prefix" }]
"""
    cells = recipes.load_recipe_cells(write(tmp_path, SMALLEST + grid), ["training.epochs=3"])
    assert [cell.name for cell in cells] == ["seed=1 · a", "seed=1 · b", "seed=2 · a", "seed=2 · b"]
    assert [cell.recipe.seed for cell in cells] == [1, 1, 2, 2]
    assert all(
        isinstance(cell.recipe, recipes.AdaptRecipe) and cell.recipe.training.epochs == 3
        for cell in cells
    )


def test_a_grid_axis_that_is_no_list_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "[grid]\nseed = 1\n")
    with pytest.raises(RecipeError, match="'seed'") as error:
        recipes.load_recipe_cells(path)
    assert error.value.location == f"{path}: [grid]"


RENAMED = [
    ("adapt", {"base": {"path": "a", "quantisation": "float8"}}, "base.quantization"),
    ("classify", {"base": {"path": "a", "quantisation_limit": 0.1}}, "base.quantization_limit"),
    ("embed", {"base": {"path": "a", "quantisation": "float8"}}, "base.quantization"),
    ("classify", {"reading": {"keep": "tail"}}, "truncation"),
    ("adapt", {"training": {"private": {"epsilon": 1}}}, "training.differential_privacy"),
    ("classify", {"training": {"private": {"epsilon": 1}}}, "training.differential_privacy"),
    ("embed", {"training": {"share": 0.5}}, "training.fraction"),
    ("embed", {"evaluation": {"search": [{"name": "a", "path": "a"}]}}, "evaluation.retrieval"),
    (
        "embed",
        {"evaluation": {"retrieval": [{"name": "a", "path": "a", "asked": "b"}]}},
        "queries",
    ),
]
MINIMAL: dict[str, dict[str, object]] = {
    "adapt": {"adapters": [{"method": "lora"}]},
    "classify": {"task": {"name": "mortality"}},
    "cohort": {"task": {"name": "mortality"}},
    "embed": {},
}


def minimal(kind: str, **values: object) -> dict[str, object]:
    base: dict[str, object] = {} if kind == "cohort" else {"base": {"path": "models/a"}}
    return {"kind": kind, "source": {"name": "synthetic"}, **base, **MINIMAL[kind], **values}


@pytest.mark.parametrize(("kind", "values", "new_key"), RENAMED)
def test_a_key_that_was_renamed_is_an_error_with_the_new_key(
    kind: str, values: dict[str, object], new_key: str
) -> None:
    with pytest.raises(RecipeError, match=r"0\.7") as error:
        recipes.validate_recipe(minimal(kind, **values), "here")
    assert repr(new_key) in error.value.hint and error.value.location == "here"


def test_a_renamed_key_of_another_kind_is_an_unknown_key() -> None:
    with pytest.raises(RecipeError) as error:
        recipes.validate_recipe(minimal("adapt", training={"share": 0.5}), "here")
    assert "0.7" not in error.value.message and "'training.share'" in error.value.message
    assert {kind for kind, _ in recipes.RENAMED_KEYS} == {"adapt", "classify", "embed"}


def test_a_recipe_is_loaded_from_a_file_a_dictionary_or_keyword_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    path = write(tmp_path / "there")
    from_file = recipes.load_recipe(path, ["seed=7"], name="named")
    assert (from_file.seed, from_file.name) == (7, "named")
    assert from_file == recipes.load_recipe(str(path), seed=7, name="named")
    assert from_file.base is not None and from_file.base.path == tmp_path / "there/models/a"
    document = minimal("classify", base={"path": Path("models/a")})
    from_dictionary = recipes.load_recipe(document, ["task.name=readmission_30d"])
    assert from_dictionary == recipes.load_recipe(
        **{**document, "task": {"name": "readmission_30d"}}  # type: ignore[arg-type]
    )
    assert from_dictionary.base is not None
    assert from_dictionary.base.path == tmp_path / "models/a"
    assert document == minimal("classify", base={"path": Path("models/a")})  # unchanged
    variable = recipes.load_recipe(
        path, base={"path": "$MODELS/b"}, environment={"MODELS": "/models"}
    )
    assert variable.base is not None and variable.base.path == Path("/models/b")


def test_a_grid_is_no_single_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "[grid]\nseed = [1, 2]\n")
    with pytest.raises(RecipeError, match="grid") as error:
        recipes.load_recipe(path)
    assert error.value.location == str(path) and "load_recipe_cells" in error.value.hint
    with pytest.raises(RecipeError, match="grid"):
        recipes.load_recipe(minimal("embed"), grid={"seed": [1, 2]})


def test_recipes_of_all_kinds_have_the_same_attributes() -> None:
    privacy = {"epsilon": 1.0}
    adapt = recipes.load_recipe(minimal("adapt", training={"differential_privacy": privacy}))
    cohort = recipes.load_recipe(minimal("cohort"))
    classify = recipes.load_recipe(
        minimal(
            "classify", more_tasks=[{"name": "phenotypes"}], base={"path": "a", "trainable": True}
        )
    )
    embed = recipes.load_recipe(minimal("embed"))
    assert [len(recipe.adapters) for recipe in (adapt, cohort, classify, embed)] == [1, 0, 0, 0]
    assert [task.name for task in classify.tasks] == ["mortality", "phenotypes"]
    assert not any(recipe.tasks for recipe in (adapt, cohort, embed))
    assert cohort.base is None and all(recipe.base for recipe in (adapt, classify, embed))
    assert [r.trains_base for r in (adapt, cohort, classify, embed)] == [False, False, True, False]
    assert adapt.differential_privacy is not None
    assert adapt.differential_privacy.epsilon == privacy["epsilon"]
    assert not any(recipe.differential_privacy for recipe in (cohort, classify, embed))
    assert {
        recipe.kind: (recipe.trained_state, recipe.compared_unit)
        for recipe in (adapt, cohort, classify, embed)
    } == {
        "adapt": ("adapted", "tokens"),
        "cohort": ("", ""),
        "classify": ("model", "stays"),
        "embed": ("adapted", "pairs"),
    }
