"""The audit log of a home: who produced or released what, when, from which data, as a hash chain.

``audit.jsonl`` is append-only; every line carries the hash of the line before it. ``audit.head``
beside it holds the number of lines, the bytes and the hash of the last line. A line that was
edited, deleted, inserted or moved breaks the chain; lines removed at the end no longer match the
head. What this cannot show: a user with write access can rewrite all lines and the head. Against
that, ``verify_audit_log`` accepts a hash that was noted elsewhere (Schneier and Kelsey 1999).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import pydantic

from clinpeft.core.errors import InputError
from clinpeft.core.files import build_write_error, write_file_atomically
from clinpeft.core.locks import wait_for_folder_lock

AUDIT_LOG_FILE, AUDIT_HEAD_FILE, AUDIT_LOCK_FILE = "audit.jsonl", "audit.head", "audit.lock"
GENESIS_HASH = "0" * 64
UNKNOWN_PREVIOUS_HASH = "unknown: the head was missing"
"""Stands for the hash of the line before where it can no longer be determined."""


@dataclass(frozen=True)
class AuditEntry:
    """The content of one line.

    Attributes:
        who: the user's name in the operating system.
        when: with its time zone.
        verb: what was done, such as ``adapt`` or ``release``.
        state: how it ended: ``finished``, ``failed``, ``interrupted``.
        run: id of the run, empty where there is none.
        recipe: SHA-256 of the recipe, empty where there is none.
        data: fingerprint of the source, empty where nothing was read.
        result: SHA-256 of the result, empty where there is none.
        counts: quantity -> number.
    """

    who: str
    # isoformat writes "+00:00"; pydantic alone would write "Z", and older lines would differ.
    when: Annotated[datetime, pydantic.PlainSerializer(lambda when: when.isoformat())]
    verb: str
    state: str = "finished"
    run: str = ""
    recipe: str = ""
    data: str = ""
    result: str = ""
    counts: Annotated[
        Mapping[str, int] | None, pydantic.PlainSerializer(lambda counts: dict(counts or {}))
    ] = None


@dataclass(frozen=True)
class AuditCheck:
    """The result of ``verify_audit_log``.

    Attributes:
        line_count: number of lines.
        head_hash: hash of the last line; to be noted elsewhere.
        problems: how the log was changed, a sentence each; empty: the chain is intact.
        notices: what proves no change, such as a line that a crash cut off.
    """

    line_count: int
    head_hash: str
    problems: tuple[str, ...]
    notices: tuple[str, ...] = ()


class _AuditHead(pydantic.BaseModel):
    """The content of ``audit.head``."""

    lines: int
    bytes: int
    hash: str


_ENTRY_ADAPTER = pydantic.TypeAdapter(AuditEntry)


def write_audit_entry(home: Path, entry: AuditEntry) -> str:
    """Append a line. Two processes at once take turns, where the file system supports locks.

    Returns:
        The hash of the line.

    Raises:
        StorageError: it cannot be written; the lines before it are intact.
    """
    path = home / AUDIT_LOG_FILE
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One writer at a time: two would continue the chain from the same hash.
        with wait_for_folder_lock(home, AUDIT_LOCK_FILE), path.open("a+b") as file:
            # User names and run ids are for the owner of the home.
            path.chmod(0o600)
            line_count, previous_hash, torn_bytes = _recover_chain(home, file)
            line = {"number": line_count + 1, **_ENTRY_ADAPTER.dump_python(entry, mode="json")}
            line |= {"torn_bytes": torn_bytes} if torn_bytes else {}
            line["previous"] = previous_hash
            line["hash"] = _compute_line_hash(line)
            file.write((json.dumps(line, sort_keys=True) + "\n").encode())
            file.flush()
            # On the disk before the head says that it is there.
            os.fsync(file.fileno())
            # The head after the line: a crash in between leaves a line that the head does not know,
            # and never a head without its line.
            size = file.seek(0, os.SEEK_END)
            _write_head(home, _AuditHead(lines=line["number"], bytes=size, hash=line["hash"]))
    except OSError as error:
        raise build_write_error(error, path) from error
    return str(line["hash"])


def remove_stale_audit_heads(home: Path) -> None:
    """Remove partial heads of processes that were killed while they wrote one.

    Raises:
        StorageError: they cannot be removed.
    """
    try:
        if partials := list(home.glob(f".{AUDIT_HEAD_FILE}.*.partial")):
            with wait_for_folder_lock(home, AUDIT_LOCK_FILE):  # no other process writes now
                for partial in partials:
                    partial.unlink(missing_ok=True)
    except OSError as error:
        raise build_write_error(error, home / AUDIT_HEAD_FILE) from error


def read_audit_lines(home: Path) -> list[dict[str, Any]]:
    """Read the lines that can be parsed, oldest first; ``verify_audit_log`` says if they are
    intact."""
    return [line for line in map(_parse_line, _read_log_pieces(home)[0]) if line is not None]


def verify_audit_log(home: Path, expected_hash: str = "") -> AuditCheck:
    """Verify the hash chain, as far as the log can show changes by itself.

    Args:
        home: the folder of all runs.
        expected_hash: a hash of any line, noted elsewhere at an earlier time, which must be in the
            chain.

    Raises:
        InputError: there is no log.
    """
    if not (home / AUDIT_LOG_FILE).exists() and not (home / AUDIT_HEAD_FILE).exists():
        raise InputError(
            "there is no audit log",
            location=str(home / AUDIT_LOG_FILE),
            hint="give --home; a command that produces or releases something creates one",
        )
    with wait_for_folder_lock(home, AUDIT_LOCK_FILE):
        # Log and head must be of one moment.
        pieces, torn = _read_log_pieces(home)
        head = _read_head(home)
    previous_hash = GENESIS_HASH
    problems: list[str] = []
    # Parsed once; None for a line that cannot be parsed.
    lines = [_parse_line(piece) for piece in pieces]
    for number, line in enumerate(lines, 1):
        if line is None:
            problems.append(f"line {number} is none of this log: it was edited")
            continue
        if line["hash"] != _compute_line_hash(line):
            problems.append(f"line {number} was edited: its content does not give its hash")
        if line.get("previous") == UNKNOWN_PREVIOUS_HASH:
            problems.append(
                f"line {number} was written when {AUDIT_HEAD_FILE} was missing: "
                "what was before it is unknown"
            )
        elif line.get("previous") != previous_hash or line.get("number") != number:
            problems.append(
                f"line {number} does not follow the line before it: "
                "lines were deleted, inserted or moved here"
            )
        # The recorded hash and not the computed one: one edited line is one problem.
        previous_hash = line["hash"]
    notices = ["the last line was cut off while it was written; it is in no chain"] if torn else []
    end_problem, end_notice = _check_log_end(head, lines)
    problems += [end_problem] if end_problem else []
    notices += [end_notice] if end_notice else []
    if expected_hash and expected_hash not in {line["hash"] for line in lines if line}:
        problems.append(
            f"no line has the hash {expected_hash[:12]}: the log was rewritten after that hash was "
            "noted, or it is another log"
        )
    return AuditCheck(len(pieces), previous_hash, tuple(problems), tuple(notices))


def _check_log_end(head: _AuditHead | None, lines: list[dict[str, Any] | None]) -> tuple[str, str]:
    """(problem, notice) of the end of the log, empty where there is none."""
    if head is None:
        return (
            f"{AUDIT_HEAD_FILE} is missing or unreadable: "
            "whether lines are missing at the end is unknown",
            "",
        )
    # One extra line is what a crash between line and head leaves.
    extra = len(lines) - head.lines
    if extra < 0:
        return f"{-extra} lines are missing at the end", ""
    last = lines[head.lines - 1] if head.lines else {"hash": GENESIS_HASH}
    if last is None or last["hash"] != head.hash:
        return f"line {head.lines} is not the one that {AUDIT_HEAD_FILE} was written for", ""
    if extra == 1:
        return (
            "",
            f"{AUDIT_HEAD_FILE} does not include the last line: its writer was stopped in between, "
            "or it was added by hand",
        )
    return (
        f"{extra} lines were added that {AUDIT_HEAD_FILE} does not include" if extra else "",
        "",
    )


def _recover_chain(home: Path, file: BinaryIO) -> tuple[int, str, int]:
    """Lines so far, the hash to continue from, and bytes of a torn line, which are removed.

    A torn line is one that a crash cut off; it was in no chain. Damage that is not a crash stays
    visible: the next line then does not follow the one before it.
    """
    head, size = _read_head(home), file.seek(0, os.SEEK_END)
    if head is None and not size:
        # Written before the first line: a crash right after that line is then recognized as one,
        # and not taken for a head that was removed.
        head = _AuditHead(lines=0, bytes=0, hash=GENESIS_HASH)
        _write_head(home, head)
    if head is None:
        return len(_read_log_pieces(home)[0]), UNKNOWN_PREVIOUS_HASH, 0
    line_count, previous_hash = head.lines, head.hash
    # Shorter than the head says: lines are missing, which verify reports.
    if size <= head.bytes:
        return line_count, previous_hash, 0
    file.seek(head.bytes)
    whole, _, torn = file.read().rpartition(b"\n")
    if torn:
        file.truncate(size - len(torn))
    for piece in whole.splitlines():
        line = _parse_line(piece)
        is_next = line is not None and line.get("previous") == previous_hash
        if line is None or not is_next or line["hash"] != _compute_line_hash(line):
            return line_count + 1, previous_hash, 0  # not one of ours: the break stays visible
        line_count, previous_hash = line["number"], line["hash"]
    return line_count, previous_hash, len(torn)


def _compute_line_hash(line: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of all fields but the hash; ``previous``, the hash before, is one."""
    # Over the fields as they were written, known or not: a validated copy would hide additions.
    content = {name: value for name, value in line.items() if name != "hash"}
    # Sorted keys: the hash must not depend on the order of fields.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_log_pieces(home: Path) -> tuple[list[bytes], bytes]:
    """The complete lines, and what follows the last line end."""
    path = home / AUDIT_LOG_FILE
    try:
        whole, _, torn = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        hint = "make it readable for this user"
        raise InputError("the audit log cannot be read", location=str(path), hint=hint) from error
    return whole.split(b"\n") if whole else [], torn


def _parse_line(piece: bytes) -> dict[str, Any] | None:
    """The fields of a line as they were written; None where it is no object with a hash."""
    try:
        line = json.loads(piece)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("hash"), str) else None


def _read_head(home: Path) -> _AuditHead | None:
    try:
        return _AuditHead.model_validate_json((home / AUDIT_HEAD_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _write_head(home: Path, head: _AuditHead) -> None:
    write_file_atomically(home / AUDIT_HEAD_FILE, json.dumps(head.model_dump()) + "\n")
