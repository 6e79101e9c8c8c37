"""What a recipe file can ask for beyond its runs: a search over some of its keys, comparisons of its cells, and who works on them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from clinpeft.core.errors import RecipeError
from clinpeft.recipe.load import (
    PLANNING_TABLES,
    Cell,
    EnvironmentVariables,
    RecipeDocument,
    apply_recipe_changes,
    load_recipe_cells,
    to_recipe_error,
    validate_recipe,
)
from clinpeft.recipe.spec import RecipeSpec
from clinpeft.recipe.specs import PositiveCount, Recipe

SettingValue = str | int | float | bool


class SearchSpec(RecipeSpec):
    """A search for the best values of some keys: every trial is a run, and only the tuning split is looked at.

    Attributes:
        space: recipe key -> what to try: a list of choices, or ``{ low, high, log, step }``; or the name of a paper's table, such as ``paper:lora``.
        adapter: which adapter a paper's table is for, counted from 0; -1: the last.
        metric: a name in the runs' ``metrics.json``, or, where a run has none on its tuning split, one that training measured there.
        direction: whether more is better.
        sampler: ``gp``: a Gaussian process with expected improvement; ``tpe``; ``random``.
        trials: how many proposals.
        startup: how many of them are drawn at random before the sampler has a model.
        seed: of the proposals; that of the runs is the recipe's own.
        storage: where proposals are kept: a journal in the home, or a ``postgresql://`` address for several hosts; ``$VARIABLES`` are expanded.
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
    """Two choices of a grid to set against each other, in every pair of cells that share all their other settings.

    Attributes:
        name: for the tables; empty: made of the two.
        first: axis of the grid -> its choice: what is compared with.
        second: axis of the grid -> its choice; the difference is second minus first.
    """

    name: str = ""
    first: Annotated[dict[str, SettingValue], Field(min_length=1)]
    second: Annotated[dict[str, SettingValue], Field(min_length=1)]


class WorkersSpec(RecipeSpec):
    """Who works on a search or a study.

    Attributes:
        launch: ``here``: this process; ``local:2``: so many processes of this machine; ``slurm:8``: an array job, written and, where there is a
            scheduler, submitted. Without a number: two.
        sbatch: options of the array job, such as ``--time=4:00:00``.
    """

    launch: Annotated[str, Field(pattern=r"^(here|(local|slurm)(:[1-9][0-9]{0,2})?)$")] = "here"
    sbatch: tuple[Annotated[str, Field(pattern=r"^--[^\n]*$")], ...] = ()


