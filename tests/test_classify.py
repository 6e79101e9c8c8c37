"""The whole classify path on toy models: from notes, or an invented hospital, to a recorded run
that answers again."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from clinpeft import cli, evaluation, inference, models, runs, training
from clinpeft.cli import progress
from clinpeft.core import schemas
from clinpeft.recipe import ClassifyRecipe
from clinpeft.workflows import classifier
from tests.conftest import ROOT, WORDS, MakeFolder

SIGNS = {
    "Cardiology": "furosemide",
    "Pulmonology": "cough",
    "Surgery": "pain",
}  # the one word that tells the category
FILLER = [word for word in dict.fromkeys(WORDS) if word not in SIGNS.values()]
CANARY = "zebra quokka wombat"

RECIPE = """
kind = "classify"
name = "{name}"
[source]
name = "files"
path = "{notes}"
columns = {{ note_id = "note_id", subject_id = "subject_id", category = "category", text = "text" }}
[task]
name = "note_category"
[split]
train = 0.6
tuning = 0.2
held_out = 0.2
[base]
path = "{base}"
max_tokens = 24
precision = "float32"
[head]
pooling = "mean"
[training]
learning_rate = 2e-2
epochs = 4
batch_notes = 16
micro_batch_tokens = 256
evaluations = 3
checkpoints = 3
[evaluation]
resamples = 100
subgroups = false
baselines = {baselines}
"""

ADAPT = """
kind = "adapt"
name = "clinical"
[source]
name = "files"
path = "{notes}"
columns = {{ note_id = "note_id", subject_id = "subject_id", category = "category", text = "text" }}
[split]
train = 0.6
tuning = 0.2
held_out = 0.2
[base]
path = "{base}"
max_tokens = 24
precision = "float32"
[[adapters]]
method = "lora"
rank = 2
[training]
learning_rate = 1e-2
max_steps = 3
batch_tokens = 400
micro_batch_tokens = 400
evaluations = 1
[evaluation]
resamples = 100
max_notes = 8
"""

LORA = '[{ method = "lora", rank = 2 }]'


class Said(NamedTuple):
    """What a command told, and how it ended."""

    code: int
    out: str
    err: str


def clinpeft(*words: object) -> Said:
    """The command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patched.setattr(sys, "argv", ["clinpeft", *map(str, words)])
        try:
            cli.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
    return Said(code, out.getvalue(), err.getvalue())


def write_rows(path: Path, rows: Sequence[tuple[str, int, str, str]]) -> Path:
    """(note_id, subject_id, category, text) as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("note_id", "subject_id", "category", "text"), *rows])
    return path


def invented(
    count: int = 150,
    seed: int = 0,
    signs: Mapping[str, str] = SIGNS,
    longest: int = 16,
    tail: str = "",
) -> list[tuple[str, int, str, str]]:
    """Notes of filler in which one word tells the category; each of a subject of its own."""
    draw, rows = random.Random(seed), []
    for at in range(count):
        category = list(signs)[at % len(signs)]
        words = draw.choices(FILLER, k=draw.randint(6, longest)) + [signs[category]] * 3
        draw.shuffle(words)
        rows.append((f"n{at}", at, category, " ".join(words) + tail))
    return rows


@pytest.fixture(scope="module")
def base(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("notes") / "notes.csv", invented())


def written(
    folder: Path, base: Path, notes: Path, name: str = "toy", baselines: bool = False
) -> Path:
    """The recipe of this file's runs."""
    path = folder / f"{name}.toml"
    path.write_text(
        RECIPE.format(name=name, base=base, notes=notes, baselines=str(baselines).lower()),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def recipe(tmp_path: Path, base: Path, notes: Path) -> Path:
    return written(tmp_path, base, notes)


def classify(recipe: Path, home: Path, *changes: str) -> runs.Run:
    """A finished run; the last one of its home."""
    said = clinpeft(
        "classify",
        recipe,
        "--home",
        home,
        *(word for change in changes for word in ("--set", change)),
    )
    assert said.code == 0, said.err
    return named_in(said, home)


def named_in(said: Said, home: Path) -> runs.Run:
    """The run whose folder the command printed last."""
    return runs.find_run(home, Path(said.out.strip().splitlines()[-1].rpartition(": ")[2]).name)


def answered(run: runs.Run) -> np.ndarray:
    """Logits (documents, classes), by stay."""
    table = runs.read_run_table(run, "predictions").sort_by("stay_id")
    return np.array(table["logits"].to_pylist(), np.float32)


def value(
    run: runs.Run, name: str, group: str = "model", split: str = "held_out"
) -> dict[str, object]:
    """One row of the results."""
    (row,) = [
        row
        for row in run.results.to_pylist()
        if (row["name"], row["group"], row["split"]) == (name, group, split)
    ]
    return dict(row)


def roles(run: runs.Run) -> dict[str, str]:
    """Adapter or head -> what it was found to be."""
    assert run.record.liveness is not None
    return {proof["name"]: proof["role"] for proof in run.record.liveness["proofs"]}


# one run, all of it -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, base: Path
) -> tuple[runs.Run, Path, Path, Said]:
    """A run with a LoRA, a head, baselines and subgroups, on notes that end in a sentence to look
    for: run, recipe, notes and what was said."""
    folder = tmp_path_factory.mktemp("whole")
    notes = write_rows(folder / "notes.csv", invented(tail=f" {CANARY}"))
    recipe = written(folder, base, notes, baselines=True)
    said = clinpeft(
        "classify",
        recipe,
        "--home",
        folder / "runs",
        "--set",
        f"adapters={LORA}",
        "--set",
        "evaluation.subgroups=true",
    )
    assert said.code == 0, said.err
    return named_in(said, folder / "runs"), recipe, notes, said


