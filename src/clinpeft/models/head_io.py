"""A head's folder: ``head.safetensors`` with the numbers, ``head.json`` with all that is needed to read them, and nothing that runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import clinpeft
from clinpeft.core.errors import AdapterError, RefusedError, StorageError, UsageError
from clinpeft.core.schemas import LabelSpace
from clinpeft.models.families import PoolingMode
from clinpeft.models.heads import Head, TaskHeads, WindowPooling
from clinpeft.models.reference_output import ComputeEnvironment, ReferenceOutput

HEAD_WEIGHTS_FILE, HEAD_CONFIG_FILE = "head.safetensors", "head.json"
HeadTensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class HeadConfig:
    """What a head answers, and from which vectors.

    Attributes:
        label_space: its classes are the head's, in order.
        pooling: where a window's vector is read; never ``auto``.
        window_pooling: how the logits of a document's windows become its own.
    """

    label_space: LabelSpace
    pooling: PoolingMode
    window_pooling: WindowPooling


@dataclass(frozen=True)
class SavedHeads:
    """What ``load_heads`` finds.

    Attributes:
        heads: the module, in evaluation mode, task by task in the order in which they were saved.
        head_configs: task -> what its head answers.
        base_sha256: fingerprint of the base whose vectors they read.
        reference_output: None where none was kept.
        metadata: what else the writer said.
    """

    heads: TaskHeads
    head_configs: dict[str, HeadConfig]
    base_sha256: str
    reference_output: ReferenceOutput | None
    metadata: dict[str, Any]


def save_heads(
    folder: Path,
    heads: Mapping[str, Head],
    head_configs: Mapping[str, HeadConfig],
    base_sha256: str,
    reference_output: ReferenceOutput | None = None,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write the heads of a run beside its adapters, or in a folder of their own, which is made.

    The numbers are written before what describes them, each file whole or not at all: a write that was cut off leaves what was there, or a pair
    that does not match, which ``load_heads`` refuses.

    Args:
        folder: for both files; other files in it are left alone.
        heads: task -> head.
        head_configs: task -> what it answers.
        base_sha256: fingerprint of the base.
        reference_output: with answers of the same tasks.
        metadata: what else is to be known, as JSON takes it.

    Raises:
        UsageError: heads, questions and probe are not about the same tasks and classes.
        StorageError: it cannot be written.
    """
    _check_same_tasks(heads, head_configs, reference_output)
    weights = save(_collect_tensors(heads, reference_output), metadata={"format": "pt"})
    described = {
        "clinpeft": clinpeft.__version__,
        "base_sha256": base_sha256,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "tasks": {task: _describe_head(head, head_configs[task]) for task, head in heads.items()},
        "probe": {
            "input_ids": reference_output.input_ids.tolist(),
            "place": reference_output.environment.as_json(),
        }
        if reference_output
        else None,
        "about": dict(metadata or {}),
    }
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_file(folder / HEAD_WEIGHTS_FILE, weights)
        _write_file(folder / HEAD_CONFIG_FILE, text.encode())
    except OSError as error:
        raise StorageError(
            f"the head cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error


def load_heads(folder: Path, base_sha256: str = "") -> SavedHeads:
    """Read what ``save_head`` wrote, and nothing that only resembles it.

    Args:
        folder: with both files.
        base_sha256: fingerprint of the base at hand; empty: not asked.

    Raises:
        AdapterError: a file is missing or damaged, or numbers are missing, left over, or of another shape.
        RefusedError: the numbers are not those that were written, or the base is another one.
    """
    described, weights = _read_head_description(folder), _read_file(folder / HEAD_WEIGHTS_FILE)
    try:
        tasks = dict(described["tasks"])
        asked = {task: _parse_head_config(found) for task, found in tasks.items()}
        shapes = {
            task: (len(asked[task].label_space.classes), int(found["width"]))
            for task, found in tasks.items()
        }
        dropouts = {
            task: torch.nn.Dropout(found["dropout"]).p for task, found in tasks.items()
        }  # which refuses what is no share
        kept, written, base = (
            described["probe"],
            described["weights_sha256"],
            str(described["base_sha256"]),
        )
        rows = (
            (
                torch.tensor(kept["input_ids"], dtype=torch.int64),
                ComputeEnvironment.from_json(kept["place"]),
            )
            if kept
            else None
        )
        about = dict(described["about"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _create_damaged_error(folder / HEAD_CONFIG_FILE, error) from error
    _check_hashes(folder, weights, written, base, base_sha256)
    tensors = _parse_tensors(folder, weights)
    _check_tensors(tensors, shapes, len(rows[0]) if rows else 0, folder)
    heads = TaskHeads(
        {task: _create_head(task, shape, dropouts[task], tensors) for task, shape in shapes.items()}
    )
    probe = (
        ReferenceOutput(rows[0], {task: tensors[f"probe.{task}"] for task in shapes}, rows[1])
        if rows
        else None
    )
    return SavedHeads(heads.eval(), asked, base, probe, about)


def _check_same_tasks(
    heads: Mapping[str, Head],
    head_configs: Mapping[str, HeadConfig],
    reference_output: ReferenceOutput | None,
) -> None:
    given = {task: head.num_classes for task, head in heads.items()}
    wanted = {task: len(about.label_space.classes) for task, about in head_configs.items()}
    answered = (
        wanted
        if reference_output is None
        else {task: logits.shape[1] for task, logits in reference_output.logits.items()}
    )
    if not given or given != wanted or answered != wanted:
        message = f"heads of {given}, questions of {wanted} and a probe of {answered} classes"
        raise UsageError(
            message,
            location="head",
            hint="give each task one head, one question and one answer to the probe",
        )


def _describe_head(head: Head, head_config: HeadConfig) -> dict[str, object]:
    question = head_config.label_space.as_json()
    return {
        "question": question,
        "pooling": head_config.pooling,
        "window_pooling": head_config.window_pooling,
        "width": head.width,
        "dropout": head.dropout.p,
    }


def _parse_head_config(description: Mapping[str, Any]) -> HeadConfig:
    """What ``_described`` says; a ValueError where a word is not known."""
    for key, known in (
        ("pooling", get_args(PoolingMode)),
        ("window_pooling", get_args(WindowPooling)),
    ):
        if description[key] not in known:
            raise ValueError(
                f"{key} is {description[key]!r}, and one of {', '.join(known)} is known"
            )
    return HeadConfig(
        LabelSpace.from_json(description["question"]),
        description["pooling"],
        description["window_pooling"],
    )


def _collect_tensors(
    heads: Mapping[str, Head], reference_output: ReferenceOutput | None
) -> HeadTensors:
    """The answers to the probe are among the numbers, where every bit of a float32 is kept."""
    found = {
        f"head.{task}.{name}": tensor
        for task, head in heads.items()
        for name, tensor in head.linear.named_parameters()
    }
    answers = (
        {f"probe.{task}": logits for task, logits in reference_output.logits.items()}
        if reference_output
        else {}
    )
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous().clone()
        for name, tensor in (found | answers).items()
    }


def _write_file(path: Path, content: bytes) -> None:
    """Under another name, to the disk, and only then in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise AdapterError(
            f"no {path.name}",
            location=str(path.parent),
            hint="give the folder of a head, and copy both its files",
        ) from None
    except OSError as error:
        raise _create_damaged_error(path, error) from error


def _read_head_description(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_file(folder / HEAD_CONFIG_FILE))
    except ValueError as error:
        raise _create_damaged_error(folder / HEAD_CONFIG_FILE, error) from error
    if not isinstance(found, dict):
        raise _create_damaged_error(
            folder / HEAD_CONFIG_FILE, ValueError(f"it is a {type(found).__name__}, not an object")
        )
    return found


def _create_damaged_error(path: Path, error: Exception) -> AdapterError:
    return AdapterError(
        f"{path.name} cannot be read: {type(error).__name__}: {error}",
        location=str(path),
        hint="copy the folder again",
    )


def _check_hashes(
    folder: Path,
    weights: bytes,
    expected_sha256: str,
    trained_base_sha256: str,
    current_base_sha256: str,
) -> None:
    found = hashlib.sha256(weights).hexdigest()
    if found != expected_sha256:
        message = f"{HEAD_WEIGHTS_FILE} is not the file that was written: sha256 {found[:12]} for {str(expected_sha256)[:12]}"
        raise RefusedError(
            message, location=str(folder), hint="copy the folder again from where it was trained"
        )
    if current_base_sha256 and current_base_sha256 != trained_base_sha256:
        message = f"this head was trained on a base of sha256 {trained_base_sha256[:12]}, and the base is {current_base_sha256[:12]}"
        raise RefusedError(
            message,
            location=str(folder),
            hint="load the base it was trained on; on another one its numbers mean nothing",
        )


def _parse_tensors(folder: Path, weights: bytes) -> HeadTensors:
    try:
        tensors: HeadTensors = load(weights)
    except (SafetensorError, ValueError) as error:
        raise _create_damaged_error(folder / HEAD_WEIGHTS_FILE, error) from error
    return tensors


def _check_tensors(
    tensors: HeadTensors, shapes: Mapping[str, tuple[int, int]], reference_rows: int, folder: Path
) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for task, (classes, width) in shapes.items():
        wanted |= {f"head.{task}.weight": (classes, width), f"head.{task}.bias": (classes,)}
        wanted |= {f"probe.{task}": (reference_rows, classes)} if reference_rows else {}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(
        name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name)
    )
    odd = [
        f"{name} is {given.get(name, 'missing')} for {wanted.get(name, 'nothing')}"
        for name in differing
    ]
    odd += [
        f"{name} is {tensor.dtype} for torch.float32"
        for name, tensor in sorted(tensors.items())
        if tensor.dtype != torch.float32
    ]
    if odd or not wanted:
        message = (
            "; ".join(odd[:3]) + (f"; and {len(odd) - 3} more" if len(odd) > 3 else "")
            if odd
            else "no task"
        )
        raise AdapterError(
            message,
            location=str(folder / HEAD_WEIGHTS_FILE),
            hint=f"use {HEAD_WEIGHTS_FILE} and {HEAD_CONFIG_FILE} of one run",
        )


def _create_head(task: str, shape: tuple[int, int], dropout: float, tensors: HeadTensors) -> Head:
    classes, width = shape
    head = Head(width, classes, dropout)
    head.linear.load_state_dict(
        {name: tensors[f"head.{task}.{name}"] for name in ("weight", "bias")}
    )
    return head
