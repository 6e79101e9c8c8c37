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
from clinpeft.tokenization.batches import DocumentBatch, group_by_token_budget, pad_token_slices
from clinpeft.tokenization.headings import split_headed_sections
from clinpeft.tokenization.special_tokens import (
    IndexArray,
    SpecialTokenLayout,
    Tokenizer,
    create_special_token_layout,
)
from clinpeft.tokenization.storage import (
    MappedTokens,
    build_encoding_folder,
    write_encoding_description,
    read_encoding_description,
    map_token_windows,
    write_token_windows,
)
from clinpeft.tokenization.truncation import (
    WindowLimits,
    SectionStart,
    TokenizedNote,
    TruncatedNote,
    create_window_limits,
    truncate_note,
)

_PretrainingObjective = Literal["causal-lm", "masked-lm"]

DOCUMENT_CHUNK_NOTES = (
    64  # with the places of their tokens, long notes take a megabyte each while they are cut
)
NO_TEXT_REASON = "no text"
NO_TOKENS_REASON = "no text, and no special tokens to read instead: left out"


@dataclass(frozen=True)
class EncodedDocuments:
    """The documents of a cohort, one a row of it.

    Attributes:
        tokens: (all tokens,) unsigned integers, mapped from disk.
        starts: (windows,) first token of each window.
        lengths: (windows,) tokens in each window, special tokens included.
        window_documents: (windows,) row of the cohort that the window belongs to, in ascending order.
        first_windows: (documents + 1,) where the windows of each document begin; those of document d end where those of d + 1 begin.
        tokens_total: (documents,) tokens of the text, without special tokens.
        tokens_read: (documents,) how many of them are read; what windows share is counted once.
        cohort: the table it was made from.
        token_attrition: what is not read and why, counted in tokens of text.
        document_attrition: which documents are not read whole and why, counted in documents: what it keeps are those that are.
        folder: where it lies.
    """

    tokens: MappedTokens
    starts: IndexArray
    lengths: IndexArray
    window_documents: IndexArray
    first_windows: IndexArray
    tokens_total: IndexArray
    tokens_read: IndexArray
    cohort: Path
    token_attrition: Attrition
    document_attrition: Attrition
    folder: Path

    def read_table(self, columns: Sequence[str] = ()) -> pa.Table:
        """The cohort's columns as they were when it was encoded, all but the text when none is named; one row a document.

        Raises:
            KeyError: a column that a cohort does not have, or its text.
        """
        path = self.folder / "rows.parquet"
        unknown = set(columns) - set(pq.read_schema(path).names)
        if unknown:
            raise KeyError(f"columns {sorted(unknown)} are not kept beside the tokens")
        return pq.read_table(path, columns=list(columns) or None)

    def select_split(self, split: str) -> IndexArray:
        """Documents of a split, without those that have nothing to read."""
        belongs = (
            pc.equal(self.read_table(["split"])["split"], split)
            .to_numpy(zero_copy_only=False)
            .astype(bool)
        )
        return np.flatnonzero(belongs & (np.diff(self.first_windows) > 0))

    def count_tokens(self, document_indices: IndexArray) -> IndexArray:
        """(documents,) tokens of all windows of each, special tokens included."""
        before = np.concatenate([[0], np.cumsum(self.lengths)])
        return np.asarray(
            before[self.first_windows[document_indices + 1]]
            - before[self.first_windows[document_indices]]
        )

    def find_windows(self, document_indices: IndexArray) -> tuple[IndexArray, IndexArray]:
        """The windows of documents, in the order given: (windows,) which they are, and (windows,) the position of their document in ``document_indices``."""
        first, counts = (
            self.first_windows[document_indices],
            self.first_windows[document_indices + 1] - self.first_windows[document_indices],
        )
        position = np.repeat(np.arange(len(document_indices)), counts)
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return first[position] + within, position

    def gather_batch(self, document_indices: IndexArray) -> DocumentBatch:
        """A padded batch of all windows of the given documents, in their order.

        Raises:
            InputError: a document that has nothing to read.
        """
        windows, position = self.find_windows(document_indices)
        if len(absent := np.setdiff1d(np.arange(len(document_indices)), position)):
            hint = "take documents from Documents.of, which leaves it out"
            raise InputError(
                "a document without any token cannot be read",
                location=f"row {document_indices[absent[0]]} of {self.cohort}",
                hint=hint,
            )
        parts = pad_token_slices(self.tokens, self.starts[windows], self.lengths[windows])
        return DocumentBatch(*parts, torch.from_numpy(position), len(document_indices))


