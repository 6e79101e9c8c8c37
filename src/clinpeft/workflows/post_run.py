"""What is done with a finished run: compared, scored again, asked about new notes."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinpeft import adapters, evaluation, inference, models, runs, tokenization, training
from clinpeft.adapters import Stack
from clinpeft.core.errors import InputError, RefusedError, UsageError
from clinpeft.core.schemas import COHORT_SCHEMA, PAIR_SCORE_SCHEMA, Attrition
from clinpeft.data.notes import sources
from clinpeft.data.retrieval import beir
from clinpeft.data.synthetic import handbook
from clinpeft.evaluation import embedding
from clinpeft.inference import EncodingProgress, EncodingSummary, OnnxParity
from clinpeft.models import EmbeddingConfig
from clinpeft.recipe import (
    AdaptRecipe,
    ClassificationEvaluationSpec,
    ClassifyRecipe,
    CohortSplitSpec,
    EmbedRecipe,
    EvaluationSpec,
    SourceSpec,
)
from clinpeft.runs import Run, RunComparison
from clinpeft.workflows import embedding_evaluation, encoder
from clinpeft.workflows.context import compute_cache_key

PARITY_SAMPLE_TEXTS = 48  # texts on which another engine is compared
UNKNOWN_PREDICTION_TIME = datetime(1970, 1, 1)  # the tables' times have no zone
NEW_NOTE_COLUMNS = ("note_id", "subject_id", "stay_id", "text")


def compare_run_results(
    home: Path, first_run_name: str, second_run_name: str
) -> tuple[RunComparison, pa.Table | None, str]:
    """Two runs side by side, the paired difference of what they measured, and, where there is none, the reason."""
    one, other = runs.find_run(home, first_run_name), runs.find_run(home, second_run_name)
    found = runs.compare_runs(one, other)
    if found.incomparable_reason:
        return found, None, found.incomparable_reason
    paired, reason = {
        "adapt": _compare_likelihoods,
        "classify": _compare_predictions,
        "embed": _compare_pair_scores,
    }[one.recipe.kind](one, other)
    return found, paired, reason


def _compare_likelihoods(first_run: Run, second_run: Run) -> tuple[pa.Table | None, str]:
    before, after = (
        runs.read_run_likelihoods(first_run, "adapted"),
        runs.read_run_likelihoods(second_run, "adapted"),
    )
    names = (first_run.id, second_run.id)
    reason = evaluation.find_likelihood_mismatch(before, after, names)
    spec = (
        first_run.recipe.evaluation
        if isinstance(first_run.recipe, AdaptRecipe)
        else EvaluationSpec()
    )
    return (
        (None, reason)
        if reason
        else (
            evaluation.compare_perplexity(
                before, after, spec, np.random.default_rng([first_run.recipe.seed, 1]), names
            ),
            "",
        )
    )


def _compare_predictions(first_run: Run, second_run: Run) -> tuple[pa.Table | None, str]:
    """The difference on every question that both answer."""
    before, after = read_run_predictions(first_run), read_run_predictions(second_run)
    reasons = {
        name: evaluation.find_prediction_mismatch(
            before[name], after[name], (first_run.id, second_run.id)
        )
        for name in before
        if name in after
    }
    assert isinstance(first_run.recipe, ClassifyRecipe)
    spec, seed, names = (
        first_run.recipe.evaluation,
        [first_run.recipe.split.seed, 1],
        (first_run.id, second_run.id),
    )
    found = [
        evaluation.compare_paired_predictions(
            before[name],
            after[name],
            evaluation.read_prediction_label_space(before[name]),
            spec,
            np.random.default_rng(seed),
            names,
        )
        for name, reason in reasons.items()
        if not reason
    ]
    return pa.concat_tables(found) if found else None, "; ".join(
        f"{name}: {reason}" for name, reason in reasons.items() if reason
    )


def _compare_pair_scores(first_run: Run, second_run: Run) -> tuple[pa.Table | None, str]:
    """The difference on the pairs of every task that both scored."""
    before, after = (_read_adapted_scores(run) for run in (first_run, second_run))
    assert isinstance(first_run.recipe, EmbedRecipe)
    spec, rows = first_run.recipe.evaluation, []
    for task in before:
        if task in after:
            rng, names = (
                np.random.default_rng([first_run.recipe.split.seed, 1]),
                (first_run.id, second_run.id),
            )
            try:
                rows.append(
                    embedding.compare_separation(
                        before[task],
                        after[task],
                        names,
                        resamples=spec.resamples,
                        level=spec.level,
                        rng=rng,
                        task=task,
                    )
                )
            except RefusedError as error:
                return None, f"{task}: {error.message}"
    return (pa.concat_tables(rows), "") if rows else (None, "they were asked nothing in common")


def _read_adapted_scores(run: Run) -> dict[str, pa.Table]:
    """Task -> ``tables.PAIR_SCORE`` of the adapted model."""
    table = runs.read_run_table(run, "pair_scores")
    table = table.filter(pc.equal(table["state"], "adapted"))
    tasks = pc.unique(table["task"]).to_pylist()
    return {
        task: table.filter(pc.equal(table["task"], task))
        .select(PAIR_SCORE_SCHEMA.names)
        .cast(PAIR_SCORE_SCHEMA)
        for task in tasks
    }


def read_run_predictions(run: Run) -> dict[str, pa.Table]:
    """Question -> what a run answered, the first question of its recipe first.

    Raises:
        InputError: it answers none, or a file is missing or damaged.
    """
    more = run.recipe.more_tasks if isinstance(run.recipe, ClassifyRecipe) else ()
    found = (
        runs.read_run_table(run, name)
        for name in ("predictions", *(f"predictions-{task.name}" for task in more))
    )
    return {evaluation.read_prediction_label_space(table).name: table for table in found}


def rescore_predictions(home: Path, run_or_file: str, resamples: int) -> tuple[pa.Table, pa.Table]:
    """Results and curves of predictions, scored again: those of a run as its recipe says, with its seed.

    Args:
        home: the folder of all runs.
        run_or_file: a run, or a Parquet file of predictions with its question in the metadata.
        resamples: bootstrap resamples of subjects.

    Raises:
        InputError: the file holds no predictions.
        UsageError: there is no such run.
    """
    found, spec, seed = _read_scoring_inputs(home, run_or_file)
    spec = spec.model_copy(update={"resamples": resamples})
    tables = [(table, evaluation.read_prediction_label_space(table)) for table in found]
    results = [
        evaluation.score_prediction_table(table, question, spec, np.random.default_rng([seed, 1]))
        for table, question in tables
    ]
    curves = [
        evaluation.compute_classification_curves(
            table, question, spec, np.random.default_rng([seed, 1])
        )
        for table, question in tables
    ]
    return pa.concat_tables(results), pa.concat_tables(curves)


def _read_scoring_inputs(
    home: Path, run_or_file: str
) -> tuple[list[pa.Table], ClassificationEvaluationSpec, int]:
    """Predictions, how they are scored, and the seed of the resamples."""
    if run_or_file.endswith(".parquet"):
        return (
            [_read_predictions_file(Path(run_or_file))],
            ClassificationEvaluationSpec(),
            CohortSplitSpec().seed,
        )
    run = runs.find_run(home, run_or_file, finished_only=True)
    tables = list(read_run_predictions(run).values())
    return (
        (tables, run.recipe.evaluation, run.recipe.split.seed)
        if isinstance(run.recipe, ClassifyRecipe)
        else (tables, ClassificationEvaluationSpec(), 0)
    )


def _read_predictions_file(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "this file of predictions cannot be read",
            location=str(path),
            hint="give a Parquet file that clinpeft wrote",
        ) from error


def predict_new_notes(
    home: Path, run_name: str, notes_path: Path, columns: Mapping[str, str], out: Path
) -> tuple[Path, ...]:
    """A run's questions answered for new notes, a Parquet file a question with a row a note; no text is written.

    Args:
        home: the folder of all runs.
        run_name: the run.
        notes_path: one note a row, in any of the formats of the source ``files``.
        columns: ours -> theirs, where a column has another name.
        out: the file; of a run with several questions the others stand beside it under their names.

    Raises:
        UsageError: there is no such run, or it answers no question.
        RefusedError: ``out`` exists, or the run's files are not those that were written.
        InputError: the notes cannot be read, or there is none.
    """
    run = runs.find_run(home, run_name, finished_only=True)
    if not isinstance(run.recipe, ClassifyRecipe):
        raise UsageError(
            f"run {run.id} is of kind {run.recipe.kind} and answers no question",
            location="predict",
            hint="take a run of classify",
        )
    targets = _name_output_files(run.recipe, out)
    runs.check_model_files(run)
    accelerator = training.create_accelerator()
    served = inference.load_classifier(run.folder, run.recipe.base, accelerator.device)
    working = home / "cache" / f"predict-{compute_cache_key(str(notes_path.resolve()), run.id)}"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True, mode=0o700)
    try:
        ids = _write_cohort(notes_path, columns, working / "cohort.parquet")
        base = served.stack.base
        documents = tokenization.encode_documents(
            working / "cohort.parquet",
            base.tokenizer,
            run.recipe.truncation,
            base.max_tokens,
            base.family.objective,
            working / "documents",
        )
        return tuple(
            _predict_task(served, name, documents, ids, run, accelerator, target)
            for name, target in zip(served.heads, targets, strict=True)
        )
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _name_output_files(recipe: ClassifyRecipe, out: Path) -> list[Path]:
    """A file for every question, none of which exists, in a folder that does."""
    if not out.parent.is_dir():
        raise UsageError(
            f"there is no folder {str(out.parent)!r}",
            location="predict --out",
            hint="make it first",
        )
    targets = [
        out,
        *(out.with_name(f"{out.stem}-{task.name}{out.suffix}") for task in recipe.more_tasks),
    ]
    for target in targets:
        if target.exists():
            raise RefusedError(
                f"{str(target)!r} exists",
                location="predict --out",
                hint="name a new file, or remove this one yourself",
            )
    return targets


def _predict_task(
    classifier: inference.LoadedClassifier,
    task_name: str,
    documents: tokenization.EncodedDocuments,
    note_ids: pa.Array,
    run: Run,
    accelerator: training.Accelerator,
    target: Path,
) -> Path:
    """The answers to one question into its file."""
    recipe = run.recipe
    assert isinstance(recipe, ClassifyRecipe)
    chosen = documents.select_split("held_out")
    answer = inference.build_logit_function(
        classifier.stack,
        documents,
        classifier.heads[task_name],
        classifier.pooling,
        recipe.truncation.pool,
        accelerator.device,
    )
    classes = len(classifier.label_spaces[task_name].classes)
    grouped = functools.partial(
        tokenization.group_documents,
        documents,
        micro_batch_tokens=recipe.training.micro_batch_tokens,
    )
    logits = inference.gather_logits(answer, classes, grouped, accelerator, chosen)
    table = _recalibrate_predictions(
        inference.build_prediction_table(
            documents, chosen, logits, classifier.label_spaces[task_name]
        ),
        task_name,
        run,
    )
    with runs.replace_file_atomically(target) as writing:
        pq.write_table(
            table.append_column("note_id", note_ids.take(pa.array(chosen))),
            writing,
            compression="zstd",
        )
    return target


def _recalibrate_predictions(new_predictions: pa.Table, task_name: str, run: Run) -> pa.Table:
    """New answers recalibrated by what the run's own tuning split asks for, where its recipe wants that."""
    recipe = run.recipe
    assert isinstance(recipe, ClassifyRecipe)
    if recipe.evaluation.recalibration == "none":
        return new_predictions
    own = runs.read_run_table(
        run,
        "predictions_uncorrected"
        if task_name == recipe.task.name
        else f"predictions_uncorrected-{task_name}",
    )
    tuning = own.filter(pc.equal(own["split"], "tuning")).cast(new_predictions.schema)
    question = evaluation.read_prediction_label_space(new_predictions)
    both, _ = evaluation.recalibrate_predictions(
        pa.concat_tables([tuning, new_predictions]), question, recipe.evaluation.recalibration
    )
    return both.slice(len(tuning))


