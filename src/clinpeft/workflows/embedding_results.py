"""Evaluation and record of ``embed``: the base before training, controls, profile, run folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft import adapters, inference, runs
from clinpeft.adapters import AdapterActivity
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA, PAIR_SCORE_SCHEMA
from clinpeft.evaluation import embedding
from clinpeft.models import EmbeddingConfig, FrozenBaseModel
from clinpeft.recipe import EmbedRecipe
from clinpeft.runs import Run
from clinpeft.workflows.context import RunContext, get_code_version, summarize_training
from clinpeft.workflows.embedding_benchmark import EmbeddingBenchmark
from clinpeft.workflows.embedding_evaluation import (
    EmbeddingResults,
    EncodeFunction,
    compare_embedding_results,
    evaluate_embeddings,
    evaluate_lexical_controls,
)
from clinpeft.workflows.encoder import EncoderSetup, create_encode_function
from clinpeft.workflows.fitting import FittedTraining

ZERO_SHOT_STATE, ADAPTED_STATE = "zero-shot", "adapted"


@dataclass(frozen=True)
class EmbeddingOutcome:
    """What was measured of a run of ``embed``.

    Attributes:
        benchmark: what it was evaluated on.
        before: of the base, controls included.
        after: of the adapted model.
        activity: evidence that every trained adapter changed and took part.
        load_seconds: time to load the base.
    """

    benchmark: EmbeddingBenchmark
    before: EmbeddingResults
    after: EmbeddingResults
    activity: AdapterActivity
    load_seconds: float


def evaluate_zero_shot(
    recipe: EmbedRecipe,
    base: FrozenBaseModel,
    embedding_config: EmbeddingConfig,
    benchmark: EmbeddingBenchmark,
    context: RunContext,
) -> EmbeddingResults:
    """Evaluate the base before training, and the controls, once for all runs that share them.

    Args:
        recipe: evaluation and split.
        base: as it was loaded.
        embedding_config: how a text becomes a vector.
        benchmark: what it is evaluated on.
        context: cache.
    """
    folder = context.get_cache_path(
        "zero-shot",
        benchmark.embedding_data.training_books.folder.name,
        recipe.evaluation.model_dump(mode="json"),
        recipe.split.seed,
        base.sha256,
        base.quantization,
        str(embedding_config),
        get_code_version(),
    )
    if not (folder / "names.json").exists():
        encode = create_encode_function(adapters.attach_adapters(base, ()), embedding_config)
        # The control of shuffled pairs needs the vectors that zero-shot needs.
        vectors: dict[tuple[str, tuple[str, ...]], Any] = {}

        def encode_once(texts: Sequence[str], prompt: str) -> Any:
            key = (prompt, tuple(texts))
            if key not in vectors:
                vectors[key] = encode(texts, prompt)
            return vectors[key]

        results = evaluate_embeddings(benchmark, encode_once, embedding_config, ZERO_SHOT_STATE)
        if recipe.evaluation.controls:
            controls = _evaluate_controls(base, embedding_config, benchmark, encode_once)
            results = replace(results, results=pa.concat_tables([results.results, *controls]))
        _write_embedding_results(results, folder)
    return _read_embedding_results(folder)


def _evaluate_controls(
    base: FrozenBaseModel,
    embedding_config: EmbeddingConfig,
    benchmark: EmbeddingBenchmark,
    encode: EncodeFunction,
) -> list[pa.Table]:
    """Lexical indexes, random weights, and pairs whose positives are shuffled."""
    random_base = inference.create_random_base(base, benchmark.seed)
    random_stack = adapters.attach_adapters(random_base, ())
    random_results = evaluate_embeddings(
        benchmark,
        create_encode_function(random_stack, embedding_config),
        embedding_config,
        "random weights",
    )
    return [
        evaluate_lexical_controls(benchmark),
        random_results.results,
        _evaluate_shuffled_pairs(embedding_config, benchmark, encode),
    ]


def _evaluate_shuffled_pairs(
    embedding_config: EmbeddingConfig, benchmark: EmbeddingBenchmark, encode: EncodeFunction
) -> pa.Table:
    """Each anchor with the positive of another: an AUROC near 0.5, or the evaluation is broken."""
    rows = []
    for pair_set in benchmark.pair_sets:
        anchors = encode(pair_set.anchors, embedding_config.query_prompt)
        texts = encode(pair_set.texts["text"].to_pylist(), embedding_config.document_prompt)
        anchors = embedding.normalize_vectors(anchors, pair_set.anchor_ids, "")
        texts = embedding.normalize_vectors(texts, pair_set.text_ids, "")
        score = embedding.build_cosine_scorer(anchors[pair_set.anchor_rows], texts)
        partners = embedding.shuffle_partners(len(pair_set.anchor_rows), benchmark.create_rng())
        scores = embedding.score_anchor_pairs(
            score,
            replace(pair_set.pairs, positives=pair_set.pairs.positives[partners]),
            {"random": pair_set.negatives["random"]},
        )
        rows.append(
            embedding.evaluate_separation(
                scores,
                "shuffled pairs",
                rng=benchmark.create_rng(),
                task=pair_set.name,
                **benchmark.bootstrap_options,
            )
        )
    return pa.concat_tables(rows)


def _write_embedding_results(embedding_results: EmbeddingResults, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pq.write_table(embedding_results.results, folder / "results.parquet")
    parts = {"scores": embedding_results.scores, "queries": embedding_results.queries}
    for part, tables in parts.items():
        for position, table in enumerate(tables.values()):
            pq.write_table(table, folder / f"{part}-{position}.parquet")
    names = {part: list(tables) for part, tables in parts.items()}
    runs.write_file_atomically(folder / "names.json", json.dumps(names))  # last: all are there


def _read_embedding_results(folder: Path) -> EmbeddingResults:
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    scores, queries = (
        {
            name: pq.read_table(folder / f"{part}-{position}.parquet")
            for position, name in enumerate(names[part])
        }
        for part in ("scores", "queries")
    )
    return EmbeddingResults(scores, queries, pq.read_table(folder / "results.parquet"))


def record_encoder_run(
    recipe: EmbedRecipe,
    run: Run,
    setup: EncoderSetup,
    fitted: FittedTraining,
    outcome: EmbeddingOutcome,
    context: RunContext,
) -> Run:
    """Write encoder, scores, results and record into the run's folder, by the first process.

    Args:
        recipe: evaluation.
        run: the run.
        setup: the trained encoder.
        fitted: its training.
        outcome: what was measured.
        context: clock, device and processes.
    """
    if not context.accelerator.is_main_process:
        return run
    stack, config, benchmark = setup.stack, setup.embedding_config, outcome.benchmark
    inference.save_encoder(run.folder, stack, config)
    adapters.save_stack_reference_output(stack, run.folder)
    states = (ZERO_SHOT_STATE, ADAPTED_STATE)
    results = [
        outcome.before.results,
        outcome.after.results,
        compare_embedding_results(benchmark, outcome.before, outcome.after, states),
    ]
    texts = benchmark.pair_sets[0].texts["text"].to_pylist()[: recipe.evaluation.profile_texts]
    if texts:
        results.append(_profile_adapted_encoder(stack, config, texts, outcome.load_seconds))
    summary = summarize_training(run, context, stack, fitted.result)
    pair_counts = {f"pairs.{split}": count for split, count in setup.pair_counts.items()}
    return runs.finish_run(
        run,
        results=pa.concat_tables(results),
        attrition=_collect_attrition(setup, benchmark),
        tables={"pair_scores": _concatenate_pair_scores(outcome.before, outcome.after)},
        liveness=outcome.activity.as_json(),
        **summary | {"counts": summary["counts"] | pair_counts},
        notices=(*stack.notices, *setup.notices),
    )


def _collect_attrition(setup: EncoderSetup, benchmark: EmbeddingBenchmark) -> list[Any]:
    data = benchmark.embedding_data
    return [
        *data.training_books.attrition,
        setup.attrition,
        *(data.other_books.attrition if data.other_books else ()),
        *(pair_set.attrition for pair_set in benchmark.pair_sets),
        *(
            step
            for sets in (data.retrieval_sets, data.general_retrieval_sets)
            for retrieval_set in sets.values()
            for step in retrieval_set.attrition
        ),
    ]


def _concatenate_pair_scores(before: EmbeddingResults, after: EmbeddingResults) -> pa.Table:
    """The scores of all pairs in both states, with the columns ``task`` and ``state``."""
    schema = functools.reduce(
        lambda fields, name: fields.append(pa.field(name, pa.string())),
        ("task", "state"),
        PAIR_SCORE_SCHEMA,
    )
    return pa.concat_tables(
        [
            table.append_column("task", pa.repeat(task, len(table)))
            .append_column("state", pa.repeat(state, len(table)))
            .cast(schema)
            for state, results in ((ZERO_SHOT_STATE, before), (ADAPTED_STATE, after))
            for task, table in results.scores.items()
        ]
    )


def _profile_adapted_encoder(
    stack: adapters.Stack, embedding_config: EmbeddingConfig, texts: list[str], load_seconds: float
) -> pa.Table:
    """Speed and memory as results without interval; their definition says how they were
    measured."""
    profile = inference.profile_encoder(
        stack, embedding_config, list(dict.fromkeys(texts)), load_seconds, precision="auto"
    )
    conditions = (
        f"{profile.texts} held-out texts of {profile.tokens} tokens, {profile.batch_policy}, "
        f"{profile.precision}, {profile.threads} threads, {profile.device}"
    )
    names = (
        *("embeddings_per_second", "tokens_per_second", "latency_ms_p50", "latency_ms_p95"),
        *("peak_memory_bytes", "load_seconds", "parameters", "dimension"),
    )
    rows = [
        {
            "name": name,
            "value": float(getattr(profile, name)),
            "n": profile.texts,
            "split": "held_out",
            "group": ADAPTED_STATE,
            "definition": f"{name.replace('_', ' ')}: {conditions}; no interval",
            "task": "profile",
        }
        for name in names
    ]
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)
