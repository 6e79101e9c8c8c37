"""One cohort: its rows, its attrition and its label space, written to a folder and shown from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.errors import InputError, StorageError
from clinpeft.core.schemas import COHORT_SCHEMA, SPLIT_NAMES, Attrition, HospitalDatabase
from clinpeft.data.cohorts import codes, split, texts
from clinpeft.data.cohorts.sections import SectionStyle
from clinpeft.data.cohorts.selection import (
    apply_exclusion,
    check_rows_remain,
    select_stays,
    get_clinical_task,
)
from clinpeft.data.cohorts.task import ExclusionCriterion, ClinicalTask
from clinpeft.recipe import CohortRecipe

COHORT_FILE, COHORT_ATTRITION_FILE, COHORT_LABELS_FILE = (
    "cohort.parquet",
    "attrition.json",
    "labels.json",
)
COHORT_BATCH_STAYS = 2048

ONE_STAY_PER_PREDICTION_TIME = ExclusionCriterion(
    "one question at a time",
    """SELECT stay_id, 'another stay of the patient is asked at the same time' AS reason FROM asked
       QUALIFY row_number() OVER (PARTITION BY subject_id, prediction_time ORDER BY stay_id) > 1""",
)
"""Stays of one person that overlap can begin together; a person and a time name one answer (MEDS), so the first stay is asked."""


@dataclass(frozen=True)
class Cohort:
    """A built cohort.

    Attributes:
        folder: with ``cohort.parquet`` (``tables.COHORT``, ordered by subject and prediction time), ``attrition.json``, ``labels.json``,
            the audit and ``meds/``.
        task: the question.
        classes: names in the order of their index.
        attrition: every step from the raw rows to the stays that are asked.
    """

    folder: Path
    task: ClinicalTask
    classes: tuple[str, ...]
    attrition: tuple[Attrition, ...]

    @property
    def path(self) -> Path:
        """The Parquet file."""
        return self.folder / COHORT_FILE


def write_cohort(recipe: CohortRecipe, hospital: HospitalDatabase, folder: Path) -> Cohort:
    """The cohort alone: ``cohort.parquet``, ``attrition.json`` and ``labels.json``."""
    task = get_clinical_task(recipe.task)
    create_cohort_folder(folder)
    steps = [*hospital.attrition, *select_stays(hospital, task, recipe.task)]
    check_rows_remain(steps, str(hospital.folder))
    target = folder / "texts.parquet"
    try:
        steps += texts.write_stay_texts(
            hospital, task.note_selection, _choose_section_style(task, recipe), target
        )
        steps.append(apply_exclusion(hospital.connection, ONE_STAY_PER_PREDICTION_TIME))
        check_rows_remain(steps, str(hospital.folder))
        steps.append(_assign_splits(recipe, hospital))
        classes, left_out, last = _create_label_table(task, recipe, hospital)
        steps += last
        check_rows_remain(steps, str(hospital.folder))
        _write_rows(hospital, target, folder / COHORT_FILE)
    finally:
        target.unlink(missing_ok=True)
    names = task.classes or tuple(c.name for c in classes)
    write_cohort_json(
        folder / COHORT_LABELS_FILE, _describe_labels(task, hospital, classes, left_out)
    )
    write_cohort_json(folder / COHORT_ATTRITION_FILE, [step.as_json() for step in steps])
    return Cohort(folder, task, names, tuple(steps))


def summarize_cohort(folder: Path) -> pa.Table:
    """What a built cohort holds: split, class, stays, subjects, and the share of the split's stays; a multilabel stay counts in each of its classes.

    Raises:
        InputError: there is no cohort in this folder.
    """
    if not (folder / COHORT_FILE).is_file():
        raise InputError(
            "there is no cohort in this folder",
            location=str(folder),
            hint="build one: clinpeft cohort build RECIPE",
        )
    names = [
        entry["name"]
        for entry in json.loads((folder / COHORT_LABELS_FILE).read_text(encoding="utf-8"))[
            "classes"
        ]
    ]
    rows = pq.read_table(
        folder / COHORT_FILE, columns=["subject_id", "split", "label", "labels"]
    ).to_pylist()
    found: dict[tuple[str, int], tuple[int, set[int]]] = {}
    for row in rows:
        for at in [row["label"]] if row["label"] is not None else row["labels"]:
            stays, subjects = found.get((row["split"], at), (0, set()))
            found[row["split"], at] = (stays + 1, subjects | {row["subject_id"]})
    sizes = {name: sum(row["split"] == name for row in rows) for name in SPLIT_NAMES}
    order = sorted(found, key=lambda key: (SPLIT_NAMES.index(key[0]), key[1]))
    return pa.table(
        {
            "split": [name for name, _ in order],
            "class": [names[at] for _, at in order],
            "stays": [found[key][0] for key in order],
            "subjects": [len(found[key][1]) for key in order],
            "share": [found[key][0] / sizes[key[0]] for key in order],
        }
    )


def create_cohort_folder(folder: Path) -> None:
    """Make the folder of a cohort.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"this folder cannot be made: {error.strerror}",
            location=str(folder),
            hint="check its rights",
        ) from error


def _choose_section_style(task: ClinicalTask, recipe: CohortRecipe) -> SectionStyle:
    """A question at discharge reads the whole note; one at admission what the recipe says, unless it is to be as published."""
    return (
        recipe.task.sections
        if task.note_selection.is_simulated and task.note_selection.section_style == "admission"
        else task.note_selection.section_style
    )


