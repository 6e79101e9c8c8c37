"""Rows of any source -> batches of notes, counted: what enters, what is kept, what is dropped and why, where the damage is.

Every source yields ``Row`` for a note and ``Lost`` for what is not one; this file alone counts, refuses, names twins apart and makes Arrow
batches. Memory: one batch (1,024 notes or 16 million characters), and 8 bytes a note to know the note ids that were used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import NOTE_SCHEMA, Attrition

NOTE_BATCH_SIZE = 1024
NOTE_BATCH_CHARACTERS = 16_000_000
DAMAGE_CHECK_INTERVAL_ROWS = 1_000  # a share of bad rows means nothing before so many


class NoteRow(NamedTuple):
    """One note as it was read; ``location`` is its file and row."""

    note_id: str
    subject_id: int
    stay_id: int | None
    category: str | None
    description: str | None
    available_at: datetime | None
    text: str
    location: str


class RejectedRow(NamedTuple):
    """A row that is no note: unreadable (damage, limited by ``max_bad_fraction``) or left out on purpose."""

    reason: str
    location: str
    is_unreadable: bool = True


def batch_notes(
    rows: Iterable[NoteRow | RejectedRow],
    attrition: Attrition,
    max_bad_fraction: float,
    source: str,
) -> Iterator[pa.RecordBatch]:
    """The notes among ``rows`` in batches of ``tables.NOTE``, counted into ``attrition`` as they pass.

    A note id that was used before is followed by ``#`` and its place, so that note ids are unique in the stream.

    Raises:
        SourceError: more than ``max_bad_fraction`` of the rows are unreadable (looked at every 1,000 rows, and at the end), or no note is left.
    """
    kept: list[NoteRow] = []
    characters = unreadable = 0
    seen = _NoteIdIndex()
    for row in rows:
        attrition.entered_rows += 1
        lost = row if isinstance(row, RejectedRow) else _check_note_row(row)
        if lost is not None:
            unreadable += lost.is_unreadable
            attrition.drop_rows(lost.reason, location=lost.location if lost.is_unreadable else "")
        elif isinstance(row, NoteRow):
            kept.append(row)
            characters += len(row.text)
        if attrition.entered_rows % DAMAGE_CHECK_INTERVAL_ROWS == 0:
            _check_damage(attrition, unreadable, max_bad_fraction, source)
        if len(kept) == NOTE_BATCH_SIZE or characters >= NOTE_BATCH_CHARACTERS:
            yield _build_note_batch(kept, seen)
            kept, characters = [], 0
    _check_damage(attrition, unreadable, max_bad_fraction, source)
    _check_not_empty(attrition, source)
    if kept:
        yield _build_note_batch(kept, seen)


def _check_note_row(row: NoteRow) -> RejectedRow | None:
    """Why a row that was read is no note all the same.

    A NUL or a byte that is not UTF-8 is no character of a note but the mark of damage or of another encoding, so the row is not repaired.
    """
    for value in (row.text, row.note_id, row.category or "", row.description or ""):
        if "\0" in value:
            return RejectedRow("unreadable: NUL character", row.location)
        if not value.isascii() and not _is_unicode(value):
            return RejectedRow("unreadable: not UTF-8", row.location)
    return (
        None
        if row.text and not row.text.isspace()
        else RejectedRow("empty note", row.location, is_unreadable=False)
    )


def _is_unicode(value: str) -> bool:
    """False for a lone surrogate, which is how a byte that is not UTF-8 was read."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_damage(
    attrition: Attrition, unreadable: int, max_bad_fraction: float, source: str
) -> None:
    if unreadable <= max_bad_fraction * attrition.entered_rows:
        return
    places = "; ".join(
        f"{reason.removeprefix('unreadable: ')} at {', '.join(found)}"
        for reason, found in attrition.locations.items()
    )
    foreign = "unreadable: not UTF-8" in attrition.locations
    hint = (
        "convert the file first, such as: iconv -f LATIN1 -t UTF-8 old.csv > new.csv"
        if foreign
        else "repair these rows"
    )
    raise SourceError(
        f"{unreadable:,} of the first {attrition.entered_rows:,} rows cannot be read, more than max_bad_fraction = {max_bad_fraction:g} allows",
        location=f"{source}: {places}",
        hint=f"{hint}, or raise source.max_bad_fraction to go on without them",
    )


def _check_not_empty(attrition: Attrition, source: str) -> None:
    if attrition.kept_rows:
        return
    if not attrition.entered_rows:
        raise SourceError(
            "there is a header and not one row",
            location=source,
            hint="give a file that has notes in it",
        )
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in attrition.dropped_rows.items())
    raise SourceError(
        f"not one note is left of {attrition.entered_rows:,} rows: {reasons}",
        location=source,
        hint="check source.parts and source.columns",
    )


def _build_note_batch(rows: list[NoteRow], id_index: _NoteIdIndex) -> pa.RecordBatch:
    used = id_index.check_and_add([row.note_id for row in rows])
    columns = dict(zip(NoteRow._fields, zip(*rows, strict=True), strict=True))
    columns["note_id"] = tuple(
        f"{row.note_id}#{row.location}" if old else row.note_id
        for row, old in zip(rows, used, strict=True)
    )
    return pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in NOTE_SCHEMA], schema=NOTE_SCHEMA
    )


class _NoteIdIndex:
    """Which note ids were used, at 8 bytes each: sorted runs of 64-bit hashes, merged as they grow, since a set of strings would take over
    100 bytes a note. A chance collision (once in 5 million corpora of 2.7 million notes) only makes one id longer."""

    def __init__(self) -> None:
        self.sorted_runs: list[NDArray[np.uint64]] = []

    def check_and_add(self, note_ids: list[str]) -> list[bool]:
        """For each id whether it was there before; all are remembered."""
        keys = np.array([_hash_note_id(note_id) for note_id in note_ids], dtype=np.uint64)
        run, first = np.unique(keys, return_index=True)
        used = np.ones(len(keys), dtype=bool)
        used[first] = False
        for old in self.sorted_runs:
            used |= old[np.minimum(np.searchsorted(old, keys), len(old) - 1)] == keys
        self._merge_run(run)
        return [bool(value) for value in used]

    def _merge_run(self, run: NDArray[np.uint64]) -> None:
        while self.sorted_runs and len(self.sorted_runs[-1]) < 2 * len(run):
            run = np.union1d(self.sorted_runs.pop(), run)
        self.sorted_runs.append(run)


def _hash_note_id(note_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(note_id.encode(), digest_size=8).digest(), "little")
