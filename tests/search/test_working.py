"""A worker loses no trial and makes none twice, whatever happens to it or to its storage."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clinpeft import search
from clinpeft.core.errors import (
    ClinpeftError,
    InterruptedRunError,
    RefusedError,
    SourceError,
    StorageError,
    TrainingError,
    UsageError,
)
from clinpeft.core.files import is_folder_locked
from clinpeft.core.locks import try_lock
from clinpeft.recipe import RecipePlan, load_recipe_plan
from clinpeft.runs.searches import SearchRecord
from clinpeft.search import outcome
from clinpeft.search import worker as working
from tests.search.conftest import Maker, asked, bench, settings_of, toy

FEW: dict[str, Any] = {"adapters.0.rank": [2, 4]}


def found(worker: search.WorkerConfig, folder: Path) -> SearchRecord:
    plain: Any = SimpleNamespace(
        search=worker.spec,
        search_id="0",
        name="toy",
        kind="classify",
        path=Path("toy.toml"),
        file_sha256="",
    )
    asked_: RecipePlan = plain
    return search.build_search_record(worker.study, worker.space, asked_, folder, "now")


@pytest.mark.usefixtures("_surface")
def test_an_equal_proposal_is_counted_and_not_trained_again(tmp_path: Path) -> None:
    make = Maker()
    with bench(tmp_path, asked(space=FEW, trials=6), make) as worker:
        search.run_search_worker(worker)
        known = found(worker, tmp_path)
    assert len(known.trials) == 6 and len(make.made) == 2
    assert sum(trial.repeats is not None for trial in known.trials) == 4
    for trial in known.trials:
        if trial.repeats is not None:
            assert (trial.newly_trained, trial.run_id, trial.value) == (
                False,
                known.trials[trial.repeats].run_id,
                known.trials[trial.repeats].value,
            )
    assert (
        known.best_trial is not None
        and known.best_trial.settings == {"adapters.0.rank": 4}
        and known.best_trial.repeats is None
    )


@pytest.mark.usefixtures("_surface")
def test_a_trial_that_fails_by_its_settings_is_recorded_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    def refuse(recipe: Any) -> None:
        if settings_of(recipe)[1] == 4:
            raise TrainingError(
                "the loss is NaN", location="step 3", hint="a smaller learning rate"
            )

    with bench(tmp_path, asked(space=FEW, trials=5), Maker(refuse)) as worker:
        search.run_search_worker(worker)
        known = found(worker, tmp_path)
    assert {
        (trial.settings["adapters.0.rank"], trial.state, trial.reason) for trial in known.trials
    } == {
        (2, "finished", ""),
        (4, "failed", "the loss is NaN"),
    }
    assert known.best_trial is not None and known.best_trial.settings == {"adapters.0.rank": 2}


@pytest.mark.usefixtures("_surface")
@pytest.mark.parametrize("error", [SourceError, StorageError, InterruptedRunError, KeyError])
def test_what_no_settings_have_caused_stops_the_worker_and_its_trial_is_taken_up_again(
    tmp_path: Path, error: type[Exception]
) -> None:
    def gone(recipe: Any) -> None:
        if len(make.made) == 2:
            if issubclass(error, ClinpeftError):
                raise error("gone", location="there", hint="bring it back")
            raise KeyError("x")

    make = Maker(gone)
    with bench(tmp_path, asked(trials=4), make) as worker, pytest.raises(error):
        search.run_search_worker(worker)
    make.before = lambda recipe: None
    with bench(tmp_path, asked(trials=4), make) as worker:
        assert [trial.state for trial in found(worker, tmp_path).trials] == [
            "finished",
            "finished",
            "open",
        ]
        opened = worker.space.to_settings(worker.study.trials[2].params)
        search.run_search_worker(worker)
        known = found(worker, tmp_path)
    assert [trial.number for trial in known.trials] == [0, 1, 2, 3] and known.is_complete
    assert known.trials[2].settings == opened and len(make.made) == 4


@pytest.mark.usefixtures("_surface")
def test_two_workers_share_the_trials_and_none_is_made_twice(tmp_path: Path) -> None:
    second = Maker()

    def meanwhile(recipe: Any) -> None:
        if not second.made:
            with bench(tmp_path, asked(trials=6), second) as other:
                search.run_search_worker(other)
                assert len(other.study.trials) == 6

    first = Maker(meanwhile)
    with bench(tmp_path, asked(trials=6), first) as worker:
        search.run_search_worker(worker)
        known = found(worker, tmp_path)
    assert known.is_complete and len(known.trials) == 6
    assert len(first.made) == 1 and len(second.made) == 5 and not set(first.made) & set(second.made)


@pytest.mark.usefixtures("_surface")
def test_an_equal_proposal_waits_for_the_worker_that_has_the_first(tmp_path: Path) -> None:
    """Of two choices and two workers one is busy with each; the other four proposals are told when
    those are."""
    second = Maker()

    def meanwhile(recipe: Any) -> None:
        if not second.made:
            with bench(tmp_path, asked(space=FEW, trials=6), second) as other:
                search.run_search_worker(other)

    first = Maker(meanwhile)
    with bench(tmp_path, asked(space=FEW, trials=6), first) as worker:
        search.run_search_worker(worker)
        known = found(worker, tmp_path)
    assert known.is_complete and len(known.trials) == 6 and len(first.made) == len(second.made) == 1


@pytest.mark.usefixtures("_surface")
def test_a_proposal_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """A process that dies between the keys of a proposal leaves a trial without values: it is
    none."""
    with bench(tmp_path, asked(trials=3), Maker()) as worker:
        worker.study.ask()
        search.run_search_worker(worker)
        known = found(worker, tmp_path)
    assert (
        known.is_complete
        and len(known.trials) == 3
        and all(len(trial.settings) == 2 for trial in known.trials)
    )


@pytest.mark.usefixtures("_surface")
def test_a_journal_line_that_a_process_died_in_is_taken_away(tmp_path: Path) -> None:
    with bench(tmp_path, asked(trials=2), Maker()) as worker:
        search.run_search_worker(worker)
    journal = tmp_path / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    with bench(tmp_path, asked(trials=4), Maker()) as worker:
        search.run_search_worker(worker)
    with bench(tmp_path, asked(trials=4), Maker()) as worker:
        assert found(worker, tmp_path).is_complete
    assert b"worker{" not in journal.read_bytes()


@pytest.mark.usefixtures("_surface")
def test_a_run_that_another_process_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = contextlib.ExitStack()
    held.enter_context(try_lock(tmp_path, "elsewhere"))
    monkeypatch.setattr(working, "RETRY_PAUSE_SECONDS", 0.0)
    looked: list[Path] = []

    def elsewhere(recipe: Any) -> None:
        if not looked:
            looked.append(tmp_path)
            raise RefusedError(
                "this run is locked", location=str(tmp_path / "claims" / "elsewhere"), hint="wait"
            )

    def still(error: RefusedError) -> bool:
        looked.append(Path(error.location))
        if len(looked) > 3:
            held.close()
        return is_folder_locked(Path(error.location))

    monkeypatch.setattr(working, "is_locked_elsewhere", still)
    make = Maker(elsewhere)
    with bench(tmp_path, asked(trials=1), make) as worker:
        search.run_search_worker(worker)
        assert found(worker, tmp_path).is_complete
    assert len(looked) > 3 and len(make.made) == 1


def test_a_metric_that_no_run_has_stops_at_the_first_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(run: Any, metric: str) -> float:
        raise UsageError(
            f"run {run.id} has no metric {metric!r}",
            location="search.metric",
            hint="did you mean 'auroc'?",
        )

    monkeypatch.setattr(working, "read_objective_value", unknown)
    make = Maker()
    with (
        bench(tmp_path, asked(metric="aurok"), make) as worker,
        pytest.raises(UsageError, match="'auroc'"),
    ):
        search.run_search_worker(worker)
    assert len(make.made) == 1


def test_a_journal_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        pytest.raises(StorageError, match="where: journal"),
        bench(tmp_path / "file", asked(), Maker()),
    ):
        pass


@pytest.mark.usefixtures("_surface")
def test_more_trials_later_go_on_with_the_same_search_and_the_winner_runs_again(
    tmp_path: Path,
) -> None:
    make = Maker()
    for trials in (2, 5):
        with bench(tmp_path, asked(trials=trials), make) as worker:
            search.run_search_worker(worker)
            known = found(worker, tmp_path)
    assert len(make.made) == 5 and known.is_complete
    path = search.write_winner_recipe(known, toy())
    assert path is not None and known.best_trial is not None
    (cell,) = load_recipe_plan(path).cells
    assert settings_of(cell.recipe) == tuple(known.best_trial.settings.values())


@pytest.mark.usefixtures("_surface")
def test_what_mattered_is_told_where_there_is_something_to_tell(tmp_path: Path) -> None:
    with bench(tmp_path, asked(trials=8), Maker()) as worker:
        search.run_search_worker(worker)
        known = found(worker, tmp_path)
        few = outcome._compute_importance(worker.study, worker.study.trials[:2], 1)
    assert (
        abs(sum(known.importance.values()) - 1) < 1e-9 and "functional ANOVA" in known.importance_by
    )
    assert (
        max(known.importance, key=lambda key: known.importance[key]) == "adapters.0.rank"
    )  # the value is the rank
    assert few == ({}, "unknown: 2 trials have a value, and shares of their variance need 4")


@pytest.mark.usefixtures("_surface")
def test_trials_that_can_be_trained_together_are_taken_and_made_at_once(tmp_path: Path) -> None:
    make = Maker()
    passes: list[int] = []

    def together(recipes: Sequence[Any]) -> list[Any]:
        passes.append(len(recipes))
        return [make(recipe) for recipe in recipes]

    with bench(tmp_path, asked(trials=6), lambda _: pytest.fail("none is made alone")) as worker:
        search.run_search_worker(
            dataclasses.replace(worker, concurrent_trials=3, run_recipes_jointly=together)
        )
        known = found(worker, tmp_path)
    assert passes == [3, 3] and len(make.made) == 6
    assert len(known.trials) == 6 and all(
        trial.state == "finished" and trial.newly_trained for trial in known.trials
    )


@pytest.mark.usefixtures("_surface")
def test_where_one_pass_is_not_possible_or_fails_trials_are_made_alone(tmp_path: Path) -> None:
    def broken(_: Any) -> None:
        raise TrainingError("one of them spoils it", location="adapters", hint="leave it out")

    for at, together in enumerate([lambda _: None, broken]):
        make = Maker()
        with bench(tmp_path / str(at), asked(trials=4), make) as worker:
            search.run_search_worker(
                dataclasses.replace(worker, concurrent_trials=4, run_recipes_jointly=together)
            )
            known = found(worker, tmp_path / str(at))
        assert len(make.made) == 4 and all(trial.state == "finished" for trial in known.trials)


@pytest.mark.usefixtures("_surface")
def test_one_of_several_that_fails_is_one_failed_trial(tmp_path: Path) -> None:
    make = Maker()

    def together(recipes: Sequence[Any]) -> list[Any]:
        return [
            TrainingError("the loss is NaN", location="step 3", hint="a smaller rate"),
            *map(make, recipes[1:]),
        ]

    with bench(tmp_path, asked(trials=3), make) as worker:
        search.run_search_worker(
            dataclasses.replace(worker, concurrent_trials=3, run_recipes_jointly=together)
        )
        known = found(worker, tmp_path)
    assert sorted((trial.state, trial.reason) for trial in known.trials) == [
        ("failed", "the loss is NaN"),
        ("finished", ""),
        ("finished", ""),
    ]
