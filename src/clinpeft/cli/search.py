"""``clinpeft search``: search the values of some recipe keys; every trial is a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.console import print_and_write_table, to_relative_path
from clinpeft.cli.launch import launch_workers, run_or_find_recipe, run_recipes_jointly
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, LaunchOption, OverridesOption
from clinpeft.cli.progress import handle_stop_signals
from clinpeft.core.errors import InputError, TrainingError, UsageError

if TYPE_CHECKING:
    from clinpeft.recipe import RecipePlan
    from clinpeft.runs.searches import SearchRecord


def search_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe with a table [search].")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials; overrides search.trials.")
    ] = None,
    set_: OverridesOption = None,
    home: HomeOption = DEFAULT_HOME,
    launch: LaunchOption = None,
    concurrent: Annotated[
        int,
        typer.Option(
            "--concurrent", min=1, help="Trials that a worker trains in one pass, where possible."
        ),
    ] = 1,
) -> None:
    """Search hyperparameters: every trial is a run, compared on the tuning split.

    The same command in another process adds a worker.
    """
    from clinpeft.recipe import load_recipe_plan, override_trial_count
    from clinpeft.runs.searches import SEARCHES_FOLDER
    from clinpeft.runs.studies import get_record_folder

    plan = override_trial_count(load_recipe_plan(recipe, set_ or [], os.environ), trials)
    check_searchable(plan)
    folder = get_record_folder(home.resolve(), plan.name, plan.search_id, SEARCHES_FOLDER)
    command = ["search", str(recipe.resolve()), "--home", str(home.resolve()), "--launch", "here"]
    command += [] if trials is None else ["--trials", str(trials)]
    command += [] if concurrent == 1 else ["--concurrent", str(concurrent)]
    command += [part for pair in set_ or [] for part in ("--set", pair)]
    with handle_stop_signals() as should_stop:
        if launch_workers(plan, launch, folder, command, should_stop) == "slurm":
            return
        record, winner = run_worker(plan, home.resolve(), folder, should_stop, concurrent)
    _print_search(record, winner, home)


def check_searchable(plan: RecipePlan) -> None:
    """Check that a recipe file has one search in one run.

    Raises:
        UsageError: it has no search, several runs, or a kind that trains nothing.
    """
    from clinpeft.workflows import get_workflow

    if plan.search is None:
        raise UsageError(
            "this recipe has no table [search]",
            location=str(plan.path),
            hint="add [search] with space, metric and direction",
        )
    if len(plan.cells) != 1:
        raise UsageError(
            f"a search is over one run, and this recipe has {len(plan.cells)}",
            location=f"{plan.path}: [grid]",
            hint="remove [grid], or search one cell in a recipe of its own",
        )
    get_workflow(plan.cells[0].recipe)


def run_worker(
    plan: RecipePlan,
    home: Path,
    folder: Path,
    should_stop: Callable[[], bool],
    concurrent: int,
) -> tuple[SearchRecord, Path | None]:
    """Work on a search until no trial is left to take.

    Returns:
        The record of the search, and the recipe of the winner once it is complete.

    Raises:
        UsageError: optuna is not installed.
    """
    try:
        from clinpeft import search
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed",
            location="clinpeft search",
            hint='install it: pip install "clinpeft[search]"',
        ) from error
    from clinpeft.core.locks import wait_for_folder_lock
    from clinpeft.runs.searches import write_search_record

    assert plan.search is not None
    spec, base = plan.search, plan.cells[0].recipe
    space = search.build_search_space(spec, base)
    name = f"{plan.name}-{plan.search_id}"
    lock_record = partial(wait_for_folder_lock, folder, "search.lock")
    with search.open_search_storage(spec.storage, folder, name) as (storage, claims):
        with search.wrap_storage_errors(spec.storage), claims.lock_search():
            study = search.open_optuna_study(storage, name, spec)

        def copy_record() -> SearchRecord:
            # The storage may be a server; people and reports read this copy, written per trial.
            with search.wrap_storage_errors(spec.storage), lock_record():
                now = datetime.now(UTC).isoformat()
                record = search.build_search_record(study, space, plan, folder, now)
                write_search_record(record)
            return record

        search.run_search_worker(
            search.WorkerConfig(
                storage,
                study,
                claims,
                space,
                spec,
                base,
                partial(run_or_find_recipe, home=home, title=plan.name, should_stop=should_stop),
                should_stop,
                platform.node(),
                copy_record,
                concurrent,
                partial(run_recipes_jointly, home=home, title=plan.name, should_stop=should_stop),
            )
        )
        record = copy_record()
        if record.is_complete:
            record = _add_held_out(record, home)
            with lock_record():
                write_search_record(record)
        return record, search.write_winner_recipe(record, base)


def _add_held_out(record: SearchRecord, home: Path) -> SearchRecord:
    """Add the winner's results on the held-out split, where its run is in this home."""
    from clinpeft import runs, search

    if record.best_trial is None or record.best_trial.run_id is None:
        return record
    try:
        return search.add_held_out_results(record, runs.read_run(home / record.best_trial.run_id))
    except InputError:
        return record  # trained by another host, whose home holds the run


def _print_search(record: SearchRecord, winner: Path | None, home: Path) -> None:
    """Print tables and figures; a search in which every trial failed is an error."""
    from clinpeft.reports.figures.search import write_search_figures
    from clinpeft.reports.searches import build_search_table

    print_and_write_table(build_search_table(record), home, f"{record.name}-search")
    if not record.is_complete:
        ended = sum(trial.state != "open" for trial in record.trials)
        print(f"{ended} of {record.wanted} trials have ended; other workers run the rest")
    elif record.best_trial is None:
        reasons = "; ".join(sorted({trial.reason for trial in record.trials}))
        raise TrainingError(
            f"no trial has a value: {reasons}",
            location=str(record.folder),
            hint="make the space smaller, or change the recipe",
        )
    figures: tuple[Path, ...] = ()
    try:
        figures = write_search_figures(record)
    except (UsageError, InputError) as error:
        print(f"no figures: {error.message}; {error.hint}")
    for path in (winner, *figures):
        if path is not None:
            print(to_relative_path(path))
