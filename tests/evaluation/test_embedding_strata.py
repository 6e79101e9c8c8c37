"""Negatives in strata: what may never be drawn, what each stratum holds, and that draws are uniform
and repeatable."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import Attrition
from clinpeft.evaluation.embedding.pair_metrics import evaluate_separation
from clinpeft.evaluation.embedding.strata import (
    NEGATIVE_STRATA,
    AnchorPairs,
    draw_negatives,
    score_anchor_pairs,
    shuffle_partners,
)
from clinpeft.evaluation.embedding.vectors import build_cosine_scorer, normalize_vectors


def passages(*rows: tuple[str, str | None, str, str]) -> pa.Table:
    names = ("book", "chapter", "section", "text")
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)})


def library(seed: int = 0, count: int = 400) -> pa.Table:
    """Two books of five chapters of four sections, some of which lie in another; one text in twenty
    stands twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(count):
        book, chapter, section = rng.integers([2, 5, 4])
        path = f"c{chapter}/s{section}" + ("/deep" if rng.random() < 0.3 else "")
        rows.append((f"book {book}", f"chapter {chapter}", path, f"Text {at % 380}"))
    return passages(*rows)


def drawn(
    found: pa.Table,
    pairs: AnchorPairs,
    stratum: str,
    seed: int = 0,
    ranking: np.ndarray | None = None,
) -> list[int]:
    rows = draw_negatives(
        found, pairs, stratum, np.random.default_rng(seed), Attrition("negatives"), ranking
    )
    return [int(row) for row in rows]


@pytest.mark.parametrize("stratum", list(NEGATIVE_STRATA))
def test_a_negative_is_never_the_passage_the_text_or_the_section_of_its_positive(
    stratum: str,
) -> None:
    found = library()
    rng = np.random.default_rng(1)
    pairs = AnchorPairs(
        [str(at) for at in range(400)],
        np.arange(400),
        own_passages=rng.permutation(400),
        anchors=[f"term {at % 300}" for at in range(400)],
    )
    ranking = np.stack([rng.permutation(400)[:50] for _ in range(400)])
    rows = found.to_pylist()
    chosen = drawn(found, pairs, stratum, ranking=ranking)
    assert sum(row >= 0 for row in chosen) > 350
    assert pairs.own_passages is not None
    for at, row in enumerate(chosen):
        if row < 0:
            continue
        positive, negative = rows[at], rows[row]
        assert row not in (at, pairs.own_passages[at])
        assert negative["text"] not in (positive["text"], rows[pairs.own_passages[at]]["text"])
        assert row not in (at % 300, at % 300 + 300)  # positives of the same anchor
        if negative["book"] == positive["book"]:
            sections = sorted([f"{negative['section']}/", f"{positive['section']}/"])
            assert not sections[1].startswith(sections[0])
        assert stratum not in ("same book", "same chapter") or negative["book"] == positive["book"]
        assert stratum != "same book" or negative["chapter"] != positive["chapter"]
        assert stratum != "same chapter" or negative["chapter"] == positive["chapter"]


def test_the_only_passage_that_may_be_drawn_is_found_and_where_there_is_none_it_is_counted() -> (
    None
):
    rows = [
        ("b", "1", "1/a", "the heart"),
        *[("b", "1", "1/a", f"of the same section {at}") for at in range(50)],
        ("b", "1", "1/b", "the lung"),
    ]
    found = passages(*rows, ("c", None, "x", "elsewhere"))
    attrition = Attrition("negatives")
    pairs = AnchorPairs(["p", "q"], np.array([0, 52]))
    assert draw_negatives(
        found, pairs, "same chapter", np.random.default_rng(0), attrition
    ).tolist() == [51, -1]
    assert (attrition.entered_rows, dict(attrition.dropped_rows)) == (
        2,
        {"no negative from same chapter": 1},
    )


def test_a_section_that_holds_the_positive_is_no_negative_but_its_neighbor_is() -> None:
    found = passages(
        ("b", "1", "1/a/x", "positive"),
        ("b", "1", "1/a", "around"),
        ("b", "1", "1/a/x/y", "inside"),
        ("b", "1", "1/ab", "other"),
    )
    assert {
        drawn(found, AnchorPairs(["p"], np.array([0])), "same chapter", seed)[0]
        for seed in range(20)
    } == {3}


