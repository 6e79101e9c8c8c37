"""Text columns of any layout -> the tables of ``clinpeft.core.schemas``, with every row that is left out counted under its reason.

A layout is data: for each table the files it is made from and one SELECT that names our columns, still as text; ``lost`` in it is the
layout's own reason for leaving a row out. What is a number, a time or a contradiction is decided here, once for all layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from clinpeft.core.schemas import Attrition
from clinpeft.data.hospital.raw_tables import RawTable, quote_sql_literal

CREATE_MACROS_SQL = """
CREATE OR REPLACE MACRO whole(x) AS CASE WHEN regexp_full_match(trim(x), '-?[0-9]+([.]0*)?') THEN TRY_CAST(trim(x) AS BIGINT) END;
CREATE OR REPLACE MACRO moment(x) AS TRY_CAST(nullif(trim(x), '') AS TIMESTAMP);
CREATE OR REPLACE MACRO unparsed(x) AS nullif(trim(x), '') IS NOT NULL AND moment(x) IS NULL;
CREATE OR REPLACE MACRO end_of_day(x) AS date_trunc('day', x) + INTERVAL 86399 SECOND;
CREATE OR REPLACE MACRO given(x) AS nullif(trim(x), '');
CREATE OR REPLACE MACRO truth(x) AS CASE WHEN lower(trim(x)) IN ('1', '1.0', 'true', 't', 'yes', 'y') THEN true
                                         WHEN lower(trim(x)) IN ('0', '0.0', 'false', 'f', 'no', 'n') THEN false END;
"""


@dataclass(frozen=True)
class TablePart:
    """One of our tables, or a part of it: made from ``required_tables`` (the first holds its rows) by ``select_query``.

    Attributes:
        name: ``stay``, ``icu_stay``, ``diagnosis``, ``procedure``, ``title`` or ``note``.
        required_tables: files that must be there for this part.
        select_query: names our columns over the raw tables, with ``row`` and ``lost``.
        optional_tables: files that ``select_query`` also joins; an empty table takes the place of one that is missing.
        categories: for notes, the categories (lower case) that this file holds; empty when it says so in its rows.
    """

    name: str
    required_tables: tuple[RawTable, ...]
    select_query: str
    optional_tables: tuple[RawTable, ...] = ()
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class HospitalLayout:
    """How a data set is shipped; ``parts`` begins with the stays, the only part that must be there."""

    parts: tuple[TablePart, ...]


_STAY_ROWS_SQL = """
CREATE OR REPLACE TABLE stay_row AS
WITH parsed AS (
    SELECT "row", whole(subject_id) AS subject_id, whole(stay_id) AS stay_id, moment(admitted_at) AS admitted_at,
        moment(discharged_at) AS discharged_at, moment(died_at) AS died_at, truth(died_in_hospital) AS died_in_hospital,
        TRY_CAST(age_years AS DOUBLE) AS age_years, given(sex) AS sex, given(race) AS race, given(language) AS language,
        given(insurance) AS insurance, given(admission_type) AS admission_type, given(care_unit) AS care_unit,
        given(year_group) AS year_group, given(site) AS site,
        CASE WHEN lost IS NOT NULL THEN lost
             WHEN whole(subject_id) IS NULL OR whole(stay_id) IS NULL THEN 'subject or stay is not a whole number'
             WHEN unparsed(admitted_at) THEN 'admission time does not parse'
             WHEN unparsed(discharged_at) THEN 'discharge time does not parse'
             WHEN unparsed(died_at) THEN 'death time does not parse'
             WHEN moment(discharged_at) < moment(admitted_at) THEN 'discharged before admitted' END AS lost
    FROM ({select}))
SELECT * REPLACE (CASE
    WHEN lost IS NOT NULL THEN lost
    WHEN min(subject_id) OVER same <> max(subject_id) OVER same THEN 'stay id shared by two people'
    WHEN row_number() OVER (PARTITION BY stay_id, lost ORDER BY "row") > 1 THEN 'stay id repeated' END AS lost)
