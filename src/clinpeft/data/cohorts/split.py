"""Train, tuning and held-out subjects: by hash, by group of stays, or as listed in files.

The hash is that of ``clinpeft.data.notes.split``: with one seed, a subject whose notes a language
model may be adapted on is never in the held-out split of a task
(``tests/data/cohorts/test_split.py`` compares the two).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import SPLIT_NAMES
from clinpeft.recipe import CohortSplitSpec

SubjectIds = NDArray[np.int64]
SplitNameArray = NDArray[np.str_]

NO_SPLIT = ""  # of a stay that is in no split

SUBJECT_LIST_NAMES = {
    "train": ("train",),
    "tuning": ("tuning", "val", "validation", "dev"),
    "held_out": ("held_out", "test"),
}
_SPLIT_HASH_SALT = 0x636F72706F7261  # that of clinpeft.data.notes.split: both must split alike


def split_subjects_by_hash(
    subjects: SubjectIds, fractions: Sequence[float], seed: int
) -> SplitNameArray:
    """The split of each subject from a hash of seed and subject, whatever the other subjects are.

    Args:
        subjects: subject ids, shape ``(stays,)``.
        fractions: of train, tuning and held_out; they sum to 1. A split of fraction 0 is empty.
        seed: another seed gives another split.

    Returns:
        Split names, shape ``(stays,)``.
    """
    salt = _mix_keys(np.array([(seed ^ _SPLIT_HASH_SALT) & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64))
    hashes = _mix_keys(subjects.astype(np.int64).view(np.uint64) ^ salt)
    # The upper 53 bits are the mantissa of a float64 in [0, 1).
    uniform = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    # A sum that rounding leaves just below 1 must not fill a last split of fraction 0.
    last = int(np.flatnonzero(fractions).max())
    indices = np.minimum(np.searchsorted(np.cumsum(fractions), uniform, side="right"), last)
    names: SplitNameArray = np.array(SPLIT_NAMES)[indices]
    return names


def split_stays_by_group(
    subjects: SubjectIds, groups: Sequence[str | None], spec: CohortSplitSpec, seed: int
) -> tuple[SplitNameArray, list[str]]:
    """The split of each stay from its group, such as its site or its year group.

    A subject with stays in several splits keeps those of the last one only (in the order train,
    tuning, held_out), so that held-out subjects are not in training. Stays of no named group are
    divided between train and tuning by the hash of their subject.

    Args:
        subjects: subject ids, shape ``(stays,)``.
        groups: the group of each stay, None where it is unknown.
        spec: which groups are tuning and held out; without ``held_out_groups`` the last in
            alphabetical order is held out.
        seed: of the hash.

    Returns:
        Split names, shape ``(stays,)``, ``NO_SPLIT`` for a stay in none; and for each stay the
        reason why it is in none, empty where it is in one.

    Raises:
        InputError: a named group is not in the data, or no stay has a group.
    """
    data_groups = sorted({group for group in groups if group is not None})
    held_out = spec.held_out_groups or tuple(data_groups[-1:])
    _check_groups(data_groups, (*spec.tuning_groups, *held_out), spec.by)
    fractions = (
        (spec.train, spec.tuning, 0.0)
        if not spec.tuning_groups and spec.train + spec.tuning > 0
        else (1.0, 0.0, 0.0)
    )
    # Of stays that belong to no named group, the remaining fractions divide train and tuning.
    by_hash = split_subjects_by_hash(subjects, [part / sum(fractions) for part in fractions], seed)
    by_group = dict.fromkeys(spec.tuning_groups, "tuning") | dict.fromkeys(held_out, "held_out")
    names: list[str] = [
        NO_SPLIT if group is None else by_group.get(group, hashed)
        for group, hashed in zip(groups, by_hash.tolist(), strict=True)
    ]
    ranks = [SPLIT_NAMES.index(name) if name else -1 for name in names]
    # A subject may have stays in several groups; the last split keeps it.
    last_ranks: dict[int, int] = {}
    for subject, rank in zip(subjects.tolist(), ranks, strict=True):
        last_ranks[subject] = max(last_ranks.get(subject, -1), rank)
    reasons = []
    for row, (subject, rank) in enumerate(zip(subjects.tolist(), ranks, strict=True)):
        if rank < 0:
            reasons.append(f"{spec.by} unknown")
        elif rank < last_ranks[subject]:
            names[row] = NO_SPLIT
            reasons.append("subject is asked in a later split")
        else:
            reasons.append("")
    return np.array(names, dtype=np.str_), reasons


def _check_groups(data_groups: Sequence[str], recipe_groups: Sequence[str], by: str) -> None:
    if not data_groups:
        raise InputError(f"no stay has a {by}", location="split.by", hint='split by "subject"')
    for group in recipe_groups:
        if group not in data_groups:
            raise InputError(
                f"no stay has {by} {group!r}",
                location=f"split: by {by}",
                hint=f"the data has: {', '.join(data_groups)}",
            )


def split_subjects_by_lists(subjects: SubjectIds, folder: Path) -> SplitNameArray:
    """The split of each subject as listed in the files of ``folder``.

    Returns:
        Split names, shape ``(stays,)``; ``NO_SPLIT`` for a subject on no list.

    Raises:
        InputError: a list is missing or has a line without a subject id.
        RefusedError: a subject is on two lists.
    """
    split_by_subject: dict[int, str] = {}
    for split in SPLIT_NAMES:
        for subject in _read_subject_list(folder, split):
            first = split_by_subject.setdefault(subject, split)
            if first != split:
                raise RefusedError(
                    f"subject {subject} is in two splits, {first} and {split}",
                    location=str(folder),
                    hint="leave each subject on one list only",
                )
    return np.array([split_by_subject.get(subject, NO_SPLIT) for subject in subjects.tolist()])


def _read_subject_list(folder: Path, split: str) -> set[int]:
    """The subject ids of one split.

    The file is ``train.csv``, ``mimic_train.csv``, ``train.txt`` ...: its name is the split, or
    ends with it. It has one id a line, or a column ``subject_id`` (the first column where no column
    has that name).
    """
    endings = tuple(f"_{name}" for name in SUBJECT_LIST_NAMES[split])
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in files if path.is_file() and f"_{path.stem}".endswith(endings)]
    if len(paths) != 1:
        raise InputError(
            f"there are {len(paths)} lists for {split}",
            location=f"task.subject_lists = {folder}",
            hint=f"put one file there: {' or '.join(SUBJECT_LIST_NAMES[split])}.csv",
        )
    # ``utf-8-sig``: Excel writes a byte order mark.
    text = paths[0].read_text(encoding="utf-8-sig")
    rows = [line.strip().split(",") for line in text.splitlines() if line.strip()]
    header = [name.strip().strip('"').lower() for name in rows[0]] if rows else []
    column = header.index("subject_id") if "subject_id" in header else 0
    has_header = not (rows and rows[0][column].strip().isdigit())
    subjects = set()
    for number, row in enumerate(rows[has_header:], start=has_header + 1):
        cell = row[column].strip().strip('"') if column < len(row) else ""
        if not cell.isdigit():
            raise InputError(
                "this line has no subject id",
                location=f"{paths[0].name}: line {number}",
                hint="write one whole number a line",
            )
        subjects.add(int(cell))
    return subjects


def check_subjects_in_one_split(subjects: SubjectIds, split_names: SplitNameArray) -> None:
    """Check that no subject is in two splits: held-out metrics would reward memorizing a patient.

    Args:
        subjects: subject ids, shape ``(stays,)``.
        split_names: ``(stays,)``; stays in no split are ignored.

    Raises:
        RefusedError: with one such subject.
    """
    split_by_subject: dict[int, str] = {}
    for subject, name in zip(subjects.tolist(), split_names.tolist(), strict=True):
        if name and split_by_subject.setdefault(subject, name) != name:
            raise RefusedError(
                f"subject {subject} is in two splits, {split_by_subject[subject]} and {name}",
                location="split",
                hint="split by subject",
            )


def _mix_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64, in which every bit of a key affects every bit of its hash.

    Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators (OOPSLA),
    with the constants of Stafford's Mix13.
    """
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio, odd
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
