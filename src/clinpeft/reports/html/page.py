"""Sections to one HTML page, whose only links are anchors, with a Content-Security-Policy that
forbids the browser to load anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from clinpeft.reports.html.elements import ReportFigure, build_table_element
from clinpeft.reports.tables import ReportTable
from clinpeft.reports.templating import read_template_file, render_html_template


@dataclass(frozen=True)
class ReportSection:
    """A section of the page.

    Attributes:
        name: of its anchor.
        title: its heading.
        lead: a paragraph below it.
        blocks: tables and figures in their order; a table with the task that it is about.
    """

    name: str
    title: str
    lead: str = ""
    blocks: tuple[tuple[str, ReportTable] | ReportFigure, ...] = ()


def render_report_page(
    title: str,
    lead: Sequence[str],
    sections: Sequence[ReportSection],
    tasks: Sequence[str],
    row_names: Sequence[str],
    made_with: str,
) -> str:
    """The whole page, from ``page.html.j2``.

    Args:
        title: of the study or the runs.
        lead: paragraphs below it.
        sections: in their order.
        tasks: by which the page can be filtered.
        row_names: names of the rows of the grid, likewise.
        made_with: the program and its version.
    """
    # Byte for byte: the policy holds their hashes
    style, script = read_template_file("page.css"), read_template_file("page.js")
    # Nothing is loaded, and of styles and scripts only the two that are part of the page run
    policy = (
        f"default-src 'none'; style-src '{compute_csp_hash(style)}'; "
        f"script-src '{compute_csp_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    # What the template needs of each section; tables with the marks by which they are filtered
    elements = [
        {
            "name": section.name,
            "title": section.title,
            "lead": section.lead,
            "blocks": [
                block
                if isinstance(block, ReportFigure)
                else build_table_element(block[1], tasks, row_names, block[0])
                for block in section.blocks
            ],
        }
        for section in sections
    ]
    page = render_html_template(
        "page.html.j2",
        policy=policy,
        title=title,
        lead=lead,
        style=Markup(style),
        script=Markup(script),
        sections=elements,
        tasks=tasks,
        row_names=row_names,
        made_with=made_with,
    )
    # The macros of the template leave empty lines before the document
    return page.strip() + "\n"


def compute_csp_hash(text: str) -> str:
    """The hash source of an inline style or script (W3C Content Security Policy Level 3, 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
