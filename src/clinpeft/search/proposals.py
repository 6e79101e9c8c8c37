"""What is tried next, by optuna's samplers: drawn anew for every trial, from the seed of the search and the number of the trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from clinpeft.recipe import SearchSpec
from clinpeft.search.space import SearchSpace

OPTUNA_SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "gp": lambda seed, startup: GPSampler(
        seed=seed, n_startup_trials=startup, warn_independent_sampling=False
    ),
    "tpe": lambda seed, startup: TPESampler(seed=seed, n_startup_trials=startup),
    "random": lambda seed, startup: RandomSampler(seed=seed),  # noqa: ARG005
}
"""(seed, random trials first) -> sampler. ``gp`` is a Matérn 5/2 process with log expected improvement, over those that are running too."""

REASON_ATTR, RUN_ID_ATTR, REPEATS_ATTR, SECONDS_ATTR, NEWLY_TRAINED_ATTR, MACHINE_ATTR = (
    "reason",
    "run_id",
    "repeats",
    "seconds",
    "made",
    "where",
)
"""What is noted on a trial."""


def open_optuna_study(storage: BaseStorage, name: str, spec: SearchSpec) -> optuna.Study:
    """The search in its storage, made by whoever comes first."""
    return optuna.create_study(
        storage=storage, study_name=name, direction=spec.direction, load_if_exists=True
    )


def propose_trial(study: optuna.Study, space: SearchSpace, spec: SearchSpec) -> int:
    """One proposal more, by its number; call it several times before any is measured, and they differ as those of several workers do."""
    known = study.get_trials(deepcopy=False)
    digest = hashlib.sha256(f"{spec.seed}/{len(known)}".encode()).digest()
    study.sampler = OPTUNA_SAMPLERS[spec.sampler](int.from_bytes(digest[:4]), spec.startup)
    return study.ask(fixed_distributions=space.distributions).number


def get_fully_specified_trials(study: optuna.Study, space: SearchSpace) -> list[FrozenTrial]:
    """The trials that have a value for every key, in the order of their numbers."""
    return [trial for trial in study.get_trials(deepcopy=False) if space.covers(trial.params)]


def find_duplicate_trial(trial: FrozenTrial, trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The first earlier trial with the same values, if there is one."""
    return next(
        (other for other in trials if other.number < trial.number and other.params == trial.params),
        None,
    )


def is_trial_open(trial: FrozenTrial) -> bool:
    """Whether it was proposed and has not ended."""
    return trial.state == TrialState.RUNNING