class SearchRangeSpec(RecipeSpec):
    """Numbers from low to high, both included; whole numbers where both ends are.

    Attributes:
        low, high: the ends.
        log: whether factors and not differences count; for learning rates.
        step: between neighbours; none: any number.
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
        """Whether the choices are rising numbers, so that neighbours are alike: ranks are, methods are not."""
        numbers = [
            choice
            for choice in self.choices
            if isinstance(choice, int | float) and not isinstance(choice, bool)
        ]
        return len(numbers) == len(self.choices) > 0 and list(numbers) == sorted(numbers)

    @property
    def example_values(self) -> tuple[SettingValue, ...]:
        """Every choice, or both ends: if these fit the recipe, all between do."""
        return self.choices if self.range is None else (self.range.low, self.range.high)


@dataclass(frozen=True)
class RecipePlan:
    """A recipe file, read whole.

    Attributes:
        path: of the file.
        file_sha256: of its bytes.
        name: of the recipe, or of the file.
        kind: of the recipe.
        cells: one without ``[grid]``.
        search: None without ``[search]``.
        comparisons: in the order of the file.
        workers: who works on it.
        search_id: of what the file asks a search for; trials, storage and workers apart, so that more of them go on with the same search.
        study_id: of what the file asks a study for, workers apart.
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
    """What a recipe file asks for: its runs, a search, comparisons, and who works on them.

    The ids are made of what stands in the file and in the overrides, variables and relative paths as they are written, so that two hosts with their
    data in different places have the same search.

    Args:
        path, overrides, environment: as in ``read``.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value does not fit.
    """
    cells = tuple(load_recipe_cells(path, overrides, environment))
    raw = path.read_bytes()
    document = tomllib.loads(raw.decode("utf-8"))
    grid, location = document.pop("grid", {}), str(path)
    sections = _collect_planning_tables(document, overrides, location)
    search = _parse_search_table(sections, environment or {}, location)
    given = sections.get("compare", [])
    compare = tuple(
        _validate_spec(ComparisonSpec, entry, f"{location}: [[compare]]")
        for entry in (given if isinstance(given, list) else [given])
    )
    for entry in compare:
        _check_comparison(entry, cells, f"{location}: [[compare]]")
    of_runs = [
        text
        for text in overrides
        if text.split(".")[0].split("=")[0].strip() not in PLANNING_TABLES
    ]
    asked: RecipeDocument = {
        "document": {key: value for key, value in document.items() if key not in PLANNING_TABLES},
        "overrides": sorted(of_runs),
    }
    sought = search.model_dump(mode="json", exclude={"trials", "storage"}) if search else None
    return RecipePlan(
        path=path,
        file_sha256=hashlib.sha256(raw).hexdigest(),
        name=str(document.get("name") or path.stem),
        kind=cells[0].recipe.kind,
        cells=cells,
        search=search,
        comparisons=compare,
        workers=_validate_spec(WorkersSpec, sections.get("workers", {}), f"{location}: [workers]"),
        search_id=compute_json_digest({**asked, "search": sought}),
        study_id=compute_json_digest(
            {**asked, "grid": grid, "compare": [entry.model_dump(mode="json") for entry in compare]}
        ),
    )


def compute_json_digest(value: Any) -> str:
    """12 hexadecimal characters over plain values."""
    canonical = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def apply_recipe_settings(
    recipe: Recipe, settings: Mapping[str, SettingValue], location: str, name: str = ""
) -> Recipe:
    """The recipe with some keys set: ``varied(recipe, {"adapters.0.rank": 4}, "[search]")``.

    Raises:
        RecipeError: there is no such key, with the nearest, or the value does not fit.
    """
    plain = recipe.model_dump(mode="json") | ({"name": name} if name else {})
    return validate_recipe(apply_recipe_changes(plain, dict(settings), location), location)


def parse_search_dimension(key: str, definition: Any, location: str) -> SearchDimension:
    """What a space says of one key.

    Raises:
        RecipeError: a single choice, a choice given twice or that is no plain value, a range that is empty, an unknown key of a range.
    """
    at = f"{location}: {key!r}"
    if isinstance(definition, list | tuple):
        if len(definition) < 2 or len(
            {(type(choice), choice) for choice in map(_to_hashable_choice, definition)}
        ) < len(definition):
            message = (
                f"{len(definition)} choice{'s' * (len(definition) != 1)}"
                if len(definition) < 2
                else "a choice that stands there twice"
            )
            raise RecipeError(
                message,
                location=at,
                hint="give at least two that differ; a value that is fixed belongs into the recipe itself",
            )
        if odd := next(
            (choice for choice in definition if not isinstance(choice, SettingValue)), None
        ):
            raise RecipeError(
                f"{odd!r} is no plain value",
                location=at,
                hint="choose between texts, numbers, true and false",
            )
        return SearchDimension(key, tuple(definition))
    if not isinstance(definition, dict):
        raise RecipeError(
            f"{definition!r} is neither a list nor a range",
            location=at,
            hint="write [2, 4, 8] or { low = 1e-4, high = 1e-2, log = true }",
        )
    range_ = _validate_spec(SearchRangeSpec, definition, at)
    if range_.low >= range_.high or (range_.log and range_.low <= 0):
        hint = "low must be less than high, and above 0 where log = true"
        raise RecipeError(
            f"nothing lies between {range_.low!r} and {range_.high!r}", location=at, hint=hint
        )
    if range_.step is not None and (range_.log or range_.step <= 0):
        raise RecipeError(
            f"step = {range_.step!r}",
            location=at,
            hint="a step is above 0, and goes without log = true",
        )
    return SearchDimension(key, range=range_)


