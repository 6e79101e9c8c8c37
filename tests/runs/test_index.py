"""Finding the run that is meant."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from clinpeft import runs
from clinpeft.core.errors import UsageError
from tests.runs.conftest import NOON, finished_run, make_recipe, opening


def test_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa", created=NOON + timedelta(hours=1))
    finished_run(tmp_path, "bbbbbbbbbbbb")
    assert [run.id for run in runs.find_all_runs(tmp_path).runs] == ["bbbbbbbbbbbb", "aaaaaaaaaaaa"]


def test_a_home_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert runs.find_all_runs(tmp_path / "nowhere") == runs.RunListing(())


def test_what_is_no_run_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert runs.find_all_runs(tmp_path) == runs.RunListing(())


def test_one_damaged_run_does_not_hide_the_others_and_is_not_silent(tmp_path: Path) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa")
    (finished_run(tmp_path, "bbbbbbbbbbbb").folder / "run.json").write_text("{")
    listing = runs.find_all_runs(tmp_path)
    assert [run.id for run in listing.runs] == ["aaaaaaaaaaaa"]
    assert ["bbbbbbbbbbbb" in error.location for error in listing.errors] == [True]
    assert runs.find_run(tmp_path, "aaa").id == "aaaaaaaaaaaa"


def test_a_run_is_found_by_id_by_the_beginning_of_it_and_by_name(tmp_path: Path) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa", name="first")
    finished_run(tmp_path, "abbbbbbbbbbb", name="second")
    assert [runs.find_run(tmp_path, text).id for text in ("aaaaaaaaaaaa", "aa", "first")] == [
        "aaaaaaaaaaaa"
    ] * 3
    assert runs.find_run(tmp_path, "second").id == "abbbbbbbbbbb"


def test_a_name_goes_before_the_beginning_of_an_id(tmp_path: Path) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa", name="first")
    finished_run(tmp_path, "bbbbbbbbbbbb", name="aaa")
    assert runs.find_run(tmp_path, "aaa").id == "bbbbbbbbbbbb"


@pytest.mark.parametrize("text", ["clinical-lora", "a"])
def test_a_text_that_means_several_runs_is_an_error_with_their_ids(
    tmp_path: Path, text: str
) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa")
    finished_run(tmp_path, "abbbbbbbbbbb")
    with pytest.raises(UsageError, match=r"^2 [\s\S]*aaaaaaaaaaaa \(finished\), abbbbbbbbbbb"):
        runs.find_run(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "nearest"), [("clinical_lora", "clinical-lora"), ("aaaaaaaaaaab", "aaaaaaaaaaaa")]
)
def test_an_unknown_run_is_an_error_with_the_nearest_known(
    tmp_path: Path, text: str, nearest: str
) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa")
    with pytest.raises(UsageError, match=f"did you mean '{nearest}'"):
        runs.find_run(tmp_path, text)


@pytest.mark.parametrize("text", ["", "..", "../elsewhere", "zzz"])
def test_what_resembles_nothing_is_an_error_that_names_the_list(tmp_path: Path, text: str) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa", name="")
    with pytest.raises(UsageError, match="clinpeft runs"):
        runs.find_run(tmp_path, text)


def test_an_empty_home_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--home"):
        runs.find_run(tmp_path, "clinical-lora")


def test_among_finished_runs_an_unfinished_one_of_the_same_name_is_not_meant(
    tmp_path: Path,
) -> None:
    finished_run(tmp_path, "aaaaaaaaaaaa")
    with runs.open_run_folder(tmp_path, make_recipe(), opening("bbbbbbbbbbbb")):
        pass
    assert runs.find_run(tmp_path, "clinical-lora", finished_only=True).id == "aaaaaaaaaaaa"
    with pytest.raises(UsageError, match="run bbbbbbbbbbbb is interrupted"):
        runs.find_run(tmp_path, "bbbbbbbbbbbb", finished_only=True)
