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

_UInt64Array = NDArray[np.uint64]
_Int64Array = NDArray[np.int64]
TextBatches = Iterable[tuple[_Int64Array, pa.Array]]

LEAKAGE_SHINGLE_WORDS = 5
SHINGLE_SAMPLING_DIVISOR = 8  # one 5-gram in so many is looked at
MIN_CONTAINMENT = (
    0.5  # of a note's sampled 5-grams in one other note; the standard error at 40 of them is 0.08
)
MIN_SAMPLED_SHINGLES = (
    8  # sampled 5-grams: about 70 words; a shorter note is only compared as a whole
)
MIN_COMMON_SHINGLE_NOTES = 20  # a 5-gram in more of the notes asked than this and one in a hundred is a phrase of the hospital and says nothing
MAX_COMMON_SHINGLE_NOTES = 100  # and one in more than so many always: what a note known is compared with stays bounded, however many notes are asked
COMPARISON_BATCH_NOTES = 256  # notes known that are compared in one step: each meets every note asked that shares a 5-gram with it

# [**First Name 12**], ___, [NAME]
_DEIDENTIFICATION_MARKS = r"\[\*\*[^\[\]]{0,200}\*\*\]|_{2,}|\[[A-Z]{2,12}\]"


def normalize_note_words(texts: pa.Array) -> pa.Array:
    """The words of notes in lower case, one blank between, without de-identification marks, digits kept: what notes are compared by."""
    unmarked = pc.replace_substring_regex(texts, pattern=_DEIDENTIFICATION_MARKS, replacement=" ")
    return pc.utf8_trim_whitespace(
        pc.replace_substring_regex(
            pc.utf8_lower(unmarked), pattern=r"[^\p{L}\p{N}]+", replacement=" "
        )
    )


def hash_notes(normalized_texts: pa.Array) -> list[bytes]:
    """128 bits a note, equal for notes of equal words; empty for a note without words."""
    return [
        hashlib.blake2b(text.encode(), digest_size=16).digest() if text else b""
        for text in normalized_texts.to_pylist()
    ]


def sample_shingles(normalized_texts: pa.Array) -> tuple[_Int64Array, _UInt64Array]:
    """(place of the note in the array, hash) of the sampled word 5-grams, each once a note."""
    split = pc.split_pattern(normalized_texts.cast(pa.large_string()), " ")
    ends = split.offsets.to_numpy().astype(np.int64)
    hashes = _hash_words(split.flatten())
    count = max(len(hashes) - LEAKAGE_SHINGLE_WORDS + 1, 0)
    combined = np.zeros(count, np.uint64)
    for location, multiplier in enumerate(_HASH_MULTIPLIERS):
        combined += hashes[location : location + count] * multiplier
    note = np.repeat(np.arange(len(normalized_texts)), np.diff(ends))
    mixed = combined ^ (combined >> np.uint64(32))
    mixed *= np.uint64(
        0x9E3779B97F4A7C15
    )  # the golden ratio: without it the last bits of a sum of odd multiples are not evenly spread
    taken = (note[:count] == note[LEAKAGE_SHINGLE_WORDS - 1 :]) & (
        (mixed >> np.uint64(40)) % np.uint64(SHINGLE_SAMPLING_DIVISOR) == 0
    )
    return _drop_repeated_shingles(note[:count][taken], mixed[taken])


_HASH_MULTIPLIERS = np.random.PCG64(20260101).random_raw(LEAKAGE_SHINGLE_WORDS).astype(
    np.uint64
) | np.uint64(1)


def _hash_words(words: pa.Array) -> _UInt64Array:
    """64 bits a word; each distinct word of the batch is hashed once."""
    encoded = words.dictionary_encode()
    drawn = b"".join(
        hashlib.blake2b(word.encode(), digest_size=8).digest()
        for word in encoded.dictionary.to_pylist()
    )
    table: _UInt64Array = np.frombuffer(drawn, "<u8").astype(np.uint64)
    return table[encoded.indices.to_numpy()] if len(words) else np.zeros(0, np.uint64)


def _drop_repeated_shingles(
    note_indices: _Int64Array, hashes: _UInt64Array
) -> tuple[_Int64Array, _UInt64Array]:
    order = np.lexsort((hashes, note_indices))
    note_indices, hashes = note_indices[order], hashes[order]
    first = np.ones(len(note_indices), np.bool_)
    first[1:] = (note_indices[1:] != note_indices[:-1]) | (hashes[1:] != hashes[:-1])
    return note_indices[first], hashes[first]


@dataclass(frozen=True)
class NoteSketches:
    """The sampled 5-grams of the notes asked, sorted by hash.

    Attributes:
        hashes: sorted, one entry for every note that has it.
        note_indices: whose they are, counted from 0 in the order of ``row_numbers``.
        shingle_counts: how many every note has.
        row_numbers: the row number of every note.
    """

    hashes: _UInt64Array
    note_indices: _Int64Array
    shingle_counts: _Int64Array
    row_numbers: _Int64Array

    @property
    def comparable_mask(self) -> NDArray[np.bool_]:
        """Which notes have enough of them."""
        return self.shingle_counts >= MIN_SAMPLED_SHINGLES


def sketch_notes(text_batches: TextBatches) -> NoteSketches:
    """The sketches of notes, without the 5-grams that many of them share."""
    rows, notes, hashes, seen = (
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.uint64)],
        0,
    )
    for row, texts in text_batches:
        note, hashed = sample_shingles(normalize_note_words(texts))
        rows.append(row)
        notes.append(note + seen)
        hashes.append(hashed)
        seen += len(row)
    note, hashed = np.concatenate(notes), np.concatenate(hashes)
    order = np.argsort(hashed, kind="stable")
    note, hashed = note[order], hashed[order]
    _, inverse, counts = np.unique(hashed, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= min(
        max(MIN_COMMON_SHINGLE_NOTES, seen // 100), MAX_COMMON_SHINGLE_NOTES
    )
    return NoteSketches(
        hashed[rare], note[rare], np.bincount(note[rare], minlength=seen), np.concatenate(rows)
    )


def find_contained_notes(sketches: NoteSketches, text_batches: TextBatches) -> NDArray[np.bool_]:
    """Which of the notes asked stand, by half or more, in one of the notes known."""
    best = np.zeros(len(sketches.row_numbers))
    for texts in _slice_batches(text_batches):
        other, hashed = sample_shingles(normalize_note_words(texts))
        first, last = (
            np.searchsorted(sketches.hashes, hashed, "left"),
            np.searchsorted(sketches.hashes, hashed, "right"),
        )
        many = last - first
        # every (known note, note asked) that share a 5-gram, once for each of them
        entries = (
            np.repeat(first, many) + np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        )
        pairs, shared = np.unique(
            np.repeat(other, many) * max(len(best), 1) + sketches.note_indices[entries],
            return_counts=True,
        )
        note = pairs % max(len(best), 1)
        np.maximum.at(best, note, shared / np.maximum(sketches.shingle_counts[note], 1))
    return sketches.comparable_mask & (best >= MIN_CONTAINMENT)


def _slice_batches(text_batches: TextBatches) -> Iterable[pa.Array]:
    for _, texts in text_batches:
        yield from (
            texts.slice(start, COMPARISON_BATCH_NOTES)
            for start in range(0, len(texts), COMPARISON_BATCH_NOTES)
        )
