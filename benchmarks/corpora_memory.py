"""How fast a corpus is built, in how much memory, and whether planted repetitions are found.

    python benchmarks/corpora_memory.py 100000 500000
    python benchmarks/corpora_memory.py --decide-only 2650000

Each size runs in a fresh process. Notes of about 300 invented words are made on the fly: eight in
ten new, one an exact copy, one a copy with three words changed (a Jaccard similarity of word
5-grams of 0.86 to 0.93). Half of the copies are of a recent note and half of one of the first
thousand, as with templates. Times are of the processor, all threads together, without the inventing
of the notes.

``--decide-only`` leaves texts out: random signatures, one in ten like an earlier one in nine minima
of ten, show what deciding takes at the size of MIMIC-IV-Note.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.core import schemas
from clinpeft.data.formats import working_folder
from clinpeft.data.notes import deduplicate
from clinpeft.data.notes.corpus import build_note_corpus
from clinpeft.recipe import CorpusSpec, SplitSpec

Words = NDArray[np.int64]

BATCH = 1000
NOTES_PER_SUBJECT = 10
VOCABULARY = np.array([f"word{at}" for at in range(30_000)])


class Hospital:
    """Invents notes, and remembers how long that took and what it planted."""

    def __init__(self, notes: int) -> None:
        self.notes, self.seconds, self.planted = notes, 0.0, Counter[str]()
        self.rng = np.random.default_rng(0)
        weights = 1 / np.arange(1, len(VOCABULARY) + 1)
        self.cumulative = np.cumsum(weights / weights.sum())

    def batches(self) -> Iterator[pa.RecordBatch]:
        started = time.process_time()
        first: list[Words] = []
        recent: list[Words] = []
        for start in range(0, self.notes, BATCH):
            batch = [self._note(first, recent) for _ in range(min(BATCH, self.notes - start))]
            first, recent = first or batch, batch
            ids = np.arange(start, start + len(batch))
            texts = [" ".join(VOCABULARY[note].tolist()) for note in batch]
            rows = {
                "note_id": ids.astype(str).tolist(),
                "subject_id": ids // NOTES_PER_SUBJECT,
                "text": texts,
            }
            made = schemas.build_arrow_table(schemas.NOTE_SCHEMA, rows).to_batches()[0]
            self.seconds += time.process_time() - started
            yield made
            started = time.process_time()

    def _note(self, first: list[Words], recent: list[Words]) -> Words:
        kind = self.rng.choice(("new", "exact", "near"), p=(0.8, 0.1, 0.1)) if recent else "new"
        if kind == "new":
            return np.searchsorted(self.cumulative, self.rng.random(self.rng.integers(200, 400)))
        self.planted[str(kind)] += 1
        originals = (first, recent)[self.rng.integers(2)]
        note = originals[self.rng.integers(len(originals))].copy()
        if kind == "near":
            note[self.rng.integers(len(note), size=3)] = self.rng.integers(len(VOCABULARY), size=3)
        return note


def peak_megabytes() -> float:
    """The largest resident set of this process; the kernel starts it anew with the program, unlike
    ``getrusage``."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) / 1024


def measure(notes: int) -> None:
    hospital = Hospital(notes)
    before = peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        started, began = time.process_time(), time.perf_counter()
        corpus = build_note_corpus(
            schemas.stream(schemas.NOTE_SCHEMA, hospital.batches()),
            CorpusSpec(),
            SplitSpec(),
            1234,
            Path(folder),
        )
        seconds = time.process_time() - started - hospital.seconds
        clock = time.perf_counter() - began
        size = corpus.path.stat().st_size / 2**20
    dropped = {step.step: sum(step.dropped_rows.values()) for step in corpus.attrition}
    print(
        f"{notes:,} notes in {clock:.0f} s; {seconds:.0f} processor seconds, "
        f"{notes / seconds:,.0f} notes/s; file {size:.0f} MB"
    )
    print(f"  peak {peak_megabytes():.0f} MB, of which imports {before:.0f}")
    print(f"  planted {dict(hospital.planted)}, dropped {dropped}", flush=True)


def decide(notes: int) -> None:
    rng, dropped = np.random.default_rng(0), np.zeros(notes, np.bool_)
    first = rng.integers(0, 2**32, (BATCH, deduplicate.MINHASH_PERMUTATIONS), np.uint32)

    def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
        drawn = rng.integers(0, 2**32, (len(texts), deduplicate.MINHASH_PERMUTATIONS), np.uint32)
        alike = (rng.random((len(texts), 1)) < 0.1) & (rng.random(drawn.shape) < 0.9)
        return np.where(alike, first[rng.integers(BATCH, size=len(texts))], drawn)

    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.object(deduplicate, "compute_minhash_signatures", signatures),
    ):
        folder = Path(name)
        for step in deduplicate.DEDUPLICATION_STEPS["near"]:
            with step.open_writer(folder, 0.8) as remember:
                for start in range(0, notes, BATCH):
                    remember([str(row) for row in range(start, min(start + BATCH, notes))])
        began = peak_megabytes()
        for step in deduplicate.DEDUPLICATION_STEPS["near"]:
            started = time.process_time()
            with contextlib.closing(
                working_folder.create_working_database(folder, 512)
            ) as connection:
                dropped |= step.find_duplicates(connection, folder, dropped, 0.8)
            print(
                f"{notes:,} notes, {step.name}: {time.process_time() - started:.0f} "
                f"processor seconds, {dropped.sum():,} dropped"
            )
        disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        print(
            f"  peak {peak_megabytes():.0f} MB, of which before {began:.0f}; {disk:.0f} MB on disk",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notes", type=int, nargs="*", default=[100_000, 500_000])
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument(
        "--decide-only", action="store_true", help="random signatures in place of notes"
    )
    given = parser.parse_args()
    work = decide if given.decide_only else measure
    options = ["--decide-only"] if given.decide_only else []
    for notes in given.notes:
        if given.here:
            work(notes)
        else:
            subprocess.run([sys.executable, __file__, "--here", *options, str(notes)], check=True)


if __name__ == "__main__":
    main()
