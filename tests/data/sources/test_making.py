"""What is made appears whole; what a killed process left of its own goes, and what a living one works in stays."""

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
from clinpeft.sources.synthetic.making import making
with making(Path(sys.argv[1])) as folder:
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
    (left,) = tmp_path.glob(".thing-*")
    assert (left / "half").is_file()
    with create_temporary_folder(tmp_path / "another thing"):
        assert left.exists(), "of something else"
    with create_temporary_folder(tmp_path / "thing") as folder:
        assert not left.exists()
        assert folder.exists()


def test_what_another_works_in_stays(tmp_path: Path) -> None:
    held = tmp_path / ".thing-held"
    held.mkdir()
    descriptor = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with create_temporary_folder(tmp_path / "thing"):
            assert held.exists()
    finally:
        os.close(descriptor)
    with create_temporary_folder(tmp_path / "thing"):
        assert not held.exists()
