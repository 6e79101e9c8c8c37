"""A table, and its renderings: terminal, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import rich.box
import rich.table
import rich.text

from clinpeft.reports.formats import MISSING_VALUE_TEXT, format_number
from clinpeft.runs import write_file_atomically


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; None where it is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def average_estimates(estimates: Sequence[Estimate]) -> Estimate | None:
    """Over seeds, of the values and of each end of the intervals: all seeds are asked about the
    same people or pairs, so their sampling errors do not average out."""
    if not estimates:
        return None
    parts = [
        [getattr(estimate, field.name) for estimate in estimates]
        for field in dataclasses.fields(Estimate)
    ]
    return Estimate(*(None if None in part else statistics.fmean(part) for part in parts))


def compute_seed_spread(values: Sequence[float]) -> Estimate | None:
    """Standard deviation (n - 1) over seeds, smallest and largest; None of fewer than two."""
    return Estimate(statistics.stdev(values), min(values), max(values)) if len(values) > 1 else None


CellValue = str | int | float | Estimate | None


@dataclass(frozen=True)
class ReportColumn:
    """A column.

    Attributes:
        title: its heading.
        formatter: a number to its text.
        is_text: set to the left, and not to the right as numbers are.
        is_estimate: holds ``Estimate`` cells; three columns in CSV.
        is_unbroken: on a terminal, never goes on in the next line: for what is copied from it.
        parent_title: title of the column that it stands beside; a terminal, which has no room for
            that, shows its values under those, in brackets.
        value_prefix: what a terminal says before such a value, so that several can stand under one
            column.
    """

    title: str
    formatter: Callable[[float], str] = format_number
    is_text: bool = False
    is_estimate: bool = False
    is_unbroken: bool = False
    parent_title: str = ""
    value_prefix: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Attributes:
        title: above it.
        columns: left to right.
        rows: top to bottom, a value a column; a text is printed as it is, a number by its column,
            None as a dash.
        notes: under it, a paragraph each.
    """

    title: str
    columns: tuple[ReportColumn, ...]
    rows: tuple[tuple[CellValue, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def cell_texts(self) -> list[list[str]]:
        """Every cell as printed."""
        return [
            [
                format_cell(value, column.formatter)
                for column, value in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]


def table_from_arrow(title: str, rows: pa.Table, notes: Sequence[str] = ()) -> ReportTable:
    """An Arrow table as it is: its columns under their names, texts to the left and numbers to the
    right."""
    columns = tuple(
        ReportColumn(
            field.name.replace("_", " "),
            is_text=not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)),
        )
        for field in rows.schema
    )
    return ReportTable(
        title, columns, tuple(tuple(row.values()) for row in rows.to_pylist()), tuple(notes)
    )


def as_rich_table(table: ReportTable) -> rich.table.Table:
    """For a terminal; no cell is read as markup, and where there is no room a cell goes on in the
    next line: no digit is lost."""
    lower = [(at, column) for at, column in enumerate(table.columns) if column.parent_title]
    upper = [(at, column) for at, column in enumerate(table.columns) if not column.parent_title]
    unmarked = [column.title for _, column in lower if not column.value_prefix]
    notes = [*table.notes, *([f"In square brackets: {', '.join(unmarked)}."] if unmarked else [])]
    shown = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", title_justify="left"
    )
    shown.title, shown.caption = rich.text.Text(table.title), rich.text.Text("\n".join(notes))
    for _, column in upper:
        shown.add_column(
            rich.text.Text(column.title),
            justify="left" if column.is_text else "right",
            overflow="fold",
            no_wrap=column.is_unbroken,
        )
    for row in table.cell_texts:
        below = [
            (column.parent_title, f"\n[{column.value_prefix}{row[at]}]")
            for at, column in lower
            if row[at] not in ("", MISSING_VALUE_TEXT)
        ]
        shown.add_row(
            *(
                rich.text.Text(
                    row[at] + "".join(text for title, text in below if title == column.title)
                )
                for at, column in upper
            )
        )
    return shown


def as_markdown_table(table: ReportTable) -> str:
    """A GitHub table with its title as a heading."""
    lines = [
        [_escape_markdown(column.title) for column in table.columns],
        ["---" if c.is_text else "---:" for c in table.columns],
    ]
    lines += [[_escape_markdown(text) for text in row] for row in table.cell_texts]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        "\n\n".join(
            [f"## {_escape_markdown(table.title)}", body, *map(_escape_markdown, table.notes)]
        )
        + "\n"
    )


def as_csv_table(table: ReportTable) -> str:
    """Numbers in full, without the formatting; an estimate is three columns, what is missing is
    empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([title for column in table.columns for title in _list_csv_titles(column)])
    for row in table.rows:
        writer.writerow(
            [
                entry
                for column, value in zip(table.columns, row, strict=True)
                for entry in _to_csv_cells(column, value)
            ]
        )
    return file.getvalue()


def as_latex_table(table: ReportTable) -> str:
    """A floating table for the packages ``booktabs`` and, for its marks, ``inputenc`` with
    UTF-8."""
    layout = "".join("l" if column.is_text else "r" for column in table.columns)
    head = " & ".join(_escape_latex(column.title) for column in table.columns) + r" \\"
    body = [" & ".join(_escape_latex(text) for text in row) + r" \\" for row in table.cell_texts]
    notes = [rf"\par\footnotesize {_escape_latex(note)}" for note in table.notes]
    caption = rf"\caption{{{_escape_latex(table.title)}}}"
    opening = [
        r"\begin{table}",
        r"\centering",
        caption,
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        head,
        r"\midrule",
    ]
    return (
        "\n".join([*opening, *body, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"])
        + "\n"
    )


TABLE_RENDERERS: dict[str, Callable[[ReportTable], str]] = {
    "md": as_markdown_table,
    "csv": as_csv_table,
    "tex": as_latex_table,
}


def write_table(home: Path, name: str, table: ReportTable) -> tuple[Path, ...]:
    """The table as ``<home>/tables/<name>.md``, ``.csv`` and ``.tex``; what no file name should
    hold becomes a hyphen.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "table"
    paths = tuple(home / "tables" / f"{stem}.{suffix}" for suffix in TABLE_RENDERERS)
    for path, render in zip(paths, TABLE_RENDERERS.values(), strict=True):
        write_file_atomically(path, render(table))
    return paths


def format_cell(value: CellValue, formatter: Callable[[float], str]) -> str:
    """A value as printed: a text as it is, an estimate with its interval in brackets, a dash for
    None."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Estimate):
        return MISSING_VALUE_TEXT if value is None else formatter(value)
    if value.low is None or value.high is None:
        return format_cell(value.value, formatter)
    until = " to " if value.low < 0 else "–"  # a dash before a minus sign is not read
    return (
        f"{format_cell(value.value, formatter)} "
        f"({formatter(value.low)}{until}{formatter(value.high)})"
    )


def _list_csv_titles(column: ReportColumn) -> Sequence[str]:
    return (
        (column.title, f"{column.title} low", f"{column.title} high")
        if column.is_estimate
        else (column.title,)
    )


def _to_csv_cells(column: ReportColumn, value: CellValue) -> Sequence[str | int | float | None]:
    if not column.is_estimate:
        return (value.value if isinstance(value, Estimate) else value,)
    return (
        (value.value, value.low, value.high) if isinstance(value, Estimate) else (value, None, None)
    )


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", text).replace("\n", " ")


_LATEX_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"}
_LATEX_ESCAPES |= {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)
