"""Trained encoders in a run folder: adapters or weights, and how they embed a text."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from clinpeft import models
from clinpeft.adapters import Stack
from clinpeft.core.errors import AdapterError, RefusedError
from clinpeft.core.files import write_file_atomically
from clinpeft.inference.classifier_io import load_run_base, load_run_stack, save_run_stack
from clinpeft.models import EmbeddingConfig, FrozenBaseModel
from clinpeft.recipe import EncoderModelSpec

ENCODER_FILE = "encoder.json"


@dataclass(frozen=True)
class _EncoderDescription:
    """``encoder.json``."""

    base_sha256: str
    embedding_config: Annotated[
        EmbeddingConfig,
        Field(alias="manner"),
        PlainValidator(EmbeddingConfig.from_json),
        PlainSerializer(EmbeddingConfig.as_json),
    ]

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = _DESCRIPTION_ADAPTER.dump_python(
            self, mode="json", by_alias=True
        )
        return document

    @classmethod
    def from_json(cls, content: bytes) -> _EncoderDescription:
        return _DESCRIPTION_ADAPTER.validate_python(json.loads(content))


_DESCRIPTION_ADAPTER = TypeAdapter(_EncoderDescription)


def save_encoder(folder: Path, stack: Stack, embedding_config: EmbeddingConfig) -> None:
    """Write an encoder: the files of ``save_run_stack``, and ``encoder.json``.

    Args:
        folder: of the run.
        stack: base and adapters.
        embedding_config: how a text is embedded.

    Raises:
        StorageError: the files cannot be written.
    """
    description = _EncoderDescription(save_run_stack(folder, stack), embedding_config)
    text = json.dumps(description.as_json(), indent=2) + "\n"
    write_file_atomically(folder / ENCODER_FILE, text)


def load_encoder(
    folder: Path, spec: EncoderModelSpec, device: torch.device
) -> tuple[Stack, EmbeddingConfig]:
    """Load what ``save_encoder`` wrote.

    Args:
        folder: of the run.
        spec: the base of its recipe.
        device: where to put it.

    Raises:
        BaseModelError: the base cannot be loaded.
        AdapterError: a file is missing or damaged.
        RefusedError: the base is not the one of the training.
    """
    path = folder / ENCODER_FILE
    try:
        description = _EncoderDescription.from_json(path.read_bytes())
    except FileNotFoundError:
        raise AdapterError(
            f"no {ENCODER_FILE}: this run holds no encoder",
            location=str(folder),
            hint="give a completed run of embed",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(
            f"{ENCODER_FILE} cannot be read: {type(error).__name__}",
            location=str(path),
            hint="copy the folder again",
        ) from error
    base = load_run_base(folder, spec, device)
    # before the adapters are loaded: their hashes cannot show another base
    if base.sha256 != description.base_sha256:
        raise RefusedError(
            f"this encoder was trained on a base of sha256 {description.base_sha256[:12]}, and the "
            f"base is {base.sha256[:12]}",
            location=str(folder),
            hint="load the base it was trained on; with another one its vectors mean nothing",
        )
    return load_run_stack(folder, base), description.embedding_config


def create_random_base(base: FrozenBaseModel, seed: int) -> FrozenBaseModel:
    """Return a base of the same architecture with random weights, as a control for evaluations.

    The global generators of torch do not change.

    Args:
        base: gives architecture, tokenizer, device and precision.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = base.family.auto_class.from_config(base.model.config)
    model.requires_grad_(False)
    model = model.eval().to(base.model.device, base.precision)
    # no fingerprint: the weights are in no folder
    random_base = replace(base, model=model, sha256="", quantization="none")
    models.enable_packing(random_base)
    return random_base
