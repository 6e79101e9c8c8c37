"""The report as files: the page, its tables in three formats, its figures in two, the cards and the checklist."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from clinpeft.reports.html.elements import Drawing
from clinpeft.reports.html.page import page
from clinpeft.reports.html.sections import Contents
from clinpeft.reports.tables import write
from clinpeft.runs import write_file_atomically

PAGE = "report.html"


def write_report(
    out: Path,
    title: str,
    lead: Sequence[str],
    made: Contents,
    texts: Mapping[str, str] | None = None,
    made_with: str = "clinpeft",
) -> tuple[Path, ...]:
    """``report.html``, ``tables/``, ``figures/`` and further files below ``out``; nothing is written anywhere else.

    Args:
        out: a folder; made where it is not there.
        title: of the page.
        lead: paragraphs under it.
        made: sections, tasks and rows.
        texts: path below ``out`` -> text: cards, a checklist.
        made_with: the program and its version.

    Returns:
        What was written, the page first.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    paths = [out / PAGE]
    write_file_atomically(
        paths[0], page(title, lead, made.sections, made.tasks, made.rows, made_with)
    )
    for section in made.sections:
        for block in section.blocks:
            paths += (
                _drawn(out, block)
                if isinstance(block, Drawing)
                else write(out, _stem(title, block[1].title), block[1])
            )
    for name, text in (texts or {}).items():
        write_file_atomically(out / name, text)
        paths.append(out / name)
    return tuple(paths)


def _stem(title: str, table: str) -> str:
    """A table's file is named after the table, without the title of the report."""
    return re.sub(r"[^\w.-]+", "-", table.removeprefix(f"{title}: ")).strip("-").lower()


def _drawn(out: Path, drawing: Drawing) -> list[Path]:
    if not drawing.svg:
        return []
    paths = [out / "figures" / f"{drawing.name}.{form}" for form in ("svg", "png")]
    contents: tuple[str | bytes, ...] = (drawing.svg, drawing.png)
    for path, content in zip(paths, contents, strict=True):
        write_file_atomically(path, content)
    return paths