def _write_cohort(notes_path: Path, columns: Mapping[str, str], target: Path) -> pa.Array:
    """The notes as rows that are asked, their answers unknown; gives their ids. A row that is no note is an error: no answer may be missing."""
    spec = SourceSpec(
        name="files",
        path=notes_path,
        columns=_map_columns(notes_path, columns),
        max_bad_fraction=0.0,
    )
    ids: list[str] = []
    read = Attrition("read")
    with pq.ParquetWriter(target, COHORT_SCHEMA, compression="zstd") as writer:
        for batch in sources.read_notes(spec, read, target.parent):
            writer.write_batch(_build_cohort_rows(batch, len(ids)))
            ids += batch["note_id"].to_pylist()
    _check_no_dropped_rows(
        read, notes_path, "cannot be answered", "leave them out: there is nothing to answer from"
    )
    return pa.array(ids)


def _map_columns(notes_path: Path, user_columns: Mapping[str, str]) -> dict[str, str]:
    """Our names where the file has them, and what the user says of the others."""
    present = sources.read_column_names(notes_path)
    return {name: name for name in NEW_NOTE_COLUMNS if name in present} | dict(user_columns)


def _build_cohort_rows(batch: pa.RecordBatch, first_stay_id: int) -> pa.RecordBatch:
    known = {
        "subject_id": batch["subject_id"],
        "stay_id": pa.array(np.arange(first_stay_id, first_stay_id + len(batch))),
        "prediction_time": pa.array(
            [time or UNKNOWN_PREDICTION_TIME for time in batch["available_at"].to_pylist()],
            COHORT_SCHEMA.field("prediction_time").type,
        ),
        "split": pa.array(["held_out"] * len(batch)),
        "text": batch["text"],
    }
    arrays = [
        known[field.name] if field.name in known else pa.nulls(len(batch), field.type)
        for field in COHORT_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=COHORT_SCHEMA)


