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
from clinpeft.models.families import Pooling
from clinpeft.models.heads import Head, Heads, WindowPooling
from clinpeft.models.reference_output import Place, Probe

WEIGHTS, ABOUT = "head.safetensors", "head.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Asked:
    """What a head answers, and from which vectors.

    Attributes:
        question: its classes are the head's, in order.
        pooling: where a window's vector is read; never ``auto``.
        window_pooling: how the logits of a document's windows become its own.
    """

    question: LabelSpace
    pooling: Pooling
    window_pooling: WindowPooling


@dataclass(frozen=True)
class SavedHeads:
    """What ``load_heads`` finds.

    Attributes:
        heads: the module, in evaluation mode, task by task in the order in which they were saved.
        asked: task -> what its head answers.
        base_sha256: fingerprint of the base whose vectors they read.
        probe: None where none was kept.
        about: what else the writer said.
    """

    heads: Heads
    asked: dict[str, Asked]
    base_sha256: str
    probe: Probe | None
    about: dict[str, Any]


def save_head(
    folder: Path,
    heads: Mapping[str, Head],
    asked: Mapping[str, Asked],
    base_sha256: str,
    probe: Probe | None = None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Write the heads of a run beside its adapters, or in a folder of their own, which is made.

    The numbers are written before what describes them, each file whole or not at all: a write that was cut off leaves what was there, or a pair
    that does not match, which ``load_heads`` refuses.

    Args:
        folder: for both files; other files in it are left alone.
        heads: task -> head.
        asked: task -> what it answers.
        base_sha256: fingerprint of the base.
        probe: with answers of the same tasks.
        about: what else is to be known, as JSON takes it.

    Raises:
        UsageError: heads, questions and probe are not about the same tasks and classes.
        StorageError: it cannot be written.
    """
    _check_same(heads, asked, probe)
    weights = save(_tensors(heads, probe), metadata={"format": "pt"})
    described = {
        "clinpeft": clinpeft.__version__,
        "base_sha256": base_sha256,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "tasks": {task: _described(head, asked[task]) for task, head in heads.items()},
        "probe": {"input_ids": probe.input_ids.tolist(), "place": probe.location.as_json()}
        if probe
        else None,
        "about": dict(about or {}),
    }
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / WEIGHTS, weights)
        _write(folder / ABOUT, text.encode())
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
    described, weights = _read_about(folder), _read(folder / WEIGHTS)
    try:
        tasks = dict(described["tasks"])
        asked = {task: _asked(found) for task, found in tasks.items()}
        shapes = {
            task: (len(asked[task].question.classes), int(found["width"]))
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
            (torch.tensor(kept["input_ids"], dtype=torch.int64), Place.from_json(kept["place"]))
            if kept
            else None
        )
        about = dict(described["about"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(folder / ABOUT, error) from error
    _check_hashes(folder, weights, written, base, base_sha256)
    tensors = _parsed(folder, weights)
    _check_tensors(tensors, shapes, len(rows[0]) if rows else 0, folder)
    heads = Heads(
        {task: _filled(task, shape, dropouts[task], tensors) for task, shape in shapes.items()}
    )
    probe = (
        Probe(rows[0], {task: tensors[f"probe.{task}"] for task in shapes}, rows[1])
        if rows
        else None
    )
    return SavedHeads(heads.eval(), asked, base, probe, about)


def _check_same(heads: Mapping[str, Head], asked: Mapping[str, Asked], probe: Probe | None) -> None:
    given = {task: head.classes for task, head in heads.items()}
    wanted = {task: len(about.question.classes) for task, about in asked.items()}
    answered = (
        wanted
        if probe is None
        else {task: logits.shape[1] for task, logits in probe.logits.items()}
    )
    if not given or given != wanted or answered != wanted:
        message = f"heads of {given}, questions of {wanted} and a probe of {answered} classes"
        raise UsageError(
            message,
            location="head",
            hint="give each task one head, one question and one answer to the probe",
        )


def _described(head: Head, asked: Asked) -> dict[str, object]:
    question = asked.question.as_json()
    return {
        "question": question,
        "pooling": asked.pooling,
        "window_pooling": asked.window_pooling,
        "width": head.width,
        "dropout": head.dropout.p,
    }


def _asked(found: Mapping[str, Any]) -> Asked:
    """What ``_described`` says; a ValueError where a word is not known."""
    for key, known in (("pooling", get_args(Pooling)), ("window_pooling", get_args(WindowPooling))):
        if found[key] not in known:
            raise ValueError(f"{key} is {found[key]!r}, and one of {', '.join(known)} is known")
    return Asked(LabelSpace.from_json(found["question"]), found["pooling"], found["window_pooling"])


def _tensors(heads: Mapping[str, Head], probe: Probe | None) -> Tensors:
    """The answers to the probe are among the numbers, where every bit of a float32 is kept."""
    found = {
        f"head.{task}.{name}": tensor
        for task, head in heads.items()
        for name, tensor in head.linear.named_parameters()
    }
    answers = {f"probe.{task}": logits for task, logits in probe.logits.items()} if probe else {}
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous().clone()
        for name, tensor in (found | answers).items()
    }


def _write(path: Path, content: bytes) -> None:
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise AdapterError(
            f"no {path.name}",
            location=str(path.parent),
            hint="give the folder of a head, and copy both its files",
        ) from None
    except OSError as error:
        raise _damaged(path, error) from error


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(folder / ABOUT))
    except ValueError as error:
        raise _damaged(folder / ABOUT, error) from error
    if not isinstance(found, dict):
        raise _damaged(folder / ABOUT, ValueError(f"it is a {type(found).__name__}, not an object"))
    return found


def _damaged(path: Path, error: Exception) -> AdapterError:
    return AdapterError(
        f"{path.name} cannot be read: {type(error).__name__}: {error}",
        location=str(path),
        hint="copy the folder again",
    )


def _check_hashes(folder: Path, weights: bytes, written: str, base: str, base_now: str) -> None:
    found = hashlib.sha256(weights).hexdigest()
    if found != written:
        message = f"{WEIGHTS} is not the file that was written: sha256 {found[:12]} for {str(written)[:12]}"
        raise RefusedError(
            message, location=str(folder), hint="copy the folder again from where it was trained"
        )
    if base_now and base_now != base:
        message = f"this head was trained on a base of sha256 {base[:12]}, and the base is {base_now[:12]}"
        raise RefusedError(
            message,
            location=str(folder),
            hint="load the base it was trained on; on another one its numbers mean nothing",
        )


def _parsed(folder: Path, weights: bytes) -> Tensors:
    try:
        tensors: Tensors = load(weights)
    except (SafetensorError, ValueError) as error:
        raise _damaged(folder / WEIGHTS, error) from error
    return tensors


def _check_tensors(
    tensors: Tensors, shapes: Mapping[str, tuple[int, int]], probe_rows: int, folder: Path
) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for task, (classes, width) in shapes.items():
        wanted |= {f"head.{task}.weight": (classes, width), f"head.{task}.bias": (classes,)}
        wanted |= {f"probe.{task}": (probe_rows, classes)} if probe_rows else {}
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
            message, location=str(folder / WEIGHTS), hint=f"use {WEIGHTS} and {ABOUT} of one run"
        )


def _filled(task: str, shape: tuple[int, int], dropout: float, tensors: Tensors) -> Head:
    classes, width = shape
    head = Head(width, classes, dropout)
    head.linear.load_state_dict(
        {name: tensors[f"head.{task}.{name}"] for name in ("weight", "bias")}
    )
    return head