def test_notes_become_a_run_with_adapter_head_answers_and_numbers(
    whole: tuple[runs.Run, Path, Path, Said],
) -> None:
    run = whole[0]
    made = {
        path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()
    }
    assert {
        "recipe.toml",
        "run.json",
        "log.jsonl",
        "metrics.json",
        "attrition.json",
        "predictions.parquet",
        "curves.parquet",
    } <= made
    assert {
        "head.safetensors",
        "head.json",
        "tokenizer/tokenizer.json",
        "adapters/1-lora/adapter_model.safetensors",
    } <= made
    assert run.record.state == "finished" and roles(run) == {
        "1-lora": "trained",
        "head.note_category": "trained",
    }
    assert (
        run.record.trained_parameters == 2 * 2 * 2 * (32 + 32) + 3 * 32 + 3
    )  # query and value of 2 layers at rank 2; 3 classes on width 32
    assert run.record.features_seconds is None and run.record.training_seconds is not None


def test_the_answers_are_a_table_that_carries_its_question(
    whole: tuple[runs.Run, Path, Path, Said],
) -> None:
    found = runs.read_run_table(whole[0], "predictions")
    assert found.schema.equals(schemas.PREDICTION_SCHEMA, check_metadata=False)
    question = evaluation.read_prediction_label_space(found)
    assert (question.name, question.kind, question.classes) == (
        "note_category",
        "multiclass",
        tuple(sorted(SIGNS)),
    )
    assert set(found["split"].to_pylist()) == {"tuning", "held_out"} and found[
        "labels"
    ].null_count == len(found)
    logits, probabilities = (
        np.array(found[name].to_pylist(), np.float64) for name in ("logits", "probabilities")
    )
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(probabilities, wanted / wanted.sum(1, keepdims=True), atol=1e-6)


def test_what_decides_is_learned_and_stands_beside_the_baselines(
    whole: tuple[runs.Run, Path, Path, Said],
) -> None:
    run = whole[0]
    groups = {row["group"] for row in run.results.to_pylist()}
    assert {
        "model",
        "prevalence",
        "TF-IDF + logistic regression",
        "note length",
        "model - TF-IDF + logistic regression",
    } <= groups
    assert float(str(value(run, "auroc_ovo")["value"])) > 0.95
    assert value(run, "auroc_ovo", "prevalence")["value"] == pytest.approx(0.5)
    difference = float(str(value(run, "auroc_ovo")["value"])) - float(
        str(value(run, "auroc_ovo", "TF-IDF + logistic regression")["value"])
    )
    assert value(run, "auroc_ovo_difference", "model - TF-IDF + logistic regression")[
        "value"
    ] == pytest.approx(difference, abs=1e-9)
    assert runs.read_run_table(run, "curves").schema.equals(schemas.CURVE_POINT_SCHEMA)


def test_who_left_is_counted_from_the_first_row_to_the_last_token(
    whole: tuple[runs.Run, Path, Path, Said],
) -> None:
    steps = whole[0].attrition
    assert steps[0].step == "read" and steps[0].entered_rows == 150
    assert [step.step for step in steps[-2:]] == ["documents", "documents read whole"] and steps[
        -1
    ].entered_rows == 150
    assert all(
        step.entered_rows == step.kept_rows + sum(step.dropped_rows.values()) for step in steps
    )


