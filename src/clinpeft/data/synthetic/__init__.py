"""An invented hospital: nobody in it lives, and its notes read like notes. For trying things out, for tests, and for measuring.

```
rule.py            what is said at admission -> the chance of each outcome              signs.toml        the signs, their words and their weights
hospital.py        who comes and what happens: people, stays, outcomes                  conditions.toml   16 reasons to come, in words
wording.py         templates, de-identification marks of both kinds                     phrases.toml      what every note is worded from
notes.py           what happened, written down                                          rates.py          how often traps are planted
codes.py           what was billed                                                      codes.toml        ICD-9 and ICD-10 of every name
charting.py        ventilators and oxygen, moment by moment                             truth.py          the answers, and the best AUROC there is
writers.py         what both data sets share                                            mimic_iii.py · mimic_iv.py   their files and columns
```
What it is not: evidence. Text made from templates is far easier to predict than a nurse's.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from clinpeft.core.errors import SourceError, StorageError
from clinpeft.data.formats.rows import RejectedRow, NoteRow
from clinpeft.data.notes import mimic
from clinpeft.data.synthetic import best_auroc, hospital, mimic_iii, mimic_iv, notes
from clinpeft.data.synthetic.best_auroc import compute_best_auroc
from clinpeft.data.synthetic.files import create_temporary_folder
from clinpeft.data.synthetic.rates import DEFAULT_SYNTHETIC_RATES, MIMIC_SIZE_RATES, SyntheticRates
from clinpeft.data.synthetic.writers import PatientRecord, WriterContext
from clinpeft.recipe import SourceSpec

__all__ = [
    "DEFAULT_SYNTHETIC_RATES",
    "MIMIC_SIZE_RATES",
    "SyntheticRates",
    "compute_best_auroc",
    "fingerprint_synthetic_source",
    "read_defect_counts",
    "read_synthetic_notes",
    "write_synthetic_hospital",
]

SYNTHETIC_MARKER_FILE = "invented.json"


def write_synthetic_hospital(
    folder: Path,
    subjects: int,
    seed: int,
    shape: Literal["mimic-iii", "mimic-iv"],
    rates: SyntheticRates = DEFAULT_SYNTHETIC_RATES,
) -> None:
    """Write the data set of ``subjects`` invented people: its tables and notes, ``invented.json``, ``truth.csv`` and ``truth.json``.

    The same arguments give the same bytes. The folder appears whole or not at all. One that already holds exactly this is left as it is. People are
    made and written one by one, so that memory does not grow with their number.

    Args:
        folder: empty, or not there yet.
        subjects: how many people.
        seed: of all randomness.
        shape: whose files and columns; MIMIC-IV with ``hosp``, ``icu`` and ``note`` in one folder.
        rates: how often traps are planted, and how much is charted; ``REAL_SIZE`` with 46,520 people is about as large as MIMIC-III.

    Raises:
        SourceError: the folder holds something else.
        StorageError: it cannot be written.
    """
    made_of = _describe_generation(subjects, seed, shape, rates)
    if _is_up_to_date(folder, made_of):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SourceError(
            "this folder holds something else",
            location=str(folder),
            hint="name a folder that is empty or not there yet",
        )
    try:
        with create_temporary_folder(folder) as temporary:
            made = temporary / "made"
            made.mkdir()
            job = WriterContext(made, seed, rates, Counter())
            _write_data_set(job, subjects, shape)
            (made / SYNTHETIC_MARKER_FILE).write_text(
                json.dumps(
                    {**made_of, "planted": dict(sorted(job.defect_counts.items()))}, indent=1
                )
                + "\n",
                encoding="utf-8",
            )
            made.replace(folder)
    except OSError as error:
        if not _is_up_to_date(folder, made_of):  # else another process was faster
            raise StorageError(
                f"this folder cannot be written: {error.strerror}",
                location=str(folder),
                hint="check its rights and the space left",
            ) from error


def read_defect_counts(folder: Path) -> dict[str, int]:
    """How often each trap is in this hospital, and how much there is of everything, by name.

    Raises:
        OSError: ``folder`` holds no invented hospital.
    """
    counts: dict[str, int] = json.loads(
        (folder / SYNTHETIC_MARKER_FILE).read_text(encoding="utf-8")
    )["planted"]
    return counts


def read_synthetic_notes(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """The notes of the invented hospital, written once to ``spec.path`` (or into the cache) and read as ``spec.shape`` is read."""
    made_of = _describe_generation(spec.subjects, spec.seed, spec.shape, DEFAULT_SYNTHETIC_RATES)
    folder = (
        spec.path
        or cache / f"synthetic-{spec.shape}-{spec.subjects}-{spec.seed}-{made_of['generator'][:12]}"
    )
    write_synthetic_hospital(folder, spec.subjects, spec.seed, spec.shape)
    return SYNTHETIC_NOTE_READERS[spec.shape](spec.model_copy(update={"path": folder}), cache)


def fingerprint_synthetic_source(spec: SourceSpec) -> str:
    """SHA-256 in hexadecimal over what the hospital is made of: its parameters, and the files that generate it."""
    return hashlib.sha256(
        json.dumps(
            _describe_generation(spec.subjects, spec.seed, spec.shape, DEFAULT_SYNTHETIC_RATES),
            sort_keys=True,
        ).encode()
    ).hexdigest()


def _write_data_set(context: WriterContext, subjects: int, shape: str) -> None:
    """The tables, and beside them the truth, as people come."""
    with (context.folder / best_auroc.TRUTH_TABLE_FILE).open(
        "w", encoding="utf-8", newline=""
    ) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(best_auroc.TRUTH_HEADER)
        SYNTHETIC_WRITERS[shape](context, _generate_people(context, subjects, shape, table))
    best_auroc.write_truth_summary(context.folder)


def _generate_people(
    context: WriterContext, subjects: int, shape: str, truth_writer: Any
) -> Iterator[PatientRecord]:
    for index in range(subjects):
        stays = hospital.generate_patient_stays(
            index, context.seed, SHAPE_HAS_NEWBORNS[shape], context.rates
        )
        for stay in stays:
            truth_writer.writerows(best_auroc.format_truth_rows(stay, context.rates))
        yield PatientRecord(
            stays, list(notes.generate_patient_notes(stays, context.seed, shape, context.rates))
        )


def _describe_generation(
    subjects: int, seed: int, shape: str, rates: SyntheticRates
) -> dict[str, Any]:
    return {
        "shape": shape,
        "subjects": subjects,
        "seed": seed,
        "rates": asdict(rates),
        "generator": _hash_generator_files(),
    }


@functools.cache
def _hash_generator_files() -> str:
    """SHA-256 over the generator's own files: a changed phrase is another hospital, without anybody having to count versions."""
    files = [
        file
        for file in resources.files(__package__).iterdir()
        if file.name.endswith((".py", ".toml"))
    ]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda each: each.name):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _is_up_to_date(folder: Path, generation: dict[str, Any]) -> bool:
    try:
        found = json.loads((folder / SYNTHETIC_MARKER_FILE).read_text(encoding="utf-8"))
        return {key: value for key, value in found.items() if key != "planted"} == generation
    except (OSError, ValueError, AttributeError):
        return False


SyntheticWriter = Callable[[WriterContext, Iterable[PatientRecord]], None]
SYNTHETIC_WRITERS: dict[str, SyntheticWriter] = {
    "mimic-iv": mimic_iv.write_mimic_iv,
    "mimic-iii": mimic_iii.write_mimic_iii,
}
SHAPE_HAS_NEWBORNS = {"mimic-iv": False, "mimic-iii": True}
SYNTHETIC_NOTE_READERS: dict[str, Callable[[SourceSpec, Path], Iterator[NoteRow | RejectedRow]]] = {
    "mimic-iv": mimic.read_mimic_iv_rows,
    "mimic-iii": mimic.read_mimic_iii_rows,
}
