"""Perplexity, against numbers worked out by hand and populations whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clinpeft.core import schemas
from clinpeft.core.errors import InputError, RefusedError
from clinpeft.evaluation import compare_perplexity, evaluate_perplexity, find_likelihood_mismatch
from clinpeft.recipe import EvaluationSpec

SPEC = EvaluationSpec(resamples=200)

Note = tuple[int, str | None, str, int, float]  # subject, category, split, tokens, nats

HAND = [
    (1, None, "train", 10, 10 * math.log(2)),
    (1, None, "train", 30, 30 * math.log(8)),
    (2, None, "held_out", 5, 5 * math.log(3)),
]


def likelihoods(notes: Sequence[Note], names: Sequence[str] = ()) -> pa.Table:
    subject, category, split, tokens, nats = zip(*notes, strict=True) if notes else ((),) * 5
    columns = {
        "note_id": names or [f"n{i}" for i in range(len(notes))],
        "subject_id": subject,
        "category": category,
        "split": split,
    }
    return schemas.build_arrow_table(
        schemas.LIKELIHOOD_SCHEMA, {**columns, "tokens": tokens, "negative_log_likelihood": nats}
    )


def measured(
    notes: Sequence[Note], state: str = "base", seed: int = 0, spec: EvaluationSpec = SPEC
) -> dict[tuple[str, str], dict[str, Any]]:
    found = evaluate_perplexity(likelihoods(notes), state, spec, np.random.default_rng(seed))
    assert found.schema == schemas.METRIC_RESULT_SCHEMA
    return {(row["split"], row["group"]): row for row in found.to_pylist()}


def hospital(
    rng: np.random.Generator, subjects: int, notes_each: int = 8, category: str | None = None
) -> list[Note]:
    """Notes whose nats a token vary mostly between people: person effect N(1, 0.3), note effect
    N(0, 0.05), 50 tokens each."""
    people = rng.normal(1.0, 0.3, size=subjects)
    noise = rng.normal(0.0, 0.05, size=(subjects, notes_each))
    return [
        (i, category, "held_out", 50, 50 * max(person + e, 0.0))
        for i, person in enumerate(people)
        for e in noise[i]
    ]


def test_perplexity_weighs_tokens_and_not_notes() -> None:
    found = measured(HAND)
    assert found["train", "base"]["value"] == pytest.approx(
        2 ** (10 / 40) * 8 ** (30 / 40)
    )  # 5.6569, where the mean over notes is 5
    assert found["held_out", "base"]["value"] == pytest.approx(3)


def test_a_row_counts_notes_subjects_and_scored_tokens() -> None:
    row = measured(HAND)["train", "base"]
    assert (row["name"], row["n"], row["n_subjects"], row["n_events"]) == ("perplexity", 2, 1, 40)


def test_one_subject_has_no_interval_and_the_row_says_so() -> None:
    row = measured(HAND)["train", "base"]
    assert (row["low"], row["high"], row["level"]) == (None, None, None)
    assert "one subject" in row["definition"]


def test_a_split_without_scored_tokens_is_unknown_and_says_why() -> None:
    found = measured([*HAND, (3, None, "tuning", 0, 0.0)])
    row = found["tuning", "base"]
    assert (row["value"], row["low"], row["n"], row["n_subjects"], row["n_events"]) == (
        None,
        None,
        0,
        0,
        0,
    )
    assert "no token was scored" in row["definition"]


def test_no_notes_at_all_give_three_unknown_rows() -> None:
    assert [row["value"] for row in measured([]).values()] == [None, None, None]


def test_notes_without_a_scored_token_count_nowhere() -> None:
    row = measured([*HAND, (9, None, "train", 0, 0.0)])["train", "base"]
    assert (row["n"], row["n_subjects"]) == (2, 1)


def test_an_interval_holds_the_value_and_names_its_level() -> None:
    row = measured(hospital(np.random.default_rng(0), 40))["held_out", "base"]
    assert row["low"] < row["value"] < row["high"]
    assert row["level"] == 0.95


def test_the_same_generator_gives_exactly_the_same_table() -> None:
    notes = hospital(np.random.default_rng(0), 20)
    assert measured(notes, seed=1) == measured(notes, seed=1)
    assert measured(notes, seed=1) != measured(notes, seed=2)


def test_categories_have_rows_of_their_own_and_small_ones_are_pooled() -> None:
    surgery: list[Note] = [(i, "Surgery", "held_out", 10, 10 * math.log(2)) for i in range(5)]
    rare: list[Note] = [
        (7, "Podiatry", "held_out", 10, 10 * math.log(4)),
        (8, "Autopsy", "held_out", 30, 30 * math.log(4)),
        (8, None, "held_out", 1, 0.0),
    ]
    found = measured([*surgery, *rare], state="adapted")
    groups = [group for split, group in found if split == "held_out"]
    assert groups == ["adapted", "adapted · Surgery", "adapted · other categories (3)"]
    assert found["held_out", "adapted · Surgery"]["value"] == pytest.approx(2)
    assert found["held_out", "adapted · other categories (3)"]["value"] == pytest.approx(
        4 ** (40 / 41)
    )


def test_notes_that_all_lack_a_category_have_no_category_rows() -> None:
    assert {group for _, group in measured(HAND)} == {"base"}


def test_a_category_with_many_subjects_in_one_split_and_few_in_another_is_judged_in_each() -> None:
    many: list[Note] = [(i, "Surgery", "train", 1, 1.0) for i in range(5)]
    found = measured([*many, (9, "Surgery", "held_out", 1, 1.0)])
    assert ("train", "base · Surgery") in found
    assert ("held_out", "base · other categories (1)") in found


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_likelihood_that_is_not_finite_is_an_error_with_the_note_id(nats: float) -> None:
    with pytest.raises(InputError, match=r"1 notes[\s\S]*'n3'"):
        measured([*HAND, (4, None, "train", 3, nats)])


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ((4, None, "train", 3, -0.1), "a probability above 1"),
        ((4, None, "train", -3, 0.1), "negative number of tokens"),
        ((4, None, "test", 3, 0.1), "unknown split"),
    ],
)
def test_a_row_that_means_nothing_is_an_error_with_the_note_id(note: Note, message: str) -> None:
    with pytest.raises(InputError, match=rf"{message}[\s\S]*'n3'"):
        measured([*HAND, note])


def test_a_note_scored_twice_is_an_error() -> None:
    with pytest.raises(InputError, match=r"where: .*'b'"):
        evaluate_perplexity(
            likelihoods(HAND, ["a", "b", "b"]), "base", SPEC, np.random.default_rng(0)
        )


def test_a_table_with_other_columns_is_an_error() -> None:
    with pytest.raises(InputError, match="note_id, "):
        evaluate_perplexity(
            likelihoods(HAND).drop_columns(["category"]), "base", SPEC, np.random.default_rng(0)
        )


def test_rounding_just_above_probability_one_is_no_error() -> None:
    assert measured([(1, None, "train", 10, -1e-6)])["train", "base"]["value"] == pytest.approx(1)


def test_a_perplexity_beyond_the_largest_float_is_unknown_and_says_why() -> None:
    row = measured([(1, None, "train", 1, 1e4), (2, None, "train", 1, 1e4)])["train", "base"]
    assert row["value"] is None
    assert "largest" in row["definition"]


def test_the_95_percent_interval_holds_the_truth_in_about_95_percent_of_simulated_hospitals() -> (
    None
):
    """400 hospitals of 80 people; truth exp(1), a person's effect has mean 1. 3 binomial standard
    errors and a point for the percentile method's known shortfall at 80 clusters."""
    held = 0
    for seed in range(400):
        row = measured(hospital(np.random.default_rng(seed), 80, notes_each=3), seed=seed)[
            "held_out", "base"
        ]
        held += row["low"] <= math.e <= row["high"]
    assert (
        400 * 0.94 - 3 * math.sqrt(400 * 0.94 * 0.06)
        <= held
        <= 400 * 0.95 + 3 * math.sqrt(400 * 0.95 * 0.05)
    )


