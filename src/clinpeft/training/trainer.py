"""The one training loop: steps of items, over micro-batches and processes, with the loss divided once.

What is learned is a ``Course``: parameters, the items of every step, and how a step becomes gradients; the loop knows nothing else of it. Gradients
are sums, so 8 micro-batches of 1 item give the gradient of 1 micro-batch of 8, and two processes that of one. What is trained is small, so that
processes add their gradients up in one reduction a step instead of behind a wrapper's hooks.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from clinpeft.adapters import PackedInput
from clinpeft.core.errors import InputError, InterruptedRunError, TrainingError
from clinpeft.recipe import OptimizationSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training import checkpoint
from clinpeft.training.checkpoint import TrainingProgress
from clinpeft.training.chunked_loss import LanguageModelHead

"""The processes that share a run."""

TrainableParameters = Mapping[str, torch.nn.Parameter]

WEIGHT_CHANGE_CHECK_STEPS = 3


@dataclass(frozen=True)
class LossSum:
    """A loss that can be added up: summed over what it was asked of (a scalar with its gradient), and how much that was."""

    loss: torch.Tensor
    targets: float


@dataclass(frozen=True)
class JointStep:
    """How a course is learned in one pass with others, see ``together``.

    Attributes:
        make_micro_batches: the items of a step -> its micro-batches.
        prepare_input: (items of a micro-batch, step) -> the texts that the model is asked, and its answer's loss.
        seed: of dropout, as for ``additive``.
        needs_logits: whether the model is asked for words and not for vectors.
        language_model_head: of words, where their scores need not be made all at once.
    """

    make_micro_batches: Callable[[IndexArray], list[IndexArray]]
    prepare_input: Callable[[IndexArray, int], PackedInput[LossSum]]
    seed: int
    needs_logits: bool = False
    language_model_head: LanguageModelHead | None = None


@dataclass(frozen=True)
class Trainable:
    """What is learned, as the loop sees it.

    Attributes:
        parameters: name -> what is trained, in float32.
        make_epoch_batches: number from 0 -> the items of each of its steps; the same number gives the same steps.
        count_tokens: items -> how many tokens they are.
        backward: (items, step) -> adds this process's share of the gradient of the summed loss to the parameters; gives summed loss and targets.
        set_training_mode: True: dropout on; False: off.
        evaluate: the tuning split, name -> number; None where there is none.
        best_metric: the measurement by which the best weights are kept; empty keeps the last.
        higher_is_better: of that measurement.
        learning_rate_factors: name -> factor on the learning rate, where it is not 1.
        joint_step: the same as ``backward``, in a way that several courses can be learned in one pass; None where that is not possible.
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
    """One step as the log and the progress bar see it, with what was measured on the tuning split after it, if anything."""

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
    """Who is told of each event, and who may ask the loop to stop between two steps.

    Attributes:
        on_step: is told of every step, before a checkpoint of it is written.
        should_stop: whether to stop after this step.
        on_resume: is told once, before the first event, after which step the run goes on: 0 at the beginning.
        on_save: is told before a checkpoint is written, so that what was told of earlier steps is as safe as the checkpoint.
        read_joules: what the machine's meters have counted so far; None where it has none.
    """

    on_step: Callable[[StepEvent], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    on_resume: Callable[[int], None] = lambda _: None
    on_save: Callable[[], None] = lambda: None
    read_joules: Callable[[], float] | None = None


@dataclass(frozen=True)
class TrainingResult:
    """How it went; the parameters hold the best weights by the tuning split, or the last where nothing was measured."""

    progress: TrainingProgress
    total_steps: int


def create_accelerator() -> Accelerator:
    """The processes that share a run: one, unless ``torchrun`` or ``accelerate launch`` started several. They wait for each other for a day, since
    the first of them may be reading a large corpus."""
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])


