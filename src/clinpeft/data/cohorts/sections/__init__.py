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
from clinpeft.data.cohorts.sections.core2021 import mentions_death, remove_death_phrases
from clinpeft.data.cohorts.sections.headings import (
    HOSPITAL_COURSE_SECTION,
    SECTION_PHRASES,
    MAX_SECTION_HEADING_WORDS,
    HEADINGS_AFTER_COURSE,
    SECTION_NAMES_BY_HEADING,
    OTHER_SECTION,
    ADMISSION_SECTIONS_BY_TITLE,
    ADMISSION_SECTIONS,
    normalize_section_heading,
)

__all__ = [
    "EMPTY_TEXT_REASON",
    "NO_HISTORY_REASON",
    "SECTION_STYLES",
    "NoteSection",
    "NoteExtract",
    "NoteExtracts",
    "SectionStyle",
    "extract_note_text",
    "extract_note_texts",
    "split_note_sections",
    "mentions_death",
    "remove_death_phrases",
]

SectionStyle = Literal["admission", "core-2021", "all"]

EMPTY_TEXT_REASON = "empty text"
NO_HISTORY_REASON = "no chief complaint, present illness or medical history"


@dataclass(frozen=True)
class NoteExtract:
    """What is left of a note, or the reason why nothing is; ``reason`` is empty when ``text`` is there."""

    text: str | None
    reason: str = ""


@dataclass(frozen=True)
class NoteExtracts:
    """``Cut`` of many notes: ``text`` is ``large_string`` with null for what was dropped, ``reason`` is ``string`` with null for what was kept."""

    text: pa.Array
    reason: pa.Array


@dataclass(frozen=True)
class NoteSection:
    """A piece of a note under one heading: the name of its section, ``""`` before the first heading."""

    name: str
    text: str


def extract_note_text(text: str, section_style: SectionStyle) -> NoteExtract:
    """What of a discharge summary is read.

    Args:
        text: the note.
        section_style: ``admission``, the sections known at admission; ``core-2021``, the same by the published cutter; ``all``, the whole note.
    """
    if not text or text.isspace():
        return NoteExtract(None, EMPTY_TEXT_REASON)
    kept = SECTION_STYLES[section_style](text)
    return NoteExtract(kept) if kept is not None else NoteExtract(None, NO_HISTORY_REASON)


def extract_note_texts(
    texts: pa.Array | pa.ChunkedArray, section_style: SectionStyle
) -> NoteExtracts:
    """``admission_note`` of every text, in order; a null text is an empty one."""
    cuts = [extract_note_text(text or "", section_style) for text in texts.to_pylist()]
    return NoteExtracts(
        pa.array([cut.text for cut in cuts], pa.large_string()),
        pa.array([cut.reason or None for cut in cuts], pa.string()),
    )


_RULED_LINE = re.compile(r"^[ \t]*(?:={3,}|-{3,}|\*{3,})[ \t]*$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")
# An exam "on discharge" that goes on in the middle of a line; the rest of the section is given up.
_DISCHARGE_EXAM = re.compile(
    r"\b(?:on|at|upon|before|prior to|day of|time of)\s{1,4}(?:(?:the\s)?(?:day|time)\sof\s)?discharge\b"
    r"|\bdischarge\s{1,4}(?:physical|exam|pe\b|vital|vs\b)",
    re.IGNORECASE,
)


def _extract_admission_sections(text: str) -> str | None:
    """The sections of ``SECTIONS``, each under its title, those without text left out; None without any history."""
    found: dict[str, list[str]] = {section.title: [] for section in ADMISSION_SECTIONS}
    for block in split_note_sections(text):
        if block.name in found and (body := _clean_section(block)):
            found[block.name].append(body)
    if not (found["CHIEF COMPLAINT"] or found["PRESENT ILLNESS"] or found["MEDICAL HISTORY"]):
        return None
    return "\n\n".join(
        f"{title}: " + "\n".join(bodies) for title, bodies in found.items() if bodies
    )


def _clean_section(section: NoteSection) -> str:
    """Without ruled lines and runs of empty ones; an exam ends where the exam at discharge begins."""
    text = section.text
    if section.name == "PHYSICAL EXAM" and (end := _DISCHARGE_EXAM.search(text)):
        text = text[: end.start()]
    return _BLANK_LINES.sub("\n", _RULED_LINE.sub("", text).strip())


SECTION_STYLES: dict[str, Callable[[str], str | None]] = {
    "admission": _extract_admission_sections,
    "core-2021": core2021.extract_core_2021_sections,
    "all": str.strip,
}


# At the start of a line: up to 90 characters before a colon, or the whole of a short line.
_HEADING_LINE = re.compile(
    r"^[^\S\n]*+(?P<heading>[^\s:][^\n:]{0,89}+)(?P<colon>:|$)", re.MULTILINE
)
_COLON = re.compile(r":")
_MAX_INLINE_HEADING_CHARACTERS = 60  # characters of a heading in the middle of a line


