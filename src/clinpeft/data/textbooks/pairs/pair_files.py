"""Imported pairs: JSON lines with two texts each.

A line may name the passage it is about (``passage_id``), from which it takes book, chapter and
section; or give ``book``, ``chapter`` and ``section`` itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from clinpeft.core.errors import InputError
from clinpeft.data.textbooks.pairs.kinds import PassageRow, TextPair
from clinpeft.recipe.textbooks import ImportedPairsSpec

ANCHOR_KEYS = ("anchor", "query", "question", "original")
POSITIVE_KEYS = ("positive", "pos", "answer", "paraphrase")
"""Default keys of the two texts, in order of preference."""

IMPORTED_SIDE_NOT_TEXT = "imported: a side is no text"
IMPORTED_LINE_UNREADABLE = "imported: no JSON object"
IMPORTED_PASSAGE_UNKNOWN = "imported: its passage is not there"
MAX_UNREADABLE_FRACTION = 0.01


def read_pair_file(
    spec: ImportedPairsSpec, passages: Mapping[str, PassageRow]
) -> Iterator[TextPair | str]:
    """Yields the pairs of a file, or the reasons why lines of it are none.

    Args:
        spec: path, kind and, optionally, the keys of the two texts.
        passages: id -> passage.

    Raises:
        InputError: the file is missing, not UTF-8 or empty, lacks one of the two columns, or more
            than one line in a hundred is damaged.
    """
    rows = _read_rows(spec)
    readable = [row for row in rows if row is not None]
    anchor = _find_column(spec, "anchor", spec.anchor, ANCHOR_KEYS, readable)
    positive = _find_column(spec, "positive", spec.positive, POSITIVE_KEYS, readable)
    for row in rows:
        if row is None:
            yield IMPORTED_LINE_UNREADABLE
            continue
        passage_id = row.get("passage_id")
        if passage_id is not None and passage_id not in passages:
            yield IMPORTED_PASSAGE_UNKNOWN
            continue
        origin: PassageRow = passages[passage_id] if passage_id is not None else row
        values = (origin.get(name) for name in ("book", "chapter", "section"))
        book, chapter, section = (
            value if isinstance(value, str) and value else None for value in values
        )
        # A list of positives, as in the training files of FlagEmbedding, gives several pairs.
        positives = row.get(positive)
        for text in (positives or [None]) if isinstance(positives, list) else [positives]:
            if isinstance(row.get(anchor), str) and isinstance(text, str):
                sides = row[anchor], text
                yield TextPair(spec.kind, *sides, book, chapter, section, passage_id, passage_id)
            else:
                yield IMPORTED_SIDE_NOT_TEXT


def _read_rows(spec: ImportedPairsSpec) -> list[dict[str, Any] | None]:
    """Returns the lines of the file as objects, None for a damaged one."""
    location = str(spec.path)
    try:
        text = spec.path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"this pair file cannot be read: {error.strerror}"
        raise InputError(message, location=location, hint="check pairs.imported.path") from None
    except UnicodeDecodeError:
        message, hint = "this pair file is not UTF-8", "convert it to UTF-8, such as with iconv"
        raise InputError(message, location=location, hint=hint) from None
    rows: list[dict[str, Any] | None] = []
    # Not splitlines(), which also splits at U+2028 inside a string.
    for line in text.split("\n"):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            rows.append(value if isinstance(value, dict) else None)
    if not rows:
        raise InputError(
            "this pair file is empty",
            location=location,
            hint="give a file with one JSON object on each line",
        )
    unreadable = rows.count(None)
    # One bad line is tolerated even in a short file, such as a truncated last one.
    tolerated = max(MAX_UNREADABLE_FRACTION * len(rows), 0 if len(rows) < 3 else 1)
    if unreadable > tolerated or unreadable == len(rows):
        raise InputError(
            f"{unreadable:,} of the {len(rows):,} lines of this pair file are not JSON objects",
            location=location,
            hint='give one object on each line, such as {"anchor": "...", "positive": "..."}',
        )
    return rows


def _find_column(
    spec: ImportedPairsSpec,
    side: str,
    column_name: str,
    default_keys: tuple[str, ...],
    rows: list[dict[str, Any]],
) -> str:
    """Returns the key of one side: ``column_name``, or the first default that occurs."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    for name in (column_name,) if column_name else default_keys:
        if name in names:
            return name
    expected = repr(column_name) if column_name else f"any of {', '.join(default_keys)}"
    # Names are cut short, and values never quoted: the file may hold text of books or notes.
    columns = f"its columns are {', '.join(repr(name[:40]) for name in names[:10])}"
    if len(names) == 1:
        columns = f"its only column is {names[0][:40]!r}"
    raise InputError(
        f"no column of this pair file is {expected}: {columns}",
        location=str(spec.path),
        hint=f"a pair has two texts; name the column of the {side} in pairs.imported.{side}",
    )