def describe_hardware(accelerator: Accelerator) -> dict[str, Any]:
    """What the processes run on: ``device``, ``devices``, ``memory_bytes`` (None where it is not told), ``system``."""
    cuda = accelerator.device.type == "cuda"
    name = (
        torch.cuda.get_device_name(accelerator.device)
        if cuda
        else f"cpu, {torch.get_num_threads()} threads"
    )
    memory = torch.cuda.get_device_properties(accelerator.device).total_memory if cuda else None
    return {
        "device": name,
        "devices": accelerator.num_processes,
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
    }


def build_additive_backward(
    loss: Callable[[IndexArray, int], LossSum],
    make_micro_batches: Callable[[IndexArray], list[IndexArray]],
    seed: int,
    accelerator: Accelerator,
) -> Callable[[IndexArray, int], tuple[float, float]]:
    """``Course.backward`` of a loss that is a sum over items: micro-batch by micro-batch, each process its share of them.

    Args:
        loss: (items of a micro-batch, step) -> sums.
        make_micro_batches: the items of a step -> its micro-batches.
        seed: of dropout, together with step and micro-batch.
        accelerator: the processes.
    """

    def backward(chosen: IndexArray, step: int) -> tuple[float, float]:
        summed, targets = 0.0, 0.0
        with torch.random.fork_rng():
            for at, items in list(enumerate(make_micro_batches(chosen)))[
                accelerator.process_index :: accelerator.num_processes
            ]:
                torch.manual_seed(derive_dropout_seed(seed, step, at))
                sums = loss(items, step)
                torch.autograd.backward(sums.loss)
                summed, targets = summed + sums.loss.item(), targets + sums.targets
        return summed, targets

    return backward


def run_training(
    trainable: Trainable,
    spec: OptimizationSpec,
    accelerator: Accelerator,
    folder: Path,
    callbacks: TrainingCallbacks = TrainingCallbacks(),
) -> TrainingResult:
    """Train the parameters of a course. A call that finds checkpoints in ``folder`` goes on from the newest.

    Args:
        trainable: what is learned.
        spec: how.
        accelerator: the processes that share the work; every one of them calls this.
        folder: of the checkpoints.
        callbacks: who is told, and who may stop it.

    Raises:
        InputError: there is nothing to train on.
        TrainingError: the loss is not a number, or nothing moved.
        InterruptedRun: ``watch.stopping`` said so; a checkpoint was written.
    """
    running = Trainer(trainable, spec, accelerator, folder, callbacks)
    running.resume()
    for step, chosen in running.iterate_remaining_steps():
        trainable.set_training_mode(True)
        running.take_step(step, chosen, *trainable.backward(chosen, step))
    return running.finish()


def compute_learning_rate(spec: OptimizationSpec, step: int, total_steps: int) -> float:
    """The rate of step ``step`` (from 1): a linear rise over ``warmup_fraction`` of the steps, then the schedule, reaching 0 after the last."""
    warm = math.ceil(spec.warmup_fraction * total_steps)
    if step <= warm:
        return spec.learning_rate * step / warm
    left = (total_steps - step + 1) / (
        total_steps - warm + 1
    )  # 1 just after the warm-up, near 0 at the end
    shapes = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}
    return spec.learning_rate * shapes[spec.schedule]


def count_total_steps(trainable: Trainable, spec: OptimizationSpec) -> int:
    """Optimiser steps of the whole run."""
    counted = sum(
        len(trainable.make_epoch_batches(number)) for number in range(math.ceil(spec.epochs))
    )
    wanted = math.ceil(counted * spec.epochs / math.ceil(spec.epochs))
    return min(wanted, spec.max_steps) if spec.max_steps else wanted


