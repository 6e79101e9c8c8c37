"""Overlap of word n-grams with texts of evaluation sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from clinpeft.data.formats.hashing import contains_sorted, draw_odd_multipliers, hash_to_64_bits

NgramHashArray = NDArray[np.uint64]

_WORD_PATTERN = re.compile(r"\w+")
_HASH_BATCH_TEXTS = 1024


class NgramIndex:
    """The word n-grams of texts, as sorted 64-bit hashes.

    Words are runs of letters and digits, case-folded: punctuation is ignored. A text of fewer than
    n words is one n-gram, the whole of it, which only a text of the same words shares.

    Args:
        length_words: n.
    """

    def __init__(self, length_words: int) -> None:
        self.length_words = length_words
        self.hashes: NgramHashArray = np.empty(0, np.uint64)  # (n-grams,), sorted
        self._word_hashes: dict[str, int] = {}  # Zipf: most words of a text were hashed before
        self._multipliers = draw_odd_multipliers(8, length_words)

    def add_texts(self, texts: Iterable[str]) -> None:
        """Adds the n-grams of texts, in batches: ``texts`` may be a stream of any length."""
        batch: list[NgramHashArray] = []
        for text in texts:
            batch.append(self._hash_ngrams(text))
            if len(batch) == _HASH_BATCH_TEXTS:
                self.hashes = np.union1d(self.hashes, np.concatenate(batch))
                batch = []
        if batch:
            self.hashes = np.union1d(self.hashes, np.concatenate(batch))

    def compute_overlap(self, text: str) -> float:
        """Returns the fraction of the distinct n-grams of a text that are in the index.

        0 for a text without a word.
        """
        # Distinct: a phrase that a text repeats counts once.
        ngrams = np.unique(self._hash_ngrams(text))
        if not len(ngrams) or not len(self.hashes):
            return 0.0
        return float(contains_sorted(self.hashes, ngrams).mean())

    def _hash_ngrams(self, text: str) -> NgramHashArray:
        """Returns one hash for each n-gram, ``(n-grams,)``."""
        words = _WORD_PATTERN.findall(text.casefold())
        if not words:
            return np.empty(0, np.uint64)
        new_words = [word for word in dict.fromkeys(words) if word not in self._word_hashes]
        hashes = hash_to_64_bits(word.encode() for word in new_words)
        self._word_hashes.update(zip(new_words, hashes.tolist(), strict=True))
        hashes = np.array([self._word_hashes[word] for word in words], np.uint64)
        # Starting from the length keeps short texts apart from the n-grams of longer ones.
        length = min(self.length_words, len(words))
        combined = np.full(len(words) - length + 1, np.uint64(length))
        for offset in range(length):
            combined += hashes[offset : offset + len(combined)] * self._multipliers[offset]
        return combined ^ (combined >> np.uint64(29))


def is_contaminated(pair: Sequence[str], ngram_index: NgramIndex, max_overlap: float) -> bool:
    """Whether either text of a pair has more than ``max_overlap`` of its n-grams in the index."""
    return any(ngram_index.compute_overlap(side) > max_overlap for side in pair)
