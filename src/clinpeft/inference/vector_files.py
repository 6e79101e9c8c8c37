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
from clinpeft.inference.predict import Floats
from clinpeft.tokenization import Ints

ROW_GROUP = 16_384


class VectorFile(Protocol):
    """A file that grows by rows and gives earlier ones back."""

    def append(self, rows: Floats, ids: pa.RecordBatch | None) -> None:
        """Write vectors (rows, width) behind the others, and their identifiers where the format has a place for them."""

    def take(self, rows: Ints) -> Floats:
        """Vectors that were written before, in the order asked for."""

    def close(self) -> None:
        """Write what is still missing."""


@contextmanager
def vector_file(out: Path, width: int) -> Iterator[VectorFile]:
    """A file of vectors of ``width`` numbers, which takes its name when the block ends without an error.

    Raises:
        UsageError: the name ends in neither ``.npy`` nor ``.parquet``.
        StorageError: it cannot be written.
    """
    if out.suffix not in FORMATS:
        raise UsageError(
            f"vectors cannot be written as {out.suffix or 'no ending'!r}",
            location="--out",
            hint="end it in .npy or .parquet",
        )
    writing = out.with_name(f".{out.name}.{os.getpid()}.writing")
    try:
        with stored(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            file = FORMATS[out.suffix](writing, width)
        try:
            yield file
        finally:
            with stored(out):
                file.close()
        with stored(out):
            writing.replace(out)
    finally:
        with suppress(OSError):
            writing.unlink()


@contextmanager
def stored(out: Path) -> Iterator[None]:
    """What the system says against writing, as this program's error."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the vectors cannot be written: {error}",
            location=str(out),
            hint="free some space and try again",
        ) from error


class _Npy:
    """Rows behind a header whose count is set at the end: numpy leaves room in it for a longer first axis."""

    def __init__(self, path: Path, width: int) -> None:
        self.width, self.count = width, 0
        self.file: IO[bytes] = path.open("w+b")
        self._header()
        self.start = self.file.tell()

    def _header(self) -> None:
        described = {
            "descr": np.dtype(np.float32).str,
            "fortran_order": False,
            "shape": (self.count, self.width),
        }
        np.lib.format.write_array_header_1_0(self.file, described)

    def append(self, rows: Floats, ids: pa.RecordBatch | None) -> None:  # noqa: ARG002 - .npy holds numbers only
        self.file.seek(0, os.SEEK_END)
        self.file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self.count += len(rows)

    def take(self, rows: Ints) -> Floats:
        self.file.flush()
        mapped = np.memmap(self.file, np.float32, "r", self.start, (self.count, self.width))
        return np.asarray(mapped[rows])

    def close(self) -> None:
        if not self.file.closed:
            self.file.seek(0)
            self._header()
            self.file.close()


class _Parquet:
    """Row groups, and beside them the same rows in an ``.npy`` file, from which earlier ones are read back; it is gone in the end."""

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        self.beside = path.with_name(path.name + ".rows")
        self.rows = _Npy(self.beside, width)
        self.writer: pq.ParquetWriter | None = None

    def append(self, rows: Floats, ids: pa.RecordBatch | None) -> None:
        self.rows.append(rows, None)
        flat = pa.array(np.ascontiguousarray(rows).reshape(-1), pa.float32())
        vector = pa.FixedSizeListArray.from_arrays(flat, self.width)
        named = dict(zip(ids.schema.names, ids.columns, strict=True)) if ids is not None else {}
        table = pa.table(named | {"vector": vector})
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table, row_group_size=ROW_GROUP)

    def take(self, rows: Ints) -> Floats:
        return self.rows.take(rows)

    def close(self) -> None:
        self.rows.close()
        self.beside.unlink(missing_ok=True)
        if self.writer is not None:
            self.writer.close()


FORMATS: dict[str, Callable[[Path, int], VectorFile]] = {".npy": _Npy, ".parquet": _Parquet}
