"""Raw files -> notes: a stream of ``tables.NOTE`` batches in bounded memory, every row accounted for.

``SOURCES`` names what can be read. A new source is one file with ``rows`` (each a ``stream.Row`` or a ``stream.Lost``) and one line here.

```
stream.py       rows -> batches: counts, note ids, the limit on bad rows
delimited.py    CSV and TSV -> rows with their place
files.py        any layout by a column map          mimic.py    the layouts of MIMIC-III and MIMIC-IV-Note
synthetic/      an invented hospital in both layouts
```
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import NOTE_SCHEMA, Attrition
from clinpeft.data import synthetic
from clinpeft.data.formats.rows import NoteRow, RejectedRow, batch_notes
from clinpeft.data.notes import files, mimic
from clinpeft.data.notes.files import read_column_names
from clinpeft.recipe import SourceSpec

__all__ = ["NOTE_SOURCES", "NoteSource", "fingerprint_notes", "read_column_names", "read_notes"]


@dataclass(frozen=True)
class NoteSource:
    """How one source is read.

    Attributes:
        read_rows: spec and cache folder -> its rows; what can be checked without reading all is checked at the call.
        compute_fingerprint: SHA-256 in hexadecimal over what ``read_rows`` would read.
    """

    read_rows: Callable[[SourceSpec, Path], Iterator[NoteRow | RejectedRow]]
    compute_fingerprint: Callable[[SourceSpec], str]


def read_notes(spec: SourceSpec, attrition: Attrition, cache_folder: Path) -> pa.RecordBatchReader:
    """The notes of a source, a stream of ``tables.NOTE`` batches that is read once, in bounded memory.

    ``attrition`` is counted up while the stream is consumed and is whole at its end. Missing files and columns are refused at the call;
    damage further on is raised by the batch that meets it.

    Args:
        spec: the ``[source]`` of a recipe.
        attrition: a fresh count for this step.
        cache_folder: a folder of this program, for what a source has to write (only ``synthetic`` does).

    Raises:
        RecipeError: no source has this name, or its keys do not fit.
        SourceError: the files cannot be read, or more than ``spec.max_bad_fraction`` of their rows.
    """
    rows = _get_source(spec).read_rows(spec, cache_folder)
    location = str(spec.path) if spec.path else spec.name
    return pa.RecordBatchReader.from_batches(
        NOTE_SCHEMA, batch_notes(rows, attrition, spec.max_bad_fraction, location)
    )


def fingerprint_notes(spec: SourceSpec) -> str:
    """SHA-256 in hexadecimal over names and bytes of the files that ``read`` would read; for ``synthetic`` over its parameters and version.

    Raises:
        RecipeError: no source has this name, or its keys do not fit.
        SourceError: a file is missing.
    """
    return _get_source(spec).compute_fingerprint(spec)


def _get_source(spec: SourceSpec) -> NoteSource:
    if spec.name not in NOTE_SOURCES:
        near = difflib.get_close_matches(spec.name, NOTE_SOURCES, n=1, cutoff=0.4)
        hint = (
            f"did you mean {near[0]!r}? " if near else ""
        ) + f"the sources are: {', '.join(NOTE_SOURCES)}"
        raise RecipeError(f"there is no source {spec.name!r}", location="source.name", hint=hint)
    return NOTE_SOURCES[spec.name]


def _create_file_fingerprint(
    list_files: Callable[[SourceSpec], Sequence[Path]],
) -> Callable[[SourceSpec], str]:
    """The fingerprint over the files that ``list_files`` names: it does not change when their folder moves."""

    def fingerprinted(spec: SourceSpec) -> str:
        digest = hashlib.sha256()
        for path in list_files(spec):
            digest.update(f"{path.name}\0{_hash_file(path)}\n".encode())
        return digest.hexdigest()

    return fingerprinted


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(
            f"this file cannot be read: {error.strerror}",
            location=str(path),
            hint="check source.path and its rights",
        ) from error


NOTE_SOURCES: dict[str, NoteSource] = {
    "files": NoteSource(files.read_note_file_rows, _create_file_fingerprint(files.list_note_files)),
    "mimic-iii": NoteSource(
        mimic.read_mimic_iii_rows, _create_file_fingerprint(mimic.list_mimic_iii_note_files)
    ),
    "mimic-iv": NoteSource(
        mimic.read_mimic_iv_rows, _create_file_fingerprint(mimic.list_mimic_iv_note_files)
    ),
    "synthetic": NoteSource(synthetic.read_synthetic_notes, synthetic.fingerprint_synthetic_source),
}
