"""The cohort commands on a synthetic hospital, from its files to a folder of results."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clinpeft import cli
from clinpeft.core import schemas
from clinpeft.data import synthetic

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
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return (
            captured.out
            if not exit_info.value.code
            else f"exit {exit_info.value.code}\n{captured.err}"
        )

    return run


def recipe(folder: Path, shape: str, task: str) -> Path:
    (folder / "cohort.toml").write_text(RECIPE.format(shape=shape, task=task), encoding="utf-8")
    return folder / "cohort.toml"


@pytest.mark.parametrize("shape", ["mimic-iii", "mimic-iv"])
def test_a_cohort_is_built_and_shown_and_every_stay_that_left_has_a_reason(
    command: Command, tmp_path: Path, shape: str
) -> None:
    output = command(
        "cohort", "build", recipe(tmp_path, shape, "mortality"), "--home", tmp_path / "runs"
    )
    folder = tmp_path / "runs" / "cohorts" / "invented"
    assert str(folder) in output, output
    cohort = pq.read_table(folder / "cohort.parquet")
    assert cohort.schema.equals(schemas.COHORT_SCHEMA) and set(cohort["label"].to_pylist()) == {
        0,
        1,
    }
    steps = json.loads((folder / "attrition.json").read_text(encoding="utf-8"))
    assert all(step["entered"] == step["kept"] + sum(step["dropped"].values()) for step in steps)
    assert steps[-1]["kept"] == len(cohort)
    assert (folder / "leakage.json").exists() and (
        folder / "meds" / "metadata" / "subject_splits.parquet"
    ).exists()
    assert not (folder / "working").exists()
    assert re.sub(r"\\s+", " ", command("cohort", "show", folder)) in re.sub(r"\\s+", " ", output)


def test_published_and_corrected_stand_beside_each_other(command: Command, tmp_path: Path) -> None:
    output = command(
        "cohort", "verify", recipe(tmp_path, "mimic-iii", "procedures"), "--home", tmp_path / "runs"
    )
    assert not output.startswith("exit") and "30,030" in output.replace("30030", "30,030")


def test_a_folder_without_a_cohort_says_how_to_build_one(command: Command, tmp_path: Path) -> None:
    output = command("cohort", "show", tmp_path)
    assert output.startswith("exit 3") and "clinpeft cohort build" in output


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital") / "mimic-iii"
    synthetic.write_synthetic_hospital(folder, 250, 7, "mimic-iii")
    return folder


@pytest.mark.parametrize("task", ["mortality", "length_of_stay", "ventilation", "readmission_30d"])
def test_the_answers_of_a_cohort_are_what_truly_happened(
    command: Command, tmp_path: Path, hospital: Path, task: str
) -> None:
    changes = {"source.name": "mimic-iii", "source.path": hospital, "task.name": task}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    output = command(
        "cohort", "build", recipe(tmp_path, "mimic-iii", task), "--home", tmp_path / "runs", *words
    )
    assert not output.startswith("exit"), output
    with (hospital / "truth.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == task]
    truth = dict.fromkeys((int(row["stay_id"]) for row in rows), 0) | {
        int(row["stay_id"]): int(row["class"]) for row in rows if row["label"] == "1"
    }
    cohort = pq.read_table(
        tmp_path / "runs" / "cohorts" / "invented" / "cohort.parquet", columns=["stay_id", "label"]
    )
    answers = dict(zip(cohort["stay_id"].to_pylist(), cohort["label"].to_pylist(), strict=True))
    # The truth omits stays whose note mentions a death, which only some tasks exclude.
    common = answers.keys() & truth.keys()
    assert len(common) > 40 and len(answers) - len(common) <= 0.02 * len(answers)
    assert {stay: answers[stay] for stay in common} == {stay: truth[stay] for stay in common}
