"""Several trials trained in one pass over one base.

Each keeps its own steps, gradients, optimizer, schedule, dropout, best weights and checkpoints. The
trials of a search differ in adapters and training options, and most of the work is the base, whose
products are computed once for the texts of all trials (mLoRA, arXiv 2312.02515). No parameter
belongs to two trials, so that the gradient of the sum of their losses is the gradient of each:
every trial is trained as it would be alone, but for the order in which float32 sums are computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
"""Result of a trial, or the error that ended it."""

StepBatches = Mapping[int, tuple[int, IndexArray]]
"""Trial -> number of its step, and items."""


@dataclass(frozen=True)
class TrialTraining:
    """The arguments of ``run_training`` for one of several trials.

    Its trainable is of the stack at the same position in ``MultiAdapterModel.stacks``.
    """

    trainable: Trainable
    spec: OptimizationSpec
    folder: Path
    callbacks: TrainingCallbacks = field(default_factory=TrainingCallbacks)


def train_jointly(
    joint_model: MultiAdapterModel,
    trial_trainings: Sequence[TrialTraining],
    accelerator: Accelerator,
) -> list[JointTrainingOutcome]:
    """Run ``run_training`` of every trial, one step of each in a pass.

    A trial that ends or fails leaves, and the others continue. Losses, metrics and weights are
    those of ``run_training`` alone; seconds, tokens a second and memory are those of the shared
    pass: one base, and the micro-batches of all trials at once.

    Args:
        joint_model: the base with the stacks of all trials.
        trial_trainings: one for each trial, in the order of the stacks.
        accelerator: of one process.

    Returns:
        For each trial, in order, the result, or the error that ``run_training`` would have raised:
        ``InterruptedRunError`` where ``callbacks.should_stop`` returned True.

    Raises:
        TrainingError: these trials cannot be trained in one pass.
    """
    joint_steps = _collect_joint_steps(joint_model, trial_trainings, accelerator)
    outcomes: dict[int, JointTrainingOutcome] = {}
    running: dict[int, tuple[Trainer, Iterator[tuple[int, IndexArray]]]] = {}
    for trial, training in enumerate(trial_trainings):
        with _capture_error(outcomes, trial):
            trainable = training.trainable
            if trainable.evaluate is not None:
                evaluate = _isolate_evaluation(joint_model, trial, trainable.evaluate)
                trainable = replace(trainable, evaluate=evaluate)
            trainer = Trainer(
                trainable, training.spec, accelerator, training.folder, training.callbacks
            )
            # each from its own folder
            trainer.resume()
            running[trial] = trainer, trainer.iterate_remaining_steps()
    # one pass of every trial that still runs
    while running := {trial: run for trial, run in running.items() if trial not in outcomes}:
        batches: dict[int, tuple[int, IndexArray]] = {}
        for trial, (trainer, remaining_steps) in running.items():
            # exhausted after its last step, or by early stopping
            if (batch := next(remaining_steps, None)) is not None:
                batches[trial] = batch
                continue
            with _capture_error(outcomes, trial):
                outcomes[trial] = trainer.finish()
        for trial in batches:
            trial_trainings[trial].trainable.set_training_mode(True)
        # gradients of all trials at once; steps of each on its own below
        sums = _compute_joint_gradients(joint_model, joint_steps, batches, accelerator.device)
        for trial, (step, items) in batches.items():
            with _capture_error(outcomes, trial):
                running[trial][0].take_step(step, items, *sums[trial])
    return [outcomes[trial] for trial in range(len(trial_trainings))]


@contextlib.contextmanager
def _capture_error(outcomes: dict[int, JointTrainingOutcome], trial: int) -> Iterator[None]:
    """Let an error of one trial end that trial only."""
    try:
        yield
    except ClinpeftError as error:
        outcomes[trial] = error


def _isolate_evaluation(
    joint_model: MultiAdapterModel, trial: int, evaluate: Callable[[], dict[str, float]]
) -> Callable[[], dict[str, float]]:
    """Evaluate the tuning split with the trial's own stack."""

    def evaluate_isolated() -> dict[str, float]:
        with joint_model.isolate_stack(trial):
            return evaluate()

    return evaluate_isolated


