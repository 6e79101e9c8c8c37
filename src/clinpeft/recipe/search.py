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
    PLANNING,
    Cell,
    Environment,
    Json,
    explained,
    read,
    validated,
    with_changes,
)
from clinpeft.recipe.spec import Spec
from clinpeft.recipe.specs import Count, Recipe

Setting = str | int | float | bool


class SearchSpec(Spec):
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
    trials: Count = 20
    startup: Count = 6
    seed: int = 1234
    storage: Literal["journal"] | Annotated[str, Field(pattern=r"^(postgresql(\+\w+)?://|\$)")] = (
        "journal"
    )


class CompareSpec(Spec):
    """Two choices of a grid to set against each other, in every pair of cells that share all their other settings.

    Attributes:
        name: for the tables; empty: made of the two.
        first: axis of the grid -> its choice: what is compared with.
        second: axis of the grid -> its choice; the difference is second minus first.
    """

    name: str = ""
    first: Annotated[dict[str, Setting], Field(min_length=1)]
    second: Annotated[dict[str, Setting], Field(min_length=1)]


class WorkersSpec(Spec):
    """Who works on a search or a study.

    Attributes:
        launch: ``here``: this process; ``local:2``: so many processes of this machine; ``slurm:8``: an array job, written and, where there is a
            scheduler, submitted. Without a number: two.
        sbatch: options of the array job, such as ``--time=4:00:00``.
    """

    launch: Annotated[str, Field(pattern=r"^(here|(local|slurm)(:[1-9][0-9]{0,2})?)$")] = "here"
    sbatch: tuple[Annotated[str, Field(pattern=r"^--[^\n]*$")], ...] = ()


class RangeSpec(Spec):
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
class Dimension:
    """One key of a space: ``choices``, or a ``range``.

    Attributes:
        key: of the recipe.
        choices: at least two; empty for a range.
        range: None for choices.
    """

    key: str
    choices: tuple[Setting, ...] = ()
    range: RangeSpec | None = None

    @property
    def ordered(self) -> bool:
        """Whether the choices are rising numbers, so that neighbours are alike: ranks are, methods are not."""
        numbers = [
            choice
            for choice in self.choices
            if isinstance(choice, int | float) and not isinstance(choice, bool)
        ]
        return len(numbers) == len(self.choices) > 0 and list(numbers) == sorted(numbers)

    @property
    def examples(self) -> tuple[Setting, ...]:
        """Every choice, or both ends: if these fit the recipe, all between do."""
        return self.choices if self.range is None else (self.range.low, self.range.high)


@dataclass(frozen=True)
class Plan:
    """A recipe file, read whole.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        name: of the recipe, or of the file.
        kind: of the recipe.
        cells: one without ``[grid]``.
        search: None without ``[search]``.
        compare: in the order of the file.
        workers: who works on it.
        search_id: of what the file asks a search for; trials, storage and workers apart, so that more of them go on with the same search.
        study_id: of what the file asks a study for, workers apart.
    """

    path: Path
    sha256: str
    name: str
    kind: str
    cells: tuple[Cell, ...]
    search: SearchSpec | None
    compare: tuple[CompareSpec, ...]
    workers: WorkersSpec
    search_id: str
    study_id: str


def plan(path: Path, overrides: Sequence[str] = (), environment: Environment | None = None) -> Plan:
    """What a recipe file asks for: its runs, a search, comparisons, and who works on them.

    The ids are made of what stands in the file and in the overrides, variables and relative paths as they are written, so that two hosts with their
    data in different places have the same search.

    Args:
        path, overrides, environment: as in ``read``.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value does not fit.
    """
    cells = tuple(read(path, overrides, environment))
    raw = path.read_bytes()
    document = tomllib.loads(raw.decode("utf-8"))
    grid, location = document.pop("grid", {}), str(path)
    sections = _sections(document, overrides, location)
    search = _search(sections, environment or {}, location)
    given = sections.get("compare", [])
    compare = tuple(
        _spec(CompareSpec, entry, f"{location}: [[compare]]")
        for entry in (given if isinstance(given, list) else [given])
    )
    for entry in compare:
        _in_grid(entry, cells, f"{location}: [[compare]]")
    of_runs = [
        text for text in overrides if text.split(".")[0].split("=")[0].strip() not in PLANNING
    ]
    asked: Json = {
        "document": {key: value for key, value in document.items() if key not in PLANNING},
        "overrides": sorted(of_runs),
    }
    sought = search.model_dump(mode="json", exclude={"trials", "storage"}) if search else None
    return Plan(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        name=str(document.get("name") or path.stem),
        kind=cells[0].recipe.kind,
        cells=cells,
        search=search,
        compare=compare,
        workers=_spec(WorkersSpec, sections.get("workers", {}), f"{location}: [workers]"),
        search_id=digest({**asked, "search": sought}),
        study_id=digest(
            {**asked, "grid": grid, "compare": [entry.model_dump(mode="json") for entry in compare]}
        ),
    )


