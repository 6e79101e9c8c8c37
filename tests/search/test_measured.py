"""A trial is judged by its tuning split; what was held out is looked at once, for the winner."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from clinpeft import runs, search
from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.recipe import apply_recipe_settings
from clinpeft.runs import Run, RunRecord
from clinpeft.runs.searches import SearchRecord
from tests.search.conftest import asked, bench, toy

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(
    split: str, value: float | None, name: str = "auroc", group: str = "model"
) -> dict[str, Any]:
    plain = {
        "name": name,
        "value": value,
        "low": None,
        "high": None,
        "level": None,
        "n": 10,
        "n_subjects": 10,
        "n_events": 5,
    }
    return plain | {"split": split, "group": group, "definition": "", "task": "mortality"}


def finished(home: Path, rank: int, rows: list[dict[str, Any]]) -> Run:
    recipe = apply_recipe_settings(toy(), {"adapters.0.rank": rank}, "test")
    record = RunRecord(id=f"{rank:012x}", kind="classify", created=NOW, started=NOW)
    with runs.open_run_folder(home, recipe, record) as run:
        return runs.finish_run(
            run,
            results=pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA),
            attrition=(),
            finished=NOW,
            counts={"best_step": 2},
        )


def test_the_winner_is_the_best_on_the_tuning_split_and_the_held_out_rows_of_no_other_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out split says the opposite, and the order of the rows is against us."""
    read: list[str] = []

    def make(recipe: Any) -> tuple[Run, bool]:
        rank = recipe.adapters[0].rank
        rows = [
            row("held_out", 1 / rank),
            row("tuning", 9.0, group="TF-IDF"),
            row("tuning", rank / 100),
            row("tuning", 5.0, name="auprc"),
        ]
        return finished(tmp_path / "home", rank, rows), True

    whole = search.outcome.add_held_out_results

    def looked(known: SearchRecord, run: Run) -> SearchRecord:
        read.append(run.id)
        return whole(known, run)

    monkeypatch.setattr(search.outcome, "add_held_out_results", looked)
    with bench(
        tmp_path / "search", asked(space={"adapters.0.rank": [2, 4, 8]}, trials=8), make
    ) as worker:
        search.run_search_worker(worker)
        plain: Any = SimpleNamespace(
            search=worker.spec,
            search_id="0",
            name="toy",
            kind="classify",
            path=Path("toy.toml"),
            file_sha256="",
        )
        known = search.build_search_record(worker.study, worker.space, plain, tmp_path, "now")
    assert (
        known.best_trial is not None
        and known.best_trial.settings == {"adapters.0.rank": 8}
        and known.best_trial.value == 0.08
    )
    assert known.held_out == () and not read
    winner = str(known.best_trial.run_id)
    known = search.outcome.add_held_out_results(known, runs.read_run(tmp_path / "home" / winner))
    assert [held["value"] for held in known.held_out] == [1 / 8] and read == [winner]


def test_held_out_values_could_be_anything(tmp_path: Path) -> None:
    one = finished(tmp_path, 2, [row("tuning", 0.7), row("held_out", 0.1)])
    other = finished(tmp_path, 4, [row("tuning", 0.7), row("held_out", 0.9)])
    assert (
        search.read_objective_value(one, "auroc")
        == search.read_objective_value(other, "auroc")
        == 0.7
    )


def test_a_metric_that_is_measured_on_the_held_out_split_alone_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path, 2, [row("held_out", 0.9, name="separation"), row("tuning", 0.7)])
    with pytest.raises(UsageError, match=r"'separation'.*\n.*where: search\.metric"):
        search.read_objective_value(run, "separation")


def test_a_wrong_metric_gets_the_nearest_right_one(tmp_path: Path) -> None:
    run = finished(tmp_path, 2, [row("tuning", 0.7)])
    with pytest.raises(UsageError, match="'auroc'"):
        search.read_objective_value(run, "aurok")


def test_a_metric_that_is_not_known_is_none_and_never_zero(tmp_path: Path) -> None:
    assert (
        search.read_objective_value(finished(tmp_path, 2, [row("tuning", None)]), "auroc") is None
    )


def test_what_training_measured_is_taken_at_the_step_whose_weights_were_kept(
    tmp_path: Path,
) -> None:
    run = finished(tmp_path, 2, [row("held_out", 0.9)])
    events = [
        {"event": "step", "step": step, "tuning_accuracy": value}
        for step, value in ((1, 0.2), (2, 0.6), (3, 0.4))
    ]
    (run.folder / "log.jsonl").write_text(
        "\n".join(map(json.dumps, events)) + '\n{"event": "st', encoding="utf-8"
    )
    assert search.read_objective_value(run, "tuning_accuracy") == 0.6
