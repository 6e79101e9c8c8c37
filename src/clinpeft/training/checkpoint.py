"""Checkpoints: one safetensors file each, which is complete or not there. No pickle.

A file is written under another name, flushed and renamed, and has a SHA-256 of its content. The two
newest are kept, each with the best weights that it refers to. So a full disk, a crash or a damaged
file costs the steps since the last sound checkpoint and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clinpeft.core.errors import InputError, StorageError
from clinpeft.core.files import flush_path_to_disk

CHECKPOINTS_TO_KEEP = 2
OPTIMIZER_PREFIX = "optimiser."
"""Of the names of AdamW's moments in a checkpoint, which earlier versions wrote so."""

CheckpointTensors = Mapping[str, torch.Tensor]


@dataclass
class TrainingProgress:
    """How far a training run is.

    It holds no random state: order, masks and dropout are functions of seed, epoch and step.

    Attributes:
        step: optimizer steps taken.
        tokens, seconds, joules: spent so far; joules is None where no counter was read.
        best, best_step: best value of the metric that selects the weights, and its step.
        evaluations_since_best: for early stopping.
        history: step, loss and metrics of every step.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    joules: float | None = None
    best: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint_file(
    path: Path, tensors: CheckpointTensors, progress: TrainingProgress | None = None
) -> None:
    """Write tensors (and progress) to ``path`` in one atomic move.

    Raises:
        StorageError: nothing could be written; an earlier file at ``path`` is untouched.
    """
    # not matched by step-*.safetensors, so that an incomplete file is never read
    temporary = path.with_suffix(".writing")
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    progress_json = json.dumps(asdict(progress)) if progress else ""
    metadata = {"progress": progress_json, "sha256": _hash_checkpoint(on_cpu, progress_json)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(on_cpu, temporary, metadata=metadata)
        flush_path_to_disk(temporary)
        temporary.replace(path)
        flush_path_to_disk(path.parent)  # the new name has to reach the disk, too
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"this checkpoint could not be written: {type(error).__name__}: {error}",
            location=str(path),
            hint="free some space and give the same command again: the run resumes from the"
            " checkpoint before this one",
        ) from error


def save_step_checkpoint(
    folder: Path, tensors: CheckpointTensors, progress: TrainingProgress
) -> None:
    """Save a checkpoint of this step; remove older ones and the best weights of those alone."""
    save_checkpoint_file(_get_step_path(folder, progress.step), tensors, progress)
    # removed only after the new one is on the disk
    for path in _list_newest_first(folder)[CHECKPOINTS_TO_KEEP:]:
        path.unlink()
    # older checkpoints may have other best weights; both are needed to resume from them
    referenced = set()
    for path in _list_newest_first(folder):
        with safe_open(path, framework="pt") as file:
            best_step = json.loads(file.metadata()["progress"])["best_step"]
        referenced.add(_get_best_path(folder, best_step))
    for path in set(folder.glob("best-*.safetensors")) - referenced:
        path.unlink()


def save_best_weights(folder: Path, tensors: CheckpointTensors, step: int) -> None:
    """Save the best weights so far, beside those that an older checkpoint refers to."""
    save_checkpoint_file(_get_best_path(folder, step), tensors)


def load_best_weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Load the best weights, of this step.

    Raises:
        InputError: they are missing or damaged.
    """
    return load_checkpoint_tensors(_get_best_path(folder, step))


def load_checkpoint_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a file.

    Raises:
        InputError: it is missing, cut off, or not what was written.
    """
    return _read_verified_checkpoint(path)[0]


def _read_verified_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors and progress (JSON, empty for weights alone) of a file whose hash is right."""
    hint = "give the same command again: the run resumes from the checkpoint before this one"
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"this checkpoint cannot be read: {type(error).__name__}", location=str(path), hint=hint
        ) from error
    # safetensors has no checksum of its own: a flipped bit in a tensor would be read as a weight
    if metadata.get("sha256") != _hash_checkpoint(tensors, metadata.get("progress", "")):
        raise InputError(
            "this checkpoint is not what was written: its SHA-256 differs",
            location=str(path),
            hint=hint,
        )
    return tensors, metadata["progress"]


def _hash_checkpoint(tensors: CheckpointTensors, progress_json: str) -> str:
    """SHA-256 of the progress, then of name, type, shape and bytes of each tensor, by name."""
    # the tensors as bytes: a hash of floats would depend on their formatting
    digest = hashlib.sha256(progress_json.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        # view as bytes, (numbers * size of one,)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def copy_into_parameters(
    parameters: Mapping[str, torch.nn.Parameter], tensors: CheckpointTensors
) -> None:
    """Copy tensors into the parameters of the same names.

    Raises:
        InputError: names or shapes differ.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = sorted(expected.keys() | actual.keys())
    # all names and shapes first, so that an error leaves every parameter as it was
    differing = [name for name in names if expected.get(name) != actual.get(name)]
    if differing:
        raise InputError(
            f"{len(differing)} tensors are missing, left over or of another shape, such as"
            f" {differing[0]}",
            location="checkpoint",
            hint="use a checkpoint of the same recipe",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def find_newest_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], TrainingProgress] | None:
    """Find the newest sound checkpoint whose best weights are sound, too.

    A damaged one is skipped with a warning that names the damaged file.

    Returns:
        Its tensors and progress; None where there is none.
    """
    for path in _list_newest_first(folder):
        try:
            # also reads the best weights below, since a run that resumes may end at once
            tensors, progress_json = _read_verified_checkpoint(path)
            progress = TrainingProgress(**json.loads(progress_json))
            # the best weights of this very step are the checkpoint's own
            if progress.best_step and progress.best_step != progress.step:
                load_best_weights(folder, progress.best_step)
        except (InputError, TypeError, ValueError) as error:
            damaged = Path(error.location).name if isinstance(error, InputError) else path.name
            warnings.warn(
                f"{damaged} cannot be read; resuming from the checkpoint before {path.name}",
                stacklevel=2,
            )
        else:
            return tensors, progress
    return None


def remove_later_checkpoints(folder: Path, step: int) -> None:
    """Remove what is later than this step, which was damaged, and what was not fully written.

    Otherwise it would be counted among the newest, which are kept.
    """
    for path in folder.glob("*.writing"):
        path.unlink()
    for path in _list_newest_first(folder):
        if path > _get_step_path(folder, step):
            path.unlink()


def _get_step_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _get_best_path(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def _list_newest_first(folder: Path) -> list[Path]:
    # eight digits, so that the order of names is that of steps
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def collect_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameter_names: list[str]
) -> dict[str, torch.Tensor]:
    """Collect AdamW's moments and step counts under the names of their parameters."""
    # torch numbers the parameters in the order of its groups
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{OPTIMIZER_PREFIX}{key}.{parameter_names[index]}": value
        for index, values in state.items()
        for key, value in values.items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameter_names: list[str], tensors: CheckpointTensors
) -> None:
    """Load what ``collect_optimizer_tensors`` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith(OPTIMIZER_PREFIX):
            # key: exp_avg, exp_avg_sq or step; a parameter's name has dots of its own
            key, name = full_name.removeprefix(OPTIMIZER_PREFIX).split(".", 1)
            # index in the order of the optimizer's groups
            state.setdefault(parameter_names.index(name), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
