"""Searches of many hosts: against a real PostgreSQL, a temporary cluster of its own, where Debian's
packages are installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clinpeft import search
from clinpeft.core.errors import StorageError
from tests.conftest import ROOT
from tests.search.conftest import Maker, asked, bench

CONNECT = (
    socket.socket.connect
)  # as it is before the suite closes it: these tests speak to a server of their own, over a file
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
USER = (
    "postgres" if hasattr(os, "geteuid") and os.geteuid() == 0 else None
)  # PostgreSQL refuses to run as root


class Cluster:
    """A PostgreSQL in a folder, which listens on a socket in it and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, PROGRAMS[-1].parent
        self._call("initdb", "-D", "data", "-U", "clinpeft", "-A", "trust", "--no-sync")
        self.start()
        self._call("createdb", "-h", str(folder), "-U", "clinpeft", "clinpeft")

    @property
    def address(self) -> str:
        return f"postgresql://clinpeft:secret@/clinpeft?unix_sock={self.folder}/.s.PGSQL.5432"

    def start(self) -> None:
        self._call(
            "pg_ctl",
            "-D",
            "data",
            "-l",
            "log",
            "-w",
            "-o",
            f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -F",
            "start",
        )

    def stop(self) -> None:
        self._call("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder,
            user=USER,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("pg8000", reason="the extra postgresql is not installed")
    if not PROGRAMS:
        pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="clinpeft-pg-"))  # the path of a socket may not be long
    if USER is not None:
        try:
            shutil.chown(folder, USER)
        except LookupError:
            pytest.skip(f"PostgreSQL refuses to run as root, and there is no user {USER}")
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


@pytest.fixture
def address(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(socket.socket, "connect", CONNECT)
    return cluster.address


@pytest.mark.usefixtures("_surface")
def test_two_hosts_share_the_trials_and_none_is_made_twice(tmp_path: Path, address: str) -> None:
    spec = asked(trials=6, storage=address, seed=1)
    second = Maker()

    def meanwhile(recipe: Any) -> None:
        if not second.made:
            with bench(tmp_path / "there", spec, second, "two") as other:
                search.run_search_worker(other)

    first = Maker(meanwhile)
    with bench(tmp_path / "here", spec, first, "two") as worker:
        search.run_search_worker(worker)
        assert [trial.state.name for trial in worker.study.trials] == ["COMPLETE"] * 6
    assert len(first.made) == 1 and len(second.made) == 5 and not set(first.made) & set(second.made)


@pytest.mark.usefixtures("_surface")
def test_a_server_that_goes_away_loses_nothing(
    tmp_path: Path, address: str, cluster: Cluster
) -> None:
    spec = asked(trials=4, storage=address, seed=2)

    def unplug(recipe: Any) -> None:
        if len(make.made) == 1:
            cluster.stop()

    make = Maker(unplug)
    with (
        pytest.raises(StorageError, match=r"where: postgresql") as raised,
        bench(tmp_path, spec, make, "gone") as worker,
    ):
        search.run_search_worker(worker)
    assert "secret" not in str(raised.value) and "***" in raised.value.location
    with pytest.raises(StorageError), bench(tmp_path, spec, make, "gone"):
        pass
    cluster.start()
    make.before = lambda recipe: None
    with bench(tmp_path, spec, make, "gone") as worker:
        search.run_search_worker(worker)
        assert [trial.state.name for trial in worker.study.trials] == ["COMPLETE"] * 4
    assert len(make.made) == 4  # the run that was made while the server was away was there


@pytest.mark.usefixtures("_surface")
def test_a_killed_worker_lets_go_of_its_trial_at_once(tmp_path: Path, address: str) -> None:
    """The other process takes the first trial and never ends it."""
    script = textwrap.dedent(f"""
        import contextlib, sys, time
        from pathlib import Path
        from clinpeft import search
        from tests.search.conftest import Maker, asked, bench
        spec = asked(trials=3, storage={address!r}, seed=3)
        with bench(Path({str(tmp_path / "there")!r}), spec, Maker(), "killed") as worker:
            with contextlib.ExitStack() as held:
                with worker.trial_locks.lock_search():
                    search.claim_trials(worker, held, 1)
                print("taken", flush=True)
                time.sleep(600)
    """)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "taken\n"
        make = Maker()
        with bench(
            tmp_path / "here", asked(trials=3, storage=address, seed=3), make, "killed"
        ) as worker:
            assert worker.trial_locks.is_trial_locked(0)
            search.run_search_worker(worker)
            assert [trial.state.name for trial in worker.study.trials] == [
                "RUNNING",
                "COMPLETE",
                "COMPLETE",
            ]
            other.send_signal(signal.SIGKILL)
            other.wait()
            for _ in range(100):
                search.run_search_worker(worker)
                if worker.study.trials[0].state.name == "COMPLETE":
                    break
            assert [trial.state.name for trial in worker.study.trials] == ["COMPLETE"] * 3
    assert len(make.made) == 3


@pytest.mark.usefixtures("_surface")
def test_a_server_that_is_not_there_is_a_clear_error_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pg8000")
    monkeypatch.setattr(socket.socket, "connect", CONNECT)
    address = f"postgresql://clinpeft:secret@/clinpeft?unix_sock={tmp_path}/nobody"
    with pytest.raises(StorageError) as raised, bench(tmp_path, asked(storage=address), Maker()):
        pass
    assert "secret" not in str(raised.value) and raised.value.location.startswith("postgresql")
