"""What the files of a run are: a SHA-256 each, written down when the run finishes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

UNHASHED_FILES = frozenset({"run.json", "log.jsonl", "lock", "privacy.json", "privacy.md", "purged.json"})
"""Files of a run that change after it has finished, or that hold the list itself."""

UNHASHED_FOLDERS = frozenset({"checkpoints", "privacy"})


def hash_run_files(folder: Path) -> dict[str, str]:
    """Path from the run's folder -> SHA-256 (hex) of every file that a finished run stands on, in order of paths."""
    return {path.relative_to(folder).as_posix(): compute_file_sha256(path) for path in iterate_hashed_files(folder)}


def iterate_hashed_files(folder: Path) -> Iterator[Path]:
    """The files of a run that do not change any more: neither log nor lock, no checkpoint, nothing half written."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        unfinished = any(part.startswith(".") or part.endswith((".writing", ".partial")) for part in parts)
        if path.is_file() and not unfinished and parts[0] not in UNHASHED_FOLDERS and "/".join(parts) not in UNHASHED_FILES:
            yield path


def compute_file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
