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
from clinpeft.adapters import AdapterActivity, Stack
from clinpeft.core.errors import RecipeError, UsageError
from clinpeft.core.schemas import LabelSpace
from clinpeft.models import Head, PoolingMode
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe, EncoderModelSpec
from clinpeft.runs import Run
from clinpeft.training import (
    Accelerator,
    ClassificationData,
    Trainable,
    TrainingCallbacks,
    TrainingResult,
)
from clinpeft.workflows import differential_privacy
from clinpeft.workflows.context import (
    RunContext,
    compute_cache_key,
    get_code_version,
    summarize_training,
)
from clinpeft.workflows.task_cohorts import EncodedCohort

TFIDF_BASELINE = "TF-IDF + logistic regression"
PREDICTIONS_TABLE, UNCORRECTED_TABLE, CURVES_TABLE, LABEL_RESULTS_TABLE, MEDS_EVALUATION_TABLE = (
    "predictions",
    "predictions_uncorrected",
    "curves",
    "labels",
    "meds_evaluation",
)
CACHED_BATCH_DOCUMENTS = 1024  # whose remembered vectors go through a head together


AdapterStackRecipe = TypeVar("AdapterStackRecipe", ClassifyRecipe, EmbedRecipe)
"""Recipes whose adapters may come from earlier runs."""


@dataclass(frozen=True)
class AdapterSource:
    """An adapter that an earlier run made: the run, and the adapter's folder."""

    run: Run
    folder: Path


@dataclass(frozen=True)
class ClassifierSetup:
    """All that answers, set up to be trained.

    Attributes:
        trainable: what the loop is given.
        task_data: the questions in the order of the recipe.
        heads: question -> its head.
        pooling: where a window's vector is read.
        stack: base and adapters.
        compute_probe_logits: logits of a few training documents through everything, with their gradient.
        features_seconds: spent on reading what is remembered of the notes; None where the model reads them anew every time.
    """

    trainable: Trainable
    task_data: tuple[ClassificationData, ...]
    heads: Mapping[str, Head]
    pooling: PoolingMode
    stack: Stack
    compute_probe_logits: Callable[[], Any]
    features_seconds: float | None

    @property
    def head_parameters(self) -> dict[str, Any]:
        """Name -> parameter of the heads."""
        return training.collect_module_parameters(_prefix_head_names(self.heads))


@dataclass(frozen=True)
class ClassificationResults:
    """What came out for each question: predictions, curves and results by label, and all results together."""

    results: pa.Table
    tables: Mapping[str, pa.Table]
    baselines_seconds: float


def resolve_adapter_runs(
    recipe: AdapterStackRecipe, home: Path
) -> tuple[AdapterStackRecipe, dict[str, AdapterSource]]:
    """The recipe with the names of earlier runs replaced by their ids, and what those hold.

    Raises:
        UsageError: there is no such run, or it has several adapters and none was named.
    """
    specs, origins = [], {}
    for spec in recipe.adapters:
        if spec.from_run:
            name, origin = _find_adapter_source(spec.from_run, home)
            spec, origins[name] = spec.model_copy(update={"from_run": name}), origin  # noqa: PLW2901 - the same spec, said by id
        specs.append(spec)
    return recipe.model_copy(update={"adapters": tuple(specs)}), origins


def _find_adapter_source(run_and_adapter: str, home: Path) -> tuple[str, AdapterSource]:
    run_text, _, adapter = (
        run_and_adapter.rpartition("/") if "/" in run_and_adapter else (run_and_adapter, "", "")
    )
    run = runs.find_run(home, run_text, finished_only=True)
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
    return (f"{run.id}/{name}" if adapter else run.id), AdapterSource(run, found[name])


def get_adapter_folders(adapter_sources: Mapping[str, AdapterSource]) -> dict[str, Path]:
    """``from_run`` -> the adapter's folder."""
    return {name: origin.folder for name, origin in adapter_sources.items()}