def create_document_layout(
    tokenizer: Tokenizer, objective: _PretrainingObjective
) -> SpecialTokenLayout:
    """Special tokens around a window that is asked a question: decoders read ``bos`` before it, encoders ``cls`` and ``sep`` around it.

    No ``eos``: the last token of a decoder's window, where its vector is read, is a token of the note.
    """
    return dataclasses.replace(create_special_token_layout(tokenizer, objective), note_suffix=())


def encode_documents(
    cohort: Path,
    tokenizer: Tokenizer,
    truncation: TruncationSpec,
    max_tokens: int,
    objective: _PretrainingObjective,
    folder: Path,
) -> EncodedDocuments:
    """Encode a cohort (Parquet, schema ``tables.COHORT``) into ``folder``, which appears whole or not at all.

    A note without tokens becomes a window of special tokens alone, or none where the tokenizer has none; either way it is counted.

    Args:
        cohort: the table.
        tokenizer: of the base.
        truncation: what of a long note is read.
        max_tokens: of a window, special tokens included.
        objective: what the base was made for, which decides the special tokens.
        folder: where the documents go; only its owner may read it.

    Raises:
        InputError: no room for text beside the special tokens, or a tokenizer that cannot tell which section a token stands in.
        RecipeError: windows that overlap wholly, or sections without names.
    """
    shape = create_document_layout(tokenizer, objective)
    cutter = _DocumentEncoder(
        tokenizer,
        truncation.keep,
        create_window_limits(truncation, shape.compute_text_capacity(max_tokens)),
        shape,
    )
    if cutter.keeps_sections and not tokenizer.is_fast:
        hint = 'truncation.keep = "head", or a base whose folder has a tokenizer.json'
        raise InputError(
            "this base's tokenizer does not tell where in the text a token stands",
            location="truncation.keep",
            hint=hint,
        )
    with build_encoding_folder(folder) as building:
        tally = _TruncationCounts()
        with pq.ParquetWriter(
            building / "rows.parquet", _drop_text_field(pq.read_schema(cohort))
        ) as rows:
            described = write_token_windows(
                _encode_notes(cohort, cutter, rows, tally), len(tokenizer), building
            )
        np.save(
            building / "documents.npy",
            np.asarray([tally.total_tokens, tally.kept_tokens], dtype=np.int64),
        )
        counts = {
            "attrition": tally.token_attrition.as_json(),
            "whole": tally.document_attrition.as_json(),
        }
        write_encoding_description(
            building, {**described, **counts, "cohort": str(cohort.absolute())}
        )
    return open_encoded_documents(folder)


