"""Lines in reading order -> headings and paragraphs, over columns and pages."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from clinpeft.data.textbooks.lines import join_hyphenated_lines, count_unbroken_words
from clinpeft.data.textbooks.outline import BookBody, OutlineEvent, BookHeading
from clinpeft.data.textbooks.passages import normalize_passage_text
from clinpeft.data.textbooks.pdf.characters import PdfOutlineEntry
from clinpeft.data.textbooks.pdf.layout import TextLine, compute_body_font_size

_HEADING_SIZE_RATIO = 1.12  # times the size of the text: a heading
_MAX_HEADING_CHARACTERS = 200
_MIN_INDENTED_FRACTION = (
    0.05  # share of indented lines from which a book is one that indents its paragraphs
)
_SENTENCE_END_PATTERN = re.compile(r"[.!?:][\"”’')\]]*\d*$")


def parse_pdf_lines(
    pages: Sequence[Sequence[TextLine]], outline: Sequence[PdfOutlineEntry]
) -> Iterator[OutlineEvent]:
    """Headings and paragraphs, each placed by the page it begins on.

    Args:
        pages: lines in reading order, without running heads.
        outline: of the file; its titles are headings wherever they stand alone on their page, and its levels are believed.
    """
    lines = [line for page in pages for line in page]
    levels = _HeadingLevels(pages, outline)
    known = count_unbroken_words(line.text for line in lines)
    block: list[TextLine] = []
    for line in lines:
        if block and _starts_new_block(block, line, levels):
            yield _create_event(block, levels, known)
            block = []
        block.append(line)
    if block:
        yield _create_event(block, levels, known)


class _HeadingLevels:
    """Which lines are headings, and of which level."""

    def __init__(
        self, pages: Sequence[Sequence[TextLine]], outline: Sequence[PdfOutlineEntry]
    ) -> None:
        self.body_font_size = compute_body_font_size(pages)
        self.outline_levels = {
            (_normalize_title(entry.title), entry.page): entry.level
            for entry in outline
            if entry.title
        }
        lines = [line for page in pages for line in page]
        self.uses_indents = sum(
            _is_indented(line) for line in lines
        ) > _MIN_INDENTED_FRACTION * len(lines)
        self.max_outline_level = max((entry.level for entry in outline), default=0)
        sizes = sorted(
            {line.size for page in pages for line in page if self._is_larger(line)}, reverse=True
        )
        self.size_ranks = {size: rank for rank, size in enumerate(sizes, start=1)}

    def _is_larger(self, line: TextLine) -> bool:
        return (
            line.size >= _HEADING_SIZE_RATIO * self.body_font_size
            and len(line.text) <= _MAX_HEADING_CHARACTERS
            and any(letter.isalpha() for letter in line.text)
        )

    def is_bold_heading(self, line: TextLine) -> bool:
        """A short line by itself in bold, of the size of the text."""
        short = (
            line.right - line.left < 0.8 * (line.column_right - line.column_left)
            or line.column_right - line.column_left < 10 * line.size
        )
        return line.is_bold and short and not line.text.rstrip().endswith((".", ",", ";", ":"))

    def find_level(self, lines: Sequence[TextLine]) -> int:
        """The level of a heading made of these lines; 0 where they are none."""
        text = _normalize_title(" ".join(line.text for line in lines))
        listed = self.outline_levels.get((text, lines[0].page)) or self.outline_levels.get(
            (text, 0)
        )
        if listed:
            return listed
        if self._is_larger(lines[0]):
            return self.max_outline_level + self.size_ranks[lines[0].size]
        return (
            self.max_outline_level + len(self.size_ranks) + 1
            if self.is_bold_heading(lines[0])
            else 0
        )

    def get_style(self, line: TextLine) -> tuple[float, bool]:
        """What two lines of one heading share."""
        return (
            (line.size, True)
            if self._is_larger(line)
            else (self.body_font_size, self.find_level([line]) > 0)
        )


def _normalize_title(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _starts_new_block(block: list[TextLine], line: TextLine, levels: _HeadingLevels) -> bool:
    """Whether ``line`` begins something new after the lines of ``block``."""
    last = block[-1]
    if levels.get_style(last) != levels.get_style(line):
        return True
    heading = levels.get_style(last)[1]
    if (last.page, last.column_index) != (line.page, line.column_index):
        return heading or not _continues_paragraph(last, line, levels.uses_indents)
    if last.y - line.y > (2.0 if heading else _compute_max_line_step(block)) * max(
        last.size, line.size
    ):
        return True
    if heading:
        return False
    if _is_indented(line) and _is_short(last):
        return True
    indented = _is_indented(line) and last.left - last.column_left < 0.4 * last.size
    return (indented or _is_short(last)) and bool(_SENTENCE_END_PATTERN.search(last.text.rstrip()))


def _is_indented(line: TextLine) -> bool:
    return 0.8 * line.size < line.left - line.column_left < 4 * line.size


def _is_short(line: TextLine) -> bool:
    """Whether a line ends well before the edge of its column, as the last of a paragraph does."""
    return line.right < line.column_right - 0.15 * (line.column_right - line.column_left)


def _compute_max_line_step(block: list[TextLine]) -> float:
    """How many sizes further down the next line of the same paragraph may stand: a third more than the lines so far, 1.8 where there is only one."""
    steps = [
        (a.y - b.y) / a.size
        for a, b in itertools.pairwise(block)
        if (a.page, a.column_index) == (b.page, b.column_index)
    ]
    return 1.3 * min(steps) if steps else 1.8


def _continues_paragraph(previous_line: TextLine, line: TextLine, uses_indents: bool) -> bool:
    """Whether a paragraph goes on in the next column or on the next page.

    Where a sentence ends with the column, a book that indents its paragraphs tells by the next line; of any other book a new one is taken to begin.
    """
    text = previous_line.text.rstrip()
    if text.endswith("-") or _is_indented(line):
        return text.endswith("-")
    return not _SENTENCE_END_PATTERN.search(text) or (uses_indents and not _is_short(previous_line))


def _create_event(
    block: list[TextLine], levels: _HeadingLevels, word_counts: Counter[str]
) -> OutlineEvent:
    location = f"page {block[0].page}"
    text = normalize_passage_text(join_hyphenated_lines([line.text for line in block], word_counts))
    level = levels.find_level(block) if len(text) <= _MAX_HEADING_CHARACTERS else 0
    return BookHeading(level, text, location) if level else BookBody("paragraph", text, location)