def _assign_splits(recipe: CohortRecipe, hospital: HospitalDatabase) -> Attrition:
    """The table ``assigned`` (``stay_id``, ``split``)."""
    connection, spec = hospital.connection, recipe.split
    column = "NULL" if spec.by == "subject" else spec.by
    rows = connection.sql(
        f"SELECT subject_id, stay_id, {column}::VARCHAR AS part FROM asked ORDER BY subject_id, stay_id"
    ).to_arrow_table()
    subjects = rows["subject_id"].to_numpy()
    attrition = Attrition("split", len(subjects))
    if recipe.task.subject_lists is not None:
        names = split.split_subjects_by_lists(subjects, recipe.task.subject_lists)
        reasons = ["" if name else "subject on no list" for name in names.tolist()]
    elif spec.by == "subject":
        names, reasons = (
            split.split_subjects_by_hash(
                subjects, (spec.train, spec.tuning, spec.held_out), spec.seed
            ),
            [""] * len(subjects),
        )
    else:
        names, reasons = split.split_stays_by_group(
            subjects, rows["part"].to_pylist(), spec, spec.seed
        )
    split.check_subjects_in_one_split(subjects, names)
    for reason in reasons:
        if reason:
            attrition.drop_rows(reason)
    connection.register(
        "arriving",
        pa.table({"stay_id": rows["stay_id"], "split": pa.array(names.tolist(), pa.string())}),
    )
    connection.execute(
        "CREATE OR REPLACE TABLE assigned AS SELECT * FROM arriving WHERE split <> ''"
    )
    connection.unregister("arriving")
    return attrition


def _create_label_table(
    task: ClinicalTask, recipe: CohortRecipe, hospital: HospitalDatabase
) -> tuple[tuple[codes.CodeClass, ...], tuple[codes.CodeClass, ...], list[Attrition]]:
    """The table ``labelled`` (``stay_id``, ``label``, ``labels``), and the classes that the data made."""
    if task.kind == "multilabel":
        kept, left_out = codes.select_code_classes(
            hospital.connection, task.label_space_query, recipe.task.min_label_count
        )
        return kept, left_out, [codes.create_code_label_table(hospital.connection, kept)]
    hospital.connection.execute("""CREATE OR REPLACE TABLE labelled AS
        SELECT stay_id, label::INTEGER AS label, NULL::INTEGER[] AS labels FROM answered JOIN assigned USING (stay_id)""")
    return (), (), []


def _describe_labels(
    task: ClinicalTask,
    hospital: HospitalDatabase,
    classes: Sequence[codes.CodeClass],
    left_out: Sequence[codes.CodeClass],
) -> Mapping[str, object]:
    """As it stands in ``labels.json``: the label space in the order of the indices."""
    entries: list[dict[str, object]]
    if task.kind == "multilabel":
        entries = [
            {
                "index": at,
                "name": c.name,
                "kind": c.kind,
                "system": c.system,
                "code": c.code,
                "train_stays": c.train_stays,
            }
            for at, c in enumerate(classes)
        ]
    else:
        query = "SELECT label, count(*) FROM labelled JOIN assigned USING (stay_id) WHERE split = 'train' GROUP BY label"
        counts = dict(hospital.connection.execute(query).fetchall())
        entries = [
            {"index": at, "name": name, "train_stays": counts.get(at, 0)}
            for at, name in enumerate(task.classes)
        ]
    told: dict[str, object] = {
        "task": task.name,
        "question": task.question,
        "kind": task.kind,
        "metric": task.metric,
        "classes": entries,
    }
    return told | {"left_out": [{"name": c.name, "train_stays": c.train_stays} for c in left_out]}


def _write_rows(hospital: HospitalDatabase, source: Path, target: Path) -> None:
    """Texts, answers and stays joined into ``tables.COHORT``; only the texts are streamed, the rest is a few columns a stay."""
    columns = ", ".join(
        f"a.{name}"
        for name in COHORT_SCHEMA.names
        if name not in ("split", "label", "labels", "text")
    )
    query = f"""SELECT {columns}, s.split, l.label, l.labels FROM asked a JOIN assigned s USING (stay_id) JOIN labelled l USING (stay_id)
        ORDER BY stay_id"""
    stays = hospital.connection.sql(query).to_arrow_table()
    places = {stay_id: at for at, stay_id in enumerate(stays["stay_id"].to_pylist())}
    with pq.ParquetWriter(target, COHORT_SCHEMA, compression="zstd") as writer:
        for batch in pq.ParquetFile(source).iter_batches(COHORT_BATCH_STAYS):
            writer.write_table(_join_texts(batch, stays, places))


def _join_texts(batch: pa.RecordBatch, stays: pa.Table, row_numbers: dict[int, int]) -> pa.Table:
    at = [row_numbers.get(stay_id, -1) for stay_id in batch["stay_id"].to_pylist()]
    kept = np.flatnonzero(np.array(at, dtype=np.int64) >= 0)
    chosen = stays.take(pa.array([at[row] for row in kept], pa.int64())).append_column(
        "text", batch["text"].take(pa.array(kept))
    )
    return chosen.select(COHORT_SCHEMA.names).cast(COHORT_SCHEMA)


def write_cohort_json(path: Path, value: object) -> None:
    """One of the two JSON files of a cohort."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
