"""A folder to make things in, beside the place where they will stand whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def create_temporary_folder(target: Path) -> Iterator[Path]:
    """A folder ``.<name>-...`` beside ``target``, empty, and gone when the block has ended.

    A lock of the operating system on it goes with its process, however that ends: so the folder of a process that was killed is known, and removed
    by whoever makes the same thing next. Where there are no such locks nothing is removed.

    Raises:
        OSError: it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}-*"):
        with _lock_folder(left, wait=False) as by_nobody_else:
            if by_nobody_else:
                shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as ending:
        folder = None
        while (
            folder is None or not folder.exists()
        ):  # gone: taken for left behind before it was held
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            ending.enter_context(_lock_folder(folder, wait=True))
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextlib.contextmanager
def _lock_folder(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether it is held by nobody else; not where there are no locks."""
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    with contextlib.ExitStack() as ending:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            ending.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True
