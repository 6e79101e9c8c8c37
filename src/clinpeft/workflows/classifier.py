"""The parts of ``classify``: earlier adapters found, head and exams set up, answers scored, the record."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft import (
    adapters,
    baselines,
    evaluation,
    inference,
    models,
    runs,
    tokenization,
    training,
)
from clinpeft.adapters import Liveness, Stack
from clinpeft.core.errors import RecipeError, UsageError
from clinpeft.core.schemas import Question
from clinpeft.models import Head, Pooling
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe, ReaderSpec
from clinpeft.runs import Run
from clinpeft.training import Course, Crew, Exam, Fitted, Watch
from clinpeft.workflows import differential_privacy
from clinpeft.workflows.context import Circumstances, code_version, key, outcome
from clinpeft.workflows.task_cohorts import Read

TFIDF = "TF-IDF + logistic regression"
PREDICTIONS, UNCORRECTED, CURVES, LABELS, MEDS = (
    "predictions",
    "predictions_uncorrected",
    "curves",
    "labels",
    "meds_evaluation",
)
CACHED_DOCUMENTS = 1024  # whose remembered vectors go through a head together


Stacked = TypeVar("Stacked", ClassifyRecipe, EmbedRecipe)
"""Recipes whose adapters may come from earlier runs."""


@dataclass(frozen=True)
class Origin:
    """An adapter that an earlier run made: the run, and the adapter's folder."""

    run: Run
    folder: Path


@dataclass(frozen=True)
class Answering:
    """All that answers, set up to be trained.

    Attributes:
        course: what the loop is given.
        exams: the questions in the order of the recipe.
        heads: question -> its head.
        pooling: where a window's vector is read.
        stack: base and adapters.
        probe: logits of a few training documents through everything, with their gradient.
        features_seconds: spent on reading what is remembered of the notes; None where the model reads them anew every time.
    """

    course: Course
    exams: tuple[Exam, ...]
    heads: Mapping[str, Head]
    pooling: Pooling
    stack: Stack
    probe: Callable[[], Any]
    features_seconds: float | None

    @property
    def head_parameters(self) -> dict[str, Any]:
        """Name -> parameter of the heads."""
        return training.as_parameters(_prefixed(self.heads))


@dataclass(frozen=True)
class Found:
    """What came out for each question: predictions, curves and results by label, and all results together."""

    results: pa.Table
    tables: Mapping[str, pa.Table]
    baselines_seconds: float


def resolved(recipe: Stacked, home: Path) -> tuple[Stacked, dict[str, Origin]]:
    """The recipe with the names of earlier runs replaced by their ids, and what those hold.

    Raises:
        UsageError: there is no such run, or it has several adapters and none was named.
    """
    specs, origins = [], {}
    for spec in recipe.adapters:
        if spec.from_run:
            name, origin = _origin(spec.from_run, home)
            spec, origins[name] = spec.model_copy(update={"from_run": name}), origin  # noqa: PLW2901 - the same spec, said by id
        specs.append(spec)
    return recipe.model_copy(update={"adapters": tuple(specs)}), origins


def _origin(text: str, home: Path) -> tuple[str, Origin]:
    run_text, _, adapter = text.rpartition("/") if "/" in text else (text, "", "")
    run = runs.find(home, run_text, finished=True)
    found = {
        path.parent.name: path.parent
        for path in sorted(run.folder.glob("adapter*/**/adapter_config.json"))
    }
    if adapter and adapter not in found:
        raise UsageError(
            f"run {run.id} has no adapter {adapter!r}",
            location="adapters.from_run",
            hint=f"it has: {', '.join(found) or 'none'}",
        )
    if not adapter and len(found) != 1:
        hint = (
            f"name one: {', '.join(f'{run.id}/{name}' for name in found)}"
            if found
            else "take a run that trained an adapter"
        )
        raise UsageError(
            f"run {run.id} has {len(found)} adapters", location="adapters.from_run", hint=hint
        )
    name = adapter or next(iter(found))
    return (f"{run.id}/{name}" if adapter else run.id), Origin(run, found[name])


def folders(origins: Mapping[str, Origin]) -> dict[str, Path]:
    """``from_run`` -> the adapter's folder."""
    return {name: origin.folder for name, origin in origins.items()}


def adapter_hashes(origins: Mapping[str, Origin]) -> dict[str, str]:
    """``from_run`` -> SHA-256 of the adapter's weights."""
    return {
        name: runs.checksum(origin.folder / "adapter_model.safetensors")
        for name, origin in origins.items()
    }


