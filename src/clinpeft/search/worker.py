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
    InterruptedRun,
    RecipeError,
    RefusedError,
    TrainingError,
)
from clinpeft.core.locks import made_elsewhere
from clinpeft.recipe import Recipe, SearchSpec, varied
from clinpeft.recipe.search import Setting
from clinpeft.runs import Run
from clinpeft.search.objective_value import measured
from clinpeft.search.proposals import (
    FAILED_REASON,
    MADE,
    REPEATS,
    RUN,
    SECONDS,
    WHERE,
    is_open,
    propose,
    twin,
    whole,
)
from clinpeft.search.space import PLACE, Space
from clinpeft.search.storage import Claims, reached

OF_THE_PROPOSAL = (RecipeError, TrainingError, AdapterError, MemoryError)
"""Errors that settings can cause: the trial has failed, and the search goes on. Any other stops the worker, and leaves the trial open."""

PAUSE_SECONDS = 1.0


Made = tuple[Run, bool]
"""A finished run, and whether it was trained now."""


@dataclass(frozen=True)
class Bench:
    """What a worker works with.

    Attributes:
        storage, study: the trials.
        claims: who holds which.
        space, spec, recipe: what is varied, how, and in what.
        make: recipe -> its finished run and whether it was trained now, and was not there before.
        stopping: whether the worker is asked to end.
        where: the machine, for the record.
        told: called after every trial.
        concurrent: how many trials are taken at once; with ``make_together`` they are trained in one pass.
        make_together: recipes -> what ``make`` gives for each, or its error; None where these cannot be trained together.
    """

    storage: BaseStorage
    study: optuna.Study
    claims: Claims
    space: Space
    spec: SearchSpec
    recipe: Recipe
    make: Callable[[Recipe], Made]
    stopping: Callable[[], bool] = lambda: False
    where: str = ""
    told: Callable[[], None] = lambda: None
    concurrent: int = 1
    make_together: Callable[[Sequence[Recipe]], Sequence[Made | Exception] | None] = lambda _: None


@dataclass(frozen=True)
class Taken:
    """A trial in this worker's hands."""

    number: int
    settings: Mapping[str, Setting]


def work(bench: Bench) -> None:
    """Trial after trial until none is left that nobody holds.

    Raises:
        InterruptedRun: asked to end; the trial in hand stays open.
        StorageError: the storage cannot be used any more; the run in hand is kept, and told when it can.
        ClinpeftError: what no settings can have caused: a source that is gone, a full disk. The trial stays open.
    """
    while True:
        with contextlib.ExitStack() as held:
            with reached(bench.spec.storage), bench.claims.alone():
                taken = take(bench, held, bench.concurrent)
            if not taken:
                return
            begun = time.perf_counter()
            known = _made_together(bench, taken) if len(taken) > 1 else {}
            share = (time.perf_counter() - begun) / len(taken)
            for one in taken:
                _perform(bench, one, known.get(one.number), share)
                bench.told()


def take(bench: Bench, held: contextlib.ExitStack, count: int) -> list[Taken]:
    """So many trials, open ones that nobody holds first, then new proposals, which know of each other; fewer where the search has no more.

    Call it while no other worker does (``Claims.alone``); the trials are this worker's until ``held`` is closed.
    """
    taken: list[Taken] = []
    while (
        len(taken) < count
        and (number := _open_one(bench, held, {one.number for one in taken})) is not None
    ):
        chosen = next(trial for trial in whole(bench.study, bench.space) if trial.number == number)
        taken.append(Taken(number, bench.space.settings(chosen.params)))
    return taken


def _open_one(bench: Bench, held: contextlib.ExitStack, mine: set[int]) -> int | None:
    """An open trial, held now and not before; or a new one, while the search wants more. An open trial whose earlier twin is worked on waits."""
    while True:
        trials = whole(bench.study, bench.space)
        for trial in (trial for trial in trials if is_open(trial) and trial.number not in mine):
            earlier = twin(trial, trials)
            if earlier is not None and is_open(earlier):
                continue
            if held.enter_context(bench.claims.held(trial.number)):
                return trial.number
        if len(trials) >= bench.spec.trials:
            return None
        propose(bench.study, bench.space, bench.spec)