def test_an_interval_over_subjects_is_wider_than_a_naive_one_over_notes() -> None:
    notes = hospital(np.random.default_rng(0), 40)
    naive = [(i, *note[1:]) for i, note in enumerate(notes)]  # every note its own person
    by_subject, by_note = measured(notes)["held_out", "base"], measured(naive)["held_out", "base"]
    assert by_subject["value"] == pytest.approx(by_note["value"])
    assert by_subject["high"] - by_subject["low"] > 2 * (
        by_note["high"] - by_note["low"]
    )  # sqrt(8) = 2.8 for fully dependent notes


def test_the_ratio_of_perplexities_is_worked_out_on_the_same_tokens() -> None:
    after = [(*note[:4], note[4] - note[3] * math.log(2)) for note in HAND]
    found = compare_perplexity(
        likelihoods(HAND), likelihoods(after), SPEC, np.random.default_rng(0)
    )
    rows = {row["split"]: row for row in found.to_pylist()}
    assert found.schema == schemas.METRIC_RESULT_SCHEMA
    assert rows["train"]["value"] == pytest.approx(0.5)
    assert (rows["train"]["name"], rows["train"]["group"]) == ("perplexity_ratio", "adapted / base")
    assert rows["tuning"]["value"] is None


def test_a_ratio_above_one_is_a_loss_and_no_error() -> None:
    after = [(*note[:4], note[4] + note[3] * math.log(2)) for note in HAND]
    found = compare_perplexity(
        likelihoods(HAND), likelihoods(after), SPEC, np.random.default_rng(0)
    )
    assert found["value"][0].as_py() == pytest.approx(2)


