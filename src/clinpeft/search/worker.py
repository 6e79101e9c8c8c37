"""A worker of a search: claims a trial, runs it, reports its value, until no trial is left.

Every trial is proposed by one worker and locked by one. The lock of a worker that dies is released,
and the next worker resumes its trial: the same settings are the same run, which continues from its
last checkpoint. So no trial is lost, and none is trained twice.
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
"""Errors that settings can cause: the trial has failed, and the search continues. Any other error
stops the worker, and leaves the trial open."""

RETRY_PAUSE_SECONDS = 1.0

TrialRun = tuple[Run, bool]
"""A finished run, and whether it was trained now."""


@dataclass(frozen=True)
class WorkerConfig:
    """The configuration of a worker.

    Attributes:
        storage, study: the trials.
        trial_locks: of the trials.
        space, spec, recipe: what is varied, how, and in which recipe.
        run_recipe: recipe -> its finished run, and whether it was trained now and did not exist
            before.
        should_stop: whether the worker is to end.
        machine: name of the machine, for the record.
        on_trial_end: called after every trial.
        concurrent_trials: number of trials that are claimed at once; with ``run_recipes_jointly``
            they are trained in one pass.
        run_recipes_jointly: recipes -> the result of ``run_recipe`` for each, or its error; None
            where these cannot be trained in one pass.
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
    """A trial that this worker has locked."""

    number: int
    settings: Mapping[str, SettingValue]


def run_search_worker(config: WorkerConfig) -> None:
    """Run trials until none is left that is not locked by another worker.

    Raises:
        InterruptedRunError: stopped; the current trial stays open.
        StorageError: the storage can no longer be used; the current run is kept, and its value is
            reported when the command is given again.
        ClinpeftError: an error that no settings can have caused: a source that is gone, a full
            disk. The trial stays open.
    """
    while True:
        with contextlib.ExitStack() as locks:
            with wrap_storage_errors(config.spec.storage), config.trial_locks.lock_search():
                claimed = claim_trials(config, locks, config.concurrent_trials)
            if not claimed:
                return
            # Joint training is shared by its trials: each gets an equal part of the time.
            started = time.perf_counter()
            joint_results = _run_jointly(config, claimed) if len(claimed) > 1 else {}
            share_seconds = (time.perf_counter() - started) / len(claimed)
            for trial in claimed:
                _run_trial(config, trial, joint_results.get(trial.number), share_seconds)
                config.on_trial_end()


def claim_trials(
    config: WorkerConfig, locks: contextlib.ExitStack, count: int
) -> list[ClaimedTrial]:
    """Claim open trials that are not locked, then new proposals, which depend on each other.

    An open trial waits while an earlier one with the same settings is open: they share a run. Call
    it within ``TrialLocks.lock_search``; the trials are locked until ``locks`` is closed.

    Args:
        config: of the worker.
        locks: holds the locks of the claimed trials.
        count: number of trials; fewer where the search has no more.
    """
    claimed: list[ClaimedTrial] = []
    while len(claimed) < count:
        numbers = {trial.number for trial in claimed}
        # Read again in each round: other workers add trials and end them.
        trials = get_fully_specified_trials(config.study, config.space)
        for trial in trials:
            if not is_trial_open(trial) or trial.number in numbers:
                continue
            earlier = find_duplicate_trial(trial, trials)
            if earlier is not None and is_trial_open(earlier):
                continue
            if locks.enter_context(config.trial_locks.try_lock_trial(trial.number)):
                settings = config.space.to_settings(trial.params)
                claimed.append(ClaimedTrial(trial.number, settings))
                break
        else:  # no open trial could be locked
            if len(trials) >= config.spec.trials:
                break
            propose_trial(config.study, config.space, config.spec)
    return claimed


def _run_jointly(
    config: WorkerConfig, claimed_trials: Sequence[ClaimedTrial]
) -> dict[int, TrialRun | Exception]:
    """The runs of several trials, trained in one pass, by trial number.

    Empty where that is not possible, or where it failed as a whole: then each is trained alone, so
    that the settings which cause the error are identified.
    """
    recipes = [_build_trial_recipe(config, trial) for trial in claimed_trials]
    try:
        results = config.run_recipes_jointly(recipes)
    except InterruptedRunError:
        raise
    except (*SETTINGS_ERRORS, RefusedError, RuntimeError) as error:
        # torch.OutOfMemoryError is a RuntimeError; this package does not import torch.
        if isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError":
            raise
        return {}
    if results is None:
        return {}
    return {
        trial.number: result
        for trial, result in zip(claimed_trials, results, strict=True)
        if not isinstance(result, RefusedError)  # locked by another process: run alone, it waits
    }


