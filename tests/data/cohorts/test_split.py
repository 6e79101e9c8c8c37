"""Whole subjects: by hash, by group of stays, or as listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.data.cohorts import split
from clinpeft.data.notes.split import assign_note_splits
from clinpeft.recipe import CohortSplitSpec, SplitSpec

SHARES = (0.7, 0.1, 0.2)


def test_the_draw_is_that_of_the_corpora_so_that_nobody_held_out_was_read_before() -> None:
    subjects = np.arange(10_000_000, 10_002_000)
    corpus = assign_note_splits(
        pa.array(subjects), pa.array([str(s) for s in subjects]), SplitSpec(), seed=1234
    )
    assert split.split_subjects_by_hash(subjects, SHARES, 1234).tolist() == corpus.to_pylist()


def test_the_shares_are_met_and_neither_order_nor_company_plays_a_part() -> None:
    subjects = np.arange(20_000)
    splits = split.split_subjects_by_hash(subjects, SHARES, 7)
    assert [
        float(np.mean(splits == name)) for name in ("train", "tuning", "held_out")
    ] == pytest.approx(SHARES, abs=0.01)  # 3 standard errors
    assert split.split_subjects_by_hash(subjects[::-1], SHARES, 7)[::-1].tolist() == splits.tolist()
    assert (
        split.split_subjects_by_hash(subjects[40:50], SHARES, 7).tolist() == splits[40:50].tolist()
    )
    assert split.split_subjects_by_hash(subjects, SHARES, 8).tolist() != splits.tolist()


def test_the_latest_years_are_held_out_and_a_person_is_asked_in_the_latest_split_only() -> None:
    subjects = np.array([1, 1, 2, 3, 4])
    groups = ["carevue", "metavision", "carevue", "metavision", None]
    spec = CohortSplitSpec(by="year_group", train=0.8, tuning=0.0, held_out=0.2)
    names, reasons = split.split_stays_by_group(subjects, groups, spec, seed=1)
    assert names.tolist() == ["", "held_out", "train", "held_out", ""]
    assert reasons == ["subject is asked in a later split", "", "", "", "year_group unknown"]
    split.check_subjects_in_one_split(subjects, names)


def test_sites_are_held_out_by_name() -> None:
    spec = CohortSplitSpec(by="site", tuning_groups=("north",), held_out_groups=("east",))
    names, _ = split.split_stays_by_group(
        np.array([1, 2, 3]), ["east", "north", "west"], spec, seed=1
    )
    assert names.tolist() == ["held_out", "tuning", "train"]
    with pytest.raises(InputError, match="site 'east'"):
        split.split_stays_by_group(np.array([1, 2]), ["north", "west"], spec, seed=1)


def test_lists_are_read_under_either_set_of_names(tmp_path: Path) -> None:
    (tmp_path / "mimic_train.csv").write_text("HADM_ID,SUBJECT_ID\n900,1\n901,1\n")
    (tmp_path / "mimic_val.csv").write_text("2\n")
    (tmp_path / "mimic_test.csv").write_text("subject_id\n3\n")
    assert split.split_subjects_by_lists(np.array([1, 2, 3, 4]), tmp_path).tolist() == [
        "train",
        "tuning",
        "held_out",
        "",
    ]


def test_a_subject_on_two_lists_is_refused(tmp_path: Path) -> None:
    for name in ("train", "tuning", "held_out"):
        (tmp_path / f"{name}.txt").write_text("5\n" if name != "tuning" else "6\n")
    with pytest.raises(RefusedError, match=r"5 .* train and held_out") as error:
        split.split_subjects_by_lists(np.array([5]), tmp_path)
    assert error.value.location == str(tmp_path)


def test_a_missing_list_and_a_line_that_is_no_subject_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 lists for train"):
        split.split_subjects_by_lists(np.array([5]), tmp_path)
    (tmp_path / "train.txt").write_text("5\nsix\n")
    with pytest.raises(InputError, match="subject id") as error:
        split.split_subjects_by_lists(np.array([5]), tmp_path)
    assert error.value.location == "train.txt: line 2"


def test_a_subject_in_two_splits_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"9 .* train and held_out"):
        split.check_subjects_in_one_split(
            np.array([8, 9, 9]), np.array(["train", "train", "held_out"])
        )
