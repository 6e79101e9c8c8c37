"""Sets of text pairs made by hand, such as the study's similar, different and negated ones (arXiv 2511.19739): JSON lines, a pair each."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import PAIR_SCHEMA, build_arrow_table
from clinpeft.data.formats import json_lines

PAIR_SET_KEYS = (("anchor", "positive"), ("sentence1", "sentence2"), ("text_a", "text_b"))
"""What the two texts of a pair may be called."""


def read_pair_set(path: Path, kind: str) -> pa.Table:
    """The pairs of a file, in its order, of schema ``tables.PAIR``: ``kind`` as given, split ``held_out``, id ``kind`` and number.

    Args:
        path: one object a line, such as ``{"anchor": "...", "positive": "..."}``; the other names are those of ``KEYS``.
        kind: what the pairs are: ``similar``, ``different``, ``negation``.

    Raises:
        SourceError: the file is missing, empty or damaged, or a line does not hold two texts, with its row and without its text.
    """
    pairs: list[tuple[str, str]] = []
    for location, row in json_lines.read_json_objects(path):
        keys = next((keys for keys in PAIR_SET_KEYS if set(keys) <= set(row)), None)
        if keys is None:
            names = " or ".join(f"{one!r} and {other!r}" for one, other in PAIR_SET_KEYS)
            raise SourceError(
                "this line does not hold two texts",
                location=f"{path.parent}: {location}",
                hint=f"write {names} on every line",
            )
        pairs.append(
            (
                json_lines.get_text_value(row, keys[0], location),
                json_lines.get_text_value(row, keys[1], location),
            )
        )
        if not all(pairs[-1]):
            raise SourceError(
                "one text of this pair is empty",
                location=f"{path.parent}: {location}",
                hint="write it, or remove the line",
            )
    columns = {
        "pair_id": [f"{kind} {number}" for number in range(1, len(pairs) + 1)],
        "kind": [kind] * len(pairs),
        "anchor": [first for first, _ in pairs],
        "positive": [second for _, second in pairs],
        "split": ["held_out"] * len(pairs),
    }
    return build_arrow_table(PAIR_SCHEMA, columns)
