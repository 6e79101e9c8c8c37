"""Passages -> pairs, one function a kind. No language model takes part: what belongs together is what the book puts together.

Each function is given the passages of one book in reading order, and yields ``Pair``, or the reason why a passage gave none.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from clinpeft.recipe.textbooks import PairsSpec

Row = Mapping[str, Any]
"""A passage as a dictionary with the columns of ``tables.PASSAGE``."""

NO_TERM = "definition without a term"
NO_QUESTION = "answer without its question"
NO_ANSWER = "question without an answer"
NO_SECTION = "no paragraph in the section it is about"
NO_HEADING = "paragraph without a heading"
NOT_FIRST = "not the first paragraph of its section"
NO_REFERENCE = "no paragraph refers to it"
NO_NEIGHBOUR = "no paragraph follows it in its section"

_RUNNING_TEXT = frozenset({"paragraph", "list"})


class Pair(NamedTuple):
    """Two texts that belong together; the fields are those of ``tables.PAIR`` without id and split."""

    kind: str
    anchor: str
    positive: str
    book: str | None
    chapter: str | None
    section: str | None
    anchor_id: str | None
    positive_id: str | None


@dataclass(frozen=True)
class Book:
    """The passages of one book, and where things stand in it.

    Attributes:
        passages: in reading order.
        paragraphs: section -> its running text, without that of sections in it.
        sections: sections in reading order.
    """

    passages: Sequence[Row]
    paragraphs: Mapping[str, Sequence[Row]]
    sections: Sequence[str]

    def of(self, kind: str) -> Iterator[Row]:
        """The passages of a kind."""
        return (passage for passage in self.passages if passage["kind"] == kind)

    def within(self, section: str) -> list[Row]:
        """The running text of a section and of those in it, in reading order."""
        inside = [
            name for name in self.sections if name == section or name.startswith(f"{section}/")
        ]
        return [row for name in inside for row in self.paragraphs[name]]


Found = Iterator[Pair | str]


def opened(passages: Sequence[Row]) -> Book:
    """A book by its passages."""
    paragraphs: defaultdict[str, list[Row]] = defaultdict(list)
    for row in passages:
        if row["kind"] in _RUNNING_TEXT:
            paragraphs[row["section"]].append(row)
    return Book(passages, paragraphs, list(paragraphs))


def _pair(kind: str, anchor: str, positive: str, first: Row, second: Row) -> Pair:
    return Pair(
        kind,
        anchor,
        positive,
        second["book"],
        second["chapter"],
        second["section"],
        first["passage_id"],
        second["passage_id"],
    )


def term_definition(book: Book, spec: PairsSpec) -> Found:
    """A term and what it means."""
    del spec
    for row in book.of("definition"):
        yield (
            _pair("term-definition", row["title"], row["text"], row, row)
            if row["title"]
            else NO_TERM
        )


def question_answer(book: Book, spec: PairsSpec) -> Found:
    """A question and each of its answers."""
    del spec
    questions = {name: row for row in book.of("question") for name in row["names"]}
    answered = set()
    for row in book.of("answer"):
        asked = [questions[name] for name in row["refers_to"] if name in questions]
        answered |= {question["passage_id"] for question in asked}
        yield from (
            _pair("question-answer", question["text"], row["text"], question, row)
            for question in asked
        )
        if not asked:
            yield NO_QUESTION
    yield from (NO_ANSWER for row in book.of("question") if row["passage_id"] not in answered)


def heading_paragraph(book: Book, spec: PairsSpec) -> Found:
    """The headings above a section, from its chapter down, and its first paragraph; those after it would all have the same anchor."""
    del spec
    for section in book.sections:
        rows = [row for row in book.paragraphs[section] if row["kind"] == "paragraph"]
        for at, row in enumerate(rows):
            path = headings(row)
            if at:
                yield NOT_FIRST
            elif path:
                yield _pair("heading-paragraph", path, row["text"], row, row)
            else:
                yield NO_HEADING


def headings(row: Row) -> str:
    """The headings above a passage: ``The Heart > Valves > Mitral``; empty where there are none."""
    path = [*([row["chapter"]] if row["chapter"] else []), *row["heading_path"]]
    return " > ".join(
        title for title, before in zip(path, [None, *path], strict=False) if title != before
    )


def objective_section(book: Book, spec: PairsSpec) -> Found:
    """What should be learned from a section, and how the section begins."""
    return _about_sections(book, spec, "objective", "objective-section")


def abstract_section(book: Book, spec: PairsSpec) -> Found:
    """What sums a section up, and how the section begins."""
    return _about_sections(book, spec, "summary", "abstract-section")


def _about_sections(book: Book, spec: PairsSpec, kind: str, name: str) -> Found:
    for row in book.of(kind):
        rows = book.within(row["section"])
        text = " ".join(" ".join(part["text"] for part in rows).split()[: spec.section_words])
        yield _pair(name, " ".join(row["text"].split()), text, row, rows[0]) if text else NO_SECTION


def caption_paragraph(book: Book, spec: PairsSpec) -> Found:
    """The caption of a figure, and each paragraph of the same chapter that refers to it."""
    del spec
    referring: defaultdict[tuple[str | None, str], list[Row]] = defaultdict(list)
    for row in book.of("paragraph"):
        for name in row["refers_to"]:
            referring[row["chapter"], name].append(row)
    for row in book.of("caption"):
        text = (
            f"{row['title']}. {row['text']}"
            if row["title"] and row["title"] != row["text"]
            else row["text"]
        )
        found = {
            other["passage_id"]: other
            for name in row["names"]
            for other in referring[row["chapter"], name]
        }
        yield from (
            _pair("caption-paragraph", text, other["text"], row, other) for other in found.values()
        )
        if not found:
            yield NO_REFERENCE


def adjacent(book: Book, spec: PairsSpec) -> Found:
    """A paragraph and the next of the same section."""
    del spec
    for section in book.sections:
        rows = [row for row in book.paragraphs[section] if row["kind"] == "paragraph"]
        yield from (
            _pair("adjacent", first["text"], second["text"], first, second)
            for first, second in itertools.pairwise(rows)
        )
        if rows:
            yield NO_NEIGHBOUR


KINDS: dict[str, Callable[[Book, PairsSpec], Found]] = {
    "term-definition": term_definition,
    "question-answer": question_answer,
    "heading-paragraph": heading_paragraph,
    "objective-section": objective_section,
    "caption-paragraph": caption_paragraph,
    "adjacent": adjacent,
    "abstract-section": abstract_section,
}
"""What ``pairs.kinds`` names."""
