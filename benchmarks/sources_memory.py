"""How fast a corpus streams through ``sources.read``, and that its memory does not grow with the
corpus.

Writes two invented hospitals in the layout of MIMIC-IV-Note, a fifth of ``--notes`` and
``--notes``, reads each in a process of its own, and prints notes a second and the peak of resident
memory; then the same file through other CSV readers, for the choice made in
``data/formats/delimited.py``. Everything written is deleted again.

    python benchmarks/sources_memory.py --notes 500000
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from clinpeft.core.schemas import Attrition
from clinpeft.data import sources, synthetic
from clinpeft.recipe import SourceSpec

# a little under what the hospital writes, so that there are at least as many notes as asked for
NOTES_PER_SUBJECT = 11.5
FILES = ("discharge.csv.gz", "radiology.csv.gz")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--notes", type=int, default=500_000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; a temporary folder without it"
    )
    parser.add_argument(
        "--read",
        choices=sorted(READERS),
        help="(used by itself) read --folder once and print what it took",
    )
    asked = parser.parse_args()
    if asked.read:
        print(json.dumps(measured(READERS[asked.read], asked.folder)))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for notes in (asked.notes // 5, asked.notes):
            report(notes, Path(folder))


def report(notes: int, folder: Path) -> None:
    hospital = folder / f"hospital-{notes}"
    started = time.perf_counter(), time.process_time()
    synthetic.write_synthetic_hospital(
        hospital, math.ceil(notes / NOTES_PER_SUBJECT), 1234, "mimic-iv"
    )
    seconds, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    size = sum((hospital / "note" / name).stat().st_size for name in FILES)
    print(
        (
            f"{notes:,} notes asked for: written in {seconds:.0f} s ({processor:.0f} s of "
            f"processor), {size / 1e6:.0f} MB gzipped"
        ),
        flush=True,
    )
    for reader in READERS:
        command = [sys.executable, __file__, "--read", reader, "--folder", str(hospital)]
        found = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        rate, speed = (
            found["notes"] / found["seconds"],
            found["characters"] / found["processor"] / 1e6,
        )
        line = (
            f"  {reader:14} {found['notes']:>9,} notes {rate:>9,.0f} notes/s "
            f"{found['notes'] / found['processor']:>9,.0f} notes/s of processor"
        )
        print(
            (
                f"{line} {speed:6.0f} M characters/s of processor, peak "
                f"{found['peak'] / 1e6:,.0f} MB (at the start {found['start'] / 1e6:,.0f})"
            ),
            flush=True,
        )


def measured(reader: Callable[[Path], Iterable[tuple[int, int]]], folder: Path) -> dict[str, float]:
    """Notes and characters read, seconds on the clock and of the processor, resident bytes at the
    start and at their peak."""
    start, clock, processor = resident_bytes(), time.perf_counter(), time.process_time()
    notes = characters = 0
    for more, longer in reader(folder):
        notes, characters = notes + more, characters + longer
    took = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return {
        "notes": notes,
        "characters": characters,
        **took,
        "start": start,
        "peak": resident_bytes(),
    }


def resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def read_source(folder: Path) -> Iterable[tuple[int, int]]:
    attrition = Attrition("sources")
    for batch in sources.read_notes(SourceSpec(name="mimic-iv", path=folder), attrition, folder):
        yield batch.num_rows, batch.column("text").nbytes
    assert attrition.entered_rows == attrition.kept_rows


def read_csv_module(folder: Path) -> Iterable[tuple[int, int]]:
    csv.field_size_limit(1 << 24)
    for name in FILES:
        with gzip.open(folder / "note" / name, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            next(rows)
            yield from ((1, len(row[-1])) for row in rows)


def read_arrow(folder: Path) -> Iterable[tuple[int, int]]:
    import pyarrow.csv as arrow_csv

    for name in FILES:
        options = {
            "read_options": arrow_csv.ReadOptions(use_threads=False),
            "parse_options": arrow_csv.ParseOptions(newlines_in_values=True),
        }
        for batch in arrow_csv.open_csv(folder / "note" / name, **options):
            yield batch.num_rows, batch.column("text").nbytes


def read_duckdb(folder: Path) -> Iterable[tuple[int, int]]:
    import duckdb

    connection = duckdb.connect(config={"threads": 1})
    for name in FILES:
        query = (
            f"FROM read_csv('{folder / 'note' / name}', header=true, delim=',', quote='\"', "
            "escape='\"', strict_mode=true, max_line_size=16000000)"
        )
        for batch in connection.execute(query).to_arrow_reader(1024):
            yield batch.num_rows, batch.column("text").nbytes


READERS: dict[str, Callable[[Path], Iterable[tuple[int, int]]]] = {
    "sources.read": read_source,
    "csv module": read_csv_module,
    "pyarrow.csv": read_arrow,
    "duckdb": read_duckdb,
}

if __name__ == "__main__":
    main()
