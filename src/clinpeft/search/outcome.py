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

from clinpeft.recipe import Plan, Recipe, as_toml, varied
from clinpeft.runs import Run, write_atomically
from clinpeft.runs.searches import WINNER, Search, Trial
from clinpeft.search.objective_value import TRAINED
from clinpeft.search.proposals import FAILED_REASON, MADE, REPEATS, RUN, SECONDS, WHERE, whole
from clinpeft.search.space import PLACE, Space

FEWEST = 4  # trials, below which shares of variance say nothing
HELD_OUT = "held_out"
STATES: dict[TrialState, Literal["open", "finished", "failed"]] = {
    TrialState.COMPLETE: "finished",
    TrialState.FAIL: "failed",
}


def found(study: optuna.Study, space: Space, asked: Plan, folder: Path, updated: str) -> Search:
    """The search as its storage knows it.

    Args:
        study: with its trials.
        space: of the search.
        asked: the recipe file.
        folder: of the search.
        updated: ISO time.
    """
    assert asked.search is not None
    kept = whole(study, space)
    trials = tuple(_trial(trial, space) for trial in kept)
    is_open = len(trials) < asked.search.trials or any(trial.state == "open" for trial in trials)
    importance, by = (
        ({}, "unknown: trials are open") if is_open else _importance(study, kept, asked.search.seed)
    )
    return Search(
        folder=folder,
        id=asked.search_id,
        name=asked.name,
        kind=asked.kind,
        recipe=str(asked.path),
        recipe_sha256=asked.sha256,
        updated=updated,
        metric=asked.search.metric,
        direction=asked.search.direction,
        sampler=asked.search.sampler,
        wanted=asked.search.trials,
        trials=trials,
        winner=_winner(trials, asked.search.direction),
        importance=importance,
        importance_by=by,
    )


def write_winner(search: Search, recipe: Recipe) -> Path | None:
    """The winner's recipe, every default written out, as ``winner.toml`` beside the record; None while there is no winner.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    if search.best is None:
        return None
    path = search.folder / WINNER
    name = f"{search.name} · winner"
    write_atomically(path, as_toml(varied(recipe, search.best.settings, PLACE, name=name)))
    return path


def with_held_out(search: Search, run: Run) -> Search:
    """The search with what its winner reached on the held-out split: looked at once, when nothing is chosen any more."""
    rows = run.results.filter(
        pc.and_(
            pc.equal(run.results["split"], HELD_OUT),
            pc.equal(run.results["group"], TRAINED[search.kind]),
        )
    )
    return dataclasses.replace(search, held_out=tuple(rows.to_pylist()))


def _trial(trial: FrozenTrial, space: Space) -> Trial:
    notes: dict[str, Any] = trial.user_attrs
    return Trial(
        number=trial.number,
        state=STATES.get(trial.state, "open"),
        settings=space.settings(trial.params),
        value=trial.value,
        run_id=notes.get(RUN),
        made=notes.get(MADE),
        repeats=notes.get(REPEATS),
        reason=notes.get(FAILED_REASON, ""),
        seconds=notes.get(SECONDS),
        where=notes.get(WHERE, ""),
    )


def _winner(trials: Sequence[Trial], direction: str) -> int | None:
    """The best trial, the first of several that are equally good."""
    known = [
        (trial.value, trial.number)
        for trial in trials
        if trial.state == "finished" and trial.value is not None
    ]
    sign = -1 if direction == "maximize" else 1
    return min(known, key=lambda one: (sign * one[0], one[1]))[1] if known else None


def _importance(
    study: optuna.Study, trials: Sequence[FrozenTrial], seed: int
) -> tuple[dict[str, float], str]:
    """Shares of the variance of the values by a random forest's main effects and interactions (functional ANOVA, Hutter et al. 2014)."""
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
    if len(values) < FEWEST:
        return (
            {},
            f"unknown: {len(values)} trials have a value, and shares of their variance need {FEWEST}",
        )
    if len(set(values)) == 1:
        return {}, "unknown: every trial has the same value"
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return {
        key: float(share) for key, share in shares.items()
    }, f"functional ANOVA (Hutter et al. 2014) over {len(values)} trials"
