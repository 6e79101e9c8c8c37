"""A recipe as TOML, every default written out."""

from __future__ import annotations

from typing import Any

from clinpeft.recipe.specs import Recipe


def format_recipe_toml(recipe: Recipe) -> str:
    """Format the resolved recipe, every default written out; loading it gives an equal recipe."""
    document = recipe.model_dump(mode="json", exclude_none=True)
    # Plain keys first: after a table header they would belong to that table
    lines = [
        f"{key} = {_format_toml_value(value)}"
        for key, value in document.items()
        if not isinstance(value, dict | list)
    ]
    for key, value in document.items():
        if isinstance(value, dict):
            tables = [(f"[{key}]", value)]
        elif isinstance(value, list):  # at the top, lists hold tables only
            tables = [(f"[[{key}]]", entry) for entry in value]
        else:
            continue
        for header, table in tables:
            lines += ["", header]
            lines += [f"{name} = {_format_toml_value(entry)}" for name, entry in table.items()]
    return "\n".join(lines) + "\n"


def _format_toml_value(value: Any) -> str:
    if isinstance(value, bool):  # before int, which bool is too
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # the shortest text that gives the same number
    if isinstance(value, list):
        return "[" + ", ".join(_format_toml_value(entry) for entry in value) + "]"
    if isinstance(value, dict):
        entries = (f"{_quote_toml_string(k)} = {_format_toml_value(v)}" for k, v in value.items())
        return "{" + ", ".join(entries) + "}"
    return _quote_toml_string(str(value))


def _quote_toml_string(text: str) -> str:
    escaped = "".join(
        {'"': '\\"', "\\": "\\\\"}.get(c, c if c.isprintable() else f"\\U{ord(c):08x}")
        for c in text
    )
    return f'"{escaped}"'
