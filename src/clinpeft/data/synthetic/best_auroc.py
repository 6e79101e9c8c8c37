"""The true outcomes with their probabilities, and the best AUROC that a reader can reach.

They are written beside the data as ``truth.csv`` and ``truth.json``, and no source reads them.

``truth.csv`` has a row for each stay of a cohort, task and class: the true probability of the class
given the admission note, and whether it came true. Binary tasks have the rows of class 1. Stays
that leave a cohort (the note mentions the death, the outcome is unknown) have none.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clinpeft.data.synthetic import outcome_model
from clinpeft.data.synthetic.hospital import Stay
from clinpeft.data.synthetic.rates import SyntheticRates

TRUTH_HEADER = ("subject_id", "stay_id", "task", "class", "probability", "label")
TRUTH_TABLE_FILE, TRUTH_SUMMARY_FILE = "truth.csv", "truth.json"
SYNTHETIC_TASKS = ("mortality", "length_of_stay", "ventilation", "readmission_30d")
_THIRTY_DAYS = timedelta(days=30)

TrueOutcome = tuple[str, int, float, bool]


def compute_true_outcomes(stay: Stay, rates: SyntheticRates) -> Iterator[TrueOutcome]:
    """Compute (task, class, probability, whether it came true) of a stay, for every task.

    Each branch repeats the inclusion rule of the task's cohort.
    """
    defects, probabilities = stay.defects, stay.probabilities
    if (
        stay.patient.is_newborn
        or defects.has_no_notes
        # the cohort drops stays whose times contradict one another
        or defects.has_discharge_before_admission
    ):
        return
    if not defects.death_mention:
        death = outcome_model.compute_cohort_death_probability(probabilities, rates)
        yield "mortality", 1, death, stay.died_in_hospital
    if not stay.died_in_hospital:
        seconds = (stay.discharged_at - stay.admitted_at).total_seconds()
        # The class is the number of class ends that the stay is longer than
        actual = sum(seconds > round(86400 * end) for end in outcome_model.STAY_CLASS_ENDS_DAYS)
        classes = outcome_model.compute_length_class_probabilities(probabilities)
        for number, probability in enumerate(classes):
            yield "length_of_stay", number, probability, number == actual
    is_prolonged = stay.ventilation_category == "prolonged"
    # A death cuts a shorter ventilation short: whether it would have been prolonged is unknown.
    survived_medium = stay.ventilation_category == "medium" and not stay.died_in_hospital
    if not defects.death_mention and (is_prolonged or survived_medium):
        prolonged = outcome_model.compute_cohort_prolonged_ventilation_probability(
            probabilities, rates
        )
        yield "ventilation", 1, prolonged, is_prolonged
    died_at = stay.died_after_discharge_at
    died_within_30_days = died_at is not None and died_at <= stay.discharged_at + _THIRTY_DAYS
    if stay.was_readmitted is not None and not died_within_30_days:
        readmitted = outcome_model.compute_cohort_readmission_probability(probabilities, rates)
        yield "readmission_30d", 1, readmitted, stay.was_readmitted


def format_truth_rows(
    stay: Stay, rates: SyntheticRates
) -> Iterator[tuple[int, int, str, int, str, int]]:
    """Format the rows of ``truth.csv`` for one stay."""
    ids = stay.patient.subject_id, stay.stay_id
    for task, number, probability, came_true in compute_true_outcomes(stay, rates):
        yield *ids, task, number, f"{probability:.6f}", int(came_true)


def compute_best_auroc(folder: Path) -> dict[str, float]:
    """Compute the AUROC of the true probabilities on the people of a synthetic hospital.

    It is what the best reader of the admission notes reaches, up to sampling noise. Of a task with
    several classes it is the mean over the classes, each against the rest; classes that never or
    always come true are left out, and so is a task without any other class.

    Returns:
        Task -> AUROC.

    Raises:
        OSError: the folder holds no ``truth.csv``.
    """
    classes: dict[str, dict[int, tuple[list[float], list[int]]]] = defaultdict(
        lambda: defaultdict(lambda: ([], []))
    )
    with (folder / TRUTH_TABLE_FILE).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            probabilities, labels = classes[row["task"]][int(row["class"])]
            probabilities.append(float(row["probability"]))
            labels.append(int(row["label"]))
    best = {}
    for task in SYNTHETIC_TASKS:
        aurocs = [
            compute_rank_auroc(np.asarray(probabilities), np.asarray(labels))
            for probabilities, labels in classes[task].values()
            if 0 < sum(labels) < len(labels)
        ]
        if aurocs:
            best[task] = sum(aurocs) / len(aurocs)
    return best


def compute_rank_auroc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Compute the AUROC from ranks (Mann and Whitney 1947).

    It is the fraction of (positive, negative) pairs in which the positive has the higher score;
    ties count half.

    Args:
        scores: ``(n,)``.
        labels: ``(n,)``, 0 or 1, both present.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # (n,); equal scores share the mean of their ranks
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(labels.sum())
    # U = R - n (n + 1) / 2, with R the sum of the ranks of the n positives
    return float(
        (ranks[labels == 1].sum() - positives * (positives + 1) / 2)
        / (positives * (len(labels) - positives))
    )


def write_truth_summary(folder: Path) -> None:
    """Write ``truth.json``: the best AUROC of each task, and the outcome model."""
    document = {
        "ceiling": {task: round(area, 4) for task, area in compute_best_auroc(folder).items()},
        "rule": outcome_model.describe_outcome_model(),
    }
    (folder / TRUTH_SUMMARY_FILE).write_text(
        json.dumps(document, indent=1) + "\n", encoding="utf-8"
    )
