"""JSON lines of evaluation sets: one object on each line; any other line is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clinpeft.core.errors import SourceError
from clinpeft.data.formats import delimited


def read_json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file, plain or gzipped, each with its location.

    Empty lines are skipped.

    Raises:
        SourceError: the file is missing, empty or damaged, or a line is not a JSON object or not
            UTF-8. The error names the row and never quotes its text.
    """
    for number, line in enumerate(delimited.read_text_lines(path), start=1):
        if not line.strip():
            continue
        location = f"{path}: row {number}"
        try:
            line.encode()  # fails on a lone surrogate, which stands for a byte that is not UTF-8
            value = json.loads(line)
        except UnicodeEncodeError:
            raise SourceError(
                "a byte that is not UTF-8", location=location, hint="convert the file to UTF-8"
            ) from None
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise SourceError(
                "this line is not a JSON object",
                location=location,
                hint="write one {...} on each line",
            )
        yield f"{path.name}: row {number}", value


def get_text_value(record: Mapping[str, Any], key: str, location: str) -> str:
    """Returns the text under a key, without surrounding white space.

    Raises:
        SourceError: the key is missing, or its value is not a text.
    """
    value = record.get(key)
    if not isinstance(value, str):
        fault = f"not a text but {type(value).__name__}" if key in record else "missing"
        raise SourceError(
            f"{key!r} is {fault}", location=location, hint=f'write {{"{key}": "..."}} on every line'
        )
    return value.strip()
