"""The cohort verbs on an invented hospital, from its files to a folder that a clinician can check."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clinpeft import cli, tables

RECIPE = """
kind = "cohort"
name = "invented"
[source]
name = "synthetic"
subjects = 150
shape = "{shape}"
[task]
name = "{task}"
"""

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["clinpeft", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr()
        return told.out if not left.value.code else f"exit {left.value.code}\n{told.err}"

    return run


def recipe(folder: Path, shape: str, task: str) -> Path:
    (folder / "cohort.toml").write_text(RECIPE.format(shape=shape, task=task), encoding="utf-8")
    return folder / "cohort.toml"


@pytest.mark.parametrize("shape", ["mimic-iii", "mimic-iv"])
def test_a_cohort_is_built_and_shown_and_every_stay_that_left_has_a_reason(command: Command, tmp_path: Path, shape: str) -> None:
    said = command("cohort", "build", recipe(tmp_path, shape, "mortality"), "--home", tmp_path / "runs")
    folder = tmp_path / "runs" / "cohorts" / "invented"
    assert str(folder) in said, said
    cohort = pq.read_table(folder / "cohort.parquet")
    assert cohort.schema.equals(tables.COHORT) and set(cohort["label"].to_pylist()) == {0, 1}
    steps = json.loads((folder / "attrition.json").read_text(encoding="utf-8"))
    assert all(step["entered"] == step["kept"] + sum(step["dropped"].values()) for step in steps)
    assert steps[-1]["kept"] == len(cohort)
    assert (folder / "leakage.json").exists() and (folder / "meds" / "metadata" / "subject_splits.parquet").exists()
    assert not (folder / "working").exists()
    assert re.sub(r"\\s+", " ", command("cohort", "show", folder)) in re.sub(r"\\s+", " ", said)


def test_published_and_corrected_stand_beside_each_other(command: Command, tmp_path: Path) -> None:
    said = command("cohort", "verify", recipe(tmp_path, "mimic-iii", "procedures"), "--home", tmp_path / "runs")
    assert not said.startswith("exit") and "30,030" in said.replace("30030", "30,030")


def test_a_folder_without_a_cohort_says_how_to_build_one(command: Command, tmp_path: Path) -> None:
    said = command("cohort", "show", tmp_path)
    assert said.startswith("exit 3") and "clinpeft cohort build" in said
