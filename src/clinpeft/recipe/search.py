"""What a recipe file may contain besides its runs: a search, comparisons of cells, and workers."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

from clinpeft.core.errors import RecipeError
from clinpeft.recipe.load import (
    PLANNING_TABLES,
    Cell,
    EnvironmentVariables,
    apply_recipe_changes,
    expand_recipe_variables,
    load_recipe_cells,
    to_recipe_error,
    validate_recipe,
)
from clinpeft.recipe.spec import PositiveCount, RecipeSpec
from clinpeft.recipe.specs import Recipe

SettingValue = str | int | float | bool


class SearchSpec(RecipeSpec):
    """A search for the best values of some keys, on the tuning split; every trial is a run.

    Attributes:
        space: recipe key -> what to try: a list of choices, or ``{ low, high, log, step }``; or the
            name of a paper's table, such as ``paper:lora``.
        adapter: which adapter a paper's table is for, counted from 0; -1: the last.
        metric: a name in the runs' ``metrics.json``, or, where a run has none on its tuning split,
            one that training measured there.
        direction: whether more is better.
        sampler: ``gp``: a Gaussian process with expected improvement; ``tpe``: a tree-structured
            Parzen estimator; ``random``.
        trials: number of proposals.
        startup: how many of them are drawn at random before the sampler has a model.
        seed: of the proposals; that of the runs is a key of the recipe.
        storage: where proposals are stored: a journal in the home, or a ``postgresql://`` address
            for several hosts; ``$VARIABLES`` are expanded.
    """

    space: str | dict[str, Any]
    adapter: Annotated[int, Field(ge=-1)] = -1
    metric: Annotated[str, Field(min_length=1)]
    direction: Literal["maximize", "minimize"]
    sampler: Literal["gp", "tpe", "random"] = "gp"
    trials: PositiveCount = 20
    startup: PositiveCount = 6
    seed: int = 1234
    storage: Literal["journal"] | Annotated[str, Field(pattern=r"^(postgresql(\+\w+)?://|\$)")] = (
        "journal"
    )


class ComparisonSpec(RecipeSpec):
    """Two choices of a grid to compare, in every pair of cells that share all other settings.

    Attributes:
        name: for the tables; empty: composed from the two.
        first: axis of the grid -> its choice: the reference.
        second: axis of the grid -> its choice; the difference is second minus first.
    """

    name: str = ""
    first: Annotated[dict[str, SettingValue], Field(min_length=1)]
    second: Annotated[dict[str, SettingValue], Field(min_length=1)]


class WorkersSpec(RecipeSpec):
    """The processes that work on a search or a study.

    Attributes:
        launch: ``here``: this process; ``local:2``: so many processes of this machine;
            ``slurm:8``: an array job, written and, where there is a scheduler, submitted. Without
            a number: two.
        sbatch: options of the array job, such as ``--time=4:00:00``.
    """

    launch: Annotated[str, Field(pattern=r"^(here|(local|slurm)(:[1-9][0-9]{0,2})?)$")] = "here"
    sbatch: tuple[Annotated[str, Field(pattern=r"^--[^\n]*$")], ...] = ()


class SearchRangeSpec(RecipeSpec):
    """Numbers from low to high, both included; whole numbers where both ends are.

    Attributes:
        low, high: the ends.
        log: whether values are uniform on a logarithmic scale; for learning rates.
        step: between neighbors; none: any number.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None


@dataclass(frozen=True)
class SearchDimension:
    """One key of a space: ``choices``, or a ``range``.

    Attributes:
        key: of the recipe.
        choices: at least two; empty for a range.
        range: None for choices.
    """

    key: str
    choices: tuple[SettingValue, ...] = ()
    range: SearchRangeSpec | None = None

    @property
    def is_ordered(self) -> bool:
        """Whether the choices are rising numbers, so that neighbors are similar.

        Ranks are, methods are not.
        """
        numbers = [
            choice
            for choice in self.choices
            if isinstance(choice, int | float) and not isinstance(choice, bool)
        ]
        return len(numbers) == len(self.choices) > 0 and list(numbers) == sorted(numbers)

    @property
    def example_values(self) -> tuple[SettingValue, ...]:
        """Every choice, or both ends of the range: if these fit the recipe, all between do."""
        return self.choices if self.range is None else (self.range.low, self.range.high)


