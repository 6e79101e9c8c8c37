"""The context of a run: home, accelerator, clock and callbacks; and the run folder around its
training."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
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

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "pyarrow",
    "duckdb",
    "tokenizers",
    "safetensors",
    "scikit-learn",
)
"""Packages whose versions a run records."""


@dataclass(frozen=True)
class RunContext:
    """Everything that a workflow needs besides its recipe.

    Attributes:
        home: folder of all runs and of the cache.
        now: the clock; gives the time with its zone.
        command: the command as typed, for the record.
        git_commit: of the checkout that the code runs from; None outside one.
        versions: package -> version, for the record.
        on_step: called after every training step.
        should_stop: whether training is to stop after the current step, with a checkpoint.
        draw_noise_seed: draws 32 bytes that cannot be guessed, for the noise of a run with
            differential privacy.
        energy_meter: meter of the machine's energy; None where it has none.
    """

    home: Path
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    command: str = ""
    git_commit: str | None = None
    versions: dict[str, str] | None = None
    on_step: Callable[[StepEvent], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    draw_noise_seed: Callable[[], bytes] = lambda: secrets.token_bytes(32)
    energy_meter: EnergyMeter | None = None

    @functools.cached_property
    def accelerator(self) -> Accelerator:
        """The processes that share the run, and this process's device; created on first use."""
        return training.create_accelerator()

    @property
    def cache(self) -> Path:
        """Folder of what is computed once for several runs; it can be deleted at any time."""
        return self.home / "cache"

    def get_cache_path(self, kind: str, *parts: object, suffix: str = "") -> Path:
        """Get the path of a cache entry.

        Args:
            kind: what it holds; the first word of its name.
            *parts: everything that decides its content.
            suffix: of the file name; empty for a folder.
        """
        return self.cache / f"{kind}-{compute_cache_key(*parts)}{suffix}"


def create_context(
    home: Path,
    *,
    command: str = "",
    on_step: Callable[[StepEvent], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunContext:
    """Create a context of this process: its clock, package versions, commit and energy meter.

    Args:
        home: folder of all runs and of the cache.
        command: the command as typed, for the record.
        on_step: called after every training step.
        should_stop: whether training is to stop after the current step.
    """
    versions = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    return RunContext(
        home,
        command=command,
        git_commit=_read_git_commit(),
        versions={"python": platform.python_version()} | versions,
        on_step=on_step,
        should_stop=should_stop,
        energy_meter=models.create_energy_meter(),
    )


def _read_git_commit() -> str | None:
    """The commit of the checkout that this file is in; ``+`` marks uncommitted changes."""
    folder = str(Path(__file__).parent)
    describe = ["describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        answer = subprocess.run(
            ["git", "-C", folder, *describe],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


@functools.cache
def get_code_version() -> str:
    """Get the package's version and a hash of its code.

    It is part of every run's id and of most cache keys, so that a result of other code is never
    taken for one of this code.
    """
    folder = Path(clinpeft.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".sql", ".toml"):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return f"{clinpeft.__version__}+{digest.hexdigest()[:8]}"


def compute_cache_key(*parts: object) -> str:
    """Compute the name of a cache entry: 16 hexadecimal characters over all that decides it."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def compute_run_hashes(
    source_fingerprint: str,
    recipe: TrainingRecipe,
    corpus_policy: str | None = None,
    adapter_hashes: dict[str, str] | None = None,
) -> InputHashes:
    """Collect the hashes of all inputs of a run.

    Args:
        source_fingerprint: SHA-256 over what is read.
        recipe: of the run; its base is hashed here.
        corpus_policy: version of the cleaning of notes; None where no corpus is built.
        adapter_hashes: ``from_run`` -> SHA-256 of the weights of that adapter.
    """
    return InputHashes(
        source=source_fingerprint,
        base=models.fingerprint_base_model(recipe.base.path),
        corpus_policy=corpus_policy,
        adapters=adapter_hashes or {},
    )


@contextlib.contextmanager
def open_training_run(
    recipe: TrainingRecipe, hashes: InputHashes, context: RunContext
) -> Iterator[Run]:
    """Open the run of a recipe, locked by the first process until the block ends.

    An error that ends the block is recorded in the run; a full disk is reported as such, whichever
    library met it.

    Args:
        recipe: of the run; ``from_run`` of its adapters is the id of a run.
        hashes: of all inputs.
        context: home, clock, command and processes.
    """
    record = _build_run_record(recipe, hashes, context)
    if not context.accelerator.is_main_process:
        # Only the first process holds the lock and writes; the others read what it wrote.
        folder = context.home / record.id
        exists = (folder / "run.json").exists()
        yield runs.read_run(folder) if exists else Run(folder, recipe, record)
        return
    with runs.open_run_folder(context.home, recipe, record) as run:
        try:
            yield run
        except BaseException as error:
            disk_error = runs.as_disk_full_error(error, context.home)
            # An error after the record was written leaves a finished run finished.
            if run.record.state != "finished":
                runs.fail_run(run, disk_error or error, context.now())
            if disk_error is not None:
                raise disk_error from error
            raise


def _build_run_record(
    recipe: TrainingRecipe, hashes: InputHashes, context: RunContext
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
        hardware=Hardware(**training.describe_hardware(context.accelerator)),
    )


def create_training_callbacks(run: Run, context: RunContext) -> TrainingCallbacks:
    """Create the callbacks of a training: its log, which is rewound on resume, and progress."""

    def log_step(event: StepEvent) -> None:
        values = {
            "step": event.step,
            "loss": event.loss,
            "learning_rate": event.learning_rate,
            "tokens": event.tokens,
            "seconds": round(event.seconds, 3),
        }
        runs.append_log_event(run, "step", **values, **event.metrics)
        context.on_step(event)

    return TrainingCallbacks(
        on_step=log_step,
        should_stop=context.should_stop,
        on_resume=functools.partial(runs.rewind_log, run),
        on_save=functools.partial(runs.flush_log, run),
        read_joules=context.energy_meter.read_joules if context.energy_meter is not None else None,
    )


def summarize_training(
    run: Run,
    context: RunContext,
    stack: Stack,
    training_result: TrainingResult,
    trained_parameters: int | None = None,
) -> dict[str, Any]:
    """Collect what every kind of run records of its training, which ends now.

    Args:
        run: the run, for its start.
        context: clock, energy meter and device.
        stack: what was trained.
        training_result: steps, tokens, seconds.
        trained_parameters: number of trained parameters; None: those of the stack.

    Returns:
        Fields of ``RunRecord``.
    """
    finished, progress = context.now(), training_result.progress
    if trained_parameters is None:
        trained_parameters = stack.counts.trained_parameters
    meter = context.energy_meter if progress.joules is not None else None
    return {
        "finished": finished,
        "trained_parameters": trained_parameters,
        "base_parameters": stack.counts.base_parameters,
        "trained_fraction": trained_parameters / stack.counts.base_parameters,
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
        "energy_of": meter.components if meter is not None else "",
        "peak_memory_bytes": training.measure_peak_memory_bytes(context.accelerator.device),
        "total_seconds": (finished - run.record.started).total_seconds(),
    }
