"""An encoder in a run folder: adapters or the whole model, how a text becomes a vector, and which base it all stands on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.core.errors import AdapterError, RefusedError, StorageError
from clinpeft.inference.classifier_io import RUN_ADAPTERS_FOLDER, RUN_MODEL_FOLDER
from clinpeft.models import FrozenBaseModel
from clinpeft.models.embedding_config import EmbeddingConfig
from clinpeft.recipe import EncoderModelSpec

ENCODER_FILE = "encoder.json"


def save_encoder(folder: Path, stack: Stack, embedding_config: EmbeddingConfig) -> None:
    """Write ``adapters/``, or ``model/`` where the base itself was trained, ``tokenizer/`` and ``encoder.json``.

    Raises:
        StorageError: it cannot be written.
    """
    if stack.adapters:
        adapters.save_adapter_stack(stack, folder / RUN_ADAPTERS_FOLDER)
    sha256 = stack.base.sha256
    if any(name.startswith("base.") for name in stack.trained_parameters):
        stack.base.backbone.save_pretrained(folder / RUN_MODEL_FOLDER)
        stack.base.tokenizer.save_pretrained(folder / RUN_MODEL_FOLDER)
        sha256 = models.fingerprint_base_model(folder / RUN_MODEL_FOLDER)
    stack.base.tokenizer.save_pretrained(folder / "tokenizer")
    about = {"base_sha256": sha256, "manner": asdict(embedding_config)}
    try:
        writing = folder / f"{ENCODER_FILE}.writing"
        writing.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        writing.replace(folder / ENCODER_FILE)
    except OSError as error:
        raise StorageError(
            f"the encoder cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error


def load_encoder(
    folder: Path, spec: EncoderModelSpec, device: torch.device
) -> tuple[Stack, EmbeddingConfig]:
    """What ``keep_encoder`` wrote, on its base.

    Raises:
        BaseModelError: the base cannot be loaded.
        AdapterError: a file is missing or damaged.
        RefusedError: the base is another one.
    """
    about = _read_encoder_file(folder)
    own = folder / RUN_MODEL_FOLDER
    base = models.load_base_model(
        spec.model_copy(update={"path": own, "precision": "float32"}) if own.is_dir() else spec,
        device,
        "vectors",
    )
    if base.sha256 != about["base_sha256"]:
        message = f"this encoder stands on a base of sha256 {str(about['base_sha256'])[:12]}, and the base is {base.sha256[:12]}"
        raise RefusedError(
            message,
            location=str(folder),
            hint="load the base it was trained on; on another one its vectors mean nothing",
        )
    stack = (
        adapters.load_adapter_stack(base, folder / RUN_ADAPTERS_FOLDER)
        if (folder / RUN_ADAPTERS_FOLDER).is_dir()
        else adapters.attach_adapters(base, ())
    )
    stack.train(False)
    return stack, EmbeddingConfig(**about["manner"])


def _read_encoder_file(folder: Path) -> dict[str, Any]:
    path = folder / ENCODER_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"base_sha256": found["base_sha256"], "manner": dict(found["manner"])}
    except FileNotFoundError:
        raise AdapterError(
            f"no {ENCODER_FILE}: this run holds no encoder",
            location=str(folder),
            hint="give a finished run of embed",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{ENCODER_FILE} cannot be read: {type(error).__name__}",
            location=str(path),
            hint="copy the folder again",
        ) from error


def create_random_base(base: FrozenBaseModel, seed: int) -> FrozenBaseModel:
    """The same architecture with random weights: what is left of a score when nothing was learned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = base.family.auto_class.from_config(base.model.config)
    model.requires_grad_(False)
    random = replace(
        base,
        model=model.eval().to(base.model.device, base.precision),
        sha256="",
        quantization="none",
    )
    models.enable_packing(random)
    return random
