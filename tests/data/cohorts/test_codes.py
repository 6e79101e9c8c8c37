"""ICD roll-up, on codes that a coder would recognise, and on the open demo tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from clinpeft.core.schemas import HospitalDatabase
from clinpeft.data import cohorts, hospital
from clinpeft.data.cohorts import codes
from clinpeft.recipe import SourceSpec, TaskSpec


def group(expression: str, system: str, code: str) -> str | None:
    with duckdb.connect() as connection:
        ((code_class,),) = connection.execute(
            f"SELECT {expression} FROM (SELECT ? AS system, ? AS code)", [system, code]
        ).fetchall()
    return None if code_class is None else str(code_class)


@pytest.mark.parametrize(
    ("system", "code", "category"),
    [
        ("icd9", "4019", "401"),  # hypertension
        ("icd9", "0389", "038"),  # sepsis
        ("icd9", "V4581", "V458"),  # bypass status
        ("icd9", "E8791", "E879"),  # dialysis as the cause
        ("icd10", "E119", "E11"),  # diabetes: E is no external cause in ICD-10
        ("icd10", "V892XXA", "V89"),
        ("icd9", "79", "79"),
    ],
)
def test_a_diagnosis_rolls_up_to_its_category(system: str, code: str, category: str) -> None:
    assert group(codes.DIAGNOSIS_GROUP_SQL, system, code) == category


@pytest.mark.parametrize(
    ("code", "true", "published"),
    [
        ("0331", "033", "331"),
        ("3310", "331", "331"),
        ("966", "966", "966"),
        ("0042", "004", "42"),
        ("3893", "389", "389"),
    ],
)
def test_a_procedure_keeps_its_zeros_and_the_published_one_loses_them(
    code: str, true: str, published: str
) -> None:
    assert group(codes.PROCEDURE_GROUP_SQL, "icd9", code) == true
    assert group(codes.PROCEDURE_GROUP_CORE_2021_SQL, "icd9", code) == published


@pytest.fixture(scope="module", params=["mimic3_demo_1.4", "mimic4_demo_2.2"])
def demo(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HospitalDatabase]:
    folder = shared_data / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not among the open data")
    spec = SourceSpec(name="mimic-iii" if "mimic3" in request.param else "mimic-iv", path=folder)
    database = hospital.open_hospital_database(spec, tmp_path_factory.mktemp("work"))
    yield database
    database.connection.close()


def select_answers(demo: HospitalDatabase, name: str) -> dict[int, set[object]]:
    """Stay -> its answers, of the stays that the rules leave (the demos have no notes)."""
    spec = TaskSpec(name=name)
    task = cohorts.get_clinical_task(spec)
    steps = cohorts.select_stays(demo, task, spec)
    assert all(
        step.entered_rows == step.kept_rows + sum(step.dropped_rows.values()) for step in steps
    )
    column = "label" if task.classes else "system || ':' || code"
    answers: dict[int, set[object]] = {}
    for stay, answer in demo.connection.execute(
        f"SELECT stay_id, {column} FROM raw_label"
    ).fetchall():
        answers.setdefault(stay, set()).add(answer)
    return answers


def by_hand(
    demo: HospitalDatabase, third: str, fourth: str, query: str
) -> list[tuple[object, ...]]:
    """A query over the shipped files as the relation ``t``, everything as text: ``third`` of
    MIMIC-III, ``fourth`` of MIMIC-IV."""
    file = demo.folder / (third if demo.layout == "mimic-iii" else fourth)
    with duckdb.connect() as connection:
        rows: list[tuple[object, ...]] = connection.execute(
            f"WITH t AS (FROM read_csv('{file}', all_varchar = true)) {query}"
        ).fetchall()
    return rows


def test_mortality_of_the_demos_is_their_flag(demo: HospitalDatabase) -> None:
    flags = by_hand(
        demo,
        "ADMISSIONS.csv",
        "hosp/admissions.csv.gz",
        "SELECT hadm_id, hospital_expire_flag FROM t WHERE admission_type <> 'NEWBORN'",
    )
    assert select_answers(demo, "mortality") == {
        int(str(stay)): {int(str(flag))} for stay, flag in flags
    }


def test_length_of_stay_of_the_demos_is_the_rounded_difference(demo: HospitalDatabase) -> None:
    query = (
        "SELECT hadm_id, admittime, dischtime FROM t WHERE hospital_expire_flag = '0' AND "
        "admission_type <> 'NEWBORN'"
    )
    expected = {}
    for stay, admitted, discharged in by_hand(
        demo, "ADMISSIONS.csv", "hosp/admissions.csv.gz", query
    ):
        seconds = (
            datetime.fromisoformat(str(discharged)) - datetime.fromisoformat(str(admitted))
        ).total_seconds()
        days = round(seconds / 86400, 1)
        if seconds >= 0:
            expected[int(str(stay))] = {
                0 if days <= 3 else 1 if days <= 7 else 2 if days <= 14 else 3
            }
    assert select_answers(demo, "length_of_stay") == expected


def test_diagnosis_categories_of_the_demos(demo: HospitalDatabase) -> None:
    version, code = (
        ("'9'", "icd9_code") if demo.layout == "mimic-iii" else ("icd_version", "icd_code")
    )
    rolled = (
        f"CASE WHEN {version} = '9' AND regexp_matches({code}, '^[VE]') THEN substr({code}, 1, "
        f"4) ELSE substr({code}, 1, 3) END"
    )
    query = f"SELECT DISTINCT hadm_id, 'icd' || {version} || ':' || {rolled} FROM t"
    expected: dict[int, set[object]] = {}
    for stay, label in by_hand(demo, "DIAGNOSES_ICD.csv", "hosp/diagnoses_icd.csv.gz", query):
        expected.setdefault(int(str(stay)), set()).add(label)
    assert select_answers(demo, "diagnoses") == expected


def test_three_digit_procedure_codes_of_the_mimic_iii_demo_have_not_lost_a_zero(
    shared_data: Path,
) -> None:
    """Why they are not padded: as they are, the dictionary has 6 of the 7 (96.6 and so on; 45.8 was
    retired); padded, 5 mean nothing, 2 another."""
    folder = shared_data / "mimic3_demo_1.4"
    if not folder.is_dir():
        pytest.skip("the MIMIC-III demo is not among the open data")
    query = f"""WITH used AS (FROM read_csv('{folder}/PROCEDURES_ICD.csv', all_varchar = true)),
        short AS (SELECT DISTINCT icd9_code FROM used WHERE length(icd9_code) = 3),
        dictionary AS (
            SELECT icd9_code FROM read_csv('{folder}/D_ICD_PROCEDURES.csv', all_varchar = true))
        SELECT count(*), count(*) FILTER (icd9_code IN (FROM dictionary)),
            count(*) FILTER ('0' || icd9_code IN (FROM dictionary)) FROM short"""
    with duckdb.connect() as connection:
        assert connection.execute(query).fetchall() == [(7, 6, 2)]
