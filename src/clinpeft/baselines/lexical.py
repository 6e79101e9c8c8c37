"""BM25 and TF-IDF: rankings and pair scores from words alone, without a model.

They are reported with the embeddings in every table. Where a positive is a paraphrase that keeps
the words, words are enough, and a model that does not beat them has shown nothing.
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

# The parameters of Anserini and of the baselines of BEIR (Thakur et al. 2021, arXiv 2104.08663);
# Robertson and Zaragoza (2009) call 1.2 to 2 and 0.5 to 0.8 reasonable.
BM25_K1 = 0.9
BM25_B = 0.4

_WORD_PATTERN = r"(?u)\b\w+\b"  # single letters and digits too: "grade 3", "vitamin K"
_BLOCK_SCORES = 16_000_000  # of float32 in memory at a time: 64 MB


@dataclass(frozen=True)
class LexicalIndex:
    """Passages as weighted words.

    Attributes:
        term_weights: ``(passages, words)``.
        weigh_terms: texts -> ``(texts, words)``; a score is the product of both.
    """

    term_weights: sp.csr_array
    weigh_terms: Callable[[Sequence[str]], sp.csr_array]

    def iterate_score_blocks(
        self, queries: Sequence[str], block_queries: int = 0
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the scores of queries with all passages, some queries at a time.

        Args:
            queries: texts; one without a word of the passages scores 0 everywhere.
            block_queries: queries at a time; 0: as many as keep a block under 64 MB.

        Yields:
            ``(queries of the block, passages)``.
        """
        step = block_queries or max(1, _BLOCK_SCORES // max(self.term_weights.shape[0], 1))
        transposed = sp.csc_array(self.term_weights.T)  # (words, passages)
        for start in range(0, len(queries), step):
            query_weights = self.weigh_terms(queries[start : start + step])
            yield (query_weights @ transposed).toarray().astype(np.float32)

    def build_pair_scorer(
        self, texts: Sequence[str]
    ) -> Callable[[TextRowIndices, TextRowIndices], PairScoreArray]:
        """Build a function that scores pairs of a text and a passage.

        Returns:
            (rows of ``texts``, rows of passages), each ``(n,)`` -> scores ``(n,)``.
        """
        text_weights = self.weigh_terms(texts)  # (texts, words)

        def score_pairs(rows: TextRowIndices, passages: TextRowIndices) -> PairScoreArray:
            products = text_weights[rows].multiply(self.term_weights[passages])  # (n, words)
            return np.asarray(products.sum(axis=1), np.float64).ravel()

        return score_pairs


def build_bm25_index(
    passages: Sequence[str], k1: float = BM25_K1, b: float = BM25_B
) -> LexicalIndex:
    """Build an Okapi BM25 index (Robertson and Zaragoza 2009, equation 3.15).

    A score is summed over the words of a query, each as often as it occurs there. A word of a
    passage weighs ``idf tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))`` with
    ``idf = log(1 + (N - n + 0.5) / (n + 0.5))``, which is never negative (as in Lucene). Words are
    runs of letters and digits in lower case, without stemming or stop words.

    Args:
        passages: texts.
        k1: saturation of the term frequency; 0 counts a word once.
        b: normalization by length, from 0 (none) to 1.

    Raises:
        InputError: no passage has a word.
    """
    vectorizer = CountVectorizer(token_pattern=_WORD_PATTERN)
    counts = sp.coo_array(_fit_vectorizer(vectorizer.fit_transform, passages), dtype=np.float64)
    lengths = np.asarray(counts.sum(axis=1)).ravel()  # (passages,)
    document_frequency = np.bincount(counts.col, minlength=counts.shape[1])  # (words,)
    idf = np.log1p((len(passages) - document_frequency + 0.5) / (document_frequency + 0.5))
    saturation = k1 * (1 - b + b * lengths / lengths.mean())  # (passages,)
    # One value for each word of a passage: weights stay sparse, since a word that is absent has 0
    values = idf[counts.col] * counts.data * (k1 + 1) / (counts.data + saturation[counts.row])
    weights = sp.csr_array((values, (counts.row, counts.col)), shape=counts.shape)
    return LexicalIndex(
        weights, lambda texts: sp.csr_array(vectorizer.transform(texts), dtype=np.float64)
    )


def build_tfidf_index(passages: Sequence[str]) -> LexicalIndex:
    """Build an index of TF-IDF vectors of length 1, whose scores are cosines between 0 and 1.

    The weight of a word is ``(1 + log tf) (1 + log((1 + N) / (1 + n)))``, the definition of
    scikit-learn with ``sublinear_tf`` and ``smooth_idf``.

    Args:
        passages: texts, from which document frequencies are counted.

    Raises:
        InputError: no passage has a word.
    """
    vectorizer = TfidfVectorizer(token_pattern=_WORD_PATTERN, sublinear_tf=True)
    weights = sp.csr_array(_fit_vectorizer(vectorizer.fit_transform, passages))
    return LexicalIndex(weights, lambda texts: sp.csr_array(vectorizer.transform(texts)))


LEXICAL_INDEX_BUILDERS: dict[str, Callable[[Sequence[str]], LexicalIndex]] = {
    "BM25": build_bm25_index,
    "TF-IDF": build_tfidf_index,
}
"""Name in tables -> function that builds the index of passages."""


def _fit_vectorizer(
    fit_transform: Callable[[Sequence[str]], sp.csr_matrix], passages: Sequence[str]
) -> sp.csr_matrix:
    try:
        return fit_transform(passages)
    except ValueError:  # an empty vocabulary is the only cause
        raise InputError(
            f"{len(passages)} passages without a single word",
            location="lexical baseline",
            hint="give passages that hold text",
        ) from None
