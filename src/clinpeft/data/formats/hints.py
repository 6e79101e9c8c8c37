"""Wording shared by the errors of data sources."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def suggest_name(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns ``did you mean 'x'?`` with the most similar candidate; empty without one.

    Args:
        name: the name that does not exist.
        candidates: the names that do.
        cutoff: smallest similarity of a suggestion, 0 to 1 (see ``difflib``).
    """
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=cutoff)
    return f"did you mean {matches[0]!r}?" if matches else ""


def join_hints(*hints: str) -> str:
    """Joins the hints that are not empty."""
    return " ".join(hint for hint in hints if hint)


def format_drop_reasons(dropped_rows: Mapping[str, int]) -> str:
    """Lists what was dropped as ``12 × empty note, 3 × unreadable``; empty for nothing."""
    return ", ".join(f"{count:,} × {reason}" for reason, count in sorted(dropped_rows.items()))
