"""The parts of ``embed``: texts to learn from, what was measured before and after, the record."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinpeft import adapters, inference, models, runs, training
from clinpeft.adapters import AdapterActivity, Stack
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA, PAIR_SCORE_SCHEMA, Attrition
from clinpeft.evaluation import embedding
from clinpeft.models import FrozenBaseModel, EmbeddingConfig
from clinpeft.recipe import EmbedRecipe, EncoderModelSpec
from clinpeft.runs import Run
from clinpeft.training import Accelerator, Trainable, TrainingResult
from clinpeft.workflows import embedding_evaluation, quantization
from clinpeft.workflows.context import (
    RunContext,
    compute_cache_key,
    get_code_version,
    summarize_training,
)
from clinpeft.workflows.embedding_evaluation import EmbeddingBenchmark, EmbeddingResults
from clinpeft.workflows.textbooks import EmbeddingData

ZERO_SHOT_STATE, ADAPTED_STATE = "zero-shot", "adapted"
PROBE_PAIR_COUNT = 4
NOT_IN_TRAINING_FRACTION = "not in the share that is learned from"


@dataclass(frozen=True)
class ContrastiveSetup:
    """What is learned: the course, a few vectors to prove it by, what should be known of it, and which pairs it is."""

    trainable: Trainable
    compute_probe_vectors: Callable[[], Any]
    notices: tuple[str, ...]
    pair_counts: Mapping[str, int]
    attrition: Attrition


def load_base_timed(
    spec: EncoderModelSpec, accelerator: Accelerator
) -> tuple[FrozenBaseModel, float]:
    """The base as it comes, and the seconds from its folder to it."""
    began = time.perf_counter()
    base = models.load_base_model(
        quantization.disable_quantization(spec), accelerator.device, "vectors"
    )
    return base, time.perf_counter() - began


def resolve_recipe_embedding_config(recipe: EmbedRecipe) -> EmbeddingConfig:
    """How a text becomes a vector: the backbone's own way, but for what the recipe says otherwise."""
    spec = recipe.base
    own = models.resolve_embedding_config(
        spec.path, spec.backbone, None if spec.pooling == "auto" else spec.pooling
    )
    return replace(
        own,
        max_tokens=min(own.max_tokens, spec.max_tokens),
        query_prompt=own.query_prompt if spec.query_prompt is None else spec.query_prompt,
        document_prompt=own.document_prompt
        if spec.document_prompt is None
        else spec.document_prompt,
    )


def evaluate_encoder(
    stack: Stack, embedding_config: EmbeddingConfig, benchmark: EmbeddingBenchmark, state: str
) -> EmbeddingResults:
    """Everything that is asked, of a stack as it is now."""
    return embedding_evaluation.evaluate_embeddings(
        benchmark, create_encode_function(stack, embedding_config), embedding_config, state
    )


def create_encode_function(
    stack: Stack, embedding_config: EmbeddingConfig
) -> embedding_evaluation.EncodeFunction:
    """Texts to vectors, by a stack as it is now."""
    return lambda texts, prompt: inference.encode_texts(
        stack, embedding_config, list(texts), prompt, precision="auto"
    )


def _cache_encode_function(
    encode_function: embedding_evaluation.EncodeFunction,
) -> embedding_evaluation.EncodeFunction:
    """The same, but texts that were asked before are not encoded again: the controls ask what zero-shot asked."""
    known: dict[tuple[str, bytes], Any] = {}

    def remembered(texts: Sequence[str], prompt: str) -> Any:
        name = (prompt, hashlib.sha256("\0".join(texts).encode()).digest())
        if name not in known:
            known[name] = encode_function(texts, prompt)
        return known[name]

    return remembered


def evaluate_zero_shot(
    recipe: EmbedRecipe,
    base: FrozenBaseModel,
    embedding_config: EmbeddingConfig,
    benchmark: EmbeddingBenchmark,
    home: Path,
) -> EmbeddingResults:
    """The base as it comes, and the controls: the same in every run on the same base and books, so it is measured once."""
    asked_of = (
        benchmark.embedding_data.training_books.folder.name,
        recipe.evaluation.model_dump(mode="json"),
        recipe.split.seed,
        base.sha256,
        base.quantization,
    )
    folder = (
        home
        / "cache"
        / f"zero-shot-{compute_cache_key(*asked_of, str(embedding_config), get_code_version())}"
    )
    if not (folder / "names.json").exists():
        encode = _cache_encode_function(
            create_encode_function(adapters.attach_adapters(base, ()), embedding_config)
        )
        found = embedding_evaluation.evaluate_embeddings(
            benchmark, encode, embedding_config, ZERO_SHOT_STATE
        )
        if recipe.evaluation.controls:
            found = replace(
                found,
                results=pa.concat_tables(
                    [found.results, *_evaluate_controls(base, embedding_config, benchmark, encode)]
                ),
            )
        _write_embedding_results(found, folder)
    return _read_embedding_results(folder)


