"""A built cohort, seen by a model that is to answer it: the question in full, and whether it can be learned and scored at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import SPLIT_NAMES, LabelSpace
from clinpeft.data.cohorts import cohort_files
from clinpeft.data.cohorts.cohort import COHORT_FILE, COHORT_LABELS_FILE

MAX_NAMED_CLASSES = 5  # classes that a notice names; of 1,266 most may be meant


def read_label_space(folder: Path) -> LabelSpace:
    """The question of the cohort in ``folder``, as it travels with the answers.

    Raises:
        InputError: there is no cohort, or its ``labels.json`` cannot be read.
    """
    told = _read_labels_file(folder)
    classes = told["classes"]
    return LabelSpace(
        name=told["task"],
        kind=told["kind"],
        classes=tuple(entry["name"] for entry in classes),
        systems=tuple(entry.get("system", "") for entry in classes),
        train_counts=tuple(entry["train_stays"] for entry in classes),
        metric=told["metric"],
    )


def check_cohort_classes(folder: Path) -> None:
    """Stop where nothing could be learned or nothing scored.

    Raises:
        InputError: nobody is in ``train`` or in ``held_out``; or one class of a binary or multiclass question is that of all training stays, or no
            class of a multilabel question is that of any.
    """
    asked, (train, _, _), sizes = _count_stays_by_class(folder)
    for name in ("train", "held_out"):
        if not sizes[SPLIT_NAMES.index(name)]:
            hint = f"raise split.{name}, name other groups, or give more subjects"
            raise InputError(
                f"nobody is in the split {name}", location=str(folder / COHORT_FILE), hint=hint
            )
    found = np.flatnonzero(train)
    if asked.kind != "multilabel" and len(found) == 1:
        message = f"all {sizes[0]} training stays of {asked.name} have one class, {asked.classes[found[0]]!r}: there is nothing to tell apart"
        raise InputError(
            message,
            location=str(folder / COHORT_FILE),
            hint="give more subjects, another split.seed, or ask another question",
        )
    if not len(found):
        message = f"no class of {asked.name} stands in the training split"
        raise InputError(
            message,
            location=str(folder / COHORT_FILE),
            hint="give more subjects, another split.seed, or ask another question",
        )


def find_class_notices(folder: Path) -> tuple[str, ...]:
    """What a reader of the results must know of the classes: those never seen in training, and those of nobody held out, which no metric can rank.

    Raises:
        InputError: there is no cohort, or it does not fit its label space.
    """
    asked, (train, _, held_out), _ = _count_stays_by_class(folder)
    unseen = np.flatnonzero((train == 0) & (held_out > 0))
    absent = np.flatnonzero(held_out == 0)
    found = [
        (
            unseen,
            "stands in held_out and in no training stay: it cannot be learned",
            "stand in held_out and in no training stay: they cannot be learned",
        ),
        (
            absent,
            "is that of no held-out stay: nothing says how well it is told",
            "are those of no held-out stay: nothing says how well they are told",
        ),
    ]
    return tuple(
        _format_notice(asked, places, one, many) for places, one, many in found if len(places)
    )


def _format_notice(
    label_space: LabelSpace, class_indices: NDArray[np.int64], singular: str, plural: str
) -> str:
    names = ", ".join(
        repr(label_space.classes[location])
        for location in class_indices[:MAX_NAMED_CLASSES].tolist()
    )
    more = (
        f" and {len(class_indices) - MAX_NAMED_CLASSES} more"
        if len(class_indices) > MAX_NAMED_CLASSES
        else ""
    )
    return (
        f"{label_space.name}: the class {names} {singular}"
        if len(class_indices) == 1
        else f"{label_space.name}: {len(class_indices)} classes ({names}{more}) {plural}"
    )


def _count_stays_by_class(folder: Path) -> tuple[LabelSpace, NDArray[np.int64], NDArray[np.int64]]:
    """The question, the stays of each class (splits, classes), and those of each split (splits,)."""
    asked, path = read_label_space(folder), folder / COHORT_FILE
    stays = cohort_files.read_cohort_without_text(path)
    splits, answers = (
        cohort_files.encode_cohort_splits(stays, path),
        cohort_files.build_cohort_label_matrix(stays, asked.kind, asked.classes, path),
    )
    counts = np.stack(
        [
            np.asarray(answers[np.flatnonzero(splits == at)].sum(axis=0)).ravel()
            for at in range(len(SPLIT_NAMES))
        ]
    )
    return asked, counts, np.bincount(splits, minlength=len(SPLIT_NAMES))


def _read_labels_file(folder: Path) -> Any:
    try:
        return json.loads((folder / COHORT_LABELS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{COHORT_LABELS_FILE} of this cohort cannot be read"
        raise InputError(
            message, location=str(folder), hint="build the cohort: clinpeft cohort build RECIPE"
        ) from error
