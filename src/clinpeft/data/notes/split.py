"""Splits notes into training, tuning and held-out notes by a stable hash of their subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import SPLIT_NAMES
from clinpeft.data.formats.hashing import hash_to_64_bits
from clinpeft.recipe import SplitSpec

SplitKeyArray = NDArray[np.uint64]

# The salt of cohorts.split too: with one seed, a subject that is held out of a cohort is not in
# the training notes of a corpus.
_SALT = 0x636F72706F7261


def assign_note_splits(
    subject_ids: pa.Array, note_ids: pa.Array, spec: SplitSpec, seed: int
) -> pa.Array:
    """Assigns each note a split by a hash of (seed, subject) alone.

    Neither the order of the notes nor the other subjects matter: a subject that is added later
    changes the split of no other.

    Args:
        subject_ids: int64, one for each note.
        note_ids: string, one for each note; hashed instead when ``spec.by`` is ``note``.
        spec: fractions; a split of fraction 0 gets no note.
        seed: another seed gives another, independent assignment.

    Returns:
        Names out of ``SPLIT_NAMES``, one for each note.
    """
    keys = NOTE_SPLIT_UNITS[spec.by].compute_keys(subject_ids, note_ids)
    salted = np.uint64((seed ^ _SALT) & 0xFFFF_FFFF_FFFF_FFFF)
    hashes = _mix_hash_bits(keys ^ _mix_hash_bits(np.array([salted])))
    # The upper 53 bits as a double in [0, 1), exactly.
    uniform = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    fractions = np.array([getattr(spec, name) for name in SPLIT_NAMES])
    # A sum slightly below 1 must not assign notes to a last split of fraction 0.
    last = int(np.flatnonzero(fractions).max())
    indices = np.minimum(np.searchsorted(np.cumsum(fractions), uniform, side="right"), last)
    return pa.array(SPLIT_NAMES, pa.string()).take(pa.array(indices))


def check_note_split_counts(counts: Mapping[str, int], spec: SplitSpec) -> None:
    """Checks that every split of a positive fraction got a note.

    Args:
        counts: split -> notes.
        spec: the requested fractions.

    Raises:
        InputError: a split is empty, so that nothing could be trained or evaluated on it.
    """
    for name in SPLIT_NAMES:
        fraction = getattr(spec, name)
        if fraction and not counts.get(name):
            raise InputError(
                f"split.{name} = {fraction:g} got none of the {sum(counts.values())} notes "
                f"(split by {spec.by})",
                location=f"split.{name}",
                hint=f"give more subjects, set split.{name} = 0, or take another seed",
            )


def check_corpus_subjects(corpus: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Checks that no subject of a written corpus is in two splits.

    Otherwise an evaluation would measure what the model memorized.

    Raises:
        RefusedError: naming one such subject.
    """
    query = """SELECT subject_id, min(split), max(split) FROM read_parquet(?)
               GROUP BY subject_id HAVING min(split) <> max(split) ORDER BY subject_id LIMIT 1"""
    row = connection.execute(query, [str(corpus)]).fetchone()
    if row:
        subject, first_split, second_split = row
        raise RefusedError(
            f"subject {subject} is in two splits, {first_split} and {second_split}",
            location=corpus.name,
            hint='split by subject; split.by = "note" exists to reproduce the paper',
        )


@dataclass(frozen=True)
class NoteSplitUnit:
    """The unit that is never divided between splits.

    Attributes:
        compute_keys: (subject ids, note ids) -> the uint64 that is hashed, one for each note.
        check_corpus: (corpus, connection) -> raises where the written corpus divides a unit.
    """

    compute_keys: Callable[[pa.Array, pa.Array], SplitKeyArray]
    check_corpus: Callable[[Path, duckdb.DuckDBPyConnection], None]


NOTE_SPLIT_UNITS: dict[str, NoteSplitUnit] = {
    "subject": NoteSplitUnit(
        lambda subject_ids, _: subject_ids.to_numpy(zero_copy_only=False).view(np.uint64),
        check_corpus_subjects,
    ),
    "note": NoteSplitUnit(
        lambda _, note_ids: hash_to_64_bits(note_id.encode() for note_id in note_ids.to_pylist()),
        lambda _corpus, _connection: None,  # the paper's split divides subjects on purpose
    ),
}
"""What ``split.by`` of a recipe may be."""


def _mix_hash_bits(keys: SplitKeyArray) -> SplitKeyArray:
    """Applies the finalizer of SplitMix64: every bit of a key affects every bit of its hash.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA.
    """
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
