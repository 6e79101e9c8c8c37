"""Trivial baselines: equal to scikit-learn, fitted on the training split alone, reproducible."""

from __future__ import annotations

import datetime
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
from clinpeft.core.schemas import (
    COHORT_SCHEMA,
    LABEL_SPACE_ADAPTER,
    PREDICTION_SCHEMA,
    LabelSpace,
    ProblemType,
)

TFIDF, LENGTH, ADMISSION = "TF-IDF + logistic regression", "note length", "age, sex, admission type"
WORDS = (
    "chest pain fever cough wound knee stone valve stroke seizure "
    "rash fall diet sleep nausea anemia edema gout ulcer burn"
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


def make_label_space(kind: ProblemType, classes: int) -> LabelSpace:
    names = tuple(f"class {number}" for number in range(classes))
    return LabelSpace("task", kind, names, ("",) * classes, (1,) * classes, "auroc")


def make_stays(kind: ProblemType, stays: int = 120, classes: int = 3) -> dict[str, Any]:
    """Notes of five words, the first of which is that of their class.

    Where several apply, every other text has a second class.
    """
    rng = np.random.default_rng(7)
    labels = rng.integers(0, classes, stays)
    texts = [" ".join([WORDS[label], *rng.choice(WORDS[classes:], 4)]) for label in labels]
    label_lists: list[object] = [
        [int(label), classes - 1] if row % 2 and label < classes - 1 else [int(label)]
        for row, label in enumerate(labels)
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
        "answers": label_lists if kind == "multilabel" else labels.tolist(),
        "texts": texts,
        **columns,
    }


def predict(
    path: Path, kind: ProblemType, classes: int = 3, names: Sequence[str] = baselines.BASELINE_NAMES
) -> dict[str, pa.Table]:
    return dict(baselines.predict_baselines(path, make_label_space(kind, classes), 1, names))


def array(table: pa.Table, column: str = "probabilities") -> NDArray[np.float64]:
    return np.array(table[column].to_pylist(), dtype=np.float64)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_every_baseline_answers_every_stay_under_the_schema(
    tmp_path: Path, kind: ProblemType
) -> None:
    classes = 2 if kind == "binary" else 3
    path = write(tmp_path / "cohort.parquet", **make_stays(kind, classes=classes))
    tables = predict(path, kind, classes)
    assert tuple(tables) == tuple(baselines.BASELINES)
    stays = pq.read_table(path)
    for name, table in tables.items():
        assert table.schema.equals(PREDICTION_SCHEMA) and table.select(
            ["stay_id", "label", "labels", "sex"]
        ).equals(stays.select(["stay_id", "label", "labels", "sex"]))
        assert LABEL_SPACE_ADAPTER.validate_json(
            table.schema.metadata[b"question"]
        ) == make_label_space(kind, classes)
        assert table["tokens"].null_count == len(table)
        probabilities = array(table)
        assert (
            probabilities.shape == (120, classes)
            and ((probabilities >= 0) & (probabilities <= 1)).all()
        )
        assert kind == "multilabel" or probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
        assert (table["logits"].null_count == len(table)) == (name == "prevalence")
        if name != "prevalence":
            recomputed = (
                expit(array(table, "logits"))
                if kind == "multilabel"
                else softmax(array(table, "logits"), axis=1)
            )
            assert recomputed == pytest.approx(probabilities, abs=1e-6)


def test_the_prevalence_is_that_of_the_training_split(tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["tuning", "held_out"]
    path = write(tmp_path / "one.parquet", splits, [0, 0, 0, 1, 1, 1], ["a word"] * 6)
    assert (
        array(predict(path, "binary", 2, ["prevalence"])["prevalence"]).tolist()
        == [[0.75, 0.25]] * 6
    )
    path = write(tmp_path / "all.parquet", splits, [[0], [0, 1], [], [0], [2], [2]], ["a word"] * 6)
    assert (
        array(predict(path, "multilabel", 3, ["prevalence"])["prevalence"]).tolist()
        == [[0.75, 0.25, 0.0]] * 6
    )


def tfidf(rows: dict[str, Any], train_split: str) -> tuple[Any, Any, Any]:
    """Training features, the features of all, and the training answers, by scikit-learn itself."""
    train = [at for at, split in enumerate(rows["splits"]) if split == train_split]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return (
        vectorizer.fit_transform([rows["texts"][at] for at in train]),
        vectorizer.transform(rows["texts"]),
        [rows["answers"][at] for at in train],
    )


@pytest.mark.parametrize(("kind", "classes"), [("binary", 2), ("multiclass", 3)])
def test_words_are_weighed_as_by_scikit_learn(
    tmp_path: Path, kind: ProblemType, classes: int
) -> None:
    rows = make_stays(kind, classes=classes)
    path = write(tmp_path / "cohort.parquet", **rows)
    train, features_of_all, targets = tfidf(rows, "train")
    tuning = [at for at, split in enumerate(rows["splits"]) if split == "tuning"]
    fitted = [
        LogisticRegression(C=strength, max_iter=1000).fit(train, targets)
        for strength in baselines.BASELINES[TFIDF].regularization_c_values
    ]
    losses = [
        -np.mean(
            np.log(
                [model.predict_proba(features_of_all[at])[0, rows["answers"][at]] for at in tuning]
            )
        )
        for model in fitted
    ]
    first_rise = next(
        (at for at in range(1, len(losses)) if losses[at] >= losses[at - 1]), len(losses)
    )
    expected = fitted[first_rise - 1].predict_proba(features_of_all)
    assert array(predict(path, kind, classes, [TFIDF])[TFIDF]) == pytest.approx(
        expected, abs=2e-3
    )  # L-BFGS stops at 1e-4, wherever it came from


def test_each_label_is_a_regression_of_its_own(tmp_path: Path) -> None:
    rows = make_stays("multilabel")
    rows["splits"] = [
        "train" if split == "tuning" else split for split in rows["splits"]
    ]  # without tuning the strength is 1
    path = write(tmp_path / "cohort.parquet", **rows)
    train, features_of_all, targets = tfidf(rows, "train")
    probabilities = array(predict(path, "multilabel", 3, [TFIDF])[TFIDF])
    for label in range(3):
        model = LogisticRegression(C=1.0, max_iter=1000).fit(
            train, [label in answers for answers in targets]
        )
        assert probabilities[:, label] == pytest.approx(
            model.predict_proba(features_of_all)[:, 1], abs=2e-3
        )


def test_informative_words_are_learned(tmp_path: Path) -> None:
    rows = make_stays("multiclass")
    tables = predict(write(tmp_path / "cohort.parquet", **rows), "multiclass")
    held_out = np.array([split == "held_out" for split in rows["splits"]])
    truth = np.array(rows["answers"])[held_out]
    hits = {
        name: float(np.mean(array(table)[held_out].argmax(axis=1) == truth))
        for name, table in tables.items()
    }
    assert hits[TFIDF] == 1.0 and max(hits["prevalence"], hits[LENGTH], hits[ADMISSION]) < 0.7


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_nothing_is_learned_from_held_out_stays(tmp_path: Path, kind: ProblemType) -> None:
    rows = make_stays(kind)
    clean = predict(write(tmp_path / "clean.parquet", **rows), kind)
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
    after = predict(write(tmp_path / "poisoned.parquet", **poisoned), kind)
    same = [at for at in range(120) if at not in held_out[1:]]
    for name, table in clean.items():
        assert array(after[name])[same].tolist() == array(table)[same].tolist(), name


def test_predictions_are_reproducible_to_the_last_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "cohort.parquet", **make_stays("multilabel"))
    assert all(
        table.equals(again)
        for table, again in zip(
            predict(path, "multilabel").values(), predict(path, "multilabel").values(), strict=True
        )
    )


def test_of_too_many_notes_the_seed_draws_those_that_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MAX_VOCABULARY_NOTES", 20)
    path, label_space = (
        write(tmp_path / "cohort.parquet", **make_stays("multiclass")),
        make_label_space("multiclass", 3),
    )
    first, again, other = (
        array(dict(baselines.predict_baselines(path, label_space, seed, [TFIDF]))[TFIDF]).tolist()
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_classes_that_training_never_saw_are_given_next_to_no_chance(tmp_path: Path) -> None:
    rows = make_stays("multiclass", classes=3)
    path = write(tmp_path / "one.parquet", **rows)
    for name, table in predict(path, "multiclass", 5).items():
        assert array(table)[:, 3:].max() <= 1.1e-7, name
    path = write(tmp_path / "all.parquet", **make_stays("multilabel"))
    for name, table in predict(path, "multilabel", 5).items():
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
    probabilities = array(predict(path, "binary", 2, [LENGTH])[LENGTH])
    logs = np.log(1 + np.array([*words, 20]))
    columns = np.stack([logs, logs**2], axis=1)
    columns = (columns - columns[:8].mean(axis=0)) / columns[:8].std(axis=0)
    assert probabilities == pytest.approx(
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
    stays = features.open_baseline_cohort(path, make_label_space("binary", 2))
    fitted = features.fit_admission_features(
        stays, make_label_space("binary", 2), np.random.default_rng(0)
    )
    deviation = np.sqrt(125)  # of 50, 60, 80, 70, whose mean is 65
    # age, age unknown, sex unknown, F, M, admission type unknown
    assert fitted.compute_features(np.array([0, 4, 6, 7])) == pytest.approx(
        np.array(
            [
                [-15 / deviation, 0, 0, 1, 0, 1],
                [5 / deviation, 0, 1, 0, 0, 1],
                [0, 1, 1, 0, 0, 1],
                [0, 0, 0, 0, 0, 1],
            ]
        )
    )
    assert np.isfinite(array(predict(path, "binary", 2, [ADMISSION])[ADMISSION])).all()


def test_a_baseline_without_its_columns_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = make_stays("multiclass")
    path = write(tmp_path / "cohort.parquet", rows["splits"], rows["answers"], rows["texts"])
    assert ADMISSION not in predict(path, "multiclass")
    reasons = baselines.find_unavailable_baselines(path, make_label_space("multiclass", 3))
    assert list(reasons) == [ADMISSION]
    assert "age_years, sex, admission_type" in reasons[ADMISSION]
    assert (
        baselines.find_unavailable_baselines(write(path, **rows), make_label_space("multiclass", 3))
        == {}
    )


def test_texts_without_a_word_and_notes_of_equal_length_are_no_obstacle(tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["tuning", "held_out"]
    path = write(tmp_path / "cohort.parquet", splits, [0, 1, 0, 1, 0, 1], ["?"] * 6)
    for name, table in predict(path, "binary", 2).items():
        assert array(table) == pytest.approx(np.full((6, 2), 0.5), abs=1e-6), name


def test_texts_are_read_across_row_groups(tmp_path: Path) -> None:
    texts = [f"text {at}" for at in range(50)]
    path = write(tmp_path / "cohort.parquet", ["train"] * 50, [at % 2 for at in range(50)], texts)
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    stays = features.open_baseline_cohort(path, make_label_space("binary", 2))
    selected = np.array([0, 6, 7, 29, 49])
    assert list(stays.iterate_texts(selected)) == [texts[row] for row in selected]
    assert list(stays.iterate_texts(np.arange(50))) == texts


def test_what_is_no_cohort_of_the_task_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "cohort.parquet", **make_stays("multiclass"))
    with pytest.raises(UsageError) as usage_error:
        predict(path, "multiclass", 3, ["magic"])
    assert "'magic'" in usage_error.value.message and "prevalence" in usage_error.value.hint
    with pytest.raises(InputError, match="120") as error:
        predict(path, "multilabel", 3)
    assert error.value.location == str(path)
    with pytest.raises(InputError, match=r"0 to 2\b.*\b2 classes"):
        predict(path, "binary", 2)
    missing = tmp_path / "nothing.parquet"
    with pytest.raises(InputError) as error:
        predict(missing, "binary", 2)
    assert error.value.location == str(missing)
    with pytest.raises(InputError, match="train") as error:
        predict(write(path, ["held_out"], [0], ["a word"]), "binary", 2)
    assert error.value.location == str(path)
