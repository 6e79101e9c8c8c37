"""Delimited text (CSV, TSV), plain or gzipped -> rows with their place, in bounded memory and with nothing lost in silence.

Why the standard library's ``csv`` and not an Arrow or DuckDB reader: every row must be accounted for by its number, the rest of a file kept
when a row is broken, and a quote that is never closed named where it began. Arrow's reader needs a fifth of the processor time, but takes an
open quote for text up to the next quote, other notes included, without a word, and stops a whole file at a wrong byte; DuckDB's needs a
third to half, refuses to begin, and puts the broken line into its error, which here is the text of a note. ``docs/results/sources.md`` has the
numbers: MIMIC-IV-Note takes minutes here, once, before hours of training.

A note is a quoted field of many lines, so a broken quote breaks more than a line. After one, reading starts again at the first following
line that starts like a row: with whole numbers in the columns that had them so far. That is one bad row, however many lines it had.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
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
from clinpeft.data.formats.rows import RejectedRow

MAX_FIELD_CHARACTERS = 16 * 1024 * 1024  # characters; the longest MIMIC note has under 100,000
READ_BLOCK_BYTES = 1 << 18
TYPE_INFERENCE_ROWS = 200  # enough to know which columns hold whole numbers
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class RawRow(NamedTuple):
    """One readable row: its place (file and row), its number from 1, its values."""

    location: str
    row_number: int
    values: Sequence[str]


@dataclass(frozen=True)
class DelimitedTable:
    """An open table: its column names, and its rows, read once."""

    header: list[str]
    rows: Iterator[RawRow | RejectedRow]


def read_text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, line ends kept, gzipped or not (told by its first bytes, not by its name), without a byte order mark.

    A byte that is not UTF-8 comes out as a lone surrogate, for ``stream`` to count.

    Raises:
        SourceError: the file is missing, empty, UTF-16, cut off, damaged, or has a line longer than 16 MiB.
    """
    head = _read_first_bytes(path)
    if not head:
        raise SourceError(
            "this file is empty", location=str(path), hint="give a file that has notes in it"
        )
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(
            "this file is UTF-16",
            location=str(path),
            hint="convert it first, such as: iconv -f UTF-16 -t UTF-8 old.csv > new.csv",
        )
    return itertools.chain.from_iterable(
        _read_line_blocks(path, is_gzipped=head[:2] == b"\x1f\x8b")
    )


