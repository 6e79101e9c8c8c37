"""The audit log of a home: who made or gave away what, when, from what; every line carries the hash of the one before it.

``audit.jsonl`` is only ever added to. ``audit.head`` beside it says how many lines there are, how many bytes, and the hash of the last. A line that
was edited, deleted, inserted or moved breaks the chain; lines cut off at the end no longer fit the head. What this cannot show: somebody who may
write the folder can write all lines and the head anew. Against that, a hash that was noted elsewhere is asked for (``seen``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from clinpeft.core.errors import InputError
from clinpeft.core.locks import wait_for_folder_lock
from clinpeft.core.files import build_write_error, write_file_atomically

AUDIT_LOG_FILE, AUDIT_HEAD_FILE, AUDIT_LOCK_FILE = "audit.jsonl", "audit.head", "audit.lock"
GENESIS_HASH = "0" * 64
UNKNOWN_PREVIOUS_HASH = "unknown: the head was missing"
"""What stands for the hash of the line before, where nobody can say any more which one it was."""


@dataclass(frozen=True)
class AuditEntry:
    """What one line says.

    Attributes:
        who: the user's name in the operating system.
        when: with its time zone.
        verb: what was done, such as ``adapt`` or ``release``.
        state: how it ended: ``finished``, ``failed``, ``interrupted``.
        run: id of the run, empty where there is none.
        recipe: SHA-256 of the recipe, empty where there is none.
        data: fingerprint of what was read, empty where nothing was.
        result: SHA-256 of what was made, empty where nothing was.
        counts: what was counted -> how many.
    """

    who: str
    when: datetime
    verb: str
    state: str = "finished"
    run: str = ""
    recipe: str = ""
    data: str = ""
    result: str = ""
    counts: Mapping[str, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in a line."""
        known = {name: getattr(self, name) for name in ("who", "verb", "state", "run", "recipe", "data", "result")}
        return known | {"when": self.when.isoformat(), "counts": dict(self.counts or {})}


@dataclass(frozen=True)
class AuditCheck:
    """What ``verify`` found.

    Attributes:
        line_count: how many the log has.
        head_hash: hash of the last line; to be noted elsewhere.
        problems: what was done to the log, a sentence each; none: the chain holds.
        notices: what is no proof of anything, such as a line that a crash cut off.
    """

    line_count: int
    head_hash: str
    problems: tuple[str, ...]
    notices: tuple[str, ...] = ()


def write_audit_entry(home: Path, entry: AuditEntry) -> str:
    """Add a line, and give its hash. Two processes at once take turns, where the file system knows locks.

    Raises:
        StorageError: it cannot be written; the lines before it are intact.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with wait_for_folder_lock(home, AUDIT_LOCK_FILE), (home / AUDIT_LOG_FILE).open("a+b") as file:
            (home / AUDIT_LOG_FILE).chmod(0o600)
            head, more = _recover_head(home, file)
            line = _add_hash({"number": head["lines"] + 1, **entry.as_json(), **more, "previous": head["hash"]})
            written = (json.dumps(line, sort_keys=True) + "\n").encode()
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            write_file_atomically(home / AUDIT_HEAD_FILE, json.dumps({"lines": line["number"], "bytes": size, "hash": line["hash"]}) + "\n")
    except OSError as error:
        raise build_write_error(error, home / AUDIT_LOG_FILE) from error
    return str(line["hash"])


def remove_stale_audit_heads(home: Path) -> None:
    """Remove what a process left that was killed while it wrote the head, which happens after its run is recorded.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        if left := list(home.glob(f".{AUDIT_HEAD_FILE}.*.partial")):
            with wait_for_folder_lock(home, AUDIT_LOCK_FILE):  # nobody writes now
                for each in left:
                    each.unlink(missing_ok=True)
    except OSError as error:
        raise build_write_error(error, home / AUDIT_HEAD_FILE) from error


def read_audit_lines(home: Path) -> list[dict[str, Any]]:
    """The lines that can be read, oldest first; whether they are to be believed says ``verify``."""
    return [line for line in map(_parse_line, _read_log_pieces(home)[0]) if line is not None]


