"""Notes -> text for language model training: cleaned, without duplicates, split by subject.

Two passes, in bounded memory whatever the number of notes. The first cleans each note, writes its
text to a temporary file and records what duplicates are recognized by. DuckDB then decides which
notes are dropped. The second pass streams the remaining notes, with their split, into one file.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import InputError, RecipeError, SourceError
from clinpeft.core.schemas import CORPUS_SCHEMA, Attrition
from clinpeft.data.formats import working_folder
from clinpeft.data.formats.hints import format_drop_reasons, join_hints, suggest_name
from clinpeft.data.notes import deduplicate
from clinpeft.data.notes.clean import CLEANED_NOTE_SCHEMA, clean_notes, strip_category_names
from clinpeft.data.notes.split import NOTE_SPLIT_UNITS, assign_note_splits, check_note_split_counts
from clinpeft.recipe import CorpusSpec, SplitSpec

# Large enough for NumPy to be fast; the words and hashes of a slice take about twenty times the
# memory of its text.
_SLICE_NOTES, _SLICE_BYTES = 512, 8 * 2**20
_DATABASE_MEGABYTES = 512
_CLEANED_FILE, _SPLIT_FILE = "cleaned.parquet", "kept.parquet"


@dataclass(frozen=True)
class NoteCorpus:
    """Text for language model training.

    Attributes:
        path: one Parquet file of ``CORPUS_SCHEMA``, in the order of the source.
        attrition: one entry for each step, in order; each step receives what the one before kept.
    """

    path: Path
    attrition: tuple[Attrition, ...]


def build_note_corpus(
    notes: pa.RecordBatchReader, corpus: CorpusSpec, split: SplitSpec, seed: int, folder: Path
) -> NoteCorpus:
    """Writes the corpus of a stream of notes to ``folder/corpus.parquet``, all of it or nothing.

    Args:
        notes: of ``NOTE_SCHEMA``; consumed once.
        corpus: cleaning and deduplication.
        split: unit and fractions of the splits.
        seed: of the split; nothing else here is random.
        folder: for the corpus, and for temporary files of about three times the clean text, which
            are removed.

    Raises:
        SourceError: the stream holds no note.
        RecipeError: a category that no note has.
        InputError: no note remains, or a requested split is empty.
        RefusedError: a subject in two splits.
        StorageError: the disk is full; an earlier corpus in ``folder`` is intact.
    """
    path = folder / "corpus.parquet"
    with working_folder.create_working_folder(folder) as partial:
        clean_attrition = _write_cleaned_notes(notes, corpus, partial)
        with (
            working_folder.translate_storage_errors(folder),
            contextlib.closing(
                working_folder.create_working_database(partial, _DATABASE_MEGABYTES)
            ) as connection,
        ):
            dropped, duplicate_attrition = deduplicate.find_duplicates(
                corpus.deduplicate,
                connection,
                partial,
                clean_attrition.kept_rows,
                corpus.near_threshold,
            )
            split_attrition = _write_split_notes(~dropped, split, seed, partial)
            NOTE_SPLIT_UNITS[split.by].check_corpus(partial / _SPLIT_FILE, connection)
            # The last step: a corpus that exists has passed every check.
            (partial / _SPLIT_FILE).replace(path)
    return NoteCorpus(path, (clean_attrition, *duplicate_attrition, split_attrition))


def slice_note_batch(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yields a batch in slices of bounded size, in order, however large the source made it.

    A single note is never divided.
    """
    is_small = batch.num_rows <= _SLICE_NOTES and batch.nbytes <= _SLICE_BYTES
    if batch.num_rows <= 1 or is_small:
        yield batch
    else:
        # Slices share the memory of their batch; halving needs no estimate of a note's size.
        half = batch.num_rows // 2
        yield from slice_note_batch(batch.slice(0, half))
        yield from slice_note_batch(batch.slice(half))


def _write_cleaned_notes(
    notes: pa.RecordBatchReader, corpus: CorpusSpec, partial: Path
) -> Attrition:
    """The first pass: ``cleaned.parquet``, and what the deduplication needs of every note."""
    attrition = Attrition("clean")
    selected = strip_category_names(corpus.categories)
    categories = Counter(dict.fromkeys(selected, 0))
    with (
        working_folder.open_parquet_writer(partial / _CLEANED_FILE, CLEANED_NOTE_SCHEMA) as write,
        deduplicate.open_text_writer(
            corpus.deduplicate, partial, corpus.near_threshold
        ) as write_texts,
    ):
        for note_slice in (part for batch in notes for part in slice_note_batch(batch)):
            cleaned = clean_notes(note_slice, corpus, attrition, categories)
            write(cleaned)
            write_texts(cleaned["text"].to_pylist())
    if not attrition.entered_rows:
        raise SourceError(
            "the source gave 0 notes: there is no text to train on",
            location="source",
            hint="give a source that holds notes",
        )
    missing = [name for name in selected if not categories[name]]
    if missing:
        present = +categories  # without the counts of 0
        # Cut short, in case that a column of free text was named as the category.
        counts = [f"{name[:40]!r} ({count})" for name, count in present.most_common(20)]
        listed = ", ".join(counts + ["..."] * (len(present) > 20)) or "none, every category is null"
        raise RecipeError(
            f"none of the {attrition.entered_rows} notes has the category {missing[0]!r}",
            location="corpus.categories",
            hint=join_hints(suggest_name(missing[0], present), f"the categories are: {listed}"),
        )
    if not attrition.kept_rows:
        raise InputError(
            f"0 of {attrition.entered_rows} notes are left after cleaning: "
            f"{format_drop_reasons(attrition.dropped_rows)}",
            location="corpus",
            hint="lower corpus.min_characters, or check which column the source reads as text",
        )
    return attrition


def _write_split_notes(
    unique_notes: deduplicate.NoteMask, split: SplitSpec, seed: int, partial: Path
) -> Attrition:
    """The second pass: the remaining notes with their split, in order, as ``kept.parquet``."""
    counts, start = Counter[str](), 0
    with working_folder.open_parquet_writer(partial / _SPLIT_FILE, CORPUS_SCHEMA) as write:
        for batch in working_folder.read_parquet_batches(partial / _CLEANED_FILE, _SLICE_NOTES):
            # unique_notes is aligned with the rows of the cleaned file.
            notes = batch.filter(pa.array(unique_notes[start : start + batch.num_rows]))
            start += batch.num_rows
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
