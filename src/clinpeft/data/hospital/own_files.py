"""A hospital's own files: ``stays.csv`` and ``notes.csv``, and where they are there ``icu_stays.csv`` and ``codes.csv``, by a column map.

The columns have our names (those of ``clinpeft.core.schemas``) unless ``source.columns`` says otherwise (ours -> theirs); one map serves all files.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import BILLED_CODE_SCHEMA, ICU_STAY_SCHEMA, NOTE_SCHEMA, STAY_SCHEMA
from clinpeft.data.hospital.raw_tables import RawTable, build_column_purposes
from clinpeft.data.hospital.standard_tables import HospitalLayout, TablePart
from clinpeft.recipe import SourceSpec

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
    "notes": ("what is read", ("subject_id", "stay_id", "available_at", "text")),
}
_SCHEMAS = {
    "stays": STAY_SCHEMA,
    "icu_stays": ICU_STAY_SCHEMA,
    "codes": BILLED_CODE_SCHEMA,
    "notes": NOTE_SCHEMA,
}


def build_own_files_layout(spec: SourceSpec) -> HospitalLayout:
    """The layout that ``spec.columns`` describes.

    Raises:
        RecipeError: the map names a column that we do not have.
    """
    _check_column_map(spec)
    files = {name: _build_raw_table(name, spec) for name in _REQUIRED_COLUMNS}
    return HospitalLayout(
        (
            TablePart("stay", (files["stays"],), _build_row_query("stays", spec)),
            TablePart("icu_stay", (files["icu_stays"],), _build_row_query("icu_stays", spec)),
            TablePart(
                "diagnosis",
                (files["codes"],),
                _build_code_query(spec, "coalesce(kind, '') <> 'procedure'"),
            ),
            TablePart(
                "procedure", (files["codes"],), _build_code_query(spec, "kind = 'procedure'")
            ),
            TablePart("note", (files["notes"],), _build_note_query(spec)),
        )
    )


def _check_column_map(spec: SourceSpec) -> None:
    known = sorted({name for schema in _SCHEMAS.values() for name in schema.names})
    for name in spec.columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]!r}? " if near else ""
            ) + f"our columns are: {', '.join(known)}"
            raise RecipeError(
                f"{name!r} is no column of ours", location="source.columns", hint=hint
            )


def _get_source_column(column: str, spec: SourceSpec) -> str:
    return spec.columns.get(column, column).lower()


def _build_raw_table(name: str, spec: SourceSpec) -> RawTable:
    purpose, wanted = _REQUIRED_COLUMNS[name]
    columns = build_column_purposes(purpose, *(_get_source_column(ours, spec) for ours in wanted))
    return RawTable(
        name,
        columns,
        tuple(
            dict.fromkeys(
                theirs
                for ours in _list_optional_columns(name)
                if (theirs := _get_source_column(ours, spec)) not in columns
            )
        ),
    )


def _list_optional_columns(name: str) -> Sequence[str]:
    return [column for column in _SCHEMAS[name].names if column not in _REQUIRED_COLUMNS[name][1]]


def _build_column_query(name: str, spec: SourceSpec) -> str:
    """The columns of a file under our names."""
    columns = ", ".join(
        f'"{_get_source_column(ours, spec)}" AS "{ours}"' for ours in _SCHEMAS[name].names
    )
    return f'SELECT "row", {columns} FROM raw_{name}'


def _build_row_query(name: str, spec: SourceSpec) -> str:
    return f"SELECT *, NULL::VARCHAR AS lost FROM ({_build_column_query(name, spec)})"


def _build_code_query(spec: SourceSpec, condition: str) -> str:
    """``ICD-9`` and ``icd9`` are one system; a kind that is neither of ours is left out among the diagnoses, so that it is counted once."""
    return f"""SELECT * REPLACE (CASE WHEN system IN ('icd9', 'icd10') THEN system END AS system),
            CASE WHEN coalesce(kind, '') NOT IN ('diagnosis', 'procedure') THEN 'neither a diagnosis nor a procedure' END AS lost
        FROM (SELECT * REPLACE (lower(trim(kind)) AS kind, lower(regexp_replace(system, '[^A-Za-z0-9]', '', 'g')) AS system)
              FROM ({_build_column_query("codes", spec)}))
        WHERE {condition}"""


def _build_note_query(spec: SourceSpec) -> str:
    """Notes without an id are numbered by their row; an ``available_at`` at midnight is a date and counts as the end of the day."""
    at_time = "moment(available_at)"
    return f"""SELECT * REPLACE (coalesce(given(note_id), 'row ' || "row") AS note_id,
            CASE WHEN {at_time} = date_trunc('day', {at_time}) THEN end_of_day({at_time}) ELSE {at_time} END AS available_at),
        CASE WHEN unparsed(available_at) THEN 'a time does not parse' END AS lost
        FROM ({_build_column_query("notes", spec)})"""
