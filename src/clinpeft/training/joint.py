"""Several courses in one pass over one base: each keeps its own steps, gradients, optimiser, schedule, dropout, best weights and checkpoints.

What a search tries differs in adapters and training, and the base is most of the work: its products are made once for the texts of all trials
(mLoRA, arXiv 2312.02515). The gradient of the sum of the losses gives each trial its own, because no parameter is in two of them; so each learns what
it would learn alone, but for the order in which float32 adds up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from clinpeft.adapters import MultiAdapterModel, PackedInput
from clinpeft.core.errors import ClinpeftError, TrainingError
from clinpeft.recipe import OptimizationSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training.trainer import (
    JointStep,
    LossSum,
    Trainable,
    Trainer,
    TrainingCallbacks,
    TrainingResult,
    derive_dropout_seed,
)

JointTrainingOutcome = TrainingResult | ClinpeftError
"""How it went, or why it did not."""

StepBatches = Mapping[int, tuple[int, IndexArray]]
"""Trial -> its next step and the items of that."""


@dataclass(frozen=True)
class TrialTraining:
    """One of several trials: what ``fit`` is given for it. Its course is of the stack at the same place in ``Joint.stacks``."""

    trainable: Trainable
    spec: OptimizationSpec
    folder: Path
    callbacks: TrainingCallbacks = field(default_factory=TrainingCallbacks)


def train_jointly(
    joint_model: MultiAdapterModel,
    trial_trainings: Sequence[TrialTraining],
    accelerator: Accelerator,
) -> list[JointTrainingOutcome]:
    """``fit`` of every trial, a step of each at a time in one pass. Trials that have ended leave it; so does one that fails, and the others go on.

    The loss of every step, the measurements and the weights are those of ``fit`` alone. Seconds, tokens a second and memory are those of the pass.
    Memory is that of one base, and of the micro-batches of all trials at once.

    Args:
        joint_model: the base with the trials' stacks.
        trial_trainings: a trial each, in the order of the stacks.
        accelerator: of one process.

    Returns:
        In the order of the trials, the result, or the error that ``fit`` would have raised: ``InterruptedRun`` where ``watch.stopping`` said so.

    Raises:
        TrainingError: these cannot be learned in one pass.
    """
    shares = _collect_joint_steps(joint_model, trial_trainings, accelerator)
    outcomes: dict[int, JointTrainingOutcome] = {}
    going: dict[int, tuple[Trainer, Iterator[tuple[int, IndexArray]]]] = {}
    for at, each in enumerate(trial_trainings):
        with _capture_error(outcomes, at):
            running = Trainer(
                _evaluate_on_own_stack(joint_model, at, each.trainable),
                each.spec,
                accelerator,
                each.folder,
                each.callbacks,
            )
            running.resume()
            going[at] = running, running.iterate_remaining_steps()
    while going := {at: each for at, each in going.items() if at not in outcomes}:
        chosen: dict[int, tuple[int, IndexArray]] = {}
        for at, (running, remaining) in going.items():
            if (following := next(remaining, None)) is not None:
                chosen[at] = following
                continue
            with _capture_error(outcomes, at):
                outcomes[at] = running.finish()
        sums = _compute_joint_gradients(
            joint_model, trial_trainings, shares, chosen, accelerator.device
        )
        for at, (step, items) in chosen.items():
            with _capture_error(outcomes, at):
                going[at][0].take_step(step, items, *sums[at])
    return [outcomes[at] for at in range(len(trial_trainings))]


@contextlib.contextmanager
def _capture_error(outcomes: dict[int, JointTrainingOutcome], trial_index: int) -> Iterator[None]:
    """An error of one trial ends that trial."""
    try:
        yield
    except ClinpeftError as error:
        outcomes[trial_index] = error


def _collect_joint_steps(
    joint_model: MultiAdapterModel,
    trial_trainings: Sequence[TrialTraining],
    accelerator: Accelerator,
) -> list[JointStep]:
    shares = [
        each.trainable.joint_step
        for each in trial_trainings
        if each.trainable.joint_step is not None
    ]
    reasons = {
        f"{len(trial_trainings)} courses for {len(joint_model.stacks)} stacks": len(trial_trainings)
        != len(joint_model.stacks),
        f"{accelerator.num_processes} processes": accelerator.num_processes > 1,
        "a course that does not say how it can be shared": len(shares) < len(trial_trainings),
        "a trial in which no adapter is trained": not all(
            stack.trained_parameters for stack in joint_model.stacks
        ),
        "trials that ask for words and trials that ask for vectors": len(
            {share.needs_logits for share in shares}
        )
        > 1,
    }
    for message in (reason for reason, holds in reasons.items() if holds):
        raise TrainingError(
            f"{message} cannot be trained together",
            location="trials",
            hint="train them one after another",
        )
    return shares


def _evaluate_on_own_stack(
    joint_model: MultiAdapterModel, trial_index: int, trainable: Trainable
) -> Trainable:
    """The tuning split is asked of the trial's own stack."""
    measure = trainable.evaluate
    return (
        trainable
        if measure is None
        else replace(
            trainable, evaluate=partial(_evaluate_isolated, joint_model, trial_index, measure)
        )
    )


