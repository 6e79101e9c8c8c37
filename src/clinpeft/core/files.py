"""Files that are whole or not there, and one process at a time on a run."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from clinpeft.core.errors import ClinpeftError, RefusedError, StorageError

_LOCKS_UNSUPPORTED_ERRNOS = {
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
}  # some network file systems
_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write_file_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as one step: a reader, or a crash, finds the old content or the new.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    with replace_file_atomically(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replace_file_atomically(path: Path) -> Iterator[Path]:
    """A path to write to, in the folder of ``path`` (made when missing), which takes the place of ``path`` when the block ends well.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_partials(path)
        yield temporary
        flush_path_to_disk(temporary)
        temporary.replace(path)
        flush_path_to_disk(path.parent)
    except OSError as error:
        raise build_write_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_stale_partials(path: Path) -> None:
    """Remove what processes that were killed while they wrote this very file left of it."""
    if sys.platform == "win32":  # asking for a process there ends it
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        number = left.name.removesuffix(".partial").rpartition(".")[2]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, OverflowError, OSError):  # none of ours, or a process of somebody else
            continue


def build_write_error(error: OSError, path: Path) -> StorageError:
    """The error for a file that could not be written, with the system's own reason."""
    hint = "make room or give --home another disk; what was written before is intact"
    return StorageError(
        f"nothing can be written: {os.strerror(error.errno) if error.errno else error}",
        location=str(path),
        hint=hint,
    )


def as_disk_full_error(error: BaseException, folder: Path) -> StorageError | None:
    """What to say of an error that means that nothing more can be written, whichever library met it; None for any other.

    Libraries without the system's error numbers (DuckDB, Arrow, safetensors) say the system's words; only those words are taken from their message.

    Args:
        error: as raised.
        folder: where was being written, for an error that does not say.
    """
    if isinstance(error, ClinpeftError) or not isinstance(error, Exception):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        said = str(error)
        number = next((one for one in _DISK_FULL_ERRNOS if os.strerror(one) in said), None)
    if number not in _DISK_FULL_ERRNOS:
        return None
    named = error.filename if isinstance(error, OSError) else None
    return build_write_error(OSError(number, ""), Path(str(named)) if named else folder)


def flush_path_to_disk(path: Path) -> None:
    """A replaced file survives a power cut only if the file, and then its folder, have reached the disk."""
    if path.is_dir() and sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
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
        raise build_write_error(error, path) from error
    try:
        if not _try_flock(descriptor, shared=False):
            holder = os.read(descriptor, 20).decode("ascii", "replace") or "unknown"
            hint = "wait until it is done, or stop that process; the lock goes with it"
            raise RefusedError(
                f"this run is locked: process {holder} is working on it",
                location=str(folder),
                hint=hint,
            )
        with contextlib.suppress(
            OSError
        ):  # the number is a courtesy; a full disk is for the first real file to report
            os.truncate(path, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def is_folder_locked(folder: Path) -> bool:
    """Whether a process is working on a run folder; true also where that cannot be known."""
    if sys.platform == "win32":
        return True
    try:
        with (folder / "lock").open("rb") as file:
            return not _try_flock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _try_flock(descriptor: int, *, shared: bool) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED_ERRNOS:
            raise
        return not shared  # work goes on without a lock; whether one is held cannot be known
    return True
