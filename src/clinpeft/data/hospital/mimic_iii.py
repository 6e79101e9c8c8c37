"""MIMIC-III v1.4 as PhysioNet ships it: upper-case names (lower-case in the demo), ICD-9 only.

``year_group`` is DBSOURCE of the first intensive care stay, the only axis of real time in the data:
CareVue 2001-2008, MetaVision 2008-2012. ``died_at`` is DEATHTIME, or DOD where the patient did not
die in this stay. A note is available from the later of STORETIME and CHARTTIME, or from the end of
the day of CHARTDATE where it has neither.

Source: Johnson et al. 2016, MIMIC-III, a freely accessible critical care database (Scientific Data
3:160035), and the schema pages of the data set.
"""

from __future__ import annotations

from clinpeft.data.hospital.raw_tables import RawTable, build_column_purposes
from clinpeft.data.hospital.standard_tables import HospitalLayout, TablePart, build_coded_layout
from clinpeft.recipe import SourceSpec

# Names of tables and columns are those of the schema pages; columns in lower case.
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
# Loaded only when notes are read: 2 million rows, 4 GB.
MIMIC_III_NOTEEVENTS = RawTable(
    "NOTEEVENTS",
    build_column_purposes(
        "the text of the notes",
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

# The dates of birth of patients older than 89 are shifted so that they seem about 300 years old;
# their median age is 91.4 years (documentation of MIMIC-III, table PATIENTS).
_STAY_QUERY = """
SELECT a."row", NULL::VARCHAR AS drop_reason, a.subject_id, a.hadm_id AS stay_id,
    a.admittime AS admitted_at, a.dischtime AS discharged_at,
    coalesce(nonblank(a.deathtime), p.dod) AS died_at, a.hospital_expire_flag AS died_in_hospital,
    date_diff('day', to_time(p.dob), to_time(a.admittime)) / 365.2425 AS years,
    CASE WHEN years >= 90 THEN 91.4 ELSE years END AS age_years,
    p.gender AS sex, a.ethnicity AS race, a.language, a.insurance, a.admission_type,
    i.first_careunit AS care_unit, i.dbsource AS year_group, NULL::VARCHAR AS site
FROM raw_admissions a
LEFT JOIN (
    SELECT DISTINCT ON (to_integer(subject_id)) to_integer(subject_id) AS person, gender, dob, dod
    FROM raw_patients ORDER BY "row") p ON p.person = to_integer(a.subject_id)
LEFT JOIN (
    SELECT DISTINCT ON (to_integer(hadm_id)) to_integer(hadm_id) AS stay, first_careunit, dbsource
    FROM raw_icustays ORDER BY to_time(intime), "row") i ON i.stay = to_integer(a.hadm_id)
"""

# ICUSTAY_ID is already unique, and a stay may have several.
_ICU_STAY_QUERY = """
SELECT "row", NULL::VARCHAR AS drop_reason, subject_id, hadm_id AS stay_id,
    icustay_id AS icu_stay_id, first_careunit AS care_unit, intime AS began_at, outtime AS ended_at
FROM raw_icustays
"""

# SEQ_NUM is the priority of a code; 1 is the main diagnosis.
_CODE_QUERY = """
SELECT "row", NULL::VARCHAR AS drop_reason, subject_id, hadm_id AS stay_id, 'icd9' AS system,
    icd9_code AS code, seq_num AS "sequence"
FROM {raw}
"""

_TITLE_QUERY = """
SELECT "row", NULL::VARCHAR AS drop_reason, '{kind}' AS kind, 'icd9' AS system, icd9_code AS code,
    long_title AS title
FROM {raw}
"""

# STORETIME is when a note was saved and CHARTTIME the time it is about; discharge summaries have
# neither, only the date CHARTDATE. ISERROR marks notes that a physician identified as an error.
_NOTE_QUERY = """
SELECT "row", row_id AS note_id, subject_id, hadm_id AS stay_id, category, description, text,
    coalesce(greatest(to_time(storetime), to_time(charttime)), end_of_day(to_time(chartdate)))
        AS available_at,
    CASE WHEN trim(iserror) = '1' THEN 'marked as an error (ISERROR = 1)'
         WHEN is_bad_time(storetime) OR is_bad_time(charttime) OR is_bad_time(chartdate)
         THEN 'a time does not parse' END AS drop_reason
FROM raw_noteevents
"""


def build_mimic_iii_layout(spec: SourceSpec) -> HospitalLayout:
    """The layout of MIMIC-III; nothing in ``spec`` changes it."""
    del spec
    return build_coded_layout(
        stay=TablePart(
            "stay",
            (MIMIC_III_ADMISSIONS, MIMIC_III_PATIENTS),
            _STAY_QUERY,
            optional_tables=(MIMIC_III_ICUSTAYS,),
        ),
        icu_stay=TablePart("icu_stay", (MIMIC_III_ICUSTAYS,), _ICU_STAY_QUERY),
        code_tables={
            "diagnosis": (MIMIC_III_DIAGNOSES, MIMIC_III_DIAGNOSIS_TITLES),
            "procedure": (MIMIC_III_PROCEDURES, MIMIC_III_PROCEDURE_TITLES),
        },
        code_query=_CODE_QUERY,
        title_query=_TITLE_QUERY,
        notes=(TablePart("note", (MIMIC_III_NOTEEVENTS,), _NOTE_QUERY),),
    )
