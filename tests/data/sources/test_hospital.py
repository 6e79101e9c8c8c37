"""The tables of a hospital as they are shipped: read whole, or refused by name, or counted out
under a reason."""

from __future__ import annotations

import gzip
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data import hospital
from clinpeft.recipe import SourceSpec

SECRET = "a sentence of a note"
STAYS = (
    "subject_id,stay_id,admitted_at,discharged_at,died_in_hospital,age_years\n"
    "1,11,2100-01-01,2100-01-04 10:00:00,0,60\n"
    "2,21,2100-02-01,2100-02-05,1,70\n"
)
NOTES = (
    "note_id,subject_id,stay_id,category,available_at,text\n"
    f'a,1,11,Discharge summary,2100-01-04,"{SECRET}, with ""quotes"",\nand 3,4,5\nlines\n"\n'
    "b,2,21,Discharge summary,2100-02-05 08:00:00,short\n"
)

Open = Callable[..., HospitalDatabase]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens a folder of plain files, given by name; bytes as they are."""
    hospitals: list[HospitalDatabase] = []

    def open_(files: dict[str, str | bytes], **spec: object) -> HospitalDatabase:
        folder = tmp_path / "plain"
        folder.mkdir(exist_ok=True)
        for name, content in ({"stays.csv": STAYS, "notes.csv": NOTES} | files).items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        settings = {"name": "files", "path": folder} | spec
        hospitals.append(
            hospital.open_hospital_database(SourceSpec.model_validate(settings), tmp_path / "work")
        )
        return hospitals[-1]

    yield open_
    for database in hospitals:
        database.connection.close()


def rows(database: HospitalDatabase, query: str) -> list[tuple[object, ...]]:
    answer: list[tuple[object, ...]] = database.connection.execute(query).fetchall()
    return answer


def steps(database: HospitalDatabase) -> dict[str, Attrition]:
    """By step; every one of them balances."""
    for step in database.attrition:
        assert step.entered_rows == step.kept_rows + sum(step.dropped_rows.values())
    return {step.step: step for step in database.attrition}


def test_plain_files_become_the_canonical_tables(opened: Open) -> None:
    database = opened({})
    assert rows(
        database,
        "SELECT subject_id, stay_id, discharged_at::VARCHAR, died_in_hospital, age_years FROM stay",
    ) == [
        (1, 11, "2100-01-04 10:00:00", False, 60.0),
        (2, 21, "2100-02-05 00:00:00", True, 70.0),
    ]
    assert set(database.missing_tables) == {"icu_stay", "diagnosis", "procedure"}


def test_a_note_of_many_lines_with_commas_and_quotes_is_one_note(opened: Open) -> None:
    database = opened({})
    attrition = database.read_notes(())
    assert (attrition.entered_rows, attrition.kept_rows) == (2, 2)
    assert rows(database, "SELECT text FROM note ORDER BY note_id") == [
        (f'{SECRET}, with "quotes",\nand 3,4,5\nlines\n',),
        ("short",),
    ]
    times = rows(database, "SELECT available_at::VARCHAR FROM note ORDER BY note_id")
    assert times == [
        ("2100-01-04 23:59:59",),
        ("2100-02-05 08:00:00",),
    ]  # a date is available at the end of the day


def test_a_gzipped_file_reads_like_a_plain_one(opened: Open, tmp_path: Path) -> None:
    database = opened({})
    (tmp_path / "plain" / "notes.csv").unlink()
    (tmp_path / "plain" / "notes.csv.gz").write_bytes(gzip.compress(NOTES.encode()))
    assert database.read_notes(()).kept_rows == 2


def test_a_table_that_is_there_twice_is_refused(opened: Open) -> None:
    with pytest.raises(SourceError, match=r"twice: notes\.csv, notes\.csv\.gz"):
        opened({"notes.csv.gz": gzip.compress(NOTES.encode())})


def test_columns_are_found_by_the_map(opened: Open) -> None:
    stays = STAYS.replace("subject_id,stay_id", "PatientNo,CaseNo")
    database = opened(
        {"stays.csv": stays}, columns={"subject_id": "PatientNo", "stay_id": "CaseNo"}
    )
    assert rows(database, "SELECT stay_id FROM stay") == [(11,), (21,)]


def test_a_map_with_an_unknown_name_gets_the_nearest_one(opened: Open) -> None:
    with pytest.raises(RecipeError, match="'subject_id'"):
        opened({}, columns={"subject": "PatientNo"})


def test_a_missing_table_is_named_with_what_it_is_needed_for(tmp_path: Path) -> None:
    (tmp_path / "mimic").mkdir()
    with pytest.raises(SourceError, match=r"ADMISSIONS.* the stays of every cohort"):
        hospital.open_hospital_database(
            SourceSpec(name="mimic-iii", path=tmp_path / "mimic"), tmp_path / "work"
        )


def test_a_missing_column_is_named_with_what_it_is_needed_for(opened: Open) -> None:
    with pytest.raises(SourceError, match=r"'stay_id'.* the stays of every cohort"):
        opened({"stays.csv": STAYS.replace("stay_id", "stay")})


def test_a_truncated_gzip_is_refused(opened: Open, tmp_path: Path) -> None:
    database = opened({})
    (tmp_path / "plain" / "notes.csv").unlink()
    whole = gzip.compress(NOTES.encode() * 50)
    (tmp_path / "plain" / "notes.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"cut off(.|\n)*notes.csv.gz"):
        database.read_notes(())


def test_a_damaged_gzip_is_refused(opened: Open, tmp_path: Path) -> None:
    database = opened({})
    (tmp_path / "plain" / "notes.csv").unlink()
    damaged = bytearray(gzip.compress(NOTES.encode()))
    damaged[-6] ^= 0xFF  # its checksum
    (tmp_path / "plain" / "notes.csv.gz").write_bytes(bytes(damaged))
    with pytest.raises(SourceError, match=r"damaged(.|\n)*notes.csv.gz"):
        database.read_notes(())


@pytest.mark.parametrize("rest", ["", "and on\nfor many\nlines\n" * 1000])
def test_a_quoted_field_that_is_never_closed_is_refused(opened: Open, rest: str) -> None:
    database = opened(
        {"notes.csv": NOTES + f'c,1,11,Discharge summary,2100-01-04,"{SECRET}\n{rest}'}
    )
    with pytest.raises(SourceError, match=r"never closed(.|\n)*notes.csv"):
        database.read_notes(())


def test_duckdb_alone_would_lose_the_rest_of_that_file_in_silence(tmp_path: Path) -> None:
    """Why the quotes are counted first; when this fails, DuckDB has learned to complain, and one
    reading can be saved."""
    (tmp_path / "open.csv").write_text('n,text\n1,ok\n2,"never closed\n')
    query = f"""SELECT count(*) FROM read_csv('{tmp_path / "open.csv"}', header = true,
        auto_detect = false, strict_mode = true, columns = {{'n': 'VARCHAR', 'text': 'VARCHAR'}},
        delim = ',', quote = '"', escape = '"', parallel = false)"""
    with duckdb.connect() as connection:
        assert connection.execute(query).fetchall() == [(1,)]


def test_a_row_that_cannot_be_read_is_counted_with_its_place(opened: Open) -> None:
    database = opened(
        {"notes.csv": NOTES + "c,1,11\n" + "d,1,11,Discharge summary,2100-01-04,more\n"},
        max_bad_fraction=0.5,
    )
    attrition = database.read_notes(())
    assert (attrition.entered_rows, attrition.kept_rows) == (4, 3)
    assert attrition.dropped_rows == Counter({"unreadable: wrong number of columns": 1})
    assert attrition.locations["unreadable: wrong number of columns"] == ["notes.csv: row 3"]


def test_too_many_bad_rows_stop_the_reading_without_a_word_of_a_note(opened: Open) -> None:
    database = opened(
        {"notes.csv": NOTES + f'c,1,11,Discharge summary,2100-01-04,"{SECRET}"{SECRET}"x"\n'}
    )
    with pytest.raises(SourceError, match=r"1 of 3 rows(.|\n)*row 3") as error:
        database.read_notes(())
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_stays_that_contradict_themselves_are_counted_out(opened: Open) -> None:
    stays = STAYS + (
        "3,31,2100-03-05,2100-03-01,0,50\n"  # discharged before admitted
        "4,41,yesterday,2100-03-01,0,50\n"
        "5,51,2100-03-01,2100-13-01,0,50\n"
        "2,21,2100-02-01,2100-02-05,1,70\n"  # the same again
        "6,61,2100-03-01,2100-03-02,0,50\n"
        "7,61,2100-03-01,2100-03-02,0,50\n"  # whose is it?
        "x,71,2100-03-01,2100-03-02,0,50\n"
        "8,81.0,2100-03-01,,,\n"  # a number as pandas writes it, and nothing known
    )
    database = opened({"stays.csv": stays})
    step = steps(database)["stay: stays.csv"]
    assert step.entered_rows == 10
    assert step.dropped_rows == Counter(
        {
            "discharged before admitted": 1,
            "admission time does not parse": 1,
            "discharge time does not parse": 1,
            "stay id repeated": 1,
            "stay id shared by two people": 2,
            "subject or stay is not a whole number": 1,
        }
    )
    assert step.locations["stay id repeated"] == ["stays.csv: row 6"]
    assert rows(
        database, "SELECT stay_id, died_in_hospital, discharged_at FROM stay WHERE subject_id = 8"
    ) == [(81, None, None)]


def test_codes_lose_dots_and_blanks_but_no_zeros_and_keep_their_system(opened: Open) -> None:
    codes = (
        "subject_id,stay_id,kind,system,code\n"
        "1,11,diagnosis,ICD-9,401.9\n"
        "1,11,diagnosis,icd10, I10 \n"  # two systems in one stay
        "1,11,procedure,icd9,03.31\n"
        "1,11,diagnosis,icd9,\n"
        "1,11,diagnosis,snomed,38341003\n"
        "1,99,diagnosis,icd9,4019\n"
        "1,11,finding,icd9,4019\n"
    )
    database = opened({"codes.csv": codes})
    assert rows(database, "SELECT kind, system, code FROM code ORDER BY ALL") == [
        ("diagnosis", "icd10", "I10"),
        ("diagnosis", "icd9", "4019"),
        ("procedure", "icd9", "0331"),
    ]
    assert steps(database)["diagnosis: codes.csv"].dropped_rows == Counter(
        {
            "no code": 1,
            "code system unknown": 1,
            "its hospital stay is not among the stays": 1,
            "neither a diagnosis nor a procedure": 1,
        }
    )
    assert (
        steps(database)["diagnosis: codes.csv"].entered_rows
        + steps(database)["procedure: codes.csv"].entered_rows
        == 7
    )


def test_notes_that_are_none_are_counted_out(opened: Open) -> None:
    notes = NOTES + (
        "c,x,11,Discharge summary,2100-01-04,whose\n"
        "d,1,11,Discharge summary,2100-01-04,\n"
        "e,1,11,Discharge summary,soon,when\n"
        "f,1,eleven,Discharge summary,2100-01-04,where\n"
        "g,1,11,Nursing,2100-01-04,other\n"
        "h,1,,Discharge summary,,of no stay and no time\n"
        "i,1,11,Discharge summary,2100-01-04,a \0 byte\n"
    )
    database = opened({"notes.csv": notes})
    attrition = database.read_notes(("discharge summary",))
    assert (attrition.entered_rows, attrition.kept_rows) == (9, 3)
    assert attrition.dropped_rows == Counter(
        {
            "subject is not a whole number": 1,
            "empty note": 1,
            "a time does not parse": 1,
            "stay is not a whole number": 1,
            "category not asked for": 1,
            "unreadable: NUL character": 1,
        }
    )
    assert rows(database, "SELECT stay_id, available_at FROM note WHERE note_id = 'h'") == [
        (None, None)
    ]


def test_omop_visits_deaths_codes_and_notes_become_the_canonical_tables(tmp_path: Path) -> None:
    folder = tmp_path / "omop"
    folder.mkdir()
    files = {
        "PERSON": (
            "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,race_source_value\n"
            "1,8507,2040,1,1,white\n2,8532,2050,,,\n"
        ),
        "VISIT_OCCURRENCE": (
            "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,visit_end_datetime\n"
            "11,1,9201,2100-01-01,2100-01-01 08:00:00,2100-01-05,2100-01-05 10:00:00\n"
            "12,1,9202,2100-02-01,,2100-02-01,\n"
            "21,2,262,2100-03-01,,2100-03-04,\n"
        ),
        "DEATH": "person_id,death_date,death_datetime\n2,2100-03-04,\n",
        "CONDITION_OCCURRENCE": (
            "person_id,visit_occurrence_id,condition_source_value,condition_source_concept_id\n"
            "1,11,I10,35207668\n1,11,E879,44826762\n1,11,Z99,1\n"
        ),
        "CONCEPT": (
            'concept_id\tvocabulary_id\tconcept_name\n35207668\tICD10CM\tEssential 3" '
            "hypertension\n44826762\tICD9CM\tOther\n"
        ),
        "NOTE": (
            "note_id,person_id,visit_occurrence_id,note_date,note_datetime,note_title,note_class_concept_id,note_text\n"
            "1,1,11,2100-01-05,2100-01-05 00:00:00,Inpatient Discharge Summary,0,went home\n"
            "2,1,11,2100-01-01,2100-01-01 09:30:00,H&P,44814638,came in\n"
            "3,2,21,2100-03-04,,Brief,777,died\n"
        ),
    }
    for name, content in files.items():
        (folder / f"{name}.csv").write_text(content)
    database = hospital.open_hospital_database(
        SourceSpec(name="omop", path=folder, parts=("777",)), tmp_path / "work"
    )
    assert rows(
        database,
        (
            "SELECT stay_id, admitted_at::VARCHAR, died_in_hospital, round(age_years), sex "
            "FROM stay ORDER BY ALL"
        ),
    ) == [
        (11, "2100-01-01 08:00:00", False, 60.0, "M"),
        (21, "2100-03-01 00:00:00", True, 50.0, "F"),
    ]
    assert steps(database)["stay: VISIT_OCCURRENCE.csv"].dropped_rows == Counter(
        {"not an inpatient visit": 1}
    )
    assert rows(database, "SELECT system, code FROM code ORDER BY ALL") == [
        ("icd10", "I10"),
        ("icd9", "E879"),
    ]
    assert steps(database)["diagnosis: CONDITION_OCCURRENCE.csv"].dropped_rows == Counter(
        {"code system unknown": 1}
    )
    attrition = database.read_notes(("discharge summary",))
    assert (attrition.entered_rows, attrition.kept_rows) == (3, 2)
    assert rows(database, "SELECT note_id, available_at::VARCHAR FROM note ORDER BY ALL") == [
        ("1", "2100-01-05 23:59:59"),
        ("3", "2100-03-04 23:59:59"),
    ]
    database.connection.close()


@pytest.fixture(scope="module")
def demo_iii(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HospitalDatabase]:
    folder = shared_data / "mimic3_demo_1.4"
    if not folder.is_dir():
        pytest.skip("the MIMIC-III demo is not among the open data")
    database = hospital.open_hospital_database(
        SourceSpec(name="mimic-iii", path=folder), tmp_path_factory.mktemp("work")
    )
    yield database
    database.connection.close()


@pytest.fixture(scope="module")
def demo_iv(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HospitalDatabase]:
    folder = shared_data / "mimic4_demo_2.2"
    if not folder.is_dir():
        pytest.skip("the MIMIC-IV demo is not among the open data")
    database = hospital.open_hospital_database(
        SourceSpec(name="mimic-iv", path=folder), tmp_path_factory.mktemp("work")
    )
    yield database
    database.connection.close()


def by_hand(query: str, folder: Path, **files: str) -> list[tuple[object, ...]]:
    """A query over files read by DuckDB's own guess, everything as text."""
    views = ", ".join(
        f"{name} AS (SELECT * FROM read_csv('{folder / file}', all_varchar = true, header = true))"
        for name, file in files.items()
    )
    with duckdb.connect() as connection:
        answer: list[tuple[object, ...]] = connection.execute(f"WITH {views} {query}").fetchall()
    return answer