def _evaluate_controls(
    base: FrozenBaseModel,
    embedding_config: EmbeddingConfig,
    benchmark: EmbeddingBenchmark,
    encode: embedding_evaluation.EncodeFunction,
) -> list[pa.Table]:
    """What has to lose, or to end at chance."""
    random = evaluate_encoder(
        adapters.attach_adapters(inference.create_random_base(base, benchmark.seed), ()),
        embedding_config,
        benchmark,
        "random weights",
    )
    return [
        embedding_evaluation.evaluate_lexical_controls(benchmark),
        random.results,
        _evaluate_shuffled_pairs(embedding_config, benchmark, encode),
    ]


def _evaluate_shuffled_pairs(
    embedding_config: EmbeddingConfig,
    benchmark: EmbeddingBenchmark,
    encode: embedding_evaluation.EncodeFunction,
) -> pa.Table:
    """Every anchor with the positive of another: an AUROC near one half, or the evaluation is broken."""
    rows = []
    for one in benchmark.pair_sets:
        anchors, texts = (
            encode(one.anchors, embedding_config.query_prompt),
            encode(one.texts["text"].to_pylist(), embedding_config.document_prompt),
        )
        names = [f"t{row}" for row in range(len(texts))]
        score = embedding.build_cosine_scorer(
            embedding.normalize_vectors(anchors, one.anchor_ids, "")[one.anchor_rows],
            embedding.normalize_vectors(texts, names, ""),
        )
        partner = embedding.shuffle_partners(len(one.anchor_rows), benchmark.create_rng())
        scores = embedding.score_anchor_pairs(
            score,
            replace(one.pairs, positives=one.pairs.positives[partner]),
            {"random": one.negatives["random"]},
        )
        rows.append(
            embedding.evaluate_separation(
                scores,
                "shuffled pairs",
                rng=benchmark.create_rng(),
                task=one.name,
                **benchmark.bootstrap_options,
            )
        )
    return pa.concat_tables(rows)


