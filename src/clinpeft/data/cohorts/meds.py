"""A cohort as a MEDS data set (version 0.4), and MEDS labels, such as those of ACES, read back.

```
data/<split>/0.parquet           one row a stay: its text, at the prediction time
metadata/codes.parquet           the codes that occur, with descriptions
metadata/subject_splits.parquet  the split of every subject
metadata/dataset.json            names, versions, and which columns are ids of the source
labels/<task>.parquet            one file a label, since the label schema has one label a row
labels.json                      the class and column of every file; not part of MEDS
labels_long.parquet              (subject_id, prediction_time, class) in place of label files, where
                                 there are more than MAX_LABEL_FILES classes; not part of MEDS
```
A model may read what happened up to and including the prediction time, so the note has that time.
It is cut from a discharge summary and was written later: the time in MEDS is that at which the task
assumes the note to be available.

Source: github.com/Medical-Event-Data-Standard/meds, version 0.4 (schemas of data, codes, subject
splits, dataset metadata and labels).
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from clinpeft import __version__
from clinpeft.core.database import OFFLINE_DUCKDB_SETTINGS
from clinpeft.core.errors import InputError, StorageError
from clinpeft.core.files import write_file_atomically
from clinpeft.core.schemas import SPLIT_NAMES, ProblemType
from clinpeft.data.cohorts import cohort_files

MEDS_VERSION = "0.4.1"
MAX_LABEL_FILES = 200  # of a multilabel task; with more classes, one table in long form

_BATCH_ROWS = 2048
_TIME_TYPE = pa.timestamp("us")

# ``DataSchema`` of MEDS and two columns of ours, declared in ``dataset.json`` as source ids.
MEDS_DATA_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", _TIME_TYPE),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("note_id", pa.string()),
        pa.field("hadm_id", pa.int64()),
    ]
)

MEDS_CODE_SCHEMA = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
    ]
)
MEDS_SUBJECT_SPLIT_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)

# ``LabelSchema`` of MEDS: no other column is allowed, and of the last four columns a file has those
# that its task uses.
MEDS_LABEL_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", _TIME_TYPE, nullable=False),
        pa.field("boolean_value", pa.bool_()),
        pa.field("integer_value", pa.int64()),
        pa.field("float_value", pa.float32()),
        pa.field("categorical_value", pa.string()),
    ]
)

MEDS_LONG_LABEL_SCHEMA = pa.schema(
    [*list(MEDS_LABEL_SCHEMA)[:2], pa.field("class", pa.string(), nullable=False)]
)


@dataclass(frozen=True)
class _LabelFile:
    """One label file.

    Attributes:
        name: of the file, without its ending.
        class_name: the class of a boolean label, "" for a multiclass task.
        column: of ``MEDS_LABEL_SCHEMA``, the one that holds the label.
        label_values: of every stay.
    """

    name: str
    class_name: str
    column: str
    label_values: pa.Array


def write_meds_dataset(
    cohort: Path,
    kind: ProblemType,
    classes: Sequence[str],
    folder: Path,
    dataset_name: str,
    dataset_version: str,
    *,
    category: str = "Admission note",
    task_name: str = "label",
    created_at: datetime.datetime | None = None,
) -> None:
    """Write a cohort as a MEDS data set.

    Args:
        cohort: Parquet of ``COHORT_SCHEMA``.
        kind: of the task. Labels of a binary task become ``boolean_value``, of a multiclass task
            ``integer_value`` (the index in ``classes``), of a multilabel task one file of
            ``boolean_value`` a class, or the long form beyond ``MAX_LABEL_FILES`` classes.
        classes: names in the order of their index.
        folder: of the data set.
        dataset_name, dataset_version: as in ``dataset.json``; the name is also part of the code
            ``NOTE//{dataset_name}//{category}``.
        category: of the notes.
        task_name: the name of the label file of a binary or multiclass task.
        created_at: for ``dataset.json``, which has no time otherwise, so that two builds of one
            cohort are equal.

    Raises:
        InputError: ``cohort`` is not a cohort, or a subject is in two splits.
        StorageError: ``folder`` cannot be written.
    """
    stays = cohort_files.read_cohort_without_text(cohort)
    splits = cohort_files.encode_cohort_splits(stays, cohort)
    label_matrix = cohort_files.build_cohort_label_matrix(stays, kind, classes, cohort)
    subjects = stays["subject_id"].to_numpy()
    pairs, straddling = cohort_files.find_subject_splits(subjects, splits)
    if straddling:
        raise InputError(
            f"{straddling} subjects have stays in more than one split, and MEDS splits by subject",
            location=str(cohort),
            hint="build the cohort with a split by subject",
        )
    # MEDS codes are paths separated by two slashes, from the general to the specific.
    code = f"NOTE//{dataset_name}//{category}"
    description = f"{category} of {dataset_name}: the text that may be read at the prediction time"
    try:
        for part in ("metadata", "labels", *(f"data/{split}" for split in SPLIT_NAMES)):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for split in SPLIT_NAMES:
            _write_events(cohort, split, code, folder / "data" / split / "0.parquet")
        pq.write_table(
            pa.table([pairs[0], np.array(SPLIT_NAMES)[pairs[1]]], schema=MEDS_SUBJECT_SPLIT_SCHEMA),
            folder / "metadata" / "subject_splits.parquet",
        )
        pq.write_table(
            pa.table([[code], [description], [[]]], schema=MEDS_CODE_SCHEMA),
            folder / "metadata" / "codes.parquet",
        )
        metadata = _build_dataset_metadata(dataset_name, dataset_version, created_at)
        _write_meds_json(metadata, folder / "metadata" / "dataset.json")
        _write_labels(stays, kind, classes, label_matrix, task_name, folder)
    except (OSError, duckdb.IOException) as error:
        raise StorageError(
            f"the data set cannot be written: {type(error).__name__}",
            location=str(folder),
            hint="give a folder with space",
        ) from error


def _write_events(cohort: Path, split: str, code: str, path: Path) -> None:
    """Write the stays of a split, sorted by subject and time as MEDS requires of a shard."""
    query = """SELECT subject_id, prediction_time AS time, $code AS code, NULL AS numeric_value,
            text AS text_value, CAST(stay_id AS VARCHAR) AS note_id, stay_id AS hadm_id
        FROM read_parquet($cohort) WHERE split = $split
        ORDER BY subject_id, prediction_time, stay_id"""
    settings = OFFLINE_DUCKDB_SETTINGS | {
        "preserve_insertion_order": True,
        "temp_directory": str(path.parent),
    }
    with (
        duckdb.connect(config=settings) as connection,
        pq.ParquetWriter(path, MEDS_DATA_SCHEMA) as writer,
    ):
        # DuckDB spills the sort to disk, so that memory does not grow with the texts.
        rows = connection.sql(query, params={"code": code, "cohort": str(cohort), "split": split})
        for batch in rows.to_arrow_reader(_BATCH_ROWS):
            writer.write_table(pa.Table.from_batches([batch]).cast(MEDS_DATA_SCHEMA))


def _build_dataset_metadata(
    name: str, version: str, created_at: datetime.datetime | None
) -> dict[str, object]:
    """``DatasetMetadataSchema`` of MEDS."""
    metadata: dict[str, object] = {
        "dataset_name": name,
        "dataset_version": version,
        "etl_name": "clinpeft",
        "etl_version": __version__,
        "meds_version": MEDS_VERSION,
        "raw_source_id_columns": ["note_id", "hadm_id"],
        "code_modifier_columns": [],
        "additional_value_modality_columns": [],
        "site_id_columns": [],
        "other_extension_columns": [],
    }
    return metadata | ({"created_at": created_at.isoformat()} if created_at else {})


def _write_meds_json(content: object, path: Path) -> None:
    write_file_atomically(path, json.dumps(content, indent=1) + "\n")


def _write_labels(
    stays: pa.Table,
    kind: ProblemType,
    classes: Sequence[str],
    label_matrix: sp.csr_array,
    task_name: str,
    folder: Path,
) -> None:
    """Write the label files, or ``labels_long.parquet``, and ``labels.json``."""
    files, note = [], ""
    order = [("subject_id", "ascending"), ("prediction_time", "ascending")]
    if kind == "multilabel" and len(classes) > MAX_LABEL_FILES:
        # One row for every (stay, class) pair that applies.
        rows = np.repeat(np.arange(label_matrix.shape[0]), np.diff(label_matrix.indptr))
        indices = pa.array(label_matrix.indices.astype(np.int64))
        table = stays.select(["subject_id", "prediction_time"]).take(pa.array(rows))
        class_names = pa.array(list(classes), pa.string()).take(indices)
        long_table = pa.table([*table.columns, class_names], schema=MEDS_LONG_LABEL_SCHEMA)
        pq.write_table(
            long_table.sort_by([*order, ("class", "ascending")]), folder / "labels_long.parquet"
        )
        note = (
            f"{len(classes)} classes are more than {MAX_LABEL_FILES} files: the answers are in "
            "labels_long.parquet, which is no part of MEDS"
        )
    else:
        for entry in _iterate_label_files(kind, classes, label_matrix, task_name):
            columns = [stays["subject_id"], stays["prediction_time"], entry.label_values]
            schema = pa.schema(
                [
                    MEDS_LABEL_SCHEMA.field("subject_id"),
                    MEDS_LABEL_SCHEMA.field("prediction_time"),
                    # A label file of ours has no null label: such stays are not in the cohort.
                    MEDS_LABEL_SCHEMA.field(entry.column).with_nullable(False),
                ]
            )
            file = f"labels/{entry.name}.parquet"
            pq.write_table(pa.table(columns, schema=schema).sort_by(order), folder / file)
            files.append({"file": file, "class": entry.class_name, "column": entry.column})
    content = {"files": files, "classes": list(classes), "note": note}
    _write_meds_json(content, folder / "labels.json")


def _iterate_label_files(
    kind: ProblemType, classes: Sequence[str], label_matrix: sp.csr_array, task_name: str
) -> Iterator[_LabelFile]:
    """The label files of a task; of a multilabel task one a class."""
    if kind == "binary":
        # One label a stay, so that ``indices`` is the label column, ``(stays,)``.
        values = pa.array(label_matrix.indices == 1)
        yield _LabelFile(_sanitize_file_name(task_name), classes[1], "boolean_value", values)
    elif kind == "multiclass":
        values = pa.array(label_matrix.indices.astype(np.int64))
        yield _LabelFile(_sanitize_file_name(task_name), "", "integer_value", values)
    else:
        by_class = label_matrix.tocsc()
        names = [_sanitize_file_name(name) for name in classes]
        for index, (name, class_name) in enumerate(zip(names, classes, strict=True)):
            applies = np.zeros(label_matrix.shape[0], np.bool_)  # (stays,)
            applies[by_class.indices[by_class.indptr[index] : by_class.indptr[index + 1]]] = True
            # Two classes may differ only in characters that file systems refuse.
            unique_name = name if names.count(name) == 1 else f"{name}_{index}"
            yield _LabelFile(unique_name, class_name, "boolean_value", pa.array(applies))


def _sanitize_file_name(name: str) -> str:
    """A name that every file system accepts; ``labels.json`` has the class in full."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "class"


