"""What a search has found: its trials as a record, the winner as a recipe that runs again, and which keys mattered."""

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
from clinpeft.search.objective_value import TRAINED_MODEL_GROUP
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

MIN_IMPORTANCE_TRIALS = 4  # trials, below which shares of variance say nothing
WINNER_SPLIT = "held_out"
TRIAL_STATE_NAMES: dict[TrialState, Literal["open", "finished", "failed"]] = {
    TrialState.COMPLETE: "finished",
    TrialState.FAIL: "failed",
}


def build_search_record(
    study: optuna.Study, space: SearchSpace, plan: RecipePlan, folder: Path, updated: str
) -> SearchRecord:
    """The search as its storage knows it.

    Args:
        study: with its trials.
        space: of the search.
        plan: the recipe file.
        folder: of the search.
        updated: ISO time.
    """
    assert plan.search is not None
    kept = get_fully_specified_trials(study, space)
    trials = tuple(_build_trial(trial, space) for trial in kept)
    is_open = len(trials) < plan.search.trials or any(trial.state == "open" for trial in trials)
    importance, by = (
        ({}, "unknown: trials are open")
        if is_open
        else _compute_importance(study, kept, plan.search.seed)
    )
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
        trials=trials,
        winner=_find_winner(trials, plan.search.direction),
        importance=importance,
        importance_by=by,
    )


def write_winner_recipe(search: SearchRecord, recipe: Recipe) -> Path | None:
    """The winner's recipe, every default written out, as ``winner.toml`` beside the record; None while there is no winner.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    if search.best_trial is None:
        return None
    path = search.folder / WINNER_RECIPE_FILE
    name = f"{search.name} · winner"
    write_file_atomically(
        path,
        format_recipe_toml(
            apply_recipe_settings(recipe, search.best_trial.settings, SEARCH_SPACE_KEY, name=name)
        ),
    )
    return path


def add_held_out_results(search: SearchRecord, run: Run) -> SearchRecord:
    """The search with what its winner reached on the held-out split: looked at once, when nothing is chosen any more."""
    rows = run.results.filter(
        pc.and_(
            pc.equal(run.results["split"], WINNER_SPLIT),
            pc.equal(run.results["group"], TRAINED_MODEL_GROUP[search.kind]),
        )
    )
    return dataclasses.replace(search, held_out=tuple(rows.to_pylist()))


def _build_trial(trial: FrozenTrial, space: SearchSpace) -> Trial:
    notes: dict[str, Any] = trial.user_attrs
    return Trial(
        number=trial.number,
        state=TRIAL_STATE_NAMES.get(trial.state, "open"),
        settings=space.to_settings(trial.params),
        value=trial.value,
        run_id=notes.get(RUN_ID_ATTR),
        made=notes.get(NEWLY_TRAINED_ATTR),
        repeats=notes.get(REPEATS_ATTR),
        reason=notes.get(REASON_ATTR, ""),
        seconds=notes.get(SECONDS_ATTR),
        where=notes.get(MACHINE_ATTR, ""),
    )


def _find_winner(trials: Sequence[Trial], direction: str) -> int | None:
    """The best trial, the first of several that are equally good."""
    known = [
        (trial.value, trial.number)
        for trial in trials
        if trial.state == "finished" and trial.value is not None
    ]
    sign = -1 if direction == "maximize" else 1
    return min(known, key=lambda one: (sign * one[0], one[1]))[1] if known else None


def _compute_importance(
    study: optuna.Study, trials: Sequence[FrozenTrial], seed: int
) -> tuple[dict[str, float], str]:
    """Shares of the variance of the values by a random forest's main effects and interactions (functional ANOVA, Hutter et al. 2014)."""
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
    if len(values) < MIN_IMPORTANCE_TRIALS:
        return (
            {},
            f"unknown: {len(values)} trials have a value, and shares of their variance need {MIN_IMPORTANCE_TRIALS}",
        )
    if len(set(values)) == 1:
        return {}, "unknown: every trial has the same value"
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return {
        key: float(share) for key, share in shares.items()
    }, f"functional ANOVA (Hutter et al. 2014) over {len(values)} trials"
