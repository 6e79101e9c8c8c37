"""Storage and locks of trials: a journal for the processes of one machine, PostgreSQL for many
hosts.

A journal has no heartbeat, and a heartbeat needs a clock to decide that a worker is late. A lock
needs none: it is one of the operating system, or of the database's session, and is released the
moment its process ends, in any way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from clinpeft.core import locks
from clinpeft.core.errors import StorageError, UsageError

JOURNAL_FILE = "journal.log"


class TrialLocks(Protocol):
    """Locks of the trials of a search."""

    def lock_search(self) -> contextlib.AbstractContextManager[None]:
        """Wait until no other process claims or proposes a trial; for moments only."""

    def try_lock_trial(self, number: int) -> contextlib.AbstractContextManager[bool]:
        """Whether this process gets the trial, until the block ends or the process dies."""

    def is_trial_locked(self, number: int) -> bool:
        """Whether a process has the trial now."""


@dataclass(frozen=True)
class FileTrialLocks:
    """Trial locks by file locks in the search's folder."""

    folder: Path

    def lock_search(self) -> contextlib.AbstractContextManager[None]:
        """By a lock on the folder."""
        return locks.wait_for_folder_lock(self.folder)

    def try_lock_trial(self, number: int) -> contextlib.AbstractContextManager[bool]:
        """By a lock on the trial's file."""
        return locks.try_lock(self.folder, f"trial-{number}")

    def is_trial_locked(self, number: int) -> bool:
        """Whether the trial's file is locked."""
        return locks.is_key_locked(self.folder, f"trial-{number}")


class DatabaseTrialLocks:
    """Trial locks by advisory locks of a PostgreSQL session, which end with its connection.

    Args:
        connection: of SQLAlchemy, in autocommit, used for nothing else.
        name: of the search; its hash is the first of the two numbers that make a lock.
    """

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        # 31 bits: the keys of two-number advisory locks are signed 32-bit integers.
        self._search_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) & 0x7FFFFFFF

    @contextlib.contextmanager
    def lock_search(self) -> Iterator[None]:
        """By lock number 0 of the search."""
        self._query_scalar("SELECT pg_advisory_lock(:search, :number)", 0)
        try:
            yield
        finally:
            self._query_scalar("SELECT pg_advisory_unlock(:search, :number)", 0)

    @contextlib.contextmanager
    def try_lock_trial(self, number: int) -> Iterator[bool]:
        """By lock ``number`` + 1 of the search."""
        if not self._query_scalar("SELECT pg_try_advisory_lock(:search, :number)", number + 1):
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(Exception):  # a lost connection has released the lock
                self._query_scalar("SELECT pg_advisory_unlock(:search, :number)", number + 1)

    def is_trial_locked(self, number: int) -> bool:
        """Whether any session has the trial's lock."""
        # objsubid 2: the key is a pair of numbers, and not one of 64 bits.
        query = (
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted "
            "AND classid = :search AND objid = :number AND objsubid = 2 AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database()))"
        )
        return bool(self._query_scalar(query, number + 1))

    def _query_scalar(self, sql: str, number: int) -> Any:
        import sqlalchemy

        parameters = {"search": self._search_key, "number": number}
        return self._connection.execute(sqlalchemy.text(sql), parameters).scalar()


class JournalLock(JournalFileOpenLock):
    """The lock of a journal, held while a line is written.

    optuna's own locks are files that a killed process leaves behind for half a minute; this one
    ends with its process. A new holder removes an incomplete last line of a process that was
    killed: with another line behind it the journal could not be read again.

    Args:
        path: of the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._exit_stack = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        lock = locks.wait_for_folder_lock(self._path.parent, f"{JOURNAL_FILE}.held")
        self._exit_stack.enter_context(lock)
        with contextlib.suppress(FileNotFoundError), self._path.open("rb+") as journal:
            # Search backwards for the last line end; a torn line is at most a few kilobytes.
            size = end = journal.seek(0, os.SEEK_END)
            while end and (journal.seek(end - 1), journal.read(1))[1] != b"\n":
                end -= 1
            if end < size:
                journal.truncate(end)
        return True

    def release(self) -> None:
        """Release the lock."""
        self._exit_stack.close()


@contextlib.contextmanager
def open_search_storage(
    storage: str, folder: Path, name: str
) -> Iterator[tuple[BaseStorage, TrialLocks]]:
    """Open the storage of a search and its locks, until the block ends.

    Args:
        storage: ``journal``, or a ``postgresql://`` address.
        folder: of the search, in the home; the journal is in it.
        name: of the search.

    Raises:
        StorageError: it cannot be reached or written. Finished runs are intact.
        UsageError: the driver for PostgreSQL is not installed.
    """
    # optuna logs every trial to stderr otherwise.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with contextlib.ExitStack() as stack:
        with wrap_storage_errors(storage):
            if storage == "journal":
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                path = folder / JOURNAL_FILE
                backend = JournalFileBackend(str(path), lock_obj=JournalLock(path))
                opened: tuple[BaseStorage, TrialLocks] = (
                    JournalStorage(backend),
                    FileTrialLocks(folder),
                )
            else:
                opened = _open_postgresql(storage, name, stack)
        yield opened


@contextlib.contextmanager
def wrap_storage_errors(storage: str) -> Iterator[None]:
    """Turn every error of the storage in the block into one, without the address's password.

    Raises:
        StorageError: the storage cannot be reached or written.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (
        SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        OSError,
        json.JSONDecodeError,
    ) as error:
        # The innermost cause names the reason; the outer ones quote SQL and the address.
        cause: BaseException = error
        while (inner := cause.__cause__ or getattr(cause, "orig", None)) is not None:
            cause = inner
        reason = type(cause).__name__
        if isinstance(cause, OSError) and cause.errno:
            reason += f": {os.strerror(cause.errno)}"
        raise StorageError(
            f"the storage of the search cannot be used: {reason}",
            location=mask_storage_password(storage),
            hint="check the address and that the server is running, then give the same command: "
            "it resumes, and no finished run is trained again",
        ) from None


def mask_storage_password(storage: str) -> str:
    """Replace the password in the address of a storage by ``***``."""
    if storage == "journal":
        return storage
    import sqlalchemy

    return sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True)


def _open_postgresql(
    address: str, name: str, stack: contextlib.ExitStack
) -> tuple[BaseStorage, TrialLocks]:
    import sqlalchemy
    from optuna.storages import RDBStorage

    url = sqlalchemy.engine.make_url(address)
    if url.drivername == "postgresql":
        # pg8000 is BSD and pure Python; another driver can be named in the address.
        url = url.set(drivername="postgresql+pg8000")
    try:
        # Without a pool: the connection that holds the locks must not be shared or recycled.
        engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT"
        )
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed",
            location="search.storage",
            hint='install it: pip install "clinpeft[postgresql]"',
        ) from error
    trial_locks = DatabaseTrialLocks(stack.enter_context(engine.connect()), name)
    with trial_locks.lock_search():  # only the first process creates the tables
        address = url.render_as_string(hide_password=False)
        storage = RDBStorage(address, engine_kwargs={"pool_pre_ping": True})
    # Connections are closed before the locks' own connection ends.
    stack.callback(storage.engine.dispose)
    return storage, trial_locks
