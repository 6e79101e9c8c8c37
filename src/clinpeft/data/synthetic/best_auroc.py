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
from clinpeft.data.synthetic.rates import Rates

HEADER = ("subject_id", "stay_id", "task", "class", "probability", "label")
TABLE, SUMMARY = "truth.csv", "truth.json"
TASKS = ("mortality", "length_of_stay", "ventilation", "readmission_30d")
_THIRTY_DAYS = timedelta(days=30)

Answer = tuple[str, int, float, bool]


def answers(stay: Stay, rates: Rates) -> Iterator[Answer]:
    """Task, class, probability and answer of all that is asked of a stay."""
    if stay.patient.newborn or stay.traps.without_notes or stay.traps.discharged_before:
        return
    if not stay.traps.death_told:
        yield "mortality", 1, outcome_model.death_when_asked(stay.chances, rates), stay.died
    if not stay.died:
        seconds = (stay.discharged - stay.admitted).total_seconds()
        actual = sum(seconds > round(86400 * end) for end in outcome_model.CLASS_ENDS_DAYS)
        for number, probability in enumerate(outcome_model.length_classes(stay.chances)):
            yield "length_of_stay", number, probability, number == actual
    prolonged = stay.breathing == "prolonged"
    if not stay.traps.death_told and (prolonged or (stay.breathing == "medium" and not stay.died)):
        yield "ventilation", 1, outcome_model.prolonged_when_asked(stay.chances, rates), prolonged
    if stay.readmitted is not None and not (
        stay.died_after and stay.died_after <= stay.discharged + _THIRTY_DAYS
    ):
        yield (
            "readmission_30d",
            1,
            outcome_model.readmitted_when_asked(stay.chances, rates),
            stay.readmitted,
        )


def rows(stay: Stay, rates: Rates) -> Iterator[tuple[int, int, str, int, str, int]]:
    """The rows of ``truth.csv`` for one stay."""
    for task, number, probability, came_true in answers(stay, rates):
        yield (
            stay.patient.subject_id,
            stay.stay_id,
            task,
            number,
            f"{probability:.6f}",
            int(came_true),
        )


def ceiling(folder: Path) -> dict[str, float]:
    """Task -> AUROC of the true probabilities on the people of this hospital: what the best reader of the admission notes reaches.

    Of a task with several classes the mean over them, each against the rest. A task whose classes never, or always, come true is left out.

    Raises:
        OSError: the folder holds no ``truth.csv``.
    """
    found: dict[str, dict[int, tuple[list[float], list[int]]]] = defaultdict(
        lambda: defaultdict(lambda: ([], []))
    )
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            probabilities, labels = found[row["task"]][int(row["class"])]
            probabilities.append(float(row["probability"]))
            labels.append(int(row["label"]))
    return {task: sum(areas) / len(areas) for task in TASKS if (areas := list(_areas(found[task])))}


def _areas(classes: Mapping[int, tuple[Sequence[float], Sequence[int]]]) -> Iterator[float]:
    for probabilities, labels in classes.values():
        if 0 < sum(labels) < len(labels):
            yield auroc(np.asarray(probabilities), np.asarray(labels))


def auroc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The share of (positive, negative) pairs in which the positive has the higher score; ties count half (Mann and Whitney 1947)."""
    _, at, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[at]
    positives = int(labels.sum())
    return float(
        (ranks[labels == 1].sum() - positives * (positives + 1) / 2)
        / (positives * (len(labels) - positives))
    )


def write_summary(folder: Path) -> None:
    """``truth.json``: the ceilings, and the rule that the probabilities come from."""
    document = {
        "ceiling": {task: round(area, 4) for task, area in ceiling(folder).items()},
        "rule": outcome_model.as_json(),
    }
    (folder / SUMMARY).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
