"""Copies across splits: equal notes, and notes contained in other notes.

The measure is *containment*, the fraction of a note's word 5-grams that are in one other note, and
not resemblance (Broder 1997, On the resemblance and containment of documents, section 2): an
admission note is a third of the discharge summary it was cut from, so that their Jaccard similarity
is small although all of it is there. It is estimated on the 5-grams whose hash is in a fixed eighth
of all hashes (FracMinHash: Irber et al. 2022, bioRxiv 2022.01.11.475838). De-identification marks
are removed first, since MIMIC-III and MIMIC-IV mark the same note differently.
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
# Row numbers ``(batch,)`` and their texts.
TextBatches = Iterable[tuple[_Int64Array, pa.Array]]

LEAKAGE_SHINGLE_WORDS = 5
SHINGLE_SAMPLING_DIVISOR = 8  # one 5-gram in 8 is sampled
# Of a note's sampled 5-grams in one other note; its standard error at 40 of them is 0.08.
MIN_CONTAINMENT = 0.5
# About 70 words; a shorter note is compared only as a whole.
MIN_SAMPLED_SHINGLES = 8
# A 5-gram in more evaluated notes than this, and in more than one in a hundred, is a phrase of the
# hospital and no sign of a copy.
MIN_COMMON_SHINGLE_NOTES = 20
# One in more notes than this is ignored in any case, so that the number of evaluated notes that one
# other note is compared with is bounded.
MAX_COMMON_SHINGLE_NOTES = 100
# Other notes in one step: each meets every evaluated note that shares a 5-gram with it.
COMPARISON_BATCH_NOTES = 256

# [**First Name 12**] of MIMIC-III, ___ of MIMIC-IV, [NAME] of other tools
_DEIDENTIFICATION_MARKS = r"\[\*\*[^\[\]]{0,200}\*\*\]|_{2,}|\[[A-Z]{2,12}\]"

# Odd, so that multiplication modulo 2**64 is invertible.
_HASH_MULTIPLIERS = np.random.PCG64(20260101).random_raw(LEAKAGE_SHINGLE_WORDS).astype(
    np.uint64
) | np.uint64(1)


def normalize_note_words(texts: pa.Array) -> pa.Array:
    """The words and numbers of notes in lower case, without de-identification marks.

    Returns:
        Texts of words separated by single blanks, as notes are compared.
    """
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
    """The sampled word 5-grams of notes, each once a note.

    Returns:
        Positions of notes in the array, and hashes, both of shape ``(shingles,)``, sorted by note
        and hash.
    """
    # One flat array of words, and the end of every note in it.
    split = pc.split_pattern(normalized_texts.cast(pa.large_string()), " ")
    ends = split.offsets.to_numpy().astype(np.int64)
    hashes = _hash_words(split.flatten())  # (words,)
    count = max(len(hashes) - LEAKAGE_SHINGLE_WORDS + 1, 0)
    combined = np.zeros(count, np.uint64)
    for position, multiplier in enumerate(_HASH_MULTIPLIERS):
        combined += hashes[position : position + count] * multiplier
    mixed = combined ^ (combined >> np.uint64(32))
    # 2**64 divided by the golden ratio: without it the last bits of a sum of odd multiples are not
    # evenly distributed.
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    note = np.repeat(np.arange(len(normalized_texts)), np.diff(ends))  # (words,)
    # The words of a 5-gram must be of one note.
    sampled = (note[:count] == note[LEAKAGE_SHINGLE_WORDS - 1 :]) & (
        (mixed >> np.uint64(40)) % np.uint64(SHINGLE_SAMPLING_DIVISOR) == 0
    )
    note, mixed = note[:count][sampled], mixed[sampled]
    order = np.lexsort((mixed, note))
    note, mixed = note[order], mixed[order]
    is_first = np.ones(len(note), np.bool_)
    is_first[1:] = (note[1:] != note[:-1]) | (mixed[1:] != mixed[:-1])
    return note[is_first], mixed[is_first]


def _hash_words(words: pa.Array) -> _UInt64Array:
    """64 bits a word, ``(words,)``; each distinct word of the batch is hashed once."""
    encoded = words.dictionary_encode()
    digests = b"".join(
        hashlib.blake2b(word.encode(), digest_size=8).digest()
        for word in encoded.dictionary.to_pylist()
    )
    # Little endian on every machine, so that the sampled 5-grams are the same everywhere.
    hashes: _UInt64Array = np.frombuffer(digests, "<u8").astype(np.uint64)
    return hashes[encoded.indices.to_numpy()] if len(words) else np.zeros(0, np.uint64)


@dataclass(frozen=True)
class NoteSketches:
    """The sampled 5-grams of the evaluated notes, sorted by hash.

    Attributes:
        hashes: sorted, one entry for every note that has the 5-gram, ``(shingles,)``.
        note_indices: the note of each entry, an index into ``row_numbers``, ``(shingles,)``.
        shingle_counts: 5-grams of every note, ``(notes,)``.
        row_numbers: of every note, ``(notes,)``.
    """

    hashes: _UInt64Array
    note_indices: _Int64Array
    shingle_counts: _Int64Array
    row_numbers: _Int64Array

    @property
    def comparable_mask(self) -> NDArray[np.bool_]:
        """Which notes have enough 5-grams to be compared, ``(notes,)``."""
        return self.shingle_counts >= MIN_SAMPLED_SHINGLES


def sketch_notes(text_batches: TextBatches) -> NoteSketches:
    """The sketches of notes, without the 5-grams that many of them share."""
    row_numbers = [np.zeros(0, np.int64)]
    note_parts, hash_parts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    count = 0
    for rows, texts in text_batches:
        note, hashes = sample_shingles(normalize_note_words(texts))
        row_numbers.append(rows)
        note_parts.append(note + count)
        hash_parts.append(hashes)
        count += len(rows)
    note, hashes = np.concatenate(note_parts), np.concatenate(hash_parts)
    order = np.argsort(hashes, kind="stable")
    note, hashes = note[order], hashes[order]
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    limit = min(max(MIN_COMMON_SHINGLE_NOTES, count // 100), MAX_COMMON_SHINGLE_NOTES)
    is_rare = counts[inverse] <= limit
    shingle_counts = np.bincount(note[is_rare], minlength=count)
    return NoteSketches(hashes[is_rare], note[is_rare], shingle_counts, np.concatenate(row_numbers))


def find_contained_notes(sketches: NoteSketches, text_batches: TextBatches) -> NDArray[np.bool_]:
    """Which evaluated notes are by ``MIN_CONTAINMENT`` or more in one other note.

    Args:
        sketches: of the evaluated notes.
        text_batches: the other notes.

    Returns:
        Shape ``(notes,)``.
    """
    best = np.zeros(len(sketches.row_numbers))  # the largest containment of every evaluated note
    slices = (
        texts.slice(start, COMPARISON_BATCH_NOTES)
        for _, texts in text_batches
        for start in range(0, len(texts), COMPARISON_BATCH_NOTES)
    )
    for texts in slices:
        other, hashes = sample_shingles(normalize_note_words(texts))
        first = np.searchsorted(sketches.hashes, hashes, "left")
        last = np.searchsorted(sketches.hashes, hashes, "right")
        matches = last - first  # entries of each 5-gram of the other notes
        # The ranges first:last of all 5-grams, one after the other.
        offsets = np.arange(matches.sum()) - np.repeat(np.cumsum(matches) - matches, matches)
        entries = np.repeat(first, matches) + offsets
        # A pair (other note, evaluated note) as one number; it occurs once for each shared 5-gram.
        width = max(len(best), 1)
        pairs, shared = np.unique(
            np.repeat(other, matches) * width + sketches.note_indices[entries], return_counts=True
        )
        note = pairs % width
        np.maximum.at(best, note, shared / np.maximum(sketches.shingle_counts[note], 1))
    return sketches.comparable_mask & (best >= MIN_CONTAINMENT)