FROM parsed WINDOW same AS (PARTITION BY stay_id, lost)
"""

_ICU_STAY_ROWS_SQL = """
CREATE OR REPLACE TABLE icu_stay_row AS
WITH parsed AS (
    SELECT "row", whole(subject_id) AS subject_id, whole(stay_id) AS stay_id, whole(icu_stay_id) AS icu_stay_id, given(care_unit) AS care_unit,
        moment(began_at) AS began_at, moment(ended_at) AS ended_at,
        CASE WHEN lost IS NOT NULL THEN lost
             WHEN whole(subject_id) IS NULL OR whole(stay_id) IS NULL OR whole(icu_stay_id) IS NULL THEN 'subject or stay is not a whole number'
             WHEN unparsed(began_at) OR unparsed(ended_at) THEN 'a time does not parse'
             WHEN moment(ended_at) < moment(began_at) THEN 'ended before it began'
             WHEN NOT EXISTS (FROM stay s WHERE s.stay_id = whole(r.stay_id) AND s.subject_id = whole(r.subject_id))
             THEN 'its hospital stay is not among the stays' END AS lost
    FROM ({select}) r)
SELECT * REPLACE (CASE WHEN lost IS NOT NULL THEN lost
    WHEN row_number() OVER (PARTITION BY icu_stay_id, lost ORDER BY "row") > 1 THEN 'stay id repeated' END AS lost) FROM parsed
"""

_CODE_ROWS_SQL = """
CREATE OR REPLACE TABLE {kind}_row AS
WITH tidied AS (
    SELECT * REPLACE (whole(subject_id) AS subject_id, whole(stay_id) AS stay_id, whole("sequence") AS "sequence",
        upper(regexp_replace(code, '[.\\s]', '', 'g')) AS code) FROM ({select}))
SELECT "row", subject_id, stay_id, '{kind}' AS kind, system, code, "sequence",
    CASE WHEN lost IS NOT NULL THEN lost
         WHEN subject_id IS NULL OR stay_id IS NULL THEN 'subject or stay is not a whole number'
         WHEN coalesce(code, '') = '' THEN 'no code'
         WHEN system IS NULL THEN 'code system unknown'
         WHEN s.stay_id IS NULL THEN 'its hospital stay is not among the stays' END AS lost
FROM tidied t LEFT JOIN (SELECT subject_id, stay_id FROM stay) s USING (subject_id, stay_id)
"""

_TITLE_ROWS_SQL = """
CREATE OR REPLACE TABLE title_row AS
SELECT "row", kind, system, upper(regexp_replace(code, '[.\\s]', '', 'g')) AS code, title,
    CASE WHEN coalesce(regexp_replace(code, '[.\\s]', '', 'g'), '') = '' THEN 'no code'
         WHEN system IS NULL THEN 'code system unknown'
         WHEN given(title) IS NULL THEN 'no title' END AS lost
FROM ({select})
"""

_INSERT_NOTE_ROWS_SQL = """
INSERT INTO note_row
SELECT {file} AS file, "row", given(note_id) AS note_id, whole(subject_id) AS subject_id, whole(stay_id) AS stay_id, given(category) AS category,
    given(description) AS description, available_at, CASE WHEN lost IS NULL THEN text END AS text, lost
FROM (SELECT * REPLACE (CASE
        WHEN lost IS NOT NULL THEN lost
        WHEN given(note_id) IS NULL THEN 'no note id'
        WHEN whole(subject_id) IS NULL THEN 'subject is not a whole number'
        WHEN given(stay_id) IS NOT NULL AND whole(stay_id) IS NULL THEN 'stay is not a whole number'
        WHEN coalesce(regexp_full_match(text, '\\s*'), true) THEN 'empty note'
        WHEN contains(text, chr(0)) THEN 'unreadable: NUL character'
        WHEN {wanted} THEN NULL ELSE 'category not asked for' END AS lost) FROM ({select}))
