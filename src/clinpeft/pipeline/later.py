"""What is done with a finished run: compared, scored again, asked about new notes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft import evaluation, predictions, registry, sources, tokens, training
from clinpeft.errors import InputError, RefusedError, UsageError
from clinpeft.pipeline.runs import key
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EvaluationSpec, ScoringSpec, SourceSpec
from clinpeft.registry import Comparison, Run
from clinpeft.tables import COHORT, Attrition

UNKNOWN_TIME = datetime(1970, 1, 1)  # noqa: DTZ001 - the tables' times have no zone
NOTE_COLUMNS = ("note_id", "subject_id", "stay_id", "text")


def compared(home: Path, first: str, second: str) -> tuple[Comparison, pa.Table | None, str]:
    """Two runs side by side, the paired difference of what they measured, and, where there is none, the reason."""
    one, other = registry.find(home, first), registry.find(home, second)
    found = registry.compare(one, other)
    if found.incomparable:
        return found, None, found.incomparable
    paired, reason = {"adapt": _language, "classify": _answers}[one.recipe.kind](one, other)
    return found, paired, reason


def _language(one: Run, other: Run) -> tuple[pa.Table | None, str]:
    before, after = registry.likelihoods(one, "adapted"), registry.likelihoods(other, "adapted")
    names = (one.id, other.id)
    reason = evaluation.mismatch(before, after, names)
    spec = one.recipe.evaluation if isinstance(one.recipe, AdaptRecipe) else EvaluationSpec()
    return (None, reason) if reason else (evaluation.difference(before, after, spec, np.random.default_rng([one.recipe.seed, 1]), names), "")


def _answers(one: Run, other: Run) -> tuple[pa.Table | None, str]:
    before, after = registry.table(one, "predictions"), registry.table(other, "predictions")
    reason = evaluation.answers_mismatch(before, after)
    if reason:
        return None, reason
    assert isinstance(one.recipe, ClassifyRecipe)
    question, rng = evaluation.question_of(before), np.random.default_rng([one.recipe.split.seed, 1])
    return evaluation.answers_difference(before, after, question, one.recipe.evaluation, rng, (one.id, other.id)), ""


def evaluated(home: Path, what: str, resamples: int) -> tuple[pa.Table, pa.Table]:
    """Results and curves of predictions, scored again.

    Args:
        home: the folder of all runs.
        what: a run, or a Parquet file of predictions with its question in the metadata.
        resamples: bootstrap resamples of subjects.

    Raises:
        InputError: the file holds no predictions.
        UsageError: there is no such run.
    """
    spec = ScoringSpec(resamples=resamples)
    found = _predictions_file(Path(what)) if what.endswith(".parquet") else registry.table(registry.find(home, what, finished=True), "predictions")
    question = evaluation.question_of(found)
    seed = [1234, 1]
    results = evaluation.scored(found, question, spec, np.random.default_rng(seed))
    return results, evaluation.curves(found, question, spec, np.random.default_rng(seed))


def _predictions_file(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError("this file of predictions cannot be read", place=str(path), way_out="give a Parquet file that clinpeft wrote") from error


def predicted(home: Path, text: str, notes: Path, columns: Mapping[str, str], out: Path) -> tuple[Path, ...]:
    """A run's questions answered for new notes, a Parquet file a question with a row a note; no text is written.

    Args:
        home: the folder of all runs.
        text: the run.
        notes: one note a row, in any of the formats of the source ``files``.
        columns: ours -> theirs, where a column has another name.
        out: the file; of a run with several questions the others stand beside it under their names.

    Raises:
        UsageError: there is no such run, or it answers no question.
        RefusedError: ``out`` exists, or the run's files are not those that were written.
        InputError: the notes cannot be read, or there is none.
    """
    run = registry.find(home, text, finished=True)
    if not isinstance(run.recipe, ClassifyRecipe):
        raise UsageError(f"run {run.id} is of kind {run.recipe.kind} and answers no question", place="predict", way_out="take a run of classify")
    if out.exists():
        raise RefusedError(f"{str(out)!r} exists", place="predict --out", way_out="name a new file, or remove this one yourself")
    crew = training.assemble()
    served = predictions.open_run(run.folder, run.recipe.base, crew.device)
    working = home / "cache" / f"predict-{key(str(notes.resolve()), run.id)}"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True, mode=0o700)
    try:
        ids = _as_cohort(notes, columns, working / "cohort.parquet")
        base = served.stack.base
        documents = tokens.encode_documents(
            working / "cohort.parquet", base.tokenizer, run.recipe.reading, base.max_tokens, base.family.objective, working / "documents"
        )
        return tuple(_answered(served, name, documents, ids, run.recipe, crew, out, at) for at, name in enumerate(served.heads))
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _answered(
    served: predictions.Served,
    name: str,
    documents: tokens.Documents,
    ids: pa.Array,
    recipe: ClassifyRecipe,
    crew: training.Crew,
    out: Path,
    at: int,
) -> Path:
    """The answers to one question into its file."""
    chosen = documents.of("held_out")
    answer = predictions.live(served.stack, documents, served.heads[name], served.pooling, recipe.reading.pool, crew.device)
    classes = len(served.questions[name].classes)

    def grouped(some: tokens.Ints) -> list[tokens.Ints]:
        return tokens.document_batches(documents, some, recipe.training.micro_batch_tokens)

    logits = predictions.scores(answer, classes, grouped, crew, chosen)
    table = predictions.predictions(documents, chosen, logits, served.questions[name])
    target = out if at == 0 else out.with_name(f"{out.stem}-{name}{out.suffix}")
    with registry.replaced(target) as writing:
        pq.write_table(table.append_column("note_id", ids.take(pa.array(chosen))), writing, compression="zstd")
    return target


def _as_cohort(notes: Path, columns: Mapping[str, str], target: Path) -> pa.Array:
    """The notes as rows that are asked, their answers unknown; gives their ids. A note without text is an error: an answer to it would be invented."""
    spec = SourceSpec(name="files", path=notes, columns=_columns(notes, columns))
    ids: list[str] = []
    with pq.ParquetWriter(target, COHORT, compression="zstd") as writer:
        for batch in sources.read(spec, Attrition("read"), target.parent):
            empty = [note_id for note_id, text in zip(batch["note_id"].to_pylist(), batch["text"].to_pylist(), strict=True) if not text.strip()]
            if empty:
                problem = f"{len(empty)} notes are empty, the first is note_id {empty[0]!r}"
                raise InputError(problem, place=str(notes), way_out="leave them out: there is nothing to answer from")
            writer.write_batch(_rows(batch, len(ids)))
            ids += batch["note_id"].to_pylist()
    if not ids:
        raise InputError("there is no note in this file", place=str(notes), way_out="give at least one row")
    return pa.array(ids)


def _columns(notes: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Our names where the file has them, and what the user says of the others."""
    present = sources.column_names(notes)
    return {name: name for name in NOTE_COLUMNS if name in present} | dict(given)


def _rows(batch: pa.RecordBatch, begins: int) -> pa.RecordBatch:
    known = {
        "subject_id": batch["subject_id"],
        "stay_id": pa.array(np.arange(begins, begins + len(batch))),
        "prediction_time": pa.array([time or UNKNOWN_TIME for time in batch["available_at"].to_pylist()], COHORT.field("prediction_time").type),
        "split": pa.array(["held_out"] * len(batch)),
        "text": batch["text"],
    }
    arrays = [known[field.name] if field.name in known else pa.nulls(len(batch), field.type) for field in COHORT]
    return pa.RecordBatch.from_arrays(arrays, schema=COHORT)
