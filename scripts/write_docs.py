"""Write what the documentation has from the code: the tree in docs/architecture.md, the keys in
docs/recipes.md, the combinations in docs/adapters.md.

    make docs

The purpose of a file is the first sentence of its docstring; the meaning of a recipe key is its
line in the docstring of its spec; which adapters stand together is the table by which the others
are refused. So a page cannot say something else than the code, and ``tests/test_docs.py`` fails
while a page is older than the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from clinpeft.adapters import ADAPTER_COMBINATIONS, ADAPTER_METHODS, list_adapter_combinations
from clinpeft.recipe import RECIPE_CLASSES, AdapterSpec, Recipe, RecipeSpec

ROOT = Path(__file__).parents[1]
TREE = "<!-- tree: written by `make docs` -->", "<!-- end of tree -->"
KEYS = "<!-- keys: written by `make docs` -->", "<!-- end of keys -->"
STACKS = "<!-- combinations: written by `make docs` -->", "<!-- end of combinations -->"
LONGEST_PURPOSE = 130

Specs = tuple[type[RecipeSpec], ...]
"""What a table of a recipe holds: one spec, or several where its entries are of several kinds."""


def replace_between(page: str, marks: tuple[str, str], content: str) -> str:
    """The page with new content between two marks, each of which stands there once."""
    before, rest = page.split(marks[0])
    _, after = rest.split(marks[1])
    return f"{before}{marks[0]}\n{content}\n{marks[1]}{after}"


def read_purpose(file: Path) -> str:
    """What a file is for, in one line: the first sentence of its docstring, or its first clause
    where the sentence is long."""
    paragraph = " ".join(
        (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")
        .partition("\n\n")[0]
        .split()
    )
    said = paragraph.removeprefix("clinpeft: ").replace("``", "")
    for end in (r"\.(?:\s|$)", r";\s", r":\s"):
        said = (
            re.split(end, said, maxsplit=1)[0]
            if end.startswith(r"\.") or len(said) > LONGEST_PURPOSE
            else said
        )
    return said


def format_package_tree(root: Path) -> str:
    """The package, one line a folder, with the purpose of its ``__init__.py``."""
    package = root / "src" / "clinpeft"
    folders = sorted(path.parent for path in package.rglob("__init__.py"))
    lines = []
    for folder in folders[1:]:
        depth = len(folder.relative_to(package).parts)
        lines.append((f"{'  ' * depth}{folder.name}/", read_purpose(folder / "__init__.py")))
    width = max((len(name) for name, _ in lines), default=0) + 2
    drawing = [f"{name:<{width}}{purpose}".rstrip() for name, purpose in lines]
    return "\n".join(["```", "src/clinpeft/", *drawing, "```"])


def format_recipe_keys() -> str:
    """Every key of every recipe: type, default, meaning."""
    kinds = []
    for kind, recipe in RECIPE_CLASSES.items():
        headings = ", ".join(_format_heading(recipe, name) for name in _list_tables(recipe))
        kinds.append(f"| `{kind}` | {headings} |")
    parts = [
        "## The kinds of run",
        "\n".join(["| kind | its tables |", "|---|---|", *kinds]),
        "## Top level",
        _format_table(Recipe, _list_plain_keys(Recipe)),
    ]
    written: dict[Specs, str] = {}
    for title, specs in _list_titles():
        parts += (
            [f"## {title}", f"Keys as under {written[specs]}."]
            if specs in written
            else _format_section(title, specs)
        )
        written.setdefault(specs, title)
    return "\n\n".join(parts)


def _list_titles() -> list[tuple[str, Specs]]:
    """Every table with its specs; one that has other keys in another kind of recipe says of which
    kinds it is."""
    kinds: dict[tuple[str, Specs], list[str]] = {}
    for kind, recipe in RECIPE_CLASSES.items():
        for name in _list_tables(recipe):
            kinds.setdefault(
                (
                    _format_heading(recipe, name),
                    tuple(_list_specs(recipe.model_fields[name].annotation)),
                ),
                [],
            ).append(f"`{kind}`")
    headings = [heading for heading, _ in kinds]
    order = sorted(kinds, key=lambda table: headings.index(table[0]))
    return [
        (
            f"{table[0]} of {', '.join(kinds[table])}"
            if headings.count(table[0]) > 1
            else table[0],
            table[1],
        )
        for table in order
    ]


def format_adapter_combinations() -> str:
    """Which adapter stands on which: a row a first method, a column a second; below, why."""
    how = {(first, second): said for first, second, said, _ in list_adapter_combinations()}
    rows = [
        f"| `{first}` | {' | '.join(how[first, second] for second in ADAPTER_METHODS)} |"
        for first in ADAPTER_METHODS
    ]
    matrix = [
        f"| first \\ second | {' | '.join(f'`{second}`' for second in ADAPTER_METHODS)} |",
        "|---" * (len(ADAPTER_METHODS) + 1) + "|",
        *rows,
    ]
    joining = {
        joins: ", ".join(
            f"`{name}`" for name, method in ADAPTER_METHODS.items() if method.composition == joins
        )
        for joins, _ in ADAPTER_COMBINATIONS
    }
    reasons = [
        (
            f"| {joining[first]} | {joining[second]} | {found.kind} | "
            f"{_format_code(found.reason.format(first='the first', second='the second'))} |"
        )
        for (first, second), found in ADAPTER_COMBINATIONS.items()
    ]
    return "\n".join(
        [*matrix, "", "| first | second | stand together | why |", "|---|---|---|---|", *reasons]
    )


def read_meanings(spec: type[RecipeSpec]) -> dict[str, str]:
    """Key -> meaning, from the ``Attributes`` of the spec's docstring and of what it inherits from;
    ``as for every ...`` leaves the inherited one."""
    found: dict[str, str] = {}
    for kind in reversed(spec.__mro__):
        _, _, listed = (inspect.cleandoc(kind.__dict__.get("__doc__") or "")).partition(
            "Attributes:\n"
        )
        entries = re.split(r"\n(?=    \S)", listed.split("\n\n")[0]) if listed else []
        for entry in entries:
            names, _, meaning = " ".join(entry.split()).partition(": ")
            found |= {
                name: meaning
                for name in names.split(", ")
                if not (name in found and meaning.startswith("as for every"))
            }
    return found


def _list_tables(recipe: type[RecipeSpec]) -> list[str]:
    return [name for name, field in recipe.model_fields.items() if _list_specs(field.annotation)]


def _list_plain_keys(spec: type[RecipeSpec]) -> list[str]:
    return [name for name, field in spec.model_fields.items() if not _list_specs(field.annotation)]


def _list_specs(annotation: Any) -> list[type[RecipeSpec]]:
    """The specs that a field holds: one for a table, several for a list of tables of several kinds,
    none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, RecipeSpec):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in _list_specs(part)]


