"""A corpus to token windows on disk.

All tokens of a corpus lie in one flat file that is mapped, never loaded; a window is a slice of it. So a corpus of any size costs a few bytes a
window in memory, and every epoch, trial and process reads the same file.
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
    write_encoding_description,
    read_encoding_description,
    map_token_windows,
    write_token_windows,
)

CORPUS_CHUNK_NOTES = 256
ENCODED_NOTE_COLUMNS = ["note_id", "subject_id", "category", "split"]


@dataclass(frozen=True)
class EncodedCorpus:
    """The windows of a corpus.

    Attributes:
        tokens: (all tokens,) unsigned integers, mapped from disk.
        starts: (windows,) first token of each window.
        lengths: (windows,) tokens in each window, special tokens included.
        window_notes: (windows,) row of ``note_table`` that the window belongs to.
        note_table: one row a note: note_id, subject_id, category, split.
        attrition: what was cut off or left out while encoding, counted in tokens.
        folder: where it lies.
    """

    tokens: MappedTokens
    starts: IndexArray
    lengths: IndexArray
    window_notes: IndexArray
    note_table: pa.Table
    attrition: Attrition
    folder: Path

    def select_windows(self, split: str, max_notes: int = 0) -> IndexArray:
        """Windows of a split; when ``max_notes`` is not 0, of so many notes drawn from it, the same ones at every call."""
        rows = np.flatnonzero(
            pc.equal(self.note_table["split"], split).to_numpy(zero_copy_only=False)
        )
        if max_notes and len(rows) > max_notes:
            rows = np.random.default_rng(0).choice(rows, max_notes, replace=False)
        return np.flatnonzero(np.isin(self.window_notes, rows))

    def count_by_split(self) -> dict[str, int]:
        """Notes, windows and tokens per split, for the record."""
        found = {
            "notes": self.note_table.num_rows,
            "windows": len(self.starts),
            "tokens": int(self.lengths.sum()),
        }
        for split in SPLIT_NAMES:
            chosen = self.select_windows(split)
            found |= {
                f"{split}_windows": len(chosen),
                f"{split}_tokens": int(self.lengths[chosen].sum()),
            }
        return found


def encode_corpus(
    corpus: Path,
    tokenizer: Tokenizer,
    layout: SpecialTokenLayout,
    base: LanguageModelSpec,
    folder: Path,
) -> EncodedCorpus:
    """Encode a corpus (Parquet, schema ``tables.CORPUS``) into ``folder``, which appears whole or not at all.

    Raises:
        InputError: there is no room for text beside the special tokens.
    """
    layout.compute_text_capacity(base.max_tokens)
    with build_encoding_folder(folder) as building:
        attrition = Attrition(step="tokens")
        with pq.ParquetWriter(building / "notes.parquet", _build_note_schema(corpus)) as notes:
            written = write_token_windows(
                _encode_notes(corpus, tokenizer, layout, base, notes, attrition),
                len(tokenizer),
                building,
            )
        write_encoding_description(
            building,
            {**written, "entered": attrition.entered_rows, "dropped": attrition.dropped_rows},
        )
    return open_encoded_corpus(folder)


def open_encoded_corpus(folder: Path) -> EncodedCorpus:
    """What ``encode`` left in a folder."""
    described = read_encoding_description(folder)
    tokens, (starts, lengths, notes) = map_token_windows(folder, described)
    attrition = Attrition(step="tokens", entered_rows=described["entered"])
    for reason, count in described["dropped"].items():
        attrition.drop_rows(reason, count)
    return EncodedCorpus(
        tokens, starts, lengths, notes, pq.read_table(folder / "notes.parquet"), attrition, folder
    )


def _encode_notes(
    corpus: Path,
    tokenizer: Tokenizer,
    layout: SpecialTokenLayout,
    base: LanguageModelSpec,
    note_writer: pq.ParquetWriter,
    attrition: Attrition,
) -> Iterator[tuple[int, list[int]]]:
    """(row, window) of every note, whose columns without the text are written on the way."""
    row = 0
    for batch in pq.ParquetFile(corpus).iter_batches(CORPUS_CHUNK_NOTES):
        note_writer.write_batch(batch.select(ENCODED_NOTE_COLUMNS))
        encoded = tokenizer(
            batch["text"].to_pylist(),
            add_special_tokens=False,
            verbose=False,
            return_attention_mask=False,
        )["input_ids"]
        for ids in encoded:
            yield from ((row, piece) for piece in _split_note(ids, layout, base, attrition))
            row += 1


def _build_note_schema(corpus: Path) -> pa.Schema:
    schema = pq.read_schema(corpus)
    return pa.schema([schema.field(name) for name in ENCODED_NOTE_COLUMNS])


def _split_note(
    token_ids: list[int], layout: SpecialTokenLayout, base: LanguageModelSpec, attrition: Attrition
) -> Iterator[list[int]]:
    """The windows of one note; what ``truncate`` cuts off is counted."""
    room = layout.compute_text_capacity(base.max_tokens)
    attrition.entered_rows += len(token_ids)
    if base.overflow == "truncate":
        attrition.drop_rows(
            f"past the first {room} tokens of its note", max(0, len(token_ids) - room)
        )
        token_ids = token_ids[:room]
    for start in range(0, max(len(token_ids), 1), room):
        content = token_ids[start : start + room]
        end = layout.note_suffix if start + room >= len(token_ids) else ()
        yield [*layout.window_prefix, *content, *end, *layout.window_suffix]
