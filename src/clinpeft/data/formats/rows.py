"""Rows of any source -> batches of notes, with every row counted.

Every source yields ``NoteRow`` for a note and ``RejectedRow`` for a row that is not one. Only this
module counts rows, limits damage, makes note ids unique and builds Arrow batches. Memory: one batch
(1,024 notes or 16 million characters), and 8 bytes for each note id that was used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import NOTE_SCHEMA, Attrition
from clinpeft.data.formats.hashing import contains_sorted, hash_to_64_bits
from clinpeft.data.formats.hints import format_drop_reasons

NOTE_BATCH_SIZE = 1024
NOTE_BATCH_CHARACTERS = 16_000_000
DAMAGE_CHECK_INTERVAL_ROWS = 1_000  # a fraction of bad rows means little over fewer
UNREADABLE_PREFIX = "unreadable: "
"""How the reason of a damaged row begins; only damage counts towards ``max_bad_fraction``."""


class NoteRow(NamedTuple):
    """One note of a source; ``location`` is its file and row."""

    note_id: str
    subject_id: int
    stay_id: int | None
    category: str | None
    description: str | None
    available_at: datetime | None
    text: str
    location: str


class RejectedRow(NamedTuple):
    """A row of a table, or a piece of a book, that is left out.

    Attributes:
        reason: why; the same words are counted together. Begins with ``unreadable: `` for damage.
        location: its file and row, or its place in the book.
    """

    reason: str
    location: str

    @property
    def is_unreadable(self) -> bool:
        """Whether the row is damaged, as opposed to left out on purpose."""
        return self.reason.startswith(UNREADABLE_PREFIX)


def batch_notes(
    rows: Iterable[NoteRow | RejectedRow],
    attrition: Attrition,
    max_bad_fraction: float,
    source: str,
) -> Iterator[pa.RecordBatch]:
    """Yields the notes among ``rows`` in batches of ``NOTE_SCHEMA``.

    A note id that was used before is followed by ``#`` and its location, so that note ids are
    unique in the stream.

    Args:
        rows: as a source yields them.
        attrition: updated while the stream is consumed.
        max_bad_fraction: largest tolerated fraction of unreadable rows, checked every 1,000 rows
            and at the end.
        source: location of the source, for errors.

    Raises:
        SourceError: more than ``max_bad_fraction`` of the rows are unreadable, or no note remains.
    """
    notes: list[NoteRow] = []
    characters = unreadable = 0
    id_index = _NoteIdIndex()
    for row in rows:
        attrition.entered_rows += 1
        # A row may parse well and hold no usable note all the same.
        rejection = row if isinstance(row, RejectedRow) else _reject_note_row(row)
        if rejection is not None:
            unreadable += rejection.is_unreadable
            # Locations are recorded for damage only: there may be millions of intended drops.
            attrition.drop_rows(
                rejection.reason, location=rejection.location if rejection.is_unreadable else ""
            )
        elif isinstance(row, NoteRow):
            notes.append(row)
            characters += len(row.text)
        if attrition.entered_rows % DAMAGE_CHECK_INTERVAL_ROWS == 0:
            _check_damage(attrition, unreadable, max_bad_fraction, source)
        if len(notes) == NOTE_BATCH_SIZE or characters >= NOTE_BATCH_CHARACTERS:
            yield _build_note_batch(notes, id_index)
            notes, characters = [], 0
    _check_damage(attrition, unreadable, max_bad_fraction, source)
    if not attrition.kept_rows:
        message, hint = (
            f"none of {attrition.entered_rows:,} rows is a usable note: "
            f"{format_drop_reasons(attrition.dropped_rows)}",
            "check source.parts and source.columns",
        )
        if not attrition.entered_rows:
            message, hint = "there is a header and 0 rows", "give a file that holds notes"
        raise SourceError(message, location=source, hint=hint)
    if notes:
        yield _build_note_batch(notes, id_index)


def _reject_note_row(row: NoteRow) -> RejectedRow | None:
    """Returns why a parsed row is not a note; None for a note.

    NUL and bytes that are not UTF-8 are signs of damage or of another encoding. They are no
    characters of a note, so the row is rejected and never repaired.
    """
    for value in (row.text, row.note_id, row.category or "", row.description or ""):
        if "\0" in value:
            return RejectedRow("unreadable: NUL character", row.location)
        if not value.isascii():  # ASCII needs no check, and most notes are ASCII
            try:
                value.encode()
            except UnicodeEncodeError:  # a lone surrogate stands for a byte that is not UTF-8
                return RejectedRow("unreadable: not UTF-8", row.location)
    if not row.text or row.text.isspace():
        return RejectedRow("empty note", row.location)
    return None


def _check_damage(
    attrition: Attrition, unreadable_rows: int, max_bad_fraction: float, source: str
) -> None:
    """Raises a SourceError when too many of the rows so far are unreadable."""
    if unreadable_rows <= max_bad_fraction * attrition.entered_rows:
        return
    locations = "; ".join(
        f"{reason.removeprefix(UNREADABLE_PREFIX)} at {', '.join(examples)}"
        for reason, examples in attrition.locations.items()
    )
    hint = "repair these rows"
    if "unreadable: not UTF-8" in attrition.locations:
        # By far the most frequent cause: the whole file is in another encoding.
        hint = "convert the file first, such as: iconv -f LATIN1 -t UTF-8 old.csv > new.csv"
    raise SourceError(
        f"{unreadable_rows:,} of the first {attrition.entered_rows:,} rows cannot be read, "
        f"more than max_bad_fraction = {max_bad_fraction:g} allows",
        location=f"{source}: {locations}",
        hint=f"{hint}, or raise source.max_bad_fraction to continue without them",
    )


def _build_note_batch(rows: list[NoteRow], id_index: _NoteIdIndex) -> pa.RecordBatch:
    repeated = id_index.check_and_add([row.note_id for row in rows])
    columns = dict(zip(NoteRow._fields, zip(*rows, strict=True), strict=True))
    # The location makes a repeated id unique, and says which note is meant.
    columns["note_id"] = tuple(
        f"{row.note_id}#{row.location}" if is_repeated else row.note_id
        for row, is_repeated in zip(rows, repeated, strict=True)
    )
    return pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in NOTE_SCHEMA], schema=NOTE_SCHEMA
    )


class _NoteIdIndex:
    """The note ids used so far, at 8 bytes each.

    Sorted runs of 64-bit hashes that are merged as they grow: a set of strings would take over 100
    bytes for each note. A collision (once in 5 million corpora of 2.7 million notes) only makes
    one id longer.
    """

    def __init__(self) -> None:
        self.sorted_runs: list[NDArray[np.uint64]] = []

    def check_and_add(self, note_ids: list[str]) -> list[bool]:
        """Says for each id whether it was used before, in this call too, and adds all of them."""
        keys = hash_to_64_bits(note_id.encode() for note_id in note_ids)
        # np.unique returns the first position of each value, so the first use keeps its id.
        run, first_positions = np.unique(keys, return_index=True)
        used = np.ones(len(keys), dtype=bool)  # (ids,)
        used[first_positions] = False
        for earlier_run in self.sorted_runs:
            used |= contains_sorted(earlier_run, keys)
        # Merging only runs of similar length keeps their number logarithmic in that of the ids.
        while self.sorted_runs and len(self.sorted_runs[-1]) < 2 * len(run):
            run = np.union1d(self.sorted_runs.pop(), run)
        self.sorted_runs.append(run)
        return [bool(value) for value in used]
