"""Files that are whole or not there, and one process at a time on a run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from clinpeft.errors import RefusedError, StorageError

_NO_LOCKS_HERE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # some network file systems


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as one step: a reader, or a crash, finds the old content or the new.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    with replaced(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, in the folder of ``path`` (made when missing), which takes the place of ``path`` when the block ends well.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise unwritable(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(error: OSError, path: Path) -> StorageError:
    """The error for a file that could not be written, with the system's own reason."""
    way_out = "make room or give --home another disk; what was written before is intact"
    return StorageError(f"nothing can be written: {os.strerror(error.errno) if error.errno else error}", place=str(path), way_out=way_out)


def _flush_to_disk(path: Path) -> None:
    """A replaced file survives a power cut only if the file, and then its folder, have reached the disk."""
    if path.is_dir() and sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder against every other process, until the block ends or the process dies, however it dies.

    Where the file system or the system knows no ``flock``, nothing is held.

    Raises:
        RefusedError: another process holds it.
        StorageError: the lock's file cannot be made.
    """
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unwritable(error, path) from error
    try:
        if not _taken(descriptor, shared=False):
            holder = os.read(descriptor, 20).decode("ascii", "replace") or "unknown"
            way_out = "wait until it is done, or stop that process; the lock goes with it"
            raise RefusedError(f"this run is locked: process {holder} is working on it", place=str(folder), way_out=way_out)
        with contextlib.suppress(OSError):  # the number is a courtesy; a full disk is for the first real file to report
            os.truncate(path, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process is working on a run folder; true also where that cannot be known."""
    if sys.platform == "win32":
        return True
    try:
        with (folder / "lock").open("rb") as file:
            return not _taken(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _taken(descriptor: int, *, shared: bool) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return not shared  # work goes on without a lock; whether one is held cannot be known
    return True
