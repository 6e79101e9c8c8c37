"""What goes wrong in classify and predict says so, with value, place, way out and exit code; what
can be lived with is told beside the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from clinpeft import runs
from tests.conftest import MakeFolder
from tests.test_classify import (
    ADAPT,
    FROZEN,
    classify,
    clinpeft,
    invented,
    value,
    write_rows,
    written,
)

Rows = list[tuple[str, int, str, str]]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("notes") / "notes.csv", invented(60))


@pytest.fixture
def recipe(tmp_path: Path, base: Path, notes: Path) -> Path:
    return written(tmp_path, base, notes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path, notes: Path) -> runs.Run:
    """A run of the head alone, after a run of adapt named ``clinical`` in the same home."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "adapt.toml").write_text(ADAPT.format(base=base, notes=notes), encoding="utf-8")
    assert clinpeft("adapt", folder / "adapt.toml", "--home", folder / "runs").code == 0
    return classify(written(folder, base, notes), folder / "runs", "training.epochs=1")


def split_by_hand(folder: Path, rows: Rows, split_of: Callable[[int], str]) -> str:
    """Lists of subjects, as a change of the recipe."""
    lists = folder / "lists"
    lists.mkdir()
    for split in ("train", "tuning", "held_out"):
        named = [str(subject) for _, subject, _, _ in rows if split_of(subject) == split]
        (lists / f"{split}.txt").write_text("\n".join(named) + "\n", encoding="utf-8")
    return f"task.subject_lists={lists}"


def in_turn(subject: int) -> str:
    return ("train", "train", "tuning", "held_out")[
        subject // 3 % 4
    ]  # each of them has every category


# what is told -------------------------------------------------------------------------------------


def test_a_class_never_seen_in_training_is_told_and_breaks_nothing(
    base: Path, tmp_path: Path
) -> None:
    rows = invented(96)
    held_out = [at for at, row in enumerate(rows) if in_turn(row[1]) == "held_out"]
    rare = [
        (row[0], row[1], "Rare", row[3]) if at in held_out[:4] else row
        for at, row in enumerate(rows)
    ]
    recipe = written(tmp_path, base, write_rows(tmp_path / "notes.csv", rare), baselines=True)
    run = classify(
        recipe, tmp_path / "runs", split_by_hand(tmp_path, rare, in_turn), "training.epochs=1"
    )
    (notice,) = [notice for notice in run.record.notices if "'Rare'" in notice]
    assert notice.startswith(
        "note_category: the class 'Rare' is in held_out and in no training stay"
    )
    assert value(run, "auroc_ovo")["value"] is not None


def test_a_class_of_nobody_held_out_is_told_and_its_metric_says_so(
    base: Path, tmp_path: Path
) -> None:
    rows = [
        row for row in invented(96) if not (in_turn(row[1]) == "held_out" and row[2] == "Surgery")
    ]
    recipe = written(tmp_path, base, write_rows(tmp_path / "notes.csv", rows), baselines=True)
    run = classify(
        recipe, tmp_path / "runs", split_by_hand(tmp_path, rows, in_turn), "training.epochs=1"
    )
    assert any("Surgery" in notice and "held-out" in notice for notice in run.record.notices)
    row = value(run, "auroc_ovo")
    assert row["value"] is not None and (
        "2 of 3" in str(row["definition"]) or "absent" in str(row["definition"])
    ), row["definition"]


def test_a_note_without_text_is_counted(base: Path, tmp_path: Path) -> None:
    rows = [*invented(60), ("empty", 60, "Surgery", "  \n "), ("none", 61, "Surgery", "")]
    run = classify(
        written(tmp_path, base, write_rows(tmp_path / "notes.csv", rows)),
        tmp_path / "runs",
        "training.epochs=1",
    )
    assert (
        run.attrition[0].dropped_rows["empty note"] == 2
        and run.attrition[0].kept_rows == run.attrition[-1].kept_rows == 60
    )


# what is refused ----------------------------------------------------------------------------------


def test_one_class_in_training_is_refused(base: Path, tmp_path: Path) -> None:
    rows = [row for row in invented(96) if in_turn(row[1]) != "train" or row[2] == "Surgery"]
    recipe = written(tmp_path, base, write_rows(tmp_path / "notes.csv", rows))
    said = clinpeft(
        "classify",
        recipe,
        "--home",
        tmp_path / "runs",
        "--set",
        split_by_hand(tmp_path, rows, in_turn),
    )
    assert (
        said.code == 3 and "training stays of note_category have one class, 'Surgery'" in said.err
    )
    (run,) = runs.find_all_runs(tmp_path / "runs").runs
    assert run.record.state == "failed" and not (run.folder / "head.json").exists()


