"""OpenStax books: a ``*.collection.xml`` that lists modules by chapter, and a CNXML file a module.

The modules are in ``modules/`` beside the collection (or in ``../modules``), as ``m1.cnxml`` or
``m1/index.cnxml``. A single module is a book too. A module is complete in itself: its objectives
and its summary are about its whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from clinpeft.core.errors import SourceError
from clinpeft.core.schemas import Attrition
from clinpeft.data.formats.rows import RejectedRow
from clinpeft.data.textbooks import markup
from clinpeft.data.textbooks.encodings import decode_text_bytes
from clinpeft.data.textbooks.markup import MarkupElement, get_local_name, select_children
from clinpeft.data.textbooks.outline import PLAIN_ROLE, PartRole, find_heading_role, is_lead_in
from clinpeft.data.textbooks.passages import (
    CONTRIBUTOR_LIST,
    DISPLAY_EQUATION,
    MULTIPLE_CHOICE_OPTION,
    REFERENCE_LIST,
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
"""Class of a section or note -> its role; any other class is ignored."""

# The letter of a part follows the link without a blank: "Figure 3" + "a".
_PART_LETTER_PATTERN = re.compile(r"\b(Figure|Table)(?=[a-z]\b)")


@dataclass(frozen=True)
class CnxmlPosition:
    """Position of an element in a book.

    Attributes:
        book: title of the book.
        chapter: title of the innermost part of the book that lists the module.
        module: id of the module.
        headings: titles from the module down.
        section: path of the section, ``book/module/section``.
        role: what the part is for.
    """

    book: str
    chapter: str | None
    module: str
    headings: tuple[str, ...]
    section: str
    role: PartRole

    def get_location(self, element: MarkupElement) -> str:
        """Returns ``module#id``; the module for an element without an id."""
        return f"{self.module}#{element.get('id')}" if element.get("id") else self.module

    def build_passage(
        self,
        element: MarkupElement,
        kind: str,
        text: str,
        title: str | None = None,
        refers_to: tuple[str, ...] = (),
    ) -> Passage | RejectedRow:
        """Builds the passage of an element; by default it refers to the targets of its links."""
        location = self.get_location(element)
        if self.role.drop_reason:
            return RejectedRow(self.role.drop_reason, location)
        # Only what others may refer to has a name.
        has_name = element.get("id") and kind in ("caption", "table", "question")
        targets = dict.fromkeys(
            f"{link.get('document') or self.module}#{link.get('target-id')}"
            for link in element.iter("{*}link")
            if link.get("target-id")
        )
        return Passage(
            book=self.book,
            chapter=self.chapter,
            heading_path=self.headings,
            kind=kind,
            section=self.section,
            location=location,
            title=title,
            text=_PART_LETTER_PATTERN.sub(r"\1 ", text),
            names=(location,) if has_name else (),
            refers_to=refers_to or tuple(targets),
        )


CnxmlPieces = Iterator[Passage | RejectedRow]


def list_openstax_collections(folder: Path) -> list[Path]:
    """Returns the collection files of a folder, ordered by name."""
    return sorted(
        path for path in folder.iterdir() if path.is_file() and path.name.endswith("collection.xml")
    )


def list_openstax_files(collection: Path) -> list[Path]:
    """Returns the collection and the modules it lists.

    Raises:
        SourceError: the collection is broken, or a module is missing.
    """
    # Its encoding was or will be recorded when it is read; this count is discarded.
    root = _parse_file(collection, Attrition("files"))
    modules = [element.get("document") or "" for element in root.iter("{*}module")]
    return [collection, *(_find_module(collection, module) for module in modules)]


