"""Differential privacy by subject, for any trainable.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1) with whole subjects in the place of single
examples (McMahan et al. 2018, arXiv 1710.06963, algorithm 1): the gradients of all items of a
subject in a step are one gradient, which is clipped, so that a subject with fewer notes is not
better protected. Every subject has a backward pass of its own, because the fused functions of
``runtime.fused_lora`` have no hooks for per-sample gradients; that is exact, and slower.

Neighboring data sets differ by one training subject. The number of training subjects, and all that
is fixed before training, count as public.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.core.errors import InputError, TrainingError, UsageError
from clinpeft.recipe import DifferentialPrivacySpec, OptimizationSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training.trainer import (
    WEIGHT_CHANGE_CHECK_STEPS,
    Trainable,
    count_total_steps,
    flatten_gradients,
)

SAMPLING_STREAM, NOISE_STREAM = 1, 2
"""Entropy of subject sampling and of noise, so that no two draws of a run share their numbers."""

EPSILON_TOLERANCE = 0.01
"""The noise is chosen so that the spent epsilon is at most this fraction below the target."""

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
"""Orders of the Rényi divergence; the large ones give the bound at a small epsilon."""

SubjectArray = npt.NDArray[Any]
"""(items,) subject of each item of a trainable."""


@dataclass(frozen=True)
class PrivacyMechanism:
    """The mechanism of every step, which determines the spent epsilon.

    Attributes:
        epsilon, delta: target.
        clip_norm: largest norm of one subject's gradient.
        noise_multiplier: standard deviation of the noise on the sum, over ``clip_norm``.
        sampling_rate: probability with which a step samples a subject.
        subjects: in the training split.
        subjects_per_step: expected; what the noised sum is divided by.
        steps: of the whole run.
        most_items: largest number of documents or windows of one subject; none is left out.
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
    """Counts since this process started; not private, so not to be published.

    Attributes:
        sampled_subjects: subjects, counted in every step that sampled them.
        clipped_subjects: those of them whose gradient was scaled down.
    """

    sampled_subjects: int = 0
    clipped_subjects: int = 0


def compute_noise_multiplier(
    epsilon: float, delta: float, sampling_rate: float, steps: int
) -> float:
    """Compute the least noise with which so many steps spend at most epsilon.

    They spend at least 0.995 of it, by the Rényi divergence of the sampled Gaussian mechanism
    (Mironov et al. 2019, arXiv 1908.10530).

    Returns:
        Standard deviation of the noise over the clipping norm.

    Raises:
        UsageError: opacus is not installed, or no noise is enough.
    """
    _, get_noise_multiplier = _import_opacus()
    with warnings.catch_warnings():
        # opacus warns where the best order is the first or the last; the bound holds all the same
        warnings.simplefilter("ignore")
        try:
            multiplier = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sampling_rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=EPSILON_TOLERANCE / 2 * epsilon,
                alphas=RENYI_ORDERS,
            )
        except ValueError as error:
            raise UsageError(
                f"no noise is enough for epsilon {epsilon:g} after {steps} steps",
                location="training.differential_privacy.epsilon",
                hint="set a larger epsilon, or take fewer steps",
            ) from error
    return float(multiplier)