def test_the_mimic_iii_demo_is_read_whole(demo_iii: HospitalDatabase) -> None:
    counts = (
        "SELECT (SELECT count(*) FROM stay), (SELECT count(*) FROM icu_stay), (SELECT count(*) "
        "FROM code)"
    )
    assert rows(demo_iii, counts) == [(129, 136, 1761 + 506)]
    assert all(not step.dropped_rows for step in demo_iii.attrition)
    died = by_hand(
        "SELECT count(*) FROM a WHERE hospital_expire_flag = '1'",
        demo_iii.folder,
        a="ADMISSIONS.csv",
    )
    assert rows(demo_iii, "SELECT count(*) FROM stay WHERE died_in_hospital") == died
    assert demo_iii.read_notes(()).entered_rows == 0  # a header and no rows


def test_ages_above_89_are_not_300_years_in_the_mimic_iii_demo(demo_iii: HospitalDatabase) -> None:
    shifted = by_hand(
        (
            "SELECT count(*) FROM a JOIN p USING (subject_id) WHERE date_diff('year', "
            "p.dob::TIMESTAMP, a.admittime::TIMESTAMP) > 150"
        ),
        demo_iii.folder,
        a="ADMISSIONS.csv",
        p="PATIENTS.csv",
    )
    assert shifted[0][0] != 0
    assert rows(demo_iii, "SELECT count(*) FROM stay WHERE age_years = 91.4") == shifted
    assert rows(
        demo_iii, "SELECT count(*) FROM stay WHERE age_years > 91.4 OR age_years IS NULL"
    ) == [(0,)]


