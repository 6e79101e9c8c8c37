"""JSON lines of other people's evaluation sets: one object a line, each with its place, and refused where it is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clinpeft.core.errors import SourceError
from clinpeft.data.formats import delimited


def read_json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, gzipped or not, each with its file and row; empty lines are passed over.

    Raises:
        SourceError: the file is missing, empty or damaged, or a line is no JSON object or not UTF-8, with its row and without its text.
    """
    for number, line in enumerate(delimited.read_text_lines(path), start=1):
        if line.strip():
            yield f"{path.name}: row {number}", _parse_json_object(line, f"{path}: row {number}")


def get_text_value(record: Mapping[str, Any], key: str, location: str) -> str:
    """The text under a key, without white space around it.

    Raises:
        SourceError: there is none, or it is no text.
    """
    if not isinstance(record.get(key), str):
        kind = "missing" if key not in record else f"not a text but {type(record[key]).__name__}"
        raise SourceError(
            f"{key!r} is {kind}", location=location, hint=f'write {{"{key}": "..."}} on every line'
        )
    return str(record[key]).strip()


def _parse_json_object(line: str, location: str) -> dict[str, Any]:
    try:
        line.encode()
        found = json.loads(line)
    except UnicodeEncodeError:
        raise SourceError(
            "a byte that is not UTF-8", location=location, hint="convert the file to UTF-8"
        ) from None
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise SourceError(
            "this line is not a JSON object", location=location, hint="write one {...} a line"
        ) from None
    return found