@dataclass(frozen=True)
class RecipePlan:
    """A recipe file with all that it contains.

    Attributes:
        path: of the file.
        file_sha256: of its bytes.
        name: of the recipe, or of the file.
        kind: of the recipe.
        cells: one without ``[grid]``.
        search: None without ``[search]``.
        comparisons: in the order of the file.
        workers: processes that work on it.
        search_id: digest of runs and search without trials, storage and workers, so that the same
            search resumes when these change.
        study_id: digest of runs, grid and comparisons.
    """

    path: Path
    file_sha256: str
    name: str
    kind: str
    cells: tuple[Cell, ...]
    search: SearchSpec | None
    comparisons: tuple[ComparisonSpec, ...]
    workers: WorkersSpec
    search_id: str
    study_id: str


def load_recipe_plan(
    path: Path, overrides: Sequence[str] = (), environment: EnvironmentVariables | None = None
) -> RecipePlan:
    """Load a recipe file: its runs, a search, comparisons, and the workers.

    The ids are computed from the file and the overrides, variables and relative paths as they are
    written, so that two hosts with their data in different places have the same search.

    Args:
        path, overrides, environment: as in ``load_recipe_cells``.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value does not fit.
    """
    cells, location = tuple(load_recipe_cells(path, overrides, environment)), str(path)
    # Read again, unexpanded: variables and relative paths are to be the same on every host
    raw = path.read_bytes()
    document = tomllib.loads(raw.decode("utf-8"))
    grid = document.pop("grid", {})
    tables = {key: document.pop(key) for key in PLANNING_TABLES if key in document}
    run_overrides = []
    for override in overrides:
        key, _, text = override.partition("=")
        if key.split(".")[0].strip() not in PLANNING_TABLES:
            run_overrides.append(override)
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        tables = apply_recipe_changes(tables, {key.strip(): value}, location)
    search = None
    if "search" in tables:
        search = _parse_search_table(tables["search"], environment or {}, location)
    comparisons = _parse_comparisons(tables.get("compare", []), cells, f"{location}: [[compare]]")
    workers = _validate_spec(WorkersSpec, tables.get("workers", {}), f"{location}: [workers]")
    runs = {"document": document, "overrides": sorted(run_overrides)}
    # Trials and storage may change while a search goes on, and the workers of anything.
    searched = search.model_dump(mode="json", exclude={"trials", "storage"}) if search else None
    compared = [comparison.model_dump(mode="json") for comparison in comparisons]
    return RecipePlan(
        path=path,
        file_sha256=hashlib.sha256(raw).hexdigest(),
        name=str(document.get("name") or path.stem),
        kind=cells[0].recipe.kind,
        cells=cells,
        search=search,
        comparisons=comparisons,
        workers=workers,
        search_id=compute_json_digest({**runs, "search": searched}),
        study_id=compute_json_digest({**runs, "grid": grid, "compare": compared}),
    )


def compute_json_digest(value: Any) -> str:
    """Compute 12 hexadecimal characters of SHA-256 over plain values, independent of key order."""
    canonical = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def apply_recipe_settings(
    recipe: Recipe, settings: Mapping[str, SettingValue], location: str, name: str = ""
) -> Recipe:
    """Return the recipe with some dotted keys set, such as ``{"adapters.0.rank": 4}``.

    Args:
        recipe: to start from.
        settings: dotted key -> value.
        location: of the settings, for errors.
        name: of the new recipe; empty: the same.

    Raises:
        RecipeError: there is no such key, with the nearest, or the value does not fit.
    """
    plain = recipe.model_dump(mode="json") | ({"name": name} if name else {})
    return validate_recipe(apply_recipe_changes(plain, dict(settings), location), location)


def parse_search_dimension(key: str, definition: Any, location: str) -> SearchDimension:
    """Parse what a space defines for one key: a list of choices, or a table of a range.

    Raises:
        RecipeError: a single choice, a choice given twice or that is no plain value, a range that
            is empty, an unknown key of a range.
    """
    at = f"{location}: {key!r}"
    if isinstance(definition, list | tuple):
        return SearchDimension(key, _check_choices(definition, at))
    if not isinstance(definition, dict):
        raise RecipeError(
            f"{definition!r} is neither a list nor a range",
            location=at,
            hint="write [2, 4, 8] or { low = 1e-4, high = 1e-2, log = true }",
        )
    range_ = _validate_spec(SearchRangeSpec, definition, at)
    if range_.low >= range_.high or (range_.log and range_.low <= 0):
        raise RecipeError(
            f"nothing lies between {range_.low!r} and {range_.high!r}",
            location=at,
            hint="low must be less than high, and above 0 where log = true",
        )
    if range_.step is not None and (range_.log or range_.step <= 0):
        raise RecipeError(
            f"step = {range_.step!r}",
            location=at,
            hint="a step is above 0, and not combined with log = true",
        )
    return SearchDimension(key, range=range_)


