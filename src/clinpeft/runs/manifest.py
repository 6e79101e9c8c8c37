"""Checksums of the files of a run, recorded when the run finishes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.hashing import compute_file_sha256

UNHASHED_FILES = frozenset(
    {"run.json", "log.jsonl", "lock", "privacy.json", "privacy.md", "purged.json"}
)
"""Files of a run that change after it has finished, or that hold the checksums themselves."""

UNHASHED_FOLDERS = frozenset({"checkpoints", "privacy"})


def hash_run_files(folder: Path) -> dict[str, str]:
    """Compute the checksums of all files of a run that no longer change.

    Returns:
        Path relative to the run's folder to SHA-256 (hexadecimal), in order of paths.
    """
    return {
        path.relative_to(folder).as_posix(): compute_file_sha256(path)
        for path in iterate_hashed_files(folder)
    }


def iterate_hashed_files(folder: Path) -> Iterator[Path]:
    """Iterate over the files of a run that no longer change, in order of paths.

    Neither log nor lock, no checkpoint, and no file that was only partly written.
    """
    # Sorted: the order of a directory differs between file systems.
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        is_partial = any(
            part.startswith(".") or part.endswith((".writing", ".partial")) for part in parts
        )
        is_excluded = parts[0] in UNHASHED_FOLDERS or "/".join(parts) in UNHASHED_FILES
        if path.is_file() and not is_partial and not is_excluded:
            yield path