def _evaluate_isolated(
    joint_model: MultiAdapterModel, trial_index: int, evaluate: Callable[[], dict[str, float]]
) -> dict[str, float]:
    with joint_model.isolate_stack(trial_index):
        return evaluate()


# ------------------------------------------------------------------------------------------------------------------------------- one step


def _compute_joint_gradients(
    joint_model: MultiAdapterModel,
    trial_trainings: Sequence[TrialTraining],
    joint_steps: Sequence[JointStep],
    step_batches: StepBatches,
    device: torch.device,
) -> dict[int, tuple[float, float]]:
    """Gradients of a step of each of these trials, into their parameters; trial -> summed loss and targets.

    The first micro-batches of all go together, then the second ones, as far as each has some."""
    for at in step_batches:
        trial_trainings[at].trainable.set_training_mode(True)
    groups = {
        at: joint_steps[at].make_micro_batches(items) for at, (_, items) in step_batches.items()
    }
    found = dict.fromkeys(step_batches, (0.0, 0.0))
    with torch.random.fork_rng():
        for number in range(max(map(len, groups.values()), default=0)):
            asked = {
                at: (step_batches[at][0], group[number])
                for at, group in groups.items()
                if number < len(group)
            }
            sums = _compute_joint_losses(joint_model, joint_steps, asked, number, device)
            torch.autograd.backward([each.loss for each in sums.values()])
            for at, each in sums.items():
                summed, targets = found[at]
                found[at] = summed + each.loss.item(), targets + each.targets
    return found


def _compute_joint_losses(
    joint_model: MultiAdapterModel,
    joint_steps: Sequence[JointStep],
    micro_batches: StepBatches,
    micro_batch_index: int,
    device: torch.device,
) -> dict[int, LossSum]:
    """One pass over one micro-batch of each."""
    readings: list[PackedInput[LossSum] | None] = [None] * len(joint_steps)
    drawn: list[torch.Generator | None] = [None] * len(joint_steps)
    for at, (step, items) in micro_batches.items():
        readings[at] = joint_steps[at].prepare_input(items, step)
        drawn[at] = torch.Generator(device).manual_seed(
            derive_dropout_seed(joint_steps[at].seed, step, micro_batch_index)
        )
    with _skip_language_model_head(joint_steps):
        answers = joint_model.encode_packed(
            readings, drawn, return_logits=joint_steps[0].needs_logits
        )
    found = {}
    for at, (reading, answer, generator) in enumerate(zip(readings, answers, drawn, strict=True)):
        if reading is not None and answer is not None and generator is not None:
            _continue_random_state(
                generator
            )  # what stands above the base, such as a head, goes on where this trial's layers ended
            found[at] = reading.process_output(answer)
    return found


def _skip_language_model_head(
    joint_steps: Sequence[JointStep],
) -> contextlib.AbstractContextManager[None]:
    """Without the scores of every word, where each trial makes its own of those that it asks; all have the same last layer."""
    vocabulary = joint_steps[0].language_model_head
    if (
        vocabulary is None
        or vocabulary.get_projection() is None
        or any(share.language_model_head is None for share in joint_steps)
    ):
        return contextlib.nullcontext()
    return vocabulary.skip_projection()


def _continue_random_state(generator: torch.Generator) -> None:
    """torch's own generator goes on where this one is, as if all had been drawn from it."""
    torch.manual_seed(generator.initial_seed())
    if generator.device.type == "cuda":
        torch.cuda.set_rng_state(generator.get_state(), generator.device)
    else:
        torch.set_rng_state(generator.get_state())
