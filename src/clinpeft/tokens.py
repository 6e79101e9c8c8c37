"""Text to token windows on disk, and windows to batches.

All tokens of a corpus lie in one flat file that is mapped, never loaded; a window is a slice of it. So a corpus of any size costs a few bytes a
window in memory, and every epoch, trial and process reads the same file.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from clinpeft.errors import InputError
from clinpeft.recipe import BaseSpec
from clinpeft.tables import SPLITS, Attrition

Tokenizer = Any  # transformers.PreTrainedTokenizerBase, which is not typed
Ints = npt.NDArray[np.int64]

NOTES_A_TIME = 256
NOTE_COLUMNS = ["note_id", "subject_id", "category", "split"]


@dataclass(frozen=True)
class Layout:
    """The special tokens around a window: ``first`` before every window, ``last`` after every window, ``end`` after the last one of a note."""

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens a window must leave free."""
        return len(self.first) + len(self.last) + len(self.end)


def layout(tokenizer: Tokenizer, objective: str) -> Layout:
    """Where a tokenizer's special tokens go for a kind of language modelling.

    Decoders read ``bos`` before every window, so that every token of a note is predicted exactly once, and learn ``eos`` only where a note really
    ends. Encoders read ``cls`` and ``sep`` around every window. A token that the tokenizer lacks is left out.
    """
    if objective == "causal-lm":
        return Layout(first=_known(tokenizer.bos_token_id), end=_known(tokenizer.eos_token_id))
    return Layout(first=_known(tokenizer.cls_token_id), last=_known(tokenizer.sep_token_id))


def _known(token_id: int | None) -> tuple[int, ...]:
    return () if token_id is None else (token_id,)


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

    tokens: npt.NDArray[np.unsignedinteger[Any]]
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
        found = {"notes": self.table.num_rows, "windows": len(self.starts), "tokens": int(self.lengths.sum())}
        for split in SPLITS:
            chosen = self.windows(split)
            found |= {f"{split}_windows": len(chosen), f"{split}_tokens": int(self.lengths[chosen].sum())}
        return found


