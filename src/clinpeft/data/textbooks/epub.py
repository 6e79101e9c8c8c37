"""EPUB: a ZIP file with a package document that lists XHTML pages in reading order."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks import archive, html, markup
from clinpeft.data.textbooks.archive import BookArchive
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.markup import MarkupElement, select_descendants
from clinpeft.data.textbooks.outline import OutlineEvent, build_book_passages
from clinpeft.data.textbooks.passages import TABLE_OF_CONTENTS, Passage

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_FONT_ENCRYPTION_METHODS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGE_MEDIA_TYPES = frozenset({"application/xhtml+xml", "text/html"})


def read_epub(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedRow]:
    """Yields the passages of an EPUB, in the order of its spine.

    Raises:
        SourceError: it is broken, protected, or a page declares entities.
        RefusedError: the archive is malicious.
    """
    book = archive.open_archive(path)
    with book.zip_file:
        if _ENCRYPTION in book.file_names:
            encryption = _read_xml(book, _ENCRYPTION, attrition)
            # Obfuscated fonts are common and harmless; obfuscated pages are copy protection.
            for method in select_descendants(encryption, "encryptionmethod"):
                if method.get("Algorithm") not in _FONT_ENCRYPTION_METHODS:
                    raise SourceError(
                        "this EPUB is encrypted",
                        location=str(path),
                        hint="give a copy without digital rights management",
                    )
        container = _read_xml(book, _CONTAINER, attrition)
        root_files = select_descendants(container, "rootfile")
        package = root_files[0].get("full-path") if root_files else ""
        if not package:
            raise SourceError(
                "its container names no package document",
                location=f"{path}: {_CONTAINER}",
                hint="give another copy of the book",
            )
        root = _read_xml(book, package, attrition)
        title = html.get_html_title(root)  # dc:title has the same local name
        # Before the archive is closed: the passages are built lazily.
        events = list(_parse_spine(book, root, posixpath.dirname(package), attrition))
    yield from build_book_passages(events, title or path.stem)


def _parse_spine(
    book: BookArchive, root: MarkupElement, folder: str, attrition: Attrition
) -> Iterator[OutlineEvent]:
    """Yields headings and bodies of the pages that the spine lists, in its order."""
    items = {element.get("id"): element for element in select_descendants(root, "item")}
    for reference in select_descendants(root, "itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            raise SourceError(
                "the spine names a page that the manifest does not list",
                location=str(book.path),
                hint="give another copy of the book",
            )
        # References are relative to the package document, and percent-encoded.
        name = posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or "")))
        # The navigation document of EPUB 3 may be a page of the spine too.
        if "nav" in (item.get("properties") or "").split():
            yield RejectedRow(TABLE_OF_CONTENTS, name)
        elif item.get("media-type") in _PAGE_MEDIA_TYPES:
            location = f"{book.path}: {name}"
            text = decode_text_bytes(book.read_file(name), attrition, location)
            yield from html.parse_html(markup.parse_html_page(text, location), name)


def _read_xml(book: BookArchive, name: str, attrition: Attrition) -> MarkupElement:
    location = f"{book.path}: {name}"
    return markup.parse_xml(decode_text_bytes(book.read_file(name), attrition, location), location)
