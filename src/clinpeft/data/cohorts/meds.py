"""A cohort as a MEDS data set (version 0.4), and MEDS labels made elsewhere, such as by ACES, read back.

```
data/<split>/0.parquet           one row a stay: the note that may be read, at the time of prediction
metadata/codes.parquet           the codes that occur, described
metadata/subject_splits.parquet  the split of every person
metadata/dataset.json            names, versions, and which columns are ids of the source
labels/<question>.parquet        one file a question, as the closed label schema has one answer a row
labels.json                      which file asks what; outside the standard
labels_long.parquet              (subject_id, prediction_time, class) instead of label files, where there are more classes than files
```
Everything up to and including its prediction time may be read, so the note stands at that time. It is cut from a discharge summary and in truth
was written later: what MEDS calls the time is when the question assumes it known.
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
from numpy.typing import NDArray

from clinpeft import __version__
from clinpeft.core.errors import InputError, StorageError
from clinpeft.core.schemas import SPLIT_NAMES, ProblemType
from clinpeft.data.cohorts import cohort_files

MEDS_VERSION = "0.4.1"
MAX_LABEL_FILES = (
    200  # classes of a multilabel question with a file each; for more, one table in long form
)

_BATCH_ROWS = 2048
_TIME_TYPE = pa.timestamp("us")

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
"""``DataSchema`` of MEDS and two columns of ours, declared in ``dataset.json`` as ids of the source."""

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
"""``LabelSchema`` of MEDS: closed, so no other column, and of the last four those that the question uses."""

MEDS_LONG_LABEL_SCHEMA = pa.schema(
    [*list(MEDS_LABEL_SCHEMA)[:2], pa.field("class", pa.string(), nullable=False)]
)


@dataclass(frozen=True)
class _LabelFile:
    """One label file: its name, the class it asks for ("" for all of a multiclass question), and the answer of every stay."""

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
        cohort: Parquet of schema ``tables.COHORT``.
        kind: what its answers are. Binary becomes ``boolean_value``, multiclass ``integer_value`` (the index in ``classes``), multilabel one
            file of ``boolean_value`` a class up to ``LABEL_FILES`` classes and else the long form.
        classes: the name of every class, in the order of its index.
        folder: where the data set goes.
        dataset_name, dataset_version: as in ``dataset.json``; the name stands in the code ``NOTE//{dataset_name}//{category}`` too.
        category: of the notes.
        task_name: the name of the label file of a binary or multiclass task.
        created_at: for ``dataset.json``, which has none otherwise: two builds of one cohort are then equal.

    Raises:
        InputError: no cohort, or a person in two splits.
        StorageError: the folder cannot be written to.
    """
    stays = cohort_files.read_cohort_without_text(cohort)
    numbers = cohort_files.encode_cohort_splits(stays, cohort)
    answers = cohort_files.build_cohort_label_matrix(stays, kind, classes, cohort)
    subjects = _build_subject_splits(stays["subject_id"].to_numpy(), numbers, cohort)
    code = f"NOTE//{dataset_name}//{category}"
    try:
        for part in ("metadata", "labels", *(f"data/{split}" for split in SPLIT_NAMES)):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for split in SPLIT_NAMES:
            _write_events(cohort, split, code, folder / "data" / split / "0.parquet")
        pq.write_table(subjects, folder / "metadata" / "subject_splits.parquet")
        described = [
            f"{category} of {dataset_name}: the text that may be read at the prediction time"
        ]
        pq.write_table(
            pa.table([[code], described, [[]]], schema=MEDS_CODE_SCHEMA),
            folder / "metadata" / "codes.parquet",
        )
        _write_json(
            _build_dataset_metadata(dataset_name, dataset_version, created_at),
            folder / "metadata" / "dataset.json",
        )
        _write_labels(stays, kind, classes, answers, task_name, folder)
    except (OSError, duckdb.IOException) as error:
        raise StorageError(
            f"the data set cannot be written: {type(error).__name__}",
            location=str(folder),
            hint="give a folder with space",
        ) from error


def _build_subject_splits(
    subjects: NDArray[np.int64], split_indices: NDArray[np.int64], location: Path
) -> pa.Table:
    pairs = np.unique(np.stack([subjects, split_indices]), axis=1)
    _, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        message = f"{int((counts > 1).sum())} people have stays in more than one split, and MEDS splits people"
        raise InputError(
            message, location=str(location), hint="build the cohort with a split by subject"
        )
    return pa.table([pairs[0], np.array(SPLIT_NAMES)[pairs[1]]], schema=MEDS_SUBJECT_SPLIT_SCHEMA)


