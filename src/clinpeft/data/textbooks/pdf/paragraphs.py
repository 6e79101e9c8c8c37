"""Lines in reading order -> headings and paragraphs, over columns and pages."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from clinpeft.data.textbooks.lines import joined, vocabulary
from clinpeft.data.textbooks.outline import Body, Event, Heading
from clinpeft.data.textbooks.passages import tidy
from clinpeft.data.textbooks.pdf.characters import Entry
from clinpeft.data.textbooks.pdf.layout import Line, body_size

_LARGER = 1.12  # times the size of the text: a heading
_LONGEST_HEADING = 200
_INDENTING = 0.05  # share of indented lines from which a book is one that indents its paragraphs
_ENDS = re.compile(r"[.!?:][\"”’')\]]*\d*$")


def events(pages: Sequence[Sequence[Line]], outline: Sequence[Entry]) -> Iterator[Event]:
    """Headings and paragraphs, each placed by the page it begins on.

    Args:
        pages: lines in reading order, without running heads.
        outline: of the file; its titles are headings wherever they stand alone on their page, and its levels are believed.
    """
    lines = [line for page in pages for line in page]
    levels = _Levels(pages, outline)
    known = vocabulary(line.text for line in lines)
    block: list[Line] = []
    for line in lines:
        if block and _ends(block, line, levels):
            yield _event(block, levels, known)
            block = []
        block.append(line)
    if block:
        yield _event(block, levels, known)


class _Levels:
    """Which lines are headings, and of which level."""

    def __init__(self, pages: Sequence[Sequence[Line]], outline: Sequence[Entry]) -> None:
        self.body = body_size(pages)
        self.listed = {
            (_plain(entry.title), entry.page): entry.level for entry in outline if entry.title
        }
        lines = [line for page in pages for line in page]
        self.indents = sum(_indented(line) for line in lines) > _INDENTING * len(lines)
        self.deepest = max((entry.level for entry in outline), default=0)
        sizes = sorted(
            {line.size for page in pages for line in page if self._larger(line)}, reverse=True
        )
        self.ranks = {size: rank for rank, size in enumerate(sizes, start=1)}

    def _larger(self, line: Line) -> bool:
        return (
            line.size >= _LARGER * self.body
            and len(line.text) <= _LONGEST_HEADING
            and any(letter.isalpha() for letter in line.text)
        )

    def bold(self, line: Line) -> bool:
        """A short line by itself in bold, of the size of the text."""
        short = (
            line.right - line.left < 0.8 * (line.column_right - line.column_left)
            or line.column_right - line.column_left < 10 * line.size
        )
        return line.bold and short and not line.text.rstrip().endswith((".", ",", ";", ":"))

    def of(self, lines: Sequence[Line]) -> int:
        """The level of a heading made of these lines; 0 where they are none."""
        text = _plain(" ".join(line.text for line in lines))
        listed = self.listed.get((text, lines[0].page)) or self.listed.get((text, 0))
        if listed:
            return listed
        if self._larger(lines[0]):
            return self.deepest + self.ranks[lines[0].size]
        return self.deepest + len(self.ranks) + 1 if self.bold(lines[0]) else 0

    def style(self, line: Line) -> tuple[float, bool]:
        """What two lines of one heading share."""
        return (line.size, True) if self._larger(line) else (self.body, self.of([line]) > 0)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _ends(block: list[Line], line: Line, levels: _Levels) -> bool:
    """Whether ``line`` begins something new after the lines of ``block``."""
    last = block[-1]
    if levels.style(last) != levels.style(line):
        return True
    heading = levels.style(last)[1]
    if (last.page, last.column) != (line.page, line.column):
        return heading or not _goes_on(last, line, levels.indents)
    if last.y - line.y > (2.0 if heading else _pitch(block)) * max(last.size, line.size):
        return True
    if heading:
        return False
    if _indented(line) and _short(last):
        return True
    indented = _indented(line) and last.left - last.column_left < 0.4 * last.size
    return (indented or _short(last)) and bool(_ENDS.search(last.text.rstrip()))


def _indented(line: Line) -> bool:
    return 0.8 * line.size < line.left - line.column_left < 4 * line.size


def _short(line: Line) -> bool:
    """Whether a line ends well before the edge of its column, as the last of a paragraph does."""
    return line.right < line.column_right - 0.15 * (line.column_right - line.column_left)


def _pitch(block: list[Line]) -> float:
    """How many sizes further down the next line of the same paragraph may stand: a third more than the lines so far, 1.8 where there is only one."""
    steps = [
        (a.y - b.y) / a.size
        for a, b in itertools.pairwise(block)
        if (a.page, a.column) == (b.page, b.column)
    ]
    return 1.3 * min(steps) if steps else 1.8


def _goes_on(last: Line, line: Line, indents: bool) -> bool:
    """Whether a paragraph goes on in the next column or on the next page.

    Where a sentence ends with the column, a book that indents its paragraphs tells by the next line; of any other book a new one is taken to begin.
    """
    text = last.text.rstrip()
    if text.endswith("-") or _indented(line):
        return text.endswith("-")
    return not _ENDS.search(text) or (indents and not _short(last))


def _event(block: list[Line], levels: _Levels, known: Counter[str]) -> Event:
    location = f"page {block[0].page}"
    text = tidy(joined([line.text for line in block], known))
    level = levels.of(block) if len(text) <= _LONGEST_HEADING else 0
    return Heading(level, text, location) if level else Body("paragraph", text, location)
