"""Evaluation and record of ``classify``: predictions scored beside baselines, notices, run
folder."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft import baselines, evaluation, inference, runs
from clinpeft.adapters import AdapterActivity
from clinpeft.core.schemas import LabelSpace
from clinpeft.recipe import ClassifyRecipe, SplitSpec
from clinpeft.runs import Run
from clinpeft.workflows.adapter_sources import AdapterSource
from clinpeft.workflows.classifier import ClassifierSetup
from clinpeft.workflows.context import RunContext, get_code_version, summarize_training
from clinpeft.workflows.differential_privacy import collect_privacy_notices
from clinpeft.workflows.fitting import FittedTraining
from clinpeft.workflows.task_cohorts import EncodedCohort

TFIDF_BASELINE = "TF-IDF + logistic regression"
PREDICTIONS_TABLE = "predictions"
UNCORRECTED_TABLE = "predictions_uncorrected"
CURVES_TABLE = "curves"
LABEL_RESULTS_TABLE = "labels"
MEDS_EVALUATION_TABLE = "meds_evaluation"


@dataclass(frozen=True)
class ClassificationResults:
    """What was measured on tuning and held-out documents.

    Attributes:
        results: of all tasks, of schema ``METRIC_RESULT_SCHEMA``.
        tables: file name -> predictions, curves, results by label and so on.
        baselines_seconds: time to train or load the baselines.
    """

    results: pa.Table
    tables: Mapping[str, pa.Table]
    baselines_seconds: float


def predict_and_evaluate(setup: ClassifierSetup, context: RunContext) -> ClassificationResults:
    """Predict tuning and held-out documents of every task, and score them beside baselines.

    Args:
        setup: the trained classifier.
        context: processes and cache; processes other than the first predict and score nothing.
    """
    recipe = setup.model.recipe
    results: list[pa.Table] = []
    tables: dict[str, pa.Table] = {}
    seconds = 0.0
    pairs = zip(setup.task_data, setup.model.encoded_cohorts, strict=True)
    for position, (task_data, encoded) in enumerate(pairs):
        documents, label_space = encoded.documents, task_data.label_space
        rows = np.concatenate(
            [documents.select_split("tuning"), documents.select_split("held_out")]
        )
        logits = task_data.gather_logits(rows)
        if not context.accelerator.is_main_process:
            continue
        predictions = inference.build_prediction_table(documents, rows, logits, label_space)
        start = time.perf_counter()
        baseline_predictions = (
            _load_baseline_predictions(recipe, encoded, context)
            if recipe.evaluation.baselines
            else {}
        )
        seconds += time.perf_counter() - start
        task_tables = build_classification_tables(
            recipe, predictions, label_space, baseline_predictions
        )
        results.append(task_tables.pop("results"))
        suffix = f"-{label_space.name}" if position else ""
        tables |= {f"{name}{suffix}": table for name, table in task_tables.items()}
    return ClassificationResults(
        pa.concat_tables(results) if results else pa.table({}), tables, seconds
    )


def build_classification_tables(
    recipe: ClassifyRecipe,
    prediction_table: pa.Table,
    label_space: LabelSpace,
    baseline_predictions: Mapping[str, pa.Table],
) -> dict[str, pa.Table]:
    """Build all tables of one task.

    Args:
        recipe: recalibration, bootstrap, subgroups.
        prediction_table: of the model, not recalibrated.
        label_space: task and classes.
        baseline_predictions: name -> predictions of a baseline for the same documents.

    Returns:
        Name -> table; ``results`` holds the metrics of the model, of the baselines, and of the
        difference to TF-IDF.
    """
    spec = recipe.evaluation
    # Resamples belong to the split and not to the run, so that runs with other seeds are measured
    # on the same ones.
    create_rng: Callable[[], np.random.Generator] = functools.partial(
        np.random.default_rng, [recipe.split.seed, 1]
    )
    raw = prediction_table
    prediction_table, fitted = evaluation.recalibrate_predictions(
        raw, label_space, spec.recalibration
    )
    rows = [
        evaluation.score_prediction_table(prediction_table, label_space, spec, create_rng()),
        *(
            evaluation.score_prediction_table(table, label_space, spec, create_rng(), state=name)
            for name, table in baseline_predictions.items()
        ),
    ]
    if TFIDF_BASELINE in baseline_predictions:
        rows.append(
            evaluation.compare_paired_predictions(
                baseline_predictions[TFIDF_BASELINE],
                prediction_table,
                label_space,
                spec,
                create_rng(),
                names=(TFIDF_BASELINE, "model"),
            )
        )
    tables = {
        "results": pa.concat_tables(rows),
        PREDICTIONS_TABLE: prediction_table,
        CURVES_TABLE: evaluation.compute_classification_curves(
            prediction_table, label_space, spec, create_rng()
        ),
    }
    if spec.recalibration != "none":
        # Predictions for new notes are recalibrated by the tuning rows of this table.
        metadata = raw.schema.metadata | {b"recalibration": fitted.encode()}
        tables[UNCORRECTED_TABLE] = raw.replace_schema_metadata(metadata)
    if label_space.kind == "multilabel":
        tables[LABEL_RESULTS_TABLE] = evaluation.compute_label_metrics(
            prediction_table, label_space, "held_out", spec, create_rng()
        )
    if label_space.kind == "binary":
        # For meds-evaluation, which scores binary tasks only.
        tables[MEDS_EVALUATION_TABLE] = evaluation.as_meds_predictions(
            prediction_table, label_space, "held_out"
        )
    return tables


def _load_baseline_predictions(
    recipe: ClassifyRecipe, encoded_cohort: EncodedCohort, context: RunContext
) -> dict[str, pa.Table]:
    """Name -> a baseline's predictions for tuning and held-out stays, trained once for all runs."""
    cohort, seed = encoded_cohort.cohort, recipe.split.seed
    folder = context.get_cache_path("baselines", cohort.folder.name, seed, get_code_version())
    names_file = folder / "names.json"
    if not names_file.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        tables = dict(
            baselines.predict_baselines(cohort.folder / "cohort.parquet", cohort.label_space, seed)
        )
        for position, table in enumerate(tables.values()):
            pq.write_table(table, folder / f"{position}.parquet")
        runs.write_file_atomically(names_file, json.dumps(list(tables)))
    names = json.loads(names_file.read_text(encoding="utf-8"))
    filters = [("split", "in", ["tuning", "held_out"])]
    return {
        name: pq.read_table(folder / f"{position}.parquet", filters=filters)
        for position, name in enumerate(names)
    }


