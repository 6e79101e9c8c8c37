"""A cohort of invented people as a MEDS data set, held to the standard's own schemas where they are
installed."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft.core import schemas
from clinpeft.core.errors import InputError, StorageError
from clinpeft.core.schemas import ProblemType
from clinpeft.data.cohorts import meds


def at(day: int) -> datetime.datetime:
    return datetime.datetime(2150, 1, day, 8)


def cohort(path: Path, **columns: object) -> Path:
    """Person 7 has two stays, the later one written first; 5 and 9 are tuned on and held out."""
    plain: dict[str, object] = {
        "subject_id": [7, 9, 7, 5],
        "stay_id": [71, 90, 70, 50],
        "prediction_time": [at(20), at(3), at(2), at(4)],
        "split": ["train", "held_out", "train", "tuning"],
        "text": ["second", "nine", "first", "five"],
    }
    labels: dict[str, object] = {} if "labels" in columns else {"label": [1, 0, 0, 1]}
    pq.write_table(
        schemas.build_arrow_table(schemas.COHORT_SCHEMA, plain | labels | columns),
        path / "cohort.parquet",
    )
    return path / "cohort.parquet"


def written(
    path: Path,
    kind: ProblemType = "binary",
    classes: tuple[str, ...] = ("survived", "died"),
    **options: Any,
) -> Path:
    meds.write_meds_dataset(
        path / "cohort.parquet", kind, classes, path / "meds", "mimic-iv", "2.2", **options
    )
    return path / "meds"


def test_the_notes_stand_by_person_and_time_in_the_file_of_their_split(tmp_path: Path) -> None:
    cohort(tmp_path)
    folder = written(tmp_path)
    train = pq.read_table(folder / "data/train/0.parquet")
    assert train.schema == meds.MEDS_DATA_SCHEMA
    assert train.to_pylist() == [
        {
            "subject_id": 7,
            "time": at(day),
            "code": "NOTE//mimic-iv//Admission note",
            "numeric_value": None,
            "text_value": text,
            "note_id": str(stay),
            "hadm_id": stay,
        }
        for day, text, stay in ((2, "first", 70), (20, "second", 71))
    ]
    assert pq.read_table(folder / "data/tuning/0.parquet")["text_value"].to_pylist() == ["five"]
    assert pq.read_table(folder / "data/held_out/0.parquet")["text_value"].to_pylist() == ["nine"]
    assert pq.read_table(folder / "metadata/subject_splits.parquet").to_pylist() == [
        {"subject_id": 5, "split": "tuning"},
        {"subject_id": 7, "split": "train"},
        {"subject_id": 9, "split": "held_out"},
    ]
    assert sorted(
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()
    ) == [
        "data/held_out/0.parquet",
        "data/train/0.parquet",
        "data/tuning/0.parquet",
        "labels.json",
        "labels/label.parquet",
        "metadata/codes.parquet",
        "metadata/dataset.json",
        "metadata/subject_splits.parquet",
    ]


def test_a_binary_question_has_one_file_of_truths(tmp_path: Path) -> None:
    cohort(tmp_path)
    labels = pq.read_table(
        written(tmp_path, task_name="in-hospital mortality")
        / "labels/in-hospital_mortality.parquet"
    )
    assert labels.to_pylist() == [
        {"subject_id": 5, "prediction_time": at(4), "boolean_value": True},
        {"subject_id": 7, "prediction_time": at(2), "boolean_value": False},
        {"subject_id": 7, "prediction_time": at(20), "boolean_value": True},
        {"subject_id": 9, "prediction_time": at(3), "boolean_value": False},
    ]


def test_a_multiclass_question_has_one_file_of_indices(tmp_path: Path) -> None:
    cohort(tmp_path, label=[2, 0, 1, 2])
    labels = pq.read_table(
        written(tmp_path, "multiclass", ("a", "b", "c")) / "labels/label.parquet"
    )
    assert labels["integer_value"].to_pylist() == [2, 1, 2, 0]
    assert labels.column_names == ["subject_id", "prediction_time", "integer_value"]


def test_a_multilabel_question_has_a_file_a_class(tmp_path: Path) -> None:
    cohort(tmp_path, labels=[[0, 2], [], [1], [2]])
    folder = written(tmp_path, "multilabel", ("401", "4/0", "4 0"))
    truths = {
        file.stem: pq.read_table(file)["boolean_value"].to_pylist()
        for file in sorted((folder / "labels").iterdir())
    }
    assert truths == {
        "401": [False, False, True, False],
        "4_0_1": [False, True, False, False],
        "4_0_2": [True, False, True, False],
    }
    files = json.loads((folder / "labels.json").read_text())["files"]
    assert [(entry["file"], entry["class"]) for entry in files] == [
        ("labels/401.parquet", "401"),
        ("labels/4_0_1.parquet", "4/0"),
        ("labels/4_0_2.parquet", "4 0"),
    ]


def test_more_classes_than_files_go_into_one_long_table_and_the_folder_says_so(
    tmp_path: Path,
) -> None:
    cohort(tmp_path, labels=[[0, 300], [], [1], [2]])
    folder = written(tmp_path, "multilabel", tuple(f"c{location}" for location in range(301)))
    assert list((folder / "labels").iterdir()) == []
    assert pq.read_table(folder / "labels_long.parquet").to_pylist() == [
        {"subject_id": 5, "prediction_time": at(4), "class": "c2"},
        {"subject_id": 7, "prediction_time": at(2), "class": "c1"},
        {"subject_id": 7, "prediction_time": at(20), "class": "c0"},
        {"subject_id": 7, "prediction_time": at(20), "class": "c300"},
    ]
    assert (
        "301 classes are more than 200 files"
        in json.loads((folder / "labels.json").read_text())["note"]
    )


def test_two_builds_of_one_cohort_are_equal_and_the_clock_is_the_callers(tmp_path: Path) -> None:
    cohort(tmp_path)
    first = {file: file.read_bytes() for file in written(tmp_path).rglob("*") if file.is_file()}
    assert {
        file: file.read_bytes() for file in written(tmp_path).rglob("*") if file.is_file()
    } == first
    metadata = json.loads(
        (written(tmp_path, created_at=at(9)) / "metadata/dataset.json").read_text()
    )
    assert metadata["created_at"] == "2150-01-09T08:00:00"
    assert metadata["raw_source_id_columns"] == ["note_id", "hadm_id"]


def test_every_file_holds_to_the_schemas_of_the_standard(tmp_path: Path) -> None:
    standard = pytest.importorskip(
        "meds",
        reason=(
            "the meds package, which has the schemas of the standard, is not installed: pip "
            "install clinpeft[dev]"
        ),
    )
    cohort(tmp_path)
    folder = written(tmp_path, created_at=at(9))
    for file in sorted((folder / "data").rglob("*.parquet")):
        assert standard.DataSchema.validate(pq.read_table(file)) is None
    assert standard.LabelSchema.validate(pq.read_table(folder / "labels/label.parquet")) is None
    assert (
        standard.SubjectSplitSchema.validate(
            pq.read_table(folder / standard.subject_splits_filepath)
        )
        is None
    )
    assert (
        standard.CodeMetadataSchema.validate(
            pq.read_table(folder / standard.code_metadata_filepath)
        )
        is None
    )
    standard.DatasetMetadataSchema.validate(
        json.loads((folder / standard.dataset_metadata_filepath).read_text())
    )
    cohort(tmp_path, label=[2, 0, 1, 2])
    assert (
        standard.LabelSchema.validate(
            pq.read_table(written(tmp_path, "multiclass", ("a", "b", "c")) / "labels/label.parquet")
        )
        is None
    )


def test_an_empty_cohort_is_an_empty_data_set(tmp_path: Path) -> None:
    nothing: list[object] = []
    cohort(
        tmp_path,
        subject_id=nothing,
        stay_id=nothing,
        prediction_time=nothing,
        split=nothing,
        text=nothing,
        label=nothing,
    )
    folder = written(tmp_path)
    assert pq.read_table(folder / "data/train/0.parquet").num_rows == 0
    assert pq.read_table(folder / "labels/label.parquet").num_rows == 0


def test_a_person_in_two_splits_is_refused(tmp_path: Path) -> None:
    cohort(tmp_path, subject_id=[7, 9, 7, 7])
    with pytest.raises(InputError, match=r"^1 subjects "):
        written(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    cohort(tmp_path)
    (tmp_path / "meds").write_text("in the way")
    with pytest.raises(StorageError) as error:
        written(tmp_path)
    assert error.value.location == str(tmp_path / "meds")


def test_labels_are_read_back_as_written(tmp_path: Path) -> None:
    cohort(tmp_path)
    labels = meds.read_meds_labels(written(tmp_path) / "labels")
    assert labels.schema == meds.MEDS_LABEL_SCHEMA
    assert labels.select(["subject_id", "boolean_value", "integer_value"]).to_pydict() == {
        "subject_id": [5, 7, 7, 9],
        "boolean_value": [True, False, True, False],
        "integer_value": [None] * 4,
    }


GOOD: dict[str, pa.Array] = {
    "subject_id": pa.array([1, 2], pa.int32()),
    "prediction_time": pa.array([at(1), at(2)], pa.timestamp("ms")),
    "boolean_value": pa.array([True, None]),
}


def test_narrower_types_of_other_writers_are_widened(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(GOOD | {"float_value": pa.array([0.5, 1.5], pa.float64())}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table(GOOD), tmp_path / "b.parquet")
    labels = meds.read_meds_labels(tmp_path)
    assert labels["prediction_time"].to_pylist() == [at(1), at(2)] * 2
    assert labels["float_value"].to_pylist() == [0.5, 1.5, None, None]


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ({"label": pa.array([1, 2])}, "'label'"),
        ({"subject_id": pa.array([1, None], pa.int64())}, "'subject_id' has 1 "),
        ({"subject_id": pa.array(["1", "2"])}, "'subject_id' is string.*int64"),
        (
            {"prediction_time": pa.array([at(1), at(2)], pa.timestamp("us", "UTC"))},
            "'prediction_time' is timestamp",
        ),
        ({"boolean_value": pa.array([1, 0])}, "'boolean_value' is int64.*bool"),
        (
            {"boolean_value": pa.array([None, None], pa.bool_())},
            "boolean_value, integer_value, float_value, categorical_value",
        ),
        (
            {"integer_value": pa.array([2**63, 0], pa.uint64())},
            "'integer_value'.*int64",
        ),
    ],
)
def test_a_label_file_that_is_not_by_the_schema_is_refused_by_its_column(
    tmp_path: Path, columns: dict[str, pa.Array], value: str
) -> None:
    pq.write_table(pa.table(GOOD | columns), tmp_path / "labels.parquet")
    with pytest.raises(InputError, match=value) as error:
        meds.read_meds_labels(tmp_path / "labels.parquet")
    assert error.value.location == str(tmp_path / "labels.parquet")


def test_missing_columns_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        meds.read_meds_labels(tmp_path)
    assert error.value.location == str(tmp_path)
    pq.write_table(pa.table({"subject_id": pa.array([1])}), tmp_path / "labels.parquet")
    with pytest.raises(InputError, match="'prediction_time'"):
        meds.read_meds_labels(tmp_path / "labels.parquet")
    with pytest.raises(InputError) as error:
        meds.read_meds_labels(tmp_path / "other.parquet")
    assert error.value.location == str(tmp_path / "other.parquet")
