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

BATCH_PASSAGES = 1024

EMPTY = "empty"
NO_LETTER = "no letter or digit"
REFERENCES = "reference list"
INDEX = "index"
CONTENTS = "table of contents"
FRONT_MATTER = "front matter"
CONTRIBUTORS = "contributors"
NAVIGATION = "navigation"
RUNNING_HEAD = "running head"
PAGE_NUMBER = "page number"
PAGE_WITHOUT_TEXT = "page without text"
OPTION = "option of a multiple-choice question"
EQUATION = "equation outside a paragraph"
CODE = "code"
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


class Lost(NamedTuple):
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
_NOTHING = dict.fromkeys([0xAD, 0x200B, 0x2060, 0xFEFF], "")
_CHARACTERS = _LIGATURES | _BLANKS | _NOTHING
_KEEPS_LINES = frozenset({"list", "table", "objective"})


def tidy(text: str, lines: bool = False) -> str:
    """Text with ligatures spelled out, soft hyphens gone and single blanks between words; other characters stay, so that 10⁹ never becomes 109.

    Args:
        text: as it was read.
        lines: whether line ends mean something, as between the rows of a table.
    """
    plain = unicodedata.normalize("NFC", text.translate(_CHARACTERS))
    if not lines:
        return " ".join(plain.split())
    return "\n".join(
        line for line in (" ".join(line.split()) for line in plain.split("\n")) if line
    )


def batches(found: Iterable[Passage | Lost], attrition: Attrition) -> Iterator[pa.RecordBatch]:
    """The passages of ``found`` in batches of ``tables.PASSAGE``, counted into ``attrition`` as they pass.

    An id is a hash of book, place and text, so that it does not change when something else in the book does; the second passage that is alike in all
    three gets ``-2``.
    """
    kept: list[Passage] = []
    used = Counter[str]()
    for piece in found:
        passage = _counted(piece, attrition)
        if passage is not None:
            kept.append(passage)
        if len(kept) == BATCH_PASSAGES:
            yield _batch(kept, used)
            kept = []
    if kept:
        yield _batch(kept, used)


def refusing_nothing(found: Iterable[Passage | Lost], location: str) -> Iterator[Passage | Lost]:
    """The pieces of one book as they are.

    Raises:
        SourceError: at the end, when not one of them has text.
    """
    lost, kept = Counter[str](), 0
    for piece in found:
        if isinstance(piece, Lost):
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


def _counted(piece: Passage | Lost, attrition: Attrition) -> Passage | None:
    attrition.entered_rows += 1
    if isinstance(piece, Lost):
        attrition.drop_rows(piece.reason)
        return None
    text = tidy(piece.text, piece.kind in _KEEPS_LINES)
    if not text or not re.search(r"\w", text):
        attrition.drop_rows(NO_LETTER if text else EMPTY)
        return None
    title = tidy(piece.title) if piece.title else None
    return piece._replace(
        text=text,
        title=title or None,
        heading_path=tuple(tidy(heading) for heading in piece.heading_path),
    )


def _batch(passages: list[Passage], used: Counter[str]) -> pa.RecordBatch:
    columns: dict[str, object] = dict(
        zip(Passage._fields, zip(*passages, strict=True), strict=True)
    )
    columns["passage_id"] = [_identity(passage, used) for passage in passages]
    return pa.record_batch(
        [pa.array(columns[field.name], field.type) for field in PASSAGE_SCHEMA],
        schema=PASSAGE_SCHEMA,
    )


def _identity(passage: Passage, used: Counter[str]) -> str:
    key = hashlib.blake2b(
        f"{passage.book}\0{passage.location}\0{passage.title}\0{passage.text}".encode(),
        digest_size=8,
    ).hexdigest()
    used[key] += 1
    return key if used[key] == 1 else f"{key}-{used[key]}"
