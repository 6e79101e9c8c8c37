"""DuckDB for packages that read tables: offline settings, SQL literals, Arrow tables, counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clinpeft.core.schemas import Attrition

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# DuckDB fetches missing extensions from its own server unless both settings are off.
OFFLINE_DUCKDB_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def quote_sql_literal(text: str) -> str:
    """A text constant of SQL, quotes doubled."""
    return "'" + text.replace("'", "''") + "'"


def quote_sql_identifier(name: str) -> str:
    """The name of a table or column in SQL, quotes doubled."""
    return '"' + name.replace('"', '""') + '"'


def count_table_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    """The number of rows of a table, a view or a relation in parentheses."""
    ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(rows)


@contextmanager
def register_arrow_tables(
    connection: duckdb.DuckDBPyConnection, **tables: pa.Table
) -> Iterator[None]:
    """Arrow tables can be queried by their keywords inside this context, without a copy."""
    for name, table in tables.items():
        connection.register(name, table)
    try:
        yield
    finally:
        for name in tables:
            connection.unregister(name)


def count_drop_reasons(connection: duckdb.DuckDBPyConnection, step: str, query: str) -> Attrition:
    """The attrition of one step.

    Args:
        connection: an open database.
        step: the name of the step in ``attrition.json``.
        query: SELECT of two columns, a reason (null: the rows remain) and its number of rows.
    """
    counts: dict[str | None, int] = dict(connection.execute(query).fetchall())
    attrition = Attrition(step, entered_rows=sum(counts.values()))
    for reason, count in counts.items():
        if reason is not None:
            attrition.drop_rows(reason, count)
    return attrition
