"""The whole embed path on toy models: from the handbook of the invented hospital, or a few invented
books, to a recorded encoder that is used."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from clinpeft import inference, training
from clinpeft import runs as registry
from clinpeft.cli import progress
from clinpeft.core.schemas import Attrition
from clinpeft.models import EmbeddingConfig
from clinpeft.recipe import EmbedRecipe
from clinpeft.workflows import encoder
from tests.conftest import ROOT, WORDS, MakeFolder
from tests.test_classify import clinpeft

CPU = torch.device("cpu")
CANARY = "zebra quokka wombat"
TASK = "held-out chapters"

RECIPE = """
kind = "embed"
name = "{name}"
[source]
{source}
[pairs]
kinds = ["term-definition", "question-answer", "heading-paragraph"]
[split]
by = "chapter"
train = 0.6
tuning = 0.2
held_out = 0.2
[base]
path = "{base}"
pooling = "{pooling}"
max_tokens = 24
precision = "float32"
[[adapters]]
method = "lora"
rank = 2
[training]
learning_rate = 1e-2
max_steps = 6
batch_pairs = 8
apart_by = "text"
micro_batch_tokens = 400
evaluations = 2
checkpoints = 3
[evaluation]
resamples = 100
controls = {controls}
profile_texts = 0
"""
LORA = "adapters/1-lora/adapter_model.safetensors"


def written(
    folder: Path,
    base: Path,
    book: Path | None = None,
    pooling: str = "mean",
    name: str = "toy",
    controls: bool = False,
) -> Path:
    """The recipe of this file's runs: on the handbook, or on a book."""
    source = f'name = "books"\npath = "{book}"' if book else 'name = "handbook"'
    path = folder / f"{name}.toml"
    path.write_text(
        RECIPE.format(
            name=name, source=source, base=base, pooling=pooling, controls=str(controls).lower()
        ),
        encoding="utf-8",
    )
    return path


def told(recipe: Path, home: Path, *changes: str) -> Any:
    """What the verb says."""
    return clinpeft(
        "embed", recipe, "--home", home, *(word for change in changes for word in ("--set", change))
    )


def embed(recipe: Path, home: Path, *changes: str) -> registry.Run:
    """The run that the verb makes, or finds."""
    before = {run.id for run in registry.find_all_runs(home).runs} if home.exists() else set()
    said = told(recipe, home, *changes)
    assert said.code == 0, said.err
    made = [run for run in registry.find_all_runs(home).runs if run.id not in before]
    assert len(made) <= 1
    return (
        made[0]
        if made
        else registry.find_run(home, said.out.rstrip().rsplit("/", 1)[-1], finished_only=True)
    )


def markdown(folder: Path, chapters: int = 8, seed: int = 0, said: str = "") -> Path:
    """A book of invented sentences in the words that the toy tokenizers know; each chapter has
    terms, and questions with answers."""
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    lines = []
    for number in range(1, chapters + 1):
        lines += [f"# Chapter of {words(2)} {number}", words(20) + said, words(15)]
        for _ in range(4):
            lines += [f"Question: {words(7)}?", f"Answer: {words(12)}."]
        lines += ["## Key terms", "\n".join(f"- **{words(3)}**: {words(9)}" for _ in range(4))]
    path = folder / "book.md"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(run: registry.Run, **wanted: str) -> list[dict[str, Any]]:
    """The results of a run in which these columns have these values."""
    return [
        row
        for row in run.results.to_pylist()
        if all(row[name] == value for name, value in wanted.items())
    ]


def jsonl(path: Path, objects: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    return path


def opened(run: registry.Run) -> tuple[Any, EmbeddingConfig]:
    assert isinstance(run.recipe, EmbedRecipe)
    return inference.load_encoder(run.folder, run.recipe.base, CPU)


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return markdown(tmp_path_factory.mktemp("book"))


@pytest.fixture
def recipe(tmp_path: Path, toy_bert: Path, book: Path) -> Path:
    return written(tmp_path, toy_bert, book)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_bert: Path) -> registry.Run:
    """BERT, read by the mean, on the handbook, with all controls."""
    folder = tmp_path_factory.mktemp("finished")
    return embed(written(folder, toy_bert, controls=True), folder / "runs")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said = [
        "the patient is a man",
        "heart failure and cough",
        "the patient is a man",
        "no fever no chest pain was found on exam",
    ]
    return jsonl(
        tmp_path_factory.mktemp("texts") / "texts.jsonl", [{"text": text} for text in said]
    )