def _made_together(bench: Bench, taken: Sequence[Taken]) -> dict[int, Made | Exception]:
    """The runs of several trials, trained in one pass; none where that is not possible, or where it failed as a whole: then each is made alone, so
    that settings which spoil it for all are found."""
    try:
        made = bench.make_together([_recipe(bench, one) for one in taken])
    except InterruptedRun:
        raise
    except (*OF_THE_PROPOSAL, RefusedError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError":
            raise
        return {}
    return (
        {}
        if made is None
        else {
            one.number: each
            for one, each in zip(taken, made, strict=True)
            if not isinstance(each, RefusedError)
        }
    )


def _recipe(bench: Bench, taken: Taken) -> Recipe:
    return varied(
        bench.recipe,
        taken.settings,
        PLACE,
        name=f"{bench.recipe.name} · trial {taken.number}".removeprefix(" · "),
    )


def _perform(bench: Bench, taken: Taken, known: Made | Exception | None, seconds: float) -> None:
    """From settings, and what was made of them already in its share of so many seconds, to a value in the storage."""
    begun = time.perf_counter() - seconds
    with reached(bench.spec.storage):
        trials = whole(bench.study, bench.space)
        trial = next(one for one in trials if one.number == taken.number)
        earlier = twin(trial, trials)
    notes: dict[str, Any] = {WHERE: bench.where}
    value: float | None
    if earlier is not None and not is_open(earlier):
        value, notes = _as_before(earlier, notes)
    else:
        value, notes = _made(bench, taken, notes, known)
    notes[SECONDS] = round(time.perf_counter() - begun, 3)
    with reached(bench.spec.storage):
        _tell(bench, trial, value, notes)


def _as_before(earlier: FrozenTrial, notes: dict[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """The same settings are the same run: its value, and nothing is trained."""
    known = {
        key: earlier.user_attrs[key] for key in (RUN, FAILED_REASON) if key in earlier.user_attrs
    }
    return earlier.value, notes | known | {
        REPEATS: earlier.user_attrs.get(REPEATS, earlier.number),
        MADE: False,
    }


def _made(
    bench: Bench, taken: Taken, notes: dict[str, Any], known: Made | Exception | None
) -> tuple[float | None, dict[str, Any]]:
    """The run of some settings, and its value; None with a reason where the settings are what is wrong."""
    try:
        if isinstance(known, Exception):
            raise known
        run, made = known or _patiently(bench, _recipe(bench, taken))
    except OF_THE_PROPOSAL as error:
        return None, notes | {
            FAILED_REASON: error.message
            if isinstance(error, ClinpeftError)
            else "there was not enough memory"
        }
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which this room does not import
            raise
        return None, notes | {FAILED_REASON: "there was not enough memory on the device"}
    value = measured(run, bench.spec.metric)
    notes = notes | {RUN: run.id, MADE: made}
    if value is None or not math.isfinite(value):
        return None, notes | {
            FAILED_REASON: f"{bench.spec.metric} is not known on the tuning split"
        }
    return value, notes


def _patiently(bench: Bench, recipe: Recipe) -> tuple[Run, bool]:
    """The run, once nobody else is making it."""
    while True:
        if bench.stopping():
            raise InterruptedRun(
                "stopped between two trials",
                location=recipe.name,
                hint="give the same command to go on",
            )
        try:
            return bench.make(recipe)
        except RefusedError as error:
            if not made_elsewhere(error):
                raise
            while made_elsewhere(error) and not bench.stopping():
                time.sleep(PAUSE_SECONDS)


def _tell(bench: Bench, trial: FrozenTrial, value: float | None, notes: dict[str, Any]) -> None:
    """Value and notes into the storage; a trial that has ended meanwhile, because the storage lost sight of this worker, stays as it is."""
    try:
        own = bench.storage.get_study_id_from_name(bench.study.study_name)
        id_ = bench.storage.get_trial_id_from_study_id_trial_number(
            own, trial.number
        )  # perhaps another process began it
        for key, note in notes.items():
            bench.storage.set_trial_user_attr(id_, key, note)
        if value is None:
            bench.study.tell(trial.number, state=TrialState.FAIL)
        else:
            bench.study.tell(trial.number, value)
    except optuna.exceptions.UpdateFinishedTrialError:
        return
