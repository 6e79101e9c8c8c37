"""The synthetic hospital: same arguments, same bytes; files as of the real data; notes."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data import sources, synthetic
from clinpeft.data.synthetic import hospital, wording
from clinpeft.data.synthetic.conditions import load_conditions
from clinpeft.data.synthetic.hospital import RandomStream
from clinpeft.recipe import SourceSpec

Shape = Literal["mimic-iii", "mimic-iv"]
SHAPES: tuple[Shape, ...] = ("mimic-iii", "mimic-iv")
FILES: dict[str, tuple[str, ...]] = {
    "mimic-iii": ("NOTEEVENTS.csv.gz",),
    "mimic-iv": ("note/discharge.csv.gz", "note/radiology.csv.gz"),
}
MIMIC_IV_NOTE_HEADER = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text"
HEADERS = {
    "NOTEEVENTS.csv.gz": "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,CATEGORY,"
    "DESCRIPTION,CGID,ISERROR,TEXT",
    "note/discharge.csv.gz": MIMIC_IV_NOTE_HEADER,
    "note/radiology.csv.gz": MIMIC_IV_NOTE_HEADER,
}


def notes(
    cache: Path, shape: Shape, subjects: int = 12, seed: int = 1
) -> tuple[list[dict[str, Any]], Attrition]:
    attrition = Attrition("sources")
    spec = SourceSpec(name="synthetic", subjects=subjects, seed=seed, shape=shape)
    return sources.read_notes(spec, attrition, cache).read_all().to_pylist(), attrition


def raw(folder: Path, name: str) -> list[dict[str, str]]:
    return list(
        csv.DictReader(
            io.StringIO(gzip.decompress((folder / name).read_bytes()).decode(), newline="")
        )
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_arguments_give_the_same_bytes_and_others_do_not(
    tmp_path: Path, shape: Shape
) -> None:
    for folder, seed in [("a", 1), ("b", 1), ("c", 2)]:
        synthetic.write_synthetic_hospital(tmp_path / folder, 6, seed, shape)
    for name in FILES[shape]:
        first, again, other = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert first == again != other


@pytest.mark.parametrize("shape", SHAPES)
def test_the_files_have_the_columns_of_the_real_ones(tmp_path: Path, shape: Shape) -> None:
    synthetic.write_synthetic_hospital(tmp_path / "hospital", 3, 1, shape)
    for name in FILES[shape]:
        assert (
            gzip.decompress((tmp_path / "hospital" / name).read_bytes()).decode().splitlines()[0]
            == HEADERS[name]
        )


def test_a_person_is_the_same_in_a_small_and_in_a_large_hospital(tmp_path: Path) -> None:
    small, _ = notes(tmp_path, "mimic-iv", subjects=3)
    large, _ = notes(tmp_path, "mimic-iv", subjects=6)
    texts = [
        [
            note["text"]
            for note in records
            if note["subject_id"] == hospital.FIRST_SYNTHETIC_SUBJECT_ID + 2
        ]
        for records in (small, large)
    ]
    assert texts[0] == texts[1] != []


@pytest.mark.parametrize("shape", SHAPES)
def test_every_note_is_read_back_and_no_id_could_be_a_real_one(
    tmp_path: Path, shape: Shape
) -> None:
    records, attrition = notes(tmp_path, shape)
    assert attrition.kept_rows == len(records) > 100
    assert set(attrition.dropped_rows) <= {"marked as an error (ISERROR = 1)"}
    assert {note["subject_id"] for note in records} == set(range(900_000_001, 900_000_013))
    assert min(note["stay_id"] for note in records if note["stay_id"]) > 20_000_000 + 9_999_999
    assert len({note["note_id"] for note in records}) == len(records)
    assert all("#" not in note["note_id"] for note in records)


def test_discharge_summaries_have_the_sections_of_real_ones(tmp_path: Path) -> None:
    records, _ = notes(tmp_path, "mimic-iv", subjects=40)
    summaries = [note["text"] for note in records if note["category"] == "Discharge summary"]
    always = (
        "Service:",
        "Allergies:",
        "Attending:",
        "Chief Complaint:",
        "History of Present Illness:",
        "Past Medical History:",
        "Physical Exam:",
    )
    for summary in summaries:
        sections = (
            *always,
            "Pertinent Results:",
            "Brief Hospital Course:",
            "Discharge Medications:",
            "Discharge Diagnosis:",
        )
        positions = [
            summary.index(f"\n{section}" if section != "Service:" else section)
            for section in sections
        ]
        assert positions == sorted(positions)
    assert (
        sum("Discharge Disposition:\nExpired" in summary for summary in summaries)
        < len(summaries) / 4
    )


def test_each_data_set_has_its_own_marks(tmp_path: Path) -> None:
    for note in notes(tmp_path, "mimic-iv")[0]:
        assert "[**" not in note["text"]
        assert not re.search(r"\b2\d{3}-\d", note["text"])
    texts = "\n".join(
        note["text"] for note in notes(tmp_path, "mimic-iii")[0] if note["category"] != "Radiology"
    )
    assert "___" not in texts
    for mark in (
        r"\[\*\*Last Name \(STitle\) \d+\*\*\]",
        r"\[\*\*Hospital1 \d+\*\*\]",
        r"\[\*\*2\d{3}-\d+-\d+\*\*\]",
        r"\[\*\*Known lastname \d+\*\*\]",
    ):
        assert re.search(mark, texts), mark


def test_the_oddities_of_mimic_iii_are_there(tmp_path: Path) -> None:
    synthetic.write_synthetic_hospital(tmp_path / "hospital", 40, 1, "mimic-iii")
    rows = raw(tmp_path / "hospital", "NOTEEVENTS.csv.gz")
    categories = Counter(row["CATEGORY"] for row in rows)
    assert {
        "Physician ",
        "Respiratory ",
        "Nursing",
        "Nursing/other",
        "Radiology",
        "ECG",
        "Discharge summary",
    } == set(categories)
    assert all(row["CHARTTIME"] == "" for row in rows if row["CATEGORY"] == "Discharge summary")
    assert {row["ISERROR"] for row in rows} == {"", "1"}
    assert any(row["HADM_ID"] == "" for row in rows)
    assert any(row["DESCRIPTION"] == "Addendum" for row in rows)


def test_the_oddities_of_mimic_iv_are_there(tmp_path: Path) -> None:
    synthetic.write_synthetic_hospital(tmp_path / "hospital", 60, 1, "mimic-iv")
    discharge, radiology = (raw(tmp_path / "hospital", name) for name in FILES["mimic-iv"])
    assert {row["note_type"] for row in discharge} == {"DS", "AD"}
    assert {row["note_type"] for row in radiology} == {"RR", "AR"}
    assert all(row["charttime"].endswith(" 00:00:00") and row["hadm_id"] for row in discharge)
    assert any(row["hadm_id"] == "" for row in radiology)
    assert any(row["storetime"] < row["charttime"] for row in radiology)
    assert all(
        row["note_id"] == f"{row['subject_id']}-{row['note_type']}-{row['note_seq']}"
        for row in [*discharge, *radiology]
    )


def test_there_are_exact_and_near_duplicates_and_text_copied_forward(tmp_path: Path) -> None:
    records, _ = notes(tmp_path, "mimic-iii", subjects=60)
    texts = Counter(note["text"] for note in records if len(note["text"]) > 200)
    assert any(count > 1 for count in texts.values())
    heads = Counter(
        (note["subject_id"], note["text"][:60])
        for note in records
        if note["category"] == "Radiology"
    )
    assert max(heads.values()) > 1
    histories: dict[int, list[str]] = {}
    for note in records:
        if "Past Medical History:" in note["text"] and note["description"] == "Report":
            section = re.sub(
                r"\d", "0", note["text"].split("Past Medical History:\n")[1].split("\n\n")[0]
            )  # a re-save may mistype a number
            histories.setdefault(note["subject_id"], []).append(section)
    successive = [
        (before, after)
        for sections in histories.values()
        for before, after in itertools.pairwise(sections)
    ]
    assert len(successive) > 10
    assert all(after.startswith(before) for before, after in successive)


def test_notes_are_varied_and_no_template_is_left_open(tmp_path: Path) -> None:
    records, _ = notes(tmp_path, "mimic-iii", subjects=60)
    assert not [note["note_id"] for note in records if re.search(r"[{}|]|<[a-z]", note["text"])]
    sentences = Counter(
        sentence
        for note in records
        for sentence in note["text"].replace("\n", " ").split(". ")
        if len(sentence) > 30
    )
    assert len(sentences) > 5000
    words = {word.lower() for note in records for word in re.findall(r"[A-Za-z]+", note["text"])}
    assert len(words) > 1500
    assert {"s", "p", "htn", "sob", "bid", "prn", "yo"} <= words


def test_the_sicker_stay_longer_and_die_more_often() -> None:
    stays = [stay for index in range(800) for stay in hospital.generate_patient_stays(index, 1)]
    by_severity = [[stay for stay in stays if stay.severity == severity] for severity in range(3)]
    days = [sum(stay.days for stay in group) / len(group) for group in by_severity]
    died = [sum(stay.died_in_hospital for stay in group) / len(group) for group in by_severity]
    assert days == sorted(days)
    assert died == sorted(died)
    assert died[0] < 0.04
    assert died[2] > 0.08


def test_nobody_is_admitted_after_death_or_before_discharge() -> None:
    for index in range(300):
        stays = hospital.generate_patient_stays(index, 1)
        assert not any(stay.died_in_hospital for stay in stays[:-1])
        assert all(stay.admitted_at < stay.discharged_at for stay in stays)
        for before, after in itertools.pairwise(stays):
            assert (before.discharged_at < after.admitted_at) != before.defects.overlaps_next_stay
            assert before.admitted_at < after.admitted_at


def test_a_template_is_rendered_in_one_of_its_ways() -> None:
    texts = {
        wording.render_template(
            "{he} had <a <b|c>|{1-2}|> &lt;{0.50-0.59}", RandomStream(seed), {"he": "she"}
        )[:-4]
        for seed in range(200)
    }
    assert texts == {"she had a b <", "she had a c <", "she had 1 <", "she had 2 <", "she had  <"}


def test_every_condition_has_all_that_a_note_needs() -> None:
    assert len(load_conditions()) >= 12
    for condition in load_conditions():
        lists = (
            condition.complaints,
            condition.story,
            condition.denies,
            condition.procedures,
            condition.hospital_course,
            condition.severe,
        )
        assert all(lists), condition.name
        assert all(
            (
                condition.drugs,
                condition.instructions,
                condition.nursing,
                condition.studies,
                condition.labs,
            )
        ), condition.name


def test_the_files_are_written_once_and_kept_whole(tmp_path: Path) -> None:
    notes(tmp_path, "mimic-iv", subjects=2)
    (folder,) = tmp_path.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    notes(tmp_path, "mimic-iv", subjects=2)
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != folder
    } == before


def test_a_given_path_is_where_they_are_written_and_never_over_something_else(
    tmp_path: Path,
) -> None:
    spec = SourceSpec(name="synthetic", path=tmp_path / "here", subjects=2, shape="mimic-iii")
    assert (
        sources.read_notes(spec, Attrition("sources"), tmp_path / "cache").read_all().num_rows > 0
    )
    assert (tmp_path / "here" / "NOTEEVENTS.csv.gz").is_file()
    with pytest.raises(SourceError) as error:
        sources.read_notes(
            spec.model_copy(update={"subjects": 3}), Attrition("sources"), tmp_path / "cache"
        )
    assert error.value.location == str(tmp_path / "here")


def test_the_fingerprint_follows_the_parameters_and_not_the_path(tmp_path: Path) -> None:
    spec = SourceSpec(name="synthetic", subjects=2)
    assert sources.fingerprint_notes(spec) == sources.fingerprint_notes(
        spec.model_copy(update={"path": tmp_path})
    )
    for change in ({"subjects": 3}, {"seed": 5}, {"shape": "mimic-iii"}):
        assert sources.fingerprint_notes(
            spec.model_copy(update=change)
        ) != sources.fingerprint_notes(spec)
