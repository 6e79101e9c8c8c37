"""TOML or plain values -> recipes.

Overrides are applied, variables and relative paths are resolved, and ``[grid]`` is expanded to one
recipe for each run. An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pydantic

from clinpeft.core.errors import RecipeError
from clinpeft.recipe.adapter_specs import AnyAdapterSpec
from clinpeft.recipe.kinds import RECIPE_CLASSES
from clinpeft.recipe.spec import RecipeSpec
from clinpeft.recipe.specs import Recipe

RecipeDocument = dict[str, Any]
KeyPath = tuple[str, ...]
EnvironmentVariables = Mapping[str, str]

# Tables of a recipe file that say what is done with its runs, and are part of none of them: see
# ``recipe.search``.
PLANNING_TABLES = ("search", "compare", "workers")

# (kind, key before clinpeft 0.7, without the numbers of list entries) -> key since then. The old
# keys are errors; they are listed only for the hint.
RENAMED_KEYS: dict[tuple[str, str], str] = {
    ("adapt", "base.quantisation"): "base.quantization",
    ("adapt", "base.quantisation_limit"): "base.quantization_limit",
    ("adapt", "training.private"): "training.differential_privacy",
    ("classify", "base.quantisation"): "base.quantization",
    ("classify", "base.quantisation_limit"): "base.quantization_limit",
    ("classify", "reading"): "truncation",
    ("classify", "training.private"): "training.differential_privacy",
    ("embed", "base.quantisation"): "base.quantization",
    ("embed", "base.quantisation_limit"): "base.quantization_limit",
    ("embed", "training.share"): "training.fraction",
    ("embed", "evaluation.search"): "evaluation.retrieval",
    ("embed", "evaluation.retrieval.asked"): "queries",
    ("embed", "evaluation.general.asked"): "queries",
}


class Cell(RecipeSpec):
    """One run of a grid.

    Attributes:
        name: of the cell.
        recipe: of the run.
        published: column -> value, as printed in the publication.
        settings: axis of the grid -> its choice (of a table its name, else the value).
    """

    name: str
    # SerializeAsAny: the fields of the recipe's own class, and not of Recipe alone
    recipe: pydantic.SerializeAsAny[Recipe]
    published: dict[str, str | int | float] = pydantic.Field(default_factory=dict)
    settings: dict[str, str | int | float | bool] = pydantic.Field(default_factory=dict)


class _GridPoint(NamedTuple):
    """One choice on an axis, or a combination of them."""

    name: str
    changes: RecipeDocument  # dotted key -> value
    published: RecipeDocument
    settings: RecipeDocument  # axis -> choice


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | None = None,
    /,
    overrides: Sequence[str] = (),
    *,
    environment: EnvironmentVariables | None = None,
    **values: Any,
) -> Recipe:
    """Load one recipe from a TOML file, a dictionary, or keyword arguments.

    Example:
        >>> recipe = load_recipe(
        ...     kind="classify",
        ...     source={"name": "synthetic"},
        ...     task={"name": "mortality"},
        ...     base={"path": "models/encoder"},
        ...     adapters=[{"method": "lora", "rank": 4}],
        ... )
        >>> recipe.adapters[0].rank
        4

    Args:
        recipe: path of a TOML file, or top-level keys -> values. Positional only, since every key
            of a recipe may be a keyword argument.
        overrides: ``key=value`` pairs with dotted keys, as given to ``--set``, applied last.
        environment: for ``$VARIABLES`` in paths.
        values: top-level keys, which replace those of ``recipe``.

    Relative paths of a file start at its folder, all others at the working folder.

    Raises:
        RecipeError: the file cannot be read, has a ``[grid]``, a key is unknown, or a value does
            not fit.
    """
    folder = Path().resolve()
    if isinstance(recipe, str | Path):
        location, path = str(recipe), Path(recipe)
        document = _resolve_relative_paths(_read_recipe_file(path), path.parent.resolve())
    else:
        location = "recipe"
        document = _resolve_relative_paths(dict(recipe or {}), folder)
    # Resolved before they are merged: keyword arguments do not start at the folder of the file
    document |= _resolve_relative_paths(values, folder)
    if "grid" in document:
        raise RecipeError(
            "this recipe has a grid, which is several recipes",
            location=location,
            hint="load each of them with clinpeft.recipe.load_recipe_cells, or remove the grid",
        )
    return _build_recipe(document, overrides, environment or {}, location)


def load_recipe_cells(
    path: Path, overrides: Sequence[str] = (), environment: EnvironmentVariables | None = None
) -> list[Cell]:
    """Load the runs of a recipe file: one without ``[grid]``, else one for each cell.

    Args:
        path: of the TOML file.
        overrides: ``key=value`` pairs as given to ``--set``, applied last, after the grid; relative
            paths in them start at the working folder.
        environment: for ``$VARIABLES`` in paths.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, or a value does not fit.
    """
    location = str(path)
    document = _read_recipe_file(path)
    grid = document.pop("grid", {})
    cells = []
    for point in _expand_grid(grid, location):
        # Choices of the grid are part of the file, and so are their relative paths.
        filled = apply_recipe_changes(document, point.changes, location)
        filled = _resolve_relative_paths(filled, path.parent.resolve())
        recipe = _build_recipe(filled, overrides, environment or {}, location, point.name)
        cells.append(
            Cell(name=point.name, recipe=recipe, published=point.published, settings=point.settings)
        )
    return cells


def _read_recipe_file(path: Path) -> RecipeDocument:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    # Besides its own errors tomllib passes on those of Python, on numbers and on nesting.
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"this recipe cannot be read: {error}",
            location=str(path),
            hint="give the path of a TOML file",
        ) from error


def _build_recipe(
    document: RecipeDocument,
    overrides: Sequence[str],
    environment: EnvironmentVariables,
    location: str,
    cell: str = "",
) -> Recipe:
    """Apply overrides, drop planning tables, expand variables, and validate."""
    filled = apply_recipe_changes(document, _parse_overrides(overrides), "--set")
    # After the overrides, which may be about these tables
    filled = {key: value for key, value in filled.items() if key not in PLANNING_TABLES}
    filled = _expand_path_variables(filled, environment, location)
    # The name of the cell is part of that of the run, so that the run can be found by it.
    name = " · ".join(part for part in (str(filled.get("name", "")), cell) if part)
    return validate_recipe({**filled, "name": name}, location)


def validate_recipe(document: RecipeDocument, location: str) -> Recipe:
    """Validate plain values as a recipe of the class that their ``kind`` names.

    Args:
        document: top-level keys -> values; paths are used as they are.
        location: of the document, for errors.

    Raises:
        RecipeError: with the nearest known key where one is unknown.
    """
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in RECIPE_CLASSES:
        near = difflib.get_close_matches(str(kind), RECIPE_CLASSES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(RECIPE_CLASSES)}"
        raise RecipeError(f"kind = {kind!r} is no kind of run", location=location, hint=hint)
    try:
        return RECIPE_CLASSES[kind].model_validate(document)
    except pydantic.ValidationError as error:
        # None: the message of pydantic repeats all input
        raise to_recipe_error(error, location, kind) from None


def _expand_grid(grid: RecipeDocument, location: str) -> list[_GridPoint]:
    """Build the product of the axes, the last one varying fastest."""
    if not isinstance(grid, dict):
        raise RecipeError(
            f"grid = {grid!r} is no table of axes",
            location=location,
            hint='write [grid] and below it "key" = [first, second]',
        )
    axes: list[list[_GridPoint]] = []
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise RecipeError(
                f"grid axis {key!r} is not a list of choices",
                location=f"{location}: [grid]",
                hint='write "key" = [first, second]',
            )
        axes.append([_parse_grid_choice(key, choice, location) for choice in choices])
    return [
        _GridPoint(
            " · ".join(point.name for point in points),
            {key: value for point in points for key, value in point.changes.items()},
            {key: value for point in points for key, value in point.published.items()},
            {key: value for point in points for key, value in point.settings.items()},
        )
        for points in itertools.product(*axes)
    ]


def _parse_grid_choice(axis: str, choice: Any, location: str) -> _GridPoint:
    """A plain value sets the key that the axis is named after, a table sets all keys in it."""
    if not isinstance(choice, dict):
        setting = choice if isinstance(choice, str | int | float) else str(choice)
        return _GridPoint(f"{axis}={choice}", {axis: choice}, {}, {axis: setting})
    name, published = choice.get("name", axis), choice.get("published", {})
    if not isinstance(name, str) or not isinstance(published, dict):
        raise RecipeError(
            f"a choice of {axis!r} has a name that is no text, "
            "or published numbers that are no table",
            location=f"{location}: [grid]",
            hint='write name = "LoRA" and published = { perplexity = 3.1 }',
        )
    changes = {key: value for key, value in choice.items() if key not in ("name", "published")}
    return _GridPoint(name, changes, published, {axis: name})


def apply_recipe_changes(
    document: RecipeDocument, changes: RecipeDocument, location: str
) -> RecipeDocument:
    """Return a copy with each dotted key set.

    Args:
        document: plain values.
        changes: dotted key -> value; in ``adapters.0.rank`` entries count from 0.
        location: of the changes, for errors.

    Raises:
        RecipeError: a key goes through a plain value or a list entry that does not exist.
    """
    filled = copy.deepcopy(document)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        container: Any = filled
        for part in path:
            if isinstance(container, list):
                container = container[_parse_list_index(container, part, dotted, location)]
            elif isinstance(container, dict):  # a missing table is created
                container = container.setdefault(part, {})
        if isinstance(container, list):
            index = _parse_list_index(container, last, dotted, location)
            container[index] = copy.deepcopy(value)
        elif isinstance(container, dict):
            container[last] = copy.deepcopy(value)
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


def _parse_overrides(overrides: Sequence[str]) -> RecipeDocument:
    """Parse ``key=value`` pairs: the value is TOML, or else the text itself.

    So ``--set base.path=models/a`` needs no quotes. Relative paths start at the working folder.
    """
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
        key_path = tuple(part for part in key.strip().split(".") if not part.isdigit())
        is_path = key_path in _PATH_KEYS and isinstance(value, str) and not value.startswith("$")
        changes[key.strip()] = _resolve_path(Path(), value) if is_path else value
    return changes


def _resolve_relative_paths(document: RecipeDocument, folder: Path) -> RecipeDocument:
    """Make relative paths absolute, starting at a folder."""

    def resolve(text: str, _: KeyPath) -> str:
        # Variables and ~ are expanded later, and give absolute paths
        return text if text.startswith(("$", "~", "/")) else _resolve_path(folder, text)

    return _map_paths(document, resolve)


def _resolve_path(folder: Path, text: str) -> str:
    try:
        return str((folder / text).resolve())
    except (ValueError, OSError, RuntimeError) as error:
        raise RecipeError(
            f"{text[:100]!r} is no path: {error}",
            location="recipe",
            hint="write a path of this system",
        ) from error


def expand_recipe_variables(
    text: str, environment: EnvironmentVariables, location: str, example: str
) -> str:
    """Replace ``$NAME`` and ``${NAME}`` by the values of variables.

    Args:
        text: of a path or an address.
        environment: name -> value.
        location: of the text, for errors.
        example: a value, for the hint.

    Raises:
        RecipeError: a variable is not set.
    """

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environment:
            raise RecipeError(
                f"the variable ${name} is not set",
                location=location,
                hint=f"export {name}={example}",
            )
        return environment[name]

    return re.sub(r"\$\{?(\w+)\}?", look_up, text)


def _expand_path_variables(
    document: RecipeDocument, environment: EnvironmentVariables, location: str
) -> RecipeDocument:
    """Replace variables and ``~`` in paths."""

    def expand(text: str, key_path: KeyPath) -> str:
        at = f"{location}: {key_path[-1]}"
        expanded = expand_recipe_variables(
            text, environment, f"{at} = {text!r}", "/a/folder, or give --set"
        )
        try:
            return str(Path(expanded).expanduser())
        except RuntimeError as error:  # ~name, and the system has no user of that name
            raise RecipeError(
                f"{text!r} names no home folder", location=at, hint="write the path out"
            ) from error

    return _map_paths(document, expand)


def _map_paths(
    document: RecipeDocument, transform: Callable[[str, KeyPath], str], key_path: KeyPath = ()
) -> RecipeDocument:
    """Return a copy in which every value whose key is a path is transformed."""

    def map_value(value: Any, at: KeyPath) -> Any:
        if isinstance(value, dict):
            return _map_paths(value, transform, at)
        if isinstance(value, list | tuple):
            return [map_value(entry, at) for entry in value]
        is_path = at in _PATH_KEYS and isinstance(value, str | Path)  # Path: of a Python caller
        return transform(str(value), at) if is_path else value

    return {key: map_value(value, (*key_path, key)) for key, value in document.items()}


def _iterate_path_keys(spec: type[RecipeSpec], key_path: KeyPath) -> Iterator[KeyPath]:
    """Yield the keys of a spec, and of those inside it, that are paths; lists have no numbers."""
    for name, field in spec.model_fields.items():
        for kind in _iterate_annotation_types(field.annotation):
            if kind is Path:
                yield (*key_path, name)
            elif isinstance(kind, type) and issubclass(kind, RecipeSpec):
                yield from _iterate_path_keys(kind, (*key_path, name))


def _iterate_annotation_types(annotation: Any) -> Iterator[Any]:
    """Yield the plain types in ``Path | None``, ``tuple[LoraSpec | PrefixSpec, ...]`` and so on."""
    inside = get_args(annotation)
    if not inside:
        yield annotation
    for kind in inside:
        yield from _iterate_annotation_types(kind)


# Found by type, so that a new path in a spec is resolved without being listed here
_PATH_KEYS = frozenset(
    key_path for spec in RECIPE_CLASSES.values() for key_path in _iterate_path_keys(spec, ())
)
# pydantic puts the method of an adapter into the location of an error, as if it were a key.
_METHOD_TAGS = frozenset(
    tag
    for spec in get_args(get_args(AnyAdapterSpec)[0])
    for tag in get_args(spec.model_fields["method"].annotation)
)


def to_recipe_error(error: pydantic.ValidationError, location: str, kind: str = "") -> RecipeError:
    """Convert the first complaint of pydantic.

    An unknown key is reported before a missing one, which it may have been meant for.

    Args:
        error: of pydantic.
        location: of the document.
        kind: of the recipe, for keys that were renamed.
    """
    complaints = error.errors(include_url=False)
    first = next(
        (complaint for complaint in complaints if complaint["type"] == "extra_forbidden"),
        complaints[0],
    )
    parts = [part for part in first["loc"] if part not in _METHOD_TAGS]
    key = ".".join(map(str, parts)) or "recipe"
    if first["type"] != "extra_forbidden":
        value = "" if isinstance(first.get("input"), dict) else f" = {first.get('input')!r}"
        return RecipeError(
            f"{key}{value}: {first['msg']}",
            location=location,
            hint="see docs/recipes.md for the values that fit",
        )
    unnumbered = ".".join(part for part in parts if isinstance(part, str))
    if new_key := RENAMED_KEYS.get((kind, unnumbered)):
        return RecipeError(
            f"the key {key!r} was renamed in clinpeft 0.7",
            location=location,
            hint=f"write {new_key!r} instead",
        )
    # The nearest key of any spec: a key may be known and stand in the wrong table
    keys: set[str] = set()
    specs: list[type[RecipeSpec]] = [RecipeSpec]
    for spec in specs:  # grows while it is iterated: all subclasses, at any depth
        keys |= set(spec.model_fields)
        specs += spec.__subclasses__()
    near = difflib.get_close_matches(str(first["loc"][-1]), sorted(keys), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see docs/recipes.md for the keys"
    return RecipeError(f"unknown key {key!r}", location=location, hint=hint)