def test_the_same_command_gives_the_same_run_at_once(
    whole: tuple[runs.Run, Path, Path, Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe, _, _ = whole
    log = (run.folder / "log.jsonl").read_bytes()
    monkeypatch.setattr(models, "load_base_model", None)  # nothing is loaded a second time
    again = classify(recipe, run.folder.parent, f"adapters={LORA}", "evaluation.subgroups=true")
    assert again.record == run.record and (run.folder / "log.jsonl").read_bytes() == log


def test_no_word_of_a_note_leaves_the_cache(whole: tuple[runs.Run, Path, Path, Said]) -> None:
    run, _, notes, said = whole
    assert CANARY in notes.read_text(encoding="utf-8")
    sentence = notes.read_text(encoding="utf-8").splitlines()[1].rpartition(",")[2][:30]
    for hidden in (CANARY, "quokka", sentence):
        assert hidden not in said.out + said.err
        for path in (path for path in run.folder.rglob("*") if path.is_file()):
            assert hidden.encode() not in path.read_bytes(), path
    for path in run.folder.glob("*.parquet"):  # which are compressed
        assert "quokka" not in str(pq.read_table(path).to_pylist())


def test_a_run_answers_again_bit_for_bit_in_a_fresh_process(
    whole: tuple[runs.Run, Path, Path, Said],
) -> None:
    run = whole[0]
    code = f"""
import torch
from pathlib import Path
from clinpeft import inference, runs
run = runs.read_run(Path({str(run.folder)!r}))
loaded = inference.load_classifier(run.folder, run.recipe.base, torch.device("cpu"))
from clinpeft.inference import classifier_io
from clinpeft import models
saved = models.load_heads(run.folder)
expected = saved.reference_output
answer = classifier_io._compute_reference_logits
now = answer(loaded.stack, loaded.heads, loaded.pooling, "mean", expected.input_ids)
print(all(torch.equal(now[name], logits) for name, logits in expected.logits.items()))
"""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr[-3000:]


def test_new_notes_are_answered_as_the_same_texts_were(
    whole: tuple[runs.Run, Path, Path, Said], tmp_path: Path
) -> None:
    run, _, notes, _ = whole
    out = tmp_path / "answers.parquet"
    said = clinpeft("predict", run.id, "--notes", notes, "--out", out, "--home", run.folder.parent)
    assert said.code == 0 and "answers.parquet" in said.out, said.err
    new = {row["subject_id"]: row for row in pq.read_table(out).to_pylist()}
    assert len(new) == 150 and {row["note_id"] for row in new.values()} == {
        f"n{at}" for at in range(150)
    }
    assert evaluation.read_prediction_label_space(
        pq.read_table(out)
    ) == evaluation.read_prediction_label_space(runs.read_run_table(run, "predictions"))
    old = runs.read_run_table(run, "predictions").to_pylist()
    for row in old:
        assert new[row["subject_id"]]["probabilities"] == pytest.approx(
            row["probabilities"], abs=1e-6
        )
        assert (new[row["subject_id"]]["tokens"], new[row["subject_id"]]["tokens_read"]) == (
            row["tokens"],
            row["tokens_read"],
        )
    assert not list((run.folder.parent / "cache").glob("predict-*"))


def test_answers_are_scored_again_from_a_run_and_from_a_file(
    whole: tuple[runs.Run, Path, Path, Said],
) -> None:
    run = whole[0]
    for what in (run.id, str(run.folder / "predictions.parquet")):
        said = clinpeft("evaluate", what, "--home", run.folder.parent, "--resamples", "100")
        assert (
            said.code == 0
            and "auroc_ovo" in said.out
            and f"{value(run, 'auroc_ovo')['value']:.3f}" in said.out
        ), said


# stacks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clinical(tmp_path_factory: pytest.TempPathFactory, base: Path, notes: Path) -> Path:
    """The home of a finished run of adapt, named ``clinical``."""
    home = tmp_path_factory.mktemp("clinical") / "runs"
    recipe = home.parent / "adapt.toml"
    recipe.write_text(ADAPT.format(base=base, notes=notes), encoding="utf-8")
    said = clinpeft("adapt", recipe, "--home", home)
    assert said.code == 0, said.err
    return home


FROZEN = '{ method = "lora", from_run = "clinical", trainable = false }'
MERGED = '{ method = "lora", from_run = "clinical", trainable = false, merged = true }'
TRAINABLE = '{ method = "lora", from_run = "clinical" }'
NEW, INERT = '{ method = "lora", rank = 2 }', '{ method = "lora", rank = 2, active = false }'


@pytest.mark.parametrize(
    ("stack", "wanted"),
    [
        ([FROZEN], ["frozen"]),
        ([TRAINABLE], ["trained"]),
        ([FROZEN, NEW], ["frozen", "trained"]),
        ([TRAINABLE, NEW], ["trained", "trained"]),
        ([FROZEN, INERT], ["frozen", "inert"]),
        ([MERGED, NEW], ["merged", "trained"]),
    ],
    ids=[
        "frozen",
        "trainable",
        "frozen + downstream",
        "trainable + downstream",
        "as published: inert",
        "merged + downstream",
    ],
)
def test_every_stack_above_a_clinical_adapter_is_what_it_says(
    clinical: Path, recipe: Path, stack: list[str], wanted: list[str]
) -> None:
    run = classify(recipe, clinical, f"adapters=[{', '.join(stack)}]", "training.epochs=1")
    found = roles(run)
    assert [found[f"{at + 1}-lora"] for at in range(len(stack))] == wanted and found[
        "head.note_category"
    ] == "trained"
    source = runs.find_run(clinical, "clinical", finished_only=True)
    assert isinstance(run.recipe, ClassifyRecipe) and run.recipe.adapters[0].from_run == source.id
    assert list(run.record.hashes.adapters) == [source.id]
    theirs = (source.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    kept = (run.folder / "adapters" / "1-lora" / "adapter_model.safetensors").read_bytes()
    assert (kept == theirs) is (wanted[0] != "trained")
    assert (run.record.features_seconds is not None) is ("trained" not in wanted)
    assert (
        inference.load_classifier(run.folder, run.recipe.base, torch.device("cpu"))
        .stack.specs[0]
        .from_run
        == source.id
    )


def test_an_inert_adapter_leaves_the_answers_of_the_frozen_one_alone(
    clinical: Path, recipe: Path
) -> None:
    frozen = classify(recipe, clinical, f"adapters=[{FROZEN}]", "training.epochs=1")
    inert = classify(recipe, clinical, f"adapters=[{FROZEN}, {INERT}]", "training.epochs=1")
    live = classify(recipe, clinical, f"adapters=[{FROZEN}, {NEW}]", "training.epochs=1")
    assert np.array_equal(answered(frozen), answered(inert)) and not np.allclose(
        answered(frozen), answered(live), atol=1e-3
    )
    assert any("active = false" in notice for notice in inert.record.notices)


def test_a_classifier_stands_on_an_adapter_of_another_classifier(
    clinical: Path, recipe: Path
) -> None:
    two = classify(
        recipe, clinical, f"adapters=[{FROZEN}, {NEW}]", "training.epochs=1", "name=two", "seed=7"
    )
    several = clinpeft(
        "classify",
        recipe,
        "--home",
        clinical,
        "--set",
        'adapters=[{ method = "lora", from_run = "two", trainable = false }]',
    )
    assert (
        several.code == 2
        and f"{two.id}/1-lora" in several.err
        and f"{two.id}/2-lora" in several.err
    )
    chosen = classify(
        recipe,
        clinical,
        'adapters=[{ method = "lora", from_run = "two/1-lora", trainable = false }]',
        "training.epochs=1",
    )
    frozen = classify(recipe, clinical, f"adapters=[{FROZEN}]", "training.epochs=1")
    assert np.array_equal(answered(chosen), answered(frozen))


# the same another way -----------------------------------------------------------------------------


def test_what_is_remembered_of_the_notes_answers_as_the_model_does(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = classify(recipe, tmp_path / "remembered")
    assert list((tmp_path / "remembered" / "cache").glob("features-*.npy"))
    monkeypatch.setattr(
        classifier, "_cache_all_features", lambda model, _: [None] * len(model.encoded_cohorts)
    )  # no vectors: everything runs live
    live = classify(recipe, tmp_path / "live")
    assert not list((tmp_path / "live" / "cache").glob("features-*.npy"))
    assert np.allclose(answered(remembered), answered(live), atol=1e-5)
    heads = [load_file(run.folder / "head.safetensors") for run in (remembered, live)]
    assert all(
        torch.allclose(tensor, heads[1][name], atol=1e-5) for name, tensor in heads[0].items()
    )


def test_an_interrupted_run_goes_on_to_the_very_same_answers(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, change = progress.format_step, 'adapters=[{ method = "lora", rank = 2, dropout = 0.1 }]'

    def interrupt(event: training.StepEvent) -> str:
        if event.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return said(event)

    with monkeypatch.context() as patched:
        patched.setattr(progress, "format_step", interrupt)
        told = clinpeft("classify", recipe, "--home", tmp_path / "runs", "--set", change)
    assert (
        told.code == 5
        and "stopped after step 5 of" in told.err
        and "give the same command to go on" in told.err
    )
    (stopped,) = runs.find_all_runs(tmp_path / "runs").runs
    assert stopped.state == "interrupted" and not (stopped.folder / "head.json").exists()
    went_on, straight = (
        classify(recipe, tmp_path / "runs", change),
        classify(recipe, tmp_path / "straight", change),
    )
    assert went_on.id == stopped.id == straight.id
    for name in ("head.safetensors", "adapters/1-lora/adapter_model.safetensors"):
        assert (went_on.folder / name).read_bytes() == (straight.folder / name).read_bytes()
    assert runs.read_run_table(went_on, "predictions").equals(
        runs.read_run_table(straight, "predictions")
    )


def test_two_processes_learn_what_one_learns(recipe: Path, tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "clinpeft",
    ]
    launch += [
        "classify",
        str(recipe),
        "--home",
        str(tmp_path / "two"),
    ]  # accelerate launch starts one process where there is no GPU
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, "--set", f"adapters={LORA}"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (two,) = runs.find_all_runs(tmp_path / "two").runs
    one = classify(recipe, tmp_path / "one", f"adapters={LORA}")
    assert (
        two.record.state == "finished"
        and two.record.hardware is not None
        and two.record.hardware.devices == 2
    )
    assert np.allclose(answered(two), answered(one), atol=1e-4)


# questions and models -----------------------------------------------------------------------------


def test_one_adapter_learns_two_questions_at_once(base: Path, tmp_path: Path) -> None:
    rows = invented()
    twice = [
        (f"m{at}", subject, "Medicine", text)
        for at, subject, category, text in rows
        if category != "Surgery"
    ]
    recipe = written(
        tmp_path, base, write_rows(tmp_path / "notes.csv", [*rows, *twice]), baselines=True
    )
    run = classify(
        recipe,
        tmp_path / "runs",
        f"adapters={LORA}",
        'more_tasks=[{ name = "note_categories" }]',
        "training.select_by=last",
    )
    assert roles(run) == {
        "1-lora": "trained",
        "head.note_category": "trained",
        "head.note_categories": "trained",
    }
    first, second = (
        runs.read_run_table(run, "predictions"),
        runs.read_run_table(run, "predictions-note_categories"),
    )
    assert (
        evaluation.read_prediction_label_space(first).kind == "multiclass"
        and evaluation.read_prediction_label_space(second).kind == "multilabel"
    )
    assert first["stay_id"].equals(second["stay_id"]) and second["label"].null_count == len(second)
    assert (
        np.array(second["probabilities"].to_pylist()).sum(1).max() > 1.2
    )  # each label stands alone
    main = {
        row["task"]: row["value"]
        for row in run.results.to_pylist()
        if row["name"] in ("auroc_ovo", "auroc_macro") and row["group"] == "model"
    }
    assert set(main) == {"note_category", "note_categories"} and all(
        auroc > 0.8 for auroc in main.values()
    )
    last = json.loads((run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    rows_by_metric = {
        (row["name"], row["group"], row["split"]): row["value"] for row in run.results.to_pylist()
    }
    assert last["tuning_metric.note_category"] == pytest.approx(
        rows_by_metric["auroc_ovo", "model", "tuning"], abs=1e-6
    )
    assert last["tuning_metric.note_categories"] == pytest.approx(
        rows_by_metric["auroc_macro", "model", "tuning"], abs=1e-6
    )
    assert isinstance(run.recipe, ClassifyRecipe)
    served = inference.load_classifier(run.folder, run.recipe.base, torch.device("cpu"))
    assert list(served.heads) == ["note_category", "note_categories"]
    said = clinpeft(
        "predict",
        run.id,
        "--notes",
        tmp_path / "notes.csv",
        "--out",
        tmp_path / "new.parquet",
        "--home",
        tmp_path / "runs",
    )
    assert said.code == 0 and len(pq.read_table(tmp_path / "new-note_categories.parquet")) == len(
        rows
    ) + len(twice)
    scored = clinpeft("evaluate", run.id, "--home", tmp_path / "runs", "--resamples", "100")
    assert "auroc_ovo" in scored.out and "auroc_macro" in scored.out


def test_a_whole_encoder_is_trained_and_kept(toy_bert: Path, notes: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, toy_bert, notes)
    run = classify(
        recipe,
        tmp_path / "runs",
        "base.trainable=true",
        "training.learning_rate=1e-3",
        "training.epochs=2",
    )
    assert (run.folder / "model" / "model.safetensors").exists() and not (
        run.folder / "adapters"
    ).exists()
    assert roles(run) == {"base": "trained", "head.note_category": "trained"}
    out = tmp_path / "new.parquet"
    said = clinpeft("predict", run.id, "--notes", notes, "--out", out, "--home", tmp_path / "runs")
    assert said.code == 0, said.err
    new = {row["subject_id"]: row["logits"] for row in pq.read_table(out).to_pylist()}
    for row in runs.read_run_table(run, "predictions").to_pylist():
        assert new[row["subject_id"]] == pytest.approx(row["logits"], abs=1e-5)
    frozen = classify(recipe, tmp_path / "runs", "training.epochs=2")
    assert not np.allclose(answered(frozen), answered(run), atol=1e-3)


def test_the_smoke_recipe_asks_an_invented_hospital(tmp_path: Path) -> None:
    said = clinpeft(
        "classify", ROOT / "recipes" / "smoke-classify.toml", "--home", tmp_path / "runs"
    )
    assert said.code == 0, said.err
    table = (tmp_path / "runs" / "tables" / "smoke-classify.md").read_text(encoding="utf-8")
    assert "head only" in table and "LoRA" in table and "TF-IDF" in table
    for run in runs.find_all_runs(tmp_path / "runs").runs:
        groups = {row["group"] for row in run.results.to_pylist()}
        assert run.record.state == "finished" and "age, sex, admission type" in groups
        assert (
            evaluation.read_prediction_label_space(runs.read_run_table(run, "predictions")).kind
            == "binary"
        )
        assert (run.folder / "meds_evaluation.parquet").exists()
    again = clinpeft(
        "classify", ROOT / "recipes" / "smoke-classify.toml", "--home", tmp_path / "runs"
    )
    assert again.code == 0 and "step 1/" not in again.err


# comparisons --------------------------------------------------------------------------------------


def test_two_runs_are_compared_stay_by_stay(clinical: Path, recipe: Path) -> None:
    first = classify(recipe, clinical, f"adapters=[{FROZEN}]", "training.epochs=1")
    second = classify(recipe, clinical, f"adapters=[{FROZEN}, {NEW}]", "training.epochs=1")
    said = clinpeft("runs", "compare", first.id, second.id, "--home", clinical)
    assert said.code == 0 and "auroc_ovo_difference" in said.out, said
    other = classify(
        recipe, clinical, f"adapters=[{FROZEN}]", "training.epochs=1", "task.name=note_categories"
    )
    told = clinpeft("runs", "compare", first.id, other.id, "--home", clinical).out
    assert "one run answers note_category, the other note_categories" in " ".join(told.split())
    elsewhere = classify(
        recipe, clinical, f"adapters=[{FROZEN}]", "training.epochs=1", "split.seed=5"
    )
    told = clinpeft("runs", "compare", first.id, elsewhere.id, "--home", clinical).out
    assert "stays are answered only by" in " ".join(told.split())


def test_shuffled_answers_teach_nothing(base: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, base, write_rows(tmp_path / "notes.csv", invented(300)))
    learned = classify(recipe, tmp_path / "runs", f"adapters={LORA}")
    control = classify(recipe, tmp_path / "runs", f"adapters={LORA}", "loss.shuffled_labels=true")
    assert float(str(value(learned, "auroc_ovo")["low"])) > 0.9
    row = value(control, "auroc_ovo")
    assert float(str(row["low"])) < 0.5 < float(str(row["high"]))
    assert any("shuffled" in notice for notice in control.record.notices)


__all__ = [
    "FROZEN",
    "Said",
    "classify",
    "clinpeft",
    "invented",
    "named_in",
    "write_rows",
    "written",
]
