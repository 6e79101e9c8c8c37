"""OpenStax books: a ``*.collection.xml`` that lists modules by chapter, and a CNXML file a module.

The modules lie in ``modules/`` beside the collection (or in ``../modules``), as ``m1.cnxml`` or ``m1/index.cnxml``. A single module is a book too.
The part of a book that is closed in itself is the module: its objectives and its summary are about its whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks import markup
from clinpeft.data.textbooks.encodings import decoded
from clinpeft.data.textbooks.markup import Element, local
from clinpeft.data.textbooks.outline import PLAIN, Role, lead_in, role_of
from clinpeft.data.textbooks.passages import (
    CONTRIBUTORS,
    EQUATION,
    OPTION,
    REFERENCES,
    Lost,
    Passage,
    tidy,
)

CLASSES: dict[str, Role] = {
    "references": Role(REFERENCES),
    "suggested-reading": Role(REFERENCES),
    "contrib-auth": Role(CONTRIBUTORS),
    "sr-contrib-auth": Role(CONTRIBUTORS),
    "learning-objectives": Role(kind="objective"),
    "chapter-objectives": Role(kind="objective"),
    "summary": Role(kind="summary"),
    "section-summary": Role(kind="summary"),
    "chapter-summary": Role(kind="summary"),
    **dict.fromkeys(
        ("review-questions", "multiple-choice", "free-response", "interactive-exercise"),
        Role(kind="question"),
    ),
}
"""What a section or note is for, by its class; any other class says nothing."""


_PART = re.compile(
    r"\b(Figure|Table)(?=[a-z]\b)"
)  # the letter of a part follows the link without a blank


@dataclass(frozen=True)
class _At:
    """Where in a book an element stands."""

    book: str
    chapter: str | None
    module: str
    headings: tuple[str, ...]
    section: str
    role: Role

    def location(self, element: Element) -> str:
        return f"{self.module}#{element.get('id')}" if element.get("id") else self.module

    def passage(
        self,
        element: Element,
        kind: str,
        text: str,
        title: str | None = None,
        refers_to: tuple[str, ...] = (),
    ) -> Passage | Lost:
        location = self.location(element)
        if self.role.dropped:
            return Lost(self.role.dropped, location)
        text = _PART.sub(r"\1 ", text)
        names = (
            (location,) if element.get("id") and kind in ("caption", "table", "question") else ()
        )
        refers_to = refers_to or tuple(dict.fromkeys(_targets(element, self.module)))
        return Passage(
            self.book,
            self.chapter,
            self.headings,
            kind,
            self.section,
            location,
            title,
            text,
            names,
            refers_to,
        )


Found = Iterator[Passage | Lost]


def collections(folder: Path) -> list[Path]:
    """The collection files of a folder, in order of their names."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.name.endswith("collection.xml")
    )


def files(collection: Path) -> list[Path]:
    """The collection and the modules it lists."""
    root = markup.xml(
        decoded(collection.read_bytes(), Attrition("files"), str(collection)), str(collection)
    )
    return [
        collection,
        *(
            _module_path(collection, element.get("document") or "")
            for element in root.iter("{*}module")
        ),
    ]


def collection_passages(path: Path, attrition: Attrition) -> Found:
    """The passages of an OpenStax book.

    Raises:
        SourceError: the collection or a module of it is missing, broken or declares entities.
    """
    root = markup.xml(decoded(path.read_bytes(), attrition, str(path)), str(path))
    title = (
        next((tidy(element.text or "") for element in root.iterfind("{*}metadata/{*}title")), "")
        or path.name.partition(".")[0]
    )
    for module, chapter in _modules(root, None):
        yield from module_passages(_module_path(path, module), attrition, title, chapter)


