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

from clinpeft.data.formats.working_folder import batches, finishing, stored, writing

Bool = NDArray[np.bool_]
UInt8 = NDArray[np.uint8]
UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

SHINGLE_WORDS = 5
PERMUTATIONS = (
    128  # standard error of the estimate at similarity 0.8: sqrt(0.8 * 0.2 / 128) = 0.035
)
ROUNDS = 8

_FOUND = 0.95
_CHANCE = 1 / 256  # two unequal minima agree in their last 8 bits
_ROWS = 65536


@dataclass(frozen=True)
class Bands:
    """A signature cut into ``count`` bands of ``rows`` minima; two notes that agree on a whole band are candidates."""

    count: int
    rows: int

    def probability(self, similarity: float) -> float:
        """Of being a candidate at a true similarity: 1 - (1 - s^r)^b, the S-curve."""
        return float(1 - (1 - similarity**self.rows) ** self.count)


def bands(threshold: float) -> Bands:
    """The most selective cut that still makes a pair at the threshold a candidate with a probability of ``_FOUND``.

    The usual choice weighs the areas of false candidates and misses. Candidates are verified here, so a false one costs one comparison, and
    only the misses matter. At 0.8: 18 bands of 7 minima, with 0.985 at 0.8, 0.13 at 0.5 and 0.0002 at 0.2.
    """
    cuts = (Bands(PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS, 0, -1))
    return next(cut for cut in cuts if cut.probability(threshold) >= _FOUND or cut.rows == 1)


def words(text: str) -> str:
    """The words of a note, one space between: what two notes are compared by."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def signatures(texts: Sequence[str]) -> UInt32:
    """The MinHash signatures of notes.

    Args:
        texts: as ``words`` returns them, each of one word or more.

    Returns:
        (notes, PERMUTATIONS): the least hash of a note's shingles under every permutation x -> a x + b mod 2^32, a odd.
    """
    shingles, starts = _shingles(texts)
    signature = np.empty((len(texts), PERMUTATIONS), np.uint32)
    permuted = np.empty_like(shingles)
    for at, (a, b) in enumerate(_PERMUTATIONS):
        np.multiply(shingles, a, out=permuted)
        np.add(permuted, b, out=permuted)
        signature[:, at] = np.minimum.reduceat(permuted, starts)
    return signature


def sketches(signature: UInt32) -> UInt8:
    """What is kept to verify a pair: the last 8 bits of every minimum, (notes, PERMUTATIONS)."""
    return signature.astype(np.uint8)


def similarity(left: UInt8, right: UInt8) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of pairs of sketches, (pairs, PERMUTATIONS) each; freed of chance agreement, so 0 at the least."""
    agreement = (left == right).mean(axis=1)
    estimate: NDArray[np.float64] = np.maximum((agreement - _CHANCE) / (1 - _CHANCE), 0.0)
    return estimate


def band_keys(signature: UInt32, cut: Bands) -> UInt64:
    """One key a note and band, (notes, bands); equal keys put two notes in one bucket, and no two bands share a key."""
    rows = (
        signature[:, : cut.count * cut.rows]
        .reshape(len(signature), cut.count, cut.rows)
        .astype(np.uint64)
    )
    keys = (rows * _odd(seed=3, count=cut.rows)).sum(axis=2, dtype=np.uint64)
    return _mixed(keys + _odd(seed=4, count=cut.count))


