"""A corpus as token windows on disk, for language modeling.

All tokens of a corpus are in one flat file that is memory-mapped and never loaded whole; a window
is a slice of it. So a corpus of any size takes a few bytes of memory per window, and every epoch,
trial and process reads the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clinpeft.core.schemas import SPLIT_NAMES, Attrition
from clinpeft.recipe import LanguageModelSpec
from clinpeft.tokenization.special_tokens import IndexArray, SpecialTokenLayout, Tokenizer
from clinpeft.tokenization.storage import (
    MappedTokens,
    build_encoding_folder,
    map_token_windows,
    read_encoding_description,
    write_encoding_description,
    write_token_windows,
)

CORPUS_CHUNK_NOTES = 256  # notes per call of the tokenizer
ENCODED_NOTE_COLUMNS = ["note_id", "subject_id", "category", "split"]


@dataclass(frozen=True)
class EncodedCorpus:
    """The windows of a corpus.

    Attributes:
        tokens: (all tokens,) unsigned integers, mapped from disk.
        starts: (windows,) first token of each window.
        lengths: (windows,) tokens in each window, special tokens included.
        window_notes: (windows,) row of ``note_table`` that the window belongs to.
        note_table: one row per note: note_id, subject_id, category, split.
        attrition: what was cut off or left out while encoding, counted in tokens.
        folder: where the files are.
    """

    tokens: MappedTokens
    starts: IndexArray
    lengths: IndexArray
    window_notes: IndexArray
    note_table: pa.Table
    attrition: Attrition
    folder: Path

    def select_windows(self, split: str, max_notes: int = 0) -> IndexArray:
        """Return the windows (windows,) of a split.

        Args:
            split: its name.
            max_notes: if not 0, the windows of so many notes sampled from the split, which are
                the same ones in every call.
        """
        is_in_split = pc.equal(self.note_table["split"], split).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(is_in_split)  # (notes,)
        if max_notes and len(rows) > max_notes:
            # a fixed seed: every evaluation during training uses the same notes
            rows = np.random.default_rng(0).choice(rows, max_notes, replace=False)
        return np.flatnonzero(np.isin(self.window_notes, rows))  # (windows,)

    def count_by_split(self) -> dict[str, int]:
        """Return the numbers of notes, windows and tokens, in all and per split."""
        counts = {
            "notes": self.note_table.num_rows,
            "windows": len(self.starts),
            "tokens": int(self.lengths.sum()),
        }
        for split in SPLIT_NAMES:
            windows = self.select_windows(split)
            counts[f"{split}_windows"] = len(windows)
            counts[f"{split}_tokens"] = int(self.lengths[windows].sum())
        return counts


def encode_corpus(
    corpus: Path,
    tokenizer: Tokenizer,
    layout: SpecialTokenLayout,
    base: LanguageModelSpec,
    folder: Path,
) -> EncodedCorpus:
    """Encode a corpus (Parquet, schema ``CORPUS_SCHEMA``) into ``folder``, whole or not at all.

    Args:
        corpus: the table.
        tokenizer: of the base model.
        layout: special tokens around a window.
        base: length of a window, and whether a longer note is split or truncated.
        folder: where the windows go.

    Raises:
        InputError: the special tokens of a window leave no space for text.
    """
    layout.compute_text_capacity(base.max_tokens)  # fails before any file is written
    schema = pq.read_schema(corpus)
    note_schema = pa.schema([schema.field(name) for name in ENCODED_NOTE_COLUMNS])
    with build_encoding_folder(folder) as temporary:
        attrition = Attrition(step="tokens")
        with pq.ParquetWriter(temporary / "notes.parquet", note_schema) as note_writer:
            windows = _encode_notes(corpus, tokenizer, layout, base, note_writer, attrition)
            description = write_token_windows(windows, len(tokenizer), temporary)
        counts = {"entered": attrition.entered_rows, "dropped": attrition.dropped_rows}
        write_encoding_description(temporary, {**description, **counts})
    return open_encoded_corpus(folder)


def open_encoded_corpus(folder: Path) -> EncodedCorpus:
    """Open what ``encode_corpus`` wrote into a folder."""
    description = read_encoding_description(folder)
    # starts, lengths, notes: (windows,) each
    tokens, (starts, lengths, notes) = map_token_windows(folder, description)
    attrition = Attrition(step="tokens", entered_rows=description["entered"])
    for reason, count in description["dropped"].items():
        attrition.drop_rows(reason, count)
    note_table = pq.read_table(folder / "notes.parquet")
    return EncodedCorpus(tokens, starts, lengths, notes, note_table, attrition, folder)


def _encode_notes(
    corpus: Path,
    tokenizer: Tokenizer,
    layout: SpecialTokenLayout,
    base: LanguageModelSpec,
    note_writer: pq.ParquetWriter,
    attrition: Attrition,
) -> Iterator[tuple[int, list[int]]]:
    """Yield (row, window) of every note; write its columns without the text, count what is cut."""
    capacity = layout.compute_text_capacity(base.max_tokens)
    options = {"add_special_tokens": False, "verbose": False, "return_attention_mask": False}
    row = 0
    # chunks bound the memory: neither the texts nor the token ids of a corpus are held at once
    for batch in pq.ParquetFile(corpus).iter_batches(CORPUS_CHUNK_NOTES):
        note_writer.write_batch(batch.select(ENCODED_NOTE_COLUMNS))
        for ids in tokenizer(batch["text"].to_pylist(), **options)["input_ids"]:
            attrition.entered_rows += len(ids)
            text_ids = ids  # (tokens of the note,)
            if base.overflow == "truncate":
                reason = f"past the first {capacity} tokens of its note"
                attrition.drop_rows(reason, max(0, len(ids) - capacity))
                text_ids = ids[:capacity]
            # a note without text is one window of special tokens
            for start in range(0, max(len(text_ids), 1), capacity):
                # `note_suffix` only where the note ends, so that a model learns where notes end
                is_last = start + capacity >= len(text_ids)
                end = layout.note_suffix if is_last else ()
                content = text_ids[start : start + capacity]
                yield row, [*layout.window_prefix, *content, *end, *layout.window_suffix]
            row += 1
