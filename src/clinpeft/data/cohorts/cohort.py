"""One cohort: its rows, its attrition and its label space, written to a folder and summarized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.database import register_arrow_tables
from clinpeft.core.errors import InputError, StorageError
from clinpeft.core.schemas import COHORT_SCHEMA, SPLIT_NAMES, Attrition, HospitalDatabase
from clinpeft.data.cohorts import codes, split, texts
from clinpeft.data.cohorts.cohort_files import (
    COHORT_FILE,
    LabelsDocument,
    LabelsEntry,
    read_cohort_labels,
    write_cohort_documents,
)
from clinpeft.data.cohorts.selection import (
    apply_exclusion,
    check_rows_remain,
    get_clinical_task,
    select_stays,
)
from clinpeft.data.cohorts.task import ClinicalTask, ExclusionCriterion
from clinpeft.recipe import CohortRecipe

COHORT_BATCH_STAYS = 2048

# Stays of one subject that overlap can have the same prediction time. MEDS identifies a label by
# subject and time, so the stay with the smallest id remains.
ONE_STAY_PER_PREDICTION_TIME = ExclusionCriterion(
    "one question at a time",
    """SELECT stay_id, 'another stay of the patient is asked at the same time' AS reason
       FROM selected_stay
       QUALIFY row_number() OVER (PARTITION BY subject_id, prediction_time ORDER BY stay_id) > 1""",
)


@dataclass(frozen=True)
class Cohort:
    """A built cohort.

    Attributes:
        folder: with ``cohort.parquet`` (``COHORT_SCHEMA``, ordered by subject and prediction time),
            ``attrition.json``, ``labels.json``, the leakage audit and ``meds/``.
        task: the clinical task.
        classes: names in the order of their index.
        attrition: every step from the raw rows to the stays of the cohort.
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
    """Write ``cohort.parquet``, ``attrition.json`` and ``labels.json``, without audit and MEDS.

    Raises:
        RecipeError: there is no such task, or it does not fit the hospital.
        SourceError: a table is missing or damaged, or no stay remains.
        RefusedError: a subject is in two splits.
        StorageError: ``folder`` cannot be written.
    """
    task = get_clinical_task(recipe.task)
    selection = task.note_selection
    # Only a note simulated by the corrected rules has a choice of sections.
    has_choice = selection.is_simulated and selection.section_style == "admission"
    section_style = recipe.task.sections if has_choice else selection.section_style
    # Only after the recipe is checked: a wrong recipe leaves no folder behind.
    create_cohort_folder(folder)
    steps = [*hospital.attrition, *select_stays(hospital, task, recipe.task)]
    check_rows_remain(steps, str(hospital.folder))
    text_path = folder / "texts.parquet"
    try:
        steps += texts.write_stay_texts(hospital, selection, section_style, text_path)
        # After the texts, since waiting for the last note changes prediction times.
        steps.append(apply_exclusion(hospital.connection, ONE_STAY_PER_PREDICTION_TIME))
        check_rows_remain(steps, str(hospital.folder))
        steps.append(_assign_splits(recipe, hospital))
        labels, label_steps = _create_label_table(task, recipe, hospital)
        steps += label_steps
        check_rows_remain(steps, str(hospital.folder))
        _write_rows(hospital, text_path, folder / COHORT_FILE)
    finally:
        # The texts are clinical data: they are removed however the build ends.
        text_path.unlink(missing_ok=True)
    write_cohort_documents(folder, labels, steps)
    return Cohort(folder, task, tuple(entry.name for entry in labels.classes), tuple(steps))


def summarize_cohort(folder: Path) -> pa.Table:
    """Stays and subjects of a built cohort by split and class.

    Returns:
        Columns ``split``, ``class``, ``stays``, ``subjects`` and ``share``, the fraction of the
        split's stays; a multilabel stay counts in each of its classes.

    Raises:
        InputError: there is no cohort in this folder.
    """
    if not (folder / COHORT_FILE).is_file():
        raise InputError(
            "there is no cohort in this folder",
            location=str(folder),
            hint="build one: clinpeft cohort build RECIPE",
        )
    names = [entry.name for entry in read_cohort_labels(folder).classes]
    columns = ["subject_id", "split", "label", "labels"]
    rows = pq.read_table(folder / COHORT_FILE, columns=columns).to_pylist()
    subjects: dict[tuple[str, int], list[int]] = {}  # (split, class) -> the subject of every stay
    for row in rows:
        for label in [row["label"]] if row["label"] is not None else row["labels"]:
            subjects.setdefault((row["split"], label), []).append(row["subject_id"])
    # Of a multilabel task the fractions of a split may sum to more than 1.
    sizes = {name: sum(row["split"] == name for row in rows) for name in SPLIT_NAMES}
    order = sorted(subjects, key=lambda key: (SPLIT_NAMES.index(key[0]), key[1]))
    return pa.table(
        {
            "split": [name for name, _ in order],
            "class": [names[label] for _, label in order],
            "stays": [len(subjects[key]) for key in order],
            "subjects": [len(set(subjects[key])) for key in order],
            "share": [len(subjects[key]) / sizes[key[0]] for key in order],
        }
    )


