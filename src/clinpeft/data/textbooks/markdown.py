"""Markdown -> headings and bodies: what books use of it, read line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.outline import (
    BookBody,
    OutlineEvent,
    BookHeading,
    find_figure_labels,
    build_book_passages,
)
from clinpeft.data.textbooks.passages import (
    CODE_BLOCK,
    FOOTNOTE,
    FRONT_MATTER,
    RejectedPassage,
    Passage,
)

_HEADING = re.compile(r" {0,3}(?P<level>#{1,6})\s+(?P<title>.*?)\s*#*\s*")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,3}[.)])\s+(?P<text>.*)")
_RULE = re.compile(r"\s*(?:[-*_]\s*){3,}")
_TABLE_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
_IMAGE = re.compile(r"!\[(?P<caption>[^\]]*)\]\([^)]*\)")
_MEANING = re.compile(r":\s+(?P<text>\S.*)")
_TITLE = re.compile(r"^title:\s*[\"']?(?P<title>.+?)[\"']?\s*$", re.MULTILINE)

MarkdownBlock = tuple[int, list[str]]


def read_markdown(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedPassage]:
    """The passages of a Markdown file; the book is called as its front matter says, else as the file.

    Raises:
        SourceError: it is no text.
    """
    text = decode_text_bytes(path.read_bytes(), attrition, str(path))
    yield from build_book_passages(
        list(parse_markdown(text)), get_markdown_title(text) or path.stem
    )


def get_markdown_title(text: str) -> str:
    """What the front matter of a file says the book is called; empty without one."""
    end = text.find("\n---", 4) if text.startswith("---\n") else -1
    match = _TITLE.search(text[4:end]) if end > 0 else None
    return match["title"] if match else ""


def parse_markdown(text: str) -> Iterator[OutlineEvent]:
    """Headings and bodies, each placed by the number of its first line."""
    text = re.sub(
        r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL
    )
    skipped = 0
    if text.startswith("---\n") and (end := text.find("\n---", 4)) > 0:
        yield RejectedPassage(FRONT_MATTER, "line 1")
        skipped = text[: end + 4].count("\n") + 1
    for first, lines in _split_blocks(text.split("\n"), skipped):
        kind = next(kind for fits, kind in MARKDOWN_BLOCK_PARSERS if fits(lines))
        yield from kind(lines, f"line {first}")


def _split_blocks(lines: list[str], skipped_lines: int) -> Iterator[MarkdownBlock]:
    """(number of the first line, lines) of what stands together; a heading or a fenced block is always by itself."""
    block: list[str] = []
    fenced = False
    for number, line in enumerate([*lines[skipped_lines:], ""], start=skipped_lines + 1):
        opens = bool(_FENCE.match(line))
        alone = not fenced and bool(_HEADING.fullmatch(line))
        if block and not fenced and (not line.strip() or opens or alone):
            yield number - len(block), block
            block = []
        if alone:
            yield number, [line]
        elif fenced or line.strip():
            block.append(line)
        if fenced and opens:
            yield number - len(block) + 1, block
            block = []
        fenced ^= opens
        if block and not fenced and len(block) > 1 and _UNDERLINE.fullmatch(line):
            yield number - len(block) + 1, block
            block = []
    if block:
        yield len(lines) - len(block) + 1, block


def strip_markdown_marks(text: str) -> str:
    """Text without the marks of Markdown."""
    text = _IMAGE.sub("", text)
    text = re.sub(r"\[\^[^\]]+\]", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<![\w*])([*_])(?=\S)(.+?)(?<=\S)\1(?![\w*])", r"\2", text)
    text = re.sub(r"`([^`]*)`", r"\1", text)
    return re.sub(r"\\([\\`*_{}\[\]()#+\-.!|])", r"\1", text)


def _find_links(text: str) -> tuple[str, ...]:
    return tuple(match[1] for match in re.finditer(r"\]\((#[^)\s]+)\)", text))


def _parse_heading(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    match = _HEADING.fullmatch(lines[0])
    if match:
        yield BookHeading(len(match["level"]), strip_markdown_marks(match["title"]), location)
    else:
        yield BookHeading(
            1 if lines[-1].strip().startswith("=") else 2,
            strip_markdown_marks(" ".join(lines[:-1])),
            location,
        )


def _reject_code(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    del lines
    yield RejectedPassage(CODE_BLOCK, location)


def _reject_footnote(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    del lines
    yield RejectedPassage(FOOTNOTE, location)


def _skip_rule(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    del lines, location
    yield from ()


def _parse_table(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    rows = [
        [strip_markdown_marks(cell).strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if not _TABLE_RULE.fullmatch(line)
    ]
    yield BookBody("table", "\n".join(" | ".join(row) for row in rows), location)


def _parse_list(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    items: list[str] = []
    for line in lines:
        match = _ITEM.fullmatch(line)
        if match:
            items.append(match["text"])
        else:
            items[-1] += f" {line.strip()}"
    yield BookBody(
        "list",
        "\n".join(strip_markdown_marks(item) for item in items),
        location,
        refers_to=_find_links(" ".join(items)),
    )


def _parse_definitions(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    """A term, and below it its meaning after a colon, as in PHP Markdown Extra."""
    term = lines[0]
    for line in lines[1:]:
        match = _MEANING.fullmatch(line.strip())
        if match:
            yield BookBody(
                "definition",
                strip_markdown_marks(match["text"]),
                location,
                title=strip_markdown_marks(term),
            )
        else:
            term = line


def _parse_paragraph(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    text = " ".join(re.sub(r"^\s*>\s?", "", line).strip() for line in lines)
    for image in _IMAGE.finditer(text):
        if image["caption"].strip():
            yield BookBody(
                "caption",
                strip_markdown_marks(image["caption"]),
                location,
                names=find_figure_labels(image["caption"][:40])[:1],
            )
    rest = strip_markdown_marks(text)
    if rest.strip():
        yield BookBody("paragraph", rest, location, refers_to=_find_links(text))


MarkdownBlockTest = Callable[[list[str]], bool]  # of lines, of which there is at least one
MarkdownBlockParser = Callable[[list[str], str], Iterator[OutlineEvent]]

MARKDOWN_BLOCK_PARSERS: tuple[tuple[MarkdownBlockTest, MarkdownBlockParser], ...] = (
    (lambda lines: bool(_FENCE.match(lines[0])), _reject_code),
    (
        lambda lines: (
            bool(_HEADING.fullmatch(lines[0]))
            or (1 < len(lines) < 4 and bool(_UNDERLINE.fullmatch(lines[-1])))
        ),
        _parse_heading,
    ),
    (lambda lines: len(lines) == 1 and bool(_RULE.fullmatch(lines[0])), _skip_rule),
    (lambda lines: lines[0].startswith("[^"), _reject_footnote),
    (
        lambda lines: len(lines) > 1 and "|" in lines[0] and bool(_TABLE_RULE.fullmatch(lines[1])),
        _parse_table,
    ),
    (lambda lines: bool(_ITEM.fullmatch(lines[0])), _parse_list),
    (
        lambda lines: len(lines) > 1 and bool(_MEANING.fullmatch(lines[1].strip())),
        _parse_definitions,
    ),
    (bool, _parse_paragraph),
)
"""What a block of lines is, tried in order."""
