"""Discrimination: by hand, against scikit-learn, with absent classes, and intervals that hold the
truth as often as they say."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from clinpeft.core import schemas
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import LabelSpace, ProblemType
from clinpeft.evaluation.classification.discrimination import (
    LABEL_METRICS_SCHEMA,
    build_discrimination_metrics,
    compute_label_metrics,
    compute_main_metric,
)
from clinpeft.evaluation.classification.metric_set import evaluate_metric_set
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions
from clinpeft.recipe import ClassificationEvaluationSpec

SPEC = ClassificationEvaluationSpec(resamples=100)
METRICS: dict[ProblemType, str] = {
    "binary": "auroc",
    "multiclass": "auroc_ovo",
    "multilabel": "auroc_macro",
}


def asked(kind: ProblemType, classes: int, train_counts: Sequence[int] = ()) -> LabelSpace:
    """A question with classes c0, c1, ..."""
    names = tuple(f"c{at}" for at in range(classes))
    return LabelSpace(
        "toy",
        kind,
        names,
        ("icd9",) * classes,
        tuple(train_counts) or (1,) * classes,
        METRICS[kind],
    )


def predictions(truth: Sequence[Any], probabilities: Any, **columns: Any) -> pa.Table:
    """Answers to stays 0, 1, ... of subjects of their own: ``truth`` is a class a row, or a list of
    classes a row."""
    rows = len(truth)
    column = "labels" if rows and isinstance(truth[0], list) else "label"
    given = {
        "subject_id": range(rows),
        "stay_id": range(rows),
        "prediction_time": [datetime.datetime(2100, 1, 1)] * rows,
        "split": ["held_out"] * rows,
        column: list(truth),
        "probabilities": np.asarray(probabilities).tolist(),
    }
    return schemas.build_arrow_table(schemas.PREDICTION_SCHEMA, given | columns)


def of_event(probability: Any) -> NDArray[np.float32]:
    """Both probabilities of a binary question."""
    event = np.asarray(probability, np.float32)
    return np.stack([1 - event, event], axis=1)


def evaluated(
    table: pa.Table,
    question: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """The discrimination metrics of a split, with intervals."""
    scored = extract_scored_predictions(table, question, split)
    metric_set = build_discrimination_metrics(scored, question, split, spec)
    return evaluate_metric_set(scored, metric_set, question, split, spec, rng)


def measured(
    table: pa.Table,
    question: LabelSpace,
    spec: ClassificationEvaluationSpec = SPEC,
    split: str = "held_out",
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    rows = evaluated(table, question, split, spec, np.random.default_rng(seed))
    pa.Table.from_pylist(rows, schema=schemas.METRIC_RESULT_SCHEMA)
    return {str(row["name"]): row for row in rows}


def multiclass_sample(
    rows: int, classes: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Few distinct probabilities, so that there are ties; each row sums to 1 within rounding."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=rows)
    logits = np.round(rng.normal(size=(rows, classes)) + np.eye(classes)[truth])
    return truth, special.softmax(logits, axis=1).astype(np.float32)


def multilabel_sample(
    rows: int, classes: int, seed: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Labels from common to rare, scores in tenths."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, classes)) < 0.6 / np.arange(1, classes + 1)
    return truth, np.round(special.expit(rng.normal(size=truth.shape) + truth), 1).astype(
        np.float32
    )


def listed(truth: NDArray[np.bool_]) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in truth]


HAND = predictions([1, 1, 0, 0, 0], of_event([0.5, 0.9, 0.5, 0.1, 0.9]), subject_id=[1, 1, 2, 3, 3])


def test_the_numbers_of_a_binary_question_are_those_worked_out_by_hand() -> None:
    found = measured(HAND, asked("binary", 2))
    assert found["auroc"]["value"] == pytest.approx(4 / 6)
    assert found["auprc"]["value"] == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)
    assert found["prevalence"]["value"] == pytest.approx(2 / 5)
    assert list(found) == ["auroc", "auprc", "prevalence"]


def test_a_row_counts_stays_subjects_and_positives_and_says_what_it_is() -> None:
    row = measured(HAND, asked("binary", 2))["auroc"]
    assert (
        row["n"],
        row["n_subjects"],
        row["n_events"],
        row["split"],
        row["task"],
        row["level"],
    ) == (5, 3, 2, "held_out", "toy", 0.95)
    assert row["low"] <= row["value"] <= row["high"]
    for word in (
        "ties counted half",
        "bootstrap over subjects, 100 resamples",
        "of them without the classes it takes left out",
    ):
        assert word in row["definition"]
    assert "prevalence, 0.4000" in measured(HAND, asked("binary", 2))["auprc"]["definition"]


def test_only_the_split_that_was_asked_for_is_scored() -> None:
    table = predictions(
        [1, 0, 0, 1],
        of_event([0.9, 0.1, 0.9, 0.1]),
        split=["tuning", "tuning", "held_out", "held_out"],
    )
    assert measured(table, asked("binary", 2), split="tuning")["auroc"]["value"] == 1.0
    assert measured(table, asked("binary", 2))["auroc"]["value"] == 0.0


@pytest.mark.parametrize("classes", [3, 5])
def test_multiclass_averages_are_those_of_scikit_learn(classes: int) -> None:
    truth, scores = multiclass_sample(120, classes)
    found = measured(predictions(truth.tolist(), scores), asked("multiclass", classes))
    assert found["auroc_ovo"]["value"] == pytest.approx(
        roc_auc_score(truth, scores, multi_class="ovo", average="macro"), abs=1e-12
    )
    assert found["auroc_ovr"]["value"] == pytest.approx(
        roc_auc_score(truth, scores, multi_class="ovr", average="macro"), abs=1e-12
    )
    assert found["auprc_macro"]["value"] == pytest.approx(
        average_precision_score(np.eye(classes)[truth], scores, average="macro"), abs=1e-12
    )
    assert found["auroc_ovo"]["n_events"] is None


def test_multiclass_averages_leave_an_absent_class_out_and_name_it() -> None:
    truth, scores = multiclass_sample(120, 4)
    truth = np.where(truth == 2, 0, truth)
    found = measured(predictions(truth.tolist(), scores), asked("multiclass", 4))
    present = [0, 1, 3]
    expected = roc_auc_score(truth, scores, multi_class="ovo", average="macro", labels=[0, 1, 2, 3])
    assert found["auroc_ovo"]["value"] == pytest.approx(expected, abs=1e-12)
    rest = [roc_auc_score(truth == at, scores[:, at]) for at in present]
    assert found["auroc_ovr"]["value"] == pytest.approx(np.mean(rest), abs=1e-12)
    for name in ("auroc_ovo", "auroc_ovr", "auprc_macro"):
        assert "3 of 4 classes present" in found[name]["definition"]
        assert "class 'c2' has no held_out stay" in found[name]["definition"]


def test_multilabel_averages_are_those_of_scikit_learn() -> None:
    truth, scores = multilabel_sample(150, 8)
    found = measured(predictions(listed(truth), scores), asked("multilabel", 8))
    for name, average in (("auroc_macro", "macro"), ("auroc_micro", "micro")):
        assert found[name]["value"] == pytest.approx(
            roc_auc_score(truth, scores, average=average), abs=1e-12
        )
        assert found[name]["n_events"] == truth.sum()
    assert found["auprc_macro"]["value"] == pytest.approx(
        average_precision_score(truth, scores, average="macro"), abs=1e-12
    )


def test_labels_with_too_few_positives_are_left_out_of_averages_and_counted() -> None:
    truth, scores = multilabel_sample(150, 8)
    truth[:, 6], truth[:, 7] = False, True
    truth[:4, 5], truth[4:, 5] = True, False
    spec = ClassificationEvaluationSpec(resamples=100, min_positives=5)
    evaluable = [at for at in range(8) if 5 <= truth[:, at].sum() < 150]
    found = measured(predictions(listed(truth), scores), asked("multilabel", 8), spec)
    assert found["auroc_macro"]["value"] == pytest.approx(
        roc_auc_score(truth[:, evaluable], scores[:, evaluable], average="macro"), abs=1e-12
    )
    assert (found["labels_evaluable"]["value"], found["labels_evaluable"]["low"]) == (
        len(evaluable),
        None,
    )
    assert f"the {len(evaluable)} evaluable of 8 labels" in found["auroc_macro"]["definition"]
    assert "at least 5 positive" in found["auroc_macro"]["definition"]
    assert "class 'c6' has no held_out stay" in found["auroc_macro"]["definition"]
    assert found["auroc_macro"]["n_events"] == truth[:, evaluable].sum()
    assert found["auroc_micro"]["value"] == pytest.approx(
        roc_auc_score(truth.ravel(), scores.ravel()), abs=1e-12
    )


def test_bands_are_thirds_of_the_occurrences_in_training() -> None:
    # 12 occurrences, a third is 4: c2 holds the first 5, c0 begins in the second third, c3 in the
    # last
    truth, scores = multilabel_sample(150, 5)
    found = measured(predictions(listed(truth), scores), asked("multilabel", 5, (4, 0, 5, 2, 1)))
    for band, labels in (("head", [2]), ("torso", [0]), ("tail", [1, 3, 4])):
        expected = np.mean([roc_auc_score(truth[:, at], scores[:, at]) for at in labels])
        assert found[f"auroc_{band}"]["value"] == pytest.approx(expected, abs=1e-12)
        assert (
            f"the {len(labels)} evaluable of {len(labels)} labels of the {band}"
            in found[f"auroc_{band}"]["definition"]
        )
        assert "third of all training label occurrences" in found[f"auroc_{band}"]["definition"]


def test_without_counts_in_training_the_bands_are_unknown() -> None:
    truth, scores = multilabel_sample(50, 3)
    found = measured(predictions(listed(truth), scores), asked("multilabel", 3, (0, 0, 0)))
    assert [found[f"auroc_{band}"]["value"] for band in ("head", "torso", "tail")] == [None] * 3
    assert "counts in training are not known" in found["auroc_head"]["definition"]


@pytest.mark.parametrize(("truth", "absent"), [([0, 0, 0], "c1"), ([1, 1, 1], "c0")])
def test_a_binary_question_with_one_class_only_has_no_auroc_and_says_which_is_absent(
    truth: list[int], absent: str
) -> None:
    row = measured(predictions(truth, of_event([0.1, 0.2, 0.3])), asked("binary", 2))["auroc"]
    assert (row["value"], row["low"], row["high"], row["level"]) == (None, None, None, None)
    assert f"class '{absent}' has no held_out stay" in row["definition"]


@pytest.mark.parametrize("kind", METRICS)
def test_a_split_without_stays_has_no_values_and_says_so(kind: ProblemType) -> None:
    found = measured(
        predictions([], []),
        asked(kind, 2),
        ClassificationEvaluationSpec(resamples=100, compat="clinical-peft"),
    )
    assert {row["value"] for name, row in found.items() if name != "labels_evaluable"} == {None}
    assert all("the split held_out has no stay" in row["definition"] for row in found.values())


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_many_absent_classes_are_counted_and_only_the_first_are_named(kind: ProblemType) -> None:
    truth: list[Any] = [[0], [0, 1], [1]] if kind == "multilabel" else [0, 1, 1]
    definition = measured(predictions(truth, np.full((3, 40), 1 / 40)), asked(kind, 40))[
        METRICS[kind]
    ]["definition"]
    assert "'c4' has no held_out stay, nor have 35 more classes" in definition


def test_no_label_that_can_be_evaluated_is_unknown_and_no_crash() -> None:
    found = measured(predictions([[], [], []], np.full((3, 2), 0.5)), asked("multilabel", 2))
    assert found["auroc_macro"]["value"] is found["auroc_micro"]["value"] is None
    assert found["labels_evaluable"]["value"] == 0
    assert "none is" in found["auroc_macro"]["definition"]


def test_one_subject_has_no_interval_and_the_row_says_so() -> None:
    row = measured(
        predictions([0, 1], of_event([0.1, 0.2]), subject_id=[7, 7]), asked("binary", 2)
    )["auroc"]
    assert (row["value"], row["low"], row["high"], row["level"]) == (1.0, None, None, None)
    assert "no interval: one subject" in row["definition"]


def test_the_same_generator_state_gives_the_same_rows() -> None:
    truth, scores = multilabel_sample(60, 4)
    table, question = predictions(listed(truth), scores), asked("multilabel", 4)
    assert measured(table, question, seed=1) == measured(table, question, seed=1)
    assert measured(table, question, seed=1) != measured(table, question, seed=2)


def test_the_paper_ranks_labels_by_a_softmax_over_all_of_them_and_skips_labels_of_one_class() -> (
    None
):
    truth, _ = multilabel_sample(150, 6)
    truth[:, 5] = False
    logits = np.random.default_rng(4).normal(size=truth.shape) + truth
    table = predictions(listed(truth), special.expit(logits), logits=logits.tolist())
    found = measured(
        table,
        asked("multilabel", 6),
        ClassificationEvaluationSpec(resamples=100, compat="clinical-peft", min_positives=10),
    )
    softmax = np.asarray(special.softmax(np.float32(logits).astype(np.float64), axis=1))
    expected = np.mean(
        [
            roc_auc_score(of_label, scores)
            for of_label, scores in zip(truth.T[:5], softmax.T[:5], strict=True)
        ]
    )
    assert found["auroc_clinical_peft"]["value"] == pytest.approx(expected, abs=1e-12)
    assert abs(expected - found["auroc_macro"]["value"]) > 0.001
    assert (
        "softmax over all 6 logits; mean over the 5 labels"
        in found["auroc_clinical_peft"]["definition"]
    )


def test_the_paper_agrees_with_the_metric_where_one_class_is_asked() -> None:
    spec = ClassificationEvaluationSpec(resamples=100, compat="clinical-peft")
    truth, scores = multiclass_sample(120, 4)
    several = measured(
        predictions(truth.tolist(), scores, logits=np.log(scores).tolist()),
        asked("multiclass", 4),
        spec,
    )
    assert several["auroc_clinical_peft"]["value"] == pytest.approx(
        several["auroc_ovo"]["value"], abs=1e-3
    )  # rounded logits tie less
    event = of_event([0.2, 0.6, 0.1, 0.4])
    two = measured(
        predictions([0, 1, 1, 0], event, logits=np.log(event).tolist()), asked("binary", 2), spec
    )
    assert two["auroc_clinical_peft"]["value"] == two["auroc"]["value"] == 0.5


def test_the_paper_s_score_is_unknown_without_logits() -> None:
    row = measured(
        HAND,
        asked("binary", 2),
        ClassificationEvaluationSpec(resamples=100, compat="clinical-peft"),
    )["auroc_clinical_peft"]
    assert row["value"] is None
    assert "no logits" in row["definition"]


def test_each_label_has_a_row_with_its_counts() -> None:
    truth, scores = multilabel_sample(150, 4)
    truth[:, 3] = False
    found = compute_label_metrics(
        predictions(listed(truth), scores),
        asked("multilabel", 4, (9, 8, 7, 6)),
        "held_out",
        SPEC,
        np.random.default_rng(0),
    )
    assert found.schema == LABEL_METRICS_SCHEMA
    rows = found.to_pylist()
    assert [row["class"] for row in rows] == ["c0", "c1", "c2", "c3"]
    assert [row["train_count"] for row in rows] == [9, 8, 7, 6]
    for at, row in enumerate(rows[:3]):
        assert row["auroc"] == pytest.approx(roc_auc_score(truth[:, at], scores[:, at]), abs=1e-12)
        assert row["auprc"] == pytest.approx(
            average_precision_score(truth[:, at], scores[:, at]), abs=1e-12
        )
        assert row["low"] < row["auroc"] < row["high"]
        assert (row["n_positives"], row["prevalence"]) == (truth[:, at].sum(), truth[:, at].mean())
    assert (
        rows[3]["auroc"],
        rows[3]["low"],
        rows[3]["auprc"],
        rows[3]["n_positives"],
        rows[3]["prevalence"],
    ) == (None, None, None, 0, 0.0)


def test_the_label_of_a_binary_question_has_the_interval_of_its_auroc() -> None:
    truth = (np.random.default_rng(0).random(80) < 0.4).astype(int)
    table = predictions(truth.tolist(), of_event(np.random.default_rng(1).random(80)))
    row = compute_label_metrics(
        table, asked("binary", 2), "held_out", SPEC, np.random.default_rng(0)
    ).to_pylist()[1]
    whole = measured(table, asked("binary", 2))["auroc"]
    assert (row["auroc"], row["low"], row["high"]) == (whole["value"], whole["low"], whole["high"])


@pytest.mark.parametrize("kind", METRICS)
def test_the_main_metric_of_training_is_that_of_the_evaluation(kind: ProblemType) -> None:
    truth: Any
    truth, scores = multiclass_sample(90, 2 if kind == "binary" else 4)
    if kind == "multilabel":
        flags, scores = multilabel_sample(90, 4)
        flags[:, 3] = False
        truth = listed(flags)
    question = asked(kind, scores.shape[1])
    expected = measured(predictions(list(truth), scores), question)[METRICS[kind]]["value"]
    assert compute_main_metric(scores, truth, question) == pytest.approx(expected, abs=1e-12)


def test_the_main_metric_is_nan_where_classes_are_absent_and_an_unknown_one_is_refused() -> None:
    scores = of_event([0.1, 0.2])
    assert np.isnan(compute_main_metric(scores, np.array([1, 1]), asked("binary", 2)))
    assert np.isnan(compute_main_metric(scores, np.array([1, 1]), asked("multiclass", 2)))
    assert np.isnan(compute_main_metric(scores, [[], []], asked("multilabel", 2)))
    with pytest.raises(InputError, match="'f1'"):
        compute_main_metric(
            scores,
            np.array([0, 1]),
            LabelSpace("toy", "binary", ("a", "b"), ("", ""), (1, 1), "f1"),
        )


def test_the_truth_of_each_kind_becomes_flags() -> None:
    one = extract_scored_predictions(
        predictions([2, 0], np.full((2, 3), 1 / 3)), asked("multiclass", 3), "held_out"
    )
    assert one.truth.tolist() == [[False, False, True], [True, False, False]]
    several = extract_scored_predictions(
        predictions([[2, 0], []], np.full((2, 3), 0.5)), asked("multilabel", 3), "held_out"
    )
    assert several.truth.tolist() == [[True, False, True], [False, False, False]]
    assert several.logits is None


def test_rows_of_another_chunk_and_split_do_not_shift_the_answers() -> None:
    truth, scores = multilabel_sample(40, 3)
    table = predictions(listed(truth), scores, split=["tuning", "held_out"] * 20)
    found = extract_scored_predictions(
        pa.concat_tables([table.slice(0, 7), table.slice(7)]), asked("multilabel", 3), "held_out"
    )
    np.testing.assert_array_equal(found.truth, truth[1::2])
    np.testing.assert_array_equal(found.scores, scores[1::2])
    np.testing.assert_array_equal(found.subjects, np.arange(1, 40, 2))


BAD: list[tuple[str, ProblemType, list[Any], Any, dict[str, Any], str]] = [
    (
        "a probability above 1",
        "binary",
        [0, 1],
        [[0.5, 0.5], [0.0, 1.5]],
        {},
        "not between 0 and 1",
    ),
    (
        "a probability that is NaN",
        "binary",
        [0, 1],
        [[0.5, 0.5], [0.0, np.nan]],
        {},
        "not between 0 and 1",
    ),
    (
        "too few probabilities",
        "multiclass",
        [0, 1],
        [[0.5, 0.5], [0.5, 0.5]],
        {},
        "not the 3 of the classes",
    ),
    (
        "logits of another head",
        "binary",
        [0, 1],
        [[0.5, 0.5]] * 2,
        {"logits": [[0.0, 1.0], [1.0]]},
        "number of logits",
    ),
    (
        "a logit that overflowed",
        "binary",
        [0, 1],
        [[0.5, 0.5]] * 2,
        {"logits": [[0.0, 1.0], [1.0, np.inf]]},
        "a logit that is not a number",
    ),
    ("an impossible class", "binary", [0, 2], [[0.5, 0.5]] * 2, {}, "not one of 2"),
    (
        "an unknown class",
        "multiclass",
        [0, None],
        [[0.5, 0.3, 0.2]] * 2,
        {},
        "unknown or not one of 3",
    ),
    ("an impossible label", "multilabel", [[0], [0, 3]], [[0.5, 0.3, 0.2]] * 2, {}, "not one of 3"),
    ("a negative label", "multilabel", [[0], [-1]], [[0.5, 0.3, 0.2]] * 2, {}, "not one of 3"),
    ("unknown labels", "multilabel", [[0], None], [[0.5, 0.3, 0.2]] * 2, {}, "unknown"),
]


@pytest.mark.parametrize(
    ("kind", "truth", "scores", "columns", "message"),
    [row[1:] for row in BAD],
    ids=[row[0] for row in BAD],
)
def test_answers_that_are_none_are_refused_with_their_stay(
    kind: ProblemType, truth: list[Any], scores: Any, columns: dict[str, Any], message: str
) -> None:
    table = predictions(truth, scores, stay_id=[11, 22], **columns)
    with pytest.raises(InputError, match=message) as caught:
        extract_scored_predictions(table, asked(kind, 2 if kind == "binary" else 3), "held_out")
    assert caught.value.location == f"toy, held_out, stay_id {11 if 'classes' in message else 22}"


def test_a_stay_that_is_answered_twice_is_refused_even_across_splits() -> None:
    table = predictions(
        [0, 1, 1],
        of_event([0.1, 0.2, 0.3]),
        stay_id=[5, 6, 6],
        split=["held_out", "held_out", "train"],
    )
    with pytest.raises(InputError, match="1 stays") as caught:
        extract_scored_predictions(table, asked("binary", 2), "held_out")
    assert caught.value.location == "toy, stay_id 6"


def test_another_table_and_a_binary_question_of_three_classes_are_refused() -> None:
    with pytest.raises(InputError, match="probabilities"):
        extract_scored_predictions(
            HAND.drop_columns(["probabilities"]), asked("binary", 2), "held_out"
        )
    with pytest.raises(InputError, match="3 classes"):
        extract_scored_predictions(HAND, asked("binary", 3), "held_out")


def ward(
    rng: np.random.Generator, subjects: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Subjects of one to six stays with one truth and a shared effect: z = truth + 0.9 person + 0.5
    stay."""
    event = rng.random(subjects) < 0.4
    stays = np.repeat(np.arange(subjects), rng.integers(1, 7, size=subjects))
    return (
        stays,
        event[stays],
        event[stays] + 0.9 * rng.normal(size=subjects)[stays] + 0.5 * rng.normal(size=len(stays)),
    )


