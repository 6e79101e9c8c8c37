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

from clinpeft.data.textbooks.passages import PAGE_NUMBER, RUNNING_HEAD, Lost
from clinpeft.data.textbooks.pdf.characters import Page, Piece

_SAME_LINE_SIZES = 0.4
_LEAST_LINES = 3
_MOST_CROSSING = 0.25
_EDGE = 0.12  # of the height of a page: where heads and feet stand
_EDGE_LINES = 2  # and they are among so many lines from its end
_SAME_HEIGHT = 4.0  # points: a running head stands at the same height on every page
_PAGE_NUMBER = re.compile(
    r"(?:page\s*)?[-–—\s]*(?:\d{1,4}|[ivxlc]{1,8})[-–—\s]*(?:(?:of|/)\s*\d{1,4})?", re.IGNORECASE
)


class Line(NamedTuple):
    """A line of print: where it stands, and the edges of the column it stands in."""

    page: int
    left: float
    right: float
    y: float
    size: float
    bold: bool
    text: str
    column: int
    column_left: float
    column_right: float
    at_edge: bool


def ordered(page: Page) -> list[Line]:
    """The lines of a page in reading order."""
    lines: list[Line] = []
    heights = sorted({piece.y for piece in page.pieces})
    outer = {*heights[:_EDGE_LINES], *heights[-_EDGE_LINES:]}
    for column, pieces in enumerate(_columns(page.pieces)):
        runs = _runs(pieces)
        left, right = _edges(runs)
        for run in runs:
            size = max(run, key=lambda piece: len(piece.text)).size
            text = " ".join(piece.text for piece in run)
            y, bold = run[0].y, all(piece.bold for piece in run)
            edge = y in outer and (y < _EDGE * page.height or y > (1 - _EDGE) * page.height)
            lines.append(
                Line(
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


def _edges(runs: Sequence[Sequence[Piece]]) -> tuple[float, float]:
    """Where most lines of a column begin, and where its long ones end: a page number or a running head stands where it likes."""
    begins = Counter(round(run[0].left) for run in runs)
    usual = max(begins, key=lambda left: (begins[left], -left))
    ends = sorted(run[-1].right for run in runs)
    return float(usual), ends[math.ceil(0.9 * (len(ends) - 1))]


def _runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that stand on one line, from left to right, the lines from top to bottom."""
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.y):
        if lines and abs(lines[-1][0].y - piece.y) <= _SAME_LINE_SIZES * max(
            piece.size, lines[-1][0].size
        ):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [sorted(line, key=lambda piece: piece.left) for line in lines]


def _columns(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces by column, in reading order."""
    gutter = _gutter(pieces)
    if gutter is None:
        return [pieces] if pieces else []
    crossing = [piece for piece in pieces if piece.left < gutter < piece.right]
    heights = sorted({piece.y for piece in crossing}, reverse=True)
    found: list[list[Piece]] = []
    above = float("inf")
    for height in [*heights, float("-inf")]:
        band = [piece for piece in pieces if height < piece.y < above and piece not in crossing]
        for side in ([p for p in band if p.right <= gutter], [p for p in band if p.left >= gutter]):
            found.extend(_columns(side))
        across = [piece for piece in crossing if piece.y == height]
        if across:
            found.append(across)
        above = height
    return _together(found, set(heights))


def _together(columns: list[list[Piece]], heights: set[float]) -> list[list[Piece]]:
    """Lines across both columns that follow each other are one column."""
    joined: list[list[Piece]] = []
    for column in columns:
        across = all(piece.y in heights for piece in column)
        if joined and across and all(piece.y in heights for piece in joined[-1]):
            joined[-1].extend(column)
        else:
            joined.append(list(column))
    return joined


def _gutter(pieces: list[Piece]) -> float | None:
    """Where a page falls into two columns; None where it does not."""
    if len(pieces) < 2 * _LEAST_LINES:
        return None
    left, right = min(piece.left for piece in pieces), max(piece.right for piece in pieces)
    first, last = int(left + 0.2 * (right - left)), int(left + 0.8 * (right - left))
    crossings = {
        x: sum(piece.left < x < piece.right for piece in pieces) for x in range(first, last + 1)
    }
    least = min(crossings.values())
    if least > _MOST_CROSSING * len(pieces):
        return None
    middle = (left + right) / 2
    for x in sorted(
        (x for x, count in crossings.items() if count == least), key=lambda x: abs(x - middle)
    ):
        if _falls_apart(pieces, x):
            return float(x)
    return None


def _falls_apart(pieces: list[Piece], x: float) -> bool:
    """Whether both sides of ``x`` are columns: several lines, wide enough for prose, beside each other.

    The cells of a table stand beside each other too, but are short: half of the lines of a column fill most of it.
    """
    sides = [[p for p in pieces if p.right <= x], [p for p in pieces if p.left >= x]]
    lines = [_runs(side) for side in sides]
    if any(len(side) < _LEAST_LINES for side in lines):
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


def without_running_heads(pages: Sequence[Sequence[Line]]) -> tuple[list[list[Line]], list[Lost]]:
    """The lines of all pages without what repeats at their heads and feet, and what that was.

    A line in the outer ``_EDGE`` of a page is a running head where the same words, numbers aside, stand there on three pages or more (two, of a
    book of four pages or fewer). The outermost line of a page that is only a number is its number.
    """
    repeated: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for lines in pages:
        for line in lines:
            if line.at_edge:
                repeated[_shape(line)].add(line.page)
    least = 2 if len(pages) <= 4 else 3
    kept: list[list[Line]] = []
    lost: list[Lost] = []
    for lines in pages:
        outermost = (
            {max(line.y for line in lines), min(line.y for line in lines)} if lines else set()
        )
        reasons = [_reason(line, outermost, len(repeated[_shape(line)]) >= least) for line in lines]
        kept.append([line for line, reason in zip(lines, reasons, strict=True) if not reason])
        lost.extend(
            Lost(reason, f"page {line.page}")
            for line, reason in zip(lines, reasons, strict=True)
            if reason
        )
    return kept, lost


def _reason(line: Line, outermost: set[float], repeats: bool) -> str:
    if line.at_edge and line.y in outermost and _PAGE_NUMBER.fullmatch(line.text.strip()):
        return PAGE_NUMBER
    return RUNNING_HEAD if line.at_edge and repeats else ""


def _shape(line: Line) -> tuple[str, int]:
    """What a running head has on every page: its words, numbers aside, and its height."""
    return re.sub(r"\d+", "#", " ".join(line.text.lower().split())), round(line.y / _SAME_HEIGHT)


def body_size(pages: Sequence[Sequence[Line]]) -> float:
    """The size in which most of a book is set."""
    sizes = Counter[float]()
    for line in (line for lines in pages for line in lines):
        sizes[line.size] += len(line.text)
    return max(sizes, key=lambda size: (sizes[size], size), default=0.0)
