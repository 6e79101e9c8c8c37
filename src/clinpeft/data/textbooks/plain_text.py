"""Plain text -> headings and bodies: paragraphs between empty lines, headings by their form.

A heading is one line by itself that begins with *Chapter*, *Part* or *Appendix* and a number, or with a number such as ``3.2``, or is in capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks.encodings import decoded
from clinpeft.data.textbooks.lines import joined, vocabulary
from clinpeft.data.textbooks.outline import PLAIN, Body, Event, Heading, passages, role_of
from clinpeft.data.textbooks.passages import Lost, Passage

_CHAPTER = re.compile(
    r"(?:chapter|part|appendix)\s+(?:\d+|[ivxlc]+|[a-z])\b[.:\s–—-]*(?P<title>.*)", re.IGNORECASE
)
_NUMBERED = re.compile(r"(?P<number>\d{1,2}(?:\.\d{1,2}){0,4})\.?\s+(?P<title>[A-Z].*)")
_LONGEST_HEADING = 100
_BULLET = re.compile(r"\s*(?:[-*•–]|\(?\d{1,2}[.)])\s+(?=\S)")


def read(path: Path, attrition: Attrition) -> Iterator[Passage | Lost]:
    """The passages of a text file, a book called as the file is.

    Raises:
        SourceError: it is no text.
    """
    text = decoded(path.read_bytes(), attrition, str(path))
    yield from passages(list(events(text)), path.stem)


def events(text: str) -> Iterator[Event]:
    """Headings and paragraphs, each placed by the number of its first line."""
    known = vocabulary(text.split("\n"))
    for first, lines in _blocks(text):
        location = f"line {first}"
        heading = _heading(lines, location)
        if heading:
            yield heading
        elif all(_BULLET.match(line) for line in lines) and len(lines) > 1:
            yield Body(
                "list", "\n".join(_BULLET.sub("", line, count=1) for line in lines), location
            )
        else:
            yield Body("paragraph", joined(lines, known), location)


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) between empty lines and page ends."""
    block: list[str] = []
    for number, line in enumerate([*text.replace("\f", "\n").split("\n"), ""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _heading(lines: list[str], location: str) -> Heading | None:
    line = " ".join(line.strip() for line in lines)
    if len(lines) > 2 or len(line) > _LONGEST_HEADING or line.endswith((",", ";")):
        return None
    if match := _CHAPTER.fullmatch(line):
        return Heading(1, match["title"] or line, location)
    if len(lines) == 1 and not line.endswith(".") and (match := _NUMBERED.fullmatch(line)):
        return Heading(1 + match["number"].count("."), match["title"], location)
    if len(lines) == 1 and (role_of(line) != PLAIN or (line.isupper() and len(line) > 3)):
        return Heading(2, line, location)
    return None
