"""A built cohort as a model sees it: its label space, and whether training and scoring can work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import SPLIT_NAMES, LabelSpace
from clinpeft.data.cohorts import cohort_files
from clinpeft.data.cohorts.cohort_files import COHORT_FILE

MAX_NAMED_CLASSES = 5  # in a notice, which may be about most of 1,266 classes


def read_label_space(folder: Path) -> LabelSpace:
    """The label space of the cohort in ``folder``, as it is stored with predictions.

    Raises:
        InputError: there is no cohort, or its ``labels.json`` cannot be read.
    """
    labels = cohort_files.read_cohort_labels(folder)
    return LabelSpace(
        name=labels.task,
        kind=labels.kind,
        classes=tuple(entry.name for entry in labels.classes),
        systems=tuple(entry.system or "" for entry in labels.classes),
        train_counts=tuple(entry.train_stays for entry in labels.classes),
        metric=labels.metric,
    )


def check_cohort_classes(folder: Path) -> None:
    """Check that a classifier can be trained and scored on the cohort in ``folder``.

    Raises:
        InputError: ``train`` or ``held_out`` has no stays; all training stays of a binary or
            multiclass task have one class; or no training stay of a multilabel task has a class.
    """
    label_space, (train_counts, _, _), sizes = _count_stays_by_class(folder)
    location = str(folder / COHORT_FILE)
    # ``tuning`` may be empty.
    for name in ("train", "held_out"):
        if not sizes[SPLIT_NAMES.index(name)]:
            raise InputError(
                f"the split {name} has no stays",
                location=location,
                hint=f"raise split.{name}, name other groups, or give more subjects",
            )
    # Each label of a multilabel task is a binary task, so that one class is enough.
    present = np.flatnonzero(train_counts)
    if not len(present) or (label_space.kind != "multilabel" and len(present) == 1):
        raise InputError(
            f"all {sizes[0]} training stays of {label_space.name} have one class, "
            f"{label_space.classes[present[0]]!r}: a classifier cannot be trained"
            if len(present)
            else f"no training stay of {label_space.name} has a class",
            location=location,
            hint="give more subjects, another split.seed, or choose another task",
        )


def find_class_notices(folder: Path) -> tuple[str, ...]:
    """What a reader of results must know about the classes of a cohort.

    These are classes without training stays, which cannot be learned, and classes without held-out
    stays, for which no ranking metric is defined.

    Raises:
        InputError: there is no cohort, or it does not fit its label space.
    """
    label_space, (train_counts, _, held_out_counts), _ = _count_stays_by_class(folder)
    notices = []
    for class_indices, singular, plural in (
        (
            np.flatnonzero((train_counts == 0) & (held_out_counts > 0)),
            "is in held_out and in no training stay: it cannot be learned",
            "are in held_out and in no training stay: they cannot be learned",
        ),
        (
            np.flatnonzero(held_out_counts == 0),
            "is in no held-out stay: its metrics are undefined",
            "are in no held-out stay: their metrics are undefined",
        ),
    ):
        count = len(class_indices)
        names = ", ".join(
            repr(label_space.classes[index]) for index in class_indices[:MAX_NAMED_CLASSES].tolist()
        )
        more = f" and {count - MAX_NAMED_CLASSES} more" if count > MAX_NAMED_CLASSES else ""
        if count == 1:
            notices.append(f"{label_space.name}: the class {names} {singular}")
        elif count:
            notices.append(f"{label_space.name}: {count} classes ({names}{more}) {plural}")
    return tuple(notices)


def _count_stays_by_class(folder: Path) -> tuple[LabelSpace, NDArray[np.int64], NDArray[np.int64]]:
    """The label space, stays ``(splits, classes)`` and stays ``(splits,)``."""
    label_space, path = read_label_space(folder), folder / COHORT_FILE
    stays = cohort_files.read_cohort_without_text(path)
    splits = cohort_files.encode_cohort_splits(stays, path)
    label_matrix = cohort_files.build_cohort_label_matrix(
        stays, label_space.kind, label_space.classes, path
    )
    counts = np.stack(
        [
            np.asarray(label_matrix[np.flatnonzero(splits == index)].sum(axis=0)).ravel()
            for index in range(len(SPLIT_NAMES))
        ]
    )
    return label_space, counts, np.bincount(splits, minlength=len(SPLIT_NAMES))
