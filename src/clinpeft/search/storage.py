"""Where proposals are kept, and who holds which: a journal in the home for the processes of one machine, PostgreSQL for many hosts.

A journal has no heartbeat, and a heartbeat needs a clock to say that somebody is late. A claim needs none: it is a lock of the operating system,
or of the database's session, and goes in the moment its process does, however it ends.
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
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

from clinpeft.core import locks as files
from clinpeft.core.errors import StorageError, UsageError

JOURNAL_FILE = "journal.log"


class TrialLocks(Protocol):
    """Who works on which trial."""

    def lock_search(self) -> contextlib.AbstractContextManager[None]:
        """Wait until no other process takes or proposes a trial; for moments only."""

    def try_lock_trial(self, number: int) -> contextlib.AbstractContextManager[bool]:
        """Whether this process has the trial, until the block ends or the process dies."""

    def is_trial_locked(self, number: int) -> bool:
        """Whether a process has the trial now."""


@dataclass(frozen=True)
class FileTrialLocks:
    """Claims by file locks in the search's folder."""

    folder: Path

    def lock_search(self) -> contextlib.AbstractContextManager[None]:
        """By a lock on the folder."""
        return files.wait_for_folder_lock(self.folder)

    def try_lock_trial(self, number: int) -> contextlib.AbstractContextManager[bool]:
        """By a lock on the trial's file."""
        return files.try_lock(self.folder, f"trial-{number}")

    def is_trial_locked(self, number: int) -> bool:
        """Whether the trial's file is locked."""
        return files.is_key_locked(self.folder, f"trial-{number}")


class DatabaseTrialLocks:
    """Claims by advisory locks of a PostgreSQL session, which the server drops with the session's connection.

    Args:
        connection: of SQLAlchemy, in autocommit, for nothing else.
        name: of the search; its hash is the first of the two numbers that make a lock.
    """

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._search_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) & 0x7FFFFFFF

    @contextlib.contextmanager
    def lock_search(self) -> Iterator[None]:
        """By the search's lock."""
        self._query_scalar("SELECT pg_advisory_lock(:search, :number)", 0)
        try:
            yield
        finally:
            self._query_scalar("SELECT pg_advisory_unlock(:search, :number)", 0)

    @contextlib.contextmanager
    def try_lock_trial(self, number: int) -> Iterator[bool]:
        """By the trial's lock."""
        if not self._query_scalar("SELECT pg_try_advisory_lock(:search, :number)", number + 1):
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(Exception):  # with the connection the lock is gone as well
                self._query_scalar("SELECT pg_advisory_unlock(:search, :number)", number + 1)

    def is_trial_locked(self, number: int) -> bool:
        """Whether any session has the trial's lock."""
        asked = (
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :search AND objid = :number AND objsubid = 2"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
        )
        return bool(self._query_scalar(asked, number + 1))

    def _query_scalar(self, sql: str, number: int) -> Any:
        import sqlalchemy

        return self._connection.execute(
            sqlalchemy.text(sql), {"search": self._search_key, "number": number}
        ).scalar()


@contextlib.contextmanager
def open_search_storage(
    storage: str, folder: Path, name: str
) -> Iterator[tuple[BaseStorage, TrialLocks]]:
    """The storage of a search and its claims, until the block ends.

    Args:
        storage: ``journal``, or a ``postgresql://`` address.
        folder: of the search, in the home; the journal is in it.
        name: of the search.

    Raises:
        StorageError: it cannot be reached or written. Runs that were made are kept.
        UsageError: the driver for PostgreSQL is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with contextlib.ExitStack() as stack:
        with wrap_storage_errors(storage):
            found = (
                _open_journal(folder)
                if storage == "journal"
                else _open_postgresql(storage, name, stack)
            )
        yield found


def _open_journal(folder: Path) -> tuple[BaseStorage, TrialLocks]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return JournalStorage(_create_journal_backend(folder)), FileTrialLocks(folder)


def _create_journal_backend(folder: Path) -> BaseJournalBackend:
    return JournalFileBackend(
        str(folder / JOURNAL_FILE), lock_obj=JournalLock(folder / JOURNAL_FILE)
    )


class JournalLock(JournalFileOpenLock):
    """The journal, held while a line is written.

    optuna's own locks are files that a killed process leaves behind for half a minute; this one goes with its process. Whoever gets it takes away the
    beginning of a line that a process died in: with another line behind it the journal could not be read again.

    Args:
        path: of the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._exit_stack = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for it."""
        self._exit_stack.enter_context(
            files.wait_for_folder_lock(self._path.parent, f"{JOURNAL_FILE}.held")
        )
        with contextlib.suppress(FileNotFoundError), self._path.open("rb+") as journal:
            _truncate_torn_line(journal)
        return True

    def release(self) -> None:
        """Let the next one in."""
        self._exit_stack.close()


def _truncate_torn_line(journal: Any) -> None:
    """Cut the file behind its last line end."""
    size = journal.seek(0, os.SEEK_END)
    end = size
    while end and (journal.seek(end - 1), journal.read(1))[1] != b"\n":
        end -= 1
    if end < size:
        journal.truncate(end)


def _open_postgresql(
    address: str, name: str, stack: contextlib.ExitStack
) -> tuple[BaseStorage, TrialLocks]:
    import sqlalchemy
    from optuna.storages import RDBStorage

    url = sqlalchemy.engine.make_url(address)
    if url.drivername == "postgresql":
        url = url.set(
            drivername="postgresql+pg8000"
        )  # BSD, and pure Python; another one can be named in the address
    try:
        engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT"
        )
    except ModuleNotFoundError as error:
        hint = 'install it: pip install "clinpeft[postgresql]"'
        raise UsageError(
            f"{error.name} is not installed", location="search.storage", hint=hint
        ) from error
    claims = DatabaseTrialLocks(stack.enter_context(engine.connect()), name)
    with claims.lock_search():  # the first one makes the tables
        kept = RDBStorage(
            url.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True}
        )
    stack.callback(kept.engine.dispose)
    return kept, claims


@contextlib.contextmanager
def wrap_storage_errors(storage: str) -> Iterator[None]:
    """Whatever the block meets in the storage becomes one error, without the address's password.

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
        hint = "check the address and that the server is up, then give the same command: it goes on, and no finished run is made again"
        raise StorageError(
            f"the storage of the search cannot be used: {_describe_cause(error)}",
            location=mask_storage_password(storage),
            hint=hint,
        ) from None


def mask_storage_password(storage: str) -> str:
    """The storage without its password."""
    import sqlalchemy

    return (
        storage
        if storage == "journal"
        else sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True)
    )


def _describe_cause(error: BaseException) -> str:
    """The class of the innermost error, and what the system says of it."""
    while error.__cause__ is not None or getattr(error, "orig", None) is not None:
        error = error.__cause__ or error.orig  # type: ignore[attr-defined]
    return f"{type(error).__name__}{f': {os.strerror(error.errno)}' if isinstance(error, OSError) and error.errno else ''}"
