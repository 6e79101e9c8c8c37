"""Delimited tables as they are shipped -> DuckDB tables of text, every row accounted for.

DuckDB reads fast and in bounded memory, but has two silences that this file breaks (both seen in DuckDB 2.0, ``strict_mode`` on):
a quoted field that is never closed swallows the rest of the file without an error, and a damaged gzip is not checked against its sum.
So every file is first read once as bytes: the gzip must be whole, and its quotes even in number. A row that DuckDB cannot read is
counted by its number. Nothing that DuckDB says is repeated, since its messages show the row.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from clinpeft.core.errors import SourceError, StorageError
from clinpeft.core.schemas import Attrition
from clinpeft.data.formats import delimited
from clinpeft.data.formats.delimited import translate_gzip_errors

MAX_TABLE_ROW_BYTES = 8 * 1024 * 1024  # the longest MIMIC note has under 100,000
TABLE_CHUNK_BYTES = 1 << 20
TABLE_FOLDERS = ("", "hosp", "icu", "note")
TABLE_FILE_SUFFIXES = (".csv", ".csv.gz")

_REJECTION_REASONS = {
    "UNQUOTED VALUE": "unreadable: a quote is not closed or not doubled",
    "TOO MANY COLUMNS": "unreadable: wrong number of columns",
    "MISSING COLUMNS": "unreadable: wrong number of columns",
    "INVALID ENCODING": "unreadable: not UTF-8",
    "LINE SIZE OVER MAXIMUM": "unreadable: longer than 8 MiB",
}


@dataclass(frozen=True)
class RawTable:
    """One table as it is shipped.

    Attributes:
        name: the file without its ending; compared without regard to case.
        columns: each needed column (lower case) -> what it is needed for.
        optional_columns: columns that are null where the file has none of that name.
    """

    name: str
    columns: Mapping[str, str]
    optional_columns: tuple[str, ...] = field(default=())

    @property
    def raw_name(self) -> str:
        """The DuckDB table it is read into."""
        return f"raw_{self.name.lower()}"


def build_column_purposes(purpose: str, *columns: str) -> dict[str, str]:
    """Columns that are needed for one purpose."""
    return dict.fromkeys(columns, purpose)


def find_table_file(folder: Path, name: str) -> Path | None:
    """The file of a table in the folder of a data set or its ``hosp``, ``icu`` and ``note`` folders; None when there is none.

    Raises:
        SourceError: the folder is not there, or the table is there twice (plain and gzipped).
    """
    if not folder.is_dir():
        raise SourceError("there is no such folder", location=str(folder), hint="check source.path")
    names = {f"{name}{ending}".lower() for ending in TABLE_FILE_SUFFIXES}
    folders = [folder / part for part in TABLE_FOLDERS if (folder / part).is_dir()]
    found = sorted(
        path for location in folders for path in location.iterdir() if path.name.lower() in names
    )
    if len(found) > 1:
        raise SourceError(
            f"the table {name} is there twice: {', '.join(path.name for path in found)}",
            location=str(folder),
            hint="leave one of them",
        )
    return found[0] if found else None


def read_raw_table(
    connection: duckdb.DuckDBPyConnection, path: Path, table: RawTable, max_bad_fraction: float
) -> Attrition:
    """``path`` -> the DuckDB table ``table.raw``: the wanted columns as text, null where empty, and ``row``, the number of the row from 1.

    Raises:
        SourceError: a column is missing; the file is cut off, damaged, or has a quote that is never closed; more than ``max_bad_fraction``
            of its rows cannot be read.
    """
    with translate_duckdb_errors(path):
        connection.execute(
            f"CREATE OR REPLACE TABLE {table.raw_name} AS {build_raw_table_query(path, table)}"
        )
    return count_rejected_rows(
        connection, path, count_table_rows(connection, table.raw_name), max_bad_fraction
    )


def build_raw_table_query(path: Path, table: RawTable) -> str:
    """A SELECT that reads ``path`` as ``read`` does, once; to be followed by ``counted``.

    Raises:
        SourceError: as ``read``.
    """
    header, delimiter = _read_header(path)
    delimited.find_column_positions(header, table.columns, str(path), delimiter)
    _check_quotes(path, has_quotes=delimiter == ",")
    wanted = [
        f'"{name}"' if name in header else f'NULL::VARCHAR AS "{name}"'
        for name in (*table.columns, *table.optional_columns)
    ]
    names = ", ".join(f"{quote_sql_literal(name)}: 'VARCHAR'" for name in header)
    quote = quote_sql_literal('"' if delimiter == "," else "")
    return f"""SELECT row_number() OVER () AS "row", {", ".join(wanted)}
        FROM read_csv({quote_sql_literal(str(path))}, header = true, auto_detect = false, columns = {{{names}}}, delim = {quote_sql_literal(delimiter)},
            quote = {quote}, escape = {quote}, strict_mode = true, null_padding = false, parallel = false,
            max_line_size = {MAX_TABLE_ROW_BYTES}, buffer_size = {4 * MAX_TABLE_ROW_BYTES},
            store_rejects = true, rejects_table = 'rejected', rejects_scan = 'rejected_scan', rejects_limit = 0)"""


@contextmanager
def translate_duckdb_errors(path: Path) -> Iterator[None]:
    """What DuckDB complains about while it reads ``path``, without its message, which shows rows.

    Raises:
        SourceError: in place of any error of DuckDB, but for a full disk.
        StorageError: there is no room for what is read.
    """
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise StorageError(
            "there is no room for what is read",
            location=str(path),
            hint="give more memory, or more space to the work folder",
        ) from None
    except duckdb.Error as error:
        raise SourceError(
            f"this table cannot be read ({type(error).__name__})",
            location=str(path),
            hint="check it, or copy it again",
        ) from None


def quote_sql_literal(text: str) -> str:
    """A text constant of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _read_header(path: Path) -> tuple[list[str], str]:
    """The names of the columns in lower case, and what separates them: a comma, or a tab (the vocabularies of OMOP)."""
    first = next(delimited.read_text_lines(path))
    delimiter = "\t" if "\t" in first and "," not in first else ","
    return [
        name.lower() for name in delimited.open_delimited_table(path, delimiter).header
    ], delimiter


