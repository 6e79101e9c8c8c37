"""Words alone: BM25 and TF-IDF rankings and pair scores, without a model.

They stand beside the embeddings in every table. Where a positive is a paraphrase that keeps the words, words are enough, and a model that does not
beat them has shown nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from clinpeft.core.errors import InputError

TextRowIndices = NDArray[np.int64]
PairScoreArray = NDArray[np.float64]

BM25_K1 = 0.9
BM25_B = 0.4
"""The BM25 parameters that Anserini and BEIR's baselines use; Robertson and Zaragoza (2009) call 1.2 to 2 and 0.5 to 0.8 reasonable."""

_WORD_PATTERN = r"(?u)\b\w+\b"  # single letters and digits too: "grade 3", "vitamin K"
_BLOCK_SCORES = 16_000_000  # scores in memory together: 64 MB


@dataclass(frozen=True)
class LexicalIndex:
    """Passages as weighted words.

    Attributes:
        term_weights: shape (passages, words).
        weigh_terms: texts -> their weights, shape (texts, words); a score is the product of both.
    """

    term_weights: sp.csr_array
    weigh_terms: Callable[[Sequence[str]], sp.csr_array]

    def iterate_score_blocks(
        self, queries: Sequence[str], block_queries: int = 0
    ) -> Iterator[NDArray[np.float32]]:
        """The scores of queries with all passages, shape (some queries, passages) at a time, as ``evaluation.embedding.best`` takes them.

        Args:
            queries: texts; one without a known word scores 0 everywhere.
            block_queries: queries at a time; 0: as many as keep a block under 64 MB.
        """
        at_once = block_queries or max(1, _BLOCK_SCORES // max(self.term_weights.shape[0], 1))
        turned = sp.csc_array(self.term_weights.T)
        for start in range(0, len(queries), at_once):
            yield (
                (self.weigh_terms(queries[start : start + at_once]) @ turned)
                .toarray()
                .astype(np.float32)
            )

    def build_pair_scorer(
        self, texts: Sequence[str]
    ) -> Callable[[TextRowIndices, TextRowIndices], PairScoreArray]:
        """Rows of ``texts`` and rows of passages, each of shape (n,) -> the score of each pair, shape (n,)."""
        given = self.weigh_terms(texts)

        def score(rows: TextRowIndices, passages: TextRowIndices) -> PairScoreArray:
            return np.asarray(
                given[rows].multiply(self.term_weights[passages]).sum(axis=1), np.float64
            ).ravel()

        return score


def build_bm25_index(
    passages: Sequence[str], k1: float = BM25_K1, b: float = BM25_B
) -> LexicalIndex:
    """Okapi BM25 (Robertson and Zaragoza 2009, equation 3.15), summed over the words of a query, each as often as it stands there.

    A word of a passage weighs ``idf tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))`` with ``idf = log(1 + (N - n + 0.5) / (n + 0.5))``,
    which is never negative (as in Lucene). Words are runs of letters and digits in lower case; no stemming, no stop words.

    Args:
        passages: texts.
        k1: how soon more of the same word stops to count.
        b: how much a long passage is marked down.

    Raises:
        InputError: no passage has a word.
    """
    counting = CountVectorizer(token_pattern=_WORD_PATTERN)
    counts = sp.coo_array(_fit_vectorizer(counting.fit_transform, passages), dtype=np.float64)
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    found = np.bincount(counts.col, minlength=counts.shape[1])
    idf = np.log1p((len(passages) - found + 0.5) / (found + 0.5))
    damping = k1 * (1 - b + b * lengths / lengths.mean())
    values = idf[counts.col] * counts.data * (k1 + 1) / (counts.data + damping[counts.row])
    weights = sp.csr_array((values, (counts.row, counts.col)), shape=counts.shape)
    return LexicalIndex(
        weights, lambda texts: sp.csr_array(counting.transform(texts), dtype=np.float64)
    )


def build_tfidf_index(passages: Sequence[str]) -> LexicalIndex:
    """Cosine of TF-IDF vectors, between 0 and 1: 1 + log of the count, times the smoothed inverse share of passages (scikit-learn's definition).

    Args:
        passages: texts, of which the shares are taken.

    Raises:
        InputError: no passage has a word.
    """
    weighting = TfidfVectorizer(token_pattern=_WORD_PATTERN, sublinear_tf=True)
    weights = sp.csr_array(_fit_vectorizer(weighting.fit_transform, passages))
    return LexicalIndex(weights, lambda texts: sp.csr_array(weighting.transform(texts)))


LEXICAL_INDEX_BUILDERS: dict[str, Callable[[Sequence[str]], LexicalIndex]] = {
    "BM25": build_bm25_index,
    "TF-IDF": build_tfidf_index,
}
"""Name in tables -> how passages become words."""


def _fit_vectorizer(
    fit_transform: Callable[[Sequence[str]], sp.csr_matrix], passages: Sequence[str]
) -> sp.csr_matrix:
    try:
        return fit_transform(passages)
    except ValueError:
        message = f"{len(passages)} passages without a single word"
        raise InputError(
            message, location="lexical baseline", hint="give passages that hold text"
        ) from None
