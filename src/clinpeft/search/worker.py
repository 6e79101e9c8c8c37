"""A worker of a search: takes a trial, lets the run be made, tells the value, until nothing is left to take.

Every trial is proposed by one worker and held by one. A worker that dies lets go of its trial, and the next one that looks takes it up: the same
settings are the same run, which goes on from its last checkpoint. So no trial is lost, and none is made twice.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from clinpeft.core.errors import (
    AdapterError,
    ClinpeftError,
    InterruptedRunError,
    RecipeError,
    RefusedError,
    TrainingError,
)
from clinpeft.core.locks import is_locked_elsewhere
from clinpeft.recipe import Recipe, SearchSpec, apply_recipe_settings
from clinpeft.recipe.search import SettingValue
from clinpeft.runs import Run
from clinpeft.search.objective_value import read_objective_value
from clinpeft.search.proposals import (
    MACHINE_ATTR,
    NEWLY_TRAINED_ATTR,
    REASON_ATTR,
    REPEATS_ATTR,
    RUN_ID_ATTR,
    SECONDS_ATTR,
    find_duplicate_trial,
    get_fully_specified_trials,
    is_trial_open,
    propose_trial,
)
from clinpeft.search.space import SEARCH_SPACE_KEY, SearchSpace
from clinpeft.search.storage import TrialLocks, wrap_storage_errors

SETTINGS_ERRORS = (RecipeError, TrainingError, AdapterError, MemoryError)
"""Errors that settings can cause: the trial has failed, and the search goes on. Any other stops the worker, and leaves the trial open."""

RETRY_PAUSE_SECONDS = 1.0


TrialRun = tuple[Run, bool]
"""A finished run, and whether it was trained now."""


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker works with.

    Attributes:
        storage, study: the trials.
        trial_locks: who holds which.
        space, spec, recipe: what is varied, how, and in what.
        run_recipe: recipe -> its finished run and whether it was trained now, and was not there before.
        should_stop: whether the worker is asked to end.
        machine: the machine, for the record.
        on_trial_end: called after every trial.
        concurrent_trials: how many trials are taken at once; with ``run_recipes_jointly`` they are trained in one pass.
        run_recipes_jointly: recipes -> what ``run_recipe`` gives for each, or its error; None where these cannot be trained together.
    """

    storage: BaseStorage
    study: optuna.Study
    trial_locks: TrialLocks
    space: SearchSpace
    spec: SearchSpec
    recipe: Recipe
    run_recipe: Callable[[Recipe], TrialRun]
    should_stop: Callable[[], bool] = lambda: False
    machine: str = ""
    on_trial_end: Callable[[], object] = lambda: None
    concurrent_trials: int = 1
    run_recipes_jointly: Callable[[Sequence[Recipe]], Sequence[TrialRun | Exception] | None] = (
        lambda _: None
    )


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial in this worker's hands."""

    number: int
    settings: Mapping[str, SettingValue]


def run_search_worker(config: WorkerConfig) -> None:
    """Trial after trial until none is left that nobody holds.

    Raises:
        InterruptedRun: asked to end; the trial in hand stays open.
        StorageError: the storage cannot be used any more; the run in hand is kept, and told when it can.
        ClinpeftError: what no settings can have caused: a source that is gone, a full disk. The trial stays open.
    """
    while True:
        with contextlib.ExitStack() as held:
            with wrap_storage_errors(config.spec.storage), config.trial_locks.lock_search():
                taken = claim_trials(config, held, config.concurrent_trials)
            if not taken:
                return
            begun = time.perf_counter()
            known = _train_jointly(config, taken) if len(taken) > 1 else {}
            share = (time.perf_counter() - begun) / len(taken)
            for one in taken:
                _run_trial(config, one, known.get(one.number), share)
                config.on_trial_end()


def claim_trials(
    config: WorkerConfig, locks: contextlib.ExitStack, count: int
) -> list[ClaimedTrial]:
    """So many trials, open ones that nobody holds first, then new proposals, which know of each other; fewer where the search has no more.

    Call it while no other worker does (``Claims.alone``); the trials are this worker's until ``locks`` is closed.
    """
    taken: list[ClaimedTrial] = []
    while (
        len(taken) < count
        and (number := _claim_trial_number(config, locks, {one.number for one in taken}))
        is not None
    ):
        chosen = next(
            trial
            for trial in get_fully_specified_trials(config.study, config.space)
            if trial.number == number
        )
        taken.append(ClaimedTrial(number, config.space.to_settings(chosen.params)))
    return taken


def _claim_trial_number(
    config: WorkerConfig, locks: contextlib.ExitStack, own_numbers: set[int]
) -> int | None:
    """An open trial, held now and not before; or a new one, while the search wants more. An open trial whose earlier twin is worked on waits."""
    while True:
        trials = get_fully_specified_trials(config.study, config.space)
        for trial in (
            trial for trial in trials if is_trial_open(trial) and trial.number not in own_numbers
        ):
            earlier = find_duplicate_trial(trial, trials)
            if earlier is not None and is_trial_open(earlier):
                continue
            if locks.enter_context(config.trial_locks.try_lock_trial(trial.number)):
                return trial.number
        if len(trials) >= config.spec.trials:
            return None
        propose_trial(config.study, config.space, config.spec)


