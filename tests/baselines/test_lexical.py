"""BM25 and TF-IDF: by hand, against scikit-learn, and as rankings and pair scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from clinpeft.baselines.lexical import LEXICAL_INDEX_BUILDERS, build_bm25_index, build_tfidf_index
from clinpeft.core.errors import InputError
from clinpeft.evaluation.embedding.search import select_top_k

PASSAGES = ["the heart the heart", "the lung", "a stent in the left artery of the heart"]


def all_scores(name: str, queries: list[str], block: int = 0) -> np.ndarray:
    return np.concatenate(
        list(LEXICAL_INDEX_BUILDERS[name](PASSAGES).iterate_score_blocks(queries, block))
    )


def test_bm25_is_the_hand_computed_one_with_0_9_and_0_4() -> None:
    # lengths 4, 2, 9 of mean 5; "heart" in 2 of 3 passages, "lung" in 1
    heart, lung = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    expected = [
        heart * 2 * 1.9 / (2 + 0.9 * (0.6 + 0.4 * 4 / 5)),
        lung * 1.9 / (1 + 0.9 * (0.6 + 0.4 * 2 / 5)),
        heart * 1.9 / (1 + 0.9 * (0.6 + 0.4 * 9 / 5)),
    ]
    assert all_scores("BM25", ["Heart, lung!"])[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert all_scores("BM25", ["heart heart"])[0].tolist() == pytest.approx(
        [2 * expected[0], 0, 2 * expected[2]], rel=1e-6
    )


def test_other_parameters_of_bm25_count() -> None:
    scores = next(build_bm25_index(PASSAGES, k1=2.0, b=0.0).iterate_score_blocks(["heart"]))[0]
    assert scores[0] == pytest.approx(math.log(1 + 1.5 / 2.5) * 2 * 3 / (2 + 2), rel=1e-6)


def test_tfidf_is_the_cosine_of_scikit_learns_vectors() -> None:
    weighting = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    passages = weighting.fit_transform(PASSAGES)
    np.testing.assert_allclose(
        all_scores("TF-IDF", PASSAGES), (passages @ passages.T).toarray(), atol=1e-6
    )
    np.testing.assert_allclose(np.diag(all_scores("TF-IDF", PASSAGES)), 1, atol=1e-6)


@pytest.mark.parametrize("name", LEXICAL_INDEX_BUILDERS)
def test_pair_scores_are_those_of_the_ranking(name: str) -> None:
    queries = ["left artery", "the lung", "kidney stones"]
    scores = all_scores(name, queries)
    rows, passages = np.array([0, 0, 1, 2]), np.array([2, 0, 1, 1])
    np.testing.assert_allclose(
        LEXICAL_INDEX_BUILDERS[name](PASSAGES).build_pair_scorer(queries)(rows, passages),
        scores[rows, passages],
        atol=1e-6,
    )
    assert (scores[2] == 0).all()


@pytest.mark.parametrize("name", LEXICAL_INDEX_BUILDERS)
def test_blocks_do_not_change_the_ranking(name: str) -> None:
    queries = ["the left artery", "heart", "lung"]
    np.testing.assert_array_equal(all_scores(name, queries), all_scores(name, queries, block=2))
    rows, _ = select_top_k(
        LEXICAL_INDEX_BUILDERS[name](PASSAGES).iterate_score_blocks(queries), ["a", "b", "c"], 1
    )
    assert rows.ravel().tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", LEXICAL_INDEX_BUILDERS)
def test_passages_without_a_word_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="2 passages"):
        LEXICAL_INDEX_BUILDERS[name](["", "!"])


def test_an_empty_passage_among_others_scores_0() -> None:
    for build_index in (build_bm25_index, build_tfidf_index):
        assert next(build_index(["", "heart"]).iterate_score_blocks(["heart"]))[0, 0] == 0
