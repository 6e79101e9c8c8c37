"""Temporary folders: removed at the end, and after a killed process by the next one."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clinpeft.data.synthetic.files import create_temporary_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from clinpeft.data.synthetic.files import create_temporary_folder
with create_temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_is_gone_when_its_block_has_ended(tmp_path: Path) -> None:
    with create_temporary_folder(tmp_path / "thing") as folder:
        (folder / "part").write_text("made")
        (folder / "part").replace(tmp_path / "thing")
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
    with (
        pytest.raises(ValueError, match="no"),
        create_temporary_folder(tmp_path / "other") as folder,
    ):
        raise ValueError("no")
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "thing"], check=False)
    (leftover,) = tmp_path.glob(".thing-*")
    assert (leftover / "half").is_file()
    with create_temporary_folder(tmp_path / "another thing"):
        assert leftover.exists(), "of something else"
    with create_temporary_folder(tmp_path / "thing") as folder:
        assert not leftover.exists()
        assert folder.exists()


def test_what_another_works_in_stays(tmp_path: Path) -> None:
    locked = tmp_path / ".thing-locked"
    locked.mkdir()
    descriptor = os.open(locked, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with create_temporary_folder(tmp_path / "thing"):
            assert locked.exists()
    finally:
        os.close(descriptor)
    with create_temporary_folder(tmp_path / "thing"):
        assert not locked.exists()
