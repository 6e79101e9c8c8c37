"""The layouts of MIMIC-III and MIMIC-IV-Note, with the quirks that real files have."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import NOTE_SCHEMA, Attrition
from clinpeft.data import sources
from clinpeft.recipe import SourceSpec

III = (
    "ROW_ID",
    "SUBJECT_ID",
    "HADM_ID",
    "CHARTDATE",
    "CHARTTIME",
    "STORETIME",
    "CATEGORY",
    "DESCRIPTION",
    "CGID",
    "ISERROR",
    "TEXT",
)
IV = ("note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text")
NIGHT = "2151-07-16 00:00:00"

NOTEEVENTS = [
    (
        1,
        11,
        101,
        "2151-07-16",
        "",
        "",
        "Discharge summary",
        "Report",
        "",
        "",
        "Admission Date:  [**2151-7-16**]\n\nService: MEDICINE",
    ),
    (
        2,
        11,
        101,
        "2151-07-16",
        "2151-07-16 08:00:00",
        "2151-07-16 08:31:00",
        "Nursing/other",
        "Report",
        14010,
        "",
        'Pt c/o "burning", NAD',
    ),
    (
        3,
        11,
        101,
        "2151-07-16",
        "2151-07-16 08:00:00",
        "2151-07-16 08:30:00",
        "Nursing/other",
        "Report",
        14010,
        "1",
        "written in error",
    ),
    (
        4,
        12,
        "",
        "2151-07-16",
        "2151-07-16 09:05:00",
        "",
        "Radiology",
        "CHEST (PA & LAT)",
        "",
        "",
        "FINAL REPORT",
    ),
    (
        5,
        12,
        102,
        "2151-07-17",
        "2151-07-17 10:00:00",
        "2151-07-17 09:00:00",
        "Physician ",
        "Physician Resident Progress Note",
        15000,
        "",
        "24 Hour Events:",
    ),
]
DISCHARGE = [
    (
        "11-DS-1",
        11,
        101,
        "DS",
        1,
        NIGHT,
        "2151-07-17 09:00:00",
        ' \nName:  ___\n \n"Chest pain", SOB',
    ),
    ("11-DS-2", 11, 101, "DS", 2, NIGHT, "2151-07-15 09:00:00", "stored before it was charted"),
    ("11-AD-1", 11, 101, "AD", 1, NIGHT, "", "ADDENDUM:"),
]
RADIOLOGY = [
    (
        "11-RR-1",
        11,
        101,
        "RR",
        1,
        "2151-07-16 08:00:00",
        "2151-07-16 09:30:00",
        "EXAMINATION:  CHEST",
    ),
    ("12-AR-1", 12, "", "AR", 1, "2151-07-16 08:00:00", "2151-07-16 07:30:00", "ADDENDUM"),
]


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(name: str, path: Path, **changes: Any) -> tuple[list[dict[str, Any]], Attrition]:
    attrition = Attrition("sources")
    found = sources.read_notes(
        SourceSpec(name=name, path=path, **changes), attrition, path
    ).read_all()
    assert found.schema == NOTE_SCHEMA
    assert attrition.kept_rows == found.num_rows
    return found.to_pylist(), attrition


@pytest.fixture
def iv(tmp_path: Path) -> Path:
    write(tmp_path / "note" / "discharge.csv.gz", IV, DISCHARGE)
    write(tmp_path / "note" / "radiology.csv.gz", IV, RADIOLOGY)
    return tmp_path


@pytest.fixture
def iii(tmp_path: Path) -> Path:
    return write(tmp_path / "NOTEEVENTS.csv.gz", III, NOTEEVENTS)


def test_mimic_iii_is_read_from_its_folder_and_from_its_file(iii: Path) -> None:
    notes, _ = read("mimic-iii", iii.parent)
    assert read("mimic-iii", iii)[0] == notes
    assert [note["note_id"] for note in notes] == ["1", "2", "4", "5"]
    assert [note["text"] for note in notes[:2]] == [NOTEEVENTS[0][-1], NOTEEVENTS[1][-1]]


def test_a_row_marked_as_an_error_is_dropped_and_counted(iii: Path) -> None:
    _, attrition = read("mimic-iii", iii)
    assert attrition.as_json() == {
        "step": "sources",
        "entered": 5,
        "dropped": {"marked as an error (ISERROR = 1)": 1},
        "kept": 4,
    }


def test_a_note_without_a_stay_is_kept_and_the_space_after_a_category_is_not(iii: Path) -> None:
    notes, _ = read("mimic-iii", iii)
    assert [note["stay_id"] for note in notes] == [101, 101, None, 102]
    assert [note["category"] for note in notes] == [
        "Discharge summary",
        "Nursing/other",
        "Radiology",
        "Physician",
    ]


def test_a_mimic_iii_note_is_available_when_stored_and_never_earlier_than_charted(
    iii: Path,
) -> None:
    notes, _ = read("mimic-iii", iii)
    assert [note["available_at"] for note in notes] == [
        datetime(2151, 7, 16, 23, 59, 59),  # only the day is known
        datetime(2151, 7, 16, 8, 31),  # stored
        datetime(2151, 7, 16, 9, 5),  # charted; not stored
        datetime(2151, 7, 17, 10, 0),  # stored before it was charted
    ]


def test_categories_of_mimic_iii_can_be_asked_for(iii: Path) -> None:
    notes, attrition = read("mimic-iii", iii, parts=("Physician", "Radiology"))
    assert [note["note_id"] for note in notes] == ["4", "5"]
    assert attrition.dropped_rows == {
        "category not asked for": 2,
        "marked as an error (ISERROR = 1)": 1,
    }
    with pytest.raises(RecipeError) as recipe_error:
        read("mimic-iii", iii, parts=("Radiologie",))
    assert "did you mean 'Radiology'?" in recipe_error.value.hint


def test_the_lower_case_header_of_the_demo_is_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "NOTEEVENTS.csv", [name.lower() for name in III], NOTEEVENTS)
    assert len(read("mimic-iii", path)[0]) == 4


def test_the_demo_of_mimic_iii_says_that_it_has_no_notes(shared_data: Path) -> None:
    with pytest.raises(SourceError) as error:
        read("mimic-iii", shared_data / "mimic3_demo_1.4")
    assert "0 rows" in error.value.message


def test_mimic_iv_is_read_from_above_inside_and_by_file(iv: Path) -> None:
    notes, attrition = read("mimic-iv", iv)
    assert [note["note_id"] for note in notes] == [
        "11-DS-1",
        "11-DS-2",
        "11-AD-1",
        "11-RR-1",
        "12-AR-1",
    ]
    assert attrition.entered_rows == 5
    assert read("mimic-iv", iv / "note")[0] == notes
    assert read("mimic-iv", iv / "note" / "radiology.csv.gz")[0] == notes[3:]
    assert read("mimic-iv", iv, parts=("discharge",))[0] == notes[:3]


def test_the_columns_of_mimic_iv_become_those_of_a_note(iv: Path) -> None:
    notes, _ = read("mimic-iv", iv)
    assert [note["category"] for note in notes] == [
        "Discharge summary",
        "Discharge summary",
        "Discharge addendum",
        "Radiology report",
        "Radiology addendum",
    ]
    assert [(note["subject_id"], note["stay_id"]) for note in notes] == [(11, 101)] * 4 + [
        (12, None)
    ]
    assert notes[0]["text"] == DISCHARGE[0][-1]


def test_a_mimic_iv_note_is_available_when_stored_and_never_earlier_than_charted(iv: Path) -> None:
    notes, _ = read("mimic-iv", iv)
    end_of_day = datetime(2151, 7, 16, 23, 59, 59)
    expected = [
        datetime(2151, 7, 17, 9),
        end_of_day,
        end_of_day,
        datetime(2151, 7, 16, 9, 30),
        datetime(2151, 7, 16, 8),
    ]
    assert [note["available_at"] for note in notes] == expected


def test_a_part_that_is_not_there_is_asked_for(iv: Path) -> None:
    (iv / "note" / "radiology.csv.gz").unlink()
    with pytest.raises(SourceError) as error:
        read("mimic-iv", iv)
    assert "radiology.csv" in error.value.message
    assert "source.parts" in error.value.hint
    assert len(read("mimic-iv", iv, parts=("discharge",))[0]) == 3
    with pytest.raises(RecipeError) as recipe_error:
        read("mimic-iv", iv, parts=("discharges",))
    assert "did you mean 'discharge'?" in recipe_error.value.hint
    with pytest.raises(SourceError, match=r"'discharge\.csv\.gz' is none of radiology"):
        read("mimic-iv", iv / "note" / "discharge.csv.gz", parts=("radiology",))


def test_a_missing_column_is_refused_before_any_row_is_read(tmp_path: Path) -> None:
    write(tmp_path / "note" / "discharge.csv", IV, DISCHARGE)
    write(tmp_path / "note" / "radiology.csv", [*IV[:5], "chart_time", *IV[6:]], RADIOLOGY)
    with pytest.raises(
        SourceError,
        match=r"'charttime'[\s\S]*radiology.csv: header[\s\S]*did you mean 'chart_time'\?",
    ):
        sources.read_notes(
            SourceSpec(name="mimic-iv", path=tmp_path), Attrition("sources"), tmp_path
        )


def test_an_id_or_a_time_that_is_none_is_counted_with_its_place(tmp_path: Path) -> None:
    rows: list[Sequence[Any]] = [
        ("x-DS-1", "x", 1, "DS", 1, NIGHT, "", "a"),
        ("2-DS-1", 2, 1, "DS", 1, "16 July", "", "b"),
        *DISCHARGE,
    ]
    path = write(tmp_path / "discharge.csv", IV, rows)
    _, attrition = read("mimic-iv", path, max_bad_fraction=0.5)
    assert attrition.locations == {
        "unreadable: an id is not a whole number": ["discharge.csv: row 1"],
        "unreadable: a time is not a time": ["discharge.csv: row 2"],
    }


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    for name in ("mimic-iii", "mimic-iv"):
        with pytest.raises(SourceError) as error:
            read(name, tmp_path / "nowhere")
        assert error.value.location == str(tmp_path / "nowhere")
        with pytest.raises(RecipeError) as recipe_error:
            sources.read_notes(SourceSpec(name=name), Attrition("sources"), tmp_path)
        assert recipe_error.value.location == "[source]"
