"""The clinical tasks: seven of stays, one of a label file, two of notes without stays.

Rules that hold for all: a stay whose label is unknown, or cut short by death, is excluded under a
named reason; codes are never input, only labels; newborns are excluded (``ADMISSION_TYPE`` is the
only sign of them in MIMIC-III).

Sources of the rules:

- mortality, length of stay, diagnoses, procedures: van Aken et al. 2021, arXiv 2102.04110, and its
  code (github.com/bvanaken/clinical-outcome-prediction: ``tasks/mimic_utils.py`` and one script a
  task, version of September 2021). ``CORE_2021_TASKS`` are its tasks to the letter.
- ventilation: Huang et al. 2020, Clinical XLNet, arXiv 1912.11975, and its code
  (github.com/lindvalllab/clinicalXLNet: ``cohort_curation``), with the episodes of mimic-code (see
  ``cohorts.ventilation``).
- readmission: 30 days after discharge as in the Hospital Readmissions Reduction Program of CMS,
  here of any cause and to the same hospital.
- ICD coding: all full codes of a stay, as in Mullenbach et al. 2018, CAML, arXiv 1802.05695.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import duckdb

from clinpeft.core.database import count_drop_reasons, register_arrow_tables
from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts import codes, meds, ventilation
from clinpeft.data.cohorts.task import ClinicalTask, ExclusionCriterion, NoteSelection
from clinpeft.recipe import TaskSpec

ADMISSION_TIME_SQL = "admitted_at"
# A discharge summary carries a date, so it may have been written until the end of that day.
END_OF_DISCHARGE_DAY_SQL = "date_trunc('day', discharged_at) + INTERVAL 86399 SECOND"

# The three kinds of text: at admission, at discharge, and of a label file's own time.
SIMULATED_ADMISSION_NOTE = NoteSelection("admission", is_simulated=True)
FULL_DISCHARGE_SUMMARY = NoteSelection("all", is_simulated=False)
ALL_NOTES = replace(FULL_DISCHARGE_SUMMARY, categories=())

# Criteria that several tasks share.
ADMISSION_TIME_REQUIRED = ExclusionCriterion(
    "admission time known",
    """SELECT stay_id, 'admission time unknown' AS reason
       FROM selected_stay WHERE admitted_at IS NULL""",
)
DISCHARGE_TIME_REQUIRED = ExclusionCriterion(
    "discharge time known",
    """SELECT stay_id, 'discharge time unknown' AS reason
       FROM selected_stay WHERE discharged_at IS NULL""",
)
NEWBORNS_EXCLUDED = ExclusionCriterion(
    "no newborns",
    """SELECT stay_id, 'newborn' AS reason
       FROM selected_stay WHERE upper(trim(admission_type)) = 'NEWBORN'""",
)
SURVIVAL_STATUS_REQUIRED = ExclusionCriterion(
    "survival known",
    """SELECT stay_id, 'whether the patient died in hospital is unknown' AS reason
       FROM selected_stay WHERE died_in_hospital IS NULL""",
)
HOSPITAL_DEATHS_EXCLUDED = ExclusionCriterion(
    "discharged alive",
    """SELECT stay_id, 'died in hospital' AS reason
       FROM selected_stay WHERE died_in_hospital""",
)
DIAGNOSIS_CODES_REQUIRED, PROCEDURE_CODES_REQUIRED = (
    ExclusionCriterion(
        f"{kind} codes known",
        f"""SELECT stay_id, 'no {kind} code' AS reason FROM selected_stay
            WHERE stay_id NOT IN (SELECT stay_id FROM code WHERE kind = '{kind}')""",
    )
    for kind in ("diagnosis", "procedure")
)

# tasks/mp/mp.py of the published builder: death within the hospital stay.
MORTALITY_TASK = ClinicalTask(
    name="mortality",
    question="Will the patient die in this hospital stay?",
    kind="binary",
    classes=("survived", "died in hospital"),
    metric="auroc",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=replace(SIMULATED_ADMISSION_NOTE, excludes_death_mentions=True),
    exclusion_criteria=(ADMISSION_TIME_REQUIRED, NEWBORNS_EXCLUDED, SURVIVAL_STATUS_REQUIRED),
    label_query="SELECT stay_id, died_in_hospital::INTEGER AS label FROM selected_stay",
)

# tasks/los/los.py of the published builder: four classes, deaths excluded. It rounds days to one
# decimal, half to even, so that 3.05, 7.05 and 14.05 days are the last of their class; whole
# seconds say this exactly: 3.05 * 86400 = 263520.
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
    label_query=f"""SELECT stay_id, CASE
            WHEN {_STAY_SECONDS_SQL} <= 263520 THEN 0
            WHEN {_STAY_SECONDS_SQL} <= 609120 THEN 1
            WHEN {_STAY_SECONDS_SQL} <= 1213920 THEN 2 ELSE 3 END AS label
        FROM selected_stay""",
)

# tasks/dia/dia.py and tasks/pro/pro.py of the published builder: codes grouped to three characters.
DIAGNOSES_TASK = ClinicalTask(
    name="diagnoses",
    question="Which diagnoses will be coded for this stay?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=SIMULATED_ADMISSION_NOTE,
    required_tables=("diagnosis",),
    exclusion_criteria=(ADMISSION_TIME_REQUIRED, NEWBORNS_EXCLUDED, DIAGNOSIS_CODES_REQUIRED),
    label_query=codes.build_code_group_query(("diagnosis",), codes.DIAGNOSIS_GROUP_SQL),
    code_grouping=codes.DIAGNOSIS_GROUP_SQL,
)

# Stays without any procedure code are excluded: no code may mean not coded.
PROCEDURES_TASK = ClinicalTask(
    name="procedures",
    question="Which procedures will be coded for this stay?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time=ADMISSION_TIME_SQL,
    note_selection=SIMULATED_ADMISSION_NOTE,
    required_tables=("procedure",),
    exclusion_criteria=(ADMISSION_TIME_REQUIRED, NEWBORNS_EXCLUDED, PROCEDURE_CODES_REQUIRED),
    label_query=codes.build_code_group_query(("procedure",), codes.PROCEDURE_GROUP_SQL),
    code_grouping=codes.PROCEDURE_GROUP_SQL,
)

EpisodeDeriver = Callable[[duckdb.DuckDBPyConnection, Path], ventilation.EpisodeDerivation]
# Layout -> the function that derives its ventilation episodes.
EPISODE_DERIVERS: dict[str, EpisodeDeriver] = {
    "mimic-iii": ventilation.derive_mimic_iii_episodes,
    "mimic-iv": ventilation.derive_mimic_iv_episodes,
}


def create_ventilation_tables(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """Create ``episode``, ``ventilated`` (one row an ICU stay) and ``ventilation_excluded``.

    Raises:
        RecipeError: no rule derives episodes from this layout.
        SourceError: charted tables are missing or damaged.
    """
    if hospital.layout not in EPISODE_DERIVERS:
        raise RecipeError(
            f"there are no ventilation episodes for {hospital.layout!r}",
            location="task.name",
            hint=f"the task ventilation is defined for: {', '.join(EPISODE_DERIVERS)}",
        )
    connection = hospital.connection
    derivation = EPISODE_DERIVERS[hospital.layout](connection, hospital.folder)
    for name, rows in {
        "ventilated": ventilation.label_prolonged_ventilation(connection, spec.ventilation),
        "ventilation_excluded": ventilation.find_ventilation_exclusions(
            connection, spec.ventilation
        ),
    }.items():
        with register_arrow_tables(connection, arrow_rows=rows):
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM arrow_rows")
    return derivation.attrition


VENTILATION_REQUIRED = ExclusionCriterion(
    "ventilated",
    """SELECT stay_id, 'not ventilated' AS reason FROM selected_stay
       WHERE stay_id NOT IN (SELECT stay_id FROM ventilated)""",
)
# A stay remains while one of its ICU stays does.
VENTILATION_EXCLUSIONS_APPLIED = ExclusionCriterion(
    "in the cohort of the definition",
    """SELECT stay_id, min(reason) AS reason FROM ventilation_excluded x
       WHERE NOT EXISTS (FROM ventilated v WHERE v.stay_id = x.stay_id
           AND v.icu_stay_id NOT IN (SELECT icu_stay_id FROM ventilation_excluded))
       GROUP BY stay_id""",
)
# Not in the published cohort: a patient who dies on the third day would count as "not prolonged".
EARLY_VENTILATION_DEATHS_EXCLUDED = ExclusionCriterion(
    "not cut short by death",
    """SELECT a.stay_id,
           'died within 7 days of the first ventilation, before it could be prolonged' AS reason
       FROM selected_stay a
       JOIN (SELECT stay_id, min(began_at) AS began_at FROM episode GROUP BY stay_id) e
           USING (stay_id)
       WHERE a.died_in_hospital
           AND coalesce(a.died_at, a.discharged_at) < e.began_at + INTERVAL 7 DAY
           AND a.stay_id NOT IN (SELECT stay_id FROM ventilated WHERE prolonged)""",
)

# Huang et al. 2020: prolonged is seven days and more on the ventilator. See
# ``ventilation.PROLONGED_VENTILATION_DEFINITIONS`` for how days are measured.
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
    label_query="""SELECT stay_id, bool_or(prolonged)::INTEGER AS label
        FROM ventilated GROUP BY stay_id""",
    prepare_tables=create_ventilation_tables,
)

# The next stay begins up to 30 * 24 hours after discharge, planned or not.
_NEXT_STAY_SQL = """FROM stay n WHERE n.subject_id = a.subject_id AND n.stay_id <> a.stay_id
    AND n.admitted_at >= a.discharged_at
    AND n.admitted_at <= a.discharged_at + INTERVAL 30 DAY"""
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
            """SELECT a.stay_id, 'another stay of the patient overlaps the discharge' AS reason
               FROM selected_stay a
               WHERE EXISTS (FROM stay n
                   WHERE n.subject_id = a.subject_id AND n.stay_id <> a.stay_id
                   AND n.admitted_at < a.discharged_at AND n.discharged_at > a.discharged_at)""",
        ),
        ExclusionCriterion(
            "answer open at the prediction time",
            f"""SELECT a.stay_id, 'readmitted before the prediction time' AS reason
                FROM selected_stay a
                WHERE EXISTS ({_NEXT_STAY_SQL} AND n.admitted_at <= a.prediction_time)""",
        ),
        ExclusionCriterion(
            "not cut short by death",
            f"""SELECT a.stay_id, 'died within 30 days without coming back' AS reason
                FROM selected_stay a
                WHERE a.died_at <= a.discharged_at + INTERVAL 30 DAY
                    AND NOT EXISTS ({_NEXT_STAY_SQL})""",
        ),
    ),
    label_query=f"""SELECT a.stay_id, (EXISTS ({_NEXT_STAY_SQL}))::INTEGER AS label
        FROM selected_stay a""",
)


def create_coding_system_table(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """Create ``coding_system``, with the ``system`` of the recipe or that of most stays."""
    query = (
        f"SELECT '{spec.code_system}' AS system"
        if spec.code_system
        else """SELECT system FROM code GROUP BY system
            ORDER BY count(DISTINCT stay_id) DESC, system LIMIT 1"""
    )
    hospital.connection.execute(f"CREATE OR REPLACE TABLE coding_system AS {query}")
    return ()


# One coding system a label space: the same disease has different codes in ICD-9 and ICD-10.
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
        DIAGNOSIS_CODES_REQUIRED,
        ExclusionCriterion(
            "coded in one system",
            """SELECT stay_id, CASE WHEN count(DISTINCT system) > 1 THEN 'coded in two systems'
                   ELSE 'coded in another system' END AS reason
               FROM code WHERE stay_id IN (SELECT stay_id FROM selected_stay) GROUP BY stay_id
               HAVING count(DISTINCT system) > 1
                   OR min(system) <> (SELECT system FROM coding_system)""",
        ),
    ),
    label_query=codes.build_code_group_query(("diagnosis", "procedure"), codes.FULL_CODE_SQL),
    code_grouping=codes.FULL_CODE_SQL,
    prepare_tables=create_coding_system_table,
)


# A label belongs to the stay in which its prediction time lies, until the end of the day of
# discharge; of overlapping stays to the one that began last.
_LABEL_FILE_ROWS_SQL = """
CREATE OR REPLACE TABLE label_file_row AS
WITH located AS (
    SELECT g.number, g.prediction_time, g.boolean_value,
        max_by(s.stay_id, (s.admitted_at, s.stay_id)) AS stay_id
    FROM (SELECT *, row_number() OVER () AS number FROM arrow_rows) g
    LEFT JOIN stay s ON s.subject_id = g.subject_id AND g.prediction_time >= s.admitted_at
        AND (s.discharged_at IS NULL
            OR g.prediction_time <= date_trunc('day', s.discharged_at) + INTERVAL 86399 SECOND)
    GROUP BY ALL)
