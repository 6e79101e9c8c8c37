"""Writing adapter folders, and putting them on a base again.

Every adapter is a standard PEFT folder, which stock ``peft`` loads, and beside it ``clinpeft.json``, which says what it belongs to: the base, and the
adapters below it. A stack is a folder of such folders; what was frozen or merged is copied into it byte for byte, so that a run is whole by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

import clinpeft
from clinpeft.adapters import adapter_folder
from clinpeft.adapters.adapter_folder import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_METADATA_FILE,
    ADAPTER_SPEC_TYPE,
    ADAPTER_WEIGHTS_FILE,
    SavedAdapter,
)
from clinpeft.adapters.attach import AdapterRequest, build_stack
from clinpeft.adapters.stack import AttachedAdapter, Stack, switch_adapted_attention, use_eval_mode
from clinpeft.core.errors import AdapterError, RefusedError, StorageError
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import AnyAdapterSpec

__all__ = [
    "ADAPTER_METADATA_FILE",
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_SPEC_TYPE",
    "ADAPTER_WEIGHTS_FILE",
    "load_adapter",
    "load_adapter_stack",
    "save_adapter",
    "save_adapter_stack",
]


def save_adapter(stack: Stack, folder: Path) -> None:
    """Write the adapter of a stack of one as a folder, which is there whole or not at all; one that was there before is replaced.

    What is written is what stock peft needs to give the same logits: for P-tuning and a projected prefix that is the result of their encoder, not
    the encoder. No path of this machine is written, only the name of the base's folder.

    Raises:
        StorageError: it cannot be written; what was there before is untouched.
        AdapterError: the stack has not exactly one adapter.
    """
    if len(stack.adapters) != 1:
        raise AdapterError(
            f"{len(stack.adapters)} adapters for one folder",
            location=str(folder),
            hint="write them with save_all",
        )
    _write_folder_atomically(
        folder, lambda writing: _write_adapter_files(stack, stack.adapters[0], writing)
    )


def save_adapter_stack(stack: Stack, folder: Path) -> tuple[str, ...]:
    """Write every adapter of a stack as ``folder/<name>/``, all of them or none; a folder that was there before is replaced.

    Returns:
        The names of the adapters, first to last.

    Raises:
        StorageError: they cannot be written; what was there before is untouched.
    """

    def write(writing: Path) -> None:
        below: list[dict[str, str]] = []
        for position, adapter in enumerate(stack.adapters, 1):
            here = writing / adapter.name
            here.mkdir()
            _write_adapter_files(
                stack, adapter, here, _build_stack_metadata(stack, adapter, position, below)
            )
            files = {
                name: (here / name).read_bytes()
                for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)
            }
            below = [
                *below,
                {"name": adapter.name, "sha256": adapter_folder.hash_adapter_files(files)},
            ]

    _write_folder_atomically(folder, write)
    return tuple(adapter.name for adapter in stack.adapters)


def load_adapter(base: FrozenBaseModel, folder: Path, trainable: bool = False) -> Stack:
    """Put a saved adapter on its base.

    Args:
        base: the very base it was trained on.
        folder: as ``save`` wrote it.
        trainable: go on training it; otherwise it is frozen and its dropout is off.

    Raises:
        AdapterError: a file is missing or damaged, weights are missing or left over, or the method cannot go on from what is saved.
        RefusedError: the base is another one, a file is not the one that was written, or it was trained above other adapters.
    """
    saved = adapter_folder.read_adapter_folder(base, folder)
    return build_stack(
        base, [AdapterRequest(saved.spec.model_copy(update={"merged": False}), saved, trainable)]
    )


def load_adapter_stack(base: FrozenBaseModel, folder: Path) -> Stack:
    """Put a saved stack on its base, frozen, in order, merged where it was merged.

    Raises:
        AdapterError: a folder or a file is missing or damaged, or weights are missing or left over.
        RefusedError: the base is another one, a file is not the one that was written, or an adapter stands above others than those it was trained on.
    """
    if not folder.is_dir():
        raise AdapterError(
            "no such folder", location=str(folder), hint="give the folder that save_all wrote"
        )
    read = [
        adapter_folder.read_adapter_folder(base, path)
        for path in sorted(folder.iterdir())
        if path.is_dir()
    ]
    read.sort(key=lambda saved: int(saved.stack_metadata.get("position", 0)))
    _check_complete_stack(read, folder)
    return build_stack(
        base, [AdapterRequest(_restore_spec(saved), saved, trainable=False) for saved in read]
    )


def _restore_spec(saved_adapter: SavedAdapter) -> AnyAdapterSpec:
    standing = saved_adapter.stack_metadata
    told = {name: standing[name] for name in ("merged", "active")}
    return saved_adapter.spec.model_copy(
        update=told | {"from_run": standing["origin"], "trainable": not standing["frozen"]}
    )


def _check_complete_stack(saved_adapters: list[SavedAdapter], folder: Path) -> None:
    """Every adapter of the stack is there, and each stands on those it was trained on."""
    positions = [saved.stack_metadata.get("position") for saved in saved_adapters]
    wanted = list(
        range(
            1,
            max(
                (int(saved.stack_metadata.get("adapters", 0)) for saved in saved_adapters),
                default=0,
            )
            + 1,
        )
    )
    if positions != wanted:
        message = f"the folder has adapters {positions} of a stack of {len(wanted)}"
        raise AdapterError(message, location=str(folder), hint="copy the whole folder again")
    for at, saved in enumerate(saved_adapters):
        below = tuple(under.sha256 for under in saved_adapters[:at])
        if saved.lower_adapter_hashes != below:
            wrong = next(
                (
                    number
                    for number, pair in enumerate(
                        zip(saved.lower_adapter_hashes, below, strict=False), 1
                    )
                    if pair[0] != pair[1]
                ),
                0,
            )
            message = f"adapter {wrong or len(saved.lower_adapter_hashes)} below {saved.folder.name} is not the one it was trained on"
            raise RefusedError(
                message,
                location=str(saved.folder),
                hint="copy the whole folder again from where it was trained",
            )


# --------------------------------------------------------------------------------------------------------------------------------- writing


def _write_folder_atomically(folder: Path, write_files: Callable[[Path], None]) -> None:
    """``write_files`` into a folder of another name, which then takes this one's place."""
    writing = folder.with_name(folder.name + ".writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        write_files(writing)
        shutil.rmtree(folder, ignore_errors=True)
        writing.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise StorageError(
            f"the adapter cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error


def _write_adapter_files(
    stack: Stack,
    adapter: AttachedAdapter,
    folder: Path,
    stack_metadata: dict[str, Any] | None = None,
) -> None:
    """One adapter's three files: as they were read, where it stays as it was, else from its weights."""
    more = {"stack": stack_metadata} if stack_metadata else {}
    if adapter.saved_files:
        (folder / ADAPTER_CONFIG_FILE).write_bytes(adapter.saved_files[ADAPTER_CONFIG_FILE])
        (folder / ADAPTER_WEIGHTS_FILE).write_bytes(adapter.saved_files[ADAPTER_WEIGHTS_FILE])
        about = {
            name: said
            for name, said in json.loads(adapter.saved_files[ADAPTER_METADATA_FILE]).items()
            if name != "stack"
        }
    else:
        save_file(
            _collect_adapter_tensors(stack, adapter),
            folder / ADAPTER_WEIGHTS_FILE,
            metadata={"format": "pt"},
        )
        (folder / ADAPTER_CONFIG_FILE).write_text(
            json.dumps(_build_peft_config(stack, adapter), indent=2, sort_keys=True) + "\n",
            encoding="utf-8",
        )
        about = _build_adapter_metadata(stack, adapter, folder)
    (folder / ADAPTER_METADATA_FILE).write_text(
        json.dumps(about | more, indent=2) + "\n", encoding="utf-8"
    )


def _collect_adapter_tensors(stack: Stack, adapter: AttachedAdapter) -> dict[str, torch.Tensor]:
    """What peft keeps of an adapter, in float32, under stock names; its encoders are asked with dropout off, or P-tuning would be saved with noise in
    it, and modules around the attention are taken out while others are named."""
    assert adapter.model is not None  # what is merged is kept as files
    with use_eval_mode(adapter.model), contextlib.ExitStack() as named:
        for other in stack.adapters:
            if other.swaps_attention:
                named.enter_context(switch_adapted_attention(other, adapted=other is adapter))
        found = get_peft_model_state_dict(
            adapter.model, adapter_name=adapter.peft_name, save_embedding_layers=False
        )
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous().clone()
        for name, tensor in found.items()
    }


def _build_peft_config(stack: Stack, adapter: AttachedAdapter) -> dict[str, Any]:
    """The peft config as stock peft expects it in a finished folder."""
    assert adapter.model is not None
    config: dict[str, Any] = adapter.model.peft_config[adapter.peft_name].to_dict()
    paths = {
        name: stack.base.folder.name
        for name in ("base_model_name_or_path", "tokenizer_name_or_path")
        if config.get(name)
    }
    sets = {name: sorted(value) for name, value in config.items() if isinstance(value, set)}
    return config | paths | sets | {"inference_mode": True}


def _build_adapter_metadata(stack: Stack, adapter: AttachedAdapter, folder: Path) -> dict[str, Any]:
    base = stack.base
    return {
        "clinpeft": clinpeft.__version__,
        "adapter": ADAPTER_SPEC_TYPE.dump_python(adapter.spec, mode="json"),
        "base": {
            "name": base.folder.name,
            "model_type": base.model.config.model_type,
            "sha256": base.sha256,
        },
        "precision": str(base.precision).removeprefix("torch."),
        "quantization": base.quantization,
        "trained_parameters": sum(
            parameter.numel() for parameter in adapter.trained_parameters.values()
        ),
        "base_parameters": stack.counts.base_parameters,
        "notices": list(stack.notices),
        "files": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)
        },
        "versions": {
            "peft": peft.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _build_stack_metadata(
    stack: Stack, adapter: AttachedAdapter, position: int, lower_adapters: list[dict[str, str]]
) -> dict[str, Any]:
    """The adapter's place in its stack."""
    return {
        "name": adapter.name,
        "position": position,
        "adapters": len(stack.adapters),
        "below": list(lower_adapters),
        "merged": bool(adapter.merged_weights),
        "frozen": not adapter.trained_parameters,
        "active": adapter.spec.active,
        "origin": adapter.source_run,
    }
