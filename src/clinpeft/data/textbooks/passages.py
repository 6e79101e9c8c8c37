"""Passages of any book -> batches of ``tables.PASSAGE``, counted: what entered, what was left out and why.

Every reader yields ``Passage`` for text to keep and ``Lost`` for what was left out; this file alone tidies, counts, names and makes batches.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import PASSAGE_SCHEMA, Attrition

PASSAGE_BATCH_SIZE = 1024

EMPTY_PASSAGE = "empty"
NO_LETTER_OR_DIGIT = "no letter or digit"
REFERENCE_LIST = "reference list"
BOOK_INDEX = "index"
TABLE_OF_CONTENTS = "table of contents"
FRONT_MATTER = "front matter"
CONTRIBUTOR_LIST = "contributors"
NAVIGATION = "navigation"
RUNNING_HEAD = "running head"
PAGE_NUMBER = "page number"
PAGE_WITHOUT_TEXT = "page without text"
MULTIPLE_CHOICE_OPTION = "option of a multiple-choice question"
DISPLAY_EQUATION = "equation outside a paragraph"
CODE_BLOCK = "code"
FOOTNOTE = "footnote"


class Passage(NamedTuple):
    """One piece of a book as it was read; the fields are those of ``tables.PASSAGE`` without the id."""

    book: str
    chapter: str | None
    heading_path: tuple[str, ...]
    kind: str
    section: str
    location: str
    title: str | None
    text: str
    names: tuple[str, ...] = ()
    refers_to: tuple[str, ...] = ()


class RejectedPassage(NamedTuple):
    """A piece that was left out on purpose."""

    reason: str
    location: str


_LIGATURES = {
    0xFB00: "ff",
    0xFB01: "fi",
    0xFB02: "fl",
    0xFB03: "ffi",
    0xFB04: "ffl",
    0xFB05: "st",
    0xFB06: "st",
}
_BLANKS = dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_INVISIBLE_CHARACTERS = dict.fromkeys([0xAD, 0x200B, 0x2060, 0xFEFF], "")
_CHARACTER_REPLACEMENTS = _LIGATURES | _BLANKS | _INVISIBLE_CHARACTERS
_KINDS_WITH_LINES = frozenset({"list", "table", "objective"})


def normalize_passage_text(text: str, keep_line_ends: bool = False) -> str:
    """Text with ligatures spelled out, soft hyphens gone and single blanks between words; other characters stay, so that 10⁹ never becomes 109.

    Args:
        text: as it was read.
        keep_line_ends: whether line ends mean something, as between the rows of a table.
    """
    plain = unicodedata.normalize("NFC", text.translate(_CHARACTER_REPLACEMENTS))
    if not keep_line_ends:
        return " ".join(plain.split())
    return "\n".join(
        line for line in (" ".join(line.split()) for line in plain.split("\n")) if line
    )


def batch_passages(
    pieces: Iterable[Passage | RejectedPassage], attrition: Attrition
) -> Iterator[pa.RecordBatch]:
    """The passages of ``pieces`` in batches of ``tables.PASSAGE``, counted into ``attrition`` as they pass.

    An id is a hash of book, place and text, so that it does not change when something else in the book does; the second passage that is alike in all
    three gets ``-2``.
    """
    kept: list[Passage] = []
    used = Counter[str]()
    for piece in pieces:
        passage = _normalize_piece(piece, attrition)
        if passage is not None:
            kept.append(passage)
        if len(kept) == PASSAGE_BATCH_SIZE:
            yield _build_passage_batch(kept, used)
            kept = []
    if kept:
        yield _build_passage_batch(kept, used)


def check_book_has_passages(
    pieces: Iterable[Passage | RejectedPassage], location: str
) -> Iterator[Passage | RejectedPassage]:
    """The pieces of one book as they are.

    Raises:
        SourceError: at the end, when not one of them has text.
    """
    lost, kept = Counter[str](), 0
    for piece in pieces:
        if isinstance(piece, RejectedPassage):
            lost[piece.reason] += 1
        else:
            kept += bool(piece.text.strip())
        yield piece
    if not kept:
        reasons = (
            f" ({', '.join(f'{count} × {reason}' for reason, count in sorted(lost.items()))})"
            if lost
            else ""
        )
        raise SourceError(
            f"not one passage was found in this book{reasons}",
            location=location,
            hint="take it out of the folder, or give another copy",
        )


def _normalize_piece(piece: Passage | RejectedPassage, attrition: Attrition) -> Passage | None:
    attrition.entered_rows += 1
    if isinstance(piece, RejectedPassage):
        attrition.drop_rows(piece.reason)
        return None
    text = normalize_passage_text(piece.text, piece.kind in _KINDS_WITH_LINES)
    if not text or not re.search(r"\w", text):
        attrition.drop_rows(NO_LETTER_OR_DIGIT if text else EMPTY_PASSAGE)
        return None
    title = normalize_passage_text(piece.title) if piece.title else None
    return piece._replace(
        text=text,
        title=title or None,
        heading_path=tuple(normalize_passage_text(heading) for heading in piece.heading_path),
    )


def _build_passage_batch(passages: list[Passage], id_counts: Counter[str]) -> pa.RecordBatch:
    columns: dict[str, object] = dict(
        zip(Passage._fields, zip(*passages, strict=True), strict=True)
    )
    columns["passage_id"] = [_create_passage_id(passage, id_counts) for passage in passages]
    return pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in PASSAGE_SCHEMA],
        schema=PASSAGE_SCHEMA,
    )


def _create_passage_id(passage: Passage, id_counts: Counter[str]) -> str:
    key = hashlib.blake2b(
        f"{passage.book}\0{passage.location}\0{passage.title}\0{passage.text}".encode(),
        digest_size=8,
    ).hexdigest()
    id_counts[key] += 1
    return key if id_counts[key] == 1 else f"{key}-{id_counts[key]}"