def verify_audit_log(home: Path, expected_hash: str = "") -> AuditCheck:
    """Whether the log is what was written, as far as it can show that by itself.

    Args:
        home: the folder of all runs.
        expected_hash: a hash of any line, noted elsewhere at an earlier time, which must be in the chain.

    Raises:
        InputError: there is no log.
    """
    if not (home / AUDIT_LOG_FILE).exists() and not (home / AUDIT_HEAD_FILE).exists():
        raise InputError("there is no audit log", location=str(home / AUDIT_LOG_FILE), hint="give --home; a verb that makes or gives away something begins one")
    with wait_for_folder_lock(home, AUDIT_LOCK_FILE):
        pieces, torn = _read_log_pieces(home)
        head = _read_head(home)
    before = GENESIS_HASH
    problems: list[str] = []
    for number, piece in enumerate(pieces, 1):
        line = _parse_line(piece)
        problems += _check_line(line, number, before)
        before = str(line["hash"]) if line else before
    notices = ["the last line was cut off while it was written; it is in no chain"] if torn else []
    ended, interrupted = _check_log_end(head, pieces)
    if expected_hash and expected_hash not in {str(line["hash"]) for line in map(_parse_line, pieces) if line}:
        ended.append(f"no line has the hash {expected_hash[:12]}: the log was written anew after that hash was noted, or it is another log")
    return AuditCheck(len(pieces), before, (*problems, *ended), (*notices, *interrupted))


def _check_line(line: dict[str, Any] | None, number: int, previous_hash: str) -> Iterator[str]:
    if line is None:
        yield f"line {number} is none of this log: it was edited"
        return
    if line.get("hash") != _compute_line_hash(line):
        yield f"line {number} was edited: its words do not give its hash"
    if line.get("previous") == UNKNOWN_PREVIOUS_HASH:
        yield f"line {number} was written when {AUDIT_HEAD_FILE} was missing: what stood before it cannot be known"
    elif line.get("previous") != previous_hash or line.get("number") != number:
        yield f"line {number} does not follow the line before it: lines were deleted, inserted or moved here"


def _check_log_end(head: dict[str, Any] | None, pieces: list[bytes]) -> tuple[list[str], list[str]]:
    """(problems, notices) of the end of the log."""
    count = len(pieces)
    if head is None:
        return [f"{AUDIT_HEAD_FILE} is missing or unreadable: whether lines are missing at the end cannot be known"], []
    if head["lines"] > count:
        return [f"{head['lines'] - count} lines are missing at the end"], []
    at_head = _parse_line(pieces[head["lines"] - 1]) if head["lines"] else {"hash": GENESIS_HASH}
    if at_head is None or at_head["hash"] != head["hash"]:
        return [f"line {head['lines']} is not the one that {AUDIT_HEAD_FILE} was written for"], []
    if count == head["lines"] + 1:
        return [], [f"{AUDIT_HEAD_FILE} does not know the last line: its writer was stopped in between, or it was added by hand"]
    return ([f"{count - head['lines']} lines were added that {AUDIT_HEAD_FILE} does not know"] if count > head["lines"] else []), []


def _recover_head(home: Path, file: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The head to go on from, and what the next line should say of damage; a line that a crash cut off is taken away, it was in no chain."""
    head, size = _read_head(home), file.seek(0, os.SEEK_END)
    if head is None and not size:  # before the first line, so that a crash right after it is seen as one, and not as a head that somebody removed
        head = {"lines": 0, "bytes": 0, "hash": GENESIS_HASH}
        write_file_atomically(home / AUDIT_HEAD_FILE, json.dumps(head) + "\n")
    if head is None:
        return {"lines": len(_read_log_pieces(home)[0]), "hash": UNKNOWN_PREVIOUS_HASH}, {}
    if size <= head["bytes"]:
        return head, {}
    file.seek(head["bytes"])
    whole, _, torn = file.read().rpartition(b"\n")
    if torn:
        file.truncate(size - len(torn))
    for piece in whole.splitlines():
        line = _parse_line(piece)
        if line is None or line["hash"] != _compute_line_hash(line) or line.get("previous") != head["hash"]:
            return {**head, "lines": head["lines"] + 1}, {}  # no line of ours: the break stays visible
        head = {"lines": line["number"], "hash": line["hash"]}
    return head, ({"torn_bytes": len(torn)} if torn else {})


def _add_hash(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "hash": _compute_line_hash(line)}


def _compute_line_hash(line: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over all that a line says but its hash; the hash of the line before is part of that."""
    said = {name: value for name, value in line.items() if name != "hash"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_log_pieces(home: Path) -> tuple[list[bytes], bytes]:
    """The whole lines, and what stands after the last line end."""
    try:
        whole, _, torn = (home / AUDIT_LOG_FILE).read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise InputError("the audit log cannot be read", location=str(home / AUDIT_LOG_FILE), hint="make it readable for this user") from error
    return whole.split(b"\n") if whole else [], torn


def _parse_line(piece: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(piece)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("hash"), str) else None


def _read_head(home: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((home / AUDIT_HEAD_FILE).read_text(encoding="utf-8"))
        return {"lines": int(found["lines"]), "bytes": int(found["bytes"]), "hash": str(found["hash"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
