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

_DAMAGE = {
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


class Raw(NamedTuple):
    """A raw table and what it is for: ``columns`` maps our names to theirs."""

    stem: str
    view: str
    columns: Mapping[str, str]
    purpose: str


def statement(name: str) -> str:
    """The text of one of this room's SQL files."""
    return resources.files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")


def run(connection: duckdb.DuckDBPyConnection, name: str, **values: Any) -> None:
    """Execute one of this room's SQL files; of ``values`` those that it names are given to it."""
    text = statement(name)
    connection.execute(
        text, {key: value for key, value in values.items() if f"${key}" in text} or None
    )


def find(folder: Path, stem: str) -> Path | None:
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
def view(connection: duckdb.DuckDBPyConnection, path: Path, raw: Raw) -> Iterator[None]:
    """``raw.view`` exists inside this context; reading it anywhere in there turns damage in the file into a SourceError.

    Raises:
        SourceError: a column is missing, the file is cut off, a row does not fit the header, a quote is never closed.
    """
    header = _header(path, raw)
    theirs = {ours: _column(name, header, path, raw) for ours, name in raw.columns.items()}
    listed = ", ".join(f"{_identifier(name)} AS {ours}" for ours, name in theirs.items())
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {raw.view} AS SELECT {listed} FROM {_reader(path, header)}"
    )
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        if str(path) not in str(error):
            raise
        raise _damaged(path, raw, str(error)) from None  # DuckDB's own words quote the row
    finally:
        connection.execute(f"DROP VIEW IF EXISTS {raw.view}")


def _reader(path: Path, header: list[str]) -> str:
    """All is said, nothing is sniffed, so that the rows that DuckDB happens to look at first decide nothing."""
    columns = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in header)
    compression = "gzip" if path.suffix == ".gz" else "none"
    dialect = f"auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', compression = '{compression}'"
    return f"read_csv({_literal(str(path))}, {dialect}, columns = {{{columns}}})"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _header(path: Path, raw: Raw) -> list[str]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines), [])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _damaged(path, raw, type(error).__name__) from None


def _column(name: str, header: list[str], path: Path, raw: Raw) -> str:
    found = next((column for column in header if column.lower() == name.lower()), None)
    if found is None:
        message = f"there is no column {name}, which {raw.purpose} needs; there are {', '.join(header) or 'none'}"
        raise SourceError(
            message, location=str(path), hint=f"give the {raw.stem} table as PhysioNet ships it"
        )
    return found


def _damaged(path: Path, raw: Raw, reason: str) -> SourceError:
    line = re.search(r"on Line: (\d+)", reason)
    what = next((plain for words, plain in _DAMAGE.items() if words in reason), "it is damaged")
    location = f"{path}, line {line[1]}" if line else str(path)
    message = f"{raw.stem} cannot be read to its end, which {raw.purpose} needs: {what}"
    return SourceError(
        message, location=location, hint="get the file again and compare its checksum"
    )
