"""Which stays are in a cohort, and their labels: the criteria of a task in order. Reads no note."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import duckdb

from clinpeft.core.database import count_table_rows
from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts.outcomes import CLINICAL_TASKS, TASKS_BY_COMPAT
from clinpeft.data.cohorts.task import ClinicalTask, ExclusionCriterion
from clinpeft.recipe import TaskSpec


def get_clinical_task(spec: TaskSpec) -> ClinicalTask:
    """The task that a recipe names, in the variant of its ``compat``.

    Raises:
        RecipeError: there is no such task, it has no published variant, or it would read text from
            after the prediction time.
    """
    if spec.name not in CLINICAL_TASKS:
        near = difflib.get_close_matches(spec.name, CLINICAL_TASKS, n=1, cutoff=0.4)
        suggestion = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"there is no task {spec.name!r}",
            location="task.name",
            hint=f"{suggestion}the tasks are: {', '.join(CLINICAL_TASKS)}",
        )
    if spec.name not in TASKS_BY_COMPAT[spec.compat]:
        raise RecipeError(
            f"{spec.name} was not published in {spec.compat}",
            location="task.compat",
            hint=f"leave it out, or choose one of: {', '.join(TASKS_BY_COMPAT[spec.compat])}",
        )
    task = TASKS_BY_COMPAT[spec.compat][spec.name]
    if task.note_selection.is_simulated and spec.sections == "all":
        raise RecipeError(
            f"{spec.name} is predicted at admission, and the whole discharge summary describes "
            "what happened later",
            location="task.sections = 'all'",
            hint='choose sections = "admission" or "core-2021"',
        )
    return task


def check_prediction_unit(task: ClinicalTask, prediction_unit: str) -> None:
    """Check that a task is about the ``stays`` or the ``notes`` at hand.

    Raises:
        RecipeError: it is about the other; the error names the tasks that fit.
    """
    if task.prediction_unit != prediction_unit:
        fitting = ", ".join(
            name
            for name, other in CLINICAL_TASKS.items()
            if other.prediction_unit == prediction_unit
        )
        raise RecipeError(
            f"{task.name} is a task of {task.prediction_unit}, and the source gives "
            f"{prediction_unit}",
            location="task.name",
            hint=f"tasks of {prediction_unit}: {fitting}",
        )


def select_stays(hospital: HospitalDatabase, task: ClinicalTask, spec: TaskSpec) -> list[Attrition]:
    """Create the tables ``selected_stay`` and ``raw_label``.

    ``selected_stay`` has the columns of ``stay`` and ``prediction_time``; ``raw_label`` the result
    of ``task.label_query`` for these stays.

    Returns:
        One attrition a step.

    Raises:
        SourceError: a table is missing that the labels need.
        RecipeError: the task is not about stays, or does not fit this layout.
    """
    check_prediction_unit(task, "stays")
    for part in task.required_tables:
        if part in hospital.missing_tables:
            raise SourceError(
                f"there is no table of {part} rows ({hospital.missing_tables[part]}), needed for "
                f"the labels of {task.name}",
                location=str(hospital.folder),
                hint="put it there, or choose another task",
            )
    # Criteria and labels may use these tables, so that they come first.
    prepared = task.prepare_tables(hospital, spec) if task.prepare_tables else ()
    connection = hospital.connection
    connection.execute(
        f"""CREATE OR REPLACE TABLE selected_stay AS
            SELECT *, {task.prediction_time} AS prediction_time FROM stay"""
    )
    # In order: each criterion sees only the stays that the earlier ones left.
    steps = [apply_exclusion(connection, criterion) for criterion in task.exclusion_criteria]
    connection.execute(
        f"""CREATE OR REPLACE TABLE raw_label AS SELECT * FROM ({task.label_query})
            WHERE stay_id IN (SELECT stay_id FROM selected_stay)"""
    )
    return [*prepared, *steps]


def apply_exclusion(
    connection: duckdb.DuckDBPyConnection, criterion: ExclusionCriterion
) -> Attrition:
    """Delete the stays that a criterion excludes from ``selected_stay``; each is counted once."""
    connection.execute(
        f"""CREATE OR REPLACE TABLE excluded_stay AS
            SELECT stay_id, min(reason) AS reason FROM ({criterion.excluded_query})
            WHERE stay_id IN (SELECT stay_id FROM selected_stay) GROUP BY stay_id"""
    )
    attrition = Attrition(criterion.name, count_table_rows(connection, "selected_stay"))
    for reason, count in connection.execute(
        "SELECT reason, count(*) FROM excluded_stay GROUP BY reason ORDER BY reason"
    ).fetchall():
        attrition.drop_rows(reason, count)
    connection.execute(
        "DELETE FROM selected_stay WHERE stay_id IN (SELECT stay_id FROM excluded_stay)"
    )
    connection.execute("DROP TABLE excluded_stay")
    return attrition


def check_rows_remain(steps: Sequence[Attrition], location: str, row_name: str = "stay") -> None:
    """Check that rows remain after every step.

    Args:
        steps: first to last.
        location: of the error.
        row_name: what a row is, in the error.

    Raises:
        SourceError: none remain; the error names the step that dropped the last ones, and its
            reasons.
    """
    last = next((step for step in steps if step.entered_rows and not step.kept_rows), None)
    if last is None:
        return
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in last.dropped_rows.items())
    raise SourceError(
        f"no {row_name} remains after the step {last.step!r}: {reasons}",
        location=location,
        hint="check the tables and the task",
    )
