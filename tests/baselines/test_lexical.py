"""BM25 and TF-IDF: by hand, against scikit-learn, and as what they are for: rankings and pair scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from clinpeft.baselines.lexical import LEXICAL, bm25, tfidf
from clinpeft.core.errors import InputError
from clinpeft.evaluation.embedding.search import best

PASSAGES = ["the heart the heart", "the lung", "a stent in the left artery of the heart"]


def all_scores(name: str, queries: list[str], block: int = 0) -> np.ndarray:
    return np.concatenate(list(LEXICAL[name](PASSAGES).scores(queries, block)))


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
    found = next(bm25(PASSAGES, k1=2.0, b=0.0).scores(["heart"]))[0]
    assert found[0] == pytest.approx(math.log(1 + 1.5 / 2.5) * 2 * 3 / (2 + 2), rel=1e-6)


def test_tfidf_is_the_cosine_of_scikit_learns_vectors() -> None:
    weighting = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    passages = weighting.fit_transform(PASSAGES)
    np.testing.assert_allclose(
        all_scores("TF-IDF", PASSAGES), (passages @ passages.T).toarray(), atol=1e-6
    )
    np.testing.assert_allclose(np.diag(all_scores("TF-IDF", PASSAGES)), 1, atol=1e-6)


@pytest.mark.parametrize("name", LEXICAL)
def test_pair_scores_are_those_of_the_ranking(name: str) -> None:
    queries = ["left artery", "the lung", "kidney stones"]
    scores = all_scores(name, queries)
    rows, passages = np.array([0, 0, 1, 2]), np.array([2, 0, 1, 1])
    np.testing.assert_allclose(
        LEXICAL[name](PASSAGES).score(queries)(rows, passages), scores[rows, passages], atol=1e-6
    )
    assert (scores[2] == 0).all()


@pytest.mark.parametrize("name", LEXICAL)
def test_blocks_do_not_change_the_ranking(name: str) -> None:
    queries = ["the left artery", "heart", "lung"]
    np.testing.assert_array_equal(all_scores(name, queries), all_scores(name, queries, block=2))
    rows, _ = best(LEXICAL[name](PASSAGES).scores(queries), ["a", "b", "c"], 1)
    assert rows.ravel().tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", LEXICAL)
def test_passages_without_a_word_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="2 passages without a single word"):
        LEXICAL[name](["", "!"])


def test_an_empty_passage_among_others_scores_0() -> None:
    for fitted in (bm25, tfidf):
        assert next(fitted(["", "heart"]).scores(["heart"]))[0, 0] == 0
