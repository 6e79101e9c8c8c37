"""Checkpoints: one safetensors file each, which is there whole or not at all. No pickle.

A file is written under another name, synced and renamed, and carries a SHA-256 of all that is in it; the two newest are kept, each with the best
weights it knows of. So a full disk, a cut cable or a damaged file costs the steps since the last sound one and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clinpeft.core.errors import InputError, StorageError

CHECKPOINTS_TO_KEEP = 2
CheckpointTensors = Mapping[str, torch.Tensor]


@dataclass
class TrainingProgress:
    """Where a training run stands. Nothing random is in it: order, masks and dropout are functions of seed, epoch and step."""

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
        StorageError: nothing could be written; whatever was at ``path`` before is untouched.
    """
    writing = path.with_suffix(".writing")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = json.dumps(asdict(progress)) if progress else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            plain, writing, metadata={"progress": told, "sha256": _hash_checkpoint(plain, told)}
        )
        _flush_to_disk(writing)
        writing.replace(path)
        _flush_to_disk(path.parent)  # the new name, too, has to reach the disk
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            writing.unlink(missing_ok=True)
        hint = "free some space and give the same command again: the run goes on from the checkpoint before this one"
        raise StorageError(
            f"this checkpoint could not be written: {type(error).__name__}: {error}",
            location=str(path),
            hint=hint,
        ) from error


def save_step_checkpoint(
    folder: Path, tensors: CheckpointTensors, progress: TrainingProgress
) -> None:
    """A checkpoint of this step; older ones than the ``KEPT`` newest go, after the new one is safe, and best weights that none of those knows."""
    save_checkpoint_file(_get_step_path(folder, progress.step), tensors, progress)
    for old in _list_newest_first(folder)[CHECKPOINTS_TO_KEEP:]:
        old.unlink()
    known = {
        _get_best_path(folder, _read_progress(path).best_step)
        for path in _list_newest_first(folder)
    }
    for old in set(folder.glob("best-*.safetensors")) - known:
        old.unlink()


def save_best_weights(folder: Path, tensors: CheckpointTensors, step: int) -> None:
    """The best weights so far, under the step that they are of: those that an older checkpoint knows stay beside them."""
    save_checkpoint_file(_get_best_path(folder, step), tensors)


def load_best_weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The best weights, of this step.

    Raises:
        InputError: they are not there, or damaged.
    """
    return load_checkpoint_tensors(_get_best_path(folder, step))


def load_checkpoint_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, as they were written.

    Raises:
        InputError: it is not there, cut off, or not what was written.
    """
    return _read_verified_checkpoint(path)[0]


def _read_verified_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors and progress of a file whose hash is right."""
    hint = "give the same command again: the run goes on from the checkpoint before this one"
    try:
        with safe_open(path, framework="pt") as file:
            told: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"this checkpoint cannot be read: {type(error).__name__}", location=str(path), hint=hint
        ) from error
    if told.get("sha256") != _hash_checkpoint(tensors, told.get("progress", "")):
        raise InputError(
            "this checkpoint is not what was written: its SHA-256 differs",
            location=str(path),
            hint=hint,
        )
    return tensors, told["progress"]


def _hash_checkpoint(tensors: CheckpointTensors, progress_json: str) -> str:
    """Over names, types, shapes and bytes of the tensors, in the order of their names, and over the progress."""
    digest = hashlib.sha256(progress_json.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    """A file, or the names in a folder, as they survive a power cut."""
    if path.is_dir() and sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_into_parameters(
    parameters: Mapping[str, torch.nn.Parameter], tensors: CheckpointTensors
) -> None:
    """Put tensors into the parameters of the same names.

    Raises:
        InputError: they are not exactly these parameters'.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if given != wanted:
        differing = sorted(
            name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
        )
        message = f"{len(differing)} tensors are missing, left over or of another shape, such as {differing[0]}"
        raise InputError(message, location="checkpoint", hint="use a checkpoint of the same recipe")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def find_newest_checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], TrainingProgress] | None:
    """The newest checkpoint that is sound, its best weights included, or None; a damaged one is passed over with a warning that names it."""
    for path in _list_newest_first(folder):
        try:
            tensors, told = _read_verified_checkpoint(path)
            progress = TrainingProgress(**json.loads(told))
            if progress.best_step and progress.best_step != progress.step:
                load_best_weights(folder, progress.best_step)
        except (InputError, TypeError, ValueError) as error:
            damaged = Path(error.location).name if isinstance(error, InputError) else path.name
            warnings.warn(
                f"{damaged} cannot be read; going on from the checkpoint before {path.name}",
                stacklevel=2,
            )
        else:
            return tensors, progress
    return None


def remove_later_checkpoints(folder: Path, step: int) -> None:
    """Remove what was found damaged, and what was being written, so that it is not counted among the newest: all that is later than this step."""
    for path in [*_list_newest_first(folder), *folder.glob("*.writing")]:
        if path.suffix == ".writing" or path > _get_step_path(folder, step):
            path.unlink()


def _get_step_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _get_best_path(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def _list_newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _read_progress(path: Path) -> TrainingProgress:
    with safe_open(path, framework="pt") as file:
        return TrainingProgress(**json.loads(file.metadata()["progress"]))


def collect_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameter_names: list[str]
) -> dict[str, torch.Tensor]:
    """AdamW's moments and step counts under the names of the parameters they belong to."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"optimiser.{key}.{parameter_names[at]}": value
        for at, values in state.items()
        for key, value in values.items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameter_names: list[str], tensors: CheckpointTensors
) -> None:
    """The reverse of ``optimiser_tensors``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith("optimiser."):
            _, key, name = full.split(".", 2)
            state.setdefault(parameter_names.index(name), {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
