"""Text columns of any layout -> the tables of ``clinpeft.core.schemas``, every dropped row counted.

A layout is data: for each table its files and one SELECT under the standard column names, still as
text; ``drop_reason`` in it is the layout's own reason to drop a row. What is a number, a time or a
contradiction is decided here, once for all layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from clinpeft.core.database import count_drop_reasons, quote_sql_literal
from clinpeft.core.schemas import Attrition
from clinpeft.data.hospital.raw_tables import RawTable

# A value that cannot be converted becomes null. '81.0' is the integer 81: pandas writes an integer
# column with missing values so. A date without a time counts as the end of its day where a note
# must not be available too early.
CREATE_MACROS_SQL = """
CREATE OR REPLACE MACRO to_integer(x) AS
    CASE WHEN regexp_full_match(trim(x), '-?[0-9]+([.]0*)?') THEN TRY_CAST(trim(x) AS BIGINT) END;
CREATE OR REPLACE MACRO to_time(x) AS TRY_CAST(nullif(trim(x), '') AS TIMESTAMP);
CREATE OR REPLACE MACRO is_bad_time(x) AS nullif(trim(x), '') IS NOT NULL AND to_time(x) IS NULL;
CREATE OR REPLACE MACRO end_of_day(x) AS date_trunc('day', x) + INTERVAL 86399 SECOND;
CREATE OR REPLACE MACRO nonblank(x) AS nullif(trim(x), '');
CREATE OR REPLACE MACRO to_boolean(x) AS
    CASE WHEN lower(trim(x)) IN ('1', '1.0', 'true', 't', 'yes', 'y') THEN true
         WHEN lower(trim(x)) IN ('0', '0.0', 'false', 'f', 'no', 'n') THEN false END;
"""


@dataclass(frozen=True)
class TablePart:
    """One standard table, or a part of it, and the query that makes it.

    Attributes:
        name: ``stay``, ``icu_stay``, ``diagnosis``, ``procedure``, ``title`` or ``note``.
        required_tables: the raw tables without which the part is missing; the first has its rows.
        select_query: SELECT of the standard columns over the raw tables, with ``row`` and
            ``drop_reason``.
        optional_tables: further raw tables of ``select_query``; empty where their file is missing.
        categories: of notes, the categories (lower case) in this file; empty when only its rows
            tell.
    """

    name: str
    required_tables: tuple[RawTable, ...]
    select_query: str
    optional_tables: tuple[RawTable, ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class HospitalLayout:
    """The parts of a data set, the stays first: they are the only part that may not be missing."""

    parts: tuple[TablePart, ...]


def build_coded_layout(
    stay: TablePart,
    icu_stay: TablePart,
    code_tables: Mapping[str, tuple[RawTable, RawTable]],
    code_query: str,
    title_query: str,
    notes: tuple[TablePart, ...],
) -> HospitalLayout:
    """The layout of a data set that has one table of codes and one of their titles for each kind.

    Args:
        stay: the stays.
        icu_stay: the intensive care stays.
        code_tables: ``diagnosis`` and ``procedure`` -> their codes and the titles of these.
        code_query: SELECT of the codes, with ``{raw}`` for the raw table.
        title_query: SELECT of the titles, with ``{raw}`` and ``{kind}``.
        notes: one part a file of notes.
    """
    codes = [
        TablePart(kind, (table,), code_query.format(raw=table.raw_name))
        for kind, (table, _) in code_tables.items()
    ]
    titles = [
        TablePart("title", (table,), title_query.format(kind=kind, raw=table.raw_name))
        for kind, (_, table) in code_tables.items()
    ]
    return HospitalLayout((stay, icu_stay, *codes, *titles, *notes))


# Of a stay id that occurs twice for one subject the first row remains. Of one that two subjects
# share all rows are dropped, since nothing tells whose it is.
_STAY_ROWS_SQL = """
CREATE OR REPLACE TABLE stay_row AS
WITH parsed AS (
    SELECT "row", to_integer(subject_id) AS subject_id, to_integer(stay_id) AS stay_id,
        to_time(admitted_at) AS admitted_at, to_time(discharged_at) AS discharged_at,
        to_time(died_at) AS died_at, to_boolean(died_in_hospital) AS died_in_hospital,
        TRY_CAST(age_years AS DOUBLE) AS age_years, nonblank(sex) AS sex, nonblank(race) AS race,
        nonblank(language) AS language, nonblank(insurance) AS insurance,
        nonblank(admission_type) AS admission_type, nonblank(care_unit) AS care_unit,
        nonblank(year_group) AS year_group, nonblank(site) AS site,
        CASE WHEN drop_reason IS NOT NULL THEN drop_reason
             WHEN to_integer(subject_id) IS NULL OR to_integer(stay_id) IS NULL
             THEN 'subject or stay is not a whole number'
             WHEN is_bad_time(admitted_at) THEN 'admission time does not parse'
             WHEN is_bad_time(discharged_at) THEN 'discharge time does not parse'
             WHEN is_bad_time(died_at) THEN 'death time does not parse'
             WHEN to_time(discharged_at) < to_time(admitted_at) THEN 'discharged before admitted'
        END AS drop_reason
    FROM ({select}))
