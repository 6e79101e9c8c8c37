"""A table, and its renderings: terminal, Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """A number and its interval; None where it is unknown."""

    value: float | None
    low: float | None = None
    high: float | None = None


def average_estimates(estimates: Sequence[Estimate]) -> Estimate | None:
    """Mean over seeds of the values and of each end of the intervals; None of no estimates.

    All seeds are evaluated on the same people or pairs, so their sampling errors do not average
    out: the interval of the mean is as wide as theirs.
    """
    if not estimates:
        return None
    # (3, seeds): values, lower ends, upper ends
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
        is_text: aligned left, and not right as numbers are.
        is_estimate: holds ``Estimate`` cells; three columns in CSV.
        is_unbroken: never wrapped on a terminal: for what is copied from it.
        parent_title: title of the column that it belongs to; a terminal, which is too narrow for
            both, prints its values below those of that column, in brackets.
        value_prefix: printed before such a value, so that several fit below one column.
    """

    title: str
    formatter: Callable[[float], str] = format_number
    is_text: bool = False
    is_estimate: bool = False
    is_unbroken: bool = False
    parent_title: str = ""
    value_prefix: str = ""


def create_text_columns(*titles: str) -> tuple[ReportColumn, ...]:
    """A text column for each title."""
    return tuple(ReportColumn(title, is_text=True) for title in titles)


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Attributes:
        title: above it.
        columns: left to right.
        rows: top to bottom, a value per column; a text is printed as it is, a number by its
            column, None as a dash.
        notes: below it, a paragraph each.
    """

    title: str
    columns: tuple[ReportColumn, ...]
    rows: tuple[tuple[CellValue, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def cell_texts(self) -> list[list[str]]:
        """Every cell as printed: (rows, columns)."""
        return [
            [
                format_cell(value, column.formatter)
                for column, value in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def add_notes(self, notes: Sequence[str]) -> ReportTable:
        """The same table with more notes."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))


def table_from_arrow(title: str, rows: pa.Table, notes: Sequence[str] = ()) -> ReportTable:
    """An Arrow table as it is: its columns under their names, texts to the left and numbers to the
    right."""
    columns = tuple(
        ReportColumn(
            field.name.replace("_", " "),
            # Booleans are printed as text
            is_text=not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)),
        )
        for field in rows.schema
    )
    return ReportTable(
        title, columns, tuple(tuple(row.values()) for row in rows.to_pylist()), tuple(notes)
    )


def build_table_from_cells(
    title: str,
    columns: Iterable[ReportColumn],
    rows: Sequence[Mapping[str, CellValue]],
    notes: Iterable[str] = (),
) -> ReportTable:
    """A table of rows that are mappings of column titles to values; repeated notes appear once."""
    # It is iterated once per row
    columns = tuple(columns)
    cells = (
        tuple(row.get(column.title, "" if column.is_text else None) for column in columns)
        for row in rows
    )
    return ReportTable(title, columns, tuple(cells), tuple(dict.fromkeys(notes)))


def has_cell_values(rows: Iterable[Mapping[str, CellValue]], title: str) -> bool:
    """Whether any row has a value in a column."""
    return any(row.get(title) not in (None, "") for row in rows)


