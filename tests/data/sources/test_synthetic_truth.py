"""The synthetic hospital: complete folders, defects at their rates, the best AUROC."""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from clinpeft.data import synthetic
from clinpeft.data.synthetic import (
    best_auroc,
    hospital,
    mimic_iii,
    mimic_iv,
    outcome_model,
    wording,
)
from clinpeft.data.synthetic.hospital import RandomStream

Shape = Literal["mimic-iii", "mimic-iv"]
SHAPES: tuple[Shape, ...] = ("mimic-iii", "mimic-iv")
PEOPLE = 250
KEYS = {"mimic-iii": ("ADMISSIONS", "HADM_ID"), "mimic-iv": ("hosp/admissions", "hadm_id")}
LINKED = {
    "mimic-iii": (
        "DIAGNOSES_ICD",
        "PROCEDURES_ICD",
        "ICUSTAYS",
        "CHARTEVENTS",
        "PROCEDUREEVENTS_MV",
        "NOTEEVENTS",
    ),
    "mimic-iv": (
        "hosp/diagnoses_icd",
        "hosp/procedures_icd",
        "icu/icustays",
        "icu/chartevents",
        "icu/procedureevents",
        "note/radiology",
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def generated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shape, Path]:
    folder = tmp_path_factory.mktemp("hospital") / request.param
    synthetic.write_synthetic_hospital(folder, PEOPLE, 3, request.param)
    return request.param, folder


def raw(folder: Path, name: str) -> list[dict[str, str]]:
    return list(
        csv.DictReader(
            io.StringIO(
                gzip.decompress((folder / f"{name}.csv.gz").read_bytes()).decode(), newline=""
            )
        )
    )


def test_every_file_has_the_columns_of_the_real_one(generated: tuple[Shape, Path]) -> None:
    shape, folder = generated
    headers = {"mimic-iii": mimic_iii.MIMIC_III_HEADERS, "mimic-iv": mimic_iv.MIMIC_IV_HEADERS}[
        shape
    ]
    files = {
        path.relative_to(folder).as_posix().removesuffix(".csv.gz")
        for path in folder.rglob("*.csv.gz")
    }
    assert files == set(headers)
    for name, header in headers.items():
        with gzip.open(folder / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            assert tuple(next(csv.reader(file))) == header
            assert all(len(row) == len(header) for row in csv.reader(file))


def test_ids_join(generated: tuple[Shape, Path]) -> None:
    shape, folder = generated
    table, key = KEYS[shape]
    admissions = [row[key] for row in raw(folder, table)]
    assert len(set(admissions)) == len(admissions)
    for name in LINKED[shape]:
        ids = {row[key] for row in raw(folder, name)} - {""}
        assert ids, name
        assert ids <= set(admissions), name


def test_defects_are_planted_at_their_rates(generated: tuple[Shape, Path]) -> None:
    """Four standard deviations around each rate."""
    shape, folder = generated
    counts, rates = synthetic.read_defect_counts(folder), synthetic.DEFAULT_SYNTHETIC_RATES
    admissions, notes = counts["admissions"], counts["notes"]
    radiology = sum(count for name, count in counts.items() if name.startswith("notes: radiology"))
    expected = [
        ("admissions without notes", admissions, rates.admissions_without_notes),
        ("discharges before the admission", PEOPLE, rates.discharges_before_admission),
        ("notes without HADM_ID", radiology, rates.reports_without_stay),
        ("codes with a trailing blank", counts["codes"], rates.padded_codes),
        ("exact duplicates", notes, rates.exact_duplicates),
        ("near duplicates", notes, rates.near_duplicates),
    ]
    if shape == "mimic-iii":
        expected += [
            ("newborn admissions", PEOPLE, rates.newborns),
            ("charted rows in error", counts["rows of CHARTEVENTS"], rates.charted_rows_in_error),
        ]
    for name, among, rate in expected:
        assert abs(counts.get(name, 0) - among * rate) <= 4 * (among * rate) ** 0.5 + 1, name
    assert counts["overlapping admissions"] > 0
    assert counts["codes with a leading zero"] > 0
    assert counts["charted values with a trailing blank"] > 0


def test_the_counts_are_those_of_the_files(generated: tuple[Shape, Path]) -> None:
    shape, folder = generated
    counts = synthetic.read_defect_counts(folder)
    if shape == "mimic-iii":
        rows = raw(folder, "NOTEEVENTS")
        assert counts["notes"] == len(rows)
        assert counts["notes in error"] == sum(row["ISERROR"] == "1" for row in rows)
        assert counts["newborn admissions"] == sum(
            row["ADMISSION_TYPE"] == "NEWBORN" for row in raw(folder, "ADMISSIONS")
        )
        assert counts["charted rows in error"] == sum(
            row["ERROR"] == "1" for row in raw(folder, "CHARTEVENTS")
        )
    else:
        rows = [*raw(folder, "note/discharge"), *raw(folder, "note/radiology")]
        assert counts["notes"] == len(rows)
        assert {row["icd_version"] for row in raw(folder, "hosp/diagnoses_icd")} == {"9", "10"}
        assert counts["rows of icu/chartevents"] == len(raw(folder, "icu/chartevents"))
    table = KEYS[shape][0]
    times = [{key.lower(): value for key, value in row.items()} for row in raw(folder, table)]
    assert counts["discharges before the admission"] == sum(
        row["dischtime"] < row["admittime"] for row in times
    )
    assert counts["deaths in hospital"] == sum(row["hospital_expire_flag"] == "1" for row in times)


def test_the_ceiling_is_the_auroc_of_the_true_probabilities(tmp_path: Path) -> None:
    """Mortality: positives 0.9 and 0.4, negatives 0.4, 0.2, 0.1: of six pairs five are in order and
    one is a tie, 5.5 / 6.

    Length of stay: class 0 is in order (1), of class 1 one pair in two is (0.5): 0.75 on average.
    Readmission: one class only, so no value.
    """
    lines = ["subject_id,stay_id,task,class,probability,label"]
    lines += [
        f"1,{n},mortality,1,{p},{y}"
        for n, (p, y) in enumerate([(0.9, 1), (0.4, 1), (0.4, 0), (0.2, 0), (0.1, 0)])
    ]
    lines += ["1,1,length_of_stay,0,0.7,1", "1,2,length_of_stay,0,0.3,0"]
    lines += [
        "1,1,length_of_stay,1,0.3,0",
        "1,2,length_of_stay,1,0.7,1",
        "1,3,length_of_stay,1,0.9,0",
    ]
    lines += ["1,1,readmission_30d,1,0.3,0"]
    (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")
    assert synthetic.compute_best_auroc(tmp_path) == pytest.approx(
        {"mortality": 5.5 / 6, "length_of_stay": 0.75}
    )


def test_the_ceiling_is_written_beside_the_data(generated: tuple[Shape, Path]) -> None:
    _, folder = generated
    ceilings = synthetic.compute_best_auroc(folder)
    assert set(ceilings) == set(best_auroc.SYNTHETIC_TASKS)
    assert 0.8 < ceilings["mortality"] < 0.95
    assert '"ceiling"' in (folder / "truth.json").read_text()


def test_outcomes_are_as_frequent_as_their_probabilities() -> None:
    """Outcomes are as frequent as their probabilities, within four standard deviations, for every
    task and class."""
    seen: dict[tuple[str, int], list[tuple[float, bool]]] = {}
    for index in range(1200):
        for stay in hospital.generate_patient_stays(index, 9):
            for task, number, probability, came_true in best_auroc.compute_true_outcomes(
                stay, synthetic.DEFAULT_SYNTHETIC_RATES
            ):
                seen.setdefault((task, number), []).append((probability, came_true))
    assert len(seen) == 7
    for key, pairs in seen.items():
        deviation = sum(p * (1 - p) for p, _ in pairs) ** 0.5
        assert abs(sum(y for _, y in pairs) - sum(p for p, _ in pairs)) < 4 * deviation, key


def test_wordings_tell_signs_apart() -> None:
    """A sign has several wordings, and shares none with another sign."""
    facts = {"he": "he", "He": "He", "him": "him", "his": "his", "His": "His"}
    for sign in outcome_model.load_prognostic_signs():
        ways = {
            wording.render_template(way, RandomStream(seed), facts)
            for seed in range(20)
            for way in sign.says
        }
        others = {
            wording.render_template(way, RandomStream(seed), facts)
            for seed in range(20)
            for other in outcome_model.load_prognostic_signs()
            if other is not sign
            for way in other.says
        }
        assert len(ways) > 1
        assert not ways & others


def test_words_of_the_admission_note_reach_above_chance_and_not_above_the_ceiling(
    tmp_path: Path,
) -> None:
    synthetic.write_synthetic_hospital(
        tmp_path / "generated",
        450,
        11,
        "mimic-iv",
        synthetic.SyntheticRates(later_admissions=0.2, charting_interval_minutes=480),
    )
    labels = {
        row["stay_id"]: int(row["label"])
        for row in _truth(tmp_path / "generated")
        if row["task"] == "mortality"
    }
    texts = {
        row["hadm_id"]: row["text"].split("Pertinent Results:")[0]
        for row in raw(tmp_path / "generated", "note/discharge")
        if row["note_type"] == "DS"
    }
    stays = [stay for stay in labels if stay in texts]
    answers = np.array([labels[stay] for stay in stays])
    words = _words([texts[stay] for stay in stays])
    trained = np.arange(len(stays)) % 3 > 0
    reached = best_auroc.compute_rank_auroc(
        _fitted(words[trained], answers[trained], words[~trained]), answers[~trained]
    )
    ceiling = synthetic.compute_best_auroc(tmp_path / "generated")["mortality"]
    assert 0.62 < reached < ceiling + 0.06
    chance = [
        best_auroc.compute_rank_auroc(
            _fitted(
                words[trained],
                np.random.default_rng(seed).permutation(answers[trained]),
                words[~trained],
            ),
            answers[~trained],
        )
        for seed in range(5)
    ]
    assert abs(float(np.mean(chance)) - 0.5) < 0.1


def _truth(folder: Path) -> Iterable[dict[str, str]]:
    with (folder / "truth.csv").open(newline="") as file:
        yield from csv.DictReader(file)


def _words(texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Which of the words of ten notes and more a note has."""
    sets = [set(text.lower().replace(".", " ").replace(",", " ").split()) for text in texts]
    counts = Counter(word for words in sets for word in words)
    at = {
        word: i
        for i, word in enumerate(
            sorted(word for word, count in counts.items() if count >= 10 and word.isalpha())
        )
    }
    presence = np.zeros((len(texts), len(at)))
    for row, words in enumerate(sets):
        presence[row, [at[word] for word in words if word in at]] = 1
    return presence


def _fitted(
    words: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    answers: np.ndarray[tuple[int], np.dtype[np.int64]],
    held_out: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Scores of a logistic regression with a ridge, by plain gradient descent."""
    weights, bias = np.zeros(words.shape[1]), 0.0
    for _ in range(300):
        error = 1 / (1 + np.exp(-(words @ weights + bias))) - answers
        weights -= 0.1 * (words.T @ error / len(answers) * 5 + 0.02 * weights)
        bias -= 0.1 * float(error.mean())
    scores: np.ndarray[tuple[int], np.dtype[np.float64]] = held_out @ weights
    return scores
