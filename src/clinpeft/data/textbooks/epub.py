"""EPUB: a ZIP file with a package document that lists XHTML pages in reading order."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks import archive, html, markup
from clinpeft.data.textbooks.archive import Archive
from clinpeft.data.textbooks.encodings import decoded
from clinpeft.data.textbooks.markup import Element, local
from clinpeft.data.textbooks.outline import Event, passages
from clinpeft.data.textbooks.passages import CONTENTS, Lost, Passage, tidy

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_FONTS_ONLY = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGES = frozenset({"application/xhtml+xml", "text/html"})


def read(path: Path, attrition: Attrition) -> Iterator[Passage | Lost]:
    """The passages of an EPUB, in the order of its spine.

    Raises:
        SourceError: it is broken, protected, or a page declares entities.
        RefusedError: the archive was made to do harm.
    """
    book = archive.opened(path)
    with book.file:
        _refuse_protection(book, attrition)
        package = _package_name(book, attrition)
        root = _xml(book, package, attrition)
        title = next(
            (tidy(element.text or "") for element in root.iter() if local(element) == "title"), ""
        )
        events = list(_events(book, root, posixpath.dirname(package), attrition))
    yield from passages(events, title or path.stem)


def _events(book: Archive, root: Element, folder: str, attrition: Attrition) -> Iterator[Event]:
    items = {element.get("id"): element for element in root.iter() if local(element) == "item"}
    for reference in (element for element in root.iter() if local(element) == "itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            message = "the spine names a page that the manifest does not list"
            raise SourceError(
                message, location=str(book.path), hint="give another copy of the book"
            )
        name = posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or "")))
        if "nav" in (item.get("properties") or "").split():
            yield Lost(CONTENTS, name)
        elif item.get("media-type") in _PAGES:
            location = f"{book.path}: {name}"
            yield from html.events(
                markup.page(decoded(book.read(name), attrition, location), location), name
            )


def _xml(book: Archive, name: str, attrition: Attrition) -> Element:
    location = f"{book.path}: {name}"
    return markup.xml(decoded(book.read(name), attrition, location), location)


def _package_name(book: Archive, attrition: Attrition) -> str:
    found = [
        element.get("full-path")
        for element in _xml(book, _CONTAINER, attrition).iter()
        if local(element) == "rootfile"
    ]
    if not found or not found[0]:
        message = "its container names no package document"
        raise SourceError(
            message, location=f"{book.path}: {_CONTAINER}", hint="give another copy of the book"
        )
    return str(found[0])


def _refuse_protection(book: Archive, attrition: Attrition) -> None:
    """Scrambled fonts are common and harmless; scrambled pages are a book under lock."""
    if _ENCRYPTION not in book.names:
        return
    methods = [
        element.get("Algorithm")
        for element in _xml(book, _ENCRYPTION, attrition).iter()
        if local(element) == "encryptionmethod"
    ]
    if any(method not in _FONTS_ONLY for method in methods):
        hint = "give a copy without digital rights management"
        raise SourceError("this EPUB is encrypted", location=str(book.path), hint=hint)
