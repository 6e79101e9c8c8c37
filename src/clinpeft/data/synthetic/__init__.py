"""A synthetic hospital: invented patients whose notes read like notes, for trials and tests.

```
outcome_model.py   signs in the admission note -> probabilities    signs.toml
conditions.py      reasons for admission, chronic illnesses         conditions.toml
hospital.py        people, stays, outcomes
wording.py         templates and de-identification marks            phrases.toml
notes.py           the notes of each stay
rates.py           how often defects of real data are planted
codes.py           billed codes                                     codes.toml: ICD-9 and ICD-10
charting.py        ventilators and oxygen, minute by minute
best_auroc.py      the true probabilities and the best AUROC
writers.py         what both data sets share on the way to disk
mimic_iii.py       files and columns of MIMIC-III
mimic_iv.py        files and columns of MIMIC-IV
handbook.py        a textbook on the same conditions                handbook.toml
```

It is no evidence about real hospitals: text made from templates is far easier to predict than text
written by people.
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
from clinpeft.data.formats.rows import NoteRow, RejectedRow
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

# Marks a folder as synthetic, with the arguments that it was generated from.
SYNTHETIC_MARKER_FILE = "invented.json"


def write_synthetic_hospital(
    folder: Path,
    subjects: int,
    seed: int,
    shape: Literal["mimic-iii", "mimic-iv"],
    rates: SyntheticRates = DEFAULT_SYNTHETIC_RATES,
) -> None:
    """Write a synthetic data set: tables, notes, ``invented.json``, ``truth.csv``, ``truth.json``.

    The same arguments give the same bytes. The folder appears whole or not at all; one that already
    holds exactly this data set is left as it is. People are generated and written one by one, so
    that memory does not grow with their number.

    Args:
        folder: empty or missing.
        subjects: number of people.
        seed: of all random draws.
        shape: data set whose files and columns are written; MIMIC-IV with ``hosp``, ``icu`` and
            ``note`` in one folder.
        rates: how often defects are planted, and how much is charted. ``MIMIC_SIZE_RATES`` with
            46,520 people is about as large as MIMIC-III.

    Raises:
        SourceError: the folder holds something else.
        StorageError: the folder cannot be written.
    """
    generation = _describe_generation(subjects, seed, shape, rates)
    if _is_up_to_date(folder, generation):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SourceError(
            "this folder holds something else",
            location=str(folder),
            hint="give a folder that is empty or does not exist",
        )
    try:
        with create_temporary_folder(folder) as temporary:
            # A folder inside: the temporary one itself is locked, and stays until the block ends
            data_set = temporary / "made"
            data_set.mkdir()
            context = WriterContext(data_set, seed, rates, Counter())
            with (data_set / best_auroc.TRUTH_TABLE_FILE).open(
                "w", encoding="utf-8", newline=""
            ) as file:
                truth_writer = csv.writer(file, lineterminator="\n")
                truth_writer.writerow(best_auroc.TRUTH_HEADER)
                people = _generate_people(context, subjects, shape, truth_writer)
                SYNTHETIC_WRITERS[shape](context, people)
            best_auroc.write_truth_summary(data_set)
            marker = {**generation, "planted": dict(sorted(context.defect_counts.items()))}
            (data_set / SYNTHETIC_MARKER_FILE).write_text(
                json.dumps(marker, indent=1) + "\n", encoding="utf-8"
            )
            data_set.replace(folder)
    except OSError as error:
        if not _is_up_to_date(folder, generation):  # else another process was faster
            raise StorageError(
                f"this folder cannot be written: {error.strerror}",
                location=str(folder),
                hint="check its permissions and the free disk space",
            ) from error


def read_defect_counts(folder: Path) -> dict[str, int]:
    """Read how often each defect was planted in a hospital, and how many rows of everything it has.

    Raises:
        OSError: ``folder`` holds no synthetic hospital.
    """
    marker = json.loads((folder / SYNTHETIC_MARKER_FILE).read_text(encoding="utf-8"))
    counts: dict[str, int] = marker["planted"]
    return counts


def read_synthetic_notes(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """Read the notes of a synthetic hospital as ``spec.shape`` is read.

    The hospital is written once, to ``spec.path`` or into the cache.
    """
    generation = _describe_generation(spec.subjects, spec.seed, spec.shape, DEFAULT_SYNTHETIC_RATES)
    name = f"synthetic-{spec.shape}-{spec.subjects}-{spec.seed}-{generation['generator'][:12]}"
    folder = spec.path or cache / name
    write_synthetic_hospital(folder, spec.subjects, spec.seed, spec.shape)
    return SYNTHETIC_NOTE_READERS[spec.shape](spec.model_copy(update={"path": folder}), cache)


def fingerprint_synthetic_source(spec: SourceSpec) -> str:
    """Compute the SHA-256, in hexadecimal, of the arguments and the files of the generator."""
    generation = _describe_generation(spec.subjects, spec.seed, spec.shape, DEFAULT_SYNTHETIC_RATES)
    return hashlib.sha256(json.dumps(generation, sort_keys=True).encode()).hexdigest()


def _generate_people(
    context: WriterContext, subjects: int, shape: str, truth_writer: Any
) -> Iterator[PatientRecord]:
    """Generate people one by one, and write the true probabilities of their stays."""
    rates, has_newborns = context.rates, SHAPE_HAS_NEWBORNS[shape]
    for index in range(subjects):
        stays = hospital.generate_patient_stays(index, context.seed, has_newborns, rates)
        for stay in stays:
            truth_writer.writerows(best_auroc.format_truth_rows(stay, rates))
        documents = list(notes.generate_patient_notes(stays, context.seed, shape, rates))
        yield PatientRecord(stays, documents)


def _describe_generation(
    subjects: int, seed: int, shape: str, rates: SyntheticRates
) -> dict[str, Any]:
    """Everything that the bytes depend on."""
    return {
        "shape": shape,
        "subjects": subjects,
        "seed": seed,
        "rates": asdict(rates),
        "generator": _hash_generator_files(),
    }


@functools.cache
def _hash_generator_files() -> str:
    """SHA-256 of the generator's own files, so that a changed phrase is another hospital.

    No version number has to be raised by hand for it.
    """
    digest = hashlib.sha256()
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith((".py", ".toml")):
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _is_up_to_date(folder: Path, generation: dict[str, Any]) -> bool:
    """Whether a folder holds the data set that was generated from these arguments."""
    try:
        marker = json.loads((folder / SYNTHETIC_MARKER_FILE).read_text(encoding="utf-8"))
        return {key: value for key, value in marker.items() if key != "planted"} == generation
    except (OSError, ValueError, AttributeError):
        return False


SyntheticWriter = Callable[[WriterContext, Iterable[PatientRecord]], None]
SYNTHETIC_WRITERS: dict[str, SyntheticWriter] = {
    "mimic-iv": mimic_iv.write_mimic_iv,
    "mimic-iii": mimic_iii.write_mimic_iii,
}
# MIMIC-IV was built from emergency and intensive care admissions of adults.
SHAPE_HAS_NEWBORNS = {"mimic-iv": False, "mimic-iii": True}
SYNTHETIC_NOTE_READERS: dict[str, Callable[[SourceSpec, Path], Iterator[NoteRow | RejectedRow]]] = {
    "mimic-iv": mimic.read_mimic_iv_rows,
    "mimic-iii": mimic.read_mimic_iii_rows,
}
