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

PassageRow = Mapping[str, Any]
"""A passage as a dictionary with the columns of ``tables.PASSAGE``."""

NO_TERM = "definition without a term"
NO_QUESTION = "answer without its question"
NO_ANSWER = "question without an answer"
NO_SECTION = "no paragraph in the section it is about"
NO_HEADING = "paragraph without a heading"
NOT_FIRST_PARAGRAPH = "not the first paragraph of its section"
NO_REFERRING_PARAGRAPH = "no paragraph refers to it"
NO_NEIGHBOR_PARAGRAPH = "no paragraph follows it in its section"

_RUNNING_TEXT = frozenset({"paragraph", "list"})


class TextPair(NamedTuple):
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
class IndexedBook:
    """The passages of one book, and where things stand in it.

    Attributes:
        passages: in reading order.
        paragraphs: section -> its running text, without that of sections in it.
        sections: sections in reading order.
    """

    passages: Sequence[PassageRow]
    paragraphs: Mapping[str, Sequence[PassageRow]]
    sections: Sequence[str]

    def select_kind(self, kind: str) -> Iterator[PassageRow]:
        """The passages of a kind."""
        return (passage for passage in self.passages if passage["kind"] == kind)

    def select_section(self, section: str) -> list[PassageRow]:
        """The running text of a section and of those in it, in reading order."""
        inside = [
            name for name in self.sections if name == section or name.startswith(f"{section}/")
        ]
        return [row for name in inside for row in self.paragraphs[name]]


PairCandidates = Iterator[TextPair | str]


def index_book(passages: Sequence[PassageRow]) -> IndexedBook:
    """A book by its passages."""
    paragraphs: defaultdict[str, list[PassageRow]] = defaultdict(list)
    for row in passages:
        if row["kind"] in _RUNNING_TEXT:
            paragraphs[row["section"]].append(row)
    return IndexedBook(passages, paragraphs, list(paragraphs))


def _create_pair(
    kind: str, anchor: str, positive: str, first: PassageRow, second: PassageRow
) -> TextPair:
    return TextPair(
        kind,
        anchor,
        positive,
        second["book"],
        second["chapter"],
        second["section"],
        first["passage_id"],
        second["passage_id"],
    )


def pair_terms_with_definitions(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """A term and what it means."""
    del spec
    for row in book.select_kind("definition"):
        yield (
            _create_pair("term-definition", row["title"], row["text"], row, row)
            if row["title"]
            else NO_TERM
        )


def pair_questions_with_answers(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """A question and each of its answers."""
    del spec
    questions = {name: row for row in book.select_kind("question") for name in row["names"]}
    answered = set()
    for row in book.select_kind("answer"):
        asked = [questions[name] for name in row["refers_to"] if name in questions]
        answered |= {question["passage_id"] for question in asked}
        yield from (
            _create_pair("question-answer", question["text"], row["text"], question, row)
            for question in asked
        )
        if not asked:
            yield NO_QUESTION
    yield from (
        NO_ANSWER for row in book.select_kind("question") if row["passage_id"] not in answered
    )


def pair_headings_with_paragraphs(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """The headings above a section, from its chapter down, and its first paragraph; those after it would all have the same anchor."""
    del spec
    for section in book.sections:
        rows = [row for row in book.paragraphs[section] if row["kind"] == "paragraph"]
        for at, row in enumerate(rows):
            path = join_heading_path(row)
            if at:
                yield NOT_FIRST_PARAGRAPH
            elif path:
                yield _create_pair("heading-paragraph", path, row["text"], row, row)
            else:
                yield NO_HEADING


def join_heading_path(row: PassageRow) -> str:
    """The headings above a passage: ``The Heart > Valves > Mitral``; empty where there are none."""
    path = [*([row["chapter"]] if row["chapter"] else []), *row["heading_path"]]
    return " > ".join(
        title for title, before in zip(path, [None, *path], strict=False) if title != before
    )


def pair_objectives_with_sections(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """What should be learned from a section, and how the section begins."""
    return _pair_with_sections(book, spec, "objective", "objective-section")


def pair_abstracts_with_sections(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """What sums a section up, and how the section begins."""
    return _pair_with_sections(book, spec, "summary", "abstract-section")


def _pair_with_sections(
    book: IndexedBook, spec: PairsSpec, kind: str, pair_kind: str
) -> PairCandidates:
    for row in book.select_kind(kind):
        rows = book.select_section(row["section"])
        text = " ".join(" ".join(part["text"] for part in rows).split()[: spec.section_words])
        yield (
            _create_pair(pair_kind, " ".join(row["text"].split()), text, row, rows[0])
            if text
            else NO_SECTION
        )


def pair_captions_with_paragraphs(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """The caption of a figure, and each paragraph of the same chapter that refers to it."""
    del spec
    referring: defaultdict[tuple[str | None, str], list[PassageRow]] = defaultdict(list)
    for row in book.select_kind("paragraph"):
        for name in row["refers_to"]:
            referring[row["chapter"], name].append(row)
    for row in book.select_kind("caption"):
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
            _create_pair("caption-paragraph", text, other["text"], row, other)
            for other in found.values()
        )
        if not found:
            yield NO_REFERRING_PARAGRAPH


def pair_adjacent_paragraphs(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """A paragraph and the next of the same section."""
    del spec
    for section in book.sections:
        rows = [row for row in book.paragraphs[section] if row["kind"] == "paragraph"]
        yield from (
            _create_pair("adjacent", first["text"], second["text"], first, second)
            for first, second in itertools.pairwise(rows)
        )
        if rows:
            yield NO_NEIGHBOR_PARAGRAPH


PAIR_BUILDERS: dict[str, Callable[[IndexedBook, PairsSpec], PairCandidates]] = {
    "term-definition": pair_terms_with_definitions,
    "question-answer": pair_questions_with_answers,
    "heading-paragraph": pair_headings_with_paragraphs,
    "objective-section": pair_objectives_with_sections,
    "caption-paragraph": pair_captions_with_paragraphs,
    "adjacent": pair_adjacent_paragraphs,
    "abstract-section": pair_abstracts_with_sections,
}
"""What ``pairs.kinds`` names."""