SELECT stay_id, prediction_time, boolean_value::INTEGER AS label,
    CASE WHEN boolean_value IS NULL THEN 'no true or false'
         WHEN stay_id IS NULL THEN 'at a time in no stay of this person'
         WHEN row_number() OVER (
             PARTITION BY stay_id, boolean_value IS NULL ORDER BY prediction_time, number) > 1
         THEN 'an earlier label of the same stay is asked' END AS reason
FROM located
"""


def create_label_file_table(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """Create ``label_file`` (``stay_id``, ``prediction_time``, ``label``) from ``spec.labels``.

    Of each stay the first label remains.

    Raises:
        RecipeError: the recipe names no label file.
        InputError: the file does not have the MEDS label schema.
    """
    if spec.labels is None:
        raise RecipeError(
            "the recipe names no label file",
            location="task.labels",
            hint='write labels = "a/file.parquet" or the folder of label files',
        )
    connection = hospital.connection
    with register_arrow_tables(connection, arrow_rows=meds.read_meds_labels(spec.labels)):
        connection.execute(_LABEL_FILE_ROWS_SQL)
    connection.execute(
        """CREATE OR REPLACE TABLE label_file AS
           SELECT stay_id, prediction_time, label FROM label_file_row WHERE reason IS NULL"""
    )
    reasons = "SELECT reason, count(*) FROM label_file_row GROUP BY reason ORDER BY reason"
    return (count_drop_reasons(connection, "labels given", reasons),)


# Any binary label with a time, such as the output of ACES.
LABEL_FILE_TASK = ClinicalTask(
    name="given",
    question="What the label file asks.",
    kind="binary",
    classes=("no", "yes"),
    metric="auroc",
    prediction_time="(SELECT g.prediction_time FROM label_file g WHERE g.stay_id = stay.stay_id)",
    note_selection=ALL_NOTES,
    exclusion_criteria=(
        ExclusionCriterion(
            "with a label",
            """SELECT stay_id, 'no label' AS reason
               FROM selected_stay WHERE prediction_time IS NULL""",
        ),
    ),
    label_query="SELECT stay_id, label FROM label_file",
    prepare_tables=create_label_file_table,
)

# Notes without stays, such as MTSamples: the label is the category of the note.
NOTE_CATEGORY_TASK = ClinicalTask(
    name="note_category",
    question="Under which category is this note filed?",
    kind="multiclass",
    metric="auroc_ovo",
    note_selection=ALL_NOTES,
    prediction_unit="notes",
)
# The same with all categories of a text as labels.
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

# The published builder reads a text that several stays share only once.
_CORE_2021_NOTE = NoteSelection("core-2021", is_simulated=True, deduplication_scope="everywhere")
_DIAGNOSIS_CLASSES_SQL = codes.build_code_group_query(("diagnosis",), codes.DIAGNOSIS_GROUP_SQL)
_CORE_2021_PROCEDURE_CLASSES_SQL = codes.build_code_group_query(
    ("procedure",), codes.PROCEDURE_GROUP_CORE_2021_SQL
)
# The tasks as the builder of arXiv 2102.04110 makes them (script of September 2021): its extraction
# of sections, its removal of repeated texts over all stays, its procedure codes read as integers,
# and its label space of all codes in the table, used or not.
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
            criterion
            for criterion in VENTILATION_TASK.exclusion_criteria
            if criterion is not EARLY_VENTILATION_DEATHS_EXCLUDED
        ),
    ),
}

TASKS_BY_COMPAT: Mapping[str, Mapping[str, ClinicalTask]] = {
    "": CLINICAL_TASKS,
    "core-2021": CORE_2021_TASKS,
}
