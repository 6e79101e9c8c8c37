"""Files that are complete or absent, and locks on files and folders."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.errors import ClinpeftError, RefusedError, StorageError

# Some network file systems have no locks.
_LOCKS_UNSUPPORTED_ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_LOCK_POLL_SECONDS = 0.01


def write_file_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader, or a crash, leaves the old content or the new.

    Raises:
        StorageError: nothing could be written; the old content is intact.
    """
    with replace_file_atomically(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replace_file_atomically(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces ``path`` when the block ends without an error.

    The yielded path is in the folder of ``path``, which is created when missing.

    Raises:
        StorageError: nothing could be written; the old content is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_partials(path)
        yield temporary
        # Renaming is atomic, but may reach the disk before the content does.
        flush_path_to_disk(temporary)
        temporary.replace(path)
        flush_path_to_disk(path.parent)
    except OSError as error:
        raise build_write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_stale_partials(path: Path) -> None:
    """Remove partial files of ``path`` whose process was killed while writing."""
    if sys.platform == "win32":  # os.kill would end the process there
        return
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = partial.name.removesuffix(".partial").rpartition(".")[2]
        try:
            os.kill(int(pid), 0)  # signal 0 only checks that the process exists
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except (ValueError, OverflowError, OSError):  # not a partial, or another user's process
            continue


def build_write_error(error: OSError, path: Path) -> StorageError:
    """Build the error for a file that could not be written, with the reason of the system."""
    return StorageError(
        f"nothing can be written: {os.strerror(error.errno) if error.errno else error}",
        location=str(path),
        hint="free disk space or give --home another disk; what was written before is intact",
    )


def as_disk_full_error(error: BaseException, folder: Path) -> StorageError | None:
    """Convert an error of any library that means "nothing more can be written".

    Args:
        error: as raised.
        folder: written to, for an error without a file name.

    Returns:
        None for an error with another meaning.
    """
    if isinstance(error, ClinpeftError) or not isinstance(error, Exception):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        # DuckDB, Arrow and safetensors put the words of the system into their message. The rest
        # of it is not used, since it may hold data.
        text = str(error)
        number = next((code for code in _DISK_FULL_ERRNOS if os.strerror(code) in text), None)
    if number not in _DISK_FULL_ERRNOS:
        return None
    filename = error.filename if isinstance(error, OSError) else None
    return build_write_error(OSError(number, ""), Path(str(filename)) if filename else folder)


def flush_path_to_disk(path: Path) -> None:
    """Flush a file or folder, so that it survives a power cut.

    A replaced file survives only if the file, and then its folder, have reached the disk.
    """
    if path.is_dir() and sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_file(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a file, created when missing, against every other process and yield whether it is ours.

    The lock ends with the block or with the process, however that ends. On a file system without
    locks nothing is locked and True is yielded.

    Args:
        path: of the lock file, in a folder that exists.
        wait: until the lock is free; without it False is yielded where another process has it.

    Raises:
        StorageError: the file cannot be created.
    """
    import filelock  # here, since it imports asyncio, and most commands lock nothing

    if not path.parent.exists():  # filelock would create it
        raise build_write_error(FileNotFoundError(errno.ENOENT, ""), path)
    lock = filelock.FileLock(
        path,
        mode=0o600,
        poll_interval=_LOCK_POLL_SECONDS,
        # The lock belongs to the block, whichever thread ends it
        thread_local=False,
        # A lock by mere existence of a file would outlive a killed process
        fallback_to_soft=False,
    )
    try:
        lock.acquire(blocking=wait)
    except filelock.Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED_ERRNOS:
            raise build_write_error(error, path) from error
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder against every other process until the block or the process ends.

    On a file system without locks nothing is locked.

    Raises:
        RefusedError: another process has it; the message names its pid.
        StorageError: the lock file cannot be created.
    """
    path = folder / "lock"
    with lock_file(path, wait=False) as is_locked:
        if not is_locked:
            holder = "unknown"
            with contextlib.suppress(OSError):
                holder = path.read_bytes()[:20].decode("ascii", "replace") or holder
            raise RefusedError(
                f"this run is locked: process {holder} is working on it",
                location=str(folder),
                hint="wait until it is done, or stop that process; the lock ends with it",
            )
        # The pid is for the message only; a full disk is reported by the first real file.
        with contextlib.suppress(OSError):
            path.write_bytes(str(os.getpid()).encode())
        yield


def is_folder_locked(folder: Path) -> bool:
    """Whether a process has locked a run folder; True also where that cannot be determined."""
    if sys.platform == "win32":
        return True
    # flock by hand, since filelock can only ask by taking an exclusive lock, which needs write
    # permission, and by which two processes that ask at the same time would see one another.
    import fcntl

    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # BlockingIOError: locked; any other: unknown
        return True
    return False
