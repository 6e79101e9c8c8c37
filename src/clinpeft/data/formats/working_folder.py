"""The working folder of a corpus being built, and files that are written there row group by row group."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.errors import StorageError

_ROW_GROUP_BYTES = 16 * 2**20
_WORKING_FOLDER = "corpus.partial"


@contextlib.contextmanager
def create_working_folder(folder: Path) -> Iterator[Path]:
    """A folder inside ``folder`` for everything temporary, gone afterwards whatever happens; what a killed process left is removed first."""
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
    """Only around what writes: whatever the disk refuses there becomes a ``StorageError``."""
    try:
        yield
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        # The chain is cut and only the kind of error named: a database may quote what it could not write.
        reason = (
            error.strerror or type(error).__name__
            if isinstance(error, OSError)
            else type(error).__name__
        )
        hint = "make room on the disk (about three times the size of the clean text), or build the corpus in another folder"
        raise StorageError(
            f"the corpus cannot be written: {reason}", location=str(location), hint=hint
        ) from None


@contextlib.contextmanager
def open_parquet_writer(
    path: Path, schema: pa.Schema
) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """A Parquet file to which batches are given; row groups hold about 16 MB, however small the batches.

    Columns of text or bytes get no statistics: a footer is read and printed by many tools, and must not carry the first words of a note.

    Raises:
        StorageError: the disk is full or not writable.
    """
    plain = [field.name for field in schema if not _is_text_or_bytes(field.type)]
    with translate_storage_errors(path):
        writer = pq.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=False, write_statistics=plain
        )
    held: list[pa.RecordBatch] = []
    held_bytes = 0

    def flush() -> None:
        nonlocal held_bytes
        with translate_storage_errors(path):
            writer.write_table(pa.Table.from_batches(held, schema))
        held.clear()
        held_bytes = 0

    def write(batch: pa.RecordBatch) -> None:
        nonlocal held_bytes
        held.append(batch)
        held_bytes += batch.nbytes
        if held_bytes >= _ROW_GROUP_BYTES:
            flush()

    with close_file_on_exit(writer.close, path):
        yield write
        flush()


@contextlib.contextmanager
def close_file_on_exit(close: Callable[[], None], path: Path) -> Iterator[None]:
    """Close a file at the end; after an error too, which is then the one to be told, whatever the closing says."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            close()
        raise
    with translate_storage_errors(path):
        close()


def _is_text_or_bytes(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(data_type) or pa.types.is_fixed_size_binary(data_type))


def create_working_database(folder: Path, memory_megabytes: int) -> duckdb.DuckDBPyConnection:
    """A DuckDB database in ``folder`` that spills there beyond its memory, and loads nothing from anywhere."""
    settings = {
        "memory_limit": f"{memory_megabytes}MB",
        "temp_directory": str(folder / "spilled"),
        "threads": 4,  # each one holds buffers: a machine of many cores must not need more memory for the same corpus
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return duckdb.connect(str(folder / "dedupe.duckdb"), config=settings)


def read_parquet_batches(path: Path, batch_size: int) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet file in its order, one row group in memory at a time."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        if file.num_row_groups:  # PyArrow 18 fails on a file without any
            yield from file.iter_batches(batch_size=batch_size)
