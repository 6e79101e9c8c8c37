"""Markdown -> headings and bodies: the subset that books use, parsed line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from clinpeft.core.schemas import Attrition
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.outline import (
    BookBody,
    BookHeading,
    OutlineEvent,
    build_book_passages,
    find_figure_labels,
)
from clinpeft.data.textbooks.passages import CODE_BLOCK, FOOTNOTE, FRONT_MATTER, Passage

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
"""(number of the first line, lines)."""

# Applied in order: marks of an image contain those of a link, and "**" those of "*".
_MARK_REPLACEMENTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (_IMAGE, ""),
    (re.compile(r"\[\^[^\]]+\]"), ""),  # footnote mark
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),  # link
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1"), r"\2"),  # strong
    (re.compile(r"(?<![\w*])([*_])(?=\S)(.+?)(?<=\S)\1(?![\w*])"), r"\2"),  # emphasis
    (re.compile(r"`([^`]*)`"), r"\1"),  # code
    (re.compile(r"\\([\\`*_{}\[\]()#+\-.!|])"), r"\1"),  # escaped character
)


def read_markdown(path: Path, attrition: Attrition) -> Iterator[Passage | RejectedRow]:
    """Yields the passages of a Markdown file, a book named by its front matter, else by the file.

    Raises:
        SourceError: it is not text.
    """
    text = decode_text_bytes(path.read_bytes(), attrition, str(path))
    title = get_markdown_title(text) or path.stem
    yield from build_book_passages(list(parse_markdown(text)), title)


def get_markdown_title(text: str) -> str:
    """Returns the title in the front matter of a file; empty without one."""
    # YAML between two lines of dashes; only its title is used.
    end = text.find("\n---", 4) if text.startswith("---\n") else -1
    match = _TITLE.search(text[4:end]) if end > 0 else None
    return match["title"] if match else ""


def parse_markdown(text: str) -> Iterator[OutlineEvent]:
    """Yields headings and bodies, each located by the number of its first line."""
    # Comments are replaced by as many line ends as they had, which keeps the line numbers.
    text = re.sub(
        r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL
    )
    front_matter_lines = 0
    if text.startswith("---\n") and (end := text.find("\n---", 4)) > 0:
        yield RejectedRow(FRONT_MATTER, "line 1")
        front_matter_lines = text[: end + 4].count("\n") + 1
    for first_line, lines in _split_blocks(text.split("\n"), front_matter_lines):
        # The last test matches every block, so next() always finds a parser.
        parse_block = next(parse for matches, parse in MARKDOWN_BLOCK_PARSERS if matches(lines))
        yield from parse_block(lines, f"line {first_line}")


def _split_blocks(lines: list[str], skipped_lines: int) -> Iterator[MarkdownBlock]:
    """Yields runs of lines; a heading or a fenced block is always a block of its own."""
    block: list[str] = []
    is_fenced = False
    # An empty line at the end closes the last block.
    for number, line in enumerate([*lines[skipped_lines:], ""], start=skipped_lines + 1):
        is_fence = bool(_FENCE.match(line))
        is_heading = not is_fenced and bool(_HEADING.fullmatch(line))
        if block and not is_fenced and (not line.strip() or is_fence or is_heading):
            yield number - len(block), block
            block = []
        if is_heading:
            yield number, [line]
        elif is_fenced or line.strip():
            block.append(line)
        if is_fenced and is_fence:
            yield number - len(block) + 1, block
            block = []
        is_fenced ^= is_fence
        # A line of "=" or "-" under a text makes the text a heading.
        if len(block) > 1 and not is_fenced and _UNDERLINE.fullmatch(line):
            yield number - len(block) + 1, block
            block = []
    if block:  # a fence that is never closed
        yield len(lines) - len(block) + 1, block


def strip_markdown_marks(text: str) -> str:
    """Removes the marks of images, links, emphasis and code from a text."""
    for pattern, replacement in _MARK_REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def find_markdown_links(text: str) -> tuple[str, ...]:
    """Returns the targets of links within the file, such as ``#fig-1``."""
    return tuple(match[1] for match in re.finditer(r"\]\((#[^)\s]+)\)", text))


