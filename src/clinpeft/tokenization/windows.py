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
from clinpeft.tokenization.special_tokens import Ints, Layout, Tokenizer
from clinpeft.tokenization.storage import (
    MappedTokens,
    built,
    describe,
    described_in,
    mapped,
    write_windows,
)

NOTES_A_TIME = 256
NOTE_COLUMNS = ["note_id", "subject_id", "category", "split"]


@dataclass(frozen=True)
class Encodings:
    """The windows of a corpus.

    Attributes:
        tokens: (all tokens,) unsigned integers, mapped from disk.
        starts: (windows,) first token of each window.
        lengths: (windows,) tokens in each window, special tokens included.
        notes: (windows,) row of ``table`` that the window belongs to.
        table: one row a note: note_id, subject_id, category, split.
        attrition: what was cut off or left out while encoding, counted in tokens.
        folder: where it lies.
    """

    tokens: MappedTokens
    starts: Ints
    lengths: Ints
    notes: Ints
    table: pa.Table
    attrition: Attrition
    folder: Path

    def windows(self, split: str, max_notes: int = 0) -> Ints:
        """Windows of a split; when ``max_notes`` is not 0, of so many notes drawn from it, the same ones at every call."""
        rows = np.flatnonzero(pc.equal(self.table["split"], split).to_numpy(zero_copy_only=False))
        if max_notes and len(rows) > max_notes:
            rows = np.random.default_rng(0).choice(rows, max_notes, replace=False)
        return np.flatnonzero(np.isin(self.notes, rows))

    def counts(self) -> dict[str, int]:
        """Notes, windows and tokens per split, for the record."""
        found = {
            "notes": self.table.num_rows,
            "windows": len(self.starts),
            "tokens": int(self.lengths.sum()),
        }
        for split in SPLIT_NAMES:
            chosen = self.windows(split)
            found |= {
                f"{split}_windows": len(chosen),
                f"{split}_tokens": int(self.lengths[chosen].sum()),
            }
        return found


def encode(
    corpus: Path, tokenizer: Tokenizer, shape: Layout, base: LanguageModelSpec, folder: Path
) -> Encodings:
    """Encode a corpus (Parquet, schema ``tables.CORPUS``) into ``folder``, which appears whole or not at all.

    Raises:
        InputError: there is no room for text beside the special tokens.
    """
    shape.room(base.max_tokens)
    with built(folder) as building:
        attrition = Attrition(step="tokens")
        with pq.ParquetWriter(building / "notes.parquet", _note_schema(corpus)) as notes:
            written = write_windows(
                _encoded(corpus, tokenizer, shape, base, notes, attrition), len(tokenizer), building
            )
        describe(
            building,
            {**written, "entered": attrition.entered_rows, "dropped": attrition.dropped_rows},
        )
    return open_encodings(folder)


def open_encodings(folder: Path) -> Encodings:
    """What ``encode`` left in a folder."""
    described = described_in(folder)
    tokens, (starts, lengths, notes) = mapped(folder, described)
    attrition = Attrition(step="tokens", entered_rows=described["entered"])
    for reason, count in described["dropped"].items():
        attrition.drop_rows(reason, count)
    return Encodings(
        tokens, starts, lengths, notes, pq.read_table(folder / "notes.parquet"), attrition, folder
    )


def _encoded(
    corpus: Path,
    tokenizer: Tokenizer,
    shape: Layout,
    base: LanguageModelSpec,
    notes: pq.ParquetWriter,
    attrition: Attrition,
) -> Iterator[tuple[int, list[int]]]:
    """(row, window) of every note, whose columns without the text are written on the way."""
    row = 0
    for batch in pq.ParquetFile(corpus).iter_batches(NOTES_A_TIME):
        notes.write_batch(batch.select(NOTE_COLUMNS))
        encoded = tokenizer(
            batch["text"].to_pylist(),
            add_special_tokens=False,
            verbose=False,
            return_attention_mask=False,
        )["input_ids"]
        for ids in encoded:
            yield from ((row, piece) for piece in _windows(ids, shape, base, attrition))
            row += 1


def _note_schema(corpus: Path) -> pa.Schema:
    schema = pq.read_schema(corpus)
    return pa.schema([schema.field(name) for name in NOTE_COLUMNS])


def _windows(
    ids: list[int], shape: Layout, base: LanguageModelSpec, attrition: Attrition
) -> Iterator[list[int]]:
    """The windows of one note; what ``truncate`` cuts off is counted."""
    room = shape.room(base.max_tokens)
    attrition.entered_rows += len(ids)
    if base.overflow == "truncate":
        attrition.drop_rows(f"past the first {room} tokens of its note", max(0, len(ids) - room))
        ids = ids[:room]
    for start in range(0, max(len(ids), 1), room):
        content = ids[start : start + room]
        end = shape.end if start + room >= len(ids) else ()
        yield [*shape.first, *content, *end, *shape.last]
