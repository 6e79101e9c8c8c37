"""HTML -> headings and bodies, for a single page and for the chapters of an EPUB."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from clinpeft.core.schemas import Attrition
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks import markup
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.markup import (
    MarkupElement,
    get_local_name,
    select_children,
    select_descendants,
)
from clinpeft.data.textbooks.outline import (
    BookBody,
    BookHeading,
    OutlineEvent,
    build_book_passages,
    find_figure_labels,
)
from clinpeft.data.textbooks.passages import (
    BOOK_INDEX,
    CODE_BLOCK,
    FOOTNOTE,
    FRONT_MATTER,
    NAVIGATION,
    REFERENCE_LIST,
    TABLE_OF_CONTENTS,
    Passage,
    normalize_passage_text,
)

HTML_HEADING_LEVELS = {f"h{level}": level for level in range(1, 7)}
HTML_ELEMENTS_WITHOUT_TEXT = frozenset(
    {"script", "style", "template", "noscript", "head", "svg", "title"}
    | {"meta", "link", "iframe", "object", "audio", "video"}
)
# The structural semantics vocabulary of EPUB, and the roles of DPUB-ARIA.
HTML_PART_DROP_REASONS: dict[str, str] = {
    **dict.fromkeys(
        ("bibliography", "doc-bibliography", "endnotes", "doc-endnotes", "rearnotes"),
        REFERENCE_LIST,
    ),
    **dict.fromkeys(("index", "doc-index"), BOOK_INDEX),
    **dict.fromkeys(("toc", "doc-toc", "landmarks", "loi", "lot", "page-list"), TABLE_OF_CONTENTS),
    **dict.fromkeys(
        (
            *("frontmatter", "titlepage", "copyright-page", "dedication", "doc-dedication"),
            *("preface", "doc-preface", "foreword", "doc-foreword", "acknowledgments"),
            *("doc-acknowledgments", "cover", "doc-cover", "halftitlepage"),
        ),
        FRONT_MATTER,
    ),
    **dict.fromkeys(("footnote", "doc-footnote", "footnotes"), FOOTNOTE),
}
"""``epub:type`` or ``role`` of an element -> why it is left out."""

_BLOCK_ELEMENTS = frozenset(
    {"p", "div", "section", "article", "main", "ul", "ol", "dl", "table", "figure"}
    | {"blockquote", "pre", "aside", "header", "details", *HTML_HEADING_LEVELS}
)
_PARTS_OF_BLOCKS = frozenset({"li", "td", "th", "dd", "dt"})
_EPUB_TYPE_ATTRIBUTE = "{http://www.idpf.org/2007/ops}type"


def read_html(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedRow]:
    """Yields the passages of one HTML file, a book named by its title.

    Raises:
        SourceError: it is not text, declares entities, or is empty.
    """
    text = decode_text_bytes(path.read_bytes(), attrition, str(path))
    root = markup.parse_html_page(text, str(path))
    yield from build_book_passages(
        list(parse_html(root, path.name)), get_html_title(root) or path.stem
    )


def get_html_title(root: MarkupElement) -> str:
    """Returns the first ``title`` of a document; empty where it has none."""
    titles = select_descendants(root, "title")
    return normalize_passage_text(titles[0].text or "") if titles else ""


def parse_html(root: MarkupElement, file: str) -> Iterator[OutlineEvent]:
    """Yields the headings and bodies of a page, in order.

    Args:
        root: of the page.
        file: its name, by which links from other pages of the book refer to it.
    """
    bodies = select_descendants(root, "body")
    # A fragment of a page has no body.
    return _parse_children(bodies[0] if bodies else root, file)


def _parse_children(element: MarkupElement, file: str) -> Iterator[OutlineEvent]:
    """Yields the content of an element; text outside any block is a paragraph of its own."""
    text, links = element.text or "", list[str]()
    for child in element:
        name = get_local_name(child)
        is_block = name in _BLOCK_ELEMENTS or name in ("nav", "footer")
        has_text = name not in HTML_ELEMENTS_WITHOUT_TEXT
        # Such as a span around paragraphs, which HTML forbids and books have.
        has_blocks = has_text and any(
            get_local_name(inner) in _BLOCK_ELEMENTS for inner in child.iter()
        )
        if is_block or has_blocks:
            yield from _build_paragraph(text, links, element, file)
            yield from _parse_block(child, name, file) if is_block else _parse_children(child, file)
            text, links = "", []
        elif has_text:
            text += _get_inline_text(child)
            links += _list_links(child, file)
        text += child.tail or ""
    yield from _build_paragraph(text, links, element, file)


def _build_paragraph(
    text: str, links: list[str], element: MarkupElement, file: str
) -> Iterator[OutlineEvent]:
    if text.strip():
        refers_to = tuple(dict.fromkeys(links))
        yield BookBody("paragraph", text, _format_location(element, file), refers_to=refers_to)


def _parse_block(element: MarkupElement, name: str, file: str) -> Iterator[OutlineEvent]:
    """Yields the headings and bodies of one block element."""
    # Parsed as HTML, "epub:type" is a plain attribute; parsed as XML, it has a namespace.
    epub_type = element.get(_EPUB_TYPE_ATTRIBUTE) or element.get("epub:type") or ""
    types = f"{epub_type} {element.get('role') or ''}".split()
    reasons = [HTML_PART_DROP_REASONS[part] for part in types if part in HTML_PART_DROP_REASONS]
    location = _format_location(element, file)
    if reasons:
        yield RejectedRow(reasons[0], location)
    elif name in ("nav", "footer", "pre"):
        yield RejectedRow(CODE_BLOCK if name == "pre" else NAVIGATION, location)
    elif name in HTML_HEADING_LEVELS:
        yield BookHeading(HTML_HEADING_LEVELS[name], _get_normalized_text(element), location)
    elif name in ("ul", "ol"):
        items = [_get_normalized_text(item) for item in select_children(element, "li")]
        links = tuple(_list_links(element, file))
        yield BookBody("list", "\n".join(items), location, refers_to=links)
    elif name == "dl":
        yield from _parse_definitions(element, file)
    elif name == "table":
        yield _build_table(element, file, location)
    elif name == "figure":
        for table in select_children(element, "table"):
            yield _build_table(table, file, location)
        captions = select_descendants(element, "figcaption")
        caption = " ".join(_get_normalized_text(part) for part in captions)
        if caption:
            # The label begins the caption; later ones are of other figures.
            names = (*_list_ids(element, file), *find_figure_labels(caption[:40])[:1])
            yield BookBody("caption", caption, location, names=names)
    else:
        yield from _parse_children(element, file)


def _parse_definitions(element: MarkupElement, file: str) -> Iterator[OutlineEvent]:
    term = ""
    # All descendants: each pair of dt and dd may be in a div.
    for part in select_descendants(element, "dt", "dd"):
        if get_local_name(part) == "dt":
            term = _get_normalized_text(part)
        elif term:
            meaning = _get_inline_text(part)
            yield BookBody("definition", meaning, _format_location(part, file), title=term)


def _build_table(element: MarkupElement, file: str, location: str) -> BookBody:
    """Builds the body of a table: one line for each row, cells separated by bars."""
    captions = [_get_normalized_text(part) for part in select_children(element, "caption")]
    lines = [
        " | ".join(_get_normalized_text(cell) for cell in select_children(row, "td", "th"))
        for row in select_descendants(element, "tr")
    ]
    title = captions[0] if captions else None
    return BookBody(
        "table", "\n".join(lines), location, title=title, names=_list_ids(element, file)
    )


def _list_ids(element: MarkupElement, file: str) -> tuple[str, ...]:
    """Returns the ids by which links may refer to an element or a part of it."""
    return tuple(
        dict.fromkeys(f"{file}#{part.get('id')}" for part in element.iter() if part.get("id"))
    )


def _list_links(element: MarkupElement, file: str) -> list[str]:
    """Returns the targets of the links within the book, as ``file#id``."""
    targets = []
    for link in select_descendants(element, "a"):
        page, hash_sign, fragment = unquote(link.get("href") or "").partition("#")
        if hash_sign and ":" not in page:  # a colon: a link to the web
            folder = posixpath.dirname(file)
            target = posixpath.normpath(posixpath.join(folder, page)) if page else file
            targets.append(f"{target}#{fragment}")
    return targets


def _format_location(element: MarkupElement, file: str) -> str:
    return f"{file}#{element.get('id')}" if element.get("id") else file


def _get_normalized_text(element: MarkupElement) -> str:
    return normalize_passage_text(_get_inline_text(element))


def _get_inline_text(element: MarkupElement) -> str:
    """Returns the text of an element and its children, without note marks."""
    name = get_local_name(element)
    is_note_mark = "noteref" in (element.get(_EPUB_TYPE_ATTRIBUTE) or "")
    if is_note_mark or element.get("role") == "doc-noteref" or name in HTML_ELEMENTS_WITHOUT_TEXT:
        return ""
    # A line break separates words.
    if name in ("br", "hr"):
        return " "
    text = (element.text or "") + "".join(
        _get_inline_text(child) + (child.tail or "") for child in element
    )
    if name in markup.SCRIPT_CHARACTERS:
        return markup.convert_script_characters(name, text.strip())
    # Blocks are separated words even where the source has no blank between them.
    return f" {text} " if name in _BLOCK_ELEMENTS or name in _PARTS_OF_BLOCKS else text
