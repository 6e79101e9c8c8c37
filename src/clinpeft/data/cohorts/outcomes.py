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
from clinpeft.data.cohorts.task import Reading, Rule, Task
from clinpeft.recipe import TaskSpec

AT_ADMISSION = "admitted_at"
END_OF_DISCHARGE_DAY = "date_trunc('day', discharged_at) + INTERVAL 86399 SECOND"
"""A discharge summary carries a date, so it may have been written until the end of that day."""

ADMISSION_NOTE = Reading("admission", simulated=True)
FULL_NOTE = Reading("all", simulated=False)
EVERY_NOTE = replace(FULL_NOTE, categories=())

KNOWN_ADMISSION = Rule(
    "admission time known",
    "SELECT stay_id, 'admission time unknown' AS reason FROM asked WHERE admitted_at IS NULL",
)
KNOWN_DISCHARGE = Rule(
    "discharge time known",
    "SELECT stay_id, 'discharge time unknown' AS reason FROM asked WHERE discharged_at IS NULL",
)
NO_NEWBORNS = Rule(
    "no newborns",
    "SELECT stay_id, 'newborn' AS reason FROM asked WHERE upper(trim(admission_type)) = 'NEWBORN'",
)
KNOWN_SURVIVAL = Rule(
    "survival known",
    "SELECT stay_id, 'whether the patient died in hospital is unknown' AS reason FROM asked WHERE died_in_hospital IS NULL",
)
SURVIVORS = Rule(
    "discharged alive",
    "SELECT stay_id, 'died in hospital' AS reason FROM asked WHERE died_in_hospital",
)


def _coded(kind: str) -> Rule:
    left = f"asked.stay_id NOT IN (SELECT stay_id FROM code WHERE kind = '{kind}')"
    return Rule(
        f"{kind} codes known", f"SELECT stay_id, 'no {kind} code' AS reason FROM asked WHERE {left}"
    )


MORTALITY = Task(
    name="mortality",
    question="Will the patient die in this hospital stay?",
    kind="binary",
    classes=("survived", "died in hospital"),
    metric="auroc",
    prediction_time=AT_ADMISSION,
    reading=replace(ADMISSION_NOTE, without_deaths=True),
    rules=(KNOWN_ADMISSION, NO_NEWBORNS, KNOWN_SURVIVAL),
    answer="SELECT stay_id, died_in_hospital::INTEGER AS label FROM asked",
)

_SECONDS = "(epoch_us(discharged_at) - epoch_us(admitted_at)) // 1000000"
LENGTH_OF_STAY = Task(
    name="length_of_stay",
    question="How long will the patient stay?",
    kind="multiclass",
    classes=("up to 3 days", "over 3 to 7 days", "over 7 to 14 days", "over 14 days"),
    metric="auroc_ovo",
    prediction_time=AT_ADMISSION,
    reading=ADMISSION_NOTE,
    rules=(KNOWN_ADMISSION, NO_NEWBORNS, KNOWN_DISCHARGE, KNOWN_SURVIVAL, SURVIVORS),
    # Days are rounded to one decimal, half to even, so that 3.05, 7.05 and 14.05 days are the last of their class: whole seconds say it exactly.
    answer=f"""SELECT stay_id, CASE WHEN {_SECONDS} <= 263520 THEN 0 WHEN {_SECONDS} <= 609120 THEN 1 WHEN {_SECONDS} <= 1213920 THEN 2 ELSE 3 END
        AS label FROM asked""",
)

DIAGNOSES = Task(
    name="diagnoses",
    question="Which diagnoses will be coded for this stay?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time=AT_ADMISSION,
    reading=ADMISSION_NOTE,
    needs=("diagnosis",),
    rules=(KNOWN_ADMISSION, NO_NEWBORNS, _coded("diagnosis")),
    answer=codes.grouped(("diagnosis",), codes.DIAGNOSIS_GROUP),
    group=codes.DIAGNOSIS_GROUP,
)

PROCEDURES = Task(
    name="procedures",
    question="Which procedures will be coded for this stay?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time=AT_ADMISSION,
    reading=ADMISSION_NOTE,
    needs=("procedure",),
    rules=(KNOWN_ADMISSION, NO_NEWBORNS, _coded("procedure")),
    answer=codes.grouped(("procedure",), codes.PROCEDURE_GROUP),
    group=codes.PROCEDURE_GROUP,
)

Episodes = Callable[[duckdb.DuckDBPyConnection, Path], ventilation.Derived]
EPISODES: dict[str, Episodes] = {
    "mimic-iii": ventilation.episodes_mimic_iii,
    "mimic-iv": ventilation.episodes_mimic_iv,
}
"""Layout -> how its ventilation episodes are derived."""


