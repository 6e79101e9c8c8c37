"""Heads in a folder: ``head.safetensors`` with tensors, ``head.json`` with their description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

import clinpeft
from clinpeft.core.errors import AdapterError, RefusedError, UsageError
from clinpeft.core.files import write_file_atomically
from clinpeft.core.schemas import LabelSpace
from clinpeft.models.families import PoolingMode
from clinpeft.models.heads import Head, TaskHeads, WindowPooling
from clinpeft.models.reference_output import ComputeEnvironment, ReferenceOutput

HEAD_WEIGHTS_FILE, HEAD_CONFIG_FILE = "head.safetensors", "head.json"
HeadTensors = dict[str, torch.Tensor]
"""``head.TASK.weight`` (classes, width), ``head.TASK.bias`` (classes,), and the logits of the
reference output, ``probe.TASK`` (rows, classes); all float32."""


@dataclass(frozen=True)
class HeadConfig:
    """What a head predicts, and from which vectors.

    Attributes:
        label_space: its classes are the head's, in order.
        pooling: which hidden state of a window is its vector; never ``auto``.
        window_pooling: how the logits of a document are computed from those of its windows.
    """

    label_space: LabelSpace
    pooling: PoolingMode
    window_pooling: WindowPooling


@dataclass(frozen=True)
class SavedHeads:
    """What ``load_heads`` returns.

    Attributes:
        heads: in evaluation mode, in the order in which they were saved.
        head_configs: task -> what its head predicts.
        base_sha256: fingerprint of the base from whose vectors they predict.
        reference_output: None where none was saved.
        metadata: as given to ``save_heads``.
    """

    heads: TaskHeads
    head_configs: dict[str, HeadConfig]
    base_sha256: str
    reference_output: ReferenceOutput | None
    metadata: dict[str, Any]


# ------------------------------------------------------------------------------------- head.json


# the label space has its own conversion, which the metadata of predictions uses too
_LabelSpaceJson = Annotated[
    LabelSpace, PlainValidator(LabelSpace.from_json), PlainSerializer(LabelSpace.as_json)
]


@dataclass(frozen=True)
class _TaskDescription:
    """An entry of ``tasks`` in ``head.json``."""

    question: _LabelSpaceJson
    pooling: PoolingMode
    window_pooling: WindowPooling
    width: int
    dropout: Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class _ReferenceDescription:
    """``probe`` in ``head.json``; its logits are tensors, where every bit of a float32 is kept."""

    input_ids: list[list[int]]
    place: ComputeEnvironment


@dataclass(frozen=True)
class _HeadDescription:
    """``head.json``."""

    clinpeft: str
    base_sha256: str
    weights_sha256: str
    tasks: dict[str, _TaskDescription]
    probe: _ReferenceDescription | None
    about: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = _DESCRIPTION_ADAPTER.dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, content: bytes) -> _HeadDescription:
        return _DESCRIPTION_ADAPTER.validate_python(json.loads(content))


_DESCRIPTION_ADAPTER = TypeAdapter(_HeadDescription)


# ---------------------------------------------------------------------------------- save and load


def save_heads(
    folder: Path,
    heads: Mapping[str, Head],
    head_configs: Mapping[str, HeadConfig],
    base_sha256: str,
    reference_output: ReferenceOutput | None = None,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write the heads of a run to a folder, which is created if it does not exist.

    The tensors are written before their description, each file whole or not at all: an interrupted
    call leaves the previous files, or two files that do not match, which ``load_heads`` refuses.

    Args:
        folder: for both files; other files in it do not change.
        heads: task -> head.
        head_configs: task -> what it predicts.
        base_sha256: fingerprint of the base.
        reference_output: with logits of the same tasks.
        metadata: anything else that JSON can hold.

    Raises:
        UsageError: heads, configs and reference output have different tasks or classes.
        StorageError: the files cannot be written.
    """
    head_classes = {task: head.num_classes for task, head in heads.items()}
    classes = {task: len(config.label_space.classes) for task, config in head_configs.items()}
    logits = reference_output.logits if reference_output else {}
    logit_classes = {task: tensor.shape[1] for task, tensor in logits.items()}
    is_consistent = head_classes == classes and (not reference_output or logit_classes == classes)
    if not head_classes or not is_consistent:
        raise UsageError(
            f"heads of {head_classes}, label spaces of {classes} and reference logits of "
            f"{logit_classes or 'no'} classes",
            location="head",
            hint="give each task one head, one config and one tensor of reference logits",
        )
    tensors: HeadTensors = {}
    for task, head in heads.items():
        # weight (classes, width), bias (classes,)
        tensors |= {f"head.{task}.{name}": p for name, p in head.linear.named_parameters()}
    # (rows, classes): in safetensors every bit of a float32 is kept
    tensors |= {f"probe.{task}": tensor for task, tensor in logits.items()}
    # clones: safetensors refuses tensors that share memory
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous().clone()
        for name, tensor in tensors.items()
    }
    weights = save(tensors, metadata={"format": "pt"})
    tasks = {}
    for task, head in heads.items():
        config = head_configs[task]
        tasks[task] = _TaskDescription(
            config.label_space, config.pooling, config.window_pooling, head.width, head.dropout.p
        )
    probe = None
    if reference_output:
        token_ids = reference_output.input_ids.tolist()
        probe = _ReferenceDescription(token_ids, reference_output.environment)
    description = _HeadDescription(
        clinpeft=clinpeft.__version__,
        base_sha256=base_sha256,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        tasks=tasks,
        probe=probe,
        about=dict(metadata or {}),
    )
    # class names of any language remain readable
    text = json.dumps(description.as_json(), indent=2, ensure_ascii=False) + "\n"
    # tensors first: a crash between the two leaves a hash that does not match
    write_file_atomically(folder / HEAD_WEIGHTS_FILE, weights)
    write_file_atomically(folder / HEAD_CONFIG_FILE, text)


