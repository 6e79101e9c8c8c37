"""Reading an adapter folder: a standard PEFT folder, and beside it ``clinpeft.json``, which says what it belongs to.

A folder is read whole and checked before anything is attached: peft leaves missing weights at their start values with a warning, so a renamed layer
would give an adapter that does nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in

from clinpeft.core.errors import AdapterError, RefusedError
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import AnyAdapterSpec

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, ADAPTER_METADATA_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "clinpeft.json",
)
ADAPTER_SPEC_TYPE: pydantic.TypeAdapter[AnyAdapterSpec] = pydantic.TypeAdapter(AnyAdapterSpec)


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter folder, read and checked.

    Attributes:
        folder: where it lies.
        spec: the adapter, as it was trained.
        metadata: the whole ``clinpeft.json``.
        files: name -> bytes of config, weights and ``clinpeft.json``.
        sha256: of config and weights: who it is for those trained above it.
        lower_adapter_hashes: sha256 of the adapters that were below it when it was trained, first to last.
    """

    folder: Path
    spec: AnyAdapterSpec
    metadata: dict[str, Any] = field(repr=False)
    files: dict[str, bytes] = field(repr=False)
    sha256: str
    lower_adapter_hashes: tuple[str, ...]

    @property
    def stack_metadata(self) -> dict[str, Any]:
        """Its place in the stack it was written with; empty for an adapter that was alone."""
        found: dict[str, Any] = self.metadata.get("stack") or {}
        return found


def read_adapter_folder(base: FrozenBaseModel, folder: Path) -> SavedAdapter:
    """A folder that belongs on ``base``.

    Raises:
        AdapterError: a file is missing or damaged, or the adapter is none that this version knows.
        RefusedError: the base is another one, or a file is not the one that was written.
    """
    about = _read_adapter_metadata(folder)
    if about["base"]["sha256"] != base.sha256:
        message = f"this adapter was trained on {about['base']['name']} (sha256 {about['base']['sha256'][:12]}), and the base is {base.sha256[:12]}"
        raise RefusedError(
            message,
            location=str(folder),
            hint="load the base it was trained on; on another one its numbers mean nothing",
        )
    files = _read_verified_files(about, folder)
    below = tuple(str(each["sha256"]) for each in (about.get("stack") or {}).get("below", ()))
    return SavedAdapter(
        folder, _parse_adapter_spec(about, folder), about, files, hash_adapter_files(files), below
    )


def hash_adapter_files(files: dict[str, bytes]) -> str:
    """Who an adapter is: sha256 (hex) over config and weights."""
    return hashlib.sha256(files[ADAPTER_CONFIG_FILE] + files[ADAPTER_WEIGHTS_FILE]).hexdigest()


def load_peft_config(saved_adapter: SavedAdapter, base: FrozenBaseModel, trainable: bool) -> Any:
    """The peft config of a folder, for this machine."""
    config = peft.PeftConfig.from_pretrained(str(saved_adapter.folder))
    config.inference_mode = not trainable
    config.base_model_name_or_path = (
        None  # the folder's name, as written; peft warns when it is not the path of this machine
    )
    if hasattr(config, "tokenizer_name_or_path"):
        config.tokenizer_name_or_path = str(
            base.folder
        )  # peft opens it for a prompt that started from a text
    if hasattr(config, "lora_dropout") and not trainable:
        config.lora_dropout = (
            0.0  # a frozen adapter stays the same function while something else trains
        )
    return config


def load_adapter_weights(saved_adapter: SavedAdapter) -> dict[str, torch.Tensor]:
    """The tensors of a folder, under stock names.

    Raises:
        AdapterError: the file is damaged.
    """
    try:
        return dict(tensors_in(saved_adapter.files[ADAPTER_WEIGHTS_FILE]))
    except SafetensorError as error:
        raise AdapterError(
            f"{ADAPTER_WEIGHTS_FILE} cannot be read: {error}",
            location=str(saved_adapter.folder),
            hint="copy the folder again",
        ) from error


def _read_adapter_metadata(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_METADATA_FILE
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = (
            about["base"]["sha256"],
            about["base"]["name"],
            about["adapter"],
            dict(about["files"]),
        )  # all there, or it cannot be read
        return about
    except FileNotFoundError:
        message = f"no {ADAPTER_METADATA_FILE}: which base this adapter belongs to is unknown"
        raise AdapterError(
            message, location=str(folder), hint="give the adapter folder of a run"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{ADAPTER_METADATA_FILE} cannot be read: {error!r}",
            location=str(path),
            hint="copy the folder again",
        ) from error


def _read_verified_files(metadata: dict[str, Any], folder: Path) -> dict[str, bytes]:
    try:
        files = {
            name: (folder / name).read_bytes()
            for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, ADAPTER_METADATA_FILE)
        }
    except OSError as error:
        message = f"no {Path(str(error.filename)).name}: {error.strerror}"
        raise AdapterError(
            message, location=str(folder), hint="copy the whole folder again"
        ) from error
    for name, written in metadata["files"].items():
        found = hashlib.sha256(files.get(name, b"")).hexdigest()
        if found != written:
            message = (
                f"{name} is not the file that was written: sha256 {found[:12]} for {written[:12]}"
            )
            raise RefusedError(
                message,
                location=str(folder),
                hint="copy the folder again from where it was trained",
            )
    return files


def _parse_adapter_spec(metadata: dict[str, Any], folder: Path) -> AnyAdapterSpec:
    try:
        return ADAPTER_SPEC_TYPE.validate_python(metadata["adapter"])
    except pydantic.ValidationError as error:
        message = f"its adapter is not one this version knows: {error.errors(include_url=False)[0]['msg']}"
        raise AdapterError(
            message,
            location=str(folder / ADAPTER_METADATA_FILE),
            hint="use the version of clinpeft that wrote it",
        ) from error
