"""Raw tables as views that DuckDB reads as a stream: the columns of a rule, as text."""

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

from clinpeft.core.database import quote_sql_identifier, quote_sql_literal
from clinpeft.core.errors import SourceError

# Words of a reader's message -> the damage. The message itself is never repeated: it quotes the
# row.
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


class ChartTable(NamedTuple):
    """A raw table.

    Attributes:
        stem: the file name without its ending.
        view_name: of the view that reads it.
        columns: name in the view -> name in the file.
        purpose: that an error names.
    """

    stem: str
    view_name: str
    columns: Mapping[str, str]
    purpose: str


def read_sql_file(name: str) -> str:
    """The text of one of the SQL files of this package."""
    return resources.files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")


def execute_sql_file(connection: duckdb.DuckDBPyConnection, name: str, **values: Any) -> None:
    """Execute one of the SQL files of this package with those of ``values`` that it mentions."""
    text = read_sql_file(name)
    # DuckDB refuses values without a parameter of their name.
    parameters = {key: value for key, value in values.items() if f"${key}" in text}
    connection.execute(text, parameters or None)


def find_chart_file(folder: Path, stem: str) -> Path | None:
    """The file of a charted table.

    Args:
        folder: of the data set; the file may also be in its ``icu`` (MIMIC-IV).
        stem: in its own spelling or in capitals, with the ending ``.csv.gz`` or ``.csv``.

    Returns:
        The first that exists, the gzipped before the plain one; None when there is none.
    """
    names = [
        f"{spelling}{suffix}"
        for spelling in dict.fromkeys((stem, stem.upper()))
        for suffix in (".csv.gz", ".csv")
    ]
    paths = (location / name for location in (folder, folder / "icu") for name in names)
    return next((path for path in paths if path.is_file()), None)


@contextmanager
def create_chart_view(
    connection: duckdb.DuckDBPyConnection, path: Path, table: ChartTable
) -> Iterator[None]:
    """The view ``table.view_name`` exists inside this context.

    Damage of the file that DuckDB meets while it reads the view there becomes a SourceError.

    Raises:
        SourceError: a column is missing, the file is cut off, a row does not fit the header, or a
            quote is never closed.
    """
    header = _read_header(path, table)
    columns = []
    # MIMIC-III has upper-case headers, its demo lower-case ones.
    for column, name in table.columns.items():
        file_name = next((other for other in header if other.lower() == name.lower()), None)
        if file_name is None:
            raise SourceError(
                f"there is no column {name}, which {table.purpose} needs; there are "
                f"{', '.join(header) or 'none'}",
                location=str(path),
                hint=f"give the {table.stem} table as PhysioNet ships it",
            )
        columns.append(f"{quote_sql_identifier(file_name)} AS {column}")
    # Nothing is detected, so that nothing depends on the rows that DuckDB looks at first.
    types = ", ".join(f"{quote_sql_literal(name)}: 'VARCHAR'" for name in header)
    compression = "gzip" if path.suffix == ".gz" else "none"
    connection.execute(
        f"""CREATE OR REPLACE TEMP VIEW {table.view_name} AS SELECT {", ".join(columns)}
            FROM read_csv({quote_sql_literal(str(path))}, auto_detect = false, header = true,
                delim = ',', quote = '"', escape = '"', compression = '{compression}',
                columns = {{{types}}})"""
    )
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        # An error of another file or of the query itself is not damage of this one.
        if str(path) not in str(error):
            raise
        # The message of DuckDB quotes the row.
        raise _create_damage_error(path, table, str(error)) from None
    finally:
        connection.execute(f"DROP VIEW IF EXISTS {table.view_name}")


def _read_header(path: Path, table: ChartTable) -> list[str]:
    try:
        open_text = gzip.open if path.suffix == ".gz" else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines), [])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _create_damage_error(path, table, type(error).__name__) from None


def _create_damage_error(path: Path, table: ChartTable, reader_message: str) -> SourceError:
    """The error for a damaged file; of the reader's message only the kind and the line are kept."""
    line = re.search(r"on Line: (\d+)", reader_message)
    damage = next(
        (damage for words, damage in _DAMAGE_REASONS.items() if words in reader_message),
        "it is damaged",
    )
    return SourceError(
        f"{table.stem} cannot be read to its end, which {table.purpose} needs: {damage}",
        location=f"{path}, line {line[1]}" if line else str(path),
        hint="copy the file again and compare its checksum",
    )
