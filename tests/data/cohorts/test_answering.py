"""The label space of a cohort, and whether a classifier can be trained and scored on it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clinpeft.core import schemas
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import COHORT_SCHEMA, LabelSpace
from clinpeft.data import cohorts


def cohort(folder: Path, kind: str, splits: list[str], answers: list[object], classes: int) -> Path:
    """A cohort with one subject a row, classes named by letters."""
    folder.mkdir(exist_ok=True)
    filled = "labels" if kind == "multilabel" else "label"
    numbers = list(range(len(splits)))
    times = [datetime.datetime(2100, 1, 1)] * len(splits)
    rows = {
        "subject_id": numbers,
        "stay_id": numbers,
        "prediction_time": times,
        "split": splits,
        filled: answers,
        "text": ["words"] * len(splits),
    }
    pq.write_table(schemas.build_arrow_table(COHORT_SCHEMA, rows), folder / "cohort.parquet")
    entries = [
        {"index": at, "name": "ABCDEFGHIJ"[at], "system": "icd9", "train_stays": at}
        for at in range(classes)
    ]
    document = {
        "task": "asked",
        "question": "?",
        "kind": kind,
        "metric": "auroc_ovo",
        "classes": entries,
        "left_out": [],
    }
    (folder / "labels.json").write_text(json.dumps(document))
    return folder


def test_the_question_stands_in_the_folder(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "multiclass", ["train"], [0], 2)
    assert cohorts.read_label_space(folder) == LabelSpace(
        "asked", "multiclass", ("A", "B"), ("icd9", "icd9"), (0, 1), "auroc_ovo"
    )
    with pytest.raises(InputError, match=r"labels\.json") as error:
        cohorts.read_label_space(tmp_path / "nothing")
    assert error.value.location == str(tmp_path / "nothing")


def test_every_question_has_one_of_three_main_metrics() -> None:
    expected = {"binary": "auroc", "multiclass": "auroc_ovo", "multilabel": "auroc_macro"}
    assert {name: task.metric for name, task in cohorts.CLINICAL_TASKS.items()} == {
        name: expected[task.kind] for name, task in cohorts.CLINICAL_TASKS.items()
    }


def test_a_training_split_of_one_class_is_refused_by_the_name_of_the_class(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "binary", ["train", "train", "held_out"], [1, 1, 0], 2)
    with pytest.raises(InputError, match=r"2 .* asked .* 'B'") as error:
        cohorts.check_cohort_classes(folder)
    assert error.value.location == str(folder / "cohort.parquet")
    cohorts.check_cohort_classes(
        cohort(tmp_path, "multilabel", ["train", "train", "held_out"], [[1], [1], [0]], 2)
    )  # one label is a question
    with pytest.raises(InputError, match="no training stay of asked"):
        cohorts.check_cohort_classes(
            cohort(tmp_path, "multilabel", ["train", "held_out"], [[], [0]], 2)
        )


@pytest.mark.parametrize("missing", ["train", "held_out"])
def test_a_split_without_anybody_is_refused(tmp_path: Path, missing: str) -> None:
    other = "train" if missing == "held_out" else "held_out"
    with pytest.raises(InputError, match=f"split {missing} "):
        cohorts.check_cohort_classes(cohort(tmp_path, "binary", [other, other], [0, 1], 2))


def test_classes_never_seen_and_classes_of_nobody_held_out_are_told(tmp_path: Path) -> None:
    folder = cohort(
        tmp_path,
        "multiclass",
        ["train", "train", "tuning", "held_out", "held_out"],
        [0, 1, 3, 1, 2],
        4,
    )
    cohorts.check_cohort_classes(folder)
    assert cohorts.find_class_notices(folder) == (
        "asked: the class 'C' is in held_out and in no training stay: it cannot be learned",
        "asked: 2 classes ('A', 'D') are in no held-out stay: their metrics are undefined",
    )
    assert (
        cohorts.find_class_notices(
            cohort(tmp_path, "binary", ["train", "train", "held_out", "held_out"], [0, 1, 0, 1], 2)
        )
        == ()
    )


def test_of_many_classes_the_first_five_are_named(tmp_path: Path) -> None:
    (notice,) = cohorts.find_class_notices(
        cohort(tmp_path, "multilabel", ["train", "held_out"], [[0, 1, 2, 3, 4, 5, 6], [0]], 7)
    )
    assert notice.startswith("asked: 6 classes ('B', 'C', 'D', 'E', 'F' and 1 more)")