"""


def fill_standard_table(
    connection: duckdb.DuckDBPyConnection, part: TablePart, file_name: str
) -> Attrition:
    """One part other than notes -> its rows in ``stay``, ``icu_stay``, ``code`` or ``code_title``."""
    statement, kept = _FILL_STATEMENTS[part.name]
    connection.execute(statement.format(select=part.select_query, kind=part.name))
    connection.execute(kept)
    attrition = _count_lost_rows(
        connection, f"{part.name}_row", f"{part.name}: {file_name}", file_name
    )
    connection.execute(f"DROP TABLE {part.name}_row")
    return attrition


def fill_note_table(
    connection: duckdb.DuckDBPyConnection,
    part: TablePart,
    source_query: str,
    file_name: str,
    categories: tuple[str, ...],
) -> Attrition:
    """One file of notes, read by the SELECT ``source_query`` -> its rows in ``note``, in one pass that keeps only the text of those.

    Notes of other ``categories`` (lower case) are left out; those of none are kept.
    """
    listed = ", ".join(quote_sql_literal(category) for category in categories)
    wanted = f"coalesce(lower(trim(category)), '') IN ('', {listed})" if categories else "true"
    raw = part.required_tables[0].raw_name
    select = f"WITH {raw} AS ({source_query}) {part.select_query}"
    connection.execute(
        _INSERT_NOTE_ROWS_SQL.format(
            file=quote_sql_literal(file_name), select=select, wanted=wanted
        )
    )
    return _count_lost_rows(
        connection,
        f"note_row WHERE file = {quote_sql_literal(file_name)}",
        f"note: {file_name}",
        file_name,
    )


def _count_lost_rows(
    connection: duckdb.DuckDBPyConnection, table: str, step: str, file_name: str
) -> Attrition:
    """Counts, and the first places a reason."""
    attrition = Attrition(step)
    query = f'SELECT lost, count(*), min("row", 5) FROM {table} GROUP BY lost ORDER BY lost'
    for reason, count, rows in connection.execute(query).fetchall():
        attrition.entered_rows += count
        if reason:
            attrition.drop_rows(reason, count)
            attrition.locations[reason] = [f"{file_name}: row {row}" for row in rows]
    return attrition


_STAY_COLUMNS = """subject_id, stay_id, admitted_at, discharged_at, died_at, died_in_hospital, age_years, sex, race, language, insurance,
    admission_type, care_unit, year_group, site"""
_INSERT_CODES_SQL = """INSERT INTO code SELECT subject_id, stay_id, kind, system, code, "sequence" FROM {kind}_row WHERE lost IS NULL ORDER BY "row" """

_FILL_STATEMENTS: Mapping[str, tuple[str, str]] = {
    "stay": (
        _STAY_ROWS_SQL,
        f'INSERT INTO stay SELECT {_STAY_COLUMNS} FROM stay_row WHERE lost IS NULL ORDER BY "row"',
    ),
    "icu_stay": (
        _ICU_STAY_ROWS_SQL,
        """INSERT INTO icu_stay SELECT subject_id, stay_id, icu_stay_id, care_unit, began_at, ended_at
           FROM icu_stay_row WHERE lost IS NULL ORDER BY "row" """,
    ),
    "diagnosis": (_CODE_ROWS_SQL, _INSERT_CODES_SQL.format(kind="diagnosis")),
    "procedure": (_CODE_ROWS_SQL, _INSERT_CODES_SQL.format(kind="procedure")),
    "title": (
        _TITLE_ROWS_SQL,
        "INSERT INTO code_title SELECT kind, system, code, title FROM title_row WHERE lost IS NULL",
    ),
}

CREATE_TABLES_SQL = """
CREATE TABLE stay (subject_id BIGINT NOT NULL, stay_id BIGINT NOT NULL, admitted_at TIMESTAMP, discharged_at TIMESTAMP, died_at TIMESTAMP,
    died_in_hospital BOOLEAN, age_years DOUBLE, sex VARCHAR, race VARCHAR, language VARCHAR, insurance VARCHAR, admission_type VARCHAR,
    care_unit VARCHAR, year_group VARCHAR, site VARCHAR);
CREATE TABLE icu_stay (subject_id BIGINT NOT NULL, stay_id BIGINT NOT NULL, icu_stay_id BIGINT NOT NULL, care_unit VARCHAR,
    began_at TIMESTAMP, ended_at TIMESTAMP);
CREATE TABLE code (subject_id BIGINT NOT NULL, stay_id BIGINT NOT NULL, kind VARCHAR NOT NULL, system VARCHAR NOT NULL,
    code VARCHAR NOT NULL, "sequence" BIGINT);
CREATE TABLE code_title (kind VARCHAR NOT NULL, system VARCHAR NOT NULL, code VARCHAR NOT NULL, title VARCHAR NOT NULL);
"""

CREATE_NOTE_TABLE_SQL = """
CREATE OR REPLACE TABLE note_row (file VARCHAR NOT NULL, "row" BIGINT NOT NULL, note_id VARCHAR, subject_id BIGINT, stay_id BIGINT,
    category VARCHAR, description VARCHAR, available_at TIMESTAMP, text VARCHAR, lost VARCHAR);
CREATE OR REPLACE VIEW note AS
    SELECT note_id, subject_id, stay_id, category, description, available_at, text, file, "row" FROM note_row WHERE lost IS NULL;
"""
