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
    CONTENTS,
    CONTRIBUTORS,
    FRONT_MATTER,
    INDEX,
    REFERENCES,
    Lost,
    Passage,
    tidy,
)


class Heading(NamedTuple):
    """A heading; ``level`` 1 is the highest."""

    level: int
    text: str
    location: str


class Body(NamedTuple):
    """What stands below a heading; the fields are those of a passage."""

    kind: str
    text: str
    location: str
    title: str | None = None
    names: tuple[str, ...] = ()
    refers_to: tuple[str, ...] = ()


Event = Heading | Body | Lost


@dataclass(frozen=True)
class Role:
    """What a part of a book is for: left out for the reason ``dropped``, or made of ``kind``; neither, for plain text."""

    dropped: str = ""
    kind: str = ""


PLAIN = Role()
_WITHOUT_NUMBER = re.compile(
    r"^(?:(?:chapter|section|part|unit)\s+)?(?:\d+(?:\.\d+)*|[ivxlc]+\b)?[.:)\s–—-]*", re.IGNORECASE
)

ROLES: tuple[tuple[str, Role], ...] = (
    (
        r"references?|bibliography|works cited|literature cited|(further|suggested|additional|recommended) readings?|citations|sources",
        Role(REFERENCES),
    ),
    (r"(subject |author )?index", Role(INDEX)),
    (
        r"(table of |brief |detailed )?contents|list of (figures|tables|illustrations|abbreviations)",
        Role(CONTENTS),
    ),
    (
        r"preface( to .*)?|foreword|dedication|copyright( page)?|acknowledge?ments?|title page|cover|half title|about (the|this) (authors?|book)",
        Role(FRONT_MATTER),
    ),
    (
        r"contributors?|contributing authors|senior contributing authors|reviewers",
        Role(CONTRIBUTORS),
    ),
    (r"glossary|key terms|terms and definitions|definitions", Role(kind="definition")),
    (
        r"(learning |chapter )?(objectives|outcomes)|learning goals|what you will learn",
        Role(kind="objective"),
    ),
    (
        r"(chapter |section )?summary|chapter review|summary of key points|key points|key concepts|abstract",
        Role(kind="summary"),
    ),
    (
        r"(review|study|self-assessment|discussion|critical thinking) questions|questions( and answers)?|self-assessment",
        Role(kind="question"),
    ),
)
_ROLES = tuple((re.compile(pattern, re.IGNORECASE), role) for pattern, role in ROLES)


def role_of(title: str) -> Role:
    """What the part under this heading is for, its number left aside: ``4.5 References`` is a reference list."""
    plain = tidy(title).strip(" .:")
    for name in (plain, _WITHOUT_NUMBER.sub("", plain)):
        for pattern, role in _ROLES:
            if pattern.fullmatch(name):
                return role
    return PLAIN


def lead_in(text: str) -> bool:
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


ENTRIES = {"definition": 1, "question": 1, "answer": 0}
"""Kinds that stand in lists of their like -> whether one begins a new entry; an answer belongs to the question before it."""


def labels(text: str) -> tuple[str, ...]:
    """The figures and tables that a text names, as ``figure 3.1``."""
    return tuple(dict.fromkeys(_label(match) for match in _LABEL.finditer(text)))


def _label(match: re.Match[str]) -> str:
    return f"{'table' if match[1].lower().startswith('t') else 'figure'} {match[2]}"


@dataclass
class _Open:
    """A heading whose part is being read."""

    level: int
    title: str
    role: Role
    section: str
    parts: int = 0


def chapter_level(headings: Iterable[Heading]) -> int:
    """The highest level of which there is more than one plain heading; the highest there is, where no level has two; 0 without headings."""
    counts = Counter(heading.level for heading in headings if role_of(heading.text) == PLAIN)
    return min(
        (level for level, count in counts.items() if count > 1), default=min(counts, default=0)
    )