def _format_heading(spec: type[RecipeSpec], name: str, above: str = "") -> str:
    several = str(spec.model_fields[name].annotation).startswith("tuple")
    return f"`[[{above}{name}]]`" if several else f"`[{above}{name}]`"


def _format_section(title: str, specs: Specs) -> list[str]:
    if len(specs) == 1:
        return [
            f"## {title}",
            _format_lead(specs[0]),
            _format_table(specs[0], list(specs[0].model_fields)),
            *_format_inner_tables(title.split("`")[1], specs[0]),
        ]
    parts = [
        f"## {title}",
        _format_lead(AdapterSpec),
        _format_table(specs[0], ["method", *AdapterSpec.model_fields], any_method=True),
    ]
    for spec in specs:
        own = [
            name for name in spec.model_fields if name not in {"method", *AdapterSpec.model_fields}
        ]
        methods = ", ".join(
            f"`{method}`" for method in get_args(spec.model_fields["method"].annotation)
        )
        parts += [
            f"### {methods}",
            _format_lead(spec),
            *([_format_table(spec, own)] if own else ["No keys of its own."]),
        ]
    return parts


def _format_inner_tables(heading: str, spec: type[RecipeSpec]) -> list[str]:
    """The tables inside a table; those with the same keys stand together."""
    found: dict[type[RecipeSpec], list[str]] = {}
    for name in spec.model_fields:
        for inner in _list_specs(spec.model_fields[name].annotation):
            found.setdefault(inner, []).append(
                _format_heading(spec, name, f"{heading.strip('[]')}.")
            )
    return [
        text
        for inner, names in found.items()
        for text in (
            f"### {', '.join(names)}",
            _format_lead(inner),
            _format_table(inner, list(inner.model_fields)),
        )
    ]


def _format_lead(spec: type[RecipeSpec]) -> str:
    text = inspect.cleandoc(spec.__doc__ or "").partition("Attributes:")[0]
    return _format_code(" ".join(text.split()))


def _format_table(spec: type[RecipeSpec], names: list[str], *, any_method: bool = False) -> str:
    shapes, said = spec.model_json_schema()["properties"], read_meanings(spec)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name in names:
        field = spec.model_fields[name]
        is_method = any_method and name == "method"
        kind, default = (
            ("string", "required")
            if is_method
            else (_describe_type(shapes[name]), _describe_default(field))
        )
        rows.append(f"| `{name}` | {kind} | {default} | {_format_code(said[name])} |")
    return "\n".join(rows)


def _describe_type(shape: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in shape:
        return " or ".join(
            _describe_type(part) for part in shape["anyOf"] if part.get("type") != "null"
        )
    if "enum" in shape or "const" in shape:
        return ", ".join(
            f"`{json.dumps(value)}`" for value in shape.get("enum", [shape.get("const")])
        )
    if "$ref" in shape:
        return "table"
    if shape["type"] == "array":
        entry, comma, bounds = _describe_type(shape["items"]).partition(",")
        return f"list of {entry}{'' if entry.startswith('`') else 's'}{comma}{bounds}"
    plain = {"object": "table of strings", "boolean": "true or false"}.get(
        shape["type"], shape["type"]
    )
    return "path" if shape.get("format") == "path" else plain + _describe_bounds(shape)


def _describe_bounds(shape: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    stated = [f"{sign} {shape[bound]:g}" for bound, sign in signs.items() if bound in shape]
    return f", {' and '.join(stated)}" if stated else ""


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def _format_code(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def build_pages(root: Path) -> dict[Path, str]:
    """Every page with a generated part, as it should stand."""
    architecture, recipes, adapters = (
        root / "docs" / "architecture.md",
        root / "docs" / "recipes.md",
        root / "docs" / "adapters.md",
    )
    return {
        architecture: replace_between(
            architecture.read_text(encoding="utf-8"), TREE, format_package_tree(root)
        ),
        recipes: replace_between(recipes.read_text(encoding="utf-8"), KEYS, format_recipe_keys()),
        adapters: replace_between(
            adapters.read_text(encoding="utf-8"), STACKS, format_adapter_combinations()
        ),
    }


def main() -> None:
    """Write the pages."""
    for page, text in build_pages(ROOT).items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
