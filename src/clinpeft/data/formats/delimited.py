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
from clinpeft.data.formats.rows import Lost

LONGEST_FIELD = 16 * 1024 * 1024  # characters; the longest MIMIC note has under 100,000
BLOCK_BYTES = 1 << 18
LEARNED_ROWS = 200  # enough to know which columns hold whole numbers
OTHER_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class Cells(NamedTuple):
    """One readable row: its place (file and row), its number from 1, its values."""

    location: str
    number: int
    values: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """An open table: its column names, and its rows, read once."""

    header: list[str]
    rows: Iterator[Cells | Lost]


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, line ends kept, gzipped or not (told by its first bytes, not by its name), without a byte order mark.

    A byte that is not UTF-8 comes out as a lone surrogate, for ``stream`` to count.

    Raises:
        SourceError: the file is missing, empty, UTF-16, cut off, damaged, or has a line longer than 16 MiB.
    """
    head = _first_bytes(path)
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
    return itertools.chain.from_iterable(_blocks(path, gzipped=head[:2] == b"\x1f\x8b"))


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
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


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(2)
    except OSError as error:
        raise SourceError(
            f"this file cannot be opened: {error.strerror}",
            location=str(path),
            hint="check source.path and its rights",
        ) from error


def _blocks(path: Path, gzipped: bool) -> Iterator[Iterable[str]]:
    """Whole lines, a block of the file at a time: asking a text file for each line costs three times as much."""
    decoder, rest, first = codecs.getincrementaldecoder("utf-8")("surrogateescape"), "", True
    try:
        with (
            damage_named(path),
            path.open("rb") as file,
            gzip.GzipFile(fileobj=file) if gzipped else file as source,
        ):
            while block := source.read(BLOCK_BYTES):
                text = rest + decoder.decode(block)
                text, first = text.removeprefix("\ufeff") if first else text, False
                end = (
                    max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
                )  # a last "\r" may be half of a "\r\n"
                yield io.StringIO(text[:end], newline="")
                rest = text[end:]
                if len(rest) > LONGEST_FIELD:
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


def sheet(path: Path, delimiter: str) -> Sheet:
    """A delimited file with a header line, quoted fields of several lines included.

    Raises:
        SourceError: what ``lines`` raises, or a header that cannot be parsed or names a column twice.
    """
    feed = _Feed(lines(path))
    try:
        header = [name.strip() for name in next(_reader(feed, delimiter), [])]
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
    return Sheet(header, _rows(feed, path.name, delimiter, len(header)))


def positions(
    header: Sequence[str], needed: Mapping[str, str], location: str, delimiter: str = ""
) -> dict[str, int]:
    """Where each needed column stands in ``header``; ``needed`` is column -> what it is needed for.

    Raises:
        SourceError: one is missing; says what for, the nearest name, and the columns there are (unless they look like a row of notes).
    """
    at = {name: i for i, name in enumerate(header)}
    for name, purpose in needed.items():
        if name not in at:
            raise SourceError(
                f"there is no column {name!r}, needed for {purpose}",
                location=f"{location}: header",
                hint=_hint(name, header, delimiter),
            )
    return {name: at[name] for name in needed}


def _hint(name: str, header: Sequence[str], delimiter: str) -> str:
    for other, word in OTHER_DELIMITERS.items():
        if (
            delimiter
            and other != delimiter
            and len(header) == 1
            and header[0].count(other)
            and _is_header(header[0].split(other))
        ):
            return f"its header is separated by {word} ({other!r}): save the file again with {OTHER_DELIMITERS[delimiter]}"
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
class _Feed:
    """Lines for ``csv.reader`` that can be given back: those of the row being read are held until it proves whole."""

    source: Iterator[str]
    returned: deque[str] = field(default_factory=deque)
    held: list[str] = field(default_factory=list)
    passed: int = 0

    def __iter__(self) -> Iterator[str]:
        while self.returned:
            self.held.append(self.returned.popleft())
            yield self.held[-1]
        for line in self.source:
            self.held.append(line)
            yield line

    def release(self) -> None:
        """The row is done with."""
        self.passed += len(self.held)
        self.held.clear()


def _reader(feed: _Feed, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(iter(feed), delimiter=delimiter, strict=True)


def _rows(feed: _Feed, name: str, delimiter: str, width: int) -> Iterator[Cells | Lost]:
    feed.release()
    reader, number, look = _reader(feed, delimiter), 0, _Look(delimiter)
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            number += 1
            yield Lost(_broken(error), _place(name, number, feed))
            _skip(feed, look)
            reader = _reader(feed, delimiter)
            continue
        if values is None:
            return
        if values:  # a blank line is no row
            number += 1
            if len(values) == width:
                look.learn(values)
                yield Cells(f"{name}: row {number}", number, values)
            else:
                yield Lost("unreadable: wrong number of columns", _place(name, number, feed))
        feed.release()


def _place(name: str, number: int, feed: _Feed) -> str:
    return f"{name}: row {number} (line {feed.passed + 1})"


def _broken(error: csv.Error) -> str:
    if "unexpected end" in str(error) or "larger than field limit" in str(error):
        return "unreadable: a quoted field is never closed"
    return "unreadable: a quote is not closed or not doubled"


def _skip(feed: _Feed, look: _Look) -> None:
    """Give back the lines after the broken row's first, and pass over those that do not start like a row.

    Where nothing tells a row from a line of a note, all are given back: too many bad rows are counted then, never too few.
    """
    feed.returned.extendleft(reversed(feed.held[1:]))
    feed.passed += 1
    feed.held.clear()
    if not look.numbers:
        return
    for line in feed:
        if look.starts(line):
            feed.returned.appendleft(feed.held.pop())
            break
        feed.passed += 1
        feed.held.clear()


class _Look:
    """What the start of a row looks like, learned from the first good rows: the columns before the first free text that are whole numbers."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter, self.rows, self.free = delimiter, 0, 1 << 30
        self.candidates: set[int] | None = None

    @property
    def numbers(self) -> list[int]:
        return sorted(column for column in self.candidates or () if column < self.free)

    def learn(self, values: Sequence[str]) -> None:
        if self.rows >= LEARNED_ROWS:
            return
        self.rows += 1
        whole = {i for i, value in enumerate(values) if value.isdigit()}
        self.candidates = whole if self.candidates is None else self.candidates & whole
        marks = (self.delimiter, "\n", '"')
        self.free = min(
            [
                self.free,
                *(i for i, value in enumerate(values) if any(mark in value for mark in marks)),
            ]
        )

    def starts(self, line: str) -> bool:
        cells = line.split(self.delimiter, max(self.numbers) + 1)
        return len(cells) > max(self.numbers) and all(
            cells[i].strip('"\r\n').isdigit() for i in self.numbers
        )
