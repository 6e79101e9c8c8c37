"""Plain text -> headings and bodies: paragraphs between empty lines, headings by their form.

A heading is one line between empty ones that begins with *Chapter*, *Part* or *Appendix* and a
number, or with a number such as ``3.2``, or is in capitals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.schemas import Attrition
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.lines import count_unbroken_words, join_hyphenated_lines
from clinpeft.data.textbooks.outline import (
    PLAIN_ROLE,
    BookBody,
    BookHeading,
    OutlineEvent,
    build_book_passages,
    find_heading_role,
)
from clinpeft.data.textbooks.passages import Passage

_CHAPTER = re.compile(
    r"(?:chapter|part|appendix)\s+(?:\d+|[ivxlc]+|[a-z])\b[.:\s–—-]*(?P<title>.*)", re.IGNORECASE
)
_NUMBERED_HEADING = re.compile(r"(?P<number>\d{1,2}(?:\.\d{1,2}){0,4})\.?\s+(?P<title>[A-Z].*)")
_MAX_HEADING_CHARACTERS = 100
_BULLET = re.compile(r"\s*(?:[-*•–]|\(?\d{1,2}[.)])\s+(?=\S)")


def read_plain_text(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedRow]:
    """Yields the passages of a text file, a book named by the file.

    Raises:
        SourceError: it is not text.
    """
    text = decode_text_bytes(path.read_bytes(), attrition, str(path))
    yield from build_book_passages(list(parse_plain_text(text)), path.stem)


def parse_plain_text(text: str) -> Iterator[OutlineEvent]:
    """Yields headings and paragraphs, each located by the number of its first line."""
    # The words of the whole book decide which hyphens are real.
    word_counts = count_unbroken_words(text.split("\n"))
    block: list[str] = []
    # A form feed ends a page and with it a block; an empty line at the end closes the last one.
    for number, line in enumerate([*text.replace("\f", "\n").split("\n"), ""], start=1):
        if line.strip():
            block.append(line)
            continue
        if not block:
            continue
        location = f"line {number - len(block)}"
        heading = parse_plain_text_heading(block, location)
        if heading:
            yield heading
        elif len(block) > 1 and all(_BULLET.match(item) for item in block):
            items = (_BULLET.sub("", item, count=1) for item in block)
            yield BookBody("list", "\n".join(items), location)
        else:
            yield BookBody("paragraph", join_hyphenated_lines(block, word_counts), location)
        block = []


def parse_plain_text_heading(lines: list[str], location: str) -> BookHeading | None:
    """Returns the heading that a block of lines is; None for other text."""
    line = " ".join(line.strip() for line in lines)
    if len(lines) > 2 or len(line) > _MAX_HEADING_CHARACTERS or line.endswith((",", ";")):
        return None
    # "Chapter 3" alone keeps its number as title.
    if match := _CHAPTER.fullmatch(line):
        return BookHeading(1, match["title"] or line, location)
    if len(lines) > 1:  # only the title of a chapter may take two lines
        return None
    # A numbered line that ends in a full stop is an item of a list.
    if not line.endswith(".") and (match := _NUMBERED_HEADING.fullmatch(line)):
        return BookHeading(1 + match["number"].count("."), match["title"], location)
    if find_heading_role(line) != PLAIN_ROLE or (line.isupper() and len(line) > 3):
        return BookHeading(2, line, location)
    return None
