"""A run folder: whole or not there, one process at a time, never a word of a note."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydantic
import pytest

from clinpeft import runs
from clinpeft.core import schemas
from clinpeft.core.errors import (
    InputError,
    InterruptedRunError,
    RefusedError,
    StorageError,
    TrainingError,
)
from clinpeft.recipe import validate_recipe
from clinpeft.runs.record import RENAMED_FIELDS, RUN_RECORD_FORMAT, RunFailure, RunRecord
from tests.runs.conftest import (
    NIGHT,
    finished_run,
    likelihoods_of,
    make_recipe,
    opening,
    result,
    results_of,
)

ID = "0123456789ab"


def identity(**changes: Any) -> str:
    return runs.compute_run_id(make_recipe(**changes), "source", "base", "0.1.0")


def test_the_same_question_has_the_same_id_of_twelve_hexadecimal_characters() -> None:
    assert identity() == identity()
    assert len(identity()) == 12
    assert set(identity()) <= set("0123456789abcdef")


def test_an_id_does_not_change_between_versions_without_a_decision() -> None:
    """The id as it was first computed for this recipe: a new field with a default changes it, and
    then this test says so."""
    canonical = make_recipe().model_dump(
        mode="json", exclude={"name": True, "source": {"path"}, "base": {"path"}}
    )
    assert set(canonical) == {
        "kind",
        "seed",
        "source",
        "corpus",
        "split",
        "base",
        "adapters",
        "training",
        "evaluation",
        "privacy",
    }
    assert "path" not in canonical["source"]
    assert "path" not in canonical["base"]


@pytest.mark.parametrize(
    "same",
    [
        {"name": "another name"},
        {"source": {"name": "synthetic", "path": "/elsewhere"}},
        {"base": {"path": "/mnt/models/toy-llama"}},
        {"adapters": [{"method": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0}]},
    ],
)
def test_names_paths_and_spelled_out_defaults_do_not_change_the_id(same: dict[str, Any]) -> None:
    assert identity(**same) == identity()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"adapters": [{"method": "lora", "rank": 8, "alpha": 32}]},
        {"source": {"name": "synthetic", "path": "/data/here", "subjects": 7}},
        {"training": {"learning_rate": 1e-4}},
        {"evaluation": {"resamples": 500}},
    ],
)
def test_every_option_changes_the_id(other: dict[str, Any]) -> None:
    assert identity(**other) != identity()


def test_source_base_and_code_each_change_the_id() -> None:
    ids = {
        runs.compute_run_id(make_recipe(), *facts)
        for facts in (
            ("s", "b", "1"),
            ("t", "b", "1"),
            ("s", "c", "1"),
            ("s", "b", "2"),
            ("sb", "", "1"),
        )
    }
    assert len(ids) == 5


def test_an_opened_run_is_running_and_says_what_was_asked(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path / "runs", make_recipe(), opening()) as run:
        assert run.state == "running"
        assert runs.read_run(run.folder) == run
        assert (
            validate_recipe(tomllib.loads((run.folder / "recipe.toml").read_text()), "here")
            == make_recipe()
        )
        assert json.loads((run.folder / "run.json").read_text())["hashes"]["tokenizer"] == "t1"
        assert len(run.results) == len(run.attrition) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="modes are of POSIX")
def test_the_folder_of_a_run_is_for_its_owner_only(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700


def test_a_finished_run_gives_back_what_was_recorded(tmp_path: Path) -> None:
    made = finished_run(tmp_path)
    run = runs.find_run(tmp_path, ID)
    assert run == made
    assert run.state == "finished"
    assert run.record.finished == NIGHT
    assert run.results == results_of(result(14.0, group="base"), result(12.0, "train"), result(9.0))
    assert [step.as_json() for step in run.attrition] == [
        {"step": "corpus", "entered": 10, "dropped": {"exact duplicate": 3}, "kept": 7}
    ]
    assert runs.read_run_likelihoods(run, "base") == likelihoods_of()
    assert runs.read_run_likelihoods(run, "adapted")[
        "negative_log_likelihood"
    ].to_pylist() == pytest.approx([n * math.log(2) for n in (10, 20, 30)])
    assert len(runs.read_run_likelihoods(run, "unigram")) == 0


def test_metrics_are_a_list_with_value_interval_counts_split_and_definition(tmp_path: Path) -> None:
    rows = json.loads((finished_run(tmp_path).folder / "metrics.json").read_text())
    assert rows[2] == result(9.0)
    assert list(rows[2])[:6] == ["name", "value", "low", "high", "level", "n"]


def test_a_number_that_is_none_is_written_as_unknown_and_not_as_nan(tmp_path: Path) -> None:
    run = finished_run(tmp_path, rows=({**result(9.0), "value": math.nan},))
    assert (
        json.loads((run.folder / "metrics.json").read_text(), parse_constant=pytest.fail)[0][
            "value"
        ]
        is None
    )


def test_the_places_of_damage_survive_the_attrition(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        step = schemas.Attrition("read", entered_rows=2)
        step.drop_rows("unreadable row", 1, "notes.csv, row 7")
        done = runs.finish_run(
            run, results=results_of(), attrition=[step], likelihoods={}, finished=NIGHT
        )
    assert done.attrition == (step,)


def test_asking_for_a_finished_run_again_gives_the_first_untouched(tmp_path: Path) -> None:
    first = finished_run(tmp_path)
    before = (first.folder / "run.json").read_bytes()
    with runs.open_run_folder(tmp_path, make_recipe(), opening(started=NIGHT)) as again:
        assert again.record.state == "finished"
        assert again == first
    assert (first.folder / "run.json").read_bytes() == before


def test_a_failed_run_is_opened_again_and_keeps_when_it_was_created(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        runs.fail_run(
            run,
            TrainingError(
                "the loss is nan", location="step 7", hint="lower training.learning_rate"
            ),
            NIGHT,
        )
    with runs.open_run_folder(
        tmp_path, make_recipe(), opening(created=NIGHT, started=NIGHT)
    ) as again:
        assert (again.state, again.record.error) == ("running", None)
        assert again.record.created < again.record.started == NIGHT


def test_a_failure_is_recorded_with_its_three_parts(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        runs.fail_run(
            run,
            TrainingError(
                "the loss is nan", location="step 7", hint="lower training.learning_rate"
            ),
            NIGHT,
            tokens_seen=5,
        )
    found = runs.find_run(tmp_path, ID)
    expected = runs.RunFailure(
        kind="TrainingError",
        message="the loss is nan",
        location="step 7",
        hint="lower training.learning_rate",
    )
    assert (found.state, found.record.error, found.record.tokens_seen) == ("failed", expected, 5)


def test_an_error_from_outside_the_family_leaves_no_word_of_its_message(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        failed = runs.fail_run(run, ValueError("Mr Invented was admitted with chest pain"), NIGHT)
    assert failed.record.error is not None
    assert failed.record.error.kind == "ValueError"
    assert "Invented" not in "".join(
        path.read_text() for path in run.folder.iterdir() if path.is_file()
    )


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), InterruptedRunError("a signal", location="step 3", hint="run it again")],
)
def test_a_run_stopped_from_outside_is_interrupted(tmp_path: Path, error: BaseException) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        assert runs.fail_run(run, error, NIGHT).state == "interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_a_run_whose_process_died_is_interrupted_though_its_record_says_running(
    tmp_path: Path,
) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()):
        pass
    found = runs.find_run(tmp_path, ID)
    assert (found.record.state, found.state) == ("running", "interrupted")


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_a_second_process_on_the_same_run_is_refused_with_the_number_of_the_first(
    tmp_path: Path,
) -> None:
    program = (
        "import sys; from pathlib import Path; from clinpeft.core.errors import RefusedError; "
        "from clinpeft.core.files import lock_folder\n"
        "try:\n    with lock_folder(Path(sys.argv[1])): print('taken')\n"
        "except RefusedError as error: print(error.message)"
    )
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        second = subprocess.run(
            [sys.executable, "-c", program, str(run.folder)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"locked: process {os.getpid()} is working on it" in second.stdout
    third = subprocess.run(
        [sys.executable, "-c", program, str(run.folder)], capture_output=True, text=True, check=True
    )
    assert third.stdout == "taken\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_a_second_opening_is_refused_and_leaves_the_first_alone(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        with (
            pytest.raises(RefusedError, match="locked"),
            runs.open_run_folder(tmp_path, make_recipe(), opening(started=NIGHT)),
        ):
            pass
        assert runs.read_run(run.folder).record.started != NIGHT
        assert run.state == "running"


def test_a_record_takes_new_facts_and_refuses_unknown_ones(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        updated = runs.update_run_record(
            run, trained_parameters=8_388_608, notices=("the tuning split is empty",)
        )
        assert runs.read_run(run.folder).record.trained_parameters == 8_388_608
        with pytest.raises(pydantic.ValidationError, match="trained_parameter"):
            runs.update_run_record(updated, trained_parameter=1)
        assert runs.read_run(run.folder) == updated


def test_the_log_has_a_line_an_event(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        runs.append_log_event(run, "step", step=1, loss=2.5, phase="warm-up")
        runs.append_log_event(run, "step", step=2, loss=math.nan, phase=None)
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (run.folder / "log.jsonl").read_text().splitlines()
    ]
    assert lines == [
        {"event": "step", "step": 1, "loss": 2.5, "phase": "warm-up"},
        {"event": "step", "step": 2, "loss": "nan", "phase": None},
    ]


@pytest.mark.parametrize("sentence", ["Mr Invented has chest pain", "line\nbreak", "a" * 41, ""])
def test_the_log_takes_no_sentence_and_does_not_repeat_it(tmp_path: Path, sentence: str) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        with pytest.raises(ValueError, match="'phase'") as caught:
            runs.append_log_event(run, "step", phase=sentence)
        assert not sentence or sentence not in str(caught.value)
        assert not (run.folder / "log.jsonl").exists()


def test_a_line_torn_by_a_crash_does_not_swallow_the_next(tmp_path: Path) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        (run.folder / "log.jsonl").write_text('{"event": "step", "st')
        runs.append_log_event(run, "step", step=2)
    assert json.loads((run.folder / "log.jsonl").read_text().splitlines()[1]) == {
        "event": "step",
        "step": 2,
    }


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("location", ["os.replace", "os.fsync", "pathlib.Path.write_bytes"])
def test_a_full_disk_leaves_the_record_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
        monkeypatch.setattr(location, disk_full)
        with pytest.raises(StorageError, match=r"where: .*run\.json"):
            runs.update_run_record(run, tokens_seen=1)
        monkeypatch.undo()
        assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_a_disk_that_is_full_at_the_last_table_leaves_the_run_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", disk_full)
    with pytest.raises(StorageError, match=r"likelihoods\.parquet"):
        finished_run(tmp_path)
    run = runs.find_run(tmp_path, ID)
    assert run.state != "finished"
    assert not [
        path.name
        for path in run.folder.iterdir()
        if "partial" in path.name or path.name == "likelihoods.parquet"
    ]


def test_a_failure_on_a_full_disk_is_still_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        monkeypatch.setattr("os.replace", disk_full)
        failed = runs.fail_run(run, StorageError("full", location="here", hint="make room"), NIGHT)
        assert failed.state == "failed"


def test_a_full_disk_at_the_log_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runs.open_run_folder(tmp_path, make_recipe(), opening()) as run:
        monkeypatch.setattr("pathlib.Path.open", disk_full)
        with pytest.raises(StorageError, match=r"log\.jsonl"):
            runs.append_log_event(run, "step", step=1)


def test_a_home_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with (
        pytest.raises(StorageError),
        runs.open_run_folder(tmp_path / "runs", make_recipe(), opening()),
    ):
        pass


@pytest.mark.parametrize("damage", ["", "{", '{"id": 3}', '{"format": 2}', "\N{SNOWMAN}"])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    run = finished_run(tmp_path)
    (run.folder / "run.json").write_text(damage, encoding="utf-16")
    with pytest.raises(InputError, match=r"where: .*run\.json"):
        runs.read_run(run.folder)
    (run.folder / "run.json").write_text(damage, encoding="utf-8")
    with pytest.raises(InputError, match=r"where: .*run\.json"):
        runs.find_run(tmp_path, ID)


@pytest.mark.parametrize("name", ["metrics.json", "attrition.json"])
@pytest.mark.parametrize("damage", ["{", "[1]", '[{"step": 1}, 2]', "7"])
def test_a_damaged_table_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, damage: str
) -> None:
    run = finished_run(tmp_path)
    (run.folder / name).write_text(damage)
    with pytest.raises(InputError, match=rf"where: .*{name}"):
        assert (run.results, run.attrition) is None


def test_damaged_or_missing_likelihoods_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run.folder / "likelihoods.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"where: .*likelihoods\.parquet"):
        runs.read_run_likelihoods(run, "base")
    (run.folder / "likelihoods.parquet").unlink()
    with pytest.raises(InputError, match=r"where: .*likelihoods\.parquet"):
        runs.read_run_likelihoods(run, "base")


def test_a_damaged_recipe_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run.folder / "recipe.toml").write_text('kind = "adapt"\ncolour = "blue"\n')
    with pytest.raises(InputError, match=r"where: .*recipe\.toml"):
        runs.read_run(run.folder)


def test_a_renamed_folder_is_an_error_that_says_its_name(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.folder.rename(tmp_path / "my-best-run")
    with pytest.raises(InputError, match=ID):
        runs.find_run(tmp_path, "my-best-run")


def test_likelihoods_hold_ids_and_numbers_only(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert set(pa.parquet.read_schema(run.folder / "likelihoods.parquet").names) == {
        *schemas.LIKELIHOOD_SCHEMA.names,
        "state",
    }
    assert "text" not in schemas.LIKELIHOOD_SCHEMA.names


def test_a_record_of_the_older_format_names_the_version_and_the_renamed_fields(
    tmp_path: Path,
) -> None:
    run = finished_run(tmp_path)
    path = run.folder / "run.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["format"] == RUN_RECORD_FORMAT == 2
    document["format"] = 1
    for new in ("differential_privacy", "trained_fraction"):
        old = next(old for old, name in RENAMED_FIELDS.items() if name == new)
        document[old] = document.pop(new)
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError) as error:
        runs.read_run(run.folder)
    assert error.value.location == str(path)
    assert "0.6" in error.value.message
    assert all(f"{old} -> {new}" in error.value.hint for old, new in RENAMED_FIELDS.items())
    (listed_error,) = runs.find_all_runs(tmp_path).errors
    assert listed_error.location == str(path)


def test_renamed_fields_are_fields_of_the_record() -> None:
    for old, new in RENAMED_FIELDS.items():
        model = RunFailure if new.startswith("error.") else RunRecord
        names = model.model_fields.keys()
        assert new.rpartition(".")[2] in names
        assert old.rpartition(".")[2] not in names
