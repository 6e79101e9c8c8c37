"""OMOP CDM 5.4 as delimited files.

PERSON and VISIT_OCCURRENCE are required; DEATH, CONDITION_OCCURRENCE, PROCEDURE_OCCURRENCE, NOTE
and CONCEPT are read where they are there.

- A stay is an inpatient visit (concepts 9201 and 262); other visits are dropped and counted.
- The patient died in hospital if discharged to concept 4216643 (patient died) or if the death is
  dated within the visit; this is unknown for all stays when DEATH has no rows.
- The system of a source code comes from CONCEPT (ICD9CM, ICD9Proc, ICD10CM, ICD10PCS ...), else
  from ``columns = { code_system = "icd10" }``; it is never guessed from the code, since ``E879`` is
  one thing in ICD-9 and another in ICD-10.
- A note is a discharge summary when its title says so, or when its class, type or title is in
  ``source.parts``.
- A time at midnight is a date, and a note of that date is available from the end of the day.

Concepts: 9201 inpatient visit and 262 emergency room and inpatient visit (OHDSI/Legend,
inst/cohorts), 8507 male and 8532 female (OHDSI/Vocabulary-v5.0, wiki page GENDER), 4216643 patient
died (ohdsi-korea/ThemisKorea, wiki page VISIT_OCCURRENCE); looked up 2026-11-21.
"""

from __future__ import annotations

from clinpeft.core.database import quote_sql_literal
from clinpeft.core.errors import RecipeError
from clinpeft.data.hospital.raw_tables import RawTable, build_column_purposes
from clinpeft.data.hospital.standard_tables import HospitalLayout, TablePart
from clinpeft.recipe import SourceSpec

OMOP_VISIT_OCCURRENCE = RawTable(
    "VISIT_OCCURRENCE",
    build_column_purposes(
        "the stays of every cohort",
        "visit_occurrence_id",
        "person_id",
        "visit_concept_id",
        "visit_start_date",
        "visit_end_date",
    ),
    optional_columns=(
        "visit_start_datetime",
        "visit_end_datetime",
        "discharged_to_concept_id",
        "visit_source_value",
        "care_site_id",
    ),
)
OMOP_PERSON = RawTable(
    "PERSON",
    build_column_purposes(
        "age and sex of the stays", "person_id", "gender_concept_id", "year_of_birth"
    ),
    optional_columns=("month_of_birth", "day_of_birth", "race_source_value"),
)
OMOP_DEATH = RawTable(
    "DEATH",
    build_column_purposes("deaths", "person_id", "death_date"),
    optional_columns=("death_datetime",),
)
OMOP_CONCEPT = RawTable(
    "CONCEPT", build_column_purposes("the system of source codes", "concept_id", "vocabulary_id")
)
OMOP_CONDITION_OCCURRENCE = RawTable(
    "CONDITION_OCCURRENCE",
    build_column_purposes(
        "diagnosis labels", "person_id", "visit_occurrence_id", "condition_source_value"
    ),
    optional_columns=("condition_source_concept_id",),
)
OMOP_PROCEDURE_OCCURRENCE = RawTable(
    "PROCEDURE_OCCURRENCE",
    build_column_purposes(
        "procedure labels", "person_id", "visit_occurrence_id", "procedure_source_value"
    ),
    optional_columns=("procedure_source_concept_id",),
)
OMOP_NOTE = RawTable(
    "NOTE",
    build_column_purposes(
        "the text of the notes",
        "note_id",
        "person_id",
        "visit_occurrence_id",
        "note_date",
        "note_text",
    ),
    optional_columns=(
        "note_datetime",
        "note_title",
        "note_class_concept_id",
        "note_type_concept_id",
    ),
)

# A birth without month or day is taken as 1 July or the first of the month, which errs by half a
# year or half a month at most.
_STAY_QUERY = """
SELECT v."row", v.person_id AS subject_id, v.visit_occurrence_id AS stay_id,
    v.began AS admitted_at, v.ended AS discharged_at, d.died AS died_at,
    CASE WHEN to_integer(v.discharged_to_concept_id) = 4216643 THEN '1'
         WHEN (SELECT count(*) FROM raw_death) = 0 THEN NULL
         WHEN to_time(d.died)::DATE BETWEEN to_time(v.began)::DATE AND to_time(v.ended)::DATE
         THEN '1'
         WHEN is_bad_time(d.died) OR to_time(v.ended) IS NULL THEN NULL ELSE '0'
    END AS died_in_hospital,
    date_diff('day', p.born, to_time(v.began)) / 365.2425 AS age_years,
    CASE to_integer(p.gender_concept_id) WHEN 8507 THEN 'M' WHEN 8532 THEN 'F' END AS sex,
    p.race_source_value AS race, NULL::VARCHAR AS language, NULL::VARCHAR AS insurance,
    v.visit_source_value AS admission_type, NULL::VARCHAR AS care_unit,
    NULL::VARCHAR AS year_group, v.care_site_id AS site,
    CASE WHEN to_integer(v.visit_concept_id) IN (9201, 262) THEN NULL
         ELSE 'not an inpatient visit' END AS drop_reason
FROM (
    SELECT *, coalesce(nonblank(visit_start_datetime), visit_start_date) AS began,
        coalesce(nonblank(visit_end_datetime), visit_end_date) AS ended
    FROM raw_visit_occurrence) v
LEFT JOIN (
    SELECT DISTINCT ON (to_integer(person_id)) to_integer(person_id) AS person, gender_concept_id,
        race_source_value,
        TRY_CAST(year_of_birth || '-' || coalesce(nonblank(month_of_birth), '7') || '-' ||
            coalesce(nonblank(day_of_birth), '1') AS DATE) AS born
    FROM raw_person ORDER BY "row") p ON p.person = to_integer(v.person_id)
LEFT JOIN (
    SELECT DISTINCT ON (to_integer(person_id)) to_integer(person_id) AS person,
        coalesce(nonblank(death_datetime), death_date) AS died
    FROM raw_death ORDER BY "row") d ON d.person = to_integer(v.person_id)
"""

