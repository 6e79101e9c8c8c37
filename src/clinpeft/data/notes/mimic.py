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
from clinpeft.data.formats.delimited import Cells
from clinpeft.data.formats.rows import Lost, Row
from clinpeft.recipe import SourceSpec

IV_COLUMNS = (
    "note_id",
    "subject_id",
    "hadm_id",
    "note_type",
    "note_seq",
    "charttime",
    "storetime",
    "text",
)
III_COLUMNS = (
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
IV_CATEGORIES = {
    "DS": "Discharge summary",
    "AD": "Discharge addendum",
    "RR": "Radiology report",
    "AR": "Radiology addendum",
}
IV_PARTS = ("discharge", "radiology")
III_CATEGORIES = (
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

Reader = Callable[[str, Sequence[str]], Row | Lost]


class _NotANumber(ValueError):
    """A column that holds whole numbers holds something else here."""


def rows_iii(spec: SourceSpec, cache: Path) -> Iterator[Row | Lost]:
    """The rows of ``NOTEEVENTS.csv`` or ``.csv.gz``; ``spec.parts`` are categories. Rows marked ISERROR = 1 are left out and counted.

    Raises:
        RecipeError: no path, or a part that is no category of MIMIC-III.
        SourceError: the file is missing, lacks a column, or is damaged.
    """
    del cache
    parts = frozenset(_parts(spec, III_CATEGORIES))

    def read(location: str, values: Sequence[str]) -> Row | Lost:
        return _note_iii(location, values, parts)

    return _rows(files_iii(spec)[0], III_COLUMNS, read)


def rows_iv(spec: SourceSpec, cache: Path) -> Iterator[Row | Lost]:
    """The rows of ``discharge`` and ``radiology`` of MIMIC-IV-Note; ``spec.parts`` takes one of them.

    Raises:
        RecipeError: no path, or a part that is neither.
        SourceError: a file is missing, lacks a column, or is damaged.
    """
    del cache
    opened = [_rows(path, IV_COLUMNS, _READERS_IV[part]) for part, path in _files_iv(spec).items()]
    return itertools.chain.from_iterable(opened)


def files_iii(spec: SourceSpec) -> list[Path]:
    """``NOTEEVENTS.csv`` or ``.csv.gz``: the path itself or a file in that folder."""
    return [_found(_path(spec), "NOTEEVENTS")]


def files_iv(spec: SourceSpec) -> list[Path]:
    """The files of MIMIC-IV-Note that are read: the path itself, files in that folder, or in its ``note`` folder."""
    return list(_files_iv(spec).values())


def _files_iv(spec: SourceSpec) -> dict[str, Path]:
    parts, path = _parts(spec, IV_PARTS) or IV_PARTS, _path(spec)
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
    return {part: _found(folder, part) for part in parts}


def _path(spec: SourceSpec) -> Path:
    if spec.path is None:
        raise RecipeError(
            "source.path is missing",
            location="[source]",
            hint='name the folder of the data set: path = "$MIMIC"',
        )
    return spec.path


def _found(path: Path, stem: str) -> Path:
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
        ", or name in source.parts what there is" if stem in IV_PARTS else ""
    )
    raise SourceError(f"there is no {stem}.csv.gz and no {stem}.csv", location=str(path), hint=hint)


def _parts(spec: SourceSpec, known: Sequence[str]) -> tuple[str, ...]:
    for part in spec.parts:
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1, cutoff=0.4)
            hint = (
                f"did you mean {near[0]!r}? " if near else ""
            ) + f"there are: {', '.join(known)}"
            raise RecipeError(
                f"{spec.name} has no part {part!r}", location="source.parts", hint=hint
            )
    return spec.parts


def _rows(path: Path, columns: Sequence[str], read: Reader) -> Iterator[Row | Lost]:
    """``read`` on every row, its values in the order of ``columns``; the header is checked at once."""
    sheet = delimited.sheet(path, ",")
    header = [name.lower() for name in sheet.header]
    at = delimited.positions(
        header, dict.fromkeys(columns, "the layout of this data set"), str(path), ","
    )
    return _noted(sheet.rows, itemgetter(*(at[name] for name in columns)), read)


def _noted(
    rows: Iterator[Cells | Lost], ordered: Callable[[Sequence[str]], tuple[str, ...]], read: Reader
) -> Iterator[Row | Lost]:
    for row in rows:
        if isinstance(row, Lost):
            yield row
            continue
        try:
            yield read(row.location, ordered(row.values))
        except _NotANumber:
            yield Lost("unreadable: an id is not a whole number", row.location)
        except ValueError:
            yield Lost("unreadable: a time is not a time", row.location)


def _note_iii(location: str, values: Sequence[str], parts: frozenset[str]) -> Row | Lost:
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
        return Lost("marked as an error (ISERROR = 1)", location, unreadable=False)
    if parts and category not in parts:
        return Lost("category not asked for", location, unreadable=False)
    moment = _latest(_time(storetime), _time(charttime)) or _end_of_day(_time(chartdate))
    stay = _number(stay_id) if stay_id else None
    return Row(
        str(_number(row_id)),
        _number(subject_id),
        stay,
        category or None,
        description.strip() or None,
        moment,
        text,
        location,
    )


def _note_iv(
    location: str, values: Sequence[str], charted: Callable[[datetime | None], datetime | None]
) -> Row | Lost:
    note_id, subject_id, stay_id, note_type, _, charttime, storetime, text = values
    if not note_id:
        return Lost("unreadable: no note_id", location)
    moment = _latest(_time(storetime), charted(_time(charttime)))
    stay = _number(stay_id) if stay_id else None
    return Row(
        note_id,
        _number(subject_id),
        stay,
        IV_CATEGORIES.get(note_type, note_type or None),
        None,
        moment,
        text,
        location,
    )


def _discharge(location: str, values: Sequence[str]) -> Row | Lost:
    return _note_iv(location, values, _end_of_day)


def _radiology(location: str, values: Sequence[str]) -> Row | Lost:
    return _note_iv(location, values, _as_charted)


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise _NotANumber
    return int(value)


def _time(value: str) -> datetime | None:
    return datetime.fromisoformat(value).replace(tzinfo=None) if value else None


def _end_of_day(moment: datetime | None) -> datetime | None:
    return datetime.combine(moment.date(), END_OF_DAY) if moment else None


def _as_charted(moment: datetime | None) -> datetime | None:
    return moment


def _latest(first: datetime | None, second: datetime | None) -> datetime | None:
    if first is None or second is None:
        return first or second
    return max(first, second)


_READERS_IV: Mapping[str, Reader] = {"discharge": _discharge, "radiology": _radiology}
