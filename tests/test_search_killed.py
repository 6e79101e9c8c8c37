"""A real worker of a search that is killed in the middle: the search goes on, no trial is lost and
none is made twice."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

from pydantic import TypeAdapter

from clinpeft.runs import find_all_runs
from clinpeft.runs.searches import SEARCH_FILE, SearchRecord
from tests.test_classify import clinpeft
from tests.test_study_killed import (
    PATIENCE_SECONDS,
    SMOKE,
    awaited,
    in_the_middle,
    started,
    steps_of,
)

SEARCH = """
[search]
space = { "training.learning_rate" = { low = 1e-4, high = 1e-2, log = true } }
metric = "auroc"
direction = "maximize"
sampler = "random"
trials = 3
"""


def test_a_search_loses_no_trial_when_one_of_its_two_workers_is_killed(tmp_path: Path) -> None:
    recipe, home = tmp_path / "smoke.toml", tmp_path / "runs"
    recipe.write_text(SMOKE + SEARCH, encoding="utf-8")
    both = started("search", recipe, "--home", home, "--launch", "local:2")
    run, victim = awaited(lambda: in_the_middle(home), both)
    os.kill(victim, signal.SIGKILL)
    out, err = both.communicate(timeout=PATIENCE_SECONDS)
    assert both.returncode == 0, err[-2000:]
    (folder,) = (home / "searches").iterdir()
    document = json.loads((folder / SEARCH_FILE).read_text(encoding="utf-8"))
    known = TypeAdapter(SearchRecord).validate_python({**document, "folder": folder})
    assert (
        known.is_complete
        and [trial.state for trial in known.trials] == ["finished"] * 3
        and not any(trial.repeats for trial in known.trials)
    )
    runs = find_all_runs(home).runs
    assert sorted(one.id for one in runs) == sorted(
        str(trial.run_id) for trial in known.trials
    ) and run in {one.id for one in runs}
    for one in runs:
        assert one.state == "finished" and steps_of(home, one.id) == Counter(
            range(1, 13)
        )  # gone on from a checkpoint, not begun again
    assert {row["split"] for row in known.held_out} == {"held_out"} and "looked at once" in out

    before = {path: path.stat().st_mtime_ns for path in home.glob("*/run.json")}
    again = clinpeft("search", recipe, "--home", home)
    assert (
        again.code == 0
        and {path: path.stat().st_mtime_ns for path in home.glob("*/run.json")} == before
    )
    winner = clinpeft("classify", folder / "winner.toml", "--home", home)
    assert (
        winner.code == 0
        and known.best_trial is not None
        and str(known.best_trial.run_id) in winner.out
        and len(find_all_runs(home).runs) == 3
    )
