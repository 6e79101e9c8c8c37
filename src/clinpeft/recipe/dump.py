"""A recipe as TOML, every default written out."""

from __future__ import annotations

from typing import Any

from clinpeft.recipe.specs import Recipe


def format_recipe_toml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out; reading it back gives an equal recipe."""
    plain = recipe.model_dump(mode="json", exclude_none=True)
    tops = {key: value for key, value in plain.items() if not isinstance(value, dict | list)}
    lines = [f"{key} = {_format_toml_value(value)}" for key, value in tops.items()]
    for key, value in plain.items():
        if isinstance(value, dict):
            lines += [
                "",
                f"[{key}]",
                *(f"{name} = {_format_toml_value(v)}" for name, v in value.items()),
            ]
        elif isinstance(value, list):
            for entry in value:
                lines += [
                    "",
                    f"[[{key}]]",
                    *(f"{name} = {_format_toml_value(v)}" for name, v in entry.items()),
                ]
    return "\n".join(lines) + "\n"


def _format_toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_format_toml_value(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{_quote_toml_string(key)} = {_format_toml_value(v)}" for key, v in value.items()
            )
            + "}"
        )
    return _quote_toml_string(str(value))


def _quote_toml_string(text: str) -> str:
    escaped = "".join(
        {'"': '\\"', "\\": "\\\\"}.get(c, c if c.isprintable() else f"\\U{ord(c):08x}")
        for c in text
    )
    return f'"{escaped}"'