SELECT * REPLACE (CASE
    WHEN drop_reason IS NOT NULL THEN drop_reason
    WHEN min(subject_id) OVER same_stay <> max(subject_id) OVER same_stay
    THEN 'stay id shared by two people'
    WHEN row_number() OVER (PARTITION BY stay_id, drop_reason ORDER BY "row") > 1
    THEN 'stay id repeated' END AS drop_reason)
FROM parsed WINDOW same_stay AS (PARTITION BY stay_id, drop_reason)
"""

# An intensive care stay counts only with its hospital stay: labels and splits are by hospital stay.
_ICU_STAY_ROWS_SQL = """
CREATE OR REPLACE TABLE icu_stay_row AS
WITH parsed AS (
    SELECT "row", to_integer(subject_id) AS subject_id, to_integer(stay_id) AS stay_id,
        to_integer(icu_stay_id) AS icu_stay_id, nonblank(care_unit) AS care_unit,
        to_time(began_at) AS began_at, to_time(ended_at) AS ended_at,
        CASE WHEN drop_reason IS NOT NULL THEN drop_reason
             WHEN to_integer(subject_id) IS NULL OR to_integer(stay_id) IS NULL
                 OR to_integer(icu_stay_id) IS NULL
             THEN 'subject or stay is not a whole number'
             WHEN is_bad_time(began_at) OR is_bad_time(ended_at) THEN 'a time does not parse'
             WHEN to_time(ended_at) < to_time(began_at) THEN 'ended before it began'
             WHEN NOT EXISTS (FROM stay s WHERE s.stay_id = to_integer(r.stay_id)
                 AND s.subject_id = to_integer(r.subject_id))
             THEN 'its hospital stay is not among the stays' END AS drop_reason
    FROM ({select}) r)
SELECT * REPLACE (CASE WHEN drop_reason IS NOT NULL THEN drop_reason
    WHEN row_number() OVER (PARTITION BY icu_stay_id, drop_reason ORDER BY "row") > 1
    THEN 'stay id repeated' END AS drop_reason) FROM parsed
"""

# Dots and blanks are removed, since MIMIC has 4019 where other sources have 401.9. A code without a
# system has no meaning (E879 is one thing in ICD-9 and another in ICD-10), so that its row is
# dropped.
_CODE_ROWS_SQL = """
CREATE OR REPLACE TABLE {kind}_row AS
WITH tidied AS (
    SELECT * REPLACE (to_integer(subject_id) AS subject_id, to_integer(stay_id) AS stay_id,
        to_integer("sequence") AS "sequence",
        upper(regexp_replace(code, '[.\\s]', '', 'g')) AS code) FROM ({select}))
SELECT "row", subject_id, stay_id, '{kind}' AS kind, system, code, "sequence",
    CASE WHEN drop_reason IS NOT NULL THEN drop_reason
         WHEN subject_id IS NULL OR stay_id IS NULL THEN 'subject or stay is not a whole number'
         WHEN coalesce(code, '') = '' THEN 'no code'
         WHEN system IS NULL THEN 'code system unknown'
         WHEN s.stay_id IS NULL THEN 'its hospital stay is not among the stays' END AS drop_reason