def parse_markdown_heading(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    """Yields a heading with number signs or an underline (``=`` level 1, ``-`` level 2)."""
    match = _HEADING.fullmatch(lines[0])
    if match:
        level, title = len(match["level"]), match["title"]
    else:
        level, title = 1 if lines[-1].strip().startswith("=") else 2, " ".join(lines[:-1])
    yield BookHeading(level, strip_markdown_marks(title), location)


def parse_markdown_table(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    """Yields a table: one line for each row, cells separated by bars."""
    rows = [
        [strip_markdown_marks(cell).strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if not _TABLE_RULE.fullmatch(line)
    ]
    yield BookBody("table", "\n".join(" | ".join(row) for row in rows), location)


def parse_markdown_list(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    """Yields a list: one line for each item, whose further lines are joined to it."""
    items: list[str] = []
    for line in lines:
        match = _ITEM.fullmatch(line)
        if match:
            items.append(match["text"])
        else:
            items[-1] += f" {line.strip()}"
    text = "\n".join(strip_markdown_marks(item) for item in items)
    yield BookBody("list", text, location, refers_to=find_markdown_links(" ".join(items)))


def parse_markdown_definitions(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    """Yields definitions: a term, and below it its meaning after a colon (PHP Markdown Extra)."""
    term = lines[0]
    for line in lines[1:]:
        match = _MEANING.fullmatch(line.strip())
        if match:
            meaning, title = strip_markdown_marks(match["text"]), strip_markdown_marks(term)
            yield BookBody("definition", meaning, location, title=title)
        else:
            term = line


def parse_markdown_paragraph(lines: list[str], location: str) -> Iterator[OutlineEvent]:
    """Yields the captions of images in a paragraph, and its text."""
    # The mark of a quotation begins each of its lines.
    text = " ".join(re.sub(r"^\s*>\s?", "", line).strip() for line in lines)
    for image in _IMAGE.finditer(text):
        caption = image["caption"]
        if caption.strip():
            names = find_figure_labels(caption[:40])[:1]
            yield BookBody("caption", strip_markdown_marks(caption), location, names=names)
    plain = strip_markdown_marks(text)
    if plain.strip():
        yield BookBody("paragraph", plain, location, refers_to=find_markdown_links(text))


MarkdownBlockTest = Callable[[list[str]], bool]  # of lines, of which there is at least one
MarkdownBlockParser = Callable[[list[str], str], Iterator[OutlineEvent]]

MARKDOWN_BLOCK_PARSERS: tuple[tuple[MarkdownBlockTest, MarkdownBlockParser], ...] = (
    (
        lambda lines: bool(_FENCE.match(lines[0])),
        lambda _, location: iter([RejectedRow(CODE_BLOCK, location)]),
    ),
    (
        lambda lines: (
            bool(_HEADING.fullmatch(lines[0]))
            or (1 < len(lines) < 4 and bool(_UNDERLINE.fullmatch(lines[-1])))
        ),
        parse_markdown_heading,
    ),
    # A ruled line, which has no text.
    (lambda lines: len(lines) == 1 and bool(_RULE.fullmatch(lines[0])), lambda _, __: iter(())),
    (
        lambda lines: lines[0].startswith("[^"),
        lambda _, location: iter([RejectedRow(FOOTNOTE, location)]),
    ),
    (
        lambda lines: len(lines) > 1 and "|" in lines[0] and bool(_TABLE_RULE.fullmatch(lines[1])),
        parse_markdown_table,
    ),
    (lambda lines: bool(_ITEM.fullmatch(lines[0])), parse_markdown_list),
    (
        lambda lines: len(lines) > 1 and bool(_MEANING.fullmatch(lines[1].strip())),
        parse_markdown_definitions,
    ),
    (bool, parse_markdown_paragraph),
)
"""(test, parser) of each kind of block, in the order in which they are tried."""
