"""A ZIP file from somebody else: opened without ever being unpacked, in bounded memory, and refused where it was made to do harm."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clinpeft.core.errors import RefusedError, SourceError

MOST_FILES = 50_000
MOST_BYTES = 2**30  # of all files together; text of a thousand books
MOST_BYTES_A_FILE = 2**26
MOST_RATIO = 200  # text shrinks five to ten times, a bomb a thousand times
_RATIO_COUNTS_FROM = 2**20


@dataclass(frozen=True)
class Archive:
    """An opened ZIP file."""

    path: Path
    file: zipfile.ZipFile
    names: frozenset[str]

    def read(self, name: str) -> bytes:
        """The bytes of a file in it.

        Raises:
            SourceError: it is not there, or damaged.
            RefusedError: it is larger than the archive says, or than any text.
        """
        location = f"{self.path}: {name}"
        if name not in self.names:
            raise SourceError(
                "the book names this file, and it is not in the archive",
                location=location,
                hint="give another copy of the book",
            )
        try:
            with self.file.open(name) as opened:
                found = opened.read(MOST_BYTES_A_FILE + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            message = f"this file in the archive is damaged or encrypted ({type(error).__name__})"
            raise SourceError(
                message, location=location, hint="give another copy of the book"
            ) from None
        if len(found) > MOST_BYTES_A_FILE:
            _refuse(f"more than {MOST_BYTES_A_FILE:,} bytes come out of one file", location)
        return found


def opened(path: Path) -> Archive:
    """A ZIP file whose directory was checked.

    Raises:
        SourceError: it is no ZIP file, or a damaged one.
        RefusedError: a name leads out of the archive; it holds more than ``MOST_BYTES`` or shrinks more than ``MOST_RATIO`` times.
    """
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        raise SourceError(
            "this is no readable ZIP file, and so no EPUB",
            location=str(path),
            hint="give another copy of the book",
        ) from None
    entries = file.infolist()
    if len(entries) > MOST_FILES:
        _refuse(f"it holds {len(entries):,} files, more than {MOST_FILES:,}", str(path))
    for entry in entries:
        _check(entry, path)
    total = sum(entry.file_size for entry in entries)
    if total > MOST_BYTES:
        _refuse(f"it unpacks to {total:,} bytes, more than {MOST_BYTES:,}", str(path))
    return Archive(path, file, frozenset(entry.filename for entry in entries))


def _check(entry: zipfile.ZipInfo, path: Path) -> None:
    parts = PurePosixPath(entry.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
        _refuse(f"the name {entry.filename[:100]!r} leads out of it", str(path))
    if entry.file_size > _RATIO_COUNTS_FROM and entry.file_size > MOST_RATIO * max(
        entry.compress_size, 1
    ):
        _refuse(
            f"{entry.compress_size:,} bytes in it unpack to {entry.file_size:,}",
            f"{path}: {entry.filename[:100]}",
        )


def _refuse(message: str, location: str) -> None:
    raise RefusedError(
        f"this archive was not made as books are: {message}",
        location=location,
        hint="do not use it; get the book from its publisher",
    )