def lines_of(texts: Path) -> list[str]:
    return [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines()]


# whole runs ---------------------------------------------------------------------------------------


def test_a_run_on_the_handbook_records_encoder_scores_and_every_state_beside_its_controls(
    finished: registry.Run,
) -> None:
    for name in (
        LORA,
        "encoder.json",
        "pair_scores.parquet",
        "metrics.json",
        "tokenizer/tokenizer.json",
        "attrition.json",
        "recipe.toml",
    ):
        assert (finished.folder / name).is_file(), name
    assert not (finished.folder / "model").exists()
    measured = {row["group"].partition(" · ")[0] for row in rows(finished, task=TASK)}
    assert measured == {
        "BM25",
        "TF-IDF",
        "random weights",
        "shuffled pairs",
        "zero-shot",
        "adapted",
        "adapted - zero-shot",
    }
    for row in rows(finished, task=TASK, name="auroc_difference"):
        stratum = row["group"].partition(" · ")[2]
        after, before = (
            rows(finished, task=TASK, name="auroc", group=f"{state} · {stratum}")
            for state in ("adapted", "zero-shot")
        )
        assert row["value"] == pytest.approx(after[0]["value"] - before[0]["value"])
        assert row["low"] <= row["value"] <= row["high"]
    assert {
        row["group"].partition(" · ")[2] for row in rows(finished, name="auroc_difference")
    } == {"random", "same book", "same chapter", "mined"}
    assert rows(finished, name="ndcg_at_10_difference", task=TASK)


def test_the_liveness_of_every_adapter_is_recorded(finished: registry.Run) -> None:
    assert finished.record.liveness is not None and "1-lora" in json.dumps(finished.record.liveness)
    assert (
        finished.record.trained_parameters is not None
        and finished.record.trained_parameters > 0
        and finished.record.counts["pairs.train"] > 8
    )


@pytest.mark.parametrize("pooling", ["last", "cls"])
def test_a_decoder_read_at_its_last_token_and_an_encoder_read_at_its_first_are_adapted_too(
    pooling: str, llama: Path, toy_bert: Path, tmp_path: Path
) -> None:
    run = embed(
        written(tmp_path, {"last": llama, "cls": toy_bert}[pooling], pooling=pooling),
        tmp_path / "runs",
    )
    assert (
        json.loads((run.folder / "encoder.json").read_text(encoding="utf-8"))["manner"]["pooling"]
        == pooling
    )
    before, after = (
        rows(run, task=TASK, name="separation", group=f"{state} · random")[0]["value"]
        for state in ("zero-shot", "adapted")
    )
    assert before is not None and after is not None and before != after


def test_the_padding_side_of_a_tokenizer_changes_no_weight(
    llama: Path, book: Path, tmp_path: Path
) -> None:
    made = []
    for side in ("left", "right"):
        base = shutil.copytree(llama, tmp_path / side / "base")
        config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
        (base / "tokenizer_config.json").write_text(
            json.dumps(config | {"padding_side": side}), encoding="utf-8"
        )
        made.append(embed(written(tmp_path / side, base, book, "last"), tmp_path / side / "runs"))
    left, right = ((run.folder / LORA).read_bytes() for run in made)
    assert left == right


def test_the_same_command_again_returns_the_run(finished: registry.Run) -> None:
    home = finished.folder.parent
    again = embed(home.parent / "toy.toml", home)
    assert again.id == finished.id and again.record.started == finished.record.started


