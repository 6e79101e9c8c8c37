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
from clinpeft.recipe import OptimisationSpec, PrivateSpec
from clinpeft.tokenization import Ints
from clinpeft.training.trainer import STEPS_BEFORE_THE_MOVED_CHECK, Course, total_steps

SAMPLING, NOISE = 1, 2
"""What a draw is for, so that no two draws of a run share their numbers."""

PRECISION = 0.01
"""The noise is chosen so that the privacy that is spent is at most this share below what was asked."""

ORDERS = (
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

Subjects = npt.NDArray[Any]
"""(items,) who each item of a course is about."""


@dataclass(frozen=True)
class Mechanism:
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
class Tally:
    """What was seen since this process began; not private, and no part of what may leave.

    Attributes:
        drawn: subjects, each counted in every step that drew it.
        clipped: those of them whose gradient was scaled down.
    """

    drawn: int = 0
    clipped: int = 0


# ------------------------------------------------------------------------------------------------------------------------------ accounting


def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise with which so many steps spend at most epsilon, and at least 0.995 of it, by Rényi divergence (Mironov et al. 2019, arXiv
    1908.10530).

    Raises:
        UsageError: opacus is not installed, or no noise is enough.
    """
    _, search = _opacus()
    asked = {
        "target_epsilon": epsilon,
        "target_delta": delta,
        "sample_rate": sampling_rate,
        "steps": steps,
        "alphas": ORDERS,
    }
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that the best order is the first or the last, which is tight enough here
        try:
            return float(
                search(**asked, accountant="rdp", epsilon_tolerance=PRECISION / 2 * epsilon)
            )
        except ValueError as error:
            hint = "ask for a larger epsilon, or take fewer steps"
            message = f"no noise is enough for epsilon {epsilon:g} after {steps} steps"
            raise UsageError(message, location="training.private.epsilon", hint=hint) from error


def epsilon_spent(multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """What so many steps give away at most, at this delta.

    Raises:
        UsageError: opacus is not installed.
    """
    accountant, _ = _opacus()
    counted = accountant()
    counted.history = [(multiplier, sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(counted.get_epsilon(delta, alphas=ORDERS)) if steps else 0.0


def _opacus() -> tuple[Any, Any]:
    """Its accountant and its search for the noise; nothing else of it is used."""
    try:
        from opacus.accountants import RDPAccountant
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        hint = 'install it: pip install "clinpeft[private]"'
        raise UsageError(
            "opacus, which counts what is spent, is not installed",
            location="training.private",
            hint=hint,
        ) from error
    return RDPAccountant, get_noise_multiplier


def must_be_countable() -> None:
    """Stop before anything is read when nobody could count what is spent.

    Raises:
        UsageError: opacus is not installed.
    """
    _opacus()


# ------------------------------------------------------------------------------------------------------------------------------ the course


def mechanism(
    course: Course, subjects: Subjects, spec: PrivateSpec, optimisation: OptimisationSpec
) -> Mechanism:
    """The noise that a run needs, from its subjects and steps.

    Args:
        course: as it would be learned without privacy; its first epoch names every training item.
        subjects: who each of its items is about.
        spec: what is asked.
        optimisation: epochs, each of so many steps that every subject is expected once, and the largest number of steps.

    Raises:
        InputError: fewer training subjects than a step should have, or so many that delta is no small probability any more.
        UsageError: opacus is not installed, or no noise is enough.
    """
    counts = [len(items) for items in _items_by_subject(course, subjects)]
    people = len(counts)
    if people < spec.subjects_per_step:
        hint = f"set it to {max(1, people // 10)}, say, or give more subjects"
        location = f"training.private.subjects_per_step = {spec.subjects_per_step}"
        raise InputError(
            f"{people} training subjects are fewer than a step is to have",
            location=location,
            hint=hint,
        )
    if spec.delta * people >= 1:
        hint = f"set it well below 1 / {people}: a mechanism that publishes one subject at random would keep this promise"
        raise InputError(
            f"{people} training subjects",
            location=f"training.private.delta = {spec.delta:g}",
            hint=hint,
        )
    rate = spec.subjects_per_step / people
    empty: list[Ints] = [np.zeros(0, np.int64)] * math.ceil(1 / rate)
    steps = total_steps(replace(course, epoch=lambda _: empty), optimisation)
    multiplier = noise_multiplier(spec.epsilon, spec.delta, rate, steps)
    return Mechanism(
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


def private(
    course: Course, subjects: Subjects, noise: Mechanism, secret: int, tally: Tally
) -> Course:
    """The same course with differential privacy: its parameters, measurements and the way it keeps the best weights stay what they are.

    A step is a draw of subjects (Poisson sampling; it may be empty, and is taken all the same), and its gradient the noised sum divided by the
    expected number of subjects, which no subject can change. The loss that is told of a step is the mean over what was drawn, 0 where nobody was, and
    not private.

    Args:
        course: as it would be learned without privacy, by one process.
        subjects: who each of its items is about.
        noise: from ``mechanism``.
        secret: of draws and noise, which are a function of it and the step, so that a resumed run draws the same. Who knows it can take the noise
            away.
        tally: is told what was clipped.
    """
    items = _items_by_subject(course, subjects)
    owner = {int(item): at for at, some in enumerate(items) for item in some}
    nobody = np.zeros(0, np.int64)

    def epoch(number: int) -> list[Ints]:
        draws = (
            _drawn(noise, secret, number, at) for at in range(math.ceil(1 / noise.sampling_rate))
        )
        return [np.concatenate([nobody, *(items[at] for at in drawn)]) for drawn in draws]

    def backward(chosen: Ints, step: int) -> tuple[float, float]:
        drawn = [items[at] for at in sorted({owner[int(item)] for item in chosen})]
        summed, targets = _clipped_sum(course, drawn, noise.clip_norm, step, tally)
        _add_noise(course, noise, secret, step)
        expected = float(noise.subjects_per_step)
        return (summed / targets * expected if targets else 0.0), expected

    return replace(course, epoch=epoch, backward=backward, share=None)


def _items_by_subject(course: Course, subjects: Subjects) -> list[Ints]:
    """The training items of each subject."""
    steps = course.epoch(0)
    train = np.sort(np.concatenate(steps)) if steps else np.zeros(0, np.int64)
    _, numbers = np.unique(subjects[train], return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    return np.split(train[order], np.flatnonzero(np.diff(numbers[order])) + 1) if len(train) else []


def _drawn(noise: Mechanism, secret: int, number: int, at: int) -> Ints:
    """The subjects of a step: each on its own with the same probability."""
    chances = np.random.default_rng([secret, SAMPLING, number, at]).random(noise.subjects)
    return np.flatnonzero(chances < noise.sampling_rate)


def _clipped_sum(
    course: Course, drawn: Sequence[Ints], clip_norm: float, step: int, tally: Tally
) -> tuple[float, float]:
    """The sum of the subjects' clipped gradients, into the parameters; their summed loss, and of how many targets.

    Raises:
        TrainingError: none of the subjects of an early step has a gradient, which the noise would hide from every other check.
    """
    parameters = list(course.parameters.values())
    whole = _flat(parameters, empty=True)
    summed, targets, norms = 0.0, 0.0, []
    for items in drawn:
        _clear(parameters)
        loss, count = course.backward(items, step)
        own = _flat(parameters)
        norms.append(float(torch.linalg.vector_norm(own, dtype=torch.float64)))
        whole += (
            own if norms[-1] <= clip_norm else own * (clip_norm / norms[-1])
        )  # what is not a number stays so, and stops the run
        summed, targets = summed + loss, targets + count
    if norms and not any(norms) and step <= STEPS_BEFORE_THE_MOVED_CHECK:
        hint = "the adapter is not part of the forward pass"
        raise TrainingError(
            f"no gradient from any of {len(norms)} subjects", location=f"step {step}", hint=hint
        )
    tally.drawn, tally.clipped = (
        tally.drawn + len(norms),
        tally.clipped + sum(norm > clip_norm for norm in norms),
    )
    _fill(parameters, whole)
    return summed, targets


def _add_noise(course: Course, noise: Mechanism, secret: int, step: int) -> None:
    """Gaussian noise on the gradient of every trained number, drawn in float64 and alike on every device."""
    parameters = list(course.parameters.values())
    flat = _flat(parameters)
    drawn = np.random.default_rng([secret, NOISE, step]).normal(
        0.0, noise.noise_multiplier * noise.clip_norm, len(flat)
    )
    _fill(parameters, flat + torch.from_numpy(drawn).to(flat.dtype).to(flat.device))


def _flat(parameters: Iterable[torch.nn.Parameter], empty: bool = False) -> torch.Tensor:
    """The gradients of all parameters, one after another; zeros where there are none, or where none are wanted."""
    return torch.cat(
        [
            (torch.zeros_like(one) if empty or one.grad is None else one.grad).detach().reshape(-1)
            for one in parameters
        ]
    )


def _fill(parameters: Sequence[torch.nn.Parameter], flat: torch.Tensor) -> None:
    for parameter, piece in zip(
        parameters, torch.split(flat, [one.numel() for one in parameters]), strict=True
    ):
        parameter.grad = piece.view_as(parameter).clone()


def _clear(parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


# ------------------------------------------------------------------------------------------------------------------------------ the record


def accounted(noise: Mechanism, steps: int, tally: Tally) -> dict[str, Any]:
    """What was promised and what was spent, counted again from the steps that were taken, for ``run.json``.

    Raises:
        TrainingError: more was spent than was asked, or so much less that the noise was not what it should have been.
    """
    spent = epsilon_spent(noise.noise_multiplier, noise.sampling_rate, steps, noise.delta)
    if not (
        noise.noise_multiplier > 0 and (1 - PRECISION) * noise.epsilon <= spent <= noise.epsilon
    ):
        message = f"epsilon {spent:.6g} was spent by {steps} steps with noise {noise.noise_multiplier:g}, and {noise.epsilon:g} was asked for"
        raise TrainingError(
            message,
            location="training.private",
            hint="do not let these weights leave; report this as a bug of clinpeft",
        )
    about = asdict(noise) | {"epsilon_asked": noise.epsilon, "epsilon": spent, "steps": steps}
    share = tally.clipped / tally.drawn if tally.drawn else None
    return about | {
        "adjacency": "one training subject more or less",
        "accountant": "opacus, RDP",
        "clipped_share_not_private": share,
    }