def read_openstax_collection(path: Path, attrition: Attrition) -> CnxmlPieces:
    """Yields the passages of an OpenStax book.

    Raises:
        SourceError: the collection or a module of it is missing, broken or declares entities.
    """
    root = _parse_file(path, attrition)
    titles = [element.text or "" for element in root.iterfind("{*}metadata/{*}title")]
    title = normalize_passage_text(titles[0]) if titles else ""
    # The order of the collection is the order of the book.
    for module, chapter in _list_modules(root, None):
        yield from read_cnxml_module(
            _find_module(path, module), attrition, title or path.name.partition(".")[0], chapter
        )


def read_cnxml_module(
    path: Path, attrition: Attrition, book: str = "", chapter: str | None = None
) -> CnxmlPieces:
    """Yields the passages of one module.

    Args:
        path: of the CNXML file.
        attrition: records encodings other than UTF-8.
        book: title of the book; the module is a book of its own where it is empty.
        chapter: title of its chapter.

    Raises:
        SourceError: it is broken or declares entities.
    """
    root = _parse_file(path, attrition)
    title = get_joined_text(root, "title", first_only=True)
    ids = [element.text or "" for element in root.iterfind("{*}metadata/{*}content-id")]
    module = (normalize_passage_text(ids[0]) if ids else "") or path.stem
    book = book or title or path.stem
    position = CnxmlPosition(
        book=book,
        chapter=chapter,
        module=module,
        headings=(title,) if title else (),
        section=f"{book}/{module}",
        role=find_heading_role(title),
    )
    # OpenStax puts the learning objectives into the abstract.
    objective = PartRole(position.role.drop_reason, "objective")
    for abstract in root.iterfind("{*}metadata/{*}abstract"):
        yield from read_cnxml_children(abstract, replace(position, role=objective))
    for part in select_children(root, "content", "glossary"):
        yield from read_cnxml_children(part, position)


def get_joined_text(element: MarkupElement, *names: str, first_only: bool = False) -> str:
    """Returns the normalized text of the children with these names, joined by spaces.

    Args:
        element: the parent.
        names: local names of children.
        first_only: whether only the first child counts.
    """
    children = select_children(element, *names)[: 1 if first_only else None]
    return " ".join(normalize_passage_text(_get_inline_text(child)) for child in children)


def _parse_file(path: Path, attrition: Attrition) -> MarkupElement:
    text = decode_text_bytes(path.read_bytes(), attrition, str(path))
    return markup.parse_xml(text, str(path))


def _list_modules(element: MarkupElement, chapter: str | None) -> Iterator[tuple[str, str | None]]:
    """Yields (module, title of the innermost part of the book that holds it), in order."""
    for child in select_children(element, "module", "subcollection", "content"):
        name = get_local_name(child)
        if name == "module":
            yield child.get("document") or "", chapter
        elif name == "subcollection":
            titles = [title.text or "" for title in child.iterfind("{*}title")]
            title = normalize_passage_text(titles[0]) if titles else ""
            yield from _list_modules(child, title or chapter)
        else:
            yield from _list_modules(child, chapter)


