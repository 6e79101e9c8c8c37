"""Exact and near duplicates among notes (MinHash; Broder 1997).

The first of several alike notes, in reading order, is kept. Two notes are compared by their
*words*: Unicode-composed, case-folded, split at white space.

* ``exact``: the same words in the same order.
* ``near``: an estimated Jaccard similarity of the sets of word 5-grams at or above a threshold. A
  note shorter than five words is one n-gram, so that it is near only to an equal note. Candidates
  come from banded signatures (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section
  3.4) and are verified on 8 bits of every minimum (Li and Koenig 2010, "b-bit minwise hashing",
  arXiv 0910.3349).

The rule is greedy in reading order: a note is dropped when it is near an earlier note *that is
kept*. So every dropped note has a kept one that represents it, and a chain of progress notes, each
copied forward from the last and changed a little, is thinned and not reduced to its first. In each
bucket of a band all notes are compared with the first, the remaining ones with the first of these,
and so on, ``MAX_COMPARISON_ROUNDS`` times; a bucket of a hundred thousand copies costs one
comparison each.
"""

from __future__ import annotations

import contextlib
import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clinpeft.core.schemas import Attrition
from clinpeft.data.formats.hashing import draw_odd_multipliers, hash_to_64_bits
from clinpeft.data.formats.working_folder import (
    close_file_on_exit,
    escape_sql_path,
    open_parquet_writer,
    read_parquet_batches,
    translate_storage_errors,
)

NoteMask = NDArray[np.bool_]
SketchArray = NDArray[np.uint8]
MinHashArray = NDArray[np.uint32]
NoteHashArray = NDArray[np.uint64]
RowNumberArray = NDArray[np.int64]

MINHASH_SHINGLE_WORDS = 5
# Standard error of the estimate at similarity s is sqrt(s (1 - s) / permutations): 0.035 at 0.8.
MINHASH_PERMUTATIONS = 128
MAX_COMPARISON_ROUNDS = 8

_MIN_CANDIDATE_PROBABILITY = 0.95
_CHANCE_AGREEMENT = 1 / 256  # of the last 8 bits of two unequal minima
_READ_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class MinHashBands:
    """A signature cut into bands; two notes that agree on a whole band are candidates."""

    band_count: int
    rows_per_band: int

    def candidate_probability(self, similarity: float) -> float:
        """Returns the probability of being a candidate, 1 - (1 - s^r)^b: the S-curve."""
        return float(1 - (1 - similarity**self.rows_per_band) ** self.band_count)


