"""A cohort as documents on disk, for classification.

A document is what a classifier reads of a note, in one window or several; tokens that are not read
are counted under a reason.
"""

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
    map_token_windows,
    read_encoding_description,
    write_encoding_description,
    write_token_windows,
)
from clinpeft.tokenization.truncation import (
    SectionStart,
    TokenizedNote,
    TruncatedNote,
    WindowLimits,
    create_window_limits,
    truncate_note,
)

_PretrainingObjective = Literal["causal-lm", "masked-lm"]

# with the character offsets of their tokens, long notes take a megabyte each while they are cut
DOCUMENT_CHUNK_NOTES = 64
NO_TEXT_REASON = "no text"
NO_TOKENS_REASON = "no text, and no special tokens to read instead: left out"


@dataclass(frozen=True)
class EncodedDocuments:
    """The documents of a cohort, one per row of it.

    Attributes:
        tokens: (all tokens,) unsigned integers, mapped from disk.
        starts: (windows,) first token of each window.
        lengths: (windows,) tokens in each window, special tokens included.
        window_documents: (windows,) row of the cohort that the window belongs to, ascending.
        first_windows: (documents + 1,) first window of each document; the windows of document d
            end where those of d + 1 begin.
        tokens_total: (documents,) tokens of the text, without special tokens.
        tokens_read: (documents,) how many of them are in a window; tokens that windows share are
            counted once.
        cohort: the table from which the documents were encoded.
        token_attrition: tokens of text that are in no window, by reason.
        document_attrition: documents that are not read completely, by reason; the rest are.
        folder: where the files are.
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
        """Return columns of the cohort as of its encoding, one row per document.

        Args:
            columns: their names; empty for all but the text.

        Raises:
            KeyError: a column that a cohort does not have, or its text.
        """
        path = self.folder / "rows.parquet"
        unknown = set(columns) - set(pq.read_schema(path).names)
        if unknown:
            raise KeyError(f"columns {sorted(unknown)} are not stored with the tokens")
        return pq.read_table(path, columns=list(columns) or None)

    def select_split(self, split: str) -> IndexArray:
        """Return the documents (documents,) of a split, without those that have no token."""
        splits = self.read_table(["split"])["split"]
        is_in_split = pc.equal(splits, split).to_numpy(zero_copy_only=False).astype(bool)
        # a document without windows cannot be classified
        return np.flatnonzero(is_in_split & (np.diff(self.first_windows) > 0))

    def count_tokens(self, document_indices: IndexArray) -> IndexArray:
        """Return the tokens (documents,) of all windows of each, special tokens included."""
        tokens_before = np.concatenate([[0], np.cumsum(self.lengths)])  # (windows + 1,)
        # the windows of a document are adjacent, so its tokens are one difference
        first = self.first_windows[document_indices]
        behind = self.first_windows[document_indices + 1]
        return np.asarray(tokens_before[behind] - tokens_before[first])

    def find_windows(self, document_indices: IndexArray) -> tuple[IndexArray, IndexArray]:
        """Return the windows of documents, in the order of the documents.

        Args:
            document_indices: (documents,).

        Returns:
            (windows,) their indices, and (windows,) the position of the document of each in
            ``document_indices``.
        """
        first = self.first_windows[document_indices]  # (documents,)
        counts = self.first_windows[document_indices + 1] - first  # (documents,)
        position = np.repeat(np.arange(len(document_indices)), counts)  # (windows,)
        # number of a window within its document: 0, 1, ..., restarting at every document
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        return first[position] + within, position

    def gather_batch(self, document_indices: IndexArray) -> DocumentBatch:
        """Return a padded batch of all windows of documents (documents,), in their order.

        Raises:
            InputError: a document that has no token.
        """
        windows, position = self.find_windows(document_indices)
        # a document without windows would have no logits, and no row in the head's output
        empty = np.setdiff1d(np.arange(len(document_indices)), position)
        if len(empty):
            raise InputError(
                "the document has no token",
                location=f"row {document_indices[empty[0]]} of {self.cohort}",
                hint="select documents with select_split, which leaves out those without tokens",
            )
        # ids (windows, time), mask (windows, time), boundaries (windows + 1,)
        parts = pad_token_slices(self.tokens, self.starts[windows], self.lengths[windows])
        return DocumentBatch(*parts, torch.from_numpy(position), len(document_indices))


def create_document_layout(
    tokenizer: Tokenizer, objective: _PretrainingObjective
) -> SpecialTokenLayout:
    """Return the special tokens around a window of a document that is classified.

    Decoders have ``bos`` before it, encoders ``cls`` and ``sep`` around it. There is no ``eos``:
    the last token of a decoder's window, whose hidden state is pooled, is a token of the note.

    Args:
        tokenizer: of the base model.
        objective: of its pretraining.
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
    """Encode a cohort (Parquet, schema ``COHORT_SCHEMA``) into ``folder``, whole or not at all.

    A note without tokens becomes a window of special tokens alone, or no window where the
    tokenizer has none; it is counted in either case.

    Args:
        cohort: the table.
        tokenizer: of the base model.
        truncation: which tokens of a long note are read.
        max_tokens: of a window, special tokens included.
        objective: of the base model's pretraining, which decides the special tokens.
        folder: where the documents go; readable by its owner only.

    Raises:
        InputError: the special tokens leave no space for text, or the tokenizer has no character
            offsets, by which tokens are assigned to sections.
        RecipeError: windows that overlap completely, or sections without names.
    """
    layout = create_document_layout(tokenizer, objective)
    limits = create_window_limits(truncation, layout.compute_text_capacity(max_tokens))
    encoder = _DocumentEncoder(tokenizer, truncation.keep, limits, layout)
    # slow tokenizers have no offsets
    if encoder.keeps_sections and not tokenizer.is_fast:
        raise InputError(
            "the tokenizer of this base does not give the character offsets of tokens",
            location="truncation.keep",
            hint='set truncation.keep = "head", or use a base with a tokenizer.json',
        )
    # all columns but the text are stored beside the tokens
    schema = pq.read_schema(cohort)
    row_schema = schema.remove(schema.get_field_index("text"))
    with build_encoding_folder(folder) as temporary:
        counts = _TruncationCounts()
        with pq.ParquetWriter(temporary / "rows.parquet", row_schema) as row_writer:
            windows = encoder.encode_notes(cohort, row_writer, counts)
            description = write_token_windows(windows, len(tokenizer), temporary)
        # (2, documents): tokens of the text, and tokens of it that are read
        token_counts = np.asarray([counts.total_tokens, counts.read_tokens], dtype=np.int64)
        np.save(temporary / "documents.npy", token_counts)
        description |= {
            "attrition": counts.token_attrition.as_json(),
            "whole": counts.document_attrition.as_json(),
            "cohort": str(cohort.absolute()),
        }
        write_encoding_description(temporary, description)
    return open_encoded_documents(folder)