class Outline:
    """The headings that are open at a point of a book."""

    def __init__(self, book: str, chapters: int) -> None:
        self.book, self.chapters = book, chapters
        self.open = [_Open(0, book, PLAIN, book)]
        self.questions = self.entries = 0

    def enter(self, heading: Heading) -> None:
        """A new heading closes those of its level and below."""
        while self.open[-1].level >= heading.level:
            self.open.pop()
        above = self.open[-1]
        above.parts += 1
        role = role_of(heading.text)
        inherited = above.role if role == PLAIN else role
        self.open.append(
            _Open(heading.level, tidy(heading.text), inherited, f"{above.section}/{above.parts}")
        )

    def passage(self, body: Body) -> Passage | Lost:
        """The body as a passage of the part that is open."""
        role = self.open[-1].role
        if role.dropped:
            return Lost(role.dropped, body.location)
        body = self._in_role(self._recognised(body), role)
        plain = [part for part in self.open[1:] if part.role == PLAIN]
        chapter = next((part.title for part in plain if part.level == self.chapters), None)
        path = tuple(part.title for part in plain if part.level > self.chapters)
        section = (
            self._entry(body.kind)
            if body.kind in ENTRIES
            else plain[-1].section
            if plain
            else self.book
        )
        refers_to = (
            *body.refers_to,
            *(label for label in labels(body.text) if label not in body.names),
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

    def _entry(self, kind: str) -> str:
        """The section of an entry: itself. Its neighbours in a glossary say nothing about it, and a chapter that holds the glossary is not about it
        alone."""
        self.entries += ENTRIES[kind]
        return f"{self.open[-1].section}/entry {self.entries}"

    def _recognised(self, body: Body) -> Body:
        """Captions, questions and answers that only their first words tell."""
        text = tidy(body.text)
        if body.kind != "paragraph":
            return body
        if _CAPTION.match(text):
            return body._replace(kind="caption", names=(*body.names, *labels(text)[:1]), text=text)
        if match := _QUESTION.match(text):
            self.questions += 1
            return body._replace(
                kind="question",
                text=text[match.end() :],
                names=(*body.names, f"question {self.questions}"),
            )
        if self.questions and (match := _ANSWER.match(text)):
            return body._replace(
                kind="answer",
                text=text[match.end() :],
                refers_to=(*body.refers_to, f"question {self.questions}"),
            )
        return body

    def _in_role(self, body: Body, role: Role) -> Body:
        if body.kind not in ("paragraph", "list") or not role.kind:
            return body
        if lead_in(body.text):
            return body._replace(kind="lead-in")
        if role.kind != "definition":
            return body._replace(kind=role.kind)
        match = _DEFINITION.fullmatch(tidy(body.text))
        return (
            body._replace(kind="definition", title=match["term"], text=match["meaning"])
            if match
            else body
        )


def passages(events: Sequence[Event], book: str) -> Iterator[Passage | Lost]:
    """The passages of one book, in order, from its headings and bodies."""
    outline = Outline(book, chapter_level(event for event in events if isinstance(event, Heading)))
    for event in _glossary_lines(events):
        if isinstance(event, Heading):
            outline.enter(event)
        elif isinstance(event, Lost):
            yield event
        else:
            yield outline.passage(event)


def _glossary_lines(events: Iterable[Event]) -> Iterator[Event]:
    """A list below a heading such as *Glossary* is one definition a line; everything else as it is."""
    role, level = PLAIN, 0
    for event in events:
        if isinstance(event, Heading):
            own = role_of(event.text)
            role, level = (
                (own, event.level) if own != PLAIN or event.level <= level else (role, level)
            )
        if (
            isinstance(event, Body)
            and event.kind == "list"
            and role.kind in ("definition", "question")
        ):
            yield from (
                event._replace(kind="paragraph", text=line) for line in event.text.split("\n")
            )
        else:
            yield event
