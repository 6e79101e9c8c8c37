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
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.markup import MarkupElement, get_local_name
from clinpeft.data.textbooks.outline import PLAIN_ROLE, PartRole, is_lead_in, find_heading_role
from clinpeft.data.textbooks.passages import (
    CONTRIBUTOR_LIST,
    DISPLAY_EQUATION,
    MULTIPLE_CHOICE_OPTION,
    REFERENCE_LIST,
    RejectedPassage,
    Passage,
    normalize_passage_text,
)

CNXML_CLASS_ROLES: dict[str, PartRole] = {
    "references": PartRole(REFERENCE_LIST),
    "suggested-reading": PartRole(REFERENCE_LIST),
    "contrib-auth": PartRole(CONTRIBUTOR_LIST),
    "sr-contrib-auth": PartRole(CONTRIBUTOR_LIST),
    "learning-objectives": PartRole(kind="objective"),
    "chapter-objectives": PartRole(kind="objective"),
    "summary": PartRole(kind="summary"),
    "section-summary": PartRole(kind="summary"),
    "chapter-summary": PartRole(kind="summary"),
    **dict.fromkeys(
        ("review-questions", "multiple-choice", "free-response", "interactive-exercise"),
        PartRole(kind="question"),
    ),
}
"""What a section or note is for, by its class; any other class says nothing."""


_PART_LETTER_PATTERN = re.compile(
    r"\b(Figure|Table)(?=[a-z]\b)"
)  # the letter of a part follows the link without a blank


@dataclass(frozen=True)
class _Position:
    """Where in a book an element stands."""

    book: str
    chapter: str | None
    module: str
    headings: tuple[str, ...]
    section: str
    role: PartRole

    def get_location(self, element: MarkupElement) -> str:
        return f"{self.module}#{element.get('id')}" if element.get("id") else self.module

    def build_passage(
        self,
        element: MarkupElement,
        kind: str,
        text: str,
        title: str | None = None,
        refers_to: tuple[str, ...] = (),
    ) -> Passage | RejectedPassage:
        location = self.get_location(element)
        if self.role.drop_reason:
            return RejectedPassage(self.role.drop_reason, location)
        text = _PART_LETTER_PATTERN.sub(r"\1 ", text)
        names = (
            (location,) if element.get("id") and kind in ("caption", "table", "question") else ()
        )
        refers_to = refers_to or tuple(dict.fromkeys(_list_link_targets(element, self.module)))
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


CnxmlPieces = Iterator[Passage | RejectedPassage]


