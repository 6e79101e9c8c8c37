"""Where the sections of a note begin, by its headings, whatever they are called.

The rules are few on purpose, since what is a heading differs between hospitals: a recipe names those that matter, and the rest only has to end them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

MAX_HEADING_CHARACTERS = 60
MAX_HEADING_WORDS = 6

# A colon before a digit is a time or a ratio.
_BEFORE_COLON = re.compile(r"\s*+(?P<name>[^\W\d_][^:]{0,59}):(?!\d)")
_AFTER_COMMA = re.compile(r",(?P<heading>[ \t]*+(?P<name>[^\s,:][^,:]{1,59}):(?!\d))")


@dataclass(frozen=True)
class HeadedSection:
    """A piece of a note: its first character, which is that of its heading, and the ``key`` of it; ``""`` before the first heading."""

    start: int
    name: str


@dataclass(frozen=True)
class _Heading:
    """A possible heading; ``stands_apart`` when it opens the note or stands below a blank line."""

    start: int
    name: str
    stands_apart: bool


def normalize_heading_name(name: str) -> str:
    """A heading's name as it is compared: lower case, without punctuation."""
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))


def split_headed_sections(text: str, names: Collection[str]) -> list[HeadedSection]:
    """The sections of a note in their order, from its first character to its last; empty when it has no heading.

    A heading is a line of capitals, or up to six words and a colon at the start of a line, or capitals and a colon behind a comma, as where line
    ends became commas (MTSamples). It begins a section when it opens the note, stands below a blank line, or is one of ``names``: what is called
    ``HEENT:`` inside an examination is a part of it. Notes without blank lines before headings do not tell the two apart, and every heading counts.

    Args:
        text: the note.
        names: the ``key`` of headings that begin a section wherever they stand.
    """
    found = list(_iterate_headings(text))
    opening = len(text) - len(text.lstrip())
    tells_apart = any(heading.stands_apart and heading.start > opening for heading in found)
    begun = [
        HeadedSection(heading.start, heading.name)
        for heading in found
        if heading.stands_apart or not tells_apart or heading.name in names
    ]
    return [HeadedSection(0, ""), *begun] if begun and begun[0].start > 0 else begun


def _iterate_headings(text: str) -> Iterator[_Heading]:
    """All possible headings in their order."""
    start, apart = 0, True
    for line in text.splitlines(keepends=True):
        blank = line.isspace()
        if not blank:
            first = _match_line_heading(line)
            if first:
                yield _Heading(start, normalize_heading_name(first), apart)
            behind = line.index(first) + len(first)
            yield from (
                _Heading(start + at, normalize_heading_name(name), False)
                for at, name in _iterate_comma_headings(line)
                if at >= behind
            )
        apart = blank
        start += len(line)


def _match_line_heading(line: str) -> str:
    """The heading that a line begins with, or is; empty when there is none."""
    before = _BEFORE_COLON.match(line)
    name = before["name"] if before else line.strip()
    capitals = name.isupper() and not name.endswith(".")
    plain = before is not None and "," not in name
    return (
        name
        if (capitals or plain)
        and len(name) <= MAX_HEADING_CHARACTERS
        and len(name.split()) <= MAX_HEADING_WORDS
        else ""
    )


def _iterate_comma_headings(line: str) -> Iterator[tuple[int, str]]:
    """(first character, name) of the headings behind a comma."""
    for found in _AFTER_COMMA.finditer(line):
        if found["name"].isupper() and len(found["name"].split()) <= MAX_HEADING_WORDS:
            yield found.start("heading"), found["name"]
