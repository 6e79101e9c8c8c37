"""Sections to one HTML page: no address in it but those of its own parts, and a policy that forbids
the browser to ask for any."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft.reports.html.elements import (
    ReportFigure,
    escape_html,
    render_figure_element,
    render_table_element,
)
from clinpeft.reports.tables import ReportTable


@dataclass(frozen=True)
class ReportSection:
    """A part of the page.

    Attributes:
        name: of its anchor.
        title: its heading.
        lead: a paragraph under it.
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
    """The whole page.

    Args:
        title: of the study or the runs.
        lead: paragraphs under it.
        sections: in their order.
        tasks: what can be chosen to be seen alone.
        row_names: names of the rows of the grid, for the same.
        made_with: the program and its version.
    """
    style, script = (
        Path(__file__).with_name(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; style-src '{_compute_csp_hash(style)}'; script-src "
        f"'{_compute_csp_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape_html(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escape_html(title)}</title>",
        f"<style>{style}</style>",
    ]
    links = "".join(
        f'<li><a href="#{escape_html(section.name)}">{escape_html(section.title)}</a></li>'
        for section in sections
    )
    top = f"<header><h1>{escape_html(title)}</h1>{''.join(f'<p>{escape_html(text)}</p>' for text in lead)}</header>"  # noqa: E501
    body = "\n".join(_render_section(section, tasks, row_names) for section in sections)
    parts = [
        '<a class="skip" href="#content">Skip to the results</a>',
        top,
        f'<nav aria-label="Contents"><ol>{links}</ol></nav>',
        _render_filters(tasks, row_names),
        f'<main id="content" tabindex="-1">{body}</main>',
        (
            f"<footer><p>{escape_html(made_with)}. This page asks nothing of a network. No "
            "text of a note stands in it.</p></footer>"
        ),
        '<div id="tip" role="tooltip" hidden></div>',
        f"<script>{script}</script>",
    ]
    return (
        "\n".join(
            [
                '<!doctype html>\n<html lang="en">',
                "<head>",
                *head,
                "</head>",
                "<body>",
                *parts,
                "</body>",
                "</html>",
            ]
        )
        + "\n"
    )


def _compute_csp_hash(text: str) -> str:
    """As a policy names what it lets in."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _render_section(section: ReportSection, tasks: Sequence[str], row_names: Sequence[str]) -> str:
    blocks = "\n".join(
        render_figure_element(block)
        if isinstance(block, ReportFigure)
        else render_table_element(block[1], tasks, row_names, block[0])
        for block in section.blocks
    )
    lead = f"<p>{escape_html(section.lead)}</p>" if section.lead else ""
    name = escape_html(section.name)
    return (
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 '
        f'id="{name}-title">{escape_html(section.title)}</h2>{lead}{blocks}</section>'
    )


def _render_filters(tasks: Sequence[str], row_names: Sequence[str]) -> str:
    """What can be filtered by; nothing where there is one of each."""
    fields = [_render_filter("task", "Task", tasks), _render_filter("row", "Method", row_names)]
    if not any(fields):
        return ""
    return (
        f'<form class="choices" aria-label="Show only">{"".join(fields)}<output id="shown" '
        'aria-live="polite"></output></form>'
    )


def _render_filter(name: str, label: str, values: Sequence[str]) -> str:
    if len(values) < 2:
        return ""
    options = "".join(
        f'<option value="{escape_html(value)}">{escape_html(value)}</option>' for value in values
    )
    return (
        f'<label for="choose-{name}">{label}</label><select id="choose-{name}" '
        f'autocomplete="off"><option value="">all</option>{options}</select>'
    )