def test_the_text_of_the_anchor_is_no_negative_whatever_its_case() -> None:
    found = passages(
        ("b", "1", "1", "positive"), ("b", "2", "2", "The  Heart"), ("b", "3", "3", "the lung")
    )
    pairs = AnchorPairs(["p"], np.array([0]), anchors=["the heart"])
    assert {drawn(found, pairs, "random", seed)[0] for seed in range(20)} == {2}


def test_another_positive_of_the_same_anchor_is_no_negative() -> None:
    found = passages(*[("b", str(at), str(at), f"text {at}") for at in range(3)])
    pairs = AnchorPairs(["p", "q"], np.array([0, 1]), anchors=["What is it?", "what is it?"])
    assert drawn(found, pairs, "random") == [2, 2]


def test_draws_are_uniform_over_what_may_be_drawn_and_the_same_for_the_same_seed() -> None:
    found = passages(*[("b", "1", str(min(at, 5)), f"text {at}") for at in range(10)])
    pairs = AnchorPairs([str(at) for at in range(6000)], np.full(6000, 9))
    chosen = drawn(found, pairs, "random")
    counts = np.bincount(chosen, minlength=10)
    assert counts[5:].sum() == 0
    assert np.abs(counts[:5] / 6000 - 0.2).max() < 0.03
    assert chosen == drawn(found, pairs, "random") != drawn(found, pairs, "random", seed=1)


def test_mined_takes_the_first_of_the_ranking_that_may_be_one() -> None:
    found = passages(
        ("b", "1", "1", "positive"),
        ("b", "1", "1", "neighbour"),
        ("b", "2", "2", "hard"),
        ("b", "3", "3", "easy"),
    )
    pairs = AnchorPairs(["p", "q"], np.array([0, 0]))
    assert drawn(found, pairs, "mined", ranking=np.array([[0, 1, 2, 3], [1, -1, -1, -1]])) == [
        2,
        -1,
    ]
    with pytest.raises(UsageError, match=r"mined.*\n.*where: strata"):
        drawn(found, pairs, "mined")


def test_an_unknown_stratum_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="random, same book, same chapter, mined"):
        drawn(library(), AnchorPairs(["p"], np.array([0])), "nearby")


def test_scores_become_a_table_without_the_negatives_that_are_not_there() -> None:
    pairs = AnchorPairs(["p", "q"], np.array([1, 0]), clusters=["one", "two"])
    found = score_anchor_pairs(
        lambda rows, at: rows + at / 10, pairs, {"random": np.array([-1, 1])}
    )
    assert found["pair_id"].to_pylist() == ["p", "q", "q"]
    assert found["cluster"].to_pylist() == ["one", "two", "two"]
    assert found["stratum"].to_pylist() == ["related", "related", "random"]
    assert found["related"].to_pylist() == [True, True, False]
    assert found["score"].to_pylist() == pytest.approx([0.1, 1.0, 1.1])


def test_shuffled_pairs_have_an_auroc_near_a_half_and_identical_texts_one_of_1() -> None:
    rng = np.random.default_rng(5)
    count = 2000
    ids = [str(at) for at in range(count)]
    texts = normalize_vectors(rng.normal(size=(count, 16)), ids, "x")
    random = {"random": shuffle_partners(count, rng)}
    true, control = (
        AnchorPairs(ids, np.arange(count)),
        AnchorPairs(ids, shuffle_partners(count, rng)),
    )
    assert (control.positives != np.arange(count)).all() and len(set(control.positives)) == count
    score = build_cosine_scorer(texts, texts)

    def auroc(pairs: AnchorPairs) -> dict[str, float]:
        found = evaluate_separation(
            score_anchor_pairs(score, pairs, random),
            "x",
            resamples=200,
            level=0.95,
            rng=rng,
            metric_names=["auroc"],
        )
        return dict(found.to_pylist()[0])

    assert auroc(true)["value"] == 1.0
    by_chance = auroc(control)
    assert by_chance["value"] == pytest.approx(0.5, abs=0.03)
    assert by_chance["low"] < 0.5 < by_chance["high"]