def create_cohort_folder(folder: Path) -> None:
    """Create the folder of a cohort where it does not exist.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"this folder cannot be created: {error.strerror}",
            location=str(folder),
            hint="check its permissions",
        ) from error


def _assign_splits(recipe: CohortRecipe, hospital: HospitalDatabase) -> Attrition:
    """Create the table ``stay_split`` (``stay_id``, ``split``)."""
    connection, spec = hospital.connection, recipe.split
    group = "NULL" if spec.by == "subject" else spec.by
    # Ordered by id, so that the splits do not depend on the order of the files.
    rows = connection.sql(
        f"""SELECT subject_id, stay_id, {group}::VARCHAR AS part FROM selected_stay
            ORDER BY subject_id, stay_id"""
    ).to_arrow_table()
    subjects = rows["subject_id"].to_numpy()
    if recipe.task.subject_lists is not None:
        names = split.split_subjects_by_lists(subjects, recipe.task.subject_lists)
        reasons = ["" if name else "subject on no list" for name in names.tolist()]
    elif spec.by == "subject":
        fractions = (spec.train, spec.tuning, spec.held_out)
        names, reasons = split.split_subjects_by_hash(subjects, fractions, spec.seed), []
    else:
        groups = rows["part"].to_pylist()
        names, reasons = split.split_stays_by_group(subjects, groups, spec, spec.seed)
    split.check_subjects_in_one_split(subjects, names)
    attrition = Attrition("split", len(subjects))
    for reason in reasons:
        if reason:
            attrition.drop_rows(reason)
    split_column = pa.array(names.tolist(), pa.string())
    arrow_rows = pa.table({"stay_id": rows["stay_id"], "split": split_column})
    with register_arrow_tables(connection, arrow_rows=arrow_rows):
        connection.execute(
            "CREATE OR REPLACE TABLE stay_split AS SELECT * FROM arrow_rows WHERE split <> ''"
        )
    return attrition


def _create_label_table(
    task: ClinicalTask, recipe: CohortRecipe, hospital: HospitalDatabase
) -> tuple[LabelsDocument, list[Attrition]]:
    """Create the table ``stay_label`` (``stay_id``, ``label``, ``labels``).

    Returns:
        The label space, and the attrition of stays without a class in it.
    """
    connection = hospital.connection
    rare: Sequence[codes.CodeClass] = ()
    steps = []
    if task.kind == "multilabel":
        classes, rare = codes.select_code_classes(
            connection, task.label_space_query, recipe.task.min_label_count
        )
        steps.append(codes.create_code_label_table(connection, classes))
        entries = [
            LabelsEntry(
                index=index,
                name=code_class.name,
                kind=code_class.kind,
                system=code_class.system,
                code=code_class.code,
                train_stays=code_class.train_stays,
            )
            for index, code_class in enumerate(classes)
        ]
    else:
        connection.execute(
            """CREATE OR REPLACE TABLE stay_label AS
               SELECT stay_id, label::INTEGER AS label, NULL::INTEGER[] AS labels
               FROM raw_label JOIN stay_split USING (stay_id)"""
        )
        query = """SELECT label, count(*) FROM stay_label JOIN stay_split USING (stay_id)
            WHERE split = 'train' GROUP BY label"""
        train_stays = dict(connection.execute(query).fetchall())
        entries = [
            LabelsEntry(index=index, name=name, train_stays=train_stays.get(index, 0))
            for index, name in enumerate(task.classes)
        ]
    labels = LabelsDocument(
        task=task.name,
        question=task.question,
        kind=task.kind,
        metric=task.metric,
        classes=tuple(entries),
        left_out=tuple(LabelsEntry(name=c.name, train_stays=c.train_stays) for c in rare),
    )
    return labels, steps


def _write_rows(hospital: HospitalDatabase, text_path: Path, cohort_path: Path) -> None:
    """Join texts, labels and stays into ``COHORT_SCHEMA``.

    Only the texts are streamed, in the order of their file; the rest is a few columns a stay.
    """
    columns = ", ".join(
        f"a.{name}"
        for name in COHORT_SCHEMA.names
        if name not in ("split", "label", "labels", "text")
    )
    stays = hospital.connection.sql(
        f"""SELECT {columns}, s.split, l.label, l.labels FROM selected_stay a
            JOIN stay_split s USING (stay_id) JOIN stay_label l USING (stay_id) ORDER BY stay_id"""
    ).to_arrow_table()
    row_numbers = {stay_id: row for row, stay_id in enumerate(stays["stay_id"].to_pylist())}
    with pq.ParquetWriter(cohort_path, COHORT_SCHEMA, compression="zstd") as writer:
        for batch in pq.ParquetFile(text_path).iter_batches(COHORT_BATCH_STAYS):
            rows = np.array(
                [row_numbers.get(stay_id, -1) for stay_id in batch["stay_id"].to_pylist()],
                dtype=np.int64,
            )
            present = np.flatnonzero(rows >= 0)  # a stay without a split or a class has no row
            table = stays.take(pa.array(rows[present])).append_column(
                "text", batch["text"].take(pa.array(present))
            )
            writer.write_table(table.select(COHORT_SCHEMA.names).cast(COHORT_SCHEMA))
