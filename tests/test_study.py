"""The cells of a grid as one piece of work: recorded, gone on with, compared; runs that cost
nothing take the place of training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from clinpeft import runs, workflows
from clinpeft.core.errors import InputError, RecipeError, TrainingError, UsageError
from clinpeft.core.files import lock_folder
from clinpeft.core.locks import try_lock
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.recipe import load_recipe_plan, pair_compared_cells
from clinpeft.runs import Run, RunRecord
from clinpeft.runs.studies import StudyRecord, find_study, read_study, update_study_cell
from tests.test_classify import clinpeft

RECIPE = """
kind = "classify"
name = "toy"
[source]
name = "synthetic"
[task]
name = "mortality"
[base]
path = "toy"
[[grid.stack]]
name = "head only"
adapters = []
[[grid.stack]]
name = "LoRA"
adapters = [{{ method = "lora" }}]
[grid]
seed = {seeds}
{more}
"""
COMPARE = '[[compare]]\nfirst = { stack = "head only" }\nsecond = { stack = "LoRA" }\n'


def written(folder: Path, seeds: str = "[1, 2]", more: str = "") -> Path:
    (folder / "toy.toml").write_text(RECIPE.format(seeds=seeds, more=more), encoding="utf-8")
    return folder / "toy.toml"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes that were trained; one of seed 13 fails."""
    recipes: list[Any] = []

    def verb(recipe: Any, context: Any) -> Run:
        record = RunRecord(
            id=runs.compute_run_id(recipe, "s", "b", "c"),
            name=recipe.name,
            kind=recipe.kind,
            created=context.now(),
            started=context.now(),
        )
        with runs.open_run_folder(context.home, recipe, record) as run:
            if run.record.state == "finished":
                return run
            recipes.append(recipe)
            if recipe.seed == 13:
                raise TrainingError(
                    "the loss is NaN", location="step 3", hint="a smaller learning rate"
                )
            return runs.finish_run(
                run,
                results=pa.Table.from_pylist([], schema=METRIC_RESULT_SCHEMA),
                attrition=(),
                finished=context.now(),
            )

    monkeypatch.setattr(workflows, "get_workflow", lambda _: SimpleNamespace(run=verb))
    return recipes


def the_study(home: Path) -> StudyRecord:
    return find_study(home, "toy")


def test_a_cell_that_fails_is_recorded_with_its_reason_and_the_rest_goes_on(
    tmp_path: Path, trained: list[Any]
) -> None:
    home = tmp_path / "runs"
    told = clinpeft("study", "run", written(tmp_path, "[1, 13]"), "--home", home)
    assert told.code == 1 and len(trained) == 4
    found = the_study(home)
    assert [(cell.label, cell.state, cell.reason) for cell in found.cells] == [
        ("head only · seed=1", "finished", ""),
        ("head only · seed=13", "failed", "the loss is NaN"),
        ("LoRA · seed=1", "finished", ""),
        ("LoRA · seed=13", "failed", "the loss is NaN"),
    ]
    assert found.cells[2].settings == {"stack": "LoRA", "seed": 1} and found.home == home
    assert (home / str(found.cells[0].run_id) / "run.json").exists()
    status = clinpeft("study", "status", "toy", "--home", home)
    assert status.code == 0 and "4 cells: 2 finished, 2 failed." in status.out
    assert clinpeft("study", "resume", tmp_path / "toy.toml", "--home", home).code == 1
    assert len(trained) == 6 and {recipe.seed for recipe in trained[4:]} == {13}
    assert [cell.attempts for cell in the_study(home).cells] == [1, 2, 1, 2]