def test_leading_zeros_of_the_mimic_iii_demo_survive(demo_iii: HospitalDatabase) -> None:
    zeros = by_hand(
        "SELECT icd9_code, count(*) FROM p WHERE icd9_code LIKE '0%' GROUP BY 1 ORDER BY 1",
        demo_iii.folder,
        p="PROCEDURES_ICD.csv",
    )
    assert zeros
    assert (
        rows(
            demo_iii,
            (
                "SELECT code, count(*) FROM code WHERE kind = 'procedure' AND code LIKE '0%' "
                "GROUP BY 1 ORDER BY 1"
            ),
        )
        == zeros
    )


def test_the_mimic_iv_demo_is_read_whole_with_both_versions_of_icd(
    demo_iv: HospitalDatabase,
) -> None:
    counts = (
        "SELECT (SELECT count(*) FROM stay), (SELECT count(*) FROM icu_stay), (SELECT count(*) "
        "FROM code WHERE kind = 'diagnosis')"
    )
    assert rows(demo_iv, counts) == [(275, 140, 4506)]
    versions = by_hand(
        "SELECT 'icd' || icd_version, count(*) FROM d GROUP BY 1 ORDER BY 1",
        demo_iv.folder,
        d="hosp/diagnoses_icd.csv.gz",
    )
    assert len(versions) == 2
    assert (
        rows(
            demo_iv,
            "SELECT system, count(*) FROM code WHERE kind = 'diagnosis' GROUP BY 1 ORDER BY 1",
        )
        == versions
    )
    assert rows(demo_iv, "SELECT count(*) FROM stay WHERE died_in_hospital") == [(15,)]
    assert set(demo_iv.missing_tables) == {"note"}


