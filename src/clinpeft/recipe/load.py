"""TOML in, recipes out: overrides applied, variables and relative paths resolved, ``[grid]`` expanded to one recipe a run.

A key that no spec knows stops at once with the nearest known one.
"""

from __future__ import annotations

import difflib
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic

from clinpeft.core.errors import RecipeError
from clinpeft.recipe.kinds import RECIPE_CLASSES
from clinpeft.recipe.spec import RecipeSpec
from clinpeft.recipe.specs import AnyAdapterSpec, Recipe

RecipeDocument = dict[str, Any]
KeyPath = tuple[str, ...]

PLANNING_TABLES = ("search", "compare", "workers")
"""Tables of a recipe file that say what is done with its runs, and are in none of them: see ``recipe.search``."""


class Cell(RecipeSpec):
    """One run of a grid: its name, its recipe, what was published for it (column -> value as printed), and its choice on every axis (of a table
    its name, else the value)."""

    name: str
    recipe: pydantic.SerializeAsAny[Recipe]
    published: dict[str, str | int | float] = pydantic.Field(default_factory=dict)
    settings: dict[str, str | int | float | bool] = pydantic.Field(default_factory=dict)


EnvironmentVariables = Mapping[str, str]


def load_recipe_cells(
    path: Path, overrides: Sequence[str] = (), environment: EnvironmentVariables | None = None
) -> list[Cell]:
    """The runs that a recipe file asks for: one without ``[grid]``, one a cell with it.

    Args:
        path: the TOML file.
        overrides: ``key=value`` pairs as given to ``--set``, applied last, also over the grid; relative paths in them start at the working folder.
        environment: for ``$VARIABLES`` in paths.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value does not fit.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # tomllib's own errors, and those of Python on numbers and depths that are none
        raise RecipeError(
            f"this recipe cannot be read: {error}",
            location=str(path),
            hint="give the path of a TOML file",
        ) from error
    grid = document.pop("grid", {})
    cells = []
    for name, changes, published, settings in _expand_grid(grid, str(path)):
        filled = apply_recipe_changes(document, changes, str(path))
        filled = _resolve_relative_paths(filled, path.parent.resolve())
        filled = apply_recipe_changes(filled, _parse_overrides(overrides), "--set")
        filled = {key: value for key, value in filled.items() if key not in PLANNING_TABLES}
        filled = _expand_path_variables(filled, environment or {}, str(path))
        filled["name"] = " · ".join(
            part for part in (str(filled.get("name", "")), name) if part
        )  # so that a run can be found by its cell
        cells.append(
            Cell(
                name=name,
                recipe=validate_recipe(filled, str(path)),
                published=published,
                settings=settings,
            )
        )
    return cells


def validate_recipe(document: RecipeDocument, location: str) -> Recipe:
    """A recipe of the class that its ``kind`` names, from plain values.

    Raises:
        RecipeError: with the nearest known key when one is unknown.
    """
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in RECIPE_CLASSES:
        near = difflib.get_close_matches(str(kind), RECIPE_CLASSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(RECIPE_CLASSES)}"
        raise RecipeError(f"kind = {kind!r} is no kind of run", location=location, hint=hint)
    try:
        return RECIPE_CLASSES[kind].model_validate(document)
    except pydantic.ValidationError as error:
        raise to_recipe_error(error, location) from None


def _expand_grid(
    grid: RecipeDocument, location: str
) -> list[tuple[str, RecipeDocument, RecipeDocument, RecipeDocument]]:
    """(name, changes, published, settings) for each point of the product of the axes; an axis of plain values sets the key it is named after, an axis
    of tables sets all keys of the chosen table, but for ``name`` and ``published``."""
    axes: list[list[tuple[str, RecipeDocument, RecipeDocument, RecipeDocument]]] = []
    if not isinstance(grid, dict):
        raise RecipeError(
            f"grid = {grid!r} is no table of axes",
            location=location,
            hint='write [grid] and below it "key" = [first, second]',
        )
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise RecipeError(
                f"grid axis {key!r} is not a list of choices",
                location=f"{location}: [grid]",
                hint='write "key" = [first, second]',
            )
        axes.append([_parse_grid_choice(key, choice, location) for choice in choices])
    points = itertools.product(*axes)
    return [_merge_grid_point(point) for point in points]


def _parse_grid_choice(
    key: str, choice: Any, location: str
) -> tuple[str, RecipeDocument, RecipeDocument, RecipeDocument]:
    if not isinstance(choice, dict):
        return (
            f"{key}={choice}",
            {key: choice},
            {},
            {key: choice if isinstance(choice, str | int | float) else str(choice)},
        )
    if not isinstance(choice.get("name", key), str) or not isinstance(
        choice.get("published", {}), dict
    ):
        raise RecipeError(
            f"a choice of {key!r} has a name that is no text, or published numbers that are no table",
            location=f"{location}: [grid]",
            hint=_NAMED_CHOICE_HINT,
        )
    changes = {name: value for name, value in choice.items() if name not in ("name", "published")}
    return (
        choice.get("name", key),
        changes,
        choice.get("published", {}),
        {key: choice.get("name", key)},
    )


_NAMED_CHOICE_HINT = 'write name = "LoRA" and published = { perplexity = 3.1 }'


def _merge_grid_point(
    point: Sequence[tuple[str, RecipeDocument, RecipeDocument, RecipeDocument]],
) -> tuple[str, RecipeDocument, RecipeDocument, RecipeDocument]:
    changes = {key: value for _, part, _, _ in point for key, value in part.items()}
    published = {key: value for _, _, part, _ in point for key, value in part.items()}
    settings = {key: value for _, _, _, part in point for key, value in part.items()}
    return " · ".join(name for name, _, _, _ in point), changes, published, settings


def apply_recipe_changes(
    document: RecipeDocument, changes: RecipeDocument, location: str
) -> RecipeDocument:
    """A copy with each dotted key set; ``adapters.0.rank`` counts from 0."""
    filled: RecipeDocument = _copy_plain_value(document)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        at: Any = filled
        for part in path:
            if not isinstance(at, dict | list):
                break
            at = (
                at[_parse_list_index(at, part, dotted, location)]
                if isinstance(at, list)
                else at.setdefault(part, {})
            )
        if isinstance(at, list):
            at[_parse_list_index(at, last, dotted, location)] = _copy_plain_value(value)
        elif isinstance(at, dict):
            at[last] = _copy_plain_value(value)
        else:
            raise RecipeError(
                f"{dotted!r} goes through a plain value",
                location=location,
                hint="name a key of a table",
            )
    return filled


def _parse_list_index(entries: list[Any], part: str, dotted: str, location: str) -> int:
    if part.isdecimal() and int(part) < len(entries):
        return int(part)
    raise RecipeError(
        f"{dotted!r}: there is no entry {part!r}",
        location=location,
        hint=f"count from 0; the list has {len(entries)} entries",
    )


def _copy_plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_plain_value(entry) for key, entry in value.items()}
    return [_copy_plain_value(entry) for entry in value] if isinstance(value, list) else value


def _parse_overrides(overrides: Sequence[str]) -> RecipeDocument:
    """``key=value`` pairs: a TOML value, or else the text itself; paths start at the working folder."""
    changes: RecipeDocument = {}
    for pair in overrides:
        key, separator, text = pair.partition("=")
        if not separator or not key.strip():
            raise RecipeError(
                f"{pair!r} is not key=value",
                location="--set",
                hint="write --set training.learning_rate=1e-4",
            )
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        at = tuple(part for part in key.strip().split(".") if not part.isdigit())
        is_path = at in _PATH_KEYS and isinstance(value, str) and not value.startswith("$")
        changes[key.strip()] = _resolve_path(Path(), value) if is_path else value
    return changes


def _resolve_relative_paths(document: RecipeDocument, folder: Path) -> RecipeDocument:
    """Relative paths made absolute at the recipe's folder."""

    def anchored(text: str, at: KeyPath) -> str:  # noqa: ARG001
        return text if text.startswith(("$", "~", "/")) else _resolve_path(folder, text)

    return _map_paths(document, anchored)