def module_passages(
    path: Path, attrition: Attrition, book: str = "", chapter: str | None = None
) -> Found:
    """The passages of one module; as a book of its own where no book is given."""
    root = markup.xml(decoded(path.read_bytes(), attrition, str(path)), str(path))
    title = next((tidy(_inline(element)) for element in root.iterfind("{*}title")), "")
    module = (
        next(
            (tidy(element.text or "") for element in root.iterfind("{*}metadata/{*}content-id")), ""
        )
        or path.stem
    )
    book = book or title or path.stem
    at = _At(book, chapter, module, (title,) if title else (), f"{book}/{module}", role_of(title))
    for abstract in root.iterfind("{*}metadata/{*}abstract"):
        yield from _children(abstract, replace(at, role=Role(at.role.dropped, "objective")))
    for part in root:
        if local(part) in ("content", "glossary"):
            yield from _children(part, at)


def _modules(element: Element, chapter: str | None) -> Iterator[tuple[str, str | None]]:
    """(module, title of the innermost part of the book that holds it), in order."""
    for child in element:
        if local(child) == "module":
            yield child.get("document") or "", chapter
        elif local(child) == "subcollection":
            title = next((tidy(found.text or "") for found in child.iterfind("{*}title")), "")
            yield from _modules(child, title or chapter)
        elif local(child) == "content":
            yield from _modules(child, chapter)


def _module_path(collection: Path, module: str) -> Path:
    if not module or any(character in module for character in "/\\:") or module.startswith("."):
        raise SourceError(
            f"a module is called {module!r}",
            location=str(collection),
            hint="give the collection as OpenStax publishes it",
        )
    folders = (
        collection.parent / "modules",
        collection.parent,
        collection.parent.parent / "modules",
    )
    tried = [
        path
        for folder in folders
        for path in (folder / f"{module}.cnxml", folder / module / "index.cnxml")
    ]
    for path in tried:
        if path.is_file():
            return path
    raise SourceError(
        f"module {module!r} of this collection is missing",
        location=str(collection),
        hint=f"put it at {tried[0]}",
    )


def _children(element: Element, at: _At) -> Found:
    for child in element:
        name = local(child)
        if name in READERS:
            yield from READERS[name](child, at)


def _section(element: Element, at: _At) -> Found:
    """A section or a note: its title joins the headings, unless it says what the part is for."""
    title = next((tidy(_inline(child)) for child in element if local(child) == "title"), "")
    classes = [CLASSES[name] for name in (element.get("class") or "").split() if name in CLASSES]
    role = classes[0] if classes else role_of(title)
    if role != PLAIN:
        yield from _children(element, replace(at, role=at.role if at.role.dropped else role))
    elif title:
        own = element.get("id") or title.replace("/", " ")
        yield from _children(
            element, replace(at, headings=(*at.headings, title), section=f"{at.section}/{own}")
        )
    else:
        yield from _children(element, at)


def _paragraph(element: Element, at: _At) -> Found:
    text = _inline(element)
    kind = at.role.kind if at.role.kind in ("objective", "summary") else "paragraph"
    yield at.passage(
        element, "lead-in" if at.role.kind == "objective" and lead_in(text) else kind, text
    )


def _list(element: Element, at: _At) -> Found:
    kind = at.role.kind if at.role.kind in ("objective", "summary") else "list"
    yield at.passage(element, kind, _lines(element))


def _lines(element: Element) -> str:
    """The items of a list, one a line."""
    return "\n".join(tidy(_inline(item)) for item in element if local(item) == "item")


def _figure(element: Element, at: _At) -> Found:
    for part in element:
        if local(part) == "subfigure":
            yield from _figure(part, at)
    caption = " ".join(tidy(_inline(child)) for child in element if local(child) == "caption")
    title = next((_inline(child) for child in element if local(child) == "title"), None)
    if caption or title:
        yield at.passage(element, "caption", caption or title or "", title)


def _table(element: Element, at: _At) -> Found:
    title = next(
        (tidy(_inline(child)) for child in element if local(child) in ("title", "caption")), None
    )
    rows = [
        " | ".join(tidy(_inline(cell)) for cell in row if local(cell) == "entry")
        for row in element.iter("{*}row")
    ]
    yield at.passage(element, "table", "\n".join(rows), title)


