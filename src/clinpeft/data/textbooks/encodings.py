"""Bytes of a text file -> text, whatever its encoding: a byte order mark, else UTF-8, else Windows-1252, which is noted where it was needed."""

from __future__ import annotations

import codecs
import re

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED_ENCODING_PATTERN = re.compile(
    rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)["']|<meta[^>]{0,200}charset\s*=\s*["']?([A-Za-z0-9._-]+)""",
    re.IGNORECASE,
)
_SAFE_ENCODINGS = frozenset(
    {
        "ascii",
        "utf-8",
        "utf-16",
        "iso8859-1",
        "iso8859-15",
        "cp1252",
        "iso8859-2",
        "cp1250",
        "mac-roman",
    }
)


def decode_text_bytes(raw: bytes, attrition: Attrition, location: str) -> str:
    """The text of a file, with line ends as ``\\n``.

    A declared encoding is believed where it is a usual one and decodes. What was read in another encoding than UTF-8 is noted in
    ``attrition.places``; nothing is dropped for it.

    Raises:
        SourceError: no encoding fits; the file is no text.
    """
    for encoding in _list_candidate_encodings(raw):
        try:
            text = raw.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        if "\0" in text:
            break
        _record_encoding(attrition, encoding, location)
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise SourceError(
        "this file is no text in UTF-8, UTF-16 or Windows-1252",
        location=location,
        hint="convert it to UTF-8, such as with iconv",
    )


def _list_candidate_encodings(raw: bytes) -> list[str]:
    marked = [encoding for mark, encoding in _BYTE_ORDER_MARKS if raw.startswith(mark)]
    if marked:
        return marked[:1]
    if raw[:2] == b"<\0" or raw[:2] == b"\0<":
        return ["utf-16-le" if raw[:2] == b"<\0" else "utf-16-be"]
    match = _DECLARED_ENCODING_PATTERN.search(raw[:2048])
    declared = _find_safe_encoding((match[1] or match[2]).decode("ascii")) if match else []
    return ["utf-8", *declared, "cp1252"]


def _find_safe_encoding(name: str) -> list[str]:
    try:
        found = codecs.lookup(name).name
    except LookupError:
        return []
    return [found] if found in _SAFE_ENCODINGS else []


def _record_encoding(attrition: Attrition, encoding: str, location: str) -> None:
    if not encoding.startswith("utf-8"):
        places = attrition.locations.setdefault(f"read as {encoding}", [])
        if len(places) < 5:
            places.append(location)