def evaluate_run_retrieval(home: Path, run_name: str, folder: Path, resamples: int) -> pa.Table:
    """How a run of embed searches a set that it was not asked before, beside its base and beside words alone.

    Args:
        home: the folder of all runs.
        run_name: the run.
        folder: a set in BEIR layout; its name is that of the task.
        resamples: bootstrap resamples of queries, or of what they are of.

    Returns:
        Of schema ``tables.RESULT``.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        SourceError: the set cannot be read.
    """
    run, recipe = _find_encoder_run(home, run_name, "evaluate")
    runs.check_model_files(run)
    asked, device = beir.read_beir(folder), training.create_accelerator().device
    stack, embedding_config = inference.load_encoder(run.folder, recipe.base, device)
    base = adapters.attach_adapters(models.load_base_model(recipe.base, device, "vectors"), ())
    states = {
        encoder.ZERO_SHOT_STATE: encoder.create_encode_function(base, embedding_config),
        encoder.ADAPTED_STATE: encoder.create_encode_function(stack, embedding_config),
    }
    spec = recipe.evaluation.model_copy(update={"resamples": resamples})
    return embedding_evaluation.evaluate_retrieval_set(
        folder.resolve().name, asked, states, embedding_config, spec, recipe.split.seed
    )


def encode_text_file(
    home: Path,
    run_name: str,
    texts_path: Path,
    out: Path,
    on_progress: Callable[[EncodingProgress], None],
) -> EncodingSummary:
    """The vectors of texts by a run of embed, in a ``.npy`` or ``.parquet`` file that is there whole or not at all.

    Args:
        home: the folder of all runs.
        run_name: the run.
        texts_path: a file with a column ``run_name`` in any format of the source ``files``.
        out: the file of vectors.
        on_progress: called with progress.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        RefusedError: ``out`` exists.
        InputError: the texts cannot be read, one is empty, or there is none.
    """
    run, recipe = _find_encoder_run(home, run_name, "encode")
    if out.exists():
        raise RefusedError(
            f"{str(out)!r} exists",
            location="encode --out",
            hint="name a new file, or remove this one yourself",
        )
    runs.check_model_files(run)
    stack, embedding_config = inference.load_encoder(
        run.folder, recipe.base, training.create_accelerator().device
    )
    return inference.encode_texts_to_file(
        stack,
        embedding_config,
        _read_texts(texts_path, home / "cache"),
        out,
        embedding_config.document_prompt,
        on_progress=on_progress,
    )


