"""MIMIC-IV 2.2 to 3.1 with MIMIC-IV-Note 2.2 as PhysioNet ships them.

``hosp``, ``icu`` and ``note`` are in one folder. ICD-9 and ICD-10 both occur, so that a code has
its version as its system. ``year_group`` is ``anchor_year_group``, three real years, one for each
subject. ``died_at`` is ``deathtime``, or ``dod`` (a date up to one year after the last discharge)
where the patient did not die in this stay.

Source: Johnson et al. 2023, MIMIC-IV, a freely accessible electronic health record dataset
(Scientific Data 10:1), and the documentation of the data set.
"""

from __future__ import annotations

from clinpeft.data.hospital.raw_tables import RawTable, build_column_purposes
from clinpeft.data.hospital.standard_tables import HospitalLayout, TablePart, build_coded_layout
from clinpeft.recipe import SourceSpec

# Names of tables and columns are those of the documentation.
MIMIC_IV_ADMISSIONS = RawTable(
    "admissions",
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
    optional_columns=("race", "language", "insurance"),
)
MIMIC_IV_PATIENTS = RawTable(
    "patients",
    build_column_purposes(
        "age, sex, year group",
        "subject_id",
        "gender",
        "anchor_age",
        "anchor_year",
        "anchor_year_group",
        "dod",
    ),
)
MIMIC_IV_ICUSTAYS = RawTable(
    "icustays",
    build_column_purposes(
        "intensive care", "subject_id", "hadm_id", "stay_id", "first_careunit", "intime", "outtime"
    ),
)
MIMIC_IV_DIAGNOSES = RawTable(
    "diagnoses_icd",
    build_column_purposes(
        "diagnosis labels and exclusions",
        "subject_id",
        "hadm_id",
        "seq_num",
        "icd_code",
        "icd_version",
    ),
)
MIMIC_IV_PROCEDURES = RawTable(
    "procedures_icd",
    build_column_purposes(
        "procedure labels", "subject_id", "hadm_id", "seq_num", "icd_code", "icd_version"
    ),
)
MIMIC_IV_DIAGNOSIS_TITLES = RawTable(
    "d_icd_diagnoses",
    build_column_purposes("names of diagnoses", "icd_code", "icd_version", "long_title"),
)
MIMIC_IV_PROCEDURE_TITLES = RawTable(
    "d_icd_procedures",
    build_column_purposes("names of procedures", "icd_code", "icd_version", "long_title"),
)
# discharge and radiology, the two note tables of MIMIC-IV-Note, have the same columns.
_NOTE_COLUMNS = build_column_purposes(
    "the text of the notes",
    "note_id",
    "subject_id",
    "hadm_id",
    "note_type",
    "charttime",
    "storetime",
    "text",
)
MIMIC_IV_DISCHARGE = RawTable("discharge", _NOTE_COLUMNS)
MIMIC_IV_RADIOLOGY = RawTable("radiology", _NOTE_COLUMNS)

# Age at admission: years since the anchor year, in which the subject was ``anchor_age``.
_STAY_QUERY = """
SELECT a."row", NULL::VARCHAR AS drop_reason, a.subject_id, a.hadm_id AS stay_id,
    a.admittime AS admitted_at, a.dischtime AS discharged_at,
    coalesce(nonblank(a.deathtime), p.dod) AS died_at, a.hospital_expire_flag AS died_in_hospital,
    to_integer(p.anchor_age) + year(to_time(a.admittime)) - to_integer(p.anchor_year) AS age_years,
    p.gender AS sex, a.race, a.language, a.insurance, a.admission_type,
    i.first_careunit AS care_unit, p.anchor_year_group AS year_group, NULL::VARCHAR AS site
FROM raw_admissions a
LEFT JOIN (
    SELECT DISTINCT ON (to_integer(subject_id)) to_integer(subject_id) AS person, *
    FROM raw_patients ORDER BY "row") p ON p.person = to_integer(a.subject_id)
LEFT JOIN (
    SELECT DISTINCT ON (to_integer(hadm_id)) to_integer(hadm_id) AS stay, first_careunit
    FROM raw_icustays ORDER BY to_time(intime), "row") i ON i.stay = to_integer(a.hadm_id)
"""

