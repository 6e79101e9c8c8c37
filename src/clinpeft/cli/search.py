"""``clinpeft search``: the best values of some keys of a recipe, every trial a run."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.console import finished, near
from clinpeft.cli.launch import launched, made, made_together
from clinpeft.cli.options import HERE, Home, Overrides
from clinpeft.cli.progress import stoppable
from clinpeft.core.errors import InputError, TrainingError, UsageError

if TYPE_CHECKING:
    from clinpeft.recipe import RecipePlan
    from clinpeft.runs.searches import SearchRecord

Concurrent = Annotated[
    int,
    typer.Option(
        "--concurrent",
        min=1,
        help="How many trials a worker trains in one pass over one base, where they can be.",
    ),
]
Launch = Annotated[
    str | None,
    typer.Option(
        "--launch",
        metavar="here|local:N|slurm:N",
        help="Who works; before [workers] launch of the recipe.",
    ),
]


def search(
    recipe: Annotated[Path, typer.Argument(help="A recipe with [search].")],
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="How many proposals in all; before search.trials of the recipe."),
    ] = None,
    set_: Overrides = None,
    home: Home = HERE,
    launch: Launch = None,
    concurrent: Concurrent = 1,
) -> None:
    """Search the best values of some keys of a recipe: every trial is a run, judged on its tuning split. The same command again adds a worker."""
    from clinpeft import recipe as recipes
    from clinpeft.runs.searches import SEARCHES_FOLDER
    from clinpeft.runs.studies import get_record_folder

    asked = recipes.override_trial_count(
        recipes.load_recipe_plan(recipe, set_ or [], os.environ), trials
    )
    _searchable(asked)
    folder = get_record_folder(home.resolve(), asked.name, asked.search_id, SEARCHES_FOLDER)
    again = ["search", str(recipe.resolve()), "--home", str(home.resolve()), "--launch", "here"]
    again += [] if trials is None else ["--trials", str(trials)]
    again += [] if concurrent == 1 else ["--concurrent", str(concurrent)]
    again += [part for pair in set_ or [] for part in ("--set", pair)]
    with stoppable() as stopping:
        if launched(asked, launch, folder, again, stopping) == "slurm":
            return
        found, best = _worked(asked, home.resolve(), folder, stopping, concurrent)
    _told(found, best, home)


def _searchable(asked: RecipePlan) -> None:
    """Refuse what has no search, or has several runs to search in.

    Raises:
        UsageError: with what to do.
    """
    if asked.search is None:
        raise UsageError(
            "this recipe asks for no search",
            location=str(asked.path),
            hint="add [search] with space, metric and direction",
        )
    if len(asked.cells) != 1:
        hint = "take [grid] out, or search in one cell: --set and a recipe of its own"
        raise UsageError(
            f"a search is in one run, and this recipe has {len(asked.cells)}",
            location=f"{asked.path}: [grid]",
            hint=hint,
        )
    from clinpeft.workflows import get_workflow

    get_workflow(asked)  # refuses a kind that trains nothing


def _worked(
    asked: RecipePlan, home: Path, folder: Path, stopping: Callable[[], bool], concurrent: int
) -> tuple[SearchRecord, Path | None]:
    """This process as a worker, and what is known when it has nothing more to do."""
    try:
        from clinpeft import search as room
    except ModuleNotFoundError as error:
        hint = 'install it: pip install "clinpeft[search]"'
        raise UsageError(
            f"{error.name} is not installed", location="clinpeft search", hint=hint
        ) from error
    from clinpeft.core.locks import wait_for_folder_lock
    from clinpeft.runs.searches import write_search_record

    assert asked.search is not None
    base = asked.cells[0].recipe
    space = room.build_search_space(asked.search, base)
    name = f"{asked.name}-{asked.search_id}"
    spec = asked.search
    with room.open_search_storage(spec.storage, folder, name) as (storage, claims):
        with room.wrap_storage_errors(spec.storage), claims.lock_search():
            study = room.open_optuna_study(storage, name, spec)
        copied = functools.partial(wait_for_folder_lock, folder, "search.lock")

        def copy() -> SearchRecord:
            """The record beside the storage, after every trial."""
            with room.wrap_storage_errors(spec.storage), copied():
                known = room.build_search_record(
                    study, space, asked, folder, datetime.now(UTC).isoformat()
                )
                write_search_record(known)
            return known

        make = functools.partial(made, home=home, title=asked.name, stopping=stopping)
        pass_ = functools.partial(made_together, home=home, title=asked.name, stopping=stopping)
        told = lambda: _ignored(copy())  # noqa: E731
        room.run_search_worker(
            room.WorkerConfig(
                storage,
                study,
                claims,
                space,
                spec,
                base,
                make,
                stopping,
                platform.node(),
                told,
                concurrent,
                pass_,
            )
        )
        known = copy()
        if known.is_complete:
            known = _with_held_out(known, home)
            with copied():
                write_search_record(known)
        return known, room.write_winner_recipe(known, base)


def _ignored(_: object) -> None:
    """A record that was only to be written."""


def _with_held_out(known: SearchRecord, home: Path) -> SearchRecord:
    """What the winner reached on the held-out split, where its run is in this home."""
    from clinpeft import runs
    from clinpeft import search as room

    if known.best_trial is None or known.best_trial.run_id is None:
        return known
    try:
        return room.add_held_out_results(known, runs.read_run(home / known.best_trial.run_id))
    except InputError:
        return known  # another host made it: its home has the run


def _told(found: SearchRecord, best: Path | None, home: Path) -> None:
    """Tables and figures; exit code 1 where every trial failed."""
    from clinpeft.reports.figures.search import write_search_figures
    from clinpeft.reports.searches import search_table

    finished(search_table(found), home, f"{found.name}-search")
    ended = sum(trial.state != "open" for trial in found.trials)
    if not found.is_complete:
        print(f"{ended} of {found.wanted} trials have ended; others are working on the rest")
    elif found.best_trial is None:
        reasons = "; ".join(sorted({trial.reason for trial in found.trials}))
        raise TrainingError(
            f"no trial has a value: {reasons}",
            location=str(found.folder),
            hint="make the space smaller, or change the recipe",
        )
    for path in (best, *_drawn(found, write_search_figures)):
        if path is not None:
            print(near(path))


def _drawn(
    found: SearchRecord, draw: Callable[[SearchRecord], tuple[Path, ...]]
) -> tuple[Path, ...]:
    try:
        return draw(found)
    except (UsageError, InputError) as error:
        print(f"no figures: {error.message}; {error.hint}")
        return ()
