"""PDFium's characters of a page -> runs on one line without a gap, with box, size and weight."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clinpeft.core.errors import SourceError
from clinpeft.data.textbooks.passages import normalize_passage_text

# A gap of this many font sizes ends a run: it separates columns, tabs or the cells of a table.
_MAX_GAP_FONT_SIZES = 1.0
# So does a character that is this much higher or lower: further than any index.
_MAX_BASELINE_SHIFT_FONT_SIZES = 0.6

_FORCE_BOLD_FLAG = 1 << 18  # ISO 32000-1, table 123
# PDFium reports the weight of many embedded fonts as 0; their names contain it.
_BOLD_FONT_NAMES = (b"bold", b"black", b"heavy")


class TextFragment(NamedTuple):
    """A run of characters on one line.

    Distances are in points; ``y`` is that of the baseline, from the bottom of the page upwards.
    """

    left: float
    right: float
    y: float
    size: float
    is_bold: bool
    text: str


@dataclass(frozen=True)
class PdfPage:
    """A page: its number from 1, height in points, and fragments in the order of the file."""

    number: int
    height: float
    fragments: list[TextFragment]


class PdfOutlineEntry(NamedTuple):
    """A bookmark of a PDF; ``level`` 1 is the highest, ``page`` counts from 1, 0 is unknown."""

    level: int
    title: str
    page: int


@dataclass(frozen=True)
class PdfBook:
    """The content of a PDF: its title (empty where it has none), its pages, its outline."""

    title: str
    pages: list[PdfPage]
    outline: list[PdfOutlineEntry]


def read_pdf_book(path: Path) -> PdfBook:
    """Reads all runs of characters of a PDF.

    Raises:
        SourceError: it is encrypted, broken, or has no page.
    """
    import pypdfium2
    import pypdfium2.raw

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        message, hint = "this file is not a readable PDF", "give another copy of the book"
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            message = "this PDF is encrypted and needs a password"
            hint = "remove the password with the program that set it"
        raise SourceError(message, location=str(path), hint=hint) from None
    try:
        if not len(document):
            raise SourceError(
                "this PDF has no page", location=str(path), hint="give another copy of the book"
            )
        title = normalize_passage_text(document.get_metadata_value("Title") or "")
        pages = [_read_page(document, i, pypdfium2.raw) for i in range(len(document))]
        outline = []
        # A limit: the outline of a damaged file may be cyclic.
        for entry in document.get_toc(max_depth=8):
            target = entry.get_dest()
            index = target.get_index() if target else None
            heading = normalize_passage_text(entry.get_title() or "")
            page = 0 if index is None else index + 1
            outline.append(PdfOutlineEntry(entry.level + 1, heading, page))
        return PdfBook("" if title.lower() == "untitled" else title, pages, outline)
    finally:
        document.close()


def _read_page(document: Any, page_index: int, raw: Any) -> PdfPage:
    """Reads a page; a damaged one has no text, and is counted with the pages without text."""
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
        fragments = [
            fragment for fragment in _split_fragments(text_page.raw, raw) if fragment.text.strip()
        ]
        return PdfPage(page_index + 1, page.get_height(), fragments)
    finally:
        # PDFium's objects must be closed before their document is.
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
    """Yields runs of characters, cut at line ends, wide gaps and jumps up or down."""
    run: list[_Character] = []
    is_after_blank = False
    for character in _read_characters(text_page, raw):
        if character.letter.isspace():
            is_after_blank = True
            if character.letter in "\r\n" and run:
                yield _build_fragment(run)
                run = []
            continue
        if run:
            last, size = run[-1], max(run[-1].size, character.size)
            is_apart = (
                character.left - last.right > _MAX_GAP_FONT_SIZES * size
                or character.left < last.left - size  # back to the left: a new line
                or abs(character.y - last.y) > _MAX_BASELINE_SHIFT_FONT_SIZES * size
            )
            if is_apart:
                yield _build_fragment(run)
                run = []
            elif is_after_blank:
                # A blank of no width: PDFium guesses blanks, and their boxes are unreliable.
                run.append(character._replace(letter=" ", left=last.right, right=last.right))
        run.append(character)
        is_after_blank = False
    if run:
        yield _build_fragment(run)


def _build_fragment(characters: list[_Character]) -> TextFragment:
    """Builds a run of the median size, so that a raised number does not move the line."""
    sizes = sorted(character.size for character in characters)
    size = sizes[len(sizes) // 2]
    baselines = [character.y for character in characters if character.size == size]
    bold_count = sum(character.is_bold for character in characters)
    return TextFragment(
        left=min(character.left for character in characters),
        right=max(character.right for character in characters),
        y=sum(baselines) / len(baselines),
        size=size,
        is_bold=bold_count > len(characters) / 2,
        text="".join(character.letter for character in characters),
    )


def _read_characters(text_page: Any, raw: Any) -> Iterator[_Character]:
    """Yields the characters of a page, with the blanks and line ends that PDFium guesses.

    Size and weight are read once for each word, since every call into PDFium takes time.
    """
    box = [ctypes.c_double() for _ in range(4)]  # left, right, bottom, top
    sides = [ctypes.byref(side) for side in box]
    origin_x, origin_y = ctypes.c_double(), ctypes.c_double()
    font_name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    size, is_bold, is_word_start = 1.0, False, True
    for i in range(raw.FPDFText_CountChars(text_page)):
        code = raw.FPDFText_GetUnicode(text_page, i)
        # PDFium writes the hyphen at a line end as U+0002 or U+FFFE.
        letter = "-" if code in (0x02, 0xFFFE) else chr(code) if code <= 0x10FFFF else ""
        is_control = code < 0x20 and code not in (9, 10, 13) and letter != "-"
        if is_control or 0xD800 <= code < 0xE000 or not letter:
            continue
        if letter.isspace():
            yield _Character(letter, 0, 0, 0, 0, False)
            is_word_start = True
            continue
        if letter == "-" and raw.FPDFText_IsGenerated(text_page, i) == 1:
            continue
        raw.FPDFText_GetCharBox(text_page, i, *sides)
        raw.FPDFText_GetCharOrigin(text_page, i, ctypes.byref(origin_x), ctypes.byref(origin_y))
        if is_word_start:
            size = round(abs(raw.FPDFText_GetFontSize(text_page, i)), 1) or 1.0
            name_bytes = raw.FPDFText_GetFontInfo(
                text_page, i, font_name, len(font_name), ctypes.byref(flags)
            )
            name = font_name.raw[:name_bytes].lower()
            is_bold = bool(flags.value & _FORCE_BOLD_FLAG) or any(
                word in name for word in _BOLD_FONT_NAMES
            )
            is_word_start = False
        # The box may begin right of the origin, as for an "l", or left of it, as for a "j".
        yield _Character(
            letter,
            min(origin_x.value, box[0].value),
            max(origin_x.value, box[1].value),
            origin_y.value,
            size,
            is_bold,
        )
