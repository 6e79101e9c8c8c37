"""EPUB: a ZIP file with a package document that lists XHTML pages in reading order."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks import archive, html, markup
from clinpeft.data.textbooks.archive import BookArchive
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.markup import MarkupElement, get_local_name
from clinpeft.data.textbooks.outline import OutlineEvent, build_book_passages
from clinpeft.data.textbooks.passages import (
    TABLE_OF_CONTENTS,
    RejectedPassage,
    Passage,
    normalize_passage_text,
)

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_FONT_ENCRYPTION_METHODS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGE_MEDIA_TYPES = frozenset({"application/xhtml+xml", "text/html"})


def read_epub(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedPassage]:
    """The passages of an EPUB, in the order of its spine.

    Raises:
        SourceError: it is broken, protected, or a page declares entities.
        RefusedError: the archive was made to do harm.
    """
    book = archive.open_archive(path)
    with book.zip_file:
        _check_encryption(book, attrition)
        package = _find_package_name(book, attrition)
        root = _read_xml(book, package, attrition)
        title = next(
            (
                normalize_passage_text(element.text or "")
                for element in root.iter()
                if get_local_name(element) == "title"
            ),
            "",
        )
        events = list(_parse_spine(book, root, posixpath.dirname(package), attrition))
    yield from build_book_passages(events, title or path.stem)


def _parse_spine(
    book: BookArchive, root: MarkupElement, folder: str, attrition: Attrition
) -> Iterator[OutlineEvent]:
    items = {
        element.get("id"): element for element in root.iter() if get_local_name(element) == "item"
    }
    for reference in (element for element in root.iter() if get_local_name(element) == "itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            message = "the spine names a page that the manifest does not list"
            raise SourceError(
                message, location=str(book.path), hint="give another copy of the book"
            )
        name = posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or "")))
        if "nav" in (item.get("properties") or "").split():
            yield RejectedPassage(TABLE_OF_CONTENTS, name)
        elif item.get("media-type") in _PAGE_MEDIA_TYPES:
            location = f"{book.path}: {name}"
            yield from html.parse_html(
                markup.parse_html_page(
                    decode_text_bytes(book.read_file(name), attrition, location), location
                ),
                name,
            )


def _read_xml(book: BookArchive, name: str, attrition: Attrition) -> MarkupElement:
    location = f"{book.path}: {name}"
    return markup.parse_xml(decode_text_bytes(book.read_file(name), attrition, location), location)


def _find_package_name(book: BookArchive, attrition: Attrition) -> str:
    found = [
        element.get("full-path")
        for element in _read_xml(book, _CONTAINER, attrition).iter()
        if get_local_name(element) == "rootfile"
    ]
    if not found or not found[0]:
        message = "its container names no package document"
        raise SourceError(
            message, location=f"{book.path}: {_CONTAINER}", hint="give another copy of the book"
        )
    return str(found[0])


def _check_encryption(book: BookArchive, attrition: Attrition) -> None:
    """Scrambled fonts are common and harmless; scrambled pages are a book under lock."""
    if _ENCRYPTION not in book.file_names:
        return
    methods = [
        element.get("Algorithm")
        for element in _read_xml(book, _ENCRYPTION, attrition).iter()
        if get_local_name(element) == "encryptionmethod"
    ]
    if any(method not in _FONT_ENCRYPTION_METHODS for method in methods):
        hint = "give a copy without digital rights management"
        raise SourceError("this EPUB is encrypted", location=str(book.path), hint=hint)
