"""Windows in a folder: all tokens in one flat file that is mapped, never loaded, and three numbers a window that say which slice of it they are."""

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

ENCODING_DESCRIPTION_FILE = "encodings.json"
"""Written last: a folder that holds it is whole."""


@contextlib.contextmanager
def build_encoding_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of ``folder`` when the block ends well; what an interrupted attempt left is thrown away first."""
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True, mode=0o700)
    yield building
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def is_encoded(folder: Path) -> bool:
    """Whether ``folder`` holds finished encodings, of a corpus or of a cohort."""
    return (folder / ENCODING_DESCRIPTION_FILE).exists()


def write_token_windows(
    windows: Iterable[tuple[int, Sequence[int]]], vocabulary_size: int, folder: Path
) -> dict[str, object]:
    """Write windows one behind the other.

    Args:
        windows: (row of the table that the window belongs to, its token ids), in the order of the rows.
        vocabulary_size: number of token ids, which decides how many bytes a token takes.
        folder: where ``tokens.bin`` and ``windows.npy`` go.

    Returns:
        What ``mapped`` must be told.
    """
    dtype = "uint16" if vocabulary_size <= np.iinfo(np.uint16).max else "uint32"
    written, slices = 0, array("q")  # three int64 a window: a list of tuples would not stay small
    with (folder / "tokens.bin").open("wb") as out:
        for row, ids in windows:
            out.write(np.asarray(ids, dtype=dtype).tobytes())
            slices.extend((written, len(ids), row))
            written += len(ids)
    np.save(folder / "windows.npy", np.asarray(slices, dtype=np.int64).reshape(-1, 3).T)
    return {"dtype": dtype, "tokens": written}


def write_encoding_description(folder: Path, description: Mapping[str, object]) -> None:
    """Say in ``folder`` that it is whole, and what it holds."""
    (folder / ENCODING_DESCRIPTION_FILE).write_text(json.dumps(description), encoding="utf-8")


def read_encoding_description(folder: Path) -> dict[str, Any]:
    """What ``describe`` said."""
    found: dict[str, Any] = json.loads(
        (folder / ENCODING_DESCRIPTION_FILE).read_text(encoding="utf-8")
    )
    return found


def map_token_windows(
    folder: Path, description: Mapping[str, Any]
) -> tuple[MappedTokens, IndexArray]:
    """(all tokens,) and (3, windows) start, length and row of each, both mapped from disk."""
    windows = np.load(folder / "windows.npy", mmap_mode="r", allow_pickle=False)
    if not description["tokens"]:  # an empty file cannot be mapped
        return np.zeros(0, dtype=description["dtype"]), windows
    return np.memmap(
        folder / "tokens.bin", dtype=description["dtype"], mode="r", shape=(description["tokens"],)
    ), windows
