"""PDF: characters with boxes -> lines in reading order -> headings and paragraphs.

```
characters.py   what PDFium says of a page: pieces of lines with their boxes, sizes and fonts
layout.py       pieces -> lines in reading order, column by column; running heads and page numbers found by repetition
paragraphs.py   lines -> headings (by size, or by the outline of the file) and paragraphs, over columns and pages
scans.py        pages that are pictures, with an optional package
```
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks import markdown
from clinpeft.data.textbooks.outline import OutlineEvent, build_book_passages
from clinpeft.data.textbooks.passages import PAGE_WITHOUT_TEXT, RejectedPassage, Passage
from clinpeft.data.textbooks.pdf import characters, layout, paragraphs, scans

__all__ = ["read_pdf"]

MIN_TEXT_PAGE_FRACTION = 0.1  # a scan often has a cover, or a licence page, that is text


def read_pdf(
    path: Path, attrition: Attrition, scan_models: Path | None = None
) -> Iterator[Passage | RejectedPassage]:
    """The passages of a PDF.

    Args:
        path: of the file.
        attrition: as for every reader; a PDF has no encoding to note.
        scan_models: folder with the models that read pictures of pages; none: a scanned book is refused.

    Raises:
        SourceError: it is broken or encrypted, or fewer than ``LEAST_PAGES_WITH_TEXT`` of its pages have text and no models are given.
    """
    del attrition
    document = characters.read_pdf_book(path)
    with_text = sum(bool(page.fragments) for page in document.pages)
    if with_text < MIN_TEXT_PAGE_FRACTION * len(document.pages) or not with_text:
        if scan_models is None:
            raise _create_scan_error(path, with_text, len(document.pages))
        yield from build_book_passages(
            list(markdown.parse_markdown(scans.convert_scan_to_markdown(path, scan_models))),
            document.title or path.stem,
        )
        return
    yield from build_book_passages(list(_parse_document(document)), document.title or path.stem)


def _parse_document(document: characters.PdfBook) -> Iterator[OutlineEvent]:
    pages = [layout.order_page_lines(page) for page in document.pages]
    yield from (
        RejectedPassage(PAGE_WITHOUT_TEXT, f"page {number}")
        for number, page in enumerate(document.pages, start=1)
        if not page.fragments
    )
    kept, lost = layout.remove_running_heads(pages)
    yield from lost
    yield from paragraphs.parse_pdf_lines(kept, document.outline)


def _create_scan_error(path: Path, with_text: int, pages: int) -> SourceError:
    hint = "install clinpeft[scans] and name the folder of its models as scan_models, or give a copy that was run through text recognition"
    return SourceError(
        f"{with_text} of the {pages} pages of this PDF have text: it is a scan",
        location=str(path),
        hint=hint,
    )
