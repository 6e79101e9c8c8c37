"""Sections to one HTML page: no address in it but those of its own parts, and a policy that forbids the browser to ask for any."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft.reports.html.elements import Drawing, escaped, figure_element, table_element
from clinpeft.reports.tables import Table


@dataclass(frozen=True)
class Section:
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
    blocks: tuple[tuple[str, Table] | Drawing, ...] = ()


def page(
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    tasks: Sequence[str],
    rows: Sequence[str],
    made_with: str,
) -> str:
    """The whole page.

    Args:
        title: of the study or the runs.
        lead: paragraphs under it.
        sections: in their order.
        tasks: what can be chosen to be seen alone.
        rows: names of the rows of the grid, for the same.
        made_with: the program and its version.
    """
    style, script = (
        Path(__file__).with_name(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{escaped(title)}</title>",
        f"<style>{style}</style>",
    ]
    links = "".join(
        f'<li><a href="#{escaped(section.name)}">{escaped(section.title)}</a></li>'
        for section in sections
    )
    top = f"<header><h1>{escaped(title)}</h1>{''.join(f'<p>{escaped(text)}</p>' for text in lead)}</header>"
    body = "\n".join(_section(section, tasks, rows) for section in sections)
    parts = [
        '<a class="skip" href="#content">Skip to the results</a>',
        top,
        f'<nav aria-label="Contents"><ol>{links}</ol></nav>',
        _choices(tasks, rows),
        f'<main id="content" tabindex="-1">{body}</main>',
        f"<footer><p>{escaped(made_with)}. This page asks nothing of a network. No text of a note stands in it.</p></footer>",
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


def _hash(text: str) -> str:
    """As a policy names what it lets in."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _section(section: Section, tasks: Sequence[str], rows: Sequence[str]) -> str:
    blocks = "\n".join(
        figure_element(block)
        if isinstance(block, Drawing)
        else table_element(block[1], tasks, rows, block[0])
        for block in section.blocks
    )
    lead = f"<p>{escaped(section.lead)}</p>" if section.lead else ""
    name = escaped(section.name)
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escaped(section.title)}</h2>{lead}{blocks}</section>'


def _choices(tasks: Sequence[str], rows: Sequence[str]) -> str:
    """What can be filtered by; nothing where there is one of each."""
    fields = [_choice("task", "Task", tasks), _choice("row", "Method", rows)]
    if not any(fields):
        return ""
    return f'<form class="choices" aria-label="Show only">{"".join(fields)}<output id="shown" aria-live="polite"></output></form>'


def _choice(name: str, label: str, values: Sequence[str]) -> str:
    if len(values) < 2:
        return ""
    options = "".join(
        f'<option value="{escaped(value)}">{escaped(value)}</option>' for value in values
    )
    return f'<label for="choose-{name}">{label}</label><select id="choose-{name}" autocomplete="off"><option value="">all</option>{options}</select>'
