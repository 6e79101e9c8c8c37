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
from clinpeft.core.schemas import COHORT, PAIR_SCORE, Attrition
from clinpeft.data.notes import sources
from clinpeft.data.retrieval import beir
from clinpeft.data.synthetic import handbook
from clinpeft.evaluation import embedding
from clinpeft.inference import Encoded, Parity, Progress
from clinpeft.models import Manner
from clinpeft.recipe import (
    AdaptRecipe,
    ClassifyRecipe,
    CohortSplitSpec,
    EmbedRecipe,
    EvaluationSpec,
    ScoringSpec,
    SourceSpec,
)
from clinpeft.runs import Comparison, Run
from clinpeft.workflows import embedding_evaluation, encoder
from clinpeft.workflows.context import key

SAMPLED = 48  # texts on which another engine is compared
UNKNOWN_TIME = datetime(1970, 1, 1)  # the tables' times have no zone
NOTE_COLUMNS = ("note_id", "subject_id", "stay_id", "text")


def compared(home: Path, first: str, second: str) -> tuple[Comparison, pa.Table | None, str]:
    """Two runs side by side, the paired difference of what they measured, and, where there is none, the reason."""
    one, other = runs.find(home, first), runs.find(home, second)
    found = runs.compare(one, other)
    if found.incomparable:
        return found, None, found.incomparable
    paired, reason = {"adapt": _language, "classify": _answers, "embed": _vectors}[one.recipe.kind](
        one, other
    )
    return found, paired, reason


def _language(one: Run, other: Run) -> tuple[pa.Table | None, str]:
    before, after = runs.likelihoods(one, "adapted"), runs.likelihoods(other, "adapted")
    names = (one.id, other.id)
    reason = evaluation.mismatch(before, after, names)
    spec = one.recipe.evaluation if isinstance(one.recipe, AdaptRecipe) else EvaluationSpec()
    return (
        (None, reason)
        if reason
        else (
            evaluation.difference(
                before, after, spec, np.random.default_rng([one.recipe.seed, 1]), names
            ),
            "",
        )
    )