def _collect_joint_steps(
    joint_model: MultiAdapterModel,
    trial_trainings: Sequence[TrialTraining],
    accelerator: Accelerator,
) -> list[JointStep]:
    """Collect the joint step of each trial.

    Raises:
        TrainingError: the trials cannot be trained in one pass.
    """
    steps = [training.trainable.joint_step for training in trial_trainings]
    joint_steps = [step for step in steps if step is not None]
    stacks = joint_model.stacks
    # each with the reason that a user reads
    obstacles = {
        f"{len(steps)} trainings for {len(stacks)} stacks": len(steps) != len(stacks),
        f"{accelerator.num_processes} processes": accelerator.num_processes > 1,
        "a training without a joint step": len(joint_steps) < len(steps),
        "a trial in which no adapter is trained": not all(
            stack.trained_parameters for stack in stacks
        ),
        "trials on logits and trials on hidden states": len(
            {step.needs_logits for step in joint_steps}
        )
        > 1,
    }
    for obstacle, is_present in obstacles.items():
        if is_present:
            raise TrainingError(
                f"{obstacle} cannot be trained together",
                location="trials",
                hint="train them one after another",
            )
    return joint_steps


def _compute_joint_gradients(
    joint_model: MultiAdapterModel,
    joint_steps: Sequence[JointStep],
    step_batches: StepBatches,
    device: torch.device,
) -> dict[int, tuple[float, float]]:
    """Add the gradients of a step of each trial to its parameters.

    Returns:
        Trial -> summed loss and number of targets.
    """
    micro_batches = {
        trial: joint_steps[trial].make_micro_batches(items)
        for trial, (_, items) in step_batches.items()
    }
    # a trial without items in a step keeps (0, 0)
    sums = dict.fromkeys(step_batches, (0.0, 0.0))
    with torch.random.fork_rng():
        # the first micro-batches of all trials in one pass, then the second ones of those with two
        for index in range(max(map(len, micro_batches.values()), default=0)):
            batches = {
                trial: (step_batches[trial][0], parts[index])
                for trial, parts in micro_batches.items()
                if index < len(parts)
            }
            losses = _compute_joint_losses(joint_model, joint_steps, batches, index, device)
            # the sum of the losses: no parameter belongs to two of them
            torch.autograd.backward([loss_sum.loss for loss_sum in losses.values()])
            for trial, loss_sum in losses.items():
                summed, targets = sums[trial]
                sums[trial] = summed + loss_sum.loss.item(), targets + loss_sum.targets
    return sums


def _compute_joint_losses(
    joint_model: MultiAdapterModel,
    joint_steps: Sequence[JointStep],
    micro_batches: StepBatches,
    micro_batch_index: int,
    device: torch.device,
) -> dict[int, LossSum]:
    """Compute the losses of one micro-batch of each trial in one pass."""
    inputs: list[PackedInput[LossSum] | None] = [None] * len(joint_steps)
    generators: list[torch.Generator | None] = [None] * len(joint_steps)
    for trial, (step, items) in micro_batches.items():
        # the seed of this trial alone, so that its dropout is that of a run alone
        inputs[trial] = joint_steps[trial].prepare_input(items, step)
        seed = derive_dropout_seed(joint_steps[trial].seed, step, micro_batch_index)
        generators[trial] = torch.Generator(device).manual_seed(seed)
    # without logits of the whole vocabulary where every trial computes its own in blocks; the
    # output layer is the base's, and so the same in all trials
    heads = [step.language_model_head for step in joint_steps]
    context: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if heads[0] is not None and heads[0].get_projection() is not None and None not in heads:
        context = heads[0].skip_projection()
    with context:
        # (tokens, width or vocabulary) of each trial
        outputs = joint_model.encode_packed(
            inputs, generators, return_logits=joint_steps[0].needs_logits
        )
    losses = {}
    for trial, (packed, output, generator) in enumerate(
        zip(inputs, outputs, generators, strict=True)
    ):
        if packed is not None and output is not None and generator is not None:
            # what is above the base, such as the dropout of a head, draws from torch's own
            # generator; it continues where the dropout of this trial's layers ended, as alone
            torch.manual_seed(generator.initial_seed())
            if generator.device.type == "cuda":
                torch.cuda.set_rng_state(generator.get_state(), generator.device)
            else:
                torch.set_rng_state(generator.get_state())
            losses[trial] = packed.process_output(output)
    return losses
