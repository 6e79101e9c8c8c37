"""The whole adapt path on toy models: from an invented hospital to a recorded run."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from clinpeft import cli, runs, training
from clinpeft.cli import progress
from clinpeft.core.errors import RefusedError
from clinpeft.core.files import lock_folder
from clinpeft.data import synthetic
from tests.conftest import ROOT, MakeFolder

RECIPE = """
kind = "adapt"
name = "toy"
[source]
name = "synthetic"
subjects = 40
[base]
path = "{base}"
max_tokens = 32
precision = "float32"
overflow = "truncate"
[[adapters]]
method = "lora"
rank = 2
dropout = 0.1
[training]
learning_rate = 1e-2
max_steps = 6
batch_tokens = 400
micro_batch_tokens = 200
evaluations = 3
[evaluation]
resamples = 100
max_notes = 10
"""

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``clinpeft`` in this process: its standard output; the exit code is the first word of the
    error output where it is not 0."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["clinpeft", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        told = capsys.readouterr()
        return told.out if not code else f"exit {code}\n{told.out}{told.err}"

    return run


@pytest.fixture(scope="module")
def base(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture
def recipe(tmp_path: Path, base: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE.format(base=base), encoding="utf-8")
    return path


def only_run(home: Path) -> runs.Run:
    (run,) = runs.find_all_runs(home).runs
    return run


def test_notes_become_a_recorded_run_that_stock_peft_opens(
    command: Command, recipe: Path, base: Path, tmp_path: Path
) -> None:
    said = command("adapt", recipe, "--home", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    assert str(run.folder) in said and run.record.state == "finished"
    made = {
        path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()
    }
    assert {
        "recipe.toml",
        "run.json",
        "log.jsonl",
        "metrics.json",
        "attrition.json",
        "likelihoods.parquet",
    } <= made
    assert {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "tokenizer/tokenizer.json",
    } <= made
    assert run.record.trained_parameters == 2 * 2 * 2 * (
        32 + 32
    )  # rank 2, query and value, 2 layers, width 32 in and out
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # peft reads an attribute that transformers has renamed
        stock = peft.PeftModel.from_pretrained(model, str(run.folder / "adapter"))
    ids = torch.arange(8)[None]
    with torch.no_grad(), stock.disable_adapter():
        bare = stock(input_ids=ids).logits
    with torch.no_grad():
        assert not torch.allclose(stock(input_ids=ids).logits, bare, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(run.folder / "tokenizer")) == model.config.vocab_size


def test_every_split_is_scored_before_and_after_on_the_same_tokens(
    command: Command, recipe: Path, tmp_path: Path
) -> None:
    command("adapt", recipe, "--home", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    rows = {
        (row["group"], row["split"]): row
        for row in run.results.to_pylist()
        if row["name"] == "perplexity"
    }
    for split in ("train", "tuning", "held_out"):
        counted = {rows[state, split]["n_events"] for state in ("unigram", "base", "adapted")}
        assert len(counted) == 1 and rows["adapted", split]["value"] < rows["base", split]["value"]
    before, after = (
        runs.read_run_likelihoods(run, "base"),
        runs.read_run_likelihoods(run, "adapted"),
    )
    assert before.select(["note_id", "tokens"]).equals(after.select(["note_id", "tokens"]))


def test_what_left_is_counted_from_the_first_row_to_the_last_token(
    command: Command, recipe: Path, tmp_path: Path
) -> None:
    command("adapt", recipe, "--home", tmp_path / "runs")
    steps = only_run(tmp_path / "runs").attrition
    assert steps[0].step == "read" and steps[-1].step == "tokens"
    for step, following in itertools.pairwise(steps[:-1]):
        assert following.entered_rows == step.kept_rows
    assert steps[-1].dropped_rows["past the first 30 tokens of its note"] > 0


def test_the_same_recipe_is_run_once(command: Command, recipe: Path, tmp_path: Path) -> None:
    command("adapt", recipe, "--home", tmp_path / "runs")
    first = only_run(tmp_path / "runs")
    log = (first.folder / "log.jsonl").read_bytes()
    command("adapt", recipe, "--home", tmp_path / "runs")
    again = only_run(tmp_path / "runs")
    assert again.record == first.record and (again.folder / "log.jsonl").read_bytes() == log


def test_the_log_holds_numbers_and_no_word_of_a_note(
    command: Command, recipe: Path, tmp_path: Path
) -> None:
    command("adapt", recipe, "--home", tmp_path / "runs")
    run = only_run(tmp_path / "runs")
    events = [
        json.loads(line)
        for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
    notes = tmp_path / "notes"
    synthetic.write_synthetic_hospital(notes, 40, 1234, "mimic-iv")
    written = "".join(
        path.read_text(encoding="utf-8")
        for path in run.folder.rglob("*.json*")
        if path.parent.name != "tokenizer"
    )
    assert "Chief Complaint" not in written and "___" not in written


def test_a_grid_goes_on_past_a_cell_that_fails_and_skips_finished_cells(
    command: Command, recipe: Path, tmp_path: Path
) -> None:
    grid = """