def _resolve_path(folder: Path, text: str) -> str:
    try:
        return str((folder / text).resolve())
    except (ValueError, OSError, RuntimeError) as error:
        raise RecipeError(
            f"{text[:100]!r} is no path: {error}",
            location="recipe",
            hint="write a path of this system",
        ) from error


def _expand_path_variables(
    document: RecipeDocument, environment: EnvironmentVariables, location: str
) -> RecipeDocument:
    """Variables and ``~`` in paths replaced by what they stand for."""

    def expanded(text: str, at: KeyPath) -> str:
        def known(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in environment:
                hint = f"export {name}=/a/folder, or give --set"
                raise RecipeError(
                    f"the variable ${name} is not set",
                    location=f"{location}: {at[-1]} = {text!r}",
                    hint=hint,
                )
            return environment[name]

        try:
            return str(Path(re.sub(r"\$\{?(\w+)\}?", known, text)).expanduser())
        except RuntimeError as error:  # ~somebody, and nobody of that name
            raise RecipeError(
                f"{text!r} names no home folder",
                location=f"{location}: {at[-1]}",
                hint="write the path out",
            ) from error

    return _map_paths(document, expanded)


def _map_paths(
    document: RecipeDocument, transform: Callable[[str, KeyPath], str], key_path: KeyPath = ()
) -> RecipeDocument:
    """A copy in which every value that a spec takes for a path is changed."""

    def changed(value: Any, here: KeyPath) -> Any:
        if isinstance(value, dict):
            return _map_paths(value, transform, here)
        if isinstance(value, list):
            return [changed(entry, here) for entry in value]
        return transform(value, here) if here in _PATH_KEYS and isinstance(value, str) else value

    return {key: changed(value, (*key_path, key)) for key, value in document.items()}


def _iterate_path_keys(spec: type[RecipeSpec], key_path: KeyPath) -> Iterator[KeyPath]:
    """The keys of a spec, and of those inside it, that are paths; entries of a list have no number."""
    for name, field in spec.model_fields.items():
        for kind in _iterate_annotation_types(field.annotation):
            if kind is Path:
                yield (*key_path, name)
            elif isinstance(kind, type) and issubclass(kind, RecipeSpec):
                yield from _iterate_path_keys(kind, (*key_path, name))


def _iterate_annotation_types(annotation: Any) -> Iterator[Any]:
    """The plain types in ``Path | None``, ``tuple[LoraSpec | PrefixSpec, ...]`` and so on."""
    inside = get_args(annotation)
    if not inside:
        yield annotation
    for kind in inside:
        yield from _iterate_annotation_types(kind)


_PATH_KEYS = frozenset(
    location for spec in RECIPE_CLASSES.values() for location in _iterate_path_keys(spec, ())
)


def to_recipe_error(error: pydantic.ValidationError, location: str) -> RecipeError:
    """The first complaint of pydantic in the house's words; a key that is unknown before one that is missing, which it may have been meant for."""
    complaints = error.errors(include_url=False)
    first = next(
        (complaint for complaint in complaints if complaint["type"] == "extra_forbidden"),
        complaints[0],
    )
    where = ".".join(str(part) for part in first["loc"] if part not in _METHOD_TAGS) or "recipe"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), sorted(_collect_spec_keys()), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see docs/recipes.md for the keys"
        return RecipeError(f"unknown key {where!r}", location=location, hint=hint)
    shown = "" if isinstance(first.get("input"), dict) else f" = {first.get('input')!r}"
    return RecipeError(
        f"{where}{shown}: {first['msg']}",
        location=location,
        hint="see docs/recipes.md for the values that fit",
    )


