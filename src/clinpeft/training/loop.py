"""The one training loop: steps of a fixed number of tokens, over micro-batches and processes, with the loss divided once.

Gradients are sums over tokens, so 8 micro-batches of 1 window give the gradient of 1 micro-batch of 8, and two processes that of one. Only
adapters are trained, a few megabytes, so that processes add their gradients up in one reduction a step instead of behind a wrapper's hooks.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from clinpeft import tokens
from clinpeft.adapters import Stack
from clinpeft.errors import InputError, InterruptedRun, TrainingError
from clinpeft.recipe import TrainingSpec
from clinpeft.tokens import Ints
from clinpeft.training import checkpoint
from clinpeft.training.checkpoint import Progress
from clinpeft.training.likelihood import perplexity_of
from clinpeft.training.objectives import Forward, Lesson, score

Crew: TypeAlias = Accelerator
"""The processes that share a run."""

STEPS_BEFORE_THE_MOVED_CHECK = 3


@dataclass(frozen=True)
class Event:
    """One step, or one measurement on the tuning split, as the log and the progress bar see it."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float
    tokens_per_second: float
    seconds_left: float
    tuning_perplexity: float | None = None


@dataclass(frozen=True)
class Watch:
    """Who is told of each event, and who may ask the loop to stop between two steps."""

    tell: Callable[[Event], None] = lambda _: None
    stopping: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Fitted:
    """The trained stack, holding the best weights by tuning perplexity, or the last where there is no tuning split."""

    stack: Stack
    progress: Progress
    total_steps: int


def assemble() -> Crew:
    """The processes that share a run: one, unless ``accelerate launch`` or ``torchrun`` started several. They wait for each other for a day, since
    the first of them may be reading a large corpus."""
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])


def hardware(crew: Crew) -> dict[str, Any]:
    """What the processes run on: ``device``, ``devices``, ``memory_bytes`` (None where it is not told), ``system``."""
    cuda = crew.device.type == "cuda"
    name = torch.cuda.get_device_name(crew.device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    memory = torch.cuda.get_device_properties(crew.device).total_memory if cuda else None
    return {"device": name, "devices": crew.num_processes, "memory_bytes": memory, "system": f"{platform.system()} {platform.machine()}"}


def fit(stack: Stack, forward: Forward, lesson: Lesson, spec: TrainingSpec, crew: Crew, folder: Path, watch: Watch) -> Fitted:
    """Train what is trainable in ``stack``; go on from the newest checkpoint in ``folder`` when there is one.

    Args:
        forward: ids and mask -> logits through the stack.
        crew: the processes that share the work; every one of them calls this.

    Raises:
        InputError: there is nothing to train on.
        TrainingError: the loss is not a number, or nothing moved.
        InterruptedRun: ``watch.stopping`` said so; a checkpoint was written.
    """
    if not len(lesson.train):
        raise InputError("the training split has no window", place="split.train", way_out="give more notes or a larger split.train")
    running = _Running(stack, forward, lesson, spec, crew, folder, watch)
    running.resume()
    for step, chosen in running.remaining():
        running.step(step, chosen)
    running.take_best()
    return Fitted(stack, running.progress, running.total)


def learning_rate(spec: TrainingSpec, step: int, total: int) -> float:
    """The rate of step ``step`` (from 1): a linear rise over ``warmup_fraction`` of the steps, then the schedule, reaching 0 after the last."""
    warm = math.ceil(spec.warmup_fraction * total)
    if step <= warm:
        return spec.learning_rate * step / warm
    left = (total - step + 1) / (total - warm + 1)  # 1 just after the warm-up, near 0 at the end
    shapes = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}
    return spec.learning_rate * shapes[spec.schedule]


def total_steps(lesson: Lesson, spec: TrainingSpec) -> int:
    """Optimiser steps of the whole run."""
    counted = sum(len(epoch) for _, epoch in zip(range(math.ceil(spec.epochs)), _epochs(lesson, spec), strict=False))
    wanted = math.ceil(counted * spec.epochs / math.ceil(spec.epochs))
    return min(wanted, spec.max_steps) if spec.max_steps else wanted


def _epochs(lesson: Lesson, spec: TrainingSpec) -> Iterator[list[Ints]]:
    """The steps of each epoch, without end; windows as positions in the encodings."""
    epoch = 0
    while True:
        order = np.random.default_rng([lesson.seed, epoch])
        yield [lesson.train[part] for part in tokens.steps(lesson.encodings.lengths[lesson.train], spec.batch_tokens, order)]
        epoch += 1


class _Running:
    """The state of one call of ``fit``."""

    def __init__(self, stack: Stack, forward: Forward, lesson: Lesson, spec: TrainingSpec, crew: Crew, folder: Path, watch: Watch) -> None:
        self.stack, self.forward, self.lesson, self.spec = stack, forward, lesson, spec
        self.crew, self.folder, self.watch = crew, folder, watch
        self.names, self.parameters = list(stack.trained), list(stack.trained.values())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        self.total = total_steps(lesson, spec)
        self.progress = Progress()
        self.fresh = [parameter.detach().clone() for parameter in self.parameters]
        self.begun = time.perf_counter()

    def resume(self) -> None:
        found = checkpoint.newest(self.folder)
        if found is None:
            return
        tensors, self.progress = found
        self.stack.load_state({name: tensors[name] for name in self.names})
        checkpoint.load_optimiser(self.optimiser, self.names, tensors)
        self.begun = time.perf_counter() - self.progress.seconds

    def remaining(self) -> Iterator[tuple[int, Ints]]:
        """(step from 1, windows) for the steps not yet taken."""
        step = 0
        for epoch in _epochs(self.lesson, self.spec):
            for chosen in epoch:
                step += 1
                if step > self.total or self._patience_is_over():
                    return
                if step > self.progress.step:
                    yield step, chosen

    def step(self, step: int, chosen: Ints) -> None:
        rate = learning_rate(self.spec, step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self._gradients(step, chosen)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.clip_norm)
        self._must_be_finite(step, loss, float(norm))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.progress.step = step
        self.progress.tokens += int(self.lesson.encodings.lengths[chosen].sum())
        self._must_have_moved(step)
        self._after(step, loss, rate)

    def _gradients(self, step: int, chosen: Ints) -> float:
        """Sum the gradients of the step's micro-batches over all processes; the mean loss a token."""
        groups = tokens.micro_batches(self.lesson.encodings.lengths, chosen, self.spec.micro_batch_tokens)
        summed, targets = 0.0, 0
        self.stack.model.train()
        with torch.random.fork_rng():
            for at, windows in list(enumerate(groups))[self.crew.process_index :: self.crew.num_processes]:
                torch.manual_seed(_dropout_seed(self.lesson.seed, step, at))
                batch = tokens.gather(self.lesson.encodings, windows).to(self.crew.device)
                question = self.lesson.asking(batch, self.lesson.tokenizer, (self.lesson.seed, step))
                scores = score(self.forward, question, batch.attention_mask)
                total = scores.negative_log_likelihood.sum()
                torch.autograd.backward(total)
                summed, targets = summed + total.item(), targets + int(scores.targets.sum())
        return self._reduce(summed, targets)

    def _reduce(self, summed: float, targets: int) -> float:
        """Add sums up over the processes, then divide once by the targets of the whole step."""
        whole = self.crew.reduce(torch.tensor([summed, float(targets)], dtype=torch.float64, device=self.crew.device), "sum")
        loss, count = whole.tolist()
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in self.parameters])
        flat = self.crew.reduce(flat, "sum") / max(count, 1.0)
        pieces = flat.split([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return float(loss / max(count, 1.0))

    def _after(self, step: int, loss: float, rate: float) -> None:
        perplexity = self._measure(step) if step in _spread(self.total, self.spec.evaluations) else None
        self.progress.seconds = time.perf_counter() - self.begun
        event = self._event(step, loss, rate, perplexity)
        self.progress.history.append({"step": step, "loss": loss} | ({} if perplexity is None else {"tuning_perplexity": perplexity}))
        if self.crew.is_main_process:
            self.watch.tell(event)
        stopping = self._anyone_is_stopping()
        if self.crew.is_main_process and (stopping or step in _spread(self.total, self.spec.checkpoints)):
            checkpoint.save_step(self.folder, self._all_tensors(), self.progress)
        if stopping and step < self.total:
            raise InterruptedRun(f"stopped after step {step} of {self.total}", place=str(self.folder), way_out="give the same command to go on")

    def _measure(self, step: int) -> float | None:
        """Tuning perplexity; the weights are kept when it is the best so far."""
        if not len(self.lesson.tuning):
            return None
        perplexity = perplexity_of(self.forward, self.stack, self.lesson, self.lesson.tuning, self.spec.micro_batch_tokens, self.crew)
        if self.progress.best_perplexity is None or perplexity < self.progress.best_perplexity:
            self.progress.best_perplexity, self.progress.best_step, self.progress.evaluations_since_best = perplexity, step, 0
            if self.crew.is_main_process:
                checkpoint.save(self.folder / "best.safetensors", self.stack.trained)
        else:
            self.progress.evaluations_since_best += 1
        return perplexity

    def take_best(self) -> None:
        """Put the best weights back; without a tuning split the last ones stay."""
        self.crew.wait_for_everyone()
        if self.progress.best_step and self.progress.best_step != self.progress.step:
            self.stack.load_state(checkpoint.load(self.folder / "best.safetensors"))

    def _all_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.stack.trained) | checkpoint.optimiser_tensors(self.optimiser, self.names)

    def _event(self, step: int, loss: float, rate: float, perplexity: float | None) -> Event:
        seconds = self.progress.seconds
        left = seconds / step * (self.total - step)
        return Event(step, self.total, loss, rate, self.progress.tokens, seconds, self.progress.tokens / seconds, left, perplexity)

    def _anyone_is_stopping(self) -> bool:
        flag = torch.tensor([float(self.watch.stopping())], device=self.crew.device)
        return bool(self.crew.reduce(flag, "sum").item() > 0)

    def _patience_is_over(self) -> bool:
        return bool(self.spec.patience) and self.progress.evaluations_since_best >= self.spec.patience

    def _must_be_finite(self, step: int, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            way_out = 'lower training.learning_rate, or set base.precision = "float32"; the weights of the last checkpoint are sound'
            raise TrainingError(f"loss {loss} and gradient norm {norm} are not both numbers", place=f"step {step} of {self.total}", way_out=way_out)

    def _must_have_moved(self, step: int) -> None:
        """peft fails silently when an adapter is not in the forward pass; weights that stay where they were tell."""
        if step != min(STEPS_BEFORE_THE_MOVED_CHECK, self.total):
            return
        if all(torch.equal(old, new) for old, new in zip(self.fresh, self.parameters, strict=True)):
            way_out = "the adapter is not part of the forward pass, or the learning rate is too small to matter"
            raise TrainingError(f"none of the {len(self.fresh)} trained tensors moved in {step} steps", place="adapters", way_out=way_out)
        self.fresh = []


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _spread(total: int, times: int) -> set[int]:
    """``times`` steps evenly spaced over ``total``, the last one always among them."""
    return {max(1, math.ceil(total * at / times)) for at in range(1, times + 1)}


def _dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Dropout is a function of seed, step and micro-batch, so that a resumed run and a run on two processes draw what one run would have drawn."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