def list_openstax_collections(folder: Path) -> list[Path]:
    """The collection files of a folder, in order of their names."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.name.endswith("collection.xml")
    )


def list_openstax_files(collection: Path) -> list[Path]:
    """The collection and the modules it lists."""
    root = markup.parse_xml(
        decode_text_bytes(collection.read_bytes(), Attrition("files"), str(collection)),
        str(collection),
    )
    return [
        collection,
        *(
            _find_module(collection, element.get("document") or "")
            for element in root.iter("{*}module")
        ),
    ]


def read_openstax_collection(path: Path, attrition: Attrition) -> CnxmlPieces:
    """The passages of an OpenStax book.

    Raises:
        SourceError: the collection or a module of it is missing, broken or declares entities.
    """
    root = markup.parse_xml(decode_text_bytes(path.read_bytes(), attrition, str(path)), str(path))
    title = (
        next(
            (
                normalize_passage_text(element.text or "")
                for element in root.iterfind("{*}metadata/{*}title")
            ),
            "",
        )
        or path.name.partition(".")[0]
    )
    for module, chapter in _list_modules(root, None):
        yield from read_cnxml_module(_find_module(path, module), attrition, title, chapter)


def read_cnxml_module(
    path: Path, attrition: Attrition, book: str = "", chapter: str | None = None
) -> CnxmlPieces:
    """The passages of one module; as a book of its own where no book is given."""
    root = markup.parse_xml(decode_text_bytes(path.read_bytes(), attrition, str(path)), str(path))
    title = next(
        (
            normalize_passage_text(_get_inline_text(element))
            for element in root.iterfind("{*}title")
        ),
        "",
    )
    module = (
        next(
            (
                normalize_passage_text(element.text or "")
                for element in root.iterfind("{*}metadata/{*}content-id")
            ),
            "",
        )
        or path.stem
    )
    book = book or title or path.stem
    at = _Position(
        book,
        chapter,
        module,
        (title,) if title else (),
        f"{book}/{module}",
        find_heading_role(title),
    )
    for abstract in root.iterfind("{*}metadata/{*}abstract"):
        yield from _read_children(
            abstract, replace(at, role=PartRole(at.role.drop_reason, "objective"))
        )
    for part in root:
        if get_local_name(part) in ("content", "glossary"):
            yield from _read_children(part, at)


def _list_modules(element: MarkupElement, chapter: str | None) -> Iterator[tuple[str, str | None]]:
    """(module, title of the innermost part of the book that holds it), in order."""
    for child in element:
        if get_local_name(child) == "module":
            yield child.get("document") or "", chapter
        elif get_local_name(child) == "subcollection":
            title = next(
                (normalize_passage_text(found.text or "") for found in child.iterfind("{*}title")),
                "",
            )
            yield from _list_modules(child, title or chapter)
        elif get_local_name(child) == "content":
            yield from _list_modules(child, chapter)


def _find_module(collection: Path, module: str) -> Path:
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


def _read_children(element: MarkupElement, position: _Position) -> CnxmlPieces:
    for child in element:
        name = get_local_name(child)
        if name in CNXML_ELEMENT_READERS:
            yield from CNXML_ELEMENT_READERS[name](child, position)


def _read_section(element: MarkupElement, position: _Position) -> CnxmlPieces:
    """A section or a note: its title joins the headings, unless it says what the part is for."""
    title = next(
        (
            normalize_passage_text(_get_inline_text(child))
            for child in element
            if get_local_name(child) == "title"
        ),
        "",
    )
    classes = [
        CNXML_CLASS_ROLES[name]
        for name in (element.get("class") or "").split()
        if name in CNXML_CLASS_ROLES
    ]
    role = classes[0] if classes else find_heading_role(title)
    if role != PLAIN_ROLE:
        yield from _read_children(
            element, replace(position, role=position.role if position.role.drop_reason else role)
        )
    elif title:
        own = element.get("id") or title.replace("/", " ")
        yield from _read_children(
            element,
            replace(
                position, headings=(*position.headings, title), section=f"{position.section}/{own}"
            ),
        )
    else:
        yield from _read_children(element, position)


def _read_paragraph(element: MarkupElement, position: _Position) -> CnxmlPieces:
    text = _get_inline_text(element)
    kind = position.role.kind if position.role.kind in ("objective", "summary") else "paragraph"
    yield position.build_passage(
        element, "lead-in" if position.role.kind == "objective" and is_lead_in(text) else kind, text
    )


def _read_list(element: MarkupElement, position: _Position) -> CnxmlPieces:
    kind = position.role.kind if position.role.kind in ("objective", "summary") else "list"
    yield position.build_passage(element, kind, _join_list_items(element))


def _join_list_items(element: MarkupElement) -> str:
    """The items of a list, one a line."""
    return "\n".join(
        normalize_passage_text(_get_inline_text(item))
        for item in element
        if get_local_name(item) == "item"
    )


def _read_figure(element: MarkupElement, position: _Position) -> CnxmlPieces:
    for part in element:
        if get_local_name(part) == "subfigure":
            yield from _read_figure(part, position)
    caption = " ".join(
        normalize_passage_text(_get_inline_text(child))
        for child in element
        if get_local_name(child) == "caption"
    )
    title = next(
        (_get_inline_text(child) for child in element if get_local_name(child) == "title"), None
    )
    if caption or title:
        yield position.build_passage(element, "caption", caption or title or "", title)


def _read_table(element: MarkupElement, position: _Position) -> CnxmlPieces:
    title = next(
        (
            normalize_passage_text(_get_inline_text(child))
            for child in element
            if get_local_name(child) in ("title", "caption")
        ),
        None,
    )
    rows = [
        " | ".join(
            normalize_passage_text(_get_inline_text(cell))
            for cell in row
            if get_local_name(cell) == "entry"
        )
        for row in element.iter("{*}row")
    ]
    yield position.build_passage(element, "table", "\n".join(rows), title)


def _read_exercise(element: MarkupElement, position: _Position) -> CnxmlPieces:
    """A question, without its options, and its answer; where the answer is the letter of an option, the option."""
    message = next((child for child in element if get_local_name(child) == "problem"), None)
    if message is None:
        return
    options = [
        item
        for listed in message
        if get_local_name(listed) == "list"
        for item in listed
        if get_local_name(item) == "item"
    ]
    stem = " ".join(
        _get_inline_text(child)
        for child in message
        if get_local_name(child) not in ("list", "table")
    )
    chosen = (
        [normalize_passage_text(_get_inline_text(item)) for item in options] if stem.strip() else []
    )
    question = position.build_passage(
        element,
        "question",
        stem if stem.strip() else " ".join(_get_inline_text(child) for child in message),
    )
    yield question
    yield from (
        RejectedPassage(MULTIPLE_CHOICE_OPTION, position.get_location(element)) for _ in chosen
    )
    for solution in element:
        if get_local_name(solution) == "solution":
            text = normalize_passage_text(" ".join(_get_inline_text(child) for child in solution))
            yield position.build_passage(
                solution,
                "answer",
                _resolve_option(text, chosen),
                refers_to=(position.get_location(element),),
            )


def _resolve_option(answer: str, options: list[str]) -> str:
    letter = answer.strip(" .)(").upper()
    at = ord(letter) - ord("A") if len(letter) == 1 else -1
    return options[at] if 0 <= at < len(options) else answer


def _read_definition(element: MarkupElement, position: _Position) -> CnxmlPieces:
    term = next(
        (_get_inline_text(child) for child in element if get_local_name(child) == "term"), ""
    )
    yield position.build_passage(
        element,
        "definition",
        " ".join(
            _get_inline_text(child) for child in element if get_local_name(child) == "meaning"
        ),
        term,
    )


def _reject_equation(element: MarkupElement, position: _Position) -> CnxmlPieces:
    yield RejectedPassage(DISPLAY_EQUATION, position.get_location(element))


CNXML_ELEMENT_READERS: dict[str, Callable[[MarkupElement, _Position], CnxmlPieces]] = {
    **dict.fromkeys(("section", "note"), _read_section),
    **dict.fromkeys(
        ("content", "glossary", "example", "quote", "injection", "proof", "statement", "rule"),
        _read_children,
    ),
    "para": _read_paragraph,
    "list": _read_list,
    "figure": _read_figure,
    "table": _read_table,
    "exercise": _read_exercise,
    "definition": _read_definition,
    "equation": _reject_equation,
}
"""What becomes of an element; titles are read by what they stand in, pictures and frames have no text."""

_BLOCK_ELEMENTS = frozenset(
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


def _get_inline_text(element: MarkupElement) -> str:
    """The text of an element with all that stands in it; an empty link becomes the kind of thing it points at."""
    name = get_local_name(element)
    inside = (element.text or "") + "".join(
        _get_inline_text(child) + (child.tail or "")
        for child in element
        if get_local_name(child) not in ("media", "iframe", "label")
    )
    if name == "link" and not inside.strip():
        return _describe_link_target(element)
    if name in markup.SCRIPT_CHARACTERS:
        return markup.convert_script_characters(name, inside.strip())
    if name in MATHML_FORMATTERS:
        return MATHML_FORMATTERS[name](
            [normalize_passage_text(_get_inline_text(child)) for child in element]
        )
    return f" {inside} " if name in _BLOCK_ELEMENTS else inside


def _describe_link_target(link: MarkupElement) -> str:
    target = link.get("target-id") or ""
    if not target:
        return ""
    found = (
        link.getroottree().xpath("//*[@id=$target]", target=target)
        if not link.get("document")
        else []
    )
    kind = (
        get_local_name(found[0])
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


MATHML_FORMATTERS: dict[str, Callable[[list[str]], str]] = {
    "mfrac": lambda parts: "/".join(f"({part})" if " " in part else part for part in parts),
    "msup": lambda parts: (
        f"{parts[0]}{_to_superscript(parts[1])}" if len(parts) == 2 else " ".join(parts)
    ),
    "msub": lambda parts: (
        f"{parts[0]}{markup.convert_script_characters('sub', parts[1])}"
        if len(parts) == 2
        else " ".join(parts)
    ),
}
"""MathML that loses its meaning when only its letters are read."""


def _to_superscript(text: str) -> str:
    raised = markup.convert_script_characters("sup", text)
    return raised if raised != text else f"^{text}"


def _list_link_targets(element: MarkupElement, module: str) -> Iterator[str]:
    """What the links in an element point at, as names of passages."""
    for link in element.iter("{*}link"):
        if link.get("target-id"):
            yield f"{link.get('document') or module}#{link.get('target-id')}"
