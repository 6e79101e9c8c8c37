"""What both data sets share on the way to disk: a person with all that was written, gzipped tables with the same bytes, and moments as text."""

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

BIRTH_SHIFT_YEARS = 300  # MIMIC-III moves the birth of everybody over 89 so far back


@dataclass(frozen=True)
class PatientRecord:
    """One person's admissions, and all notes of them in the order they were written."""

    stays: Sequence[Stay]
    documents: Sequence[SyntheticNote]


@dataclass(frozen=True)
class WriterContext:
    """What a writer needs beside the people; ``defect_counts`` is where it counts traps and rows."""

    folder: Path
    seed: int
    rates: SyntheticRates
    defect_counts: Counter[str]


def format_timestamp(moment: datetime | None) -> str:
    """As both data sets write a time; empty for none."""
    return moment.isoformat(" ", "seconds") if moment else ""


def compute_recorded_discharge(stay: Stay) -> datetime:
    """The discharge as the tables have it: where the trap is set, some hours before the admission."""
    return (
        stay.admitted_at - timedelta(hours=9, minutes=30)
        if stay.defects.has_discharge_before_admission
        else stay.discharged_at
    )


def find_death_times(stays: Sequence[Stay]) -> tuple[datetime | None, datetime | None]:
    """Death in the hospital, and death outside, of which a person has one at most."""
    last = stays[-1]
    return (
        compute_recorded_discharge(last) if last.died_in_hospital else None
    ), last.died_after_discharge_at


def compute_birth_time(stay: Stay) -> datetime:
    """The birth that fits the first admission of a person; over 89 long before anybody was born."""
    years = BIRTH_SHIFT_YEARS if stay.age > 89 else stay.age
    day = datetime.combine(stay.admitted_at.date(), datetime.min.time())
    return (
        day
        if stay.patient.is_newborn
        else day.replace(year=day.year - years, day=min(day.day, 28)) - timedelta(days=120)
    )


def count_stay_defects(stay: Stay, defect_counts: Counter[str]) -> None:
    """Count an admission and the traps in it."""
    defect_counts["admissions"] += 1
    traps = {
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
    defect_counts.update({name: 1 for name, there in traps.items() if there})


def count_note_defects(document: SyntheticNote, defect_counts: Counter[str]) -> None:
    """Count a note and what it is planted with."""
    defect_counts["notes"] += 1
    defect_counts[f"notes: {document.kind}"] += 1
    defect_counts.update(document.defects)


@contextlib.contextmanager
def open_table_writers(
    folder: Path, headers: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """A writer of rows for each file (named without ``.csv.gz``), all with their header written."""
    with contextlib.ExitStack() as opened:
        yield {
            name: opened.enter_context(_open_gzip_csv(folder / f"{name}.csv.gz", header))
            for name, header in headers.items()
        }


@contextlib.contextmanager
def _open_gzip_csv(path: Path, header: Sequence[str]) -> Iterator[Any]:
    """A gzipped CSV to write rows to; without name and time inside, so that the bytes depend on the rows alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=file, mtime=0) as packed,
        io.BufferedWriter(packed, 1 << 20) as buffered,  # type: ignore[type-var,unused-ignore]  # a raw stream in all but its stub
        io.TextIOWrapper(buffered, encoding="utf-8", newline="") as text,
    ):
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        yield table
