"""Trained models in a run folder: adapters or weights, heads, and a reference output.

The reference output, logits of random tokens, shows after loading whether the model computes what
it computed after training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.core.schemas import LabelSpace
from clinpeft.models import (
    FrozenBaseModel,
    Head,
    HeadConfig,
    PoolingMode,
    ReferenceOutput,
    WindowPooling,
)
from clinpeft.recipe import EncoderModelSpec

RUN_ADAPTERS_FOLDER, RUN_MODEL_FOLDER = "adapters", "model"
REFERENCE_INPUT_SEED = 0


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier as it was after training.

    Attributes:
        stack: base and adapters, frozen.
        heads: task -> head.
        label_spaces: task -> its classes.
        pooling: which hidden state of a window is its vector.
    """

    stack: Stack
    heads: Mapping[str, Head]
    label_spaces: Mapping[str, LabelSpace]
    pooling: PoolingMode


def save_run_stack(folder: Path, stack: Stack) -> str:
    """Write ``adapters/``, ``tokenizer/``, and ``model/`` if the base itself was trained.

    Returns:
        The fingerprint of the base that the adapters need, which is ``model/`` if there is one.

    Raises:
        StorageError: the files cannot be written.
    """
    if stack.adapters:
        adapters.save_adapter_stack(stack, folder / RUN_ADAPTERS_FOLDER)
    base_sha256 = stack.base.sha256
    # parameters of the base itself, by their name in the stack
    if any(name.startswith("base.") for name in stack.trained_parameters):
        stack.base.backbone.save_pretrained(folder / RUN_MODEL_FOLDER)
        stack.base.tokenizer.save_pretrained(folder / RUN_MODEL_FOLDER)
        base_sha256 = models.fingerprint_base_model(folder / RUN_MODEL_FOLDER)
    stack.base.tokenizer.save_pretrained(folder / "tokenizer")
    return base_sha256


def load_run_base(folder: Path, spec: EncoderModelSpec, device: torch.device) -> FrozenBaseModel:
    """Load the base of a run: its own ``model/`` if there is one, else that of its recipe.

    Raises:
        BaseModelError: it cannot be loaded.
    """
    model_folder = folder / RUN_MODEL_FOLDER
    if model_folder.is_dir():
        # trained weights are saved in float32
        spec = spec.model_copy(update={"path": model_folder, "precision": "float32"})
    return models.load_base_model(spec, device, "vectors")


def load_run_stack(folder: Path, base: FrozenBaseModel) -> Stack:
    """Load the adapters of a run, if there are any, onto its base, in evaluation mode.

    Raises:
        AdapterError: a file is missing or damaged.
        RefusedError: an adapter differs from the saved one.
    """
    adapters_folder = folder / RUN_ADAPTERS_FOLDER
    if adapters_folder.is_dir():
        stack = adapters.load_adapter_stack(base, adapters_folder)
    else:
        stack = adapters.attach_adapters(base, ())
    stack.train(False)
    return stack


def save_classifier(
    folder: Path,
    stack: Stack,
    heads: Mapping[str, Head],
    label_spaces: Mapping[str, LabelSpace],
    pooling: PoolingMode,
    window_pooling: WindowPooling,
) -> None:
    """Write a classifier: the files of ``save_run_stack``, and those of ``models.save_heads``.

    Args:
        folder: of the run.
        stack: base and adapters.
        heads: task -> head.
        label_spaces: task -> its classes.
        pooling: which hidden state of a window is its vector.
        window_pooling: how the logits of a document are computed from those of its windows.

    Raises:
        StorageError: the files cannot be written.
    """
    base_sha256 = save_run_stack(folder, stack)
    token_ids = models.sample_reference_tokens(stack.base, REFERENCE_INPUT_SEED)  # (rows, time)
    logits = _compute_reference_logits(stack, heads, pooling, window_pooling, token_ids)
    environment = models.describe_environment(stack.base)
    # one pooling for all tasks: they share the vectors
    configs = {
        task: HeadConfig(label_space, pooling, window_pooling)
        for task, label_space in label_spaces.items()
    }
    reference_output = ReferenceOutput(token_ids, logits, environment)
    models.save_heads(folder, heads, configs, base_sha256, reference_output)


def load_classifier(folder: Path, spec: EncoderModelSpec, device: torch.device) -> LoadedClassifier:
    """Load what ``save_classifier`` wrote, and check its reference output.

    Args:
        folder: of the run.
        spec: the base of its recipe.
        device: where to put it.

    Raises:
        BaseModelError: the base cannot be loaded.
        AdapterError: a file is missing or damaged.
        RefusedError: a hash differs, or the reference output does.
    """
    base = load_run_base(folder, spec, device)
    # the fingerprint binds the heads to this base
    saved = models.load_heads(folder, base.sha256)
    stack = load_run_stack(folder, base)
    heads = {task: head.to(device) for task, head in saved.heads.items()}
    # all heads of a run have the same pooling
    config = next(iter(saved.head_configs.values()))
    reference = saved.reference_output
    if reference is not None:
        logits = _compute_reference_logits(
            stack, heads, config.pooling, config.window_pooling, reference.input_ids
        )
        models.check_reference_output(reference, logits, models.describe_environment(base))
    label_spaces = {task: config.label_space for task, config in saved.head_configs.items()}
    return LoadedClassifier(stack, heads, label_spaces, config.pooling)


def _compute_reference_logits(
    stack: Stack,
    heads: Mapping[str, Head],
    pooling: PoolingMode,
    window_pooling: WindowPooling,
    token_ids: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return task -> logits (rows, classes); each row is a document of one window."""
    device = stack.base.model.device
    document_index = torch.arange(len(token_ids), device=device)  # (rows,)
    mask = torch.ones_like(token_ids, device=device)  # (rows, time)
    with torch.inference_mode():
        vectors = adapters.compute_pooled_embeddings(
            stack, token_ids.to(device), mask, pooling
        )  # (rows, width)
        return {
            task: head(vectors, document_index, len(token_ids), window_pooling).cpu()
            for task, head in heads.items()
        }
