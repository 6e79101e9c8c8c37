"""XML and HTML -> element trees, with entities and network off.

A file that declares an entity is refused whole: a book needs none, an external one reads files of this machine, and a few internal ones that name
each other fill its memory. The named characters of HTML (``&nbsp;``), which XHTML may use without declaring them here, are put in by hand.
"""

from __future__ import annotations

import html.entities
import re
from typing import Any

import lxml.etree
import lxml.html

from clinpeft.core.errors import SourceError

MarkupElement = Any
"""An element of lxml, which publishes no types."""

_ENTITY = re.compile(r"<!ENTITY\b", re.IGNORECASE)
_NAMED_CHARACTER = re.compile(r"&([A-Za-z][A-Za-z0-9]*);")
_XML_CHARACTER_NAMES = frozenset({"amp", "lt", "gt", "quot", "apos"})
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")


def parse_xml(text: str, location: str) -> MarkupElement:
    """The root of an XML document.

    Raises:
        SourceError: it declares an entity, or is not well formed.
    """
    checked = _check_entities(text, location)
    try:
        return lxml.etree.fromstring(checked.encode(), _create_xml_parser())
    except (lxml.etree.XMLSyntaxError, ValueError) as error:
        message = f"this XML is not well formed (line {getattr(error, 'lineno', None) or 1})"
        raise SourceError(
            message, location=location, hint="repair the file, or give another copy of the book"
        ) from None


def parse_html_page(text: str, location: str) -> MarkupElement:
    """The root of an HTML page: as XML where it is well formed, since HTML has no empty ``<title/>``, else as a browser would read it.

    Raises:
        SourceError: it declares an entity, or holds nothing.
    """
    checked = _check_entities(text, location)
    if re.search(r"<html[^>]+xmlns\s*=", checked[:4096]):
        try:
            return lxml.etree.fromstring(
                _NAMED_CHARACTER.sub(_replace_named_character, checked).encode(),
                _create_xml_parser(),
            )
        except (lxml.etree.XMLSyntaxError, ValueError):
            pass
    parser = lxml.html.HTMLParser(
        no_network=True, remove_comments=True, remove_pis=True, encoding="utf-8"
    )
    try:
        root = lxml.html.document_fromstring(checked.encode(), parser)
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError, ValueError):
        raise SourceError(
            "there is nothing in this page",
            location=location,
            hint="take it out, or give another copy of the book",
        ) from None
    return root


def get_local_name(element: MarkupElement) -> str:
    """The name of an element without its namespace, in lower case; empty for comments and the like."""
    return str(element.tag).rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _create_xml_parser() -> Any:
    options = {
        "resolve_entities": False,
        "no_network": True,
        "load_dtd": False,
        "huge_tree": False,
        "remove_comments": True,
        "remove_pis": True,
    }
    return lxml.etree.XMLParser(**options)


def _check_entities(text: str, location: str) -> str:
    if _ENTITY.search(text):
        hint = "remove the DOCTYPE with its <!ENTITY ...> lines, if the book comes from somebody you trust"
        raise SourceError(
            "this file declares XML entities, which can read other files of this machine or fill its memory",
            location=location,
            hint=hint,
        )
    return _DECLARATION.sub("", text)


def _replace_named_character(match: re.Match[str]) -> str:
    name = match[1]
    return (
        match[0] if name in _XML_CHARACTER_NAMES else html.entities.html5.get(f"{name};", match[0])
    )


_SUPERSCRIPTS = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_SUBSCRIPTS = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
SCRIPT_CHARACTERS = {
    "sup": (_SUPERSCRIPTS, frozenset("0123456789+-−=()n")),
    "sub": (_SUBSCRIPTS, frozenset("0123456789+-−=()")),
}
"""The characters that Unicode has raised and lowered."""


def convert_script_characters(name: str, text: str) -> str:
    """What stands in ``sup`` or ``sub``, as raised or lowered characters where Unicode has them: 10⁹, CO₂; otherwise as it is."""
    table, known = SCRIPT_CHARACTERS[name]
    return text.translate(table) if text and set(text) <= known else text
