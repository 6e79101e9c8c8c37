"""Passages of any book -> batches of ``PASSAGE_SCHEMA``, with every piece counted.

Every reader yields ``Passage`` for text and ``RejectedRow`` for what is left out. Only this module
normalizes, counts, assigns ids and builds batches.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import PASSAGE_SCHEMA, Attrition
from clinpeft.data.formats.hashing import create_stable_id
from clinpeft.data.formats.hints import format_drop_reasons
from clinpeft.data.formats.rows import RejectedRow

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
    """One piece of a book; the fields are those of ``PASSAGE_SCHEMA`` without the id."""

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


_LIGATURES = {
    **{0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi"},
    **{0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"},
}
_BLANKS = dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_INVISIBLE_CHARACTERS = dict.fromkeys([0xAD, 0x200B, 0x2060, 0xFEFF], "")
_CHARACTER_REPLACEMENTS = _LIGATURES | _BLANKS | _INVISIBLE_CHARACTERS
_KINDS_WITH_LINES = frozenset({"list", "table", "objective"})


def normalize_passage_text(text: str, keep_line_ends: bool = False) -> str:
    """Spells out ligatures, removes soft hyphens and leaves single blanks between words.

    Args:
        text: as a reader gives it.
        keep_line_ends: whether line ends are meaningful, as between the rows of a table.
    """
    # NFC and not NFKC, which would turn 10⁹ into 109.
    plain = unicodedata.normalize("NFC", text.translate(_CHARACTER_REPLACEMENTS))
    if not keep_line_ends:
        return " ".join(plain.split())
    lines = (" ".join(line.split()) for line in plain.split("\n"))
    return "\n".join(line for line in lines if line)


def batch_passages(
    pieces: Iterable[Passage | RejectedRow], attrition: Attrition
) -> Iterator[pa.RecordBatch]:
    """Yields the passages of ``pieces`` in batches of ``PASSAGE_SCHEMA``.

    An id is a hash of book, location, title and text, so that it does not change with other parts
    of the book; the second passage that is alike in all of them gets ``-2``.

    Args:
        pieces: as the readers yield them.
        attrition: updated while the stream is consumed.
    """
    passages: list[Passage] = []
    id_counts = Counter[str]()
    for piece in pieces:
        attrition.entered_rows += 1
        if isinstance(piece, RejectedRow):
            attrition.drop_rows(piece.reason)
            continue
        # Line ends separate the items of a list and the rows of a table.
        text = normalize_passage_text(piece.text, piece.kind in _KINDS_WITH_LINES)
        if not re.search(r"\w", text):
            attrition.drop_rows(NO_LETTER_OR_DIGIT if text else EMPTY_PASSAGE)
            continue
        # A title of blanks only is none.
        title = normalize_passage_text(piece.title) if piece.title else None
        headings = tuple(normalize_passage_text(heading) for heading in piece.heading_path)
        passages.append(piece._replace(text=text, title=title or None, heading_path=headings))
        if len(passages) == PASSAGE_BATCH_SIZE:
            yield _build_passage_batch(passages, id_counts)
            passages = []
    if passages:
        yield _build_passage_batch(passages, id_counts)


def check_book_has_passages(
    pieces: Iterable[Passage | RejectedRow], location: str
) -> Iterator[Passage | RejectedRow]:
    """Yields the pieces of one book unchanged.

    Raises:
        SourceError: at the end, when none of them has text.
    """
    dropped, passage_count = Counter[str](), 0
    for piece in pieces:
        if isinstance(piece, RejectedRow):
            dropped[piece.reason] += 1
        else:
            passage_count += bool(piece.text.strip())
        yield piece
    if not passage_count:
        reasons = f" ({format_drop_reasons(dropped)})" if dropped else ""
        raise SourceError(
            f"this book has no passage{reasons}",
            location=location,
            hint="remove it from the folder, or give another copy",
        )


def _build_passage_batch(passages: list[Passage], id_counts: Counter[str]) -> pa.RecordBatch:
    columns: dict[str, object] = dict(
        zip(Passage._fields, zip(*passages, strict=True), strict=True)
    )
    columns["passage_id"] = [
        create_stable_id((passage.book, passage.location, passage.title, passage.text), id_counts)
        for passage in passages
    ]
    arrays = [pa.array(columns[field.name], field.type) for field in PASSAGE_SCHEMA]
    return pa.record_batch(arrays, schema=PASSAGE_SCHEMA)