def test_a_changed_file_runs_the_changed_cells_and_no_others(
    tmp_path: Path, trained: list[Any]
) -> None:
    home = tmp_path / "runs"
    assert clinpeft("study", "run", written(tmp_path), "--home", home).code == 0
    before = the_study(home)
    with pytest.raises(UsageError, match="no study 'toi'"):
        find_study(home, "toi")
    told = clinpeft("study", "status", written(tmp_path, "[2, 3]"), "--home", home)
    assert told.code == 2 and "toy.toml" in told.err
    assert clinpeft("study", "run", tmp_path / "toy.toml", "--home", home).code == 0
    after = the_study(home)
    assert [recipe.seed for recipe in trained] == [1, 2, 1, 2, 3, 3]
    assert after.id != before.id and {cell.run_id for cell in before.cells} & {
        cell.run_id for cell in after.cells
    } == {cell.run_id for cell in before.cells if cell.settings["seed"] == 2}
    assert find_study(home, before.id) == before and after.is_complete


def test_a_comment_in_the_file_is_no_other_study(tmp_path: Path, trained: list[Any]) -> None:
    home, path = tmp_path / "runs", written(tmp_path)
    assert clinpeft("study", "run", path, "--home", home).code == 0
    first = the_study(home)
    path.write_text("# about it\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert clinpeft("study", "run", path, "--home", home).code == 0
    assert (
        the_study(home).id == first.id
        and the_study(home).recipe_sha256 != first.recipe_sha256
        and len(trained) == 4
    )


def test_a_study_that_was_never_run_cannot_be_gone_on_with(
    tmp_path: Path, trained: list[Any]
) -> None:
    told = clinpeft("study", "resume", written(tmp_path), "--home", tmp_path / "runs")
    assert told.code == 2 and "clinpeft study run" in told.err and not trained


def test_a_cell_in_other_hands_is_left_to_them(tmp_path: Path, trained: list[Any]) -> None:
    home, path = tmp_path / "runs", written(tmp_path)
    assert clinpeft("study", "run", path, "--home", home).code == 0
    found = the_study(home)
    update_study_cell(found.folder, found.cells[1].key, "now", state="running", run_id=None)
    assert (
        read_study(found.folder).cells[1].state == "interrupted"
    )  # nobody holds it: its process was killed
    with try_lock(found.folder, found.cells[1].key) as is_ours:
        assert is_ours and read_study(found.folder).cells[1].state == "running"
        told = clinpeft("study", "resume", path, "--home", home)
        assert told.code == 0 and "1 of 4 cells" in told.out
        assert read_study(found.folder).cells[1].attempts == 1
    assert clinpeft("study", "resume", path, "--home", home).code == 0
    assert the_study(home).is_complete and len(trained) == 4  # the run was there


def test_a_run_that_is_made_by_somebody_else_is_waited_for_and_not_failed(
    tmp_path: Path, trained: list[Any]
) -> None:
    home, path = tmp_path / "runs", written(tmp_path)
    assert clinpeft("study", "run", path, "--home", home).code == 0
    found = the_study(home)
    run_json = home / str(found.cells[0].run_id) / "run.json"
    run_json.write_text(
        run_json.read_text(encoding="utf-8").replace('"finished"', '"running"', 1), encoding="utf-8"
    )
    with lock_folder(run_json.parent):
        assert clinpeft("study", "run", path, "--home", home).code == 0
        assert [cell.state for cell in the_study(home).cells] == [
            "waiting",
            "finished",
            "finished",
            "finished",
        ]
    assert clinpeft("study", "run", path, "--home", home).code == 0 and the_study(home).is_complete


@pytest.mark.usefixtures("trained")
def test_comparisons_pair_the_cells_that_share_all_else_and_say_why_there_is_no_result(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, "[1, 2, 13]", COMPARE)
    assert clinpeft("study", "run", path, "--home", tmp_path / "runs").code == 1
    (comparison,) = the_study(tmp_path / "runs").compare
    assert comparison.name == "LoRA − head only" and [
        pair.settings for pair in comparison.pairs
    ] == [{"seed": 1}, {"seed": 2}, {"seed": 13}]
    assert "has no predictions" in comparison.pairs[0].reason
    assert comparison.pairs[2].reason == "head only · seed=13 is failed; LoRA · seed=13 is failed"
    (entry,) = load_recipe_plan(path).comparisons
    assert next(
        (one.name, other.name)
        for one, other, _ in pair_compared_cells(entry, load_recipe_plan(path).cells)
    ) == (
        "head only · seed=1",
        "LoRA · seed=1",
    )


@pytest.mark.parametrize(
    ("compare", "message", "hint"),
    [
        (
            'first = { stak = "LoRA" }\nsecond = { stack = "LoRA" }',
            "the grid has no axis 'stak'",
            "did you mean 'stack'?",
        ),
        (
            'first = { stack = "LORA" }\nsecond = { stack = "LoRA" }',
            "axis 'stack' has no choice 'LORA'",
            "did you mean 'LoRA'?",
        ),
        (
            'first = { stack = "LoRA" }\nsecond = { stack = "LoRA" }',
            "a comparison of a cell with itself",
            "differ",
        ),
        ('first = { stack = "LoRA" }', "second: Field required", ""),
        (
            'frist = { stack = "LoRA" }\nsecond = { stack = "LoRA" }',
            "unknown key 'frist'",
            "did you mean 'first'?",
        ),
    ],
)
def test_a_wrong_comparison_is_named_with_its_way_out(
    tmp_path: Path, compare: str, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe_plan(written(tmp_path, more=f"[[compare]]\n{compare}\n"))
    assert (
        message in raised.value.message
        and hint in raised.value.hint
        and "[[compare]]" in raised.value.location
    )


def test_a_damaged_record_is_named_and_its_runs_are_kept(
    tmp_path: Path, trained: list[Any]
) -> None:
    home, path = tmp_path / "runs", written(tmp_path)
    assert clinpeft("study", "run", path, "--home", home).code == 0
    record = the_study(home).folder / "study.json"
    record.write_text(record.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(InputError, match="this study cannot be read"):
        the_study(home)
    assert "study.json" in clinpeft("study", "run", path, "--home", home).err
    record.unlink()
    assert (
        clinpeft("study", "run", path, "--home", home).code == 0
        and the_study(home).is_complete
        and len(trained) == 4
    )


def test_two_names_that_begin_alike_are_told_apart_by_id(
    tmp_path: Path, trained: list[Any]
) -> None:
    home = tmp_path / "runs"
    for seeds in ("[1]", "[2]"):
        assert clinpeft("study", "run", written(tmp_path, seeds), "--home", home).code == 0
    ids = [
        json.loads(path.read_text(encoding="utf-8"))["id"]
        for path in sorted(home.glob("studies/*/study.json"))
    ]
    assert len(ids) == 2 and {find_study(home, one).id for one in ids} == set(ids)
    assert the_study(home).cells[0].settings["seed"] == 2  # of one name, the one that was run last
    assert len(trained) == 4


def test_an_array_job_is_written_and_submitted_where_there_is_a_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[Any]
) -> None:
    home, path = (
        tmp_path / "runs",
        written(tmp_path, more='[workers]\nlaunch = "slurm:3"\nsbatch = ["--time=4:00:00"]\n'),
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + ":/usr/bin:/bin")
    told = clinpeft("study", "run", path, "--home", home)
    assert told.code == 0 and "workers.sbatch" in told.out and not trained
    (script,) = home.glob("studies/*/workers.sbatch")
    text = script.read_text(encoding="utf-8")
    assert {"#SBATCH --array=1-3", "#SBATCH --time=4:00:00", "#SBATCH --requeue"} <= set(
        text.splitlines()
    )
    assert f"-m clinpeft study run {path} --home {home} --launch here" in text
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(
        '#!/bin/sh\necho "Submitted batch job 7"\n', encoding="utf-8"
    )
    (tmp_path / "bin" / "sbatch").chmod(0o700)
    assert "Submitted batch job 7" in clinpeft("study", "run", path, "--home", home).out
    (tmp_path / "bin" / "sbatch").write_text(
        '#!/bin/sh\necho "invalid partition" >&2\nexit 1\n', encoding="utf-8"
    )
    refused = clinpeft("study", "run", path, "--home", home)
    assert refused.code == 2 and "sbatch refused the script: invalid partition" in refused.err
    odd = clinpeft("study", "run", path, "--home", home, "--launch", "cloud:3")
    assert odd.code == 2 and "write here, local:2 or slurm:8" in odd.err
