"""The answers, and how well they can be known: written beside the data as ``truth.csv`` and ``truth.json``, and never read by a source.

``truth.csv`` has a row for each stay that is asked, task and class: the true probability of the class given the admission note, and whether it
came true. Binary tasks have the rows of class 1. Stays that leave a cohort (a death that the note tells, an outcome nobody knows) have none.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
    """Task, class, probability and answer of all that is asked of a stay."""
    if (
        stay.patient.is_newborn
        or stay.defects.has_no_notes
        or stay.defects.has_discharge_before_admission
    ):
        return
    if not stay.defects.death_mention:
        yield (
            "mortality",
            1,
            outcome_model.compute_cohort_death_probability(stay.probabilities, rates),
            stay.died_in_hospital,
        )
    if not stay.died_in_hospital:
        seconds = (stay.discharged_at - stay.admitted_at).total_seconds()
        actual = sum(seconds > round(86400 * end) for end in outcome_model.STAY_CLASS_ENDS_DAYS)
        for number, probability in enumerate(
            outcome_model.compute_length_class_probabilities(stay.probabilities)
        ):
            yield "length_of_stay", number, probability, number == actual
    prolonged = stay.ventilation_category == "prolonged"
    if not stay.defects.death_mention and (
        prolonged or (stay.ventilation_category == "medium" and not stay.died_in_hospital)
    ):
        yield (
            "ventilation",
            1,
            outcome_model.compute_cohort_prolonged_ventilation_probability(
                stay.probabilities, rates
            ),
            prolonged,
        )
    if stay.was_readmitted is not None and not (
        stay.died_after_discharge_at
        and stay.died_after_discharge_at <= stay.discharged_at + _THIRTY_DAYS
    ):
        yield (
            "readmission_30d",
            1,
            outcome_model.compute_cohort_readmission_probability(stay.probabilities, rates),
            stay.was_readmitted,
        )


def format_truth_rows(
    stay: Stay, rates: SyntheticRates
) -> Iterator[tuple[int, int, str, int, str, int]]:
    """The rows of ``truth.csv`` for one stay."""
    for task, number, probability, came_true in compute_true_outcomes(stay, rates):
        yield (
            stay.patient.subject_id,
            stay.stay_id,
            task,
            number,
            f"{probability:.6f}",
            int(came_true),
        )


def compute_best_auroc(folder: Path) -> dict[str, float]:
    """Task -> AUROC of the true probabilities on the people of this hospital: what the best reader of the admission notes reaches.

    Of a task with several classes the mean over them, each against the rest. A task whose classes never, or always, come true is left out.

    Raises:
        OSError: the folder holds no ``truth.csv``.
    """
    found: dict[str, dict[int, tuple[list[float], list[int]]]] = defaultdict(
        lambda: defaultdict(lambda: ([], []))
    )
    with (folder / TRUTH_TABLE_FILE).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            probabilities, labels = found[row["task"]][int(row["class"])]
            probabilities.append(float(row["probability"]))
            labels.append(int(row["label"]))
    return {
        task: sum(areas) / len(areas)
        for task in SYNTHETIC_TASKS
        if (areas := list(_compute_class_aurocs(found[task])))
    }


def _compute_class_aurocs(
    classes: Mapping[int, tuple[Sequence[float], Sequence[int]]],
) -> Iterator[float]:
    for probabilities, labels in classes.values():
        if 0 < sum(labels) < len(labels):
            yield compute_rank_auroc(np.asarray(probabilities), np.asarray(labels))


def compute_rank_auroc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The share of (positive, negative) pairs in which the positive has the higher score; ties count half (Mann and Whitney 1947)."""
    _, at, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[at]
    positives = int(labels.sum())
    return float(
        (ranks[labels == 1].sum() - positives * (positives + 1) / 2)
        / (positives * (len(labels) - positives))
    )


def write_truth_summary(folder: Path) -> None:
    """``truth.json``: the ceilings, and the rule that the probabilities come from."""
    document = {
        "ceiling": {task: round(area, 4) for task, area in compute_best_auroc(folder).items()},
        "rule": outcome_model.describe_outcome_model(),
    }
    (folder / TRUTH_SUMMARY_FILE).write_text(
        json.dumps(document, indent=1) + "\n", encoding="utf-8"
    )
