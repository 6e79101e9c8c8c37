"""Locks end with their process and name their holder; files are replaced whole; JSON is stable."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pydantic
import pytest

from clinpeft.core.errors import RefusedError, StorageError
from clinpeft.core.files import (
    as_disk_full_error,
    is_folder_locked,
    lock_folder,
    replace_file_atomically,
    write_file_atomically,
)
from clinpeft.core.locks import is_key_locked, is_locked_elsewhere, try_lock, wait_for_folder_lock
from clinpeft.core.schemas import ATTRITION_ADAPTER, LABEL_SPACE_ADAPTER, Attrition, LabelSpace

HOLDER = """
import sys, time
from pathlib import Path
from clinpeft.core.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_ends_with_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        assert is_folder_locked(tmp_path)
        for _ in range(2):  # a refused process must not change what the holder wrote
            with pytest.raises(RefusedError) as error, lock_folder(tmp_path):
                pass
            assert str(holder.pid) in error.value.message
            assert error.value.location == str(tmp_path)
        assert is_locked_elsewhere(error.value)
        holder.kill()
        holder.wait()
        assert not is_folder_locked(tmp_path)
    with lock_folder(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
        with pytest.raises(RefusedError), lock_folder(tmp_path):
            pass
    assert not is_folder_locked(tmp_path)


def test_asking_for_a_lock_takes_none(tmp_path: Path) -> None:
    assert not is_folder_locked(tmp_path)
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path):
        pass
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    with (tmp_path / "lock").open("rb") as file:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_SH)  # another process that asks at the same time
        assert not is_folder_locked(tmp_path)


def test_a_key_is_locked_by_one_holder(tmp_path: Path) -> None:
    with try_lock(tmp_path, "trial-1") as first, try_lock(tmp_path, "trial-1") as second:
        assert (first, second) == (True, False)
        assert is_key_locked(tmp_path, "trial-1") and not is_key_locked(tmp_path, "trial-2")
    assert not is_key_locked(tmp_path, "trial-1")


def test_changes_of_a_folder_wait_for_one_another(tmp_path: Path) -> None:
    count = 0

    def increment() -> None:
        nonlocal count
        for _ in range(20):
            with wait_for_folder_lock(tmp_path / "shared"):
                before = count
                time.sleep(0.0005)
                count = before + 1

    threads = [threading.Thread(target=increment) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 60


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_of_the_file_system_the_work_is_done_without_them(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    with lock_folder(tmp_path):
        pass
    monkeypatch.setattr("fcntl.flock", flock)
    with lock_folder(tmp_path), try_lock(tmp_path, "a") as first, try_lock(tmp_path, "a") as second:
        assert first and second
        assert is_folder_locked(tmp_path)  # unknown counts as locked
    with wait_for_folder_lock(tmp_path), wait_for_folder_lock(tmp_path):
        pass


def test_a_lock_file_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error, lock_folder(tmp_path / "missing"):
        pass
    assert error.value.location == str(tmp_path / "missing" / "lock")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as error, wait_for_folder_lock(tmp_path / "file"):
        pass
    assert error.value.location == str(tmp_path / "file" / "changing.lock")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_file_atomically(path, "old")
    with pytest.raises(ValueError, match="stop"), replace_file_atomically(path) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    stale = path.with_name(".file.999999999.partial")
    stale.write_text("half")
    write_file_atomically(path, b"new")
    assert path.read_bytes() == b"new" and not stale.exists()


def test_a_full_disk_is_recognized_in_the_message_of_any_library(tmp_path: Path) -> None:
    error = as_disk_full_error(RuntimeError(f"IO: {os.strerror(errno.ENOSPC)} (x)"), tmp_path)
    assert error is not None and error.location == str(tmp_path)
    error = as_disk_full_error(OSError(errno.EDQUOT, "", "/a/file"), tmp_path)
    assert error is not None and error.location == "/a/file"
    assert as_disk_full_error(OSError(errno.ENOENT, ""), tmp_path) is None
    assert as_disk_full_error(error, tmp_path) is None


def test_attrition_and_label_space_have_a_stable_json() -> None:
    attrition = Attrition("read", 10, Counter({"empty": 2}))
    attrition.drop_rows("damaged", location="notes.csv, row 3")
    document = ATTRITION_ADAPTER.dump_python(attrition, mode="json")
    assert list(document.items()) == [
        ("step", "read"),
        ("entered", 10),
        ("dropped", {"damaged": 1, "empty": 2}),
        ("kept", 7),
        ("places", {"damaged": ["notes.csv, row 3"]}),
    ]
    assert ATTRITION_ADAPTER.validate_python(document) == attrition
    for key in ("step", "entered", "dropped"):
        with pytest.raises(pydantic.ValidationError):
            ATTRITION_ADAPTER.validate_python({k: v for k, v in document.items() if k != key})
    label_space = LabelSpace("mortality", "binary", ("no", "yes"), ("", ""), (7, 3), "auroc")
    document = LABEL_SPACE_ADAPTER.dump_python(label_space, mode="json")
    assert document["train_counts"] == [7, 3]
    assert LABEL_SPACE_ADAPTER.validate_python(document) == label_space
    with pytest.raises(pydantic.ValidationError):
        LABEL_SPACE_ADAPTER.validate_python({**document, "color": "red"})
