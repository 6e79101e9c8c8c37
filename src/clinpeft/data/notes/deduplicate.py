"""Which notes say again what an earlier note said: exactly, or nearly (MinHash; Broder 1997).

The first note read of those alike is kept. Two notes are compared as *words*: Unicode-composed, case-folded, split at white space.

* ``exact``: the same words in the same order.
* ``near``: an estimated Jaccard similarity of the sets of word 5-grams at or above a threshold. A note shorter than five words is one
  n-gram, so that it is near only what is equal. Candidates come from banded signatures (Leskovec, Rajaraman and Ullman, chapter 3.4) and are
  verified on what is kept of the signatures, 8 bits of every minimum (Li and König 2010).

The rule is greedy in reading order: a note is dropped when it is near an earlier note *that is kept*. So every dropped note has a kept
one that stands for it, and a chain of progress notes, each copied forward from the last and changed a little, is thinned and not reduced to
its first. In each bucket of a band all notes are compared with the first, those left with the first left, and so on, ``ROUNDS`` times; a
bucket of a hundred thousand copies costs one comparison each.
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

from clinpeft.data.formats.working_folder import (
    read_parquet_batches,
    close_file_on_exit,
    translate_storage_errors,
    open_parquet_writer,
)

NoteMask = NDArray[np.bool_]
SketchArray = NDArray[np.uint8]
MinHashArray = NDArray[np.uint32]
NoteHashArray = NDArray[np.uint64]
RowNumberArray = NDArray[np.int64]

MINHASH_SHINGLE_WORDS = 5
MINHASH_PERMUTATIONS = (
    128  # standard error of the estimate at similarity 0.8: sqrt(0.8 * 0.2 / 128) = 0.035
)
MAX_COMPARISON_ROUNDS = 8

_MIN_CANDIDATE_PROBABILITY = 0.95
_CHANCE_AGREEMENT = 1 / 256  # two unequal minima agree in their last 8 bits
_READ_BATCH_ROWS = 65536


@dataclass(frozen=True)
class MinHashBands:
    """A signature cut into ``band_count`` bands of ``rows_per_band`` minima; two notes that agree on a whole band are candidates."""

    band_count: int
    rows_per_band: int

    def candidate_probability(self, similarity: float) -> float:
        """Of being a candidate at a true similarity: 1 - (1 - s^r)^b, the S-curve."""
        return float(1 - (1 - similarity**self.rows_per_band) ** self.band_count)


def choose_minhash_bands(threshold: float) -> MinHashBands:
    """The most selective cut that still makes a pair at the threshold a candidate with a probability of ``_FOUND``.

    The usual choice weighs the areas of false candidates and misses. Candidates are verified here, so a false one costs one comparison, and
    only the misses matter. At 0.8: 18 bands of 7 minima, with 0.985 at 0.8, 0.13 at 0.5 and 0.0002 at 0.2.
    """
    cuts = (
        MinHashBands(MINHASH_PERMUTATIONS // rows, rows)
        for rows in range(MINHASH_PERMUTATIONS, 0, -1)
    )
    return next(
        cut
        for cut in cuts
        if cut.candidate_probability(threshold) >= _MIN_CANDIDATE_PROBABILITY
        or cut.rows_per_band == 1
    )


def normalize_words(text: str) -> str:
    """The words of a note, one space between: what two notes are compared by."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def compute_minhash_signatures(texts: Sequence[str]) -> MinHashArray:
    """The MinHash signatures of notes.

    Args:
        texts: as ``words`` returns them, each of one word or more.

    Returns:
        (notes, PERMUTATIONS): the least hash of a note's shingles under every permutation x -> a x + b mod 2^32, a odd.
    """
    shingles, starts = _hash_shingles(texts)
    signature = np.empty((len(texts), MINHASH_PERMUTATIONS), np.uint32)
    permuted = np.empty_like(shingles)
    for at, (a, b) in enumerate(_PERMUTATION_COEFFICIENTS):
        np.multiply(shingles, a, out=permuted)
        np.add(permuted, b, out=permuted)
        signature[:, at] = np.minimum.reduceat(permuted, starts)
    return signature


def truncate_signatures(signatures: MinHashArray) -> SketchArray:
    """What is kept to verify a pair: the last 8 bits of every minimum, (notes, PERMUTATIONS)."""
    return signatures.astype(np.uint8)


