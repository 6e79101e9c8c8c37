"""Two runs side by side, and when their perplexities say nothing about each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clinpeft import runs
from clinpeft.recipe import Recipe
from clinpeft.runs import InputHashes, RunDifference
from tests.runs.conftest import finished_run, make_recipe, opening

FIRST, SECOND = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def compared(home: Path, recipe: Recipe | None = None, **facts: Any) -> runs.RunComparison:
    return runs.compare_runs(finished_run(home, FIRST), finished_run(home, SECOND, recipe, **facts))


def test_runs_of_the_same_question_differ_in_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path)
    assert (found.differences, found.incomparable_reason) == ((), "")


def test_what_was_asked_differently_is_named_as_set_names_it(tmp_path: Path) -> None:
    found = compared(
        tmp_path, make_recipe(seed=1, adapters=[{"method": "prefix", "tokens": 5}], name="other")
    )
    assert RunDifference("seed", 1234, 1) in found.differences
    assert RunDifference("adapters.0.method", "lora", "prefix") in found.differences
    assert RunDifference("adapters.0.rank", 16, None) in found.differences
    assert RunDifference("adapters.0.tokens", None, 5) in found.differences
    assert {d.key for d in found.differences} >= {"adapters.0.alpha"}
    assert not {d.key for d in found.differences} & {"name", "source.path", "base.path"}


def test_machine_and_versions_are_named_too(tmp_path: Path) -> None:
    found = compared(
        tmp_path, versions={"clinpeft": "0.2.0"}, hardware=runs.Hardware(device="NVIDIA H200")
    )
    assert RunDifference("versions.clinpeft", "0.1.0", "0.2.0") in found.differences
    assert RunDifference("hardware.device", None, "NVIDIA H200") in found.differences
    assert found.incomparable_reason == ""


@pytest.mark.parametrize(
    ("hashes", "reason"),
    [
        (
            InputHashes(source="s1", base="b2", tokenizer="t2", corpus_policy="1"),
            "tokenizers differ",
        ),
        (InputHashes(source="s1", base="b2", corpus_policy="1"), "tokenizers differ"),
        (InputHashes(source="s1", corpus_policy="1"), "do not say which tokenizer"),
        (
            InputHashes(source="s1", base="b1", tokenizer="t1", corpus_policy="2"),
            "cleaned differently",
        ),
        (InputHashes(source="s1", base="b2", tokenizer="t1", corpus_policy="1"), ""),
        (InputHashes(source="s1", base="b1", corpus_policy="1"), ""),
    ],
)
def test_perplexities_over_other_tokens_are_not_comparable_and_the_reason_is_said(
    tmp_path: Path, hashes: InputHashes, reason: str
) -> None:
    found = compared(tmp_path, hashes=hashes).incomparable_reason
    assert reason in found
    assert bool(reason) == bool(found)


def test_another_treatment_of_deidentification_marks_is_another_text(tmp_path: Path) -> None:
    assert (
        "cleaned differently"
        in compared(tmp_path, make_recipe(corpus={"deidentification": "keep"})).incomparable_reason
    )


def test_an_unfinished_run_is_not_comparable(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening(SECOND)):
        pass
    found = runs.compare_runs(finished_run(tmp_path, FIRST), runs.find_run(tmp_path, SECOND))
    assert found.incomparable_reason == f"run {SECOND} is interrupted"
