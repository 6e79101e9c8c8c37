"""Download of a model into a folder that everything else can use without a network.

This is the only module of the package that reaches the network.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from clinpeft.core.errors import BaseModelError, RefusedError, UsageError
from clinpeft.models.folder import (
    SENTENCE_TRANSFORMERS_FILES,
    TOKENIZER_FILES,
    WEIGHT_INDEX_FILE,
    check_model_folder,
    extract_first_line,
)

# neither pickles nor Python files: what is not downloaded cannot run
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
    """Download a model from the Hugging Face hub into a folder.

    An interrupted download resumes; the folder appears only when it is complete and has passed
    ``check_model_folder``.

    Args:
        model_id: ``owner/model``.
        folder: where to put it; must not exist.
        download_snapshot: the function that downloads; for tests.

    Raises:
        UsageError: not a name of the hub.
        RefusedError: the folder exists.
        BaseModelError: the download failed, or the model cannot be used as a base.
    """
    # no URL, revision or path: the name becomes part of a URL
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
    temporary = folder.with_name(folder.name + ".pulling")
    temporary.mkdir(parents=True, exist_ok=True)  # may hold part of an interrupted download
    try:
        # the library reads the constant at every request, so it is online only in this block
        constants.HF_HUB_OFFLINE = False
        download_snapshot(
            repo_id=model_id, local_dir=str(temporary), allow_patterns=DOWNLOADED_FILE_PATTERNS
        )
    except Exception as error:
        raise BaseModelError(
            f"{model_id} cannot be fetched: {type(error).__name__}: {extract_first_line(error)}",
            location=str(temporary),
            hint="check the name, the network, and for gated models your access token; "
            "the same command resumes the download",
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = True
    # before the rename: what has the name of `folder` can be loaded
    check_model_folder(temporary)
    shutil.rmtree(temporary / ".cache", ignore_errors=True)  # the library's notes for resuming
    temporary.rename(folder)