def read_meds_labels(path: Path) -> pa.Table:
    """Read a MEDS label file, or a folder of them as ACES writes it.

    Returns:
        A table of ``MEDS_LABEL_SCHEMA``; columns that the files do not have are null.

    Raises:
        InputError: there is no file, or a column is missing, unknown, of another type or without a
            label; the error names it.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError(
            f"no Parquet file in {path.name}",
            location=str(path),
            hint="give a label file or the folder that has them",
        )
    return pa.concat_tables([_read_label_file(file) for file in files])


def _read_label_file(path: Path) -> pa.Table:
    table = cohort_files.open_checked_parquet(path, pa.schema([])).read()
    names = MEDS_LABEL_SCHEMA.names
    unknown = [name for name in table.column_names if name not in names]
    if unknown:
        raise InputError(
            f"column {unknown[0]!r} is not in the label schema",
            location=str(path),
            hint=f"drop it; the schema has {', '.join(names)}",
        )
    # The first two columns, subject and time, are required by the schema.
    missing = [name for name in names[:2] if name not in table.column_names]
    if missing:
        raise InputError(
            f"column {missing[0]!r} is missing",
            location=str(path),
            hint="write the labels by the MEDS label schema",
        )
    columns = [_convert_column(table, field, path) for field in MEDS_LABEL_SCHEMA]
    if not any(len(column) == 0 or column.null_count < len(column) for column in columns[2:]):
        raise InputError(
            f"none of {', '.join(names[2:])} has a label",
            location=str(path),
            hint="write the labels into one of them",
        )
    return pa.Table.from_arrays(columns, schema=MEDS_LABEL_SCHEMA)


def _convert_column(label_table: pa.Table, field: pa.Field, path: Path) -> pa.ChunkedArray:
    """A column in the type of the schema, where that changes no value but rounds floats."""
    if field.name not in label_table.column_names:
        return pa.chunked_array([pa.nulls(label_table.num_rows, field.type)])
    column = label_table[field.name]
    if not field.nullable and column.null_count:
        raise InputError(
            f"column {field.name!r} has {column.null_count} nulls",
            location=str(path),
            hint="every label needs a subject and a time",
        )
    hint = "write the labels by the MEDS label schema"
    if not _is_same_kind(column.type, field.type):
        raise InputError(
            f"column {field.name!r} is {column.type}, and must be {field.type}",
            location=str(path),
            hint=hint,
        )
    try:
        # Other writers use narrower or wider types: int32 ids, float64 values, milliseconds.
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except pa.ArrowInvalid:
        raise InputError(
            f"column {field.name!r} does not fit into {field.type}", location=str(path), hint=hint
        ) from None


def _is_same_kind(column_type: pa.DataType, schema_type: pa.DataType) -> bool:
    """Whether both are integers, or text, and so on; a time with a time zone is not one without."""
    if pa.types.is_timestamp(column_type):
        return pa.types.is_timestamp(schema_type) and column_type.tz is None
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, _is_text)
    return any(kind(column_type) and kind(schema_type) for kind in kinds) or pa.types.is_null(
        column_type
    )


def _is_text(column_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(column_type):
        return _is_text(column_type.value_type)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(kind(column_type) for kind in kinds)
