"""A written cohort, read back and checked: the file that the audit and the exports start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import COHORT_SCHEMA, SPLIT_NAMES, ProblemType

_BATCH_ROWS = 2048


def open_checked_parquet(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """A Parquet file that has the columns of ``schema`` with their types; more columns are no harm.

    Raises:
        InputError: no such file, no Parquet, or a column that is missing or of another type, by name.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path.name} cannot be read as Parquet",
            location=str(path),
            hint="give the Parquet file as it was built",
        ) from error
    found = file.schema_arrow
    for field in schema:
        kind = found.field(field.name).type if field.name in found.names else "missing"
        if kind != field.type:
            raise InputError(
                f"column {field.name!r} is {kind}, and must be {field.type}",
                location=str(path),
                hint="build the file again",
            )
    return file


def read_cohort_without_text(path: Path) -> pa.Table:
    """All columns of a cohort but its text."""
    return open_checked_parquet(path, COHORT_SCHEMA).read(
        columns=[name for name in COHORT_SCHEMA.names if name != "text"]
    )


def iterate_text_batches(
    path: Path, row_mask: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
    """(row numbers, texts) of the chosen rows of a file with a text column, batch by batch."""
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
    """Which classes apply to which stay: (stays, classes), 1 where one does.

    Raises:
        InputError: a stay without an answer, or an answer that is no class.
    """
    if kind == "multilabel":
        column = stays["labels"].combine_chunks()
        lengths, indices = np.diff(column.offsets.to_numpy()), column.flatten()
        absent = column.null_count
    else:
        column = stays["label"].combine_chunks()
        lengths, indices, absent = (
            np.ones(len(column), np.int64),
            column.drop_null(),
            column.null_count,
        )
    if absent:
        raise InputError(
            f"{absent} stays have no answer",
            location=str(location),
            hint=f"build the cohort as {kind}; unknown answers leave it",
        )
    found = indices.to_numpy().astype(np.int64)
    if len(found) and not 0 <= found.min() <= found.max() < len(classes):
        message = (
            f"answers run from {found.min()} to {found.max()}, and there are {len(classes)} classes"
        )
        raise InputError(
            message, location=str(location), hint="give the classes that the cohort was built with"
        )
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_array(
        (np.ones(len(found), np.int64), found, pointers), shape=(stays.num_rows, len(classes))
    )


def encode_cohort_splits(stays: pa.Table, location: Path) -> NDArray[np.int64]:
    """The split of every row as its number in ``tables.SPLITS``.

    Raises:
        InputError: a name that is none of the three.
    """
    encoded = stays["split"].combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    unknown = sorted(set(names) - set(SPLIT_NAMES))
    if unknown:
        raise InputError(
            f"split {unknown[0]!r} is none of {', '.join(SPLIT_NAMES)}",
            location=str(location),
            hint="rename the splits as MEDS does",
        )
    numbers = np.array([SPLIT_NAMES.index(name) for name in names], np.int64)
    return numbers[encoded.indices.to_numpy()] if len(stays) else np.zeros(0, np.int64)
