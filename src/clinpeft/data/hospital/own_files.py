"""A hospital's own delimited files, read by a map of column names.

``stays.csv`` and ``notes.csv`` are required; ``icu_stays.csv`` and ``codes.csv`` are read where
they are there. Columns have the standard names (those of ``clinpeft.core.schemas``) unless
``source.columns`` maps a standard name to the name in the files; one map serves all files.
"""

from __future__ import annotations

import difflib

from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import BILLED_CODE_SCHEMA, ICU_STAY_SCHEMA, NOTE_SCHEMA, STAY_SCHEMA
from clinpeft.data.hospital.raw_tables import RawTable, build_column_purposes
from clinpeft.data.hospital.standard_tables import HospitalLayout, TablePart
from clinpeft.recipe import SourceSpec

# File -> the purpose that an error names, and the columns without which it cannot be read.
_REQUIRED_COLUMNS = {
    "stays": (
        "the stays of every cohort",
        ("subject_id", "stay_id", "admitted_at", "discharged_at"),
    ),
    "icu_stays": (
        "intensive care stays",
        ("subject_id", "stay_id", "icu_stay_id", "began_at", "ended_at"),
    ),
    "codes": (
        "diagnosis and procedure labels",
        ("subject_id", "stay_id", "kind", "system", "code"),
    ),
    "notes": ("the text of the notes", ("subject_id", "stay_id", "available_at", "text")),
}

_SCHEMAS = {
    "stays": STAY_SCHEMA,
    "icu_stays": ICU_STAY_SCHEMA,
    "codes": BILLED_CODE_SCHEMA,
    "notes": NOTE_SCHEMA,
}

# Files with the standard columns need no rule of their own.
_ROW_QUERY = "SELECT *, NULL::VARCHAR AS drop_reason FROM ({columns})"

# ``ICD-9`` and ``icd9`` are one system. Rows that are neither diagnoses nor procedures are read
# with the diagnoses, so that they are counted once.
_CODE_QUERY = """
SELECT * REPLACE (CASE WHEN system IN ('icd9', 'icd10') THEN system END AS system),
    CASE WHEN coalesce(kind, '') NOT IN ('diagnosis', 'procedure')
         THEN 'neither a diagnosis nor a procedure' END AS drop_reason
FROM (
    SELECT * REPLACE (lower(trim(kind)) AS kind,
        lower(regexp_replace(system, '[^A-Za-z0-9]', '', 'g')) AS system)
    FROM ({columns}))
WHERE {condition}
"""

# Notes without an id are numbered by their row. A time at midnight is a date: end of the day.
_NOTE_QUERY = """
SELECT * REPLACE (coalesce(nonblank(note_id), 'row ' || "row") AS note_id,
        CASE WHEN to_time(available_at) = date_trunc('day', to_time(available_at))
             THEN end_of_day(to_time(available_at)) ELSE to_time(available_at)
        END AS available_at),
    CASE WHEN is_bad_time(available_at) THEN 'a time does not parse' END AS drop_reason
FROM ({columns})
"""


def build_own_files_layout(spec: SourceSpec) -> HospitalLayout:
    """The layout that ``spec.columns`` describes.

    Raises:
        RecipeError: the map has a name that is not a standard column.
    """
    standard_names = sorted({name for schema in _SCHEMAS.values() for name in schema.names})
    for name in spec.columns:
        if name not in standard_names:
            near = difflib.get_close_matches(name, standard_names, n=1)
            suggestion = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(
                f"{name!r} is not a standard column",
                location="source.columns",
                hint=f"{suggestion}the columns are: {', '.join(standard_names)}",
            )
    files = {name: _build_raw_table(name, spec) for name in _REQUIRED_COLUMNS}
    columns = {name: _build_column_query(name, spec) for name in _REQUIRED_COLUMNS}
    diagnosis = _CODE_QUERY.format(
        columns=columns["codes"], condition="coalesce(kind, '') <> 'procedure'"
    )
    procedure = _CODE_QUERY.format(columns=columns["codes"], condition="kind = 'procedure'")
    return HospitalLayout(
        (
            TablePart("stay", (files["stays"],), _ROW_QUERY.format(columns=columns["stays"])),
            TablePart(
                "icu_stay", (files["icu_stays"],), _ROW_QUERY.format(columns=columns["icu_stays"])
            ),
            TablePart("diagnosis", (files["codes"],), diagnosis),
            TablePart("procedure", (files["codes"],), procedure),
            TablePart("note", (files["notes"],), _NOTE_QUERY.format(columns=columns["notes"])),
        )
    )


def _build_raw_table(name: str, spec: SourceSpec) -> RawTable:
    """A file by the names of its own columns; one that stands for two standard columns once."""
    purpose, required_names = _REQUIRED_COLUMNS[name]
    file_names = {
        column: spec.columns.get(column, column).lower() for column in _SCHEMAS[name].names
    }
    required = build_column_purposes(purpose, *(file_names[column] for column in required_names))
    # One column of the files may stand for several standard columns.
    optional = dict.fromkeys(
        file_name
        for column, file_name in file_names.items()
        if column not in required_names and file_name not in required
    )
    return RawTable(name, required, tuple(optional))


def _build_column_query(name: str, spec: SourceSpec) -> str:
    """SELECT of the columns of a file under their standard names."""
    columns = ", ".join(
        f'"{spec.columns.get(column, column).lower()}" AS "{column}"'
        for column in _SCHEMAS[name].names
    )
    return f'SELECT "row", {columns} FROM raw_{name}'
