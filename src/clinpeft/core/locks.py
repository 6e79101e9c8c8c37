"""Who works on what, where several processes share a folder: locks of the operating system, which go with their process however it ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.errors import RefusedError
from clinpeft.core.files import build_write_error, is_folder_locked, lock_folder

LOCKS_FOLDER, CHANGE_LOCK_FILE = "claims", "changing.lock"
_MAX_LOCK_ATTEMPTS, _LOCK_RETRY_SECONDS = (
    4,
    0.01,
)  # who only looks whether a lock is held holds it for that moment


@contextlib.contextmanager
def try_lock(folder: Path, key: str) -> Iterator[bool]:
    """Whether this process has the claim ``key`` of a folder: one process has it, until the block ends or the process dies, however it dies.

    On a file system without locks everybody gets it, and the run's own folder is the last word.

    Raises:
        StorageError: the claim's file cannot be made.
    """
    claim = folder / LOCKS_FOLDER / key
    try:
        claim.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise build_write_error(error, claim) from error
    with contextlib.ExitStack() as held:
        for again in range(_MAX_LOCK_ATTEMPTS):
            try:
                held.enter_context(lock_folder(claim))
            except RefusedError:
                if again < _MAX_LOCK_ATTEMPTS - 1:
                    time.sleep(_LOCK_RETRY_SECONDS)
                continue
            yield True
            return
        yield False


def is_key_locked(folder: Path, key: str) -> bool:
    """Whether a process has the claim ``key`` now; true also where that cannot be known."""
    return is_folder_locked(folder / LOCKS_FOLDER / key)


def is_locked_elsewhere(error: RefusedError) -> bool:
    """Whether a run was refused because another process holds its folder at this moment: asked again later, it is there."""
    return is_folder_locked(Path(error.location))


@contextlib.contextmanager
def wait_for_folder_lock(folder: Path, name: str = CHANGE_LOCK_FILE) -> Iterator[None]:
    """Wait until no other process changes what the folder holds, or the part of it that the lock is named for; for moments only.

    On a file system without locks nothing is waited for.

    Raises:
        StorageError: the lock's file cannot be made.
    """
    path = folder / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise build_write_error(error, path) from error
    try:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
