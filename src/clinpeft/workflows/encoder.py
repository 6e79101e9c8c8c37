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
from clinpeft.adapters import Liveness, Stack
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import PAIR_SCORE, RESULT, Attrition
from clinpeft.evaluation import embedding
from clinpeft.models import Base, Manner
from clinpeft.recipe import EmbedRecipe, ReaderSpec
from clinpeft.runs import Run
from clinpeft.training import Course, Crew, Fitted
from clinpeft.workflows import embedding_evaluation, quantization
from clinpeft.workflows.context import Circumstances, code_version, key, outcome
from clinpeft.workflows.embedding_evaluation import Asking, Measured
from clinpeft.workflows.textbooks import Shelf

ZERO_SHOT, ADAPTED = "zero-shot", "adapted"
PROBE_PAIRS = 4
NOT_SHARED = "not in the share that is learned from"


@dataclass(frozen=True)
class Learning:
    """What is learned: the course, a few vectors to prove it by, what should be known of it, and which pairs it is."""

    course: Course
    probe: Callable[[], Any]
    notices: tuple[str, ...]
    pairs: Mapping[str, int]
    attrition: Attrition


def loaded(spec: ReaderSpec, accelerator: Crew) -> tuple[Base, float]:
    """The base as it comes, and the seconds from its folder to it."""
    began = time.perf_counter()
    base = models.load(quantization.whole(spec), accelerator.device, "vectors")
    return base, time.perf_counter() - began


