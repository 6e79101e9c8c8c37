"""Tables and figures as HTML: every text escaped, every column that can be sorted a button, a value
with what stands under it in one cell."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from clinpeft.reports.formats import MISSING_VALUE_TEXT
from clinpeft.reports.html.svg import inline_svg
from clinpeft.reports.tables import CellValue, Estimate, ReportColumn, ReportTable, format_cell

MAX_OPEN_TABLE_LINES = 30
"""A table with more is folded until somebody opens it."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report.

    Attributes:
        name: of its files.
        title: in a few words.
        caption: under it.
        svg: the file; empty where it was not drawn.
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


def escape_html(text: str) -> str:
    """For an element or an attribute."""
    return html.escape(text, quote=True)


def render_table_element(
    table: ReportTable, tasks: Sequence[str] = (), row_names: Sequence[str] = (), task: str = ""
) -> str:
    """A table that can be sorted by any column and is filtered by task and row.

    Args:
        table: a column ``under`` another becomes a second line in its cells.
        tasks: names that a column, or a cell, may be about.
        row_names: names of rows of the grid.
        task: that the whole table is about; empty for all.
    """
    upper = [at for at, column in enumerate(table.columns) if not column.parent_title]
    texts = table.cell_texts
    shown = [
        [_format_cell_html(table, texts, line, at) for at in upper]
        for line in range(len(table.rows))
    ]
    head = "".join(_render_heading(table.columns[at], tasks) for at in upper)
    body = "".join(
        _render_row(table, line, cells, upper, tasks, row_names) for line, cells in enumerate(shown)
    )
    about = f' data-task="{escape_html(task)}"' if task else ""
    notes = "".join(f"<p>{escape_html(note)}</p>" for note in table.notes)
    title = escape_html(table.title)
    frame = f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">'
    caption = f"<caption>{title}</caption>"
    whole = (
        f"{frame}<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    if len(table.rows) > MAX_OPEN_TABLE_LINES:
        whole = f"<details><summary>{title}: {len(table.rows)} lines</summary>{whole}</details>"
    return f'<div class="tabled"{about}>{whole}<div class="notes">{notes}</div></div>'


def _render_heading(column: ReportColumn, tasks: Sequence[str]) -> str:
    about = f' data-task="{escape_html(column.title)}"' if column.title in tasks else ""
    kind = "" if column.is_text else ' class="number"'
    return (
        f'<th scope="col"{kind}{about}><button '
        f'type="button">{escape_html(column.title)}</button></th>'
    )


def _render_row(
    table: ReportTable,
    row_index: int,
    cells: Sequence[str],
    column_indices: Sequence[int],
    tasks: Sequence[str],
    row_names: Sequence[str],
) -> str:
    values = table.rows[row_index]
    words = [value for value in values if isinstance(value, str)]
    about = next((word for word in words if word in tasks), "")
    first = next((word for word in words if word in row_names), "")
    marks = (f' data-task="{escape_html(about)}"' if about else "") + (
        f' data-row="{escape_html(first)}"' if first else ""
    )
    inside = "".join(
        _render_cell(table.columns[at], values[at], cell, tasks, is_first=location == 0)
        for location, (at, cell) in enumerate(zip(column_indices, cells, strict=True))
    )
    return f"<tr{marks}>{inside}</tr>"


def _render_cell(
    column: ReportColumn, value: CellValue, cell: str, tasks: Sequence[str], is_first: bool
) -> str:
    number = value.value if isinstance(value, Estimate) else value
    sort = "" if number is None or isinstance(number, str) else f' data-value="{number!r}"'
    about = f' data-task="{escape_html(column.title)}"' if column.title in tasks else ""
    kind = "" if column.is_text else ' class="number"'
    return (
        f'<th scope="row"{sort}>{cell}</th>' if is_first else f"<td{kind}{sort}{about}>{cell}</td>"
    )


def _format_cell_html(
    table: ReportTable, texts: Sequence[Sequence[str]], row_index: int, column_index: int
) -> str:
    """The value, its interval smaller, and under them what stands under the column."""
    column, value, text = (
        table.columns[column_index],
        table.rows[row_index][column_index],
        texts[row_index][column_index],
    )
    if isinstance(value, Estimate) and value.low is not None and value.high is not None:
        interval = f"({column.formatter(value.low)}{' to ' if value.low < 0 else '–'}{column.formatter(value.high)})"  # noqa: E501
        text = (
            f"{escape_html(format_cell(value.value, column.formatter))} <span "
            f'class="interval">{escape_html(interval)}</span>'
        )
    else:
        text = escape_html(text)
    below = [
        (
            "<span "
            f'class="under">{escape_html(other.value_prefix or f"{other.title}: " * (not other.is_text))}{escape_html(texts[row_index][location])}</span>'  # noqa: E501
        )
        for location, other in enumerate(table.columns)
        if other.parent_title == column.title
        and texts[row_index][location] not in ("", MISSING_VALUE_TEXT)
    ]
    return text + "".join(below)


def render_figure_element(figure: ReportFigure) -> str:
    """A figure with its caption, or why there is none."""
    about = f' data-task="{escape_html(figure.task)}"' if figure.task else ""
    title = escape_html(figure.title)
    if not figure.svg:
        return (
            f'<p class="absent"{about}><strong>{title}</strong> was not drawn: '
            f"{escape_html(figure.reason)}.</p>"
        )
    picture = inline_svg(figure.svg, figure.name, f"{figure.title}. {figure.caption}")
    caption = f"<figcaption><strong>{title}.</strong> {escape_html(figure.caption)}</figcaption>"
    return (
        f'<figure id="{escape_html(figure.name)}"{about}><div '
        f'class="scroll">{picture}</div>{caption}</figure>'
    )
