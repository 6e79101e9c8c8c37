"""Lines in reading order -> headings and paragraphs, over columns and pages."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from clinpeft.data.textbooks.lines import count_unbroken_words, join_hyphenated_lines
from clinpeft.data.textbooks.outline import BookBody, BookHeading, OutlineEvent
from clinpeft.data.textbooks.passages import normalize_passage_text
from clinpeft.data.textbooks.pdf.characters import PdfOutlineEntry
from clinpeft.data.textbooks.pdf.layout import TextLine, compute_body_font_size

# Times the size of running text.
_HEADING_SIZE_RATIO = 1.12
_MAX_HEADING_CHARACTERS = 200
# Books with this fraction of indented lines indent their paragraphs.
_MIN_INDENTED_FRACTION = 0.05
# Line pitch in font sizes at which a paragraph ends: after its first line, and in a heading.
_MAX_FIRST_LINE_STEP, _MAX_HEADING_LINE_STEP = 1.8, 2.0
# Quotes, brackets and the number of a note may follow the full stop.
_SENTENCE_END_PATTERN = re.compile(r"[.!?:][\"”’')\]]*\d*$")


def parse_pdf_lines(
    pages: Sequence[Sequence[TextLine]], outline: Sequence[PdfOutlineEntry]
) -> Iterator[OutlineEvent]:
    """Yields headings and paragraphs, each located by the page it begins on.

    Args:
        pages: lines in reading order, without running heads.
        outline: of the file; its titles are headings wherever they are a block of their own on
            their page, with the level of the outline.
    """
    lines = [line for page in pages for line in page]
    levels = _HeadingLevels(pages, outline)
    word_counts = count_unbroken_words(line.text for line in lines)
    block: list[TextLine] = []
    for i, line in enumerate(lines):
        block.append(line)
        if i + 1 < len(lines) and not _starts_new_block(block, lines[i + 1], levels):
            continue
        text = normalize_passage_text(
            join_hyphenated_lines([line.text for line in block], word_counts)
        )
        location = f"page {block[0].page}"
        # A long block in large type is a preface, not a heading.
        level = levels.find_level(block) if len(text) <= _MAX_HEADING_CHARACTERS else 0
        if level:
            yield BookHeading(level, text, location)
        else:
            yield BookBody("paragraph", text, location)
        block = []


class _HeadingLevels:
    """Recognizes headings and their levels by the outline of the file, by size and by weight."""

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
        indented = sum(line.is_indented for line in lines)
        self.uses_indents = indented > _MIN_INDENTED_FRACTION * len(lines)
        # Headings that the outline does not list are below those it does.
        self.max_outline_level = max((entry.level for entry in outline), default=0)
        # The larger the type, the higher the level.
        sizes = sorted({line.size for line in lines if self._is_larger(line)}, reverse=True)
        self.size_ranks = {size: rank for rank, size in enumerate(sizes, start=1)}

    def _is_larger(self, line: TextLine) -> bool:
        """Whether a line is set larger than the text, and is no drop cap or long passage."""
        return (
            line.size >= _HEADING_SIZE_RATIO * self.body_font_size
            and len(line.text) <= _MAX_HEADING_CHARACTERS
            and any(letter.isalpha() for letter in line.text)
        )

    def is_bold_heading(self, line: TextLine) -> bool:
        """Whether a line is short, bold and no sentence, at the size of the text."""
        column_width = line.column_right - line.column_left
        # In a narrow column, such as one of headings only, every line is long.
        is_short = line.right - line.left < 0.8 * column_width or column_width < 10 * line.size
        is_sentence = line.text.rstrip().endswith((".", ",", ";", ":"))
        return line.is_bold and is_short and not is_sentence

    def find_level(self, lines: Sequence[TextLine]) -> int:
        """Returns the level of the heading that these lines are; 0 for other text."""
        title = _normalize_title(" ".join(line.text for line in lines))
        # Page 0: the outline does not say where the heading is.
        for page in (lines[0].page, 0):
            if level := self.outline_levels.get((title, page)):
                return level
        if self._is_larger(lines[0]):
            return self.max_outline_level + self.size_ranks[lines[0].size]
        if self.is_bold_heading(lines[0]):
            return self.max_outline_level + len(self.size_ranks) + 1
        return 0

    def get_style(self, line: TextLine) -> tuple[float, bool]:
        """Returns (size, whether it is a heading), which the lines of one block share."""
        if self._is_larger(line):
            return line.size, True
        return self.body_font_size, self.find_level([line]) > 0


def _normalize_title(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _starts_new_block(block: list[TextLine], line: TextLine, levels: _HeadingLevels) -> bool:
    """Whether ``line`` begins another heading or paragraph than the lines of ``block``."""
    last, style = block[-1], levels.get_style(block[-1])
    if style != levels.get_style(line):
        return True
    is_heading = style[1]
    is_sentence_end = bool(_SENTENCE_END_PATTERN.search(last.text.rstrip()))
    if (last.page, last.column_index) != (line.page, line.column_index):
        # A paragraph may continue in the next column or on the next page. Where a sentence ends
        # with the column, an indent would show a new paragraph, in books that have indents; in any
        # other book a new one is assumed.
        is_full_line = levels.uses_indents and not last.is_short
        continues = last.text.rstrip().endswith("-") or (
            not line.is_indented and (not is_sentence_end or is_full_line)
        )
        return is_heading or not continues
    max_step = _MAX_HEADING_LINE_STEP if is_heading else _compute_max_line_step(block)
    # Measured in font sizes, so that headings and footnotes follow the same rule.
    is_apart = last.y - line.y > max_step * max(last.size, line.size)
    if is_apart or is_heading:
        return is_apart
    # An indent after a line that is indented too is that of a quotation or list.
    is_new_indent = line.is_indented and last.left - last.column_left < 0.4 * last.size
    return (line.is_indented and last.is_short) or (
        (is_new_indent or last.is_short) and is_sentence_end
    )


def _compute_max_line_step(block: list[TextLine]) -> float:
    """Returns the largest distance, in font sizes, to the next line of the same paragraph.

    It is a third more than the smallest between the lines so far.
    """
    steps = [
        (upper.y - lower.y) / upper.size
        for upper, lower in itertools.pairwise(block)
        if (upper.page, upper.column_index) == (lower.page, lower.column_index)
    ]
    return 1.3 * min(steps) if steps else _MAX_FIRST_LINE_STEP
