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
from clinpeft.data.notes.canaries import (
    CANARY_ID_PREFIX,
    Canary,
    build_corpus_table,
    draw_canary_secrets,
    generate_canaries,
    insert_canaries,
)
from clinpeft.data.notes.clean import (
    CLEANED_NOTE_SCHEMA,
    clean_notes,
    format_policy_version,
    strip_category_names,
)
from clinpeft.data.notes.split import NOTE_SPLIT_UNITS, assign_note_splits, check_note_split_counts
from clinpeft.recipe import CorpusSpec, SplitSpec

__all__ = [
    "CANARY_ID_PREFIX",
    "Canary",
    "NoteCorpus",
    "build_corpus_table",
    "build_note_corpus",
    "draw_canary_secrets",
    "format_policy_version",
    "generate_canaries",
    "insert_canaries",
]

_PIECE_NOTES, _PIECE_BYTES = (
    512,
    8 * 2**20,
)  # a piece: large enough for NumPy; its words and hashes take some twenty times its text
_DATABASE_MEGABYTES = 512
_CLEANED_FILE, _SPLIT_FILE = "cleaned.parquet", "kept.parquet"


@dataclass(frozen=True)
class NoteCorpus:
    """Text to learn from.

    Attributes:
        path: one Parquet file of schema ``tables.CORPUS``, in reading order.
        attrition: one entry a step, in order; what enters a step is what the one before kept.
    """

    path: Path
    attrition: tuple[Attrition, ...]


def build_note_corpus(
    notes: pa.RecordBatchReader, corpus: CorpusSpec, split: SplitSpec, seed: int, folder: Path
) -> NoteCorpus:
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
    with working_folder.create_working_folder(folder) as partial:
        first = _clean_stream(notes, corpus, partial)
        with (
            working_folder.translate_storage_errors(folder),
            contextlib.closing(
                working_folder.create_working_database(partial, _DATABASE_MEGABYTES)
            ) as connection,
        ):
            kept, repetitions = _find_unique_notes(connection, first.kept_rows, corpus, partial)
            last = _write_split_notes(kept, split, seed, partial)
            NOTE_SPLIT_UNITS[split.by].check_corpus(partial / _SPLIT_FILE, connection)
            (partial / _SPLIT_FILE).replace(path)
    return NoteCorpus(path, (first, *repetitions, last))


def _clean_stream(notes: pa.RecordBatchReader, corpus: CorpusSpec, partial: Path) -> Attrition:
    """The first pass: ``cleaned.parquet`` and what the steps of deduplication want to know of every note."""
    attrition, categories = (
        Attrition("clean"),
        Counter(dict.fromkeys(strip_category_names(corpus.categories), 0)),
    )
    with contextlib.ExitStack() as files:
        write = files.enter_context(
            working_folder.open_parquet_writer(partial / _CLEANED_FILE, CLEANED_NOTE_SCHEMA)
        )
        told = [
            files.enter_context(step.open_writer(partial, corpus.near_threshold))
            for step in deduplicate.DEDUPLICATION_STEPS[corpus.deduplicate]
        ]
        for piece in (piece for batch in notes for piece in _slice_batch(batch)):
            batch = clean_notes(piece, corpus, attrition, categories)
            write(batch)
            if told and batch.num_rows:
                words = [deduplicate.normalize_words(text) for text in batch["text"].to_pylist()]
                for remember in told:
                    remember(words)
    _check_not_empty(attrition, categories, corpus)
    return attrition


def _slice_batch(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in pieces of bounded size, in order, however large the source makes its batches; one note is never cut."""
    if batch.num_rows <= 1 or (batch.num_rows <= _PIECE_NOTES and batch.nbytes <= _PIECE_BYTES):
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _slice_batch(batch.slice(0, half))
        yield from _slice_batch(batch.slice(half))


def _check_not_empty(attrition: Attrition, categories: Counter[str], corpus: CorpusSpec) -> None:
    if not attrition.entered_rows:
        raise SourceError(
            "the source gave 0 notes: there is nothing to learn from",
            location="source",
            hint="give a source that holds notes",
        )
    missing = [name for name in strip_category_names(corpus.categories) if not categories[name]]
    if missing:
        near = difflib.get_close_matches(missing[0], +categories, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"none of the {attrition.entered_rows} notes has the category {missing[0]!r}"
        raise RecipeError(
            message,
            location="corpus.categories",
            hint=f"{hint}there are: {_format_categories(+categories)}",
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


def _format_categories(categories: Counter[str]) -> str:
    """The most frequent categories; cut short, in case that a column of free text was named as the category."""
    shown = ", ".join(f"{name[:40]!r} ({count})" for name, count in categories.most_common(20))
    return shown + (", ..." if len(categories) > 20 else "") or "none, every category is null"


def _find_unique_notes(
    connection: duckdb.DuckDBPyConnection, note_count: int, corpus: CorpusSpec, partial: Path
) -> tuple[deduplicate.NoteMask, list[Attrition]]:
    """One truth value a cleaned note, whether it is kept, and one attrition a step."""
    dropped, attritions = np.zeros(note_count, np.bool_), []
    for step in deduplicate.DEDUPLICATION_STEPS[corpus.deduplicate]:
        attrition = Attrition(step.name, entered_rows=int((~dropped).sum()))
        found = step.find_duplicates(connection, partial, dropped, corpus.near_threshold)
        attrition.drop_rows(step.reason, int(found.sum()))
        dropped |= found
        attritions.append(attrition)
    return ~dropped, attritions


def _write_split_notes(
    unique_notes: deduplicate.NoteMask, split: SplitSpec, seed: int, partial: Path
) -> Attrition:
    """The second pass: the kept notes with their split, in reading order, as ``kept.parquet``."""
    counts, at = Counter[str](), 0
    with working_folder.open_parquet_writer(partial / _SPLIT_FILE, CORPUS_SCHEMA) as write:
        for batch in working_folder.read_parquet_batches(partial / _CLEANED_FILE, _PIECE_NOTES):
            notes = batch.filter(pa.array(unique_notes[at : at + batch.num_rows]))
            at += batch.num_rows
            splits = assign_note_splits(notes["subject_id"], notes["note_id"], split, seed)
            counts.update(splits.to_pylist())
            columns = {name: notes[name] for name in CLEANED_NOTE_SCHEMA.names} | {"split": splits}
            write(
                pa.RecordBatch.from_arrays(
                    [columns[name] for name in CORPUS_SCHEMA.names], schema=CORPUS_SCHEMA
                )
            )
    check_note_split_counts(counts, split)
    return Attrition("split", entered_rows=counts.total())
