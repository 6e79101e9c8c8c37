"""The seven questions, the one that a label file asks, the two about notes without stays, and the published builder's variants.

Rules that hold everywhere: an answer that is unknown, or cut short by death, leaves under a named reason; codes are never read, only asked for;
newborns leave (``ADMISSION_TYPE`` is the only sign of them in MIMIC-III). Sources: arXiv 2102.04110 for mortality, length of stay, diagnoses and
procedures; Huang et al. 2020 (Clinical XLNet) for ventilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import duckdb

from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts import codes, meds, ventilation
from clinpeft.data.cohorts.task import NoteSelection, ExclusionCriterion, ClinicalTask
from clinpeft.recipe import TaskSpec

ADMISSION_TIME_SQL = "admitted_at"
END_OF_DISCHARGE_DAY_SQL = "date_trunc('day', discharged_at) + INTERVAL 86399 SECOND"
"""A discharge summary carries a date, so it may have been written until the end of that day."""

SIMULATED_ADMISSION_NOTE = NoteSelection("admission", is_simulated=True)
FULL_DISCHARGE_SUMMARY = NoteSelection("all", is_simulated=False)
ALL_NOTES = replace(FULL_DISCHARGE_SUMMARY, categories=())

ADMISSION_TIME_REQUIRED = ExclusionCriterion(
    "admission time known",
    "SELECT stay_id, 'admission time unknown' AS reason FROM asked WHERE admitted_at IS NULL",
)
DISCHARGE_TIME_REQUIRED = ExclusionCriterion(
    "discharge time known",
    "SELECT stay_id, 'discharge time unknown' AS reason FROM asked WHERE discharged_at IS NULL",
)
NEWBORNS_EXCLUDED = ExclusionCriterion(
    "no newborns",
    "SELECT stay_id, 'newborn' AS reason FROM asked WHERE upper(trim(admission_type)) = 'NEWBORN'",
)
SURVIVAL_STATUS_REQUIRED = ExclusionCriterion(
    "survival known",
    "SELECT stay_id, 'whether the patient died in hospital is unknown' AS reason FROM asked WHERE died_in_hospital IS NULL",
)
HOSPITAL_DEATHS_EXCLUDED = ExclusionCriterion(
    "discharged alive",
    "SELECT stay_id, 'died in hospital' AS reason FROM asked WHERE died_in_hospital",
)


def _require_codes(kind: str) -> ExclusionCriterion:
    left = f"asked.stay_id NOT IN (SELECT stay_id FROM code WHERE kind = '{kind}')"
    return ExclusionCriterion(
        f"{kind} codes known", f"SELECT stay_id, 'no {kind} code' AS reason FROM asked WHERE {left}"
    )


MORTALITY_TASK = ClinicalTask(
    name="mortality",
    question="Will the patient die in this hospital stay?",
    kind="binary",
    classes=("survived", "died in hospital"),
    metric="auroc",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=replace(SIMULATED_ADMISSION_NOTE, excludes_death_mentions=True),
    exclusion_criteria=(ADMISSION_TIME_REQUIRED, NEWBORNS_EXCLUDED, SURVIVAL_STATUS_REQUIRED),
    label_query="SELECT stay_id, died_in_hospital::INTEGER AS label FROM asked",
)

_STAY_SECONDS_SQL = "(epoch_us(discharged_at) - epoch_us(admitted_at)) // 1000000"
LENGTH_OF_STAY_TASK = ClinicalTask(
    name="length_of_stay",
    question="How long will the patient stay?",
    kind="multiclass",
    classes=("up to 3 days", "over 3 to 7 days", "over 7 to 14 days", "over 14 days"),
    metric="auroc_ovo",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=SIMULATED_ADMISSION_NOTE,
    exclusion_criteria=(
        ADMISSION_TIME_REQUIRED,
        NEWBORNS_EXCLUDED,
        DISCHARGE_TIME_REQUIRED,
        SURVIVAL_STATUS_REQUIRED,
        HOSPITAL_DEATHS_EXCLUDED,
    ),
    # Days are rounded to one decimal, half to even, so that 3.05, 7.05 and 14.05 days are the last of their class: whole seconds say it exactly.
    label_query=f"""SELECT stay_id, CASE WHEN {_STAY_SECONDS_SQL} <= 263520 THEN 0 WHEN {_STAY_SECONDS_SQL} <= 609120 THEN 1 WHEN {_STAY_SECONDS_SQL} <= 1213920 THEN 2 ELSE 3 END
        AS label FROM asked""",
)

DIAGNOSES_TASK = ClinicalTask(
    name="diagnoses",
    question="Which diagnoses will be coded for this stay?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=SIMULATED_ADMISSION_NOTE,
    required_tables=("diagnosis",),
    exclusion_criteria=(ADMISSION_TIME_REQUIRED, NEWBORNS_EXCLUDED, _require_codes("diagnosis")),
    label_query=codes.build_code_group_query(("diagnosis",), codes.DIAGNOSIS_GROUP_SQL),
    code_grouping=codes.DIAGNOSIS_GROUP_SQL,
)

PROCEDURES_TASK = ClinicalTask(
    name="procedures",
    question="Which procedures will be coded for this stay?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=SIMULATED_ADMISSION_NOTE,
    required_tables=("procedure",),
    exclusion_criteria=(ADMISSION_TIME_REQUIRED, NEWBORNS_EXCLUDED, _require_codes("procedure")),
    label_query=codes.build_code_group_query(("procedure",), codes.PROCEDURE_GROUP_SQL),
    code_grouping=codes.PROCEDURE_GROUP_SQL,
)

EpisodeDeriver = Callable[[duckdb.DuckDBPyConnection, Path], ventilation.EpisodeDerivation]
EPISODE_DERIVERS: dict[str, EpisodeDeriver] = {
    "mimic-iii": ventilation.derive_mimic_iii_episodes,
    "mimic-iv": ventilation.derive_mimic_iv_episodes,
}
"""Layout -> how its ventilation episodes are derived."""


def create_ventilation_tables(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """The tables ``episode``, ``ventilated`` (one row an ICU stay) and ``ventilation_excluded`` for the definition of ``spec``.

    Raises:
        RecipeError: nobody has said how episodes follow from this layout.
        SourceError: charted tables are missing or damaged.
    """
    if hospital.layout not in EPISODE_DERIVERS:
        message = f"there are no ventilation episodes for {hospital.layout!r}"
        raise RecipeError(
            message,
            location="task.name",
            hint=f"ventilation can be asked of: {', '.join(EPISODE_DERIVERS)}",
        )
    connection = hospital.connection
    derived = EPISODE_DERIVERS[hospital.layout](connection, hospital.folder)
    for name, rows in {
        "ventilated": ventilation.label_prolonged_ventilation(connection, spec.ventilation),
        "ventilation_excluded": ventilation.find_ventilation_exclusions(
            connection, spec.ventilation
        ),
    }.items():
        connection.register("arriving", rows)
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM arriving")
        connection.unregister("arriving")
    return derived.attrition


VENTILATION_REQUIRED = ExclusionCriterion(
    "ventilated",
    "SELECT stay_id, 'not ventilated' AS reason FROM asked WHERE stay_id NOT IN (SELECT stay_id FROM ventilated)",
)
VENTILATION_EXCLUSIONS_APPLIED = ExclusionCriterion(
    "in the cohort of the definition",
    """SELECT stay_id, min(reason) AS reason FROM ventilation_excluded x
       WHERE NOT EXISTS (FROM ventilated v WHERE v.stay_id = x.stay_id
           AND v.icu_stay_id NOT IN (SELECT icu_stay_id FROM ventilation_excluded)) GROUP BY stay_id""",
)
EARLY_VENTILATION_DEATHS_EXCLUDED = ExclusionCriterion(
    "not cut short by death",
    """SELECT a.stay_id, 'died within 7 days of the first ventilation, before it could be prolonged' AS reason
       FROM asked a JOIN (SELECT stay_id, min(began_at) AS began_at FROM episode GROUP BY stay_id) e USING (stay_id)
       WHERE a.died_in_hospital AND coalesce(a.died_at, a.discharged_at) < e.began_at + INTERVAL 7 DAY
           AND a.stay_id NOT IN (SELECT stay_id FROM ventilated WHERE prolonged)""",
)

VENTILATION_TASK = ClinicalTask(
    name="ventilation",
    question="Will mechanical ventilation be prolonged (seven days and more)?",
    kind="binary",
    classes=("not prolonged", "prolonged"),
    metric="auroc",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=SIMULATED_ADMISSION_NOTE,
    required_tables=("icu_stay", "diagnosis"),
    exclusion_criteria=(
        ADMISSION_TIME_REQUIRED,
        NEWBORNS_EXCLUDED,
        VENTILATION_REQUIRED,
        VENTILATION_EXCLUSIONS_APPLIED,
        EARLY_VENTILATION_DEATHS_EXCLUDED,
    ),
    label_query="SELECT stay_id, bool_or(prolonged)::INTEGER AS label FROM ventilated GROUP BY stay_id",
    prepare_tables=create_ventilation_tables,
)

_NEXT_STAY_SQL = """FROM stay n WHERE n.subject_id = a.subject_id AND n.stay_id <> a.stay_id
    AND n.admitted_at >= a.discharged_at AND n.admitted_at <= a.discharged_at + INTERVAL 30 DAY"""
READMISSION_TASK = ClinicalTask(
    name="readmission_30d",
    question="Will the patient come back to this hospital within 30 days of discharge?",
    kind="binary",
    classes=("not readmitted", "readmitted"),
    metric="auroc",
    prediction_time=END_OF_DISCHARGE_DAY_SQL,
    note_selection=FULL_DISCHARGE_SUMMARY,
    exclusion_criteria=(
        ADMISSION_TIME_REQUIRED,
        NEWBORNS_EXCLUDED,
        DISCHARGE_TIME_REQUIRED,
        SURVIVAL_STATUS_REQUIRED,
        HOSPITAL_DEATHS_EXCLUDED,
        ExclusionCriterion(
            "no other stay at discharge",
            """SELECT a.stay_id, 'another stay of the patient overlaps the discharge' AS reason FROM asked a
               WHERE EXISTS (FROM stay n WHERE n.subject_id = a.subject_id AND n.stay_id <> a.stay_id
                   AND n.admitted_at < a.discharged_at AND n.discharged_at > a.discharged_at)""",
        ),
        ExclusionCriterion(
            "answer open at the prediction time",
            f"""SELECT a.stay_id, 'readmitted before the prediction time' AS reason FROM asked a
                WHERE EXISTS ({_NEXT_STAY_SQL} AND n.admitted_at <= a.prediction_time)""",
        ),
        ExclusionCriterion(
            "not cut short by death",
            f"""SELECT a.stay_id, 'died within 30 days without coming back' AS reason FROM asked a
                WHERE a.died_at <= a.discharged_at + INTERVAL 30 DAY AND NOT EXISTS ({_NEXT_STAY_SQL})""",
        ),
    ),
    label_query=f"SELECT a.stay_id, (EXISTS ({_NEXT_STAY_SQL}))::INTEGER AS label FROM asked a",
)


def create_coding_system_table(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """The table ``coding_system`` (``system``): the one asked for, or the one in which most stays are coded."""
    most = "SELECT system FROM code GROUP BY system ORDER BY count(DISTINCT stay_id) DESC, system LIMIT 1"
    chosen = f"SELECT '{spec.code_system}' AS system" if spec.code_system else most
    hospital.connection.execute(f"CREATE OR REPLACE TABLE coding_system AS {chosen}")
    return ()


ICD_CODING_TASK = ClinicalTask(
    name="icd_coding",
    question="Which diagnosis and procedure codes belong to this discharge summary?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time="discharged_at",
    note_selection=replace(FULL_DISCHARGE_SUMMARY, waits_for_last_note=True),
    required_tables=("diagnosis",),
    exclusion_criteria=(
        DISCHARGE_TIME_REQUIRED,
        _require_codes("diagnosis"),
        ExclusionCriterion(
            "coded in one system",
            """SELECT stay_id, CASE WHEN count(DISTINCT system) > 1 THEN 'coded in two systems' ELSE 'coded in another system' END AS reason
               FROM code WHERE stay_id IN (SELECT stay_id FROM asked) GROUP BY stay_id
               HAVING count(DISTINCT system) > 1 OR min(system) <> (SELECT system FROM coding_system)""",
        ),
    ),
    label_query=codes.build_code_group_query(("diagnosis", "procedure"), codes.FULL_CODE_SQL),
    code_grouping=codes.FULL_CODE_SQL,
    prepare_tables=create_coding_system_table,
)


_LABEL_FILE_ROWS_SQL = """
CREATE OR REPLACE TABLE given_label_row AS
WITH placed AS (
    SELECT g.number, g.prediction_time, g.boolean_value, max_by(s.stay_id, (s.admitted_at, s.stay_id)) AS stay_id
    FROM (SELECT *, row_number() OVER () AS number FROM arriving) g
    LEFT JOIN stay s ON s.subject_id = g.subject_id AND g.prediction_time >= s.admitted_at
        AND (s.discharged_at IS NULL OR g.prediction_time <= date_trunc('day', s.discharged_at) + INTERVAL 86399 SECOND)
    GROUP BY ALL)
