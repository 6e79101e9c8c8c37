"""The raw tables as views that DuckDB reads as a stream: the columns that a rule needs, as text, under our names."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from clinpeft.core.errors import SourceError

_DAMAGE_REASONS = {
    "Unexpected end of GZIP": "it is cut off",
    "EOFError": "it is cut off",
    "unterminated quote": "a quote is never closed",
    "Number of Columns": "a row does not fit the header",
    "Invalid unicode": "it is not UTF-8",
    "UnicodeDecodeError": "it is not UTF-8",
    "not a GZIP": "it is not gzipped",
    "BadGzipFile": "it is not gzipped",
}
"""What stands in the reason of a reader -> in plain words. The reader's own words are never passed on: they quote the row."""


class ChartTable(NamedTuple):
    """A raw table and what it is for: ``columns`` maps our names to theirs."""

    stem: str
    view_name: str
    columns: Mapping[str, str]
    purpose: str


def read_sql_file(name: str) -> str:
    """The text of one of this room's SQL files."""
    return resources.files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")


def execute_sql_file(connection: duckdb.DuckDBPyConnection, name: str, **values: Any) -> None:
    """Execute one of this room's SQL files; of ``values`` those that it names are given to it."""
    text = read_sql_file(name)
    connection.execute(
        text, {key: value for key, value in values.items() if f"${key}" in text} or None
    )


def find_chart_file(folder: Path, stem: str) -> Path | None:
    """``STEM.csv`` or ``stem.csv``, gzipped or not, in the folder or (MIMIC-IV) in its ``icu``; None where there is none of them."""
    names = [
        f"{spelled}{ending}"
        for spelled in dict.fromkeys((stem, stem.upper()))
        for ending in (".csv.gz", ".csv")
    ]
    return next(
        (
            location / name
            for location in (folder, folder / "icu")
            for name in names
            if (location / name).is_file()
        ),
        None,
    )


@contextmanager
def create_chart_view(
    connection: duckdb.DuckDBPyConnection, path: Path, table: ChartTable
) -> Iterator[None]:
    """``raw.view`` exists inside this context; reading it anywhere in there turns damage in the file into a SourceError.

    Raises:
        SourceError: a column is missing, the file is cut off, a row does not fit the header, a quote is never closed.
    """
    header = _read_header(path, table)
    theirs = {ours: _find_column(name, header, path, table) for ours, name in table.columns.items()}
    listed = ", ".join(f"{_quote_identifier(name)} AS {ours}" for ours, name in theirs.items())
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {table.view_name} AS SELECT {listed} FROM {_build_csv_reader(path, header)}"
    )
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        if str(path) not in str(error):
            raise
        raise _create_damage_error(
            path, table, str(error)
        ) from None  # DuckDB's own words quote the row
    finally:
        connection.execute(f"DROP VIEW IF EXISTS {table.view_name}")


def _build_csv_reader(path: Path, header: list[str]) -> str:
    """All is said, nothing is sniffed, so that the rows that DuckDB happens to look at first decide nothing."""
    columns = ", ".join(f"{_quote_literal(name)}: 'VARCHAR'" for name in header)
    compression = "gzip" if path.suffix == ".gz" else "none"
    dialect = f"auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', compression = '{compression}'"
    return f"read_csv({_quote_literal(str(path))}, {dialect}, columns = {{{columns}}})"


def _quote_literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quote_identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _read_header(path: Path, table: ChartTable) -> list[str]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines), [])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _create_damage_error(path, table, type(error).__name__) from None


def _find_column(name: str, header: list[str], path: Path, table: ChartTable) -> str:
    found = next((column for column in header if column.lower() == name.lower()), None)
    if found is None:
        message = f"there is no column {name}, which {table.purpose} needs; there are {', '.join(header) or 'none'}"
        raise SourceError(
            message, location=str(path), hint=f"give the {table.stem} table as PhysioNet ships it"
        )
    return found


def _create_damage_error(path: Path, table: ChartTable, reason: str) -> SourceError:
    line = re.search(r"on Line: (\d+)", reason)
    what = next(
        (plain for words, plain in _DAMAGE_REASONS.items() if words in reason), "it is damaged"
    )
    location = f"{path}, line {line[1]}" if line else str(path)
    message = f"{table.stem} cannot be read to its end, which {table.purpose} needs: {what}"
    return SourceError(
        message, location=location, hint="get the file again and compare its checksum"
    )
