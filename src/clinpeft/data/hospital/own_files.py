"""A hospital's own files: ``stays.csv`` and ``notes.csv``, and where they are there ``icu_stays.csv`` and ``codes.csv``, by a column map.

The columns have our names (those of ``clinpeft.core.schemas``) unless ``source.columns`` says otherwise (ours -> theirs); one map serves all files.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import BILLED_CODE_SCHEMA, ICU_STAY_SCHEMA, NOTE_SCHEMA, STAY_SCHEMA
from clinpeft.data.hospital.raw_tables import Shipped, needed
from clinpeft.data.hospital.standard_tables import Layout, Part
from clinpeft.recipe import SourceSpec

_NEEDED = {
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


def layout(spec: SourceSpec) -> Layout:
    """The layout that ``spec.columns`` describes.

    Raises:
        RecipeError: the map names a column that we do not have.
    """
    _refuse_unknown(spec)
    files = {name: _shipped(name, spec) for name in _NEEDED}
    return Layout(
        (
            Part("stay", (files["stays"],), _rows("stays", spec)),
            Part("icu_stay", (files["icu_stays"],), _rows("icu_stays", spec)),
            Part("diagnosis", (files["codes"],), _codes(spec, "coalesce(kind, '') <> 'procedure'")),
            Part("procedure", (files["codes"],), _codes(spec, "kind = 'procedure'")),
            Part("note", (files["notes"],), _notes(spec)),
        )
    )


def _refuse_unknown(spec: SourceSpec) -> None:
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


def _theirs(ours: str, spec: SourceSpec) -> str:
    return spec.columns.get(ours, ours).lower()


def _shipped(name: str, spec: SourceSpec) -> Shipped:
    purpose, wanted = _NEEDED[name]
    columns = needed(purpose, *(_theirs(ours, spec) for ours in wanted))
    return Shipped(
        name,
        columns,
        tuple(
            dict.fromkeys(
                theirs for ours in _others(name) if (theirs := _theirs(ours, spec)) not in columns
            )
        ),
    )


def _others(name: str) -> Sequence[str]:
    return [column for column in _SCHEMAS[name].names if column not in _NEEDED[name][1]]


def _raw(name: str, spec: SourceSpec) -> str:
    """The columns of a file under our names."""
    columns = ", ".join(f'"{_theirs(ours, spec)}" AS "{ours}"' for ours in _SCHEMAS[name].names)
    return f'SELECT "row", {columns} FROM raw_{name}'


def _rows(name: str, spec: SourceSpec) -> str:
    return f"SELECT *, NULL::VARCHAR AS lost FROM ({_raw(name, spec)})"


def _codes(spec: SourceSpec, chosen: str) -> str:
    """``ICD-9`` and ``icd9`` are one system; a kind that is neither of ours is left out among the diagnoses, so that it is counted once."""
    return f"""SELECT * REPLACE (CASE WHEN system IN ('icd9', 'icd10') THEN system END AS system),
            CASE WHEN coalesce(kind, '') NOT IN ('diagnosis', 'procedure') THEN 'neither a diagnosis nor a procedure' END AS lost
        FROM (SELECT * REPLACE (lower(trim(kind)) AS kind, lower(regexp_replace(system, '[^A-Za-z0-9]', '', 'g')) AS system)
              FROM ({_raw("codes", spec)}))
        WHERE {chosen}"""


def _notes(spec: SourceSpec) -> str:
    """Notes without an id are numbered by their row; an ``available_at`` at midnight is a date and counts as the end of the day."""
    at_time = "moment(available_at)"
    return f"""SELECT * REPLACE (coalesce(given(note_id), 'row ' || "row") AS note_id,
            CASE WHEN {at_time} = date_trunc('day', {at_time}) THEN end_of_day({at_time}) ELSE {at_time} END AS available_at),
        CASE WHEN unparsed(available_at) THEN 'a time does not parse' END AS lost
        FROM ({_raw("notes", spec)})"""
