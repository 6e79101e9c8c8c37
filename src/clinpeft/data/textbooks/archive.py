"""A ZIP file from somebody else: opened without ever being unpacked, in bounded memory, and refused where it was made to do harm."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clinpeft.core.errors import RefusedError, SourceError

MAX_ARCHIVE_FILES = 50_000
MAX_ARCHIVE_BYTES = 2**30  # of all files together; text of a thousand books
MAX_ARCHIVE_FILE_BYTES = 2**26
MAX_COMPRESSION_RATIO = 200  # text shrinks five to ten times, a bomb a thousand times
_RATIO_CHECK_MIN_BYTES = 2**20


@dataclass(frozen=True)
class BookArchive:
    """An opened ZIP file."""

    path: Path
    zip_file: zipfile.ZipFile
    file_names: frozenset[str]

    def read_file(self, name: str) -> bytes:
        """The bytes of a file in it.

        Raises:
            SourceError: it is not there, or damaged.
            RefusedError: it is larger than the archive says, or than any text.
        """
        location = f"{self.path}: {name}"
        if name not in self.file_names:
            raise SourceError(
                "the book names this file, and it is not in the archive",
                location=location,
                hint="give another copy of the book",
            )
        try:
            with self.zip_file.open(name) as opened:
                found = opened.read(MAX_ARCHIVE_FILE_BYTES + 1)
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
        if len(found) > MAX_ARCHIVE_FILE_BYTES:
            _raise_refused_error(
                f"more than {MAX_ARCHIVE_FILE_BYTES:,} bytes come out of one file", location
            )
        return found


def open_archive(path: Path) -> BookArchive:
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
    if len(entries) > MAX_ARCHIVE_FILES:
        _raise_refused_error(
            f"it holds {len(entries):,} files, more than {MAX_ARCHIVE_FILES:,}", str(path)
        )
    for entry in entries:
        _check_entry(entry, path)
    total = sum(entry.file_size for entry in entries)
    if total > MAX_ARCHIVE_BYTES:
        _raise_refused_error(
            f"it unpacks to {total:,} bytes, more than {MAX_ARCHIVE_BYTES:,}", str(path)
        )
    return BookArchive(path, file, frozenset(entry.filename for entry in entries))


def _check_entry(entry: zipfile.ZipInfo, path: Path) -> None:
    parts = PurePosixPath(entry.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
        _raise_refused_error(f"the name {entry.filename[:100]!r} leads out of it", str(path))
    if entry.file_size > _RATIO_CHECK_MIN_BYTES and entry.file_size > MAX_COMPRESSION_RATIO * max(
        entry.compress_size, 1
    ):
        _raise_refused_error(
            f"{entry.compress_size:,} bytes in it unpack to {entry.file_size:,}",
            f"{path}: {entry.filename[:100]}",
        )


def _raise_refused_error(message: str, location: str) -> None:
    raise RefusedError(
        f"this archive was not made as books are: {message}",
        location=location,
        hint="do not use it; get the book from its publisher",
    )