class Trainer:
    """The state of one course that is learned: ``resume``, then ``take_step`` for each of ``iterate_remaining_steps`` with its gradients made, then ``finish``."""

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
                "the training split has nothing to learn from",
                location="split.train",
                hint="give more notes or a larger split.train",
            )
        self.trainable, self.spec = trainable, spec
        self.accelerator, self.folder, self.callbacks = accelerator, folder, callbacks
        self.parameter_names = sorted(
            trainable.parameters, key=lambda name: trainable.learning_rate_factors.get(name, 1.0)
        )  # in the order of the optimiser's groups
        self.parameters = [trainable.parameters[name] for name in self.parameter_names]
        self.optimizer = torch.optim.AdamW(
            self._build_parameter_groups(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        self.total_steps = count_total_steps(trainable, spec)
        self.progress = TrainingProgress()
        self.initial_values = [parameter.detach().clone() for parameter in self.parameters]
        self.start_seconds = time.perf_counter()
        self.start_joules = callbacks.read_joules() if callbacks.read_joules is not None else None

    def _build_parameter_groups(self) -> list[dict[str, Any]]:
        factors = {
            name: self.trainable.learning_rate_factors.get(name, 1.0)
            for name in self.parameter_names
        }
        return [
            {
                "params": [
                    self.trainable.parameters[name]
                    for name in self.parameter_names
                    if factors[name] == factor
                ],
                "factor": factor,
            }
            for factor in sorted(set(factors.values()))
        ]

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoint.find_newest_checkpoint(self.folder)
        if found is not None:
            tensors, self.progress = found
            checkpoint.copy_into_parameters(
                self.trainable.parameters,
                {
                    name: tensor
                    for name, tensor in tensors.items()
                    if not name.startswith("optimiser.")
                },
            )
            checkpoint.load_optimizer_state(self.optimizer, self.parameter_names, tensors)
            self.start_seconds = time.perf_counter() - self.progress.seconds
            before = (
                self.progress.joules
            )  # None: of the steps so far it is not known, so that the sum is not
            self.start_joules = (
                None if self.start_joules is None or before is None else self.start_joules - before
            )
        self.accelerator.wait_for_everyone()  # all have read what may now be removed
        if self.accelerator.is_main_process:
            checkpoint.remove_later_checkpoints(self.folder, self.progress.step)
            self.callbacks.on_resume(self.progress.step)

    def iterate_remaining_steps(self) -> Iterator[tuple[int, IndexArray]]:
        """(step from 1, items) for the steps not yet taken."""
        step, number = 0, 0
        while True:
            for chosen in self.trainable.make_epoch_batches(number):
                step += 1
                if step > self.total_steps or self._is_patience_exhausted():
                    return
                if step > self.progress.step:
                    yield step, chosen
            number += 1

    def take_step(self, step: int, items: IndexArray, summed: float, targets: float) -> None:
        """Take a step along the gradients that are in the parameters; the loss summed over this process's share, and how much that was."""
        rate = compute_learning_rate(self.spec, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss = self._reduce_gradients(summed, targets)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.clip_norm)
        self._check_finite(step, loss, float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step = step
        self.progress.tokens += self.trainable.count_tokens(items)
        self._check_weights_changed(step)
        self._finish_step(step, loss, rate)

    def _reduce_gradients(self, summed: float, targets: float) -> float:
        """Add sums up over the processes, then divide once by the targets of the whole step."""
        whole = self.accelerator.reduce(
            torch.tensor([summed, targets], dtype=torch.float64, device=self.accelerator.device),
            "sum",
        )
        loss, count = whole.tolist()
        flat = torch.cat([_get_gradient(parameter).reshape(-1) for parameter in self.parameters])
        flat = self.accelerator.reduce(flat, "sum") / (count or 1.0)
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return float(loss / (count or 1.0))

    def _finish_step(self, step: int, loss: float, learning_rate: float) -> None:
        measured = (
            self._evaluate(step)
            if step in _space_evenly(self.total_steps, self.spec.evaluations)
            else {}
        )
        self.progress.seconds = time.perf_counter() - self.start_seconds
        if self.start_joules is not None and self.callbacks.read_joules is not None:
            self.progress.joules = self.callbacks.read_joules() - self.start_joules
        self.progress.history.append({"step": step, "loss": loss, **measured})
        if self.accelerator.is_main_process:
            self.callbacks.on_step(self._create_event(step, loss, learning_rate, measured))
        stopping = self._is_stop_requested()
        if self.accelerator.is_main_process and (
            stopping or step in _space_evenly(self.total_steps, self.spec.checkpoints)
        ):
            self.callbacks.on_save()
            checkpoint.save_step_checkpoint(
                self.folder, self._collect_checkpoint_tensors(), self.progress
            )
        if stopping and step < self.total_steps:
            raise InterruptedRunError(
                f"stopped after step {step} of {self.total_steps}",
                location=str(self.folder),
                hint="give the same command to go on",
            )

    def _evaluate(self, step: int) -> dict[str, float]:
        """What the tuning split says; the weights are kept when they are the best so far."""
        if self.trainable.evaluate is None:
            return {}
        self.trainable.set_training_mode(False)
        measured = self.trainable.evaluate()
        if self.trainable.best_metric:
            self._update_best(step, measured[self.trainable.best_metric])
        return measured

    def _update_best(self, step: int, metric: float) -> None:
        best = self.progress.best
        if math.isnan(metric) or (
            best is not None
            and (metric <= best if self.trainable.higher_is_better else metric >= best)
        ):
            self.progress.evaluations_since_best += 1
            return
        self.progress.best, self.progress.best_step, self.progress.evaluations_since_best = (
            metric,
            step,
            0,
        )
        if self.accelerator.is_main_process:
            checkpoint.save_best_weights(self.folder, self.trainable.parameters, step)

    def finish(self) -> TrainingResult:
        """Put the best weights back; without a tuning split the last ones stay."""
        self.accelerator.wait_for_everyone()
        if self.progress.best_step and self.progress.best_step != self.progress.step:
            checkpoint.copy_into_parameters(
                self.trainable.parameters,
                checkpoint.load_best_weights(self.folder, self.progress.best_step),
            )
        self.trainable.set_training_mode(False)
        return TrainingResult(self.progress, self.total_steps)

    def _collect_checkpoint_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.trainable.parameters) | checkpoint.collect_optimizer_tensors(
            self.optimizer, self.parameter_names
        )

    def _create_event(
        self, step: int, loss: float, learning_rate: float, metrics: Mapping[str, float]
    ) -> StepEvent:
        seconds = self.progress.seconds
        left = seconds / step * (self.total_steps - step)
        return StepEvent(
            step,
            self.total_steps,
            loss,
            learning_rate,
            self.progress.tokens,
            seconds,
            self.progress.tokens / seconds,
            left,
            metrics,
        )

    def _is_stop_requested(self) -> bool:
        flag = torch.tensor([float(self.callbacks.should_stop())], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def _is_patience_exhausted(self) -> bool:
        return (
            bool(self.spec.patience) and self.progress.evaluations_since_best >= self.spec.patience
        )

    def _check_finite(self, step: int, loss: float, gradient_norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            hint = 'lower training.learning_rate, or set base.precision = "float32"; the weights of the last checkpoint are sound'
            raise TrainingError(
                f"loss {loss} and gradient norm {gradient_norm} are not both numbers",
                location=f"step {step} of {self.total_steps}",
                hint=hint,
            )

    def _check_weights_changed(self, step: int) -> None:
        """peft fails silently when an adapter is not in the forward pass; weights that stay where they were tell."""
        if step != min(WEIGHT_CHANGE_CHECK_STEPS, self.total_steps):
            return
        if all(
            torch.equal(old, new)
            for old, new in zip(self.initial_values, self.parameters, strict=True)
        ):
            hint = "the adapter is not part of the forward pass, or the learning rate is too small to matter"
            raise TrainingError(
                f"none of the {len(self.initial_values)} trained tensors moved in {step} steps",
                location="adapters",
                hint=hint,
            )
        self.initial_values = []


def _get_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _space_evenly(total_steps: int, count: int) -> set[int]:
    """``count`` steps evenly spaced over ``total_steps``, the last one always among them."""
    return {max(1, math.ceil(total_steps * at / count)) for at in range(1, count + 1)}


def derive_dropout_seed(seed: int, step: int, micro_batch_index: int) -> int:
    """Dropout is a function of seed, step and micro-batch, so that a resumed run and a run on two processes draw what one run would have drawn."""
    return int(
        np.random.SeedSequence([seed, step, micro_batch_index]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )
