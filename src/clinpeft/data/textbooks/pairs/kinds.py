"""Passages -> pairs, one function for each kind.

No language model takes part: what belongs together is what the book puts together. Each function
receives the passages of one book in reading order, and yields ``TextPair``, or the reason why a
passage gave none.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from clinpeft.recipe.textbooks import PairsSpec

PassageRow = Mapping[str, Any]
"""A passage as a dictionary with the columns of ``PASSAGE_SCHEMA``."""

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
    """Two related texts; the fields are those of ``PAIR_SCHEMA`` without id and split."""

    kind: str
    anchor: str
    positive: str
    book: str | None
    chapter: str | None
    section: str | None
    anchor_id: str | None
    positive_id: str | None

    @classmethod
    def from_passages(
        cls, kind: str, anchor: str, positive: str, first: PassageRow, second: PassageRow
    ) -> TextPair:
        """Returns the pair of two passages, in the book, chapter and section of the second."""
        origin = second["book"], second["chapter"], second["section"]
        return cls(kind, anchor, positive, *origin, first["passage_id"], second["passage_id"])


@dataclass(frozen=True)
class IndexedBook:
    """The passages of one book, indexed by kind and section.

    Attributes:
        passages: in reading order.
        paragraphs: section -> its running text, without that of its subsections.
        sections: in reading order.
    """

    passages: Sequence[PassageRow]
    paragraphs: Mapping[str, Sequence[PassageRow]]
    sections: Sequence[str]

    def select_kind(self, kind: str) -> Iterator[PassageRow]:
        """Yields the passages of a kind."""
        return (passage for passage in self.passages if passage["kind"] == kind)

    def select_section(self, section: str) -> list[PassageRow]:
        """Returns the running text of a section and its subsections, in reading order."""
        # The names of subsections begin with that of their section, such as book/m1/2.
        names = [
            name for name in self.sections if name == section or name.startswith(f"{section}/")
        ]
        return [row for name in names for row in self.paragraphs[name]]


PairCandidates = Iterator[TextPair | str]
"""Pairs, and the reasons why passages gave none."""


def index_book(passages: Sequence[PassageRow]) -> IndexedBook:
    """Indexes the passages of one book, given in reading order."""
    paragraphs: defaultdict[str, list[PassageRow]] = defaultdict(list)
    for row in passages:
        if row["kind"] in _RUNNING_TEXT:
            paragraphs[row["section"]].append(row)
    return IndexedBook(passages, paragraphs, list(paragraphs))


def pair_terms_with_definitions(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """Pairs each term with its definition."""
    del spec
    for row in book.select_kind("definition"):
        if row["title"]:
            yield TextPair.from_passages("term-definition", row["title"], row["text"], row, row)
        else:
            yield NO_TERM


def pair_questions_with_answers(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """Pairs each question with each of its answers."""
    del spec
    # A question may have several names, such as its id and its number.
    questions = {name: row for row in book.select_kind("question") for name in row["names"]}
    answered_ids = set()
    for row in book.select_kind("answer"):
        answered = [questions[name] for name in row["refers_to"] if name in questions]
        if not answered:
            yield NO_QUESTION
        for question in answered:
            answered_ids.add(question["passage_id"])
            yield TextPair.from_passages(
                "question-answer", question["text"], row["text"], question, row
            )
    for row in book.select_kind("question"):
        if row["passage_id"] not in answered_ids:
            yield NO_ANSWER


def pair_headings_with_paragraphs(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """Pairs the headings above a section, from its chapter down, with its first paragraph.

    The paragraphs after it would all have the same anchor.
    """
    del spec
    for section in book.sections:
        rows = [row for row in book.paragraphs[section] if row["kind"] == "paragraph"]
        for i, row in enumerate(rows):
            path = join_heading_path(row)
            if i:
                yield NOT_FIRST_PARAGRAPH
            elif path:
                yield TextPair.from_passages("heading-paragraph", path, row["text"], row, row)
            else:
                yield NO_HEADING


def join_heading_path(row: PassageRow) -> str:
    """Returns the headings above a passage as ``The Heart > Valves > Mitral``; empty for none."""
    path = [*([row["chapter"]] if row["chapter"] else []), *row["heading_path"]]
    # A chapter often repeats its title as its first heading.
    return " > ".join(
        title for title, before in zip(path, [None, *path], strict=False) if title != before
    )


def pair_texts_with_sections(
    book: IndexedBook, spec: PairsSpec, *, passage_kind: str, pair_kind: str
) -> PairCandidates:
    """Pairs each passage of a kind with the beginning of the section it is about.

    Args:
        book: one book.
        spec: ``section_words``, the number of words of a section that are used.
        passage_kind: ``objective`` or ``summary``.
        pair_kind: kind of the pairs.
    """
    for row in book.select_kind(passage_kind):
        rows = book.select_section(row["section"])
        # Cut here: a section may have thousands of words, of which an encoder reads few.
        text = " ".join(" ".join(part["text"] for part in rows).split()[: spec.section_words])
        if text:
            yield TextPair.from_passages(
                pair_kind, " ".join(row["text"].split()), text, row, rows[0]
            )
        else:
            yield NO_SECTION


def pair_captions_with_paragraphs(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """Pairs the caption of a figure with each paragraph of its chapter that refers to it."""
    del spec
    # Figure numbers such as "1" are unique within a chapter only.
    referring: defaultdict[tuple[str | None, str], list[PassageRow]] = defaultdict(list)
    for row in book.select_kind("paragraph"):
        for name in row["refers_to"]:
            referring[row["chapter"], name].append(row)
    for row in book.select_kind("caption"):
        text = row["text"]
        if row["title"] and row["title"] != text:
            text = f"{row['title']}. {text}"
        # By id: a paragraph may refer to one figure under several of its names.
        paragraphs = {
            paragraph["passage_id"]: paragraph
            for name in row["names"]
            for paragraph in referring[row["chapter"], name]
        }
        for paragraph in paragraphs.values():
            yield TextPair.from_passages(
                "caption-paragraph", text, paragraph["text"], row, paragraph
            )
        if not paragraphs:
            yield NO_REFERRING_PARAGRAPH


def pair_adjacent_paragraphs(book: IndexedBook, spec: PairsSpec) -> PairCandidates:
    """Pairs each paragraph with the next one of the same section."""
    del spec
    for section in book.sections:
        rows = [row for row in book.paragraphs[section] if row["kind"] == "paragraph"]
        for first, second in itertools.pairwise(rows):
            yield TextPair.from_passages("adjacent", first["text"], second["text"], first, second)
        if rows:  # the last one has no successor
            yield NO_NEIGHBOR_PARAGRAPH


PAIR_BUILDERS: dict[str, Callable[[IndexedBook, PairsSpec], PairCandidates]] = {
    "term-definition": pair_terms_with_definitions,
    "question-answer": pair_questions_with_answers,
    "heading-paragraph": pair_headings_with_paragraphs,
    "objective-section": partial(
        pair_texts_with_sections, passage_kind="objective", pair_kind="objective-section"
    ),
    "caption-paragraph": pair_captions_with_paragraphs,
    "adjacent": pair_adjacent_paragraphs,
    "abstract-section": partial(
        pair_texts_with_sections, passage_kind="summary", pair_kind="abstract-section"
    ),
}
"""What ``pairs.kinds`` of a recipe may list."""