def _read_texts(texts_path: Path, cache: Path) -> Iterator[pa.RecordBatch]:
    """The texts of a file; a row that is none is an error before there is a file of vectors, since all after it would stand in a wrong row."""
    read = Attrition("read")
    yield from sources.read_notes(
        SourceSpec(
            name="files",
            path=texts_path,
            columns=_map_columns(texts_path, {}),
            max_bad_fraction=0.0,
        ),
        read,
        cache,
    )
    _check_no_dropped_rows(read, texts_path, "cannot be encoded", "leave them out, and count them")


def _check_no_dropped_rows(attrition: Attrition, path: Path, message: str, hint: str) -> None:
    if attrition.dropped_rows:
        reasons = ", ".join(
            f"{count:,} × {reason}" for reason, count in attrition.dropped_rows.items()
        )
        raise InputError(
            f"{attrition.entered_rows - attrition.kept_rows:,} of {attrition.entered_rows:,} rows {message}: {reasons}",
            location=str(path),
            hint=hint,
        )


def export_run_encoder(
    home: Path,
    run_name: str,
    folder: Path,
    format_card: Callable[[Run], str],
    *,
    merge_adapters: bool,
    base_name: str = "",
) -> Path:
    """A run of embed as a folder that stock ``SentenceTransformer(folder)`` opens, with its card.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        RefusedError: ``folder`` exists.
        AdapterError: the adapter cannot stand alone.
    """
    run, (stack, embedding_config) = _load_run_encoder(home, run_name, folder)
    inference.export_sentence_transformer(
        stack, embedding_config, folder, format_card(run), merge_adapters, base_name
    )
    return folder


