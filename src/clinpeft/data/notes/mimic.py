"""The notes of MIMIC-III (``NOTEEVENTS``) and of MIMIC-IV-Note (``discharge``, ``radiology``), gzipped or not.

When could a note first be read? Never earlier than we say:

- MIMIC-III: the later of STORETIME and CHARTTIME; where both are missing (all discharge summaries, ECG, echo) CHARTDATE at 23:59:59.
- MIMIC-IV: the later of ``storetime`` and ``charttime``, since in 2,905 rows the note is stored before it is charted (mimic-code issue 1817).
  The ``charttime`` of a discharge summary is a date at midnight, and counts as the end of that day.

Column names are matched without regard to case: MIMIC-III has them in capitals, its demo does not.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, time
from operator import itemgetter
from pathlib import Path

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.data.formats import delimited
from clinpeft.data.formats.delimited import RawRow
from clinpeft.data.formats.rows import RejectedRow, NoteRow
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


class _NotWholeNumberError(ValueError):
    """A column that holds whole numbers holds something else here."""


def read_mimic_iii_rows(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """The rows of ``NOTEEVENTS.csv`` or ``.csv.gz``; ``spec.parts`` are categories. Rows marked ISERROR = 1 are left out and counted.

    Raises:
        RecipeError: no path, or a part that is no category of MIMIC-III.
        SourceError: the file is missing, lacks a column, or is damaged.
    """
    del cache
    parts = frozenset(_check_parts(spec, NOTEEVENTS_CATEGORIES))

    def read(location: str, values: Sequence[str]) -> NoteRow | RejectedRow:
        return _parse_mimic_iii_row(location, values, parts)

    return _read_rows(list_mimic_iii_note_files(spec)[0], MIMIC_III_NOTE_COLUMNS, read)


def read_mimic_iv_rows(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """The rows of ``discharge`` and ``radiology`` of MIMIC-IV-Note; ``spec.parts`` takes one of them.

    Raises:
        RecipeError: no path, or a part that is neither.
        SourceError: a file is missing, lacks a column, or is damaged.
    """
    del cache
    opened = [
        _read_rows(path, MIMIC_IV_NOTE_COLUMNS, _MIMIC_IV_ROW_PARSERS[part])
        for part, path in _find_mimic_iv_files(spec).items()
    ]
    return itertools.chain.from_iterable(opened)


def list_mimic_iii_note_files(spec: SourceSpec) -> list[Path]:
    """``NOTEEVENTS.csv`` or ``.csv.gz``: the path itself or a file in that folder."""
    return [_find_file(_get_source_path(spec), "NOTEEVENTS")]


def list_mimic_iv_note_files(spec: SourceSpec) -> list[Path]:
    """The files of MIMIC-IV-Note that are read: the path itself, files in that folder, or in its ``note`` folder."""
    return list(_find_mimic_iv_files(spec).values())


def _find_mimic_iv_files(spec: SourceSpec) -> dict[str, Path]:
    parts, path = (
        _check_parts(spec, MIMIC_IV_NOTE_PARTS) or MIMIC_IV_NOTE_PARTS,
        _get_source_path(spec),
    )
    if path.is_file():
        part = next((part for part in parts if path.name.lower().startswith(part)), "")
        if not part:
            raise SourceError(
                f"{path.name!r} is none of {', '.join(parts)}",
                location=str(path),
                hint="give discharge.csv.gz, radiology.csv.gz or their folder",
            )
        return {part: path}
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
    hint = "give the folder that holds it" + (
        ", or name in source.parts what there is" if stem in MIMIC_IV_NOTE_PARTS else ""
    )
    raise SourceError(f"there is no {stem}.csv.gz and no {stem}.csv", location=str(path), hint=hint)


def _check_parts(spec: SourceSpec, part_names: Sequence[str]) -> tuple[str, ...]:
    for part in spec.parts:
        if part not in part_names:
            near = difflib.get_close_matches(part, part_names, n=1, cutoff=0.4)
            hint = (
                f"did you mean {near[0]!r}? " if near else ""
            ) + f"there are: {', '.join(part_names)}"
            raise RecipeError(
                f"{spec.name} has no part {part!r}", location="source.parts", hint=hint
            )
    return spec.parts


def _read_rows(
    path: Path, columns: Sequence[str], parse_row: NoteRowParser
) -> Iterator[NoteRow | RejectedRow]:
    """``parse_row`` on every row, its values in the order of ``columns``; the header is checked at once."""
    sheet = delimited.open_delimited_table(path, ",")
    header = [name.lower() for name in sheet.header]
    at = delimited.find_column_positions(
        header, dict.fromkeys(columns, "the layout of this data set"), str(path), ","
    )
    return _parse_rows(sheet.rows, itemgetter(*(at[name] for name in columns)), parse_row)


def _parse_rows(
    rows: Iterator[RawRow | RejectedRow],
    order_values: Callable[[Sequence[str]], tuple[str, ...]],
    parse_row: NoteRowParser,
) -> Iterator[NoteRow | RejectedRow]:
    for row in rows:
        if isinstance(row, RejectedRow):
            yield row
            continue
        try:
            yield parse_row(row.location, order_values(row.values))
        except _NotWholeNumberError:
            yield RejectedRow("unreadable: an id is not a whole number", row.location)
        except ValueError:
            yield RejectedRow("unreadable: a time is not a time", row.location)


def _parse_mimic_iii_row(
    location: str, values: Sequence[str], parts: frozenset[str]
) -> NoteRow | RejectedRow:
    (
        row_id,
        subject_id,
        stay_id,
        chartdate,
        charttime,
        storetime,
        category,
        description,
        _,
        iserror,
        text,
    ) = values
    category = category.strip()
    if iserror.strip() == "1":
        return RejectedRow("marked as an error (ISERROR = 1)", location, is_unreadable=False)
    if parts and category not in parts:
        return RejectedRow("category not asked for", location, is_unreadable=False)
    moment = _choose_latest(_parse_time(storetime), _parse_time(charttime)) or _move_to_end_of_day(
        _parse_time(chartdate)
    )
    stay = _parse_whole_number(stay_id) if stay_id else None
    return NoteRow(
        str(_parse_whole_number(row_id)),
        _parse_whole_number(subject_id),
        stay,
        category or None,
        description.strip() or None,
        moment,
        text,
        location,
    )


def _parse_mimic_iv_row(
    location: str,
    values: Sequence[str],
    adjust_charttime: Callable[[datetime | None], datetime | None],
) -> NoteRow | RejectedRow:
    note_id, subject_id, stay_id, note_type, _, charttime, storetime, text = values
    if not note_id:
        return RejectedRow("unreadable: no note_id", location)
    moment = _choose_latest(_parse_time(storetime), adjust_charttime(_parse_time(charttime)))
    stay = _parse_whole_number(stay_id) if stay_id else None
    return NoteRow(
        note_id,
        _parse_whole_number(subject_id),
        stay,
        MIMIC_IV_NOTE_CATEGORIES.get(note_type, note_type or None),
        None,
        moment,
        text,
        location,
    )


def _parse_discharge_row(location: str, values: Sequence[str]) -> NoteRow | RejectedRow:
    return _parse_mimic_iv_row(location, values, _move_to_end_of_day)


def _parse_radiology_row(location: str, values: Sequence[str]) -> NoteRow | RejectedRow:
    return _parse_mimic_iv_row(location, values, _keep_charttime)


def _parse_whole_number(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise _NotWholeNumberError
    return int(value)


def _parse_time(value: str) -> datetime | None:
    return datetime.fromisoformat(value).replace(tzinfo=None) if value else None


def _move_to_end_of_day(moment: datetime | None) -> datetime | None:
    return datetime.combine(moment.date(), END_OF_DAY) if moment else None


def _keep_charttime(moment: datetime | None) -> datetime | None:
    return moment


def _choose_latest(first: datetime | None, second: datetime | None) -> datetime | None:
    if first is None or second is None:
        return first or second
    return max(first, second)


_MIMIC_IV_ROW_PARSERS: Mapping[str, NoteRowParser] = {
    "discharge": _parse_discharge_row,
    "radiology": _parse_radiology_row,
}
