"""Tables and figures in the form in which the templates of a page write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from clinpeft.reports.formats import MISSING_VALUE_TEXT
from clinpeft.reports.html.svg import inline_svg
from clinpeft.reports.tables import (
    CellValue,
    Estimate,
    ReportColumn,
    ReportTable,
    format_cell,
    format_interval,
)

# A table with more lines is folded until it is opened
MAX_OPEN_TABLE_LINES = 30


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        name: of its files.
        title: in a few words.
        caption: below it.
        svg: the file; empty if it was not drawn.
        png: the file.
        reason: why it was not drawn.
        task: that it is about; empty for all.
    """

    name: str
    title: str
    caption: str
    svg: str = ""
    png: bytes = b""
    reason: str = ""
    task: str = ""

    @property
    def is_table(self) -> bool:
        """Always false: templates ask every block of a section."""
        return False

    @property
    def drawing(self) -> Markup:
        """The SVG as an element of a page; empty if it was not drawn."""
        if not self.svg:
            return Markup()
        # Markup: the SVG is of our own making, and its texts were escaped when it was written
        return Markup(inline_svg(self.svg, self.name, f"{self.title}. {self.caption}"))


@dataclass(frozen=True)
class TableCell:
    """A cell on a page.

    Attributes:
        column: of the table.
        text: the value.
        interval: printed smaller beside it; empty for none.
        below: values of the columns that belong to this one, a line each.
        number: by which the column is sorted; empty for text.
    """

    column: ReportColumn
    text: str
    interval: str
    below: tuple[str, ...]
    number: str


@dataclass(frozen=True)
class TableRow:
    """A row on a page.

    Attributes:
        task: that it is about; empty for none.
        name: of the row of the grid that it belongs to; empty for none.
        cells: left to right.
    """

    task: str
    name: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class TableElement:
    """A table on a page, which can be sorted by any column and is filtered by task and row.

    Attributes:
        title: above it.
        task: that it is about; empty for all.
        columns: those that belong to no other one.
        rows: top to bottom.
        notes: below it.
    """

    title: str
    task: str
    columns: tuple[ReportColumn, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]

    @property
    def is_table(self) -> bool:
        """Always true: templates ask every block of a section."""
        return True

    @property
    def is_folded(self) -> bool:
        """Whether it is closed until it is opened."""
        return len(self.rows) > MAX_OPEN_TABLE_LINES


def build_table_element(
    table: ReportTable, tasks: Sequence[str] = (), row_names: Sequence[str] = (), task: str = ""
) -> TableElement:
    """A table as a page writes it.

    Args:
        table: a column with a parent becomes a second line in the cells of that column.
        tasks: names by which a page is filtered.
        row_names: names of rows of the grid, likewise.
        task: that the whole table is about; empty for all.
    """
    # Indices of the columns that remain columns; the others go into their cells
    upper = [at for at, column in enumerate(table.columns) if not column.parent_title]
    rows = []
    for values, texts in zip(table.rows, table.cell_texts, strict=True):
        cells = tuple(_build_cell(table, values, texts, at) for at in upper)
        rows.append(TableRow(_find_first(values, tasks), _find_first(values, row_names), cells))
    columns = tuple(table.columns[at] for at in upper)
    return TableElement(table.title, task, columns, tuple(rows), table.notes)


def _find_first(values: Iterable[CellValue], names: Sequence[str]) -> str:
    """The first cell that is one of some names; empty if none is."""
    return next((value for value in values if isinstance(value, str) and value in names), "")


def _build_cell(
    table: ReportTable, values: Sequence[CellValue], texts: Sequence[str], at: int
) -> TableCell:
    """The cell of column ``at`` of a row, with those of the columns that belong to it."""
    column, value, text, interval = table.columns[at], values[at], texts[at], ""
    # Value and interval apart, since the page prints the interval smaller
    if isinstance(value, Estimate) and (interval := format_interval(value, column.formatter)):
        text = format_cell(value.value, column.formatter)
    below = tuple(
        (child.value_prefix or ("" if child.is_text else f"{child.title}: ")) + child_text
        for child, child_text in zip(table.columns, texts, strict=True)
        if child.parent_title == column.title and child_text not in ("", MISSING_VALUE_TEXT)
    )
    # Sorted by the number itself: 1,000 is before 9 as text
    number = value.value if isinstance(value, Estimate) else value
    is_text = number is None or isinstance(number, str)
    return TableCell(column, text, interval, below, "" if is_text else repr(number))
