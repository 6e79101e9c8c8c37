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
from clinpeft.data.textbooks.passages import Lost, Passage, batches, refusing_nothing

__all__ = ["FORMATS", "Format", "fingerprint", "read"]

Found = Iterator[Passage | Lost]


@dataclass(frozen=True)
class Format:
    """How one kind of book is read.

    Attributes:
        passages: (file, count, folder of models for scans or None) -> its passages.
        endings: of file names.
        begins: how the bytes of a file without such an ending begin, blanks aside; empty: it is never guessed.
    """

    passages: Callable[[Path, Attrition, Path | None], Found]
    endings: tuple[str, ...]
    begins: tuple[bytes, ...] = ()


FORMATS: dict[str, Format] = {
    "pdf": Format(pdf.read, (".pdf",), (b"%PDF-",)),
    "epub": Format(
        lambda path, attrition, _: epub.read(path, attrition), (".epub",), (b"PK\x03\x04",)
    ),
    "openstax": Format(
        lambda path, attrition, _: cnxml.collection_passages(path, attrition), ("collection.xml",)
    ),
    "cnxml": Format(
        lambda path, attrition, _: cnxml.module_passages(path, attrition),
        (".cnxml",),
        (b'<document xmlns="http://cnx.rice.edu',),
    ),
    "html": Format(
        lambda path, attrition, _: html.read(path, attrition),
        (".html", ".htm", ".xhtml"),
        (b"<!doctype html", b"<html"),
    ),
    "markdown": Format(
        lambda path, attrition, _: markdown.read(path, attrition), (".md", ".markdown")
    ),
    "text": Format(lambda path, attrition, _: plain_text.read(path, attrition), (".txt", ".text")),
}
"""What can be read; in a folder, files of no such ending are no books."""

NO_BOOKS = frozenset(
    {"readme", "license", "licence", "attribution", "copying", "notice", "changelog"}
)
"""Files that lie beside books, by their names without endings."""


def read(path: Path, attrition: Attrition, scan_models: Path | None = None) -> pa.RecordBatchReader:
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
    found = books(path)
    return pa.RecordBatchReader.from_batches(
        PASSAGE_SCHEMA, batches(_all(found, attrition, scan_models), attrition)
    )


def fingerprint(path: Path) -> str:
    """SHA-256 in hexadecimal over the names and bytes of all that ``read`` would read; a folder may move and keep it.

    Raises:
        SourceError: nothing is there.
    """
    digest = hashlib.sha256()
    for book, name in books(path):
        for file in cnxml.files(book) if name == "openstax" else [book]:
            digest.update(
                f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
            )
    return digest.hexdigest()


def books(path: Path) -> list[tuple[Path, str]]:
    """(file, format) of every book at ``path``, in order.

    Raises:
        SourceError: there is none.
    """
    if not path.exists():
        raise SourceError(
            "there is no such file or folder", location=str(path), hint="check source.path"
        )
    found = list(_in_folder(path)) if path.is_dir() else [(path, _format(path))]
    if not found or not all(name for _, name in found):
        message = "no book is in this folder" if not found else "this is a book in no known format"
        endings = ", ".join(ending for known in FORMATS.values() for ending in known.endings)
        raise SourceError(message, location=str(path), hint=f"give files that end in {endings}")
    return found


def _in_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    listed = cnxml.collections(folder)
    if listed:
        yield from ((path, "openstax") for path in listed)
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _in_folder(path)
        elif path.stem.lower() not in NO_BOOKS and _by_ending(path):
            yield path, _by_ending(path)


def _by_ending(path: Path) -> str:
    return next(
        (
            name
            for name, known in FORMATS.items()
            if path.name.lower().endswith(known.endings) and not path.name.startswith(".")
        ),
        "",
    )


def _format(path: Path) -> str:
    """By the ending of its name; else by its first bytes; empty where neither says."""
    if _by_ending(path):
        return _by_ending(path)
    with path.open("rb") as file:
        begins = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (
            name
            for name, known in FORMATS.items()
            if begins.startswith(tuple(begin.lower() for begin in known.begins))
        ),
        "",
    )


def _all(found: list[tuple[Path, str]], attrition: Attrition, scan_models: Path | None) -> Found:
    for path, name in found:
        try:
            yield from refusing_nothing(
                FORMATS[name].passages(path, attrition, scan_models), str(path)
            )
        except OSError as error:
            raise SourceError(
                f"this file cannot be read: {error.strerror}",
                location=str(path),
                hint="check source.path and its rights",
            ) from None
