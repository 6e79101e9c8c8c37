"""Discharge summary -> simulated admission note: what was known at admission, and nothing later.

No public data set has the notes written at admission for every stay, so the note is simulated from
eight sections of the discharge summary (van Aken et al. 2021, arXiv 2102.04110, section 3.1). They
were still written in retrospect (the present illness may describe the stay), which
``cohorts.leakage`` measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from clinpeft.data.cohorts.sections import core2021
from clinpeft.data.cohorts.sections.core2021 import mentions_death, remove_death_phrases
from clinpeft.data.cohorts.sections.headings import (
    ADMISSION_SECTIONS,
    ADMISSION_SECTIONS_BY_TITLE,
    HEADINGS_AFTER_COURSE,
    HOSPITAL_COURSE_SECTION,
    MAX_SECTION_HEADING_WORDS,
    OTHER_SECTION,
    SECTION_NAMES_BY_HEADING,
    SECTION_PHRASES,
    normalize_section_heading,
)

__all__ = [
    "EMPTY_TEXT_REASON",
    "NO_HISTORY_REASON",
    "SECTION_STYLES",
    "NoteExtract",
    "NoteSection",
    "SectionStyle",
    "extract_note_text",
    "mentions_death",
    "remove_death_phrases",
    "split_note_sections",
]

SectionStyle = Literal["admission", "core-2021", "all"]

EMPTY_TEXT_REASON = "empty text"
NO_HISTORY_REASON = "no chief complaint, present illness or medical history"


@dataclass(frozen=True)
class NoteExtract:
    """The text that is kept of a note, or None and the reason; ``reason`` is empty with a text."""

    text: str | None
    reason: str = ""


@dataclass(frozen=True)
class NoteSection:
    """A piece of a note under one heading.

    Attributes:
        name: of the section, ``""`` before the first heading.
        text: without the heading.
    """

    name: str
    text: str


def extract_note_text(text: str, section_style: SectionStyle) -> NoteExtract:
    """The text of a discharge summary that a model may read.

    Args:
        text: the note.
        section_style: ``admission``, the sections known at admission; ``core-2021``, the same as
            the published builder cuts them; ``all``, the whole note.
    """
    if not text or text.isspace():
        return NoteExtract(None, EMPTY_TEXT_REASON)
    extract = SECTION_STYLES[section_style](text)
    return NoteExtract(extract) if extract is not None else NoteExtract(None, NO_HISTORY_REASON)


_RULED_LINE = re.compile(r"^[ \t]*(?:={3,}|-{3,}|\*{3,})[ \t]*$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n")
# An exam "on discharge" that begins in the middle of a line; the rest of the section is dropped.
_DISCHARGE_EXAM = re.compile(
    r"\b(?:on|at|upon|before|prior to|day of|time of)\s{1,4}"
    r"(?:(?:the\s)?(?:day|time)\sof\s)?discharge\b"
    r"|\bdischarge\s{1,4}(?:physical|exam|pe\b|vital|vs\b)",
    re.IGNORECASE,
)


def _extract_admission_sections(text: str) -> str | None:
    """The sections of ``ADMISSION_SECTIONS`` that have text, each under its title.

    Ruled lines and runs of blank lines are removed; a physical exam ends where the exam at
    discharge begins. None without chief complaint, present illness and medical history.
    """
    bodies: dict[str, list[str]] = {section.title: [] for section in ADMISSION_SECTIONS}
    for section in split_note_sections(text):
        body = section.text
        if section.name not in bodies:
            continue
        if section.name == "PHYSICAL EXAM" and (discharge_exam := _DISCHARGE_EXAM.search(body)):
            body = body[: discharge_exam.start()]
        if body := _BLANK_LINES.sub("\n", _RULED_LINE.sub("", body).strip()):
            bodies[section.name].append(body)
    if not (bodies["CHIEF COMPLAINT"] or bodies["PRESENT ILLNESS"] or bodies["MEDICAL HISTORY"]):
        return None
    return "\n\n".join(f"{title}: " + "\n".join(parts) for title, parts in bodies.items() if parts)


SECTION_STYLES: dict[str, Callable[[str], str | None]] = {
    "admission": _extract_admission_sections,
    "core-2021": core2021.extract_core_2021_sections,
    "all": str.strip,
}


# At the start of a line: up to 90 characters before a colon, or the whole of a short line. The
# possessive quantifiers (Python 3.11) keep the search linear.
_HEADING_LINE = re.compile(
    r"^[^\S\n]*+(?P<heading>[^\s:][^\n:]{0,89}+)(?P<colon>:|$)", re.MULTILINE
)
_COLON = re.compile(r":")
_MAX_INLINE_HEADING_CHARACTERS = 60  # of a heading in the middle of a line
_MAX_INLINE_HEADING_WORDS = 6


@dataclass(frozen=True)
class _HeadingCandidate:
    """A possible heading, from ``start`` to ``end`` with its colon."""

    start: int
    end: int
    text: str
    has_colon: bool
    starts_line: bool


def split_note_sections(text: str) -> Iterator[NoteSection]:
    """Split a note at its headings, in order and in linear time.

    A heading of ``headings.py`` counts at the start of a line (with a colon, or alone on it), with
    or without a blank line before, and in the middle of a line when a colon follows and it has two
    words or is an abbreviation in capitals. Any other line that has only a few words and a colon
    after a blank line ends a section known at admission, unless it names a part of that section
    (``HEENT:`` in an exam).
    """
    # MIMIC-III has line feeds; hospitals ship all three line ends.
    note = text.replace("\r\n", "\n").replace("\r", "\n")
    name, start, after_course = "", 0, False
    for heading in _find_heading_candidates(note):
        next_name = _find_section_name(note, heading, name, after_course)
        if next_name is None:
            continue
        # Two headings in a row leave no text between them.
        if start < heading.start:
            yield NoteSection(name, note[start : heading.start])
        name, start = next_name, heading.end
        after_course = after_course or name == HOSPITAL_COURSE_SECTION
    yield NoteSection(name, note[start:])


def _find_heading_candidates(note: str) -> Iterator[_HeadingCandidate]:
    """Everything that may be a heading, in order.

    Starts of lines and colons are both walked once, in parallel: a colon that does not belong to
    the start of a line may end a heading in the middle of one.
    """
    previous_end, colons = 0, _COLON.finditer(note)
    colon = next(colons, None)
    for line in _HEADING_LINE.finditer(note):
        while colon and colon.start() < line.start("heading"):
            yield from _find_inline_heading(note, previous_end, colon.start())
            previous_end, colon = colon.end(), next(colons, None)
        start, has_colon = line.start("heading"), bool(line["colon"])
        yield _HeadingCandidate(start, line.end(), line["heading"], has_colon, starts_line=True)
        if has_colon:
            previous_end, colon = line.end(), next(colons, None)
    while colon:
        yield from _find_inline_heading(note, previous_end, colon.start())
        previous_end, colon = colon.end(), next(colons, None)


def _find_inline_heading(
    note: str, search_start: int, colon_start: int
) -> Iterator[_HeadingCandidate]:
    """The longest heading of ``headings.py`` that ends at a colon in the middle of a line."""
    begin = max(
        search_start,
        colon_start - _MAX_INLINE_HEADING_CHARACTERS,
        note.rfind("\n", search_start, colon_start) + 1,
    )
    words = [
        (match.start() + begin, match.group())
        for match in re.finditer(r"\S+", note[begin:colon_start])
    ]
    for start, word in words[-_MAX_INLINE_HEADING_WORDS:]:
        heading = note[start:colon_start]
        # A single word in the middle of a line is a heading only as an abbreviation: "HPI: ".
        is_single_word = start == words[-1][0]
        if normalize_section_heading(heading) in SECTION_NAMES_BY_HEADING and (
            not is_single_word or (word.isupper() and len(word) >= 3)
        ):
            yield _HeadingCandidate(
                start, colon_start + 1, heading, has_colon=True, starts_line=False
            )
            return


def _find_section_name(
    note: str, heading: _HeadingCandidate, current_section: str, after_course: bool
) -> str | None:
    """The name of the section that a heading opens; None when it opens none."""
    entry = normalize_section_heading(heading.text)
    # Only sections known at admission have inner headings; others end at any heading.
    section = ADMISSION_SECTIONS_BY_TITLE.get(current_section)
    if section and entry in section.inner_headings:
        return None
    # Without a colon, only capitals make a heading of a line: a wrapped sentence may end in
    # "medical history".
    if not heading.has_colon and not all(
        word[:1].isupper() or len(word) <= 3 or not word[:1].isalpha()
        for word in heading.text.split()
    ):
        return None
    name = SECTION_NAMES_BY_HEADING.get(entry)
    is_short = entry.count(" ") < MAX_SECTION_HEADING_WORDS
    if not name and heading.has_colon and is_short:
        name = next((name for phrase, name in SECTION_PHRASES if phrase in entry), None)
    if name in ADMISSION_SECTIONS_BY_TITLE and after_course and entry not in HEADINGS_AFTER_COURSE:
        return OTHER_SECTION
    if name or not section or not heading.has_colon:
        return name
    # A few words and a colon, alone between a blank line and a line end, and no part of the
    # section.
    before = note[max(0, heading.start - 40) : heading.start].rstrip(" \t")
    after = note[heading.end : heading.end + 40].lstrip(" \t")
    is_alone = heading.starts_line and before.endswith("\n\n") and after[:1] in ("", "\n")
    is_words = is_short and entry.replace(" ", "").isalpha()
    is_part = not section.inner_headings.isdisjoint(entry.split())
    return OTHER_SECTION if is_alone and is_words and not is_part else None