def estimate_jaccard_similarity(
    first_sketches: SketchArray, second_sketches: SketchArray
) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of pairs of sketches, (pairs, PERMUTATIONS) each; freed of chance agreement, so 0 at the least."""
    agreement = (first_sketches == second_sketches).mean(axis=1)
    estimate: NDArray[np.float64] = np.maximum(
        (agreement - _CHANCE_AGREEMENT) / (1 - _CHANCE_AGREEMENT), 0.0
    )
    return estimate


def compute_band_keys(signatures: MinHashArray, bands: MinHashBands) -> NoteHashArray:
    """One key a note and band, (notes, bands); equal keys put two notes in one bucket, and no two bands share a key."""
    rows = (
        signatures[:, : bands.band_count * bands.rows_per_band]
        .reshape(len(signatures), bands.band_count, bands.rows_per_band)
        .astype(np.uint64)
    )
    keys = (rows * _draw_odd_multipliers(seed=3, multiplier_count=bands.rows_per_band)).sum(
        axis=2, dtype=np.uint64
    )
    return _mix_hash_bits(keys + _draw_odd_multipliers(seed=4, multiplier_count=bands.band_count))


def _hash_shingles(texts: Sequence[str]) -> tuple[MinHashArray, RowNumberArray]:
    """The hashes of all word n-grams of all notes, and where those of each note start."""
    split = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
    hashes, ends = _hash_words(split.flatten()), split.offsets.to_numpy().astype(np.int64)
    counts = np.maximum(np.diff(ends) - MINHASH_SHINGLE_WORDS + 1, 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # (shingles,): the first word of each shingle, and one past the last word of its note
    first = np.arange(starts[-1]) + np.repeat(ends[:-1] - starts[:-1], counts)
    end = np.repeat(ends[1:], counts)
    combined = np.zeros(len(first), np.uint64)
    for location, multiplier in enumerate(
        _draw_odd_multipliers(seed=1, multiplier_count=MINHASH_SHINGLE_WORDS)
    ):
        word = hashes[np.minimum(first + location, len(hashes) - 1)] * multiplier
        combined += np.where(
            first + location < end, word, np.uint64(0)
        )  # a note of three words is one 3-gram
    return (_mix_hash_bits(combined) >> np.uint64(32)).astype(np.uint32), starts[:-1]


def _hash_words(words: pa.Array) -> NoteHashArray:
    """64 bits a word; each distinct word of the batch is hashed once."""
    encoded = words.dictionary_encode()
    distinct = encoded.dictionary.cast(pa.large_binary()).to_pylist()
    hashed: NoteHashArray = np.frombuffer(
        b"".join(hashlib.blake2b(word, digest_size=8).digest() for word in distinct), "<u8"
    ).astype(np.uint64)
    each: NoteHashArray = hashed[encoded.indices.to_numpy()]
    return each


def _draw_odd_multipliers(seed: int, multiplier_count: int) -> NoteHashArray:
    """Fixed odd multipliers; the raw stream of PCG64 is the same on every version of NumPy."""
    drawn: NoteHashArray = np.random.PCG64(seed).random_raw(multiplier_count).astype(np.uint64)
    return drawn | np.uint64(1)


def _mix_hash_bits(keys: NoteHashArray) -> NoteHashArray:
    """The 64-bit finaliser of MurmurHash3 (Appleby)."""
    mixed = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return mixed ^ (mixed >> np.uint64(33))


_PERMUTATION_COEFFICIENTS = (
    _draw_odd_multipliers(seed=2, multiplier_count=2 * MINHASH_PERMUTATIONS) >> np.uint64(31)
).astype(np.uint32).reshape(MINHASH_PERMUTATIONS, 2) | np.array([1, 0], np.uint32)

WordsWriter = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class DeduplicationStep:
    """One way in which a note may say again what an earlier one said.

    Attributes:
        name: as in the attrition.
        reason: why a note was dropped.
        open_writer: (folder, threshold) -> what is told the words of every note, in order, and writes down what ``find_duplicates`` needs.
        find_duplicates: (connection, folder, dropped so far, threshold) -> the further notes to drop, one truth value a note.
    """

    name: str
    reason: str
    open_writer: Callable[[Path, float], contextlib.AbstractContextManager[WordsWriter]]
    find_duplicates: Callable[[duckdb.DuckDBPyConnection, Path, NoteMask, float], NoteMask]


@contextlib.contextmanager
def _open_digest_writer(folder: Path, threshold: float) -> Iterator[WordsWriter]:  # noqa: ARG001
    """A 128-bit digest a note; 2.65 million notes collide with a probability of 1e-26."""
    schema = pa.schema([("row", pa.int64()), ("digest", pa.binary(16))])
    with open_parquet_writer(folder / "exact.parquet", schema) as write:
        rows = _RowCounter()

        def remember(texts: Sequence[str]) -> None:
            digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
            write(
                pa.RecordBatch.from_arrays(
                    [rows.next_rows(len(texts)), pa.array(digests, pa.binary(16))], schema=schema
                )
            )

        yield remember


@contextlib.contextmanager
def _open_signature_writer(folder: Path, threshold: float) -> Iterator[WordsWriter]:
    """The band keys as Parquet, a column a band, and the sketches as plain bytes, PERMUTATIONS a note."""
    cut = choose_minhash_bands(threshold)
    schema = pa.schema(
        [("row", pa.int64()), *((f"band_{at}", pa.uint64()) for at in range(cut.band_count))]
    )
    path = folder / "near.sketches"
    with translate_storage_errors(path):
        file = path.open("wb")
    with (
        open_parquet_writer(folder / "near.parquet", schema) as write,
        close_file_on_exit(file.close, path),
    ):
        rows = _RowCounter()

        def remember(texts: Sequence[str]) -> None:
            signature = compute_minhash_signatures(texts)
            keys = compute_band_keys(signature, cut)
            write(
                pa.RecordBatch.from_arrays(
                    [rows.next_rows(len(texts)), *(pa.array(column) for column in keys.T.copy())],
                    schema=schema,
                )
            )
            with translate_storage_errors(path):
                file.write(truncate_signatures(signature).tobytes())

        yield remember


class _RowCounter:
    """Counts the notes that came by."""

    def __init__(self) -> None:
        self.row_count = 0

    def next_rows(self, note_count: int) -> pa.Array:
        self.row_count += note_count
        return pa.array(np.arange(self.row_count - note_count, self.row_count))


def _find_exact_duplicates(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped_notes: NoteMask, threshold: float
) -> NoteMask:  # noqa: ARG001
    notes = f"read_parquet('{_escape_path(folder / 'exact.parquet')}')"
    found = np.zeros_like(dropped_notes)
    repeated = f"SELECT digest, min(row) AS first FROM {notes} GROUP BY digest HAVING count(*) > 1"
    query = f"SELECT row FROM {notes} JOIN ({repeated}) USING (digest) WHERE row > first"
    for (rows,) in _read_query_columns(connection, query, folder):
        found[rows] = True
    return found & ~dropped_notes


def _find_near_duplicates(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped_notes: NoteMask, threshold: float
) -> NoteMask:
    _fill_buckets(connection, folder, dropped_notes, choose_minhash_bands(threshold))
    sketch = np.memmap(folder / "near.sketches", np.uint8, mode="r").reshape(
        -1, MINHASH_PERMUTATIONS
    )
    found = np.zeros_like(dropped_notes)
    for _ in range(MAX_COMPARISON_ROUNDS):
        if not _compare_with_leaders(connection, folder, sketch, threshold):
            break
        found = _drop_greedily(connection, folder, len(dropped_notes))
        _advance_buckets(connection, folder, found)
    return found


def _fill_buckets(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    dropped_notes: NoteMask,
    bands: MinHashBands,
) -> None:
    """``buckets(bucket, row)``: the notes still in, in every bucket of two or more."""
    kept = f"""(SELECT * FROM read_parquet('{_escape_path(folder / "near.parquet")}')
                WHERE row NOT IN (SELECT row FROM read_parquet('{_write_dropped_rows(folder, dropped_notes)}')))"""
    connection.execute(
        "CREATE TABLE buckets (bucket UBIGINT, row BIGINT); CREATE TABLE near (row BIGINT, leader BIGINT)"
    )
    for at in range(bands.band_count):
        shared = f"SELECT band_{at} FROM {kept} GROUP BY band_{at} HAVING count(*) > 1"
        connection.execute(
            f"INSERT INTO buckets SELECT band_{at}, row FROM {kept} WHERE band_{at} IN ({shared})"
        )


def _compare_with_leaders(
    connection: duckdb.DuckDBPyConnection, folder: Path, sketches: SketchArray, threshold: float
) -> int:
    """Compare the notes of every bucket with its first; who is near goes into ``near(row, leader)``. Returns how many were compared."""
    connection.execute(
        "CREATE OR REPLACE TABLE leaders AS SELECT bucket, min(row) AS leader FROM buckets GROUP BY bucket HAVING count(*) > 1"
    )
    query = "SELECT DISTINCT row, leader FROM buckets JOIN leaders USING (bucket) WHERE row > leader ORDER BY row, leader"
    pairs = pa.schema([("row", pa.int64()), ("leader", pa.int64())])
    compared = 0
    with open_parquet_writer(folder / "verified.parquet", pairs) as write:
        for rows, leaders in _read_query_columns(connection, query, folder):
            near = estimate_jaccard_similarity(sketches[rows], sketches[leaders]) >= threshold
            write(
                pa.RecordBatch.from_arrays(
                    [pa.array(rows[near]), pa.array(leaders[near])], schema=pairs
                )
            )
            compared += len(rows)
    connection.execute(
        f"INSERT INTO near SELECT row, leader FROM read_parquet('{_escape_path(folder / 'verified.parquet')}')"
    )
    return compared


def _drop_greedily(
    connection: duckdb.DuckDBPyConnection, folder: Path, note_count: int
) -> NoteMask:
    """Drop, in reading order, every note that is near an earlier one that is kept."""
    found = np.zeros(note_count, np.bool_)
    for rows, leaders in _read_query_columns(
        connection, "SELECT DISTINCT row, leader FROM near ORDER BY row, leader", folder
    ):
        for row, leader in zip(rows.tolist(), leaders.tolist(), strict=True):
            if not found[leader]:
                found[row] = True
    return found


def _advance_buckets(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped_notes: NoteMask
) -> None:
    """Take the first of every bucket, and whoever was dropped, out of the buckets."""
    connection.execute(
        f"""CREATE OR REPLACE TABLE buckets AS SELECT bucket, row FROM buckets JOIN leaders USING (bucket)
            WHERE row > leader AND row NOT IN (SELECT row FROM read_parquet('{_write_dropped_rows(folder, dropped_notes)}'))"""
    )


def _write_dropped_rows(folder: Path, dropped_notes: NoteMask) -> str:
    """The rows set in ``dropped_notes`` as a Parquet file for DuckDB: its path, quoted."""
    path = folder / "gone.parquet"
    pq.write_table(pa.table({"row": pa.array(np.flatnonzero(dropped_notes), pa.int64())}), path)
    return _escape_path(path)


def _read_query_columns(
    connection: duckdb.DuckDBPyConnection, query: str, folder: Path
) -> Iterator[list[RowNumberArray]]:
    """The integer columns of a query's answer, in its order and piece by piece: an answer larger than memory lies on disk meanwhile."""
    path = folder / "answer.parquet"
    connection.execute(f"COPY ({query}) TO '{_escape_path(path)}' (FORMAT parquet)")
    for batch in read_parquet_batches(path, _READ_BATCH_ROWS):
        yield [column.to_numpy(zero_copy_only=False) for column in batch.columns]


def _escape_path(path: Path) -> str:
    return str(path).replace("'", "''")


EXACT_DUPLICATE_STEP = DeduplicationStep(
    "exact", "same words as an earlier note", _open_digest_writer, _find_exact_duplicates
)
NEAR_DUPLICATE_STEP = DeduplicationStep(
    "near", "near duplicate of an earlier note", _open_signature_writer, _find_near_duplicates
)

DEDUPLICATION_STEPS: dict[str, tuple[DeduplicationStep, ...]] = {
    "none": (),
    "exact": (EXACT_DUPLICATE_STEP,),
    "near": (EXACT_DUPLICATE_STEP, NEAR_DUPLICATE_STEP),
}
"""What ``corpus.deduplicate`` asks for."""
