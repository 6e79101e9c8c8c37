"""Cohorts of notes without stays, on a dozen notes that can be counted by hand, and on
MTSamples."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft.core import schemas
from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import COHORT_SCHEMA, NOTE_SCHEMA, Attrition
from clinpeft.data import cohorts, sources
from clinpeft.data.cohorts import note_categories
from clinpeft.data.cohorts.split import split_subjects_by_hash
from clinpeft.recipe import CohortRecipe, SourceSpec

SECRET = "a sentence of a note"
NOON = datetime.datetime(2100, 1, 1, 12)
EPOCH = datetime.datetime(1970, 1, 1)

# (subject, category, time, text). Distinct texts under Surgery: 3 (a, b, d); Urology: 2 (a, c);
# Cardiology: 2 (b, c); Letters: 1 (e).
FILED = [
    (1, "Surgery", None, "a stone was removed"),
    (1, "Urology", NOON, "A stone  was\nremoved"),  # the same text: white space and case aside
    (2, "Surgery", None, "a valve was replaced"),
    (2, " Cardiology", None, "a valve was replaced"),
    (3, "Urology", None, "both were seen"),
    (9, "Cardiology", None, "both were seen"),  # as read first: of subject 3
    (4, "Surgery", None, "a knee was opened"),
    (4, "Letters", None, "dear colleague"),
    (5, "Surgery", None, " \n "),
    (6, None, None, SECRET),
    (6, "", None, SECRET),
]


def notes(
    rows: Sequence[tuple[int, str | None, datetime.datetime | None, str]] = FILED,
) -> pa.RecordBatchReader:
    columns = {
        "note_id": [str(at) for at in range(len(rows))],
        "subject_id": [row[0] for row in rows],
        "category": [row[1] for row in rows],
    }
    columns |= {"available_at": [row[2] for row in rows], "text": [row[3] for row in rows]}
    table = schemas.build_arrow_table(NOTE_SCHEMA, columns)
    return pa.RecordBatchReader.from_batches(NOTE_SCHEMA, table.to_batches(max_chunksize=3))


def recipe(task: str, split: dict[str, Any] | None = None, **keys: object) -> CohortRecipe:
    everyone = {"train": 1.0, "tuning": 0.0, "held_out": 0.0}
    document = {
        "kind": "cohort",
        "source": {"name": "files"},
        "task": {"name": task, **keys},
        "split": split or everyone,
    }
    return CohortRecipe.model_validate(document)


def built(
    folder: Path, task: str, **keys: Any
) -> tuple[cohorts.Cohort, dict[str, object], dict[str, int]]:
    """The cohort, the answer of each text, and what left by reason."""
    cohort = note_categories.write_note_cohort(
        recipe(task, **keys), notes(), Attrition("read"), folder
    )
    rows = pq.read_table(cohort.path).to_pylist()
    answers = {
        row["text"]: cohort.classes[row["label"]]
        if row["label"] is not None
        else [cohort.classes[at] for at in row["labels"]]
        for row in rows
    }
    steps = cohort.attrition[1:]
    assert all(
        before.kept_rows == after.entered_rows for before, after in itertools.pairwise(steps)
    ) and steps[-1].kept_rows == len(rows)
    assert [step.as_json() for step in cohort.attrition] == json.loads(
        (folder / "attrition.json").read_text()
    )
    return (
        cohort,
        answers,
        {reason: dropped for step in steps for reason, dropped in step.dropped_rows.items()},
    )


BEFORE = {
    note_categories.REPEATED_TEXT_REASON: 3,
    note_categories.MISSING_TEXT_REASON: 1,
    note_categories.MISSING_CATEGORY_REASON: 2,
}


def test_a_text_is_asked_once_and_its_rarest_category_is_the_answer(tmp_path: Path) -> None:
    cohort, answers, dropped = built(tmp_path, "note_category")
    assert answers == {
        "a stone was removed": "Urology",
        "a valve was replaced": "Cardiology",
        "both were seen": "Cardiology",  # as rare as Urology, and before it in the alphabet
        "a knee was opened": "Surgery",
        "dear colleague": "Letters",
    }
    assert dropped == BEFORE
    assert cohort.classes == ("Cardiology", "Letters", "Surgery", "Urology")


def test_a_text_filed_under_several_categories_can_be_left_out(tmp_path: Path) -> None:
    _, answers, dropped = built(tmp_path, "note_category", several="drop")
    assert answers == {"a knee was opened": "Surgery", "dear colleague": "Letters"}
    assert dropped == BEFORE | {note_categories.SEVERAL_CATEGORIES_REASON: 3}


def test_all_categories_of_a_text_are_the_answer_where_all_are_asked(tmp_path: Path) -> None:
    _, answers, dropped = built(tmp_path, "note_categories")
    assert answers == {
        "a stone was removed": ["Surgery", "Urology"],
        "a valve was replaced": ["Cardiology", "Surgery"],
        "both were seen": ["Cardiology", "Urology"],
        "a knee was opened": ["Surgery"],
        "dear colleague": ["Letters"],
    }
    assert dropped == BEFORE


def test_rare_categories_leave_and_their_texts_are_counted(tmp_path: Path) -> None:
    cohort, answers, dropped = built(tmp_path, "note_category", min_label_count=2)
    assert answers == {"a valve was replaced": "Cardiology", "both were seen": "Cardiology"}
    assert dropped == BEFORE | {"category with fewer than 2 training notes": 3}
    assert json.loads((cohort.folder / "labels.json").read_text())["left_out"] == [
        {"name": "Letters", "train_stays": 1},
        {"name": "Surgery", "train_stays": 1},
        {"name": "Urology", "train_stays": 1},
    ]
    cohort, answers, dropped = built(tmp_path, "note_categories", min_label_count=2)
    assert (
        cohort.classes == ("Cardiology", "Surgery", "Urology") and "dear colleague" not in answers
    )
    assert dropped == BEFORE | {"no category with 2 training notes or more": 1}
    assert cohorts.read_label_space(tmp_path).train_counts == (2, 3, 2)


def test_a_row_has_the_subject_and_time_of_its_first_note_and_null_where_only_stays_know(
    tmp_path: Path,
) -> None:
    cohort, _, _ = built(tmp_path, "note_categories")
    table = pq.read_table(cohort.path)
    assert table.schema.equals(COHORT_SCHEMA)
    rows = {row["text"]: row for row in table.to_pylist()}
    assert {text: row["subject_id"] for text, row in rows.items()}["both were seen"] == 3
    assert (
        rows["a stone was removed"]["prediction_time"] == NOON
        and rows["a valve was replaced"]["prediction_time"] == EPOCH
    )
    of_four = sorted(row["prediction_time"] for row in rows.values() if row["subject_id"] == 4)
    assert of_four == [
        EPOCH,
        EPOCH + datetime.timedelta(microseconds=1),
    ]  # a person and a time name one answer
    assert all(row["age_years"] is None and row["sex"] is None for row in rows.values())
    assert table["subject_id"].to_pylist() == sorted(table["subject_id"].to_pylist())


def test_the_number_of_a_text_does_not_depend_on_its_company(tmp_path: Path) -> None:
    whole, _, _ = built(tmp_path / "whole", "note_categories")
    alone = note_categories.write_note_cohort(
        recipe("note_categories"),
        notes([(7, "Surgery", None, "A KNEE\nwas opened")]),
        Attrition("read"),
        tmp_path / "alone",
    )
    number = pq.read_table(alone.path)["stay_id"].to_pylist()[0]
    stay_ids = dict(
        zip(
            *(pq.read_table(whole.path)[name].to_pylist() for name in ("text", "stay_id")),
            strict=True,
        )
    )
    assert stay_ids["a knee was opened"] == number and 0 <= number < 2**63


def test_the_split_has_a_seed_of_its_own(tmp_path: Path) -> None:
    many = [(subject, f"kind {subject % 2}", None, f"note {subject}") for subject in range(200)]

    def drawn(seed: int, split_seed: int) -> list[str]:
        cohort_recipe = recipe("note_category", {"seed": split_seed}).model_copy(
            update={"seed": seed}
        )
        names: list[str] = pq.read_table(
            note_categories.write_note_cohort(
                cohort_recipe, notes(many), Attrition("read"), tmp_path
            ).path
        )["split"].to_pylist()
        return names

    first = drawn(1, 1234)
    assert first == drawn(2, 1234) != drawn(1, 1235)
    assert (
        first
        == split_subjects_by_hash(pa.array(range(200)).to_numpy(), (0.7, 0.1, 0.2), 1234).tolist()
    )


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="note_category, note_categories") as error:
        note_categories.write_note_cohort(recipe("mortality"), notes(), Attrition("read"), tmp_path)
    assert error.value.location == "task.name"
    with pytest.raises(RecipeError) as error:
        note_categories.write_note_cohort(
            recipe("note_category", {"by": "site"}), notes(), Attrition("read"), tmp_path
        )
    assert error.value.location == "split.by = 'site'"
    with pytest.raises(SourceError, match="0 notes"):
        note_categories.write_note_cohort(
            recipe("note_category"), notes([]), Attrition("read"), tmp_path
        )
    with pytest.raises(SourceError, match="2 × no category") as source_error:
        note_categories.write_note_cohort(
            recipe("note_category"), notes(FILED[-2:]), Attrition("read"), tmp_path
        )
    assert SECRET not in str(source_error.value)
    with pytest.raises(SourceError, match="fewer than 9"):
        note_categories.write_note_cohort(
            recipe("note_category", min_label_count=9), notes(), Attrition("read"), tmp_path
        )
    assert not (tmp_path / "cohort.partial").exists()


def test_mtsamples_has_2376_texts_in_40_categories_and_is_audited_and_written_as_meds(
    shared_data: Path, tmp_path: Path
) -> None:
    columns = {"text": "transcription", "category": "medical_specialty"}
    source = SourceSpec(
        name="files", path=shared_data / "mtsamples" / "mtsamples.csv.gz", columns=columns
    )
    cohort_recipe = recipe("note_category", {"train": 0.7}).model_copy(update={"source": source})
    attrition = Attrition("read")
    cohort = cohorts.build_note_cohort(
        cohort_recipe,
        sources.read_notes(cohort_recipe.source, attrition, tmp_path / "cache"),
        attrition,
        tmp_path / "cohort",
    )
    assert [(step.entered_rows, step.kept_rows) for step in cohort.attrition[:2]] == [
        (4999, 4999),
        (4999, 2376),
    ]
    assert (
        len(cohort.classes) == 40
        and sum(cohorts.read_label_space(cohort.folder).train_counts) == 1652
    )
    assert (cohort.folder / "leakage.json").is_file() and (
        cohort.folder / "meds" / "labels" / "note_category.parquet"
    ).is_file()
