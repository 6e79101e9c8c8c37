"""Checkpoints: one safetensors file each, which is there whole or not at all. No pickle.

A file is written under another name, synced and renamed; the two newest are kept, so that a full disk or a cut cable costs the steps since the last
one and nothing else.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clinpeft.errors import InputError, StorageError

KEPT = 2
Tensors = Mapping[str, torch.Tensor]


@dataclass
class Progress:
    """Where a training run stands. Nothing random is in it: order, masks and dropout are functions of seed, epoch and step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save(path: Path, tensors: Tensors, progress: Progress | None = None) -> None:
    """Write tensors (and progress) to ``path`` in one atomic move.

    Raises:
        StorageError: nothing could be written; whatever was at ``path`` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_suffix(".writing")
    metadata = {"progress": json.dumps(asdict(progress))} if progress else {}
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, writing, metadata=metadata)
        with writing.open("rb") as written:
            os.fsync(written.fileno())
        writing.replace(path)
    except (OSError, SafetensorError) as error:
        writing.unlink(missing_ok=True)
        way_out = "free some space and give the same command again: the run goes on from the checkpoint before this one"
        raise StorageError(f"this checkpoint could not be written: {type(error).__name__}: {error}", place=str(path), way_out=way_out) from error


def save_step(folder: Path, tensors: Tensors, progress: Progress) -> None:
    """A checkpoint of this step; older ones than the ``KEPT`` newest go, after the new one is safe."""
    save(folder / f"step-{progress.step:08d}.safetensors", tensors, progress)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def fill(parameters: Mapping[str, torch.nn.Parameter], tensors: Tensors) -> None:
    """Put tensors into the parameters of the same names.

    Raises:
        InputError: they are not exactly these parameters'.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if given != wanted:
        differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        problem = f"{len(differing)} tensors are missing, left over or of another shape, such as {differing[0]}"
        raise InputError(problem, place="checkpoint", way_out="use a checkpoint of the same recipe")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def newest(folder: Path) -> tuple[dict[str, torch.Tensor], Progress] | None:
    """The newest checkpoint that can be read, or None; a broken one is passed over with a warning that names it."""
    for path in _newest_first(folder):
        try:
            return load(path), _progress(path)
        except (SafetensorError, OSError, KeyError, ValueError):
            warnings.warn(f"{path.name} cannot be read; going on from the checkpoint before it", stacklevel=2)
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _progress(path: Path) -> Progress:
    with safe_open(path, framework="pt") as file:
        return Progress(**json.loads(file.metadata()["progress"]))


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """AdamW's moments and step counts under the names of the parameters they belong to."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    return {f"optimiser.{key}.{names[at]}": value for at, values in state.items() for key, value in values.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, names: list[str], tensors: Tensors) -> None:
    """The reverse of ``optimiser_tensors``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith("optimiser."):
            _, key, name = full.split(".", 2)
            state.setdefault(names.index(name), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
