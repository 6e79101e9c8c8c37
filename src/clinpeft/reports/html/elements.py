"""Tables and figures as HTML: every text escaped, every column that can be sorted a button, a value with what stands under it in one cell."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from clinpeft.reports.formats import MISSING
from clinpeft.reports.html.svg import inlined
from clinpeft.reports.tables import Column, Estimate, Table, Value, printed

MOST_LINES = 30
"""A table with more is folded until somebody opens it."""


@dataclass(frozen=True)
class Drawing:
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


def escaped(text: str) -> str:
    """For an element or an attribute."""
    return html.escape(text, quote=True)


def table_element(
    table: Table, tasks: Sequence[str] = (), rows: Sequence[str] = (), task: str = ""
) -> str:
    """A table that can be sorted by any column and is filtered by task and row.

    Args:
        table: a column ``under`` another becomes a second line in its cells.
        tasks: names that a column, or a cell, may be about.
        rows: names of rows of the grid.
        task: that the whole table is about; empty for all.
    """
    upper = [at for at, column in enumerate(table.columns) if not column.under]
    texts = table.texts
    shown = [[_cell(table, texts, line, at) for at in upper] for line in range(len(table.rows))]
    head = "".join(_heading(table.columns[at], tasks) for at in upper)
    body = "".join(_row(table, line, cells, upper, tasks, rows) for line, cells in enumerate(shown))
    about = f' data-task="{escaped(task)}"' if task else ""
    notes = "".join(f"<p>{escaped(note)}</p>" for note in table.notes)
    title = escaped(table.title)
    frame = f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">'
    caption = f"<caption>{title}</caption>"
    whole = (
        f"{frame}<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    if len(table.rows) > MOST_LINES:
        whole = f"<details><summary>{title}: {len(table.rows)} lines</summary>{whole}</details>"
    return f'<div class="tabled"{about}>{whole}<div class="notes">{notes}</div></div>'


def _heading(column: Column, tasks: Sequence[str]) -> str:
    about = f' data-task="{escaped(column.title)}"' if column.title in tasks else ""
    kind = "" if column.is_text else ' class="number"'
    return (
        f'<th scope="col"{kind}{about}><button type="button">{escaped(column.title)}</button></th>'
    )


def _row(
    table: Table,
    line: int,
    cells: Sequence[str],
    upper: Sequence[int],
    tasks: Sequence[str],
    rows: Sequence[str],
) -> str:
    values = table.rows[line]
    words = [value for value in values if isinstance(value, str)]
    about = next((word for word in words if word in tasks), "")
    first = next((word for word in words if word in rows), "")
    marks = (f' data-task="{escaped(about)}"' if about else "") + (
        f' data-row="{escaped(first)}"' if first else ""
    )
    inside = "".join(
        _entry(table.columns[at], values[at], cell, tasks, is_first=location == 0)
        for location, (at, cell) in enumerate(zip(upper, cells, strict=True))
    )
    return f"<tr{marks}>{inside}</tr>"


def _entry(column: Column, value: Value, cell: str, tasks: Sequence[str], is_first: bool) -> str:
    number = value.value if isinstance(value, Estimate) else value
    sort = "" if number is None or isinstance(number, str) else f' data-value="{number!r}"'
    about = f' data-task="{escaped(column.title)}"' if column.title in tasks else ""
    kind = "" if column.is_text else ' class="number"'
    return (
        f'<th scope="row"{sort}>{cell}</th>' if is_first else f"<td{kind}{sort}{about}>{cell}</td>"
    )


def _cell(table: Table, texts: Sequence[Sequence[str]], line: int, at: int) -> str:
    """The value, its interval smaller, and under them what stands under the column."""
    column, value, text = table.columns[at], table.rows[line][at], texts[line][at]
    if isinstance(value, Estimate) and value.low is not None and value.high is not None:
        interval = (
            f"({column.show(value.low)}{' to ' if value.low < 0 else '–'}{column.show(value.high)})"
        )
        text = f'{escaped(printed(value.value, column.show))} <span class="interval">{escaped(interval)}</span>'
    else:
        text = escaped(text)
    below = [
        f'<span class="under">{escaped(other.mark or f"{other.title}: " * (not other.is_text))}{escaped(texts[line][location])}</span>'
        for location, other in enumerate(table.columns)
        if other.under == column.title and texts[line][location] not in ("", MISSING)
    ]
    return text + "".join(below)


def figure_element(drawing: Drawing) -> str:
    """A figure with its caption, or why there is none."""
    about = f' data-task="{escaped(drawing.task)}"' if drawing.task else ""
    title = escaped(drawing.title)
    if not drawing.svg:
        return f'<p class="absent"{about}><strong>{title}</strong> was not drawn: {escaped(drawing.reason)}.</p>'
    picture = inlined(drawing.svg, drawing.name, f"{drawing.title}. {drawing.caption}")
    caption = f"<figcaption><strong>{title}.</strong> {escaped(drawing.caption)}</figcaption>"
    return f'<figure id="{escaped(drawing.name)}"{about}><div class="scroll">{picture}</div>{caption}</figure>'
