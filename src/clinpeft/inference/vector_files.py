"""Files of vectors that are written row by row, as ``.npy`` or Parquet, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.errors import StorageError, UsageError
from clinpeft.inference.predict import Float32Array
from clinpeft.tokenization import IndexArray

# a chunk of `encode_texts_to_file` becomes one row group
VECTOR_ROW_GROUP_ROWS = 16_384


class VectorFile(Protocol):
    """A file to which rows are appended, and which returns earlier ones."""

    def append(self, rows: Float32Array, ids: pa.RecordBatch | None) -> None:
        """Append vectors (rows, width), with their identifiers where the format has columns."""

    def take(self, rows: IndexArray) -> Float32Array:
        """Return vectors (rows, width) that were appended before, in the given order."""

    def close(self) -> None:
        """Write what is not yet written."""


@contextmanager
def open_vector_file(out: Path, width: int) -> Iterator[VectorFile]:
    """Open a file of vectors, which gets its name when the block ends without an error.

    Args:
        out: its name.
        width: numbers in a vector.

    Raises:
        UsageError: the name ends in neither ``.npy`` nor ``.parquet``.
        StorageError: the file cannot be written.
    """
    if out.suffix not in VECTOR_FORMATS:
        raise UsageError(
            f"vectors cannot be written as {out.suffix or 'no ending'!r}",
            location="--out",
            hint="end it in .npy or .parquet",
        )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.writing")
    try:
        with convert_vector_storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            file = VECTOR_FORMATS[out.suffix](temporary, width)
        # the block is outside of the conversion: its own errors are not errors of this file
        try:
            yield file
        finally:
            with convert_vector_storage_errors(out):
                file.close()
        with convert_vector_storage_errors(out):
            temporary.replace(out)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def convert_vector_storage_errors(out: Path) -> Iterator[None]:
    """Convert errors of the operating system in the block to ``StorageError``.

    Raises:
        StorageError: writing failed.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the vectors cannot be written: {error}",
            location=str(out),
            hint="free some space and try again",
        ) from error


class _NpyFile:
    """Rows after a header whose row count is set at the end.

    numpy pads the header, so that a larger row count fits into the same bytes.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.width, self.row_count = width, 0
        self.file: IO[bytes] = path.open("w+b")
        self._write_header()
        self.data_offset_bytes = self.file.tell()

    def _write_header(self) -> None:
        header = {
            "descr": np.dtype(np.float32).str,
            "fortran_order": False,
            "shape": (self.row_count, self.width),
        }
        np.lib.format.write_array_header_1_0(self.file, header)

    # identifiers are not written: .npy holds numbers only
    def append(self, rows: Float32Array, ids: pa.RecordBatch | None) -> None:  # noqa: ARG002
        # `take` may have moved the position
        self.file.seek(0, os.SEEK_END)
        self.file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self.row_count += len(rows)

    def take(self, rows: IndexArray) -> Float32Array:
        self.file.flush()  # a mapping sees what has reached the system only
        shape = (self.row_count, self.width)
        mapped = np.memmap(self.file, np.float32, "r", self.data_offset_bytes, shape)
        return np.asarray(mapped[rows])  # (rows, width)

    def close(self) -> None:
        if not self.file.closed:
            self.file.seek(0)
            self._write_header()
            self.file.close()


class _ParquetFile:
    """Row groups, with the same rows in a temporary ``.npy`` file, from which they are read.

    A Parquet file cannot be read before it is closed.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        self.npy_path = path.with_name(path.name + ".rows")
        self.npy_file = _NpyFile(self.npy_path, width)
        # created with the first rows, whose identifiers are part of the schema
        self.writer: pq.ParquetWriter | None = None

    def append(self, rows: Float32Array, ids: pa.RecordBatch | None) -> None:
        self.npy_file.append(rows, None)
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1), pa.float32())  # (rows * width,)
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.width)
        columns = dict(zip(ids.schema.names, ids.columns, strict=True)) if ids is not None else {}
        table = pa.table(columns | {"vector": vectors})
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table, row_group_size=VECTOR_ROW_GROUP_ROWS)

    def take(self, rows: IndexArray) -> Float32Array:
        return self.npy_file.take(rows)

    def close(self) -> None:
        self.npy_file.close()
        # before the Parquet file is closed, which frees the space for its footer
        self.npy_path.unlink(missing_ok=True)
        if self.writer is not None:
            self.writer.close()


VECTOR_FORMATS: dict[str, Callable[[Path, int], VectorFile]] = {
    ".npy": _NpyFile,
    ".parquet": _ParquetFile,
}
"""Ending of a file -> how it is written."""
