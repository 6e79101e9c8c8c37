"""The one door to the network: a model fetched into a folder that everything else can use without one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from clinpeft.core.errors import BaseModelError, RefusedError, UsageError
from clinpeft.models.folder import (
    WEIGHT_INDEX_FILE,
    POOLING_CONFIG_FILE,
    TOKENIZER_FILES,
    check_model_folder,
    extract_first_line,
)

SENTENCE_TRANSFORMERS_FILES = (
    POOLING_CONFIG_FILE,
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
"""What a sentence-transformers folder says of pooling, prompts, length and normalisation."""

DOWNLOADED_FILE_PATTERNS = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    WEIGHT_INDEX_FILE,
    *TOKENIZER_FILES,
    *SENTENCE_TRANSFORMERS_FILES,
    "LICENSE*",
    "README.md",
]


def download_model(
    model_id: str,
    folder: Path,
    download_snapshot: Callable[..., object] = huggingface_hub.snapshot_download,
) -> None:
    """Fetch a model from the hub into a folder that everything else can use without a network: the one door of this program.

    An interrupted pull is taken up where it stopped; the folder appears only when it is whole and has passed ``check``.

    Args:
        model_id: ``owner/model``.
        folder: where to put it; must not exist yet.
        download_snapshot: what fetches; for tests.

    Raises:
        UsageError: not a name of a hub.
        RefusedError: the folder exists.
        BaseModelError: it cannot be fetched, or what was fetched is not a usable base.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_id):
        raise UsageError(
            f"{model_id!r} is not a hub name",
            location="models pull",
            hint="write OWNER/MODEL, as on the model's page",
        )
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="models pull --to",
            hint="name a new folder, or remove this one yourself",
        )
    pulling = folder.with_name(folder.name + ".pulling")
    pulling.mkdir(parents=True, exist_ok=True)
    try:
        with _enable_network():
            download_snapshot(
                repo_id=model_id, local_dir=str(pulling), allow_patterns=DOWNLOADED_FILE_PATTERNS
            )
    except Exception as error:
        hint = "check the name, the network, and for gated models your access token; the same command goes on where it stopped"
        raise BaseModelError(
            f"{model_id} cannot be fetched: {type(error).__name__}: {extract_first_line(error)}",
            location=str(pulling),
            hint=hint,
        ) from error
    check_model_folder(pulling)
    shutil.rmtree(pulling / ".cache", ignore_errors=True)
    pulling.rename(folder)


@contextmanager
def _enable_network() -> Iterator[None]:
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = True