def _to_hashable_choice(choice: Any) -> Any:
    return choice if isinstance(choice, SettingValue) else repr(choice)


def _collect_planning_tables(
    document: RecipeDocument, overrides: Sequence[str], location: str
) -> RecipeDocument:
    """The parts of the file that say what is done with its runs, with the overrides that are about them."""
    sections = {key: document.pop(key) for key in PLANNING_TABLES if key in document}
    for text in overrides:
        key, _, value = text.partition("=")
        if key.split(".")[0].strip() in PLANNING_TABLES:
            try:
                known = tomllib.loads(f"value = {value}")["value"]
            except tomllib.TOMLDecodeError:
                known = value
            sections = apply_recipe_changes(sections, {key.strip(): known}, location)
    return sections


def _parse_search_table(
    sections: RecipeDocument, environment: EnvironmentVariables, location: str
) -> SearchSpec | None:
    if "search" not in sections:
        return None
    spec: SearchSpec = _validate_spec(SearchSpec, sections["search"], f"{location}: [search]")

    def known(match: re.Match[str]) -> str:
        if match.group(1) not in environment:
            hint = f"export {match.group(1)}=postgresql://user@host/database"
            raise RecipeError(
                f"the variable ${match.group(1)} is not set",
                location=f"{location}: search.storage",
                hint=hint,
            )
        return environment[match.group(1)]

    return spec.model_copy(update={"storage": re.sub(r"\$\{?(\w+)\}?", known, spec.storage)})


def _validate_spec(spec_class: Any, value: Any, location: str) -> Any:
    try:
        return spec_class.model_validate(value)
    except pydantic.ValidationError as error:
        raise to_recipe_error(error, location) from None


def _check_comparison(comparison: ComparisonSpec, cells: Sequence[Cell], location: str) -> None:
    """Refuse a comparison of what the grid does not have."""
    for axis, choice in [*comparison.first.items(), *comparison.second.items()]:
        axes = sorted({key for cell in cells for key in cell.settings})
        if axis not in axes:
            near = difflib.get_close_matches(axis, axes, n=1)
            raise RecipeError(
                f"the grid has no axis {axis!r}",
                location=location,
                hint=f"did you mean {near[0]!r}?" if near else f"it has {axes}",
            )
        choices = list(
            dict.fromkeys(cell.settings[axis] for cell in cells if axis in cell.settings)
        )
        if choice not in choices:
            near = difflib.get_close_matches(str(choice), [str(known) for known in choices], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {choices}"
            raise RecipeError(
                f"axis {axis!r} has no choice {choice!r}", location=location, hint=hint
            )
    if comparison.first == comparison.second:
        raise RecipeError(
            "a comparison of a cell with itself",
            location=location,
            hint="let first and second differ",
        )


def pair_compared_cells(
    comparison: ComparisonSpec, cells: Sequence[Cell]
) -> list[tuple[Cell, Cell, dict[str, SettingValue]]]:
    """(first, second, what they share) for all cells that a comparison names and that agree on every other axis."""
    named = {*comparison.first, *comparison.second}

    def others(cell: Cell) -> dict[str, SettingValue]:
        return {axis: choice for axis, choice in cell.settings.items() if axis not in named}

    first, second = (
        [cell for cell in cells if chosen.items() <= cell.settings.items()]
        for chosen in (comparison.first, comparison.second)
    )
    return [
        (one, other, others(one))
        for one in first
        for other in second
        if others(one) == others(other)
    ]


def override_trial_count(recipe_plan: RecipePlan, trials: int | None) -> RecipePlan:
    """The plan with another number of trials, where one is given."""
    if trials is None or recipe_plan.search is None:
        return recipe_plan
    return dataclasses.replace(
        recipe_plan, search=recipe_plan.search.model_copy(update={"trials": trials})
    )
