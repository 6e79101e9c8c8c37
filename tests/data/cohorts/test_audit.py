"""Every measurement of the audit finds its leak in a synthetic cohort and passes a clean one."""

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
import scipy.sparse as sp

from clinpeft.core import schemas
from clinpeft.core.errors import InputError, StorageError
from clinpeft.data.cohorts import cohort_files, leakage
from clinpeft.data.cohorts.leakage import overlap, words

VOCABULARY = [
    f"{a}{b}{c}"
    for a in ("ba", "ko", "mi", "ru", "ta", "ve")
    for b in ("lan", "dor", "sim", "pel", "gar")
    for c in ("o", "us", "ia", "en")
]
SENTENCE = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_prose() -> None:
    """The same words in every test, whatever ran before."""
    SENTENCE.bit_generator.state = np.random.default_rng(0).bit_generator.state


def prose(many_words: int = 200) -> str:
    return " ".join(SENTENCE.choice(VOCABULARY, many_words))


def note(complaint: str, exam: str = "lungs clear") -> str:
    return f"CHIEF COMPLAINT: {complaint}\n\nPHYSICAL EXAM: {exam}"


def split_of(location: int) -> str:
    return "train" if location % 10 < 7 else "tuning" if location % 10 == 7 else "held_out"


def cohort(path: Path, texts: Sequence[str], **columns: object) -> Path:
    """Stays 0, 1, 2 ... of as many people; 70/10/20; every third one died."""
    n = len(texts)
    labels = (
        {} if "labels" in columns else {"label": [int(location % 3 == 0) for location in range(n)]}
    )
    plain: dict[str, object] = {
        "subject_id": list(range(n)),
        "stay_id": list(range(n)),
        "prediction_time": [datetime.datetime(2150, 1, 1)] * n,
        "split": [split_of(location) for location in range(n)],
        "text": list(texts),
    }
    pq.write_table(
        schemas.build_arrow_table(schemas.COHORT_SCHEMA, plain | labels | columns),
        path / "cohort.parquet",
    )
    return path / "cohort.parquet"


def corpus(
    path: Path, texts: Sequence[str], subjects: Sequence[int], splits: Sequence[str]
) -> Path:
    rows = {
        "note_id": [str(location) for location in range(len(texts))],
        "subject_id": subjects,
        "split": splits,
        "text": texts,
    }
    pq.write_table(schemas.build_arrow_table(schemas.CORPUS_SCHEMA, rows), path / "corpus.parquet")
    return path / "corpus.parquet"


def run_audit(path: Path, **options: Any) -> leakage.LeakageAudit:
    arguments: dict[str, Any] = {
        "classes": ("survived", "died"),
        "kind": "binary",
        "folder": path,
        "seed": 1,
        "task_name": "mortality",
    }
    return leakage.audit_leakage(path / "cohort.parquet", **(arguments | options))


def test_a_clean_cohort_passes_every_item_and_is_written_down(tmp_path: Path) -> None:
    cohort(tmp_path, [note(prose()) for _ in range(300)])
    adapted = corpus(tmp_path, [prose() for _ in range(20)], range(1000, 1020), ["train"] * 20)
    result = run_audit(tmp_path, adaptation_corpus=adapted, titles={"died": ["never written"]})
    assert {finding.name: finding.verdict for finding in result.findings} == dict.fromkeys(
        (
            *(
                "subjects_in_several_splits",
                "equal_notes_across_splits",
                "near_notes_across_splits",
                "held_out_subjects_in_adaptation",
            ),
            *(
                "held_out_notes_in_adaptation",
                "outcome_words",
                "bag_of_words",
                "shuffled_answers",
                "class_names_in_text",
            ),
        ),
        "ok",
    )
    assert result.verdict == "ok"
    written = json.loads((tmp_path / "leakage.json").read_text())
    assert written == result.as_json()
    assert sorted(tmp_path.iterdir()) == [
        tmp_path / name for name in ("cohort.parquet", "corpus.parquet", "leakage.json")
    ]


def test_a_person_in_two_splits_stops(tmp_path: Path) -> None:
    cohort(
        tmp_path,
        [note(prose()) for _ in range(20)],
        subject_id=[3 if location in (0, 9) else location + 100 for location in range(20)],
    )
    finding = run_audit(tmp_path).get_finding("subjects_in_several_splits")
    assert (finding.value, finding.verdict, finding.detail["subjects"]) == (1, "stop", 19)