def manner_of(recipe: EmbedRecipe) -> Manner:
    """How a text becomes a vector: the backbone's own way, but for what the recipe says otherwise."""
    spec = recipe.base
    own = models.manner_of(
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


def measured(stack: Stack, embedding_config: Manner, asked: Asking, state: str) -> Measured:
    """Everything that is asked, of a stack as it is now."""
    return embedding_evaluation.measured(
        asked, encoding(stack, embedding_config), embedding_config, state
    )


def encoding(stack: Stack, embedding_config: Manner) -> embedding_evaluation.Encode:
    """Texts to vectors, by a stack as it is now."""
    return lambda texts, prompt: inference.vectors(
        stack, embedding_config, list(texts), prompt, precision="auto"
    )


def _remembering(encode: embedding_evaluation.Encode) -> embedding_evaluation.Encode:
    """The same, but texts that were asked before are not encoded again: the controls ask what zero-shot asked."""
    known: dict[tuple[str, bytes], Any] = {}

    def remembered(texts: Sequence[str], prompt: str) -> Any:
        name = (prompt, hashlib.sha256("\0".join(texts).encode()).digest())
        if name not in known:
            known[name] = encode(texts, prompt)
        return known[name]

    return remembered


def zero_shot(
    recipe: EmbedRecipe, base: Base, embedding_config: Manner, asked: Asking, home: Path
) -> Measured:
    """The base as it comes, and the controls: the same in every run on the same base and books, so it is measured once."""
    asked_of = (
        asked.shelf.learned.folder.name,
        recipe.evaluation.model_dump(mode="json"),
        recipe.split.seed,
        base.sha256,
        base.quantization,
    )
    folder = home / "cache" / f"zero-shot-{key(*asked_of, str(embedding_config), code_version())}"
    if not (folder / "names.json").exists():
        encode = _remembering(encoding(adapters.attach(base, ()), embedding_config))
        found = embedding_evaluation.measured(asked, encode, embedding_config, ZERO_SHOT)
        if recipe.evaluation.controls:
            found = replace(
                found,
                results=pa.concat_tables(
                    [found.results, *_controls(base, embedding_config, asked, encode)]
                ),
            )
        _store(found, folder)
    return _stored(folder)


def _controls(
    base: Base, embedding_config: Manner, asked: Asking, encode: embedding_evaluation.Encode
) -> list[pa.Table]:
    """What has to lose, or to end at chance."""
    random = measured(
        adapters.attach(inference.random_base(base, asked.seed), ()),
        embedding_config,
        asked,
        "random weights",
    )
    return [
        embedding_evaluation.lexical_controls(asked),
        random.results,
        _shuffled(embedding_config, asked, encode),
    ]


def _shuffled(
    embedding_config: Manner, asked: Asking, encode: embedding_evaluation.Encode
) -> pa.Table:
    """Every anchor with the positive of another: an AUROC near one half, or the evaluation is broken."""
    rows = []
    for one in asked.exams:
        anchors, texts = (
            encode(one.anchors, embedding_config.query_prompt),
            encode(one.texts["text"].to_pylist(), embedding_config.document_prompt),
        )
        names = [f"t{row}" for row in range(len(texts))]
        score = embedding.cosine_score(
            embedding.unit(anchors, one.anchors_ids, "")[one.anchor_of],
            embedding.unit(texts, names, ""),
        )
        partner = embedding.shuffled(len(one.anchor_of), asked.rng())
        scores = embedding.pair_scores(
            score,
            replace(one.pairs, positives=one.pairs.positives[partner]),
            {"random": one.drawn["random"]},
        )
        rows.append(
            embedding.separation(
                scores, "shuffled pairs", rng=asked.rng(), task=one.name, **asked.options
            )
        )
    return pa.concat_tables(rows)


def _store(found: Measured, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pq.write_table(found.results, folder / "results.parquet")
    for name, part in (("scores", found.scores), ("queries", found.queries)):
        for at, table in enumerate(part.values()):
            pq.write_table(table, folder / f"{name}-{at}.parquet")
    runs.write_atomically(
        folder / "names.json",
        json.dumps({"scores": list(found.scores), "queries": list(found.queries)}),
    )


def _stored(folder: Path) -> Measured:
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    parts = {
        part: {
            name: pq.read_table(folder / f"{part}-{at}.parquet")
            for at, name in enumerate(names[part])
        }
        for part in ("scores", "queries")
    }
    return Measured(parts["scores"], parts["queries"], pq.read_table(folder / "results.parquet"))


def learning(
    recipe: EmbedRecipe, stack: Stack, embedding_config: Manner, shelf: Shelf, accelerator: Crew
) -> Learning:
    """The pairs of the training split as a course, their negatives mined with the model as it is now, if any are asked for."""
    table, attrition = shelf.learned.pairs, Attrition("share")
    parts = {split: table.filter(pc.equal(table["split"], split)) for split in ("train", "tuning")}
    parts["train"] = shared(parts["train"], recipe.training.share, recipe.seed, attrition)
    texts, train, tuning = _as_ids(parts["train"], parts["tuning"], embedding_config)
    read = inference.learning(
        stack,
        embedding_config,
        texts.prompted,
        recipe.training.micro_batch_tokens,
        accelerator.device,
    )
    known = training.Texts(read.lengths, texts.same, texts.passages, texts.sections)
    embedder = training.Embedder(read.embed, read.grouped, stack.base.width)
    pairs, notices = _with_negatives(
        recipe, stack, embedding_config, texts, training.TextPairs(known, *train), accelerator
    )
    measure = (
        training.tuning(
            training.TextPairs(known, *tuning), embedder, recipe.training, recipe.seed, accelerator
        )
        if len(tuning[0])
        else None
    )
    course = training.contrastive(
        pairs,
        embedder,
        stack.trained,
        stack.train,
        recipe.training,
        recipe.seed,
        accelerator,
        measure,
        training.TUNING_LOSS if measure else "",
    )
    chosen = np.unique(np.concatenate([side[:PROBE_PAIRS] for side in train]))
    cut = (
        f"{read.truncated} of {len(read.lengths)} texts to learn from are longer than {embedding_config.max_tokens} tokens, and were cut",
    )
    told = (*(cut if read.truncated else ()), *notices)
    return Learning(
        course,
        lambda: read.embed(chosen),
        told,
        {split: len(part) for split, part in parts.items()},
        attrition,
    )


def shared(pairs: pa.Table, share: float, seed: int, attrition: Attrition) -> pa.Table:
    """The share of the pairs that is learned from, in their order: those that come first by a hash of seed and id, so that shares nest.

    Raises:
        InputError: fewer than two are left; learning by contrast needs two.
    """
    attrition.entered += len(pairs)
    if share == 1.0:
        return pairs
    kept = round(share * len(pairs))
    if kept < 2:
        message = f"{share:g} of {len(pairs)} pairs is {kept}, and learning by contrast needs two"
        raise InputError(
            message, location="training.share", hint="take a larger share, or give more books"
        )
    drawn = [
        hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
        for name in pairs["pair_id"].to_pylist()
    ]
    attrition.drop(NOT_SHARED, len(pairs) - kept)
    return pairs.take(pa.array(sorted(sorted(range(len(pairs)), key=drawn.__getitem__)[:kept])))


@dataclass(frozen=True)
class _Texts:
    """The texts of pairs: with their prompts, and what is the same about them."""

    prompted: list[str]
    plain: list[str]
    same: Any
    passages: Any
    sections: Any


def _as_ids(
    train: pa.Table, tuning: pa.Table, embedding_config: Manner
) -> tuple[_Texts, tuple[Any, Any], tuple[Any, Any]]:
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
    texts = _Texts(
        [prompt + text for prompt, text in numbered],
        plain,
        *(_codes(values) for values in (plain, passages, sections)),
    )
    return texts, (sides[0], sides[1]), (sides[2], sides[3])


def _codes(values: Sequence[Any]) -> Any:
    """(values,) equal numbers where they are equal; -1 for what is unknown."""
    numbers: dict[Any, int] = {}
    return np.asarray(
        [-1 if value is None else numbers.setdefault(value, len(numbers)) for value in values],
        dtype=np.int64,
    )


def _with_negatives(
    recipe: EmbedRecipe,
    stack: Stack,
    embedding_config: Manner,
    texts: _Texts,
    pairs: training.TextPairs,
    accelerator: Crew,
) -> tuple[training.TextPairs, tuple[str, ...]]:
    if not recipe.mining.hard_negatives:
        return pairs, ()
    corpus = np.unique(pairs.positives)
    encode = functools.partial(inference.vectors, stack, embedding_config, precision="auto")
    found = encode([texts.prompted[at] for at in corpus])
    anchors = encode([texts.prompted[at] for at in pairs.anchors])
    positives = found[np.searchsorted(corpus, pairs.positives)]
    mined = training.mined(
        pairs,
        anchors,
        positives,
        corpus,
        found,
        recipe.mining,
        np.random.default_rng([recipe.seed, 5]),
        accelerator.device,
    )
    told = f"hard negatives: {mined.at_random} of {mined.negatives.size} are random texts, {mined.missing} are missing"
    return replace(pairs, negatives=mined.negatives), (told,)


def recorded(
    recipe: EmbedRecipe,
    run: Run,
    context: Circumstances,
    accelerator: Crew,
    stack: Stack,
    embedding_config: Manner,
    fitted: Fitted,
    liveness: Liveness,
    states: tuple[Measured, Measured],
    asked: Asking,
    learned: Learning,
    load_seconds: float,
) -> Run:
    """Encoder, scores, numbers and record into the run folder, by the first process."""
    if not accelerator.is_main_process:
        return run
    before, after = states
    inference.keep_encoder(run.folder, stack, embedding_config)
    adapters.keep_probe(stack, run.folder)
    held = asked.exams[0].texts["text"].to_pylist()[: recipe.evaluation.profile_texts]
    profile = [_profile(stack, embedding_config, held, load_seconds)] if held else []
    results = [
        before.results,
        after.results,
        embedding_evaluation.differences(asked, before, after, (ZERO_SHOT, ADAPTED)),
        *profile,
    ]
    shelf = asked.shelf
    steps = [
        *shelf.learned.attrition,
        learned.attrition,
        *(shelf.other.attrition if shelf.other else ()),
        *(one.attrition for one in asked.exams),
    ]
    steps += [
        step
        for found in (*shelf.search.values(), *shelf.general.values())
        for step in found.attrition
    ]
    known = outcome(run, context, accelerator, stack, fitted)
    return runs.record(
        run,
        results=pa.concat_tables(results),
        attrition=steps,
        tables={"pair_scores": _scores(before, after)},
        liveness=liveness.as_json(),
        **{
            **known,
            "counts": known["counts"]
            | {f"pairs.{split}": count for split, count in learned.pairs.items()},
        },
        notices=(*stack.notices, *learned.notices),
    )


def _scores(before: Measured, after: Measured) -> pa.Table:
    """The scores of all pairs in both states, for figures."""
    parts = [
        table.append_column("task", pa.repeat(task, len(table))).append_column(
            "state", pa.repeat(state, len(table))
        )
        for state, found in ((ZERO_SHOT, before), (ADAPTED, after))
        for task, table in found.scores.items()
    ]
    schema = PAIR_SCORE.append(pa.field("task", pa.string())).append(pa.field("state", pa.string()))
    return pa.concat_tables([part.cast(schema) for part in parts])


def _profile(
    stack: Stack, embedding_config: Manner, texts: list[str], load_seconds: float
) -> pa.Table:
    """Speed and memory of the adapted model, as results without an interval; what they were measured on stands in their definition."""
    found = inference.profile(
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
            "group": ADAPTED,
            "definition": f"{name.replace('_', ' ')}: {about}; no interval",
            "task": "profile",
        }
        for name in names
    ]
    return pa.Table.from_pylist(rows, schema=RESULT)
