"""Checksums of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK_BYTES = 1024 * 1024


def compute_file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, read in blocks of 1 MiB.

    Returns:
        64 hexadecimal characters.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