def test_equal_notes_across_splits_are_found_whatever_the_marks(tmp_path: Path) -> None:
    texts = [note(prose(12)) for _ in range(20)]
    texts[0], texts[8] = (
        "Seen by [**First Name 12**] on [**2150-1-2**]: well",
        "seen by ___ on ___ : WELL",
    )
    texts[7] = texts[9]  # of tuning and held_out
    texts[1] = texts[2]  # both of train: nobody is asked
    cohort(tmp_path, texts)
    finding = run_audit(tmp_path).get_finding("equal_notes_across_splits")
    assert (finding.value, finding.verdict, finding.detail["stays_asked"]) == (2, "stop", 6)


def test_empty_notes_are_no_copies_of_each_other(tmp_path: Path) -> None:
    cohort(tmp_path, ["___" for _ in range(20)])
    result = run_audit(tmp_path)
    assert result.get_finding("equal_notes_across_splits").value == 0
    assert result.get_finding("near_notes_across_splits").verdict == "not measured"


def test_a_held_out_note_that_stands_inside_a_longer_training_note_is_found(tmp_path: Path) -> None:
    texts = [prose() for _ in range(20)]
    texts[3] = f"{prose(600)} {texts[8]} {prose(600)}"
    cohort(tmp_path, texts)
    finding = run_audit(tmp_path).get_finding("near_notes_across_splits")
    assert (finding.value, finding.verdict, finding.detail["long_enough"]) == (1, "stop", 6)


def test_held_out_people_and_notes_in_the_adaptation_corpus_are_found_in_its_train_split_only(
    tmp_path: Path,
) -> None:
    texts = [prose() for _ in range(20)]
    cohort(tmp_path, texts)
    marked = texts[8].replace(" ", " [**Hospital1 18**] ", 1)
    adapted = corpus(
        tmp_path,
        [f"{prose()} {marked}", texts[9], texts[0]],
        [8, 9, 0],
        ["train", "tuning", "train"],
    )
    result = run_audit(tmp_path, adaptation_corpus=adapted)
    assert result.get_finding("held_out_subjects_in_adaptation").value == 1
    assert result.get_finding("held_out_notes_in_adaptation").value == 1
    assert result.verdict == "stop"
    assert run_audit(tmp_path).get_finding("held_out_notes_in_adaptation").verdict == "not measured"


def test_outcome_words_are_counted_by_section_and_class(tmp_path: Path) -> None:
    texts = [note(prose(20)) for _ in range(12)]
    texts[0] = note("pain", "he expired")  # 0, 3, 6, 9 died
    texts[3] = note("Family says he died", "Pronounced. Died.")
    texts[1] = note("mother DECEASED")
    cohort(tmp_path, texts)
    finding = run_audit(tmp_path).get_finding("outcome_words")
    assert finding.value == 3
    assert finding.detail["stays_by_section"] == {
        "CHIEF COMPLAINT": {"died": 1, "survived": 1},
        "PHYSICAL EXAM": {"died": 2},
    }
    assert finding.detail["stays"] == {"died": 2, "survived": 1}
    assert finding.detail["asked"] == {"died": 4, "survived": 8}
    # (2.5 / 5) / (1.5 / 9), by hand
    assert finding.detail["ratio"] == 3.0
    assert finding.verdict == "look"


def test_a_word_that_only_the_dead_have_stops_and_tops_the_probe(tmp_path: Path) -> None:
    texts = [
        note(prose(60), "patient expired" if location % 3 == 0 else "lungs clear")
        for location in range(150)
    ]
    cohort(tmp_path, texts)
    result = run_audit(tmp_path)
    assert result.get_finding("outcome_words").verdict == "stop"
    probe = result.get_finding("bag_of_words")
    assert probe.value == 1.0
    assert probe.verdict == "stop"
    assert probe.detail["words_that_tell"] == ["expired"]
    assert result.get_finding("shuffled_answers").verdict == "ok"


def test_a_word_of_few_people_is_never_printed(tmp_path: Path) -> None:
    texts = [
        note(prose(30), "zanzibar" if location % 3 == 0 and location < 30 else "lungs clear")
        for location in range(150)
    ]
    cohort(tmp_path, texts)  # 0, 3, 6, 12, 15, 21, 24 ... of train: 7 people
    run_audit(tmp_path)
    assert "zanzibar" not in (tmp_path / "leakage.json").read_text()
    many = [
        note(prose(30), "zanzibar" if location % 3 == 0 and location < 90 else "lungs clear")
        for location in range(150)
    ]
    cohort(tmp_path, many)
    run_audit(tmp_path)
    assert "zanzibar" in (tmp_path / "leakage.json").read_text()
    cohort(
        tmp_path,
        many,
        subject_id=[location if location % 3 else 7000 + location % 10 for location in range(150)],
    )  # the same notes, of 10 people and fewer in train
    run_audit(tmp_path)
    assert "zanzibar" not in (tmp_path / "leakage.json").read_text()