@dataclass(frozen=True)
class _HeadingCandidate:
    """A possible heading, from ``start`` to ``end`` with its colon."""

    start: int
    end: int
    text: str
    has_colon: bool
    starts_line: bool


def split_note_sections(text: str) -> Iterator[NoteSection]:
    """The note cut at its headings, in order and in linear time.

    A heading of the tables counts at the start of a line (with a colon, or alone on it), with or without a blank line before, and in the middle of a
    line when a colon follows and it has two words or is an abbreviation in capitals. Any other line that holds nothing but a few words and a colon
    after a blank line ends a section that is known at admission, unless it names a part of it (``HEENT:`` in an exam).
    """
    note = text.replace("\r\n", "\n").replace("\r", "\n")
    name, start, after_course = "", 0, False
    for heading in _find_heading_candidates(note):
        found = _find_section_name(note, heading, name, after_course)
        if found is None:
            continue
        if start < heading.start:
            yield NoteSection(name, note[start : heading.start])
        name, start, after_course = (
            found,
            heading.end,
            after_course or found == HOSPITAL_COURSE_SECTION,
        )
    yield NoteSection(name, note[start:])


def _find_heading_candidates(note: str) -> Iterator[_HeadingCandidate]:
    """Everything that may be a heading, in order."""
    past, colons = 0, _COLON.finditer(note)
    colon = next(colons, None)
    for line in _HEADING_LINE.finditer(note):
        while colon and colon.start() < line.start("heading"):
            yield from _find_inline_heading(note, past, colon.start())
            past, colon = colon.end(), next(colons, None)
        yield _HeadingCandidate(
            line.start("heading"),
            line.end(),
            line["heading"],
            bool(line["colon"]),
            starts_line=True,
        )
        if line["colon"]:
            past, colon = line.end(), next(colons, None)
    while colon:
        yield from _find_inline_heading(note, past, colon.start())
        past, colon = colon.end(), next(colons, None)


def _find_inline_heading(
    note: str, search_start: int, colon_start: int
) -> Iterator[_HeadingCandidate]:
    """The longest heading of the tables that ends at a colon in the middle of a line."""
    begin = max(
        search_start,
        colon_start - _MAX_INLINE_HEADING_CHARACTERS,
        note.rfind("\n", search_start, colon_start) + 1,
    )
    words = [
        (match.start() + begin, match.group())
        for match in re.finditer(r"\S+", note[begin:colon_start])
    ]
    for start, word in words[-6:]:
        heading = note[start:colon_start]
        if normalize_section_heading(heading) in SECTION_NAMES_BY_HEADING and (
            start != words[-1][0] or (word.isupper() and len(word) >= 3)
        ):
            yield _HeadingCandidate(
                start, colon_start + 1, heading, has_colon=True, starts_line=False
            )
            return


def _find_section_name(
    note: str, heading: _HeadingCandidate, current_section: str, after_course: bool
) -> str | None:
    """The name of the section that a heading opens; None when it opens none."""
    entry, section = (
        normalize_section_heading(heading.text),
        ADMISSION_SECTIONS_BY_TITLE.get(current_section),
    )
    if section and entry in section.inner_headings:
        return None
    if not heading.has_colon and not _is_title_case(heading.text):
        return None
    name = SECTION_NAMES_BY_HEADING.get(entry) or (
        _match_heading_phrase(entry) if heading.has_colon else None
    )
    if name in ADMISSION_SECTIONS_BY_TITLE and after_course and entry not in HEADINGS_AFTER_COURSE:
        return OTHER_SECTION
    if name or not section or not heading.has_colon:
        return name
    return (
        OTHER_SECTION
        if _is_standalone_heading(note, heading, entry)
        and not section.inner_headings.intersection(entry.split())
        else None
    )


def _is_title_case(heading: str) -> bool:
    """Without a colon, only capitals make a heading of a line: a wrapped sentence may end in "medical history"."""
    return all(
        word[:1].isupper() or len(word) <= 3 or not word[:1].isalpha() for word in heading.split()
    )


def _match_heading_phrase(normalized_heading: str) -> str | None:
    if normalized_heading.count(" ") >= MAX_SECTION_HEADING_WORDS:
        return None
    return next((name for phrase, name in SECTION_PHRASES if phrase in normalized_heading), None)


def _is_standalone_heading(note: str, heading: _HeadingCandidate, normalized_heading: str) -> bool:
    """A few words and a colon between a blank line and a line end."""
    before, after = (
        note[max(0, heading.start - 40) : heading.start].rstrip(" \t"),
        note[heading.end : heading.end + 40].lstrip(" \t"),
    )
    worded = (
        normalized_heading.replace(" ", "").isalpha()
        and normalized_heading.count(" ") < MAX_SECTION_HEADING_WORDS
    )
    return heading.starts_line and worded and before.endswith("\n\n") and after[:1] in ("", "\n")
