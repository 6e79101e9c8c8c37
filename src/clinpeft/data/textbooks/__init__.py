"""Textbooks -> passages: a stream of ``PASSAGE_SCHEMA`` batches, every piece accounted for.

```
passages.py     passages -> batches: normalized, counted, with ids
outline.py      headings and bodies -> passages with chapter, headings and kind
cnxml.py        OpenStax        epub.py, html.py    EPUB and HTML        pdf/   PDF
markdown.py     Markdown        plain_text.py       text
markup.py, archive.py, encodings.py     untrusted XML, ZIP and text, read safely
lines.py        printed lines -> running text
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import PASSAGE_SCHEMA, Attrition
from clinpeft.data.formats.hashing import fingerprint_source_files
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks import cnxml, epub, html, markdown, pdf, plain_text
from clinpeft.data.textbooks.passages import Passage, batch_passages, check_book_has_passages

__all__ = ["BOOK_FORMATS", "BookFormat", "fingerprint_textbooks", "read_textbooks"]

BookPieces = Iterator[Passage | RejectedRow]


@dataclass(frozen=True)
class BookFormat:
    """How books of one format are recognized and read.

    Attributes:
        read_passages: (file, attrition, folder of models for scans or None) -> its passages.
        file_name_endings: of file names.
        first_bytes: how the content of a file without such an ending begins, blanks aside; empty:
            the format is never guessed.
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
"""Supported formats. In a folder, files without one of these endings are not books."""

NON_BOOK_FILE_STEMS = frozenset(
    {"readme", "license", "licence", "attribution", "copying", "notice", "changelog"}
)
"""Names, without endings, of files that lie beside books."""


def read_textbooks(
    path: Path, attrition: Attrition, scan_models: Path | None = None
) -> pa.RecordBatchReader:
    """Reads the passages of a book, or of all books in a folder, in reading order.

    A folder with an OpenStax collection holds the books of its collections; in any other folder
    every file of a known format is a book, and subfolders are searched.

    Args:
        path: a file or a folder.
        attrition: a new count of this step, updated while the stream is consumed; encodings other
            than UTF-8 are recorded in its locations.
        scan_models: folder with the models of docling, for scanned books; None: a scan is an error.

    Returns:
        A stream of ``PASSAGE_SCHEMA`` batches that can be consumed once.

    Raises:
        SourceError: there is no book, or one that cannot be read or holds no passage.
        RefusedError: a malicious archive.
    """
    books = find_textbooks(path)

    def read_books() -> BookPieces:
        for book, name in books:
            try:
                pieces = BOOK_FORMATS[name].read_passages(book, attrition, scan_models)
                yield from check_book_has_passages(pieces, str(book))
            except OSError as error:
                raise SourceError(
                    f"this file cannot be read: {error.strerror}",
                    location=str(book),
                    hint="check source.path and its permissions",
                ) from None

    return pa.RecordBatchReader.from_batches(
        PASSAGE_SCHEMA, batch_passages(read_books(), attrition)
    )


def fingerprint_textbooks(path: Path) -> str:
    """Computes SHA-256, in hexadecimal, over names and bytes of all files that would be read.

    A folder may move and keep its fingerprint.

    Raises:
        SourceError: there is no book.
    """
    return fingerprint_source_files(
        file
        for book, name in find_textbooks(path)
        # The text of an OpenStax collection is in the modules it lists.
        for file in (cnxml.list_openstax_files(book) if name == "openstax" else [book])
    )


def find_textbooks(path: Path) -> list[tuple[Path, str]]:
    """Returns (file, format) of every book at ``path``, in order.

    Raises:
        SourceError: there is none.
    """
    if not path.exists():
        raise SourceError(
            "there is no such file or folder", location=str(path), hint="check source.path"
        )
    message = "this is a book in no known format"
    if path.is_dir():
        books, message = list(_find_books_in_folder(path)), "no book is in this folder"
    else:
        books = [(path, _get_format_by_ending(path) or _guess_format(path))]
    if not books or not all(name for _, name in books):
        endings = ", ".join(
            ending
            for book_format in BOOK_FORMATS.values()
            for ending in book_format.file_name_endings
        )
        raise SourceError(message, location=str(path), hint=f"give files that end in {endings}")
    return books


def _find_books_in_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    collections = cnxml.list_openstax_collections(folder)
    if collections:
        # The folders below hold the modules of these collections, which are no books themselves.
        yield from ((path, "openstax") for path in collections)
        return
    # Sorted: the order of a directory differs between file systems.
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _find_books_in_folder(path)
        elif path.stem.lower() not in NON_BOOK_FILE_STEMS and _get_format_by_ending(path):
            yield path, _get_format_by_ending(path)


def _get_format_by_ending(path: Path) -> str:
    """Returns the format of a file by the ending of its name; empty for none."""
    for name, book_format in BOOK_FORMATS.items():
        if path.name.lower().endswith(book_format.file_name_endings):
            return "" if path.name.startswith(".") else name
    return ""


def _guess_format(path: Path) -> str:
    """Returns the format of a file by its first bytes; empty for none."""
    with path.open("rb") as file:
        # A byte order mark or blanks may precede the signature.
        content = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for name, book_format in BOOK_FORMATS.items():
        if content.startswith(tuple(prefix.lower() for prefix in book_format.first_bytes)):
            return name
    return ""