def open_encoded_documents(folder: Path) -> EncodedDocuments:
    """Open what ``encode_documents`` wrote into a folder."""
    description = read_encoding_description(folder)
    tokens, (starts, lengths, window_documents) = map_token_windows(folder, description)
    tokens_total, tokens_read = np.load(folder / "documents.npy", allow_pickle=False)
    # rows ascend, so the first window of each document is found by bisection
    first_windows = np.searchsorted(window_documents, np.arange(len(tokens_total) + 1))
    return EncodedDocuments(
        tokens=tokens,
        starts=starts,
        lengths=lengths,
        window_documents=window_documents,
        first_windows=first_windows,
        tokens_total=tokens_total,
        tokens_read=tokens_read,
        cohort=Path(description["cohort"]),
        token_attrition=Attrition.from_json(description["attrition"]),
        document_attrition=Attrition.from_json(description["whole"]),
        folder=folder,
    )


def group_documents(
    documents: EncodedDocuments, document_indices: IndexArray, micro_batch_tokens: int
) -> list[IndexArray]:
    """Group documents of similar length into micro-batches, longest first, without splitting any.

    Args:
        documents: of a cohort.
        document_indices: (documents,) those to group; documents without tokens are in no group.
        micro_batch_tokens: real tokens of a group at most, unless it is a single document.

    Returns:
        The document indices of each group.
    """
    windows, position = documents.find_windows(document_indices)
    window_counts = np.bincount(position, minlength=len(document_indices))  # (documents,)
    longest = np.zeros(len(document_indices), dtype=np.int64)  # (documents,)
    # unbuffered, so that several windows of one document all count
    np.maximum.at(longest, position, documents.lengths[windows])
    # by longest window, ties by number of windows, both descending
    order = np.lexsort((window_counts, longest))[::-1]
    order = order[window_counts[order] > 0]
    return group_by_token_budget(
        document_indices[order],
        documents.count_tokens(document_indices[order]),
        longest[order],
        window_counts[order],
        micro_batch_tokens,
    )


