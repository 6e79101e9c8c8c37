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

from clinpeft.reports.formats import MISSING, number
from clinpeft.runs import write_file_atomically


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; None where it is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def mean(found: Sequence[Estimate]) -> Estimate | None:
    """Over seeds, of the values and of each end of the intervals: all seeds are asked about the same people or pairs, so their sampling errors do not
    average out."""
    if not found:
        return None
    parts = [
        [getattr(estimate, field.name) for estimate in found]
        for field in dataclasses.fields(Estimate)
    ]
    return Estimate(*(None if None in part else statistics.fmean(part) for part in parts))


def spread(values: Sequence[float]) -> Estimate | None:
    """Standard deviation (n - 1) over seeds, smallest and largest; None of fewer than two."""
    return Estimate(statistics.stdev(values), min(values), max(values)) if len(values) > 1 else None


Value = str | int | float | Estimate | None


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: its heading.
        show: a number to its text.
        is_text: set to the left, and not to the right as numbers are.
        is_estimate: holds ``Estimate`` cells; three columns in CSV.
        is_unbroken: on a terminal, never goes on in the next line: for what is copied from it.
        under: title of the column that it stands beside; a terminal, which has no room for that, shows its values under those, in brackets.
        mark: what a terminal says before such a value, so that several can stand under one column.
    """

    title: str
    show: Callable[[float], str] = number
    is_text: bool = False
    is_estimate: bool = False
    is_unbroken: bool = False
    under: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        columns: left to right.
        rows: top to bottom, a value a column; a text is printed as it is, a number by its column, None as a dash.
        notes: under it, a paragraph each.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def texts(self) -> list[list[str]]:
        """Every cell as printed."""
        return [
            [printed(value, column.show) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]


def plain(title: str, rows: pa.Table, notes: Sequence[str] = ()) -> Table:
    """An Arrow table as it is: its columns under their names, texts to the left and numbers to the right."""
    columns = tuple(
        Column(
            field.name.replace("_", " "),
            is_text=not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)),
        )
        for field in rows.schema
    )
    return Table(
        title, columns, tuple(tuple(row.values()) for row in rows.to_pylist()), tuple(notes)
    )


def as_terminal(table: Table) -> rich.table.Table:
    """For a terminal; no cell is read as markup, and where there is no room a cell goes on in the next line: no digit is lost."""
    lower = [(at, column) for at, column in enumerate(table.columns) if column.under]
    upper = [(at, column) for at, column in enumerate(table.columns) if not column.under]
    unmarked = [column.title for _, column in lower if not column.mark]
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
    for row in table.texts:
        below = [
            (column.under, f"\n[{column.mark}{row[at]}]")
            for at, column in lower
            if row[at] not in ("", MISSING)
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


def as_markdown(table: Table) -> str:
    """A GitHub table with its title as a heading."""
    lines = [
        [_markdown(column.title) for column in table.columns],
        ["---" if c.is_text else "---:" for c in table.columns],
    ]
    lines += [[_markdown(text) for text in row] for row in table.texts]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([f"## {_markdown(table.title)}", body, *map(_markdown, table.notes)]) + "\n"


def as_csv(table: Table) -> str:
    """Numbers in full, without the formatting; an estimate is three columns, what is missing is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([title for column in table.columns for title in _csv_titles(column)])
    for row in table.rows:
        writer.writerow(
            [
                entry
                for column, value in zip(table.columns, row, strict=True)
                for entry in _csv_entries(column, value)
            ]
        )
    return file.getvalue()


def as_latex(table: Table) -> str:
    """A floating table for the packages ``booktabs`` and, for its marks, ``inputenc`` with UTF-8."""
    layout = "".join("l" if column.is_text else "r" for column in table.columns)
    head = " & ".join(_latex(column.title) for column in table.columns) + r" \\"
    body = [" & ".join(_latex(text) for text in row) + r" \\" for row in table.texts]
    notes = [rf"\par\footnotesize {_latex(note)}" for note in table.notes]
    caption = rf"\caption{{{_latex(table.title)}}}"
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


WRITTEN: dict[str, Callable[[Table], str]] = {"md": as_markdown, "csv": as_csv, "tex": as_latex}


def write(home: Path, name: str, table: Table) -> tuple[Path, ...]:
    """The table as ``<home>/tables/<name>.md``, ``.csv`` and ``.tex``; what no file name should hold becomes a hyphen.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "table"
    paths = tuple(home / "tables" / f"{stem}.{suffix}" for suffix in WRITTEN)
    for path, render in zip(paths, WRITTEN.values(), strict=True):
        write_file_atomically(path, render(table))
    return paths


def printed(value: Value, show: Callable[[float], str]) -> str:
    """A value as printed: a text as it is, an estimate with its interval in brackets, a dash for None."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Estimate):
        return MISSING if value is None else show(value)
    if value.low is None or value.high is None:
        return printed(value.value, show)
    until = " to " if value.low < 0 else "–"  # a dash before a minus sign is not read
    return f"{printed(value.value, show)} ({show(value.low)}{until}{show(value.high)})"


def _csv_titles(column: Column) -> Sequence[str]:
    return (
        (column.title, f"{column.title} low", f"{column.title} high")
        if column.is_estimate
        else (column.title,)
    )


def _csv_entries(column: Column, value: Value) -> Sequence[str | int | float | None]:
    if not column.is_estimate:
        return (value.value if isinstance(value, Estimate) else value,)
    return (
        (value.value, value.low, value.high) if isinstance(value, Estimate) else (value, None, None)
    )


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", text).replace("\n", " ")


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"}
_LATEX |= {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
