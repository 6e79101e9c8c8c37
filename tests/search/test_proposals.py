"""What is tried next, on a surface that costs nothing."""

from __future__ import annotations

import contextlib
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from clinpeft import search
from clinpeft.search import worker as working
from tests.search.conftest import Maker, asked, bench, settings_of


def valley(run: Any, metric: str) -> float:
    """Best at a learning rate of 2e-3 and a rank of 8."""
    rate, rank = settings_of(run.recipe)
    return -((math.log10(rate) + 2.7) ** 2) - (math.log2(rank) - 3) ** 2 / 4


def best(folder: Path, sampler: str, seed: int) -> float:
    with bench(
        folder / f"{sampler}-{seed}", asked(sampler=sampler, seed=seed, trials=12), Maker()
    ) as worker:
        search.run_search_worker(worker)
        return float(worker.study.best_value)


def test_the_gaussian_process_beats_the_median_best_of_random_search_over_five_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "read_objective_value", valley)
    gp, random = (
        [best(tmp_path, sampler, seed) for seed in range(5)] for sampler in ("gp", "random")
    )
    assert statistics.median(gp) > statistics.median(random)
    assert statistics.median(gp) > -0.05


@pytest.mark.usefixtures("_surface")
@pytest.mark.parametrize("sampler", search.OPTUNA_SAMPLERS)
def test_every_sampler_proposes_within_the_space_and_again_the_same(
    tmp_path: Path, sampler: str
) -> None:
    proposed = []
    for name in ("once", "again"):
        make = Maker()
        with bench(tmp_path / name, asked(sampler=sampler, trials=4, startup=2), make) as worker:
            search.run_search_worker(worker)
            proposed.append([trial.params for trial in worker.study.trials])
        assert all(1e-5 <= rate <= 1e-1 and rank in (2, 4, 8, 16) for rate, rank in make.made)
    assert proposed[0] == proposed[1]


@pytest.mark.usefixtures("_surface")
def test_several_are_asked_for_at_once_and_differ(tmp_path: Path) -> None:
    with bench(tmp_path, asked(sampler="gp", trials=7, startup=2), Maker()) as worker:
        with contextlib.ExitStack() as held, worker.trial_locks.lock_search():
            first = search.claim_trials(worker, held, 4)
            assert len({tuple(one.settings.items()) for one in first}) == 4
            assert all(worker.trial_locks.is_trial_locked(one.number) for one in first)
        search.run_search_worker(worker)
        with contextlib.ExitStack() as held, worker.trial_locks.lock_search():
            assert search.claim_trials(worker, held, 4) == []
        assert len(worker.study.trials) == 7