def _find_module(collection: Path, module: str) -> Path:
    # A module name with a slash could lead out of the folder.
    if not module or any(character in module for character in "/\\:") or module.startswith("."):
        raise SourceError(
            f"a module is called {module!r}",
            location=str(collection),
            hint="give the collection as OpenStax publishes it",
        )
    parent = collection.parent
    candidates = [
        path
        for folder in (parent / "modules", parent, parent.parent / "modules")
        for path in (folder / f"{module}.cnxml", folder / module / "index.cnxml")
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise SourceError(
        f"module {module!r} of this collection is missing",
        location=str(collection),
        hint=f"put it at {candidates[0]}",
    )


def read_cnxml_children(element: MarkupElement, position: CnxmlPosition) -> CnxmlPieces:
    """Yields the passages of the children of an element; unknown elements are skipped."""
    for child in element:
        name = get_local_name(child)
        if name in CNXML_ELEMENT_READERS:
            yield from CNXML_ELEMENT_READERS[name](child, position)


def read_cnxml_section(element: MarkupElement, position: CnxmlPosition) -> CnxmlPieces:
    """Yields the passages of a section or note.

    Its title joins the headings, unless it names a role, such as "Summary".
    """
    title = get_joined_text(element, "title", first_only=True)
    roles = [
        CNXML_CLASS_ROLES[name]
        for name in (element.get("class") or "").split()
        if name in CNXML_CLASS_ROLES
    ]
    # The class is explicit; the title is a guess.
    role = roles[0] if roles else find_heading_role(title)
    if role != PLAIN_ROLE:
        # A part that is left out stays so, whatever its subsections are.
        position = replace(position, role=position.role if position.role.drop_reason else role)
    elif title:
        # A slash would look like a subsection.
        name = element.get("id") or title.replace("/", " ")
        position = replace(
            position,
            headings=(*position.headings, title),
            section=f"{position.section}/{name}",
        )
    yield from read_cnxml_children(element, position)


def read_cnxml_text(element: MarkupElement, position: CnxmlPosition) -> CnxmlPieces:
    """Yields a paragraph, or a list, whose items are one line each."""
    role_kind = position.role.kind
    if get_local_name(element) == "list":
        kind = "list"
        text = "\n".join(
            normalize_passage_text(_get_inline_text(item))
            for item in select_children(element, "item")
        )
    else:
        kind, text = "paragraph", _get_inline_text(element)
        if role_kind == "objective" and is_lead_in(text):
            kind = "lead-in"  # "By the end of this section, you will be able to:"
    if role_kind in ("objective", "summary") and kind != "lead-in":
        kind = role_kind
    yield position.build_passage(element, kind, text)


def read_cnxml_figure(element: MarkupElement, position: CnxmlPosition) -> CnxmlPieces:
    """Yields the captions of a figure and its subfigures."""
    for part in select_children(element, "subfigure"):
        yield from read_cnxml_figure(part, position)
    caption = get_joined_text(element, "caption")
    titles = [_get_inline_text(child) for child in select_children(element, "title")]
    title = titles[0] if titles else None
    if caption or title:
        yield position.build_passage(element, "caption", caption or title or "", title)


def read_cnxml_table(element: MarkupElement, position: CnxmlPosition) -> CnxmlPieces:
    """Yields a table: one line for each row, cells separated by bars."""
    has_title = bool(select_children(element, "title", "caption"))
    title = get_joined_text(element, "title", "caption", first_only=True)
    rows = [
        " | ".join(
            normalize_passage_text(_get_inline_text(cell)) for cell in select_children(row, "entry")
        )
        for row in element.iter("{*}row")
    ]
    yield position.build_passage(element, "table", "\n".join(rows), title if has_title else None)


def read_cnxml_exercise(element: MarkupElement, position: CnxmlPosition) -> CnxmlPieces:
    """Yields a question without its options, and its answer.

    Where the answer is the letter of an option, the answer is the option.
    """
    problems = select_children(element, "problem")
    if not problems:
        return
    problem = problems[0]
    stem = " ".join(
        _get_inline_text(child)
        for child in problem
        if get_local_name(child) not in ("list", "table")
    )
    options = [
        normalize_passage_text(_get_inline_text(item))
        for options_list in select_children(problem, "list")
        for item in select_children(options_list, "item")
    ]
    if not stem.strip():  # a question that is itself a list or a table has no options
        stem, options = " ".join(_get_inline_text(child) for child in problem), []
    yield position.build_passage(element, "question", stem)
    location = position.get_location(element)
    # Each option counts as a piece, so that what entered equals what is accounted for.
    yield from (RejectedRow(MULTIPLE_CHOICE_OPTION, location) for _ in options)
    for solution in select_children(element, "solution"):
        answer = normalize_passage_text(" ".join(_get_inline_text(child) for child in solution))
        letter = answer.strip(" .)(").upper()
        index = ord(letter) - ord("A") if len(letter) == 1 else -1
        if 0 <= index < len(options):
            answer = options[index]
        yield position.build_passage(solution, "answer", answer, refers_to=(location,))


def read_cnxml_definition(element: MarkupElement, position: CnxmlPosition) -> CnxmlPieces:
    """Yields the definition of a term."""
    # A definition may have examples besides its meanings; they are left out.
    terms = [_get_inline_text(child) for child in select_children(element, "term")]
    meanings = [_get_inline_text(child) for child in select_children(element, "meaning")]
    term = terms[0] if terms else ""
    yield position.build_passage(element, "definition", " ".join(meanings), term)


CNXML_ELEMENT_READERS: dict[str, Callable[[MarkupElement, CnxmlPosition], CnxmlPieces]] = {
    **dict.fromkeys(("section", "note"), read_cnxml_section),
    **dict.fromkeys(
        ("content", "glossary", "example", "quote", "injection", "proof", "statement", "rule"),
        read_cnxml_children,
    ),
    **dict.fromkeys(("para", "list"), read_cnxml_text),
    "figure": read_cnxml_figure,
    "table": read_cnxml_table,
    "exercise": read_cnxml_exercise,
    "definition": read_cnxml_definition,
    # An equation alone is no text that a pair could be built from.
    "equation": lambda element, position: iter(
        [RejectedRow(DISPLAY_EQUATION, position.get_location(element))]
    ),
}
"""Element name -> reader. Titles are read by their parents; media and frames have no text."""

_BLOCK_ELEMENTS = frozenset(
    {"item", "para", "newline", "list", "entry", "row"}
    | {"title", "problem", "figure", "caption", "note"}
)


def _get_inline_text(element: MarkupElement) -> str:
    """Returns the text of an element and its children.

    An empty link becomes the kind of its target, ``Figure``, whose number is not in the file.
    """
    name = get_local_name(element)
    text = (element.text or "") + "".join(
        # The tail, the text after a child, belongs to this element even where the child does not.
        _get_inline_text(child) + (child.tail or "")
        for child in element
        if get_local_name(child) not in ("media", "iframe", "label")
    )
    if name == "link" and not text.strip():
        target = (element.get("target-id") or "").lower()
        kind = "figure" if target.startswith("fig") else "table" if target[:3] == "tab" else ""
        if target and not element.get("document"):
            elements = element.getroottree().xpath(
                "//*[@id=$target]", target=element.get("target-id")
            )
            kind = get_local_name(elements[0]) if elements else kind
        return {"figure": "Figure", "table": "Table"}.get(kind, "")
    if name in markup.SCRIPT_CHARACTERS:
        return markup.convert_script_characters(name, text.strip())
    if name in MATHML_FORMATTERS:
        parts = [normalize_passage_text(_get_inline_text(child)) for child in element]
        return MATHML_FORMATTERS[name](parts)
    return f" {text} " if name in _BLOCK_ELEMENTS else text


def format_superscript(parts: list[str]) -> str:
    """Formats ``msup``: (base, exponent) -> ``10⁹``, or ``x^ab`` where Unicode has none."""
    if len(parts) != 2:
        return " ".join(parts)
    base, exponent = parts
    raised = markup.convert_script_characters("sup", exponent)
    return f"{base}{raised}" if raised != exponent else f"{base}^{exponent}"


def format_subscript(parts: list[str]) -> str:
    """Formats ``msub``: (base, index) -> ``CO₂``."""
    if len(parts) != 2:
        return " ".join(parts)
    return parts[0] + markup.convert_script_characters("sub", parts[1])


MATHML_FORMATTERS: dict[str, Callable[[list[str]], str]] = {
    "mfrac": lambda parts: "/".join(f"({part})" if " " in part else part for part in parts),
    "msup": format_superscript,
    "msub": format_subscript,
}
"""MathML elements whose meaning is lost when only their letters are read."""
