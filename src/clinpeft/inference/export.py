"""A stack as a folder that others open: sentence-transformers' layout, with the adapters folded into the weights or as a PEFT adapter beside them.

The names in these files are those that sentence-transformers has read since its version 3, so that the folder opens in old and new ones alike. A
folder with the weights in it is also a base of this program, and says itself how its vectors are read.
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clinpeft import adapters
from clinpeft.adapters import ADAPTER_METHODS, Stack
from clinpeft.core.errors import AdapterError, RefusedError, StorageError
from clinpeft.inference.encode import compute_max_text_tokens
from clinpeft.models.embedding_config import (
    SENTENCE_TRANSFORMERS_LENGTH_FILE,
    SENTENCE_TRANSFORMERS_MODULES_FILE,
    SENTENCE_TRANSFORMERS_PROMPTS_FILE,
    EmbeddingConfig,
    find_backbone,
)

MIN_SENTENCE_TRANSFORMERS_VERSION = "3.0.0"  # of sentence-transformers; a folder that claims a newer version than the reader's makes it warn
POOLING_MODE_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
}
UNUSED_POOLING_MODE_KEYS = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
SENTENCE_TRANSFORMERS_MODULES = ("Transformer", "Pooling", "Normalize")
LOCAL_PATH_KEYS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
PEFT_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_sentence_transformer(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    folder: Path,
    model_card: str = "",
    merge_adapters: bool = True,
    base_name: str = "",
) -> None:
    """Write a folder that stock ``SentenceTransformer(folder)`` opens without a network, and that gives the same vectors.

    Args:
        stack: base and adapters.
        embedding_config: how a text becomes a vector.
        folder: to be made; appears whole or not at all.
        model_card: the ``README.md``, from ``reports.model_card``; empty: none.
        merge_adapters: the whole model in float32 with the adapters folded in; otherwise the adapter alone, a PEFT folder, which needs the base at hand.
        base_name: with the adapter alone, where its reader finds the base: a name on the hub or a folder; empty: the name of its backbone, or else of
            its folder. No path of this machine is written unless it is given here.

    Raises:
        RefusedError: the folder exists.
        AdapterError: the adapters cannot be folded in, or are not one that can stand alone.
        StorageError: it cannot be written.
    """
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="export --out",
            hint="name a new folder, or remove this one yourself",
        )
    writing = folder.with_name(folder.name + ".writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        if merge_adapters:
            _write_weights(stack, writing)
        else:
            _write_adapter(stack, writing, base_name or _get_base_name(stack))
        _write_tokenizer(stack, embedding_config, writing)
        _write_modules(stack, embedding_config, writing)
        if model_card:
            (writing / "README.md").write_text(model_card, encoding="utf-8")
        writing.rename(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the model cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _write_weights(stack: Stack, folder: Path) -> None:
    """The backbone alone, under the names that its own class gives them: without the prefix of the language model."""
    stack.create_merged_model().base_model.save_pretrained(folder)
    _remove_local_paths(folder / "config.json")


def _write_adapter(stack: Stack, folder: Path, base_name: str) -> None:
    """One adapter, renamed for the backbone on which sentence-transformers puts it: without the prefix of the language model (``bert.``)."""
    alone = (
        len(stack.adapters) == 1
        and ADAPTER_METHODS[stack.adapters[0].spec.method].is_mergeable
        and stack.adapters[0].model is not None
    )
    if not alone:
        said = ", ".join(adapter.spec.method for adapter in stack.adapters) or "no adapter"
        hint = "export with the adapters folded in" if stack.adapters else "export the whole model"
        raise AdapterError(
            f"{said}: only one adapter inside the layers can stand alone",
            location="export --adapter",
            hint=hint,
        )
    whole = folder / "whole"
    adapters.save_adapter(stack, whole)
    prefix = f"base_model.model.{stack.base.model.base_model_prefix}."
    tensors = load_file(whole / "adapter_model.safetensors")
    renamed = {
        f"base_model.model.{name.removeprefix(prefix)}": tensor for name, tensor in tensors.items()
    }
    if not all(name.startswith(prefix) for name in tensors):
        raise AdapterError(
            "it reaches outside the backbone",
            location="export --adapter",
            hint="export with the adapters folded in",
        )
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = _read_json(whole / "adapter_config.json")
    _write_json(
        folder / "adapter_config.json",
        config | {"base_model_name_or_path": base_name, "task_type": "FEATURE_EXTRACTION"},
    )
    shutil.rmtree(whole)


def _get_base_name(stack: Stack) -> str:
    row = find_backbone(stack.base.folder)
    return row.name if row else stack.base.folder.name


def _write_tokenizer(stack: Stack, embedding_config: EmbeddingConfig, folder: Path) -> None:
    """The tokenizer with the length at which texts are cut. A decoder without padding token pads with the end of text: the mask tells them apart."""
    tokenizer = copy.deepcopy(stack.base.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = compute_max_text_tokens(stack, embedding_config)
    tokenizer.save_pretrained(folder)
    _remove_local_paths(folder / "tokenizer_config.json")


def _write_modules(stack: Stack, embedding_config: EmbeddingConfig, folder: Path) -> None:
    names = (
        SENTENCE_TRANSFORMERS_MODULES
        if embedding_config.normalise
        else SENTENCE_TRANSFORMERS_MODULES[:2]
    )
    paths = ["", *(f"{at}_{name}" for at, name in enumerate(names) if at)]
    listed = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
        for at, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    switches = {
        switch: how == embedding_config.pooling for how, switch in POOLING_MODE_KEYS.items()
    } | dict.fromkeys(UNUSED_POOLING_MODE_KEYS, False)
    _write_json(folder / SENTENCE_TRANSFORMERS_MODULES_FILE, listed)
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": stack.base.width} | switches | {"include_prompt": True},
    )
    if embedding_config.normalise:
        _write_json(folder / "2_Normalize" / "config.json", {})
    versions = {
        "sentence_transformers": MIN_SENTENCE_TRANSFORMERS_VERSION,
        "transformers": transformers.__version__,
        "pytorch": torch.__version__,
    }
    prompts = {"query": embedding_config.query_prompt, "document": embedding_config.document_prompt}
    _write_json(
        folder / SENTENCE_TRANSFORMERS_PROMPTS_FILE,
        {
            "__version__": versions,
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    # a pooler that nothing reads is not in the folder, and would be drawn at random with a warning
    pooler = "add_pooling_layer" in inspect.signature(type(stack.base.backbone).__init__).parameters
    _write_json(
        folder / SENTENCE_TRANSFORMERS_LENGTH_FILE,
        {"max_seq_length": compute_max_text_tokens(stack, embedding_config), "do_lower_case": False}
        | _get_model_arguments(pooler),
    )


def _get_model_arguments(has_pooler: bool) -> dict[str, Any]:
    return {"model_args": {"add_pooling_layer": False}} if has_pooler else {}


def _remove_local_paths(path: Path) -> None:
    """What the library adds about where the model lay."""
    _write_json(
        path,
        {name: value for name, value in _read_json(path).items() if name not in LOCAL_PATH_KEYS},
    )


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
