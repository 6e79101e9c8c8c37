"""Delimited text (CSV, TSV), plain or gzipped -> rows with their location, in bounded memory.

Why the standard library's ``csv`` and not an Arrow or DuckDB reader: every row must be accounted
for by its number, the rest of a file survives a broken row, and an unclosed quote is located where
it begins. Arrow's reader needs a fifth of the processor time, but silently reads an open quote as
text up to the next quote, other notes included, and rejects a whole file for one wrong byte.
DuckDB's needs a third to half, refuses to start, and quotes the broken line in its error, which
here is the text of a note. ``docs/results/sources.md`` has the numbers: MIMIC-IV-Note takes minutes
here, once, before hours of training.

A note is a quoted field of many lines, so a broken quote breaks more than one line. After one,
reading resumes at the first following line that starts like a row, with whole numbers in the
columns that held them so far. That counts as one bad row, however many lines it had.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clinpeft.core.errors import SourceError
from clinpeft.data.formats.hints import join_hints, suggest_name
from clinpeft.data.formats.rows import RejectedRow

MAX_FIELD_CHARACTERS = 16 * 1024 * 1024  # the longest MIMIC note has under 100,000
READ_BLOCK_BYTES = 1 << 18
TYPE_INFERENCE_ROWS = 200  # enough to tell which columns hold whole numbers
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class RawRow(NamedTuple):
    """One readable row: its location (file and row), its number from 1, its values."""

    location: str
    row_number: int
    values: Sequence[str]


@dataclass(frozen=True)
class DelimitedTable:
    """An open table: its column names, and its rows, which can be iterated once."""

    header: list[str]
    rows: Iterator[RawRow | RejectedRow]


def read_text_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text file with their line ends, without a byte order mark.

    Gzip is recognized by the first bytes and not by the file name. A byte that is not UTF-8 becomes
    a lone surrogate, which ``batch_notes`` rejects and counts.

    Raises:
        SourceError: the file is missing, empty, UTF-16, truncated or damaged, or has a line longer
            than 16 MiB.
    """
    try:
        with path.open("rb") as file:
            signature = file.read(2)
    except OSError as error:
        raise SourceError(
            f"this file cannot be opened: {error.strerror}",
            location=str(path),
            hint="check source.path and its permissions",
        ) from error
    if not signature:
        raise SourceError(
            "this file is empty", location=str(path), hint="give a file that holds notes"
        )
    if signature in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise SourceError(
            "this file is UTF-16",
            location=str(path),
            hint="convert it first, such as: iconv -f UTF-16 -t UTF-8 old.csv > new.csv",
        )
    # The checks above run at the call, the blocks below as they are consumed.
    return itertools.chain.from_iterable(
        _read_line_blocks(path, is_gzipped=signature == b"\x1f\x8b")
    )


@contextlib.contextmanager
def translate_gzip_errors(path: Path) -> Iterator[None]:
    """Turns errors of reading a gzip file into a ``SourceError`` that names the file.

    Raises:
        SourceError: the file is truncated or damaged.
    """
    hint = "copy or download it again"
    try:
        yield
    except EOFError as error:
        message = "this gzip file is cut off: its end is missing"
        raise SourceError(message, location=str(path), hint=hint) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        message = f"this gzip file is damaged: {error}"
        raise SourceError(message, location=str(path), hint=hint) from error


