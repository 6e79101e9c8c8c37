"""Differential privacy by subject: any course, with the gradients of subjects drawn at random clipped, added up and drowned in noise.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133) with whole subjects in the place of single examples (McMahan et al. 2018, arXiv 1710.06963): all that a
subject has in a step counts as one gradient, so that nobody is better protected by writing less. Every subject has a backward pass of its own, since
the functions of ``adapters.fused`` have no place for the hooks that take single gradients out of one pass; that is exact, and slower.

Neighbours are data sets that differ by one training subject. The number of training subjects, and all that was fixed before training, count as known.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.core.errors import InputError, TrainingError, UsageError
from clinpeft.recipe import DifferentialPrivacySpec, OptimizationSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training.trainer import WEIGHT_CHANGE_CHECK_STEPS, Trainable, count_total_steps

SAMPLING_STREAM, NOISE_STREAM = 1, 2
"""What a draw is for, so that no two draws of a run share their numbers."""

EPSILON_TOLERANCE = 0.01
"""The noise is chosen so that the privacy that is spent is at most this share below what was asked."""

RENYI_ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(12, 64),
    80,
    96,
    128,
    192,
    256,
    384,
    512,
)
"""Of the Rényi divergence; the large ones are those of a small epsilon."""

SubjectArray = npt.NDArray[Any]
"""(items,) who each item of a course is about."""


@dataclass(frozen=True)
class PrivacyMechanism:
    """What happens in every step, which decides what is spent.

    Attributes:
        epsilon, delta: as asked.
        clip_norm: the largest gradient of one subject.
        noise_multiplier: standard deviation of the noise on the sum, over ``clip_norm``.
        sampling_rate: probability with which a step draws a subject.
        subjects: of the training split.
        subjects_per_step: expected; what the noised sum is divided by.
        steps: of the whole run.
        most_items: the largest number of documents or windows that one subject has; nothing is cut off.
    """

    epsilon: float
    delta: float
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    subjects: int
    subjects_per_step: int
    steps: int
    most_items: int


@dataclass
class ClippingStats:
    """What was seen since this process began; not private, and no part of what may leave.

    Attributes:
        sampled_subjects: subjects, each counted in every step that drew it.
        clipped_subjects: those of them whose gradient was scaled down.
    """

    sampled_subjects: int = 0
    clipped_subjects: int = 0


# ------------------------------------------------------------------------------------------------------------------------------ accounting


def compute_noise_multiplier(
    epsilon: float, delta: float, sampling_rate: float, steps: int
) -> float:
    """The least noise with which so many steps spend at most epsilon, and at least 0.995 of it, by Rényi divergence (Mironov et al. 2019, arXiv
    1908.10530).

    Raises:
        UsageError: opacus is not installed, or no noise is enough.
    """
    _, search = _import_opacus()
    asked = {
        "target_epsilon": epsilon,
        "target_delta": delta,
        "sample_rate": sampling_rate,
        "steps": steps,
        "alphas": RENYI_ORDERS,
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that the best order is the first or the last, which is tight enough here
        try:
            return float(
                search(**asked, accountant="rdp", epsilon_tolerance=EPSILON_TOLERANCE / 2 * epsilon)
            )
        except ValueError as error:
            hint = "ask for a larger epsilon, or take fewer steps"
            message = f"no noise is enough for epsilon {epsilon:g} after {steps} steps"
            raise UsageError(
                message, location="training.differential_privacy.epsilon", hint=hint
            ) from error


def compute_epsilon(
    noise_multiplier: float, sampling_rate: float, steps: int, delta: float
) -> float:
    """What so many steps give away at most, at this delta.

    Raises:
        UsageError: opacus is not installed.
    """
    accountant, _ = _import_opacus()
    counted = accountant()
    counted.history = [(noise_multiplier, sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(counted.get_epsilon(delta, alphas=RENYI_ORDERS)) if steps else 0.0


def _import_opacus() -> tuple[Any, Any]:
    """Its accountant and its search for the noise; nothing else of it is used."""
    try:
        from opacus.accountants import RDPAccountant
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        hint = 'install it: pip install "clinpeft[private]"'
        raise UsageError(
            "opacus, which counts what is spent, is not installed",
            location="training.differential_privacy",
            hint=hint,
        ) from error
    return RDPAccountant, get_noise_multiplier


def check_opacus_installed() -> None:
    """Stop before anything is read when nobody could count what is spent.

    Raises:
        UsageError: opacus is not installed.
    """
    _import_opacus()


# ------------------------------------------------------------------------------------------------------------------------------ the course


def calibrate_privacy_mechanism(
    trainable: Trainable,
    subjects: SubjectArray,
    spec: DifferentialPrivacySpec,
    optimisation: OptimizationSpec,
) -> PrivacyMechanism:
    """The noise that a run needs, from its subjects and steps.

    Args:
        trainable: as it would be learned without privacy; its first epoch names every training item.
        subjects: who each of its items is about.
        spec: what is asked.
        optimisation: epochs, each of so many steps that every subject is expected once, and the largest number of steps.

    Raises:
        InputError: fewer training subjects than a step should have, or so many that delta is no small probability any more.
        UsageError: opacus is not installed, or no noise is enough.
    """
    counts = [len(items) for items in _group_items_by_subject(trainable, subjects)]
    people = len(counts)
    if people < spec.subjects_per_step:
        hint = f"set it to {max(1, people // 10)}, say, or give more subjects"
        location = f"training.differential_privacy.subjects_per_step = {spec.subjects_per_step}"
        raise InputError(
            f"{people} training subjects are fewer than a step is to have",
            location=location,
            hint=hint,
        )
    if spec.delta * people >= 1:
        hint = f"set it well below 1 / {people}: a mechanism that publishes one subject at random would keep this promise"
        raise InputError(
            f"{people} training subjects",
            location=f"training.differential_privacy.delta = {spec.delta:g}",
            hint=hint,
        )
    rate = spec.subjects_per_step / people
    empty: list[IndexArray] = [np.zeros(0, np.int64)] * math.ceil(1 / rate)
    steps = count_total_steps(replace(trainable, make_epoch_batches=lambda _: empty), optimisation)
    multiplier = compute_noise_multiplier(spec.epsilon, spec.delta, rate, steps)
    return PrivacyMechanism(
        spec.epsilon,
        spec.delta,
        spec.clip_norm,
        multiplier,
        rate,
        people,
        spec.subjects_per_step,
        steps,
        max(counts),
    )


def make_trainable_private(
    trainable: Trainable,
    subjects: SubjectArray,
    mechanism: PrivacyMechanism,
    noise_seed: int,
    clipping_stats: ClippingStats,
) -> Trainable:
    """The same course with differential privacy: its parameters, measurements and the way it keeps the best weights stay what they are.

    A step is a draw of subjects (Poisson sampling; it may be empty, and is taken all the same), and its gradient the noised sum divided by the
    expected number of subjects, which no subject can change. The loss that is told of a step is the mean over what was drawn, 0 where nobody was, and
    not private.

    Args:
        trainable: as it would be learned without privacy, by one process.
        subjects: who each of its items is about.
        mechanism: from ``mechanism``.
        noise_seed: of draws and noise, which are a function of it and the step, so that a resumed run draws the same. Who knows it can take the noise
            away.
        clipping_stats: is told what was clipped.
    """
    items = _group_items_by_subject(trainable, subjects)
    owner = {int(item): at for at, some in enumerate(items) for item in some}
    nobody = np.zeros(0, np.int64)

    def epoch(number: int) -> list[IndexArray]:
        draws = (
            _sample_subjects(mechanism, noise_seed, number, at)
            for at in range(math.ceil(1 / mechanism.sampling_rate))
        )
        return [np.concatenate([nobody, *(items[at] for at in drawn)]) for drawn in draws]

    def backward(chosen: IndexArray, step: int) -> tuple[float, float]:
        drawn = [items[at] for at in sorted({owner[int(item)] for item in chosen})]
        summed, targets = _sum_clipped_gradients(
            trainable, drawn, mechanism.clip_norm, step, clipping_stats
        )
        _add_noise(trainable, mechanism, noise_seed, step)
        expected = float(mechanism.subjects_per_step)
        return (summed / targets * expected if targets else 0.0), expected

    return replace(trainable, make_epoch_batches=epoch, backward=backward, joint_step=None)


def _group_items_by_subject(trainable: Trainable, subjects: SubjectArray) -> list[IndexArray]:
    """The training items of each subject."""
    steps = trainable.make_epoch_batches(0)
    train = np.sort(np.concatenate(steps)) if steps else np.zeros(0, np.int64)
    _, numbers = np.unique(subjects[train], return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    return np.split(train[order], np.flatnonzero(np.diff(numbers[order])) + 1) if len(train) else []


def _sample_subjects(
    mechanism: PrivacyMechanism, noise_seed: int, epoch: int, step_index: int
) -> IndexArray:
    """The subjects of a step: each on its own with the same probability."""
    chances = np.random.default_rng([noise_seed, SAMPLING_STREAM, epoch, step_index]).random(
        mechanism.subjects
    )
    return np.flatnonzero(chances < mechanism.sampling_rate)


def _sum_clipped_gradients(
    trainable: Trainable,
    subject_items: Sequence[IndexArray],
    clip_norm: float,
    step: int,
    clipping_stats: ClippingStats,
) -> tuple[float, float]:
    """The sum of the subjects' clipped gradients, into the parameters; their summed loss, and of how many targets.

    Raises:
        TrainingError: none of the subjects of an early step has a gradient, which the noise would hide from every other check.
    """
    parameters = list(trainable.parameters.values())
    whole = _flatten_gradients(parameters, as_zeros=True)
    summed, targets, norms = 0.0, 0.0, []
    for items in subject_items:
        _clear_gradients(parameters)
        loss, count = trainable.backward(items, step)
        own = _flatten_gradients(parameters)
        norms.append(float(torch.linalg.vector_norm(own, dtype=torch.float64)))
        whole += (
            own if norms[-1] <= clip_norm else own * (clip_norm / norms[-1])
        )  # what is not a number stays so, and stops the run
        summed, targets = summed + loss, targets + count
    if norms and not any(norms) and step <= WEIGHT_CHANGE_CHECK_STEPS:
        hint = "the adapter is not part of the forward pass"
        raise TrainingError(
            f"no gradient from any of {len(norms)} subjects", location=f"step {step}", hint=hint
        )
    clipping_stats.sampled_subjects, clipping_stats.clipped_subjects = (
        clipping_stats.sampled_subjects + len(norms),
        clipping_stats.clipped_subjects + sum(norm > clip_norm for norm in norms),
    )
    _set_gradients(parameters, whole)
    return summed, targets


def _add_noise(
    trainable: Trainable, mechanism: PrivacyMechanism, noise_seed: int, step: int
) -> None:
    """Gaussian noise on the gradient of every trained number, drawn in float64 and alike on every device."""
    parameters = list(trainable.parameters.values())
    flat = _flatten_gradients(parameters)
    drawn = np.random.default_rng([noise_seed, NOISE_STREAM, step]).normal(
        0.0, mechanism.noise_multiplier * mechanism.clip_norm, len(flat)
    )
    _set_gradients(parameters, flat + torch.from_numpy(drawn).to(flat.dtype).to(flat.device))


def _flatten_gradients(
    parameters: Iterable[torch.nn.Parameter], as_zeros: bool = False
) -> torch.Tensor:
    """The gradients of all parameters, one after another; zeros where there are none, or where none are wanted."""
    return torch.cat(
        [
            (torch.zeros_like(one) if as_zeros or one.grad is None else one.grad)
            .detach()
            .reshape(-1)
            for one in parameters
        ]
    )


def _set_gradients(parameters: Sequence[torch.nn.Parameter], gradient: torch.Tensor) -> None:
    for parameter, piece in zip(
        parameters, torch.split(gradient, [one.numel() for one in parameters]), strict=True
    ):
        parameter.grad = piece.view_as(parameter).clone()


def _clear_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


# ------------------------------------------------------------------------------------------------------------------------------ the record


def summarize_privacy_spending(
    mechanism: PrivacyMechanism, steps: int, clipping_stats: ClippingStats
) -> dict[str, Any]:
    """What was promised and what was spent, counted again from the steps that were taken, for ``run.json``.

    Raises:
        TrainingError: more was spent than was asked, or so much less that the noise was not what it should have been.
    """
    spent = compute_epsilon(
        mechanism.noise_multiplier, mechanism.sampling_rate, steps, mechanism.delta
    )
    if not (
        mechanism.noise_multiplier > 0
        and (1 - EPSILON_TOLERANCE) * mechanism.epsilon <= spent <= mechanism.epsilon
    ):
        message = f"epsilon {spent:.6g} was spent by {steps} steps with noise {mechanism.noise_multiplier:g}, and {mechanism.epsilon:g} was asked for"
        raise TrainingError(
            message,
            location="training.differential_privacy",
            hint="do not let these weights leave; report this as a bug of clinpeft",
        )
    about = asdict(mechanism) | {
        "epsilon_asked": mechanism.epsilon,
        "epsilon": spent,
        "steps": steps,
    }
    share = (
        clipping_stats.clipped_subjects / clipping_stats.sampled_subjects
        if clipping_stats.sampled_subjects
        else None
    )
    return about | {
        "adjacency": "one training subject more or less",
        "accountant": "opacus, RDP",
        "clipped_share_not_private": share,
    }
