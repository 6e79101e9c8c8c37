"""Vectors written as they come, in ``.npy`` or Parquet; the file appears whole or not at all."""

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

VECTOR_ROW_GROUP_ROWS = 16_384


class VectorFile(Protocol):
    """A file that grows by rows and gives earlier ones back."""

    def append(self, rows: Float32Array, ids: pa.RecordBatch | None) -> None:
        """Write vectors (rows, width) behind the others, and their identifiers where the format has a place for them."""

    def take(self, rows: IndexArray) -> Float32Array:
        """Vectors that were written before, in the order asked for."""

    def close(self) -> None:
        """Write what is still missing."""


@contextmanager
def open_vector_file(out: Path, width: int) -> Iterator[VectorFile]:
    """A file of vectors of ``width`` numbers, which takes its name when the block ends without an error.

    Raises:
        UsageError: the name ends in neither ``.npy`` nor ``.parquet``.
        StorageError: it cannot be written.
    """
    if out.suffix not in VECTOR_FORMATS:
        raise UsageError(
            f"vectors cannot be written as {out.suffix or 'no ending'!r}",
            location="--out",
            hint="end it in .npy or .parquet",
        )
    writing = out.with_name(f".{out.name}.{os.getpid()}.writing")
    try:
        with convert_vector_storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            file = VECTOR_FORMATS[out.suffix](writing, width)
        try:
            yield file
        finally:
            with convert_vector_storage_errors(out):
                file.close()
        with convert_vector_storage_errors(out):
            writing.replace(out)
    finally:
        with suppress(OSError):
            writing.unlink()


@contextmanager
def convert_vector_storage_errors(out: Path) -> Iterator[None]:
    """What the system says against writing, as this program's error."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the vectors cannot be written: {error}",
            location=str(out),
            hint="free some space and try again",
        ) from error


class _NpyFile:
    """Rows behind a header whose count is set at the end: numpy leaves room in it for a longer first axis."""

    def __init__(self, path: Path, width: int) -> None:
        self.width, self.row_count = width, 0
        self.file: IO[bytes] = path.open("w+b")
        self._write_header()
        self.data_offset_bytes = self.file.tell()

    def _write_header(self) -> None:
        described = {
            "descr": np.dtype(np.float32).str,
            "fortran_order": False,
            "shape": (self.row_count, self.width),
        }
        np.lib.format.write_array_header_1_0(self.file, described)

    def append(self, rows: Float32Array, ids: pa.RecordBatch | None) -> None:  # noqa: ARG002 - .npy holds numbers only
        self.file.seek(0, os.SEEK_END)
        self.file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self.row_count += len(rows)

    def take(self, rows: IndexArray) -> Float32Array:
        self.file.flush()
        mapped = np.memmap(
            self.file, np.float32, "r", self.data_offset_bytes, (self.row_count, self.width)
        )
        return np.asarray(mapped[rows])

    def close(self) -> None:
        if not self.file.closed:
            self.file.seek(0)
            self._write_header()
            self.file.close()


class _ParquetFile:
    """Row groups, and beside them the same rows in an ``.npy`` file, from which earlier ones are read back; it is gone in the end."""

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        self.npy_path = path.with_name(path.name + ".rows")
        self.npy_file = _NpyFile(self.npy_path, width)
        self.writer: pq.ParquetWriter | None = None

    def append(self, rows: Float32Array, ids: pa.RecordBatch | None) -> None:
        self.npy_file.append(rows, None)
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1), pa.float32())
        vector = pa.FixedSizeListArray.from_arrays(flat, self.width)
        named = dict(zip(ids.schema.names, ids.columns, strict=True)) if ids is not None else {}
        table = pa.table(named | {"vector": vector})
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table, row_group_size=VECTOR_ROW_GROUP_ROWS)

    def take(self, rows: IndexArray) -> Float32Array:
        return self.npy_file.take(rows)

    def close(self) -> None:
        self.npy_file.close()
        self.npy_path.unlink(missing_ok=True)
        if self.writer is not None:
            self.writer.close()


VECTOR_FORMATS: dict[str, Callable[[Path, int], VectorFile]] = {
    ".npy": _NpyFile,
    ".parquet": _ParquetFile,
}
