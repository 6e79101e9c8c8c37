"""Reading an adapter folder: a standard PEFT folder with ``clinpeft.json`` beside it.

``clinpeft.json`` names the base and the lower adapters that the weights belong to. A folder is read
whole and checked before anything is attached: peft leaves missing weights at their initial values
with a warning, so that a renamed layer would give an adapter that does nothing.
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
from safetensors.torch import load as load_safetensors

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
        folder: its path.
        spec: the adapter, as it was trained.
        metadata: all of ``clinpeft.json``.
        files: name -> bytes of config, weights and ``clinpeft.json``.
        sha256: of config and weights; identifies the adapter for those trained above it.
        lower_adapter_hashes: sha256 of the adapters that were below it when it was trained, first
            to last.
    """

    folder: Path
    spec: AnyAdapterSpec
    metadata: dict[str, Any] = field(repr=False)
    files: dict[str, bytes] = field(repr=False)
    sha256: str
    lower_adapter_hashes: tuple[str, ...]

    @property
    def stack_metadata(self) -> dict[str, Any]:
        """Its position in the stack it was saved with; empty for an adapter saved alone."""
        metadata: dict[str, Any] = self.metadata.get("stack") or {}
        return metadata


def read_adapter_folder(base: FrozenBaseModel, folder: Path) -> SavedAdapter:
    """Read and check a folder that belongs on ``base``.

    Raises:
        AdapterError: a file is missing or damaged, or this version does not support the adapter.
        RefusedError: the base is another one, or a file is not the one that was written.
    """
    metadata = _read_adapter_metadata(folder)
    # compared by content: the folder of the base may have another name here
    trained_on = metadata["base"]
    if trained_on["sha256"] != base.sha256:
        raise RefusedError(
            f"this adapter was trained on {trained_on['name']} (sha256"
            f" {trained_on['sha256'][:12]}), and the base is {base.sha256[:12]}",
            location=str(folder),
            hint="load the base it was trained on; on another one its results mean nothing",
        )
    files = _read_verified_files(metadata, folder)
    # absent in a folder that was saved alone, and then the adapter belongs on the bare base
    lower_adapters = (metadata.get("stack") or {}).get("below", ())
    lower_hashes = tuple(str(adapter["sha256"]) for adapter in lower_adapters)
    try:
        spec = ADAPTER_SPEC_TYPE.validate_python(metadata["adapter"])
    except pydantic.ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise AdapterError(
            f"this version does not support its adapter: {message}",
            location=str(folder / ADAPTER_METADATA_FILE),
            hint="use the version of clinpeft that wrote it",
        ) from error
    return SavedAdapter(folder, spec, metadata, files, hash_adapter_files(files), lower_hashes)


def hash_adapter_files(files: dict[str, bytes]) -> str:
    """Hash config and weights (sha256, hexadecimal), which identifies an adapter."""
    # without clinpeft.json, whose notices and stack position do not change the function
    return hashlib.sha256(files[ADAPTER_CONFIG_FILE] + files[ADAPTER_WEIGHTS_FILE]).hexdigest()


def load_peft_config(saved_adapter: SavedAdapter, base: FrozenBaseModel, trainable: bool) -> Any:
    """Load the peft config of a folder, with paths of this machine."""
    config = peft.PeftConfig.from_pretrained(str(saved_adapter.folder))
    # peft freezes an adapter in inference mode, whatever requires a gradient
    config.inference_mode = not trainable
    # the saved value is the name of the base's folder; peft warns when it is not a path here
    config.base_model_name_or_path = None
    if hasattr(config, "tokenizer_name_or_path"):
        # peft opens the tokenizer for a prompt that was started from a text
        config.tokenizer_name_or_path = str(base.folder)
    if hasattr(config, "lora_dropout") and not trainable:
        # a frozen adapter stays the same function while something else is trained
        config.lora_dropout = 0.0
    return config


def load_adapter_weights(saved_adapter: SavedAdapter) -> dict[str, torch.Tensor]:
    """Load the tensors of a folder, under peft's names.

    Raises:
        AdapterError: the file is damaged.
    """
    try:
        return dict(load_safetensors(saved_adapter.files[ADAPTER_WEIGHTS_FILE]))
    except SafetensorError as error:
        raise AdapterError(
            f"{ADAPTER_WEIGHTS_FILE} cannot be read: {error}",
            location=str(saved_adapter.folder),
            hint="copy the folder again",
        ) from error


def _read_adapter_metadata(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_METADATA_FILE
    try:
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # a missing key is reported as damage here, and not as a KeyError later
        _ = metadata["base"]["sha256"], metadata["base"]["name"], metadata["adapter"]
        _ = dict(metadata["files"])
    except FileNotFoundError:
        raise AdapterError(
            f"no {ADAPTER_METADATA_FILE}: the base that this adapter belongs to is unknown",
            location=str(folder),
            hint="give the adapter folder of a run",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{ADAPTER_METADATA_FILE} cannot be read: {error!r}",
            location=str(path),
            hint="copy the folder again",
        ) from error
    return metadata


def _read_verified_files(metadata: dict[str, Any], folder: Path) -> dict[str, bytes]:
    names = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, ADAPTER_METADATA_FILE)
    try:
        files = {name: (folder / name).read_bytes() for name in names}
    except OSError as error:
        raise AdapterError(
            f"no {Path(str(error.filename)).name}: {error.strerror}",
            location=str(folder),
            hint="copy the whole folder again",
        ) from error
    # a file that is not listed is not checked; clinpeft.json cannot list itself
    for name, expected in metadata["files"].items():
        sha256 = hashlib.sha256(files.get(name, b"")).hexdigest()
        if sha256 != expected:
            raise RefusedError(
                f"{name} is not the file that was written: sha256 {sha256[:12]} and not"
                f" {expected[:12]}",
                location=str(folder),
                hint="copy the folder again from where it was trained",
            )
    return files