def precise(spec: ReaderSpec) -> ReaderSpec:
    """Weights that are trained are float32: an optimiser's small steps are lost in bfloat16.

    Raises:
        RecipeError: the recipe asks for both.
    """
    if not spec.trainable:
        return spec
    if spec.precision == "bfloat16":
        raise RecipeError(
            "a trainable base in bfloat16",
            location="base.precision",
            hint='leave base.precision out, or set it to "float32"',
        )
    return spec.model_copy(update={"precision": "float32"})


def answering(
    recipe: ClassifyRecipe, stack: Stack, read: Sequence[Read], home: Path, accelerator: Crew
) -> Answering:
    """Heads on the stack, and every question as an exam. Where nothing below the heads is trained, the model reads each note once for all."""
    pooling = models.pooling_of(stack.base, recipe.head.pooling)
    heads = {
        one.asked.question.name: _head(recipe, stack, one.asked.question, accelerator)
        for one in read
    }
    begun = time.perf_counter()
    vectors = (
        None
        if stack.trained
        else [_features(recipe, stack, one, pooling, home, accelerator) for one in read]
    )
    seconds = None if vectors is None else time.perf_counter() - begun
    exams = tuple(
        _exam(recipe, stack, one, heads, pooling, vectors[at] if vectors else None, accelerator)
        for at, one in enumerate(read)
    )
    own = training.as_parameters(_prefixed(heads))
    course = training.classification(
        exams,
        {**stack.trained, **own},
        functools.partial(_mode, stack, heads),
        recipe.loss,
        recipe.training,
        recipe.seed,
        accelerator,
        tuple(own),
        functools.partial(adapters.rescue, stack)
        if recipe.training.activations == "auto"
        else None,
    )
    return Answering(
        course,
        exams,
        heads,
        pooling,
        stack,
        _probe(recipe, stack, read, heads, pooling, accelerator),
        seconds,
    )


def probed(
    recipe: ClassifyRecipe,
    answering: Answering,
    read: Sequence[Read],
    home: Path,
    accelerator: Crew,
    run: Run,
    context: Circumstances,
) -> None:
    """The heads alone learn first, from what the stack says before its first step: linear probing, then fine-tuning (Kumar et al. 2022)."""
    if not (recipe.training.head_epochs and answering.stack.trained):
        return
    stack, heads = answering.stack, answering.heads
    own = answering.head_parameters
    vectors = [_features(recipe, stack, one, answering.pooling, home, accelerator) for one in read]
    exams = [
        _exam(recipe, stack, one, heads, answering.pooling, vectors[at], accelerator)
        for at, one in enumerate(read)
    ]
    rate = recipe.training.head_learning_rate or recipe.training.learning_rate
    spec = recipe.training.model_copy(
        update={
            "learning_rate": rate,
            "head_learning_rate": 0.0,
            "epochs": recipe.training.head_epochs,
            "max_steps": 0,
            "checkpoints": 1,
        }
    )
    course = training.classification(
        exams,
        own,
        functools.partial(_mode, stack, heads),
        recipe.loss,
        spec,
        recipe.seed,
        accelerator,
    )
    training.fit(
        course,
        spec,
        accelerator,
        run.folder / "checkpoints" / "head",
        Watch(stopping=context.stopping),
    )


def _head(recipe: ClassifyRecipe, stack: Stack, question: Question, accelerator: Crew) -> Head:
    return Head(stack.base.width, len(question.classes), recipe.head.dropout, seed=recipe.seed).to(
        accelerator.device
    )


def _prefixed(heads: Mapping[str, Head]) -> dict[str, Any]:
    """``head.mortality`` -> the one layer of that head, so that the proofs of a run name heads and not their insides."""
    return {f"head.{name}": head.linear for name, head in heads.items()}


def _mode(stack: Stack, heads: Mapping[str, Head], training_mode: bool) -> None:
    stack.train(training_mode)
    for head in heads.values():
        head.train(training_mode)


def _features(
    recipe: ClassifyRecipe, stack: Stack, one: Read, pooling: Pooling, home: Path, accelerator: Crew
) -> inference.Floats:
    base = stack.base
    below = [spec.model_dump(mode="json") for spec in recipe.adapters]
    seed = recipe.seed if stack.trained else 0  # fresh adapters may not be the identity
    said = (
        base.sha256,
        base.precision_reason,
        base.quantization,
        base.kernels,
        str(accelerator.device.type),
    )
    name = key(one.documents.folder.name, *said, below, seed, pooling, code_version())
    with accelerator.main_process_first():
        path = home / "cache" / f"features-{name}.npy"
        return inference.features(
            stack,
            one.documents,
            pooling,
            recipe.training.micro_batch_tokens,
            accelerator.device,
            path,
        )


