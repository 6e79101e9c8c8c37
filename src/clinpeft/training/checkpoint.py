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

KEPT = 2
Tensors = Mapping[str, torch.Tensor]


@dataclass
class Progress:
    """Where a training run stands. Nothing random is in it: order, masks and dropout are functions of seed, epoch and step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    joules: float | None = None
    best: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, tensors: Tensors, progress: Progress | None = None) -> None:
    """Write tensors (and progress) to ``path`` in one atomic move.

    Raises:
        StorageError: nothing could be written; whatever was at ``path`` before is untouched.
    """
    writing = path.with_suffix(".writing")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = json.dumps(asdict(progress)) if progress else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, writing, metadata={"progress": told, "sha256": _sha256(plain, told)})
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


def save_step(folder: Path, tensors: Tensors, progress: Progress) -> None:
    """A checkpoint of this step; older ones than the ``KEPT`` newest go, after the new one is safe, and best weights that none of those knows."""
    save(_step(folder, progress.step), tensors, progress)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
    known = {_best(folder, _progress(path).best_step) for path in _newest_first(folder)}
    for old in set(folder.glob("best-*.safetensors")) - known:
        old.unlink()


def save_best(folder: Path, tensors: Tensors, step: int) -> None:
    """The best weights so far, under the step that they are of: those that an older checkpoint knows stay beside them."""
    save(_best(folder, step), tensors)


def load_best(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The best weights, of this step.

    Raises:
        InputError: they are not there, or damaged.
    """
    return load(_best(folder, step))


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, as they were written.

    Raises:
        InputError: it is not there, cut off, or not what was written.
    """
    return _sound(path)[0]


def _sound(path: Path) -> tuple[dict[str, torch.Tensor], str]:
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
    if told.get("sha256") != _sha256(tensors, told.get("progress", "")):
        raise InputError(
            "this checkpoint is not what was written: its SHA-256 differs",
            location=str(path),
            hint=hint,
        )
    return tensors, told["progress"]


def _sha256(tensors: Tensors, told: str) -> str:
    """Over names, types, shapes and bytes of the tensors, in the order of their names, and over the progress."""
    digest = hashlib.sha256(told.encode())
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


def fill(parameters: Mapping[str, torch.nn.Parameter], tensors: Tensors) -> None:
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


def newest(folder: Path) -> tuple[dict[str, torch.Tensor], Progress] | None:
    """The newest checkpoint that is sound, its best weights included, or None; a damaged one is passed over with a warning that names it."""
    for path in _newest_first(folder):
        try:
            tensors, told = _sound(path)
            progress = Progress(**json.loads(told))
            if progress.best_step and progress.best_step != progress.step:
                load_best(folder, progress.best_step)
        except (InputError, TypeError, ValueError) as error:
            damaged = Path(error.location).name if isinstance(error, InputError) else path.name
            warnings.warn(
                f"{damaged} cannot be read; going on from the checkpoint before {path.name}",
                stacklevel=2,
            )
        else:
            return tensors, progress
    return None


def clear_after(folder: Path, step: int) -> None:
    """Remove what was found damaged, and what was being written, so that it is not counted among the newest: all that is later than this step."""
    for path in [*_newest_first(folder), *folder.glob("*.writing")]:
        if path.suffix == ".writing" or path > _step(folder, step):
            path.unlink()


def _step(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _progress(path: Path) -> Progress:
    with safe_open(path, framework="pt") as file:
        return Progress(**json.loads(file.metadata()["progress"]))


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, names: list[str]
) -> dict[str, torch.Tensor]:
    """AdamW's moments and step counts under the names of the parameters they belong to."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {
        f"optimiser.{key}.{names[at]}": value
        for at, values in state.items()
        for key, value in values.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, names: list[str], tensors: Tensors) -> None:
    """The reverse of ``optimiser_tensors``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith("optimiser."):
            _, key, name = full.split(".", 2)
            state.setdefault(names.index(name), {})[key] = tensor
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
