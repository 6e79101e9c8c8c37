"""A cohort to documents on disk: what a classifier reads of every note, in one window or several, and what it does not read, counted."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import Attrition
from clinpeft.recipe import TruncationSpec
from clinpeft.tokenization.batches import DocumentBatch, filled, padded
from clinpeft.tokenization.headings import sections
from clinpeft.tokenization.special_tokens import Ints, Layout, Tokenizer, layout
from clinpeft.tokenization.storage import (
    MappedTokens,
    built,
    describe,
    described_in,
    mapped,
    write_windows,
)
from clinpeft.tokenization.truncation import Limits, Mark, Note, Read, limits, read

Objective = Literal["causal-lm", "masked-lm"]

NOTES_A_TIME = (
    64  # with the places of their tokens, long notes take a megabyte each while they are cut
)
NO_TEXT = "no text"
NOTHING = "no text, and no special tokens to read instead: left out"


@dataclass(frozen=True)
class Documents:
    """The documents of a cohort, one a row of it.

    Attributes:
        tokens: (all tokens,) unsigned integers, mapped from disk.
        starts: (windows,) first token of each window.
        lengths: (windows,) tokens in each window, special tokens included.
        document: (windows,) row of the cohort that the window belongs to, in ascending order.
        first_windows: (documents + 1,) where the windows of each document begin; those of document d end where those of d + 1 begin.
        tokens_total: (documents,) tokens of the text, without special tokens.
        tokens_read: (documents,) how many of them are read; what windows share is counted once.
        cohort: the table it was made from.
        attrition: what is not read and why, counted in tokens of text.
        whole: which documents are not read whole and why, counted in documents: what it keeps are those that are.
        folder: where it lies.
    """

    tokens: MappedTokens
    starts: Ints
    lengths: Ints
    document: Ints
    first_windows: Ints
    tokens_total: Ints
    tokens_read: Ints
    cohort: Path
    attrition: Attrition
    whole: Attrition
    folder: Path

    def table(self, columns: Sequence[str] = ()) -> pa.Table:
        """The cohort's columns as they were when it was encoded, all but the text when none is named; one row a document.

        Raises:
            KeyError: a column that a cohort does not have, or its text.
        """
        path = self.folder / "rows.parquet"
        unknown = set(columns) - set(pq.read_schema(path).names)
        if unknown:
            raise KeyError(f"columns {sorted(unknown)} are not kept beside the tokens")
        return pq.read_table(path, columns=list(columns) or None)

    def of(self, split: str) -> Ints:
        """Documents of a split, without those that have nothing to read."""
        belongs = (
            pc.equal(self.table(["split"])["split"], split)
            .to_numpy(zero_copy_only=False)
            .astype(bool)
        )
        return np.flatnonzero(belongs & (np.diff(self.first_windows) > 0))

    def lengths_of(self, documents: Ints) -> Ints:
        """(documents,) tokens of all windows of each, special tokens included."""
        before = np.concatenate([[0], np.cumsum(self.lengths)])
        return np.asarray(
            before[self.first_windows[documents + 1]] - before[self.first_windows[documents]]
        )

    def windows_of(self, documents: Ints) -> tuple[Ints, Ints]:
        """The windows of documents, in the order given: (windows,) which they are, and (windows,) the position of their document in ``documents``."""
        first, counts = (
            self.first_windows[documents],
            self.first_windows[documents + 1] - self.first_windows[documents],
        )
        position = np.repeat(np.arange(len(documents)), counts)
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return first[position] + within, position

    def gather(self, documents: Ints) -> DocumentBatch:
        """A padded batch of all windows of the given documents, in their order.

        Raises:
            InputError: a document that has nothing to read.
        """
        windows, position = self.windows_of(documents)
        if len(absent := np.setdiff1d(np.arange(len(documents)), position)):
            hint = "take documents from Documents.of, which leaves it out"
            raise InputError(
                "a document without any token cannot be read",
                location=f"row {documents[absent[0]]} of {self.cohort}",
                hint=hint,
            )
        parts = padded(self.tokens, self.starts[windows], self.lengths[windows])
        return DocumentBatch(*parts, torch.from_numpy(position), len(documents))


def document_layout(tokenizer: Tokenizer, objective: Objective) -> Layout:
    """Special tokens around a window that is asked a question: decoders read ``bos`` before it, encoders ``cls`` and ``sep`` around it.

    No ``eos``: the last token of a decoder's window, where its vector is read, is a token of the note.
    """
    return dataclasses.replace(layout(tokenizer, objective), end=())


def encode_documents(
    cohort: Path,
    tokenizer: Tokenizer,
    reading: TruncationSpec,
    max_tokens: int,
    objective: Objective,
    folder: Path,
) -> Documents:
    """Encode a cohort (Parquet, schema ``tables.COHORT``) into ``folder``, which appears whole or not at all.

    A note without tokens becomes a window of special tokens alone, or none where the tokenizer has none; either way it is counted.

    Args:
        cohort: the table.
        tokenizer: of the base.
        reading: what of a long note is read.
        max_tokens: of a window, special tokens included.
        objective: what the base was made for, which decides the special tokens.
        folder: where the documents go; only its owner may read it.

    Raises:
        InputError: no room for text beside the special tokens, or a tokenizer that cannot tell which section a token stands in.
        RecipeError: windows that overlap wholly, or sections without names.
    """
    shape = document_layout(tokenizer, objective)
    cutter = _Cutter(tokenizer, reading.keep, limits(reading, shape.room(max_tokens)), shape)
    if cutter.by_sections and not tokenizer.is_fast:
        hint = 'truncation.keep = "head", or a base whose folder has a tokenizer.json'
        raise InputError(
            "this base's tokenizer does not tell where in the text a token stands",
            location="truncation.keep",
            hint=hint,
        )
    with built(folder) as building:
        tally = _Tally()
        with pq.ParquetWriter(
            building / "rows.parquet", _without_text(pq.read_schema(cohort))
        ) as rows:
            described = write_windows(
                _encoded(cohort, cutter, rows, tally), len(tokenizer), building
            )
        np.save(building / "documents.npy", np.asarray([tally.total, tally.kept], dtype=np.int64))
        counts = {"attrition": tally.tokens.as_json(), "whole": tally.documents.as_json()}
        describe(building, {**described, **counts, "cohort": str(cohort.absolute())})
    return open_documents(folder)


def open_documents(folder: Path) -> Documents:
    """What ``encode_documents`` left in a folder."""
    described = described_in(folder)
    tokens, (starts, lengths, document) = mapped(folder, described)
    total, kept = np.load(folder / "documents.npy", allow_pickle=False)
    first = np.searchsorted(document, np.arange(len(total) + 1))
    attrition, whole = (Attrition.from_json(described[name]) for name in ("attrition", "whole"))
    return Documents(
        tokens,
        starts,
        lengths,
        document,
        first,
        total,
        kept,
        Path(described["cohort"]),
        attrition,
        whole,
        folder,
    )


def document_batches(documents: Documents, chosen: Ints, micro_batch_tokens: int) -> list[Ints]:
    """``chosen`` documents in groups of like length, longest first, none of them split; those that have nothing to read are in no group.

    A group has at most ``micro_batch_tokens`` real tokens, or is one document; see ``filled``.
    """
    windows, position = documents.windows_of(chosen)
    counts, longest = (
        np.bincount(position, minlength=len(chosen)),
        np.zeros(len(chosen), dtype=np.int64),
    )
    np.maximum.at(longest, position, documents.lengths[windows])
    order = np.lexsort((counts, longest))[::-1]
    order = order[counts[order] > 0]
    return filled(
        chosen[order],
        documents.lengths_of(chosen[order]),
        longest[order],
        counts[order],
        micro_batch_tokens,
    )


@dataclass
class _Tally:
    """What has been read so far, in tokens and in documents."""

    tokens: Attrition = field(default_factory=lambda: Attrition(step="documents"))
    documents: Attrition = field(default_factory=lambda: Attrition(step="documents read whole"))
    total: array[int] = field(default_factory=lambda: array("q"))
    kept: array[int] = field(default_factory=lambda: array("q"))

    def add(self, tokens: int, cut: dict[str, int]) -> None:
        """Count a document of so many tokens, of which those in ``cut`` are not read."""
        self.total.append(tokens)
        self.kept.append(tokens - sum(cut.values()))
        self.tokens.entered_rows += tokens
        for reason, count in cut.items():
            self.tokens.drop_rows(reason, count)

    def judge(self, reason: str) -> None:
        """Count a document as read whole, or out for a reason."""
        self.documents.entered_rows += 1
        self.documents.drop_rows(reason, int(bool(reason)))


@dataclass(frozen=True)
class _Cutter:
    """Text to what is read of it."""

    tokenizer: Tokenizer
    keep: str
    allowed: Limits
    shape: Layout

    @property
    def by_sections(self) -> bool:
        return self.keep == "sections"

    def cut(self, texts: list[str]) -> Iterator[tuple[list[int], Read]]:
        """(tokens, what is read of them) for each text."""
        asked: dict[str, Any] = {
            "add_special_tokens": False,
            "verbose": False,
            "return_attention_mask": False,
        }
        encoded = self.tokenizer(texts, return_offsets_mapping=self.by_sections, **asked)
        for row, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            marks = (
                _marks(text, encoded["offset_mapping"][row], self.allowed)
                if self.by_sections
                else ()
            )
            yield ids, read(Note(len(ids), marks), self.keep, self.allowed)

    def windows(self, ids: list[int], found: Read) -> Iterator[list[int]]:
        """What the model is given of a note; nothing when that would have no token at all."""
        for spans in found.windows:
            window = [
                *self.shape.first,
                *(token for start, stop in spans for token in ids[start:stop]),
                *self.shape.last,
            ]
            if window:
                yield window


def _encoded(
    cohort: Path, cutter: _Cutter, rows: pq.ParquetWriter, tally: _Tally
) -> Iterator[tuple[int, list[int]]]:
    """(row, window) of every document; the cohort's columns without the text are written on the way."""
    row = 0
    for batch in pq.ParquetFile(cohort).iter_batches(NOTES_A_TIME):
        rows.write_batch(batch.drop_columns(["text"]))
        for ids, found in cutter.cut(batch["text"].to_pylist()):
            tally.add(len(ids), found.dropped)
            windows = [(row, window) for window in cutter.windows(ids, found)]
            tally.judge(next(iter(found.dropped), "") if ids else NO_TEXT if windows else NOTHING)
            yield from windows
            row += 1


def _marks(text: str, places: Sequence[tuple[int, int]], allowed: Limits) -> tuple[Mark, ...]:
    """The sections of a note by their first token: a token belongs to the section in which it begins."""
    if len(places) <= allowed.room:
        return ()
    found = sections(text, allowed.rank)
    begins = np.maximum.accumulate(
        np.fromiter((start for start, _ in places), dtype=np.int64, count=len(places))
    )
    firsts = np.searchsorted(begins, [section.start for section in found])
    return tuple(
        Mark(int(first), section.name) for first, section in zip(firsts, found, strict=True)
    )


def _without_text(schema: pa.Schema) -> pa.Schema:
    return schema.remove(schema.get_field_index("text"))