def _build_trial_recipe(config: WorkerConfig, claimed_trial: ClaimedTrial) -> Recipe:
    # The name is not part of a run's id: equal settings stay one run.
    name = f"{config.recipe.name} · trial {claimed_trial.number}".removeprefix(" · ")
    return apply_recipe_settings(config.recipe, claimed_trial.settings, SEARCH_SPACE_KEY, name=name)


def _run_trial(
    config: WorkerConfig,
    claimed_trial: ClaimedTrial,
    joint_result: TrialRun | Exception | None,
    elapsed_seconds: float,
) -> None:
    """Evaluate a trial, whose run took so many seconds already, and report its value."""
    started = time.perf_counter() - elapsed_seconds
    # The storage is not held open while a run trains, which can take days.
    with wrap_storage_errors(config.spec.storage):
        trials = get_fully_specified_trials(config.study, config.space)
        trial = next(trial for trial in trials if trial.number == claimed_trial.number)
        earlier = find_duplicate_trial(trial, trials)
    attributes: dict[str, Any] = {MACHINE_ATTR: config.machine}
    value: float | None
    if earlier is not None and not is_trial_open(earlier):
        # The same settings are the same run: its value is copied, and nothing is trained.
        value = earlier.value
        copied = [key for key in (RUN_ID_ATTR, REASON_ATTR) if key in earlier.user_attrs]
        attributes |= {key: earlier.user_attrs[key] for key in copied}
        attributes[REPEATS_ATTR] = earlier.user_attrs.get(REPEATS_ATTR, earlier.number)
        attributes[NEWLY_TRAINED_ATTR] = False
    else:
        value, result = _evaluate_trial(config, claimed_trial, joint_result)
        attributes |= result
    # Wall clock, of this attempt only.
    attributes[SECONDS_ATTR] = round(time.perf_counter() - started, 3)
    with wrap_storage_errors(config.spec.storage):
        _report_trial(config, trial, value, attributes)


def _evaluate_trial(
    config: WorkerConfig,
    claimed_trial: ClaimedTrial,
    joint_result: TrialRun | Exception | None,
) -> tuple[float | None, dict[str, Any]]:
    """The value of a trial and its attributes; None with a reason where the settings are at
    fault."""
    try:
        if isinstance(joint_result, Exception):
            raise joint_result
        recipe = _build_trial_recipe(config, claimed_trial)
        run, is_newly_trained = joint_result or _run_when_unlocked(config, recipe)
    except SETTINGS_ERRORS as error:
        if isinstance(error, ClinpeftError):
            return None, {REASON_ATTR: error.message}
        return None, {REASON_ATTR: "there was not enough memory"}
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, see _run_jointly
            raise
        return None, {REASON_ATTR: "there was not enough memory on the device"}
    # An unknown metric is the user's error and stops the worker: no settings can cause it.
    value = read_objective_value(run, config.spec.metric)
    attributes = {RUN_ID_ATTR: run.id, NEWLY_TRAINED_ATTR: is_newly_trained}
    if value is None or not math.isfinite(value):
        reason = f"{config.spec.metric} is not known on the tuning split"
        return None, attributes | {REASON_ATTR: reason}
    return value, attributes


def _run_when_unlocked(config: WorkerConfig, recipe: Recipe) -> TrialRun:
    """The run of a recipe, after waiting for another process that is running it."""
    while True:
        if config.should_stop():
            raise InterruptedRunError(
                "stopped between two trials",
                location=recipe.name,
                hint="give the same command to resume",
            )
        try:
            return config.run_recipe(recipe)
        except RefusedError as error:
            if not is_locked_elsewhere(error):
                raise
            # The run continues in the other process; its result is the same.
            while is_locked_elsewhere(error) and not config.should_stop():
                time.sleep(RETRY_PAUSE_SECONDS)


def _report_trial(
    config: WorkerConfig, trial: FrozenTrial, value: float | None, attributes: dict[str, Any]
) -> None:
    """Write value and attributes to the storage.

    A trial that has ended meanwhile, because the storage lost its worker, stays as it is.
    """
    try:
        # Ids are looked up again: another process may have proposed the trial.
        study_id = config.storage.get_study_id_from_name(config.study.study_name)
        trial_id = config.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        for key, attribute in attributes.items():
            config.storage.set_trial_user_attr(trial_id, key, attribute)
        if value is None:
            config.study.tell(trial.number, state=TrialState.FAIL)
        else:
            config.study.tell(trial.number, value)
    except optuna.exceptions.UpdateFinishedTrialError:
        return
