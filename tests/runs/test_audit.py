"""The audit log: every way to change it is seen, a crash is not mistaken for one, two processes
take turns."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from clinpeft.core.errors import InputError
from clinpeft.runs import audit_log
from tests.runs.conftest import NOON


def noted(home: Path, verb: str = "adapt") -> str:
    return audit_log.write_audit_entry(
        home,
        audit_log.AuditEntry(
            "ann",
            NOON,
            verb,
            run="0123456789ab",
            recipe="r" * 64,
            data="d" * 64,
            result="f" * 64,
            counts={"notes": 3},
        ),
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for verb in ("adapt", "classify", "privacy", "release"):
        noted(tmp_path, verb)
    return tmp_path


def rewritten(home: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = home / audit_log.AUDIT_LOG_FILE
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def edited(line: bytes, **changes: object) -> bytes:
    return (json.dumps({**json.loads(line), **changes}, sort_keys=True) + "\n").encode()


def resealed(line: bytes, **changes: object) -> bytes:
    """Edited by somebody who knows how the hash is made."""
    entry = {**json.loads(line), **changes}
    entry["hash"] = audit_log._compute_line_hash(entry)
    return (json.dumps(entry, sort_keys=True) + "\n").encode()


def test_a_log_that_nobody_touched_holds(home: Path) -> None:
    found = audit_log.verify_audit_log(home)
    assert (found.line_count, found.problems, found.notices) == (4, (), ())
    assert [line["verb"] for line in audit_log.read_audit_lines(home)] == [
        "adapt",
        "classify",
        "privacy",
        "release",
    ]
    first = audit_log.read_audit_lines(home)[0]
    assert (first["who"], first["when"], first["counts"], first["previous"]) == (
        "ann",
        NOON.isoformat(),
        {"notes": 3},
        "0" * 64,
    )


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "edited": (
        lambda lines: [lines[0], edited(lines[1], who="bob"), *lines[2:]],
        "line 2 was edited",
    ),
    "edited and sealed again": (
        lambda lines: [lines[0], resealed(lines[1], who="bob"), *lines[2:]],
        "line 3 does not follow",
    ),
    "the last edited and sealed again": (
        lambda lines: [*lines[:3], resealed(lines[3], who="bob")],
        "line 4 is not the one",
    ),
    "the first deleted": (lambda lines: lines[1:], "line 1 does not follow"),
    "one in the middle deleted": (lambda lines: [lines[0], *lines[2:]], "line 2 does not follow"),
    "two swapped": (
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        "line 2 does not follow",
    ),
    "one inserted": (
        lambda lines: [*lines[:2], resealed(lines[1], number=3), *lines[2:]],
        "line 3 does not follow",
    ),
    "one twice": (lambda lines: [*lines, lines[3]], "line 5 does not follow"),
    "the last cut off": (lambda lines: lines[:3], "1 lines are missing at the end"),
    "all cut off": (lambda lines: [], "4 lines are missing at the end"),
    "one made unreadable": (
        lambda lines: [lines[0], b"{\n", *lines[2:]],
        "line 2 is none of this log",
    ),
    "the last cut in the middle": (
        lambda lines: [*lines[:3], lines[3][:50]],
        "1 lines are missing at the end",
    ),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_every_change_is_seen(
    home: Path, change: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    rewritten(home, change)
    assert any(said in message for message in audit_log.verify_audit_log(home).problems), (
        audit_log.verify_audit_log(home).problems
    )


@pytest.mark.parametrize("change", [change for change, _ in CHANGES.values()], ids=CHANGES)
def test_a_change_is_still_seen_after_further_lines(
    home: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    rewritten(home, change)
    noted(home)
    noted(home)
    assert audit_log.verify_audit_log(home).problems


def test_a_head_that_is_missing_is_seen_and_stays_seen(home: Path) -> None:
    rewritten(home, lambda lines: lines[:2])
    (home / audit_log.AUDIT_HEAD_FILE).unlink()
    assert "audit.head is missing" in audit_log.verify_audit_log(home).problems[0]
    noted(home)
    assert any(
        "line 3 was written when audit.head was missing" in message
        for message in audit_log.verify_audit_log(home).problems
    )


def test_a_log_written_anew_is_found_out_by_a_hash_that_was_noted_elsewhere(
    home: Path, tmp_path: Path
) -> None:
    seen = audit_log.verify_audit_log(home).head_hash
    noted(home)
    assert not audit_log.verify_audit_log(home, seen).problems
    for name in (audit_log.AUDIT_LOG_FILE, audit_log.AUDIT_HEAD_FILE):
        (home / name).unlink()
    noted(home, "adapt")
    assert not audit_log.verify_audit_log(home).problems, (
        "from the inside nothing can be seen: docs/audit.md says so"
    )
    assert seen[:12] in audit_log.verify_audit_log(home, seen).problems[0]


def test_a_crash_between_line_and_head_is_a_notice_and_the_chain_goes_on(home: Path) -> None:
    head = (home / audit_log.AUDIT_HEAD_FILE).read_bytes()
    noted(home)
    (home / audit_log.AUDIT_HEAD_FILE).write_bytes(head)
    found = audit_log.verify_audit_log(home)
    assert not found.problems
    assert "audit.head" in found.notices[0]
    noted(home)
    assert (
        audit_log.verify_audit_log(home).line_count,
        audit_log.verify_audit_log(home).problems,
    ) == (6, ())


def test_a_line_cut_off_by_a_crash_is_taken_away_and_said(home: Path) -> None:
    with (home / audit_log.AUDIT_LOG_FILE).open("ab") as file:
        file.write(b'{"number": 5, "who"')
    assert "cut off while it was written" in audit_log.verify_audit_log(home).notices[0]
    assert not audit_log.verify_audit_log(home).problems
    noted(home)
    assert (
        audit_log.verify_audit_log(home).line_count,
        audit_log.verify_audit_log(home).problems,
        audit_log.verify_audit_log(home).notices,
    ) == (5, (), ())
    assert audit_log.read_audit_lines(home)[-1]["torn_bytes"] == 19


def _many(home: Path, count: int) -> None:
    for _ in range(count):
        noted(home)


def test_a_head_half_written_by_a_killed_process_goes(home: Path) -> None:
    before = (home / audit_log.AUDIT_HEAD_FILE).read_bytes()
    (home / f".{audit_log.AUDIT_HEAD_FILE}.1.partial").write_text(
        "{", encoding="utf-8"
    )  # of a process whose number another has now
    audit_log.remove_stale_audit_heads(home)
    assert not list(home.glob(".*.partial"))
    assert (home / audit_log.AUDIT_HEAD_FILE).read_bytes() == before
    assert audit_log.verify_audit_log(home).problems == ()


def test_two_processes_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_many, args=(tmp_path, 25)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert (
        audit_log.verify_audit_log(tmp_path).line_count,
        audit_log.verify_audit_log(tmp_path).problems,
    ) == (50, ())


def test_the_log_is_for_its_user_alone(home: Path) -> None:
    assert [
        oct((home / name).stat().st_mode & 0o077)
        for name in (audit_log.AUDIT_LOG_FILE, audit_log.AUDIT_LOCK_FILE)
    ] == ["0o0", "0o0"]


def test_a_home_without_a_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"where: .*audit\.jsonl"):
        audit_log.verify_audit_log(tmp_path)
