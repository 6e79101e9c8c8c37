"""Data files of the generator, and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any


@cache
def read_synthetic_data(name: str) -> dict[str, Any]:
    """Read a TOML file of this package, lists as tuples, since the value is cached.

    Args:
        name: of the file, such as ``conditions.toml``.
    """
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

    def freeze(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: freeze(entry) for key, entry in value.items()}
        return tuple(map(freeze, value)) if isinstance(value, list) else value

    document: dict[str, Any] = freeze(tomllib.loads(text))
    return document


@contextlib.contextmanager
def create_temporary_folder(target: Path) -> Iterator[Path]:
    """Create an empty folder ``.<name>-...`` beside ``target``, removed when the block ends.

    The folder is locked by this process, and the operating system drops the lock when the process
    ends, however it ends. So the folder of a killed process is recognized and removed by the next
    process that writes the same target. Where locks are not supported nothing is removed.

    Raises:
        OSError: the folder cannot be created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{glob.escape(target.name)}-*"):
        with _lock_directory(stale, wait=False) as is_locked:
            if is_locked:
                shutil.rmtree(stale, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        folder = None
        # Another process may take the new folder for a stale one before it is locked: try again.
        while folder is None or not folder.exists():
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            stack.enter_context(_lock_directory(folder, wait=True))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextlib.contextmanager
def _lock_directory(folder: Path, wait: bool) -> Iterator[bool]:
    """Lock the folder itself and yield whether this process has it; False without lock support.

    ``filelock`` locks files only. A lock file inside the folder would be deleted before the folder
    is, and in between another process could lock a new one of the same name.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            # O_NOFOLLOW: a link of that name is not ours to remove
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True
