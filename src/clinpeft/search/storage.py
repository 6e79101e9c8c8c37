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

JOURNAL = "journal.log"


class Claims(Protocol):
    """Who works on which trial."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Wait until no other process takes or proposes a trial; for moments only."""

    def held(self, number: int) -> contextlib.AbstractContextManager[bool]:
        """Whether this process has the trial, until the block ends or the process dies."""

    def is_held(self, number: int) -> bool:
        """Whether a process has the trial now."""


@dataclass(frozen=True)
class FolderClaims:
    """Claims by file locks in the search's folder."""

    folder: Path

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """By a lock on the folder."""
        return files.alone(self.folder)

    def held(self, number: int) -> contextlib.AbstractContextManager[bool]:
        """By a lock on the trial's file."""
        return files.claimed(self.folder, f"trial-{number}")

    def is_held(self, number: int) -> bool:
        """Whether the trial's file is locked."""
        return files.is_claimed(self.folder, f"trial-{number}")


class DatabaseClaims:
    """Claims by advisory locks of a PostgreSQL session, which the server drops with the session's connection.

    Args:
        connection: of SQLAlchemy, in autocommit, for nothing else.
        name: of the search; its hash is the first of the two numbers that make a lock.
    """

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._search = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) & 0x7FFFFFFF

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """By the search's lock."""
        self._ask("SELECT pg_advisory_lock(:search, :number)", 0)
        try:
            yield
        finally:
            self._ask("SELECT pg_advisory_unlock(:search, :number)", 0)

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[bool]:
        """By the trial's lock."""
        if not self._ask("SELECT pg_try_advisory_lock(:search, :number)", number + 1):
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(Exception):  # with the connection the lock is gone as well
                self._ask("SELECT pg_advisory_unlock(:search, :number)", number + 1)

    def is_held(self, number: int) -> bool:
        """Whether any session has the trial's lock."""
        asked = (
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :search AND objid = :number AND objsubid = 2"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
        )
        return bool(self._ask(asked, number + 1))

    def _ask(self, text: str, number: int) -> Any:
        import sqlalchemy

        return self._connection.execute(
            sqlalchemy.text(text), {"search": self._search, "number": number}
        ).scalar()


@contextlib.contextmanager
def opened(storage: str, folder: Path, name: str) -> Iterator[tuple[BaseStorage, Claims]]:
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
        with reached(storage):
            found = _journal(folder) if storage == "journal" else _postgresql(storage, name, stack)
        yield found


def _journal(folder: Path) -> tuple[BaseStorage, Claims]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return JournalStorage(_journal_file(folder)), FolderClaims(folder)


def _journal_file(folder: Path) -> BaseJournalBackend:
    return JournalFileBackend(str(folder / JOURNAL), lock_obj=JournalLock(folder / JOURNAL))


class JournalLock(JournalFileOpenLock):
    """The journal, held while a line is written.

    optuna's own locks are files that a killed process leaves behind for half a minute; this one goes with its process. Whoever gets it takes away the
    beginning of a line that a process died in: with another line behind it the journal could not be read again.

    Args:
        path: of the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for it."""
        self._held.enter_context(files.alone(self._path.parent, f"{JOURNAL}.held"))
        with contextlib.suppress(FileNotFoundError), self._path.open("rb+") as journal:
            _whole(journal)
        return True

    def release(self) -> None:
        """Let the next one in."""
        self._held.close()


def _whole(journal: Any) -> None:
    """Cut the file behind its last line end."""
    size = journal.seek(0, os.SEEK_END)
    end = size
    while end and (journal.seek(end - 1), journal.read(1))[1] != b"\n":
        end -= 1
    if end < size:
        journal.truncate(end)


def _postgresql(address: str, name: str, stack: contextlib.ExitStack) -> tuple[BaseStorage, Claims]:
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
    claims = DatabaseClaims(stack.enter_context(engine.connect()), name)
    with claims.alone():  # the first one makes the tables
        kept = RDBStorage(
            url.render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True}
        )
    stack.callback(kept.engine.dispose)
    return kept, claims


@contextlib.contextmanager
def reached(storage: str) -> Iterator[None]:
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
            f"the storage of the search cannot be used: {_cause(error)}",
            location=shown(storage),
            hint=hint,
        ) from None


def shown(storage: str) -> str:
    """The storage without its password."""
    import sqlalchemy

    return (
        storage
        if storage == "journal"
        else sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True)
    )


def _cause(error: BaseException) -> str:
    """The class of the innermost error, and what the system says of it."""
    while error.__cause__ is not None or getattr(error, "orig", None) is not None:
        error = error.__cause__ or error.orig  # type: ignore[attr-defined]
    return f"{type(error).__name__}{f': {os.strerror(error.errno)}' if isinstance(error, OSError) and error.errno else ''}"
