"""The Python API: its names, its import, data in memory, and what a run answers."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import clinpeft
from clinpeft import api
from clinpeft.core.errors import RecipeError, UsageError
from clinpeft.core.offline import KERNEL_CACHE_VARIABLES, OFFLINE_VARIABLES, offline_mode
from tests.conftest import MakeFolder, write_toy_llama
from tests.test_classify import invented

NAMES = [
    "Metric",
    "Recipe",
    "RunResult",
    "__version__",
    "adapt",
    "classify",
    "compare",
    "embed",
    "encode",
    "evaluate",
    "list_runs",
    "load_recipe",
    "load_run",
    "predict",
]


def test_the_public_names_are_these() -> None:
    assert clinpeft.__all__ == NAMES == dir(clinpeft)
    assert all(getattr(clinpeft, name) is not None for name in NAMES)
    with pytest.raises(AttributeError):
        _ = clinpeft.no_such_name


def test_importing_loads_no_torch_takes_no_time_and_changes_no_variable() -> None:
    script = (
        "import os, sys, time; before = dict(os.environ); start = time.perf_counter(); "
        "import clinpeft; seconds = time.perf_counter() - start; "
        "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules; "
        "clinpeft.Recipe, clinpeft.classify, clinpeft.RunResult; "
        "assert 'torch' not in sys.modules; import clinpeft.models, clinpeft.cli; "
        "assert dict(os.environ) == before; print(seconds)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def test_offline_variables_last_as_long_as_a_block() -> None:
    environment = {"HF_HUB_OFFLINE": "0", "LRU_CACHE_CAPACITY": "7", "OTHER": "1"}
    before = dict(environment)
    with offline_mode(environment):
        assert OFFLINE_VARIABLES.items() <= environment.items()
        assert environment["LRU_CACHE_CAPACITY"] == "7"  # a value of the shell stays
        assert set(KERNEL_CACHE_VARIABLES) <= set(environment)
    assert environment == before


def test_the_examples_of_the_docstrings_run() -> None:
    results = doctest.testmod(api, extraglobs={"clinpeft": clinpeft})
    assert results.attempted and not results.failed


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    names = ("note_id", "subject_id", "category", "text")
    return [dict(zip(names, row, strict=True)) for row in invented(60)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "name": "<api>",
        "task": {"name": "note_category"},
        "split": {"train": 0.6, "tuning": 0.2, "held_out": 0.2},
        "base": {
            "path": str(write_toy_llama(tmp_path_factory.mktemp("base"))),
            "max_tokens": 24,
            "precision": "float32",
        },
        "head": {"pooling": "mean"},
        "training": {"epochs": 1, "micro_batch_tokens": 256, "learning_rate": 2e-2},
        "evaluation": {"resamples": 100, "subgroups": False, "baselines": False},
    }


@pytest.fixture(scope="module")
def run(recipe: dict[str, Any], rows: list[dict[str, Any]], home: Path) -> clinpeft.RunResult:
    before = dict(os.environ)
    result = clinpeft.classify(recipe, home, notes=rows, progress=False)
    assert dict(os.environ) == before
    return result


def test_notes_from_memory_train_a_run_with_metrics(run: clinpeft.RunResult, home: Path) -> None:
    assert (run.kind, run.name, run.folder.parent) == ("classify", "<api>", home.resolve())
    held_out = [metric for metric in run.metrics if metric.split == "held_out"]
    auroc = next(metric for metric in held_out if metric.name.startswith("auroc"))
    assert auroc.value is not None and 0 <= auroc.value <= 1 and auroc.definition
    assert auroc.task == "note_category"
    for path in (home / "cache").glob("memory-*.parquet"):
        assert path.stat().st_mode & 0o077 == 0


def test_the_same_notes_as_a_table_are_the_same_run(
    run: clinpeft.RunResult, recipe: dict[str, Any], rows: list[dict[str, Any]], home: Path
) -> None:
    again = clinpeft.classify(recipe, home, notes=pa.Table.from_pylist(rows), progress=False)
    assert again.id == run.id and again.run.record.finished == run.run.record.finished


def test_a_run_predicts_notes_from_memory(
    run: clinpeft.RunResult, rows: list[dict[str, Any]]
) -> None:
    table = run.predict([{"note_id": "a", "text": rows[0]["text"]}])
    assert table["note_id"].to_pylist() == ["a"] and "text" not in table.column_names
    assert sum(table["probabilities"][0].as_py()) == pytest.approx(1.0, abs=1e-5)
    assert run.predict(pa.Table.from_pylist(rows[:3])).num_rows == 3
    with pytest.raises(UsageError) as error:
        run.predict(rows[:1], task="mortality")
    assert error.value.location == "predict" and "note_category" in error.value.hint
    with pytest.raises(UsageError):
        run.encode(["a text"])


def test_a_notebook_shows_an_escaped_table(run: clinpeft.RunResult) -> None:
    shown = run._repr_html_()
    assert shown.startswith("<table>") and run.id in shown
    assert "&lt;api&gt;" in shown and "<api>" not in shown


def test_runs_are_listed_loaded_evaluated_and_compared(run: clinpeft.RunResult, home: Path) -> None:
    assert [each.id for each in clinpeft.list_runs(home)] == [run.id]
    assert clinpeft.load_run(home, run.id[:6]).metrics == run.metrics
    again = {metric.name for metric in clinpeft.evaluate(run, resamples=100)}
    assert again and again <= {metric.name for metric in run.metrics}
    differences = clinpeft.compare(run, run.folder)
    assert differences and all(
        metric.value is None or metric.value == pytest.approx(0.0) for metric in differences
    )


def test_a_wrong_recipe_or_table_is_refused_with_its_place(
    recipe: dict[str, Any], home: Path, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(UsageError) as error:
        clinpeft.classify(recipe, home, notes=3)
    assert error.value.location == "notes, labels or texts"
    with pytest.raises(UsageError) as error:
        clinpeft.adapt(recipe | {"kind": "classify"}, home, notes=rows)
    assert error.value.location == "kind" and "clinpeft.classify" in error.value.hint
    with pytest.raises(RecipeError):
        clinpeft.classify(recipe | {"no_such_key": 1}, home, notes=rows)


def test_an_encoder_encodes_texts_from_memory(toy_llama: MakeFolder, tmp_path: Path) -> None:
    run = clinpeft.embed(
        {
            "source": {"name": "handbook"},
            "pairs": {"kinds": ["heading-paragraph"]},
            "base": {"path": str(toy_llama()), "pooling": "mean", "max_tokens": 32},
            "adapters": [{"method": "lora", "rank": 2}],
            "training": {"max_steps": 1, "batch_pairs": 8},
            "evaluation": {"resamples": 100, "controls": False, "profile_texts": 0},
        },
        tmp_path,
        progress=False,
    )
    vectors = run.encode(["the patient is well", "no fever"])
    assert vectors.shape == (2, 32) and vectors.dtype == np.float32
    alone = clinpeft.encode(run.folder, [{"text": "no fever"}])
    assert np.allclose(alone[0], vectors[1], atol=1e-5)
