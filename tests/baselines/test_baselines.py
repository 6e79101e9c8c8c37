"""Trivial baselines: equal to scikit-learn on the same features, learned from the training split alone, the same twice."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from clinpeft import baselines
from clinpeft.baselines import features
from clinpeft.core import schemas
from clinpeft.core.errors import InputError, UsageError
from clinpeft.core.schemas import COHORT_SCHEMA, PREDICTION_SCHEMA, LabelSpace, ProblemType

TFIDF, LENGTH, ADMISSION = "TF-IDF + logistic regression", "note length", "age, sex, admission type"
WORDS = (
    "chest pain fever cough wound knee stone valve stroke seizure rash fall diet sleep nausea anemia edema gout ulcer burn"
).split()


def write(
    path: Path,
    splits: Sequence[str],
    answers: Sequence[object],
    texts: Sequence[str],
    **columns: Sequence[object],
) -> Path:
    """A cohort with one subject a row."""
    numbers = list(range(len(splits)))
    filled = "labels" if isinstance(answers[0], list) else "label"
    rows: dict[str, object] = {
        "subject_id": numbers,
        "stay_id": numbers,
        "prediction_time": [datetime.datetime(2100, 1, 1)] * len(splits),
    }
    pq.write_table(
        schemas.build_arrow_table(
            COHORT_SCHEMA, rows | {"split": splits, filled: answers, "text": texts} | columns
        ),
        path,
    )
    return path


def question(kind: ProblemType, classes: int) -> LabelSpace:
    names = tuple(f"class {at}" for at in range(classes))
    return LabelSpace("asked", kind, names, ("",) * classes, (1,) * classes, "auroc")


def invented(kind: ProblemType, stays: int = 120, classes: int = 3) -> dict[str, Any]:
    """Notes of five words whose answers are told by their first: class k by word k, and every other text has a second one."""
    dice = np.random.default_rng(7)
    drawn = dice.integers(0, classes, stays)
    texts = [" ".join([WORDS[at], *dice.choice(WORDS[classes:], 4)]) for at in drawn]
    every_other: list[object] = [
        [int(at), classes - 1] if row % 2 and at < classes - 1 else [int(at)]
        for row, at in enumerate(drawn)
    ]
    splits = [("train", "train", "train", "tuning", "held_out")[row % 5] for row in range(stays)]
    ages = [None if row % 7 == 0 else 40.0 + row % 50 for row in range(stays)]
    columns = {
        "age_years": ages,
        "sex": [("F", "M", None)[row % 3] for row in range(stays)],
        "admission_type": ["URGENT"] * stays,
    }
    return {
        "splits": splits,
        "answers": every_other if kind == "multilabel" else drawn.tolist(),
        "texts": texts,
        **columns,
    }


def asked(
    path: Path, kind: ProblemType, classes: int = 3, names: Sequence[str] = baselines.BASELINE_NAMES
) -> dict[str, pa.Table]:
    return dict(baselines.predict_baselines(path, question(kind, classes), 1, names))


def array(table: pa.Table, column: str = "probabilities") -> NDArray[np.float64]:
    return np.array(table[column].to_pylist(), dtype=np.float64)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_every_baseline_answers_every_stay_under_the_schema(
    tmp_path: Path, kind: ProblemType
) -> None:
    classes = 2 if kind == "binary" else 3
    path = write(tmp_path / "cohort.parquet", **invented(kind, classes=classes))
    found = asked(path, kind, classes)
    assert tuple(found) == tuple(baselines.BASELINES)
    stays = pq.read_table(path)
    for name, table in found.items():
        assert table.schema.equals(PREDICTION_SCHEMA) and table.select(
            ["stay_id", "label", "labels", "sex"]
        ).equals(stays.select(["stay_id", "label", "labels", "sex"]))
        assert LabelSpace.from_json(json.loads(table.schema.metadata[b"question"])) == question(
            kind, classes
        )
        assert table["tokens"].null_count == len(table)
        probabilities = array(table)
        assert (
            probabilities.shape == (120, classes)
            and ((probabilities >= 0) & (probabilities <= 1)).all()
        )
        assert kind == "multilabel" or probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
        assert (table["logits"].null_count == len(table)) == (name == "prevalence")
        if name != "prevalence":
            back = (
                expit(array(table, "logits"))
                if kind == "multilabel"
                else softmax(array(table, "logits"), axis=1)
            )
            assert back == pytest.approx(probabilities, abs=1e-6)


def test_the_prevalence_is_that_of_the_training_split(tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["tuning", "held_out"]
    path = write(tmp_path / "one.parquet", splits, [0, 0, 0, 1, 1, 1], ["a word"] * 6)
    assert (
        array(asked(path, "binary", 2, ["prevalence"])["prevalence"]).tolist() == [[0.75, 0.25]] * 6
    )
    path = write(tmp_path / "all.parquet", splits, [[0], [0, 1], [], [0], [2], [2]], ["a word"] * 6)
    assert (
        array(asked(path, "multilabel", 3, ["prevalence"])["prevalence"]).tolist()
        == [[0.75, 0.25, 0.0]] * 6
    )


def tfidf(rows: dict[str, Any], kept: str) -> tuple[Any, Any, Any]:
    """Training features, the features of all, and the training answers, by scikit-learn itself."""
    train = [at for at, split in enumerate(rows["splits"]) if split == kept]
    bag = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return (
        bag.fit_transform([rows["texts"][at] for at in train]),
        bag.transform(rows["texts"]),
        [rows["answers"][at] for at in train],
    )


@pytest.mark.parametrize(("kind", "classes"), [("binary", 2), ("multiclass", 3)])
def test_the_words_are_told_as_scikit_learn_tells_them(
    tmp_path: Path, kind: ProblemType, classes: int
) -> None:
    rows = invented(kind, classes=classes)
    path = write(tmp_path / "cohort.parquet", **rows)
    train, everybody, told = tfidf(rows, "train")
    tuning = [at for at, split in enumerate(rows["splits"]) if split == "tuning"]
    fitted = [
        LogisticRegression(C=strength, max_iter=1000).fit(train, told)
        for strength in baselines.BASELINES[TFIDF].regularization_c_values
    ]
    losses = [
        -np.mean(
            np.log([model.predict_proba(everybody[at])[0, rows["answers"][at]] for at in tuning])
        )
        for model in fitted
    ]
    first_rise = next(
        (at for at in range(1, len(losses)) if losses[at] >= losses[at - 1]), len(losses)
    )
    expected = fitted[first_rise - 1].predict_proba(everybody)
    assert array(asked(path, kind, classes, [TFIDF])[TFIDF]) == pytest.approx(
        expected, abs=2e-3
    )  # L-BFGS stops at 1e-4, wherever it came from


def test_each_label_is_a_regression_of_its_own(tmp_path: Path) -> None:
    rows = invented("multilabel")
    rows["splits"] = [
        "train" if split == "tuning" else split for split in rows["splits"]
    ]  # without tuning the strength is 1
    path = write(tmp_path / "cohort.parquet", **rows)
    train, everybody, told = tfidf(rows, "train")
    found = array(asked(path, "multilabel", 3, [TFIDF])[TFIDF])
    for label in range(3):
        model = LogisticRegression(C=1.0, max_iter=1000).fit(
            train, [label in answers for answers in told]
        )
        assert found[:, label] == pytest.approx(model.predict_proba(everybody)[:, 1], abs=2e-3)


def test_words_that_tell_the_answer_are_learned(tmp_path: Path) -> None:
    rows = invented("multiclass")
    found = asked(write(tmp_path / "cohort.parquet", **rows), "multiclass")
    held_out = np.array([split == "held_out" for split in rows["splits"]])
    truth = np.array(rows["answers"])[held_out]
    hits = {
        name: float(np.mean(array(table)[held_out].argmax(axis=1) == truth))
        for name, table in found.items()
    }
    assert hits[TFIDF] == 1.0 and max(hits["prevalence"], hits[LENGTH], hits[ADMISSION]) < 0.7


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_nothing_is_learned_from_who_is_held_out(tmp_path: Path, kind: ProblemType) -> None:
    rows = invented(kind)
    clean = asked(write(tmp_path / "clean.parquet", **rows), kind)
    poisoned: dict[str, Any] = {name: list(values) for name, values in rows.items()}
    held_out = [at for at, split in enumerate(rows["splits"]) if split == "held_out"]
    for at in held_out[1:]:
        poisoned["answers"][at] = [0] if kind == "multilabel" else 0
        poisoned["texts"][at] = "chest chest chest poison"
        poisoned["age_years"][at], poisoned["sex"][at], poisoned["admission_type"][at] = (
            900.0,
            "X",
            "POISON",
        )
    after = asked(write(tmp_path / "poisoned.parquet", **poisoned), kind)
    same = [at for at in range(120) if at not in held_out[1:]]
    for name, table in clean.items():
        assert array(after[name])[same].tolist() == array(table)[same].tolist(), name


def test_asked_twice_the_answers_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "cohort.parquet", **invented("multilabel"))
    assert all(
        table.equals(again)
        for table, again in zip(
            asked(path, "multilabel").values(), asked(path, "multilabel").values(), strict=True
        )
    )


def test_where_there_are_too_many_notes_the_seed_draws_those_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MAX_VOCABULARY_NOTES", 20)
    path, about = (
        write(tmp_path / "cohort.parquet", **invented("multiclass")),
        question("multiclass", 3),
    )
    first, again, other = (
        array(dict(baselines.predict_baselines(path, about, seed, [TFIDF]))[TFIDF]).tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_classes_that_training_never_saw_are_given_next_to_no_chance(tmp_path: Path) -> None:
    rows = invented("multiclass", classes=3)
    path = write(tmp_path / "one.parquet", **rows)
    for name, table in asked(path, "multiclass", 5).items():
        assert array(table)[:, 3:].max() <= 1.1e-7, name
    path = write(tmp_path / "all.parquet", **invented("multilabel"))
    for name, table in asked(path, "multilabel", 5).items():
        assert array(table)[:, 3:].max() <= 1.1e-7, name
        assert name == "prevalence" or np.isfinite(array(table, "logits")).all()


def test_the_length_of_a_note_is_log_words_and_its_square(tmp_path: Path) -> None:
    words = [1, 2, 4, 8, 16, 32, 64, 128]
    answers = [0, 0, 1, 0, 1, 0, 1, 1]
    path = write(
        tmp_path / "cohort.parquet",
        ["train"] * 8 + ["held_out"],
        [*answers, 1],
        ["x " * count for count in [*words, 20]],
    )
    found = array(asked(path, "binary", 2, [LENGTH])[LENGTH])
    logs = np.log(1 + np.array([*words, 20]))
    columns = np.stack([logs, logs**2], axis=1)
    columns = (columns - columns[:8].mean(axis=0)) / columns[:8].std(axis=0)
    assert found == pytest.approx(
        LogisticRegression().fit(columns[:8], answers).predict_proba(columns), abs=1e-3
    )


def test_unknown_ages_and_values_that_training_never_saw_have_an_answer(tmp_path: Path) -> None:
    ages, sexes = (
        [50.0, 60.0, None, 80.0, 70.0, None, None, 65.0],
        ["F", "M", "F", "M", None, "F", None, "X"],
    )
    splits = ["train"] * 6 + ["held_out"] * 2
    path = write(
        tmp_path / "cohort.parquet",
        splits,
        [0, 1, 0, 1, 1, 0, 1, 1],
        ["a word"] * 8,
        age_years=ages,
        sex=sexes,
    )
    stays = features.open_baseline_cohort(path, question("binary", 2))
    learned = features.fit_admission_features(
        stays, question("binary", 2), np.random.default_rng(0)
    )
    deviation = np.sqrt(125)  # of 50, 60, 80, 70, whose mean is 65
    # age, age unknown, sex unknown, F, M, admission type unknown
    assert learned.compute_features(np.array([0, 4, 6, 7])) == pytest.approx(
        np.array(
            [
                [-15 / deviation, 0, 0, 1, 0, 1],
                [5 / deviation, 0, 1, 0, 0, 1],
                [0, 1, 1, 0, 0, 1],
                [0, 0, 0, 0, 0, 1],
            ]
        )
    )
    assert np.isfinite(array(asked(path, "binary", 2, [ADMISSION])[ADMISSION])).all()


def test_a_baseline_without_its_columns_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = invented("multiclass")
    path = write(tmp_path / "cohort.parquet", rows["splits"], rows["answers"], rows["texts"])
    assert ADMISSION not in asked(path, "multiclass")
    told = baselines.find_unavailable_baselines(path, question("multiclass", 3))
    assert told == {ADMISSION: "this cohort knows none of age_years, sex, admission_type"}
    assert (
        baselines.find_unavailable_baselines(write(path, **rows), question("multiclass", 3)) == {}
    )


def test_texts_without_a_word_and_notes_of_equal_length_are_no_obstacle(tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["tuning", "held_out"]
    path = write(tmp_path / "cohort.parquet", splits, [0, 1, 0, 1, 0, 1], ["?"] * 6)
    for name, table in asked(path, "binary", 2).items():
        assert array(table) == pytest.approx(np.full((6, 2), 0.5), abs=1e-6), name


def test_texts_are_found_again_across_row_groups(tmp_path: Path) -> None:
    texts = [f"text {at}" for at in range(50)]
    path = write(tmp_path / "cohort.parquet", ["train"] * 50, [at % 2 for at in range(50)], texts)
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    stays = features.open_baseline_cohort(path, question("binary", 2))
    chosen = np.array([0, 6, 7, 29, 49])
    assert list(stays.iterate_texts(chosen)) == [texts[at] for at in chosen]
    assert list(stays.iterate_texts(np.arange(50))) == texts


def test_what_is_no_cohort_of_the_question_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "cohort.parquet", **invented("multiclass"))
    with pytest.raises(UsageError, match=r"no baseline 'magic'(.|\n)*prevalence"):
        asked(path, "multiclass", 3, ["magic"])
    with pytest.raises(InputError, match="120 stays have no answer to asked"):
        asked(path, "multilabel", 3)
    with pytest.raises(InputError, match="answers run from 0 to 2, and asked has 2 classes"):
        asked(path, "binary", 2)
    with pytest.raises(InputError, match="nobody is in the split train"):
        asked(write(path, ["held_out"], [0], ["a word"]), "binary", 2)
    with pytest.raises(InputError, match="cannot be read as a cohort"):
        asked(tmp_path / "nothing.parquet", "binary", 2)
