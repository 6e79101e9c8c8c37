"""MIMIC-IV 2.2 to 3.1 with MIMIC-IV-Note 2.2, as PhysioNet ships them: ``hosp``, ``icu`` and ``note`` in one folder.

ICD-9 and ICD-10 both occur, so a code is keyed on its version. ``year_group`` is ``anchor_year_group``, three real years, one a subject.
``died_at`` is ``deathtime``, and ``dod`` (a date, up to one year after the last discharge) where the death was not in this stay.
"""

from __future__ import annotations

from clinpeft.data.hospital.raw_tables import Shipped, needed
from clinpeft.data.hospital.standard_tables import Layout, Part
from clinpeft.recipe import SourceSpec

ADMISSIONS = Shipped(
    "admissions",
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
    optional=("race", "language", "insurance"),
)
PATIENTS = Shipped(
    "patients",
    needed(
        "age, sex, year group",
        "subject_id",
        "gender",
        "anchor_age",
        "anchor_year",
        "anchor_year_group",
        "dod",
    ),
)
ICUSTAYS = Shipped(
    "icustays",
    needed(
        "intensive care", "subject_id", "hadm_id", "stay_id", "first_careunit", "intime", "outtime"
    ),
)
DIAGNOSES = Shipped(
    "diagnoses_icd",
    needed(
        "diagnosis labels and exclusions",
        "subject_id",
        "hadm_id",
        "seq_num",
        "icd_code",
        "icd_version",
    ),
)
PROCEDURES = Shipped(
    "procedures_icd",
    needed("procedure labels", "subject_id", "hadm_id", "seq_num", "icd_code", "icd_version"),
)
DIAGNOSIS_TITLES = Shipped(
    "d_icd_diagnoses", needed("names of diagnoses", "icd_code", "icd_version", "long_title")
)
PROCEDURE_TITLES = Shipped(
    "d_icd_procedures", needed("names of procedures", "icd_code", "icd_version", "long_title")
)
_NOTE_COLUMNS = needed(
    "what is read",
    "note_id",
    "subject_id",
    "hadm_id",
    "note_type",
    "charttime",
    "storetime",
    "text",
)
DISCHARGE = Shipped("discharge", _NOTE_COLUMNS)
RADIOLOGY = Shipped("radiology", _NOTE_COLUMNS)

_STAY = """
SELECT a."row", NULL::VARCHAR AS lost, a.subject_id, a.hadm_id AS stay_id, a.admittime AS admitted_at, a.dischtime AS discharged_at,
    coalesce(given(a.deathtime), p.dod) AS died_at, a.hospital_expire_flag AS died_in_hospital,
    whole(p.anchor_age) + year(moment(a.admittime)) - whole(p.anchor_year) AS age_years,
    p.gender AS sex, a.race, a.language, a.insurance, a.admission_type, i.first_careunit AS care_unit, p.anchor_year_group AS year_group,
    NULL::VARCHAR AS site
FROM raw_admissions a
LEFT JOIN (SELECT DISTINCT ON (whole(subject_id)) whole(subject_id) AS person, * FROM raw_patients ORDER BY "row") p ON p.person = whole(a.subject_id)
LEFT JOIN (SELECT DISTINCT ON (whole(hadm_id)) whole(hadm_id) AS stay, first_careunit FROM raw_icustays ORDER BY moment(intime), "row") i
    ON i.stay = whole(a.hadm_id)
"""

_ICU_STAY = """
SELECT "row", NULL::VARCHAR AS lost, subject_id, hadm_id AS stay_id, stay_id AS icu_stay_id, first_careunit AS care_unit,
    intime AS began_at, outtime AS ended_at FROM raw_icustays
"""

_CODE = """
SELECT "row", NULL::VARCHAR AS lost, subject_id, hadm_id AS stay_id, icd_code AS code, seq_num AS "sequence",
    CASE whole(icd_version) WHEN 9 THEN 'icd9' WHEN 10 THEN 'icd10' END AS system FROM {raw}
"""

_TITLE = """
SELECT "row", NULL::VARCHAR AS lost, '{kind}' AS kind, icd_code AS code, long_title AS title,
    CASE whole(icd_version) WHEN 9 THEN 'icd9' WHEN 10 THEN 'icd10' END AS system FROM {raw}
"""

_NOTE = """
SELECT "row", note_id, subject_id, hadm_id AS stay_id, text,
    CASE note_type WHEN 'DS' THEN 'Discharge summary' WHEN 'AD' THEN 'Discharge addendum'
                   WHEN 'RR' THEN 'Radiology report' WHEN 'AR' THEN 'Radiology addendum' ELSE note_type END AS category,
    NULL::VARCHAR AS description, greatest(moment(storetime), {charted}) AS available_at,
    CASE WHEN unparsed(storetime) OR unparsed(charttime) THEN 'a time does not parse' END AS lost
FROM {raw}
"""


def layout(spec: SourceSpec) -> Layout:
    """The layout of MIMIC-IV; nothing in ``spec`` changes it."""
    del spec
    discharge = _NOTE.format(
        raw=DISCHARGE.raw, charted="end_of_day(moment(charttime))"
    )  # the charttime of a discharge summary is a date
    radiology = _NOTE.format(raw=RADIOLOGY.raw, charted="moment(charttime)")
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
            Part(
                "note",
                (DISCHARGE,),
                discharge,
                categories=("discharge summary", "discharge addendum"),
            ),
            Part(
                "note",
                (RADIOLOGY,),
                radiology,
                categories=("radiology report", "radiology addendum"),
            ),
        )
    )
