from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft.core import schemas
from clinpeft.core.errors import InputError, RefusedError
from clinpeft.data.notes.split import (
    NOTE_SPLIT_UNITS,
    check_note_split_counts,
    check_corpus_subjects,
    assign_note_splits,
)
from clinpeft.recipe import SplitSpec


def drawn(
    subjects: list[int], spec: SplitSpec, seed: int = 1234, notes: list[str] | None = None
) -> list[str]:
    names: list[str] = assign_note_splits(
        pa.array(subjects, pa.int64()),
        pa.array(notes or [str(at) for at in range(len(subjects))]),
        spec,
        seed,
    ).to_pylist()
    return names


def test_the_fractions_are_those_asked_for() -> None:
    many = 20_000
    names = drawn(
        list(range(10_000_000, 10_000_000 + many)), SplitSpec(train=0.7, tuning=0.1, held_out=0.2)
    )
    for name, fraction in (("train", 0.7), ("tuning", 0.1), ("held_out", 0.2)):
        assert names.count(name) / many == pytest.approx(
            fraction, abs=4 * np.sqrt(fraction * (1 - fraction) / many)
        )


def test_all_notes_of_a_subject_fall_into_one_split() -> None:
    subjects = [at % 50 for at in range(1000)]
    names = drawn(subjects, SplitSpec())
    assert len({*zip(subjects, names, strict=True)}) == 50


def test_a_subject_falls_where_it_falls_whoever_else_is_there_and_in_any_order() -> None:
    everybody = list(range(-50, 200))
    together = dict(zip(everybody, drawn(everybody, SplitSpec()), strict=True))
    assert drawn(everybody[::-1], SplitSpec()) == [together[subject] for subject in everybody[::-1]]
    assert [drawn([subject], SplitSpec())[0] for subject in everybody[:20]] == [
        together[subject] for subject in everybody[:20]
    ]


def test_the_draw_never_changes_between_versions() -> None:
    assert (
        drawn([1, 2, 3, 4, 5, 6, 7, 8, -1, 2**62], SplitSpec(train=0.5, tuning=0.25, held_out=0.25))
        == "train train train train tuning tuning train train train train".split()
    )
    notes = [f"note-{at}" for at in range(8)]
    assert (
        drawn([1] * 8, SplitSpec(by="note", train=0.5, tuning=0.25, held_out=0.25), notes=notes)
        == "train train held_out held_out train held_out train train".split()
    )


@pytest.mark.parametrize("seed", [0, -1, 2**70])
def test_another_seed_is_another_draw(seed: int) -> None:
    subjects = list(range(200))
    same = np.mean(
        np.array(drawn(subjects, SplitSpec(), seed)) == np.array(drawn(subjects, SplitSpec()))
    )
    assert same == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.15)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (SplitSpec(train=0.9, tuning=0.0, held_out=0.1), {"train", "held_out"}),
        (SplitSpec(train=0.9, tuning=0.1, held_out=0.0), {"train", "tuning"}),
        (SplitSpec(train=0.0, tuning=0.5, held_out=0.5), {"tuning", "held_out"}),
        (SplitSpec(train=1.0, tuning=0.0, held_out=0.0), {"train"}),
        (SplitSpec(train=0.5, tuning=0.5 - 9e-10, held_out=0.0), {"train", "tuning"}),
    ],
)
def test_a_split_of_fraction_zero_gets_nobody(spec: SplitSpec, names: set[str]) -> None:
    assert set(drawn(list(range(5000)), spec)) == names


def test_by_note_the_notes_of_a_subject_straddle() -> None:
    assert set(drawn([7] * 300, SplitSpec(by="note"))) == set(schemas.SPLIT_NAMES)


def test_no_notes_fall_nowhere() -> None:
    assert drawn([], SplitSpec(), notes=[]) == []


def corpus(folder: Path, subjects: list[int], splits: list[str]) -> Path:
    rows = {
        "note_id": [str(at) for at in range(len(subjects))],
        "subject_id": subjects,
        "split": splits,
        "text": ["word"] * len(subjects),
    }
    pq.write_table(
        schemas.build_arrow_table(schemas.CORPUS_SCHEMA, rows), folder / "corpus.parquet"
    )
    return folder / "corpus.parquet"


def test_a_subject_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = corpus(tmp_path, [1, 2, 1, 3], ["train", "tuning", "held_out", "train"])
    with (
        duckdb.connect() as connection,
        pytest.raises(RefusedError, match="subject 1 is in two splits, held_out and train"),
    ):
        check_corpus_subjects(path, connection)
    with duckdb.connect() as connection:
        NOTE_SPLIT_UNITS["note"].check_corpus(path, connection)


def test_subjects_in_one_split_each_pass(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        check_corpus_subjects(
            corpus(tmp_path, [1, 2, 1, 3], ["train", "tuning", "train", "train"]), connection
        )


def test_a_split_that_is_asked_for_and_empty_is_named() -> None:
    with pytest.raises(InputError, match=r"split\.tuning = 0\.1 got none of the 12 notes") as told:
        check_note_split_counts({"train": 9, "held_out": 3}, SplitSpec())
    assert told.value.location == "split.tuning"
    assert "set split.tuning = 0" in told.value.hint
    check_note_split_counts(
        {"train": 9, "held_out": 3}, SplitSpec(train=0.8, tuning=0.0, held_out=0.2)
    )
