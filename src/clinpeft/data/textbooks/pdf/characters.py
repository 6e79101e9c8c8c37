"""What PDFium says of a page: runs of characters that stand on one line without a gap, with box, size and weight."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clinpeft.core.errors import SourceError
from clinpeft.data.textbooks.passages import normalize_passage_text

_MAX_GAP_FONT_SIZES = (
    1.0  # a gap this many font sizes wide ends a run: it is a column, a tab or the cell of a table
)
_MAX_BASELINE_SHIFT_FONT_SIZES = (
    0.6  # so does a character that stands this much higher or lower: further than any index
)


_FORCE_BOLD_FLAG = 1 << 18  # ISO 32000-1, table 123
_BOLD_FONT_NAMES = (
    b"bold",
    b"black",
    b"heavy",
)  # the weight that PDFium tells is 0 for many embedded fonts; their names say it


class TextFragment(NamedTuple):
    """A run of characters on one line; distances in points, ``y`` upwards from the bottom of the page."""

    left: float
    right: float
    y: float
    size: float
    is_bold: bool
    text: str


@dataclass(frozen=True)
class PdfPage:
    """A page: its number from 1, its height in points, and its runs in the order of the file."""

    number: int
    height: float
    fragments: list[TextFragment]


class PdfOutlineEntry(NamedTuple):
    """A line of the outline of a PDF; ``level`` 1 is the highest, ``page`` counts from 1 and is 0 where the outline does not say."""

    level: int
    title: str
    page: int


@dataclass(frozen=True)
class PdfBook:
    """A PDF, read: its title (empty where it has none), its pages, its outline."""

    title: str
    pages: list[PdfPage]
    outline: list[PdfOutlineEntry]


def read_pdf_book(path: Path) -> PdfBook:
    """All runs of characters of a PDF.

    Raises:
        SourceError: it is encrypted, broken, or has no page.
    """
    import pypdfium2
    import pypdfium2.raw

    try:
        opened = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        locked = error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD
        message = (
            "this PDF is encrypted and wants a password"
            if locked
            else "this file is no readable PDF"
        )
        hint = (
            "remove the password with the program that set it"
            if locked
            else "give another copy of the book"
        )
        raise SourceError(message, location=str(path), hint=hint) from None
    try:
        if not len(opened):
            raise SourceError(
                "this PDF has no page", location=str(path), hint="give another copy of the book"
            )
        title = normalize_passage_text(opened.get_metadata_value("Title") or "")
        pages = [_read_page(opened, at, pypdfium2.raw) for at in range(len(opened))]
        return PdfBook(
            "" if title.lower() in ("", "untitled") else title, pages, list(_read_outline(opened))
        )
    finally:
        opened.close()


def _read_outline(document: Any) -> Iterator[PdfOutlineEntry]:
    for entry in document.get_toc(max_depth=8):
        target = entry.get_dest()
        index = target.get_index() if target else None
        yield PdfOutlineEntry(
            entry.level + 1,
            normalize_passage_text(entry.get_title() or ""),
            0 if index is None else index + 1,
        )


def _read_page(document: Any, page_index: int, raw: Any) -> PdfPage:
    """A page; one that is damaged has no text, and is counted with those."""
    import pypdfium2

    try:
        page = document[page_index]
    except pypdfium2.PdfiumError:
        return PdfPage(page_index + 1, 0.0, [])
    try:
        text_page = page.get_textpage()
    except pypdfium2.PdfiumError:
        page.close()
        return PdfPage(page_index + 1, 0.0, [])
    try:
        return PdfPage(
            page_index + 1,
            page.get_height(),
            [piece for piece in _split_fragments(text_page.raw, raw) if piece.text.strip()],
        )
    finally:
        text_page.close()
        page.close()


class _Character(NamedTuple):
    letter: str
    left: float
    right: float
    y: float
    size: float
    is_bold: bool


def _split_fragments(text_page: Any, raw: Any) -> Iterator[TextFragment]:
    """Runs of characters: cut at line ends, wide gaps and jumps up or down."""
    run: list[_Character] = []
    blank = False
    for character in _read_characters(text_page, raw):
        if character.letter.isspace():
            blank = True
            if character.letter in "\r\n" and run:
                yield _build_fragment(run)
                run = []
            continue
        if run and _is_apart(run[-1], character):
            yield _build_fragment(run)
            run = []
        elif run and blank:
            run.append(character._replace(letter=" ", left=run[-1].right, right=run[-1].right))
        run.append(character)
        blank = False
    if run:
        yield _build_fragment(run)


def _is_apart(before: _Character, after: _Character) -> bool:
    size = max(before.size, after.size)
    return (
        after.left - before.right > _MAX_GAP_FONT_SIZES * size
        or after.left < before.left - size
        or abs(after.y - before.y) > _MAX_BASELINE_SHIFT_FONT_SIZES * size
    )


def _build_fragment(characters: list[_Character]) -> TextFragment:
    """Size and height are those of most of its characters, so that a raised number does not move the line."""
    sizes = sorted(character.size for character in characters)
    size = sizes[len(sizes) // 2]
    usual = [character.y for character in characters if character.size == size]
    bold = sum(character.is_bold for character in characters) > len(characters) / 2
    text = "".join(character.letter for character in characters)
    return TextFragment(
        min(c.left for c in characters),
        max(c.right for c in characters),
        sum(usual) / len(usual),
        size,
        bold,
        text,
    )


def _read_characters(text_page: Any, raw: Any) -> Iterator[_Character]:
    """The characters of a page, with the blanks and line ends that PDFium guesses; size and weight are asked for once a word."""
    box = [ctypes.c_double() for _ in range(4)]
    sides = [ctypes.byref(side) for side in box]
    at_x, at_y = ctypes.c_double(), ctypes.c_double()
    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    size, bold, begins = 1.0, False, True
    for at in range(raw.FPDFText_CountChars(text_page)):
        letter = _decode_character(raw.FPDFText_GetUnicode(text_page, at))
        if not letter:
            continue
        if letter.isspace():
            yield _Character(letter, 0, 0, 0, 0, False)
            begins = True
            continue
        if letter == "-" and raw.FPDFText_IsGenerated(text_page, at) == 1:
            continue
        raw.FPDFText_GetCharBox(text_page, at, *sides)
        raw.FPDFText_GetCharOrigin(text_page, at, ctypes.byref(at_x), ctypes.byref(at_y))
        if begins:
            size = round(abs(raw.FPDFText_GetFontSize(text_page, at)), 1) or 1.0
            named = raw.FPDFText_GetFontInfo(text_page, at, name, len(name), ctypes.byref(flags))
            bold = bool(flags.value & _FORCE_BOLD_FLAG) or any(
                word in name.raw[:named].lower() for word in _BOLD_FONT_NAMES
            )
            begins = False
        yield _Character(
            letter,
            min(at_x.value, box[0].value),
            max(at_x.value, box[1].value),
            at_y.value,
            size,
            bold,
        )


def _decode_character(code: int) -> str:
    """A character by its code; PDFium writes the hyphen at a line end as U+0002 or U+FFFE."""
    if code in (0x02, 0xFFFE):
        return "-"
    return (
        chr(code)
        if code
        and (code >= 0x20 or code in (9, 10, 13))
        and not 0xD800 <= code < 0xE000
        and code <= 0x10FFFF
        else ""
    )