FROM tidied t LEFT JOIN (SELECT subject_id, stay_id FROM stay) s USING (subject_id, stay_id)
"""

# Titles are only searched in texts by the leakage audit; they are normalized like the codes.
_TITLE_ROWS_SQL = """
CREATE OR REPLACE TABLE title_row AS
SELECT "row", kind, system, upper(regexp_replace(code, '[.\\s]', '', 'g')) AS code, title,
    CASE WHEN coalesce(regexp_replace(code, '[.\\s]', '', 'g'), '') = '' THEN 'no code'
         WHEN system IS NULL THEN 'code system unknown'
         WHEN nonblank(title) IS NULL THEN 'no title' END AS drop_reason
FROM ({select})
"""

# A text with a NUL character is dropped: Arrow and tokenizers disagree on where it ends.
_INSERT_NOTE_ROWS_SQL = """
INSERT INTO note_row
SELECT {file} AS file, "row", nonblank(note_id) AS note_id, to_integer(subject_id) AS subject_id,
    to_integer(stay_id) AS stay_id, nonblank(category) AS category,
    nonblank(description) AS description, available_at,
    CASE WHEN drop_reason IS NULL THEN text END AS text, drop_reason
FROM (SELECT * REPLACE (CASE
        WHEN drop_reason IS NOT NULL THEN drop_reason
        WHEN nonblank(note_id) IS NULL THEN 'no note id'
        WHEN to_integer(subject_id) IS NULL THEN 'subject is not a whole number'
        WHEN nonblank(stay_id) IS NOT NULL AND to_integer(stay_id) IS NULL
        THEN 'stay is not a whole number'
        WHEN coalesce(regexp_full_match(text, '\\s*'), true) THEN 'empty note'
        WHEN contains(text, chr(0)) THEN 'unreadable: NUL character'
        WHEN {is_selected} THEN NULL ELSE 'category not asked for' END AS drop_reason)
    FROM ({select}))