def open_encoded_documents(folder: Path) -> EncodedDocuments:
    """What ``encode_documents`` left in a folder."""
    described = read_encoding_description(folder)
    tokens, (starts, lengths, document) = map_token_windows(folder, described)
    total, kept = np.load(folder / "documents.npy", allow_pickle=False)
    first = np.searchsorted(document, np.arange(len(total) + 1))
    attrition, whole = (Attrition.from_json(described[name]) for name in ("attrition", "whole"))
    return EncodedDocuments(
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


def group_documents(
    documents: EncodedDocuments, document_indices: IndexArray, micro_batch_tokens: int
) -> list[IndexArray]:
    """``document_indices`` documents in groups of like length, longest first, none of them split; those that have nothing to read are in no group.

    A group has at most ``micro_batch_tokens`` real tokens, or is one document; see ``filled``.
    """
    windows, position = documents.find_windows(document_indices)
    counts, longest = (
        np.bincount(position, minlength=len(document_indices)),
        np.zeros(len(document_indices), dtype=np.int64),
    )
    np.maximum.at(longest, position, documents.lengths[windows])
    order = np.lexsort((counts, longest))[::-1]
    order = order[counts[order] > 0]
    return group_by_token_budget(
        document_indices[order],
        documents.count_tokens(document_indices[order]),
        longest[order],
        counts[order],
        micro_batch_tokens,
    )


@dataclass
class _TruncationCounts:
    """What has been read so far, in tokens and in documents."""

    token_attrition: Attrition = field(default_factory=lambda: Attrition(step="documents"))
    document_attrition: Attrition = field(
        default_factory=lambda: Attrition(step="documents read whole")
    )
    total_tokens: array[int] = field(default_factory=lambda: array("q"))
    kept_tokens: array[int] = field(default_factory=lambda: array("q"))

    def count_tokens(self, token_count: int, dropped_tokens: dict[str, int]) -> None:
        """Count a document of so many tokens, of which those in ``dropped_tokens`` are not read."""
        self.total_tokens.append(token_count)
        self.kept_tokens.append(token_count - sum(dropped_tokens.values()))
        self.token_attrition.entered_rows += token_count
        for reason, count in dropped_tokens.items():
            self.token_attrition.drop_rows(reason, count)

    def count_document(self, reason: str) -> None:
        """Count a document as read whole, or out for a reason."""
        self.document_attrition.entered_rows += 1
        self.document_attrition.drop_rows(reason, int(bool(reason)))


@dataclass(frozen=True)
class _DocumentEncoder:
    """Text to what is read of it."""

    tokenizer: Tokenizer
    keep: str
    limits: WindowLimits
    layout: SpecialTokenLayout

    @property
    def keeps_sections(self) -> bool:
        return self.keep == "sections"

    def truncate_texts(self, texts: list[str]) -> Iterator[tuple[list[int], TruncatedNote]]:
        """(tokens, what is read of them) for each text."""
        asked: dict[str, Any] = {
            "add_special_tokens": False,
            "verbose": False,
            "return_attention_mask": False,
        }
        encoded = self.tokenizer(texts, return_offsets_mapping=self.keeps_sections, **asked)
        for row, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            marks = (
                _locate_sections(text, encoded["offset_mapping"][row], self.limits)
                if self.keeps_sections
                else ()
            )
            yield ids, truncate_note(TokenizedNote(len(ids), marks), self.keep, self.limits)

    def build_windows(self, token_ids: list[int], truncated: TruncatedNote) -> Iterator[list[int]]:
        """What the model is given of a note; nothing when that would have no token at all."""
        for spans in truncated.windows:
            window = [
                *self.layout.window_prefix,
                *(token for start, stop in spans for token in token_ids[start:stop]),
                *self.layout.window_suffix,
            ]
            if window:
                yield window


def _encode_notes(
    cohort: Path, encoder: _DocumentEncoder, row_writer: pq.ParquetWriter, counts: _TruncationCounts
) -> Iterator[tuple[int, list[int]]]:
    """(row, window) of every document; the cohort's columns without the text are written on the way."""
    row = 0
    for batch in pq.ParquetFile(cohort).iter_batches(DOCUMENT_CHUNK_NOTES):
        row_writer.write_batch(batch.drop_columns(["text"]))
        for ids, found in encoder.truncate_texts(batch["text"].to_pylist()):
            counts.count_tokens(len(ids), found.dropped_tokens)
            windows = [(row, window) for window in encoder.build_windows(ids, found)]
            counts.count_document(
                next(iter(found.dropped_tokens), "")
                if ids
                else NO_TEXT_REASON
                if windows
                else NO_TOKENS_REASON
            )
            yield from windows
            row += 1


def _locate_sections(
    text: str, token_offsets: Sequence[tuple[int, int]], limits: WindowLimits
) -> tuple[SectionStart, ...]:
    """The sections of a note by their first token: a token belongs to the section in which it begins."""
    if len(token_offsets) <= limits.text_tokens:
        return ()
    found = split_headed_sections(text, limits.section_ranks)
    begins = np.maximum.accumulate(
        np.fromiter((start for start, _ in token_offsets), dtype=np.int64, count=len(token_offsets))
    )
    firsts = np.searchsorted(begins, [section.start for section in found])
    return tuple(
        SectionStart(int(first), section.name) for first, section in zip(firsts, found, strict=True)
    )


def _drop_text_field(schema: pa.Schema) -> pa.Schema:
    return schema.remove(schema.get_field_index("text"))
