"""Bytes of a text file -> text: a byte order mark decides, else UTF-8, else Windows-1252."""

from __future__ import annotations

import codecs
import re

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition

# UTF-32 before UTF-16: the little-endian mark of UTF-16 is the beginning of that of UTF-32.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED_ENCODING_PATTERN = re.compile(
    rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)["']"""
    rb"""|<meta[^>]{0,200}charset\s*=\s*["']?([A-Za-z0-9._-]+)""",
    re.IGNORECASE,
)
# Python has codecs that are no character sets, such as "zip" and "idna".
_SAFE_ENCODINGS = frozenset(
    {"ascii", "utf-8", "utf-16", "iso8859-1", "iso8859-15"}
    | {"cp1252", "iso8859-2", "cp1250", "mac-roman"}
)
_MAX_LOCATIONS = 5


def decode_text_bytes(raw: bytes, attrition: Attrition, location: str) -> str:
    """Decodes a text file and normalizes its line ends to ``\\n``.

    A declared encoding is used where it is a common one and decodes. An encoding other than UTF-8
    is recorded in ``attrition.locations``; nothing is dropped for it.

    Raises:
        SourceError: no encoding fits, so the file is not text.
    """
    for encoding in list_candidate_encodings(raw):
        try:
            text = raw.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        if "\0" in text:  # Windows-1252 decodes almost any bytes; NUL gives a binary file away
            break
        if not encoding.startswith("utf-8"):
            locations = attrition.locations.setdefault(f"read as {encoding}", [])
            if len(locations) < _MAX_LOCATIONS:
                locations.append(location)
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise SourceError(
        "this file is not text in UTF-8, UTF-16 or Windows-1252",
        location=location,
        hint="convert it to UTF-8, such as with iconv",
    )


def list_candidate_encodings(raw: bytes) -> list[str]:
    """Returns the encodings that a text file may have, the most likely first."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            return [encoding]
    # XML in UTF-16 without a mark begins with "<" (XML 1.0, appendix F).
    if raw[:2] == b"<\0":
        return ["utf-16-le"]
    if raw[:2] == b"\0<":
        return ["utf-16-be"]
    match = _DECLARED_ENCODING_PATTERN.search(raw[:2048])
    try:
        declared = codecs.lookup((match[1] or match[2]).decode("ascii")).name if match else ""
    except LookupError:
        declared = ""
    return ["utf-8", *([declared] if declared in _SAFE_ENCODINGS else []), "cp1252"]
