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

from clinpeft.tokenization.special_tokens import Ints

MappedTokens = npt.NDArray[np.unsignedinteger[Any]]

DESCRIPTION = "encodings.json"
"""Written last: a folder that holds it is whole."""


@contextlib.contextmanager
def built(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of ``folder`` when the block ends well; what an interrupted attempt left is thrown away first."""
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True, mode=0o700)
    yield building
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def is_encoded(folder: Path) -> bool:
    """Whether ``folder`` holds finished encodings, of a corpus or of a cohort."""
    return (folder / DESCRIPTION).exists()


def write_windows(
    windows: Iterable[tuple[int, Sequence[int]]], vocabulary: int, folder: Path
) -> dict[str, object]:
    """Write windows one behind the other.

    Args:
        windows: (row of the table that the window belongs to, its token ids), in the order of the rows.
        vocabulary: number of token ids, which decides how many bytes a token takes.
        folder: where ``tokens.bin`` and ``windows.npy`` go.

    Returns:
        What ``mapped`` must be told.
    """
    dtype = "uint16" if vocabulary <= np.iinfo(np.uint16).max else "uint32"
    written, slices = 0, array("q")  # three int64 a window: a list of tuples would not stay small
    with (folder / "tokens.bin").open("wb") as out:
        for row, ids in windows:
            out.write(np.asarray(ids, dtype=dtype).tobytes())
            slices.extend((written, len(ids), row))
            written += len(ids)
    np.save(folder / "windows.npy", np.asarray(slices, dtype=np.int64).reshape(-1, 3).T)
    return {"dtype": dtype, "tokens": written}


def describe(folder: Path, described: Mapping[str, object]) -> None:
    """Say in ``folder`` that it is whole, and what it holds."""
    (folder / DESCRIPTION).write_text(json.dumps(described), encoding="utf-8")


def described_in(folder: Path) -> dict[str, Any]:
    """What ``describe`` said."""
    found: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return found


def mapped(folder: Path, described: Mapping[str, Any]) -> tuple[MappedTokens, Ints]:
    """(all tokens,) and (3, windows) start, length and row of each, both mapped from disk."""
    windows = np.load(folder / "windows.npy", mmap_mode="r", allow_pickle=False)
    if not described["tokens"]:  # an empty file cannot be mapped
        return np.zeros(0, dtype=described["dtype"]), windows
    return np.memmap(
        folder / "tokens.bin", dtype=described["dtype"], mode="r", shape=(described["tokens"],)
    ), windows