def test_no_sentence_of_a_note_is_written(tmp_path: Path) -> None:
    cohort(
        tmp_path,
        [
            note(f"{prose(5)} unmistakable{location} sentence {prose(80)}")
            for location in range(100)
        ],
    )
    run_audit(tmp_path, titles={"died": ["unmistakable3 sentence"]})
    written = (tmp_path / "leakage.json").read_text()
    assert "unmistakable" not in written.replace("unmistakable3 sentence", "")


def test_the_probe_takes_a_sample_of_many_stays_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "MAX_PROBED_STAYS", 100)
    cohort(tmp_path, [note(prose()) for _ in range(300)])
    for name in ("bag_of_words", "shuffled_answers"):
        assert run_audit(tmp_path).get_finding(name).detail["stays_probed_of"] == {
            "train": [100, 210],
            "held_out": [60, 60],
        }


def test_a_probe_without_both_answers_is_not_measured(tmp_path: Path) -> None:
    cohort(tmp_path, [note(prose()) for _ in range(30)], label=[0] * 30)
    result = run_audit(tmp_path)
    assert (
        result.get_finding("bag_of_words").verdict
        == result.get_finding("shuffled_answers").verdict
        == "not measured"
    )
    assert result.get_finding("bag_of_words").value is None


@pytest.mark.parametrize(
    ("aurocs", "verdict"),
    [
        ((0.49, 0.5, 0.52, 0.5, 0.5), "ok"),
        ((0.8, 0.81, 0.79, 0.8, 0.8), "stop"),
        ((0.2, 0.9, 0.6, 0.9, 0.3), "ok"),
    ],
)
def test_an_evaluation_that_knows_shuffled_answers_stops(
    aurocs: tuple[float, ...], verdict: str
) -> None:
    assert (
        leakage._report_shuffled_labels("shuffled_answers", np.array(aurocs), 0.02, {}).verdict
        == verdict
    )


def test_class_names_in_the_text_are_counted(tmp_path: Path) -> None:
    labels = [[0], [0, 1], [1], [], [2]]
    texts = [
        "known Heart-Failure, old",
        "heart failure",
        "heart failure and asthma",
        "asthma",
        "asthmatic",
    ]
    cohort(tmp_path, texts, labels=labels)
    options: dict[str, Any] = {
        "classes": ("428", "493", "486"),
        "kind": "multilabel",
        "task_name": "diagnoses",
    }
    titles = {
        "428": ["Cardiac decompensation", "Heart failure"],
        "493": ["Asthma"],
        "000": ["unused"],
    }
    finding = run_audit(tmp_path, **options, titles=titles).get_finding("class_names_in_text")
    assert finding.value == 0.75  # 428 in two of two, 493 in one of two, 486 has no title
    assert finding.detail["named_of_answered"] == {"428": [2, 2], "493": [1, 2]}
    assert finding.verdict == "stop"
    assert (
        run_audit(tmp_path, **options).get_finding("class_names_in_text").verdict == "not measured"
    )


def test_several_classes_are_probed_one_by_one(tmp_path: Path) -> None:
    stems = ("short", "middle", "long")
    texts = [note(f"{prose(40)} {stems[location % 3]}") for location in range(200)]
    cohort(tmp_path, texts, label=[location % 3 for location in range(200)])
    detail = (
        run_audit(tmp_path, classes=stems, kind="multiclass", task_name="length_of_stay")
        .get_finding("bag_of_words")
        .detail
    )
    classes = detail["classes"]
    assert isinstance(classes, dict)
    assert {name: probe["top"][0][0] for name, probe in classes.items()} == {
        stem: stem for stem in stems
    }
    assert min(probe["auroc"] for probe in classes.values()) > 0.9


def test_an_unknown_task_has_no_words_to_look_for(tmp_path: Path) -> None:
    cohort(tmp_path, [note(prose(20)) for _ in range(12)])
    finding = run_audit(tmp_path, task_name="frailty").get_finding("outcome_words")
    assert finding.verdict == "not measured"
    assert "'frailty'" in finding.meaning