def export_run_to_onnx(home: Path, run_name: str, folder: Path) -> OnnxParity:
    """A run of embed as an ONNX graph from token ids to vectors, which is written only if it gives the vectors of the run.

    They are compared on paragraphs of the invented hospital's handbook, so that the books need not be at hand, and on one that is too long.

    Raises:
        UsageError: there is no such run, it holds no encoder, or a package is not installed.
        RefusedError: ``folder`` exists, or the graph gives other vectors.
        AdapterError: an adapter cannot be folded in.
    """
    _, (stack, embedding_config) = _load_run_encoder(home, run_name, folder)
    parts = [part for part in handbook.compose_handbook().split("\n\n") if part[0].isalpha()]
    sample = [*parts[:: len(parts) // PARITY_SAMPLE_TEXTS], " ".join(parts)]
    return inference.export_onnx(
        stack,
        embedding_config,
        folder,
        [embedding_config.document_prompt + part for part in sample],
    )


def _load_run_encoder(
    home: Path, run_name: str, folder: Path
) -> tuple[Run, tuple[Stack, EmbeddingConfig]]:
    """A run of embed and its encoder, to be written to a folder that is not there."""
    run, recipe = _find_encoder_run(home, run_name, "export")
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="export --out",
            hint="name a new folder, or remove this one yourself",
        )
    runs.check_model_files(run)
    return run, inference.load_encoder(
        run.folder, recipe.base, training.create_accelerator().device
    )


def _find_encoder_run(home: Path, run_name: str, command: str) -> tuple[Run, EmbedRecipe]:
    """A run of embed whose weights are as they were recorded."""
    run = runs.find_run(home, run_name, finished_only=True)
    if not isinstance(run.recipe, EmbedRecipe):
        raise UsageError(
            f"run {run.id} is of kind {run.recipe.kind} and holds no encoder",
            location=command,
            hint="take a run of embed",
        )
    return run, run.recipe