def prepare_ventilation(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """The tables ``episode``, ``ventilated`` (one row an ICU stay) and ``ventilation_excluded`` for the definition of ``spec``.

    Raises:
        RecipeError: nobody has said how episodes follow from this layout.
        SourceError: charted tables are missing or damaged.
    """
    if hospital.layout not in EPISODES:
        message = f"there are no ventilation episodes for {hospital.layout!r}"
        raise RecipeError(
            message,
            location="task.name",
            hint=f"ventilation can be asked of: {', '.join(EPISODES)}",
        )
    connection = hospital.connection
    derived = EPISODES[hospital.layout](connection, hospital.folder)
    for name, rows in {
        "ventilated": ventilation.prolonged(connection, spec.ventilation),
        "ventilation_excluded": ventilation.exclusions(connection, spec.ventilation),
    }.items():
        connection.register("arriving", rows)
        connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM arriving")
        connection.unregister("arriving")
    return derived.attrition


VENTILATED = Rule(
    "ventilated",
    "SELECT stay_id, 'not ventilated' AS reason FROM asked WHERE stay_id NOT IN (SELECT stay_id FROM ventilated)",
)
VENTILATION_COHORT = Rule(
    "in the cohort of the definition",
    """SELECT stay_id, min(reason) AS reason FROM ventilation_excluded x
       WHERE NOT EXISTS (FROM ventilated v WHERE v.stay_id = x.stay_id
           AND v.icu_stay_id NOT IN (SELECT icu_stay_id FROM ventilation_excluded)) GROUP BY stay_id""",
)
VENTILATION_SEEN_THROUGH = Rule(
    "not cut short by death",
    """SELECT a.stay_id, 'died within 7 days of the first ventilation, before it could be prolonged' AS reason
       FROM asked a JOIN (SELECT stay_id, min(began_at) AS began_at FROM episode GROUP BY stay_id) e USING (stay_id)
       WHERE a.died_in_hospital AND coalesce(a.died_at, a.discharged_at) < e.began_at + INTERVAL 7 DAY
           AND a.stay_id NOT IN (SELECT stay_id FROM ventilated WHERE prolonged)""",
)

VENTILATION = Task(
    name="ventilation",
    question="Will mechanical ventilation be prolonged (seven days and more)?",
    kind="binary",
    classes=("not prolonged", "prolonged"),
    metric="auroc",
    prediction_time=AT_ADMISSION,
    reading=ADMISSION_NOTE,
    needs=("icu_stay", "diagnosis"),
    rules=(KNOWN_ADMISSION, NO_NEWBORNS, VENTILATED, VENTILATION_COHORT, VENTILATION_SEEN_THROUGH),
    answer="SELECT stay_id, bool_or(prolonged)::INTEGER AS label FROM ventilated GROUP BY stay_id",
    prepare=prepare_ventilation,
)

_NEXT = """FROM stay n WHERE n.subject_id = a.subject_id AND n.stay_id <> a.stay_id
    AND n.admitted_at >= a.discharged_at AND n.admitted_at <= a.discharged_at + INTERVAL 30 DAY"""
READMISSION = Task(
    name="readmission_30d",
    question="Will the patient come back to this hospital within 30 days of discharge?",
    kind="binary",
    classes=("not readmitted", "readmitted"),
    metric="auroc",
    prediction_time=END_OF_DISCHARGE_DAY,
    reading=FULL_NOTE,
    rules=(
        KNOWN_ADMISSION,
        NO_NEWBORNS,
        KNOWN_DISCHARGE,
        KNOWN_SURVIVAL,
        SURVIVORS,
        Rule(
            "no other stay at discharge",
            """SELECT a.stay_id, 'another stay of the patient overlaps the discharge' AS reason FROM asked a
               WHERE EXISTS (FROM stay n WHERE n.subject_id = a.subject_id AND n.stay_id <> a.stay_id
                   AND n.admitted_at < a.discharged_at AND n.discharged_at > a.discharged_at)""",
        ),
        Rule(
            "answer open at the prediction time",
            f"""SELECT a.stay_id, 'readmitted before the prediction time' AS reason FROM asked a
                WHERE EXISTS ({_NEXT} AND n.admitted_at <= a.prediction_time)""",
        ),
        Rule(
            "not cut short by death",
            f"""SELECT a.stay_id, 'died within 30 days without coming back' AS reason FROM asked a
                WHERE a.died_at <= a.discharged_at + INTERVAL 30 DAY AND NOT EXISTS ({_NEXT})""",
        ),
    ),
    answer=f"SELECT a.stay_id, (EXISTS ({_NEXT}))::INTEGER AS label FROM asked a",
)


def prepare_coding(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
    """The table ``coding_system`` (``system``): the one asked for, or the one in which most stays are coded."""
    most = "SELECT system FROM code GROUP BY system ORDER BY count(DISTINCT stay_id) DESC, system LIMIT 1"
    chosen = f"SELECT '{spec.code_system}' AS system" if spec.code_system else most
    hospital.connection.execute(f"CREATE OR REPLACE TABLE coding_system AS {chosen}")
    return ()


ICD_CODING = Task(
    name="icd_coding",
    question="Which diagnosis and procedure codes belong to this discharge summary?",
    kind="multilabel",
    metric="auroc_macro",
    prediction_time="discharged_at",
    reading=replace(FULL_NOTE, waits=True),
    needs=("diagnosis",),
    rules=(
        KNOWN_DISCHARGE,
        _coded("diagnosis"),
        Rule(
            "coded in one system",
            """SELECT stay_id, CASE WHEN count(DISTINCT system) > 1 THEN 'coded in two systems' ELSE 'coded in another system' END AS reason
               FROM code WHERE stay_id IN (SELECT stay_id FROM asked) GROUP BY stay_id
               HAVING count(DISTINCT system) > 1 OR min(system) <> (SELECT system FROM coding_system)""",
        ),
    ),
    answer=codes.grouped(("diagnosis", "procedure"), codes.FULL_CODE),
    group=codes.FULL_CODE,
    prepare=prepare_coding,
)


_GIVEN_LABELS = """
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


def prepare_given(hospital: HospitalDatabase, spec: TaskSpec) -> tuple[Attrition, ...]:
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
    connection.register("arriving", meds.read_labels(spec.labels))
    connection.execute(_GIVEN_LABELS)
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


GIVEN = Task(
    name="given",
    question="What the label file asks.",
    kind="binary",
    classes=("no", "yes"),
    metric="auroc",
    prediction_time="(SELECT g.prediction_time FROM given_label g WHERE g.stay_id = stay.stay_id)",
    reading=EVERY_NOTE,
    rules=(
        Rule(
            "with a label",
            "SELECT stay_id, 'no label' AS reason FROM asked WHERE prediction_time IS NULL",
        ),
    ),
    answer="SELECT stay_id, label FROM given_label",
    prepare=prepare_given,
)

NOTE_CATEGORY = Task(
    name="note_category",
    question="Under which category is this note filed?",
    kind="multiclass",
    metric="auroc_ovo",
    reading=EVERY_NOTE,
    asks="notes",
)
NOTE_CATEGORIES = Task(
    name="note_categories",
    question="Under which categories is this note filed?",
    kind="multilabel",
    metric="auroc_macro",
    reading=EVERY_NOTE,
    asks="notes",
)

_OF_STAYS = (
    MORTALITY,
    LENGTH_OF_STAY,
    DIAGNOSES,
    PROCEDURES,
    VENTILATION,
    READMISSION,
    ICD_CODING,
    GIVEN,
)
TASKS: dict[str, Task] = {task.name: task for task in (*_OF_STAYS, NOTE_CATEGORY, NOTE_CATEGORIES)}

_CORE_NOTE = Reading("core-2021", simulated=True, repeated="everywhere")
_ALL_DIAGNOSES = codes.grouped(("diagnosis",), codes.DIAGNOSIS_GROUP)
_CORE_PROCEDURES = codes.grouped(("procedure",), codes.PROCEDURE_GROUP_CORE_2021)
CORE_2021: dict[str, Task] = {
    "mortality": replace(MORTALITY, reading=replace(_CORE_NOTE, without_deaths=True)),
    "length_of_stay": replace(LENGTH_OF_STAY, reading=_CORE_NOTE),
    "diagnoses": replace(DIAGNOSES, reading=_CORE_NOTE, label_space=_ALL_DIAGNOSES),
    "procedures": replace(
        PROCEDURES,
        reading=_CORE_NOTE,
        answer=_CORE_PROCEDURES,
        label_space=_CORE_PROCEDURES,
        group=codes.PROCEDURE_GROUP_CORE_2021,
    ),
    "ventilation": replace(
        VENTILATION,
        reading=replace(_CORE_NOTE, without_deaths=True),
        rules=tuple(rule for rule in VENTILATION.rules if rule is not VENTILATION_SEEN_THROUGH),
    ),
}
"""As published: the same questions with the builder's cutter, its removal of repeated texts over all stays, its procedure codes read as whole
numbers, and its label list of all codes in the table, used or not."""

COMPAT: Mapping[str, Mapping[str, Task]] = {"": TASKS, "core-2021": CORE_2021}
