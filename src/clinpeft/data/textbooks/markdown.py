"""Markdown -> headings and bodies: what books use of it, read line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks.encodings import decoded
from clinpeft.data.textbooks.outline import Body, Event, Heading, labels, passages
from clinpeft.data.textbooks.passages import CODE, FOOTNOTE, FRONT_MATTER, Lost, Passage

_HEADING = re.compile(r" {0,3}(?P<level>#{1,6})\s+(?P<title>.*?)\s*#*\s*")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,3}[.)])\s+(?P<text>.*)")
_RULE = re.compile(r"\s*(?:[-*_]\s*){3,}")
_TABLE_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
_IMAGE = re.compile(r"!\[(?P<caption>[^\]]*)\]\([^)]*\)")
_MEANING = re.compile(r":\s+(?P<text>\S.*)")
_TITLE = re.compile(r"^title:\s*[\"']?(?P<title>.+?)[\"']?\s*$", re.MULTILINE)

Block = tuple[int, list[str]]


def read(path: Path, attrition: Attrition) -> Iterator[Passage | Lost]:
    """The passages of a Markdown file; the book is called as its front matter says, else as the file.

    Raises:
        SourceError: it is no text.
    """
    text = decoded(path.read_bytes(), attrition, str(path))
    yield from passages(list(events(text)), title(text) or path.stem)


def title(text: str) -> str:
    """What the front matter of a file says the book is called; empty without one."""
    end = text.find("\n---", 4) if text.startswith("---\n") else -1
    match = _TITLE.search(text[4:end]) if end > 0 else None
    return match["title"] if match else ""


def events(text: str) -> Iterator[Event]:
    """Headings and bodies, each placed by the number of its first line."""
    text = re.sub(
        r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL
    )
    skipped = 0
    if text.startswith("---\n") and (end := text.find("\n---", 4)) > 0:
        yield Lost(FRONT_MATTER, "line 1")
        skipped = text[: end + 4].count("\n") + 1
    for first, lines in _blocks(text.split("\n"), skipped):
        kind = next(kind for fits, kind in FORMS if fits(lines))
        yield from kind(lines, f"line {first}")


def _blocks(lines: list[str], skipped: int) -> Iterator[Block]:
    """(number of the first line, lines) of what stands together; a heading or a fenced block is always by itself."""
    block: list[str] = []
    fenced = False
    for number, line in enumerate([*lines[skipped:], ""], start=skipped + 1):
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


def plain(text: str) -> str:
    """Text without the marks of Markdown."""
    text = _IMAGE.sub("", text)
    text = re.sub(r"\[\^[^\]]+\]", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<![\w*])([*_])(?=\S)(.+?)(?<=\S)\1(?![\w*])", r"\2", text)
    text = re.sub(r"`([^`]*)`", r"\1", text)
    return re.sub(r"\\([\\`*_{}\[\]()#+\-.!|])", r"\1", text)


def _links(text: str) -> tuple[str, ...]:
    return tuple(match[1] for match in re.finditer(r"\]\((#[^)\s]+)\)", text))


def _heading(lines: list[str], location: str) -> Iterator[Event]:
    match = _HEADING.fullmatch(lines[0])
    if match:
        yield Heading(len(match["level"]), plain(match["title"]), location)
    else:
        yield Heading(
            1 if lines[-1].strip().startswith("=") else 2, plain(" ".join(lines[:-1])), location
        )


def _code(lines: list[str], location: str) -> Iterator[Event]:
    del lines
    yield Lost(CODE, location)


def _footnote(lines: list[str], location: str) -> Iterator[Event]:
    del lines
    yield Lost(FOOTNOTE, location)


def _nothing(lines: list[str], location: str) -> Iterator[Event]:
    del lines, location
    yield from ()


def _table(lines: list[str], location: str) -> Iterator[Event]:
    rows = [
        [plain(cell).strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if not _TABLE_RULE.fullmatch(line)
    ]
    yield Body("table", "\n".join(" | ".join(row) for row in rows), location)


def _list(lines: list[str], location: str) -> Iterator[Event]:
    items: list[str] = []
    for line in lines:
        match = _ITEM.fullmatch(line)
        if match:
            items.append(match["text"])
        else:
            items[-1] += f" {line.strip()}"
    yield Body(
        "list",
        "\n".join(plain(item) for item in items),
        location,
        refers_to=_links(" ".join(items)),
    )


def _definitions(lines: list[str], location: str) -> Iterator[Event]:
    """A term, and below it its meaning after a colon, as in PHP Markdown Extra."""
    term = lines[0]
    for line in lines[1:]:
        match = _MEANING.fullmatch(line.strip())
        if match:
            yield Body("definition", plain(match["text"]), location, title=plain(term))
        else:
            term = line


def _paragraph(lines: list[str], location: str) -> Iterator[Event]:
    text = " ".join(re.sub(r"^\s*>\s?", "", line).strip() for line in lines)
    for image in _IMAGE.finditer(text):
        if image["caption"].strip():
            yield Body(
                "caption",
                plain(image["caption"]),
                location,
                names=labels(image["caption"][:40])[:1],
            )
    rest = plain(text)
    if rest.strip():
        yield Body("paragraph", rest, location, refers_to=_links(text))


Fits = Callable[[list[str]], bool]  # of lines, of which there is at least one
Reads = Callable[[list[str], str], Iterator[Event]]

FORMS: tuple[tuple[Fits, Reads], ...] = (
    (lambda lines: bool(_FENCE.match(lines[0])), _code),
    (
        lambda lines: (
            bool(_HEADING.fullmatch(lines[0]))
            or (1 < len(lines) < 4 and bool(_UNDERLINE.fullmatch(lines[-1])))
        ),
        _heading,
    ),
    (lambda lines: len(lines) == 1 and bool(_RULE.fullmatch(lines[0])), _nothing),
    (lambda lines: lines[0].startswith("[^"), _footnote),
    (
        lambda lines: len(lines) > 1 and "|" in lines[0] and bool(_TABLE_RULE.fullmatch(lines[1])),
        _table,
    ),
    (lambda lines: bool(_ITEM.fullmatch(lines[0])), _list),
    (lambda lines: len(lines) > 1 and bool(_MEANING.fullmatch(lines[1].strip())), _definitions),
    (bool, _paragraph),
)
"""What a block of lines is, tried in order."""
