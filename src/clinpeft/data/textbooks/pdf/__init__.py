"""PDF: characters with boxes -> lines in reading order -> headings and paragraphs.

```
characters.py   PDFium's characters of a page -> fragments of lines with box, size and weight
layout.py       fragments -> lines in reading order, column by column; running heads are removed
paragraphs.py   lines -> headings (by size or by the outline of the file) and paragraphs
scans.py        pages that are images, with an optional package
```
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks import markdown
from clinpeft.data.textbooks.outline import OutlineEvent, build_book_passages
from clinpeft.data.textbooks.passages import PAGE_WITHOUT_TEXT, Passage
from clinpeft.data.textbooks.pdf import characters, layout, paragraphs, scans

__all__ = ["read_pdf"]

# A scan often has a cover, or a licence page, that is text.
MIN_TEXT_PAGE_FRACTION = 0.1


def read_pdf(
    path: Path, attrition: Attrition, scan_models: Path | None = None
) -> Iterator[Passage | RejectedRow]:
    """Yields the passages of a PDF.

    Args:
        path: of the file.
        attrition: not used, as a PDF has no encoding to record; the signature is that of every
            reader.
        scan_models: folder with the models that recognize the text of scans; None: a scan is an
            error.

    Raises:
        SourceError: it is broken or encrypted, or fewer than ``MIN_TEXT_PAGE_FRACTION`` of its
            pages have text and no models are given.
    """
    del attrition
    document = characters.read_pdf_book(path)
    text_page_count = sum(bool(page.fragments) for page in document.pages)
    is_scan = not text_page_count or (
        text_page_count < MIN_TEXT_PAGE_FRACTION * len(document.pages)
    )
    events: list[OutlineEvent] = []
    if not is_scan:
        # Counted, not skipped: a few scanned pages are a loss the reader should know of.
        events += (
            RejectedRow(PAGE_WITHOUT_TEXT, f"page {number}")
            for number, page in enumerate(document.pages, start=1)
            if not page.fragments
        )
        pages = [layout.order_page_lines(page) for page in document.pages]
        text_pages, running_heads = layout.remove_running_heads(pages)
        events += running_heads
        events += paragraphs.parse_pdf_lines(text_pages, document.outline)
    elif scan_models is None:
        raise SourceError(
            f"{text_page_count} of the {len(document.pages)} pages of this PDF have text: "
            "it is a scan",
            location=str(path),
            hint="install clinpeft[scans] and name the folder of its models as scan_models, "
            "or give a copy with recognized text",
        )
    else:
        events += markdown.parse_markdown(scans.convert_scan_to_markdown(path, scan_models))
    yield from build_book_passages(events, document.title or path.stem)
