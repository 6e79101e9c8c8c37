"""Separation of related and unrelated pairs: by hand, against scikit-learn, and under maps of the
scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import PAIR_SCORE_SCHEMA, build_arrow_table
from clinpeft.evaluation.embedding.pair_metrics import (
    SEPARATION_METRICS,
    compare_separation,
    compute_bootstrap_p,
    evaluate_separation,
    evaluate_study_protocol,
)

Values = dict[str, dict[str, float | None]]


def pairs(
    related: list[float], clusters: Sequence[str | None] | None = None, **unrelated: list[float]
) -> pa.Table:
    """One related and, in each stratum, one unrelated pair for each anchor."""
    sets = {
        "related": related,
        **{name.replace("_", " "): scores for name, scores in unrelated.items()},
    }
    names = [name for name, scores in sets.items() for _ in scores]
    columns = {
        "pair_id": [f"p{at}" for scores in sets.values() for at in range(len(scores))],
        "cluster": [
            cluster for scores in sets.values() for cluster in (clusters or [None] * len(scores))
        ],
        "stratum": names,
        "related": [name == "related" for name in names],
        "score": [score for scores in sets.values() for score in scores],
    }
    return build_arrow_table(PAIR_SCORE_SCHEMA, columns)


def values(found: pa.Table, column: str = "value") -> Values:
    given: Values = {}
    for row in found.to_pylist():
        given.setdefault(row["group"], {})[row["name"]] = row[column]
    return given


def measured(scores: pa.Table, seed: int = 0, resamples: int = 200) -> pa.Table:
    return evaluate_separation(
        scores, "base", resamples=resamples, level=0.95, rng=np.random.default_rng(seed)
    )


def invented(n: int = 200, seed: int = 0, gap: float = 0.3) -> pa.Table:
    rng = np.random.default_rng(seed)
    strata = {
        "random": rng.normal(0.2, 0.1, n).tolist(),
        "same_chapter": rng.normal(0.4, 0.1, n).tolist(),
    }
    return pairs(
        rng.normal(0.2 + gap, 0.15, n).tolist(), [f"chapter {at % 40}" for at in range(n)], **strata
    )


def test_every_number_is_the_hand_computed_one() -> None:
    # related .9 and .5: mean .7, variance .08; random .1 .2 .6: mean .3, variance .07
    found = values(measured(pairs([0.9, 0.5], random=[0.1, 0.2, 0.6])))["base · random"]
    expected = {
        "mean_related": 0.7,
        "mean_unrelated": 0.3,
        "separation": 0.4,
        "cohens_d": 0.4 / math.sqrt((0.08 + 2 * 0.07) / 3),
        "d_prime": 0.4 / math.sqrt((0.08 + 0.07) / 2),
        "separation_z": 0.4 / math.sqrt(0.07),
        "auroc": 5 / 6,
        "average_precision": (1 + 2 / 3) / 2,
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert list(expected) == list(SEPARATION_METRICS)


def test_areas_are_those_of_scikit_learn_in_each_stratum() -> None:
    scores = invented()
    found = values(measured(scores))
    rows = scores.to_pylist()
    for stratum in ("random", "same chapter"):
        kept = [
            (row["related"], row["score"])
            for row in rows
            if row["related"] or row["stratum"] == stratum
        ]
        truth, given = zip(*kept, strict=True)
        assert found[f"base · {stratum}"]["auroc"] == pytest.approx(
            roc_auc_score(truth, given), abs=1e-12
        )
        assert found[f"base · {stratum}"]["average_precision"] == pytest.approx(
            average_precision_score(truth, given), abs=1e-12
        )


def test_squeezing_all_scores_moves_the_separation_and_nothing_that_ranks_or_is_scaled() -> None:
    scores = invented()
    at = scores.schema.get_field_index("score")
    squeezed = scores.set_column(
        at, PAIR_SCORE_SCHEMA.field(at), pa.array(0.7 + 0.3 * scores["score"].to_numpy())
    )
    before, after = (
        values(measured(scores))["base · same chapter"],
        values(measured(squeezed))["base · same chapter"],
    )
    assert after["separation"] == pytest.approx(0.3 * before["separation"])  # type: ignore[operator]
    for name in ("cohens_d", "d_prime", "separation_z", "auroc", "average_precision"):
        assert after[name] == pytest.approx(before[name], abs=1e-9)


def test_pairs_of_one_chapter_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    chapters = [f"{at % 30}" for at in range(600)]
    lift = rng.normal(0, 0.3, 30)
    scores = [0.5 + lift[at % 30] for at in range(600)]
    together, alone = (
        measured(pairs(scores, clusters, random=[0.2] * 600)) for clusters in (chapters, None)
    )
    low, high = (
        values(found, end)["base · random"]["separation"]
        for found in (together,)
        for end in ("low", "high")
    )
    narrow = [values(alone, end)["base · random"]["separation"] for end in ("low", "high")]
    assert (high - low) > 3 * (narrow[1] - narrow[0])  # type: ignore[operator]
    assert set(together["n_subjects"].to_pylist()) == {30}
    assert set(alone["n_subjects"].to_pylist()) == {1200}


def test_without_random_pairs_there_is_no_z_and_one_cluster_gives_no_interval() -> None:
    found = measured(pairs([0.9, 0.5], ["a", "a"], mined=[0.1, 0.2])).to_pylist()
    z = next(row for row in found if row["name"] == "separation_z")
    assert z["value"] is None and z["definition"].endswith("unknown: too little to measure it on")
    assert {row["low"] for row in found} == {None}
    assert "no interval: 1 clusters" in found[0]["definition"]


def test_few_clusters_are_said_to_be_few() -> None:
    few = measured(pairs([0.9, 0.5, 0.7], ["a", "b", "c"], mined=[0.1, 0.2, 0.3])).to_pylist()[0]
    assert "over 3 clusters, which are few: the interval is too narrow" in few["definition"]


def test_nan_scores_are_refused_with_their_number_and_the_first_pair() -> None:
    with pytest.raises(InputError, match=r"2 scores .*NaN.*'p1'"):
        measured(pairs([0.5, math.nan], random=[math.nan, 0.1]))


def test_one_kind_of_pair_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 related .* 0 unrelated"):
        measured(pairs([0.5, 0.6]))


def test_the_difference_is_paired_and_narrower_than_either() -> None:
    rng = np.random.default_rng(3)
    scores = invented(400, seed=1)
    at = scores.schema.get_field_index("score")
    better = (
        scores["score"].to_numpy()
        + 0.05 * np.array(scores["related"].to_pylist())
        + rng.normal(0, 0.01, len(scores))
    )
    adapted = scores.set_column(at, PAIR_SCORE_SCHEMA.field(at), pa.array(better))
    shuffled = adapted.take(rng.permutation(len(adapted)))
    found = compare_separation(
        scores, shuffled, ("zero-shot", "adapted"), resamples=500, level=0.95, rng=rng
    )
    row = {
        row["name"]: row
        for row in found.to_pylist()
        if row["group"] == "adapted - zero-shot · random"
    }
    single = (
        values(measured(scores), "high")["base · random"]["auroc"],
        values(measured(scores), "low")["base · random"]["auroc"],
    )
    expected = {
        end: values(measured(one))["base · random"]["auroc"]
        for end, one in (("before", scores), ("after", adapted))
    }
    auroc = row["auroc_difference"]
    assert auroc["value"] == pytest.approx(expected["after"] - expected["before"], abs=1e-12)  # type: ignore[operator]
    assert auroc["low"] > 0
    assert auroc["high"] - auroc["low"] < (single[0] - single[1]) / 2  # type: ignore[operator]
    assert row["auroc_difference_p"]["value"] == pytest.approx(2 / 501)
    assert row["separation_difference"]["value"] == pytest.approx(0.05, abs=0.005)


def test_a_model_does_not_differ_from_itself() -> None:
    scores = invented()
    found = compare_separation(
        scores, scores, ("a", "b"), resamples=100, level=0.95, rng=np.random.default_rng(0)
    ).to_pylist()
    assert {row["value"] for row in found if row["name"].endswith("_difference")} == {0.0}
    assert {row["value"] for row in found if row["name"].endswith("_p")} == {1.0}


def test_other_pairs_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"2 and 4 pairs"):
        one, other = pairs([0.5], random=[0.1]), pairs([0.5, 0.6], random=[0.1, 0.2])
        compare_separation(
            one, other, ("a", "b"), resamples=100, level=0.95, rng=np.random.default_rng(0)
        )


def test_the_bootstrap_p_is_two_sided_and_never_0() -> None:
    assert compute_bootstrap_p(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 4)
    assert compute_bootstrap_p(np.array([-1.0] * 2 + [1.0] * 97)) == pytest.approx(2 * 3 / 100)
    assert compute_bootstrap_p(np.array([-1.0, 1.0])) == 1.0
    assert math.isnan(compute_bootstrap_p(np.array([math.nan])))


def test_the_studys_protocol_gives_its_equations_and_says_its_threshold() -> None:
    found = evaluate_study_protocol(
        [0.8, 0.6],
        [0.2, 0.4],
        [0.7, 0.9],
        "adapted",
        resamples=100,
        level=0.95,
        rng=np.random.default_rng(0),
    )
    given = values(found)
    assert given["adapted · different"]["separation"] == pytest.approx(0.4)
    assert given["adapted · different"]["cohens_d"] == pytest.approx(0.4 / math.sqrt(0.02))
    assert given["adapted · negation"]["mean_unrelated"] == pytest.approx(0.8)
    assert given["adapted · negation"]["auroc"] == pytest.approx(1 / 4)
    assert all(
        "0.3 clinically useful" in row["definition"]
        for row in found.to_pylist()
        if row["name"] == "separation"
    )
    assert "separation_z" not in given["adapted · different"]
    without = evaluate_study_protocol(
        [0.8, 0.6],
        [0.2, 0.4],
        [],
        "adapted",
        resamples=100,
        level=0.95,
        rng=np.random.default_rng(0),
    )
    assert set(values(without)) == {"adapted · different"}
