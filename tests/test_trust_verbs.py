"""What a review asks, answered by commands: verify, privacy, release, purge, audit; on a real run
of each kind, with planted words searched for."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft import runs
from clinpeft.cli import audit as cli_audit
from clinpeft.data import notes as corpus
from clinpeft.recipe import AdaptRecipe
from clinpeft.runs import audit_log
from clinpeft.workflows import RunContext, privacy_attacks
from tests.conftest import ROOT
from tests.test_classify import Said, clinpeft

CANARY = "Wolfram Quixley keeps marmots"
CATEGORIES = ("Cardiology", "Surgery")
SUBJECTS = 40
FIRST_SUBJECT = 77_000_001  # numbers that stand nowhere else

SOURCE = """
[source]
name = "files"
path = "{notes}"
columns = {{ note_id = "note_id", subject_id = "subject_id", category = "category", text = "text" }}
[split]
train = 0.5
tuning = 0.1
held_out = 0.4
[base]
path = "{base}"
max_tokens = 64
precision = "float32"
"""
ADAPT = (
    'kind = "adapt"\nname = "language"\n'
    + SOURCE
    + """
[[adapters]]
method = "lora"
rank = 8
alpha = 32
[training]
learning_rate = 1e-2
max_steps = 6
batch_tokens = 1024
micro_batch_tokens = 1024
evaluations = 1
[evaluation]
resamples = 100
[privacy]
canaries = 2
repeats = [1, 4]
"""
)
CLASSIFY = (
    'kind = "classify"\nname = "question"\n'
    + SOURCE
    + """
[task]
name = "note_category"
[[adapters]]
method = "lora"
rank = 2
[training]
learning_rate = 1e-3
max_steps = 2
batch_notes = 8
micro_batch_tokens = 1024
evaluations = 1
[evaluation]
resamples = 100
baselines = false
"""
)


class House:
    """A home with a run of adapt and one of classify."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.home, notes = folder / "home", folder / "notes.csv"
        rng = np.random.default_rng(0)
        words = "fever cough pain oxygen clinic stable discharged heart lungs clear swollen".split()
        with notes.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["note_id", "subject_id", "category", "text"])
            for at in range(SUBJECTS):
                text = f"{CANARY}. " + " ".join(rng.choice(words, 30))
                writer.writerow([f"note-{at}", FIRST_SUBJECT + at, CATEGORIES[at % 2], text])
        for name, recipe in (("language", ADAPT), ("question", CLASSIFY)):
            (folder / f"{name}.toml").write_text(
                recipe.format(notes=notes, base=base), encoding="utf-8"
            )
            said = self.verb(
                name.replace("language", "adapt").replace("question", "classify"),
                folder / f"{name}.toml",
            )
            assert said.code == 0, said.err

    def verb(self, *words: object) -> Said:
        return clinpeft(*words, "--home", self.home)

    def run(self, name: str) -> runs.Run:
        return runs.find_run(self.home, name)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house")
    base = folder / "small-base"
    shutil.copytree(ROOT / "assets" / "small-base", base)
    return House(folder, base)


@pytest.fixture(scope="module")
def attacked(house: House) -> House:
    options = (
        "--resamples",
        100,
        "--prompt-tokens",
        12,
        "--continuation-tokens",
        12,
        "--overlap-tokens",
        6,
        "--subjects",
        5,
        "--candidates",
        16,
    )
    for name in ("language", "question"):
        said = house.verb("privacy", name, *options)
        assert said.code == 0, said.err
    return house


def test_everything_that_is_written_is_for_its_user_alone(house: House) -> None:
    paths = [house.home, *house.home.rglob("*")]
    assert len(paths) > 60
    assert not [path for path in paths if path.stat().st_mode & 0o077]


def test_a_run_verifies_and_one_byte_of_anything_fails(house: House) -> None:
    for name in ("language", "question"):
        said = house.verb("verify", name)
        assert said.code == 0, said.err
        assert "the output is that of the saved model" in said.out
        assert "compared and the same; none changed" in said.out
    weights = house.run("language").folder / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    said = house.verb("verify", "language", "--no-probe")
    weights.write_bytes(before)
    assert (said.code, "adapter/adapter_model.safetensors (changed)" in said.err) == (4, True)