def _shingles(texts: Sequence[str]) -> tuple[UInt32, Int64]:
    """The hashes of all word n-grams of all notes, and where those of each note start."""
    split = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
    hashes, ends = _word_hashes(split.flatten()), split.offsets.to_numpy().astype(np.int64)
    counts = np.maximum(np.diff(ends) - SHINGLE_WORDS + 1, 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # (shingles,): the first word of each shingle, and one past the last word of its note
    first = np.arange(starts[-1]) + np.repeat(ends[:-1] - starts[:-1], counts)
    end = np.repeat(ends[1:], counts)
    combined = np.zeros(len(first), np.uint64)
    for location, multiplier in enumerate(_odd(seed=1, count=SHINGLE_WORDS)):
        word = hashes[np.minimum(first + location, len(hashes) - 1)] * multiplier
        combined += np.where(
            first + location < end, word, np.uint64(0)
        )  # a note of three words is one 3-gram
    return (_mixed(combined) >> np.uint64(32)).astype(np.uint32), starts[:-1]


def _word_hashes(flat: pa.Array) -> UInt64:
    """64 bits a word; each distinct word of the batch is hashed once."""
    encoded = flat.dictionary_encode()
    distinct = encoded.dictionary.cast(pa.large_binary()).to_pylist()
    hashed: UInt64 = np.frombuffer(
        b"".join(hashlib.blake2b(word, digest_size=8).digest() for word in distinct), "<u8"
    ).astype(np.uint64)
    each: UInt64 = hashed[encoded.indices.to_numpy()]
    return each


def _odd(seed: int, count: int) -> UInt64:
    """Fixed odd multipliers; the raw stream of PCG64 is the same on every version of NumPy."""
    drawn: UInt64 = np.random.PCG64(seed).random_raw(count).astype(np.uint64)
    return drawn | np.uint64(1)


def _mixed(keys: UInt64) -> UInt64:
    """The 64-bit finaliser of MurmurHash3 (Appleby)."""
    mixed = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return mixed ^ (mixed >> np.uint64(33))


_PERMUTATIONS = (_odd(seed=2, count=2 * PERMUTATIONS) >> np.uint64(31)).astype(np.uint32).reshape(
    PERMUTATIONS, 2
) | np.array([1, 0], np.uint32)

Remember = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Step:
    """One way in which a note may say again what an earlier one said.

    Attributes:
        name: as in the attrition.
        reason: why a note was dropped.
        remembering: (folder, threshold) -> what is told the words of every note, in order, and writes down what ``find`` needs.
        find: (connection, folder, dropped so far, threshold) -> the further notes to drop, one truth value a note.
    """

    name: str
    reason: str
    remembering: Callable[[Path, float], contextlib.AbstractContextManager[Remember]]
    find: Callable[[duckdb.DuckDBPyConnection, Path, Bool, float], Bool]


@contextlib.contextmanager
def _remembering_digests(folder: Path, threshold: float) -> Iterator[Remember]:  # noqa: ARG001
    """A 128-bit digest a note; 2.65 million notes collide with a probability of 1e-26."""
    schema = pa.schema([("row", pa.int64()), ("digest", pa.binary(16))])
    with writing(folder / "exact.parquet", schema) as write:
        rows = _Rows()

        def remember(texts: Sequence[str]) -> None:
            digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
            write(
                pa.RecordBatch.from_arrays(
                    [rows.next(len(texts)), pa.array(digests, pa.binary(16))], schema=schema
                )
            )

        yield remember


@contextlib.contextmanager
def _remembering_signatures(folder: Path, threshold: float) -> Iterator[Remember]:
    """The band keys as Parquet, a column a band, and the sketches as plain bytes, PERMUTATIONS a note."""
    cut = bands(threshold)
    schema = pa.schema(
        [("row", pa.int64()), *((f"band_{at}", pa.uint64()) for at in range(cut.count))]
    )
    path = folder / "near.sketches"
    with stored(path):
        file = path.open("wb")
    with writing(folder / "near.parquet", schema) as write, finishing(file.close, path):
        rows = _Rows()

        def remember(texts: Sequence[str]) -> None:
            signature = signatures(texts)
            keys = band_keys(signature, cut)
            write(
                pa.RecordBatch.from_arrays(
                    [rows.next(len(texts)), *(pa.array(column) for column in keys.T.copy())],
                    schema=schema,
                )
            )
            with stored(path):
                file.write(sketches(signature).tobytes())

        yield remember


class _Rows:
    """Counts the notes that came by."""

    def __init__(self) -> None:
        self.count = 0

    def next(self, many: int) -> pa.Array:
        self.count += many
        return pa.array(np.arange(self.count - many, self.count))


def _find_exact(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped: Bool, threshold: float
) -> Bool:  # noqa: ARG001
    notes = f"read_parquet('{_quoted(folder / 'exact.parquet')}')"
    found = np.zeros_like(dropped)
    repeated = f"SELECT digest, min(row) AS first FROM {notes} GROUP BY digest HAVING count(*) > 1"
    query = f"SELECT row FROM {notes} JOIN ({repeated}) USING (digest) WHERE row > first"
    for (rows,) in _columns(connection, query, folder):
        found[rows] = True
    return found & ~dropped


def _find_near(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped: Bool, threshold: float
) -> Bool:
    _fill_buckets(connection, folder, dropped, bands(threshold))
    sketch = np.memmap(folder / "near.sketches", np.uint8, mode="r").reshape(-1, PERMUTATIONS)
    found = np.zeros_like(dropped)
    for _ in range(ROUNDS):
        if not _compare(connection, folder, sketch, threshold):
            break
        found = _greedy(connection, folder, len(dropped))
        _advance(connection, folder, found)
    return found


def _fill_buckets(
    connection: duckdb.DuckDBPyConnection, folder: Path, dropped: Bool, cut: Bands
) -> None:
    """``buckets(bucket, row)``: the notes still in, in every bucket of two or more."""
    kept = f"""(SELECT * FROM read_parquet('{_quoted(folder / "near.parquet")}')
                WHERE row NOT IN (SELECT row FROM read_parquet('{_gone(folder, dropped)}')))"""
    connection.execute(
        "CREATE TABLE buckets (bucket UBIGINT, row BIGINT); CREATE TABLE near (row BIGINT, leader BIGINT)"
    )
    for at in range(cut.count):
        shared = f"SELECT band_{at} FROM {kept} GROUP BY band_{at} HAVING count(*) > 1"
        connection.execute(
            f"INSERT INTO buckets SELECT band_{at}, row FROM {kept} WHERE band_{at} IN ({shared})"
        )


def _compare(
    connection: duckdb.DuckDBPyConnection, folder: Path, sketch: UInt8, threshold: float
) -> int:
    """Compare the notes of every bucket with its first; who is near goes into ``near(row, leader)``. Returns how many were compared."""
    connection.execute(
        "CREATE OR REPLACE TABLE leaders AS SELECT bucket, min(row) AS leader FROM buckets GROUP BY bucket HAVING count(*) > 1"
    )
    query = "SELECT DISTINCT row, leader FROM buckets JOIN leaders USING (bucket) WHERE row > leader ORDER BY row, leader"
    pairs = pa.schema([("row", pa.int64()), ("leader", pa.int64())])
    compared = 0
    with writing(folder / "verified.parquet", pairs) as write:
        for rows, leaders in _columns(connection, query, folder):
            near = similarity(sketch[rows], sketch[leaders]) >= threshold
            write(
                pa.RecordBatch.from_arrays(
                    [pa.array(rows[near]), pa.array(leaders[near])], schema=pairs
                )
            )
            compared += len(rows)
    connection.execute(
        f"INSERT INTO near SELECT row, leader FROM read_parquet('{_quoted(folder / 'verified.parquet')}')"
    )
    return compared


def _greedy(connection: duckdb.DuckDBPyConnection, folder: Path, notes: int) -> Bool:
    """Drop, in reading order, every note that is near an earlier one that is kept."""
    found = np.zeros(notes, np.bool_)
    for rows, leaders in _columns(
        connection, "SELECT DISTINCT row, leader FROM near ORDER BY row, leader", folder
    ):
        for row, leader in zip(rows.tolist(), leaders.tolist(), strict=True):
            if not found[leader]:
                found[row] = True
    return found


def _advance(connection: duckdb.DuckDBPyConnection, folder: Path, found: Bool) -> None:
    """Take the first of every bucket, and whoever was dropped, out of the buckets."""
    connection.execute(
        f"""CREATE OR REPLACE TABLE buckets AS SELECT bucket, row FROM buckets JOIN leaders USING (bucket)
            WHERE row > leader AND row NOT IN (SELECT row FROM read_parquet('{_gone(folder, found)}'))"""
    )


def _gone(folder: Path, dropped: Bool) -> str:
    """The rows set in ``dropped`` as a Parquet file for DuckDB: its path, quoted."""
    path = folder / "gone.parquet"
    pq.write_table(pa.table({"row": pa.array(np.flatnonzero(dropped), pa.int64())}), path)
    return _quoted(path)


def _columns(
    connection: duckdb.DuckDBPyConnection, query: str, folder: Path
) -> Iterator[list[Int64]]:
    """The integer columns of a query's answer, in its order and piece by piece: an answer larger than memory lies on disk meanwhile."""
    path = folder / "answer.parquet"
    connection.execute(f"COPY ({query}) TO '{_quoted(path)}' (FORMAT parquet)")
    for batch in batches(path, _ROWS):
        yield [column.to_numpy(zero_copy_only=False) for column in batch.columns]


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


EXACT = Step("exact", "same words as an earlier note", _remembering_digests, _find_exact)
NEAR = Step("near", "near duplicate of an earlier note", _remembering_signatures, _find_near)

STEPS: dict[str, tuple[Step, ...]] = {"none": (), "exact": (EXACT,), "near": (EXACT, NEAR)}
"""What ``corpus.deduplicate`` asks for."""
