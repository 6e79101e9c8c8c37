"""Write what the documentation has from the code: the tree in README.md and the keys in docs/recipes.md.

    make docs

The purpose of a file is the first sentence of its docstring; the meaning of a recipe key is its line in the docstring of its spec. So a page cannot
say something else than the code, and ``tests/test_docs.py`` fails while a page is older than the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from clinpeft.recipe import RECIPES, AdapterSpec, Recipe, Spec

ROOT = Path(__file__).parents[1]
TREE = "<!-- tree: written by `make docs` -->", "<!-- end of tree -->"
KEYS = "<!-- keys: written by `make docs` -->", "<!-- end of keys -->"
LONGEST_PURPOSE = 130


def between(page: str, marks: tuple[str, str], content: str) -> str:
    """The page with new content between two marks, each of which stands there once."""
    before, rest = page.split(marks[0])
    _, after = rest.split(marks[1])
    return f"{before}{marks[0]}\n{content}\n{marks[1]}{after}"


def purpose(file: Path) -> str:
    """What a file is for, in one line: the first sentence of its docstring, or its first clause where the sentence is long."""
    paragraph = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")[0].split())
    said = paragraph.removeprefix("clinpeft: ").replace("``", "")
    for end in (r"\.(?:\s|$)", r";\s", r":\s"):
        said = re.split(end, said, maxsplit=1)[0] if end.startswith(r"\.") or len(said) > LONGEST_PURPOSE else said
    return said


def tree(root: Path) -> str:
    """The house, one line a file; a room that is a folder carries the purpose of its ``__init__.py``."""
    lines = list(_lines(root / "src" / "clinpeft", ""))
    width = max(len(name) for name, _ in lines) + 2
    drawn = [f"{name:<{width}}{said}".rstrip() for name, said in lines]
    return "\n".join(["```", "src/clinpeft/", *drawn, "```"])


def _lines(folder: Path, indent: str) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.suffix == ".py" and not (indent and path.name == "__init__.py"):
            yield f"{indent}  {path.name}", purpose(path)
        elif (path / "__init__.py").exists():
            yield f"{indent}  {path.name}/", purpose(path / "__init__.py")
            yield from _lines(path, f"{indent}  ")


def keys() -> str:
    """Every key of every recipe: type, default, meaning."""
    kinds = [f"| `{kind}` | {', '.join(_heading(recipe, name) for name in _tables(recipe))} |" for kind, recipe in RECIPES.items()]
    parts = ["## The kinds of run", "\n".join(["| kind | its tables |", "|---|---|", *kinds]), "## Top level", _table(Recipe, _plain(Recipe))]
    seen: set[str] = set()
    for recipe in RECIPES.values():
        for name in _tables(recipe):
            if name not in seen:
                seen.add(name)
                parts += _section(_heading(recipe, name), _specs(recipe.model_fields[name].annotation))
    return "\n\n".join(parts)


def meanings(spec: type[Spec]) -> dict[str, str]:
    """Key -> meaning, from the ``Attributes`` of the spec's docstring and of those it inherits from."""
    found: dict[str, str] = {}
    for kind in reversed(spec.__mro__):
        _, _, listed = (inspect.cleandoc(kind.__dict__.get("__doc__") or "")).partition("Attributes:\n")
        entries = re.split(r"\n(?=    \S)", listed.split("\n\n")[0]) if listed else []
        for entry in entries:
            names, _, meaning = " ".join(entry.split()).partition(": ")
            found |= dict.fromkeys(names.split(", "), meaning)
    return found


def _tables(recipe: type[Spec]) -> list[str]:
    return [name for name, field in recipe.model_fields.items() if _specs(field.annotation)]


def _plain(spec: type[Spec]) -> list[str]:
    return [name for name, field in spec.model_fields.items() if not _specs(field.annotation)]


def _specs(annotation: Any) -> list[type[Spec]]:
    """The specs that a field holds: one for a table, several for a list of tables of several kinds, none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in _specs(part)]


def _heading(recipe: type[Spec], name: str) -> str:
    return f"`[[{name}]]`" if str(recipe.model_fields[name].annotation).startswith("tuple") else f"`[{name}]`"


def _section(heading: str, specs: list[type[Spec]]) -> list[str]:
    if len(specs) == 1:
        return [f"## {heading}", _lead(specs[0]), _table(specs[0], list(specs[0].model_fields))]
    parts = [f"## {heading}", _lead(AdapterSpec), _table(specs[0], ["method", *AdapterSpec.model_fields], any_method=True)]
    for spec in specs:
        own = [name for name in spec.model_fields if name not in {"method", *AdapterSpec.model_fields}]
        methods = ", ".join(f"`{method}`" for method in get_args(spec.model_fields["method"].annotation))
        parts += [f"### {methods}", _lead(spec), *([_table(spec, own)] if own else ["No keys of its own."])]
    return parts


def _lead(spec: type[Spec]) -> str:
    text = inspect.cleandoc(spec.__doc__ or "").partition("Attributes:")[0]
    return _code(" ".join(text.split()))


def _table(spec: type[Spec], names: list[str], *, any_method: bool = False) -> str:
    shapes, said = spec.model_json_schema()["properties"], meanings(spec)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name in names:
        field = spec.model_fields[name]
        is_method = any_method and name == "method"
        kind, default = ("string", "required") if is_method else (_type(shapes[name]), _default(field))
        rows.append(f"| `{name}` | {kind} | {default} | {_code(said[name])} |")
    return "\n".join(rows)


def _type(shape: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in shape:
        return " or ".join(_type(part) for part in shape["anyOf"] if part.get("type") != "null")
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{json.dumps(value)}`" for value in shape.get("enum", [shape.get("const")]))
    if shape["type"] == "array":
        return f"list of {_type(shape['items'])}s"
    plain = {"object": "table of strings", "boolean": "true or false"}.get(shape["type"], shape["type"])
    return "path" if shape.get("format") == "path" else plain + _bounds(shape)


def _bounds(shape: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    stated = [f"{sign} {shape[bound]:g}" for bound, sign in signs.items() if bound in shape]
    return f", {' and '.join(stated)}" if stated else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def _code(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def pages(root: Path) -> dict[Path, str]:
    """Every page with a generated part, as it should stand."""
    readme, recipes = root / "README.md", root / "docs" / "recipes.md"
    return {
        readme: between(readme.read_text(encoding="utf-8"), TREE, tree(root)),
        recipes: between(recipes.read_text(encoding="utf-8"), KEYS, keys()),
    }


def main() -> None:
    """Write the pages."""
    for page, text in pages(ROOT).items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