def _exam(
    recipe: ClassifyRecipe,
    stack: Stack,
    one: Read,
    heads: Mapping[str, Head],
    pooling: Pooling,
    vectors: inference.Floats | None,
    accelerator: Crew,
) -> Exam:
    question, documents, head, pool = (
        one.asked.question,
        one.documents,
        heads[one.asked.question.name],
        recipe.reading.pool,
    )
    grouped: Callable[[tokenization.Ints], list[tokenization.Ints]]
    asks = (documents, head, pooling, pool, accelerator.device)
    if vectors is None:
        answer = inference.live(stack, *asks)
        grouped = functools.partial(
            tokenization.document_batches,
            documents,
            micro_batch_tokens=recipe.training.micro_batch_tokens,
        )
    else:
        answer, grouped = (
            inference.remembered(vectors, documents, head, pool, accelerator.device),
            _by_number,
        )
    known = training.truth(documents.table(["stay_id", "label", "labels"]), question)
    if recipe.loss.shuffled_labels:
        for split in ("train", "tuning"):
            known = training.shuffled(known, documents.of(split), recipe.seed)
    return Exam(
        question=question,
        answer=answer,
        truth=known,
        lengths=documents.lengths_of(np.arange(len(documents.tokens_total))),
        train=documents.of("train"),
        tuning=documents.of("tuning"),
        grouped=grouped,
        scores=inference.shared(answer, len(question.classes), grouped, accelerator),
        metric=lambda logits, chosen: evaluation.main_metric(
            inference.probabilities(logits, question),
            _classes_of(known[chosen].numpy(), question),
            question,
        ),
        reading=inference.reading(*asks) if vectors is None else None,
    )


def _classes_of(known: Any, question: Question) -> Any:
    """The class of every document, or the indices of all that apply: truth as ``evaluation`` takes it, where training has a column a label."""
    return [np.flatnonzero(row) for row in known] if question.kind == "multilabel" else known


def _by_number(chosen: tokenization.Ints) -> list[tokenization.Ints]:
    return [
        chosen[start : start + CACHED_DOCUMENTS]
        for start in range(0, len(chosen), CACHED_DOCUMENTS)
    ]


def _probe(
    recipe: ClassifyRecipe,
    stack: Stack,
    read: Sequence[Read],
    heads: Mapping[str, Head],
    pooling: Pooling,
    accelerator: Crew,
) -> Callable[[], Any]:
    """The shortest training documents of every question, through everything, whatever is remembered of them."""

    def probed() -> Any:
        logits = []
        for one in read:
            documents = one.documents
            train = documents.of("train")
            chosen = train[np.argsort(documents.lengths_of(train), kind="stable")[:4]]
            answer = inference.live(
                stack,
                documents,
                heads[one.asked.question.name],
                pooling,
                recipe.reading.pool,
                accelerator.device,
            )
            logits.append(answer(chosen).reshape(-1))
        return inference.joined(logits)

    return probed


def scored(
    recipe: ClassifyRecipe,
    answering: Answering,
    read: Sequence[Read],
    home: Path,
    accelerator: Crew,
) -> Found:
    """Every question's predictions on tuning and held-out stays, scored beside the trivial baselines."""
    results: list[pa.Table] = []
    tables: dict[str, pa.Table] = {}
    seconds = 0.0
    for at, (exam, one) in enumerate(zip(answering.exams, read, strict=True)):
        chosen = np.concatenate([one.documents.of("tuning"), one.documents.of("held_out")])
        logits = exam.scores(chosen)
        if not accelerator.is_main_process:
            continue
        answered = inference.predictions(one.documents, chosen, logits, exam.question)
        begun = time.perf_counter()
        trivial = dict(_trivial(recipe, one, home)) if recipe.evaluation.baselines else {}
        seconds += time.perf_counter() - begun
        found = results_of(recipe, answered, exam.question, trivial)
        results.append(found.pop("results"))
        tables |= {
            f"{name}-{exam.question.name}" if at else name: table for name, table in found.items()
        }
    return Found(pa.concat_tables(results) if results else pa.table({}), tables, seconds)