SELECT stay_id, prediction_time, boolean_value::INTEGER AS label,
    CASE WHEN boolean_value IS NULL THEN 'no true or false'
         WHEN stay_id IS NULL THEN 'at a time in no stay of this person'
         WHEN row_number() OVER (PARTITION BY stay_id, boolean_value IS NULL ORDER BY prediction_time, number) > 1
         THEN 'an earlier label of the same stay is asked' END AS reason
FROM placed
"""


def create_label_file_table(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """The table ``given_label`` (``stay_id``, ``prediction_time``, ``label``): of each stay the first label of the file.

    A label belongs to the stay of its person in which its prediction time lies, until the end of the day of discharge; of stays that overlap, to
    the one that began last.

    Raises:
        RecipeError: the recipe names no label file.
        InputError: the file does not hold to the MEDS label schema.
    """
    if spec.labels is None:
        raise RecipeError(
            "no label file is named",
            location="task.labels",
            hint='write labels = "a/file.parquet" or the folder of label files',
        )
    connection = hospital.connection
    connection.register("arriving", meds.read_meds_labels(spec.labels))
    connection.execute(_LABEL_FILE_ROWS_SQL)
    connection.unregister("arriving")
    connection.execute(
        "CREATE OR REPLACE TABLE given_label AS SELECT stay_id, prediction_time, label FROM given_label_row WHERE reason IS NULL"
    )
    counts = dict(
        connection.execute(
            "SELECT reason, count(*) FROM given_label_row GROUP BY reason ORDER BY reason"
        ).fetchall()
    )
    attrition = Attrition("labels given", sum(counts.values()))
    for reason, left in counts.items():
        if reason is not None:
            attrition.drop_rows(reason, left)
    return (attrition,)


LABEL_FILE_TASK = ClinicalTask(
    name="given",
    question="What the label file asks.",
    kind="binary",
    classes=("no", "yes"),
    metric="auroc",
    prediction_time="(SELECT g.prediction_time FROM given_label g WHERE g.stay_id = stay.stay_id)",
    note_selection=ALL_NOTES,
    exclusion_criteria=(
        ExclusionCriterion(
            "with a label",
            "SELECT stay_id, 'no label' AS reason FROM asked WHERE prediction_time IS NULL",
        ),
    ),
    label_query="SELECT stay_id, label FROM given_label",
    prepare_tables=create_label_file_table,
)

NOTE_CATEGORY_TASK = ClinicalTask(
    name="note_category",
    question="Under which category is this note filed?",
    kind="multiclass",
    metric="auroc_ovo",
    note_selection=ALL_NOTES,
    prediction_unit="notes",
)
NOTE_CATEGORIES_TASK = ClinicalTask(
    name="note_categories",
    question="Under which categories is this note filed?",
    kind="multilabel",
    metric="auroc_macro",
    note_selection=ALL_NOTES,
    prediction_unit="notes",
)

_STAY_TASKS = (
    MORTALITY_TASK,
    LENGTH_OF_STAY_TASK,
    DIAGNOSES_TASK,
    PROCEDURES_TASK,
    VENTILATION_TASK,
    READMISSION_TASK,
    ICD_CODING_TASK,
    LABEL_FILE_TASK,
)
CLINICAL_TASKS: dict[str, ClinicalTask] = {
    task.name: task for task in (*_STAY_TASKS, NOTE_CATEGORY_TASK, NOTE_CATEGORIES_TASK)
}

_CORE_2021_NOTE = NoteSelection("core-2021", is_simulated=True, deduplication_scope="everywhere")
_DIAGNOSIS_CLASSES_SQL = codes.build_code_group_query(("diagnosis",), codes.DIAGNOSIS_GROUP_SQL)
_CORE_2021_PROCEDURE_CLASSES_SQL = codes.build_code_group_query(
    ("procedure",), codes.PROCEDURE_GROUP_CORE_2021_SQL
)
CORE_2021_TASKS: dict[str, ClinicalTask] = {
    "mortality": replace(
        MORTALITY_TASK, note_selection=replace(_CORE_2021_NOTE, excludes_death_mentions=True)
    ),
    "length_of_stay": replace(LENGTH_OF_STAY_TASK, note_selection=_CORE_2021_NOTE),
    "diagnoses": replace(
        DIAGNOSES_TASK, note_selection=_CORE_2021_NOTE, label_space_query=_DIAGNOSIS_CLASSES_SQL
    ),
    "procedures": replace(
        PROCEDURES_TASK,
        note_selection=_CORE_2021_NOTE,
        label_query=_CORE_2021_PROCEDURE_CLASSES_SQL,
        label_space_query=_CORE_2021_PROCEDURE_CLASSES_SQL,
        code_grouping=codes.PROCEDURE_GROUP_CORE_2021_SQL,
    ),
    "ventilation": replace(
        VENTILATION_TASK,
        note_selection=replace(_CORE_2021_NOTE, excludes_death_mentions=True),
        exclusion_criteria=tuple(
            rule
            for rule in VENTILATION_TASK.exclusion_criteria
            if rule is not EARLY_VENTILATION_DEATHS_EXCLUDED
        ),
    ),
}
"""As published: the same questions with the builder's cutter, its removal of repeated texts over all stays, its procedure codes read as whole
numbers, and its label list of all codes in the table, used or not."""

TASKS_BY_COMPAT: Mapping[str, Mapping[str, ClinicalTask]] = {
    "": CLINICAL_TASKS,
    "core-2021": CORE_2021_TASKS,
}
