"""The tables that cohorts are built from, in the layout and the sizes of MIMIC-III, with nothing in
them but random words: for measuring only.

``clinpeft.data.synthetic`` invents patients whose notes say what happens to them; this file only
fills tables, a hundred times as fast, so that the real size can be written in minutes. Words follow
a power law over 30,000, one line in five is one of 5,000 that recur, one summary in fifty is a near
copy of another.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np

SUMMARY_WORDS = 1_500  # a discharge summary of MIMIC-III has some 10,000 characters
OTHER_CHARACTERS = 1_500
SECTIONS = (
    ("Chief Complaint:", 0.005),
    ("History of Present Illness:", 0.15),
    ("Past Medical History:", 0.06),
    ("Medications on Admission:", 0.06),
    ("Allergies:", 0.005),
    ("Family History:", 0.01),
    ("Social History:", 0.02),
    ("Physical Exam:", 0.1),
    ("Brief Hospital Course:", 0.4),
    ("Discharge Medications:", 0.12),
    ("Discharge Disposition:", 0.07),
)
"""Heading -> its share of the words."""


@dataclass(frozen=True)
class Sizes:
    """Rows of each table; the defaults are those of MIMIC-III v1.4, and of CHARTEVENTS what
    ventilation reads and as much beside it."""

    subjects: int = 46_520
    stays: int = 58_976
    icu_stays: int = 61_532
    notes: int = 2_083_180
    summaries: int = 59_652
    charted: int = 20_000_000
    diagnoses: int = 651_047
    procedures: int = 240_095

    def scaled(self, fraction: float) -> Sizes:
        """The same hospital, smaller."""
        return Sizes(
            **{name: max(1, round(rows * fraction)) for name, rows in asdict(self).items()}
        )


def write(folder: Path, sizes: Sizes, seed: int = 1234) -> None:
    """Write the folder, or leave it as it is when it was written with the same sizes and seed."""
    told = json.dumps({"sizes": asdict(sizes), "seed": seed})
    done = folder / "written.json"
    if done.is_file() and done.read_text() == told:
        return
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    with duckdb.connect(
        config={"threads": 2, "memory_limit": "1GB", "temp_directory": str(folder / "spill")}
    ) as connection:
        connection.execute(f"SELECT setseed({(seed % 1000) / 1000})")
        for name, query in _tables(sizes).items():
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS {query}")
            connection.execute(
                f"COPY {name} TO '{folder / f'{name}.csv'}' (HEADER, TIMESTAMPFORMAT "
                "'%Y-%m-%d %H:%M:%S')"
            )
        connection.execute(
            f"COPY ({_charted(sizes)}) TO '{folder / 'CHARTEVENTS.csv'}' (HEADER, "
            "TIMESTAMPFORMAT '%Y-%m-%d %H:%M:%S')"
        )
        owners = connection.execute(
            "SELECT SUBJECT_ID, HADM_ID, DISCHTIME::DATE::VARCHAR FROM ADMISSIONS ORDER BY HADM_ID"
        ).fetchall()
    _write_notes(folder / "NOTEEVENTS.csv", owners, sizes, np.random.default_rng(seed))
    done.write_text(told)


def _tables(sizes: Sizes) -> dict[str, str]:
    """Table -> SELECT, in an order in which each uses only those before it."""
    code = "(random() * random() * {classes})::INTEGER"  # some codes often, many seldom
    return {
        "PATIENTS": f"""SELECT i AS ROW_ID, i AS SUBJECT_ID, if(random() < 0.5, 'F', 'M') AS GENDER,
            TIMESTAMP '2040-01-01' + to_days((random() * 20000)::INTEGER) AS DOB, NULL::TIMESTAMP AS DOD, NULL::TIMESTAMP AS DOD_HOSP,
            NULL::TIMESTAMP AS DOD_SSN, 0 AS EXPIRE_FLAG FROM range({sizes.subjects}) t(i)""",
        "ADMISSIONS": f"""SELECT i AS ROW_ID, i % {sizes.subjects} AS SUBJECT_ID, 100000 + i AS HADM_ID, admitted AS ADMITTIME,
                admitted + to_seconds(seconds) AS DISCHTIME, if(died, DISCHTIME, NULL) AS DEATHTIME,
                if(random() < 0.13, 'NEWBORN', 'EMERGENCY') AS ADMISSION_TYPE, 'ER' AS ADMISSION_LOCATION, 'HOME' AS DISCHARGE_LOCATION,
                'Medicare' AS INSURANCE, 'ENGL' AS LANGUAGE, 'NONE' AS RELIGION, 'SINGLE' AS MARITAL_STATUS, 'WHITE' AS ETHNICITY,
                NULL AS EDREGTIME, NULL AS EDOUTTIME, 'FEVER' AS DIAGNOSIS, died::INTEGER AS HOSPITAL_EXPIRE_FLAG, 1 AS HAS_CHARTEVENTS_DATA
            FROM (SELECT i, TIMESTAMP '2110-01-01' + to_days(400 * (i // {sizes.subjects}) + (random() * 300)::INTEGER) AS admitted,
                (3600 * 24 * (1 + 20 * random() * random()))::INTEGER AS seconds, random() < 0.1 AS died FROM range({sizes.stays}) t(i))""",
        "ICUSTAYS": f"""SELECT i AS ROW_ID, SUBJECT_ID, HADM_ID, 200000 + i AS ICUSTAY_ID, 'carevue' AS DBSOURCE, 'MICU' AS FIRST_CAREUNIT,
            'MICU' AS LAST_CAREUNIT, 1 AS FIRST_WARDID, 1 AS LAST_WARDID, ADMITTIME AS INTIME, DISCHTIME AS OUTTIME, 1.0 AS LOS
            FROM range({sizes.icu_stays}) t(i) JOIN ADMISSIONS a ON a.ROW_ID = i % {sizes.stays}""",
        "DIAGNOSES_ICD": f"""SELECT i AS ROW_ID, SUBJECT_ID, HADM_ID, i // {sizes.stays} AS SEQ_NUM,
            lpad((10 * {code.format(classes=900)} + (random() * 9)::INTEGER)::VARCHAR, 4, '0') AS ICD9_CODE
            FROM range({sizes.diagnoses}) t(i) JOIN ADMISSIONS a ON a.ROW_ID = i % {sizes.stays}""",
        "PROCEDURES_ICD": f"""SELECT i AS ROW_ID, SUBJECT_ID, HADM_ID, i // {sizes.stays} AS SEQ_NUM,
            lpad((10 * {code.format(classes=700)} + (random() * 9)::INTEGER)::VARCHAR, 4, '0') AS ICD9_CODE
            FROM range({sizes.procedures}) t(i) JOIN ADMISSIONS a ON a.ROW_ID = i % {sizes.stays}""",
        "PROCEDUREEVENTS_MV": """SELECT ROW_ID, SUBJECT_ID, HADM_ID, ICUSTAY_ID, INTIME + INTERVAL 5 DAY AS STARTTIME,
            INTIME + INTERVAL 5 DAY AS ENDTIME, 227194 AS ITEMID, 'FinishedRunning' AS STATUSDESCRIPTION FROM ICUSTAYS WHERE ROW_ID % 3 = 0""",
    }


def _charted(sizes: Sizes) -> str:
    """Every ICU stay is charted each half hour from its admission on: one stay in two with a
    ventilator setting, the other with a heart rate."""
    return f"""SELECT i AS ROW_ID, SUBJECT_ID, HADM_ID, ICUSTAY_ID, if(c.ROW_ID % 2 = 0, 211, 224687) AS ITEMID,
        INTIME + to_minutes((30 * (i // {sizes.icu_stays}))::INTEGER) AS CHARTTIME, CHARTTIME AS STORETIME, 1 AS CGID,
        if(c.ROW_ID % 2 = 0, '80', '8.5') AS VALUE, NULL AS VALUENUM, 'L/min' AS VALUEUOM, NULL AS WARNING, NULL AS ERROR, NULL AS RESULTSTATUS,
        NULL AS STOPPED
        FROM range({sizes.charted}) t(i) JOIN ICUSTAYS c ON c.ROW_ID = i % {sizes.icu_stays}"""


def _write_notes(
    path: Path, owners: Sequence[tuple[int, int, str]], sizes: Sizes, generator: np.random.Generator
) -> None:
    header = [
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
    ]
    words = _Words(generator)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number, text in enumerate(_summaries(words, sizes.summaries)):
            subject, stay, day = owners[number % len(owners)]
            kind = "Addendum" if number >= len(owners) else "Report"
            writer.writerow(
                [number, subject, stay, day, "", "", "Discharge summary", kind, "", "", text]
            )
        pool = "\n".join(words.prose(20) for _ in range(20_000))
        starts = generator.integers(0, len(pool) - OTHER_CHARACTERS, sizes.notes - sizes.summaries)
        for number, start in enumerate(starts.tolist(), start=sizes.summaries):
            subject, stay, day = owners[number % len(owners)]
            writer.writerow(
                [
                    number,
                    subject,
                    stay,
                    day,
                    "",
                    "",
                    "Nursing/other",
                    "Report",
                    "",
                    "",
                    pool[start : start + OTHER_CHARACTERS],
                ]
            )


class _Words:
    """Words by a power law, and sentences of which some recur."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        letters = np.array(list("abcdefghijklmnoprstuvw"))
        self.vocabulary = [
            "".join(generator.choice(letters, length))
            for length in generator.integers(3, 12, 30_000)
        ]
        self.recurring = [self._drawn(12) for _ in range(5_000)]

    def _drawn(self, many: int) -> str:
        places = (len(self.vocabulary) * self.generator.random(many) ** 4).astype(np.int64).tolist()
        return " ".join([self.vocabulary[location] for location in places])

    def prose(self, many: int) -> str:
        """So many words, in lines of twelve; one line in five is one that recurs."""
        drawn = self._drawn(many).split(" ")
        lines = [" ".join(drawn[at : at + 12]) for at in range(0, many, 12)]
        for at, location in zip(
            range(2, len(lines), 5),
            self.generator.integers(0, len(self.recurring), len(lines)).tolist(),
            strict=False,
        ):
            lines[at] = self.recurring[location]
        return "\n".join(lines)


def _summaries(words: _Words, many: int) -> Iterator[str]:
    before = ""
    for number in range(many):
        if number % 50 == 49:
            yield before.replace("Social History:\n", "Social History:\n[**2151-7-16**] ")
            continue
        size = SUMMARY_WORDS * words.generator.lognormal(0.0, 0.4)
        before = (
            "\n\n".join(
                f"{heading}\n{words.prose(max(2, int(size * share)))}"
                for heading, share in SECTIONS
            )
            + "\n"
        )
        yield before
