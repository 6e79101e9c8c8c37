"""The notes of MIMIC-III (``NOTEEVENTS``) and of MIMIC-IV-Note (``discharge``, ``radiology``).

``available_at`` is never earlier than the moment at which a note could first be read:

- MIMIC-III: the later of STORETIME and CHARTTIME; where both are missing (all discharge summaries,
  ECG, echo) CHARTDATE at 23:59:59.
- MIMIC-IV: the later of ``storetime`` and ``charttime``, since 2,905 notes are stored before they
  are charted (mimic-code issue 1817). The ``charttime`` of a discharge summary is a date at
  midnight, and counts as the end of that day.

Column names are matched without regard to case: MIMIC-III has them in capitals, its demo does not.
Times carry no time zone: MIMIC shifts all dates of a patient, so an offset has no meaning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, time
from functools import partial
from operator import itemgetter
from pathlib import Path

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.data.formats import delimited
from clinpeft.data.formats.hints import join_hints, suggest_name
from clinpeft.data.formats.rows import NoteRow, RejectedRow
from clinpeft.recipe import SourceSpec

MIMIC_IV_NOTE_COLUMNS = (
    "note_id",
    "subject_id",
    "hadm_id",
    "note_type",
    "note_seq",
    "charttime",
    "storetime",
    "text",
)
MIMIC_III_NOTE_COLUMNS = (
    "row_id",
    "subject_id",
    "hadm_id",
    "chartdate",
    "charttime",
    "storetime",
    "category",
    "description",
    "cgid",
    "iserror",
    "text",
)
MIMIC_IV_NOTE_CATEGORIES = {
    "DS": "Discharge summary",
    "AD": "Discharge addendum",
    "RR": "Radiology report",
    "AR": "Radiology addendum",
}
MIMIC_IV_NOTE_PARTS = ("discharge", "radiology")
NOTEEVENTS_CATEGORIES = (
    "Case Management",
    "Consult",
    "Discharge summary",
    "ECG",
    "Echo",
    "General",
    "Nursing",
    "Nursing/other",
    "Nutrition",
    "Pharmacy",
    "Physician",
    "Radiology",
    "Rehab Services",
    "Respiratory",
    "Social Work",
)
END_OF_DAY = time(23, 59, 59)

NoteRowParser = Callable[[str, Sequence[str]], NoteRow | RejectedRow]
"""(location, values in the order of the expected columns) -> a note, or why it is none."""


class _NotWholeNumberError(ValueError):
    """An identifier that should be a whole number is not."""


def read_mimic_iii_rows(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """Yields the rows of ``NOTEEVENTS.csv`` or ``.csv.gz``.

    Rows marked ISERROR = 1 are left out and counted.

    Args:
        spec: ``parts`` are categories; all of them where it is empty.
        cache: not used; the signature is that of every note source.

    Raises:
        RecipeError: no path, or a part that is not a category of MIMIC-III.
        SourceError: the file is missing, lacks a column, or is damaged.
    """
    del cache
    categories = frozenset(_check_parts(spec, NOTEEVENTS_CATEGORIES))

    def parse_row(location: str, values: Sequence[str]) -> NoteRow | RejectedRow:
        cells = dict(zip(MIMIC_III_NOTE_COLUMNS, values, strict=True))
        category = cells["category"].strip()  # some categories end in a blank in MIMIC-III
        if cells["iserror"].strip() == "1":
            return RejectedRow("marked as an error (ISERROR = 1)", location)
        if categories and category not in categories:
            return RejectedRow("category not asked for", location)
        moments = _parse_time(cells["storetime"]), _parse_time(cells["charttime"])
        # The later one: a note is written before it is stored, or dated after it was.
        available_at = max(filter(None, moments), default=None)
        if available_at is None:
            available_at = _parse_time(cells["chartdate"], is_date=True)
        stay_id = _parse_whole_number(cells["hadm_id"]) if cells["hadm_id"] else None
        return NoteRow(
            note_id=str(_parse_whole_number(cells["row_id"])),
            subject_id=_parse_whole_number(cells["subject_id"]),
            stay_id=stay_id,
            category=category or None,
            description=cells["description"].strip() or None,
            available_at=available_at,
            text=cells["text"],
            location=location,
        )

    return _read_rows(list_mimic_iii_note_files(spec)[0], MIMIC_III_NOTE_COLUMNS, parse_row)


def read_mimic_iv_rows(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """Yields the rows of ``discharge`` and ``radiology`` of MIMIC-IV-Note.

    Args:
        spec: ``parts`` selects one of the two files; both where it is empty.
        cache: not used; the signature is that of every note source.

    Raises:
        RecipeError: no path, or a part that is neither.
        SourceError: a file is missing, lacks a column, or is damaged.
    """
    del cache
    # A list, not a generator: the headers of all files are checked at the call.
    streams = [
        _read_rows(path, MIMIC_IV_NOTE_COLUMNS, _MIMIC_IV_ROW_PARSERS[part])
        for part, path in _find_mimic_iv_files(spec).items()
    ]
    return itertools.chain.from_iterable(streams)


def list_mimic_iii_note_files(spec: SourceSpec) -> list[Path]:
    """Returns ``NOTEEVENTS.csv`` or ``.csv.gz``: the path itself or a file in that folder.

    Raises:
        RecipeError: no path.
        SourceError: the file is missing.
    """
    return [_find_file(_get_source_path(spec), "NOTEEVENTS")]


def list_mimic_iv_note_files(spec: SourceSpec) -> list[Path]:
    """Returns the selected files of MIMIC-IV-Note: the path itself, or those in its folder.

    Raises:
        RecipeError: no path, or an unknown part.
        SourceError: a file is missing.
    """
    return list(_find_mimic_iv_files(spec).values())


def _find_mimic_iv_files(spec: SourceSpec) -> dict[str, Path]:
    """Returns part -> file."""
    parts = _check_parts(spec, MIMIC_IV_NOTE_PARTS) or MIMIC_IV_NOTE_PARTS
    path = _get_source_path(spec)
    if path.is_file():
        part = next((part for part in parts if path.name.lower().startswith(part)), "")
        if not part:
            raise SourceError(
                f"{path.name!r} is none of {', '.join(parts)}",
                location=str(path),
                hint="give discharge.csv.gz, radiology.csv.gz or their folder",
            )
        return {part: path}
    # MIMIC-IV-Note is distributed as a folder "note" beside "hosp" and "icu".
    folder = path / "note" if (path / "note").is_dir() else path
    return {part: _find_file(folder, part) for part in parts}


def _get_source_path(spec: SourceSpec) -> Path:
    if spec.path is None:
        raise RecipeError(
            "source.path is missing",
            location="[source]",
            hint='name the folder of the data set: path = "$MIMIC"',
        )
    return spec.path


def _find_file(path: Path, stem: str) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise SourceError(
            "there is no such file or folder", location=str(path), hint="check source.path"
        )
    for ending in (".csv.gz", ".csv"):
        if (path / f"{stem}{ending}").is_file():
            return path / f"{stem}{ending}"
    hint = "give the folder that holds it"
    if stem in MIMIC_IV_NOTE_PARTS:  # either of the two may be used alone
        hint += ", or list in source.parts the files that exist"
    raise SourceError(f"there is no {stem}.csv.gz and no {stem}.csv", location=str(path), hint=hint)


def _check_parts(spec: SourceSpec, part_names: Sequence[str]) -> tuple[str, ...]:
    for part in spec.parts:
        if part not in part_names:
            raise RecipeError(
                f"{spec.name} has no part {part!r}",
                location="source.parts",
                hint=join_hints(
                    suggest_name(part, part_names, cutoff=0.4),
                    f"its parts are: {', '.join(part_names)}",
                ),
            )
    return spec.parts


def _read_rows(
    path: Path, columns: Sequence[str], parse_row: NoteRowParser
) -> Iterator[NoteRow | RejectedRow]:
    """Applies ``parse_row`` to every row; the header is checked at the call."""
    table = delimited.open_delimited_table(path, ",")
    # MIMIC-III is in capitals, its demo and MIMIC-IV are not.
    header = [name.lower() for name in table.header]
    positions = delimited.find_column_positions(
        header, dict.fromkeys(columns, "the layout of this data set"), str(path), ","
    )
    select_values = itemgetter(*(positions[name] for name in columns))

    def parse_rows() -> Iterator[NoteRow | RejectedRow]:
        for row in table.rows:
            if isinstance(row, RejectedRow):
                yield row
                continue
            try:
                yield parse_row(row.location, select_values(row.values))
            except _NotWholeNumberError:
                yield RejectedRow("unreadable: an id is not a whole number", row.location)
            except ValueError:
                yield RejectedRow("unreadable: a time is not a time", row.location)

    return parse_rows()


def _parse_mimic_iv_row(
    location: str, values: Sequence[str], is_charted_by_date: bool
) -> NoteRow | RejectedRow:
    """Parses a row; ``is_charted_by_date``: charttime is a date, written as its midnight."""
    note_id, subject_id, stay_id, note_type, _, charttime, storetime, text = values
    # Other notes and labels refer to this id, so it cannot be replaced by a row number.
    if not note_id:
        return RejectedRow("unreadable: no note_id", location)
    moments = _parse_time(storetime), _parse_time(charttime, is_date=is_charted_by_date)
    return NoteRow(
        note_id=note_id,
        stay_id=_parse_whole_number(stay_id) if stay_id else None,
        subject_id=_parse_whole_number(subject_id),
        # An unknown type is kept under its own code rather than dropped.
        category=MIMIC_IV_NOTE_CATEGORIES.get(note_type, note_type or None),
        description=None,
        available_at=max(filter(None, moments), default=None),
        text=text,
        location=location,
    )


def _parse_whole_number(value: str) -> int:
    # isdigit alone accepts "²" and the digits of other scripts; 18 digits always fit into int64.
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise _NotWholeNumberError
    return int(value)


def _parse_time(value: str, is_date: bool = False) -> datetime | None:
    """Parses a time; a date becomes the end of its day. None for an empty value."""
    if not value:
        return None
    moment = datetime.fromisoformat(value).replace(tzinfo=None)
    return datetime.combine(moment.date(), END_OF_DAY) if is_date else moment


_MIMIC_IV_ROW_PARSERS: Mapping[str, NoteRowParser] = {
    "discharge": partial(_parse_mimic_iv_row, is_charted_by_date=True),
    "radiology": partial(_parse_mimic_iv_row, is_charted_by_date=False),
}
