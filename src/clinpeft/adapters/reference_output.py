"""Reference output of a stack without a head, saved with a run, to notice another model."""

from __future__ import annotations

import json
from pathlib import Path

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
    """Write ``probe.safetensors``: random token ids, their vectors, and where they were computed.

    The file holds ``input_ids`` (rows, time), never from a note, and ``vectors`` (rows, width), the
    last hidden state of the last token of each row.

    Raises:
        StorageError: it cannot be written.
    """
    # random tokens, so that the file holds nothing of a note
    ids = models.sample_reference_tokens(stack.base, STACK_REFERENCE_SEED)
    # (rows, time) and (rows, width)
    tensors = {"input_ids": ids, "vectors": _compute_reference_vectors(stack, ids)}
    environment = models.describe_environment(stack.base).as_json()
    temporary = folder / f"{STACK_REFERENCE_FILE}.writing"
    try:
        save_file(tensors, temporary, metadata={"place": json.dumps(environment)})
        # complete or not there
        temporary.replace(folder / STACK_REFERENCE_FILE)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the reference output cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error


def check_stack_reference_output(stack: Stack, folder: Path) -> bool:
    """Check that base and adapters give the saved vectors again.

    In the same environment they have to be equal to the bit, in another one within a tolerance.

    Returns:
        Whether the folder has a reference output.

    Raises:
        AdapterError: the file is damaged.
        RefusedError: the vectors differ.
    """
    path = folder / STACK_REFERENCE_FILE
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            environment = ComputeEnvironment.from_json(json.loads(file.metadata()["place"]))
            # (rows, time), (rows, width)
            ids, vectors = file.get_tensor("input_ids"), file.get_tensor("vectors")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{STACK_REFERENCE_FILE} cannot be read: {type(error).__name__}",
            location=str(path),
            hint="copy the run's folder again",
        ) from error
    # equal to the bit with the same versions, device and threads, else within a tolerance
    models.check_reference_output(
        ReferenceOutput(ids, {STACK_REFERENCE_NAME: vectors}, environment),
        {STACK_REFERENCE_NAME: _compute_reference_vectors(stack, ids)},
        models.describe_environment(stack.base),
    )
    return True


def _compute_reference_vectors(stack: Stack, token_ids: torch.Tensor) -> torch.Tensor:
    """(rows, width) float32 on the CPU."""
    ids = token_ids.to(stack.base.model.device)
    with use_eval_mode(stack.model), torch.inference_mode():
        vectors = compute_hidden_states(stack, ids, torch.ones_like(ids))[:, -1]
    # a copy without the rest of the hidden states, which a view would keep in memory
    return vectors.to("cpu", torch.float32).contiguous().clone()