def _check_quotes(path: Path, has_quotes: bool) -> None:
    quotes = sum(chunk.count(b'"') for chunk in _iterate_chunks(path))
    if has_quotes and quotes % 2:
        message = f"a quoted field is never closed: {quotes:,} quotes, an odd number"
        raise SourceError(
            message,
            location=str(path),
            hint="the file is cut off or a quote is not doubled: copy it again or repair it",
        )


def _iterate_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unzipped where its first two say so."""
    try:
        with translate_gzip_errors(path), path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            source = gzip.GzipFile(fileobj=file) if gzipped else file
            while chunk := source.read(TABLE_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise SourceError(
            f"this file cannot be read: {error.strerror}",
            location=str(path),
            hint="check its rights and the disk",
        ) from error


def count_rejected_rows(
    connection: duckdb.DuckDBPyConnection, path: Path, read_rows: int, max_bad_fraction: float
) -> Attrition:
    """What was read and what was not; the rows themselves are forgotten at once.

    Raises:
        SourceError: more than ``max_bad_fraction`` of the rows cannot be read.
    """
    rejected = connection.execute(
        "SELECT line, min(error_type::VARCHAR) FROM rejected GROUP BY line ORDER BY line"
    ).fetchall()
    connection.execute("DROP TABLE rejected; DROP TABLE rejected_scan")
    attrition = Attrition(f"read {path.name}", read_rows + len(rejected))
    for line, kind in rejected:
        attrition.drop_rows(
            _REJECTION_REASONS.get(kind, f"unreadable: {kind.lower()}"),
            location=f"{path.name}: row {line - 1}",
        )
    if len(rejected) > max_bad_fraction * attrition.entered_rows:
        places = "; ".join(
            f"{reason.removeprefix('unreadable: ')} at {', '.join(found)}"
            for reason, found in attrition.locations.items()
        )
        message = f"{len(rejected):,} of {attrition.entered_rows:,} rows cannot be read, more than max_bad_fraction = {max_bad_fraction:g} allows"
        raise SourceError(
            message,
            location=f"{path}: {places}",
            hint="repair these rows, or raise source.max_bad_fraction to go on without them",
        )
    return attrition


def count_table_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """The number of rows of a table."""
    ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)
