"""Hand-written sets of text pairs, such as the similar, different and negated ones of a study.

See arXiv 2511.19739. The format is JSON lines, one pair on each line.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import PAIR_SCHEMA, build_arrow_table
from clinpeft.data.formats import json_lines

PAIR_SET_KEYS = (("anchor", "positive"), ("sentence1", "sentence2"), ("text_a", "text_b"))
"""Accepted keys for the two texts of a pair."""


def read_pair_set(path: Path, kind: str) -> pa.Table:
    """Reads the pairs of a file.

    Args:
        path: one object on each line, such as ``{"anchor": "...", "positive": "..."}``, or with
            other keys out of ``PAIR_SET_KEYS``.
        kind: of the pairs: ``similar``, ``different``, ``negation``.

    Returns:
        A table of ``PAIR_SCHEMA`` in the order of the file. All pairs are ``held_out``; the id is
        ``kind`` and number.

    Raises:
        SourceError: the file is missing, empty or damaged, or a line does not hold two texts. The
            error names the row and never quotes its text.
    """
    pairs: list[tuple[str, str]] = []
    for location, row in json_lines.read_json_objects(path):
        # The sets of different authors use different keys; one line uses one pair of them.
        keys = next((keys for keys in PAIR_SET_KEYS if set(keys) <= set(row)), None)
        if keys is None:
            names = " or ".join(f"{first!r} and {second!r}" for first, second in PAIR_SET_KEYS)
            raise SourceError(
                "this line does not hold two texts",
                location=f"{path.parent}: {location}",
                hint=f"write {names} on every line",
            )
        pair = (
            json_lines.get_text_value(row, keys[0], location),
            json_lines.get_text_value(row, keys[1], location),
        )
        if not all(pair):
            raise SourceError(
                "one text of this pair is empty",
                location=f"{path.parent}: {location}",
                hint="write it, or remove the line",
            )
        pairs.append(pair)
    columns = {
        "pair_id": [f"{kind} {number}" for number in range(1, len(pairs) + 1)],
        "kind": [kind] * len(pairs),
        "anchor": [anchor for anchor, _ in pairs],
        "positive": [positive for _, positive in pairs],
        "split": ["held_out"] * len(pairs),
    }
    return build_arrow_table(PAIR_SCHEMA, columns)
