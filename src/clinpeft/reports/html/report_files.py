"""The report as files: the page, its tables in three formats, its figures in two, the cards and the
checklist."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from clinpeft.reports.html.elements import ReportFigure
from clinpeft.reports.html.page import render_report_page
from clinpeft.reports.html.sections import ReportContents
from clinpeft.reports.tables import write_table
from clinpeft.runs import write_file_atomically

REPORT_PAGE_FILE = "report.html"


def write_html_report(
    out: Path,
    title: str,
    lead: Sequence[str],
    report: ReportContents,
    texts: Mapping[str, str] | None = None,
    made_with: str = "clinpeft",
) -> tuple[Path, ...]:
    """``report.html``, ``tables/``, ``figures/`` and further files below ``out``; nothing is
    written anywhere else.

    Args:
        out: a folder; made where it is not there.
        title: of the page.
        lead: paragraphs under it.
        report: sections, tasks and rows.
        texts: path below ``out`` -> text: cards, a checklist.
        made_with: the program and its version.

    Returns:
        What was written, the page first.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    paths = [out / REPORT_PAGE_FILE]
    write_file_atomically(
        paths[0],
        render_report_page(title, lead, report.sections, report.tasks, report.row_names, made_with),
    )
    for section in report.sections:
        for block in section.blocks:
            paths += (
                _write_figure_files(out, block)
                if isinstance(block, ReportFigure)
                else write_table(out, _build_table_stem(title, block[1].title), block[1])
            )
    for name, text in (texts or {}).items():
        write_file_atomically(out / name, text)
        paths.append(out / name)
    return tuple(paths)


def _build_table_stem(title: str, table_title: str) -> str:
    """A table's file is named after the table, without the title of the report."""
    return re.sub(r"[^\w.-]+", "-", table_title.removeprefix(f"{title}: ")).strip("-").lower()


def _write_figure_files(out: Path, figure: ReportFigure) -> list[Path]:
    if not figure.svg:
        return []
    paths = [out / "figures" / f"{figure.name}.{form}" for form in ("svg", "png")]
    contents: tuple[str | bytes, ...] = (figure.svg, figure.png)
    for path, content in zip(paths, contents, strict=True):
        write_file_atomically(path, content)
    return paths