def as_rich_table(table: ReportTable) -> rich.table.Table:
    """For a terminal; no cell is parsed as markup, and a cell that is too wide is wrapped, so that
    no digit is lost."""
    # A terminal is too narrow for a column per published value and spread: they go below the value
    # they belong to, in brackets
    lower = [(at, column) for at, column in enumerate(table.columns) if column.parent_title]
    upper = [(at, column) for at, column in enumerate(table.columns) if not column.parent_title]
    # A prefix says what a value in brackets is; columns without one are named in a note
    unmarked = [column.title for _, column in lower if not column.value_prefix]
    notes = [*table.notes, *([f"In square brackets: {', '.join(unmarked)}."] if unmarked else [])]
    rendered = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, pad_edge=False, caption_justify="left", title_justify="left"
    )
    rendered.title, rendered.caption = rich.text.Text(table.title), rich.text.Text("\n".join(notes))
    for _, column in upper:
        rendered.add_column(
            rich.text.Text(column.title),
            justify="left" if column.is_text else "right",
            overflow="fold",
            no_wrap=column.is_unbroken,
        )
    for row in table.cell_texts:
        cells = []
        for at, column in upper:
            below = [
                f"\n[{child.value_prefix}{row[at_child]}]"
                for at_child, child in lower
                if child.parent_title == column.title
                and row[at_child] not in ("", MISSING_VALUE_TEXT)
            ]
            # Text, not str: rich would read "[seed=1]" in a cell as markup
            cells.append(rich.text.Text(row[at] + "".join(below)))
        rendered.add_row(*cells)
    return rendered


def escape_markdown(text: str) -> str:
    """Text on one line without the marks of Markdown and of HTML."""
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", text).replace("\n", " ")


def as_markdown_table(table: ReportTable) -> str:
    """A GitHub table with its title as a heading."""
    lines = [
        [escape_markdown(column.title) for column in table.columns],
        ["---" if column.is_text else "---:" for column in table.columns],
        *([escape_markdown(text) for text in row] for row in table.cell_texts),
    ]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        "\n\n".join(
            [f"## {escape_markdown(table.title)}", body, *map(escape_markdown, table.notes)]
        )
        + "\n"
    )


def as_csv_table(table: ReportTable) -> str:
    """Numbers in full, without formatting; an estimate is three columns, a missing value is
    empty."""
    file = io.StringIO()
    # Full precision and no thousands separators: this file is for other programs
    writer = csv.writer(file, lineterminator="\n")
    titles: list[str] = []
    for column in table.columns:
        # An estimate takes three columns: value, low, high
        ends = (" low", " high") if column.is_estimate else ()
        titles += (column.title, *(f"{column.title}{end}" for end in ends))
    writer.writerow(titles)
    for row in table.rows:
        cells: list[str | int | float | None] = []
        for column, value in zip(table.columns, row, strict=True):
            cells.append(value.value if isinstance(value, Estimate) else value)
            if column.is_estimate:
                cells += (value.low, value.high) if isinstance(value, Estimate) else (None, None)
        writer.writerow(cells)
    return file.getvalue()


_LATEX_ESCAPES = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)


def as_latex_table(table: ReportTable) -> str:
    """A floating table for the packages ``booktabs`` and, for its marks, ``inputenc`` with
    UTF-8."""
    # Text left, numbers right, so that digits of equal weight are below one another
    layout = "".join("l" if column.is_text else "r" for column in table.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(escape_latex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(map(escape_latex, row)) + r" \\" for row in table.cell_texts),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escape_latex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


# Suffix of a file -> its rendering
TABLE_RENDERERS: dict[str, Callable[[ReportTable], str]] = {
    "md": as_markdown_table,
    "csv": as_csv_table,
    "tex": as_latex_table,
}


def write_table(home: Path, name: str, table: ReportTable) -> tuple[Path, ...]:
    """Write a table as ``<home>/tables/<name>.md``, ``.csv`` and ``.tex``.

    Args:
        home: the folder that ``tables`` is in.
        name: of the files; characters that do not belong in a file name become hyphens.
        table: to be written.

    Raises:
        StorageError: a file cannot be written; earlier files are intact.
    """
    # A leading dot would hide the file, and a name of dots alone would be a folder
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
    interval = format_interval(value, formatter)
    return format_cell(value.value, formatter) + (f" {interval}" if interval else "")


def format_interval(estimate: Estimate, formatter: Callable[[float], str]) -> str:
    """``(0.790–0.834)``; empty for an estimate without an interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    until = " to " if estimate.low < 0 else "–"  # a dash before a minus sign is easily missed
    return f"({formatter(estimate.low)}{until}{formatter(estimate.high)})"