@dataclass
class _TruncationCounts:
    """What was read so far, in tokens and in documents."""

    token_attrition: Attrition = field(default_factory=lambda: Attrition(step="documents"))
    document_attrition: Attrition = field(
        default_factory=lambda: Attrition(step="documents read whole")
    )
    # arrays of int64: a cohort may have millions of documents, and a list takes 36 bytes each
    total_tokens: array[int] = field(default_factory=lambda: array("q"))
    read_tokens: array[int] = field(default_factory=lambda: array("q"))

    def add_document(self, token_count: int, truncated: TruncatedNote, has_windows: bool) -> None:
        """Count a document with the tokens of its text and those that are not read."""
        dropped = truncated.dropped_tokens
        self.total_tokens.append(token_count)
        self.read_tokens.append(token_count - sum(dropped.values()))
        self.token_attrition.entered_rows += token_count
        for reason, count in dropped.items():
            self.token_attrition.drop_rows(reason, count)
        # the first reason is the main one; empty for a document that is read completely
        main_reason = next(iter(dropped), "")
        if not token_count:
            main_reason = NO_TEXT_REASON if has_windows else NO_TOKENS_REASON
        self.document_attrition.entered_rows += 1
        self.document_attrition.drop_rows(main_reason, int(bool(main_reason)))


@dataclass(frozen=True)
class _DocumentEncoder:
    """Texts to the windows that are read of them."""

    tokenizer: Tokenizer
    keep: str
    limits: WindowLimits
    layout: SpecialTokenLayout

    @property
    def keeps_sections(self) -> bool:
        return self.keep == "sections"

    def encode_notes(
        self, cohort: Path, row_writer: pq.ParquetWriter, counts: _TruncationCounts
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (row, window) of every document; write the cohort's columns without the text."""
        row = 0
        for batch in pq.ParquetFile(cohort).iter_batches(DOCUMENT_CHUNK_NOTES):
            row_writer.write_batch(batch.drop_columns(["text"]))
            for ids, truncated in self.truncate_texts(batch["text"].to_pylist()):
                windows = self.build_windows(ids, truncated)
                # counted before its windows are written, in the order of the cohort
                counts.add_document(len(ids), truncated, bool(windows))
                yield from ((row, window) for window in windows)
                row += 1

    def truncate_texts(self, texts: list[str]) -> Iterator[tuple[list[int], TruncatedNote]]:
        """Yield token ids, and the spans of them that are read, of each text."""
        options: dict[str, Any] = {
            "add_special_tokens": False,
            "verbose": False,
            "return_attention_mask": False,
            "return_offsets_mapping": self.keeps_sections,
        }
        encoded = self.tokenizer(texts, **options)
        for row, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            # a note that fits is read completely, so its sections do not matter
            locates_sections = self.keeps_sections and len(ids) > self.limits.text_tokens
            offsets = encoded["offset_mapping"][row] if locates_sections else ()
            note = TokenizedNote(len(ids), self.locate_sections(text, offsets))
            yield ids, truncate_note(note, self.keep, self.limits)

    def locate_sections(
        self, text: str, token_offsets: Sequence[tuple[int, int]]
    ) -> tuple[SectionStart, ...]:
        """Return the sections of a note by their first token: that which begins at or after them.

        Args:
            text: the note.
            token_offsets: (tokens, 2) first character of each token, and the one after its last;
                empty for a note whose sections are not needed.
        """
        if not token_offsets:
            return ()
        sections = split_headed_sections(text, self.limits.section_ranks)
        starts = (start for start, _ in token_offsets)
        # bisection needs ascending starts, which not every tokenizer gives
        token_starts = np.maximum.accumulate(
            np.fromiter(starts, dtype=np.int64, count=len(token_offsets))
        )
        first_tokens = np.searchsorted(token_starts, [section.start for section in sections])
        pairs = zip(first_tokens, sections, strict=True)
        return tuple(SectionStart(int(first), section.name) for first, section in pairs)

    def build_windows(self, token_ids: list[int], truncated: TruncatedNote) -> list[list[int]]:
        """Return the windows of a note with their special tokens; none without a single token."""
        prefix, suffix = self.layout.window_prefix, self.layout.window_suffix
        windows = []
        for spans in truncated.windows:
            content = (token for start, stop in spans for token in token_ids[start:stop])
            windows.append([*prefix, *content, *suffix])
        return [window for window in windows if window]
