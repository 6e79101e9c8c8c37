"""How the command ends when something went wrong: three lines, an exit code, and no word of a note, whatever was raised."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path

from clinpeft import runs
from clinpeft.core.errors import ClinpeftError, InputError, RefusedError

TRACEBACK_VARIABLE = "CLINPEFT_TRACEBACK"
"""Set to anything: errors that nobody foresaw are shown as Python does, with a message that may quote a note. For developers, on invented notes."""

PERMISSION_ERRNOS = {errno.EACCES, errno.EPERM}
MAX_TRACEBACK_FRAMES = 6


def to_clinpeft_error(error: Exception) -> ClinpeftError:
    """What to say of any error: itself where it is of the family; else what the system said, or where it happened, but not its message.

    A file that cannot be opened says its name. Of what nobody foresaw the class and the lines of code are told, innermost last: code holds no notes,
    while the message of a library may quote what it could not read.
    """
    if isinstance(error, ClinpeftError):
        return error
    full = runs.as_disk_full_error(error, Path.cwd())
    if full is not None:
        return full
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        return _to_file_error(error)
    hint = f"report these lines; its message is withheld, for it may quote a note: {TRACEBACK_VARIABLE}=1 shows it, on invented notes"
    return ClinpeftError(
        f"an unforeseen {type(error).__name__}", location=_format_frames(error), hint=hint
    )


def _to_file_error(error: OSError) -> ClinpeftError:
    kind = RefusedError if error.errno in PERMISSION_ERRNOS else InputError
    hint = (
        "make it readable, or writable, for this user"
        if error.errno in PERMISSION_ERRNOS
        else "check the path, and that nothing else is at work on it"
    )
    return kind(
        f"the system says: {os.strerror(error.errno or 0)}", location=str(error.filename), hint=hint
    )


def _format_frames(error: BaseException) -> str:
    """File, line and function of the innermost frames."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_TRACEBACK_FRAMES:]
    return (
        " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        or "unknown"
    )


def print_error(error: Exception) -> int:
    """Say what happened on standard error, and give the exit code."""
    said = to_clinpeft_error(error)
    print(f"clinpeft: {said}", file=sys.stderr)
    if said is not error and os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    return said.exit_code