def compute_epsilon(
    noise_multiplier: float, sampling_rate: float, steps: int, delta: float
) -> float:
    """Compute the epsilon that so many steps spend at most, at this delta.

    Raises:
        UsageError: opacus is not installed.
    """
    accountant_class, _ = _import_opacus()
    if not steps:
        return 0.0
    accountant = accountant_class()
    accountant.history = [(noise_multiplier, sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        return float(accountant.get_epsilon(delta, alphas=RENYI_ORDERS))


def _import_opacus() -> tuple[Any, Any]:
    """Import opacus' accountant and its search for the noise; nothing else of it is used."""
    try:
        from opacus.accountants import RDPAccountant
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise UsageError(
            "opacus, which computes the spent epsilon, is not installed",
            location="training.differential_privacy",
            hint='install it: pip install "clinpeft[private]"',
        ) from error
    return RDPAccountant, get_noise_multiplier


def check_opacus_installed() -> None:
    """Check, before any data is read, that the spent epsilon can be computed.

    Raises:
        UsageError: opacus is not installed.
    """
    _import_opacus()


def calibrate_privacy_mechanism(
    trainable: Trainable,
    subjects: SubjectArray,
    spec: DifferentialPrivacySpec,
    optimisation: OptimizationSpec,
) -> PrivacyMechanism:
    """Compute the noise that a run needs from its subjects and steps.

    Args:
        trainable: without differential privacy; its first epoch names every training item.
        subjects: (items,) subject of each of its items.
        spec: target and clipping norm.
        optimisation: epochs, in each of which every subject is expected once, and the largest
            number of steps.

    Raises:
        InputError: fewer training subjects than a step should have, or so many that delta is not
            below 1 / subjects.
        UsageError: opacus is not installed, or no noise is enough.
    """
    item_counts = [len(items) for items in _group_items_by_subject(trainable, subjects)]
    subject_count = len(item_counts)
    # errors name the key and its value
    location = "training.differential_privacy"
    if subject_count < spec.subjects_per_step:
        raise InputError(
            f"{subject_count} training subjects are fewer than a step should have",
            location=f"{location}.subjects_per_step = {spec.subjects_per_step}",
            hint=f"set it to {max(1, subject_count // 10)}, say, or give more subjects",
        )
    # publishing the data of one random subject of n is (0, 1/n)-private (Dwork and Roth 2014,
    # section 2.3)
    if spec.delta * subject_count >= 1:
        raise InputError(
            f"{subject_count} training subjects",
            location=f"{location}.delta = {spec.delta:g}",
            hint=f"set it well below 1 / {subject_count}: publishing one random subject would"
            " satisfy this delta",
        )
    # expected subjects of a step are sampling_rate * subjects
    sampling_rate = spec.subjects_per_step / subject_count
    epoch: list[IndexArray] = [np.zeros(0, np.int64)] * math.ceil(1 / sampling_rate)
    # counts steps only, so that its items do not matter
    sampled = replace(trainable, make_epoch_batches=lambda _: epoch)
    steps = count_total_steps(sampled, optimisation)
    noise_multiplier = compute_noise_multiplier(spec.epsilon, spec.delta, sampling_rate, steps)
    return PrivacyMechanism(
        epsilon=spec.epsilon,
        delta=spec.delta,
        clip_norm=spec.clip_norm,
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        subjects=subject_count,
        subjects_per_step=spec.subjects_per_step,
        steps=steps,
        most_items=max(item_counts),
    )


def make_trainable_private(
    trainable: Trainable,
    subjects: SubjectArray,
    mechanism: PrivacyMechanism,
    noise_seed: int,
    clipping_stats: ClippingStats,
) -> Trainable:
    """Train with differential privacy; parameters, metrics and selection of weights are the same.

    A step samples subjects (Poisson sampling; a step without subjects is taken all the same). Its
    gradient is the noised sum divided by the expected number of subjects, which no subject can
    change. The logged loss of a step is the mean over the sampled subjects, 0 where there are none,
    and not private.

    Args:
        trainable: without differential privacy, for one process.
        subjects: (items,) subject of each of its items.
        mechanism: from ``calibrate_privacy_mechanism``.
        noise_seed: of sampling and noise, which are functions of it and the step, so that a resumed
            run draws the same. Whoever knows it can subtract the noise.
        clipping_stats: counts clipped gradients.
    """
    items_by_subject = _group_items_by_subject(trainable, subjects)
    subject_of_item = {
        int(item): subject for subject, items in enumerate(items_by_subject) for item in items
    }
    # so that every subject is expected once in an epoch
    steps_per_epoch = math.ceil(1 / mechanism.sampling_rate)

    def make_epoch_batches(epoch: int) -> list[IndexArray]:
        batches = []
        for step_index in range(steps_per_epoch):
            rng = np.random.default_rng([noise_seed, SAMPLING_STREAM, epoch, step_index])
            # each subject independently of the others
            sampled = np.flatnonzero(rng.random(mechanism.subjects) < mechanism.sampling_rate)
            # all items of a sampled subject
            parts = [items_by_subject[subject] for subject in sampled]
            batches.append(np.concatenate([np.zeros(0, np.int64), *parts]))
        return batches

    def backward(items: IndexArray, step: int) -> tuple[float, float]:
        sampled = sorted({subject_of_item[int(item)] for item in items})
        summed, targets = _sum_clipped_gradients(
            trainable,
            [items_by_subject[subject] for subject in sampled],
            mechanism.clip_norm,
            step,
            clipping_stats,
        )
        parameters = list(trainable.parameters.values())
        # the sum of clipped gradients: its sensitivity to one subject is clip_norm
        gradient = flatten_gradients(parameters)  # (numbers,)
        # in float64 on the CPU, so that every device gets the same noise
        # standard deviation of every number: noise_multiplier * clip_norm
        scale = mechanism.noise_multiplier * mechanism.clip_norm
        rng = np.random.default_rng([noise_seed, NOISE_STREAM, step])
        noise = torch.from_numpy(rng.normal(0.0, scale, len(gradient)))
        _set_gradients(parameters, gradient + noise.to(gradient.dtype).to(gradient.device))
        # the loop divides the gradient by the number of targets, and the loss with it
        expected = float(mechanism.subjects_per_step)
        return (summed / targets * expected if targets else 0.0), expected

    # no joint step: it would not clip
    return replace(
        trainable, make_epoch_batches=make_epoch_batches, backward=backward, joint_step=None
    )


def _group_items_by_subject(trainable: Trainable, subjects: SubjectArray) -> list[IndexArray]:
    """The training items of each subject."""
    batches = trainable.make_epoch_batches(0)
    if not batches:
        return []
    items = np.sort(np.concatenate(batches))
    # subjects in their sorted order, whatever the order of the notes
    _, codes = np.unique(subjects[items], return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(items[order], np.flatnonzero(np.diff(codes[order])) + 1) if len(items) else []


def _sum_clipped_gradients(
    trainable: Trainable,
    subject_items: Sequence[IndexArray],
    clip_norm: float,
    step: int,
    clipping_stats: ClippingStats,
) -> tuple[float, float]:
    """Set the gradients to the sum of the subjects' clipped gradients.

    g_s min(1, C / ||g_s||) of each subject s, Abadi et al. 2016, algorithm 1.

    Returns:
        Summed loss and number of targets of the subjects.

    Raises:
        TrainingError: no subject of an early step has a gradient, which the noise would hide from
            every other check.
    """
    parameters = list(trainable.parameters.values())
    total = torch.zeros_like(flatten_gradients(parameters))  # (numbers,)
    summed, targets, norms = 0.0, 0.0, []
    for items in subject_items:
        for parameter in parameters:
            parameter.grad = None
        # all items of the subject in one backward pass, in micro-batches if there are many
        loss, count = trainable.backward(items, step)
        gradient = flatten_gradients(parameters)
        # over all trained parameters at once; float64, since it decides what is clipped
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        # "not (norm <= C)", so that a norm of NaN stays NaN and stops the run in the loop
        total += gradient if norm <= clip_norm else gradient * (clip_norm / norm)
        summed, targets = summed + loss, targets + count
        norms.append(norm)
    if norms and not any(norms) and step <= WEIGHT_CHANGE_CHECK_STEPS:
        raise TrainingError(
            f"no gradient from any of {len(norms)} subjects",
            location=f"step {step}",
            hint="the adapter is not part of the forward pass",
        )
    clipping_stats.sampled_subjects += len(norms)
    clipping_stats.clipped_subjects += sum(norm > clip_norm for norm in norms)
    _set_gradients(parameters, total)
    return summed, targets


def _set_gradients(parameters: Sequence[torch.nn.Parameter], gradient: torch.Tensor) -> None:
    """Distribute a flat gradient (numbers,) over the parameters."""
    # clones: pieces of one tensor would share its memory with the optimizer
    pieces = torch.split(gradient, [parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter).clone()


def summarize_privacy_spending(
    mechanism: PrivacyMechanism, steps: int, clipping_stats: ClippingStats
) -> dict[str, Any]:
    """Summarize target and spent epsilon, by the steps that were taken, for ``run.json``.

    Raises:
        TrainingError: the spent epsilon is above the target, or so far below it that the noise
            cannot have been the computed one.
    """
    spent = compute_epsilon(
        mechanism.noise_multiplier, mechanism.sampling_rate, steps, mechanism.delta
    )
    # the noise search ends within EPSILON_TOLERANCE / 2 of the target
    lowest = (1 - EPSILON_TOLERANCE) * mechanism.epsilon
    if not (mechanism.noise_multiplier > 0 and lowest <= spent <= mechanism.epsilon):
        raise TrainingError(
            f"epsilon {spent:.6g} was spent by {steps} steps with noise"
            f" {mechanism.noise_multiplier:g}, and the target is {mechanism.epsilon:g}",
            location="training.differential_privacy",
            hint="do not publish these weights; report this as a bug of clinpeft",
        )
    sampled = clipping_stats.sampled_subjects
    return asdict(mechanism) | {
        "epsilon_asked": mechanism.epsilon,
        "epsilon": spent,
        "steps": steps,
        "adjacency": "one training subject more or less",
        "accountant": "opacus, RDP",
        "clipped_share_not_private": (
            clipping_stats.clipped_subjects / sampled if sampled else None
        ),
    }