"""


def fill_standard_table(
    connection: duckdb.DuckDBPyConnection, part: TablePart, file_name: str
) -> Attrition:
    """Fill ``stay``, ``icu_stay``, ``code`` or ``code_title`` from one part other than notes."""
    parse_rows, insert_rows = _FILL_STATEMENTS[part.name]
    connection.execute(parse_rows.format(select=part.select_query, kind=part.name))
    connection.execute(insert_rows)
    table = f"{part.name}_row"
    # The parsed rows are dropped as soon as they are counted: diagnoses alone have 650,000.
    attrition = _count_dropped_rows(connection, table, f"{part.name}: {file_name}", file_name)
    connection.execute(f"DROP TABLE {table}")
    return attrition


def fill_note_table(
    connection: duckdb.DuckDBPyConnection,
    part: TablePart,
    source_query: str,
    file_name: str,
    categories: tuple[str, ...],
) -> Attrition:
    """Fill ``note`` from one file in one pass; of dropped notes the text is not stored.

    Args:
        connection: the database of the hospital.
        part: notes.
        source_query: SELECT that reads the file.
        file_name: as in the attrition and in the column ``file``.
        categories: in lower case; notes of another category are dropped, notes without one remain.
            Empty: all notes.
    """
    literals = ", ".join(quote_sql_literal(category) for category in ("", *categories))
    is_selected = f"coalesce(lower(trim(category)), '') IN ({literals})" if categories else "true"
    file = quote_sql_literal(file_name)
    # The query of the part reads the file through a common table expression of its raw name.
    select = f"WITH {part.required_tables[0].raw_name} AS ({source_query}) {part.select_query}"
    connection.execute(
        _INSERT_NOTE_ROWS_SQL.format(file=file, select=select, is_selected=is_selected)
    )
    table = f"note_row WHERE file = {file}"
    return _count_dropped_rows(connection, table, f"note: {file_name}", file_name)


def _count_dropped_rows(
    connection: duckdb.DuckDBPyConnection, table: str, step: str, file_name: str
) -> Attrition:
    """Rows by reason, and the first five rows of each."""
    # ``min(x, 5)`` of DuckDB is the list of the five smallest values.
    group = f"FROM {table} GROUP BY drop_reason ORDER BY drop_reason"
    attrition = count_drop_reasons(connection, step, f"SELECT drop_reason, count(*) {group}")
    for reason, rows in connection.execute(f'SELECT drop_reason, min("row", 5) {group}').fetchall():
        if reason:
            attrition.locations[reason] = [f"{file_name}: row {row}" for row in rows]
    return attrition


_STAY_COLUMNS = """subject_id, stay_id, admitted_at, discharged_at, died_at, died_in_hospital,
    age_years, sex, race, language, insurance, admission_type, care_unit, year_group, site"""
_INSERT_CODES_SQL = """INSERT INTO code SELECT subject_id, stay_id, kind, system, code, "sequence"
    FROM {kind}_row WHERE drop_reason IS NULL ORDER BY "row" """

# Part -> the statement that parses its rows and the statement that inserts the remaining ones.
_FILL_STATEMENTS: Mapping[str, tuple[str, str]] = {
    "stay": (
        _STAY_ROWS_SQL,
        f"""INSERT INTO stay SELECT {_STAY_COLUMNS}
           FROM stay_row WHERE drop_reason IS NULL ORDER BY "row" """,
    ),
    "icu_stay": (
        _ICU_STAY_ROWS_SQL,
        """INSERT INTO icu_stay
           SELECT subject_id, stay_id, icu_stay_id, care_unit, began_at, ended_at
           FROM icu_stay_row WHERE drop_reason IS NULL ORDER BY "row" """,
    ),
    "diagnosis": (_CODE_ROWS_SQL, _INSERT_CODES_SQL.format(kind="diagnosis")),
    "procedure": (_CODE_ROWS_SQL, _INSERT_CODES_SQL.format(kind="procedure")),
    "title": (
        _TITLE_ROWS_SQL,
        """INSERT INTO code_title
           SELECT kind, system, code, title FROM title_row WHERE drop_reason IS NULL""",
    ),
}

# The columns of the schemas in ``clinpeft.core.schemas``, in their order.
CREATE_TABLES_SQL = """
CREATE TABLE stay (
    subject_id BIGINT NOT NULL, stay_id BIGINT NOT NULL, admitted_at TIMESTAMP,
    discharged_at TIMESTAMP, died_at TIMESTAMP, died_in_hospital BOOLEAN, age_years DOUBLE,
    sex VARCHAR, race VARCHAR, language VARCHAR, insurance VARCHAR, admission_type VARCHAR,
    care_unit VARCHAR, year_group VARCHAR, site VARCHAR);
CREATE TABLE icu_stay (
    subject_id BIGINT NOT NULL, stay_id BIGINT NOT NULL, icu_stay_id BIGINT NOT NULL,
    care_unit VARCHAR, began_at TIMESTAMP, ended_at TIMESTAMP);
CREATE TABLE code (
    subject_id BIGINT NOT NULL, stay_id BIGINT NOT NULL, kind VARCHAR NOT NULL,
    system VARCHAR NOT NULL, code VARCHAR NOT NULL, "sequence" BIGINT);
CREATE TABLE code_title (
    kind VARCHAR NOT NULL, system VARCHAR NOT NULL, code VARCHAR NOT NULL, title VARCHAR NOT NULL);
"""

# Dropped notes stay in ``note_row`` without their text, so that they can be counted.
CREATE_NOTE_TABLE_SQL = """
CREATE OR REPLACE TABLE note_row (
    file VARCHAR NOT NULL, "row" BIGINT NOT NULL, note_id VARCHAR, subject_id BIGINT,
    stay_id BIGINT, category VARCHAR, description VARCHAR, available_at TIMESTAMP, text VARCHAR,
    drop_reason VARCHAR);
CREATE OR REPLACE VIEW note AS
    SELECT note_id, subject_id, stay_id, category, description, available_at, text, file, "row"
    FROM note_row WHERE drop_reason IS NULL;
"""
