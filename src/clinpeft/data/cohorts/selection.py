"""Who is asked, and with which answer: the rules of a task, one after the other, over the stays of a hospital. No note is read here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import duckdb

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts.outcomes import TASKS_BY_COMPAT, CLINICAL_TASKS
from clinpeft.data.cohorts.task import ExclusionCriterion, ClinicalTask
from clinpeft.recipe import TaskSpec


def get_clinical_task(spec: TaskSpec) -> ClinicalTask:
    """The question that a recipe names, with the variants it asks for.

    Raises:
        RecipeError: there is no such question, it has no published form, or it would read what is not known yet.
    """
    if spec.name not in CLINICAL_TASKS:
        near = difflib.get_close_matches(spec.name, CLINICAL_TASKS, n=1, cutoff=0.4)
        hint = (
            f"did you mean {near[0]!r}? " if near else ""
        ) + f"the tasks are: {', '.join(CLINICAL_TASKS)}"
        raise RecipeError(f"there is no task {spec.name!r}", location="task.name", hint=hint)
    if spec.name not in TASKS_BY_COMPAT[spec.compat]:
        message = f"{spec.name} was not published in {spec.compat}"
        raise RecipeError(
            message,
            location="task.compat",
            hint=f"leave it out, or ask for: {', '.join(TASKS_BY_COMPAT[spec.compat])}",
        )
    task = TASKS_BY_COMPAT[spec.compat][spec.name]
    if task.note_selection.is_simulated and spec.sections == "all":
        message = f"{spec.name} is asked at admission, and the whole discharge summary tells what happened later"
        raise RecipeError(
            message,
            location="task.sections = 'all'",
            hint='take sections = "admission" or "core-2021"',
        )
    return task


def check_prediction_unit(task: ClinicalTask, prediction_unit: str) -> None:
    """Stop when a question is put to stays that is asked of notes, or the other way round.

    Raises:
        RecipeError: with the questions that can be put.
    """
    if task.prediction_unit != prediction_unit:
        fitting = ", ".join(
            name
            for name, other in CLINICAL_TASKS.items()
            if other.prediction_unit == prediction_unit
        )
        message = f"{task.name} is asked of {task.prediction_unit}, and {prediction_unit} are given"
        raise RecipeError(
            message, location="task.name", hint=f"of {prediction_unit} can be asked: {fitting}"
        )


def select_stays(hospital: HospitalDatabase, task: ClinicalTask, spec: TaskSpec) -> list[Attrition]:
    """Fill ``asked`` (the columns of ``stay`` and ``prediction_time``) and ``answered`` (the answers of those), and say who left by which rule.

    Raises:
        SourceError: a table is missing that the question needs.
        RecipeError: the question is not asked of stays, or cannot be put to this kind of hospital.
    """
    check_prediction_unit(task, "stays")
    _check_required_tables(hospital, task)
    prepared = task.prepare_tables(hospital, spec) if task.prepare_tables else ()
    connection = hospital.connection
    connection.execute(
        f"CREATE OR REPLACE TABLE asked AS SELECT *, {task.prediction_time} AS prediction_time FROM stay"
    )
    steps = [apply_exclusion(connection, rule) for rule in task.exclusion_criteria]
    connection.execute(
        f"CREATE OR REPLACE TABLE answered AS SELECT * FROM ({task.label_query}) WHERE stay_id IN (SELECT stay_id FROM asked)"
    )
    return [*prepared, *steps]


def _check_required_tables(hospital: HospitalDatabase, task: ClinicalTask) -> None:
    for part in task.required_tables:
        if part in hospital.missing_tables:
            message = f"there is no table of {part} rows ({hospital.missing_tables[part]}), needed for the answers of {task.name}"
            raise SourceError(
                message, location=str(hospital.folder), hint="put it there, or ask another question"
            )


def apply_exclusion(
    connection: duckdb.DuckDBPyConnection, criterion: ExclusionCriterion
) -> Attrition:
    """Let the stays that a rule names leave ``asked``, each counted once."""
    connection.execute(f"""CREATE OR REPLACE TABLE leaving AS
        SELECT stay_id, min(reason) AS reason FROM ({criterion.excluded_query}) WHERE stay_id IN (SELECT stay_id FROM asked) GROUP BY stay_id""")
    attrition = Attrition(criterion.name, count_selected_rows(connection, "asked"))
    for reason, left in connection.execute(
        "SELECT reason, count(*) FROM leaving GROUP BY reason ORDER BY reason"
    ).fetchall():
        attrition.drop_rows(reason, left)
    connection.execute("DELETE FROM asked WHERE stay_id IN (SELECT stay_id FROM leaving)")
    connection.execute("DROP TABLE leaving")
    return attrition


def check_rows_remain(steps: Sequence[Attrition], location: str, row_name: str = "stay") -> None:
    """Stop when no stay is left, or no ``row_name`` of another kind.

    Raises:
        SourceError: with what left in the step that took the last ones.
    """
    last = next((step for step in steps if step.entered_rows and not step.kept_rows), None)
    if last is None:
        return
    reasons = ", ".join(f"{left:,} × {reason}" for reason, left in last.dropped_rows.items())
    raise SourceError(
        f"not one {row_name} is left after the step {last.step!r}: {reasons}",
        location=location,
        hint="check the tables and the task",
    )


def count_selected_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """The number of rows of a table."""
    ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)
