"""Raw files -> notes: a stream of ``NOTE_SCHEMA`` batches in bounded memory, every row counted.

``NOTE_SOURCES`` names the sources. A new one is a function that yields ``NoteRow`` or
``RejectedRow``, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import NOTE_SCHEMA, Attrition
from clinpeft.data import synthetic
from clinpeft.data.formats.hashing import fingerprint_source_files
from clinpeft.data.formats.hints import join_hints, suggest_name
from clinpeft.data.formats.rows import NoteRow, RejectedRow, batch_notes
from clinpeft.data.notes import files, mimic
from clinpeft.data.notes.files import read_column_names
from clinpeft.recipe import SourceSpec

__all__ = ["NOTE_SOURCES", "NoteSource", "fingerprint_notes", "read_column_names", "read_notes"]


@dataclass(frozen=True)
class NoteSource:
    """How one source is read.

    Attributes:
        read_rows: (spec, cache folder) -> its rows. Files and columns are checked at the call.
        compute_fingerprint: spec -> SHA-256 in hexadecimal over the content that ``read_rows``
            would read.
    """

    read_rows: Callable[[SourceSpec, Path], Iterator[NoteRow | RejectedRow]]
    compute_fingerprint: Callable[[SourceSpec], str]


def read_notes(spec: SourceSpec, attrition: Attrition, cache_folder: Path) -> pa.RecordBatchReader:
    """Reads the notes of a source as a stream of ``NOTE_SCHEMA`` batches, in bounded memory.

    Missing files and columns raise at the call; damage further on raises in the batch that meets
    it.

    Args:
        spec: the ``[source]`` of a recipe.
        attrition: a new count of this step; updated while the stream is consumed.
        cache_folder: for files that a source has to write (only ``synthetic`` does).

    Returns:
        A reader that can be consumed once.

    Raises:
        RecipeError: no source has this name, or its keys do not fit.
        SourceError: the files, or more than ``spec.max_bad_fraction`` of their rows, cannot be
            read.
    """
    # At the call, not in the generator: missing files raise before any work is done.
    rows = get_note_source(spec).read_rows(spec, cache_folder)
    location = str(spec.path) if spec.path else spec.name
    return pa.RecordBatchReader.from_batches(
        NOTE_SCHEMA, batch_notes(rows, attrition, spec.max_bad_fraction, location)
    )


def fingerprint_notes(spec: SourceSpec) -> str:
    """Computes SHA-256, in hexadecimal, over names and bytes of the files that would be read.

    For ``synthetic`` it covers the parameters and the version of the generator.

    Raises:
        RecipeError: no source has this name, or its keys do not fit.
        SourceError: a file is missing.
    """
    return get_note_source(spec).compute_fingerprint(spec)


def get_note_source(spec: SourceSpec) -> NoteSource:
    """Returns the source that a recipe names.

    Raises:
        RecipeError: no source has this name.
    """
    if spec.name not in NOTE_SOURCES:
        raise RecipeError(
            f"there is no source {spec.name!r}",
            location="source.name",
            hint=join_hints(
                suggest_name(spec.name, NOTE_SOURCES, cutoff=0.4),
                f"the sources are: {', '.join(NOTE_SOURCES)}",
            ),
        )
    return NOTE_SOURCES[spec.name]


NOTE_SOURCES: dict[str, NoteSource] = {
    "files": NoteSource(
        files.read_note_file_rows,
        lambda spec: fingerprint_source_files(files.list_note_files(spec)),
    ),
    "mimic-iii": NoteSource(
        mimic.read_mimic_iii_rows,
        lambda spec: fingerprint_source_files(mimic.list_mimic_iii_note_files(spec)),
    ),
    "mimic-iv": NoteSource(
        mimic.read_mimic_iv_rows,
        lambda spec: fingerprint_source_files(mimic.list_mimic_iv_note_files(spec)),
    ),
    "synthetic": NoteSource(synthetic.read_synthetic_notes, synthetic.fingerprint_synthetic_source),
}
"""What ``source.name`` of a recipe may be."""
