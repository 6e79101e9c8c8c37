"""Prediction for new notes by a finished run of ``classify``."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinpeft import evaluation, inference, runs, tokenization
from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import COHORT_SCHEMA
from clinpeft.recipe import ClassifyRecipe
from clinpeft.runs import Run
from clinpeft.training import Accelerator
from clinpeft.workflows.context import RunContext
from clinpeft.workflows.new_texts import check_is_new, read_new_texts
from clinpeft.workflows.workflow import require_recipe

UNKNOWN_PREDICTION_TIME = datetime(1970, 1, 1)  # the tables' times have no zone


@dataclass(frozen=True)
class _NewDocuments:
    """New notes as documents, and (documents,) the id of each note."""

    documents: tokenization.EncodedDocuments
    note_ids: pa.Array


def predict_new_notes(
    home: Path, run_name: str, notes_path: Path, columns: Mapping[str, str], out: Path
) -> tuple[Path, ...]:
    """Predict the tasks of a run for new notes; no text is written.

    Args:
        home: folder of all runs.
        run_name: the run: id, name, or the beginning of an id.
        notes_path: one note a row, in any format of the source ``files``.
        columns: our column -> theirs, where a column has another name.
        out: Parquet file with a row a note; of a run with several tasks, the others are written
            beside it under their names.

    Returns:
        A file for each task.

    Raises:
        UsageError: there is no such run, or it predicts nothing.
        RefusedError: ``out`` exists, or the run's files were changed.
        InputError: the notes cannot be read, or there is none.
    """
    run = runs.find_run(home, run_name, finished_only=True)
    recipe = require_recipe(run, ClassifyRecipe, "predict", "predicts nothing")
    targets = _name_output_files(recipe, out)
    runs.check_model_files(run)
    context = RunContext(home)
    accelerator = context.accelerator
    # Refuses a model whose output is not the stored one.
    classifier = inference.load_classifier(run.folder, recipe.base, accelerator.device)
    working = context.get_cache_path("predict", str(notes_path.resolve()), run.id)
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True, mode=0o700)
    try:
        ids = _write_cohort(notes_path, columns, working / "cohort.parquet")
        base = classifier.stack.base
        documents = tokenization.encode_documents(
            working / "cohort.parquet",
            base.tokenizer,
            recipe.truncation,
            base.max_tokens,
            base.family.objective,
            working / "documents",
        )
        new_documents = _NewDocuments(documents, ids)
        for name, target in zip(classifier.heads, targets, strict=True):
            table = _predict_task(classifier, name, new_documents, run, accelerator)
            with runs.replace_file_atomically(target) as writing:
                pq.write_table(table, writing, compression="zstd")
    finally:
        # It holds the text of the notes.
        shutil.rmtree(working, ignore_errors=True)
    return tuple(targets)


def _name_output_files(recipe: ClassifyRecipe, out: Path) -> list[Path]:
    """A file for every task, none of which exists, in a folder that does."""
    if not out.parent.is_dir():
        raise UsageError(
            f"there is no folder {str(out.parent)!r}",
            location="predict --out",
            hint="make it first",
        )
    more = (out.with_name(f"{out.stem}-{task.name}{out.suffix}") for task in recipe.more_tasks)
    targets = [out, *more]
    for target in targets:
        check_is_new(target, "predict --out")
    return targets


def _predict_task(
    classifier: inference.LoadedClassifier,
    task_name: str,
    new_documents: _NewDocuments,
    run: Run,
    accelerator: Accelerator,
) -> pa.Table:
    """The predictions of one task, recalibrated as the run's own, with the column ``note_id``."""
    recipe = require_recipe(run, ClassifyRecipe, "predict", "predicts nothing")
    documents, label_space = new_documents.documents, classifier.label_spaces[task_name]
    rows = documents.select_split("held_out")
    compute_logits = inference.build_logit_function(
        classifier.stack,
        documents,
        classifier.heads[task_name],
        classifier.pooling,
        recipe.truncation.pool,
        accelerator.device,
    )
    make_batches = functools.partial(
        tokenization.group_documents,
        documents,
        micro_batch_tokens=recipe.training.micro_batch_tokens,
    )
    logits = inference.gather_logits(
        compute_logits, len(label_space.classes), make_batches, accelerator, rows
    )
    table = inference.build_prediction_table(documents, rows, logits, label_space)
    if recipe.evaluation.recalibration != "none":
        # Fitted on the tuning rows of the run, and applied to the rows behind them.
        suffix = "" if task_name == recipe.task.name else f"-{task_name}"
        uncorrected = runs.read_run_table(run, f"predictions_uncorrected{suffix}")
        tuning = uncorrected.filter(pc.equal(uncorrected["split"], "tuning")).cast(table.schema)
        recalibrated, _ = evaluation.recalibrate_predictions(
            pa.concat_tables([tuning, table]),
            evaluation.read_prediction_label_space(table),
            recipe.evaluation.recalibration,
        )
        table = recalibrated.slice(len(tuning))
    return table.append_column("note_id", new_documents.note_ids.take(pa.array(rows)))


def _write_cohort(notes_path: Path, columns: Mapping[str, str], target: Path) -> pa.Array:
    """Write the notes as held-out rows of a cohort without labels; gives their ids."""
    ids: list[str] = []
    with pq.ParquetWriter(target, COHORT_SCHEMA, compression="zstd") as writer:
        for batch in read_new_texts(
            notes_path,
            columns,
            target.parent,
            "cannot be predicted",
            "leave them out: there is nothing to predict from",
        ):
            writer.write_batch(_build_cohort_rows(batch, len(ids)))
            ids += batch["note_id"].to_pylist()
    return pa.array(ids)


def _build_cohort_rows(batch: pa.RecordBatch, first_stay_id: int) -> pa.RecordBatch:
    times = [time or UNKNOWN_PREDICTION_TIME for time in batch["available_at"].to_pylist()]
    columns = {
        "subject_id": batch["subject_id"],
        "stay_id": pa.array(np.arange(first_stay_id, first_stay_id + len(batch))),
        "prediction_time": pa.array(times, COHORT_SCHEMA.field("prediction_time").type),
        "split": pa.array(["held_out"] * len(batch)),
        "text": batch["text"],
    }
    arrays = [
        columns[field.name] if field.name in columns else pa.nulls(len(batch), field.type)
        for field in COHORT_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=COHORT_SCHEMA)
