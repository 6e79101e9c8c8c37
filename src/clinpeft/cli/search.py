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

from clinpeft.cli.console import print_and_write_table, to_relative_path
from clinpeft.cli.launch import (
    launch_workers,
    run_or_find_recipe,
    run_recipes_jointly,
    get_run_function,
)
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, OverridesOption
from clinpeft.cli.progress import handle_stop_signals
from clinpeft.core.errors import InputError, TrainingError, UsageError

if TYPE_CHECKING:
    from clinpeft.recipe import RecipePlan
    from clinpeft.runs.searches import SearchRecord

ConcurrentOption = Annotated[
    int,
    typer.Option(
        "--concurrent",
        min=1,
        help="How many trials a worker trains in one pass over one base, where they can be.",
    ),
]
LaunchOption = Annotated[
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
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
    launch: LaunchOption = None,
    concurrent: ConcurrentOption = 1,
) -> None:
    """Search the best values of some keys of a recipe: every trial is a run, judged on its tuning split. The same command again adds a worker."""
    from clinpeft import recipe as recipes
    from clinpeft.runs.searches import SEARCHES_FOLDER
    from clinpeft.runs.studies import get_record_folder

    asked = recipes.override_trial_count(
        recipes.load_recipe_plan(recipe, set_ or [], os.environ), trials
    )
    _check_searchable(asked)
    folder = get_record_folder(home.resolve(), asked.name, asked.search_id, SEARCHES_FOLDER)
    again = ["search", str(recipe.resolve()), "--home", str(home.resolve()), "--launch", "here"]
    again += [] if trials is None else ["--trials", str(trials)]
    again += [] if concurrent == 1 else ["--concurrent", str(concurrent)]
    again += [part for pair in set_ or [] for part in ("--set", pair)]
    with handle_stop_signals() as stopping:
        if launch_workers(asked, launch, folder, again, stopping) == "slurm":
            return
        found, best = _run_worker(asked, home.resolve(), folder, stopping, concurrent)
    _print_search(found, best, home)


def _check_searchable(recipe_plan: RecipePlan) -> None:
    """Refuse what has no search, or has several runs to search in.

    Raises:
        UsageError: with what to do.
    """
    if recipe_plan.search is None:
        raise UsageError(
            "this recipe asks for no search",
            location=str(recipe_plan.path),
            hint="add [search] with space, metric and direction",
        )
    if len(recipe_plan.cells) != 1:
        hint = "take [grid] out, or search in one cell: --set and a recipe of its own"
        raise UsageError(
            f"a search is in one run, and this recipe has {len(recipe_plan.cells)}",
            location=f"{recipe_plan.path}: [grid]",
            hint=hint,
        )
    get_run_function(recipe_plan.kind)


def _run_worker(
    recipe_plan: RecipePlan,
    home: Path,
    folder: Path,
    should_stop: Callable[[], bool],
    concurrent: int,
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

    assert recipe_plan.search is not None
    base = recipe_plan.cells[0].recipe
    space = room.build_search_space(recipe_plan.search, base)
    name = f"{recipe_plan.name}-{recipe_plan.search_id}"
    spec = recipe_plan.search
    with room.open_search_storage(spec.storage, folder, name) as (storage, claims):
        with room.wrap_storage_errors(spec.storage), claims.lock_search():
            study = room.open_optuna_study(storage, name, spec)
        copied = functools.partial(wait_for_folder_lock, folder, "search.lock")

        def copy() -> SearchRecord:
            """The record beside the storage, after every trial."""
            with room.wrap_storage_errors(spec.storage), copied():
                known = room.build_search_record(
                    study, space, recipe_plan, folder, datetime.now(UTC).isoformat()
                )
                write_search_record(known)
            return known

        make = functools.partial(
            run_or_find_recipe, home=home, title=recipe_plan.name, stopping=should_stop
        )
        pass_ = functools.partial(
            run_recipes_jointly, home=home, title=recipe_plan.name, stopping=should_stop
        )
        told = lambda: _discard_record(copy())  # noqa: E731
        room.run_search_worker(
            room.WorkerConfig(
                storage,
                study,
                claims,
                space,
                spec,
                base,
                make,
                should_stop,
                platform.node(),
                told,
                concurrent,
                pass_,
            )
        )
        known = copy()
        if known.is_complete:
            known = _add_held_out(known, home)
            with copied():
                write_search_record(known)
        return known, room.write_winner_recipe(known, base)


def _discard_record(_: object) -> None:
    """A record that was only to be written."""


def _add_held_out(record: SearchRecord, home: Path) -> SearchRecord:
    """What the winner reached on the held-out split, where its run is in this home."""
    from clinpeft import runs
    from clinpeft import search as room

    if record.best_trial is None or record.best_trial.run_id is None:
        return record
    try:
        return room.add_held_out_results(record, runs.read_run(home / record.best_trial.run_id))
    except InputError:
        return record  # another host made it: its home has the run


def _print_search(record: SearchRecord, winner_recipe_path: Path | None, home: Path) -> None:
    """Tables and figures; exit code 1 where every trial failed."""
    from clinpeft.reports.figures.search import write_search_figures
    from clinpeft.reports.searches import build_search_table

    print_and_write_table(build_search_table(record), home, f"{record.name}-search")
    ended = sum(trial.state != "open" for trial in record.trials)
    if not record.is_complete:
        print(f"{ended} of {record.wanted} trials have ended; others are working on the rest")
    elif record.best_trial is None:
        reasons = "; ".join(sorted({trial.reason for trial in record.trials}))
        raise TrainingError(
            f"no trial has a value: {reasons}",
            location=str(record.folder),
            hint="make the space smaller, or change the recipe",
        )
    for path in (winner_recipe_path, *_draw_figures(record, write_search_figures)):
        if path is not None:
            print(to_relative_path(path))


def _draw_figures(
    record: SearchRecord, draw: Callable[[SearchRecord], tuple[Path, ...]]
) -> tuple[Path, ...]:
    try:
        return draw(record)
    except (UsageError, InputError) as error:
        print(f"no figures: {error.message}; {error.hint}")
        return ()
