"""Pairs made elsewhere: JSON lines with two texts each.

A line may say which passage it was made from (``passage_id``), and then knows its book, chapter and section; or give ``book`` and ``chapter`` itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clinpeft.core.errors import InputError
from clinpeft.data.textbooks.pairs.kinds import TextPair, PassageRow
from clinpeft.recipe.textbooks import ImportedPairsSpec

ANCHOR_KEYS = ("anchor", "query", "question", "original")
POSITIVE_KEYS = ("positive", "pos", "answer", "paraphrase")
"""The keys that are looked for, in this order."""

IMPORTED_SIDE_NOT_TEXT = "imported: a side is no text"
IMPORTED_LINE_UNREADABLE = "imported: no JSON object"
IMPORTED_PASSAGE_UNKNOWN = "imported: its passage is not there"
MAX_UNREADABLE_FRACTION = 0.01


def read_pair_file(
    spec: ImportedPairsSpec, passages: Mapping[str, PassageRow]
) -> Iterator[TextPair | str]:
    """The pairs of a file, or the reasons why lines of it are none.

    Raises:
        InputError: it is not there, no UTF-8 text, empty, has one of the two columns only, or more than one line in a hundred is damaged.
    """
    rows = [_parse_line(line) for line in _read_lines(spec)]
    readable = [row for row in rows if row is not None]
    if (
        len(rows) - len(readable)
        > max(MAX_UNREADABLE_FRACTION * len(rows), 0 if len(rows) < 3 else 1)
        or not readable
    ):
        message = f"{len(rows) - len(readable):,} of the {len(rows):,} lines of this pair file are no JSON objects"
        raise InputError(
            message,
            location=str(spec.path),
            hint='give one object a line, such as {"anchor": "...", "positive": "..."}',
        )
    anchor = _find_column(spec.anchor, ANCHOR_KEYS, readable, spec, "anchor")
    positive = _find_column(spec.positive, POSITIVE_KEYS, readable, spec, "positive")
    for row in rows:
        if row is None:
            yield IMPORTED_LINE_UNREADABLE
        else:
            yield from _build_pairs(row, anchor, positive, spec.kind, passages)


def _read_lines(spec: ImportedPairsSpec) -> list[str]:
    try:
        lines = [
            line for line in spec.path.read_text(encoding="utf-8-sig").split("\n") if line.strip()
        ]
    except OSError as error:
        message = f"this pair file cannot be read: {error.strerror}"
        raise InputError(
            message, location=str(spec.path), hint="check pairs.imported.path"
        ) from None
    except UnicodeDecodeError:
        raise InputError(
            "this pair file is not UTF-8",
            location=str(spec.path),
            hint="convert it to UTF-8, such as with iconv",
        ) from None
    if not lines:
        raise InputError(
            "this pair file is empty",
            location=str(spec.path),
            hint="give a file with one JSON object a line",
        )
    return lines


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _find_column(
    column_name: str,
    default_keys: tuple[str, ...],
    rows: list[dict[str, Any]],
    spec: ImportedPairsSpec,
    side: str,
) -> str:
    """The key that holds a side; its name is said, never what it holds."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    found = next(
        (name for name in ((column_name,) if column_name else default_keys) if name in names), ""
    )
    if found:
        return found
    wanted = repr(column_name) if column_name else f"any of {', '.join(default_keys)}"
    only = (
        f"its only column is {names[0][:40]!r}"
        if len(names) == 1
        else f"its columns are {', '.join(repr(name[:40]) for name in names[:10])}"
    )
    hint = f"a pair has two texts; say which column holds the {side}: pairs.imported.{side}"
    raise InputError(
        f"no column of this pair file is {wanted}: {only}", location=str(spec.path), hint=hint
    )


def _build_pairs(
    row: dict[str, Any], anchor: str, positive: str, kind: str, passages: Mapping[str, PassageRow]
) -> Iterator[TextPair | str]:
    source = row.get("passage_id")
    if source is not None and source not in passages:
        yield IMPORTED_PASSAGE_UNKNOWN
        return
    known: PassageRow = passages[source] if source is not None else row
    book, chapter, section = (_get_text(known.get(name)) for name in ("book", "chapter", "section"))
    positives = row.get(positive) if isinstance(row.get(positive), list) else [row.get(positive)]
    for other in positives or [None]:
        if isinstance(row.get(anchor), str) and isinstance(other, str):
            yield TextPair(kind, row[anchor], other, book, chapter, section, source, source)
        else:
            yield IMPORTED_SIDE_NOT_TEXT


def _get_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
