"""What it takes to answer again, in a run folder: adapters, heads, and a probe by which a model that answers otherwise is found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.core.schemas import Question
from clinpeft.models import Asked, Head, Pooling, Probe, WindowPooling
from clinpeft.recipe import ReaderSpec

ADAPTERS, MODEL = "adapters", "model"
PROBE_SEED = 0


@dataclass(frozen=True)
class Served:
    """A model that answers as it did when it was trained.

    Attributes:
        stack: base and adapters, frozen.
        heads: task -> head.
        questions: task -> what it answers.
        pooling: where a window's vector is read.
    """

    stack: Stack
    heads: Mapping[str, Head]
    questions: Mapping[str, Question]
    pooling: Pooling


def keep(
    folder: Path,
    stack: Stack,
    heads: Mapping[str, Head],
    questions: Mapping[str, Question],
    pooling: Pooling,
    window_pooling: WindowPooling,
) -> None:
    """Write ``adapters/``, ``head.safetensors`` and ``head.json``, the tokenizer, and where the base itself was trained, ``model/``.

    Raises:
        StorageError: it cannot be written.
    """
    if stack.adapters:
        adapters.save_all(stack, folder / ADAPTERS)
    base_sha256 = stack.base.sha256
    if any(name.startswith("base.") for name in stack.trained):
        stack.base.backbone.save_pretrained(folder / MODEL)
        stack.base.tokenizer.save_pretrained(folder / MODEL)
        base_sha256 = models.fingerprint(folder / MODEL)
    stack.base.tokenizer.save_pretrained(folder / "tokenizer")
    ids = models.probe_ids(stack.base, PROBE_SEED)
    probe = Probe(
        ids, _probed(stack, heads, pooling, window_pooling, ids), models.place_now(stack.base)
    )
    asked = {name: Asked(question, pooling, window_pooling) for name, question in questions.items()}
    models.save_head(folder, heads, asked, base_sha256, probe)


def open_run(folder: Path, spec: ReaderSpec, device: torch.device) -> Served:
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
    own = folder / MODEL
    base = models.load(
        spec.model_copy(update={"path": own, "precision": "float32"}) if own.is_dir() else spec,
        device,
        "vectors",
    )
    saved = models.load_heads(folder, base.sha256)
    stack = (
        adapters.load_all(base, folder / ADAPTERS)
        if (folder / ADAPTERS).is_dir()
        else adapters.attach(base, ())
    )
    stack.train(False)
    heads = {name: head.to(device) for name, head in saved.heads.items()}
    first = next(iter(saved.asked.values()))
    if saved.probe is not None:
        now = _probed(stack, heads, first.pooling, first.window_pooling, saved.probe.input_ids)
        models.check_probe(saved.probe, now, models.place_now(base))
    return Served(
        stack, heads, {name: asked.question for name, asked in saved.asked.items()}, first.pooling
    )


def _probed(
    stack: Stack,
    heads: Mapping[str, Head],
    pooling: Pooling,
    window_pooling: WindowPooling,
    ids: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Task -> logits (rows, classes), each row a document of one window."""
    device = stack.base.model.device
    rows, mask = torch.arange(len(ids), device=device), torch.ones_like(ids, device=device)
    with torch.inference_mode():
        vectors = adapters.pooled(stack, ids.to(device), mask, pooling)
        return {
            name: head(vectors, rows, len(rows), window_pooling).cpu()
            for name, head in heads.items()
        }
