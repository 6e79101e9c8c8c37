"""What every verb does around its rooms: the run opened and held, its id, its log."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import clinpeft
from clinpeft import models, runs, training
from clinpeft.adapters import Stack
from clinpeft.models import Meter
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import Hardware, Hashes, Run, RunRecord
from clinpeft.training import Crew, Event, Fitted, Watch

TrainedRecipe = AdaptRecipe | ClassifyRecipe | EmbedRecipe


@dataclass(frozen=True)
class Circumstances:
    """What only the outermost room may look at: the clock, and what was typed where.

    Attributes:
        now: the time, with its zone.
        command: as typed.
        git_commit: of the working tree, or None outside one.
        versions: of Python and the libraries.
        tell, stopping: who watches training, and who may stop it.
        secret: 32 bytes that nobody can guess, of the noise of a run with differential privacy.
        meter: of energy, where the machine has one.
    """

    now: Callable[[], datetime]
    command: str = ""
    git_commit: str | None = None
    versions: dict[str, str] | None = None
    tell: Callable[[Event], None] = lambda _: None
    stopping: Callable[[], bool] = lambda: False
    secret: Callable[[], bytes] = lambda: secrets.token_bytes(32)
    meter: Meter | None = None


@contextlib.contextmanager
def opened(
    recipe: TrainedRecipe, hashes: Hashes, home: Path, context: Circumstances, accelerator: Crew
) -> Iterator[Run]:
    """The run, held by the first process alone; how it ends is written down whatever happens. A disk that takes no more is told as what it is,
    whichever library met it.

    Args:
        recipe: what is asked; an adapter's ``from_run`` is the id of a run.
        hashes: of all that the run stands on, source and base among them.
        home: the folder of all runs.
        context: clock and command.
        accelerator: the processes.
    """
    opening = _opening(recipe, hashes, context, accelerator)
    if not accelerator.is_main_process:
        folder = home / opening.id
        yield runs.read(folder) if (folder / "run.json").exists() else Run(folder, recipe, opening)
        return
    with runs.open_run(home, recipe, opening) as run:
        try:
            yield run
        except BaseException as error:
            full = runs.full_disk(error, home)
            if run.record.state != "finished":
                runs.fail(run, full or error, context.now())
            if full is not None:
                raise full from error
            raise


def _opening(
    recipe: TrainedRecipe, hashes: Hashes, context: Circumstances, accelerator: Crew
) -> RunRecord:
    now = context.now()
    return RunRecord(
        id=runs.identity(recipe, hashes.source or "", hashes.base or "", code_version()),
        name=recipe.name,
        kind=recipe.kind,
        created=now,
        started=now,
        command=context.command,
        git_commit=context.git_commit,
        versions=(context.versions or {}) | {"clinpeft": code_version()},
        hashes=hashes,
        hardware=Hardware(**training.hardware(accelerator)),
    )


@functools.cache
def code_version() -> str:
    """The version and a hash of the code, so that a result is never taken for that of other code."""
    folder = Path(clinpeft.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix in (".py", ".sql", ".toml")
    ):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"{clinpeft.__version__}+{digest.hexdigest()[:8]}"


def key(*parts: object) -> str:
    """The name of something remembered: 16 hexadecimal characters over what decides it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def hashes_of(
    source: str,
    recipe: TrainedRecipe,
    corpus_policy: str | None = None,
    adapters: dict[str, str] | None = None,
) -> Hashes:
    """What a run stands on."""
    return Hashes(
        source=source,
        base=models.fingerprint(recipe.base.path),
        corpus_policy=corpus_policy,
        adapters=adapters or {},
    )


def heard(run: Run, context: Circumstances, event: Event) -> None:
    """Into the log, and to whoever watches."""
    values = {
        "step": event.step,
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "tokens": event.tokens,
        "seconds": round(event.seconds, 3),
    }
    runs.append(run, "step", **values, **event.measured)
    context.tell(event)


def watch(run: Run, context: Circumstances) -> Watch:
    """The log, which goes on where the run does, and the progress bar."""
    return Watch(
        tell=functools.partial(heard, run, context),
        stopping=context.stopping,
        resumed=functools.partial(runs.rewind, run),
        saving=functools.partial(runs.settle, run),
        joules=context.meter.read if context.meter is not None else None,
    )


def outcome(
    run: Run,
    context: Circumstances,
    accelerator: Crew,
    stack: Stack,
    fitted: Fitted,
    trained: int | None = None,
) -> dict[str, Any]:
    """What every verb records of a training that has ended now: how much was trained, how exactly, in how many steps, and what it took.

    Args:
        run: since when.
        context: the clock, and the meter of energy.
        accelerator: on what.
        stack: what was trained.
        fitted: how it went.
        trained: numbers that were trained; None: those of the stack.
    """
    finished, progress = context.now(), fitted.progress
    trained = stack.counts.trained if trained is None else trained
    return {
        "finished": finished,
        "trained_parameters": trained,
        "base_parameters": stack.counts.base,
        "share": trained / stack.counts.base,
        "precision": str(stack.base.precision).removeprefix("torch."),
        "precision_reason": stack.base.precision_reason,
        "quantization": stack.base.quantization_reason,
        "kernels": stack.base.kernels,
        "activations": stack.activations,
        "compilation": stack.compiled,
        "counts": {
            "steps": progress.step,
            "best_step": progress.best_step,
            "total_steps": fitted.total_steps,
        },
        "tokens_seen": progress.tokens,
        "training_seconds": progress.seconds,
        "energy_joules": progress.joules,
        "energy_of": context.meter.of
        if context.meter is not None and progress.joules is not None
        else "",
        "peak_memory_bytes": training.peak_bytes(accelerator.device),
        "total_seconds": (finished - run.record.started).total_seconds(),
    }