def choose_minhash_bands(threshold: float) -> MinHashBands:
    """Chooses the most selective bands that find a pair at the threshold with probability 0.95.

    The usual choice weighs the areas of false candidates and misses. Candidates are verified here,
    so a false one costs one comparison, and only the misses matter. At 0.8: 18 bands of 7 minima,
    with probability 0.985 at 0.8, 0.13 at 0.5 and 0.0002 at 0.2.
    """
    for rows in range(MINHASH_PERMUTATIONS, 1, -1):
        bands = MinHashBands(MINHASH_PERMUTATIONS // rows, rows)
        if bands.candidate_probability(threshold) >= _MIN_CANDIDATE_PROBABILITY:
            return bands
    return MinHashBands(MINHASH_PERMUTATIONS, 1)


def normalize_words(text: str) -> str:
    """Returns the words by which notes are compared, separated by single spaces."""
    # NFC first: case folding alone leaves an accent that is a character of its own.
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def compute_minhash_signatures(texts: Sequence[str]) -> MinHashArray:
    """Computes the MinHash signatures of notes.

    Args:
        texts: as ``normalize_words`` returns them, of one word or more each.

    Returns:
        Shape ``(notes, permutations)``: the minimum over a note's shingle hashes x of
        a x + b mod 2^32, a odd, for every permutation (a, b).
    """
    shingles, starts = hash_shingles(texts)
    signatures = np.empty((len(texts), MINHASH_PERMUTATIONS), np.uint32)
    # One buffer for all permutations: (shingles,)
    permuted = np.empty_like(shingles)
    for i, (a, b) in enumerate(_PERMUTATION_COEFFICIENTS):
        np.multiply(shingles, a, out=permuted)  # overflow is the reduction modulo 2^32
        np.add(permuted, b, out=permuted)
        signatures[:, i] = np.minimum.reduceat(permuted, starts)
    return signatures


def truncate_signatures(signatures: MinHashArray) -> SketchArray:
    """Keeps the last 8 bits of every minimum, shape ``(notes, permutations)``, to verify pairs."""
    return signatures.astype(np.uint8)


def estimate_jaccard_similarity(
    first_sketches: SketchArray, second_sketches: SketchArray
) -> NDArray[np.float64]:
    """Estimates the Jaccard similarity of pairs of notes, corrected for chance agreement.

    With b-bit minima, P(agree) = C + (1 - C) J, where C = 2^-b for sets that are small relative to
    all possible shingles (Li and Koenig 2010, theorem 1).

    Args:
        first_sketches: shape ``(pairs, permutations)``.
        second_sketches: shape ``(pairs, permutations)``.

    Returns:
        Shape ``(pairs,)``, at least 0.
    """
    agreement = (first_sketches == second_sketches).mean(axis=1)
    estimate: NDArray[np.float64] = np.maximum(
        (agreement - _CHANCE_AGREEMENT) / (1 - _CHANCE_AGREEMENT), 0.0
    )
    return estimate


def compute_band_keys(signatures: MinHashArray, bands: MinHashBands) -> NoteHashArray:
    """Computes one key for each note and band, shape ``(notes, bands)``.

    Notes with equal keys share a bucket; keys of different bands differ.
    """
    # (notes, bands, rows)
    rows = (
        signatures[:, : bands.band_count * bands.rows_per_band]
        .reshape(len(signatures), bands.band_count, bands.rows_per_band)
        .astype(np.uint64)
    )
    keys = (rows * draw_odd_multipliers(3, bands.rows_per_band)).sum(axis=2, dtype=np.uint64)
    return _mix_hash_bits(keys + draw_odd_multipliers(4, bands.band_count))


def hash_shingles(texts: Sequence[str]) -> tuple[MinHashArray, RowNumberArray]:
    """Returns the hashes of all word n-grams, ``(shingles,)``, and where those of a note start."""
    words = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
    # Each distinct word of the batch is hashed once.
    encoded = words.flatten().dictionary_encode()
    hashes = hash_to_64_bits(encoded.dictionary.cast(pa.large_binary()).to_pylist())
    hashes = hashes[encoded.indices.to_numpy()]  # (words,)
    ends = words.offsets.to_numpy().astype(np.int64)
    counts = np.maximum(np.diff(ends) - MINHASH_SHINGLE_WORDS + 1, 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # (shingles,): the first word of each shingle, and one past the last word of its note
    first = np.arange(starts[-1]) + np.repeat(ends[:-1] - starts[:-1], counts)
    end = np.repeat(ends[1:], counts)
    combined = np.zeros(len(first), np.uint64)
    for offset, multiplier in enumerate(draw_odd_multipliers(1, MINHASH_SHINGLE_WORDS)):
        word = hashes[np.minimum(first + offset, len(hashes) - 1)] * multiplier
        # A note of three words is one 3-gram.
        combined += np.where(first + offset < end, word, np.uint64(0))
    return (_mix_hash_bits(combined) >> np.uint64(32)).astype(np.uint32), starts[:-1]


def _mix_hash_bits(keys: NoteHashArray) -> NoteHashArray:
    """Applies the 64-bit finalizer of MurmurHash3 (Appleby), fmix64."""
    mixed = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return mixed ^ (mixed >> np.uint64(33))


# (permutations, 2): a, made odd, and b
_PERMUTATION_COEFFICIENTS = (
    draw_odd_multipliers(2, 2 * MINHASH_PERMUTATIONS) >> np.uint64(31)
).astype(np.uint32).reshape(MINHASH_PERMUTATIONS, 2) | np.array([1, 0], np.uint32)

WordsWriter = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class DeduplicationStep:
    """One kind of duplicate.

    Attributes:
        name: of the step in the attrition.
        reason: why a note was dropped.
        open_writer: (folder, threshold) -> a function that receives the words of every note, in
            order, and writes what ``find_duplicates`` needs.
        find_duplicates: (connection, folder, notes dropped so far, threshold) -> the further notes
            to drop, shape ``(notes,)``.
    """

    name: str
    reason: str
    open_writer: Callable[[Path, float], contextlib.AbstractContextManager[WordsWriter]]
    find_duplicates: Callable[[duckdb.DuckDBPyConnection, Path, NoteMask, float], NoteMask]


@contextlib.contextmanager
def open_text_writer(kind: str, folder: Path, threshold: float) -> Iterator[WordsWriter]:
    """Opens the files of all steps and returns the function that receives the texts, in order.

    Args:
        kind: a key of ``DEDUPLICATION_STEPS``.
        folder: for temporary files.
        threshold: smallest similarity of a near duplicate.
    """
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(step.open_writer(folder, threshold))
            for step in DEDUPLICATION_STEPS[kind]
        ]

        def write(texts: Sequence[str]) -> None:
            if writers and texts:
                words = [normalize_words(text) for text in texts]
                for write_words in writers:
                    write_words(words)

        yield write


def find_duplicates(
    kind: str,
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    text_count: int,
    threshold: float,
    unit: str = "note",
) -> tuple[NoteMask, list[Attrition]]:
    """Finds the duplicates among the texts that ``open_text_writer`` received.

    Args:
        kind: a key of ``DEDUPLICATION_STEPS``.
        connection: of ``create_working_database``.
        folder: as given to ``open_text_writer``.
        text_count: number of texts.
        threshold: smallest similarity of a near duplicate.
        unit: what a text is called in the reasons.

    Returns:
        The texts to drop, shape ``(texts,)``, and one attrition for each step.
    """
    dropped, attrition = np.zeros(text_count, np.bool_), []
    for step in DEDUPLICATION_STEPS[kind]:
        step_attrition = Attrition(step.name, entered_rows=int((~dropped).sum()))
        duplicates = step.find_duplicates(connection, folder, dropped, threshold)
        step_attrition.drop_rows(step.reason.replace("note", unit), int(duplicates.sum()))
        dropped |= duplicates
        attrition.append(step_attrition)
    return dropped, attrition


@contextlib.contextmanager
def open_digest_writer(folder: Path, threshold: float) -> Iterator[WordsWriter]:
    """Writes a 128-bit digest of each note."""
    del threshold  # equal words need none
    schema = pa.schema([("row", pa.int64()), ("digest", pa.binary(16))])
    with open_parquet_writer(folder / "exact.parquet", schema) as write:
        row_count = 0

        def write_digests(texts: Sequence[str]) -> None:
            nonlocal row_count
            rows = pa.array(np.arange(row_count, row_count + len(texts)))
            row_count += len(texts)
            # 128 bits: 2.65 million notes have a collision with probability 1e-26.
            digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
            write(
                pa.RecordBatch.from_arrays([rows, pa.array(digests, pa.binary(16))], schema=schema)
            )

        yield write_digests


@contextlib.contextmanager
def open_signature_writer(folder: Path, threshold: float) -> Iterator[WordsWriter]:
    """Writes the band keys as Parquet, a column for each band, and the sketches as plain bytes."""
    bands = choose_minhash_bands(threshold)
    schema = pa.schema(
        [("row", pa.int64()), *((f"band_{i}", pa.uint64()) for i in range(bands.band_count))]
    )
    path = folder / "near.sketches"
    with translate_storage_errors(path):
        file = path.open("wb")
    with (
        open_parquet_writer(folder / "near.parquet", schema) as write,
        close_file_on_exit(file.close, path),
    ):
        row_count = 0

        def write_signatures(texts: Sequence[str]) -> None:
            nonlocal row_count
            rows = pa.array(np.arange(row_count, row_count + len(texts)))
            row_count += len(texts)
            signatures = compute_minhash_signatures(texts)
            keys = compute_band_keys(signatures, bands)
            # Arrow needs contiguous columns, which a transposed view does not have.
            columns = [pa.array(column) for column in keys.T.copy()]
            write(pa.RecordBatch.from_arrays([rows, *columns], schema=schema))
            with translate_storage_errors(path):
                file.write(truncate_signatures(signatures).tobytes())

        yield write_signatures


def find_exact_duplicates(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped_notes: NoteMask, threshold: float
) -> NoteMask:
    """Marks the notes whose digest an earlier note has."""
    del threshold
    notes = f"read_parquet('{escape_sql_path(folder / 'exact.parquet')}')"
    duplicates = np.zeros_like(dropped_notes)
    # A join with the repeated digests only: a window over all notes would sort all of them.
    repeated = f"SELECT digest, min(row) AS first FROM {notes} GROUP BY digest HAVING count(*) > 1"
    query = f"SELECT row FROM {notes} JOIN ({repeated}) USING (digest) WHERE row > first"
    for (rows,) in _read_query_columns(connection, query, folder):
        duplicates[rows] = True
    return duplicates & ~dropped_notes


def find_near_duplicates(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped_notes: NoteMask, threshold: float
) -> NoteMask:
    """Marks the notes that are near an earlier note that is kept.

    DuckDB tables: ``buckets(bucket, row)`` holds the notes of every bucket of two or more,
    ``leaders(bucket, leader)`` the first note of each, ``near(row, leader)`` the verified pairs.
    """
    bands = choose_minhash_bands(threshold)
    notes = f"""(SELECT * FROM read_parquet('{escape_sql_path(folder / "near.parquet")}') WHERE row
                 NOT IN (SELECT row FROM read_parquet('{_write_rows(folder, dropped_notes)}')))"""
    connection.execute("CREATE TABLE buckets (bucket UBIGINT, row BIGINT)")
    connection.execute("CREATE TABLE near (row BIGINT, leader BIGINT)")
    # One band at a time bounds the memory of the aggregation.
    for i in range(bands.band_count):
        shared = f"SELECT band_{i} FROM {notes} GROUP BY band_{i} HAVING count(*) > 1"
        connection.execute(
            f"INSERT INTO buckets SELECT band_{i}, row FROM {notes} WHERE band_{i} IN ({shared})"
        )
    # Mapped, not read: (notes, permutations) bytes may be larger than memory.
    sketches = np.memmap(folder / "near.sketches", np.uint8, mode="r").reshape(
        -1, MINHASH_PERMUTATIONS
    )
    duplicates = np.zeros_like(dropped_notes)
    for _ in range(MAX_COMPARISON_ROUNDS):
        if not _compare_with_leaders(connection, folder, sketches, threshold):
            break
        # Decided anew from all pairs: a later round may show that a leader was itself dropped.
        duplicates = np.zeros(len(dropped_notes), np.bool_)
        pairs = "SELECT DISTINCT row, leader FROM near ORDER BY row, leader"
        for rows, leaders in _read_query_columns(connection, pairs, folder):
            for row, leader in zip(rows.tolist(), leaders.tolist(), strict=True):
                if not duplicates[leader]:
                    duplicates[row] = True
        # The leaders and the dropped notes leave the buckets.
        gone = f"SELECT row FROM read_parquet('{_write_rows(folder, duplicates)}')"
        connection.execute(
            f"""CREATE OR REPLACE TABLE buckets AS SELECT bucket, row FROM buckets
                JOIN leaders USING (bucket) WHERE row > leader AND row NOT IN ({gone})"""
        )
    return duplicates


def _compare_with_leaders(
    connection: duckdb.DuckDBPyConnection, folder: Path, sketches: SketchArray, threshold: float
) -> int:
    """Compares the notes of every bucket with its first note; returns the number of comparisons."""
    connection.execute(
        """CREATE OR REPLACE TABLE leaders AS SELECT bucket, min(row) AS leader FROM buckets
           GROUP BY bucket HAVING count(*) > 1"""
    )
    query = """SELECT DISTINCT row, leader FROM buckets JOIN leaders USING (bucket)
               WHERE row > leader ORDER BY row, leader"""
    schema = pa.schema([("row", pa.int64()), ("leader", pa.int64())])
    compared = 0
    with open_parquet_writer(folder / "verified.parquet", schema) as write:
        for rows, leaders in _read_query_columns(connection, query, folder):
            near = estimate_jaccard_similarity(sketches[rows], sketches[leaders]) >= threshold
            columns = [pa.array(rows[near]), pa.array(leaders[near])]
            write(pa.RecordBatch.from_arrays(columns, schema=schema))
            compared += len(rows)
    verified = f"read_parquet('{escape_sql_path(folder / 'verified.parquet')}')"
    connection.execute(f"INSERT INTO near SELECT row, leader FROM {verified}")
    return compared


def _write_rows(folder: Path, notes: NoteMask) -> str:
    """Writes the rows of a mask as a Parquet file for DuckDB; returns its path, escaped."""
    path = folder / "gone.parquet"
    pq.write_table(pa.table({"row": pa.array(np.flatnonzero(notes), pa.int64())}), path)
    return escape_sql_path(path)


def _read_query_columns(
    connection: duckdb.DuckDBPyConnection, query: str, folder: Path
) -> Iterator[list[RowNumberArray]]:
    """Yields the integer columns of a query's result, in batches; the result is on disk."""
    path = folder / "answer.parquet"
    connection.execute(f"COPY ({query}) TO '{escape_sql_path(path)}' (FORMAT parquet)")
    for batch in read_parquet_batches(path, _READ_BATCH_ROWS):
        yield [column.to_numpy(zero_copy_only=False) for column in batch.columns]


EXACT_DUPLICATE_STEP = DeduplicationStep(
    "exact", "same words as an earlier note", open_digest_writer, find_exact_duplicates
)
NEAR_DUPLICATE_STEP = DeduplicationStep(
    "near", "near duplicate of an earlier note", open_signature_writer, find_near_duplicates
)

DEDUPLICATION_STEPS: dict[str, tuple[DeduplicationStep, ...]] = {
    "none": (),
    "exact": (EXACT_DUPLICATE_STEP,),
    "near": (EXACT_DUPLICATE_STEP, NEAR_DUPLICATE_STEP),
}
"""What ``corpus.deduplicate`` and ``pairs.deduplicate`` of a recipe may be."""
