"""Who is learned from and who is asked: a stable draw per subject."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import SPLIT_NAMES
from clinpeft.recipe import SplitSpec

SplitKeyArray = NDArray[np.uint64]

_SALT = 0x636F72706F7261  # that of cohorts.split too: with one seed nobody who is held out there is learned from here


def assign_note_splits(
    subject_ids: pa.Array, note_ids: pa.Array, spec: SplitSpec, seed: int
) -> pa.Array:
    """The split of every note, from a hash of (seed, subject) alone.

    Neither the order of the notes nor who else is in the corpus plays a part: a subject added later moves nobody.

    Args:
        subject_ids: int64, one a note.
        note_ids: string, one a note; what is hashed when ``spec.by`` is ``note``.
        spec: fractions; a split of fraction 0 gets nobody.
        seed: another seed, another draw.

    Returns:
        Names out of ``tables.SPLITS``, one a note.
    """
    keys = NOTE_SPLIT_UNITS[spec.by].compute_keys(subject_ids, note_ids)
    salted = np.uint64((seed ^ _SALT) & 0xFFFF_FFFF_FFFF_FFFF)
    draws = _mix_hash_bits(keys ^ _mix_hash_bits(np.array([salted])))
    uniform = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1)
    fractions = np.array([getattr(spec, name) for name in SPLIT_NAMES])
    last = int(
        np.flatnonzero(fractions).max()
    )  # a sum that is a hair below 1 must not fill a split of fraction 0
    chosen = np.minimum(np.searchsorted(np.cumsum(fractions), uniform, side="right"), last)
    return pa.array(SPLIT_NAMES, pa.string()).take(pa.array(chosen))


def check_note_split_counts(counts: Mapping[str, int], spec: SplitSpec) -> None:
    """Stop when a split that the recipe asks for got no note.

    Raises:
        InputError: naming the split; nothing could be trained on or measured there.
    """
    for name in SPLIT_NAMES:
        fraction = getattr(spec, name)
        if fraction and not counts.get(name):
            message = f"split.{name} = {fraction:g} got none of the {sum(counts.values())} notes (split by {spec.by})"
            raise InputError(
                message,
                location=f"split.{name}",
                hint=f"give more subjects, set split.{name} = 0, or take another seed",
            )


def check_corpus_subjects(corpus: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Stop when a subject is in two splits of a written corpus: what is measured there would be memory.

    Raises:
        RefusedError: with one such subject.
    """
    query = """SELECT subject_id, min(split), max(split) FROM read_parquet(?)
               GROUP BY subject_id HAVING min(split) <> max(split) ORDER BY subject_id LIMIT 1"""
    found = connection.execute(query, [str(corpus)]).fetchone()
    if found:
        subject, *splits = found
        message = f"subject {subject} is in two splits, {splits[0]} and {splits[1]}"
        raise RefusedError(
            message,
            location=corpus.name,
            hint='split by subject; split.by = "note" is there to reproduce the paper',
        )


def _get_subject_keys(subject_ids: pa.Array, note_ids: pa.Array) -> SplitKeyArray:  # noqa: ARG001
    ids: SplitKeyArray = subject_ids.to_numpy(zero_copy_only=False).view(np.uint64)
    return ids


def _hash_note_ids(subject_ids: pa.Array, note_ids: pa.Array) -> SplitKeyArray:  # noqa: ARG001
    digests = b"".join(
        hashlib.blake2b(note_id.encode(), digest_size=8).digest()
        for note_id in note_ids.to_pylist()
    )
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _accept_any_corpus(corpus: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """By note, subjects straddle: that is what is reproduced."""


@dataclass(frozen=True)
class NoteSplitUnit:
    """What is drawn as a whole: its key a note, and what must hold of the written corpus."""

    compute_keys: Callable[[pa.Array, pa.Array], SplitKeyArray]
    check_corpus: Callable[[Path, duckdb.DuckDBPyConnection], None]


NOTE_SPLIT_UNITS: dict[str, NoteSplitUnit] = {
    "subject": NoteSplitUnit(_get_subject_keys, check_corpus_subjects),
    "note": NoteSplitUnit(_hash_note_ids, _accept_any_corpus),
}


def _mix_hash_bits(keys: SplitKeyArray) -> SplitKeyArray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the key moves every bit of the draw."""
    mixed = keys + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
