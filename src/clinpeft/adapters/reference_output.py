"""A probe for what has no head: vectors of invented tokens, kept with a run, so that a model that differs is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clinpeft import models
from clinpeft.adapters.outputs import compute_hidden_states
from clinpeft.adapters.stack import Stack, use_eval_mode
from clinpeft.core.errors import AdapterError, StorageError
from clinpeft.models import ComputeEnvironment, ReferenceOutput

STACK_REFERENCE_FILE = "probe.safetensors"
STACK_REFERENCE_SEED = 0
STACK_REFERENCE_NAME = "the stack"


def save_stack_reference_output(stack: Stack, folder: Path) -> None:
    """Write ``probe.safetensors``: invented token ids (rows, time) and the last vector of each row (rows, width), with where they were computed.

    Raises:
        StorageError: it cannot be written.
    """
    ids = models.sample_reference_tokens(stack.base, STACK_REFERENCE_SEED)
    tensors = {"input_ids": ids, "vectors": _compute_reference_vectors(stack, ids)}
    writing = folder / f"{STACK_REFERENCE_FILE}.writing"
    try:
        save_file(
            tensors,
            writing,
            metadata={"place": json.dumps(models.describe_environment(stack.base).as_json())},
        )
        writing.replace(folder / STACK_REFERENCE_FILE)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the probe cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error


def check_stack_reference_output(stack: Stack, folder: Path) -> bool:
    """Whether a probe was kept; if so, that base and adapters give its vectors again: to the bit in the same place, else within a tolerance.

    Raises:
        AdapterError: the file is damaged.
        RefusedError: the vectors are others.
    """
    path = folder / STACK_REFERENCE_FILE
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            location = ComputeEnvironment.from_json(json.loads(file.metadata()["place"]))
            ids, then = file.get_tensor("input_ids"), file.get_tensor("vectors")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{STACK_REFERENCE_FILE} cannot be read: {type(error).__name__}",
            location=str(path),
            hint="copy the run's folder again",
        ) from error
    models.check_reference_output(
        ReferenceOutput(ids, {STACK_REFERENCE_NAME: then}, location),
        {STACK_REFERENCE_NAME: _compute_reference_vectors(stack, ids)},
        models.describe_environment(stack.base),
    )
    return True


def _compute_reference_vectors(stack: Stack, token_ids: torch.Tensor) -> torch.Tensor:
    """(rows, width) float32 on the CPU."""
    model: Any = stack.model
    there = token_ids.to(stack.base.model.device)
    with use_eval_mode(model), torch.inference_mode():
        found = compute_hidden_states(stack, there, torch.ones_like(there))[:, -1]
    return found.to("cpu", torch.float32).contiguous().clone()
