"""Where the sections of a note begin, found by its headings, whatever they are called.

The rules are few on purpose, because heading conventions differ between hospitals: a recipe names
the sections that matter, and all other headings only have to end them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

MAX_HEADING_CHARACTERS = 60
MAX_HEADING_WORDS = 6

# A colon before a digit belongs to a time or a ratio. Possessive quantifiers (`*+`) keep the
# patterns linear in the length of a line.
_BEFORE_COLON = re.compile(r"\s*+(?P<name>[^\W\d_][^:]{0,59}):(?!\d)")
_AFTER_COMMA = re.compile(r",(?P<heading>[ \t]*+(?P<name>[^\s,:][^,:]{1,59}):(?!\d))")


@dataclass(frozen=True)
class HeadedSection:
    """A section of a note.

    Attributes:
        start: its first character, which is the first of its heading.
        name: its heading by ``normalize_heading_name``; empty before the first heading.
    """

    start: int
    name: str


@dataclass(frozen=True)
class _Heading:
    """A possible heading; ``stands_apart`` when it opens the note or follows a blank line."""

    start: int
    name: str
    stands_apart: bool


def normalize_heading_name(name: str) -> str:
    """Return a heading in the form in which headings are compared: lower case, no punctuation."""
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))


def split_headed_sections(text: str, names: Collection[str]) -> list[HeadedSection]:
    """Return the sections of a note in order, covering it whole; empty when it has no heading.

    A heading is a line of capitals, or up to six words and a colon at the start of a line, or
    capitals and a colon after a comma, for notes in which line ends became commas (MTSamples). A
    heading begins a section when it opens the note, follows a blank line, or is one of ``names``;
    other headings, such as ``HEENT:`` inside an examination, are part of their section. In notes
    without blank lines before headings the two cannot be distinguished, and every heading begins
    a section.

    Args:
        text: the note.
        names: normalized names of the headings that begin a section wherever they stand.
    """
    # a list, because whether blank lines separate sections is only known at the end of the note
    headings = list(_iterate_headings(text))
    first_character = len(text) - len(text.lstrip())
    has_blank_lines = any(h.stands_apart and h.start > first_character for h in headings)
    sections = [
        HeadedSection(heading.start, heading.name)
        for heading in headings
        if heading.stands_apart or not has_blank_lines or heading.name in names
    ]
    # text before the first heading is a section without a name
    return [HeadedSection(0, ""), *sections] if sections and sections[0].start > 0 else sections


def _iterate_headings(text: str) -> Iterator[_Heading]:
    """Yield all possible headings in order."""
    line_start, follows_blank = 0, True
    for line in text.splitlines(keepends=True):
        is_blank = line.isspace()
        if not is_blank:
            name = _match_line_heading(line)
            if name:
                yield _Heading(line_start, normalize_heading_name(name), follows_blank)
            # a heading after a comma inside the heading of the line would count twice
            heading_end = line.index(name) + len(name)  # 0 without a heading
            for match in _AFTER_COMMA.finditer(line):
                words = match["name"].split()
                is_heading = match["name"].isupper() and len(words) <= MAX_HEADING_WORDS
                if is_heading and match.start("heading") >= heading_end:
                    start = line_start + match.start("heading")
                    yield _Heading(start, normalize_heading_name(match["name"]), False)
        follows_blank = is_blank
        line_start += len(line)


def _match_line_heading(line: str) -> str:
    """Return the heading that a line begins with or consists of; empty when there is none."""
    match = _BEFORE_COLON.match(line)
    name = match["name"] if match else line.strip()
    # a line of capitals needs no colon, but one that ends in a period is a sentence
    is_capitals = name.isupper() and not name.endswith(".")
    # a comma before the colon is usually a sentence or a list, not a heading
    is_plain = match is not None and "," not in name
    is_short = len(name) <= MAX_HEADING_CHARACTERS and len(name.split()) <= MAX_HEADING_WORDS
    return name if (is_capitals or is_plain) and is_short else ""