@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        (
            ["base.trainable=true", "base.precision=bfloat16"],
            2,
            ["a trainable base in bfloat16", "base.precision"],
        ),
        (['more_tasks=[{ name = "note_category" }]'], 2, ["note_category", "more_tasks"]),
        (
            ['adapters=[{ method = "lora", from_run = "nowhere" }]'],
            2,
            ["there is no finished run 'nowhere'"],
        ),
        (
            ['adapters=[{ method = "ia3", from_run = "clinical" }]'],
            3,
            ["method = 'ia3', and the adapter of", "is lora"],
        ),
        (
            ['adapters=[{ method = "lora", from_run = "clinical/9-lora" }]'],
            2,
            ["has no adapter '9-lora'", "it has: adapter"],
        ),
        (
            ['adapters=[{ method = "lora", trainable = false }]'],
            3,
            ["trainable = false on a new adapter"],
        ),
        (
            ["base.trainable=true", 'adapters=[{ method = "lora" }]'],
            3,
            ["base.trainable = true with 1 adapters"],
        ),
        (
            ["task.name=mortallity"],
            2,
            ["there is no task 'mortallity'", "did you mean 'mortality'?"],
        ),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else str(value),
)
def test_a_recipe_that_cannot_be_is_refused(
    finished: runs.Run, recipe: Path, changes: list[str], code: int, parts: list[str]
) -> None:
    words = [word for change in changes for word in ("--set", change)]
    said = clinpeft("classify", recipe, "--home", finished.folder.parent, *words)
    assert said.code == code and all(part in said.err for part in parts), said
    assert "Traceback" not in said.err


def test_an_adapter_of_an_ambiguous_run_is_refused_with_the_ids(
    base: Path, notes: Path, recipe: Path, tmp_path: Path
) -> None:
    home, ids = tmp_path / "runs", []
    (tmp_path / "adapt.toml").write_text(ADAPT.format(base=base, notes=notes), encoding="utf-8")
    for seed in (1, 2):
        assert (
            clinpeft("adapt", tmp_path / "adapt.toml", "--home", home, "--set", f"seed={seed}").code
            == 0
        )
    ids = [run.id for run in runs.find_all_runs(home).runs]
    said = clinpeft("classify", recipe, "--home", home, "--set", f"adapters=[{FROZEN}]")
    assert (
        said.code == 2
        and "2 runs match 'clinical'" in said.err
        and all(run_id in said.err for run_id in ids)
    )


def test_a_run_without_an_adapter_has_none_to_give(finished: runs.Run, recipe: Path) -> None:
    change = f'adapters=[{{ method = "lora", from_run = "{finished.id}" }}]'
    said = clinpeft("classify", recipe, "--home", finished.folder.parent, "--set", change)
    assert (
        said.code == 2
        and "has 0 adapters" in said.err
        and "take a run that trained an adapter" in said.err
    )


def test_an_adapter_of_another_base_is_refused_by_its_hash(
    finished: runs.Run, notes: Path, toy_llama: MakeFolder, tmp_path: Path
) -> None:
    recipe = written(tmp_path, toy_llama(seed=1), notes)
    said = clinpeft(
        "classify", recipe, "--home", finished.folder.parent, "--set", f"adapters=[{FROZEN}]"
    )
    assert said.code == 4 and "this adapter was trained on" in said.err and "sha256" in said.err


@pytest.fixture
def doctored(
    base: Path, notes: Path, tmp_path: Path
) -> Callable[[Callable[[Tensors], object], bool], Path]:
    """The home of a clinical adapter whose weights were changed, with its hash made to fit or
    not."""

    def change(how: Callable[[Tensors], object], fitting: bool) -> Path:
        (tmp_path / "adapt.toml").write_text(ADAPT.format(base=base, notes=notes), encoding="utf-8")
        assert (
            clinpeft(
                "adapt",
                tmp_path / "adapt.toml",
                "--home",
                tmp_path / "runs",
                "--set",
                "evaluation.max_notes=2",
            ).code
            == 0
        )
        folder = runs.find_run(tmp_path / "runs", "clinical").folder / "adapter"
        tensors = load_file(folder / "adapter_model.safetensors")
        how(tensors)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        if fitting:
            about = json.loads((folder / "clinpeft.json").read_text(encoding="utf-8"))
            about["files"]["adapter_model.safetensors"] = hashlib.sha256(
                (folder / "adapter_model.safetensors").read_bytes()
            ).hexdigest()
            (folder / "clinpeft.json").write_text(json.dumps(about), encoding="utf-8")
        return tmp_path / "runs"

    return change


Doctored = Callable[[Callable[[Tensors], object], bool], Path]


def with_nan(tensors: Tensors) -> None:
    tensors[next(name for name in sorted(tensors) if "lora_B" in name)][0, 0] = float("nan")


def without_a_key(tensors: Tensors) -> None:
    tensors.pop(sorted(tensors)[0])


