"""Runs of characters -> lines in reading order; recognizes running heads and page numbers.

A page is divided at its best gutter: the vertical line near its middle that the fewest runs cross,
where both sides have several lines at the same heights. What crosses it, such as a title over both
columns, divides the page into bands; in each band the left column is read before the right. Columns
are divided again in the same way (a recursive XY cut; Nagy and Seth 1984).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks.passages import PAGE_NUMBER, RUNNING_HEAD
from clinpeft.data.textbooks.pdf.characters import PdfPage, TextFragment

_SAME_LINE_FONT_SIZES = 0.4
_MIN_COLUMN_LINES = 3
_MAX_CROSSING_FRACTION = 0.25
# Running heads are in this outer fraction of the height of a page, and among its outer lines.
_PAGE_EDGE_FRACTION = 0.12
_EDGE_LINES = 2
_SAME_HEIGHT_POINTS = 4.0  # tolerance for a running head that is at one height on all pages
_MIN_COLUMN_LINE_CHARACTERS = 12  # on average; fewer are the cells of a table
_MIN_FULL_LINE_FRACTION = 0.6  # of the width of a column: a full line
_PAGE_NUMBER_PATTERN = re.compile(
    r"(?:page\s*)?[-–—\s]*(?:\d{1,4}|[ivxlc]{1,8})[-–—\s]*(?:(?:of|/)\s*\d{1,4})?", re.IGNORECASE
)


class TextLine(NamedTuple):
    """A printed line with its position and the edges of its column, in points."""

    page: int
    left: float
    right: float
    y: float
    size: float
    is_bold: bool
    text: str
    column_index: int
    column_left: float
    column_right: float
    is_at_page_edge: bool

    @property
    def is_indented(self) -> bool:
        """Whether the line begins like the first of a paragraph; further right is centered."""
        return 0.8 * self.size < self.left - self.column_left < 4 * self.size

    @property
    def is_short(self) -> bool:
        """Whether the line ends well before the edge of its column, as the last of a paragraph."""
        return self.right < self.column_right - 0.15 * (self.column_right - self.column_left)

    @property
    def running_head_key(self) -> tuple[str, int]:
        """What a running head has on every page: its words, numbers aside, and its height."""
        # The number of the page or chapter may be part of the running head.
        words = re.sub(r"\d+", "#", " ".join(self.text.lower().split()))
        return words, round(self.y / _SAME_HEIGHT_POINTS)


def order_page_lines(page: PdfPage) -> list[TextLine]:
    """Returns the lines of a page in reading order."""
    lines: list[TextLine] = []
    # Distinct heights: the two columns of a page share most of theirs.
    heights = sorted({fragment.y for fragment in page.fragments})
    outer_heights = {*heights[:_EDGE_LINES], *heights[-_EDGE_LINES:]}
    edge = _PAGE_EDGE_FRACTION * page.height
    for column_index, fragments in enumerate(_split_columns(page.fragments)):
        runs = _group_lines(fragments)
        # The left edge is where most lines begin, and the right edge where the long ones end: page
        # numbers and running heads are elsewhere.
        begins = Counter(round(run[0].left) for run in runs)
        column_left = float(max(begins, key=lambda left: (begins[left], -left)))
        ends = sorted(run[-1].right for run in runs)
        column_right = ends[math.ceil(0.9 * (len(ends) - 1))]
        for run in runs:
            y = run[0].y
            is_outside = y < edge or y > (1 - _PAGE_EDGE_FRACTION) * page.height
            lines.append(
                TextLine(
                    page=page.number,
                    left=run[0].left,
                    right=run[-1].right,
                    y=y,
                    size=max(run, key=lambda fragment: len(fragment.text)).size,
                    is_bold=all(fragment.is_bold for fragment in run),
                    text=" ".join(fragment.text for fragment in run),
                    column_index=column_index,
                    column_left=column_left,
                    column_right=column_right,
                    is_at_page_edge=y in outer_heights and is_outside,
                )
            )
    return lines


def _group_lines(fragments: Sequence[TextFragment]) -> list[list[TextFragment]]:
    """Groups runs into lines, from top to bottom, each from left to right."""
    lines: list[list[TextFragment]] = []
    for fragment in sorted(fragments, key=lambda fragment: -fragment.y):
        if lines:
            first = lines[-1][0]
            tolerance = _SAME_LINE_FONT_SIZES * max(fragment.size, first.size)
            if abs(first.y - fragment.y) <= tolerance:
                lines[-1].append(fragment)
                continue
        lines.append([fragment])
    return [sorted(line, key=lambda fragment: fragment.left) for line in lines]


def _split_columns(fragments: list[TextFragment]) -> list[list[TextFragment]]:
    """Returns the runs by column, in reading order."""
    gutter = _find_gutter(fragments)
    if gutter is None:
        return [fragments] if fragments else []
    # Titles, wide figures and tables that span both columns.
    crossing = [run for run in fragments if run.left < gutter < run.right]
    heights = sorted({run.y for run in crossing}, reverse=True)
    columns: list[list[TextFragment]] = []
    top = float("inf")
    for height in [*heights, float("-inf")]:
        band = [run for run in fragments if height < run.y < top and run not in crossing]
        columns += _split_columns([run for run in band if run.right <= gutter])
        columns += _split_columns([run for run in band if run.left >= gutter])
        columns += [[run for run in crossing if run.y == height]]
        top = height
    # Lines across both columns that follow each other are one column.
    merged: list[list[TextFragment]] = []
    for column in filter(None, columns):
        is_across = all(run.y in heights for run in column)
        if merged and is_across and all(run.y in heights for run in merged[-1]):
            merged[-1].extend(column)
        else:
            merged.append(list(column))
    return merged


def _find_gutter(fragments: list[TextFragment]) -> float | None:
    """Returns the x at which a page divides into two columns; None where it does not."""
    if len(fragments) < 2 * _MIN_COLUMN_LINES:
        return None
    left, right = min(run.left for run in fragments), max(run.right for run in fragments)
    # Not near the margins: an indent or a column of page numbers is no column of text.
    first, last = int(left + 0.2 * (right - left)), int(left + 0.8 * (right - left))
    crossings = {
        x: sum(run.left < x < run.right for run in fragments) for x in range(first, last + 1)
    }
    fewest = min(crossings.values())
    if fewest > _MAX_CROSSING_FRACTION * len(fragments):
        return None
    middle = (left + right) / 2
    candidates = [x for x, count in crossings.items() if count == fewest]
    for x in sorted(candidates, key=lambda x: abs(x - middle)):
        if _separates_columns(fragments, x):
            return float(x)
    return None


def _separates_columns(fragments: list[TextFragment], x: float) -> bool:
    """Whether both sides of ``x`` are columns: several lines of prose, beside each other.

    The cells of a table are beside each other too, but short: half of the lines of a column fill
    most of it.
    """
    sides = (
        _group_lines([run for run in fragments if run.right <= x]),
        _group_lines([run for run in fragments if run.left >= x]),
    )
    if any(len(lines) < _MIN_COLUMN_LINES for lines in sides):
        return False
    tops, bottoms = [lines[0][0].y for lines in sides], [lines[-1][0].y for lines in sides]
    if min(tops) <= max(bottoms):  # one above the other
        return False
    for lines in sides:
        width = max(line[-1].right for line in lines) - min(line[0].left for line in lines)
        min_full_width = _MIN_FULL_LINE_FRACTION * width
        full_lines = sum(line[-1].right - line[0].left > min_full_width for line in lines)
        characters = sum(len(run.text) for line in lines for run in line) / len(lines)
        if full_lines < len(lines) / 2 or characters < _MIN_COLUMN_LINE_CHARACTERS:
            return False
    return True


def remove_running_heads(
    pages: Sequence[Sequence[TextLine]],
) -> tuple[list[list[TextLine]], list[RejectedRow]]:
    """Removes what repeats at the heads and feet of pages.

    A line at the edge of a page is a running head where the same words, numbers aside, are there on
    three pages or more (two, in a book of four pages or fewer). The outermost line of a page that
    is only a number is its page number.

    Args:
        pages: lines in reading order, for each page.

    Returns:
        The remaining lines of each page, and the removed ones.
    """
    repeated: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for line in (line for lines in pages for line in lines):
        if line.is_at_page_edge:
            # Pages, not lines: a line that occurs twice on one page is no running head.
            repeated[line.running_head_key].add(line.page)
    min_pages = 2 if len(pages) <= 4 else 3
    text_pages: list[list[TextLine]] = []
    removed: list[RejectedRow] = []
    for lines in pages:
        heights = [line.y for line in lines]
        text_pages.append([])
        for line in lines:
            is_outermost = line.y in (max(heights), min(heights))
            is_number = bool(_PAGE_NUMBER_PATTERN.fullmatch(line.text.strip()))
            if line.is_at_page_edge and is_outermost and is_number:
                removed.append(RejectedRow(PAGE_NUMBER, f"page {line.page}"))
            elif line.is_at_page_edge and (len(repeated[line.running_head_key]) >= min_pages):
                removed.append(RejectedRow(RUNNING_HEAD, f"page {line.page}"))
            else:
                text_pages[-1].append(line)
    return text_pages, removed


def compute_body_font_size(pages: Sequence[Sequence[TextLine]]) -> float:
    """Returns the font size of most characters of a book; the larger of two, 0 without lines."""
    sizes = Counter[float]()
    for line in (line for lines in pages for line in lines):
        # By characters: headings have many lines of few.
        sizes[line.size] += len(line.text)
    return max(sizes, key=lambda size: (sizes[size], size), default=0.0)