def collect_classifier_notices(
    recipe: ClassifyRecipe,
    adapter_sources: Mapping[str, AdapterSource],
    encoded_cohorts: Sequence[EncodedCohort],
) -> tuple[str, ...]:
    """Collect what a reader of the results should know.

    Args:
        recipe: of the run.
        adapter_sources: ``from_run`` -> adapter of an earlier run.
        encoded_cohorts: of all tasks.
    """
    notices = [notice for encoded in encoded_cohorts for notice in encoded.cohort.notices]
    if recipe.evaluation.baselines:
        for encoded in encoded_cohorts:
            label_space = encoded.cohort.label_space
            unavailable = baselines.find_unavailable_baselines(
                encoded.cohort.folder / "cohort.parquet", label_space
            )
            notices += [
                f"{label_space.name}: no baseline {name!r}: {reason}"
                for name, reason in unavailable.items()
            ]
    shared_keys = ("train", "tuning", "held_out", "seed", "by")
    for name, source in adapter_sources.items():
        split = getattr(source.run.recipe, "split", None)
        # With the same split, nobody whose notes the adapter was trained on is held out here.
        if isinstance(split, SplitSpec) and any(
            getattr(split, key) != getattr(recipe.split, key) for key in shared_keys
        ):
            notices.append(
                f"the adapter of run {name} was trained on a corpus that was split otherwise: it "
                "may have seen people who are held out here"
            )
    if recipe.loss.shuffled_labels:
        notices.append("the training labels were shuffled: these results are a control")
    earlier_recipes = {name: source.run.recipe for name, source in adapter_sources.items()}
    return (*notices, *collect_privacy_notices(recipe, earlier_recipes))


def record_classifier_run(
    run: Run,
    setup: ClassifierSetup,
    fitted: FittedTraining,
    evaluated: tuple[ClassificationResults, AdapterActivity],
    notices: tuple[str, ...],
    context: RunContext,
) -> Run:
    """Write adapters, heads, tokenizer, predictions, results and record into the run's folder.

    Args:
        run: the run.
        setup: the trained classifier.
        fitted: its training.
        evaluated: results, and the evidence that every adapter took part.
        notices: what a reader of the results should know.
        context: clock, device and processes; the first process writes.
    """
    if not context.accelerator.is_main_process:
        return run
    model, (results, activity) = setup.model, evaluated
    cohorts = [encoded.cohort for encoded in model.encoded_cohorts]
    label_spaces = {cohort.label_space.name: cohort.label_space for cohort in cohorts}
    inference.save_classifier(
        run.folder,
        model.stack,
        model.heads,
        label_spaces,
        model.pooling,
        model.recipe.truncation.pool,
    )
    trained = sum(parameter.numel() for parameter in setup.trainable.parameters.values())
    attrition = [
        step
        for encoded in model.encoded_cohorts
        for step in (
            *encoded.cohort.attrition,
            encoded.documents.token_attrition,
            encoded.documents.document_attrition,
        )
    ]
    return runs.finish_run(
        run,
        results=results.results,
        attrition=attrition,
        tables=results.tables,
        liveness=activity.as_json(),
        differential_privacy=fitted.privacy,
        **summarize_training(run, context, model.stack, fitted.result, trained),
        features_seconds=setup.features_seconds,
        baselines_seconds=results.baselines_seconds,
        notices=(*model.stack.notices, *notices),
    )
