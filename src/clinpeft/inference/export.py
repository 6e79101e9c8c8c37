"""Export of a stack as a folder in the layout of sentence-transformers.

The adapters are merged into the weights, or are a PEFT adapter in the folder. The names in its
files are those that sentence-transformers reads since version 3, so that old and new versions open
it. A folder with merged weights is also a base of this package, and states its own pooling.
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clinpeft import adapters
from clinpeft.adapters import ADAPTER_METHODS, Stack
from clinpeft.core.errors import AdapterError, RefusedError, StorageError
from clinpeft.inference.encode import compute_max_text_tokens
from clinpeft.models import EmbeddingConfig, find_backbone
from clinpeft.models.folder import (
    POOLING_CONFIG_FILE,
    SENTENCE_TRANSFORMERS_LENGTH_FILE,
    SENTENCE_TRANSFORMERS_MODULES_FILE,
    SENTENCE_TRANSFORMERS_PROMPTS_FILE,
    read_model_json,
)

# a folder that claims a newer version than that of its reader makes the reader warn
MIN_SENTENCE_TRANSFORMERS_VERSION = "3.0.0"
POOLING_MODE_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens",
}
UNUSED_POOLING_MODE_KEYS = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
SENTENCE_TRANSFORMERS_MODULES = ("Transformer", "Pooling", "Normalize")
# keys that transformers and tokenizers fill with paths of this machine
LOCAL_PATH_KEYS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
PEFT_CONFIG_FILE, PEFT_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def export_sentence_transformer(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    folder: Path,
    model_card: str = "",
    merge_adapters: bool = True,
    base_name: str = "",
) -> None:
    """Write a folder that ``SentenceTransformer(folder)`` opens without a network.

    The model in the folder gives the vectors of ``encode_texts``.

    Args:
        stack: base and adapters.
        embedding_config: how a text is embedded.
        folder: a new folder, which is written whole or not at all.
        model_card: content of ``README.md``, from ``reports.model_card``; empty for none.
        merge_adapters: write the whole model in float32 with merged adapters; otherwise the
            adapter alone, as a PEFT folder, for which the reader needs the base.
        base_name: for the adapter alone, where its reader finds the base: a name on the hub or a
            folder; empty for the name of its backbone, or else of its folder. No path of this
            machine is written unless it is given here.

    Raises:
        RefusedError: the folder exists.
        AdapterError: the adapters cannot be merged, or are not a single PEFT adapter.
        StorageError: the folder cannot be written.
    """
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="export --out",
            hint="name a new folder, or remove this one yourself",
        )
    temporary = folder.with_name(folder.name + ".writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if merge_adapters:
            # the backbone alone, whose own class names its parameters without a prefix
            stack.create_merged_model().base_model.save_pretrained(temporary)
            _remove_local_paths(temporary / "config.json")
        else:
            backbone = find_backbone(stack.base.folder)
            default_name = backbone.name if backbone else stack.base.folder.name
            _write_adapter(stack, temporary, base_name or default_name)
        _write_tokenizer(stack, embedding_config, temporary)
        _write_modules(stack, embedding_config, temporary)
        if model_card:
            (temporary / "README.md").write_text(model_card, encoding="utf-8")
        # one step: a reader never sees half of a folder
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"the model cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_adapter(stack: Stack, folder: Path, base_name: str) -> None:
    """Write the only adapter of a stack as a PEFT adapter of the backbone.

    Its tensors are named for the language model (``bert.encoder...``); sentence-transformers loads
    the backbone alone, whose modules lack that prefix.
    """
    specs = [adapter.spec for adapter in stack.adapters]
    is_mergeable = len(specs) == 1 and ADAPTER_METHODS[specs[0].method].is_mergeable
    if not is_mergeable or stack.adapters[0].model is None:
        methods = ", ".join(spec.method for spec in specs) or "no adapter"
        raise AdapterError(
            f"{methods}: only one adapter inside the layers can be exported alone",
            location="export --adapter",
            hint="export with the adapters folded in" if specs else "export the whole model",
        )
    saved = folder / "whole"
    adapters.save_adapter(stack, saved)
    # names of the form base_model.model.PREFIX.MODULE.lora_A.weight
    tensors = load_file(saved / PEFT_WEIGHTS_FILE)
    prefix = f"base_model.model.{stack.base.model.base_model_prefix}."
    if not all(name.startswith(prefix) for name in tensors):
        raise AdapterError(
            "the adapter has weights outside the backbone",
            location="export --adapter",
            hint="export with the adapters folded in",
        )
    renamed = {f"base_model.model.{n.removeprefix(prefix)}": t for n, t in tensors.items()}
    save_file(renamed, folder / PEFT_WEIGHTS_FILE, metadata={"format": "pt"})
    config = read_model_json(saved / PEFT_CONFIG_FILE, "")
    # sentence-transformers loads an AutoModel, which is feature extraction for PEFT
    config |= {"base_model_name_or_path": base_name, "task_type": "FEATURE_EXTRACTION"}
    _write_json(folder / PEFT_CONFIG_FILE, config)
    shutil.rmtree(saved)


def _write_tokenizer(stack: Stack, embedding_config: EmbeddingConfig, folder: Path) -> None:
    """Write the tokenizer with the length at which texts are truncated."""
    # the stack is not changed by its export
    tokenizer = copy.deepcopy(stack.base.tokenizer)
    if tokenizer.pad_token is None:
        # for decoders; the attention mask distinguishes padding from the end of a text
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = compute_max_text_tokens(stack, embedding_config)
    tokenizer.save_pretrained(folder)
    _remove_local_paths(folder / "tokenizer_config.json")


def _write_modules(stack: Stack, embedding_config: EmbeddingConfig, folder: Path) -> None:
    """Write the files of sentence-transformers: modules, pooling, prompts, maximum length."""
    # without Normalize the vectors keep their length
    num_modules = 3 if embedding_config.normalise else 2
    modules = [
        {
            "idx": index,
            "name": str(index),
            # the files of the transformer are in the folder itself
            "path": f"{index}_{name}" if index else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(SENTENCE_TRANSFORMERS_MODULES[:num_modules])
    ]
    _write_json(folder / SENTENCE_TRANSFORMERS_MODULES_FILE, modules)
    pooling: dict[str, object] = {"word_embedding_dimension": stack.base.width}
    pooling |= {key: mode == embedding_config.pooling for mode, key in POOLING_MODE_KEYS.items()}
    # explicit, as sentence-transformers writes them itself
    pooling |= dict.fromkeys(UNUSED_POOLING_MODE_KEYS, False)
    # prompts are part of the text that is pooled, as in `encode_texts`
    _write_json(folder / POOLING_CONFIG_FILE, pooling | {"include_prompt": True})
    if embedding_config.normalise:
        _write_json(folder / "2_Normalize" / "config.json", {})
    query, document = embedding_config.query_prompt, embedding_config.document_prompt
    prompts = {
        "__version__": {
            "sentence_transformers": MIN_SENTENCE_TRANSFORMERS_VERSION,
            "transformers": transformers.__version__,
            "pytorch": torch.__version__,
        },
        "prompts": {"query": query, "document": document},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write_json(folder / SENTENCE_TRANSFORMERS_PROMPTS_FILE, prompts)
    max_tokens = compute_max_text_tokens(stack, embedding_config)
    length: dict[str, object] = {"max_seq_length": max_tokens, "do_lower_case": False}
    # the folder has no pooler, which transformers would initialize at random, with a warning
    if "add_pooling_layer" in inspect.signature(type(stack.base.backbone).__init__).parameters:
        length["model_args"] = {"add_pooling_layer": False}
    _write_json(folder / SENTENCE_TRANSFORMERS_LENGTH_FILE, length)


def _remove_local_paths(path: Path) -> None:
    """Remove keys with paths of this machine from a JSON file."""
    content = read_model_json(path, "")
    _write_json(path, {k: value for k, value in content.items() if k not in LOCAL_PATH_KEYS})


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