def _write_embedding_results(embedding_results: EmbeddingResults, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pq.write_table(embedding_results.results, folder / "results.parquet")
    for name, part in (
        ("scores", embedding_results.scores),
        ("queries", embedding_results.queries),
    ):
        for at, table in enumerate(part.values()):
            pq.write_table(table, folder / f"{name}-{at}.parquet")
    runs.write_file_atomically(
        folder / "names.json",
        json.dumps(
            {"scores": list(embedding_results.scores), "queries": list(embedding_results.queries)}
        ),
    )


def _read_embedding_results(folder: Path) -> EmbeddingResults:
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    parts = {
        part: {
            name: pq.read_table(folder / f"{part}-{at}.parquet")
            for at, name in enumerate(names[part])
        }
        for part in ("scores", "queries")
    }
    return EmbeddingResults(
        parts["scores"], parts["queries"], pq.read_table(folder / "results.parquet")
    )


def build_contrastive_setup(
    recipe: EmbedRecipe,
    stack: Stack,
    embedding_config: EmbeddingConfig,
    embedding_data: EmbeddingData,
    accelerator: Accelerator,
) -> ContrastiveSetup:
    """The pairs of the training split as a course, their negatives mined with the model as it is now, if any are asked for."""
    table, attrition = embedding_data.training_books.pairs, Attrition("share")
    parts = {split: table.filter(pc.equal(table["split"], split)) for split in ("train", "tuning")}
    parts["train"] = sample_training_pairs(
        parts["train"], recipe.training.fraction, recipe.seed, attrition
    )
    texts, train, tuning = _number_texts(parts["train"], parts["tuning"], embedding_config)
    read = inference.build_text_batch_encoder(
        stack,
        embedding_config,
        texts.prompted_texts,
        recipe.training.micro_batch_tokens,
        accelerator.device,
    )
    known = training.TextAttributes(
        read.lengths, texts.text_codes, texts.passage_codes, texts.section_codes
    )
    embedder = training.Embedder(read.embed, read.make_batches, stack.base.width)
    pairs, notices = _add_hard_negatives(
        recipe, stack, embedding_config, texts, training.TextPairs(known, *train), accelerator
    )
    measure = (
        training.build_tuning_evaluation(
            training.TextPairs(known, *tuning), embedder, recipe.training, recipe.seed, accelerator
        )
        if len(tuning[0])
        else None
    )
    course = training.build_contrastive_trainable(
        pairs,
        embedder,
        stack.trained_parameters,
        stack.train,
        recipe.training,
        recipe.seed,
        accelerator,
        measure,
        training.TUNING_LOSS if measure else "",
    )
    chosen = np.unique(np.concatenate([side[:PROBE_PAIR_COUNT] for side in train]))
    cut = (
        f"{read.truncated_texts} of {len(read.lengths)} texts to learn from are longer than {embedding_config.max_tokens} tokens, and were cut",
    )
    told = (*(cut if read.truncated_texts else ()), *notices)
    return ContrastiveSetup(
        course,
        lambda: read.embed(chosen),
        told,
        {split: len(part) for split, part in parts.items()},
        attrition,
    )


def sample_training_pairs(
    pairs: pa.Table, fraction: float, seed: int, attrition: Attrition
) -> pa.Table:
    """The share of the pairs that is learned from, in their order: those that come first by a hash of seed and id, so that shares nest.

    Raises:
        InputError: fewer than two are left; learning by contrast needs two.
    """
    attrition.entered_rows += len(pairs)
    if fraction == 1.0:
        return pairs
    kept = round(fraction * len(pairs))
    if kept < 2:
        message = (
            f"{fraction:g} of {len(pairs)} pairs is {kept}, and learning by contrast needs two"
        )
        raise InputError(
            message, location="training.fraction", hint="take a larger share, or give more books"
        )
    drawn = [
        hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
        for name in pairs["pair_id"].to_pylist()
    ]
    attrition.drop_rows(NOT_IN_TRAINING_FRACTION, len(pairs) - kept)
    return pairs.take(pa.array(sorted(sorted(range(len(pairs)), key=drawn.__getitem__)[:kept])))


@dataclass(frozen=True)
class _PairTexts:
    """The texts of pairs: with their prompts, and what is the same about them."""

    prompted_texts: list[str]
    plain_texts: list[str]
    text_codes: Any
    passage_codes: Any
    section_codes: Any


def _number_texts(
    train: pa.Table, tuning: pa.Table, embedding_config: EmbeddingConfig
) -> tuple[_PairTexts, tuple[Any, Any], tuple[Any, Any]]:
    """Every text once for each side it stands on, and both splits as ids of texts."""
    numbered: dict[tuple[str, str], int] = {}
    passages: list[str | None] = []
    sections: list[tuple[str, str] | None] = []
    sides = []
    for table in (train, tuning):
        for side, prompt in (
            ("anchor", embedding_config.query_prompt),
            ("positive", embedding_config.document_prompt),
        ):
            ids = []
            columns = (table[name].to_pylist() for name in (side, f"{side}_id", "book", "section"))
            for text, passage, book, section in zip(*columns, strict=True):
                at = numbered.setdefault((prompt, text), len(numbered))
                if at == len(passages):
                    passages.append(passage)
                    sections.append(None if section is None else (book, section))
                ids.append(at)
            sides.append(np.asarray(ids, dtype=np.int64))
    plain = [text for _, text in numbered]
    texts = _PairTexts(
        [prompt + text for prompt, text in numbered],
        plain,
        *(_factorize_values(values) for values in (plain, passages, sections)),
    )
    return texts, (sides[0], sides[1]), (sides[2], sides[3])


def _factorize_values(values: Sequence[Any]) -> Any:
    """(values,) equal numbers where they are equal; -1 for what is unknown."""
    numbers: dict[Any, int] = {}
    return np.asarray(
        [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values],
        dtype=np.int64,
    )


def _add_hard_negatives(
    recipe: EmbedRecipe,
    stack: Stack,
    embedding_config: EmbeddingConfig,
    texts: _PairTexts,
    pairs: training.TextPairs,
    accelerator: Accelerator,
) -> tuple[training.TextPairs, tuple[str, ...]]:
    if not recipe.mining.hard_negatives:
        return pairs, ()
    corpus = np.unique(pairs.positives)
    encode = functools.partial(inference.encode_texts, stack, embedding_config, precision="auto")
    found = encode([texts.prompted_texts[at] for at in corpus])
    anchors = encode([texts.prompted_texts[at] for at in pairs.anchors])
    positives = found[np.searchsorted(corpus, pairs.positives)]
    mined = training.mine_hard_negatives(
        pairs,
        anchors,
        positives,
        corpus,
        found,
        recipe.mining,
        np.random.default_rng([recipe.seed, 5]),
        accelerator.device,
    )
    told = f"hard negatives: {mined.random_count} of {mined.negatives.size} are random texts, {mined.missing_count} are missing"
    return replace(pairs, negatives=mined.negatives), (told,)


def record_encoder_run(
    recipe: EmbedRecipe,
    run: Run,
    context: RunContext,
    accelerator: Accelerator,
    stack: Stack,
    embedding_config: EmbeddingConfig,
    training_result: TrainingResult,
    adapter_activity: AdapterActivity,
    results_by_state: tuple[EmbeddingResults, EmbeddingResults],
    benchmark: EmbeddingBenchmark,
    setup: ContrastiveSetup,
    load_seconds: float,
) -> Run:
    """Encoder, scores, numbers and record into the run folder, by the first process."""
    if not accelerator.is_main_process:
        return run
    before, after = results_by_state
    inference.save_encoder(run.folder, stack, embedding_config)
    adapters.save_stack_reference_output(stack, run.folder)
    held = benchmark.pair_sets[0].texts["text"].to_pylist()[: recipe.evaluation.profile_texts]
    profile = (
        [_profile_adapted_encoder(stack, embedding_config, held, load_seconds)] if held else []
    )
    results = [
        before.results,
        after.results,
        embedding_evaluation.compare_embedding_results(
            benchmark, before, after, (ZERO_SHOT_STATE, ADAPTED_STATE)
        ),
        *profile,
    ]
    shelf = benchmark.embedding_data
    steps = [
        *shelf.training_books.attrition,
        setup.attrition,
        *(shelf.other_books.attrition if shelf.other_books else ()),
        *(one.attrition for one in benchmark.pair_sets),
    ]
    steps += [
        step
        for found in (*shelf.retrieval_sets.values(), *shelf.general_retrieval_sets.values())
        for step in found.attrition
    ]
    known = summarize_training(run, context, accelerator, stack, training_result)
    return runs.finish_run(
        run,
        results=pa.concat_tables(results),
        attrition=steps,
        tables={"pair_scores": _concatenate_pair_scores(before, after)},
        liveness=adapter_activity.as_json(),
        **{
            **known,
            "counts": known["counts"]
            | {f"pairs.{split}": count for split, count in setup.pair_counts.items()},
        },
        notices=(*stack.notices, *setup.notices),
    )


def _concatenate_pair_scores(before: EmbeddingResults, after: EmbeddingResults) -> pa.Table:
    """The scores of all pairs in both states, for figures."""
    parts = [
        table.append_column("task", pa.repeat(task, len(table))).append_column(
            "state", pa.repeat(state, len(table))
        )
        for state, found in ((ZERO_SHOT_STATE, before), (ADAPTED_STATE, after))
        for task, table in found.scores.items()
    ]
    schema = PAIR_SCORE_SCHEMA.append(pa.field("task", pa.string())).append(
        pa.field("state", pa.string())
    )
    return pa.concat_tables([part.cast(schema) for part in parts])


def _profile_adapted_encoder(
    stack: Stack, embedding_config: EmbeddingConfig, texts: list[str], load_seconds: float
) -> pa.Table:
    """Speed and memory of the adapted model, as results without an interval; what they were measured on stands in their definition."""
    found = inference.profile_encoder(
        stack, embedding_config, list(dict.fromkeys(texts)), load_seconds, precision="auto"
    )
    about = f"{found.texts} held-out texts of {found.tokens} tokens, {found.batch_policy}, {found.precision}, {found.threads} threads, {found.device}"
    speed = ("embeddings_per_second", "tokens_per_second", "latency_ms_p50", "latency_ms_p95")
    names = (*speed, "peak_memory_bytes", "load_seconds", "parameters", "dimension")
    rows = [
        {
            "name": name,
            "value": float(getattr(found, name)),
            "n": found.texts,
            "split": "held_out",
            "group": ADAPTED_STATE,
            "definition": f"{name.replace('_', ' ')}: {about}; no interval",
            "task": "profile",
        }
        for name in names
    ]
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)
