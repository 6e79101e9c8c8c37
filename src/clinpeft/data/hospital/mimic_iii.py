"""MIMIC-III v1.4 as PhysioNet ships it: names in capitals (its demo: lower case), ICD-9 only, age above 89 shifted by some 200 years.

A stay's ``year_group`` is DBSOURCE of its first intensive care stay, the only axis of real time there is: CareVue 2001-2008, MetaVision 2008-2012.
``died_at`` is DEATHTIME, and DOD where the death was not in this stay. Notes: see ``sources.mimic`` for when they could first be read.
"""

from __future__ import annotations

from clinpeft.data.hospital.raw_tables import RawTable, build_column_purposes
from clinpeft.data.hospital.standard_tables import HospitalLayout, TablePart
from clinpeft.recipe import SourceSpec

MIMIC_III_ADMISSIONS = RawTable(
    "ADMISSIONS",
    build_column_purposes(
        "the stays of every cohort",
        "subject_id",
        "hadm_id",
        "admittime",
        "dischtime",
        "deathtime",
        "admission_type",
        "hospital_expire_flag",
    ),
    optional_columns=("ethnicity", "language", "insurance"),
)
MIMIC_III_PATIENTS = RawTable(
    "PATIENTS",
    build_column_purposes("age and sex of the stays", "subject_id", "gender", "dob", "dod"),
)
MIMIC_III_ICUSTAYS = RawTable(
    "ICUSTAYS",
    build_column_purposes(
        "intensive care",
        "subject_id",
        "hadm_id",
        "icustay_id",
        "dbsource",
        "first_careunit",
        "intime",
        "outtime",
    ),
)
MIMIC_III_DIAGNOSES = RawTable(
    "DIAGNOSES_ICD",
    build_column_purposes(
        "diagnosis labels and exclusions", "subject_id", "hadm_id", "seq_num", "icd9_code"
    ),
)
MIMIC_III_PROCEDURES = RawTable(
    "PROCEDURES_ICD",
    build_column_purposes("procedure labels", "subject_id", "hadm_id", "seq_num", "icd9_code"),
)
MIMIC_III_DIAGNOSIS_TITLES = RawTable(
    "D_ICD_DIAGNOSES", build_column_purposes("names of diagnoses", "icd9_code", "long_title")
)
MIMIC_III_PROCEDURE_TITLES = RawTable(
    "D_ICD_PROCEDURES", build_column_purposes("names of procedures", "icd9_code", "long_title")
)
MIMIC_III_NOTEEVENTS = RawTable(
    "NOTEEVENTS",
    build_column_purposes(
        "what is read",
        "row_id",
        "subject_id",
        "hadm_id",
        "chartdate",
        "charttime",
        "storetime",
        "category",
        "description",
        "iserror",
        "text",
    ),
)

_STAY_QUERY = """
SELECT a."row", NULL::VARCHAR AS lost, a.subject_id, a.hadm_id AS stay_id, a.admittime AS admitted_at, a.dischtime AS discharged_at,
    coalesce(given(a.deathtime), p.dod) AS died_at, a.hospital_expire_flag AS died_in_hospital,
    date_diff('day', moment(p.dob), moment(a.admittime)) / 365.2425 AS years,
    CASE WHEN years >= 90 THEN 91.4 ELSE years END AS age_years,  -- the median age of those shifted
    p.gender AS sex, a.ethnicity AS race, a.language, a.insurance, a.admission_type, i.first_careunit AS care_unit, i.dbsource AS year_group,
    NULL::VARCHAR AS site
FROM raw_admissions a
LEFT JOIN (SELECT DISTINCT ON (whole(subject_id)) whole(subject_id) AS person, gender, dob, dod FROM raw_patients ORDER BY "row") p
    ON p.person = whole(a.subject_id)
LEFT JOIN (SELECT DISTINCT ON (whole(hadm_id)) whole(hadm_id) AS stay, first_careunit, dbsource FROM raw_icustays ORDER BY moment(intime), "row") i
    ON i.stay = whole(a.hadm_id)
"""

_ICU_STAY_QUERY = """
SELECT "row", NULL::VARCHAR AS lost, subject_id, hadm_id AS stay_id, icustay_id AS icu_stay_id, first_careunit AS care_unit,
    intime AS began_at, outtime AS ended_at FROM raw_icustays
"""

_CODE_QUERY = """
SELECT "row", NULL::VARCHAR AS lost, subject_id, hadm_id AS stay_id, 'icd9' AS system, icd9_code AS code, seq_num AS "sequence" FROM {raw}
"""

_TITLE_QUERY = """
SELECT "row", NULL::VARCHAR AS lost, '{kind}' AS kind, 'icd9' AS system, icd9_code AS code, long_title AS title FROM {raw}
"""

_NOTE_QUERY = """
SELECT "row", row_id AS note_id, subject_id, hadm_id AS stay_id, category, description, text,
    coalesce(greatest(moment(storetime), moment(charttime)), end_of_day(moment(chartdate))) AS available_at,
    CASE WHEN trim(iserror) = '1' THEN 'marked as an error (ISERROR = 1)'
         WHEN unparsed(storetime) OR unparsed(charttime) OR unparsed(chartdate) THEN 'a time does not parse' END AS lost
FROM raw_noteevents
"""


def build_mimic_iii_layout(spec: SourceSpec) -> HospitalLayout:
    """The layout of MIMIC-III; nothing in ``spec`` changes it."""
    del spec
    return HospitalLayout(
        (
            TablePart(
                "stay",
                (MIMIC_III_ADMISSIONS, MIMIC_III_PATIENTS),
                _STAY_QUERY,
                optional_tables=(MIMIC_III_ICUSTAYS,),
            ),
            TablePart("icu_stay", (MIMIC_III_ICUSTAYS,), _ICU_STAY_QUERY),
            TablePart(
                "diagnosis",
                (MIMIC_III_DIAGNOSES,),
                _CODE_QUERY.format(raw=MIMIC_III_DIAGNOSES.raw_name),
            ),
            TablePart(
                "procedure",
                (MIMIC_III_PROCEDURES,),
                _CODE_QUERY.format(raw=MIMIC_III_PROCEDURES.raw_name),
            ),
            TablePart(
                "title",
                (MIMIC_III_DIAGNOSIS_TITLES,),
                _TITLE_QUERY.format(kind="diagnosis", raw=MIMIC_III_DIAGNOSIS_TITLES.raw_name),
            ),
            TablePart(
                "title",
                (MIMIC_III_PROCEDURE_TITLES,),
                _TITLE_QUERY.format(kind="procedure", raw=MIMIC_III_PROCEDURE_TITLES.raw_name),
            ),
            TablePart("note", (MIMIC_III_NOTEEVENTS,), _NOTE_QUERY),
        )
    )
