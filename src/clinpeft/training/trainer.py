"""The training loop: steps of items, over micro-batches and processes, with the loss divided once.

What is trained is a ``Trainable``: parameters, the items of every step, and how a step becomes
gradients; the loop knows nothing else of it. Gradients are sums, so that 8 micro-batches of 1 item
give the gradient of 1 micro-batch of 8, and two processes that of one. Few parameters are trained,
so that processes add their gradients in one reduction for each step, without the hooks of a wrapper
such as DistributedDataParallel.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from clinpeft.adapters import PackedInput
from clinpeft.adapters.attach import derive_torch_seed
from clinpeft.core.errors import InputError, InterruptedRunError, TrainingError
from clinpeft.recipe import OptimizationSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training import checkpoint
from clinpeft.training.checkpoint import OPTIMIZER_PREFIX, TrainingProgress
from clinpeft.training.chunked_loss import LanguageModelHead

TrainableParameters = Mapping[str, torch.nn.Parameter]

WEIGHT_CHANGE_CHECK_STEPS = 3
"""After so many steps, at least one trained weight must have changed."""


@dataclass(frozen=True)
class LossSum:
    """A loss that can be added up.

    Attributes:
        loss: scalar with its gradient, summed over the targets.
        targets: number of targets, or the sum of their weights: what the sum is divided by.
    """

    loss: torch.Tensor
    targets: float


@dataclass(frozen=True)
class JointStep:
    """How a trainable takes a step in one pass with others, see ``train_jointly``.

    Attributes:
        make_micro_batches: items of a step -> its micro-batches.
        prepare_input: (items of a micro-batch, step) -> texts, and how their output becomes a loss.
        seed: of dropout, as for ``build_additive_backward``.
        needs_logits: whether the loss is computed from logits over the vocabulary, and not from
            hidden states.
        language_model_head: the output layer, where its logits are computed in blocks.
    """

    make_micro_batches: Callable[[IndexArray], list[IndexArray]]
    prepare_input: Callable[[IndexArray, int], PackedInput[LossSum]]
    seed: int
    needs_logits: bool = False
    language_model_head: LanguageModelHead | None = None


@dataclass(frozen=True)
class Trainable:
    """What is trained, as the loop sees it.

    Attributes:
        parameters: name -> trained parameter, in float32.
        make_epoch_batches: number of an epoch (from 0) -> the items of each of its steps; the same
            number gives the same steps.
        count_tokens: items -> their number of tokens.
        backward: (items, step) -> adds this process's share of the gradient of the summed loss to
            the parameters; returns summed loss and number of targets.
        set_training_mode: turns dropout on (True) or off (False).
        evaluate: computes the metrics of the tuning split by name; None where there is none.
        best_metric: the metric by which the best weights are selected; empty keeps the last ones.
        higher_is_better: of that metric.
        learning_rate_factors: name -> factor on the learning rate, where it is not 1.
        joint_step: ``backward`` in a form that several trainables can take in one pass; None where
            that is not possible.
    """

    parameters: TrainableParameters
    make_epoch_batches: Callable[[int], list[IndexArray]]
    count_tokens: Callable[[IndexArray], int]
    backward: Callable[[IndexArray, int], tuple[float, float]]
    set_training_mode: Callable[[bool], object]
    evaluate: Callable[[], dict[str, float]] | None = None
    best_metric: str = ""
    higher_is_better: bool = False
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    joint_step: JointStep | None = None


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step, for the log and the progress bar.

    Attributes:
        step, total_steps: from 1.
        loss: mean over the targets of the step.
        learning_rate: of this step, before the factors of single parameters.
        tokens, seconds: since the start of the run.
        tokens_per_second: over the whole run.
        remaining_seconds: by the mean duration of the steps so far.
        metrics: of the tuning split after this step, if it was evaluated.
    """

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float
    tokens_per_second: float
    remaining_seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that the loop calls.

    Attributes:
        on_step: after every step, before a checkpoint of it is written.
        should_stop: after every step; True stops the run after a checkpoint.
        on_resume: once, before the first step, with the step that the run resumes after (0 at the
            start).
        on_save: before a checkpoint is written, so that the log of earlier steps reaches the disk
            before it.
        read_joules: energy counter of the machine; None where it has none.
    """

    on_step: Callable[[StepEvent], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    on_resume: Callable[[int], None] = lambda _: None
    on_save: Callable[[], None] = lambda: None
    read_joules: Callable[[], float] | None = None


@dataclass(frozen=True)
class TrainingResult:
    """Progress at the end of a run.

    The parameters then hold the best weights by the tuning split, or the last where none were
    selected.
    """

    progress: TrainingProgress
    total_steps: int


def create_accelerator() -> Accelerator:
    """Create the processes of a run: one, unless ``torchrun`` or ``accelerate`` started more.

    They wait for each other for a day, since the first of them may be reading a large corpus.
    """
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])


def describe_hardware(accelerator: Accelerator) -> dict[str, Any]:
    """Describe the hardware of a run, for its record.

    Returns:
        ``device``, ``devices``, ``memory_bytes`` (None on a CPU) and ``system``.
    """
    # threads matter to the speed, and to the order of float32 sums
    device = f"cpu, {torch.get_num_threads()} threads"
    memory_bytes = None
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
        memory_bytes = torch.cuda.get_device_properties(accelerator.device).total_memory
    return {
        "device": device,
        "devices": accelerator.num_processes,
        "memory_bytes": memory_bytes,
        "system": f"{platform.system()} {platform.machine()}",
    }


def build_additive_backward(
    loss: Callable[[IndexArray, int], LossSum],
    make_micro_batches: Callable[[IndexArray], list[IndexArray]],
    seed: int,
    accelerator: Accelerator,
) -> Callable[[IndexArray, int], tuple[float, float]]:
    """Build ``Trainable.backward`` of a loss that is a sum over items.

    Args:
        loss: (items of a micro-batch, step) -> summed loss.
        make_micro_batches: items of a step -> its micro-batches.
        seed: of dropout, together with step and micro-batch.
        accelerator: the processes, each of which takes its share of the micro-batches.
    """

    def backward(items: IndexArray, step: int) -> tuple[float, float]:
        summed, targets = 0.0, 0.0
        micro_batches = list(enumerate(make_micro_batches(items)))
        # the global generators are as before afterwards, for whatever else draws from them
        with torch.random.fork_rng():
            for index, micro_batch in micro_batches[
                accelerator.process_index :: accelerator.num_processes
            ]:
                # the index within the step, and not within the process: dropout does not depend on
                # the number of processes
                torch.manual_seed(derive_dropout_seed(seed, step, index))
                loss_sum = loss(micro_batch, step)
                torch.autograd.backward(loss_sum.loss)
                summed += loss_sum.loss.item()
                targets += loss_sum.targets
        return summed, targets

    return backward


def run_training(
    trainable: Trainable,
    spec: OptimizationSpec,
    accelerator: Accelerator,
    folder: Path,
    callbacks: TrainingCallbacks = TrainingCallbacks(),
) -> TrainingResult:
    """Train the parameters of a trainable; resumes from the newest checkpoint in ``folder``.

    Args:
        trainable: what is trained.
        spec: optimizer, schedule, and number of evaluations and checkpoints.
        accelerator: the processes that share the work; every one of them calls this function.
        folder: of the checkpoints.
        callbacks: functions that the loop calls.

    Raises:
        InputError: the training split is empty.
        TrainingError: the loss is not finite, or no weight changed.
        InterruptedRunError: ``callbacks.should_stop`` returned True; a checkpoint was written.
    """
    trainer = Trainer(trainable, spec, accelerator, folder, callbacks)
    # on every process, from the same files
    trainer.resume()
    for step, items in trainer.iterate_remaining_steps():
        # at every step: an evaluation after the last one turned dropout off
        trainable.set_training_mode(True)
        trainer.take_step(step, items, *trainable.backward(items, step))
    return trainer.finish()


def compute_learning_rate(spec: OptimizationSpec, step: int, total_steps: int) -> float:
    """Compute the learning rate of a step (from 1).

    It rises linearly over the first ``warmup_fraction`` of the steps and then follows
    ``spec.schedule``: constant, linear to 0 after the last step, or half a cosine (Loshchilov and
    Hutter 2017, arXiv 1608.03983, equation 5, without restarts).
    """
    # at least one step where the fraction is above 0
    warmup_steps = math.ceil(spec.warmup_fraction * total_steps)
    if step <= warmup_steps:
        return spec.learning_rate * step / warmup_steps
    # 1 right after the warm-up, 1 / (total_steps - warmup_steps + 1) at the last step
    remaining = (total_steps - step + 1) / (total_steps - warmup_steps + 1)
    factors = {
        "constant": 1.0,
        "linear": remaining,
        "cosine": 0.5 * (1 - math.cos(math.pi * remaining)),
    }
    return spec.learning_rate * factors[spec.schedule]


def count_total_steps(trainable: Trainable, spec: OptimizationSpec) -> int:
    """Count the optimizer steps of the whole run."""
    epochs = math.ceil(spec.epochs)
    # epochs may differ in their number of steps, so each is counted
    epoch_steps = sum(len(trainable.make_epoch_batches(number)) for number in range(epochs))
    # spec.epochs may be a fraction, such as 0.5
    total_steps = math.ceil(epoch_steps * spec.epochs / epochs)
    return min(total_steps, spec.max_steps) if spec.max_steps else total_steps


class Trainer:
    """State of one training run.

    Call ``resume``; then, for each of ``iterate_remaining_steps``, compute the gradients and call
    ``take_step``; then ``finish``.
    """

    def __init__(
        self,
        trainable: Trainable,
        spec: OptimizationSpec,
        accelerator: Accelerator,
        folder: Path,
        callbacks: TrainingCallbacks,
    ) -> None:
        if not trainable.make_epoch_batches(0):
            raise InputError(
                "the training split is empty",
                location="split.train",
                hint="give more notes or a larger split.train",
            )
        self.trainable, self.spec = trainable, spec
        self.accelerator, self.folder, self.callbacks = accelerator, folder, callbacks
        factors = {
            name: trainable.learning_rate_factors.get(name, 1.0) for name in trainable.parameters
        }
        # one optimizer group for each learning-rate factor; the optimizer numbers its parameters
        # group by group, and checkpoints name its state in this order
        self.parameter_names = sorted(trainable.parameters, key=lambda name: factors[name])
        self.parameters = [trainable.parameters[name] for name in self.parameter_names]
        groups = [
            {
                "params": [
                    trainable.parameters[name]
                    for name in self.parameter_names
                    if factors[name] == factor
                ],
                "factor": factor,
            }
            for factor in sorted(set(factors.values()))
        ]
        # decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2)
        self.optimizer = torch.optim.AdamW(
            groups, lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        self.total_steps = count_total_steps(trainable, spec)
        # replaced by that of a checkpoint in resume()
        self.progress = TrainingProgress()
        # for _check_weights_changed, and only until then
        self.initial_values = [parameter.detach().clone() for parameter in self.parameters]
        self.start_seconds = time.perf_counter()
        self.start_joules = callbacks.read_joules() if callbacks.read_joules is not None else None

    def resume(self) -> None:
        """Resume from the newest checkpoint, if there is one."""
        newest = checkpoint.find_newest_checkpoint(self.folder)
        if newest is not None:
            tensors, self.progress = newest
            weights = {
                name: tensor
                for name, tensor in tensors.items()
                if not name.startswith(OPTIMIZER_PREFIX)
            }
            # in place: the optimizer refers to these parameter objects
            checkpoint.copy_into_parameters(self.trainable.parameters, weights)
            checkpoint.load_optimizer_state(self.optimizer, self.parameter_names, tensors)
            # the clock continues where the interrupted process stopped
            self.start_seconds = time.perf_counter() - self.progress.seconds
            # the energy of earlier steps is unknown where they ran on a machine without a counter,
            # and then so is the sum
            if self.start_joules is not None and self.progress.joules is not None:
                self.start_joules -= self.progress.joules
            else:
                self.start_joules = None
        # every process has read the checkpoints before the main process removes some
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoint.remove_later_checkpoints(self.folder, self.progress.step)
            self.callbacks.on_resume(self.progress.step)

    def iterate_remaining_steps(self) -> Iterator[tuple[int, IndexArray]]:
        """Iterate over the steps that were not taken yet.

        Yields:
            Step (from 1) and its items.
        """
        step, epoch = 0, 0
        while True:
            # the order of an epoch depends on its number alone, so that steps before a checkpoint
            # are the same again, and are skipped
            for items in self.trainable.make_epoch_batches(epoch):
                step += 1
                patience_exhausted = (
                    bool(self.spec.patience)
                    and self.progress.evaluations_since_best >= self.spec.patience
                )
                if step > self.total_steps or patience_exhausted:
                    return
                if step > self.progress.step:
                    yield step, items
            epoch += 1

    def take_step(self, step: int, items: IndexArray, summed: float, targets: float) -> None:
        """Take an optimizer step along the gradients that are in the parameters.

        Args:
            step: from 1.
            items: of the step.
            summed: this process's share of the summed loss.
            targets: this process's share of the number of targets.

        Raises:
            TrainingError: loss or gradient is not finite, or no weight changed.
            InterruptedRunError: ``callbacks.should_stop`` returned True.
        """
        learning_rate = compute_learning_rate(self.spec, step, self.total_steps)
        # heads may have another rate than adapters, by a constant factor
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        loss = self._reduce_gradients(summed, targets)
        # global norm (Pascanu et al. 2013, arXiv 1211.5063, algorithm 1)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {loss} and gradient norm {norm} are not both finite numbers",
                location=f"step {step} of {self.total_steps}",
                hint='lower training.learning_rate, or set base.precision = "float32"; the weights'
                " of the last checkpoint are sound",
            )
        # gradients are means over the targets of the step by now
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step = step
        self.progress.tokens += self.trainable.count_tokens(items)
        self._check_weights_changed(step)
        self._finish_step(step, loss, learning_rate)

    def _reduce_gradients(self, summed: float, targets: float) -> float:
        """Sum over the processes, then divide once by the targets of the whole step."""
        # float64: the loss of a large step is a sum of millions of terms
        totals = torch.tensor(
            [summed, targets], dtype=torch.float64, device=self.accelerator.device
        )
        loss, count = self.accelerator.reduce(totals, "sum").tolist()
        # one flat tensor, and so one reduction, whatever the number of parameters
        flat = self.accelerator.reduce(flatten_gradients(self.parameters), "sum") / (count or 1.0)
        # (numbers,) -> one piece for each parameter
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return float(loss / (count or 1.0))

    def _finish_step(self, step: int, loss: float, learning_rate: float) -> None:
        """Evaluate, log and save, where this step is one of those that do."""
        progress, is_main = self.progress, self.accelerator.is_main_process
        evaluates = step in _space_evenly(self.total_steps, self.spec.evaluations)
        metrics = self._evaluate(step) if evaluates else {}
        progress.seconds = time.perf_counter() - self.start_seconds
        if self.start_joules is not None and self.callbacks.read_joules is not None:
            progress.joules = self.callbacks.read_joules() - self.start_joules
        progress.history.append({"step": step, "loss": loss, **metrics})
        # one process logs and saves; all hold the same weights
        if is_main:
            event = StepEvent(
                step,
                self.total_steps,
                loss,
                learning_rate,
                progress.tokens,
                progress.seconds,
                progress.tokens / progress.seconds,
                progress.seconds / step * (self.total_steps - step),
                metrics,
            )
            self.callbacks.on_step(event)
        # all processes stop if one of them is asked to
        flag = torch.tensor([float(self.callbacks.should_stop())], device=self.accelerator.device)
        stops = bool(self.accelerator.reduce(flag, "sum").item() > 0)
        if is_main and (stops or step in _space_evenly(self.total_steps, self.spec.checkpoints)):
            # the log reaches the disk first, so that no step of the checkpoint lacks its line
            self.callbacks.on_save()
            tensors = dict(self.trainable.parameters) | checkpoint.collect_optimizer_tensors(
                self.optimizer, self.parameter_names
            )
            checkpoint.save_step_checkpoint(self.folder, tensors, progress)
        if stops and step < self.total_steps:
            raise InterruptedRunError(
                f"stopped after step {step} of {self.total_steps}",
                location=str(self.folder),
                hint="give the same command to resume",
            )

    def _evaluate(self, step: int) -> dict[str, float]:
        """Evaluate on the tuning split, and save the weights when they are the best so far."""
        if self.trainable.evaluate is None:
            return {}
        # without dropout; every process evaluates its share
        self.trainable.set_training_mode(False)
        metrics = self.trainable.evaluate()
        if not self.trainable.best_metric:
            return metrics
        value, best = metrics[self.trainable.best_metric], self.progress.best
        improves = best is None or (
            value > best if self.trainable.higher_is_better else value < best
        )
        # a metric that is not defined (NaN) never selects weights
        if math.isnan(value) or not improves:
            self.progress.evaluations_since_best += 1
            return metrics
        self.progress.best, self.progress.best_step = value, step
        self.progress.evaluations_since_best = 0
        if self.accelerator.is_main_process:
            checkpoint.save_best_weights(self.folder, self.trainable.parameters, step)
        return metrics

    def finish(self) -> TrainingResult:
        """Load the best weights; without a tuning split, the last ones stay."""
        self.accelerator.wait_for_everyone()
        # after the last step the parameters may be the best ones already
        if self.progress.best_step and self.progress.best_step != self.progress.step:
            checkpoint.copy_into_parameters(
                self.trainable.parameters,
                checkpoint.load_best_weights(self.folder, self.progress.best_step),
            )
        self.trainable.set_training_mode(False)
        # the best weights are in the parameters now, the last ones in the checkpoint
        return TrainingResult(self.progress, self.total_steps)

    def _check_weights_changed(self, step: int) -> None:
        """Check early that a weight changed; an adapter outside the pass raises no other error."""
        if step != min(WEIGHT_CHANGE_CHECK_STEPS, self.total_steps):
            return
        # equal to the bit: AdamW moves every weight that has a gradient
        pairs = zip(self.initial_values, self.parameters, strict=True)
        if all(torch.equal(initial, parameter) for initial, parameter in pairs):
            raise TrainingError(
                f"none of the {len(self.initial_values)} trained tensors moved in {step} steps",
                location="adapters",
                hint="the adapter is not part of the forward pass, or the learning rate is too"
                " small to matter",
            )
        self.initial_values = []  # frees a copy of everything that is trained


def flatten_gradients(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Concatenate the gradients of parameters, zeros where a parameter has none.

    Returns:
        (numbers,) of all parameters, one after another.
    """
    return torch.cat(
        [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            .detach()
            .reshape(-1)
            for parameter in parameters
        ]
    )


def _space_evenly(total_steps: int, count: int) -> set[int]:
    """``count`` steps evenly spaced over ``total_steps``, the last one always among them."""
    # ceil, so that the last of them is the last step
    return {max(1, math.ceil(total_steps * index / count)) for index in range(1, count + 1)}


def derive_dropout_seed(seed: int, step: int, micro_batch_index: int) -> int:
    """Derive the seed of a micro-batch's dropout from seed, step and micro-batch alone.

    So a resumed run, and a run on two processes, draw what one uninterrupted run would have drawn.
    """
    # one process draws for every micro-batch what several draw for their share
    return derive_torch_seed(seed, step, micro_batch_index)