# A source code with a concept of another vocabulary (SNOMED) has no system and is dropped; one
# without a concept has the system of the recipe. There is no order of codes in OMOP.
_CODE_QUERY = """
SELECT c."row", NULL::VARCHAR AS drop_reason, c.person_id AS subject_id,
    c.visit_occurrence_id AS stay_id, NULL::VARCHAR AS "sequence", c.{kind}_source_value AS code,
    CASE WHEN k.vocabulary_id ILIKE 'ICD9%' THEN 'icd9'
         WHEN k.vocabulary_id ILIKE 'ICD10%' THEN 'icd10'
         WHEN k.vocabulary_id IS NULL THEN {default_system} END AS system
FROM raw_{kind}_occurrence c
LEFT JOIN (
    SELECT DISTINCT ON (to_integer(concept_id)) to_integer(concept_id) AS concept, vocabulary_id
    FROM raw_concept) k ON k.concept = to_integer(c.{kind}_source_concept_id)
"""

# NOTE has no category of its own: its title is the category.
_NOTE_QUERY = """
SELECT "row", note_id, person_id AS subject_id, visit_occurrence_id AS stay_id, note_text AS text,
    NULL::VARCHAR AS description,
    CASE WHEN note_title ILIKE '%discharge summary%' OR
             list_has_any([{parts}], [note_class_concept_id, note_type_concept_id, note_title])
         THEN 'Discharge summary' ELSE coalesce(nonblank(note_title), 'unnamed') END AS category,
    CASE WHEN at_time = date_trunc('day', at_time) THEN end_of_day(at_time) ELSE at_time
    END AS available_at,
    CASE WHEN is_bad_time(note_datetime) OR is_bad_time(note_date) THEN 'a time does not parse'
    END AS drop_reason
FROM (SELECT *, coalesce(to_time(note_datetime), to_time(note_date)) AS at_time FROM raw_note)
"""


def build_omop_layout(spec: SourceSpec) -> HospitalLayout:
    """The layout of OMOP CDM 5.4.

    Args:
        spec: ``parts`` lists the concept ids or titles of discharge summaries;
            ``columns.code_system`` is ``icd9`` or ``icd10``.

    Raises:
        RecipeError: ``columns`` has another key or another code system.
    """
    unknown = [
        f"{key} = {value!r}"
        for key, value in spec.columns.items()
        if key != "code_system" or value not in ("icd9", "icd10")
    ]
    if unknown:
        raise RecipeError(
            f"OMOP has a fixed layout: {unknown[0]}",
            location="source.columns",
            hint='leave it out, or write code_system = "icd9" or "icd10"',
        )
    system = spec.columns.get("code_system")
    # NULL, not a guess: rows without a known system are dropped and counted.
    default_system = f"'{system}'" if system else "NULL"
    parts = ", ".join(quote_sql_literal(part) for part in spec.parts) or "''"
    return HospitalLayout(
        (
            TablePart(
                "stay",
                (OMOP_VISIT_OCCURRENCE, OMOP_PERSON),
                _STAY_QUERY,
                optional_tables=(OMOP_DEATH,),
            ),
            TablePart(
                "diagnosis",
                (OMOP_CONDITION_OCCURRENCE,),
                _CODE_QUERY.format(kind="condition", default_system=default_system),
                optional_tables=(OMOP_CONCEPT,),
            ),
            TablePart(
                "procedure",
                (OMOP_PROCEDURE_OCCURRENCE,),
                _CODE_QUERY.format(kind="procedure", default_system=default_system),
                optional_tables=(OMOP_CONCEPT,),
            ),
            TablePart("note", (OMOP_NOTE,), _NOTE_QUERY.format(parts=parts)),
        )
    )