def digest(plain: Any) -> str:
    """12 hexadecimal characters over plain values."""
    canonical = json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def varied(
    recipe: Recipe, settings: Mapping[str, Setting], location: str, name: str = ""
) -> Recipe:
    """The recipe with some keys set: ``varied(recipe, {"adapters.0.rank": 4}, "[search]")``.

    Raises:
        RecipeError: there is no such key, with the nearest, or the value does not fit.
    """
    plain = recipe.model_dump(mode="json") | ({"name": name} if name else {})
    return validated(with_changes(plain, dict(settings), location), location)


def dimension(key: str, given: Any, location: str) -> Dimension:
    """What a space says of one key.

    Raises:
        RecipeError: a single choice, a choice given twice or that is no plain value, a range that is empty, an unknown key of a range.
    """
    at = f"{location}: {key!r}"
    if isinstance(given, list | tuple):
        if len(given) < 2 or len({(type(choice), choice) for choice in map(_plain, given)}) < len(
            given
        ):
            message = (
                f"{len(given)} choice{'s' * (len(given) != 1)}"
                if len(given) < 2
                else "a choice that stands there twice"
            )
            raise RecipeError(
                message,
                location=at,
                hint="give at least two that differ; a value that is fixed belongs into the recipe itself",
            )
        if odd := next((choice for choice in given if not isinstance(choice, Setting)), None):
            raise RecipeError(
                f"{odd!r} is no plain value",
                location=at,
                hint="choose between texts, numbers, true and false",
            )
        return Dimension(key, tuple(given))
    if not isinstance(given, dict):
        raise RecipeError(
            f"{given!r} is neither a list nor a range",
            location=at,
            hint="write [2, 4, 8] or { low = 1e-4, high = 1e-2, log = true }",
        )
    range_ = _spec(RangeSpec, given, at)
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
    return Dimension(key, range=range_)


def _plain(choice: Any) -> Any:
    return choice if isinstance(choice, Setting) else repr(choice)


def _sections(document: Json, overrides: Sequence[str], location: str) -> Json:
    """The parts of the file that say what is done with its runs, with the overrides that are about them."""
    sections = {key: document.pop(key) for key in PLANNING if key in document}
    for text in overrides:
        key, _, value = text.partition("=")
        if key.split(".")[0].strip() in PLANNING:
            try:
                known = tomllib.loads(f"value = {value}")["value"]
            except tomllib.TOMLDecodeError:
                known = value
            sections = with_changes(sections, {key.strip(): known}, location)
    return sections


def _search(sections: Json, environment: Environment, location: str) -> SearchSpec | None:
    if "search" not in sections:
        return None
    spec: SearchSpec = _spec(SearchSpec, sections["search"], f"{location}: [search]")

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


def _spec(kind: Any, given: Any, location: str) -> Any:
    try:
        return kind.model_validate(given)
    except pydantic.ValidationError as error:
        raise explained(error, location) from None


def _in_grid(entry: CompareSpec, cells: Sequence[Cell], location: str) -> None:
    """Refuse a comparison of what the grid does not have."""
    for axis, choice in [*entry.first.items(), *entry.second.items()]:
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
    if entry.first == entry.second:
        raise RecipeError(
            "a comparison of a cell with itself",
            location=location,
            hint="let first and second differ",
        )


def pairs_of(
    entry: CompareSpec, cells: Sequence[Cell]
) -> list[tuple[Cell, Cell, dict[str, Setting]]]:
    """(first, second, what they share) for all cells that a comparison names and that agree on every other axis."""
    named = {*entry.first, *entry.second}

    def others(cell: Cell) -> dict[str, Setting]:
        return {axis: choice for axis, choice in cell.settings.items() if axis not in named}

    first, second = (
        [cell for cell in cells if chosen.items() <= cell.settings.items()]
        for chosen in (entry.first, entry.second)
    )
    return [
        (one, other, others(one))
        for one in first
        for other in second
        if others(one) == others(other)
    ]


def with_trials(found: Plan, trials: int | None) -> Plan:
    """The plan with another number of trials, where one is given."""
    if trials is None or found.search is None:
        return found
    return dataclasses.replace(found, search=found.search.model_copy(update={"trials": trials}))