@pytest.mark.parametrize(
    ("how", "fitting", "code", "part"),
    [
        (without_a_key, True, 3, "1 missing"),
        (without_a_key, False, 4, "is not the file that was written"),
        (with_nan, True, 1, "are not both numbers"),
    ],
    ids=["a key is missing", "the file was changed", "a weight is no number"],
)
def test_a_damaged_adapter_ends_the_run(
    doctored: Doctored,
    recipe: Path,
    how: Callable[[Tensors], object],
    fitting: bool,
    code: int,
    part: str,
) -> None:
    home = doctored(how, fitting)
    said = clinpeft("classify", recipe, "--home", home, "--set", f"adapters=[{FROZEN}]")
    assert said.code == code and part in said.err, said
    (run,) = [run for run in runs.find_all_runs(home).runs if run.record.kind == "classify"]
    assert (
        run.record.state == "failed"
        and run.record.error is not None
        and not (run.folder / "head.json").exists()
    )
    if how is with_nan:
        assert run.record.error.kind == "TrainingError"


# predict and evaluate -----------------------------------------------------------------------------


def predict(run: runs.Run, notes: Path, out: Path, *more: object) -> tuple[int, str]:
    said = clinpeft(
        "predict", run.id, "--notes", notes, "--out", out, "--home", run.folder.parent, *more
    )
    assert "Traceback" not in said.err
    return said.code, said.err


def test_a_file_that_exists_is_not_written_over(
    finished: runs.Run, notes: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.parquet").write_bytes(b"precious")
    code, told = predict(finished, notes, tmp_path / "out.parquet")
    assert code == 4 and "exists" in told and (tmp_path / "out.parquet").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["none.csv", "none.jsonl", "none.parquet"])
def test_a_file_without_notes_is_refused(finished: runs.Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    code, told = predict(finished, tmp_path / name, tmp_path / "out.parquet")
    assert code == 3 and name in told and not (tmp_path / "out.parquet").exists()


def test_a_file_with_a_header_alone_has_no_note(finished: runs.Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "header.csv", [])
    code, told = predict(finished, tmp_path / "header.csv", tmp_path / "out.parquet")
    assert code == 3 and "note" in told and not (tmp_path / "out.parquet").exists()


def test_a_note_without_text_has_no_answer(finished: runs.Run, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "notes.csv",
        [("first", 1, "", "the patient is stable"), ("second", 2, "", "   ")],
    )
    code, told = predict(finished, tmp_path / "notes.csv", tmp_path / "out.parquet")
    assert code == 3 and "1 of 2 rows" in told and "1 × empty note" in told and "stable" not in told


def test_columns_of_another_name_are_said_and_a_wrong_word_for_them_is_refused(
    finished: runs.Run, tmp_path: Path
) -> None:
    (tmp_path / "notes.csv").write_text("id,note\na,the patient is stable\n", encoding="utf-8")
    code, told = predict(finished, tmp_path / "notes.csv", tmp_path / "out.parquet")
    assert code == 2 and "'text'" in told
    code, told = predict(
        finished, tmp_path / "notes.csv", tmp_path / "out.parquet", "--column", "text"
    )
    assert code == 2 and "'text' is not OURS=THEIRS" in told
    code, told = predict(
        finished,
        tmp_path / "notes.csv",
        tmp_path / "out.parquet",
        "--column",
        "text=note",
        "--column",
        "note_id=id",
    )
    assert code == 0 and pq.read_table(tmp_path / "out.parquet")["note_id"].to_pylist() == ["a"], (
        told
    )


def test_only_a_run_that_answers_is_asked_and_only_into_a_folder_that_is_there(
    finished: runs.Run, notes: Path, tmp_path: Path
) -> None:
    said = clinpeft(
        "predict",
        "clinical",
        "--notes",
        notes,
        "--out",
        tmp_path / "out.parquet",
        "--home",
        finished.folder.parent,
    )
    assert said.code == 2 and "kind adapt" in said.err and "where: predict" in said.err
    code, told = predict(finished, notes, tmp_path / "nowhere" / "out.parquet")
    assert code == 2 and "there is no folder" in told


def test_what_is_no_table_of_answers_is_not_scored(
    finished: runs.Run, notes: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table", encoding="utf-8")
    home = finished.folder.parent
    unread = "cannot be read"
    for what, part in (
        ("other.parquet", "predictions without their question"),
        ("text.parquet", unread),
        ("none.parquet", unread),
    ):
        said = clinpeft("evaluate", tmp_path / what, "--home", home)
        assert said.code == 3 and part in said.err, said
    assert clinpeft("evaluate", "clinical", "--home", home).code == 3


def test_runs_of_two_kinds_say_nothing_about_each_other(finished: runs.Run) -> None:
    said = clinpeft("runs", "compare", "clinical", finished.id, "--home", finished.folder.parent)
    assert "one run is of kind adapt, the other of kind classify" in " ".join(said.out.split())
