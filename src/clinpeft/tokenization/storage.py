"""Windows of token ids in a folder.

All tokens are in one flat file that is memory-mapped and never loaded whole; three integers per
window say which slice of it is the window, and which row of the table it comes from.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clinpeft.tokenization.special_tokens import IndexArray

MappedTokens = npt.NDArray[np.unsignedinteger[Any]]
"""(all tokens,) uint16 or uint32, mapped from disk."""

ENCODING_DESCRIPTION_FILE = "encodings.json"
"""Written last: a folder that holds it is complete."""


@contextlib.contextmanager
def build_encoding_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which replaces ``folder`` when the block ends without an error.

    What an interrupted attempt wrote is removed first.
    """
    temporary = folder.with_name(folder.name + ".building")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o700)  # token ids are note text: readable by the owner only
    yield temporary
    # not atomic together, but a missing folder only means that it is encoded again
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def is_encoded(folder: Path) -> bool:
    """Return whether ``folder`` holds complete encodings, of a corpus or of a cohort."""
    return (folder / ENCODING_DESCRIPTION_FILE).exists()


def write_token_windows(
    windows: Iterable[tuple[int, Sequence[int]]], vocabulary_size: int, folder: Path
) -> dict[str, object]:
    """Write windows one after the other into ``tokens.bin`` and ``windows.npy``.

    Args:
        windows: (row of the table that the window belongs to, its token ids), in order of rows.
        vocabulary_size: number of token ids, which decides the bytes of a token.
        folder: where the two files go.

    Returns:
        ``dtype`` and ``tokens``, the description that ``map_token_windows`` needs.
    """
    # two bytes per token halve the file for vocabularies of up to 65,535 ids
    dtype = "uint16" if vocabulary_size <= np.iinfo(np.uint16).max else "uint32"
    num_tokens = 0
    slices = array("q")  # three int64 per window; a list of tuples takes far more memory
    with (folder / "tokens.bin").open("wb") as out:
        for row, ids in windows:
            out.write(np.asarray(ids, dtype=dtype).tobytes())
            slices.extend((num_tokens, len(ids), row))
            num_tokens += len(ids)
    # (3, windows): start, length and row are contiguous each
    np.save(folder / "windows.npy", np.asarray(slices, dtype=np.int64).reshape(-1, 3).T)
    return {"dtype": dtype, "tokens": num_tokens}


def write_encoding_description(folder: Path, description: Mapping[str, object]) -> None:
    """Write the description of ``folder``, which marks it as complete."""
    (folder / ENCODING_DESCRIPTION_FILE).write_text(json.dumps(description), encoding="utf-8")


def read_encoding_description(folder: Path) -> dict[str, Any]:
    """Return what ``write_encoding_description`` wrote."""
    # keys of `write_token_windows` and those of its caller
    description: dict[str, Any] = json.loads(
        (folder / ENCODING_DESCRIPTION_FILE).read_text(encoding="utf-8")
    )
    return description


def map_token_windows(
    folder: Path, description: Mapping[str, Any]
) -> tuple[MappedTokens, IndexArray]:
    """Map what ``write_token_windows`` wrote.

    Returns:
        Tokens (all tokens,), and (3, windows) start, length and row of each window; both mapped.
    """
    path, dtype, num_tokens = folder / "tokens.bin", description["dtype"], description["tokens"]
    windows = np.load(folder / "windows.npy", mmap_mode="r", allow_pickle=False)  # (3, windows)
    # read-only: batches copy the slices that they need
    if not num_tokens:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype), windows
    return np.memmap(path, dtype=dtype, mode="r", shape=(num_tokens,)), windows