@pytest.mark.parametrize(
    "change", ["training.max_steps=5", "adapters=[]"], ids=["LoRA", "all weights"]
)
def test_the_encoder_that_was_kept_gives_the_scores_that_were_recorded(
    change: str, recipe: Path, tmp_path: Path
) -> None:
    run = embed(
        recipe,
        tmp_path / "runs",
        change,
        f"base.trainable={str(change.startswith('adapters')).lower()}",
    )
    assert (run.folder / "model" / "config.json").is_file() is change.startswith("adapters")
    (material,) = (tmp_path / "runs" / "cache").glob("pairs-*/pairs.parquet")
    held = {
        row["pair_id"]: row
        for row in pq.read_table(material).to_pylist()
        if row["split"] == "held_out"
    }
    kept = registry.read_run_table(run, "pair_scores")
    kept = kept.filter(pc.and_(kept["related"], pc.equal(kept["state"], "adapted")))
    stack, embedding_config = opened(run)
    ids = kept["pair_id"].to_pylist()
    sides = [
        inference.encode_texts(stack, embedding_config, [held[name][side] for name in ids])
        for side in ("anchor", "positive")
    ]
    cosines = [
        one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        for one, other in zip(*sides, strict=True)
    ]
    assert len(ids) > 5 and np.allclose(cosines, kept["score"].to_numpy(), atol=1e-5)