def _exercise(element: Element, at: _At) -> Found:
    """A question, without its options, and its answer; where the answer is the letter of an option, the option."""
    message = next((child for child in element if local(child) == "problem"), None)
    if message is None:
        return
    options = [
        item
        for listed in message
        if local(listed) == "list"
        for item in listed
        if local(item) == "item"
    ]
    stem = " ".join(_inline(child) for child in message if local(child) not in ("list", "table"))
    chosen = [tidy(_inline(item)) for item in options] if stem.strip() else []
    question = at.passage(
        element, "question", stem if stem.strip() else " ".join(_inline(child) for child in message)
    )
    yield question
    yield from (Lost(OPTION, at.location(element)) for _ in chosen)
    for solution in element:
        if local(solution) == "solution":
            text = tidy(" ".join(_inline(child) for child in solution))
            yield at.passage(
                solution, "answer", _option(text, chosen), refers_to=(at.location(element),)
            )


def _option(answer: str, options: list[str]) -> str:
    letter = answer.strip(" .)(").upper()
    at = ord(letter) - ord("A") if len(letter) == 1 else -1
    return options[at] if 0 <= at < len(options) else answer


def _definition(element: Element, at: _At) -> Found:
    term = next((_inline(child) for child in element if local(child) == "term"), "")
    yield at.passage(
        element,
        "definition",
        " ".join(_inline(child) for child in element if local(child) == "meaning"),
        term,
    )


def _equation(element: Element, at: _At) -> Found:
    yield Lost(EQUATION, at.location(element))


READERS: dict[str, Callable[[Element, _At], Found]] = {
    **dict.fromkeys(("section", "note"), _section),
    **dict.fromkeys(
        ("content", "glossary", "example", "quote", "injection", "proof", "statement", "rule"),
        _children,
    ),
    "para": _paragraph,
    "list": _list,
    "figure": _figure,
    "table": _table,
    "exercise": _exercise,
    "definition": _definition,
    "equation": _equation,
}
"""What becomes of an element; titles are read by what they stand in, pictures and frames have no text."""

_BLOCKS = frozenset(
    {
        "item",
        "para",
        "newline",
        "list",
        "entry",
        "row",
        "title",
        "problem",
        "figure",
        "caption",
        "note",
    }
)


def _inline(element: Element) -> str:
    """The text of an element with all that stands in it; an empty link becomes the kind of thing it points at."""
    name = local(element)
    inside = (element.text or "") + "".join(
        _inline(child) + (child.tail or "")
        for child in element
        if local(child) not in ("media", "iframe", "label")
    )
    if name == "link" and not inside.strip():
        return _pointed_at(element)
    if name in markup.SHIFTS:
        return markup.shifted(name, inside.strip())
    if name in FORMULAS:
        return FORMULAS[name]([tidy(_inline(child)) for child in element])
    return f" {inside} " if name in _BLOCKS else inside


def _pointed_at(link: Element) -> str:
    target = link.get("target-id") or ""
    if not target:
        return ""
    found = (
        link.getroottree().xpath("//*[@id=$target]", target=target)
        if not link.get("document")
        else []
    )
    kind = (
        local(found[0])
        if found
        else next(
            (
                kind
                for start, kind in (("fig", "figure"), ("tab", "table"))
                if target.lower().startswith(start)
            ),
            "",
        )
    )
    return {"figure": "Figure", "table": "Table"}.get(kind, "")


FORMULAS: dict[str, Callable[[list[str]], str]] = {
    "mfrac": lambda parts: "/".join(f"({part})" if " " in part else part for part in parts),
    "msup": lambda parts: f"{parts[0]}{_raised(parts[1])}" if len(parts) == 2 else " ".join(parts),
    "msub": lambda parts: (
        f"{parts[0]}{markup.shifted('sub', parts[1])}" if len(parts) == 2 else " ".join(parts)
    ),
}
"""MathML that loses its meaning when only its letters are read."""


def _raised(text: str) -> str:
    raised = markup.shifted("sup", text)
    return raised if raised != text else f"^{text}"


def _targets(element: Element, module: str) -> Iterator[str]:
    """What the links in an element point at, as names of passages."""
    for link in element.iter("{*}link"):
        if link.get("target-id"):
            yield f"{link.get('document') or module}#{link.get('target-id')}"