# ``stay_id`` of MIMIC-IV is an intensive care stay, ``hadm_id`` the hospital stay.
_ICU_STAY_QUERY = """
SELECT "row", NULL::VARCHAR AS drop_reason, subject_id, hadm_id AS stay_id, stay_id AS icu_stay_id,
    first_careunit AS care_unit, intime AS began_at, outtime AS ended_at
FROM raw_icustays
"""

# A version other than 9 and 10 gives no system, and the row is dropped.
_CODE_QUERY = """
SELECT "row", NULL::VARCHAR AS drop_reason, subject_id, hadm_id AS stay_id, icd_code AS code,
    seq_num AS "sequence",
    CASE to_integer(icd_version) WHEN 9 THEN 'icd9' WHEN 10 THEN 'icd10' END AS system
FROM {raw}
"""

_TITLE_QUERY = """
SELECT "row", NULL::VARCHAR AS drop_reason, '{kind}' AS kind, icd_code AS code,
    long_title AS title,
    CASE to_integer(icd_version) WHEN 9 THEN 'icd9' WHEN 10 THEN 'icd10' END AS system
FROM {raw}
"""

# Note types: discharge summary, its addendum, radiology report, its addendum.
_NOTE_QUERY = """
SELECT "row", note_id, subject_id, hadm_id AS stay_id, text,
    CASE note_type WHEN 'DS' THEN 'Discharge summary' WHEN 'AD' THEN 'Discharge addendum'
                   WHEN 'RR' THEN 'Radiology report' WHEN 'AR' THEN 'Radiology addendum'
                   ELSE note_type END AS category,
    NULL::VARCHAR AS description, greatest(to_time(storetime), {charted}) AS available_at,
    CASE WHEN is_bad_time(storetime) OR is_bad_time(charttime) THEN 'a time does not parse'
    END AS drop_reason
FROM {raw}
"""


def build_mimic_iv_layout(spec: SourceSpec) -> HospitalLayout:
    """The layout of MIMIC-IV; nothing in ``spec`` changes it."""
    del spec
    # The charttime of a discharge summary is a date, that of a radiology report a time.
    discharge_query = _NOTE_QUERY.format(
        raw=MIMIC_IV_DISCHARGE.raw_name, charted="end_of_day(to_time(charttime))"
    )
    radiology_query = _NOTE_QUERY.format(
        raw=MIMIC_IV_RADIOLOGY.raw_name, charted="to_time(charttime)"
    )
    return build_coded_layout(
        stay=TablePart(
            "stay",
            (MIMIC_IV_ADMISSIONS, MIMIC_IV_PATIENTS),
            _STAY_QUERY,
            optional_tables=(MIMIC_IV_ICUSTAYS,),
        ),
        icu_stay=TablePart("icu_stay", (MIMIC_IV_ICUSTAYS,), _ICU_STAY_QUERY),
        code_tables={
            "diagnosis": (MIMIC_IV_DIAGNOSES, MIMIC_IV_DIAGNOSIS_TITLES),
            "procedure": (MIMIC_IV_PROCEDURES, MIMIC_IV_PROCEDURE_TITLES),
        },
        code_query=_CODE_QUERY,
        title_query=_TITLE_QUERY,
        notes=(
            TablePart(
                "note",
                (MIMIC_IV_DISCHARGE,),
                discharge_query,
                categories=("discharge summary", "discharge addendum"),
            ),
            TablePart(
                "note",
                (MIMIC_IV_RADIOLOGY,),
                radiology_query,
                categories=("radiology report", "radiology addendum"),
            ),
        ),
    )
