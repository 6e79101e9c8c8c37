"""Proposals of trials by optuna's samplers, seeded by the search and the number of the trial."""

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
"""(seed, number of random trials first) -> sampler. ``gp`` is a Gaussian process with Matérn 5/2
kernel and log expected improvement (Ament et al. 2023), conditioned on running trials too; ``tpe``
the tree-structured Parzen estimator (Bergstra et al. 2011)."""

# Names of the attributes of a trial in the storage.
REASON_ATTR, RUN_ID_ATTR, REPEATS_ATTR = "reason", "run_id", "repeats"
SECONDS_ATTR, NEWLY_TRAINED_ATTR, MACHINE_ATTR = "seconds", "made", "where"


def open_optuna_study(storage: BaseStorage, name: str, spec: SearchSpec) -> optuna.Study:
    """Open the study of a search in its storage; the first process creates it."""
    return optuna.create_study(
        storage=storage, study_name=name, direction=spec.direction, load_if_exists=True
    )


def propose_trial(study: optuna.Study, space: SearchSpace, spec: SearchSpec) -> int:
    """Add a proposal to the storage.

    Several proposals before any has a value differ as those of several workers do.

    Returns:
        The number of the trial.
    """
    # A new sampler for every trial, so that a proposal depends on the seed and the earlier trials
    # only, and not on which worker makes it.
    trial_count = len(study.get_trials(deepcopy=False))
    digest = hashlib.sha256(f"{spec.seed}/{trial_count}".encode()).digest()
    study.sampler = OPTUNA_SAMPLERS[spec.sampler](int.from_bytes(digest[:4]), spec.startup)
    return study.ask(fixed_distributions=space.distributions).number


def get_fully_specified_trials(study: optuna.Study, space: SearchSpace) -> list[FrozenTrial]:
    """The trials that have a value for every key, in the order of their numbers."""
    # deepcopy=False: trials are read only, and there may be thousands.
    return [trial for trial in study.get_trials(deepcopy=False) if space.covers(trial.params)]


def find_duplicate_trial(trial: FrozenTrial, trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Find the first earlier trial with the same values; None where there is none."""
    return next(
        (other for other in trials if other.number < trial.number and other.params == trial.params),
        None,
    )


def is_trial_open(trial: FrozenTrial) -> bool:
    """Whether a trial was proposed and has not ended."""
    return trial.state == TrialState.RUNNING