[[grid.cell]]
name = "works"
published = { test_perplexity = 2.244 }
[[grid.cell]]
name = "fails"
adapters = [{ method = "lora", targets = ["nothing_like_this"] }]
"""
    recipe.write_text(recipe.read_text(encoding="utf-8") + grid, encoding="utf-8")
    said = command("adapt", recipe, "--home", tmp_path / "runs")
    assert said.startswith("exit 1") and "nothing_like_this" in said
    table = (tmp_path / "runs" / "tables" / "toy.md").read_text(encoding="utf-8")
    assert "works" in table and "fails" in table and "2.244" in table
    states = sorted(run.record.state for run in runs.find_all_runs(tmp_path / "runs").runs)
    assert states == ["failed", "finished"]
    assert "step 1/6" not in command("adapt", recipe, "--home", tmp_path / "runs").split("fails")[0]


def test_the_papers_table_runs_on_any_base_and_corpus(
    command: Command, base: Path, tmp_path: Path
) -> None:
    synthetic.write_synthetic_hospital(tmp_path / "notes", 12, 1, "mimic-iv")
    changes = {
        "base.path": base,
        "source.path": tmp_path / "notes",
        "training.max_steps": 3,
        "base.max_tokens": 16,
        "evaluation.max_notes": 4,
    }
    changes |= {"evaluation.resamples": 100}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    said = command(
        "adapt", ROOT / "recipes" / "paper-table-2.toml", "--home", tmp_path / "runs", *words
    )
    assert not said.startswith("exit"), said
    table = (tmp_path / "runs" / "tables" / "paper-table-2.md").read_text(encoding="utf-8")
    for name, published in {"LLaMA · LoRA": "2.244", "PMC-LLaMA · P-tuning": "4.572"}.items():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
        assert published in row
    assert (
        len(runs.find_all_runs(tmp_path / "runs").runs) == 9
    )  # on one base, the adaption prompts of both rows are one and the same run


def test_an_encoder_learns_by_masked_tokens(
    command: Command, recipe: Path, toy_bert: Path, tmp_path: Path
) -> None:
    command("adapt", recipe, "--home", tmp_path / "runs", "--set", f"base.path={toy_bert}")
    run = only_run(tmp_path / "runs")
    assert (
        run.record.state == "finished"
        and (run.folder / "adapter" / "adapter_model.safetensors").exists()
    )
    wrong = command(
        "adapt",
        recipe,
        "--home",
        tmp_path / "other",
        "--set",
        f"base.path={toy_bert}",
        "--set",
        "training.objective=causal-lm",
    )
    assert wrong.startswith("exit 2") and "training.objective" in wrong


def test_runs_are_listed_shown_and_compared(command: Command, recipe: Path, tmp_path: Path) -> None:
    home = tmp_path / "runs"
    command("adapt", recipe, "--home", home)
    command("adapt", recipe, "--home", home, "--set", "adapters.0.rank=4", "--set", "name=wider")
    first, second = runs.find_all_runs(home).runs
    listed = command("runs", "--home", home)
    assert first.id in listed and "wider" in listed
    assert "perplexity" in command("runs", "show", first.id[:6], "--home", home)
    compared = command("runs", "compare", "toy", "wider", "--home", home)
    assert "adapters.0.rank" in compared and f"{second.id} / {first.id}" in re.sub(
        r"\s+", " ", compared
    )
    lost = command("runs", "show", "toi", "--home", home)
    assert lost.startswith("exit 2") and "did you mean 'toy'?" in lost


def test_a_recipe_of_another_kind_is_sent_to_its_verb(command: Command, tmp_path: Path) -> None:
    (tmp_path / "cohort.toml").write_text(
        'kind = "cohort"\n[source]\nname = "mimic-iv"\n[task]\nname = "mortality"\n',
        encoding="utf-8",
    )
    said = command("adapt", tmp_path / "cohort.toml")
    assert said.startswith("exit 2") and "give it to: clinpeft cohort" in said


def adapter_of(home: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(only_run(home).folder / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_says_so_and_the_same_command_goes_on(
    command: Command,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    said = progress.format_step

    def interrupt(event: training.StepEvent) -> str:
        if event.step == 3:
            os.kill(os.getpid(), number)
        return said(event)

    with monkeypatch.context() as patched:
        patched.setattr(progress, "format_step", interrupt)
        told = command("adapt", recipe, "--home", tmp_path / "runs")
    assert (
        told.startswith("exit 5")
        and "stopped after step 3 of 6" in told
        and "give the same command" in told
    )
    assert (
        only_run(tmp_path / "runs").state
        == only_run(tmp_path / "runs").record.state
        == "interrupted"
    )
    command("adapt", recipe, "--home", tmp_path / "runs")
    command("adapt", recipe, "--home", tmp_path / "straight")
    went_on, straight = adapter_of(tmp_path / "runs"), adapter_of(tmp_path / "straight")
    assert only_run(tmp_path / "runs").record.state == "finished"
    assert all(torch.equal(went_on[name], tensor) for name, tensor in straight.items())
    log = (
        (only_run(tmp_path / "runs").folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_two_processes_learn_what_one_learns(
    command: Command, recipe: Path, tmp_path: Path
) -> None:
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
        "adapt",
        str(recipe),
        "--home",
        str(tmp_path / "two"),
    ]  # accelerate launch starts one process where there is no GPU
    no_dropout = ["--set", "adapters.0.dropout=0.0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, *no_dropout],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    command("adapt", recipe, "--home", tmp_path / "one", *no_dropout)

    def losses(home: Path) -> list[float]:
        return [
            json.loads(line)["loss"]
            for line in (only_run(home).folder / "log.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        ]

    hardware = only_run(tmp_path / "two").record.hardware
    assert hardware is not None and hardware.devices == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert adapter_of(tmp_path / "two").keys() == adapter_of(tmp_path / "one").keys()
    for name, tensor in adapter_of(tmp_path / "two").items():
        assert torch.allclose(tensor, adapter_of(tmp_path / "one")[name], atol=1e-5)


def test_a_second_process_on_the_same_run_is_refused(
    command: Command, recipe: Path, tmp_path: Path
) -> None:
    command("adapt", recipe, "--home", tmp_path / "runs")
    with lock_folder(only_run(tmp_path / "runs").folder):
        said = command("adapt", recipe, "--home", tmp_path / "runs")
    assert said.startswith(f"exit {RefusedError.exit_code}")