def hash_adapters(adapter_sources: Mapping[str, AdapterSource]) -> dict[str, str]:
    """``from_run`` -> SHA-256 of the adapter's weights."""
    return {
        name: runs.compute_path_checksum(origin.folder / "adapter_model.safetensors")
        for name, origin in adapter_sources.items()
    }


def set_trainable_precision(spec: EncoderModelSpec) -> EncoderModelSpec:
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


def build_classifier_setup(
    recipe: ClassifyRecipe,
    stack: Stack,
    encoded_cohorts: Sequence[EncodedCohort],
    home: Path,
    accelerator: Accelerator,
) -> ClassifierSetup:
    """Heads on the stack, and every question as an exam. Where nothing below the heads is trained, the model reads each note once for all."""
    pooling = models.resolve_pooling_mode(stack.base, recipe.head.pooling)
    heads = {
        one.cohort.label_space.name: _create_head(
            recipe, stack, one.cohort.label_space, accelerator
        )
        for one in encoded_cohorts
    }
    begun = time.perf_counter()
    vectors = (
        None
        if stack.trained_parameters
        else [
            _cache_features(recipe, stack, one, pooling, home, accelerator)
            for one in encoded_cohorts
        ]
    )
    seconds = None if vectors is None else time.perf_counter() - begun
    exams = tuple(
        _build_classification_data(
            recipe, stack, one, heads, pooling, vectors[at] if vectors else None, accelerator
        )
        for at, one in enumerate(encoded_cohorts)
    )
    own = training.collect_module_parameters(_prefix_head_names(heads))
    course = training.build_classification_trainable(
        exams,
        {**stack.trained_parameters, **own},
        functools.partial(_set_training_mode, stack, heads),
        recipe.loss,
        recipe.training,
        recipe.seed,
        accelerator,
        tuple(own),
        functools.partial(adapters.enable_checkpointing_on_oom, stack)
        if recipe.training.activations == "auto"
        else None,
    )
    return ClassifierSetup(
        course,
        exams,
        heads,
        pooling,
        stack,
        _build_probe_function(recipe, stack, encoded_cohorts, heads, pooling, accelerator),
        seconds,
    )