def results_of(
    recipe: ClassifyRecipe, answered: pa.Table, question: Question, trivial: Mapping[str, pa.Table]
) -> dict[str, pa.Table]:
    """Tables of one question by name; ``results`` holds every number, of the model, of the baselines, and of the difference to TF-IDF."""
    spec = recipe.evaluation
    raw, (answered, fitted) = (
        answered,
        evaluation.recalibrated(answered, question, spec.recalibration),
    )
    rows = [evaluation.scored(answered, question, spec, _rng(recipe))]
    rows += [
        evaluation.scored(table, question, spec, _rng(recipe), state=name)
        for name, table in trivial.items()
    ]
    if TFIDF in trivial:
        rows.append(
            evaluation.answers_difference(
                trivial[TFIDF], answered, question, spec, _rng(recipe), names=(TFIDF, "model")
            )
        )
    found = {
        "results": pa.concat_tables(rows),
        PREDICTIONS: answered,
        CURVES: evaluation.curves(answered, question, spec, _rng(recipe)),
    }
    if spec.recalibration != "none":
        about = raw.schema.metadata | {b"recalibration": fitted.encode()}
        found[UNCORRECTED] = raw.replace_schema_metadata(about)  # what new answers are corrected by
    if question.kind == "multilabel":
        found[LABELS] = evaluation.labels_table(answered, question, "held_out", spec, _rng(recipe))
    if question.kind == "binary":
        found[MEDS] = evaluation.as_meds(answered, question, "held_out")
    return found


def _rng(recipe: ClassifyRecipe) -> np.random.Generator:
    """The resamples are those of the split and not of the run, so that runs with other seeds are measured on the same ones."""
    return np.random.default_rng([recipe.split.seed, 1])


def _trivial(recipe: ClassifyRecipe, one: Read, home: Path) -> Iterator[tuple[str, pa.Table]]:
    """The trivial baselines' answers to the same stays: made once for all runs that are asked the same."""
    folder = (
        home
        / "cache"
        / f"baselines-{key(one.asked.folder.name, recipe.split.seed, code_version())}"
    )
    if not (folder / "names.json").exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = dict(
            baselines.answered(
                one.asked.folder / "cohort.parquet", one.asked.question, recipe.split.seed
            )
        )
        for at, table in enumerate(made.values()):
            pq.write_table(table, folder / f"{at}.parquet")
        runs.write_atomically(folder / "names.json", json.dumps(list(made)))
    for at, name in enumerate(json.loads((folder / "names.json").read_text(encoding="utf-8"))):
        yield (
            name,
            pq.read_table(
                folder / f"{at}.parquet", filters=[("split", "in", ["tuning", "held_out"])]
            ),
        )


def notices(
    recipe: ClassifyRecipe, origins: Mapping[str, Origin], read: Sequence[Read]
) -> tuple[str, ...]:
    """What the reader of the results should know."""
    told = [notice for one in read for notice in one.asked.notices]
    if recipe.evaluation.baselines:
        for one in read:
            absent = baselines.absent(one.asked.folder / "cohort.parquet", one.asked.question)
            told += [
                f"{one.asked.question.name}: no baseline {name!r}: {reason}"
                for name, reason in absent.items()
            ]
    for name, origin in origins.items():
        theirs = origin.run.recipe
        shared = ("train", "tuning", "held_out", "seed", "by")
        if isinstance(theirs, AdaptRecipe) and any(
            getattr(theirs.split, part) != getattr(recipe.split, part) for part in shared
        ):
            told.append(
                f"the adapter of run {name} learned from a corpus that was split otherwise: it may have read people who are held out here"
            )
    if recipe.loss.shuffled_labels:
        told.append("the training answers were shuffled: these results are a control")
    told += differential_privacy.notices(
        recipe, {name: origin.run.recipe for name, origin in origins.items()}
    )
    return tuple(told)


def recorded(
    recipe: ClassifyRecipe,
    run: Run,
    context: Circumstances,
    accelerator: Crew,
    answering: Answering,
    fitted: Fitted,
    liveness: Liveness,
    found: Found,
    told: tuple[str, ...],
    read: Sequence[Read],
    noise: dict[str, Any] | None = None,
) -> Run:
    """Adapters, head, tokenizer, answers, numbers and record into the run folder, by the first process."""
    if not accelerator.is_main_process:
        return run
    stack = answering.stack
    asked = {one.asked.question.name: one.asked.question for one in read}
    inference.keep(
        run.folder, stack, answering.heads, asked, answering.pooling, recipe.reading.pool
    )
    trained = sum(parameter.numel() for parameter in answering.course.parameters.values())
    return runs.record(
        run,
        results=found.results,
        attrition=tuple(
            step
            for one in read
            for step in (*one.asked.attrition, one.documents.attrition, one.documents.whole)
        ),
        tables=found.tables,
        liveness=liveness.as_json(),
        private=noise,
        **outcome(run, context, accelerator, stack, fitted, trained),
        features_seconds=answering.features_seconds,
        baselines_seconds=found.baselines_seconds,
        notices=(*stack.notices, *told),
    )