def _check_choices(choices: Sequence[Any], location: str) -> tuple[SettingValue, ...]:
    """At least two, all different and plain."""
    # With the type, since 1 == 1.0 == True; what is not plain may not be hashable
    distinct = {
        (type(choice), choice if isinstance(choice, SettingValue) else repr(choice))
        for choice in choices
    }
    if len(choices) < 2 or len(distinct) < len(choices):
        count = f"{len(choices)} choice{'s' * (len(choices) != 1)}"
        raise RecipeError(
            count if len(choices) < 2 else "a choice that stands there twice",
            location=location,
            hint="give at least two that differ; a fixed value belongs into the recipe itself",
        )
    for choice in choices:
        if not isinstance(choice, SettingValue):
            raise RecipeError(
                f"{choice!r} is no plain value",
                location=location,
                hint="choose between texts, numbers, true and false",
            )
    return tuple(choices)


def _parse_search_table(table: Any, environment: EnvironmentVariables, location: str) -> SearchSpec:
    spec = _validate_spec(SearchSpec, table, f"{location}: [search]")
    storage = expand_recipe_variables(
        spec.storage,
        environment,
        f"{location}: search.storage",
        "postgresql://user@host/database",
    )
    return spec.model_copy(update={"storage": storage})


SpecT = TypeVar("SpecT", bound=RecipeSpec)


def _validate_spec(spec_class: type[SpecT], value: Any, location: str) -> SpecT:
    try:
        return spec_class.model_validate(value)
    except pydantic.ValidationError as error:
        raise to_recipe_error(error, location) from None


def _parse_comparisons(
    entries: Any, cells: Sequence[Cell], location: str
) -> tuple[ComparisonSpec, ...]:
    """Parse comparisons, and check that the grid has their axes and choices."""
    entries = entries if isinstance(entries, list) else [entries]  # [compare] for [[compare]]
    comparisons = tuple(_validate_spec(ComparisonSpec, entry, location) for entry in entries)
    axes = sorted({key for cell in cells for key in cell.settings})
    for comparison in comparisons:
        for axis, choice in [*comparison.first.items(), *comparison.second.items()]:
            choices = list(
                dict.fromkeys(cell.settings[axis] for cell in cells if axis in cell.settings)
            )
            if axis not in axes:
                message, value = f"the grid has no axis {axis!r}", axis
                options: Sequence[SettingValue] = axes
            elif choice not in choices:
                message, value = f"axis {axis!r} has no choice {choice!r}", str(choice)
                options = choices
            else:
                continue
            near = difflib.get_close_matches(value, list(map(str, options)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {options}"
            raise RecipeError(message, location=location, hint=hint)
        if comparison.first == comparison.second:
            raise RecipeError(
                "a comparison of a cell with itself",
                location=location,
                hint="let first and second differ",
            )
    return comparisons


def pair_compared_cells(
    comparison: ComparisonSpec, cells: Sequence[Cell]
) -> list[tuple[Cell, Cell, dict[str, SettingValue]]]:
    """Pair the cells that a comparison names and that agree on every other axis.

    Returns:
        (first, second, axis -> choice that both share).
    """
    named_axes = {*comparison.first, *comparison.second}

    def get_other_settings(cell: Cell) -> dict[str, SettingValue]:
        return {axis: choice for axis, choice in cell.settings.items() if axis not in named_axes}

    first, second = (
        [cell for cell in cells if settings.items() <= cell.settings.items()]
        for settings in (comparison.first, comparison.second)
    )
    return [
        (cell, other, get_other_settings(cell))
        for cell in first
        for other in second
        if get_other_settings(cell) == get_other_settings(other)
    ]


def override_trial_count(recipe_plan: RecipePlan, trials: int | None) -> RecipePlan:
    """Return the plan with another number of trials; None or no search: the plan itself."""
    if trials is None or recipe_plan.search is None:
        return recipe_plan
    search = recipe_plan.search.model_copy(update={"trials": trials})
    return dataclasses.replace(recipe_plan, search=search)
