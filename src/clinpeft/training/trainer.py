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
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from clinpeft.adapters import Reading
from clinpeft.core.errors import InputError, InterruptedRun, TrainingError
from clinpeft.recipe import OptimisationSpec
from clinpeft.tokenization import Ints
from clinpeft.training import checkpoint
from clinpeft.training.checkpoint import Progress
from clinpeft.training.chunked_loss import Vocabulary

Crew: TypeAlias = Accelerator
"""The processes that share a run."""

Parameters = Mapping[str, torch.nn.Parameter]

STEPS_BEFORE_THE_MOVED_CHECK = 3


@dataclass(frozen=True)
class Sums:
    """A loss that can be added up: summed over what it was asked of (a scalar with its gradient), and how much that was."""

    loss: torch.Tensor
    targets: float


@dataclass(frozen=True)
class Share:
    """How a course is learned in one pass with others, see ``together``.

    Attributes:
        grouped: the items of a step -> its micro-batches.
        reading: (items of a micro-batch, step) -> the texts that the model is asked, and its answer's loss.
        seed: of dropout, as for ``additive``.
        words: whether the model is asked for words and not for vectors.
        vocabulary: of words, where their scores need not be made all at once.
    """

    grouped: Callable[[Ints], list[Ints]]
    reading: Callable[[Ints, int], Reading[Sums]]
    seed: int
    words: bool = False
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True)
class Course:
    """What is learned, as the loop sees it.

    Attributes:
        parameters: name -> what is trained, in float32.
        epoch: number from 0 -> the items of each of its steps; the same number gives the same steps.
        tokens: items -> how many tokens they are.
        backward: (items, step) -> adds this process's share of the gradient of the summed loss to the parameters; gives summed loss and targets.
        mode: True: dropout on; False: off.
        measure: the tuning split, name -> number; None where there is none.
        best_by: the measurement by which the best weights are kept; empty keeps the last.
        higher_is_better: of that measurement.
        scales: name -> factor on the learning rate, where it is not 1.
        share: the same as ``backward``, in a way that several courses can be learned in one pass; None where that is not possible.
    """

    parameters: Parameters
    epoch: Callable[[int], list[Ints]]
    tokens: Callable[[Ints], int]
    backward: Callable[[Ints, int], tuple[float, float]]
    mode: Callable[[bool], object]
    measure: Callable[[], dict[str, float]] | None = None
    best_by: str = ""
    higher_is_better: bool = False
    scales: Mapping[str, float] = field(default_factory=dict)
    share: Share | None = None


