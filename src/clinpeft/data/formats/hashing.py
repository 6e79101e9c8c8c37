"""Hashes that are the same on every machine and in every version.

Identifiers, splits and n-gram indexes are built on these values. Changing one of them changes
files that are already written, so the constants below are part of the file format.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.errors import SourceError


def hash_to_64_bits(texts: Iterable[bytes]) -> NDArray[np.uint64]:
    """Hashes byte strings with BLAKE2b (RFC 7693), truncated to 64 bits.

    Args:
        texts: the encoded texts.

    Returns:
        Little-endian integers of shape ``(texts,)``.
    """
    # One join and one frombuffer: an int.from_bytes for every text costs twice as much.
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def draw_odd_multipliers(seed: int, count: int) -> NDArray[np.uint64]:
    """Draws the odd multipliers of a multiply-add hash, of shape ``(count,)``.

    Odd numbers are invertible modulo 2^64, so that no bit of a hash is lost.
    """
    # The raw stream of PCG64 is the same in every version of NumPy; the derived draws are not.
    return np.random.PCG64(seed).random_raw(count).astype(np.uint64) | np.uint64(1)


def contains_sorted(
    sorted_hashes: NDArray[np.uint64], hashes: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Marks the hashes that occur in a sorted array.

    Args:
        sorted_hashes: shape ``(known,)``, ascending, at least one.
        hashes: shape ``(hashes,)``.

    Returns:
        Shape ``(hashes,)``.
    """
    # searchsorted answers len(sorted_hashes) for whatever is larger than all of them.
    positions = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    matches: NDArray[np.bool_] = sorted_hashes[positions] == hashes
    return matches


def create_stable_id(parts: Iterable[object], id_counts: Counter[str]) -> str:
    """Returns an identifier that depends only on the parts; a repetition gets ``-2``, ``-3`` ...

    Args:
        parts: what the identifier is made of, such as a location and a text.
        id_counts: how often each hash was used so far; updated here.
    """
    # NUL separates the parts: ("ab", "c") and ("a", "bc") must not share an identifier.
    key = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()
    id_counts[key] += 1
    return key if id_counts[key] == 1 else f"{key}-{id_counts[key]}"


def fingerprint_source_files(paths: Iterable[Path]) -> str:
    """Computes one SHA-256, in hexadecimal, over the names and bytes of files.

    Folders are not part of it: files may move together and keep their fingerprint.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SourceError(
                f"this file cannot be read: {error.strerror}",
                location=str(path),
                hint="check source.path and its permissions",
            ) from error
        # The digest of each file, not its bytes: where a file ends is then unambiguous.
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()