def _read_line_blocks(path: Path, is_gzipped: bool) -> Iterator[Iterable[str]]:
    """Yields whole lines, one block of the file at a time.

    Iterating a text file line by line takes three times as long.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    remainder, is_first_block = "", True
    try:
        with (
            translate_gzip_errors(path),
            path.open("rb") as file,
            gzip.GzipFile(fileobj=file) if is_gzipped else file as source,
        ):
            while block := source.read(READ_BLOCK_BYTES):
                text = remainder + decoder.decode(block)
                if is_first_block:
                    text, is_first_block = text.removeprefix("\ufeff"), False
                # A "\r" at the very end may be half of a "\r\n", so it does not end a line yet.
                end = max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
                yield io.StringIO(text[:end], newline="")
                remainder = text[end:]
                # Without a limit, one file without line ends would fill the memory.
                if len(remainder) > MAX_FIELD_CHARACTERS:
                    raise SourceError(
                        "a line is longer than 16 MiB",
                        location=str(path),
                        hint="check that this is a text file of notes",
                    )
            yield io.StringIO(remainder + decoder.decode(b"", final=True), newline="")
    except OSError as error:
        raise SourceError(
            f"reading this file failed: {error.strerror}",
            location=str(path),
            hint="check the disk it is on",
        ) from error


def open_delimited_table(path: Path, delimiter: str) -> DelimitedTable:
    """Opens a delimited file with a header line; quoted fields may span several lines.

    Raises:
        SourceError: what ``read_text_lines`` raises, or a header that cannot be parsed or names a
            column twice.
    """
    buffer = _LineBuffer(read_text_lines(path))
    try:
        header = [name.strip() for name in next(buffer.create_csv_reader(delimiter), [])]
    except csv.Error as error:
        raise SourceError(
            "the header has a quote that is not closed",
            location=f"{path}: line 1",
            hint="repair the first line",
        ) from error
    repeated = sorted({name for name in header if header.count(name) > 1 and name})
    # Without a header, the first row holds words of a note, which no error may quote.
    if repeated and _looks_like_header(header):
        raise SourceError(
            f"the header names {repeated[0]!r} twice",
            location=f"{path}: line 1",
            hint="give every column its own name",
        )
    return DelimitedTable(header, _read_rows(buffer, path.name, delimiter, len(header)))


def find_column_positions(
    header: Sequence[str], purposes: Mapping[str, str], location: str, delimiter: str = ""
) -> dict[str, int]:
    """Returns the position in ``header`` of each needed column.

    Args:
        header: column names of the file.
        purposes: needed column -> what it is needed for.
        location: of the file, for errors.
        delimiter: with which the header was split; empty for formats without one.

    Raises:
        SourceError: a column is missing. The error says what it is needed for, the most similar
            name, and the columns of the file (unless they look like a row of notes).
    """
    # A repeated unnamed column keeps its last position; nothing asks for it.
    positions = {name: i for i, name in enumerate(header)}
    missing = next((name for name in purposes if name not in positions), None)
    if missing is None:
        return {name: positions[name] for name in purposes}
    hint = join_hints(
        suggest_name(missing, header, cutoff=0.5), f"the columns are: {', '.join(header)}"
    )
    if not _looks_like_header(header):
        hint = "the first row does not look like a header: add one"
    # A single column that another delimiter would split: the file was exported with that one.
    for other, word in DELIMITER_NAMES.items():
        is_other = delimiter and other != delimiter and len(header) == 1 and other in header[0]
        if is_other and _looks_like_header(header[0].split(other)):
            hint = (
                f"its header is separated by {word} ({other!r}): "
                f"save the file again with {DELIMITER_NAMES[delimiter]}"
            )
            break
    raise SourceError(
        f"there is no column {missing!r}, needed for {purposes[missing]}",
        location=f"{location}: header",
        hint=hint,
    )


def _looks_like_header(cells: Sequence[str]) -> bool:
    """Whether the cells are column names, which an error may quote, and not words of a note."""
    return bool(cells) and all(
        0 < len(cell) <= 40 and len(cell.split()) <= 3 and not cell.isdigit() for cell in cells
    )


@dataclass
class _LineBuffer:
    """Feeds lines to ``csv.reader`` and holds those of the current row, to return them if needed.

    Attributes:
        source: the lines of the file.
        returned_lines: lines to be read again, before ``source`` continues.
        row_lines: lines of the row that is being read.
        consumed_line_count: lines of all rows before it.
    """

    source: Iterator[str]
    returned_lines: deque[str] = field(default_factory=deque)
    row_lines: list[str] = field(default_factory=list)
    consumed_line_count: int = 0

    def __iter__(self) -> Iterator[str]:
        while self.returned_lines:
            self.row_lines.append(self.returned_lines.popleft())
            yield self.row_lines[-1]
        for line in self.source:
            self.row_lines.append(line)
            yield line

    def create_csv_reader(self, delimiter: str) -> Iterator[list[str]]:
        """Returns a strict reader of the lines; after an error a new one is needed."""
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        return csv.reader(iter(self), delimiter=delimiter, strict=True)

    def release_row(self) -> None:
        """Drops the lines of a finished row."""
        self.consumed_line_count += len(self.row_lines)
        self.row_lines.clear()

    def skip_broken_row(self, detector: _RowStartDetector) -> None:
        """Skips a broken row: its first line, and those after it that do not start like a row.

        Where no column distinguishes a row from a line of a note, only the first line is skipped:
        then too many bad rows are counted, never too few.
        """
        # The rest of the broken row may hold whole rows, which csv took for its text.
        self.returned_lines.extendleft(reversed(self.row_lines[1:]))
        self.consumed_line_count += 1
        self.row_lines.clear()
        if not detector.integer_columns:
            return
        for line in self:
            if detector.is_row_start(line):
                self.returned_lines.appendleft(self.row_lines.pop())
                break
            self.consumed_line_count += 1
            self.row_lines.clear()


def _read_rows(
    buffer: _LineBuffer, name: str, delimiter: str, width: int
) -> Iterator[RawRow | RejectedRow]:
    """Yields the rows after the header, ``width`` values each; broken ones as ``RejectedRow``."""
    buffer.release_row()  # the header
    reader, number = buffer.create_csv_reader(delimiter), 0
    detector = _RowStartDetector(delimiter)
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            number += 1
            location = f"{name}: row {number} (line {buffer.consumed_line_count + 1})"
            # The module csv tells its errors apart by their messages only.
            is_open = "unexpected end" in str(error) or "larger than field limit" in str(error)
            yield RejectedRow(
                "unreadable: a quoted field is never closed"
                if is_open
                else "unreadable: a quote is not closed or not doubled",
                location,
            )
            buffer.skip_broken_row(detector)
            reader = buffer.create_csv_reader(delimiter)
            continue
        if values is None:
            return
        if values:  # a blank line is not a row
            number += 1
            if len(values) == width:
                detector.observe_row(values)
                yield RawRow(f"{name}: row {number}", number, values)
            else:
                location = f"{name}: row {number} (line {buffer.consumed_line_count + 1})"
                yield RejectedRow("unreadable: wrong number of columns", location)
        buffer.release_row()


class _RowStartDetector:
    """Recognizes the start of a row by whole numbers in the columns before the first free text.

    The columns are inferred from the first good rows.
    """

    def __init__(self, delimiter: str) -> None:
        self.delimiter, self.row_count, self.first_text_column = delimiter, 0, 1 << 30
        self.integer_column_candidates: set[int] | None = None

    @property
    def integer_columns(self) -> list[int]:
        """Positions of the columns that held whole numbers in every row so far."""
        return sorted(
            column
            for column in self.integer_column_candidates or ()
            if column < self.first_text_column
        )

    def observe_row(self, values: Sequence[str]) -> None:
        """Updates the columns by one good row."""
        # Later rows cannot change what the columns hold, only cost time.
        if self.row_count >= TYPE_INFERENCE_ROWS:
            return
        self.row_count += 1
        integers = {i for i, value in enumerate(values) if value.isdigit()}
        if self.integer_column_candidates is not None:
            integers &= self.integer_column_candidates
        self.integer_column_candidates = integers
        # A delimiter or a line end inside a value would shift the columns after it when a line is
        # split without regard to quotes, as is_row_start does.
        marks = (self.delimiter, "\n", '"')
        for i, value in enumerate(values):
            if any(mark in value for mark in marks):
                self.first_text_column = min(self.first_text_column, i)
                break

    def is_row_start(self, line: str) -> bool:
        """Whether a line has whole numbers in all of ``integer_columns``."""
        # Only the cells up to the last integer column are needed, not the text behind it.
        last = max(self.integer_columns)
        cells = line.split(self.delimiter, last + 1)
        return len(cells) > last and all(
            cells[i].strip('"\r\n').isdigit() for i in self.integer_columns
        )