def _train_jointly(
    config: WorkerConfig, claimed_trials: Sequence[ClaimedTrial]
) -> dict[int, TrialRun | Exception]:
    """The runs of several trials, trained in one pass; none where that is not possible, or where it failed as a whole: then each is made alone, so
    that settings which spoil it for all are found."""
    try:
        made = config.run_recipes_jointly(
            [_build_trial_recipe(config, one) for one in claimed_trials]
        )
    except InterruptedRunError:
        raise
    except (*SETTINGS_ERRORS, RefusedError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError":
            raise
        return {}
    return (
        {}
        if made is None
        else {
            one.number: each
            for one, each in zip(claimed_trials, made, strict=True)
            if not isinstance(each, RefusedError)
        }
    )


def _build_trial_recipe(config: WorkerConfig, claimed_trial: ClaimedTrial) -> Recipe:
    return apply_recipe_settings(
        config.recipe,
        claimed_trial.settings,
        SEARCH_SPACE_KEY,
        name=f"{config.recipe.name} · trial {claimed_trial.number}".removeprefix(" · "),
    )


def _run_trial(
    config: WorkerConfig,
    claimed_trial: ClaimedTrial,
    joint_result: TrialRun | Exception | None,
    elapsed_seconds: float,
) -> None:
    """From settings, and what was made of them already in its share of so many seconds, to a value in the storage."""
    begun = time.perf_counter() - elapsed_seconds
    with wrap_storage_errors(config.spec.storage):
        trials = get_fully_specified_trials(config.study, config.space)
        trial = next(one for one in trials if one.number == claimed_trial.number)
        earlier = find_duplicate_trial(trial, trials)
    notes: dict[str, Any] = {MACHINE_ATTR: config.machine}
    value: float | None
    if earlier is not None and not is_trial_open(earlier):
        value, notes = _copy_duplicate_result(earlier, notes)
    else:
        value, notes = _evaluate_trial(config, claimed_trial, notes, joint_result)
    notes[SECONDS_ATTR] = round(time.perf_counter() - begun, 3)
    with wrap_storage_errors(config.spec.storage):
        _report_trial(config, trial, value, notes)


def _copy_duplicate_result(
    earlier: FrozenTrial, notes: dict[str, Any]
) -> tuple[float | None, dict[str, Any]]:
    """The same settings are the same run: its value, and nothing is trained."""
    known = {
        key: earlier.user_attrs[key]
        for key in (RUN_ID_ATTR, REASON_ATTR)
        if key in earlier.user_attrs
    }
    return earlier.value, notes | known | {
        REPEATS_ATTR: earlier.user_attrs.get(REPEATS_ATTR, earlier.number),
        NEWLY_TRAINED_ATTR: False,
    }


def _evaluate_trial(
    config: WorkerConfig,
    claimed_trial: ClaimedTrial,
    notes: dict[str, Any],
    joint_result: TrialRun | Exception | None,
) -> tuple[float | None, dict[str, Any]]:
    """The run of some settings, and its value; None with a reason where the settings are what is wrong."""
    try:
        if isinstance(joint_result, Exception):
            raise joint_result
        run, made = joint_result or _run_when_unlocked(
            config, _build_trial_recipe(config, claimed_trial)
        )
    except SETTINGS_ERRORS as error:
        return None, notes | {
            REASON_ATTR: error.message
            if isinstance(error, ClinpeftError)
            else "there was not enough memory"
        }
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which this room does not import
            raise
        return None, notes | {REASON_ATTR: "there was not enough memory on the device"}
    value = read_objective_value(run, config.spec.metric)
    notes = notes | {RUN_ID_ATTR: run.id, NEWLY_TRAINED_ATTR: made}
    if value is None or not math.isfinite(value):
        return None, notes | {REASON_ATTR: f"{config.spec.metric} is not known on the tuning split"}
    return value, notes


def _run_when_unlocked(config: WorkerConfig, recipe: Recipe) -> tuple[Run, bool]:
    """The run, once nobody else is making it."""
    while True:
        if config.should_stop():
            raise InterruptedRunError(
                "stopped between two trials",
                location=recipe.name,
                hint="give the same command to go on",
            )
        try:
            return config.run_recipe(recipe)
        except RefusedError as error:
            if not is_locked_elsewhere(error):
                raise
            while is_locked_elsewhere(error) and not config.should_stop():
                time.sleep(RETRY_PAUSE_SECONDS)


def _report_trial(
    config: WorkerConfig, trial: FrozenTrial, value: float | None, notes: dict[str, Any]
) -> None:
    """Value and notes into the storage; a trial that has ended meanwhile, because the storage lost sight of this worker, stays as it is."""
    try:
        own = config.storage.get_study_id_from_name(config.study.study_name)
        id_ = config.storage.get_trial_id_from_study_id_trial_number(
            own, trial.number
        )  # perhaps another process began it
        for key, note in notes.items():
            config.storage.set_trial_user_attr(id_, key, note)
        if value is None:
            config.study.tell(trial.number, state=TrialState.FAIL)
        else:
            config.study.tell(trial.number, value)
    except optuna.exceptions.UpdateFinishedTrialError:
        return
