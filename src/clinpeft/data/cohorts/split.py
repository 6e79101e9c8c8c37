"""Who is learned from and who is asked: whole subjects, by hash, by group of stays, or as listed in files.

The draw by hash is that of ``corpora.split``: with one seed a subject whose notes a language model may learn from is never one on whom a question
is scored (``tests/cohorts/test_split.py`` holds the two together).
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

NO_SPLIT = ""  # of a stay that no split takes

SUBJECT_LIST_NAMES = {
    "train": ("train",),
    "tuning": ("tuning", "val", "validation", "dev"),
    "held_out": ("held_out", "test"),
}
_SPLIT_HASH_SALT = 0x636F72706F7261  # that of corpora.split


def split_subjects_by_hash(
    subjects: SubjectIds, fractions: Sequence[float], seed: int
) -> SplitNameArray:
    """The split of each subject from a hash of (seed, subject): neither order nor company plays a part.

    Args:
        subjects: one a stay.
        fractions: of train, tuning and held_out; a split of fraction 0 gets nobody.
        seed: another seed, another draw.
    """
    salt = _mix_keys(np.array([(seed ^ _SPLIT_HASH_SALT) & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64))
    uniform = (_mix_keys(subjects.astype(np.int64).view(np.uint64) ^ salt) >> np.uint64(11)).astype(
        np.float64
    ) * 2.0**-53  # in [0, 1)
    last = int(
        np.flatnonzero(fractions).max()
    )  # a sum that is a hair below 1 must not fill a split of fraction 0
    chosen = np.minimum(np.searchsorted(np.cumsum(fractions), uniform, side="right"), last)
    names: SplitNameArray = np.array(SPLIT_NAMES)[chosen]
    return names


def split_stays_by_group(
    subjects: SubjectIds, groups: Sequence[str | None], spec: CohortSplitSpec, seed: int
) -> tuple[SplitNameArray, list[str]]:
    """The split of each stay from its group, and why it is in none.

    A subject with stays in several splits keeps those of the last one (train, tuning, held_out) only, so that what is held out was never seen.

    Raises:
        InputError: a named group is not in the data, or no stay has a group.
    """
    known = sorted({group for group in groups if group is not None})
    held_out = spec.held_out_groups or tuple(known[-1:])
    _check_groups(known, (*spec.tuning_groups, *held_out), spec.by)
    rest = (
        (spec.train, spec.tuning, 0.0)
        if not spec.tuning_groups and spec.train + spec.tuning > 0
        else (1.0, 0.0, 0.0)
    )
    drawn = split_subjects_by_hash(subjects, [share / sum(rest) for share in rest], seed)
    named = dict.fromkeys(spec.tuning_groups, "tuning") | dict.fromkeys(held_out, "held_out")
    names = np.array(
        [
            NO_SPLIT if group is None else named.get(group, draw)
            for group, draw in zip(groups, drawn, strict=True)
        ]
    )
    latest: dict[int, int] = {}
    for subject, name in zip(subjects.tolist(), names.tolist(), strict=True):
        latest[subject] = max(latest.get(subject, -1), SPLIT_NAMES.index(name) if name else -1)
    late = np.array(
        [
            name != NO_SPLIT and SPLIT_NAMES.index(name) < latest[s]
            for s, name in zip(subjects.tolist(), names.tolist(), strict=True)
        ],
        dtype=bool,
    )
    reasons = [
        _explain_exclusion(name, is_late, spec.by)
        for name, is_late in zip(names.tolist(), late.tolist(), strict=True)
    ]
    return np.where(late, NO_SPLIT, names), reasons


def _explain_exclusion(split_name: str, is_late: bool, by: str) -> str:
    if not split_name:
        return f"{by} unknown"
    return "subject is asked in a later split" if is_late else ""


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
    """The split of each subject as listed in ``folder``; ``NOWHERE`` for one on no list.

    Raises:
        InputError: a list is missing or holds something else than subject ids.
        RefusedError: a subject is on two lists.
    """
    listed: dict[int, str] = {}
    for split in SPLIT_NAMES:
        for subject in _read_subject_list(folder, split):
            if listed.setdefault(subject, split) != split:
                message = f"subject {subject} is in two splits, {listed[subject]} and {split}"
                raise RefusedError(
                    message, location=str(folder), hint="leave each subject on one list only"
                )
    return np.array([listed.get(subject, NO_SPLIT) for subject in subjects.tolist()])


def _read_subject_list(folder: Path, split: str) -> set[int]:
    """The ids in the file of one split: one a line, or the column ``subject_id`` of a CSV (the first column where none has that name)."""
    path = _find_subject_list(folder, split)
    rows = [
        line.strip().split(",")
        for line in path.read_text(encoding="utf-8-sig").splitlines()
        if line.strip()
    ]
    header = [name.strip().strip('"').lower() for name in rows[0]] if rows else []
    at = header.index("subject_id") if "subject_id" in header else 0
    begins = 0 if rows and all(cell.strip().isdigit() for cell in rows[0][at : at + 1]) else 1
    found = set()
    for number, row in enumerate(rows[begins:], start=begins + 1):
        cell = row[at].strip().strip('"') if at < len(row) else ""
        if not cell.isdigit():
            raise InputError(
                "this line has no subject id",
                location=f"{path.name}: line {number}",
                hint="write one whole number a line",
            )
        found.add(int(cell))
    return found


def _find_subject_list(folder: Path, split: str) -> Path:
    """``train.csv``, ``mimic_train.csv``, ``train.txt``: the name of the split or its last part."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [
        path
        for path in files
        if path.is_file()
        and any(
            path.stem == name or path.stem.endswith(f"_{name}")
            for name in SUBJECT_LIST_NAMES[split]
        )
    ]
    if len(found) != 1:
        message = f"there are {len(found)} lists for {split}"
        raise InputError(
            message,
            location=f"task.subject_lists = {folder}",
            hint=f"put one file there: {' or '.join(SUBJECT_LIST_NAMES[split])}.csv",
        )
    return found[0]


def check_subjects_in_one_split(subjects: SubjectIds, split_names: SplitNameArray) -> None:
    """Stop when a subject is in two splits: what is measured there would be memory.

    Raises:
        RefusedError: with one such subject.
    """
    seen: dict[int, str] = {}
    for subject, name in zip(subjects.tolist(), split_names.tolist(), strict=True):
        if name and seen.setdefault(subject, name) != name:
            raise RefusedError(
                f"subject {subject} is in two splits, {seen[subject]} and {name}",
                location="split",
                hint="split by subject",
            )


def _mix_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the key moves every bit of the draw."""
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
