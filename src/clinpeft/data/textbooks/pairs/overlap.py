"""Which pairs share a run of words with texts that are used to evaluate."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_BATCH = 1024


class Grams:
    """The word n-grams of texts, as sorted 64-bit hashes.

    Words are runs of letters and digits, case-folded: punctuation plays no part. A text of fewer than n words is one gram, the whole of it, which
    only a text of the same words shares.

    Args:
        length_words: n.
    """

    def __init__(self, length_words: int) -> None:
        self.length_words = length_words
        self.known: UInt64 = np.empty(0, np.uint64)
        self._hashes: dict[str, int] = {}
        self._multipliers = np.random.PCG64(8).random_raw(length_words).astype(
            np.uint64
        ) | np.uint64(1)

    def add(self, texts: Iterable[str]) -> None:
        """Learn the n-grams of texts, in pieces, so that a stream of any length can be given."""
        held: list[UInt64] = []
        for text in texts:
            held.append(self._of(text))
            if len(held) == _BATCH:
                self.known = np.union1d(self.known, np.concatenate(held))
                held = []
        if held:
            self.known = np.union1d(self.known, np.concatenate(held))

    def share(self, text: str) -> float:
        """Of the distinct n-grams of a text, the share that is known; 0 for a text without a word."""
        grams = np.unique(self._of(text))
        if not len(grams) or not len(self.known):
            return 0.0
        at = np.minimum(np.searchsorted(self.known, grams), len(self.known) - 1)
        return float((self.known[at] == grams).mean())

    def _of(self, text: str) -> UInt64:
        words = _WORD.findall(text.casefold())
        if not words:
            return np.empty(0, np.uint64)
        hashes = np.array([self._hash(word) for word in words], np.uint64)
        length = min(self.length_words, len(words))
        combined = np.full(len(words) - length + 1, np.uint64(length))
        for location in range(length):
            combined += hashes[location : location + len(combined)] * self._multipliers[location]
        return combined ^ (combined >> np.uint64(29))

    def _hash(self, word: str) -> int:
        found = self._hashes.get(word)
        if found is None:
            found = self._hashes[word] = int.from_bytes(
                hashlib.blake2b(word.encode(), digest_size=8).digest(), "little"
            )
        return found


def contaminated(pair: Sequence[str], grams: Grams, max_overlap: float) -> bool:
    """Whether either side of a pair has more than ``max_overlap`` of its n-grams among those known."""
    return any(grams.share(side) > max_overlap for side in pair)