def test_a_paired_interval_is_far_narrower_than_the_two_apart() -> None:
    """Every person improves by 0.1 nats a token, with a noise of 0.01 between notes, while people
    differ by 0.3."""
    rng = np.random.default_rng(0)
    before = hospital(rng, 60)
    after = [(*note[:4], max(note[4] - note[3] * rng.normal(0.1, 0.01), 0.0)) for note in before]
    row = compare_perplexity(likelihoods(before), likelihoods(after), SPEC, rng).to_pylist()[-1]
    apart = measured(before)["held_out", "base"]
    assert row["value"] == pytest.approx(math.exp(-0.1), rel=0.002)
    assert row["low"] < row["value"] < row["high"] < 1
    assert row["high"] - row["low"] < 0.1 * (apart["high"] - apart["low"]) / apart["value"]


def test_the_order_of_the_notes_does_not_matter_to_a_pairing() -> None:
    before, after = likelihoods(HAND), likelihoods(HAND[::-1], ["n2", "n1", "n0"])
    found = compare_perplexity(before, after, SPEC, np.random.default_rng(0), ("a", "b"))
    assert found["value"][0].as_py() == pytest.approx(1)
    assert found["group"][0].as_py() == "b / a"


def test_notes_scored_by_one_only_are_refused_with_their_number() -> None:
    with pytest.raises(RefusedError, match=r"1 notes .* base, 0 .* adapted"):
        compare_perplexity(likelihoods(HAND), likelihoods(HAND[:2]), SPEC, np.random.default_rng(0))


def test_another_number_of_tokens_is_refused_with_the_note_id() -> None:
    other = [*HAND[:2], (2, None, "held_out", 6, 1.0)]
    with pytest.raises(
        RefusedError,
        match=r"1 notes .* tokens, .*'n2'",
    ):
        compare_perplexity(likelihoods(HAND), likelihoods(other), SPEC, np.random.default_rng(0))


def test_another_split_is_a_mismatch() -> None:
    other = [*HAND[:2], (2, None, "tuning", 5, 1.0)]
    assert "another split" in find_likelihood_mismatch(likelihoods(HAND), likelihoods(other))


def test_tables_of_the_same_tokens_have_no_mismatch() -> None:
    assert find_likelihood_mismatch(likelihoods(HAND), likelihoods(HAND)) == ""