def train_linear_probes(
    recipe: ClassifyRecipe,
    setup: ClassifierSetup,
    encoded_cohorts: Sequence[EncodedCohort],
    home: Path,
    accelerator: Accelerator,
    run: Run,
    context: RunContext,
) -> None:
    """The heads alone learn first, from what the stack says before its first step: linear probing, then fine-tuning (Kumar et al. 2022)."""
    if not (recipe.training.head_epochs and setup.stack.trained_parameters):
        return
    stack, heads = setup.stack, setup.heads
    own = setup.head_parameters
    vectors = [
        _cache_features(recipe, stack, one, setup.pooling, home, accelerator)
        for one in encoded_cohorts
    ]
    exams = [
        _build_classification_data(
            recipe, stack, one, heads, setup.pooling, vectors[at], accelerator
        )
        for at, one in enumerate(encoded_cohorts)
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
    course = training.build_classification_trainable(
        exams,
        own,
        functools.partial(_set_training_mode, stack, heads),
        recipe.loss,
        spec,
        recipe.seed,
        accelerator,
    )
    training.run_training(
        course,
        spec,
        accelerator,
        run.folder / "checkpoints" / "head",
        TrainingCallbacks(should_stop=context.should_stop),
    )


def _create_head(
    recipe: ClassifyRecipe, stack: Stack, label_space: LabelSpace, accelerator: Accelerator
) -> Head:
    return Head(
        stack.base.width, len(label_space.classes), recipe.head.dropout, seed=recipe.seed
    ).to(accelerator.device)


def _prefix_head_names(heads: Mapping[str, Head]) -> dict[str, Any]:
    """``head.mortality`` -> the one layer of that head, so that the proofs of a run name heads and not their insides."""
    return {f"head.{name}": head.linear for name, head in heads.items()}


def _set_training_mode(stack: Stack, heads: Mapping[str, Head], training_mode: bool) -> None:
    stack.train(training_mode)
    for head in heads.values():
        head.train(training_mode)


def _cache_features(
    recipe: ClassifyRecipe,
    stack: Stack,
    encoded_cohort: EncodedCohort,
    pooling: PoolingMode,
    home: Path,
    accelerator: Accelerator,
) -> inference.Float32Array:
    base = stack.base
    below = [spec.model_dump(mode="json") for spec in recipe.adapters]
    seed = recipe.seed if stack.trained_parameters else 0  # fresh adapters may not be the identity
    said = (
        base.sha256,
        base.precision_reason,
        base.quantization,
        base.kernels,
        str(accelerator.device.type),
    )
    name = compute_cache_key(
        encoded_cohort.documents.folder.name, *said, below, seed, pooling, get_code_version()
    )
    with accelerator.main_process_first():
        path = home / "cache" / f"features-{name}.npy"
        return inference.cache_window_features(
            stack,
            encoded_cohort.documents,
            pooling,
            recipe.training.micro_batch_tokens,
            accelerator.device,
            path,
        )


def _build_classification_data(
    recipe: ClassifyRecipe,
    stack: Stack,
    encoded_cohort: EncodedCohort,
    heads: Mapping[str, Head],
    pooling: PoolingMode,
    vectors: inference.Float32Array | None,
    accelerator: Accelerator,
) -> ClassificationData:
    question, documents, head, pool = (
        encoded_cohort.cohort.label_space,
        encoded_cohort.documents,
        heads[encoded_cohort.cohort.label_space.name],
        recipe.truncation.pool,
    )
    grouped: Callable[[tokenization.IndexArray], list[tokenization.IndexArray]]
    asks = (documents, head, pooling, pool, accelerator.device)
    if vectors is None:
        answer = inference.build_logit_function(stack, *asks)
        grouped = functools.partial(
            tokenization.group_documents,
            documents,
            micro_batch_tokens=recipe.training.micro_batch_tokens,
        )
    else:
        answer, grouped = (
            inference.build_cached_logit_function(
                vectors, documents, head, pool, accelerator.device
            ),
            _batch_by_count,
        )
    known = training.encode_labels(documents.read_table(["stay_id", "label", "labels"]), question)
    if recipe.loss.shuffled_labels:
        for split in ("train", "tuning"):
            known = training.shuffle_labels(known, documents.select_split(split), recipe.seed)
    return ClassificationData(
        label_space=question,
        compute_logits=answer,
        labels=known,
        token_counts=documents.count_tokens(np.arange(len(documents.tokens_total))),
        train_documents=documents.select_split("train"),
        tuning_documents=documents.select_split("tuning"),
        make_micro_batches=grouped,
        gather_logits=inference.build_gathered_logit_function(
            answer, len(question.classes), grouped, accelerator
        ),
        compute_metric=lambda logits, chosen: evaluation.compute_main_metric(
            inference.compute_probabilities(logits, question),
            _get_true_classes(known[chosen].numpy(), question),
            question,
        ),
        prepare_input=inference.build_packed_input_function(*asks) if vectors is None else None,
    )


def _get_true_classes(labels: Any, label_space: LabelSpace) -> Any:
    """The class of every document, or the indices of all that apply: truth as ``evaluation`` takes it, where training has a column a label."""
    return [np.flatnonzero(row) for row in labels] if label_space.kind == "multilabel" else labels


def _batch_by_count(document_indices: tokenization.IndexArray) -> list[tokenization.IndexArray]:
    return [
        document_indices[start : start + CACHED_BATCH_DOCUMENTS]
        for start in range(0, len(document_indices), CACHED_BATCH_DOCUMENTS)
    ]


def _build_probe_function(
    recipe: ClassifyRecipe,
    stack: Stack,
    encoded_cohorts: Sequence[EncodedCohort],
    heads: Mapping[str, Head],
    pooling: PoolingMode,
    accelerator: Accelerator,
) -> Callable[[], Any]:
    """The shortest training documents of every question, through everything, whatever is remembered of them."""

    def probed() -> Any:
        logits = []
        for one in encoded_cohorts:
            documents = one.documents
            train = documents.select_split("train")
            chosen = train[np.argsort(documents.count_tokens(train), kind="stable")[:4]]
            answer = inference.build_logit_function(
                stack,
                documents,
                heads[one.cohort.label_space.name],
                pooling,
                recipe.truncation.pool,
                accelerator.device,
            )
            logits.append(answer(chosen).reshape(-1))
        return inference.concatenate_logits(logits)

    return probed


def score_classifier(
    recipe: ClassifyRecipe,
    setup: ClassifierSetup,
    encoded_cohorts: Sequence[EncodedCohort],
    home: Path,
    accelerator: Accelerator,
) -> ClassificationResults:
    """Every question's predictions on tuning and held-out stays, scored beside the trivial baselines."""
    results: list[pa.Table] = []
    tables: dict[str, pa.Table] = {}
    seconds = 0.0
    for at, (exam, one) in enumerate(zip(setup.task_data, encoded_cohorts, strict=True)):
        chosen = np.concatenate(
            [one.documents.select_split("tuning"), one.documents.select_split("held_out")]
        )
        logits = exam.gather_logits(chosen)
        if not accelerator.is_main_process:
            continue
        answered = inference.build_prediction_table(one.documents, chosen, logits, exam.label_space)
        begun = time.perf_counter()
        trivial = (
            dict(_load_baseline_predictions(recipe, one, home))
            if recipe.evaluation.baselines
            else {}
        )
        seconds += time.perf_counter() - begun
        found = build_classification_tables(recipe, answered, exam.label_space, trivial)
        results.append(found.pop("results"))
        tables |= {
            f"{name}-{exam.label_space.name}" if at else name: table
            for name, table in found.items()
        }
    return ClassificationResults(
        pa.concat_tables(results) if results else pa.table({}), tables, seconds
    )


def build_classification_tables(
    recipe: ClassifyRecipe,
    prediction_table: pa.Table,
    label_space: LabelSpace,
    baseline_predictions: Mapping[str, pa.Table],
) -> dict[str, pa.Table]:
    """Tables of one question by name; ``results`` holds every number, of the model, of the baselines, and of the difference to TF-IDF."""
    spec = recipe.evaluation
    raw, (prediction_table, fitted) = (
        prediction_table,
        evaluation.recalibrate_predictions(prediction_table, label_space, spec.recalibration),
    )
    rows = [
        evaluation.score_prediction_table(
            prediction_table, label_space, spec, _create_bootstrap_rng(recipe)
        )
    ]
    rows += [
        evaluation.score_prediction_table(
            table, label_space, spec, _create_bootstrap_rng(recipe), state=name
        )
        for name, table in baseline_predictions.items()
    ]
    if TFIDF_BASELINE in baseline_predictions:
        rows.append(
            evaluation.compare_paired_predictions(
                baseline_predictions[TFIDF_BASELINE],
                prediction_table,
                label_space,
                spec,
                _create_bootstrap_rng(recipe),
                names=(TFIDF_BASELINE, "model"),
            )
        )
    found = {
        "results": pa.concat_tables(rows),
        PREDICTIONS_TABLE: prediction_table,
        CURVES_TABLE: evaluation.compute_classification_curves(
            prediction_table, label_space, spec, _create_bootstrap_rng(recipe)
        ),
    }
    if spec.recalibration != "none":
        about = raw.schema.metadata | {b"recalibration": fitted.encode()}
        found[UNCORRECTED_TABLE] = raw.replace_schema_metadata(
            about
        )  # what new answers are corrected by
    if label_space.kind == "multilabel":
        found[LABEL_RESULTS_TABLE] = evaluation.compute_label_metrics(
            prediction_table, label_space, "held_out", spec, _create_bootstrap_rng(recipe)
        )
    if label_space.kind == "binary":
        found[MEDS_EVALUATION_TABLE] = evaluation.as_meds_predictions(
            prediction_table, label_space, "held_out"
        )
    return found


def _create_bootstrap_rng(recipe: ClassifyRecipe) -> np.random.Generator:
    """The resamples are those of the split and not of the run, so that runs with other seeds are measured on the same ones."""
    return np.random.default_rng([recipe.split.seed, 1])


def _load_baseline_predictions(
    recipe: ClassifyRecipe, encoded_cohort: EncodedCohort, home: Path
) -> Iterator[tuple[str, pa.Table]]:
    """The trivial baselines' answers to the same stays: made once for all runs that are asked the same."""
    folder = (
        home
        / "cache"
        / f"baselines-{compute_cache_key(encoded_cohort.cohort.folder.name, recipe.split.seed, get_code_version())}"
    )
    if not (folder / "names.json").exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = dict(
            baselines.predict_baselines(
                encoded_cohort.cohort.folder / "cohort.parquet",
                encoded_cohort.cohort.label_space,
                recipe.split.seed,
            )
        )
        for at, table in enumerate(made.values()):
            pq.write_table(table, folder / f"{at}.parquet")
        runs.write_file_atomically(folder / "names.json", json.dumps(list(made)))
    for at, name in enumerate(json.loads((folder / "names.json").read_text(encoding="utf-8"))):
        yield (
            name,
            pq.read_table(
                folder / f"{at}.parquet", filters=[("split", "in", ["tuning", "held_out"])]
            ),
        )


def collect_classifier_notices(
    recipe: ClassifyRecipe,
    adapter_sources: Mapping[str, AdapterSource],
    encoded_cohorts: Sequence[EncodedCohort],
) -> tuple[str, ...]:
    """What the reader of the results should know."""
    told = [notice for one in encoded_cohorts for notice in one.cohort.notices]
    if recipe.evaluation.baselines:
        for one in encoded_cohorts:
            absent = baselines.find_unavailable_baselines(
                one.cohort.folder / "cohort.parquet", one.cohort.label_space
            )
            told += [
                f"{one.cohort.label_space.name}: no baseline {name!r}: {reason}"
                for name, reason in absent.items()
            ]
    for name, origin in adapter_sources.items():
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
    told += differential_privacy.collect_privacy_notices(
        recipe, {name: origin.run.recipe for name, origin in adapter_sources.items()}
    )
    return tuple(told)


def record_classifier_run(
    recipe: ClassifyRecipe,
    run: Run,
    context: RunContext,
    accelerator: Accelerator,
    setup: ClassifierSetup,
    training_result: TrainingResult,
    adapter_activity: AdapterActivity,
    classification_results: ClassificationResults,
    notices: tuple[str, ...],
    encoded_cohorts: Sequence[EncodedCohort],
    privacy_accounting: dict[str, Any] | None = None,
) -> Run:
    """Adapters, head, tokenizer, answers, numbers and record into the run folder, by the first process."""
    if not accelerator.is_main_process:
        return run
    stack = setup.stack
    asked = {one.cohort.label_space.name: one.cohort.label_space for one in encoded_cohorts}
    inference.save_classifier(
        run.folder, stack, setup.heads, asked, setup.pooling, recipe.truncation.pool
    )
    trained = sum(parameter.numel() for parameter in setup.trainable.parameters.values())
    return runs.finish_run(
        run,
        results=classification_results.results,
        attrition=tuple(
            step
            for one in encoded_cohorts
            for step in (
                *one.cohort.attrition,
                one.documents.token_attrition,
                one.documents.document_attrition,
            )
        ),
        tables=classification_results.tables,
        liveness=adapter_activity.as_json(),
        private=privacy_accounting,
        **summarize_training(run, context, accelerator, stack, training_result, trained),
        features_seconds=setup.features_seconds,
        baselines_seconds=classification_results.baselines_seconds,
        notices=(*stack.notices, *notices),
    )
