"""Headings and bodies in reading order -> passages that know their chapter, their headings and what they are.

What a part of a book is, is read from its heading (``ROLES``): references, indexes and front matter are left out; a glossary holds definitions, a
summary is about the section it stands in. Which level of heading is a chapter differs between books: it is the highest that occurs more than once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clinpeft.data.textbooks.passages import (
    TABLE_OF_CONTENTS,
    CONTRIBUTOR_LIST,
    FRONT_MATTER,
    BOOK_INDEX,
    REFERENCE_LIST,
    RejectedPassage,
    Passage,
    normalize_passage_text,
)


class BookHeading(NamedTuple):
    """A heading; ``level`` 1 is the highest."""

    level: int
    text: str
    location: str


class BookBody(NamedTuple):
    """What stands below a heading; the fields are those of a passage."""

    kind: str
    text: str
    location: str
    title: str | None = None
    names: tuple[str, ...] = ()
    refers_to: tuple[str, ...] = ()


OutlineEvent = BookHeading | BookBody | RejectedPassage


@dataclass(frozen=True)
class PartRole:
    """What a part of a book is for: left out for the reason ``drop_reason``, or made of ``kind``; neither, for plain text."""

    drop_reason: str = ""
    kind: str = ""


PLAIN_ROLE = PartRole()
_HEADING_NUMBER_PATTERN = re.compile(
    r"^(?:(?:chapter|section|part|unit)\s+)?(?:\d+(?:\.\d+)*|[ivxlc]+\b)?[.:)\s–—-]*", re.IGNORECASE
)

HEADING_ROLES: tuple[tuple[str, PartRole], ...] = (
    (
        r"references?|bibliography|works cited|literature cited|(further|suggested|additional|recommended) readings?|citations|sources",
        PartRole(REFERENCE_LIST),
    ),
    (r"(subject |author )?index", PartRole(BOOK_INDEX)),
    (
        r"(table of |brief |detailed )?contents|list of (figures|tables|illustrations|abbreviations)",
        PartRole(TABLE_OF_CONTENTS),
    ),
    (
        r"preface( to .*)?|foreword|dedication|copyright( page)?|acknowledge?ments?|title page|cover|half title|about (the|this) (authors?|book)",
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
        r"(chapter |section )?summary|chapter review|summary of key points|key points|key concepts|abstract",
        PartRole(kind="summary"),
    ),
    (
        r"(review|study|self-assessment|discussion|critical thinking) questions|questions( and answers)?|self-assessment",
        PartRole(kind="question"),
    ),
)
_HEADING_ROLE_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), role) for pattern, role in HEADING_ROLES
)


def find_heading_role(title: str) -> PartRole:
    """What the part under this heading is for, its number left aside: ``4.5 References`` is a reference list."""
    plain = normalize_passage_text(title).strip(" .:")
    for name in (plain, _HEADING_NUMBER_PATTERN.sub("", plain)):
        for pattern, role in _HEADING_ROLE_PATTERNS:
            if pattern.fullmatch(name):
                return role
    return PLAIN_ROLE


def is_lead_in(text: str) -> bool:
    """Whether a text only announces a list."""
    return text.rstrip().endswith(":") and len(text) < 200


_LABEL = re.compile(r"\b(fig(?:ure|\.)?|table)\s*(\d+(?:[.\-–]\d+)*)", re.IGNORECASE)
_CAPTION = re.compile(
    r"(?i:fig(?:ure|\.)?|table)\s*\d+(?:[.\-–]\d+)*[A-Za-z]?\s*(?:[.:|–—]\s+(?=[A-Za-z(])|\s(?=[A-Z(]))"
)
"""A number, and then a mark or a capital: *Table 1 lists what* is a sentence."""
_QUESTION = re.compile(r"(?:q|question)\s*\d*\s*[:.]\s+", re.IGNORECASE)
_ANSWER = re.compile(r"(?:a|answer)\s*\d*\s*[:.]\s+", re.IGNORECASE)
_DEFINITION = re.compile(
    r"(?P<term>[^:–—]{1,80}?)\s*(?::\s+|\s[–—-]\s+|—)(?P<meaning>\S.*)", re.DOTALL
)


ENTRY_KIND_INCREMENTS = {"definition": 1, "question": 1, "answer": 0}
"""Kinds that stand in lists of their like -> whether one begins a new entry; an answer belongs to the question before it."""


def find_figure_labels(text: str) -> tuple[str, ...]:
    """The figures and tables that a text names, as ``figure 3.1``."""
    return tuple(dict.fromkeys(_format_label(match) for match in _LABEL.finditer(text)))


def _format_label(match: re.Match[str]) -> str:
    return f"{'table' if match[1].lower().startswith('t') else 'figure'} {match[2]}"


@dataclass
class _OpenPart:
    """A heading whose part is being read."""

    level: int
    title: str
    role: PartRole
    section: str
    part_count: int = 0


def find_chapter_level(headings: Iterable[BookHeading]) -> int:
    """The highest level of which there is more than one plain heading; the highest there is, where no level has two; 0 without headings."""
    counts = Counter(
        heading.level for heading in headings if find_heading_role(heading.text) == PLAIN_ROLE
    )
    return min(
        (level for level, count in counts.items() if count > 1), default=min(counts, default=0)
    )


class BookOutline:
    """The headings that are open at a point of a book."""

    def __init__(self, book: str, chapter_level: int) -> None:
        self.book, self.chapter_level = book, chapter_level
        self.open_parts = [_OpenPart(0, book, PLAIN_ROLE, book)]
        self.question_count = self.entry_count = 0

    def enter_heading(self, heading: BookHeading) -> None:
        """A new heading closes those of its level and below."""
        while self.open_parts[-1].level >= heading.level:
            self.open_parts.pop()
        above = self.open_parts[-1]
        above.part_count += 1
        role = find_heading_role(heading.text)
        inherited = above.role if role == PLAIN_ROLE else role
        self.open_parts.append(
            _OpenPart(
                heading.level,
                normalize_passage_text(heading.text),
                inherited,
                f"{above.section}/{above.part_count}",
            )
        )

    def build_passage(self, body: BookBody) -> Passage | RejectedPassage:
        """The body as a passage of the part that is open."""
        role = self.open_parts[-1].role
        if role.drop_reason:
            return RejectedPassage(role.drop_reason, body.location)
        body = self._apply_role(self._recognize_kind(body), role)
        plain = [part for part in self.open_parts[1:] if part.role == PLAIN_ROLE]
        chapter = next((part.title for part in plain if part.level == self.chapter_level), None)
        path = tuple(part.title for part in plain if part.level > self.chapter_level)
        section = (
            self._create_entry_section(body.kind)
            if body.kind in ENTRY_KIND_INCREMENTS
            else plain[-1].section
            if plain
            else self.book
        )
        refers_to = (
            *body.refers_to,
            *(label for label in find_figure_labels(body.text) if label not in body.names),
        )
        return Passage(
            self.book,
            chapter,
            path,
            body.kind,
            section,
            body.location,
            body.title,
            body.text,
            body.names,
            refers_to,
        )

    def _create_entry_section(self, kind: str) -> str:
        """The section of an entry: itself. Its neighbours in a glossary say nothing about it, and a chapter that holds the glossary is not about it
        alone."""
        self.entry_count += ENTRY_KIND_INCREMENTS[kind]
        return f"{self.open_parts[-1].section}/entry {self.entry_count}"

    def _recognize_kind(self, body: BookBody) -> BookBody:
        """Captions, questions and answers that only their first words tell."""
        text = normalize_passage_text(body.text)
        if body.kind != "paragraph":
            return body
        if _CAPTION.match(text):
            return body._replace(
                kind="caption", names=(*body.names, *find_figure_labels(text)[:1]), text=text
            )
        if match := _QUESTION.match(text):
            self.question_count += 1
            return body._replace(
                kind="question",
                text=text[match.end() :],
                names=(*body.names, f"question {self.question_count}"),
            )
        if self.question_count and (match := _ANSWER.match(text)):
            return body._replace(
                kind="answer",
                text=text[match.end() :],
                refers_to=(*body.refers_to, f"question {self.question_count}"),
            )
        return body

    def _apply_role(self, body: BookBody, role: PartRole) -> BookBody:
        if body.kind not in ("paragraph", "list") or not role.kind:
            return body
        if is_lead_in(body.text):
            return body._replace(kind="lead-in")
        if role.kind != "definition":
            return body._replace(kind=role.kind)
        match = _DEFINITION.fullmatch(normalize_passage_text(body.text))
        return (
            body._replace(kind="definition", title=match["term"], text=match["meaning"])
            if match
            else body
        )


def build_book_passages(
    events: Sequence[OutlineEvent], book: str
) -> Iterator[Passage | RejectedPassage]:
    """The passages of one book, in order, from its headings and bodies."""
    outline = BookOutline(
        book, find_chapter_level(event for event in events if isinstance(event, BookHeading))
    )
    for event in _split_glossary_lists(events):
        if isinstance(event, BookHeading):
            outline.enter_heading(event)
        elif isinstance(event, RejectedPassage):
            yield event
        else:
            yield outline.build_passage(event)


def _split_glossary_lists(events: Iterable[OutlineEvent]) -> Iterator[OutlineEvent]:
    """A list below a heading such as *Glossary* is one definition a line; everything else as it is."""
    role, level = PLAIN_ROLE, 0
    for event in events:
        if isinstance(event, BookHeading):
            own = find_heading_role(event.text)
            role, level = (
                (own, event.level) if own != PLAIN_ROLE or event.level <= level else (role, level)
            )
        if (
            isinstance(event, BookBody)
            and event.kind == "list"
            and role.kind in ("definition", "question")
        ):
            yield from (
                event._replace(kind="paragraph", text=line) for line in event.text.split("\n")
            )
        else:
            yield event
