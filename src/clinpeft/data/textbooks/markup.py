"""XML and HTML -> element trees, without entities and network access.

A file that declares an entity is rejected: a book needs none, an external one reads files of this
machine (XXE), and a few internal ones that refer to each other fill its memory ("billion laughs").
The named characters of HTML (``&nbsp;``), which XHTML may use without declaring them, are replaced
here.
"""

from __future__ import annotations

import contextlib
import html.entities
import re
from typing import Any

import lxml.etree
import lxml.html

from clinpeft.core.errors import SourceError

MarkupElement = Any
"""An element of lxml, which has no type annotations."""

_ENTITY = re.compile(r"<!ENTITY\b", re.IGNORECASE)
_NAMED_CHARACTER = re.compile(r"&([A-Za-z][A-Za-z0-9]*);")
_XML_CHARACTER_NAMES = frozenset({"amp", "lt", "gt", "quot", "apos"})
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")


def parse_xml(text: str, location: str) -> MarkupElement:
    """Returns the root of an XML document.

    Raises:
        SourceError: it declares an entity, or is not well formed.
    """
    checked = _check_entities(text, location)
    try:
        return lxml.etree.fromstring(checked.encode(), create_xml_parser())
    except (lxml.etree.XMLSyntaxError, ValueError) as error:
        raise SourceError(
            f"this XML is not well formed (line {getattr(error, 'lineno', None) or 1})",
            location=location,
            hint="repair the file, or give another copy of the book",
        ) from None


def parse_html_page(text: str, location: str) -> MarkupElement:
    """Returns the root of an HTML page.

    Well-formed XHTML is parsed as XML, since in HTML an empty ``<title/>`` would not be closed;
    anything else is parsed as a browser does.

    Raises:
        SourceError: it declares an entity, or is empty.
    """
    checked = _check_entities(text, location)
    # Only the beginning: the search must not run over a whole book.
    if re.search(r"<html[^>]+xmlns\s*=", checked[:4096]):

        def replace_named_character(match: re.Match[str]) -> str:
            if match[1] in _XML_CHARACTER_NAMES:  # XML knows these five itself
                return match[0]
            return html.entities.html5.get(f"{match[1]};", match[0])

        document = _NAMED_CHARACTER.sub(replace_named_character, checked)
        with contextlib.suppress(lxml.etree.XMLSyntaxError, ValueError):
            return lxml.etree.fromstring(document.encode(), create_xml_parser())
    # The text is decoded already, and its meta element may name another encoding.
    parser = lxml.html.HTMLParser(
        no_network=True, remove_comments=True, remove_pis=True, encoding="utf-8"
    )
    try:
        return lxml.html.document_fromstring(checked.encode(), parser)
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError, ValueError):
        raise SourceError(
            "this page is empty",
            location=location,
            hint="remove it, or give another copy of the book",
        ) from None


def get_local_name(element: MarkupElement) -> str:
    """Returns the lower-case name of an element without namespace; empty for comments."""
    # The tag of a comment or processing instruction is a function.
    return str(element.tag).rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def select_children(element: MarkupElement, *names: str) -> list[MarkupElement]:
    """Returns the children with one of these local names, in order."""
    return [child for child in element if get_local_name(child) in names]


def select_descendants(element: MarkupElement, *names: str) -> list[MarkupElement]:
    """Returns the element and its descendants with one of these local names, in document order."""
    return [inner for inner in element.iter() if get_local_name(inner) in names]


def create_xml_parser() -> Any:
    """Creates an XML parser that resolves no entity and loads nothing."""
    return lxml.etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,  # keeps the limits of libxml2 on depth and size
        remove_comments=True,
        remove_pis=True,
    )


def _check_entities(text: str, location: str) -> str:
    """Returns a document without its XML declaration, which may name the encoding it had."""
    if _ENTITY.search(text):
        raise SourceError(
            "this file declares XML entities, which can read other files of this machine "
            "or fill its memory",
            location=location,
            hint="remove the DOCTYPE with its <!ENTITY ...> lines, if you trust the origin of the "
            "book",
        )
    return _DECLARATION.sub("", text)


_SUPERSCRIPTS = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_SUBSCRIPTS = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
SCRIPT_CHARACTERS = {
    "sup": (_SUPERSCRIPTS, frozenset("0123456789+-−=()n")),
    "sub": (_SUBSCRIPTS, frozenset("0123456789+-−=()")),
}
"""Element name -> (translation, characters that Unicode has as superscripts or subscripts)."""


def convert_script_characters(name: str, text: str) -> str:
    """Converts the text of ``sup`` or ``sub`` to Unicode characters, 10⁹ or CO₂.

    A text with any character that Unicode does not have stays as it is.
    """
    table, convertible = SCRIPT_CHARACTERS[name]
    return text.translate(table) if text and set(text) <= convertible else text