@contextlib.contextmanager
def translate_gzip_errors(path: Path) -> Iterator[None]:
    """What goes wrong with a gzip file while it is read, as a ``SourceError`` that names the file."""
    try:
        yield
    except EOFError as error:
        raise SourceError(
            "this gzip file is cut off: its end is missing",
            location=str(path),
            hint="copy or download it again",
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(
            f"this gzip file is damaged: {error}",
            location=str(path),
            hint="copy or download it again",
        ) from error


def _read_first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(2)
    except OSError as error:
        raise SourceError(
            f"this file cannot be opened: {error.strerror}",
            location=str(path),
            hint="check source.path and its rights",
        ) from error


def _read_line_blocks(path: Path, is_gzipped: bool) -> Iterator[Iterable[str]]:
    """Whole lines, a block of the file at a time: asking a text file for each line costs three times as much."""
    decoder, rest, first = codecs.getincrementaldecoder("utf-8")("surrogateescape"), "", True
    try:
        with (
            translate_gzip_errors(path),
            path.open("rb") as file,
            gzip.GzipFile(fileobj=file) if is_gzipped else file as source,
        ):
            while block := source.read(READ_BLOCK_BYTES):
                text = rest + decoder.decode(block)
                text, first = text.removeprefix("\ufeff") if first else text, False
                end = (
                    max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
                )  # a last "\r" may be half of a "\r\n"
                yield io.StringIO(text[:end], newline="")
                rest = text[end:]
                if len(rest) > MAX_FIELD_CHARACTERS:
                    raise SourceError(
                        "a line is longer than 16 MiB",
                        location=str(path),
                        hint="check that this is a text file of notes",
                    )
            yield io.StringIO(rest + decoder.decode(b"", final=True), newline="")
    except OSError as error:
        raise SourceError(
            f"this file cannot be read on: {error.strerror}",
            location=str(path),
            hint="check the disk it is on",
        ) from error


def open_delimited_table(path: Path, delimiter: str) -> DelimitedTable:
    """A delimited file with a header line, quoted fields of several lines included.

    Raises:
        SourceError: what ``lines`` raises, or a header that cannot be parsed or names a column twice.
    """
    feed = _LineBuffer(read_text_lines(path))
    try:
        header = [name.strip() for name in next(_create_csv_reader(feed, delimiter), [])]
    except csv.Error as error:
        raise SourceError(
            "the header has a quote that is not closed",
            location=f"{path}: line 1",
            hint="repair the first line",
        ) from error
    twice = sorted({name for name in header if header.count(name) > 1 and name})
    if twice and _is_header(header):
        raise SourceError(
            f"the header names {twice[0]!r} twice",
            location=f"{path}: line 1",
            hint="give every column its own name",
        )
    return DelimitedTable(header, _read_rows(feed, path.name, delimiter, len(header)))


def find_column_positions(
    header: Sequence[str], purposes: Mapping[str, str], location: str, delimiter: str = ""
) -> dict[str, int]:
    """Where each needed column stands in ``header``; ``purposes`` is column -> what it is needed for.

    Raises:
        SourceError: one is missing; says what for, the nearest name, and the columns there are (unless they look like a row of notes).
    """
    at = {name: i for i, name in enumerate(header)}
    for name, purpose in purposes.items():
        if name not in at:
            raise SourceError(
                f"there is no column {name!r}, needed for {purpose}",
                location=f"{location}: header",
                hint=_format_missing_column_hint(name, header, delimiter),
            )
    return {name: at[name] for name in purposes}


def _format_missing_column_hint(name: str, header: Sequence[str], delimiter: str) -> str:
    for other, word in DELIMITER_NAMES.items():
        if (
            delimiter
            and other != delimiter
            and len(header) == 1
            and header[0].count(other)
            and _is_header(header[0].split(other))
        ):
            return f"its header is separated by {word} ({other!r}): save the file again with {DELIMITER_NAMES[delimiter]}"
    if not _is_header(header):
        return "the first row does not look like a header: add one"
    near = difflib.get_close_matches(name, header, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + "the columns are: " + ", ".join(header)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether these are names that may be shown: a file without a header has words of a note in its first row."""
    return all(
        0 < len(cell) <= 40 and len(cell.split()) <= 3 and not cell.isdigit() for cell in cells
    ) and bool(cells)


@dataclass
class _LineBuffer:
    """Lines for ``csv.reader`` that can be given back: those of the row being read are held until it proves whole."""

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

    def release_row(self) -> None:
        """The row is done with."""
        self.consumed_line_count += len(self.row_lines)
        self.row_lines.clear()


def _create_csv_reader(buffer: _LineBuffer, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    return csv.reader(iter(buffer), delimiter=delimiter, strict=True)


def _read_rows(
    buffer: _LineBuffer, name: str, delimiter: str, width: int
) -> Iterator[RawRow | RejectedRow]:
    buffer.release_row()
    reader, number, look = _create_csv_reader(buffer, delimiter), 0, _RowStartDetector(delimiter)
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            number += 1
            yield RejectedRow(
                _describe_quote_error(error), _format_row_location(name, number, buffer)
            )
            _skip_broken_row(buffer, look)
            reader = _create_csv_reader(buffer, delimiter)
            continue
        if values is None:
            return
        if values:  # a blank line is no row
            number += 1
            if len(values) == width:
                look.observe_row(values)
                yield RawRow(f"{name}: row {number}", number, values)
            else:
                yield RejectedRow(
                    "unreadable: wrong number of columns",
                    _format_row_location(name, number, buffer),
                )
        buffer.release_row()


def _format_row_location(name: str, number: int, buffer: _LineBuffer) -> str:
    return f"{name}: row {number} (line {buffer.consumed_line_count + 1})"


def _describe_quote_error(error: csv.Error) -> str:
    if "unexpected end" in str(error) or "larger than field limit" in str(error):
        return "unreadable: a quoted field is never closed"
    return "unreadable: a quote is not closed or not doubled"


def _skip_broken_row(buffer: _LineBuffer, detector: _RowStartDetector) -> None:
    """Give back the lines after the broken row's first, and pass over those that do not start like a row.

    Where nothing tells a row from a line of a note, all are given back: too many bad rows are counted then, never too few.
    """
    buffer.returned_lines.extendleft(reversed(buffer.row_lines[1:]))
    buffer.consumed_line_count += 1
    buffer.row_lines.clear()
    if not detector.integer_columns:
        return
    for line in buffer:
        if detector.is_row_start(line):
            buffer.returned_lines.appendleft(buffer.row_lines.pop())
            break
        buffer.consumed_line_count += 1
        buffer.row_lines.clear()


class _RowStartDetector:
    """What the start of a row looks like, learned from the first good rows: the columns before the first free text that are whole numbers."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter, self.row_count, self.first_text_column = delimiter, 0, 1 << 30
        self.integer_column_candidates: set[int] | None = None

    @property
    def integer_columns(self) -> list[int]:
        return sorted(
            column
            for column in self.integer_column_candidates or ()
            if column < self.first_text_column
        )

    def observe_row(self, values: Sequence[str]) -> None:
        if self.row_count >= TYPE_INFERENCE_ROWS:
            return
        self.row_count += 1
        whole = {i for i, value in enumerate(values) if value.isdigit()}
        self.integer_column_candidates = (
            whole
            if self.integer_column_candidates is None
            else self.integer_column_candidates & whole
        )
        marks = (self.delimiter, "\n", '"')
        self.first_text_column = min(
            [
                self.first_text_column,
                *(i for i, value in enumerate(values) if any(mark in value for mark in marks)),
            ]
        )

    def is_row_start(self, line: str) -> bool:
        cells = line.split(self.delimiter, max(self.integer_columns) + 1)
        return len(cells) > max(self.integer_columns) and all(
            cells[i].strip('"\r\n').isdigit() for i in self.integer_columns
        )
