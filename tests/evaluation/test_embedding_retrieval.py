"""Retrieval: by hand, against an independent and naive scorer, and against trec_eval itself where
it is installed."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import (
    RELEVANCE_JUDGMENT_SCHEMA,
    RETRIEVED_PASSAGE_SCHEMA,
    build_arrow_table,
)
from clinpeft.evaluation.embedding.ranking_metrics import (
    RETRIEVAL_METRICS,
    compute_query_metrics,
    evaluate_retrieval,
)
from clinpeft.evaluation.embedding.search import rank_passages, select_top_k, to_retrieval_table
from clinpeft.evaluation.embedding.vectors import iterate_similarities, normalize_vectors

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]


def run_table(run: Run, clusters: dict[str, str] | None = None) -> pa.Table:
    rows = [
        {
            "query_id": query,
            "cluster": (clusters or {}).get(query),
            "passage_id": passage,
            "rank": 1,
            "score": score,
        }
        for query, found in run.items()
        for passage, score in found.items()
    ]
    return pa.Table.from_pylist(rows, schema=RETRIEVED_PASSAGE_SCHEMA)


def qrels_table(qrels: Qrels) -> pa.Table:
    rows = [
        {"query_id": query, "passage_id": passage, "grade": grade}
        for query, judged in qrels.items()
        for passage, grade in judged.items()
    ]
    return pa.Table.from_pylist(rows, schema=RELEVANCE_JUDGMENT_SCHEMA)


def of(run: Run, qrels: Qrels, relevant_from: int = 1) -> dict[str, dict[str, float]]:
    return {
        row.pop("query_id"): row
        for row in compute_query_metrics(
            run_table(run), qrels_table(qrels), relevant_from
        ).to_pylist()
    }


def invented(seed: int, queries: int = 30, passages: int = 150) -> tuple[Run, Qrels]:
    """Few distinct scores, so that most rows tie; grades 0 to 3; ids whose order as text is not
    their order as numbers, some not ASCII."""
    rng = np.random.default_rng(seed)
    ids = [f"p{at}" if at % 7 else f"é{at}" for at in range(passages)]
    run, qrels = {}, {}
    for query in range(queries):
        found = rng.choice(passages, rng.integers(1, passages), replace=False)
        run[f"q{query}"] = {ids[at]: float(np.float32(rng.integers(0, 5) / 8)) for at in found}
        judged = rng.choice(passages, 20, replace=False)
        qrels[f"q{query}"] = {ids[at]: int(rng.integers(0, 4)) for at in judged} | {
            "never found": 1
        }
    return run, qrels


def naive(found: dict[str, float], judged: dict[str, int], least: int) -> dict[str, float]:
    """The definitions written out with sorted lists and loops."""
    order = sorted(found, key=lambda passage: (found[passage], passage.encode()), reverse=True)
    relevant = {passage for passage, grade in judged.items() if grade >= least}
    hits = [rank for rank, passage in enumerate(order, 1) if passage in relevant]

    def dcg(grades: list[int]) -> float:
        return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(grades[:10], 1))

    return {
        "ndcg_at_10": dcg([judged.get(passage, 0) for passage in order])
        / dcg(sorted(judged.values(), reverse=True)),
        "mrr_at_10": next((1 / rank for rank in hits if rank <= 10), 0.0),
        **{f"recall_at_{k}": sum(rank <= k for rank in hits) / len(relevant) for k in (1, 10, 100)},
        "map_at_100": sum(so_far / rank for so_far, rank in enumerate(hits, 1) if rank <= 100)
        / len(relevant),
    }


def test_ndcg_is_the_hand_computed_one() -> None:
    # found: grade 2, unjudged, grade 3; judged 3, 2, 1: (2 + 3 / log2 4) / (3 + 2 / log2 3 + 1 /
    # log2 4)
    scored = of({"q": {"a": 0.9, "b": 0.8, "c": 0.7}}, {"q": {"a": 2, "c": 3, "d": 1}})["q"]
    assert scored["ndcg_at_10"] == pytest.approx(
        (2 + 3 / 2) / (3 + 2 / math.log2(3) + 1 / 2), abs=1e-15
    )
    assert [scored["mrr_at_10"], scored["recall_at_1"], scored["recall_at_10"]] == pytest.approx(
        [1, 1 / 3, 2 / 3]
    )
    assert scored["map_at_100"] == pytest.approx((1 / 1 + 2 / 3) / 3)


def test_of_equal_scores_the_larger_id_is_first_whatever_the_order_of_rows_and_the_rank_say() -> (
    None
):
    for order in (("a", "b", "c"), ("c", "a", "b")):
        scored = of({"q": dict.fromkeys(order, 0.5)}, {"q": {"b": 1}})["q"]
        assert scored["mrr_at_10"] == 1 / 2
        assert scored["ndcg_at_10"] == pytest.approx(1 / math.log2(3))


def test_the_eleventh_place_is_too_late_for_mrr_and_ndcg() -> None:
    found = {f"p{at:02d}": 1 - at / 100 for at in range(12)}
    scored = of({"q": found}, {"q": {"p10": 1}})["q"]
    assert (
        scored["mrr_at_10"],
        scored["ndcg_at_10"],
        scored["recall_at_10"],
        scored["recall_at_100"],
    ) == (0, 0, 0, 1)
    assert of({"q": found}, {"q": {"p09": 1}})["q"]["mrr_at_10"] == pytest.approx(1 / 10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("least", [1, 2])
def test_every_metric_is_that_of_the_naive_scorer_ties_included(seed: int, least: int) -> None:
    run, qrels = invented(seed)
    scored = of(run, qrels, least)
    expected = {
        query: naive(run[query], qrels[query], least)
        for query in run
        if any(grade >= least for grade in qrels[query].values())
    }
    assert set(scored) == set(expected)
    for query, values in expected.items():
        assert {name: scored[query][name] for name in RETRIEVAL_METRICS} == pytest.approx(
            values, abs=1e-12
        )


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_that_of_trec_eval_ties_included(seed: int) -> None:
    trec_eval = pytest.importorskip("pytrec_eval")
    run, qrels = invented(seed)
    measured = trec_eval.RelevanceEvaluator(
        qrels, {"ndcg_cut.10", "recall.1,10,100", "map_cut.100"}
    ).evaluate(run)
    first_ten = {
        query: dict(
            sorted(found.items(), key=lambda item: (item[1], item[0].encode()), reverse=True)[:10]
        )
        for query, found in run.items()
    }
    reciprocal = trec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(first_ten)
    theirs = {
        "ndcg_at_10": "ndcg_cut_10",
        **{f"recall_at_{k}": f"recall_{k}" for k in (1, 10, 100)},
        "map_at_100": "map_cut_100",
    }
    for query, values in of(run, qrels).items():
        assert {name: values[name] for name in theirs} == pytest.approx(
            {name: measured[query][other] for name, other in theirs.items()}, abs=1e-12
        )
        assert values["mrr_at_10"] == pytest.approx(reciprocal[query]["recip_rank"], abs=1e-12)


def test_a_query_without_a_relevant_passage_is_left_out_and_one_without_results_has_0() -> None:
    run = {"good": {"a": 0.9}, "bad": {"a": 0.9}, "not judged": {"a": 0.9}}
    qrels = {"good": {"a": 1}, "bad": {"a": 0}, "silent": {"a": 1}}
    scored = of(run, qrels)
    assert {query: values["ndcg_at_10"] for query, values in scored.items()} == {
        "good": 1,
        "silent": 0,
    }
    rows = evaluate_retrieval(
        run_table(run),
        qrels_table(qrels),
        "base",
        resamples=100,
        level=0.95,
        rng=np.random.default_rng(0),
    ).to_pylist()
    row = next(row for row in rows if row["name"] == "ndcg_at_10")
    assert (row["value"], row["n"], row["n_events"], row["group"], row["split"]) == (
        0.5,
        2,
        2,
        "base",
        "held_out",
    )
    assert "2 queries without a relevant passage left out" in row["definition"]


def test_the_interval_draws_clusters_of_queries() -> None:
    run = {f"q{at}": {"a": 0.9, "b": 0.5} for at in range(40)}
    qrels = {f"q{at}": {"a" if at < 20 else "b": 1} for at in range(40)}

    def row(clusters: dict[str, str]) -> dict[str, float]:
        found = evaluate_retrieval(
            run_table(run, clusters),
            qrels_table(qrels),
            "base",
            resamples=500,
            level=0.95,
            rng=np.random.default_rng(0),
        )
        return next(row for row in found.to_pylist() if row["name"] == "recall_at_1")

    alone, in_tens = row({}), row({f"q{at}": str(at // 10) for at in range(40)})
    assert (alone["n_subjects"], in_tens["n_subjects"]) == (40, 4)
    assert in_tens["high"] - in_tens["low"] > 2 * (alone["high"] - alone["low"])
    assert row(dict.fromkeys(run, "one"))["low"] is None


def test_scores_that_are_nan_are_refused_with_their_number_and_the_first_query() -> None:
    with pytest.raises(InputError, match=r"1 scores .*NaN.*'q2'"):
        of({"q1": {"a": 0.1}, "q2": {"a": math.nan}}, {"q1": {"a": 1}})


def test_a_passage_twice_is_refused() -> None:
    twice = pa.concat_tables([run_table({"q": {"a": 0.1}}), run_table({"q": {"a": 0.2}})])
    with pytest.raises(InputError, match=r"1 passages .*\n.*where: retrieved"):
        compute_query_metrics(twice, qrels_table({"q": {"a": 1}}))
    with pytest.raises(InputError, match=r"1 passages .*\n.*where: judged"):
        compute_query_metrics(
            run_table({"q": {"a": 0.1}}), pa.concat_tables([qrels_table({"q": {"a": 1}})] * 2)
        )


def test_the_best_are_exact_whatever_the_block_and_ties_are_cut_by_id() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.integers(0, 6, (25, 40)) / 4).astype(np.float32)
    ids = [f"{at}" for at in rng.permutation(40)]
    expected = [
        sorted(range(40), key=lambda at: (row[at], ids[at]), reverse=True)[:7] for row in scores
    ]
    for step in (1, 4, 25):
        found, values = select_top_k(
            (scores[start : start + step] for start in range(0, 25, step)), ids, 7
        )
        assert found.tolist() == expected
        np.testing.assert_array_equal(values, np.take_along_axis(scores, found, axis=1))


def test_search_gives_the_largest_cosines_and_never_the_query_itself() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(30, 8)).astype(np.float32)
    ids = [f"p{at}" for at in range(30)]
    cosines = normalize_vectors(vectors, ids, "x") @ normalize_vectors(vectors, ids, "x").T
    found, scores = rank_passages(
        vectors, 3 * vectors, 5, query_ids=ids, passage_ids=ids, block_queries=7
    )
    np.testing.assert_array_equal(found, np.argsort(-cosines, axis=1)[:, :5])
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)
    np.testing.assert_array_equal(found[:, 0], np.arange(30))
    others, _ = rank_passages(
        vectors, vectors, 30, query_ids=ids, passage_ids=ids, own_passages=np.arange(30)
    )
    np.testing.assert_array_equal(others[:, :4], found[:, 1:])
    assert (others[:, -1] == -1).all()
    assert len(to_retrieval_table(others, scores[:, :1].repeat(30, axis=1), ids, ids)) == 30 * 29


def test_equal_vectors_tie_exactly_and_are_ordered_by_id() -> None:
    rng = np.random.default_rng(2)
    passages = rng.normal(size=(501, 33)).astype(np.float32)
    passages[[3, 250, 500]] = passages[100]
    ids = [f"{at:03d}" for at in range(501)]
    found, scores = rank_passages(passages[100:101], passages, 5, query_ids=["q"], passage_ids=ids)
    assert found[0, :4].tolist() == [500, 250, 100, 3]
    assert len(set(scores[0, :4])) == 1
    blocks = list(
        iterate_similarities(
            normalize_vectors(passages[:2], ids[:2], "x"), normalize_vectors(passages, ids, "x"), 1
        )
    )
    assert [block.shape for block in blocks] == [(1, 501)] * 2


def test_what_was_found_becomes_a_table_with_ranks_from_1() -> None:
    found = to_retrieval_table(
        np.array([[1, 0]]), np.array([[0.5, 0.25]], np.float32), ["q"], ["a", "b"], ["heart"]
    )
    expected = {
        "query_id": ["q", "q"],
        "cluster": ["heart"] * 2,
        "passage_id": ["b", "a"],
        "rank": [1, 2],
        "score": [0.5, 0.25],
    }
    assert found.equals(build_arrow_table(RETRIEVED_PASSAGE_SCHEMA, expected))


def test_vectors_that_are_none_are_refused_with_their_number_and_the_first_id() -> None:
    vectors = np.ones((4, 3), np.float32)
    vectors[[1, 3], 0] = np.nan
    with pytest.raises(InputError, match=r"2 vectors .*NaN.*'b'"):
        rank_passages(
            np.ones((1, 3), np.float32), vectors, 2, query_ids=["q"], passage_ids=list("abcd")
        )
    with pytest.raises(InputError, match=r"1 vectors of length 0.*'q'"):
        rank_passages(
            np.zeros((1, 3), np.float32),
            np.ones((4, 3), np.float32),
            2,
            query_ids=["q"],
            passage_ids=list("abcd"),
        )
    with pytest.raises(InputError, match="3 dimensions"):
        rank_passages(
            np.ones((1, 3), np.float32),
            np.ones((1, 4), np.float32),
            2,
            query_ids=["q"],
            passage_ids=["a"],
        )
    with pytest.raises(InputError, match=r"shape \(n, d\)"):
        rank_passages(
            np.ones(3, np.float32),
            np.ones((1, 3), np.float32),
            2,
            query_ids=["q"],
            passage_ids=["a"],
        )
    with pytest.raises(InputError, match=r"1 passage ids .*\n.*where: passages"):
        rank_passages(
            np.ones((1, 3), np.float32),
            np.ones((2, 3), np.float32),
            2,
            query_ids=["q"],
            passage_ids=["a", "a"],
        )


def test_nan_scores_of_a_scorer_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 queries .*NaN"):
        select_top_k([np.array([[0.1, np.nan]], np.float32)], ["a", "b"], 1)
