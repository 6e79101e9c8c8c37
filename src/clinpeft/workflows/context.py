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
from clinpeft.models import EnergyMeter
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import Hardware, InputHashes, Run, RunRecord
from clinpeft.training import Accelerator, StepEvent, TrainingCallbacks, TrainingResult

TrainingRecipe = AdaptRecipe | ClassifyRecipe | EmbedRecipe


@dataclass(frozen=True)
class RunContext:
    """What only the outermost room may look at: the clock, and what was typed where.

    Attributes:
        now: the time, with its zone.
        command: as typed.
        git_commit: of the working tree, or None outside one.
        versions: of Python and the libraries.
        on_step, should_stop: who watches training, and who may stop it.
        draw_noise_seed: 32 bytes that nobody can guess, of the noise of a run with differential privacy.
        energy_meter: of energy, where the machine has one.
    """

    now: Callable[[], datetime]
    command: str = ""
    git_commit: str | None = None
    versions: dict[str, str] | None = None
    on_step: Callable[[StepEvent], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    draw_noise_seed: Callable[[], bytes] = lambda: secrets.token_bytes(32)
    energy_meter: EnergyMeter | None = None


@contextlib.contextmanager
def open_training_run(
    recipe: TrainingRecipe,
    hashes: InputHashes,
    home: Path,
    context: RunContext,
    accelerator: Accelerator,
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
    opening = _build_run_record(recipe, hashes, context, accelerator)
    if not accelerator.is_main_process:
        folder = home / opening.id
        yield (
            runs.read_run(folder)
            if (folder / "run.json").exists()
            else Run(folder, recipe, opening)
        )
        return
    with runs.open_run_folder(home, recipe, opening) as run:
        try:
            yield run
        except BaseException as error:
            full = runs.as_disk_full_error(error, home)
            if run.record.state != "finished":
                runs.fail_run(run, full or error, context.now())
            if full is not None:
                raise full from error
            raise


def _build_run_record(
    recipe: TrainingRecipe, hashes: InputHashes, context: RunContext, accelerator: Accelerator
) -> RunRecord:
    now = context.now()
    return RunRecord(
        id=runs.compute_run_id(recipe, hashes.source or "", hashes.base or "", get_code_version()),
        name=recipe.name,
        kind=recipe.kind,
        created=now,
        started=now,
        command=context.command,
        git_commit=context.git_commit,
        versions=(context.versions or {}) | {"clinpeft": get_code_version()},
        hashes=hashes,
        hardware=Hardware(**training.describe_hardware(accelerator)),
    )


@functools.cache
def get_code_version() -> str:
    """The version and a hash of the code, so that a result is never taken for that of other code."""
    folder = Path(clinpeft.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix in (".py", ".sql", ".toml")
    ):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"{clinpeft.__version__}+{digest.hexdigest()[:8]}"


def compute_cache_key(*parts: object) -> str:
    """The name of something remembered: 16 hexadecimal characters over what decides it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def compute_run_hashes(
    source_fingerprint: str,
    recipe: TrainingRecipe,
    corpus_policy: str | None = None,
    adapter_hashes: dict[str, str] | None = None,
) -> InputHashes:
    """What a run stands on."""
    return InputHashes(
        source=source_fingerprint,
        base=models.fingerprint_base_model(recipe.base.path),
        corpus_policy=corpus_policy,
        adapters=adapter_hashes or {},
    )


def log_training_step(run: Run, context: RunContext, event: StepEvent) -> None:
    """Into the log, and to whoever watches."""
    values = {
        "step": event.step,
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "tokens": event.tokens,
        "seconds": round(event.seconds, 3),
    }
    runs.append_log_event(run, "step", **values, **event.metrics)
    context.on_step(event)


def create_training_callbacks(run: Run, context: RunContext) -> TrainingCallbacks:
    """The log, which goes on where the run does, and the progress bar."""
    return TrainingCallbacks(
        on_step=functools.partial(log_training_step, run, context),
        should_stop=context.should_stop,
        on_resume=functools.partial(runs.rewind_log, run),
        on_save=functools.partial(runs.flush_log, run),
        read_joules=context.energy_meter.read_joules if context.energy_meter is not None else None,
    )


def summarize_training(
    run: Run,
    context: RunContext,
    accelerator: Accelerator,
    stack: Stack,
    training_result: TrainingResult,
    trained_parameters: int | None = None,
) -> dict[str, Any]:
    """What every verb records of a training that has ended now: how much was trained, how exactly, in how many steps, and what it took.

    Args:
        run: since when.
        context: the clock, and the meter of energy.
        accelerator: on what.
        stack: what was trained.
        training_result: how it went.
        trained_parameters: numbers that were trained; None: those of the stack.
    """
    finished, progress = context.now(), training_result.progress
    trained_parameters = (
        stack.counts.trained_parameters if trained_parameters is None else trained_parameters
    )
    return {
        "finished": finished,
        "trained_parameters": trained_parameters,
        "base_parameters": stack.counts.base_parameters,
        "share": trained_parameters / stack.counts.base_parameters,
        "precision": str(stack.base.precision).removeprefix("torch."),
        "precision_reason": stack.base.precision_reason,
        "quantization": stack.base.quantization_reason,
        "kernels": stack.base.kernels,
        "activations": stack.activations,
        "compilation": stack.compilation,
        "counts": {
            "steps": progress.step,
            "best_step": progress.best_step,
            "total_steps": training_result.total_steps,
        },
        "tokens_seen": progress.tokens,
        "training_seconds": progress.seconds,
        "energy_joules": progress.joules,
        "energy_of": context.energy_meter.components
        if context.energy_meter is not None and progress.joules is not None
        else "",
        "peak_memory_bytes": training.measure_peak_memory_bytes(accelerator.device),
        "total_seconds": (finished - run.record.started).total_seconds(),
    }
