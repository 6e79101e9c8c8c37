"""MIMIC-III v1.4 as PhysioNet ships it: names in capitals (its demo: lower case), ICD-9 only, age above 89 shifted by some 200 years.

A stay's ``year_group`` is DBSOURCE of its first intensive care stay, the only axis of real time there is: CareVue 2001-2008, MetaVision 2008-2012.
``died_at`` is DEATHTIME, and DOD where the death was not in this stay. Notes: see ``sources.mimic`` for when they could first be read.
"""

from __future__ import annotations

from clinpeft.data.hospital.raw_tables import Shipped, needed
from clinpeft.data.hospital.standard_tables import Layout, Part
from clinpeft.recipe import SourceSpec

ADMISSIONS = Shipped(
    "ADMISSIONS",
    needed(
        "the stays of every cohort",
        "subject_id",
        "hadm_id",
        "admittime",
        "dischtime",
        "deathtime",
        "admission_type",
        "hospital_expire_flag",
    ),
    optional=("ethnicity", "language", "insurance"),
)
PATIENTS = Shipped(
    "PATIENTS", needed("age and sex of the stays", "subject_id", "gender", "dob", "dod")
)
ICUSTAYS = Shipped(
    "ICUSTAYS",
    needed(
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
DIAGNOSES = Shipped(
    "DIAGNOSES_ICD",
    needed("diagnosis labels and exclusions", "subject_id", "hadm_id", "seq_num", "icd9_code"),
)
PROCEDURES = Shipped(
    "PROCEDURES_ICD", needed("procedure labels", "subject_id", "hadm_id", "seq_num", "icd9_code")
)
DIAGNOSIS_TITLES = Shipped(
    "D_ICD_DIAGNOSES", needed("names of diagnoses", "icd9_code", "long_title")
)
PROCEDURE_TITLES = Shipped(
    "D_ICD_PROCEDURES", needed("names of procedures", "icd9_code", "long_title")
)
NOTEEVENTS = Shipped(
    "NOTEEVENTS",
    needed(
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

_STAY = """
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

_ICU_STAY = """
SELECT "row", NULL::VARCHAR AS lost, subject_id, hadm_id AS stay_id, icustay_id AS icu_stay_id, first_careunit AS care_unit,
    intime AS began_at, outtime AS ended_at FROM raw_icustays
"""

_CODE = """
SELECT "row", NULL::VARCHAR AS lost, subject_id, hadm_id AS stay_id, 'icd9' AS system, icd9_code AS code, seq_num AS "sequence" FROM {raw}
"""

_TITLE = """
SELECT "row", NULL::VARCHAR AS lost, '{kind}' AS kind, 'icd9' AS system, icd9_code AS code, long_title AS title FROM {raw}
"""

_NOTE = """
SELECT "row", row_id AS note_id, subject_id, hadm_id AS stay_id, category, description, text,
    coalesce(greatest(moment(storetime), moment(charttime)), end_of_day(moment(chartdate))) AS available_at,
    CASE WHEN trim(iserror) = '1' THEN 'marked as an error (ISERROR = 1)'
         WHEN unparsed(storetime) OR unparsed(charttime) OR unparsed(chartdate) THEN 'a time does not parse' END AS lost
FROM raw_noteevents
"""


def layout(spec: SourceSpec) -> Layout:
    """The layout of MIMIC-III; nothing in ``spec`` changes it."""
    del spec
    return Layout(
        (
            Part("stay", (ADMISSIONS, PATIENTS), _STAY, extra=(ICUSTAYS,)),
            Part("icu_stay", (ICUSTAYS,), _ICU_STAY),
            Part("diagnosis", (DIAGNOSES,), _CODE.format(raw=DIAGNOSES.raw)),
            Part("procedure", (PROCEDURES,), _CODE.format(raw=PROCEDURES.raw)),
            Part(
                "title",
                (DIAGNOSIS_TITLES,),
                _TITLE.format(kind="diagnosis", raw=DIAGNOSIS_TITLES.raw),
            ),
            Part(
                "title",
                (PROCEDURE_TITLES,),
                _TITLE.format(kind="procedure", raw=PROCEDURE_TITLES.raw),
            ),
            Part("note", (NOTEEVENTS,), _NOTE),
        )
    )
