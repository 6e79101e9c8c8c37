"""Delimited tables as a data set ships them -> DuckDB tables of text, every row accounted for.

DuckDB reads fast and in bounded memory, but passes over two kinds of damage (seen in DuckDB 2.0
with ``strict_mode`` on): a quoted field that is never closed swallows the rest of the file without
an error, and a gzip is not checked against its checksum. So every file is first read once as bytes:
the gzip must be complete and the number of quotes even. A row that DuckDB cannot read is counted by
its number. Messages of DuckDB are never repeated, since they quote the row.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from clinpeft.core.database import count_table_rows, quote_sql_literal
from clinpeft.core.errors import SourceError, StorageError
from clinpeft.core.schemas import Attrition
from clinpeft.data.formats import delimited
from clinpeft.data.formats.delimited import translate_gzip_errors

MAX_TABLE_ROW_BYTES = 8 * 1024 * 1024  # the longest note of MIMIC has under 100,000
TABLE_CHUNK_BYTES = 1 << 20
# MIMIC-IV has its tables in three folders, every other layout in one.
TABLE_FOLDERS = ("", "hosp", "icu", "note")
TABLE_FILE_SUFFIXES = (".csv", ".csv.gz")

# Error types of DuckDB's rejects table -> reasons of the attrition; other types keep their name.
_REJECTION_REASONS = {
    "UNQUOTED VALUE": "unreadable: a quote is not closed or not doubled",
    "TOO MANY COLUMNS": "unreadable: wrong number of columns",
    "MISSING COLUMNS": "unreadable: wrong number of columns",
    "INVALID ENCODING": "unreadable: not UTF-8",
    "LINE SIZE OVER MAXIMUM": "unreadable: longer than 8 MiB",
}


@dataclass(frozen=True)
class RawTable:
    """One table of a data set.

    Attributes:
        name: the file name without its ending, compared without regard to case.
        columns: required column (lower case) -> the purpose that an error names.
        optional_columns: columns that become null where the file does not have them.
    """

    name: str
    columns: Mapping[str, str]
    optional_columns: tuple[str, ...] = field(default=())

    @property
    def raw_name(self) -> str:
        """The DuckDB table that holds its rows."""
        return f"raw_{self.name.lower()}"


def build_column_purposes(purpose: str, *columns: str) -> dict[str, str]:
    """Several columns with one purpose, as ``RawTable.columns`` takes them."""
    return dict.fromkeys(columns, purpose)


def find_table_file(folder: Path, name: str) -> Path | None:
    """The file of a table, in the folder of a data set or its ``hosp``, ``icu`` or ``note`` folder.

    Returns:
        The path, None where there is no such file.

    Raises:
        SourceError: the folder does not exist, or the table is there twice (plain and gzipped).
    """
    if not folder.is_dir():
        raise SourceError("there is no such folder", location=str(folder), hint="check source.path")
    # PhysioNet ships the same tables in upper case and, in the demo, in lower case.
    names = {f"{name}{suffix}".lower() for suffix in TABLE_FILE_SUFFIXES}
    folders = [folder / part for part in TABLE_FOLDERS if (folder / part).is_dir()]
    paths = sorted(
        path for location in folders for path in location.iterdir() if path.name.lower() in names
    )
    if len(paths) > 1:
        raise SourceError(
            f"the table {name} is there twice: {', '.join(path.name for path in paths)}",
            location=str(folder),
            hint="remove one of them",
        )
    return paths[0] if paths else None


def read_raw_table(
    connection: duckdb.DuckDBPyConnection, path: Path, table: RawTable, max_bad_fraction: float
) -> Attrition:
    """Read ``path`` into the DuckDB table ``table.raw_name``.

    The table has the required and optional columns as text, null where empty, and ``row``, the
    number of the row from 1.

    Raises:
        SourceError: a column is missing; the file is cut off, damaged, or has a quote that is never
            closed; more than ``max_bad_fraction`` of its rows cannot be read.
    """
    query = build_raw_table_query(path, table)
    with translate_duckdb_errors(path):
        connection.execute(f"CREATE OR REPLACE TABLE {table.raw_name} AS {query}")
    rows = count_table_rows(connection, table.raw_name)
    return count_rejected_rows(connection, path, rows, max_bad_fraction)


def build_raw_table_query(path: Path, table: RawTable) -> str:
    """A SELECT that reads ``path`` once; ``count_rejected_rows`` must follow its execution.

    Raises:
        SourceError: a column is missing; the file is cut off, damaged, or has a quote that is never
            closed.
    """
    first_line = next(delimited.read_text_lines(path))
    # The vocabularies of OMOP are separated by tabs.
    delimiter = "\t" if "\t" in first_line and "," not in first_line else ","
    # Column names are compared in lower case, as DuckDB does.
    header = [name.lower() for name in delimited.open_delimited_table(path, delimiter).header]
    delimited.find_column_positions(header, table.columns, str(path), delimiter)
    _check_integrity(path, has_quotes=delimiter == ",")
    columns = ", ".join(
        f'"{name}"' if name in header else f'NULL::VARCHAR AS "{name}"'
        for name in (*table.columns, *table.optional_columns)
    )
    names = ", ".join(f"{quote_sql_literal(name)}: 'VARCHAR'" for name in header)
    quote = quote_sql_literal('"' if delimiter == "," else "")
    # Nothing is detected from the first rows, and one thread reads, so that row numbers are those
    # of the file.
    return f"""SELECT row_number() OVER () AS "row", {columns}
        FROM read_csv({quote_sql_literal(str(path))}, header = true, auto_detect = false,
            columns = {{{names}}}, delim = {quote_sql_literal(delimiter)},
            quote = {quote}, escape = {quote}, strict_mode = true, null_padding = false,
            parallel = false, max_line_size = {MAX_TABLE_ROW_BYTES},
            buffer_size = {4 * MAX_TABLE_ROW_BYTES}, store_rejects = true,
            rejects_table = 'rejected', rejects_scan = 'rejected_scan', rejects_limit = 0)"""


def _check_integrity(path: Path, has_quotes: bool) -> None:
    """Read all bytes of a file: its gzip must be complete and its number of quotes even."""
    quotes = 0
    try:
        with translate_gzip_errors(path), path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"  # RFC 1952, 2.3.1
            file.seek(0)
            source = gzip.GzipFile(fileobj=file) if gzipped else file
            while chunk := source.read(TABLE_CHUNK_BYTES):
                quotes += chunk.count(b'"')
    except OSError as error:
        raise SourceError(
            f"this file cannot be read: {error.strerror}",
            location=str(path),
            hint="check its permissions and the disk",
        ) from error
    if has_quotes and quotes % 2:
        raise SourceError(
            f"a quoted field is never closed: {quotes:,} quotes, an odd number",
            location=str(path),
            hint="the file is cut off or a quote is not doubled: copy it again or repair it",
        )


@contextmanager
def translate_duckdb_errors(path: Path) -> Iterator[None]:
    """Replace errors of DuckDB while it reads ``path`` by errors that quote no row.

    Raises:
        SourceError: in place of any error of DuckDB but a lack of memory or disk.
        StorageError: memory or disk do not suffice.
    """
    try:
        yield
    # ``from None``, since the chained message of DuckDB quotes the row.
    except duckdb.OutOfMemoryException:
        raise StorageError(
            "memory or disk do not suffice for this table",
            location=str(path),
            hint="give more memory, or more space to the work folder",
        ) from None
    except duckdb.Error as error:
        raise SourceError(
            f"this table cannot be read ({type(error).__name__})",
            location=str(path),
            hint="check it, or copy it again",
        ) from None


def count_rejected_rows(
    connection: duckdb.DuckDBPyConnection, path: Path, read_rows: int, max_bad_fraction: float
) -> Attrition:
    """Count the rows that DuckDB read and those it rejected, and drop its tables of rejected rows.

    Raises:
        SourceError: more than ``max_bad_fraction`` of the rows cannot be read.
    """
    # A row with several errors has several entries.
    rejected = connection.execute(
        "SELECT line, min(error_type::VARCHAR) FROM rejected GROUP BY line ORDER BY line"
    ).fetchall()
    connection.execute("DROP TABLE rejected; DROP TABLE rejected_scan")
    attrition = Attrition(f"read {path.name}", read_rows + len(rejected))
    for line, error_type in rejected:
        attrition.drop_rows(
            _REJECTION_REASONS.get(error_type, f"unreadable: {error_type.lower()}"),
            location=f"{path.name}: row {line - 1}",  # the header is line 1
        )
    if len(rejected) > max_bad_fraction * attrition.entered_rows:
        reasons = "; ".join(
            f"{reason.removeprefix('unreadable: ')} at {', '.join(locations)}"
            for reason, locations in attrition.locations.items()
        )
        raise SourceError(
            f"{len(rejected):,} of {attrition.entered_rows:,} rows cannot be read, more than "
            f"max_bad_fraction = {max_bad_fraction:g} allows",
            location=f"{path}: {reasons}",
            hint="repair these rows, or raise source.max_bad_fraction to continue without them",
        )
    return attrition
