"""clinpeft as an arm: a verb of the product run as it is, watched where it hands its course to the
training loop.

Nothing of the product is rebuilt here: a recipe goes through ``pipeline.adapt``, ``classify`` or
``embed``; at the loop's door the course is looked at (to give the same documents, in the same
steps, to the peers) or trained and timed, and then the verb is left.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import _side_by_side as side

from clinpeft import recipe, training, workflows


class Left(Exception):
    """The verb was left at the door of the loop; what came of it."""


AtTheDoor = Callable[..., object]
"""(course, spec, crew) -> anything; called in place of ``training.fit``."""


def at_the_door(document: dict[str, Any], home: Path, work: AtTheDoor) -> Any:
    """Run the verb of a recipe up to the loop, and do ``work`` there."""
    asked = recipe.validate_recipe(document, "the benchmark")
    workflow = workflows.get_workflow(asked)

    def fit(course: Any, spec: Any, accelerator: Any, *_: object, **__: object) -> object:
        raise Left(work(course, spec, accelerator))

    context = workflows.RunContext(home)
    with mock.patch.object(training, "run_training", fit):
        try:
            workflow.run(asked, context)
        except Left as left:
            return left.args[0]
    raise RuntimeError("the verb never came to the loop: this very run is in the home already")


@contextmanager
def spied(location: Any, name: str, seen: list[Any]) -> Iterator[None]:
    """Every result, and the arguments, of a function while the verb runs: (result, args, kwargs)
    are appended to ``seen``."""
    real = getattr(location, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        seen.append((found, args, kwargs))
        return found

    with mock.patch.object(location, name, spy):
        yield


def timed(
    course: Any,
    spec: Any,
    accelerator: Any,
    unit: str = "tokens",
    amounts: list[float] | None = None,
) -> side.Measured:
    """Train a course in the real loop, step by step on the clock; the tuning split is not measured
    meanwhile."""
    real = training.loop.fit
    told: list[Any] = []
    first: list[float] = []

    def tell(event: Any) -> None:
        if not told:
            first.append(side.since_start())
        told.append(event)

    course = dataclasses.replace(course, measure=None, best_by="")
    spec = spec.model_copy(update={"evaluations": 1, "checkpoints": 1})
    with tempfile.TemporaryDirectory() as folder:
        real(
            course,
            spec,
            accelerator,
            Path(folder) / "checkpoints",
            training.TrainingCallbacks(tell),
        )
    marks, tokens = (
        [0.0, *(event.seconds for event in told)],
        [0, *(event.tokens for event in told)],
    )
    counted = [float(after - before) for before, after in itertools.pairwise(tokens)]
    return side.Measured(
        unit=unit,
        amounts=amounts[: len(told)] if amounts else counted,
        seconds=[after - before for before, after in itertools.pairwise(marks)],
        losses=[event.loss for event in told],
        first_step_seconds=first[0],
        peak_bytes=side.peak_bytes(),
    )
