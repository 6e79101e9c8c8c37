"""Untrusted ZIP files: read without being unpacked, in bounded memory."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clinpeft.core.errors import RefusedError, SourceError

MAX_ARCHIVE_FILES = 50_000
MAX_ARCHIVE_BYTES = 2**30  # of all files together; the text of a thousand books
MAX_ARCHIVE_FILE_BYTES = 2**26
MAX_COMPRESSION_RATIO = 200  # text shrinks five to ten times, a ZIP bomb a thousand times
_RATIO_CHECK_MIN_BYTES = 2**20  # a small file of blanks is harmless at any ratio


@dataclass(frozen=True)
class BookArchive:
    """An open ZIP file."""

    path: Path
    zip_file: zipfile.ZipFile
    file_names: frozenset[str]

    def read_file(self, file_name: str) -> bytes:
        """Returns the content of a file in the archive.

        Raises:
            SourceError: it does not exist, or is damaged.
            RefusedError: it is larger than the archive declares, or than any text.
        """
        location = f"{self.path}: {file_name}"
        if file_name not in self.file_names:
            raise SourceError(
                "the book names this file, and it is not in the archive",
                location=location,
                hint="give another copy of the book",
            )
        try:
            with self.zip_file.open(file_name) as file:
                # One byte more than allowed: the declared size cannot be trusted.
                content = file.read(MAX_ARCHIVE_FILE_BYTES + 1)
        except (
            *(zipfile.BadZipFile, zlib.error, EOFError, OSError),
            *(NotImplementedError, RuntimeError),
        ) as error:
            raise SourceError(
                f"this file in the archive is damaged or encrypted ({type(error).__name__})",
                location=location,
                hint="give another copy of the book",
            ) from None
        if len(content) > MAX_ARCHIVE_FILE_BYTES:
            raise create_archive_error(
                f"more than {MAX_ARCHIVE_FILE_BYTES:,} bytes come out of one file", location
            )
        return content


def open_archive(path: Path) -> BookArchive:
    """Opens a ZIP file and checks its directory.

    Raises:
        SourceError: it is not a ZIP file, or damaged.
        RefusedError: a name leads out of the archive, it holds more than ``MAX_ARCHIVE_FILES`` or
            ``MAX_ARCHIVE_BYTES``, or a file shrinks more than ``MAX_COMPRESSION_RATIO`` times.
    """
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        raise SourceError(
            "this is not a readable ZIP file, and so no EPUB",
            location=str(path),
            hint="give another copy of the book",
        ) from None
    # Everything below is from the directory of the file; nothing is decompressed yet.
    entries = file.infolist()
    if len(entries) > MAX_ARCHIVE_FILES:
        raise create_archive_error(
            f"it holds {len(entries):,} files, more than {MAX_ARCHIVE_FILES:,}", str(path)
        )
    for entry in entries:
        name, size = entry.filename[:100], entry.file_size
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        # An absolute path, a parent folder, or a Windows drive such as "C:".
        if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
            raise create_archive_error(f"the name {name!r} leads out of it", str(path))
        max_bytes = MAX_COMPRESSION_RATIO * max(entry.compress_size, 1)
        if size > _RATIO_CHECK_MIN_BYTES and size > max_bytes:
            raise create_archive_error(
                f"{entry.compress_size:,} bytes in it unpack to {size:,}", f"{path}: {name}"
            )
    # Many files of harmless ratios may be too large together.
    total = sum(entry.file_size for entry in entries)
    if total > MAX_ARCHIVE_BYTES:
        raise create_archive_error(
            f"it unpacks to {total:,} bytes, more than {MAX_ARCHIVE_BYTES:,}", str(path)
        )
    return BookArchive(path, file, frozenset(entry.filename for entry in entries))


def create_archive_error(message: str, location: str) -> RefusedError:
    """Creates the error about a malicious archive."""
    return RefusedError(
        f"this archive is not that of a book: {message}",
        location=location,
        hint="do not use it; get the book from its publisher",
    )
