"""HTML -> headings and bodies, for a single page and for the chapters of an EPUB."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks import markup
from clinpeft.data.textbooks.encodings import decoded
from clinpeft.data.textbooks.markup import Element, local
from clinpeft.data.textbooks.outline import Body, Event, Heading, labels, passages
from clinpeft.data.textbooks.passages import (
    CODE,
    CONTENTS,
    FOOTNOTE,
    FRONT_MATTER,
    INDEX,
    NAVIGATION,
    REFERENCES,
    Lost,
    Passage,
    tidy,
)

HEADINGS = {f"h{level}": level for level in range(1, 7)}
SILENT = frozenset(
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
PARTS: dict[str, str] = {
    **dict.fromkeys(
        ("bibliography", "doc-bibliography", "endnotes", "doc-endnotes", "rearnotes"), REFERENCES
    ),
    **dict.fromkeys(("index", "doc-index"), INDEX),
    **dict.fromkeys(("toc", "doc-toc", "landmarks", "loi", "lot", "page-list"), CONTENTS),
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

_BLOCKS = frozenset(
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
        *HEADINGS,
    }
)
_TYPE = "{http://www.idpf.org/2007/ops}type"


def read(path: Path, attrition: Attrition) -> Iterator[Passage | Lost]:
    """The passages of one HTML file, a book called by its title.

    Raises:
        SourceError: it is no text, declares entities, or holds nothing.
    """
    root = markup.page(decoded(path.read_bytes(), attrition, str(path)), str(path))
    yield from passages(list(events(root, path.name)), title(root) or path.stem)


def title(root: Element) -> str:
    """What a page is called in its head; empty where it does not say."""
    return next(
        (tidy(element.text or "") for element in root.iter() if local(element) == "title"), ""
    )


def events(root: Element, file: str) -> Iterator[Event]:
    """The headings and bodies of a page, in order.

    Args:
        root: of the page.
        file: its name, by which links from other pages of the book point at it.
    """
    body = next((element for element in root.iter() if local(element) == "body"), root)
    return _children(body, file)


def _children(element: Element, file: str) -> Iterator[Event]:
    """What stands in an element; text that no block holds is a paragraph of its own."""
    loose = element.text or ""
    links: list[str] = []
    for child in element:
        name = local(child)
        if name in _BLOCKS or name in ("nav", "footer"):
            yield from _paragraph(loose, element, file, links)
            yield from _block(child, name, file)
            loose, links = "", []
        elif name not in SILENT and any(local(inner) in _BLOCKS for inner in child.iter()):
            yield from _paragraph(loose, element, file, links)
            yield from _children(child, file)
            loose, links = "", []
        elif name not in SILENT:
            loose += _inline(child)
            links += _links(child, file)
        loose += child.tail or ""
    yield from _paragraph(loose, element, file, links)


def _paragraph(text: str, element: Element, file: str, links: list[str]) -> Iterator[Event]:
    if text.strip():
        yield Body("paragraph", text, _place(element, file), refers_to=tuple(dict.fromkeys(links)))


def _block(element: Element, name: str, file: str) -> Iterator[Event]:
    said = f"{element.get(_TYPE) or element.get('epub:type') or ''} {element.get('role') or ''}".split()
    location = _place(element, file)
    reason = next((PARTS[part] for part in said if part in PARTS), "")
    if name in ("nav", "footer", "pre") or reason:
        yield Lost(reason or {"pre": CODE}.get(name, NAVIGATION), location)
    elif name in HEADINGS:
        yield Heading(HEADINGS[name], tidy(_inline(element)), location)
    elif name in ("ul", "ol"):
        items = [tidy(_inline(item)) for item in element if local(item) == "li"]
        yield Body("list", "\n".join(items), location, refers_to=tuple(_links(element, file)))
    elif name == "dl":
        yield from _definitions(element, file)
    elif name == "table":
        yield _table(element, file, location)
    elif name == "figure":
        yield from _figure(element, file, location)
    else:
        yield from _children(element, file)


def _definitions(element: Element, file: str) -> Iterator[Event]:
    """``dt`` and ``dd``, also where each pair stands in a ``div``."""
    term = ""
    for part in element.iter():
        if local(part) == "dt":
            term = tidy(_inline(part))
        elif local(part) == "dd" and term:
            yield Body("definition", _inline(part), _place(part, file), title=term)


def _table(element: Element, file: str, location: str) -> Body:
    caption = next((tidy(_inline(part)) for part in element if local(part) == "caption"), None)
    rows = [row for row in element.iter() if local(row) == "tr"]
    text = "\n".join(
        " | ".join(tidy(_inline(cell)) for cell in row if local(cell) in ("td", "th"))
        for row in rows
    )
    return Body("table", text, location, title=caption, names=_names(element, file))


def _figure(element: Element, file: str, location: str) -> Iterator[Event]:
    for part in element:
        if local(part) == "table":
            yield _table(part, file, location)
    caption = " ".join(
        tidy(_inline(part)) for part in element.iter() if local(part) == "figcaption"
    )
    if caption:
        yield Body("caption", caption, location, names=_names(element, file, caption))


def _names(element: Element, file: str, caption: str = "") -> tuple[str, ...]:
    ids = [f"{file}#{part.get('id')}" for part in element.iter() if part.get("id")]
    return (*dict.fromkeys(ids), *labels(caption[:40])[:1])


def _links(element: Element, file: str) -> list[str]:
    """Where in the book the links of an element lead, as ``file#id``."""
    found = [unquote(link.get("href") or "") for link in element.iter() if local(link) == "a"]
    split = [
        href.partition("#") for href in found if "#" in href and ":" not in href.partition("#")[0]
    ]
    folder = posixpath.dirname(file)
    return [
        f"{posixpath.normpath(posixpath.join(folder, page)) if page else file}#{fragment}"
        for page, _, fragment in split
    ]


def _place(element: Element, file: str) -> str:
    return f"{file}#{element.get('id')}" if element.get("id") else file


def _inline(element: Element) -> str:
    name = local(element)
    if (
        name in SILENT
        or "noteref" in (element.get(_TYPE) or "")
        or element.get("role") == "doc-noteref"
    ):
        return ""
    if name in ("br", "hr"):
        return " "
    inside = (element.text or "") + "".join(
        _inline(child) + (child.tail or "") for child in element
    )
    if name in markup.SHIFTS:
        return markup.shifted(name, inside.strip())
    return f" {inside} " if name in _BLOCKS or name in ("li", "td", "th", "dd", "dt") else inside
