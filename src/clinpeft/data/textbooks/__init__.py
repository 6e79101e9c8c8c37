"""Books -> passages: a stream of ``tables.PASSAGE`` batches, every piece accounted for.

```
passages.py     passages -> batches: tidied, counted, named
outline.py      headings and bodies -> passages that know chapter, headings and kind
cnxml.py        OpenStax        epub.py, pages.py   EPUB and HTML        pdf/   PDF
markdown.py     Markdown        plain.py            text
markup.py, archive.py, encodings.py     XML, ZIP and text from somebody else, made safe
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import PASSAGE_SCHEMA, Attrition
from clinpeft.data.textbooks import cnxml, epub, html, markdown, pdf, plain_text
from clinpeft.data.textbooks.passages import (
    RejectedPassage,
    Passage,
    batch_passages,
    check_book_has_passages,
)

__all__ = ["BOOK_FORMATS", "BookFormat", "fingerprint_textbooks", "read_textbooks"]

BookPieces = Iterator[Passage | RejectedPassage]


@dataclass(frozen=True)
class BookFormat:
    """How one kind of book is read.

    Attributes:
        read_passages: (file, count, folder of models for scans or None) -> its passages.
        file_name_endings: of file names.
        first_bytes: how the bytes of a file without such an ending begin, blanks aside; empty: it is never guessed.
    """

    read_passages: Callable[[Path, Attrition, Path | None], BookPieces]
    file_name_endings: tuple[str, ...]
    first_bytes: tuple[bytes, ...] = ()


BOOK_FORMATS: dict[str, BookFormat] = {
    "pdf": BookFormat(pdf.read_pdf, (".pdf",), (b"%PDF-",)),
    "epub": BookFormat(
        lambda path, attrition, _: epub.read_epub(path, attrition), (".epub",), (b"PK\x03\x04",)
    ),
    "openstax": BookFormat(
        lambda path, attrition, _: cnxml.read_openstax_collection(path, attrition),
        ("collection.xml",),
    ),
    "cnxml": BookFormat(
        lambda path, attrition, _: cnxml.read_cnxml_module(path, attrition),
        (".cnxml",),
        (b'<document xmlns="http://cnx.rice.edu',),
    ),
    "html": BookFormat(
        lambda path, attrition, _: html.read_html(path, attrition),
        (".html", ".htm", ".xhtml"),
        (b"<!doctype html", b"<html"),
    ),
    "markdown": BookFormat(
        lambda path, attrition, _: markdown.read_markdown(path, attrition), (".md", ".markdown")
    ),
    "text": BookFormat(
        lambda path, attrition, _: plain_text.read_plain_text(path, attrition), (".txt", ".text")
    ),
}
"""What can be read; in a folder, files of no such ending are no books."""

NON_BOOK_FILE_STEMS = frozenset(
    {"readme", "license", "licence", "attribution", "copying", "notice", "changelog"}
)
"""Files that lie beside books, by their names without endings."""


def read_textbooks(
    path: Path, attrition: Attrition, scan_models: Path | None = None
) -> pa.RecordBatchReader:
    """The passages of a book, or of all books in a folder, in reading order: a stream of ``tables.PASSAGE`` batches that is read once.

    ``attrition`` is counted up while the stream is consumed. A folder with an OpenStax collection is the books of its collections; in any other
    folder every file of a known format is a book, and every folder is looked into.

    Args:
        path: a file or a folder.
        attrition: a fresh count for this step; what was read in another encoding than UTF-8 is noted in its places.
        scan_models: folder with the models of docling, for scanned books; none: a scan is refused.

    Raises:
        SourceError: nothing is there, a book cannot be read, or holds not one passage.
        RefusedError: an archive that was made to do harm.
    """
    found = find_textbooks(path)
    return pa.RecordBatchReader.from_batches(
        PASSAGE_SCHEMA, batch_passages(_read_books(found, attrition, scan_models), attrition)
    )


def fingerprint_textbooks(path: Path) -> str:
    """SHA-256 in hexadecimal over the names and bytes of all that ``read`` would read; a folder may move and keep it.

    Raises:
        SourceError: nothing is there.
    """
    digest = hashlib.sha256()
    for book, name in find_textbooks(path):
        for file in cnxml.list_openstax_files(book) if name == "openstax" else [book]:
            digest.update(
                f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
            )
    return digest.hexdigest()


def find_textbooks(path: Path) -> list[tuple[Path, str]]:
    """(file, format) of every book at ``path``, in order.

    Raises:
        SourceError: there is none.
    """
    if not path.exists():
        raise SourceError(
            "there is no such file or folder", location=str(path), hint="check source.path"
        )
    found = list(_find_books_in_folder(path)) if path.is_dir() else [(path, _detect_format(path))]
    if not found or not all(name for _, name in found):
        message = "no book is in this folder" if not found else "this is a book in no known format"
        endings = ", ".join(
            ending for known in BOOK_FORMATS.values() for ending in known.file_name_endings
        )
        raise SourceError(message, location=str(path), hint=f"give files that end in {endings}")
    return found


def _find_books_in_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    listed = cnxml.list_openstax_collections(folder)
    if listed:
        yield from ((path, "openstax") for path in listed)
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _find_books_in_folder(path)
        elif path.stem.lower() not in NON_BOOK_FILE_STEMS and _get_format_by_ending(path):
            yield path, _get_format_by_ending(path)


def _get_format_by_ending(path: Path) -> str:
    return next(
        (
            name
            for name, known in BOOK_FORMATS.items()
            if path.name.lower().endswith(known.file_name_endings) and not path.name.startswith(".")
        ),
        "",
    )


def _detect_format(path: Path) -> str:
    """By the ending of its name; else by its first bytes; empty where neither says."""
    if _get_format_by_ending(path):
        return _get_format_by_ending(path)
    with path.open("rb") as file:
        begins = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (
            name
            for name, known in BOOK_FORMATS.items()
            if begins.startswith(tuple(begin.lower() for begin in known.first_bytes))
        ),
        "",
    )


def _read_books(
    books: list[tuple[Path, str]], attrition: Attrition, scan_models: Path | None
) -> BookPieces:
    for path, name in books:
        try:
            yield from check_book_has_passages(
                BOOK_FORMATS[name].read_passages(path, attrition, scan_models), str(path)
            )
        except OSError as error:
            raise SourceError(
                f"this file cannot be read: {error.strerror}",
                location=str(path),
                hint="check source.path and its rights",
            ) from None
