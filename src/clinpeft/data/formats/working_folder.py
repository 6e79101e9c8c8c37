"""The working folder of a corpus being built, and the files written there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.database import OFFLINE_DUCKDB_SETTINGS
from clinpeft.core.errors import StorageError

_ROW_GROUP_BYTES = 16 * 2**20
_WORKING_FOLDER = "corpus.partial"


@contextlib.contextmanager
def create_working_folder(folder: Path) -> Iterator[Path]:
    """Creates a folder inside ``folder`` for temporary files, removed on exit in any case.

    Files that a killed process left there are removed first.

    Raises:
        StorageError: the disk is full or not writable.
    """
    partial = folder / _WORKING_FOLDER
    with translate_storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def translate_storage_errors(location: Path) -> Iterator[None]:
    """Turns errors of the disk into a ``StorageError``; to be used around writing only.

    Raises:
        StorageError: the block raised an error of the disk.
    """
    try:
        yield
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        # The exception chain is cut and only the kind of error is named: DuckDB may quote the row
        # that it could not write, which is the text of a note.
        reason = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise StorageError(
            f"the corpus cannot be written: {reason}",
            location=str(location),
            hint="free some disk space (about three times the size of the clean text), or build "
            "the corpus in another folder",
        ) from None


@contextlib.contextmanager
def open_parquet_writer(
    path: Path, schema: pa.Schema
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Opens a Parquet file and returns the function that appends a batch to it.

    Row groups hold about 16 MB, however small the batches. Columns of text or bytes get no
    statistics: a footer is read and printed by many tools, and must not carry words of a note.

    Raises:
        StorageError: the disk is full or not writable.
    """
    columns_with_statistics = [
        field.name
        for field in schema
        if not (pa.types.is_large_string(field.type) or pa.types.is_fixed_size_binary(field.type))
    ]
    with translate_storage_errors(path):
        writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=columns_with_statistics,
        )
    pending: list[pa.RecordBatch] = []
    pending_bytes = 0

    def flush() -> None:
        nonlocal pending_bytes
        with translate_storage_errors(path):
            writer.write_table(pa.Table.from_batches(pending, schema))
        pending.clear()
        pending_bytes = 0

    def write(batch: pa.RecordBatch) -> None:
        nonlocal pending_bytes
        pending.append(batch)
        pending_bytes += batch.nbytes
        if pending_bytes >= _ROW_GROUP_BYTES:
            flush()

    with close_file_on_exit(writer.close, path):
        yield write
        flush()


@contextlib.contextmanager
def close_file_on_exit(close: Callable[[], None], path: Path) -> Iterator[None]:
    """Closes a file on exit; an error of the block takes precedence over one of closing.

    Raises:
        StorageError: the block succeeded and the file cannot be closed.
    """
    try:
        yield
    # Also KeyboardInterrupt: an open file would block the removal of the folder.
    except BaseException:
        with contextlib.suppress(Exception):
            close()
        raise
    with translate_storage_errors(path):
        close()


def create_working_database(folder: Path, memory_megabytes: int) -> duckdb.DuckDBPyConnection:
    """Opens a DuckDB database in ``folder`` that spills to disk and loads no extension."""
    settings = OFFLINE_DUCKDB_SETTINGS | {
        "memory_limit": f"{memory_megabytes}MB",
        "temp_directory": str(folder / "spilled"),
        # Every thread holds buffers: a machine of many cores must not need more memory.
        "threads": 4,
    }
    return duckdb.connect(str(folder / "dedupe.duckdb"), config=settings)


def escape_sql_path(path: Path) -> str:
    """Returns a path for use between single quotes in SQL."""
    return str(path).replace("'", "''")


def read_parquet_batches(path: Path, batch_size: int) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a Parquet file in order, one row group in memory at a time."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        if file.num_row_groups:  # PyArrow 18 fails on a file without any
            yield from file.iter_batches(batch_size=batch_size)