def _answers(one: Run, other: Run) -> tuple[pa.Table | None, str]:
    """The difference on every question that both answer."""
    before, after = answers_of(one), answers_of(other)
    reasons = {
        name: evaluation.answers_mismatch(before[name], after[name], (one.id, other.id))
        for name in before
        if name in after
    }
    assert isinstance(one.recipe, ClassifyRecipe)
    spec, seed, names = one.recipe.evaluation, [one.recipe.split.seed, 1], (one.id, other.id)
    found = [
        evaluation.answers_difference(
            before[name],
            after[name],
            evaluation.question_of(before[name]),
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


def _vectors(one: Run, other: Run) -> tuple[pa.Table | None, str]:
    """The difference on the pairs of every task that both scored."""
    before, after = (_adapted_scores(run) for run in (one, other))
    assert isinstance(one.recipe, EmbedRecipe)
    spec, rows = one.recipe.evaluation, []
    for task in before:
        if task in after:
            rng, names = np.random.default_rng([one.recipe.split.seed, 1]), (one.id, other.id)
            try:
                rows.append(
                    embedding.separation_difference(
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


def _adapted_scores(run: Run) -> dict[str, pa.Table]:
    """Task -> ``tables.PAIR_SCORE`` of the adapted model."""
    table = runs.table(run, "pair_scores")
    table = table.filter(pc.equal(table["state"], "adapted"))
    tasks = pc.unique(table["task"]).to_pylist()
    return {
        task: table.filter(pc.equal(table["task"], task)).select(PAIR_SCORE.names).cast(PAIR_SCORE)
        for task in tasks
    }


def answers_of(run: Run) -> dict[str, pa.Table]:
    """Question -> what a run answered, the first question of its recipe first.

    Raises:
        InputError: it answers none, or a file is missing or damaged.
    """
    more = run.recipe.more_tasks if isinstance(run.recipe, ClassifyRecipe) else ()
    found = (
        runs.table(run, name)
        for name in ("predictions", *(f"predictions-{task.name}" for task in more))
    )
    return {evaluation.question_of(table).name: table for table in found}


def evaluated(home: Path, what: str, resamples: int) -> tuple[pa.Table, pa.Table]:
    """Results and curves of predictions, scored again: those of a run as its recipe says, with its seed.

    Args:
        home: the folder of all runs.
        what: a run, or a Parquet file of predictions with its question in the metadata.
        resamples: bootstrap resamples of subjects.

    Raises:
        InputError: the file holds no predictions.
        UsageError: there is no such run.
    """
    found, spec, seed = _asked_again(home, what)
    spec = spec.model_copy(update={"resamples": resamples})
    tables = [(table, evaluation.question_of(table)) for table in found]
    results = [
        evaluation.scored(table, question, spec, np.random.default_rng([seed, 1]))
        for table, question in tables
    ]
    curves = [
        evaluation.curves(table, question, spec, np.random.default_rng([seed, 1]))
        for table, question in tables
    ]
    return pa.concat_tables(results), pa.concat_tables(curves)


def _asked_again(home: Path, what: str) -> tuple[list[pa.Table], ScoringSpec, int]:
    """Predictions, how they are scored, and the seed of the resamples."""
    if what.endswith(".parquet"):
        return [_predictions_file(Path(what))], ScoringSpec(), CohortSplitSpec().seed
    run = runs.find(home, what, finished=True)
    tables = list(answers_of(run).values())
    return (
        (tables, run.recipe.evaluation, run.recipe.split.seed)
        if isinstance(run.recipe, ClassifyRecipe)
        else (tables, ScoringSpec(), 0)
    )


def _predictions_file(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "this file of predictions cannot be read",
            location=str(path),
            hint="give a Parquet file that clinpeft wrote",
        ) from error


def predicted(
    home: Path, text: str, notes: Path, columns: Mapping[str, str], out: Path
) -> tuple[Path, ...]:
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
    run = runs.find(home, text, finished=True)
    if not isinstance(run.recipe, ClassifyRecipe):
        raise UsageError(
            f"run {run.id} is of kind {run.recipe.kind} and answers no question",
            location="predict",
            hint="take a run of classify",
        )
    targets = _targets(run.recipe, out)
    runs.refuse_changed(run)
    accelerator = training.assemble()
    served = inference.open_run(run.folder, run.recipe.base, accelerator.device)
    working = home / "cache" / f"predict-{key(str(notes.resolve()), run.id)}"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True, mode=0o700)
    try:
        ids = _as_cohort(notes, columns, working / "cohort.parquet")
        base = served.stack.base
        documents = tokenization.encode_documents(
            working / "cohort.parquet",
            base.tokenizer,
            run.recipe.reading,
            base.max_tokens,
            base.family.objective,
            working / "documents",
        )
        return tuple(
            _answered(served, name, documents, ids, run, accelerator, target)
            for name, target in zip(served.heads, targets, strict=True)
        )
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _targets(recipe: ClassifyRecipe, out: Path) -> list[Path]:
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


def _answered(
    served: inference.Served,
    name: str,
    documents: tokenization.Documents,
    ids: pa.Array,
    run: Run,
    accelerator: training.Crew,
    target: Path,
) -> Path:
    """The answers to one question into its file."""
    recipe = run.recipe
    assert isinstance(recipe, ClassifyRecipe)
    chosen = documents.of("held_out")
    answer = inference.live(
        served.stack,
        documents,
        served.heads[name],
        served.pooling,
        recipe.reading.pool,
        accelerator.device,
    )
    classes = len(served.questions[name].classes)
    grouped = functools.partial(
        tokenization.document_batches,
        documents,
        micro_batch_tokens=recipe.training.micro_batch_tokens,
    )
    logits = inference.scores(answer, classes, grouped, accelerator, chosen)
    table = _corrected(
        inference.predictions(documents, chosen, logits, served.questions[name]), name, run
    )
    with runs.replaced(target) as writing:
        pq.write_table(
            table.append_column("note_id", ids.take(pa.array(chosen))), writing, compression="zstd"
        )
    return target


def _corrected(answered: pa.Table, name: str, run: Run) -> pa.Table:
    """New answers recalibrated by what the run's own tuning split asks for, where its recipe wants that."""
    recipe = run.recipe
    assert isinstance(recipe, ClassifyRecipe)
    if recipe.evaluation.recalibration == "none":
        return answered
    own = runs.table(
        run,
        "predictions_uncorrected"
        if name == recipe.task.name
        else f"predictions_uncorrected-{name}",
    )
    tuning = own.filter(pc.equal(own["split"], "tuning")).cast(answered.schema)
    question = evaluation.question_of(answered)
    both, _ = evaluation.recalibrated(
        pa.concat_tables([tuning, answered]), question, recipe.evaluation.recalibration
    )
    return both.slice(len(tuning))


def _as_cohort(notes: Path, columns: Mapping[str, str], target: Path) -> pa.Array:
    """The notes as rows that are asked, their answers unknown; gives their ids. A row that is no note is an error: no answer may be missing."""
    spec = SourceSpec(
        name="files", path=notes, columns=_columns(notes, columns), max_bad_fraction=0.0
    )
    ids: list[str] = []
    read = Attrition("read")
    with pq.ParquetWriter(target, COHORT, compression="zstd") as writer:
        for batch in sources.read(spec, read, target.parent):
            writer.write_batch(_rows(batch, len(ids)))
            ids += batch["note_id"].to_pylist()
    _refuse_dropped(
        read, notes, "cannot be answered", "leave them out: there is nothing to answer from"
    )
    return pa.array(ids)


def _columns(notes: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Our names where the file has them, and what the user says of the others."""
    present = sources.column_names(notes)
    return {name: name for name in NOTE_COLUMNS if name in present} | dict(given)


def _rows(batch: pa.RecordBatch, begins: int) -> pa.RecordBatch:
    known = {
        "subject_id": batch["subject_id"],
        "stay_id": pa.array(np.arange(begins, begins + len(batch))),
        "prediction_time": pa.array(
            [time or UNKNOWN_TIME for time in batch["available_at"].to_pylist()],
            COHORT.field("prediction_time").type,
        ),
        "split": pa.array(["held_out"] * len(batch)),
        "text": batch["text"],
    }
    arrays = [
        known[field.name] if field.name in known else pa.nulls(len(batch), field.type)
        for field in COHORT
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=COHORT)


def searched(home: Path, text: str, folder: Path, resamples: int) -> pa.Table:
    """How a run of embed searches a set that it was not asked before, beside its base and beside words alone.

    Args:
        home: the folder of all runs.
        text: the run.
        folder: a set in BEIR layout; its name is that of the task.
        resamples: bootstrap resamples of queries, or of what they are of.

    Returns:
        Of schema ``tables.RESULT``.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        SourceError: the set cannot be read.
    """
    run, recipe = _run_of_embed(home, text, "evaluate")
    runs.refuse_changed(run)
    asked, device = beir.read(folder), training.assemble().device
    stack, embedding_config = inference.open_encoder(run.folder, recipe.base, device)
    base = adapters.attach(models.load(recipe.base, device, "vectors"), ())
    states = {
        encoder.ZERO_SHOT: encoder.encoding(base, embedding_config),
        encoder.ADAPTED: encoder.encoding(stack, embedding_config),
    }
    spec = recipe.evaluation.model_copy(update={"resamples": resamples})
    return embedding_evaluation.searched(
        folder.resolve().name, asked, states, embedding_config, spec, recipe.split.seed
    )


def encoded(
    home: Path, text: str, texts: Path, out: Path, tell: Callable[[Progress], None]
) -> Encoded:
    """The vectors of texts by a run of embed, in a ``.npy`` or ``.parquet`` file that is there whole or not at all.

    Args:
        home: the folder of all runs.
        text: the run.
        texts: a file with a column ``text`` in any format of the source ``files``.
        out: the file of vectors.
        tell: called with progress.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        RefusedError: ``out`` exists.
        InputError: the texts cannot be read, one is empty, or there is none.
    """
    run, recipe = _run_of_embed(home, text, "encode")
    if out.exists():
        raise RefusedError(
            f"{str(out)!r} exists",
            location="encode --out",
            hint="name a new file, or remove this one yourself",
        )
    runs.refuse_changed(run)
    stack, embedding_config = inference.open_encoder(
        run.folder, recipe.base, training.assemble().device
    )
    return inference.encode(
        stack,
        embedding_config,
        _every_text(texts, home / "cache"),
        out,
        embedding_config.document_prompt,
        tell=tell,
    )


def _every_text(texts: Path, cache: Path) -> Iterator[pa.RecordBatch]:
    """The texts of a file; a row that is none is an error before there is a file of vectors, since all after it would stand in a wrong row."""
    read = Attrition("read")
    yield from sources.read(
        SourceSpec(name="files", path=texts, columns=_columns(texts, {}), max_bad_fraction=0.0),
        read,
        cache,
    )
    _refuse_dropped(read, texts, "cannot be encoded", "leave them out, and count them")


def _refuse_dropped(read: Attrition, path: Path, message: str, hint: str) -> None:
    if read.dropped:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in read.dropped.items())
        raise InputError(
            f"{read.entered - read.kept:,} of {read.entered:,} rows {message}: {reasons}",
            location=str(path),
            hint=hint,
        )


def exported(
    home: Path,
    text: str,
    folder: Path,
    card: Callable[[Run], str],
    *,
    merged: bool,
    base_name: str = "",
) -> Path:
    """A run of embed as a folder that stock ``SentenceTransformer(folder)`` opens, with its card.

    Raises:
        UsageError: there is no such run, or it holds no encoder.
        RefusedError: ``folder`` exists.
        AdapterError: the adapter cannot stand alone.
    """
    run, (stack, embedding_config) = _encoder(home, text, folder)
    inference.export(stack, embedding_config, folder, card(run), merged, base_name)
    return folder


def exported_to_onnx(home: Path, text: str, folder: Path) -> Parity:
    """A run of embed as an ONNX graph from token ids to vectors, which is written only if it gives the vectors of the run.

    They are compared on paragraphs of the invented hospital's handbook, so that the books need not be at hand, and on one that is too long.

    Raises:
        UsageError: there is no such run, it holds no encoder, or a package is not installed.
        RefusedError: ``folder`` exists, or the graph gives other vectors.
        AdapterError: an adapter cannot be folded in.
    """
    _, (stack, embedding_config) = _encoder(home, text, folder)
    parts = [part for part in handbook.text().split("\n\n") if part[0].isalpha()]
    sample = [*parts[:: len(parts) // SAMPLED], " ".join(parts)]
    return inference.export_onnx(
        stack,
        embedding_config,
        folder,
        [embedding_config.document_prompt + part for part in sample],
    )


def _encoder(home: Path, text: str, folder: Path) -> tuple[Run, tuple[Stack, Manner]]:
    """A run of embed and its encoder, to be written to a folder that is not there."""
    run, recipe = _run_of_embed(home, text, "export")
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="export --out",
            hint="name a new folder, or remove this one yourself",
        )
    runs.refuse_changed(run)
    return run, inference.open_encoder(run.folder, recipe.base, training.assemble().device)


def _run_of_embed(home: Path, text: str, verb: str) -> tuple[Run, EmbedRecipe]:
    """A run of embed whose weights are as they were recorded."""
    run = runs.find(home, text, finished=True)
    if not isinstance(run.recipe, EmbedRecipe):
        raise UsageError(
            f"run {run.id} is of kind {run.recipe.kind} and holds no encoder",
            location=verb,
            hint="take a run of embed",
        )
    return run, run.recipe
