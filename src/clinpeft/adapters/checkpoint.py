"""Saving adapters as folders, and loading them on a base.

Every adapter is a standard PEFT folder, which stock ``peft`` loads, with ``clinpeft.json`` beside
it, which names the base and the adapters below it. A stack is a folder of such folders; what was
frozen or merged is copied into it byte for byte, so that a run is complete by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
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

__all__ = [
    "ADAPTER_CONFIG_FILE",
    "ADAPTER_METADATA_FILE",
    "ADAPTER_SPEC_TYPE",
    "ADAPTER_WEIGHTS_FILE",
    "load_adapter",
    "load_adapter_stack",
    "save_adapter",
    "save_adapter_stack",
]


def save_adapter(stack: Stack, folder: Path) -> None:
    """Save the adapter of a stack of one; the folder is complete or not there.

    Saved is what stock peft needs to give the same logits: for P-tuning and a projected prefix,
    the output of their encoder and not the encoder. No path of this machine is saved, only the name
    of the base's folder.

    Raises:
        StorageError: it cannot be written; an earlier folder of this name is untouched.
        AdapterError: the stack has not exactly one adapter.
    """
    if len(stack.adapters) != 1:
        raise AdapterError(
            f"{len(stack.adapters)} adapters for one folder",
            location=str(folder),
            hint="save them with save_adapter_stack",
        )
    with _replace_folder_atomically(folder) as temporary:
        _write_adapter_files(stack, stack.adapters[0], temporary)


def save_adapter_stack(stack: Stack, folder: Path) -> tuple[str, ...]:
    """Save every adapter of a stack as ``folder/<name>/``, all of them or none.

    Returns:
        The names of the adapters, first to last.

    Raises:
        StorageError: they cannot be written; an earlier folder of this name is untouched.
    """
    with _replace_folder_atomically(folder) as temporary:
        lower_adapters: list[dict[str, str]] = []
        for position, adapter in enumerate(stack.adapters, 1):
            # what load_adapter_stack needs to rebuild the stack in order
            stack_metadata = {
                "name": adapter.name,
                "position": position,
                "adapters": len(stack.adapters),
                "below": list(lower_adapters),
                "merged": bool(adapter.merged_weights),
                "frozen": not adapter.trained_parameters,
                "active": adapter.spec.active,
                "origin": adapter.source_run,
            }
            subfolder = temporary / adapter.name
            subfolder.mkdir()
            _write_adapter_files(stack, adapter, subfolder, stack_metadata)
            sha256 = adapter_folder.hash_adapter_files(
                {
                    name: (subfolder / name).read_bytes()
                    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)
                }
            )
            # frozen adapters keep their bytes, and so their hash, from run to run
            lower_adapters.append({"name": adapter.name, "sha256": sha256})
    return tuple(adapter.name for adapter in stack.adapters)


def load_adapter(base: FrozenBaseModel, folder: Path, trainable: bool = False) -> Stack:
    """Load a saved adapter on its base.

    Args:
        base: the base it was trained on.
        folder: as ``save_adapter`` wrote it.
        trainable: whether it is trained further; otherwise it is frozen and has no dropout.

    Raises:
        AdapterError: a file is missing or damaged, weights are missing or left over, or the method
            cannot be trained further from what is saved.
        RefusedError: the base is another one, a file is not the one that was written, or it was
            trained above other adapters.
    """
    saved = adapter_folder.read_adapter_folder(base, folder)
    # alone it is not merged, whatever it was in its stack, so that it can be switched off
    unmerged_spec = saved.spec.model_copy(update={"merged": False})
    return build_stack(base, [AdapterRequest(unmerged_spec, saved, trainable)])


def load_adapter_stack(base: FrozenBaseModel, folder: Path) -> Stack:
    """Load a saved stack on its base, frozen, in order, merged where it was merged.

    Raises:
        AdapterError: a folder or a file is missing or damaged, or weights are missing or left over.
        RefusedError: the base is another one, a file is not the one that was written, or an adapter
            is above others than those it was trained on.
    """
    if not folder.is_dir():
        raise AdapterError(
            "no such folder",
            location=str(folder),
            hint="give the folder that save_adapter_stack wrote",
        )
    saved_adapters = [
        adapter_folder.read_adapter_folder(base, path)
        for path in sorted(folder.iterdir())
        if path.is_dir()
    ]
    # by position and not by name: 10-lora would come before 2-lora
    saved_adapters.sort(key=lambda saved: int(saved.stack_metadata.get("position", 0)))
    _check_complete_stack(saved_adapters, folder)
    requests = []
    for saved in saved_adapters:
        metadata = saved.stack_metadata
        spec = saved.spec.model_copy(
            update={
                "merged": metadata["merged"],
                "active": metadata["active"],
                "from_run": metadata["origin"],
                "trainable": not metadata["frozen"],
            }
        )
        # the stack of a finished run: nothing of it is trained here
        requests.append(AdapterRequest(spec, saved, trainable=False))
    return build_stack(base, requests)


def _check_complete_stack(saved_adapters: list[SavedAdapter], folder: Path) -> None:
    """Check that no adapter is missing, and that each is above those it was trained on."""
    positions = [saved.stack_metadata.get("position") for saved in saved_adapters]
    sizes = [int(saved.stack_metadata.get("adapters", 0)) for saved in saved_adapters]
    size = max(sizes, default=0)
    if positions != list(range(1, size + 1)):
        raise AdapterError(
            f"the folder has adapters {positions} of a stack of {size}",
            location=str(folder),
            hint="copy the whole folder again",
        )
    # each adapter lists the hashes of all below it, first to last
    hashes = tuple(saved.sha256 for saved in saved_adapters)
    for index, saved in enumerate(saved_adapters):
        if saved.lower_adapter_hashes == hashes[:index]:
            continue
        pairs = enumerate(zip(saved.lower_adapter_hashes, hashes[:index], strict=False), 1)
        # the first that differs, or the last where one is missing
        position = next(
            (number for number, (trained_on, present) in pairs if trained_on != present),
            len(saved.lower_adapter_hashes),
        )
        raise RefusedError(
            f"adapter {position} below {saved.folder.name} is not the one it was trained on",
            location=str(saved.folder),
            hint="copy the whole folder again from where it was trained",
        )


@contextlib.contextmanager
def _replace_folder_atomically(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which replaces ``folder`` when the block ends well."""
    temporary = folder.with_name(folder.name + ".writing")
    try:
        # one that a killed process left behind
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        # renaming is atomic on one file system
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
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
    """Write the files of an adapter: its saved files where it is not trained, else its weights."""
    if adapter.saved_files:
        (folder / ADAPTER_CONFIG_FILE).write_bytes(adapter.saved_files[ADAPTER_CONFIG_FILE])
        (folder / ADAPTER_WEIGHTS_FILE).write_bytes(adapter.saved_files[ADAPTER_WEIGHTS_FILE])
        metadata = json.loads(adapter.saved_files[ADAPTER_METADATA_FILE])
        metadata.pop("stack", None)  # of the stack it was saved with before
    else:
        # float32 whatever the precision of the base: small updates need it
        tensors = _collect_adapter_tensors(stack, adapter)
        save_file(tensors, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
        assert adapter.model is not None
        config = adapter.model.peft_config[adapter.peft_name].to_dict()
        # peft keeps target_modules as a set, whose order changes from process to process
        config |= {name: sorted(value) for name, value in config.items() if isinstance(value, set)}
        config |= {
            name: stack.base.folder.name
            for name in ("base_model_name_or_path", "tokenizer_name_or_path")
            if config.get(name)
        }
        # stock peft freezes what it loads in this mode
        config["inference_mode"] = True
        (folder / ADAPTER_CONFIG_FILE).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        metadata = _build_adapter_metadata(stack, adapter, folder)
    if stack_metadata:
        metadata["stack"] = stack_metadata
    (folder / ADAPTER_METADATA_FILE).write_text(
        json.dumps(metadata, indent=2) + "\n", encoding="utf-8"
    )


def _collect_adapter_tensors(stack: Stack, adapter: AttachedAdapter) -> dict[str, torch.Tensor]:
    """Collect what peft saves of an adapter, in float32 on the CPU, under peft's names."""
    assert adapter.model is not None  # merged adapters are saved from their files
    # peft runs the encoder of P-tuning here; with dropout on, its noise would be saved
    with use_eval_mode(adapter.model), contextlib.ExitStack() as contexts:
        # other adaption prompts around the attention would change the names of what is inside it
        for other in stack.adapters:
            if other.swaps_attention:
                contexts.enter_context(switch_adapted_attention(other, adapted=other is adapter))
        state = get_peft_model_state_dict(
            adapter.model, adapter_name=adapter.peft_name, save_embedding_layers=False
        )
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous().clone()
        for name, tensor in state.items()
    }


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
        # checked when the folder is read
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
