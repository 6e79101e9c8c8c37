"""Attacks as numbers, against results worked out by hand; what may leave and what gives it away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from clinpeft import evaluation
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.evaluation import AttackScoring
from clinpeft.evaluation.privacy_attacks import compute_true_positive_rates

ASKED = AttackScoring(resamples=200)


def test_membership_is_the_auroc_and_the_rates_of_the_roc_curve() -> None:
    rng = np.random.default_rng(0)
    member = rng.random(3000) < 0.6
    scores = np.round(rng.normal(size=3000) + member, 2)  # with ties
    rows = evaluation.score_membership_inference(scores, member, "gain", ASKED).to_pylist()
    false, true, _ = roc_curve(member, scores, drop_intermediate=False)
    assert [row["name"] for row in rows] == [
        "membership_auroc",
        "membership_tpr_at_fpr_0.01",
        "membership_tpr_at_fpr_0.001",
    ]
    assert rows[0]["value"] == pytest.approx(roc_auc_score(member, scores))
    assert [row["value"] for row in rows[1:]] == pytest.approx(
        [true[false <= rate].max() for rate in (0.01, 0.001)]
    )
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert (rows[0]["n"], rows[0]["n_events"]) == (3000, int(member.sum()))


def test_an_attack_that_knows_everything_and_one_that_knows_nothing() -> None:
    member = np.arange(40) < 25
    knows, blind = member.astype(float), np.zeros(40)
    assert [
        row["value"]
        for row in evaluation.score_membership_inference(knows, member, "x", ASKED).to_pylist()
    ] == [1.0, 1.0, 1.0]
    assert [
        row["value"]
        for row in evaluation.score_membership_inference(blind, member, "x", ASKED).to_pylist()
    ] == [0.5, 0.0, 0.0]


def test_with_few_non_members_none_may_pass_and_the_definition_says_so() -> None:
    scores, member = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([True, True, False, True, False])
    rows = evaluation.score_membership_inference(scores, member, "x", ASKED).to_pylist()
    assert rows[1]["value"] == pytest.approx(2 / 3)
    assert "with 2 non-members: none may pass" in rows[1]["definition"]


def test_a_resample_counts_a_subject_as_often_as_it_was_drawn() -> None:
    scores, member = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
    counts = np.array([[1, 1, 1, 1], [3, 0, 1, 2], [0, 2, 1, 1], [1, 0, 1, 0]])
    assert compute_true_positive_rates(scores, member, counts, 0.01) == pytest.approx(
        [0.5, 1.0, 0.0, np.nan], nan_ok=True
    )


def test_without_a_class_there_is_no_value() -> None:
    assert [
        row["value"]
        for row in evaluation.score_membership_inference(
            np.ones(3), np.ones(3, bool), "x", ASKED
        ).to_pylist()
    ] == [None, None, None]


def test_exposure_is_log2_of_candidates_over_rank() -> None:
    surprises = np.array([2.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert evaluation.compute_exposure(surprises) == pytest.approx(np.log2(8 / 2))
    assert evaluation.compute_exposure(np.array([0.0, *range(1, 8)])) == pytest.approx(3.0)
    assert evaluation.compute_exposure(np.ones(8)) == 0.0, (
        "a model that cannot tell them apart knows nothing"
    )


def test_guessing_has_an_exposure_of_1_44_bits() -> None:
    rng = np.random.default_rng(1)
    mean = np.mean([evaluation.compute_exposure(rng.random(200)) for _ in range(4000)])
    assert mean == pytest.approx(np.log2(np.e), abs=0.06)


def test_the_longest_shared_run_is_found_wherever_it_stands() -> None:
    assert evaluation.measure_longest_shared_run([1, 2, 3, 4], [9, 2, 3, 4, 9]) == 3
    assert evaluation.measure_longest_shared_run([1, 2, 1, 2, 3], [1, 2, 3]) == 3
    assert evaluation.measure_longest_shared_run([1, 2], [3, 4]) == 0
    assert evaluation.measure_longest_shared_run([], [1]) == 0


def test_none_of_forty_has_an_interval_with_a_width() -> None:
    row = evaluation.score_verbatim_memorization([0] * 40, 5, "adapted", "train", 0.95).to_pylist()[
        0
    ]
    assert (row["value"], row["low"], row["high"]) == (
        0.0,
        0.0,
        pytest.approx(1 - 0.025 ** (1 / 40)),
    )
    row = evaluation.score_verbatim_memorization(
        [5, 4, 9, 0], 5, "adapted", "train", 0.95
    ).to_pylist()[0]
    assert (row["value"], row["n_events"]) == (0.5, 2)
    assert (row["low"], row["high"]) == pytest.approx((0.0676, 0.9324), abs=1e-4)
    assert (
        evaluation.score_verbatim_memorization([], 5, "adapted", "train", 0.95).to_pylist()[0][
            "value"
        ]
        is None
    )


# Suppression for release


def row(
    group: str,
    n: int,
    events: int | None,
    subjects: int | None = None,
    name: str = "auroc",
    split: str = "held_out",
) -> dict[str, Any]:
    about = {
        "split": split,
        "group": group,
        "definition": "a definition; 3 of them",
        "task": "mortality",
    }
    return {
        "name": name,
        "value": 0.7,
        "low": 0.6,
        "high": 0.8,
        "level": 0.95,
        "n": n,
        "n_subjects": subjects or n,
        "n_events": events,
        **about,
    }


def shown(*rows: dict[str, Any]) -> list[str]:
    """The groups that are left."""
    table = evaluation.suppress_for_release(
        pa.Table.from_pylist(list(rows), schema=METRIC_RESULT_SCHEMA), 10
    )
    for found in table.to_pylist():
        if found["value"] is None:
            assert (
                found["n"],
                found["n_subjects"],
                found["n_events"],
                found["low"],
                found["high"],
            ) == (0, None, None, None, None)
            assert "3 of them" not in found["definition"]
    return [found["group"] for found in table.to_pylist() if found["value"] is not None]


def test_few_subjects_few_events_and_few_without_the_event_are_withheld() -> None:
    assert shown(row("model", 100, 50)) == ["model"]
    assert shown(row("model", 9, None)) == []
    assert shown(row("model", 100, 9)) == []
    assert shown(row("model", 100, 91)) == []
    assert shown(row("model", 100, 50, subjects=9)) == []
    assert shown(row("model", 100, 0), row("model", 100, 100)) == ["model", "model"], (
        "none and all are no small cells"
    )


def test_events_that_are_tokens_divide_nobody() -> None:
    assert shown(row("adapted", 20, 5000, name="perplexity")) == ["adapted"]


def test_a_group_withheld_alone_takes_the_next_smallest_with_it() -> None:
    assert shown(
        row("model", 100, 40), row("model · sex F", 92, 40), row("model · sex M", 8, 4)
    ) == ["model"]
    three = (
        row("model", 120, 40),
        row("model · age 18-44", 40, 20),
        row("model · age 45-64", 72, 30),
        row("model · age 65+", 8, 4),
    )
    assert shown(*three) == ["model", "model · age 45-64"]


def test_a_group_that_was_never_shown_is_not_to_be_had_by_subtraction() -> None:
    assert shown(row("model", 100, 40), row("model · sex F", 93, 40)) == ["model"]
    assert shown(row("model", 100, 40), row("model · sex F", 60, 30)) == ["model", "model · sex F"]


def test_columns_do_not_hide_each_other() -> None:
    rows = (
        row("model", 100, 40),
        row("model · sex F", 50, 20),
        row("model · sex M", 50, 20),
        row("model · note read whole", 95, 40),
    )
    assert shown(*rows) == ["model", "model · sex F", "model · sex M"]


def test_counts_of_classes_are_withheld_with_their_complement() -> None:
    assert evaluation.suppress_small_counts([100, 3], 10) == [None, None]
    assert evaluation.suppress_small_counts([100, 3, 50], 10) == [100, None, None]
    assert evaluation.suppress_small_counts([100, 3, 4, 50], 10) == [100, None, None, 50]
    assert evaluation.suppress_small_counts([100, 0, 50], 10) == [100, 0, 50]
    assert evaluation.suppress_small_counts([], 10) == []
