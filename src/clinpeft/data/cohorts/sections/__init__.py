"""Discharge summary to admission note: what was known when the patient came, and nothing that happened after.

No public data set has the notes written at admission with every stay, so the note is simulated: eight sections of the discharge summary. They
were still written in retrospect (the present illness may tell the stay), which ``cohorts.audit`` measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from clinpeft.data.cohorts.sections import core2021
from clinpeft.data.cohorts.sections.core2021 import death_mention, without_death_phrase
from clinpeft.data.cohorts.sections.headings import (
    COURSE,
    HOLDS,
    HOLDS_WORDS,
    LATE,
    NAMES,
    OTHER,
    SECTION,
    SECTIONS,
    key,
)

__all__ = [
    "EMPTY",
    "NO_HISTORY",
    "STYLES",
    "Block",
    "Cut",
    "Cuts",
    "Style",
    "admission_note",
    "admission_notes",
    "blocks",
    "death_mention",
    "without_death_phrase",
]

Style = Literal["admission", "core-2021", "all"]

EMPTY = "empty text"
NO_HISTORY = "no chief complaint, present illness or medical history"


@dataclass(frozen=True)
class Cut:
    """What is left of a note, or the reason why nothing is; ``reason`` is empty when ``text`` is there."""

    text: str | None
    reason: str = ""


@dataclass(frozen=True)
class Cuts:
    """``Cut`` of many notes: ``text`` is ``large_string`` with null for what was dropped, ``reason`` is ``string`` with null for what was kept."""

    text: pa.Array
    reason: pa.Array


@dataclass(frozen=True)
class Block:
    """A piece of a note under one heading: the name of its section, ``""`` before the first heading."""

    name: str
    text: str


def admission_note(text: str, style: Style) -> Cut:
    """What of a discharge summary is read.

    Args:
        text: the note.
        style: ``admission``, the sections known at admission; ``core-2021``, the same by the published cutter; ``all``, the whole note.
    """
    if not text or text.isspace():
        return Cut(None, EMPTY)
    kept = STYLES[style](text)
    return Cut(kept) if kept is not None else Cut(None, NO_HISTORY)


def admission_notes(texts: pa.Array | pa.ChunkedArray, style: Style) -> Cuts:
    """``admission_note`` of every text, in order; a null text is an empty one."""
    cuts = [admission_note(text or "", style) for text in texts.to_pylist()]
    return Cuts(
        pa.array([cut.text for cut in cuts], pa.large_string()),
        pa.array([cut.reason or None for cut in cuts], pa.string()),
    )


_RULE = re.compile(r"^[ \t]*(?:={3,}|-{3,}|\*{3,})[ \t]*$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")
# An exam "on discharge" that goes on in the middle of a line; the rest of the section is given up.
_AT_DISCHARGE = re.compile(
    r"\b(?:on|at|upon|before|prior to|day of|time of)\s{1,4}(?:(?:the\s)?(?:day|time)\sof\s)?discharge\b"
    r"|\bdischarge\s{1,4}(?:physical|exam|pe\b|vital|vs\b)",
    re.IGNORECASE,
)


def _known_at_admission(text: str) -> str | None:
    """The sections of ``SECTIONS``, each under its title, those without text left out; None without any history."""
    found: dict[str, list[str]] = {section.title: [] for section in SECTIONS}
    for block in blocks(text):
        if block.name in found and (body := _tidy(block)):
            found[block.name].append(body)
    if not (found["CHIEF COMPLAINT"] or found["PRESENT ILLNESS"] or found["MEDICAL HISTORY"]):
        return None
    return "\n\n".join(
        f"{title}: " + "\n".join(bodies) for title, bodies in found.items() if bodies
    )


def _tidy(block: Block) -> str:
    """Without ruled lines and runs of empty ones; an exam ends where the exam at discharge begins."""
    text = block.text
    if block.name == "PHYSICAL EXAM" and (end := _AT_DISCHARGE.search(text)):
        text = text[: end.start()]
    return _BLANK_LINES.sub("\n", _RULE.sub("", text).strip())


STYLES: dict[str, Callable[[str], str | None]] = {
    "admission": _known_at_admission,
    "core-2021": core2021.cut,
    "all": str.strip,
}


# At the start of a line: up to 90 characters before a colon, or the whole of a short line.
_LINE = re.compile(r"^[^\S\n]*+(?P<heading>[^\s:][^\n:]{0,89}+)(?P<colon>:|$)", re.MULTILINE)
_COLON = re.compile(r":")
_WIDEST = 60  # characters of a heading in the middle of a line


@dataclass(frozen=True)
class _Heading:
    """A possible heading, from ``start`` to ``end`` with its colon."""

    start: int
    end: int
    text: str
    colon: bool
    line: bool


def blocks(text: str) -> Iterator[Block]:
    """The note cut at its headings, in order and in linear time.

    A heading of the tables counts at the start of a line (with a colon, or alone on it), with or without a blank line before, and in the middle of a
    line when a colon follows and it has two words or is an abbreviation in capitals. Any other line that holds nothing but a few words and a colon
    after a blank line ends a section that is known at admission, unless it names a part of it (``HEENT:`` in an exam).
    """
    note = text.replace("\r\n", "\n").replace("\r", "\n")
    name, start, after_course = "", 0, False
    for heading in _possible(note):
        found = _named(note, heading, name, after_course)
        if found is None:
            continue
        if start < heading.start:
            yield Block(name, note[start : heading.start])
        name, start, after_course = found, heading.end, after_course or found == COURSE
    yield Block(name, note[start:])


def _possible(note: str) -> Iterator[_Heading]:
    """Everything that may be a heading, in order."""
    past, colons = 0, _COLON.finditer(note)
    colon = next(colons, None)
    for line in _LINE.finditer(note):
        while colon and colon.start() < line.start("heading"):
            yield from _inline(note, past, colon.start())
            past, colon = colon.end(), next(colons, None)
        yield _Heading(
            line.start("heading"), line.end(), line["heading"], bool(line["colon"]), line=True
        )
        if line["colon"]:
            past, colon = line.end(), next(colons, None)
    while colon:
        yield from _inline(note, past, colon.start())
        past, colon = colon.end(), next(colons, None)


def _inline(note: str, past: int, colon: int) -> Iterator[_Heading]:
    """The longest heading of the tables that ends at a colon in the middle of a line."""
    begin = max(past, colon - _WIDEST, note.rfind("\n", past, colon) + 1)
    words = [
        (match.start() + begin, match.group()) for match in re.finditer(r"\S+", note[begin:colon])
    ]
    for start, word in words[-6:]:
        heading = note[start:colon]
        if key(heading) in NAMES and (start != words[-1][0] or (word.isupper() and len(word) >= 3)):
            yield _Heading(start, colon + 1, heading, colon=True, line=False)
            return


def _named(note: str, heading: _Heading, current: str, after_course: bool) -> str | None:
    """The name of the section that a heading opens; None when it opens none."""
    entry, section = key(heading.text), SECTION.get(current)
    if section and entry in section.inside:
        return None
    if not heading.colon and not _titled(heading.text):
        return None
    name = NAMES.get(entry) or (_held(entry) if heading.colon else None)
    if name in SECTION and after_course and entry not in LATE:
        return OTHER
    if name or not section or not heading.colon:
        return name
    return (
        OTHER
        if _stands_alone(note, heading, entry) and not section.inside.intersection(entry.split())
        else None
    )


def _titled(heading: str) -> bool:
    """Without a colon, only capitals make a heading of a line: a wrapped sentence may end in "medical history"."""
    return all(
        word[:1].isupper() or len(word) <= 3 or not word[:1].isalpha() for word in heading.split()
    )


def _held(entry: str) -> str | None:
    if entry.count(" ") >= HOLDS_WORDS:
        return None
    return next((name for phrase, name in HOLDS if phrase in entry), None)


def _stands_alone(note: str, heading: _Heading, entry: str) -> bool:
    """A few words and a colon between a blank line and a line end."""
    before, after = (
        note[max(0, heading.start - 40) : heading.start].rstrip(" \t"),
        note[heading.end : heading.end + 40].lstrip(" \t"),
    )
    worded = entry.replace(" ", "").isalpha() and entry.count(" ") < HOLDS_WORDS
    return heading.line and worded and before.endswith("\n\n") and after[:1] in ("", "\n")
