"""Runs of characters -> lines in reading order, and which of them are running heads and page numbers.

A page is cut at its best gutter: the upright line in its middle that the fewest runs cross, where both sides have several lines at the same heights.
What crosses it, such as a title over both columns, cuts the page into bands; in each band the left column is read before the right. A column is cut
again.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from clinpeft.data.textbooks.passages import PAGE_NUMBER, RUNNING_HEAD, RejectedPassage
from clinpeft.data.textbooks.pdf.characters import PdfPage, TextFragment

_SAME_LINE_FONT_SIZES = 0.4
_MIN_COLUMN_LINES = 3
_MAX_CROSSING_FRACTION = 0.25
_PAGE_EDGE_FRACTION = 0.12  # of the height of a page: where heads and feet stand
_EDGE_LINES = 2  # and they are among so many lines from its end
_SAME_HEIGHT_POINTS = 4.0  # points: a running head stands at the same height on every page
_PAGE_NUMBER_PATTERN = re.compile(
    r"(?:page\s*)?[-–—\s]*(?:\d{1,4}|[ivxlc]{1,8})[-–—\s]*(?:(?:of|/)\s*\d{1,4})?", re.IGNORECASE
)


class TextLine(NamedTuple):
    """A line of print: where it stands, and the edges of the column it stands in."""

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


def order_page_lines(page: PdfPage) -> list[TextLine]:
    """The lines of a page in reading order."""
    lines: list[TextLine] = []
    heights = sorted({piece.y for piece in page.fragments})
    outer = {*heights[:_EDGE_LINES], *heights[-_EDGE_LINES:]}
    for column, pieces in enumerate(_split_columns(page.fragments)):
        runs = _group_lines(pieces)
        left, right = _find_column_edges(runs)
        for run in runs:
            size = max(run, key=lambda piece: len(piece.text)).size
            text = " ".join(piece.text for piece in run)
            y, bold = run[0].y, all(piece.is_bold for piece in run)
            edge = y in outer and (
                y < _PAGE_EDGE_FRACTION * page.height or y > (1 - _PAGE_EDGE_FRACTION) * page.height
            )
            lines.append(
                TextLine(
                    page.number,
                    run[0].left,
                    run[-1].right,
                    y,
                    size,
                    bold,
                    text,
                    column,
                    left,
                    right,
                    edge,
                )
            )
    return lines


def _find_column_edges(lines: Sequence[Sequence[TextFragment]]) -> tuple[float, float]:
    """Where most lines of a column begin, and where its long ones end: a page number or a running head stands where it likes."""
    begins = Counter(round(run[0].left) for run in lines)
    usual = max(begins, key=lambda left: (begins[left], -left))
    ends = sorted(run[-1].right for run in lines)
    return float(usual), ends[math.ceil(0.9 * (len(ends) - 1))]


def _group_lines(fragments: Sequence[TextFragment]) -> list[list[TextFragment]]:
    """Pieces that stand on one line, from left to right, the lines from top to bottom."""
    lines: list[list[TextFragment]] = []
    for piece in sorted(fragments, key=lambda piece: -piece.y):
        if lines and abs(lines[-1][0].y - piece.y) <= _SAME_LINE_FONT_SIZES * max(
            piece.size, lines[-1][0].size
        ):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [sorted(line, key=lambda piece: piece.left) for line in lines]


def _split_columns(fragments: list[TextFragment]) -> list[list[TextFragment]]:
    """Pieces by column, in reading order."""
    gutter = _find_gutter(fragments)
    if gutter is None:
        return [fragments] if fragments else []
    crossing = [piece for piece in fragments if piece.left < gutter < piece.right]
    heights = sorted({piece.y for piece in crossing}, reverse=True)
    found: list[list[TextFragment]] = []
    above = float("inf")
    for height in [*heights, float("-inf")]:
        band = [piece for piece in fragments if height < piece.y < above and piece not in crossing]
        for side in ([p for p in band if p.right <= gutter], [p for p in band if p.left >= gutter]):
            found.extend(_split_columns(side))
        across = [piece for piece in crossing if piece.y == height]
        if across:
            found.append(across)
        above = height
    return _merge_spanning_lines(found, set(heights))


def _merge_spanning_lines(
    columns: list[list[TextFragment]], heights: set[float]
) -> list[list[TextFragment]]:
    """Lines across both columns that follow each other are one column."""
    joined: list[list[TextFragment]] = []
    for column in columns:
        across = all(piece.y in heights for piece in column)
        if joined and across and all(piece.y in heights for piece in joined[-1]):
            joined[-1].extend(column)
        else:
            joined.append(list(column))
    return joined


def _find_gutter(fragments: list[TextFragment]) -> float | None:
    """Where a page falls into two columns; None where it does not."""
    if len(fragments) < 2 * _MIN_COLUMN_LINES:
        return None
    left, right = min(piece.left for piece in fragments), max(piece.right for piece in fragments)
    first, last = int(left + 0.2 * (right - left)), int(left + 0.8 * (right - left))
    crossings = {
        x: sum(piece.left < x < piece.right for piece in fragments) for x in range(first, last + 1)
    }
    least = min(crossings.values())
    if least > _MAX_CROSSING_FRACTION * len(fragments):
        return None
    middle = (left + right) / 2
    for x in sorted(
        (x for x, count in crossings.items() if count == least), key=lambda x: abs(x - middle)
    ):
        if _is_gutter(fragments, x):
            return float(x)
    return None


def _is_gutter(fragments: list[TextFragment], x: float) -> bool:
    """Whether both sides of ``x`` are columns: several lines, wide enough for prose, beside each other.

    The cells of a table stand beside each other too, but are short: half of the lines of a column fill most of it.
    """
    sides = [[p for p in fragments if p.right <= x], [p for p in fragments if p.left >= x]]
    lines = [_group_lines(side) for side in sides]
    if any(len(side) < _MIN_COLUMN_LINES for side in lines):
        return False
    (low_left, high_left), (low_right, high_right) = (
        (side[-1][0].y, side[0][0].y) for side in lines
    )
    if min(high_left, high_right) <= max(low_left, low_right):
        return False
    for side in lines:
        width = max(run[-1].right for run in side) - min(run[0].left for run in side)
        full = sum(run[-1].right - run[0].left > 0.6 * width for run in side)
        letters = sum(len(piece.text) for run in side for piece in run) / len(side)
        if full < len(side) / 2 or letters < 12:
            return False
    return True


def remove_running_heads(
    pages: Sequence[Sequence[TextLine]],
) -> tuple[list[list[TextLine]], list[RejectedPassage]]:
    """The lines of all pages without what repeats at their heads and feet, and what that was.

    A line in the outer ``_EDGE`` of a page is a running head where the same words, numbers aside, stand there on three pages or more (two, of a
    book of four pages or fewer). The outermost line of a page that is only a number is its number.
    """
    repeated: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for lines in pages:
        for line in lines:
            if line.is_at_page_edge:
                repeated[_normalize_running_head(line)].add(line.page)
    least = 2 if len(pages) <= 4 else 3
    kept: list[list[TextLine]] = []
    lost: list[RejectedPassage] = []
    for lines in pages:
        outermost = (
            {max(line.y for line in lines), min(line.y for line in lines)} if lines else set()
        )
        reasons = [
            _find_drop_reason(
                line, outermost, len(repeated[_normalize_running_head(line)]) >= least
            )
            for line in lines
        ]
        kept.append([line for line, reason in zip(lines, reasons, strict=True) if not reason])
        lost.extend(
            RejectedPassage(reason, f"page {line.page}")
            for line, reason in zip(lines, reasons, strict=True)
            if reason
        )
    return kept, lost


def _find_drop_reason(line: TextLine, outermost_heights: set[float], is_repeated: bool) -> str:
    if (
        line.is_at_page_edge
        and line.y in outermost_heights
        and _PAGE_NUMBER_PATTERN.fullmatch(line.text.strip())
    ):
        return PAGE_NUMBER
    return RUNNING_HEAD if line.is_at_page_edge and is_repeated else ""


def _normalize_running_head(line: TextLine) -> tuple[str, int]:
    """What a running head has on every page: its words, numbers aside, and its height."""
    return re.sub(r"\d+", "#", " ".join(line.text.lower().split())), round(
        line.y / _SAME_HEIGHT_POINTS
    )


def compute_body_font_size(pages: Sequence[Sequence[TextLine]]) -> float:
    """The size in which most of a book is set."""
    sizes = Counter[float]()
    for line in (line for lines in pages for line in lines):
        sizes[line.size] += len(line.text)
    return max(sizes, key=lambda size: (sizes[size], size), default=0.0)