def test_an_empty_cohort_is_audited_without_an_answer(tmp_path: Path) -> None:
    cohort(tmp_path, [])
    result = run_audit(tmp_path)
    assert result.get_finding("near_notes_across_splits").verdict == "not measured"
    assert result.get_finding("subjects_in_several_splits").value == 0


def test_the_same_seed_finds_the_same(tmp_path: Path) -> None:
    cohort(tmp_path, [note(prose(60)) for _ in range(120)])
    assert run_audit(tmp_path) == run_audit(tmp_path)


def test_a_file_that_is_no_cohort_is_refused_by_its_column(tmp_path: Path) -> None:
    path = cohort(tmp_path, [note("a")])
    pq.write_table(pq.read_table(path).drop_columns(["stay_id"]), path)
    with pytest.raises(InputError, match="'stay_id'") as error:
        run_audit(tmp_path)
    assert error.value.location == str(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=path.name) as error:
        run_audit(tmp_path)
    assert error.value.location == str(path)


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ({"label": [2, 0]}, "0 to 2"),
        ({"label": [None, 0]}, "1 stays"),
        ({"split": ["train", "test"]}, "'test'"),
    ],
)
def test_answers_and_splits_that_are_none_are_refused(
    tmp_path: Path, columns: dict[str, Any], value: str
) -> None:
    path = cohort(tmp_path, ["a", "b"], **columns)
    with pytest.raises(InputError, match=value) as error:
        run_audit(tmp_path)
    assert error.value.location == str(path)


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    cohort(tmp_path, ["a"])
    with pytest.raises(StorageError, match=r"leakage\.json"):
        run_audit(tmp_path, folder=tmp_path / "cohort.parquet")


def test_words_are_compared_without_marks_case_and_signs() -> None:
    texts = pa.array(
        ["Mr. [**Last Name (un) 3**], 70 y/o\n", "mr [NAME] 70 Y O ____", ""], pa.large_string()
    )
    assert overlap.normalize_note_words(texts).to_pylist() == ["mr 70 y o", "mr 70 y o", ""]


def test_five_word_pieces_do_not_cross_from_one_note_to_the_next() -> None:
    texts = [" ".join(f"{name}{location}" for location in range(400)) for name in "ab"]
    all_notes, all_hashes = overlap.sample_shingles(pa.array([texts[0], "", "one two", texts[1]]))
    separate_hashes = [overlap.sample_shingles(pa.array([text]))[1] for text in texts]
    assert all_hashes.tolist() == [*separate_hashes[0].tolist(), *separate_hashes[1].tolist()]
    assert set(all_notes.tolist()) == {0, 3}
    assert (
        2 * 396 / overlap.SHINGLE_SAMPLING_DIVISOR * 0.7
        < len(all_hashes)
        < 2 * 396 / overlap.SHINGLE_SAMPLING_DIVISOR * 1.3
    )


def test_phrases_that_every_note_has_make_no_copies() -> None:
    template = prose(150)
    texts = pa.array(
        [f"{template} {prose(150)}" for _ in range(overlap.MIN_COMMON_SHINGLE_NOTES + 5)],
        pa.large_string(),
    )
    everything = [(np.arange(len(texts)), texts)]
    others = pa.array([f"{template} {prose(150)}" for _ in range(10)], pa.large_string())
    sketches = overlap.sketch_notes(everything)
    assert sketches.comparable_mask.all()
    assert not overlap.find_contained_notes(sketches, [(np.arange(10), others)]).any()
    assert overlap.find_contained_notes(sketches, everything).all()


def test_texts_are_read_by_row(tmp_path: Path) -> None:
    path = cohort(tmp_path, [str(location) for location in range(5000)])
    mask = np.zeros(5000, np.bool_)
    mask[[0, 2047, 2048, 4999]] = True
    rows_and_texts = [
        (row, text)
        for rows, texts in cohort_files.iterate_text_batches(path, mask)
        for row, text in zip(rows.tolist(), texts.to_pylist(), strict=True)
    ]
    assert rows_and_texts == [(0, "0"), (2047, "2047"), (2048, "2048"), (4999, "4999")]


def test_ties_of_two_classes_are_one_question() -> None:
    side = words.ProbeSample(
        ["a"] * 4, np.arange(4), sp.csr_array(np.array([[1, 0], [0, 1], [1, 0], [0, 1]]))
    )
    assert words.select_probe_classes(side, side) == [1]