def encode(corpus: Path, tokenizer: Tokenizer, shape: Layout, base: BaseSpec, folder: Path) -> Encodings:
    """Encode a corpus (Parquet, schema ``tables.CORPUS``) into ``folder``, which appears whole or not at all.

    Raises:
        InputError: there is no room for text beside the special tokens.
    """
    if base.max_tokens <= len(shape):
        raise InputError(f"max_tokens = {base.max_tokens} leaves no room for text", place="base.max_tokens", way_out=f"more than {len(shape)}")
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True, mode=0o700)
    _write(corpus, tokenizer, shape, base, building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return open_encodings(folder)


def open_encodings(folder: Path) -> Encodings:
    """What ``encode`` left in a folder."""
    described = json.loads((folder / "encodings.json").read_text(encoding="utf-8"))
    windows = np.load(folder / "windows.npy", mmap_mode="r")
    attrition = Attrition(step="tokens", entered=described["entered"])
    for reason, count in described["dropped"].items():
        attrition.drop(reason, count)
    tokens = np.memmap(folder / "tokens.bin", dtype=described["dtype"], mode="r", shape=(described["tokens"],))
    return Encodings(tokens, windows[0], windows[1], windows[2], pq.read_table(folder / "notes.parquet"), attrition, folder)


def is_encoded(folder: Path) -> bool:
    """Whether ``folder`` holds finished encodings."""
    return (folder / "encodings.json").exists()


def _write(corpus: Path, tokenizer: Tokenizer, shape: Layout, base: BaseSpec, folder: Path) -> None:
    dtype = "uint16" if len(tokenizer) <= np.iinfo(np.uint16).max else "uint32"
    attrition = Attrition(step="tokens")
    written, windows = 0, array("q")  # three int64 a window: a list of tuples would not stay small
    parquet = pq.ParquetFile(corpus)
    with (folder / "tokens.bin").open("wb") as out, pq.ParquetWriter(folder / "notes.parquet", _note_schema(corpus)) as notes:
        row = 0
        for batch in parquet.iter_batches(NOTES_A_TIME):
            notes.write_batch(batch.select(NOTE_COLUMNS))
            encoded = tokenizer(batch["text"].to_pylist(), add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"]
            for ids in encoded:
                for piece in _windows(ids, shape, base, attrition):
                    out.write(np.asarray(piece, dtype=dtype).tobytes())
                    windows.extend((written, len(piece), row))
                    written += len(piece)
                row += 1
    np.save(folder / "windows.npy", np.frombuffer(windows, dtype=np.int64).reshape(-1, 3).T)
    described = {"dtype": dtype, "tokens": written, "entered": attrition.entered, "dropped": attrition.dropped}
    (folder / "encodings.json").write_text(json.dumps(described), encoding="utf-8")


def _note_schema(corpus: Path) -> pa.Schema:
    schema = pq.read_schema(corpus)
    return pa.schema([schema.field(name) for name in NOTE_COLUMNS])


def _windows(ids: list[int], shape: Layout, base: BaseSpec, attrition: Attrition) -> Iterator[list[int]]:
    """The windows of one note; what ``truncate`` cuts off is counted."""
    room = base.max_tokens - len(shape)
    attrition.entered += len(ids)
    if base.overflow == "truncate":
        attrition.drop(f"past the first {room} tokens of its note", max(0, len(ids) - room))
        ids = ids[:room]
    for start in range(0, max(len(ids), 1), room):
        content = ids[start : start + room]
        end = shape.end if start + room >= len(ids) else ()
        yield [*shape.first, *content, *end, *shape.last]


@dataclass(frozen=True)
class Batch:
    """Windows side by side, padded on the right.

    Attributes:
        input_ids: (rows, time) token ids, 0 where padded.
        attention_mask: (rows, time) 1 on real tokens. What is padding is told by this mask alone, never by an id: pad may equal eos.
        boundaries: (rows + 1,) cumulative lengths of the documents, which is all that a layout without padding needs.
        windows: (rows,) which windows these are, for whatever must depend on the window and not on its neighbours.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    boundaries: torch.Tensor
    windows: Ints

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.boundaries, self.windows)


def gather(encodings: Encodings, windows: Ints) -> Batch:
    """A padded batch of the given windows, in their order."""
    lengths = encodings.lengths[windows]
    input_ids = np.zeros((len(windows), int(lengths.max())), dtype=np.int64)
    for row, window in enumerate(windows):
        start = encodings.starts[window]
        input_ids[row, : lengths[row]] = encodings.tokens[start : start + lengths[row]]
    mask = np.arange(input_ids.shape[1])[None, :] < lengths[:, None]
    boundaries = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64)), boundaries, np.asarray(windows))


def steps(lengths: Ints, batch_tokens: int, rng: np.random.Generator) -> list[Ints]:
    """One epoch as optimiser steps: shuffled windows, cut where ``batch_tokens`` real tokens are reached.

    Which windows make a step depends on neither the micro-batch size nor the number of processes, so neither changes what is learned; and a step
    is a random draw, so windows of one length do not follow each other.

    Args:
        lengths: (windows,) real tokens of each.

    Returns:
        For each step the positions in ``lengths`` that belong to it.
    """
    order = rng.permutation(len(lengths))
    before = np.concatenate([[0], np.cumsum(lengths[order])[:-1]])
    step_of = before // batch_tokens
    cuts = np.flatnonzero(np.diff(step_of)) + 1
    return [np.asarray(part) for part in np.split(order, cuts)]


def micro_batches(lengths: Ints, chosen: Ints, micro_batch_tokens: int) -> list[Ints]:
    """``chosen`` windows in groups of like length, each of at most ``micro_batch_tokens`` cells, padding included, or of one window."""
    ordered = chosen[np.argsort(-lengths[chosen], kind="stable")]
    groups: list[Ints] = []
    start = 0
    while start < len(ordered):
        rows = max(1, micro_batch_tokens // int(lengths[ordered[start]]))
        groups.append(ordered[start : start + rows])
        start += rows
    return groups


def share_of(groups: Sequence[Ints], rank: int, ranks: int) -> list[Ints]:
    """The micro-batches of one process of several."""
    return list(groups[rank::ranks])
