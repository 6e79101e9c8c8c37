"""Plain text -> headings and bodies: paragraphs between empty lines, headings by their form.

A heading is one line by itself that begins with *Chapter*, *Part* or *Appendix* and a number, or with a number such as ``3.2``, or is in capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.lines import join_hyphenated_lines, count_unbroken_words
from clinpeft.data.textbooks.outline import (
    PLAIN_ROLE,
    BookBody,
    OutlineEvent,
    BookHeading,
    build_book_passages,
    find_heading_role,
)
from clinpeft.data.textbooks.passages import RejectedPassage, Passage

_CHAPTER = re.compile(
    r"(?:chapter|part|appendix)\s+(?:\d+|[ivxlc]+|[a-z])\b[.:\s–—-]*(?P<title>.*)", re.IGNORECASE
)
_NUMBERED_HEADING = re.compile(r"(?P<number>\d{1,2}(?:\.\d{1,2}){0,4})\.?\s+(?P<title>[A-Z].*)")
_MAX_HEADING_CHARACTERS = 100
_BULLET = re.compile(r"\s*(?:[-*•–]|\(?\d{1,2}[.)])\s+(?=\S)")


def read_plain_text(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedPassage]:
    """The passages of a text file, a book called as the file is.

    Raises:
        SourceError: it is no text.
    """
    text = decode_text_bytes(path.read_bytes(), attrition, str(path))
    yield from build_book_passages(list(parse_plain_text(text)), path.stem)


def parse_plain_text(text: str) -> Iterator[OutlineEvent]:
    """Headings and paragraphs, each placed by the number of its first line."""
    known = count_unbroken_words(text.split("\n"))
    for first, lines in _split_blocks(text):
        location = f"line {first}"
        heading = _parse_heading(lines, location)
        if heading:
            yield heading
        elif all(_BULLET.match(line) for line in lines) and len(lines) > 1:
            yield BookBody(
                "list", "\n".join(_BULLET.sub("", line, count=1) for line in lines), location
            )
        else:
            yield BookBody("paragraph", join_hyphenated_lines(lines, known), location)


def _split_blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) between empty lines and page ends."""
    block: list[str] = []
    for number, line in enumerate([*text.replace("\f", "\n").split("\n"), ""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _parse_heading(lines: list[str], location: str) -> BookHeading | None:
    line = " ".join(line.strip() for line in lines)
    if len(lines) > 2 or len(line) > _MAX_HEADING_CHARACTERS or line.endswith((",", ";")):
        return None
    if match := _CHAPTER.fullmatch(line):
        return BookHeading(1, match["title"] or line, location)
    if len(lines) == 1 and not line.endswith(".") and (match := _NUMBERED_HEADING.fullmatch(line)):
        return BookHeading(1 + match["number"].count("."), match["title"], location)
    if len(lines) == 1 and (
        find_heading_role(line) != PLAIN_ROLE or (line.isupper() and len(line) > 3)
    ):
        return BookHeading(2, line, location)
    return None