def _collect_spec_keys() -> set[str]:
    keys = set()
    todo: list[type[RecipeSpec]] = [RecipeSpec]
    while todo:
        spec = todo.pop()
        keys |= set(spec.model_fields)
        todo += spec.__subclasses__()
    return keys


def _collect_method_tags() -> frozenset[str]:
    specs = get_args(get_args(AnyAdapterSpec)[0])
    return frozenset(
        tag for spec in specs for tag in get_args(spec.model_fields["method"].annotation)
    )


_METHOD_TAGS = _collect_method_tags()


def load_recipe(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), **values: Any
) -> Recipe:
    """Load one recipe from a TOML file, a dictionary or keyword arguments.

    Args:
        source: path of a TOML file, or a dictionary of the same keys.
        overrides: ``key=value`` pairs, applied last.
        **values: keys of the recipe, over those of ``source``.

    Raises:
        RecipeError: the file holds a grid, a key is unknown, a value does not fit.
    """
    if isinstance(source, Mapping):
        document = apply_recipe_changes({**source, **values}, _parse_overrides(overrides), "recipe")
        return validate_recipe(_resolve_relative_paths(document, Path.cwd()), "recipe")
    cells = load_recipe_cells(Path(source), overrides)
    if len(cells) != 1:
        raise RecipeError(
            f"this recipe has a grid of {len(cells)} runs",
            location=str(source),
            hint="give one of its cells, or run it with: clinpeft study run",
        )
    return cells[0].recipe
