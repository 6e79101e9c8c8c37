"""The doctor: what it says of a machine that is well, and of every way in which it may not be."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from clinpeft import models, workflows
from clinpeft.cli.doctor import apply_tuned_threads
from clinpeft.core.errors import InputError
from clinpeft.recipe import AdaptRecipe
from clinpeft.runs import Run
from clinpeft.workflows import doctor

AROUND = workflows.RunContext(lambda: datetime.datetime.now(datetime.UTC))
LIBRARY = [
    ("2.13.0+cpu", "good", ""),
    ("2.9.1", "failure", "2.11"),
    (None, "failure", "pip install"),
    ("3.1", "warning", "below 3"),
]


@pytest.mark.parametrize(("version", "state", "said"), LIBRARY)
def test_a_library_is_held_against_the_versions_that_the_package_names(
    version: str | None, state: str, said: str
) -> None:
    found = doctor.check_library("torch>=2.11,<3", lambda _: version)
    assert (found.name, found.state) == ("torch", state) and said in found.message + found.hint


@pytest.mark.parametrize(
    ("takes", "ratio", "state"),
    [(True, 3.0, "good"), (True, 0.2, "warning"), (False, 0.2, "good"), (False, 2.0, "warning")],
)
def test_a_precision_that_is_chosen_and_slower_is_warned_of(
    takes: bool, ratio: float, state: str
) -> None:
    found = doctor.check_precision_choice("AMX", takes, ratio, 1e11)
    assert found.state == state and bool(found.hint) == (state == "warning")


def test_all_looks_but_the_run_are_quick_and_every_warning_says_what_to_do(tmp_path: Path) -> None:
    found = list(
        doctor.run_diagnostics(tmp_path / "home", models.OFFLINE_ENVIRONMENT, AROUND, None)
    )
    names = [finding.name for finding in found]
    assert {
        "Python",
        "processor",
        "threads",
        "memory",
        "GPU",
        "network",
        "home",
        "disk",
        "file locks",
    } <= set(names) and "self-test" not in names
    assert all(bool(finding.hint) == (finding.state != "good") for finding in found)
    assert json.loads(doctor.findings_to_json(found))["findings"][0]["name"] == "Python"


def test_a_home_that_others_may_read_and_a_full_disk_and_an_open_network_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    assert (
        doctor.check_home_permissions(tmp_path).state == "warning"
        and "chmod 700" in doctor.check_home_permissions(tmp_path).hint
    )
    tmp_path.chmod(0o700)
    assert doctor.check_home_permissions(tmp_path).state == "good"
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**20))
    assert doctor.check_free_disk(tmp_path).state == "failure"
    assert (
        doctor.check_offline_variables({}).state == "failure"
        and doctor.check_offline_variables(models.OFFLINE_ENVIRONMENT).state == "good"
    )


def test_a_home_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor.check_home_permissions(tmp_path / "file" / "home").state == "failure"


def test_locks_are_held_where_the_system_has_them(tmp_path: Path) -> None:
    assert doctor.check_file_locks(tmp_path).state == "good"


def test_little_memory_is_a_warning_and_a_system_that_does_not_tell_is_none(tmp_path: Path) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  8000000 kB\nMemAvailable:   1000000 kB\n")
    assert doctor.read_memory_bytes(told) == (1_024_000_000, 8_192_000_000)
    assert doctor.read_memory_bytes(tmp_path / "absent") == (None, None)


def test_the_self_test_trains_saves_reads_again_and_finds_everything_equal() -> None:
    found = doctor.run_self_test(AROUND, workflows.adapt_language_model)
    assert (found.state, found.hint) == ("good", ""), found.message


def test_the_self_test_sees_a_training_that_is_not_the_same_twice() -> None:
    runs = iter((1, 2))

    def other_each_time(recipe: AdaptRecipe, home: Path, context: workflows.RunContext) -> Run:
        return workflows.adapt_language_model(
            recipe.model_copy(update={"seed": next(runs)}), home, context
        )

    found = doctor.run_self_test(AROUND, other_each_time)
    assert found.state == "failure" and "two different adapters" in found.message


def test_what_breaks_a_run_breaks_the_self_test_and_not_the_doctor() -> None:
    def broken(recipe: AdaptRecipe, home: Path, context: workflows.RunContext) -> Run:
        raise InputError("no text", location="source", hint="give some")

    assert doctor.run_self_test(AROUND, broken).message == "no text (source)"


def test_what_was_tuned_is_kept_in_the_home_and_does_not_overrule_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doctor.tune_threads(tmp_path, {})
    assert (
        found["threads"] >= 1 and json.loads((tmp_path / doctor.MACHINE_FILE).read_text()) == found
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    apply_tuned_threads(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    apply_tuned_threads(tmp_path / "elsewhere")
    assert "OMP_NUM_THREADS" not in os.environ
    apply_tuned_threads(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == str(found["threads"])
    monkeypatch.delenv("OMP_NUM_THREADS")
