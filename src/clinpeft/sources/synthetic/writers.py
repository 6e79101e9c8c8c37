"""Documents -> the files of MIMIC-IV-Note and of MIMIC-III: the exact columns, the same bytes for the same arguments."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from clinpeft.sources.synthetic.hospital import Dice
from clinpeft.sources.synthetic.notes import Document

IV_HEADER = ("note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text")
III_HEADER = ("ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME", "CATEGORY", "DESCRIPTION", "CGID", "ISERROR", "TEXT")
NOTE_TYPES = {"discharge": "DS", "discharge addendum": "AD", "radiology": "RR", "radiology addendum": "AR"}
CATEGORIES = {  # two of them end in a space, as in MIMIC-III
    "discharge": "Discharge summary",
    "discharge addendum": "Discharge summary",
    "radiology": "Radiology",
    "radiology addendum": "Radiology",
    "nursing": "Nursing",
    "nursing/other": "Nursing/other",
    "respiratory": "Respiratory ",
    "physician": "Physician ",
    "ecg": "ECG",
}
DATED = frozenset({"discharge", "discharge addendum", "ecg"})  # MIMIC-III knows only the day of these
WITHOUT_STAY = 0.1  # radiology reports that belong to no admission
STORED_EARLY = 0.01  # MIMIC-IV has such rows
IN_ERROR = 0.01


def write_iv(folder: Path, people: Iterable[Sequence[Document]], seed: int) -> None:
    """``note/discharge.csv.gz`` and ``note/radiology.csv.gz``."""
    dice = Dice(seed, 0, 2)
    with _table(folder / "note" / "discharge.csv.gz", IV_HEADER) as discharge, _table(folder / "note" / "radiology.csv.gz", IV_HEADER) as radiology:
        tables = {"discharge": discharge, "discharge addendum": discharge, "radiology": radiology, "radiology addendum": radiology}
        for documents in people:
            numbers: Counter[str] = Counter()
            for document in documents:
                note_type = NOTE_TYPES[document.kind]
                numbers[note_type] += 1
                tables[document.kind].writerow(_row_iv(document, note_type, numbers[note_type], dice))


def _row_iv(document: Document, note_type: str, number: int, dice: Dice) -> list[Any]:
    subject, summary = document.stay.patient.subject_id, document.kind in DATED
    charted = datetime.combine(document.charted.date(), datetime.min.time()) if summary else document.charted
    stored = charted - timedelta(hours=dice.whole(1, 20)) if dice.chance(STORED_EARLY) else document.stored
    stay = "" if not summary and dice.chance(WITHOUT_STAY) else document.stay.stay_id
    return [f"{subject}-{note_type}-{number}", subject, stay, note_type, number, _second(charted), _second(stored), document.text]


def write_iii(folder: Path, people: Iterable[Sequence[Document]], seed: int) -> None:
    """``NOTEEVENTS.csv.gz``."""
    dice, row_id = Dice(seed, 0, 3), 0
    with _table(folder / "NOTEEVENTS.csv.gz", III_HEADER) as table:
        for documents in people:
            for document in documents:
                row_id += 1
                table.writerow(_row_iii(row_id, document, dice))


def _row_iii(row_id: int, document: Document, dice: Dice) -> list[Any]:
    dated, radiology = document.kind in DATED, document.kind.startswith("radiology")
    charted, stored = ("", "") if dated else (_second(document.charted), "" if radiology else _second(document.stored))
    stay = "" if radiology and dice.chance(WITHOUT_STAY) else document.stay.stay_id
    error = "1" if document.kind.startswith("nursing") and dice.chance(IN_ERROR) else ""
    writer = "" if dated or radiology else dice.whole(14000, 21999)
    subject, category, text = document.stay.patient.subject_id, CATEGORIES[document.kind], document.text
    return [row_id, subject, stay, f"{document.charted:%Y-%m-%d}", charted, stored, category, document.description, writer, error, text]


def _second(moment: datetime) -> str:
    return moment.isoformat(" ", "seconds")


@contextlib.contextmanager
def _table(path: Path, header: Sequence[str]) -> Iterator[Any]:
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