def fingerprinted(folder: Path, **spec: object) -> str:
    return hospital.fingerprint_hospital(
        SourceSpec.model_validate({"name": "files", "path": folder} | spec)
    )


def test_the_fingerprint_follows_every_table_and_not_the_folder(tmp_path: Path) -> None:
    tables = {"stays.csv": STAYS, "notes.csv": NOTES, "codes.csv": "a", "icu_stays.csv": "b"}
    for location in ("here", "there"):
        (tmp_path / location).mkdir()
        for name, content in tables.items():
            (tmp_path / location / name).write_text(content)
    whole = fingerprinted(tmp_path / "here")
    assert whole == fingerprinted(tmp_path / "there") and len(whole) == 64
    fingerprints = {whole}
    for name, content in tables.items():
        (tmp_path / "there" / name).write_text(content + "\n")
        fingerprints.add(fingerprinted(tmp_path / "there"))
    (tmp_path / "there" / "codes.csv").unlink()
    fingerprints.add(fingerprinted(tmp_path / "there"))
    (tmp_path / "there" / "of_no_interest.csv").write_text("x")
    assert len(fingerprints) == 6 and fingerprinted(tmp_path / "there") in fingerprints


def test_the_fingerprint_covers_the_charted_events_that_are_read_in_place(tmp_path: Path) -> None:
    for name in ("ADMISSIONS", "PATIENTS", "CHARTEVENTS"):
        (tmp_path / f"{name}.csv").write_text(name)
    before = fingerprinted(tmp_path, name="mimic-iii")
    (tmp_path / "CHARTEVENTS.csv").write_text("another")
    assert fingerprinted(tmp_path, name="mimic-iii") != before
    (tmp_path / "ADMISSIONS.csv").unlink()
    with pytest.raises(SourceError, match=r"ADMISSIONS.* the stays of every cohort"):
        fingerprinted(tmp_path, name="mimic-iii")


def test_of_a_large_file_size_beginning_and_end_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hospital, "MAX_WHOLE_HASH_BYTES", 10)
    monkeypatch.setattr(hospital, "HASHED_END_BYTES", 3)
    fingerprints = []
    for content in (
        "abc-------xyz",
        "Abc-------xyz",
        "abc-------xyZ",
        "abc------xyz",
        "abc---?---xyz",
    ):
        (tmp_path / "stays.csv").write_text(content)
        fingerprints.append(fingerprinted(tmp_path))
    assert (
        len(set(fingerprints[:4])) == 4 and fingerprints[4] == fingerprints[0]
    )  # the middle goes unseen


def test_an_invented_hospital_is_known_by_its_parameters() -> None:
    spec = SourceSpec(name="synthetic", subjects=10)
    assert hospital.fingerprint_hospital(spec) == hospital.fingerprint_hospital(
        SourceSpec(name="synthetic", subjects=10)
    )
    assert hospital.fingerprint_hospital(spec) != hospital.fingerprint_hospital(
        SourceSpec(name="synthetic", subjects=10, seed=5)
    )