def test_an_interrupted_run_goes_on_to_the_very_same_weights(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, change = progress.format_step, 'adapters=[{ method = "lora", rank = 2, dropout = 0.1 }]'

    def interrupt(event: training.StepEvent) -> str:
        if event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return said(event)

    with monkeypatch.context() as patched:
        patched.setattr(progress, "format_step", interrupt)
        stopped_by = told(recipe, tmp_path / "runs", change)
    assert stopped_by.code == 5 and "give the same command" in stopped_by.err
    (stopped,) = registry.find_all_runs(tmp_path / "runs").runs
    assert stopped.state == "interrupted" and not (stopped.folder / "encoder.json").exists()
    assert told(recipe, tmp_path / "runs", change).code == 0
    straight = embed(recipe, tmp_path / "straight", change)
    assert straight.id == stopped.id
    assert (stopped.folder / LORA).read_bytes() == (straight.folder / LORA).read_bytes()


def test_triplets_hard_negatives_and_nested_vectors_can_be_asked_for(
    recipe: Path, tmp_path: Path
) -> None:
    asked = (
        "training.objective=triplet",
        "mining.hard_negatives=2",
        "training.matryoshka_dims=[8, 16]",
        "training.max_steps=3",
    )
    run = embed(recipe, tmp_path / "runs", *asked)
    assert any(notice.startswith("hard negatives: ") for notice in run.record.notices)
    assert rows(run, task=TASK, name="separation", group="adapted · random")[0]["value"] is not None


def test_a_share_of_the_pairs_is_learned_from_and_the_rest_is_counted(
    recipe: Path, tmp_path: Path
) -> None:
    home, runs = tmp_path / "runs", {}
    for share in (1.0, 0.5):
        runs[share] = embed(recipe, home, f"training.fraction={share}", "training.max_steps=2")
    whole, half = (runs[share].record.counts["pairs.train"] for share in (1.0, 0.5))
    assert (
        half == round(whole / 2)
        and runs[1.0].record.counts["pairs.tuning"] == runs[0.5].record.counts["pairs.tuning"]
    )
    (step,) = [
        step
        for step in json.loads((runs[0.5].folder / "attrition.json").read_text(encoding="utf-8"))
        if step["step"] == "share"
    ]
    assert (step["entered"], step["dropped"], step["kept"]) == (
        whole,
        {"not in the fraction that is trained on": whole - half},
        half,
    )
    assert (
        len(list((home / "cache").glob("pairs-*/pairs.parquet"))) == 1
    )  # what is asked is the same
    assert len(list((home / "cache").glob("zero-shot-*"))) == 1
    assert told(recipe, home, "training.fraction=0.001").code == 3


def test_shares_of_the_pairs_are_drawn_by_the_seed_and_nest() -> None:
    pairs = pa.table({"pair_id": [f"p{at}" for at in range(200)]})

    def drawn(share: float, seed: int = 1) -> list[str]:
        found: list[str] = encoder.sample_training_pairs(pairs, share, seed, Attrition("share"))[
            "pair_id"
        ].to_pylist()
        return found

    names = pairs["pair_id"].to_pylist()
    assert (
        len(drawn(0.1)) == 20
        and set(drawn(0.1)) < set(drawn(0.3)) < set(drawn(1.0))
        and drawn(1.0) == names
    )
    assert drawn(0.3) == [name for name in names if name in set(drawn(0.3))]  # in their order
    assert drawn(0.3) == drawn(0.3) != drawn(0.3, seed=2)


def test_what_loading_took_is_in_the_profile(recipe: Path, tmp_path: Path) -> None:
    run = embed(recipe, tmp_path / "runs", "evaluation.profile_texts=4", "training.max_steps=2")
    measured = {row["name"]: row["value"] for row in rows(run, task="profile")}
    assert measured["load_seconds"] > 0 and measured["embeddings_per_second"] > 0


# the grid of a study ------------------------------------------------------------------------------


def test_a_grid_ends_with_the_tables_and_figures_of_the_study(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "runs"
    grid = (
        '[[grid.backbone]]\nname = "half"\n"training.fraction" = 0.5\n'
        "[grid.backbone.published]\nseparation = 0.51\nzero_shot_separation = 0.033\n"
    )
    recipe.write_text(
        recipe.read_text(encoding="utf-8") + grid + '[[grid.backbone]]\nname = "all"\n',
        encoding="utf-8",
    )
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "matplotlib", None)
        said = told(recipe, home, "training.max_steps=2", "evaluation.profile_texts=4")
    assert said.code == 0, said.err
    assert "no figures: matplotlib is not installed" in said.out and "clinpeft[figures]" in said.out
    folder = home / "embed-toy"
    assert {path.stem for path in (folder / "tables").iterdir()} == {
        f"table-{at}" for at in range(1, 6)
    }
    assert not (folder / "figures").exists()
    first = (folder / "tables" / "table-1.md").read_text(encoding="utf-8")
    assert "0.510" in first and "published separation" in first  # beside what was measured
    ablation = (folder / "tables" / "table-4.csv").read_text(encoding="utf-8").splitlines()
    assert [round(float(line.partition(",")[0]), 1) for line in ablation[1:]] == [
        0.5,
        1.0,
    ]  # of the pairs
    pytest.importorskip("matplotlib")
    made = len(registry.find_all_runs(home).runs)
    said = told(recipe, home, "training.max_steps=2", "evaluation.profile_texts=4")
    assert (
        said.code == 0 and len(registry.find_all_runs(home).runs) == made
    )  # finished cells are not made again
    for name in ("figure-1", "figure-3", "figure-9", "figure-13"):
        assert {path.suffix for path in (folder / "figures").glob(f"{name}.*")} == {
            ".svg",
            ".png",
        }, name
    assert "figures" in said.out.splitlines()[-3] and (folder / "figures" / "figures.md").is_file()


# what else is read --------------------------------------------------------------------------------


def test_pairs_made_elsewhere_are_learned_from_as_well(recipe: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    sides = [[" ".join(draw.choices(WORDS, k=9)) for _ in range(2)] for _ in range(20)]
    path = jsonl(
        tmp_path / "pairs.jsonl", [{"query": one, "answer": other} for one, other in sides]
    )
    home = tmp_path / "runs"
    run = embed(recipe, home, f'pairs.imported=[{{ path = "{path}", kind = "paraphrase" }}]')
    (material,) = (home / "cache").glob("pairs-*/pairs.parquet")
    table = pq.read_table(material)
    learned = table.filter(
        pc.and_(pc.equal(table["kind"], "paraphrase"), pc.equal(table["split"], "train"))
    )
    asked = table.filter(
        pc.and_(pc.equal(table["kind"], "paraphrase"), pc.equal(table["split"], "held_out"))
    )["pair_id"].to_pylist()
    clusters = {
        row["cluster"]
        for row in registry.read_run_table(run, "pair_scores").to_pylist()
        if row["pair_id"] in asked
    }
    assert asked and clusters == {None}  # a pair of unknown origin is resampled on its own
    assert len(learned) > 5 and run.record.counts["pairs.train"] == sum(
        split == "train" for split in table["split"].to_pylist()
    )
    path.write_text(
        path.read_text(encoding="utf-8") + '{"query": "heart", "answer": "failure"}\n',
        encoding="utf-8",
    )
    other = embed(recipe, home, f'pairs.imported=[{{ path = "{path}", kind = "paraphrase" }}]')
    assert other.id != run.id  # what a file holds is part of what a run is


def test_the_protocol_of_the_study_and_a_set_to_search_are_measured_before_and_after(
    recipe: Path, tmp_path: Path
) -> None:
    draw = random.Random(2)
    for kind in ("similar", "different", "negation"):
        pairs = [
            {
                "anchor": " ".join(draw.choices(WORDS, k=6)),
                "positive": " ".join(draw.choices(WORDS, k=6)),
            }
            for _ in range(6)
        ]
        jsonl(tmp_path / "study" / f"{kind}.jsonl", pairs)
    found = tmp_path / "beir"
    jsonl(
        found / "corpus.jsonl",
        [
            {"_id": f"p{at}", "title": "", "text": " ".join(draw.choices(WORDS, k=12))}
            for at in range(12)
        ],
    )
    jsonl(
        found / "queries.jsonl",
        [{"_id": f"q{at}", "text": " ".join(draw.choices(WORDS, k=5))} for at in range(4)],
    )
    (found / "qrels").mkdir()
    judged = "".join(f"q{at}\tp{at}\t{1 + at % 2}\n" for at in range(4))
    (found / "qrels" / "test.tsv").write_text(
        f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8"
    )
    run = embed(
        recipe,
        tmp_path / "runs",
        f"evaluation.study={tmp_path / 'study'}",
        f'evaluation.retrieval=[{{ name = "hearts", path = "{found}" }}]',
    )
    groups = {row["group"] for row in rows(run, task="hearts", name="ndcg_at_10")}
    assert groups == {"zero-shot", "adapted"} and rows(
        run, task="hearts", name="ndcg_at_10_difference"
    )
    stack, embedding_config = opened(run)
    pairs = [
        json.loads(line)
        for line in (tmp_path / "study" / "similar.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    one, other = (
        inference.encode_texts(stack, embedding_config, [pair[side] for pair in pairs])
        for side in ("anchor", "positive")
    )
    cosine = float(
        np.mean((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))
    )
    recorded = [
        row["value"]
        for row in run.results.to_pylist()
        if row["task"] == "study" and row["group"].startswith("adapted")
    ]
    assert any(value == pytest.approx(cosine, abs=1e-5) for value in recorded if value is not None)
    said = clinpeft(
        "evaluate",
        run.id,
        "--search",
        found,
        "--home",
        tmp_path / "runs",
        "--to",
        tmp_path / "again",
    )
    assert said.code == 0, said.err
    (written_again,) = (tmp_path / "again" / "tables").glob("*.csv")
    with written_again.open(encoding="utf-8") as file:
        again = {(row["model"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    for row in rows(run, task="hearts", name="ndcg_at_10") + rows(
        run, task="hearts", name="ndcg_at_10_difference"
    ):
        assert again[row["group"], row["name"]] == pytest.approx(row["value"], abs=1e-3), (
            "a set that is asked later is answered as during the run"
        )
    assert ("BM25", "ndcg_at_10") in again


def test_no_sentence_of_a_book_is_in_what_is_told_or_recorded(
    toy_bert: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, toy_bert, markdown(tmp_path, said=f" {CANARY}"))
    said = told(
        path,
        tmp_path / "runs",
        "pairs.kinds=['adjacent', 'heading-paragraph']",
        "pairs.max_overlap=1",
    )
    assert said.code == 0, said.err
    (material,) = (tmp_path / "runs" / "cache").glob("pairs-*/pairs.parquet")
    assert any(
        CANARY in text for text in pq.read_table(material)["positive"].to_pylist()
    )  # it was read
    assert CANARY not in said.out + said.err
    (run,) = registry.find_all_runs(tmp_path / "runs").runs
    for file in (file for file in run.folder.rglob("*") if file.is_file()):
        assert CANARY.encode() not in file.read_bytes(), file.name
    assert CANARY not in json.dumps(registry.read_run_table(run, "pair_scores").to_pylist())


# what a run is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_encode_writes_the_vectors_of_the_texts_in_their_order(
    ending: str, finished: registry.Run, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"vectors.{ending}"
    said = clinpeft(
        "encode", finished.id, "--texts", texts, "--out", out, "--home", finished.folder.parent
    )
    assert said.code == 0, said.err
    assert "4 vectors of 32" in said.out
    found = np.load(out) if ending == "npy" else np.array(pq.read_table(out)["vector"].to_pylist())
    stack, embedding_config = opened(finished)
    assert np.allclose(
        found,
        inference.encode_texts(
            stack, embedding_config, lines_of(texts), embedding_config.document_prompt
        ),
        atol=1e-6,
    )
    assert np.array_equal(found[0], found[2]) and not np.allclose(found[0], found[1])


def test_export_opens_in_sentence_transformers_with_the_same_vectors(
    finished: registry.Run, texts: Path, tmp_path: Path
) -> None:
    stock = pytest.importorskip("sentence_transformers")
    said = clinpeft(
        "export", finished.id, "--to", tmp_path / "out", "--home", finished.folder.parent
    )
    assert said.code == 0, said.err
    assert (tmp_path / "out" / "README.md").is_file()
    model = stock.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
    stack, embedding_config = opened(finished)
    assert (
        np.abs(
            model.encode(lines_of(texts))
            - inference.encode_texts(stack, embedding_config, lines_of(texts))
        ).max()
        <= 1e-5
    )


def test_export_to_onnx_writes_a_graph_and_says_how_near_it_is(
    finished: registry.Run, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    said = clinpeft(
        "export",
        finished.id,
        "--format",
        "onnx",
        "--out",
        tmp_path / "out",
        "--home",
        finished.folder.parent,
    )
    assert said.code == 0, said.err
    parity = json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8"))
    assert (
        parity["texts"] > 40
        and parity["largest_difference"] <= parity["allowed"]
        and f"on {parity['texts']} texts" in said.out
    )
    assert (
        json.loads((tmp_path / "out" / "encoder.json").read_text(encoding="utf-8"))["pooling"]
        == "mean"
    )
    assert (tmp_path / "out" / "model.onnx").is_file() and (
        tmp_path / "out" / "tokenizer.json"
    ).is_file()


def test_export_to_onnx_without_its_packages_names_the_extra(
    finished: registry.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    home = finished.folder.parent
    said = clinpeft(
        "export", finished.id, "--format", "onnx", "--out", tmp_path / "out", "--home", home
    )
    assert said.code == 2 and "clinpeft[onnx]" in said.err and not (tmp_path / "out").exists()
    said = clinpeft(
        "export",
        finished.id,
        "--format",
        "onnx",
        "--out",
        tmp_path / "out",
        "--adapter",
        "--home",
        home,
    )
    assert said.code == 2 and "base and adapter in one" in said.err


def test_what_exists_is_not_written_over(
    finished: registry.Run, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "there.npy"
    out.write_bytes(b"mine")
    home = finished.folder.parent
    for said in (
        clinpeft("encode", finished.id, "--texts", texts, "--out", out, "--home", home),
        clinpeft("export", finished.id, "--out", out, "--home", home),
        clinpeft("export", finished.id, "--format", "onnx", "--out", out, "--home", home),
    ):
        assert said.code == 4 and "exists" in said.err
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("empty", [1, 700], ids=["among few", "among many"])
def test_an_empty_text_is_an_error_and_no_shift_of_rows(
    empty: int, finished: registry.Run, tmp_path: Path
) -> None:
    said = ["the patient is a man"] * (empty + 1)
    said[empty] = " "
    texts = jsonl(
        tmp_path / "texts.jsonl", [{"text": text} for text in said] + [{"text": "cough"}] * 400
    )
    answer = clinpeft(
        "encode",
        finished.id,
        "--texts",
        texts,
        "--out",
        tmp_path / "out.npy",
        "--home",
        finished.folder.parent,
    )
    assert answer.code == 3 and "empty" in answer.err and "hint" in answer.err
    assert not (tmp_path / "out.npy").exists()


# bad input ----------------------------------------------------------------------------------------


def test_a_run_of_another_kind_holds_no_encoder(tmp_path: Path, texts: Path) -> None:
    home = tmp_path / "runs"
    smoke = [
        "--set",
        "training.max_steps=1",
        "--set",
        "evaluation.resamples=100",
        "--set",
        "evaluation.max_notes=2",
    ]
    assert clinpeft("adapt", ROOT / "recipes" / "smoke.toml", "--home", home, *smoke).code == 0
    said = clinpeft(
        "encode", "smoke", "--texts", texts, "--out", tmp_path / "out.npy", "--home", home
    )
    assert said.code == 2 and "is of kind adapt" in said.err and "take a run of embed" in said.err
    assert clinpeft("export", "smoke", "--to", tmp_path / "out", "--home", home).code == 2
    assert clinpeft("evaluate", "smoke", "--search", tmp_path, "--home", home).code == 2
    assert clinpeft("embed", ROOT / "recipes" / "smoke.toml", "--home", home).code == 2


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("source.name=synthetic", 2, "holds no books"),
        ("source={ name = 'books' }", 2, "has no path"),
        ("source.path={there}/nothing.md", 3, "there is no such file"),
        ("source.path={there}/empty.md", 3, "empty.md"),
        ("source.path={there}/one.md", 3, "1 pair"),
        ("pairs.imported=[{ path = '{there}/column.jsonl' }]", 3, "its only column is 'text'"),
        ("base.pooling=auto", 3, "set pooling = "),
        ("base.backbone=BAAI/bge-small-en", 2, "did you mean 'BAAI/bge-small-en-v1.5'"),
        ("base.backbone=BAAI/bge-small-en-v1.5", 3, "of width 384"),
        ("split.held_out_names=['The Spleen']", 2, "no chapter with pairs is called 'The Spleen'"),
    ],
)
def test_what_cannot_be_learned_from_is_named_with_a_way_out(
    change: str, code: int, said: str, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.md").write_text("", encoding="utf-8")
    (tmp_path / "one.md").write_text(
        "# Heart\n\nQuestion: what is known?\n\nAnswer: the patient is stable.\n", encoding="utf-8"
    )
    jsonl(tmp_path / "column.jsonl", [{"text": "cough"}] * 3)
    answer = told(recipe, tmp_path / "runs", change.replace("{there}", str(tmp_path)))
    assert answer.code == code and said in answer.err, answer.err
    assert "hint" in answer.err or "did you mean" in answer.err
    assert len(answer.err.strip().splitlines()) <= 6


def test_a_cell_that_fails_stands_in_the_table_and_the_others_go_on(
    recipe: Path, tmp_path: Path
) -> None:
    grid = '[[grid.way]]\nname = "unknown"\n"base.pooling" = "auto"\n[[grid.way]]\nname = "mean"\n'
    recipe.write_text(recipe.read_text(encoding="utf-8") + grid, encoding="utf-8")
    said = told(recipe, tmp_path / "runs", "training.max_steps=2")
    assert (
        said.code == 1
        and "unknown: " in said.err
        and "set pooling = " in said.err
        and "mean: " in said.out
    )
    (run,) = [
        run for run in registry.find_all_runs(tmp_path / "runs").runs if run.state == "finished"
    ]
    assert run.record.kind == "embed"