def _write_events(cohort: Path, split: str, code: str, path: Path) -> None:
    """The stays of a split, by person and time: each person in one file, without a gap, as MEDS asks."""
    query = """SELECT subject_id, prediction_time AS time, $code AS code, NULL AS numeric_value, text AS text_value,
                      CAST(stay_id AS VARCHAR) AS note_id, stay_id AS hadm_id
               FROM read_parquet($cohort) WHERE split = $split ORDER BY subject_id, prediction_time, stay_id"""
    with (
        duckdb.connect(config=_build_duckdb_settings(path.parent)) as connection,
        pq.ParquetWriter(path, MEDS_DATA_SCHEMA) as writer,
    ):
        found = connection.sql(query, params={"code": code, "cohort": str(cohort), "split": split})
        for batch in found.to_arrow_reader(_BATCH_ROWS):
            writer.write_table(pa.Table.from_batches([batch]).cast(MEDS_DATA_SCHEMA))


def _build_duckdb_settings(folder: Path) -> dict[str, str | bool]:
    """Of a database that spills into this folder, and fetches nothing."""
    closed = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    return {"preserve_insertion_order": True, "temp_directory": str(folder), **closed}


def _build_dataset_metadata(
    name: str, version: str, created_at: datetime.datetime | None
) -> dict[str, object]:
    plain: dict[str, object] = {
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
    return plain | ({"created_at": created_at.isoformat()} if created_at else {})


def _write_json(content: object, path: Path) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_labels(
    stays: pa.Table,
    kind: ProblemType,
    classes: Sequence[str],
    label_matrix: sp.csr_array,
    task_name: str,
    folder: Path,
) -> None:
    if kind == "multilabel" and len(classes) > MAX_LABEL_FILES:
        pq.write_table(
            _build_long_labels(stays, classes, label_matrix), folder / "labels_long.parquet"
        )
        told = f"{len(classes)} classes are more than {MAX_LABEL_FILES} files: the answers are in labels_long.parquet, which is no part of MEDS"
        _write_json({"files": [], "classes": list(classes), "note": told}, folder / "labels.json")
        return
    asked = []
    for entry in _LABEL_FILE_BUILDERS[kind](classes, label_matrix, task_name):
        columns = [stays["subject_id"], stays["prediction_time"], entry.label_values]
        schema = pa.schema(
            [
                MEDS_LABEL_SCHEMA.field("subject_id"),
                MEDS_LABEL_SCHEMA.field("prediction_time"),
                MEDS_LABEL_SCHEMA.field(entry.column).with_nullable(False),
            ]
        )
        ordered = pa.table(columns, schema=schema).sort_by(
            [("subject_id", "ascending"), ("prediction_time", "ascending")]
        )
        pq.write_table(ordered, folder / "labels" / f"{entry.name}.parquet")
        asked.append(
            {
                "file": f"labels/{entry.name}.parquet",
                "class": entry.class_name,
                "column": entry.column,
            }
        )
    _write_json({"files": asked, "classes": list(classes), "note": ""}, folder / "labels.json")


def _build_binary_files(
    classes: Sequence[str], label_matrix: sp.csr_array, task_name: str
) -> list[_LabelFile]:
    return [
        _LabelFile(
            _sanitize_file_name(task_name),
            classes[1],
            "boolean_value",
            pa.array(label_matrix.indices == 1),
        )
    ]


def _build_multiclass_files(
    classes: Sequence[str], label_matrix: sp.csr_array, task_name: str
) -> list[_LabelFile]:  # noqa: ARG001
    return [
        _LabelFile(
            _sanitize_file_name(task_name),
            "",
            "integer_value",
            pa.array(label_matrix.indices.astype(np.int64)),
        )
    ]


def _build_multilabel_files(
    classes: Sequence[str], label_matrix: sp.csr_array, task_name: str
) -> Iterator[_LabelFile]:  # noqa: ARG001
    by_class = label_matrix.tocsc()
    names = [_sanitize_file_name(name) for name in classes]
    for location, about in enumerate(classes):
        applies = np.zeros(label_matrix.shape[0], np.bool_)
        applies[by_class.indices[by_class.indptr[location] : by_class.indptr[location + 1]]] = True
        name = (
            names[location]
            if names.count(names[location]) == 1
            else f"{names[location]}_{location}"
        )
        yield _LabelFile(name, about, "boolean_value", pa.array(applies))


_LABEL_FILE_BUILDERS = {
    "binary": _build_binary_files,
    "multiclass": _build_multiclass_files,
    "multilabel": _build_multilabel_files,
}


def _sanitize_file_name(name: str) -> str:
    """A name that every file system takes; ``labels.json`` has the class in full."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "class"


def _build_long_labels(
    stays: pa.Table, classes: Sequence[str], label_matrix: sp.csr_array
) -> pa.Table:
    rows = np.repeat(np.arange(label_matrix.shape[0]), np.diff(label_matrix.indptr))
    named = pa.array(list(classes), pa.string()).take(
        pa.array(label_matrix.indices.astype(np.int64))
    )
    table = stays.select(["subject_id", "prediction_time"]).take(pa.array(rows))
    return pa.table([*table.columns, named], schema=MEDS_LONG_LABEL_SCHEMA).sort_by(
        [(name, "ascending") for name in MEDS_LONG_LABEL_SCHEMA.names]
    )


def read_meds_labels(path: Path) -> pa.Table:
    """The labels of a MEDS label file, or of a folder of them, as ACES writes them.

    Returns:
        A table of schema ``LABEL``; columns that the question does not use are null.

    Raises:
        InputError: no such file, a column that is missing, unknown, of another type or without an answer, by name.
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
    found = cohort_files.open_checked_parquet(path, pa.schema([])).read()
    unknown = [name for name in found.column_names if name not in MEDS_LABEL_SCHEMA.names]
    if unknown:
        raise _create_input_error(
            f"column {unknown[0]!r} is none of the label schema",
            path,
            f"drop it; the schema has {', '.join(MEDS_LABEL_SCHEMA.names)}",
        )
    missing = [name for name in MEDS_LABEL_SCHEMA.names[:2] if name not in found.column_names]
    if missing:
        raise _create_input_error(
            f"column {missing[0]!r} is missing", path, "write the labels by the MEDS label schema"
        )
    columns = [_convert_column(found, field, path) for field in MEDS_LABEL_SCHEMA]
    if not any(len(column) == 0 or column.null_count < len(column) for column in columns[2:]):
        raise _create_input_error(
            f"none of {', '.join(MEDS_LABEL_SCHEMA.names[2:])} has an answer",
            path,
            "write the answers into one of them",
        )
    return pa.Table.from_arrays(columns, schema=MEDS_LABEL_SCHEMA)


def _convert_column(label_table: pa.Table, field: pa.Field, path: Path) -> pa.ChunkedArray:
    """A column in the type of the schema, if that changes no value."""
    if field.name not in label_table.column_names:
        return pa.chunked_array([pa.nulls(label_table.num_rows, field.type)])
    column = label_table[field.name]
    if not field.nullable and column.null_count:
        raise _create_input_error(
            f"column {field.name!r} has {column.null_count} nulls",
            path,
            "every label needs a person and a time",
        )
    if not _is_same_kind(column.type, field.type):
        raise _create_input_error(
            f"column {field.name!r} is {column.type}, and must be {field.type}",
            path,
            "write the labels by the MEDS label schema",
        )
    try:
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except pa.ArrowInvalid:
        raise _create_input_error(
            f"column {field.name!r} does not fit into {field.type}",
            path,
            "write the labels by the MEDS label schema",
        ) from None


def _is_same_kind(column_type: pa.DataType, schema_type: pa.DataType) -> bool:
    """Whether both are whole numbers, or text, and so on; a time with a zone is none without one."""
    if pa.types.is_timestamp(column_type):
        return pa.types.is_timestamp(schema_type) and column_type.tz is None
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, _is_text)
    return any(kind(column_type) and kind(schema_type) for kind in kinds) or pa.types.is_null(
        column_type
    )


def _is_text(column_type: pa.DataType) -> bool:
    return (
        pa.types.is_string(column_type)
        or pa.types.is_large_string(column_type)
        or pa.types.is_string_view(column_type)
        or _is_text_dictionary(column_type)
    )


def _is_text_dictionary(column_type: pa.DataType) -> bool:
    return pa.types.is_dictionary(column_type) and _is_text(column_type.value_type)


def _create_input_error(message: str, path: Path, hint: str) -> InputError:
    return InputError(message, location=str(path), hint=hint)
