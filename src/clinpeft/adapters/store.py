"""Adapter folders: a standard PEFT folder, and beside it ``clinpeft.json``, which says what it belongs to.

Stock ``peft`` loads the folder and ignores the extra file. Ours is not satisfied with a folder that almost fits: peft leaves missing weights at
their start values with a warning, so a renamed layer would give an adapter that does nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pydantic
import torch
import transformers
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import clinpeft
from clinpeft.adapters.stack import Stack, assembled, check_fit, differences, wrapped
from clinpeft.errors import AdapterError, RefusedError, StorageError
from clinpeft.models import Base
from clinpeft.recipe import AnyAdapterSpec

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "clinpeft.json"
SPEC: pydantic.TypeAdapter[AnyAdapterSpec] = pydantic.TypeAdapter(AnyAdapterSpec)


def save(stack: Stack, folder: Path) -> None:
    """Write a stack's adapter as a folder, which is there whole or not at all; one that was there before is replaced.

    What is written is what stock peft needs to give the same logits: for P-tuning and a projected prefix that is the result of their encoder, not
    the encoder. No path of this machine is written, only the name of the base's folder.

    Raises:
        StorageError: it cannot be written; what was there before is untouched.
    """
    tensors, config = _tensors(stack), _config(stack)
    writing = folder.with_name(folder.name + ".writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        save_file(tensors, writing / WEIGHTS, metadata={"format": "pt"})
        (writing / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (writing / ABOUT).write_text(json.dumps(_about(stack, writing), indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        writing.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise StorageError(f"the adapter cannot be written: {error}", place=str(folder), way_out="free some space and try again") from error


def load(base: Base, folder: Path, trainable: bool = False) -> Stack:
    """Put a saved adapter on its base.

    Args:
        base: the very base it was trained on.
        folder: as ``save`` wrote it.
        trainable: go on training it; otherwise it is frozen and its dropout is off.

    Raises:
        AdapterError: a file is missing or damaged, weights are missing or left over, or the method cannot go on from what is saved.
        RefusedError: the base is another one, or a file is not the one that was written.
    """
    about = _read_about(folder)
    _check_base(base, about, folder)
    _check_files(about, folder)
    spec = _spec(about, folder)
    check_fit(spec, base)
    before = set(base.model.parameters())
    config = _read_config(base, folder, trainable)
    stack = assembled(base, wrapped(base, config), spec, before, ())
    _fill(stack, folder)
    return stack


def _tensors(stack: Stack) -> dict[str, torch.Tensor]:
    """What peft keeps of the adapter, in float32; its encoders are asked with dropout off, or P-tuning would be saved with noise in it."""
    was_training = stack.model.training
    stack.model.eval()
    try:
        found = get_peft_model_state_dict(stack.model, save_embedding_layers=False)
    finally:
        stack.model.train(was_training)
    return {name: tensor.detach().to("cpu", torch.float32).contiguous().clone() for name, tensor in found.items()}


def _config(stack: Stack) -> dict[str, Any]:
    """The peft config as stock peft expects it in a finished folder."""
    config: dict[str, Any] = stack.model.peft_config[stack.model.active_adapter].to_dict()
    paths = {name: stack.base.folder.name for name in ("base_model_name_or_path", "tokenizer_name_or_path") if config.get(name)}
    sets = {name: sorted(value) for name, value in config.items() if isinstance(value, set)}
    return config | paths | sets | {"inference_mode": True}


def _about(stack: Stack, folder: Path) -> dict[str, Any]:
    base = stack.base
    return {
        "clinpeft": clinpeft.__version__,
        "adapter": SPEC.dump_python(stack.specs[0], mode="json"),
        "base": {"name": base.folder.name, "model_type": base.model.config.model_type, "sha256": base.sha256},
        "precision": str(base.precision).removeprefix("torch."),
        "trained_parameters": stack.counts.trained,
        "base_parameters": stack.counts.base,
        "notices": list(stack.notices),
        "files": {name: _sha256(folder / name) for name in (CONFIG, WEIGHTS)},
        "versions": {"peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {"base": about["base"]["sha256"], "name": about["base"]["name"], "adapter": about["adapter"], "files": dict(about["files"])}
    except FileNotFoundError:
        problem = f"no {ABOUT}: which base this adapter belongs to is unknown"
        raise AdapterError(problem, place=str(folder), way_out="give the adapter folder of a run") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{ABOUT} cannot be read: {error!r}", place=str(path), way_out="copy the folder again") from error


def _check_base(base: Base, about: dict[str, Any], folder: Path) -> None:
    if about["base"] != base.sha256:
        problem = f"this adapter was trained on {about['name']} (sha256 {about['base'][:12]}), and the base is {base.sha256[:12]}"
        raise RefusedError(problem, place=str(folder), way_out="load the base it was trained on; on another one its numbers mean nothing")


def _check_files(about: dict[str, Any], folder: Path) -> None:
    for name, written in about["files"].items():
        if not (folder / name).is_file():
            raise AdapterError(f"no {name}", place=str(folder), way_out="copy the whole folder again")
        if (found := _sha256(folder / name)) != written:
            problem = f"{name} is not the file that was written: sha256 {found[:12]} for {written[:12]}"
            raise RefusedError(problem, place=str(folder), way_out="copy the folder again from where it was trained")


def _spec(about: dict[str, Any], folder: Path) -> AnyAdapterSpec:
    try:
        return SPEC.validate_python(about["adapter"])
    except pydantic.ValidationError as error:
        problem = f"its adapter is not one this version knows: {error.errors(include_url=False)[0]['msg']}"
        raise AdapterError(problem, place=str(folder / ABOUT), way_out="use the version of clinpeft that wrote it") from error


def _read_config(base: Base, folder: Path, trainable: bool) -> Any:
    config = peft.PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    config.base_model_name_or_path = None  # the folder's name, as written; peft warns when it is not the path of this machine
    if hasattr(config, "tokenizer_name_or_path"):
        config.tokenizer_name_or_path = str(base.folder)  # peft opens it for a prompt that started from a text
    if hasattr(config, "lora_dropout") and not trainable:
        config.lora_dropout = 0.0  # a frozen adapter stays the same function while something else trains
    return config


def _fill(stack: Stack, folder: Path) -> None:
    """Every weight of the folder into the stack, and none besides."""
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{WEIGHTS} cannot be read: {error}", place=str(folder), way_out="copy the folder again") from error
    found = get_peft_model_state_dict(stack.model, save_embedding_layers=False)
    wanted, given = ({name: tuple(tensor.shape) for name, tensor in named.items()} for named in (found, tensors))
    if given != wanted:
        way_out = "use the versions in clinpeft.json: a layer may have been renamed since"
        raise AdapterError(differences(given, wanted), place=str(folder / WEIGHTS), way_out=way_out)
    if stack.trained and stack.counts.trained != sum(tensor.numel() for tensor in tensors.values()):
        problem = f"the folder holds what the encoder of {stack.specs[0].method} made, not the encoder"
        raise AdapterError(problem, place=str(folder), way_out="load it frozen, or go on from the run's checkpoint")
    set_peft_model_state_dict(stack.model, tensors)
