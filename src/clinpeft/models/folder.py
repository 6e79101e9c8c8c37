"""What a folder holds, looked at before anything of it is loaded, so that what is wrong is said in one sentence."""

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
VOCABULARY_FILES = TOKENIZER_FILES[:6]
WEIGHT_INDEX_FILE = "model.safetensors.index.json"
POOLING_CONFIG_FILE = "1_Pooling/config.json"  # of sentence-transformers, which keeps the rest of a model as a plain folder


def fingerprint_base_model(folder: Path) -> str:
    """sha256 (hex) over what decides the numbers: config, tokenizer files, weight index and weights, each under its name, in order of names.

    Raises:
        BaseModelError: there is no such folder.
    """
    _check_folder_exists(folder)
    names = {"config.json", WEIGHT_INDEX_FILE, *TOKENIZER_FILES}
    chosen = sorted(
        path for path in folder.iterdir() if path.name in names or path.suffix == ".safetensors"
    )
    whole = hashlib.sha256()
    for path in chosen:
        about = path.stat()
        whole.update(
            f"{path.name} {_hash_file_cached(path, about.st_size, about.st_mtime_ns)}\n".encode()
        )
    return whole.hexdigest()


@functools.lru_cache(maxsize=256)
def _hash_file_cached(path: Path, size_bytes: int, modified_ns: int) -> str:  # noqa: ARG001 - size and time are part of the key: 13 GB are read once a process
    return hash_model_file(path)


def hash_model_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_model_folder(folder: Path) -> JsonObject:
    """The config of a folder that can be loaded, without reading its weights.

    Raises:
        BaseModelError: what is missing, where, and what to do.
    """
    _check_folder_exists(folder)
    config = read_model_json(
        folder / "config.json", "no config.json: this is not the folder of a model"
    )
    check_model_type(config.get("model_type"), str(folder / "config.json"))
    _check_plain_weights(folder, config)
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        hint = "put the tokenizer's files beside the weights; they are on the model's page"
        raise BaseModelError(
            f"no tokenizer: none of {', '.join(VOCABULARY_FILES)}", location=str(folder), hint=hint
        )
    _check_weights(folder)
    return config


def _check_folder_exists(folder: Path) -> None:
    if folder.is_dir():
        return
    name = "/".join(folder.parts[-2:])
    hint = (
        f"give a local folder; if {name!r} is a name on the hub: where there is a network, `clinpeft models pull {name} --to DIR` and "
        "`clinpeft bundle make --base DIR --out FILE.tar`; carry FILE.tar here, `clinpeft bundle unpack FILE.tar --to PLACE`, and give PLACE/base/..."
    )
    raise BaseModelError(f"there is no folder {str(folder)!r}", location="base.path", hint=hint)


def read_model_json(path: Path, missing_message: str) -> JsonObject:
    """The object in a file of a model folder.

    Raises:
        BaseModelError: there is no such file (``missing_message`` is what is said then), or it holds no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(
            missing_message,
            location=str(path.parent),
            hint="give the folder that holds config.json",
        ) from None
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"{path.name} cannot be read: {error}", location=str(path), hint="copy the file again"
        ) from error
    if not isinstance(found, dict):
        raise BaseModelError(
            f"{path.name} is a {type(found).__name__}, not an object",
            location=str(path),
            hint="copy the file again",
        )
    return found


def _check_plain_weights(folder: Path, config: JsonObject) -> None:
    """Neither code that comes with the model nor weights that are not numbers."""
    tokenizer = folder / "tokenizer_config.json"
    described = {
        "config.json": config,
        "tokenizer_config.json": read_model_json(tokenizer, "") if tokenizer.exists() else {},
    }
    for name, found in described.items():
        if "auto_map" in found:
            message = f"auto_map in {name}: this model brings its own Python code, and code from a model folder is never run"
            hint = "use a model of a known family whose folder has no auto_map"
            raise BaseModelError(message, location=str(folder / name), hint=hint)
    if "quantization_config" in config:
        hint = "use the model's full-precision folder; adapters are trained on, and merged into, plain weights"
        raise BaseModelError(
            "quantized weights (quantization_config)",
            location=str(folder / "config.json"),
            hint=hint,
        )


def _check_weights(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise _create_no_weights_error(folder)
    index = folder / WEIGHT_INDEX_FILE
    if index.exists():
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
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            hint = "copy it again and compare its size: it is cut short or damaged"
            raise BaseModelError(
                f"{path.name} cannot be read: {error}", location=str(path), hint=hint
            ) from error


def extract_first_line(error: Exception) -> str:
    """What an error of a library says first; the rest is advice to its developers."""
    return next(iter(str(error).strip().splitlines()), "")


def _create_no_weights_error(folder: Path) -> BaseModelError:
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if not pickles:
        return BaseModelError(
            "no weights: no file ends in .safetensors",
            location=str(folder),
            hint="copy the weights into the folder",
        )
    hint = (
        "convert them where you trust their origin: load the folder with transformers' from_pretrained(..., use_safetensors=False) "
        "and write it with save_pretrained, which gives safetensors"
    )
    return BaseModelError(
        f"only pickled weights ({', '.join(pickles)}), which can run code when opened",
        location=str(folder),
        hint=hint,
    )
