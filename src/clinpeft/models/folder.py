"""Checks of a model folder before anything of it is loaded, so that every error is specific."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from clinpeft.core.errors import BaseModelError
from clinpeft.models.families import check_model_type

JsonObject = dict[str, Any]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# a folder has a tokenizer if it has one of these; the others only refine it
VOCABULARY_FILES = TOKENIZER_FILES[:6]
WEIGHT_INDEX_FILE = "model.safetensors.index.json"
# of sentence-transformers, whose folders are otherwise plain model folders
POOLING_CONFIG_FILE = "1_Pooling/config.json"
SENTENCE_TRANSFORMERS_MODULES_FILE = "modules.json"
SENTENCE_TRANSFORMERS_PROMPTS_FILE = "config_sentence_transformers.json"
SENTENCE_TRANSFORMERS_LENGTH_FILE = "sentence_bert_config.json"
SENTENCE_TRANSFORMERS_FILES = (
    POOLING_CONFIG_FILE,
    SENTENCE_TRANSFORMERS_MODULES_FILE,
    SENTENCE_TRANSFORMERS_PROMPTS_FILE,
    SENTENCE_TRANSFORMERS_LENGTH_FILE,
)
"""Files of a sentence-transformers folder: pooling, modules, prompts, and maximum length."""
# pickles: opening one runs whatever code it contains
PICKLED_WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def fingerprint_base_model(folder: Path) -> str:
    """Return the SHA-256 (hex) over all that decides the outputs of a model.

    It is computed over config, tokenizer files, weight index and weights: the name and the SHA-256
    of each file, in order of names.

    Raises:
        BaseModelError: there is no such folder.
    """
    check_folder_exists(folder)
    # README and license do not change outputs and are left out
    names = {"config.json", WEIGHT_INDEX_FILE, *TOKENIZER_FILES}
    paths = sorted(
        path for path in folder.iterdir() if path.name in names or path.suffix == ".safetensors"
    )
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        # the name too, because a renamed tokenizer file is not read
        file_sha256 = _hash_file_cached(path, stat.st_size, stat.st_mtime_ns)
        digest.update(f"{path.name} {file_sha256}\n".encode())
    return digest.hexdigest()


# size and time are in the key of the cache, so that 13 GB of weights are read once per process
# and again only when the file changes
@functools.lru_cache(maxsize=256)
def _hash_file_cached(path: Path, size_bytes: int, modified_ns: int) -> str:  # noqa: ARG001
    return hash_model_file(path)


def hash_model_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_model_folder(folder: Path) -> JsonObject:
    """Check a folder without reading its weights, and return its config.

    Raises:
        BaseModelError: what is missing, where, and what to do.
    """
    check_folder_exists(folder)
    config_path, tokenizer_path = folder / "config.json", folder / "tokenizer_config.json"
    config = read_model_json(config_path, "no config.json: this is not a model folder")
    check_model_type(config.get("model_type"), str(config_path))
    tokenizer_config = read_model_json(tokenizer_path, "") if tokenizer_path.exists() else {}
    # transformers would import the classes that auto_map names
    for path, content in ((config_path, config), (tokenizer_path, tokenizer_config)):
        if "auto_map" in content:
            raise BaseModelError(
                f"auto_map in {path.name}: this model needs Python code from its folder, "
                "and code from a model folder is never run",
                location=str(path),
                hint="use a model of a known family whose folder has no auto_map",
            )
    # bitsandbytes, GPTQ and others store integers that cannot be merged with adapters
    if "quantization_config" in config:
        raise BaseModelError(
            "quantized weights (quantization_config)",
            location=str(config_path),
            hint="use the model's full-precision folder: adapters are trained on, and merged into, "
            "unquantized weights",
        )
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise BaseModelError(
            f"no tokenizer: none of {', '.join(VOCABULARY_FILES)}",
            location=str(folder),
            hint="put the tokenizer's files beside the weights; they are on the model's page",
        )
    _check_weights(folder)
    return config


def check_folder_exists(folder: Path) -> None:
    """Check that ``folder`` is a folder; the hint also covers a hub name given instead of one.

    Raises:
        BaseModelError: it is not.
    """
    if folder.is_dir():
        return
    # OWNER/MODEL, if the folder is the name of a model on the hub
    name = "/".join(folder.parts[-2:])
    raise BaseModelError(
        f"there is no folder {str(folder)!r}",
        location="base.path",
        hint=f"give a local folder; if {name!r} is a name on the hub: on a machine with a network, "
        f"`clinpeft models pull {name} --to DIR` and "
        "`clinpeft bundle make --base DIR --out FILE.tar`; copy FILE.tar here, "
        "`clinpeft bundle unpack FILE.tar --to FOLDER`, and give FOLDER/base/...",
    )


def read_model_json(path: Path, missing_message: str) -> JsonObject:
    """Return the JSON object in a file of a model folder.

    Args:
        path: the file.
        missing_message: of the error if there is no such file.

    Raises:
        BaseModelError: there is no such file, or it holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(
            missing_message,
            location=str(path.parent),
            hint="give the folder that holds config.json",
        ) from None
    except (OSError, ValueError) as error:
        message = f"{path.name} cannot be read: {error}"
        raise BaseModelError(message, location=str(path), hint="copy the file again") from error
    # valid JSON of another type would fail later, without the file in the message
    if not isinstance(content, dict):
        message = f"{path.name} is a {type(content).__name__}, not an object"
        raise BaseModelError(message, location=str(path), hint="copy the file again")
    return content


def _check_weights(folder: Path) -> None:
    """Check that there are safetensors, all that the index lists, and that each has a header."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED_WEIGHT_SUFFIXES)
        message = "no weights: no file ends in .safetensors"
        hint = "copy the weights into the folder"
        # never opened here, whatever they hold
        if pickles:
            message = f"only pickled weights ({', '.join(pickles)}), which can run code when opened"
            hint = (
                "convert them if you trust their origin: load the folder with transformers' "
                "from_pretrained(..., use_safetensors=False) and write it with save_pretrained, "
                "which gives safetensors"
            )
        raise BaseModelError(message, location=str(folder), hint=hint)
    index = folder / WEIGHT_INDEX_FILE
    if index.exists():
        # `weight_map`: tensor name -> file name
        listed = set(read_model_json(index, "").get("weight_map", {}).values())
        missing = sorted(listed - {path.name for path in files})
        if missing:
            raise BaseModelError(
                f"missing weights: {', '.join(missing)}",
                location=str(folder),
                hint="copy the missing files too",
            )
    for path in files:
        try:
            # reads the header alone, which states the size of the file
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise BaseModelError(
                f"{path.name} cannot be read: {error}",
                location=str(path),
                hint="copy it again and compare its size: it is truncated or damaged",
            ) from error


def extract_first_line(error: Exception) -> str:
    """Return the first line of a library's error; the others are advice to its developers."""
    return next(iter(str(error).strip().splitlines()), "")
