"""How the command ends after an error: three lines, an exit code, and no text of a note."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

from clinpeft import runs
from clinpeft.core.errors import ClinpeftError, InputError, RefusedError

TRACEBACK_VARIABLE = "CLINPEFT_TRACEBACK"
"""Set to anything, it shows the traceback of an unforeseen error, whose message may quote a note.
For developers, on synthetic notes."""

PERMISSION_ERRORS = {errno.EACCES, errno.EPERM}
INNERMOST_FRAMES = 6


def to_clinpeft_error(error: Exception) -> ClinpeftError:
    """Turn any exception into one of the closed family.

    A full disk and a file that cannot be opened say what the operating system said. Of any other
    exception only the class and the lines of code are given: code holds no notes, while a library's
    message may quote what it could not read.
    """
    if isinstance(error, ClinpeftError):
        return error
    disk_full = runs.as_disk_full_error(error, Path.cwd())
    if disk_full is not None:
        return disk_full
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        is_forbidden = error.errno in PERMISSION_ERRORS
        kind = RefusedError if is_forbidden else InputError
        hint = (
            "make it readable, or writable, for this user"
            if is_forbidden
            else "check the path, and that no other process is changing it"
        )
        message = f"the operating system says: {os.strerror(error.errno)}"
        return kind(message, location=str(error.filename), hint=hint)
    frames = traceback.extract_tb(error.__traceback__)[-INNERMOST_FRAMES:]
    lines = (f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return ClinpeftError(
        f"an unforeseen {type(error).__name__}",
        location=" > ".join(lines) or "unknown",
        hint="report these lines; the message is withheld, because it may quote a note: "
        f"{TRACEBACK_VARIABLE}=1 shows it, on synthetic notes",
    )


def print_error(error: Exception) -> int:
    """Print an error on standard error and return the exit code."""
    shown_error = to_clinpeft_error(error)
    print(f"clinpeft: {shown_error}", file=sys.stderr)
    if shown_error is not error and os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    return shown_error.exit_code
