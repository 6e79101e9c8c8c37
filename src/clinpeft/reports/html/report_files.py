"""The report as files: the page, its tables in three formats, its figures in two, and texts."""

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
    """Write ``report.html``, ``tables/``, ``figures/`` and further files below ``out``, and nothing
    elsewhere.

    Args:
        out: a folder; created if it does not exist.
        title: of the page.
        lead: paragraphs below it.
        report: sections, tasks and rows.
        texts: path below ``out`` -> text: cards, a checklist.
        made_with: the program and its version.

    Returns:
        The files, the page first.

    Raises:
        StorageError: a file cannot be written; earlier files are intact.
    """
    page = render_report_page(
        title, lead, report.sections, report.tasks, report.row_names, made_with
    )
    paths = [out / REPORT_PAGE_FILE]
    write_file_atomically(paths[0], page)
    # Everything on the page is a file as well, for papers and for other programs
    for block in (block for section in report.sections for block in section.blocks):
        if not isinstance(block, ReportFigure):
            # Named after the table, without the title of the report
            stem = re.sub(r"[^\w.-]+", "-", block[1].title.removeprefix(f"{title}: "))
            paths += write_table(out, stem.strip("-").lower(), block[1])
        elif block.svg:
            contents: dict[str, str | bytes] = {"svg": block.svg, "png": block.png}
            for suffix, content in contents.items():
                paths.append(out / "figures" / f"{block.name}.{suffix}")
                write_file_atomically(paths[-1], content)
    for name, text in (texts or {}).items():
        paths.append(out / name)
        write_file_atomically(paths[-1], text)
    return tuple(paths)