def test_another_base_and_another_source_are_told(house: House) -> None:
    config = house.home.parent / "small-base" / "generation_config.json"
    tokenizer = house.home.parent / "small-base" / "tokenizer_config.json"
    before = tokenizer.read_bytes()
    tokenizer.write_bytes(before + b"\n")
    notes = house.home.parent / "notes.csv"
    notes.rename(notes.with_suffix(".away"))
    said = house.verb("verify", "question")
    notes.with_suffix(".away").rename(notes)
    tokenizer.write_bytes(before)
    assert config.exists()
    assert said.code == 4
    assert "base and tokenizer (changed)" in said.err
    assert "probe (changed)" in said.err
    assert "source" not in said.err, "what is not there any more is no change"
    assert "absent" in said.out


def test_predict_refuses_a_head_that_was_changed(house: House, tmp_path: Path) -> None:
    path = house.run("question").folder / "head.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"mean"', b'"last"').replace(b'"Surgery"', b'"Surgerx"'))
    said = house.verb(
        "predict",
        "question",
        "--notes",
        house.home.parent / "notes.csv",
        "--out",
        tmp_path / "out.parquet",
    )
    path.write_bytes(before)
    assert (said.code, "head.json (changed)" in said.err) == (4, True)
    assert not (tmp_path / "out.parquet").exists()


def test_canaries_are_learned_are_counted_and_are_in_no_other_number(house: House) -> None:
    run = house.run("language")
    planted = next(step for step in run.attrition if step.step == "canaries put in")
    assert (planted.entered_rows, planted.kept_rows) == (10, 10)
    assert "10 notes on 4 invented people" in " ".join(run.record.notices)
    scored = runs.read_run_likelihoods(run, "adapted")
    assert not [note for note in scored["note_id"].to_pylist() if note.startswith("canary/")]
    assert min(scored["subject_id"].to_pylist()) >= FIRST_SUBJECT


def test_every_secret_is_ranked_before_and_after_for_each_number_of_repeats(
    attacked: House,
) -> None:
    found = {
        row["group"]: row
        for row in privacy_of(attacked, "language")["results"]
        if row["name"] == "canary_exposure_bits"
    }
    assert set(found) == {
        f"{state}, {repeats} repeats" for state in ("base", "adapted") for repeats in (1, 4)
    }
    assert all(0 <= float(str(row["value"])) <= 4 and row["n"] == 2 for row in found.values())


