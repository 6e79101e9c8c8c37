"""The outcome of a search: its record, the winner's recipe, and the importance of the keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
import pyarrow.compute as pc
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from clinpeft.recipe import Recipe, RecipePlan, apply_recipe_settings, format_recipe_toml
from clinpeft.runs import Run, write_file_atomically
from clinpeft.runs.searches import WINNER_RECIPE_FILE, SearchRecord, Trial
from clinpeft.search.objective_value import get_trained_state
from clinpeft.search.proposals import (
    MACHINE_ATTR,
    NEWLY_TRAINED_ATTR,
    REASON_ATTR,
    REPEATS_ATTR,
    RUN_ID_ATTR,
    SECONDS_ATTR,
    get_fully_specified_trials,
)
from clinpeft.search.space import SEARCH_SPACE_KEY, SearchSpace

MIN_IMPORTANCE_TRIALS = 4  # with fewer trials, shares of variance mean nothing
WINNER_SPLIT = "held_out"
TRIAL_STATE_NAMES: dict[TrialState, Literal["open", "finished", "failed"]] = {
    TrialState.COMPLETE: "finished",
    TrialState.FAIL: "failed",
}


def build_search_record(
    study: optuna.Study, space: SearchSpace, plan: RecipePlan, folder: Path, updated: str
) -> SearchRecord:
    """Build the record of a search from its storage.

    The winner is the best finished trial, the first of several that are equally good.

    Args:
        study: with its trials.
        space: of the search.
        plan: the recipe file.
        folder: of the search.
        updated: ISO time.
    """
    assert plan.search is not None
    # Trials without a value for every key were cut off by a crash, and count nowhere.
    stored_trials = get_fully_specified_trials(study, space)
    trials = []
    for stored in stored_trials:
        attributes: dict[str, Any] = stored.user_attrs
        trials.append(
            Trial(
                number=stored.number,
                state=TRIAL_STATE_NAMES.get(stored.state, "open"),
                settings=space.to_settings(stored.params),
                value=stored.value,
                run_id=attributes.get(RUN_ID_ATTR),
                newly_trained=attributes.get(NEWLY_TRAINED_ATTR),
                repeats=attributes.get(REPEATS_ATTR),
                reason=attributes.get(REASON_ATTR, ""),
                seconds=attributes.get(SECONDS_ATTR),
                where=attributes.get(MACHINE_ATTR, ""),
            )
        )
    # Smaller is better for all below; the number breaks ties.
    sign = -1 if plan.search.direction == "maximize" else 1
    ranked = [
        (sign * trial.value, trial.number)
        for trial in trials
        if trial.state == "finished" and trial.value is not None
    ]
    # Importance over part of the trials would change with every trial.
    is_open = len(trials) < plan.search.trials or any(trial.state == "open" for trial in trials)
    importance: dict[str, float] = {}
    method = "unknown: trials are open"
    if not is_open:
        importance, method = _compute_importance(study, stored_trials, plan.search.seed)
    return SearchRecord(
        folder=folder,
        id=plan.search_id,
        name=plan.name,
        kind=plan.kind,
        recipe=str(plan.path),
        recipe_sha256=plan.file_sha256,
        updated=updated,
        metric=plan.search.metric,
        direction=plan.search.direction,
        sampler=plan.search.sampler,
        wanted=plan.search.trials,
        trials=tuple(trials),
        winner=min(ranked)[1] if ranked else None,
        importance=importance,
        importance_by=method,
    )


def write_winner_recipe(search: SearchRecord, recipe: Recipe) -> Path | None:
    """Write the winner's recipe with all defaults as ``winner.toml``; None without a winner.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    if search.best_trial is None:
        return None
    # The winner's recipe is a file that runs by itself, without the search.
    path, name = search.folder / WINNER_RECIPE_FILE, f"{search.name} · winner"
    settings = search.best_trial.settings
    winner = apply_recipe_settings(recipe, settings, SEARCH_SPACE_KEY, name=name)
    write_file_atomically(path, format_recipe_toml(winner))
    return path


def add_held_out_results(search: SearchRecord, run: Run) -> SearchRecord:
    """Add the winner's results on the held-out split, which is evaluated once, after all
    choices."""
    results = run.results
    is_winner_row = pc.and_(
        pc.equal(results["split"], WINNER_SPLIT),
        pc.equal(results["group"], get_trained_state(run.recipe)),
    )
    return dataclasses.replace(search, held_out=tuple(results.filter(is_winner_row).to_pylist()))


def _compute_importance(
    study: optuna.Study, trials: Sequence[FrozenTrial], seed: int
) -> tuple[dict[str, float], str]:
    """Shares of the variance of the values by key, and the method.

    Functional ANOVA: main effects and interactions of a random forest (Hutter, Hoos and
    Leyton-Brown 2014).
    """
    # Failed trials have no value and no share in the variance.
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
    if len(values) < MIN_IMPORTANCE_TRIALS:
        return {}, (
            f"unknown: {len(values)} trials have a value, and shares of their variance need "
            f"{MIN_IMPORTANCE_TRIALS}"
        )
    if len(set(values)) == 1:
        return {}, "unknown: every trial has the same value"
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    method = f"functional ANOVA (Hutter et al. 2014) over {len(values)} trials"
    return {key: float(share) for key, share in shares.items()}, method
