"""Reporting checklists (TRIPOD+AI, TRIPOD-LLM), filled from the records of runs; what only a person
can write is left as a marked gap.

The items are data, ``checklists/*.toml``, each with the name of the fact that fills it. They are
those of the statements (Collins et al., BMJ 2024, 10.1136/bmj-2023-078378; Gallifant et al., Nature
Medicine 2025, 10.1038/s41591-024-03425-5) in our wording: read the statements themselves before
submission. Of TRIPOD-LLM the 19 main items are listed, without their parts.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft.reports.checklist_facts import CHECKLIST_FACTS
from clinpeft.runs import Run

CHECKLIST_GAP_MARK = "☐ **To be written**"
CHECKLIST_DONE_MARK = "☑"
CHECKLIST_NAMES = ("tripod-ai", "tripod-llm")


@dataclass(frozen=True)
class ChecklistItem:
    """One item of a statement.

    Attributes:
        number: as printed there.
        topic: a word or two.
        requirement: what is to be reported, in our words.
        fact: key of ``CHECKLIST_FACTS`` that fills it; empty: no record can.
        gap: what a person still has to add to the fact; empty for nothing.
    """

    number: str
    topic: str
    requirement: str
    fact: str = ""
    gap: str = ""

    def render(self, text: str) -> str:
        """A row of the Markdown table, with the text of its fact."""
        marks = []
        if text:
            # A bar or a line break would end the cell of the table
            plain = text.replace("|", r"\|").replace("\n", " ")
            marks.append(f"{CHECKLIST_DONE_MARK} {plain}")
        if self.gap or not text:
            marks.append(f"{CHECKLIST_GAP_MARK}: {self.gap or self.requirement}")
        return f"| {self.number} | {self.topic} | {self.requirement} | {' '.join(marks)} |"


@dataclass(frozen=True)
class ReportingChecklist:
    """A statement.

    Attributes:
        name: of the statement.
        source: where it is published.
        items: in its order.
    """

    name: str
    source: str
    items: tuple[ChecklistItem, ...]


@functools.cache
def read_checklist(name: str) -> ReportingChecklist:
    """Read a statement of ``CHECKLIST_NAMES`` from its file."""
    path = Path(__file__).with_name("checklists") / f"{name}.toml"
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    # An unknown key of an item is a TypeError here
    items = tuple(ChecklistItem(**item) for item in document["items"])
    return ReportingChecklist(document["name"], document["source"], items)


def render_reporting_checklist(runs: Sequence[Run], title: str) -> str:
    """All statements as Markdown, a line per item.

    Args:
        runs: finished ones; with small counts suppressed if the checklist is to be released.
        title: of the study.
    """
    parts = [
        f"# Reporting checklist: {title}",
        f"Filled from the record of {len(runs)} runs. {CHECKLIST_GAP_MARK}: no record has it. "
        "Check every line before submission.",
    ]
    for name in CHECKLIST_NAMES:
        checklist = read_checklist(name)
        # Rendered from the records alone: nothing is inferred
        texts = [CHECKLIST_FACTS[item.fact](runs) if item.fact else "" for item in checklist.items]
        rows = [item.render(text) for item, text in zip(checklist.items, texts, strict=True)]
        filled = sum(bool(text) for text in texts)
        head = "| item | topic | what is to be told | from the record |\n|---|---|---|---|"
        parts += [
            f"## {checklist.name}",
            f"{filled} of {len(rows)} items have something from the record.",
            "\n".join([head, *rows]),
        ]
    return "\n\n".join(parts) + "\n"
