"""What it takes to answer again, in a run folder: adapters, heads, and a probe by which a model that answers otherwise is found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.core.schemas import LabelSpace
from clinpeft.models import HeadConfig, Head, PoolingMode, ReferenceOutput, WindowPooling
from clinpeft.recipe import EncoderModelSpec

RUN_ADAPTERS_FOLDER, RUN_MODEL_FOLDER = "adapters", "model"
REFERENCE_INPUT_SEED = 0


@dataclass(frozen=True)
class LoadedClassifier:
    """A model that answers as it did when it was trained.

    Attributes:
        stack: base and adapters, frozen.
        heads: task -> head.
        label_spaces: task -> what it answers.
        pooling: where a window's vector is read.
    """

    stack: Stack
    heads: Mapping[str, Head]
    label_spaces: Mapping[str, LabelSpace]
    pooling: PoolingMode


def save_classifier(
    folder: Path,
    stack: Stack,
    heads: Mapping[str, Head],
    label_spaces: Mapping[str, LabelSpace],
    pooling: PoolingMode,
    window_pooling: WindowPooling,
) -> None:
    """Write ``adapters/``, ``head.safetensors`` and ``head.json``, the tokenizer, and where the base itself was trained, ``model/``.

    Raises:
        StorageError: it cannot be written.
    """
    if stack.adapters:
        adapters.save_adapter_stack(stack, folder / RUN_ADAPTERS_FOLDER)
    base_sha256 = stack.base.sha256
    if any(name.startswith("base.") for name in stack.trained_parameters):
        stack.base.backbone.save_pretrained(folder / RUN_MODEL_FOLDER)
        stack.base.tokenizer.save_pretrained(folder / RUN_MODEL_FOLDER)
        base_sha256 = models.fingerprint_base_model(folder / RUN_MODEL_FOLDER)
    stack.base.tokenizer.save_pretrained(folder / "tokenizer")
    ids = models.sample_reference_tokens(stack.base, REFERENCE_INPUT_SEED)
    probe = ReferenceOutput(
        ids,
        _compute_reference_logits(stack, heads, pooling, window_pooling, ids),
        models.describe_environment(stack.base),
    )
    asked = {
        name: HeadConfig(question, pooling, window_pooling)
        for name, question in label_spaces.items()
    }
    models.save_heads(folder, heads, asked, base_sha256, probe)


def load_classifier(folder: Path, spec: EncoderModelSpec, device: torch.device) -> LoadedClassifier:
    """What ``keep`` wrote, on its base, and only if it answers the probe as it did then.

    Args:
        folder: of the run.
        spec: the base of its recipe.
        device: where to put it.

    Raises:
        BaseModelError: the base cannot be loaded.
        AdapterError: a file is missing or damaged.
        RefusedError: a hash differs, or the probe is answered otherwise.
    """
    own = folder / RUN_MODEL_FOLDER
    base = models.load_base_model(
        spec.model_copy(update={"path": own, "precision": "float32"}) if own.is_dir() else spec,
        device,
        "vectors",
    )
    saved = models.load_heads(folder, base.sha256)
    stack = (
        adapters.load_adapter_stack(base, folder / RUN_ADAPTERS_FOLDER)
        if (folder / RUN_ADAPTERS_FOLDER).is_dir()
        else adapters.attach_adapters(base, ())
    )
    stack.train(False)
    heads = {name: head.to(device) for name, head in saved.heads.items()}
    first = next(iter(saved.head_configs.values()))
    if saved.reference_output is not None:
        now = _compute_reference_logits(
            stack, heads, first.pooling, first.window_pooling, saved.reference_output.input_ids
        )
        models.check_reference_output(
            saved.reference_output, now, models.describe_environment(base)
        )
    return LoadedClassifier(
        stack,
        heads,
        {name: asked.label_space for name, asked in saved.head_configs.items()},
        first.pooling,
    )


def _compute_reference_logits(
    stack: Stack,
    heads: Mapping[str, Head],
    pooling: PoolingMode,
    window_pooling: WindowPooling,
    ids: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Task -> logits (rows, classes), each row a document of one window."""
    device = stack.base.model.device
    rows, mask = torch.arange(len(ids), device=device), torch.ones_like(ids, device=device)
    with torch.inference_mode():
        vectors = adapters.compute_pooled_embeddings(stack, ids.to(device), mask, pooling)
        return {
            name: head(vectors, rows, len(rows), window_pooling).cpu()
            for name, head in heads.items()
        }
