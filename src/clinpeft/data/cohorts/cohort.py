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
from clinpeft.data.cohorts.sections import Style
from clinpeft.data.cohorts.selection import apply, refuse_nobody, select, task_of
from clinpeft.data.cohorts.task import Rule, Task
from clinpeft.recipe import CohortRecipe

COHORT_FILE, ATTRITION_FILE, LABELS_FILE = "cohort.parquet", "attrition.json", "labels.json"
BATCH_STAYS = 2048

ASKED_ONCE = Rule(
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
    task: Task
    classes: tuple[str, ...]
    attrition: tuple[Attrition, ...]

    @property
    def path(self) -> Path:
        """The Parquet file."""
        return self.folder / COHORT_FILE


def write(recipe: CohortRecipe, hospital: HospitalDatabase, folder: Path) -> Cohort:
    """The cohort alone: ``cohort.parquet``, ``attrition.json`` and ``labels.json``."""
    task = task_of(recipe.task)
    made(folder)
    steps = [*hospital.attrition, *select(hospital, task, recipe.task)]
    refuse_nobody(steps, str(hospital.folder))
    target = folder / "texts.parquet"
    try:
        steps += texts.read(hospital, task.reading, _style(task, recipe), target)
        steps.append(apply(hospital.connection, ASKED_ONCE))
        refuse_nobody(steps, str(hospital.folder))
        steps.append(_assign(recipe, hospital))
        classes, left_out, last = _label(task, recipe, hospital)
        steps += last
        refuse_nobody(steps, str(hospital.folder))
        _write_rows(hospital, target, folder / COHORT_FILE)
    finally:
        target.unlink(missing_ok=True)
    names = task.classes or tuple(c.name for c in classes)
    write_json(folder / LABELS_FILE, _labels(task, hospital, classes, left_out))
    write_json(folder / ATTRITION_FILE, [step.as_json() for step in steps])
    return Cohort(folder, task, names, tuple(steps))


def show(folder: Path) -> pa.Table:
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
        for entry in json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))["classes"]
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


def made(folder: Path) -> None:
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


def _style(task: Task, recipe: CohortRecipe) -> Style:
    """A question at discharge reads the whole note; one at admission what the recipe says, unless it is to be as published."""
    return (
        recipe.task.sections
        if task.reading.simulated and task.reading.style == "admission"
        else task.reading.style
    )


def _assign(recipe: CohortRecipe, hospital: HospitalDatabase) -> Attrition:
    """The table ``assigned`` (``stay_id``, ``split``)."""
    connection, spec = hospital.connection, recipe.split
    column = "NULL" if spec.by == "subject" else spec.by
    rows = connection.sql(
        f"SELECT subject_id, stay_id, {column}::VARCHAR AS part FROM asked ORDER BY subject_id, stay_id"
    ).to_arrow_table()
    subjects = rows["subject_id"].to_numpy()
    attrition = Attrition("split", len(subjects))
    if recipe.task.subject_lists is not None:
        names = split.by_lists(subjects, recipe.task.subject_lists)
        reasons = ["" if name else "subject on no list" for name in names.tolist()]
    elif spec.by == "subject":
        names, reasons = (
            split.by_hash(subjects, (spec.train, spec.tuning, spec.held_out), spec.seed),
            [""] * len(subjects),
        )
    else:
        names, reasons = split.by_group(subjects, rows["part"].to_pylist(), spec, spec.seed)
    split.refuse_straddling(subjects, names)
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


def _label(
    task: Task, recipe: CohortRecipe, hospital: HospitalDatabase
) -> tuple[tuple[codes.Class, ...], tuple[codes.Class, ...], list[Attrition]]:
    """The table ``labelled`` (``stay_id``, ``label``, ``labels``), and the classes that the data made."""
    if task.kind == "multilabel":
        kept, left_out = codes.label_space(
            hospital.connection, task.label_space, recipe.task.min_label_count
        )
        return kept, left_out, [codes.index(hospital.connection, kept)]
    hospital.connection.execute("""CREATE OR REPLACE TABLE labelled AS
        SELECT stay_id, label::INTEGER AS label, NULL::INTEGER[] AS labels FROM answered JOIN assigned USING (stay_id)""")
    return (), (), []


def _labels(
    task: Task,
    hospital: HospitalDatabase,
    classes: Sequence[codes.Class],
    left_out: Sequence[codes.Class],
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
        for batch in pq.ParquetFile(source).iter_batches(BATCH_STAYS):
            writer.write_table(_joined(batch, stays, places))


def _joined(batch: pa.RecordBatch, stays: pa.Table, places: dict[int, int]) -> pa.Table:
    at = [places.get(stay_id, -1) for stay_id in batch["stay_id"].to_pylist()]
    kept = np.flatnonzero(np.array(at, dtype=np.int64) >= 0)
    chosen = stays.take(pa.array([at[row] for row in kept], pa.int64())).append_column(
        "text", batch["text"].take(pa.array(kept))
    )
    return chosen.select(COHORT_SCHEMA.names).cast(COHORT_SCHEMA)


def write_json(path: Path, value: object) -> None:
    """One of the two JSON files of a cohort."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
