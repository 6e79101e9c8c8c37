"""A real worker of a study that is killed in the middle: the study goes on, nothing is lost and
nothing is made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from clinpeft import runs
from clinpeft.runs.studies import find_study
from tests.conftest import ROOT
from tests.test_classify import clinpeft

SMOKE = f"""
kind = "classify"
name = "smoke"
[source]
name = "synthetic"
subjects = 60
[task]
name = "mortality"
[base]
path = "{ROOT / "assets" / "small-base"}"
max_tokens = 64
[[adapters]]
method = "lora"
rank = 4
[training]
learning_rate = 3e-3
max_steps = 12
batch_notes = 8
micro_batch_tokens = 1024
evaluations = 1
checkpoints = 12
[evaluation]
resamples = 100
subgroups = false
baselines = false
"""
GRID = """
[grid]
"adapters.0.rank" = [1, 2, 4]
[[compare]]
first = { "adapters.0.rank" = 1 }
second = { "adapters.0.rank" = 4 }
"""
PATIENCE_SECONDS = 600


def started(*words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "-m", "clinpeft", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def awaited(
    seen: Callable[[], tuple[str, int] | None], *processes: subprocess.Popen[str]
) -> tuple[str, int]:
    """What is looked for, once it is seen; a process that has ended before is the failure that it
    tells of."""
    begun = time.monotonic()
    while (found := seen()) is None:
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[1][-2000:]
        assert time.monotonic() - begun < PATIENCE_SECONDS, "it was not seen in time"
        time.sleep(0.05)
    return found


def in_the_middle(home: Path, pid: int | None = None) -> tuple[str, int] | None:
    """A run of which some steps are done and kept and others are not, and the process that makes
    it."""
    for lock in home.glob("*/lock"):
        holder = lock.read_text(encoding="ascii")
        log = lock.parent / "log.jsonl"
        steps = len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0
        if (
            holder.isdigit()
            and (pid is None or int(holder) == pid)
            and 3 <= steps < 10
            and any(lock.parent.glob("checkpoints/*"))
        ):
            return lock.parent.name, int(holder)
    return None


def steps_of(home: Path, run: str) -> Counter[int]:
    events = [
        json.loads(line)
        for line in (home / run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return Counter(event["step"] for event in events if event["event"] == "step")


def test_a_study_loses_no_cell_when_one_of_its_two_processes_is_killed(tmp_path: Path) -> None:
    recipe, home = tmp_path / "smoke.toml", tmp_path / "runs"
    recipe.write_text(SMOKE + GRID, encoding="utf-8")
    one, other = (
        started("study", "run", recipe, "--home", home),
        started("study", "run", recipe, "--home", home),
    )
    awaited(lambda: in_the_middle(home, one.pid), one, other)
    one.kill()
    one.communicate()
    _, err = other.communicate(timeout=PATIENCE_SECONDS)
    assert other.returncode == 0, err[-2000:]
    again = clinpeft("study", "resume", recipe, "--home", home)
    assert again.code == 0, again.err
    study = find_study(home, "smoke")
    assert study.is_complete and len({cell.run_id for cell in study.cells}) == 3
    for run in runs.find_all_runs(home).runs:
        assert run.state == "finished" and steps_of(home, run.id) == Counter(range(1, 13))
    assert len(runs.find_all_runs(home).runs) == 3
    ((pair,),) = (comparison.pairs for comparison in study.compare)
    assert {row["split"] for row in pair.results} >= {"held_out"} and "auroc_difference" in {
        row["name"] for row in pair.results
    }