def load_heads(folder: Path, base_sha256: str = "") -> SavedHeads:
    """Read what ``save_heads`` wrote, after checking that it is complete and unchanged.

    Args:
        folder: with both files.
        base_sha256: fingerprint of the base that is in use; empty to accept any.

    Raises:
        AdapterError: a file is missing or damaged, or tensors are missing, not described, or of
            another shape.
        RefusedError: the tensors are not those that were written, or the base is another one.
    """
    weights_path, config_path = folder / HEAD_WEIGHTS_FILE, folder / HEAD_CONFIG_FILE
    try:
        description = _HeadDescription.from_json(_read_file(config_path))
        token_ids = torch.tensor(  # (rows, time); a ValueError if rows differ in length
            description.probe.input_ids if description.probe else [], dtype=torch.int64
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _create_damaged_error(config_path, error) from error
    weights = _read_file(weights_path)
    # over the bytes in memory, so that the file cannot change between check and use
    sha256 = hashlib.sha256(weights).hexdigest()
    if sha256 != description.weights_sha256:
        raise RefusedError(
            f"{HEAD_WEIGHTS_FILE} is not the file that was written: sha256 {sha256[:12]} instead "
            f"of {description.weights_sha256[:12]}",
            location=str(folder),
            hint="copy the folder again from where it was trained",
        )
    # dimensions may agree between bases, so only the fingerprint shows the difference
    if base_sha256 and base_sha256 != description.base_sha256:
        raise RefusedError(
            f"this head was trained on a base of sha256 {description.base_sha256[:12]}, "
            f"and the base is {base_sha256[:12]}",
            location=str(folder),
            hint="load the base it was trained on; with another one its outputs mean nothing",
        )
    try:
        tensors: HeadTensors = load(weights)
    except (SafetensorError, ValueError) as error:
        raise _create_damaged_error(weights_path, error) from error
    # before the modules are built, so that all differences are in one message
    _check_tensors(tensors, description, len(token_ids), weights_path)
    heads = {}
    for task, entry in description.tasks.items():
        heads[task] = Head(entry.width, len(entry.question.classes), entry.dropout)
        # weight (classes, width), bias (classes,)
        state = {name: tensors[f"head.{task}.{name}"] for name in ("weight", "bias")}
        heads[task].linear.load_state_dict(state)
    reference_output = None
    if description.probe:
        # (rows, classes) each
        logits = {task: tensors[f"probe.{task}"] for task in heads}
        reference_output = ReferenceOutput(token_ids, logits, description.probe.place)
    configs = {
        task: HeadConfig(entry.question, entry.pooling, entry.window_pooling)
        for task, entry in description.tasks.items()
    }
    return SavedHeads(
        TaskHeads(heads).eval(),
        configs,
        description.base_sha256,
        reference_output,
        description.about,
    )


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


def _create_damaged_error(path: Path, error: Exception) -> AdapterError:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        # the first of its errors, without the input, which may be a whole file
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    return AdapterError(
        f"{path.name} cannot be read: {reason}",
        location=str(path),
        hint="copy the folder again",
    )


def _check_tensors(
    tensors: HeadTensors, description: _HeadDescription, reference_rows: int, path: Path
) -> None:
    """Check names, shapes and types of the tensors; the message has the first three differences."""
    expected: dict[str, tuple[int, ...]] = {}
    for task, entry in description.tasks.items():
        classes = len(entry.question.classes)
        expected[f"head.{task}.weight"] = (classes, entry.width)
        expected[f"head.{task}.bias"] = (classes,)
        # with the number of classes of the task, as saved by `save_heads`
        if reference_rows:
            expected[f"probe.{task}"] = (reference_rows, classes)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differences = [
        f"{name} is {shapes.get(name, 'missing')} instead of {expected.get(name, 'nothing')}"
        for name in sorted(shapes.keys() | expected.keys())
        if shapes.get(name) != expected.get(name)
    ]
    differences += [
        f"{name} is {tensor.dtype} instead of torch.float32"
        for name, tensor in sorted(tensors.items())
        if tensor.dtype != torch.float32
    ]
    if differences or not expected:
        # a head of another run differs in every tensor; three are enough to see it
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise AdapterError(
            "; ".join(differences[:3]) + more if differences else "no task",
            location=str(path),
            hint=f"use {HEAD_WEIGHTS_FILE} and {HEAD_CONFIG_FILE} of one run",
        )
