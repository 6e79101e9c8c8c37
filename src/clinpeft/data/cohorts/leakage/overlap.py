"""Whether what is asked was learned from: the same words across splits, and held-out notes that stand inside notes of an adaptation corpus.

The measure is *containment*, the share of a note's word 5-grams that stand in one other note, and not resemblance: an admission note is a third of
the discharge summary that it was cut from, so that their Jaccard similarity is small while all of it was read. Estimated on the 5-grams whose
hash falls into a fixed eighth of all hashes (FracMinHash; Irber et al. 2022). De-identification marks are taken out before, for MIMIC-III and
MIMIC-IV mark the same note differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]
Texts = Iterable[tuple[Int64, pa.Array]]

SHINGLE_WORDS = 5
SAMPLED = 8  # one 5-gram in so many is looked at
CONTAINED = (
    0.5  # of a note's sampled 5-grams in one other note; the standard error at 40 of them is 0.08
)
FEWEST = 8  # sampled 5-grams: about 70 words; a shorter note is only compared as a whole
COMMON_NOTES = 20  # a 5-gram in more of the notes asked than this and one in a hundred is a phrase of the hospital and says nothing
MOST_NOTES = 100  # and one in more than so many always: what a note known is compared with stays bounded, however many notes are asked
AT_ONCE = 256  # notes known that are compared in one step: each meets every note asked that shares a 5-gram with it

# [**First Name 12**], ___, [NAME]
_MARKS = r"\[\*\*[^\[\]]{0,200}\*\*\]|_{2,}|\[[A-Z]{2,12}\]"


def words(texts: pa.Array) -> pa.Array:
    """The words of notes in lower case, one blank between, without de-identification marks, digits kept: what notes are compared by."""
    unmarked = pc.replace_substring_regex(texts, pattern=_MARKS, replacement=" ")
    return pc.utf8_trim_whitespace(
        pc.replace_substring_regex(
            pc.utf8_lower(unmarked), pattern=r"[^\p{L}\p{N}]+", replacement=" "
        )
    )


def digests(worded: pa.Array) -> list[bytes]:
    """128 bits a note, equal for notes of equal words; empty for a note without words."""
    return [
        hashlib.blake2b(text.encode(), digest_size=16).digest() if text else b""
        for text in worded.to_pylist()
    ]


def shingles(worded: pa.Array) -> tuple[Int64, UInt64]:
    """(place of the note in the array, hash) of the sampled word 5-grams, each once a note."""
    split = pc.split_pattern(worded.cast(pa.large_string()), " ")
    ends = split.offsets.to_numpy().astype(np.int64)
    hashes = _hashed(split.flatten())
    count = max(len(hashes) - SHINGLE_WORDS + 1, 0)
    combined = np.zeros(count, np.uint64)
    for location, multiplier in enumerate(_ODD):
        combined += hashes[location : location + count] * multiplier
    note = np.repeat(np.arange(len(worded)), np.diff(ends))
    mixed = combined ^ (combined >> np.uint64(32))
    mixed *= np.uint64(
        0x9E3779B97F4A7C15
    )  # the golden ratio: without it the last bits of a sum of odd multiples are not evenly spread
    taken = (note[:count] == note[SHINGLE_WORDS - 1 :]) & (
        (mixed >> np.uint64(40)) % np.uint64(SAMPLED) == 0
    )
    return _distinct(note[:count][taken], mixed[taken])


_ODD = np.random.PCG64(20260101).random_raw(SHINGLE_WORDS).astype(np.uint64) | np.uint64(1)


def _hashed(flat: pa.Array) -> UInt64:
    """64 bits a word; each distinct word of the batch is hashed once."""
    encoded = flat.dictionary_encode()
    drawn = b"".join(
        hashlib.blake2b(word.encode(), digest_size=8).digest()
        for word in encoded.dictionary.to_pylist()
    )
    table: UInt64 = np.frombuffer(drawn, "<u8").astype(np.uint64)
    return table[encoded.indices.to_numpy()] if len(flat) else np.zeros(0, np.uint64)


def _distinct(note: Int64, hashed: UInt64) -> tuple[Int64, UInt64]:
    order = np.lexsort((hashed, note))
    note, hashed = note[order], hashed[order]
    first = np.ones(len(note), np.bool_)
    first[1:] = (note[1:] != note[:-1]) | (hashed[1:] != hashed[:-1])
    return note[first], hashed[first]


@dataclass(frozen=True)
class Sketches:
    """The sampled 5-grams of the notes asked, sorted by hash.

    Attributes:
        hashes: sorted, one entry for every note that has it.
        notes: whose they are, counted from 0 in the order of ``rows``.
        sizes: how many every note has.
        rows: the row number of every note.
    """

    hashes: UInt64
    notes: Int64
    sizes: Int64
    rows: Int64

    @property
    def comparable(self) -> NDArray[np.bool_]:
        """Which notes have enough of them."""
        return self.sizes >= FEWEST


def sketched(asked: Texts) -> Sketches:
    """The sketches of notes, without the 5-grams that many of them share."""
    rows, notes, hashes, seen = (
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.uint64)],
        0,
    )
    for row, texts in asked:
        note, hashed = shingles(words(texts))
        rows.append(row)
        notes.append(note + seen)
        hashes.append(hashed)
        seen += len(row)
    note, hashed = np.concatenate(notes), np.concatenate(hashes)
    order = np.argsort(hashed, kind="stable")
    note, hashed = note[order], hashed[order]
    _, inverse, counts = np.unique(hashed, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= min(max(COMMON_NOTES, seen // 100), MOST_NOTES)
    return Sketches(
        hashed[rare], note[rare], np.bincount(note[rare], minlength=seen), np.concatenate(rows)
    )


def contained(asked: Sketches, known: Texts) -> NDArray[np.bool_]:
    """Which of the notes asked stand, by half or more, in one of the notes known."""
    best = np.zeros(len(asked.rows))
    for texts in _slices(known):
        other, hashed = shingles(words(texts))
        first, last = (
            np.searchsorted(asked.hashes, hashed, "left"),
            np.searchsorted(asked.hashes, hashed, "right"),
        )
        many = last - first
        # every (known note, note asked) that share a 5-gram, once for each of them
        entries = (
            np.repeat(first, many) + np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        )
        pairs, shared = np.unique(
            np.repeat(other, many) * max(len(best), 1) + asked.notes[entries], return_counts=True
        )
        note = pairs % max(len(best), 1)
        np.maximum.at(best, note, shared / np.maximum(asked.sizes[note], 1))
    return asked.comparable & (best >= CONTAINED)


def _slices(known: Texts) -> Iterable[pa.Array]:
    for _, texts in known:
        yield from (texts.slice(start, AT_ONCE) for start in range(0, len(texts), AT_ONCE))
