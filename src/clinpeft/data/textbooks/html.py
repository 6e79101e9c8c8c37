"""HTML -> headings and bodies, for a single page and for the chapters of an EPUB."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks import markup
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.markup import MarkupElement, get_local_name
from clinpeft.data.textbooks.outline import (
    BookBody,
    OutlineEvent,
    BookHeading,
    find_figure_labels,
    build_book_passages,
)
from clinpeft.data.textbooks.passages import (
    CODE_BLOCK,
    TABLE_OF_CONTENTS,
    FOOTNOTE,
    FRONT_MATTER,
    BOOK_INDEX,
    NAVIGATION,
    REFERENCE_LIST,
    RejectedPassage,
    Passage,
    normalize_passage_text,
)

HTML_HEADING_LEVELS = {f"h{level}": level for level in range(1, 7)}
HTML_ELEMENTS_WITHOUT_TEXT = frozenset(
    {
        "script",
        "style",
        "template",
        "noscript",
        "head",
        "svg",
        "title",
        "meta",
        "link",
        "iframe",
        "object",
        "audio",
        "video",
    }
)
HTML_PART_DROP_REASONS: dict[str, str] = {
    **dict.fromkeys(
        ("bibliography", "doc-bibliography", "endnotes", "doc-endnotes", "rearnotes"),
        REFERENCE_LIST,
    ),
    **dict.fromkeys(("index", "doc-index"), BOOK_INDEX),
    **dict.fromkeys(("toc", "doc-toc", "landmarks", "loi", "lot", "page-list"), TABLE_OF_CONTENTS),
    **dict.fromkeys(
        (
            "frontmatter",
            "titlepage",
            "copyright-page",
            "dedication",
            "doc-dedication",
            "preface",
            "doc-preface",
            "foreword",
        ),
        FRONT_MATTER,
    ),
    **dict.fromkeys(
        (
            "doc-foreword",
            "acknowledgments",
            "doc-acknowledgments",
            "cover",
            "doc-cover",
            "halftitlepage",
        ),
        FRONT_MATTER,
    ),
    **dict.fromkeys(("footnote", "doc-footnote", "footnotes"), FOOTNOTE),
}
"""What is left out, by ``epub:type`` or ``role`` of an element."""

_BLOCK_ELEMENTS = frozenset(
    {
        "p",
        "div",
        "section",
        "article",
        "main",
        "ul",
        "ol",
        "dl",
        "table",
        "figure",
        "blockquote",
        "pre",
        "aside",
        "header",
        "details",
        *HTML_HEADING_LEVELS,
    }
)
_EPUB_TYPE_ATTRIBUTE = "{http://www.idpf.org/2007/ops}type"


def read_html(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedPassage]:
    """The passages of one HTML file, a book called by its title.

    Raises:
        SourceError: it is no text, declares entities, or holds nothing.
    """
    root = markup.parse_html_page(
        decode_text_bytes(path.read_bytes(), attrition, str(path)), str(path)
    )
    yield from build_book_passages(
        list(parse_html(root, path.name)), get_html_title(root) or path.stem
    )


def get_html_title(root: MarkupElement) -> str:
    """What a page is called in its head; empty where it does not say."""
    return next(
        (
            normalize_passage_text(element.text or "")
            for element in root.iter()
            if get_local_name(element) == "title"
        ),
        "",
    )


def parse_html(root: MarkupElement, file: str) -> Iterator[OutlineEvent]:
    """The headings and bodies of a page, in order.

    Args:
        root: of the page.
        file: its name, by which links from other pages of the book point at it.
    """
    body = next((element for element in root.iter() if get_local_name(element) == "body"), root)
    return _parse_children(body, file)


def _parse_children(element: MarkupElement, file: str) -> Iterator[OutlineEvent]:
    """What stands in an element; text that no block holds is a paragraph of its own."""
    loose = element.text or ""
    links: list[str] = []
    for child in element:
        name = get_local_name(child)
        if name in _BLOCK_ELEMENTS or name in ("nav", "footer"):
            yield from _parse_paragraph(loose, element, file, links)
            yield from _parse_block(child, name, file)
            loose, links = "", []
        elif name not in HTML_ELEMENTS_WITHOUT_TEXT and any(
            get_local_name(inner) in _BLOCK_ELEMENTS for inner in child.iter()
        ):
            yield from _parse_paragraph(loose, element, file, links)
            yield from _parse_children(child, file)
            loose, links = "", []
        elif name not in HTML_ELEMENTS_WITHOUT_TEXT:
            loose += _get_inline_text(child)
            links += _list_links(child, file)
        loose += child.tail or ""
    yield from _parse_paragraph(loose, element, file, links)


def _parse_paragraph(
    text: str, element: MarkupElement, file: str, links: list[str]
) -> Iterator[OutlineEvent]:
    if text.strip():
        yield BookBody(
            "paragraph",
            text,
            _format_location(element, file),
            refers_to=tuple(dict.fromkeys(links)),
        )


def _parse_block(element: MarkupElement, name: str, file: str) -> Iterator[OutlineEvent]:
    said = f"{element.get(_EPUB_TYPE_ATTRIBUTE) or element.get('epub:type') or ''} {element.get('role') or ''}".split()
    location = _format_location(element, file)
    reason = next(
        (HTML_PART_DROP_REASONS[part] for part in said if part in HTML_PART_DROP_REASONS), ""
    )
    if name in ("nav", "footer", "pre") or reason:
        yield RejectedPassage(reason or {"pre": CODE_BLOCK}.get(name, NAVIGATION), location)
    elif name in HTML_HEADING_LEVELS:
        yield BookHeading(
            HTML_HEADING_LEVELS[name], normalize_passage_text(_get_inline_text(element)), location
        )
    elif name in ("ul", "ol"):
        items = [
            normalize_passage_text(_get_inline_text(item))
            for item in element
            if get_local_name(item) == "li"
        ]
        yield BookBody(
            "list", "\n".join(items), location, refers_to=tuple(_list_links(element, file))
        )
    elif name == "dl":
        yield from _parse_definitions(element, file)
    elif name == "table":
        yield _parse_table(element, file, location)
    elif name == "figure":
        yield from _parse_figure(element, file, location)
    else:
        yield from _parse_children(element, file)


def _parse_definitions(element: MarkupElement, file: str) -> Iterator[OutlineEvent]:
    """``dt`` and ``dd``, also where each pair stands in a ``div``."""
    term = ""
    for part in element.iter():
        if get_local_name(part) == "dt":
            term = normalize_passage_text(_get_inline_text(part))
        elif get_local_name(part) == "dd" and term:
            yield BookBody(
                "definition", _get_inline_text(part), _format_location(part, file), title=term
            )


def _parse_table(element: MarkupElement, file: str, location: str) -> BookBody:
    caption = next(
        (
            normalize_passage_text(_get_inline_text(part))
            for part in element
            if get_local_name(part) == "caption"
        ),
        None,
    )
    rows = [row for row in element.iter() if get_local_name(row) == "tr"]
    text = "\n".join(
        " | ".join(
            normalize_passage_text(_get_inline_text(cell))
            for cell in row
            if get_local_name(cell) in ("td", "th")
        )
        for row in rows
    )
    return BookBody("table", text, location, title=caption, names=_list_names(element, file))


def _parse_figure(element: MarkupElement, file: str, location: str) -> Iterator[OutlineEvent]:
    for part in element:
        if get_local_name(part) == "table":
            yield _parse_table(part, file, location)
    caption = " ".join(
        normalize_passage_text(_get_inline_text(part))
        for part in element.iter()
        if get_local_name(part) == "figcaption"
    )
    if caption:
        yield BookBody("caption", caption, location, names=_list_names(element, file, caption))


def _list_names(element: MarkupElement, file: str, caption: str = "") -> tuple[str, ...]:
    ids = [f"{file}#{part.get('id')}" for part in element.iter() if part.get("id")]
    return (*dict.fromkeys(ids), *find_figure_labels(caption[:40])[:1])


def _list_links(element: MarkupElement, file: str) -> list[str]:
    """Where in the book the links of an element lead, as ``file#id``."""
    found = [
        unquote(link.get("href") or "") for link in element.iter() if get_local_name(link) == "a"
    ]
    split = [
        href.partition("#") for href in found if "#" in href and ":" not in href.partition("#")[0]
    ]
    folder = posixpath.dirname(file)
    return [
        f"{posixpath.normpath(posixpath.join(folder, page)) if page else file}#{fragment}"
        for page, _, fragment in split
    ]


def _format_location(element: MarkupElement, file: str) -> str:
    return f"{file}#{element.get('id')}" if element.get("id") else file


def _get_inline_text(element: MarkupElement) -> str:
    name = get_local_name(element)
    if (
        name in HTML_ELEMENTS_WITHOUT_TEXT
        or "noteref" in (element.get(_EPUB_TYPE_ATTRIBUTE) or "")
        or element.get("role") == "doc-noteref"
    ):
        return ""
    if name in ("br", "hr"):
        return " "
    inside = (element.text or "") + "".join(
        _get_inline_text(child) + (child.tail or "") for child in element
    )
    if name in markup.SCRIPT_CHARACTERS:
        return markup.convert_script_characters(name, inside.strip())
    return (
        f" {inside} "
        if name in _BLOCK_ELEMENTS or name in ("li", "td", "th", "dd", "dt")
        else inside
    )
