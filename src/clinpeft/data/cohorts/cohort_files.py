"""The files of a cohort: names, schemas, and checked reading for the audit and the exports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray
from pydantic import TypeAdapter

from clinpeft.core.errors import InputError
from clinpeft.core.files import write_file_atomically
from clinpeft.core.schemas import COHORT_SCHEMA, SPLIT_NAMES, Attrition, ProblemType

COHORT_FILE, COHORT_ATTRITION_FILE, COHORT_LABELS_FILE = (
    "cohort.parquet",
    "attrition.json",
    "labels.json",
)
_BATCH_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class LabelsEntry:
    """One class in ``labels.json``.

    Attributes:
        index: of the class, None for one that is left out.
        name: of the class.
        kind, system, code: of a class of codes, else None.
        train_stays: stays of the class in the training split (of a task of notes: texts).
    """

    index: int | None = None
    name: str
    kind: str | None = None
    system: str | None = None
    code: str | None = None
    train_stays: int


@dataclass(frozen=True, kw_only=True)
class LabelsDocument:
    """The content of ``labels.json``: the task, its classes by index, and the rare classes."""

    task: str
    question: str
    kind: ProblemType
    metric: str
    classes: tuple[LabelsEntry, ...]
    left_out: tuple[LabelsEntry, ...] = ()


# JSON of dataclasses, in the order of their fields.
_LABELS_ADAPTER = TypeAdapter(LabelsDocument)
_ATTRITION_ADAPTER = TypeAdapter(list[dict[str, Any]])


def write_cohort_documents(
    folder: Path, labels: LabelsDocument, steps: Sequence[Attrition]
) -> None:
    """Write ``labels.json`` and ``attrition.json``.

    Raises:
        StorageError: ``folder`` cannot be written.
    """
    for name, content in (
        (COHORT_LABELS_FILE, _LABELS_ADAPTER.dump_json(labels, indent=2, exclude_none=True)),
        (
            COHORT_ATTRITION_FILE,
            _ATTRITION_ADAPTER.dump_json([step.as_json() for step in steps], indent=2),
        ),
    ):
        write_file_atomically(folder / name, content + b"\n")


def read_cohort_labels(folder: Path) -> LabelsDocument:
    """Read ``labels.json``.

    Raises:
        InputError: there is no cohort in ``folder``, or the file cannot be read.
    """
    try:
        return _LABELS_ADAPTER.validate_json((folder / COHORT_LABELS_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{COHORT_LABELS_FILE} of this cohort cannot be read",
            location=str(folder),
            hint="build the cohort: clinpeft cohort build RECIPE",
        ) from error


def open_checked_parquet(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """A Parquet file that has the columns of ``schema`` with their types; it may have more.

    Raises:
        InputError: the file is missing or not Parquet, or a column is missing or of another type.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path.name} cannot be read as Parquet",
            location=str(path),
            hint="give the Parquet file as it was built",
        ) from error
    # Types must be equal: an integer label read as text would be a class of its own.
    file_schema = file.schema_arrow
    for field in schema:
        column_type = (
            file_schema.field(field.name).type if field.name in file_schema.names else "missing"
        )
        if column_type != field.type:
            raise InputError(
                f"column {field.name!r} is {column_type}, and must be {field.type}",
                location=str(path),
                hint="build the file again",
            )
    return file


def read_cohort_without_text(path: Path) -> pa.Table:
    """All columns of ``COHORT_SCHEMA`` but ``text``.

    Raises:
        InputError: as ``open_checked_parquet``.
    """
    return open_checked_parquet(path, COHORT_SCHEMA).read(
        columns=[name for name in COHORT_SCHEMA.names if name != "text"]
    )


def iterate_text_batches(
    path: Path, row_mask: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
    """Read the column ``text`` in batches.

    Args:
        path: Parquet with a column ``text``.
        row_mask: which rows, shape ``(rows,)``.

    Yields:
        Row numbers, shape ``(batch,)``, and their texts.
    """
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["text"]):
            rows = np.flatnonzero(row_mask[start : start + batch.num_rows])
            if len(rows):
                yield rows + start, batch.column(0).take(pa.array(rows))
            start += batch.num_rows


def build_cohort_label_matrix(
    stays: pa.Table, kind: ProblemType, classes: Sequence[str], location: Path
) -> sp.csr_array:
    """The labels of a cohort as an indicator matrix.

    Args:
        stays: with ``label`` or ``labels``.
        kind: of the task: which of the two columns has the labels.
        classes: names in the order of their index.
        location: of errors.

    Returns:
        Shape ``(stays, classes)``, 1 where the class applies.

    Raises:
        InputError: a stay has no label, or a label is not the index of a class.
    """
    column = stays["labels" if kind == "multilabel" else "label"].combine_chunks()
    if kind == "multilabel":
        # The lists of all stays in one array, and the number of labels of each stay.
        lengths, indices = np.diff(column.offsets.to_numpy()), column.flatten()
    else:
        lengths, indices = np.ones(len(column), np.int64), column.drop_null()
    if column.null_count:
        raise InputError(
            f"{column.null_count} stays have no label",
            location=str(location),
            hint=f"build the cohort as {kind}; stays with an unknown label are dropped",
        )
    labels = indices.to_numpy().astype(np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}, and there are {len(classes)} "
            "classes",
            location=str(location),
            hint="give the classes that the cohort was built with",
        )
    # CSR: the labels of stay i are labels[row_starts[i] : row_starts[i + 1]].
    row_starts = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_array(
        (np.ones(len(labels), np.int64), labels, row_starts), shape=(stays.num_rows, len(classes))
    )


def encode_cohort_splits(stays: pa.Table, location: Path) -> NDArray[np.int64]:
    """The split of every row as its index in ``SPLIT_NAMES``, shape ``(stays,)``.

    Raises:
        InputError: a split has another name.
    """
    encoded = stays["split"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    unknown = sorted(set(names) - set(SPLIT_NAMES))
    if unknown:
        raise InputError(
            f"split {unknown[0]!r} is none of {', '.join(SPLIT_NAMES)}",
            location=str(location),
            hint="name the splits as MEDS does",
        )
    # The dictionary has the names in order of appearance, not in that of SPLIT_NAMES.
    indices = np.array([SPLIT_NAMES.index(name) for name in names], np.int64)
    return indices[encoded.indices.to_numpy()] if len(stays) else np.zeros(0, np.int64)


def find_subject_splits(
    subjects: NDArray[np.int64], split_indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """The splits of every subject.

    Args:
        subjects: ``(stays,)``.
        split_indices: ``(stays,)``.

    Returns:
        The distinct (subject, split) pairs in order, shape ``(2, pairs)``; and the number of
        subjects in more than one split.
    """
    pairs = np.unique(np.stack([subjects, split_indices]), axis=1)
    _, counts = np.unique(pairs[0], return_counts=True)
    return pairs, int((counts > 1).sum())
