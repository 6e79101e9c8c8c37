"""Notes -> text to learn a language from: cleaned, without repetition, split by subject.

Two passes over the notes, in bounded memory whatever their number. The first cleans each note, writes its text to a temporary file and
remembers what tells repetitions; DuckDB then decides who is dropped; the second streams the kept notes, with their split, into one file.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from clinpeft.core.errors import InputError, RecipeError, SourceError
from clinpeft.core.schemas import CORPUS_SCHEMA, Attrition
from clinpeft.data.formats import working_folder
from clinpeft.data.notes import deduplicate
from clinpeft.data.notes.canaries import MARK, Canary, canaries, corpus_of, secrets, with_canaries
from clinpeft.data.notes.clean import CLEANED, cleaned, policy_version, stripped
from clinpeft.data.notes.split import BY, refuse_empty, split_of
from clinpeft.recipe import CorpusSpec, SplitSpec

__all__ = [
    "MARK",
    "Canary",
    "Corpus",
    "build",
    "canaries",
    "corpus_of",
    "policy_version",
    "secrets",
    "with_canaries",
]

_NOTES, _BYTES = (
    512,
    8 * 2**20,
)  # a piece: large enough for NumPy; its words and hashes take some twenty times its text
_DATABASE_MEGABYTES = 512
_CLEANED, _KEPT = "cleaned.parquet", "kept.parquet"


@dataclass(frozen=True)
class Corpus:
    """Text to learn from.

    Attributes:
        path: one Parquet file of schema ``tables.CORPUS``, in reading order.
        attrition: one entry a step, in order; what enters a step is what the one before kept.
    """

    path: Path
    attrition: tuple[Attrition, ...]


def build(
    notes: pa.RecordBatchReader, corpus: CorpusSpec, split: SplitSpec, seed: int, folder: Path
) -> Corpus:
    """The corpus of a stream of notes, written to ``folder/corpus.parquet`` at once and whole, or not at all.

    Args:
        notes: of schema ``tables.NOTE``; read once.
        corpus: how notes become text.
        split: who is learned from.
        seed: of the split; nothing else here is random.
        folder: where the corpus goes; temporary files live in it too, about three times the clean text, and are removed.

    Raises:
        SourceError: the stream holds no note.
        RecipeError: a category that no note has.
        InputError: no note is left, or a split that is asked for is empty.
        RefusedError: a subject in two splits.
        StorageError: the disk is full; a corpus that stood in ``folder`` before is intact.
    """
    path = folder / "corpus.parquet"
    with working_folder.working(folder) as partial:
        first = _clean(notes, corpus, partial)
        with (
            working_folder.stored(folder),
            contextlib.closing(working_folder.database(partial, _DATABASE_MEGABYTES)) as connection,
        ):
            kept, repetitions = _without_repetitions(connection, first.kept_rows, corpus, partial)
            last = _split(kept, split, seed, partial)
            BY[split.by].check(partial / _KEPT, connection)
            (partial / _KEPT).replace(path)
    return Corpus(path, (first, *repetitions, last))


def _clean(notes: pa.RecordBatchReader, corpus: CorpusSpec, partial: Path) -> Attrition:
    """The first pass: ``cleaned.parquet`` and what the steps of deduplication want to know of every note."""
    attrition, categories = (
        Attrition("clean"),
        Counter(dict.fromkeys(stripped(corpus.categories), 0)),
    )
    with contextlib.ExitStack() as files:
        write = files.enter_context(working_folder.writing(partial / _CLEANED, CLEANED))
        told = [
            files.enter_context(step.remembering(partial, corpus.near_threshold))
            for step in deduplicate.STEPS[corpus.deduplicate]
        ]
        for piece in (piece for batch in notes for piece in _pieces(batch)):
            batch = cleaned(piece, corpus, attrition, categories)
            write(batch)
            if told and batch.num_rows:
                words = [deduplicate.words(text) for text in batch["text"].to_pylist()]
                for remember in told:
                    remember(words)
    _refuse_nothing(attrition, categories, corpus)
    return attrition


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in pieces of bounded size, in order, however large the source makes its batches; one note is never cut."""
    if batch.num_rows <= 1 or (batch.num_rows <= _NOTES and batch.nbytes <= _BYTES):
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half))
        yield from _pieces(batch.slice(half))


def _refuse_nothing(attrition: Attrition, categories: Counter[str], corpus: CorpusSpec) -> None:
    if not attrition.entered_rows:
        raise SourceError(
            "the source gave 0 notes: there is nothing to learn from",
            location="source",
            hint="give a source that holds notes",
        )
    missing = [name for name in stripped(corpus.categories) if not categories[name]]
    if missing:
        near = difflib.get_close_matches(missing[0], +categories, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"none of the {attrition.entered_rows} notes has the category {missing[0]!r}"
        raise RecipeError(
            message, location="corpus.categories", hint=f"{hint}there are: {_listed(+categories)}"
        )
    if not attrition.kept_rows:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in sorted(attrition.dropped_rows.items())
        )
        hint = "lower corpus.min_characters, or look at what the source reads as text"
        raise InputError(
            f"0 of {attrition.entered_rows} notes are left after cleaning: {reasons}",
            location="corpus",
            hint=hint,
        )


def _listed(categories: Counter[str]) -> str:
    """The most frequent categories; cut short, in case that a column of free text was named as the category."""
    shown = ", ".join(f"{name[:40]!r} ({count})" for name, count in categories.most_common(20))
    return shown + (", ..." if len(categories) > 20 else "") or "none, every category is null"


def _without_repetitions(
    connection: duckdb.DuckDBPyConnection, notes: int, corpus: CorpusSpec, partial: Path
) -> tuple[deduplicate.Bool, list[Attrition]]:
    """One truth value a cleaned note, whether it is kept, and one attrition a step."""
    dropped, attritions = np.zeros(notes, np.bool_), []
    for step in deduplicate.STEPS[corpus.deduplicate]:
        attrition = Attrition(step.name, entered_rows=int((~dropped).sum()))
        found = step.find(connection, partial, dropped, corpus.near_threshold)
        attrition.drop_rows(step.reason, int(found.sum()))
        dropped |= found
        attritions.append(attrition)
    return ~dropped, attritions


def _split(kept: deduplicate.Bool, split: SplitSpec, seed: int, partial: Path) -> Attrition:
    """The second pass: the kept notes with their split, in reading order, as ``kept.parquet``."""
    counts, at = Counter[str](), 0
    with working_folder.writing(partial / _KEPT, CORPUS_SCHEMA) as write:
        for batch in working_folder.batches(partial / _CLEANED, _NOTES):
            notes = batch.filter(pa.array(kept[at : at + batch.num_rows]))
            at += batch.num_rows
            splits = split_of(notes["subject_id"], notes["note_id"], split, seed)
            counts.update(splits.to_pylist())
            columns = {name: notes[name] for name in CLEANED.names} | {"split": splits}
            write(
                pa.RecordBatch.from_arrays(
                    [columns[name] for name in CORPUS_SCHEMA.names], schema=CORPUS_SCHEMA
                )
            )
    refuse_empty(counts, split)
    return Attrition("split", entered_rows=counts.total())
