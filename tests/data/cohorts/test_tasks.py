"""A golden cohort per task, on twelve invented patients written out as a table that a clinician
could read."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import COHORT_SCHEMA, HospitalDatabase
from clinpeft.data import cohorts, hospital
from clinpeft.data.cohorts import codes
from clinpeft.recipe import CohortRecipe, CohortSplitSpec, SourceSpec, TaskSpec

# Stays of twelve people. Diagnoses and procedures are ICD-9 as shipped; a dash is nothing. All born
# 2040-01-01 but the newborn.
STAYS = """
person stay admitted         discharged       died             type      dead diagnoses       procedures
1      101  2100-01-01T00:00 2100-01-04T01:12 -                EMERGENCY 0    4019,4280,V4581 0331,3893
2      102  2100-02-01T00:00 2100-02-04T01:13 -                EMERGENCY 0    4019,E8791      3310
3      103  2100-03-01T00:00 2100-03-06T00:00 2100-03-06T00:00 EMERGENCY 1    0389,51881      966
4      104  2100-04-01T08:00 2100-04-09T08:00 -                ELECTIVE  0    41401           3615,8856
4      105  2100-04-20T00:00 2100-05-20T00:00 -                EMERGENCY 0    99859           -
5      106  2100-05-01T00:00 2100-05-03T00:00 -                NEWBORN   0    V3000           640
6      107  2100-06-01T00:00 2100-06-10T00:00 -                URGENT    -    5849            3995
7      108  2100-07-01T00:00 2100-07-02T00:00 2100-07-20T00:00 EMERGENCY 0    1970            -
8      109  2100-08-01T00:00 2100-08-03T10:00 -                EMERGENCY 0    -               -
8      110  2100-08-03T20:00 2100-08-09T00:00 -                EMERGENCY 0    4280            3893
9      111  2100-09-01T00:00 -                -                EMERGENCY 0    4280            -
10     112  2100-10-01T00:00 2100-10-09T00:00 -                EMERGENCY 0    5770            5110
11     113  2100-11-01T00:00 2100-11-16T00:00 -                EMERGENCY 0    25000           -
12     114  2100-12-01T00:00 2100-12-05T00:00 2100-12-05T00:00 EMERGENCY 1    42731           9960
"""  # noqa: E501

NOTE = (
    "Chief Complaint: breath\n\nHistory of Present Illness: came with {complaint}\n\nPast "
    "Medical History: none\n\n"
    "Brief Hospital Course: {course}\n\nDischarge Disposition: home\n"
)
# (stay, date, category, description, error, what the note says). Stay 112 has no note at all; 113
# has only an addendum.
NOTES = [
    (101, "2100-01-04", "Discharge summary", "Report", "", "cough"),
    (101, "2100-01-04", "Discharge summary", "Addendum", "", "also fever"),
    (101, "2100-01-04", "Discharge summary", "Report", "", "cough"),  # the same words again
    (101, "2100-01-02", "Nursing", "Report", "", "slept well"),
    (102, "2100-02-04", "Discharge summary", "Report", "", "pain"),
    (102, "2100-02-04", "Discharge summary", "Report", "1", "written on the wrong patient"),
    (103, "2100-03-06", "Discharge summary", "Report", "", "shock; the patient expired"),
    (104, "2100-04-09", "Discharge summary", "Report", "", "angina"),
    (
        105,
        "2100-05-22",
        "Discharge summary",
        "Report",
        "",
        "a wound",
    ),  # dated after the day of discharge
    (106, "2100-05-03", "Discharge summary", "Report", "", "birth"),
    (107, "2100-06-10", "Discharge summary", "Report", "", "no urine"),
    (108, "2100-07-02", "Discharge summary", "Report", "", "weight loss"),
    (109, "2100-08-03", "Discharge summary", "Report", "", "edema"),
    (110, "2100-08-09", "Discharge summary", "Report", "", "edema again"),
    (111, "2100-09-01", "Discharge summary", "Report", "", "dizziness"),
    (113, "2100-11-16", "Discharge summary", "Addendum", "", "sugar"),
    (114, "2100-12-05", "Discharge summary", "Report", "", "palpitations"),
    (None, "2100-12-05", "Discharge summary", "Report", "", "of no stay"),
]


def write_csv(path: Path, header: str, rows: Sequence[Sequence[object]]) -> None:
    def cell(value: object) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text

    path.write_text(
        "\n".join([header, *(",".join(cell(value) for value in row) for row in rows)]) + "\n",
        encoding="utf-8",
    )


def write_mimic_iii(folder: Path) -> Path:
    """The table above as MIMIC-III ships it."""
    folder.mkdir(parents=True)
    stays = [
        ["" if cell == "-" else cell.replace("T", " ") for cell in line.split()]
        for line in STAYS.strip().splitlines()[1:]
    ]
    write_csv(
        folder / "ADMISSIONS.csv",
        "ROW_ID,SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,DEATHTIME,ADMISSION_TYPE,INSURANCE,LANGUAGE,ETHNICITY,HOSPITAL_EXPIRE_FLAG",
        [
            [
                at,
                who,
                stay,
                begin,
                end,
                died if dead == "1" else "",
                kind,
                "Medicare",
                "ENGL",
                "WHITE",
                dead,
            ]
            for at, (who, stay, begin, end, died, kind, dead, *_) in enumerate(stays)
        ],
    )
    died_at_home = {who: died for who, _, _, _, died, _, dead, *_ in stays if died and dead != "1"}
    people = sorted({row[0] for row in stays}, key=int)
    write_csv(
        folder / "PATIENTS.csv",
        "ROW_ID,SUBJECT_ID,GENDER,DOB,DOD",
        [
            [
                who,
                who,
                "F" if int(who) % 2 else "M",
                "2100-05-01" if who == "5" else "2040-01-01",
                died_at_home.get(who, ""),
            ]
            for who in people
        ],
    )
    for name, column in (("DIAGNOSES_ICD", 7), ("PROCEDURES_ICD", 8)):
        rows = [
            [0, row[0], row[1], at, code]
            for row in stays
            for at, code in enumerate(filter(None, row[column].split(",")), start=1)
        ]
        write_csv(folder / f"{name}.csv", "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE", rows)
    write_csv(
        folder / "ICUSTAYS.csv",
        "ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,DBSOURCE,FIRST_CAREUNIT,INTIME,OUTTIME",
        [
            [
                0,
                row[0],
                row[1],
                f"9{row[1]}",
                "metavision" if int(row[1]) > 109 else "carevue",
                "MICU",
                row[2],
                row[3],
            ]
            for row in stays
        ],
    )
    owner = {int(row[1]): row[0] for row in stays}
    notes = [
        [
            at,
            owner.get(stay or 0, 1),
            stay,
            day,
            "",
            "",
            category,
            description,
            1,
            error,
            NOTE.format(complaint=says, course="it went well"),
        ]
        for at, (stay, day, category, description, error, says) in enumerate(NOTES, start=1)
    ]
    header = (
        "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,"
        "CATEGORY,DESCRIPTION,CGID,ISERROR,TEXT"
    )
    write_csv(folder / "NOTEEVENTS.csv", header, notes)
    return folder


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[HospitalDatabase]:
    database = hospital.open_hospital_database(
        SourceSpec(name="mimic-iii", path=write_mimic_iii(tmp_path / "mimic")), tmp_path / "work"
    )
    yield database
    database.connection.close()


def recipe(name: str, **task: object) -> CohortRecipe:
    settings = {"train": 1.0, "tuning": 0.0, "held_out": 0.0}
    document = {
        "kind": "cohort",
        "source": {"name": "mimic-iii"},
        "task": {"name": name, **task},
        "split": settings,
    }
    return CohortRecipe.model_validate(document)


Build = Callable[..., tuple[cohorts.Cohort, dict[int, object], dict[str, int]]]


@pytest.fixture
def build(opened: HospitalDatabase, tmp_path: Path) -> Build:
    """A built cohort, the answer of each stay in it, and everybody who left by reason."""

    def built(
        name: str, **task: object
    ) -> tuple[cohorts.Cohort, dict[int, object], dict[str, int]]:
        cohort = cohorts.write_cohort(recipe(name, **task), opened, tmp_path / "cohort")
        rows = pq.read_table(cohort.path).to_pylist()
        answers = {
            row["stay_id"]: cohort.classes[row["label"]]
            if row["label"] is not None
            else {cohort.classes[at] for at in row["labels"]}
            for row in rows
        }
        assert_nothing_is_lost(cohort)
        return cohort, answers, who_left(cohort)

    return built


def who_left(cohort: cohorts.Cohort) -> dict[str, int]:
    """Reasons for which stays left, from the first rule on (those of notes and raw rows are not
    stays)."""
    apart = (
        "read ",
        "stay:",
        "icu_stay:",
        "diagnosis:",
        "procedure:",
        "title:",
        "notes",
        "labels given",
        "extubation",
        "charted",
        "ventilation ",
    )
    return {
        reason: dropped
        for step in cohort.attrition
        if not step.step.startswith(apart)
        for reason, dropped in step.dropped_rows.items()
    }


def assert_nothing_is_lost(cohort: cohorts.Cohort) -> None:
    """Rows in = rows out + counted reasons: of every step, and from one step on stays to the
    next."""
    stays = len(STAYS.strip().splitlines()) - 1
    dropped = sum(who_left(cohort).values())
    rows = pq.ParquetFile(cohort.path).metadata.num_rows
    assert rows + dropped == stays
    written = json.loads((cohort.folder / "attrition.json").read_text())
    assert all(step["entered"] == step["kept"] + sum(step["dropped"].values()) for step in written)
    assert [step["step"] for step in written] == [step.step for step in cohort.attrition]


def test_mortality_asks_who_died_in_the_stay(build: Build) -> None:
    _, answers, dropped = build("mortality")
    died, survived = "died in hospital", "survived"
    assert answers == {
        101: survived,
        102: survived,
        104: survived,
        105: survived,
        108: survived,  # died at home
        109: survived,
        110: survived,
        111: survived,
        114: died,
    }
    assert dropped == {
        "newborn": 1,  # 106
        "whether the patient died in hospital is unknown": 1,  # 107
        "the note mentions the patient's death": 1,  # 103
        "no discharge summary": 1,  # 112
        "only addenda": 1,  # 113
    }


def test_the_seed_of_the_recipe_moves_nobody_and_that_of_the_split_does(
    opened: HospitalDatabase, tmp_path: Path
) -> None:
    def drawn(seed: int, split_seed: int) -> list[str]:
        cohort_recipe = recipe("mortality").model_copy(
            update={
                "seed": seed,
                "split": CohortSplitSpec(train=0.5, tuning=0.0, held_out=0.5, seed=split_seed),
            }
        )
        names: list[str] = pq.read_table(
            cohorts.write_cohort(cohort_recipe, opened, tmp_path / "cohort").path
        )["split"].to_pylist()
        return names

    first = drawn(1, 1)
    assert first == drawn(2, 1) != drawn(1, 2)


def test_length_of_stay_is_rounded_to_a_tenth_of_a_day_and_asked_of_survivors(build: Build) -> None:
    _, answers, dropped = build("length_of_stay")
    assert answers == {
        101: "up to 3 days",  # 3 days 1 h 12 min = 3.05 days, rounded to 3.0
        102: "over 3 to 7 days",  # one minute more: 3.1
        104: "over 7 to 14 days",  # 8 days
        105: "over 14 days",  # 30 days
        108: "up to 3 days",
        109: "up to 3 days",
        110: "over 3 to 7 days",
    }
    assert dropped == {
        "newborn": 1,
        "discharge time unknown": 1,  # 111
        "whether the patient died in hospital is unknown": 1,
        "died in hospital": 2,  # 103, 114
        "no discharge summary": 1,
        "only addenda": 1,
    }


def test_diagnoses_are_icd_categories_with_four_characters_for_v_and_e(build: Build) -> None:
    cohort, answers, dropped = build("diagnoses")
    assert answers == {
        101: {"diagnosis:icd9:401", "diagnosis:icd9:428", "diagnosis:icd9:V458"},
        102: {"diagnosis:icd9:401", "diagnosis:icd9:E879"},
        103: {"diagnosis:icd9:038", "diagnosis:icd9:518"},
        104: {"diagnosis:icd9:414"},
        105: {"diagnosis:icd9:998"},
        107: {"diagnosis:icd9:584"},
        108: {"diagnosis:icd9:197"},
        110: {"diagnosis:icd9:428"},
        111: {"diagnosis:icd9:428"},
        114: {"diagnosis:icd9:427"},
    }
    assert dropped == {
        "newborn": 1,
        "no diagnosis code": 1,
        "no discharge summary": 1,
        "only addenda": 1,
    }
    assert len(cohort.classes) == 11


def test_procedures_keep_their_leading_zeros(build: Build) -> None:
    _, answers, dropped = build("procedures")
    assert answers == {
        101: {"procedure:icd9:033", "procedure:icd9:389"},
        102: {"procedure:icd9:331"},
        103: {"procedure:icd9:966"},
        104: {"procedure:icd9:361", "procedure:icd9:885"},
        107: {"procedure:icd9:399"},
        110: {"procedure:icd9:389"},
        114: {"procedure:icd9:996"},
    }
    assert dropped == {"newborn": 1, "no procedure code": 5, "no discharge summary": 1}


def test_the_published_builder_reads_procedure_codes_as_numbers(build: Build) -> None:
    cohort, answers, _ = build("procedures", compat="core-2021")
    assert answers[101] == {
        "procedure:icd9:331",
        "procedure:icd9:389",
    }  # 0331, a spinal tap, becomes an incision of the lung
    assert answers[102] == {"procedure:icd9:331"}
    assert (
        "procedure:icd9:640" in cohort.classes
    )  # of the newborn, who is not asked: the published list has every code of the table


def test_readmission_is_asked_at_the_end_of_the_day_of_discharge(build: Build) -> None:
    cohort, answers, dropped = build("readmission_30d")
    assert answers == {
        101: "not readmitted",
        102: "not readmitted",
        104: "readmitted",
        110: "not readmitted",
    }
    assert dropped == {
        "newborn": 1,
        "discharge time unknown": 1,
        "whether the patient died in hospital is unknown": 1,
        "died in hospital": 2,
        "died within 30 days without coming back": 1,  # 108
        "readmitted before the prediction time": 1,  # 109, back in the evening
        # 105, whose summary was written two days later
        "no note available at the prediction time": 1,
        "no discharge summary": 1,
        "only addenda": 1,
    }
    row = pq.read_table(cohort.path).to_pylist()[0]
    assert str(row["prediction_time"]) == "2100-01-04 23:59:59"
    assert "Brief Hospital Course" in row["text"]


def test_coding_waits_for_the_last_note_and_reads_all_of_them(build: Build) -> None:
    cohort, answers, dropped = build("icd_coding")
    assert answers[101] == {
        "diagnosis:icd9:4019",
        "diagnosis:icd9:4280",
        "diagnosis:icd9:V4581",
        "procedure:icd9:0331",
        "procedure:icd9:3893",
    }
    assert sorted(answers) == [101, 102, 103, 104, 105, 106, 107, 108, 110, 114]
    assert dropped == {
        "discharge time unknown": 1,
        "no diagnosis code": 1,
        "no discharge summary": 1,
        "only addenda": 1,
    }
    rows = {row["stay_id"]: row for row in pq.read_table(cohort.path).to_pylist()}
    assert (
        str(rows[105]["prediction_time"]) == "2100-05-22 23:59:59"
    )  # the note came after the discharge
    assert rows[101]["text"].count("came with cough") == 1  # the repeated report is read once
    assert "also fever" in rows[101]["text"]


def test_a_stay_coded_in_two_systems_is_not_asked_for_its_codes(
    opened: HospitalDatabase, tmp_path: Path
) -> None:
    opened.connection.execute(
        "UPDATE code SET system = 'icd10', code = 'I10' WHERE stay_id = 101 AND code = '4019'"
    )
    opened.connection.execute("UPDATE code SET system = 'icd10' WHERE stay_id = 108")
    dropped = who_left(cohorts.write_cohort(recipe("icd_coding"), opened, tmp_path / "cohort"))
    assert (dropped["coded in two systems"], dropped["coded in another system"]) == (1, 1)


def test_a_label_file_asks_its_own_question_of_the_notes_there_are_by_then(
    build: Build, tmp_path: Path
) -> None:
    labels = [  # person, time, answer
        (1, "2100-01-03T00:00", True),  # 101, of which only the nursing note is there
        (1, "2100-01-04T12:00", False),  # 101 once more
        (
            2,
            "2100-02-04T23:59:59",
            False,
        ),  # 102, at the end of the day of discharge, with the summary
        (3, "2100-03-01T00:00", True),  # 103, before any note
        (7, "2100-06-01T00:00", True),  # after the stay
        (12, "2100-12-02T00:00", None),
    ]
    columns = {
        "subject_id": [row[0] for row in labels],
        "prediction_time": [datetime.datetime.fromisoformat(row[1]) for row in labels],
    }
    pq.write_table(
        pa.table(columns | {"boolean_value": [row[2] for row in labels]}), tmp_path / "aces.parquet"
    )
    cohort, answers, dropped = build("given", labels=tmp_path / "aces.parquet")
    assert answers == {101: "yes", 102: "no"}
    assert dropped == {"no label": 11, "no note available at the prediction time": 1}
    (step,) = [step for step in cohort.attrition if step.step == "labels given"]
    assert step.dropped_rows == {
        "an earlier label of the same stay is asked": 1,
        "at a time in no stay of this person": 1,
        "no true or false": 1,
    }
    texts = {row["stay_id"]: row["text"] for row in pq.read_table(cohort.path).to_pylist()}
    assert "slept well" in texts[101] and "cough" not in texts[101]


def test_a_question_of_a_file_needs_the_file(opened: HospitalDatabase, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        cohorts.write_cohort(recipe("given"), opened, tmp_path / "cohort")
    assert error.value.location == "task.labels"


def test_the_notes_that_are_not_read_are_counted_too(build: Build) -> None:
    cohort, _, _ = build("mortality")
    steps = {step.step: dict(step.dropped_rows) for step in cohort.attrition}
    assert steps["notes read"] == {
        "marked as an error (ISERROR = 1)": 1,
        "category not asked for": 1,
    }
    assert steps["notes of the stays asked"] == {
        "of no stay": 1,
        "repeats another text": 1,
        "of a stay that is not asked": 2,
    }


def test_an_admission_task_reads_nothing_of_the_course(build: Build) -> None:
    cohort, _, _ = build("mortality")
    texts = pq.read_table(cohort.path, columns=["text"])["text"].to_pylist()
    assert all("PRESENT ILLNESS" in text and "it went well" not in text for text in texts)


def test_the_cohort_has_its_schema_and_its_order(build: Build) -> None:
    cohort, _, _ = build("mortality")
    table = pq.read_table(cohort.path)
    assert table.schema.equals(COHORT_SCHEMA)
    assert table["subject_id"].to_pylist() == sorted(table["subject_id"].to_pylist())
    row = table.to_pylist()[0]
    assert (row["sex"], row["race"], row["language"], row["insurance"]) == (
        "F",
        "WHITE",
        "ENGL",
        "Medicare",
    )
    assert (row["care_unit"], row["year_group"], round(row["age_years"])) == ("MICU", "carevue", 60)


def test_ventilation_of_seven_days_is_prolonged_and_early_death_leaves(
    opened: HospitalDatabase, tmp_path: Path
) -> None:
    hours = {
        101: (0, 60),
        102: (0, 30),
        104: (0, 190),
        105: (0, 480),
        114: (0, 72),
    }  # stay -> first and last hour on the ventilator
    begins = dict(opened.connection.execute("SELECT stay_id, admitted_at FROM stay").fetchall())
    rows: list[list[object]] = []
    for stay, (first, last) in hours.items():
        for hour in range(first, last + 1, 2):
            at = begins[stay] + datetime.timedelta(hours=hour)
            rows.append(
                [0, 1, stay, f"9{stay}", 224687, at, "", 1, "8.1", "8.1", "L/min", "", "", "", ""]
            )
    header = (
        "ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,ITEMID,CHARTTIME,STORETIME,CGID,"
        "VALUE,VALUENUM,VALUEUOM,WARNING,ERROR,RESULTSTATUS,STOPPED"
    )
    write_csv(opened.folder / "CHARTEVENTS.csv", header, rows)
    write_csv(
        opened.folder / "PROCEDUREEVENTS_MV.csv",
        "ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,STARTTIME,ENDTIME,ITEMID,STATUSDESCRIPTION",
        [],
    )
    cohort = cohorts.write_cohort(recipe("ventilation"), opened, tmp_path / "cohort")
    answers = {
        row["stay_id"]: cohort.classes[row["label"]]
        for row in pq.read_table(cohort.path).to_pylist()
    }
    assert answers == {101: "not prolonged", 104: "prolonged", 105: "prolonged"}
    dropped = who_left(cohort)
    assert dropped["ventilated for less than 2 days"] == 1  # 102
    assert (
        dropped["died within 7 days of the first ventilation, before it could be prolonged"] == 1
    )  # 114
    published = cohorts.write_cohort(
        recipe("ventilation", compat="core-2021"), opened, tmp_path / "published"
    )
    answers = {
        row["stay_id"]: published.classes[row["label"]]
        for row in pq.read_table(published.path).to_pylist()
    }
    assert answers[114] == "not prolonged"  # as published


def test_rare_classes_leave_the_label_space_and_say_so(build: Build) -> None:
    cohort, answers, dropped = build("diagnoses", min_label_count=2)
    assert cohort.classes == ("diagnosis:icd9:401", "diagnosis:icd9:428")
    assert sorted(answers) == [101, 102, 110, 111]
    assert dropped["none of its codes is in the label space"] == 6
    labels_document = json.loads((cohort.folder / "labels.json").read_text())
    assert [entry["train_stays"] for entry in labels_document["classes"]] == [2, 3]
    assert len(labels_document["left_out"]) == 9


def test_the_whole_summary_cannot_be_read_at_admission(
    opened: HospitalDatabase, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        cohorts.write_cohort(recipe("mortality", sections="all"), opened, tmp_path / "cohort")
    assert error.value.location == "task.sections = 'all'"


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="'mortality'"):
        cohorts.get_clinical_task(TaskSpec(name="mortalty"))


def test_a_task_that_was_never_published_has_no_published_form() -> None:
    with pytest.raises(RecipeError, match="readmission_30d") as error:
        cohorts.get_clinical_task(TaskSpec(name="readmission_30d", compat="core-2021"))
    assert error.value.location == "task.compat"


def test_a_missing_table_is_named_with_what_it_is_needed_for(tmp_path: Path) -> None:
    folder = write_mimic_iii(tmp_path / "mimic")
    (folder / "PROCEDURES_ICD.csv").unlink()
    database = hospital.open_hospital_database(
        SourceSpec(name="mimic-iii", path=folder), tmp_path / "work"
    )
    with pytest.raises(SourceError, match=r"PROCEDURES_ICD\.csv.* procedures"):
        cohorts.write_cohort(recipe("procedures"), database, tmp_path / "cohort")
    database.connection.close()


def test_a_cohort_that_nobody_is_left_in_says_where_they_went(
    opened: HospitalDatabase, tmp_path: Path
) -> None:
    opened.connection.execute("UPDATE stay SET died_in_hospital = NULL")
    with pytest.raises(
        SourceError,
        match=r"'survival known': 13 × whether the patient died in hospital is unknown",
    ):
        cohorts.write_cohort(recipe("mortality"), opened, tmp_path / "cohort")


def test_show_counts_stays_and_subjects_of_each_class(build: Build) -> None:
    cohort, _, _ = build("mortality")
    rows = cohorts.summarize_cohort(cohort.folder).to_pylist()
    assert [(row["split"], row["class"], row["stays"], row["subjects"]) for row in rows] == [
        ("train", "survived", 8, 6),
        ("train", "died in hospital", 1, 1),
    ]


def test_verify_counts_what_the_published_builder_does_otherwise(
    opened: HospitalDatabase, tmp_path: Path
) -> None:
    rows = {
        row["quantity"]: row
        for row in cohorts.compare_with_published_counts(
            recipe("procedures"), opened, tmp_path / "verify"
        ).to_pylist()
    }
    assert rows["stays in train"]["published"] == 30_030
    assert rows["classes"]["published"] == 711
    assert rows["classes that merge several true ones"]["compat"] == 1  # 331: 0331 and 3310
    assert rows["stays with a merged class"]["compat"] == 2
    assert rows["stays with another answer"]["compat"] == 1  # 101


def test_two_builds_are_equal_byte_for_byte(opened: HospitalDatabase, tmp_path: Path) -> None:
    first, second = (
        cohorts.write_cohort(recipe("diagnoses"), opened, tmp_path / name)
        for name in ("first", "second")
    )
    for name in ("cohort.parquet", "attrition.json", "labels.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_a_build_writes_the_audit_and_the_meds_form(
    opened: HospitalDatabase, tmp_path: Path
) -> None:
    document = recipe("mortality").model_dump() | {
        "split": {"train": 0.4, "tuning": 0.3, "held_out": 0.3}
    }
    cohort = cohorts.build_cohort(
        CohortRecipe.model_validate(document), opened, tmp_path / "cohort"
    )
    assert (cohort.folder / "leakage.json").is_file()
    assert (cohort.folder / "meds" / "metadata" / "subject_splits.parquet").is_file()


def test_the_names_of_classes_are_looked_for_where_the_hospital_has_titles(tmp_path: Path) -> None:
    folder = write_mimic_iii(tmp_path / "mimic")
    titles = [
        [1, "4019", "Hypertension NOS", "Unspecified essential hypertension"],
        [2, "2500", "", "Cough, unspecified"],
        [3, "41401", "", "Angina"],
    ]
    write_csv(
        folder / "D_ICD_DIAGNOSES.csv",
        "ROW_ID,ICD9_CODE,SHORT_TITLE,LONG_TITLE",
        [*titles, [4, "", "", "no code"], [5, "585", "", ""]],
    )
    database = hospital.open_hospital_database(
        SourceSpec(name="mimic-iii", path=folder), tmp_path / "work"
    )
    steps = {step.step: step for step in database.attrition}
    assert steps["title: D_ICD_DIAGNOSES.csv"].dropped_rows == {"no code": 1, "no title": 1}
    assert "title" not in database.missing_tables  # nothing needs them
    assert codes.read_code_titles(database.connection, codes.DIAGNOSIS_GROUP_SQL)[
        "diagnosis:icd9:250"
    ] == (
        "Cough",
        "Cough, unspecified",
    )
    cohort = cohorts.build_cohort(recipe("diagnoses"), database, tmp_path / "cohort")
    findings = {
        entry["name"]: entry
        for entry in json.loads((cohort.folder / "leakage.json").read_text())["findings"]
    }
    named = findings["class_names_in_text"]
    assert named["detail"]["named_of_answered"] == {
        "diagnosis:icd9:414": [1, 1]
    }  # 104 came with angina
    assert named["value"] == 0.3333  # of 104 and the two stays with hypertension
    database.connection.close()


def test_no_torch_is_imported_on_this_path() -> None:
    program = (
        "import sys; import clinpeft.data.cohorts, clinpeft.data.hospital; sys.exit(any(m in "
        "sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