def test_a_model_that_knows_the_secrets_has_the_highest_exposure(
    attacked: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and adapted model are replaced by one that is surprised by every number but the planted
    ones, and one that is surprised alike."""
    recipe = attacked.run("language").recipe
    assert isinstance(recipe, AdaptRecipe)
    planted = {
        canary.format_note() for canary in corpus.generate_canaries(recipe.privacy, recipe.seed)
    }

    def surprises(
        _: object, __: object, notes: list[tuple[str, int, str]], *___: object
    ) -> Iterator[tuple[str, pa.Table]]:
        for state, knows in (("base", False), ("adapted", True)):
            surprised = [0.0 if knows and text in planted else 1.0 for _, _, text in notes]
            yield (
                state,
                pa.table(
                    {
                        "note_id": [one[0] for one in notes],
                        "subject_id": [one[1] for one in notes],
                        "negative_log_likelihood": surprised,
                    }
                ),
            )

    monkeypatch.setattr(privacy_attacks, "_score_canary_notes", surprises)
    asked = privacy_attacks.PrivacyAuditConfig(resamples=100, candidates=16)
    no_stack: Any = None  # the scoring of notes is replaced above
    rows = privacy_attacks._measure_canary_exposure(
        recipe, no_stack, RunContext(attacked.home), asked
    ).to_pylist()
    assert {row["group"].split(",")[0]: row["value"] for row in rows} == {
        "base": 0.0,
        "adapted": 4.0,
    }


def privacy_of(house: House, name: str) -> dict[str, Any]:
    return dict(json.loads((house.run(name).folder / "privacy.json").read_text()))


def test_an_audit_has_intervals_names_its_weights_and_counts_subjects(attacked: House) -> None:
    found = privacy_of(attacked, "language")
    assert found["weights"] == runs.hash_trained_weights(attacked.run("language").folder)
    auc = next(row for row in found["results"] if row["name"] == "membership_auroc")
    assert auc["low"] is not None
    subjects = runs.read_run_likelihoods(attacked.run("language"), "adapted").to_pylist()
    asked = {row["subject_id"] for row in subjects if row["split"] in ("train", "held_out")}
    assert auc["n"] == len(asked)
    words = {
        (row["group"], row["split"]): row
        for row in found["results"]
        if row["name"] == "verbatim_share"
    }
    assert set(words) == {
        (state, split) for state in ("base", "adapted") for split in ("train", "held_out")
    }
    assert all(row["n"] == 5 for row in words.values())


def test_the_files_for_sacro_ml_are_probabilities_without_a_header(attacked: House) -> None:
    folder = attacked.run("question").folder / "privacy" / "note_category"
    train, test = (
        np.loadtxt(folder / f"proba_{word}.csv", delimiter=",") for word in ("train", "test")
    )
    assert train.shape[1] == test.shape[1] == 2
    assert np.allclose(train.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(np.load(folder / "proba_train.npy"), train, atol=1e-8)
    assert len(np.loadtxt(folder / "y_train.csv")) == len(train)
    kept = pq.read_table(attacked.run("question").folder / "predictions.parquet").to_pylist()
    held_out = [row["probabilities"] for row in kept if row["split"] == "held_out"]
    assert np.allclose(sorted(row[0] for row in held_out), sorted(test[:, 0]), atol=1e-5)


def test_a_run_that_was_not_audited_is_not_released(house: House, tmp_path: Path) -> None:
    path = house.run("question").folder / "privacy.json"
    away = path.with_suffix(".away")
    if path.exists():
        path.rename(away)
    said = house.verb("release", "question", "--to", tmp_path / "out", "--data-licence", "invented")
    if away.exists():
        away.rename(path)
    assert (said.code, "no privacy audit" in said.err) == (4, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["language", "question"])
def test_nothing_of_a_note_a_person_a_user_or_a_folder_leaves(
    attacked: House, tmp_path: Path, name: str
) -> None:
    with (attacked.run(name).folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": CANARY}) + "\n")
    (attacked.run(name).folder / "left.writing").write_text(CANARY)
    said = attacked.verb(
        "release", name, "--to", tmp_path / "out", "--data-licence", "invented, CC0"
    )
    assert said.code == 0, said.err
    files = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    expected = {"README.md", "SHA256SUMS", "manifest.json", "metrics.json", "privacy.json"}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "clinpeft.json"}
    assert {Path(path).name for path in files} == expected | adapter | (
        {"head.json", "head.safetensors"} if name == "question" else set()
    )
    ids = [str(FIRST_SUBJECT + at) for at in range(SUBJECTS)] + [
        f"note-{at}" for at in range(SUBJECTS)
    ]
    private = [
        *CANARY.split(),
        *ids,
        str(attacked.home),
        str(tmp_path),
        f"/{cli_audit.get_user_name()}/",
        *os.environ.get("HOME", "").split(),
    ]
    text = {path: content for path, content in files.items() if not path.endswith(".safetensors")}
    assert not [
        (path, word)
        for path, content in text.items()
        for word in private
        if word.encode() in content
    ]
    about = json.loads(files["manifest.json"])
    assert about["data_licence"] == "invented, CC0"
    for row in (*json.loads(files["metrics.json"]), *json.loads(files["privacy.json"])["results"]):
        n, events = row["n"], row["n_events"]
        counts = [
            n,
            row["n_subjects"],
            events,
            n - events if events is not None and events <= n else None,
        ]
        assert not [count for count in counts if count is not None and 0 < count < 10], row


def test_a_finding_of_few_subjects_is_withheld_in_what_leaves(
    attacked: House, tmp_path: Path
) -> None:
    assert (
        attacked.verb(
            "release", "language", "--to", tmp_path / "out", "--data-licence", "invented"
        ).code
        == 0
    )
    rows = json.loads((tmp_path / "out" / "privacy.json").read_text())["results"]
    assert {row["value"] for row in rows if row["name"] == "verbatim_share"} == {None}, (
        "they rest on five subjects"
    )


def test_every_verb_that_made_something_left_a_line(attacked: House, tmp_path: Path) -> None:
    before = len(audit_log.read_audit_lines(attacked.home))
    assert (
        attacked.verb(
            "release", "question", "--to", tmp_path / "out", "--data-licence", "invented"
        ).code
        == 0
    )
    assert (
        attacked.verb(
            "predict",
            "question",
            "--notes",
            attacked.home.parent / "notes.csv",
            "--out",
            tmp_path / "a.parquet",
        ).code
        == 0
    )
    assert attacked.verb("adapt", attacked.home.parent / "language.toml").code == 0
    lines = audit_log.read_audit_lines(attacked.home)
    assert [line["verb"] for line in lines[:2]] == ["adapt", "classify"]
    assert [line["verb"] for line in lines[before:]] == ["release", "predict"], (
        "a run that was there already was not made again"
    )
    run = attacked.run("language")
    first = lines[0]
    assert (first["run"], first["data"], first["who"]) == (
        run.id,
        run.record.hashes.source,
        cli_audit.get_user_name(),
    )
    assert first["result"] == runs.compute_path_checksum(run.folder / "run.json")
    assert first["recipe"] == run.record.files["recipe.toml"]
    assert first["counts"]["canaries put in.entered"] == 10
    assert lines[before]["result"] == runs.compute_path_checksum(tmp_path / "out")
    assert CANARY.split(maxsplit=1)[0] not in (attacked.home / "audit.jsonl").read_text()
    said = attacked.verb("audit", "verify")
    assert (said.code, f"head {lines[-1]['hash']}" in said.out) == (0, True)
    assert attacked.verb("audit", "verify", "--seen", "0" * 64).code == 4
    assert attacked.verb("audit", "show").out.count("predict") >= 1


def test_a_run_that_failed_left_a_line_too(house: House, tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = clinpeft(
        "adapt", house.home.parent / "language.toml", "--set", "base.path=/nowhere", "--home", home
    )
    assert said.code == 3
    assert [
        (line["verb"], line["state"], line["result"]) for line in audit_log.read_audit_lines(home)
    ] == [("adapt", "failed", "")]


def test_purge_asks_and_then_no_word_of_a_note_is_left(house: House, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(house.home, home)
    assert clinpeft("purge", "--home", home).code == 2
    kept = len(list(home.rglob("*")))
    assert clinpeft("purge", "--caches", "--home", home).code != 0, "nobody said yes"
    assert len(list(home.rglob("*"))) == kept
    for name in ("language", "question"):
        said = clinpeft("purge", name, "--predictions", "--caches", "--yes", "--home", home)
        assert said.code == 0, said.err
    assert "removed" in said.out
    assert not list((home / "cache").iterdir())
    words = [
        path
        for path in home.rglob("*")
        if path.is_file() and CANARY.split()[1].encode() in path.read_bytes()
    ]
    assert not [path for path in words if path.name not in ("log.jsonl", "left.writing")]
    assert clinpeft("verify", "question", "--home", home).code == 0
    assert (
        clinpeft("purge", "--caches", "--yes", "--home", home).out == "there is nothing to remove\n"
    )


def test_a_bundle_goes_in_by_the_verbs(house: House, tmp_path: Path) -> None:
    packed, home = tmp_path / "bundle.tar", tmp_path / "home"
    recipe = house.home.parent / "language.toml"
    assert (
        clinpeft(
            "bundle",
            "make",
            "--base",
            ROOT / "assets" / "small-base",
            "--recipes",
            recipe,
            "--out",
            packed,
            "--home",
            home,
        ).code
        == 0
    )
    said = clinpeft("bundle", "verify", packed)
    assert (said.code, runs.compute_path_checksum(packed) in said.out) == (0, True)
    assert clinpeft("bundle", "unpack", packed, "--to", tmp_path / "in", "--home", home).code == 0
    assert (tmp_path / "in" / "recipes" / "language.toml").read_bytes() == recipe.read_bytes()
    assert [line["verb"] for line in audit_log.read_audit_lines(home)] == [
        "bundle make",
        "bundle unpack",
    ]
    packed.write_bytes(packed.read_bytes().replace(b"kind = ", b"kind : "))
    assert clinpeft("bundle", "verify", packed).code == 4
