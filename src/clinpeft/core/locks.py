"""Locks by which several processes share a folder; each ends with its process, however it ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.errors import RefusedError
from clinpeft.core.files import build_write_error, is_folder_locked, lock_file, lock_folder

LOCKS_FOLDER, CHANGE_LOCK_FILE = "claims", "changing.lock"
# A process that only asks whether a lock is held takes it for a moment, so a refusal is retried.
_MAX_LOCK_ATTEMPTS, _LOCK_RETRY_SECONDS = 4, 0.01


@contextlib.contextmanager
def try_lock(folder: Path, key: str) -> Iterator[bool]:
    """Try to lock a key of a folder and yield whether this process has it.

    One process has it, until the block or the process ends. On a file system without locks every
    process gets it.

    Args:
        folder: shared by the processes.
        key: such as the number of a trial.

    Raises:
        StorageError: the lock file cannot be created.
    """
    lock_home = folder / LOCKS_FOLDER / key
    try:
        lock_home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise build_write_error(error, lock_home) from error
    with contextlib.ExitStack() as stack:
        is_locked = False
        for attempt in range(_MAX_LOCK_ATTEMPTS):
            try:
                stack.enter_context(lock_folder(lock_home))
                is_locked = True
                break
            except RefusedError:
                if attempt < _MAX_LOCK_ATTEMPTS - 1:
                    time.sleep(_LOCK_RETRY_SECONDS)
        yield is_locked


def is_key_locked(folder: Path, key: str) -> bool:
    """Whether a process has locked the key; True also where that cannot be determined."""
    return is_folder_locked(folder / LOCKS_FOLDER / key)


def is_locked_elsewhere(error: RefusedError) -> bool:
    """Whether a run was refused because another process has locked its folder at this moment."""
    return is_folder_locked(Path(error.location))


@contextlib.contextmanager
def wait_for_folder_lock(folder: Path, name: str = CHANGE_LOCK_FILE) -> Iterator[None]:
    """Wait until no other process changes a folder, and keep them out until the block ends.

    For short changes only. On a file system without locks there is no wait.

    Args:
        folder: created when missing.
        name: of the lock file, where the lock is for a part of the folder.

    Raises:
        StorageError: the lock file cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise build_write_error(error, folder / name) from error
    with lock_file(folder / name, wait=True):
        yield
