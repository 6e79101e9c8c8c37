"""Which pairs share a run of words with texts that are used to evaluate."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

NgramHashArray = NDArray[np.uint64]

_WORD_PATTERN = re.compile(r"\w+")
_HASH_BATCH_TEXTS = 1024


class NgramIndex:
    """The word n-grams of texts, as sorted 64-bit hashes.

    Words are runs of letters and digits, case-folded: punctuation plays no part. A text of fewer than n words is one gram, the whole of it, which
    only a text of the same words shares.

    Args:
        length_words: n.
    """

    def __init__(self, length_words: int) -> None:
        self.length_words = length_words
        self.hashes: NgramHashArray = np.empty(0, np.uint64)
        self._word_hashes: dict[str, int] = {}
        self._multipliers = np.random.PCG64(8).random_raw(length_words).astype(
            np.uint64
        ) | np.uint64(1)

    def add_texts(self, texts: Iterable[str]) -> None:
        """Learn the n-grams of texts, in pieces, so that a stream of any length can be given."""
        held: list[NgramHashArray] = []
        for text in texts:
            held.append(self._hash_ngrams(text))
            if len(held) == _HASH_BATCH_TEXTS:
                self.hashes = np.union1d(self.hashes, np.concatenate(held))
                held = []
        if held:
            self.hashes = np.union1d(self.hashes, np.concatenate(held))

    def compute_overlap(self, text: str) -> float:
        """Of the distinct n-grams of a text, the share that is known; 0 for a text without a word."""
        grams = np.unique(self._hash_ngrams(text))
        if not len(grams) or not len(self.hashes):
            return 0.0
        at = np.minimum(np.searchsorted(self.hashes, grams), len(self.hashes) - 1)
        return float((self.hashes[at] == grams).mean())

    def _hash_ngrams(self, text: str) -> NgramHashArray:
        words = _WORD_PATTERN.findall(text.casefold())
        if not words:
            return np.empty(0, np.uint64)
        hashes = np.array([self._hash_word(word) for word in words], np.uint64)
        length = min(self.length_words, len(words))
        combined = np.full(len(words) - length + 1, np.uint64(length))
        for location in range(length):
            combined += hashes[location : location + len(combined)] * self._multipliers[location]
        return combined ^ (combined >> np.uint64(29))

    def _hash_word(self, word: str) -> int:
        found = self._word_hashes.get(word)
        if found is None:
            found = self._word_hashes[word] = int.from_bytes(
                hashlib.blake2b(word.encode(), digest_size=8).digest(), "little"
            )
        return found


def is_contaminated(pair: Sequence[str], ngram_index: NgramIndex, max_overlap: float) -> bool:
    """Whether either side of a pair has more than ``max_overlap`` of its n-grams among those known."""
    return any(ngram_index.compute_overlap(side) > max_overlap for side in pair)
