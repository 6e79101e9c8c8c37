"""Headings and bodies in reading order -> passages with their chapter, headings and kind.

The role of a part is recognized by its heading (``HEADING_ROLES``): references, indexes and front
matter are left out; a glossary holds definitions, a summary is about the section it is in. The
heading level of chapters differs between books: it is the highest that occurs more than once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks.passages import (
    BOOK_INDEX,
    CONTRIBUTOR_LIST,
    FRONT_MATTER,
    REFERENCE_LIST,
    TABLE_OF_CONTENTS,
    Passage,
    normalize_passage_text,
)


class BookHeading(NamedTuple):
    """A heading; ``level`` 1 is the highest."""

    level: int
    text: str
    location: str


class BookBody(NamedTuple):
    """Text below a heading; the fields are those of a passage."""

    kind: str
    text: str
    location: str
    title: str | None = None
    names: tuple[str, ...] = ()
    refers_to: tuple[str, ...] = ()


OutlineEvent = BookHeading | BookBody | RejectedRow


@dataclass(frozen=True)
class PartRole:
    """The role of a part of a book.

    Attributes:
        drop_reason: why the part is left out; empty where it is not.
        kind: of its passages; empty for plain text.
    """

    drop_reason: str = ""
    kind: str = ""


PLAIN_ROLE = PartRole()
# "Chapter 4.", "4.5", "IV -", before the title.
_HEADING_NUMBER_PATTERN = re.compile(
    r"^(?:(?:chapter|section|part|unit)\s+)?(?:\d+(?:\.\d+)*|[ivxlc]+\b)?[.:)\s–—-]*", re.IGNORECASE
)

HEADING_ROLES: tuple[tuple[str, PartRole], ...] = (
    (
        r"references?|bibliography|works cited|literature cited|citations|sources"
        r"|(further|suggested|additional|recommended) readings?",
        PartRole(REFERENCE_LIST),
    ),
    (r"(subject |author )?index", PartRole(BOOK_INDEX)),
    (
        r"(table of |brief |detailed )?contents"
        r"|list of (figures|tables|illustrations|abbreviations)",
        PartRole(TABLE_OF_CONTENTS),
    ),
    (
        r"preface( to .*)?|foreword|dedication|copyright( page)?|acknowledge?ments?|title page"
        r"|cover|half title|about (the|this) (authors?|book)",
        PartRole(FRONT_MATTER),
    ),
    (
        r"contributors?|contributing authors|senior contributing authors|reviewers",
        PartRole(CONTRIBUTOR_LIST),
    ),
    (r"glossary|key terms|terms and definitions|definitions", PartRole(kind="definition")),
    (
        r"(learning |chapter )?(objectives|outcomes)|learning goals|what you will learn",
        PartRole(kind="objective"),
    ),
    (
        r"(chapter |section )?summary|chapter review|summary of key points|key points"
        r"|key concepts|abstract",
        PartRole(kind="summary"),
    ),
    (
        r"(review|study|self-assessment|discussion|critical thinking) questions"
        r"|questions( and answers)?|self-assessment",
        PartRole(kind="question"),
    ),
)
_HEADING_ROLE_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), role) for pattern, role in HEADING_ROLES
)


def find_heading_role(title: str) -> PartRole:
    """Returns the role of the part under a heading; ``4.5 References`` is a reference list."""
    plain = normalize_passage_text(title).strip(" .:")
    # First with its number: the title may begin with what looks like one ("I. Index").
    for name in (plain, _HEADING_NUMBER_PATTERN.sub("", plain)):
        for pattern, role in _HEADING_ROLE_PATTERNS:
            if pattern.fullmatch(name):
                return role
    return PLAIN_ROLE


def is_lead_in(text: str) -> bool:
    """Whether a text only introduces a list."""
    return text.rstrip().endswith(":") and len(text) < 200


_LABEL = re.compile(r"\b(fig(?:ure|\.)?|table)\s*(\d+(?:[.\-–]\d+)*)", re.IGNORECASE)
# A number, and then a mark or a capital: "Table 1 lists what ..." is a sentence.
_CAPTION = re.compile(
    r"(?i:fig(?:ure|\.)?|table)\s*\d+(?:[.\-–]\d+)*[A-Za-z]?\s*(?:[.:|–—]\s+(?=[A-Za-z(])|\s(?=[A-Z(]))"
)
_QUESTION = re.compile(r"(?:q|question)\s*\d*\s*[:.]\s+", re.IGNORECASE)
_ANSWER = re.compile(r"(?:a|answer)\s*\d*\s*[:.]\s+", re.IGNORECASE)
_DEFINITION = re.compile(
    r"(?P<term>[^:–—]{1,80}?)\s*(?::\s+|\s[–—-]\s+|—)(?P<meaning>\S.*)", re.DOTALL
)


ENTRY_KIND_INCREMENTS = {"definition": 1, "question": 1, "answer": 0}
"""Kind of a list entry -> 1 where it begins a new entry; an answer belongs to its question."""


def find_figure_labels(text: str) -> tuple[str, ...]:
    """Returns the figures and tables that a text mentions, as ``figure 3.1``, once each."""
    labels = (
        f"{'table' if match[1].lower().startswith('t') else 'figure'} {match[2]}"
        for match in _LABEL.finditer(text)
    )
    return tuple(dict.fromkeys(labels))


@dataclass
class _OpenPart:
    """A part of a book whose end is not reached yet."""

    level: int
    title: str
    role: PartRole
    section: str
    part_count: int = 0


def find_chapter_level(headings: Iterable[BookHeading]) -> int:
    """Returns the heading level of chapters.

    It is the highest level with more than one plain heading; without such a level the highest of
    all; 0 without headings.
    """
    # Headings such as "Glossary" may be on the level of the book's parts.
    counts = Counter(
        heading.level for heading in headings if find_heading_role(heading.text) == PLAIN_ROLE
    )
    return min(
        (level for level, count in counts.items() if count > 1), default=min(counts, default=0)
    )


class BookOutline:
    """The nested headings above the current position in a book.

    Args:
        book: title of the book.
        chapter_level: heading level of chapters.
    """

    def __init__(self, book: str, chapter_level: int) -> None:
        self.book, self.chapter_level = book, chapter_level
        self.open_parts = [_OpenPart(0, book, PLAIN_ROLE, book)]
        self.question_count = self.entry_count = 0

    def enter_heading(self, heading: BookHeading) -> None:
        """Opens a part and closes the open ones of its level and below."""
        # The book itself has level 0 and is never closed.
        while self.open_parts[-1].level >= heading.level:
            self.open_parts.pop()
        above = self.open_parts[-1]
        above.part_count += 1
        role = find_heading_role(heading.text)
        # A subsection of a reference list is part of the list.
        inherited = above.role if role == PLAIN_ROLE else role
        self.open_parts.append(
            _OpenPart(
                heading.level,
                normalize_passage_text(heading.text),
                inherited,
                f"{above.section}/{above.part_count}",
            )
        )

    def build_passage(self, body: BookBody) -> Passage | RejectedRow:
        """Returns the body as a passage of the current part."""
        role = self.open_parts[-1].role
        if role.drop_reason:
            return RejectedRow(role.drop_reason, body.location)
        body = self._apply_role(self._recognize_kind(body), role)
        # Parts with a role, such as "Summary", are about the plain part above them.
        plain = [part for part in self.open_parts[1:] if part.role == PLAIN_ROLE]
        section = plain[-1].section if plain else self.book
        if body.kind in ENTRY_KIND_INCREMENTS:
            # Entries are sections of their own: the neighbors of a definition in a glossary say
            # nothing about it, nor does the chapter that holds the glossary.
            self.entry_count += ENTRY_KIND_INCREMENTS[body.kind]
            section = f"{self.open_parts[-1].section}/entry {self.entry_count}"
        labels = (label for label in find_figure_labels(body.text) if label not in body.names)
        return Passage(
            book=self.book,
            chapter=next((part.title for part in plain if part.level == self.chapter_level), None),
            heading_path=tuple(part.title for part in plain if part.level > self.chapter_level),
            kind=body.kind,
            section=section,
            location=body.location,
            title=body.title,
            text=body.text,
            names=body.names,
            refers_to=(*body.refers_to, *labels),
        )

    def _recognize_kind(self, body: BookBody) -> BookBody:
        """Recognizes captions, questions and answers by their first words."""
        text = normalize_passage_text(body.text)
        if body.kind == "paragraph":
            if _CAPTION.match(text):
                names = (*body.names, *find_figure_labels(text)[:1])
                return body._replace(kind="caption", names=names, text=text)
            if match := _QUESTION.match(text):
                self.question_count += 1
                names = (*body.names, f"question {self.question_count}")
                return body._replace(kind="question", text=text[match.end() :], names=names)
            # "A:" begins an answer only after a question.
            if self.question_count and (match := _ANSWER.match(text)):
                refers_to = (*body.refers_to, f"question {self.question_count}")
                return body._replace(kind="answer", text=text[match.end() :], refers_to=refers_to)
        return body

    def _apply_role(self, body: BookBody, role: PartRole) -> BookBody:
        """Returns a body with the kind that the role of its part gives it."""
        if body.kind not in ("paragraph", "list") or not role.kind:
            return body
        if is_lead_in(body.text):
            return body._replace(kind="lead-in")
        if role.kind != "definition":
            return body._replace(kind=role.kind)
        # A paragraph of a glossary that has no term stays a paragraph.
        match = _DEFINITION.fullmatch(normalize_passage_text(body.text))
        if not match:
            return body
        return body._replace(kind="definition", title=match["term"], text=match["meaning"])


def build_book_passages(
    events: Sequence[OutlineEvent], book: str
) -> Iterator[Passage | RejectedRow]:
    """Yields the passages of one book, in order.

    Args:
        events: headings and bodies in reading order.
        book: title of the book.
    """
    headings = (event for event in events if isinstance(event, BookHeading))
    outline = BookOutline(book, find_chapter_level(headings))
    role, level = PLAIN_ROLE, 0
    for event in events:
        if isinstance(event, RejectedRow):
            yield event
        elif isinstance(event, BookHeading):
            outline.enter_heading(event)
            # A plain heading below one with a role does not end the part.
            heading_role = find_heading_role(event.text)
            if heading_role != PLAIN_ROLE or event.level <= level:
                role, level = heading_role, event.level
        elif event.kind == "list" and role.kind in ("definition", "question"):
            # A list in a glossary is one definition a line.
            for line in event.text.split("\n"):
                yield outline.build_passage(event._replace(kind="paragraph", text=line))
        else:
            yield outline.build_passage(event)