@dataclass(frozen=True)
class Event:
    """One step as the log and the progress bar see it, with what was measured on the tuning split after it, if anything."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float
    tokens_per_second: float
    seconds_left: float
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Watch:
    """Who is told of each event, and who may ask the loop to stop between two steps.

    Attributes:
        tell: is told of every step, before a checkpoint of it is written.
        stopping: whether to stop after this step.
        resumed: is told once, before the first event, after which step the run goes on: 0 at the beginning.
        saving: is told before a checkpoint is written, so that what was told of earlier steps is as safe as the checkpoint.
        joules: what the machine's meters have counted so far; None where it has none.
    """

    tell: Callable[[Event], None] = lambda _: None
    stopping: Callable[[], bool] = lambda: False
    resumed: Callable[[int], None] = lambda _: None
    saving: Callable[[], None] = lambda: None
    joules: Callable[[], float] | None = None


@dataclass(frozen=True)
class Fitted:
    """How it went; the parameters hold the best weights by the tuning split, or the last where nothing was measured."""

    progress: Progress
    total_steps: int


def assemble() -> Crew:
    """The processes that share a run: one, unless ``torchrun`` or ``accelerate launch`` started several. They wait for each other for a day, since
    the first of them may be reading a large corpus."""
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])


def hardware(accelerator: Crew) -> dict[str, Any]:
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


def additive(
    loss: Callable[[Ints, int], Sums],
    grouped: Callable[[Ints], list[Ints]],
    seed: int,
    accelerator: Crew,
) -> Callable[[Ints, int], tuple[float, float]]:
    """``Course.backward`` of a loss that is a sum over items: micro-batch by micro-batch, each process its share of them.

    Args:
        loss: (items of a micro-batch, step) -> sums.
        grouped: the items of a step -> its micro-batches.
        seed: of dropout, together with step and micro-batch.
        accelerator: the processes.
    """

    def backward(chosen: Ints, step: int) -> tuple[float, float]:
        summed, targets = 0.0, 0.0
        with torch.random.fork_rng():
            for at, items in list(enumerate(grouped(chosen)))[
                accelerator.process_index :: accelerator.num_processes
            ]:
                torch.manual_seed(dropout_seed(seed, step, at))
                sums = loss(items, step)
                torch.autograd.backward(sums.loss)
                summed, targets = summed + sums.loss.item(), targets + sums.targets
        return summed, targets

    return backward


def fit(
    course: Course, spec: OptimisationSpec, accelerator: Crew, folder: Path, watch: Watch = Watch()
) -> Fitted:
    """Train the parameters of a course. A call that finds checkpoints in ``folder`` goes on from the newest.

    Args:
        course: what is learned.
        spec: how.
        accelerator: the processes that share the work; every one of them calls this.
        folder: of the checkpoints.
        watch: who is told, and who may stop it.

    Raises:
        InputError: there is nothing to train on.
        TrainingError: the loss is not a number, or nothing moved.
        InterruptedRun: ``watch.stopping`` said so; a checkpoint was written.
    """
    running = Running(course, spec, accelerator, folder, watch)
    running.resume()
    for step, chosen in running.remaining():
        course.mode(True)
        running.step(step, chosen, *course.backward(chosen, step))
    return running.ended()


def learning_rate(spec: OptimisationSpec, step: int, total: int) -> float:
    """The rate of step ``step`` (from 1): a linear rise over ``warmup_fraction`` of the steps, then the schedule, reaching 0 after the last."""
    warm = math.ceil(spec.warmup_fraction * total)
    if step <= warm:
        return spec.learning_rate * step / warm
    left = (total - step + 1) / (total - warm + 1)  # 1 just after the warm-up, near 0 at the end
    shapes = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}
    return spec.learning_rate * shapes[spec.schedule]


def total_steps(course: Course, spec: OptimisationSpec) -> int:
    """Optimiser steps of the whole run."""
    counted = sum(len(course.epoch(number)) for number in range(math.ceil(spec.epochs)))
    wanted = math.ceil(counted * spec.epochs / math.ceil(spec.epochs))
    return min(wanted, spec.max_steps) if spec.max_steps else wanted


class Running:
    """The state of one course that is learned: ``resume``, then ``step`` for each of ``remaining`` with its gradients made, then ``ended``."""

    def __init__(
        self, course: Course, spec: OptimisationSpec, accelerator: Crew, folder: Path, watch: Watch
    ) -> None:
        if not course.epoch(0):
            raise InputError(
                "the training split has nothing to learn from",
                location="split.train",
                hint="give more notes or a larger split.train",
            )
        self.course, self.spec = course, spec
        self.accelerator, self.folder, self.watch = accelerator, folder, watch
        self.names = sorted(
            course.parameters, key=lambda name: course.scales.get(name, 1.0)
        )  # in the order of the optimiser's groups
        self.parameters = [course.parameters[name] for name in self.names]
        self.optimiser = torch.optim.AdamW(
            self._groups(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        self.total = total_steps(course, spec)
        self.progress = Progress()
        self.fresh = [parameter.detach().clone() for parameter in self.parameters]
        self.begun = time.perf_counter()
        self.metered = watch.joules() if watch.joules is not None else None

    def _groups(self) -> list[dict[str, Any]]:
        factors = {name: self.course.scales.get(name, 1.0) for name in self.names}
        return [
            {
                "params": [
                    self.course.parameters[name] for name in self.names if factors[name] == factor
                ],
                "factor": factor,
            }
            for factor in sorted(set(factors.values()))
        ]

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoint.newest(self.folder)
        if found is not None:
            tensors, self.progress = found
            checkpoint.fill(
                self.course.parameters,
                {
                    name: tensor
                    for name, tensor in tensors.items()
                    if not name.startswith("optimiser.")
                },
            )
            checkpoint.load_optimiser(self.optimiser, self.names, tensors)
            self.begun = time.perf_counter() - self.progress.seconds
            before = (
                self.progress.joules
            )  # None: of the steps so far it is not known, so that the sum is not
            self.metered = None if self.metered is None or before is None else self.metered - before
        self.accelerator.wait_for_everyone()  # all have read what may now be removed
        if self.accelerator.is_main_process:
            checkpoint.clear_after(self.folder, self.progress.step)
            self.watch.resumed(self.progress.step)

    def remaining(self) -> Iterator[tuple[int, Ints]]:
        """(step from 1, items) for the steps not yet taken."""
        step, number = 0, 0
        while True:
            for chosen in self.course.epoch(number):
                step += 1
                if step > self.total or self._patience_is_over():
                    return
                if step > self.progress.step:
                    yield step, chosen
            number += 1

    def step(self, step: int, chosen: Ints, summed: float, targets: float) -> None:
        """Take a step along the gradients that are in the parameters; the loss summed over this process's share, and how much that was."""
        rate = learning_rate(self.spec, step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        loss = self._reduce(summed, targets)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.clip_norm)
        self._must_be_finite(step, loss, float(norm))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.step = step
        self.progress.tokens += self.course.tokens(chosen)
        self._must_have_moved(step)
        self._after(step, loss, rate)

    def _reduce(self, summed: float, targets: float) -> float:
        """Add sums up over the processes, then divide once by the targets of the whole step."""
        whole = self.accelerator.reduce(
            torch.tensor([summed, targets], dtype=torch.float64, device=self.accelerator.device),
            "sum",
        )
        loss, count = whole.tolist()
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in self.parameters])
        flat = self.accelerator.reduce(flat, "sum") / (count or 1.0)
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return float(loss / (count or 1.0))

    def _after(self, step: int, loss: float, rate: float) -> None:
        measured = self._measure(step) if step in _spread(self.total, self.spec.evaluations) else {}
        self.progress.seconds = time.perf_counter() - self.begun
        if self.metered is not None and self.watch.joules is not None:
            self.progress.joules = self.watch.joules() - self.metered
        self.progress.history.append({"step": step, "loss": loss, **measured})
        if self.accelerator.is_main_process:
            self.watch.tell(self._event(step, loss, rate, measured))
        stopping = self._anyone_is_stopping()
        if self.accelerator.is_main_process and (
            stopping or step in _spread(self.total, self.spec.checkpoints)
        ):
            self.watch.saving()
            checkpoint.save_step(self.folder, self._all_tensors(), self.progress)
        if stopping and step < self.total:
            raise InterruptedRun(
                f"stopped after step {step} of {self.total}",
                location=str(self.folder),
                hint="give the same command to go on",
            )

    def _measure(self, step: int) -> dict[str, float]:
        """What the tuning split says; the weights are kept when they are the best so far."""
        if self.course.measure is None:
            return {}
        self.course.mode(False)
        measured = self.course.measure()
        if self.course.best_by:
            self._keep(step, measured[self.course.best_by])
        return measured

    def _keep(self, step: int, value: float) -> None:
        best = self.progress.best
        if math.isnan(value) or (
            best is not None and (value <= best if self.course.higher_is_better else value >= best)
        ):
            self.progress.evaluations_since_best += 1
            return
        self.progress.best, self.progress.best_step, self.progress.evaluations_since_best = (
            value,
            step,
            0,
        )
        if self.accelerator.is_main_process:
            checkpoint.save_best(self.folder, self.course.parameters, step)

    def ended(self) -> Fitted:
        """Put the best weights back; without a tuning split the last ones stay."""
        self.accelerator.wait_for_everyone()
        if self.progress.best_step and self.progress.best_step != self.progress.step:
            checkpoint.fill(
                self.course.parameters, checkpoint.load_best(self.folder, self.progress.best_step)
            )
        self.course.mode(False)
        return Fitted(self.progress, self.total)

    def _all_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.course.parameters) | checkpoint.optimiser_tensors(
            self.optimiser, self.names
        )

    def _event(self, step: int, loss: float, rate: float, measured: Mapping[str, float]) -> Event:
        seconds = self.progress.seconds
        left = seconds / step * (self.total - step)
        return Event(
            step,
            self.total,
            loss,
            rate,
            self.progress.tokens,
            seconds,
            self.progress.tokens / seconds,
            left,
            measured,
        )

    def _anyone_is_stopping(self) -> bool:
        flag = torch.tensor([float(self.watch.stopping())], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def _patience_is_over(self) -> bool:
        return (
            bool(self.spec.patience) and self.progress.evaluations_since_best >= self.spec.patience
        )

    def _must_be_finite(self, step: int, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            hint = 'lower training.learning_rate, or set base.precision = "float32"; the weights of the last checkpoint are sound'
            raise TrainingError(
                f"loss {loss} and gradient norm {norm} are not both numbers",
                location=f"step {step} of {self.total}",
                hint=hint,
            )

    def _must_have_moved(self, step: int) -> None:
        """peft fails silently when an adapter is not in the forward pass; weights that stay where they were tell."""
        if step != min(STEPS_BEFORE_THE_MOVED_CHECK, self.total):
            return
        if all(torch.equal(old, new) for old, new in zip(self.fresh, self.parameters, strict=True)):
            hint = "the adapter is not part of the forward pass, or the learning rate is too small to matter"
            raise TrainingError(
                f"none of the {len(self.fresh)} trained tensors moved in {step} steps",
                location="adapters",
                hint=hint,
            )
        self.fresh = []


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _spread(total: int, times: int) -> set[int]:
    """``times`` steps evenly spaced over ``total``, the last one always among them."""
    return {max(1, math.ceil(total * at / times)) for at in range(1, times + 1)}


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Dropout is a function of seed, step and micro-batch, so that a resumed run and a run on two processes draw what one run would have drawn."""
    return int(
        np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )
