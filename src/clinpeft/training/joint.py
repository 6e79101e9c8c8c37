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

from clinpeft.adapters import Joint, Reading
from clinpeft.core.errors import ClinpeftError, TrainingError
from clinpeft.recipe import OptimisationSpec
from clinpeft.tokenization import Ints
from clinpeft.training.trainer import (
    Course,
    Crew,
    Fitted,
    Running,
    Share,
    Sums,
    Watch,
    dropout_seed,
)

Outcome = Fitted | ClinpeftError
"""How it went, or why it did not."""

Chosen = Mapping[int, tuple[int, Ints]]
"""Trial -> its next step and the items of that."""


@dataclass(frozen=True)
class Fit:
    """One of several trials: what ``fit`` is given for it. Its course is of the stack at the same place in ``Joint.stacks``."""

    course: Course
    spec: OptimisationSpec
    folder: Path
    watch: Watch = field(default_factory=Watch)


def fit_together(joint: Joint, fits: Sequence[Fit], accelerator: Crew) -> list[Outcome]:
    """``fit`` of every trial, a step of each at a time in one pass. Trials that have ended leave it; so does one that fails, and the others go on.

    The loss of every step, the measurements and the weights are those of ``fit`` alone. Seconds, tokens a second and memory are those of the pass.
    Memory is that of one base, and of the micro-batches of all trials at once.

    Args:
        joint: the base with the trials' stacks.
        fits: a trial each, in the order of the stacks.
        accelerator: of one process.

    Returns:
        In the order of the trials, the result, or the error that ``fit`` would have raised: ``InterruptedRun`` where ``watch.stopping`` said so.

    Raises:
        TrainingError: these cannot be learned in one pass.
    """
    shares = _shares(joint, fits, accelerator)
    outcomes: dict[int, Outcome] = {}
    going: dict[int, tuple[Running, Iterator[tuple[int, Ints]]]] = {}
    for at, each in enumerate(fits):
        with _noted(outcomes, at):
            running = Running(
                _measured_alone(joint, at, each.course),
                each.spec,
                accelerator,
                each.folder,
                each.watch,
            )
            running.resume()
            going[at] = running, running.remaining()
    while going := {at: each for at, each in going.items() if at not in outcomes}:
        chosen: dict[int, tuple[int, Ints]] = {}
        for at, (running, remaining) in going.items():
            if (following := next(remaining, None)) is not None:
                chosen[at] = following
                continue
            with _noted(outcomes, at):
                outcomes[at] = running.ended()
        sums = _gradients(joint, fits, shares, chosen, accelerator.device)
        for at, (step, items) in chosen.items():
            with _noted(outcomes, at):
                going[at][0].step(step, items, *sums[at])
    return [outcomes[at] for at in range(len(fits))]


@contextlib.contextmanager
def _noted(outcomes: dict[int, Outcome], at: int) -> Iterator[None]:
    """An error of one trial ends that trial."""
    try:
        yield
    except ClinpeftError as error:
        outcomes[at] = error


def _shares(joint: Joint, fits: Sequence[Fit], accelerator: Crew) -> list[Share]:
    shares = [each.course.share for each in fits if each.course.share is not None]
    reasons = {
        f"{len(fits)} courses for {len(joint.stacks)} stacks": len(fits) != len(joint.stacks),
        f"{accelerator.num_processes} processes": accelerator.num_processes > 1,
        "a course that does not say how it can be shared": len(shares) < len(fits),
        "a trial in which no adapter is trained": not all(stack.trained for stack in joint.stacks),
        "trials that ask for words and trials that ask for vectors": len(
            {share.words for share in shares}
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


def _measured_alone(joint: Joint, at: int, course: Course) -> Course:
    """The tuning split is asked of the trial's own stack."""
    measure = course.measure
    return (
        course if measure is None else replace(course, measure=partial(_alone, joint, at, measure))
    )


def _alone(joint: Joint, at: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    with joint.alone(at):
        return measure()


# ------------------------------------------------------------------------------------------------------------------------------- one step


def _gradients(
    joint: Joint, fits: Sequence[Fit], shares: Sequence[Share], chosen: Chosen, device: torch.device
) -> dict[int, tuple[float, float]]:
    """Gradients of a step of each of these trials, into their parameters; trial -> summed loss and targets.

    The first micro-batches of all go together, then the second ones, as far as each has some."""
    for at in chosen:
        fits[at].course.mode(True)
    groups = {at: shares[at].grouped(items) for at, (_, items) in chosen.items()}
    found = dict.fromkeys(chosen, (0.0, 0.0))
    with torch.random.fork_rng():
        for number in range(max(map(len, groups.values()), default=0)):
            asked = {
                at: (chosen[at][0], group[number])
                for at, group in groups.items()
                if number < len(group)
            }
            sums = _losses(joint, shares, asked, number, device)
            torch.autograd.backward([each.loss for each in sums.values()])
            for at, each in sums.items():
                summed, targets = found[at]
                found[at] = summed + each.loss.item(), targets + each.targets
    return found


def _losses(
    joint: Joint, shares: Sequence[Share], asked: Chosen, number: int, device: torch.device
) -> dict[int, Sums]:
    """One pass over one micro-batch of each."""
    readings: list[Reading[Sums] | None] = [None] * len(shares)
    drawn: list[torch.Generator | None] = [None] * len(shares)
    for at, (step, items) in asked.items():
        readings[at] = shares[at].reading(items, step)
        drawn[at] = torch.Generator(device).manual_seed(dropout_seed(shares[at].seed, step, number))
    with _as_vectors(shares):
        answers = joint.flat(readings, drawn, words=shares[0].words)
    found = {}
    for at, (reading, answer, generator) in enumerate(zip(readings, answers, drawn, strict=True)):
        if reading is not None and answer is not None and generator is not None:
            _draw_on(
                generator
            )  # what stands above the base, such as a head, goes on where this trial's layers ended
            found[at] = reading.answer(answer)
    return found


def _as_vectors(shares: Sequence[Share]) -> contextlib.AbstractContextManager[None]:
    """Without the scores of every word, where each trial makes its own of those that it asks; all have the same last layer."""
    vocabulary = shares[0].vocabulary
    if (
        vocabulary is None
        or vocabulary.projection() is None
        or any(share.vocabulary is None for share in shares)
    ):
        return contextlib.nullcontext()
    return vocabulary.left_out()


def _draw_on(generator: torch.Generator) -> None:
    """torch's own generator goes on where this one is, as if all had been drawn from it."""
    torch.manual_seed(generator.initial_seed())
    if generator.device.type == "cuda":
        torch.cuda.set_rng_state(generator.get_state(), generator.device)
    else:
        torch.set_rng_state(generator.get_state())