def test_an_interval_over_subjects_holds_the_true_auroc_as_often_as_it_says() -> None:
    rng, samples, held = np.random.default_rng(1), 300, 0
    true = stats.norm.cdf(
        1 / (np.sqrt(2) * np.hypot(0.9, 0.5))
    )  # of two normal distributions one apart
    question, spec = asked("binary", 2), ClassificationEvaluationSpec(resamples=300)
    for _ in range(samples):
        subjects, event, z = ward(rng, 250)
        table = predictions(
            event.astype(int).tolist(), of_event(special.expit(z)), subject_id=subjects
        )
        row = evaluated(table, question, "held_out", spec, rng)[0]
        held += row["low"] <= true <= row["high"]
    assert held / samples == pytest.approx(0.95, abs=0.035)


def test_an_interval_over_subjects_is_as_wide_as_the_variance_of_clustered_pairs_says() -> None:
    """Obuchowski 1997: each subject adds what its stays add to the mean over pairs of a positive
    and a negative."""
    subjects, event, z = ward(np.random.default_rng(5), 250)
    row = measured(
        predictions(event.astype(int).tolist(), of_event(special.expit(z)), subject_id=subjects),
        asked("binary", 2),
        ClassificationEvaluationSpec(resamples=4000),
    )
    won = z[event][:, None] > z[~event][None]
    adds = np.zeros(len(z))
    adds[event] = (won.mean(axis=1) - won.mean()) / event.sum()
    adds[~event] = (won.mean(axis=0) - won.mean()) / (~event).sum()
    error = np.sqrt(250 / 249 * (np.bincount(subjects, weights=adds) ** 2).sum())
    assert row["auroc"]["high"] - row["auroc"]["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_an_interval_over_subjects_is_wider_where_stays_of_a_subject_are_alike() -> None:
    rng = np.random.default_rng(0)
    stays = np.repeat(np.arange(60), 8)
    event = (rng.random(60) < 0.4)[stays]
    table = predictions(
        event.astype(int).tolist(), of_event(special.expit(event + rng.normal(size=60)[stays]))
    )
    widths = []
    for subjects in (stays, np.arange(len(stays))):
        row = measured(
            table.set_column(0, schemas.PREDICTION_SCHEMA.field(0), pa.array(subjects)),
            asked("binary", 2),
        )["auroc"]
        widths.append(row["high"] - row["low"])
    assert widths[0] > 2 * widths[1]
