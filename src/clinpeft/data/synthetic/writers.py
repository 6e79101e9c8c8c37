"""What the writers of both data sets share: people with their notes, gzipped tables, times."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from clinpeft.data.synthetic.hospital import Stay
from clinpeft.data.synthetic.notes import SyntheticNote
from clinpeft.data.synthetic.rates import SyntheticRates

# MIMIC-III shifts the birth of everybody over 89 by so many years, to hide their age.
BIRTH_SHIFT_YEARS = 300


@dataclass(frozen=True)
class PatientRecord:
    """One person's stays, and all their notes in the order in which they were written."""

    stays: Sequence[Stay]
    documents: Sequence[SyntheticNote]


@dataclass(frozen=True)
class WriterContext:
    """What a writer needs besides the people.

    Attributes:
        folder: to write to.
        seed: of the hospital.
        rates: how often defects are planted.
        defect_counts: name -> count, of planted defects and of rows; the writer adds to it.
    """

    folder: Path
    seed: int
    rates: SyntheticRates
    defect_counts: Counter[str]


def format_timestamp(moment: datetime | None) -> str:
    """Format a time as both data sets do; empty for None."""
    return moment.isoformat(" ", "seconds") if moment else ""


def compute_recorded_discharge(stay: Stay) -> datetime:
    """Return the discharge as the tables have it: hours before the admission, where planted so."""
    if stay.defects.has_discharge_before_admission:
        return stay.admitted_at - timedelta(hours=9, minutes=30)
    return stay.discharged_at


def find_death_times(stays: Sequence[Stay]) -> tuple[datetime | None, datetime | None]:
    """Return (death in the hospital, death after discharge), of which one at most is not None."""
    last = stays[-1]
    in_hospital = compute_recorded_discharge(last) if last.died_in_hospital else None
    return in_hospital, last.died_after_discharge_at


def compute_birth_time(stay: Stay) -> datetime:
    """Compute a time of birth that fits the age at the first admission of a person."""
    day = datetime.combine(stay.admitted_at.date(), datetime.min.time())
    if stay.patient.is_newborn:
        return day
    years = BIRTH_SHIFT_YEARS if stay.age > 89 else stay.age
    # Day 28 at most, since 29 February is not in every year
    return day.replace(year=day.year - years, day=min(day.day, 28)) - timedelta(days=120)


def count_stay_defects(stay: Stay, defect_counts: Counter[str]) -> None:
    """Count an admission and the defects planted in it."""
    defect_counts["admissions"] += 1
    properties = {
        "newborn admissions": stay.patient.is_newborn,
        "admissions without notes": stay.defects.has_no_notes,
        "discharges before the admission": stay.defects.has_discharge_before_admission,
        "overlapping admissions": stay.defects.overlaps_next_stay,
        "deaths in hospital": stay.died_in_hospital,
        "deaths after discharge": stay.died_after_discharge_at is not None,
        "intensive care stays": stay.needed_icu,
        "ventilated stays": stay.was_ventilated,
        "prolonged ventilations": stay.ventilation_category == "prolonged",
    }
    # No entry of 0, so that the counts name only what occurs
    defect_counts.update({name: 1 for name, holds in properties.items() if holds})


def count_note_defects(document: SyntheticNote, defect_counts: Counter[str]) -> None:
    """Count a note and the defects planted in it."""
    defect_counts["notes"] += 1
    defect_counts[f"notes: {document.kind}"] += 1
    defect_counts.update(document.defects)


@contextlib.contextmanager
def open_table_writers(
    folder: Path, headers: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Open a CSV writer for each file, its header written.

    Files are gzipped without name and time inside, so that their bytes depend on the rows alone.

    Args:
        folder: of the files; folders inside it are created.
        headers: path without ``.csv.gz`` -> columns.

    Yields:
        Path -> writer of rows.
    """
    table_writers = {}
    with contextlib.ExitStack() as stack:
        for name, header in headers.items():
            path = folder / f"{name}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("wb"))
            archive = stack.enter_context(
                gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=file, mtime=0)
            )
            # Rows are short: 1 MiB at a time is far faster than a call of zlib for each. The type
            # is ignored since GzipFile is a raw stream in all but its stub.
            buffer = stack.enter_context(io.BufferedWriter(archive, 1 << 20))  # type: ignore[type-var,unused-ignore]
            text = stack.enter_context(io.TextIOWrapper(buffer, encoding="utf-8", newline=""))
            table_writers[name] = csv.writer(text, lineterminator="\n")
            table_writers[name].writerow(header)
        yield table_writers
