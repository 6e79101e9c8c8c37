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
from clinpeft.data.formats.rows import Lost, Row, batches
from clinpeft.data.notes import files, mimic
from clinpeft.data.notes.files import column_names
from clinpeft.recipe import SourceSpec

__all__ = ["SOURCES", "Source", "column_names", "fingerprint", "read"]


@dataclass(frozen=True)
class Source:
    """How one source is read.

    Attributes:
        rows: spec and cache folder -> its rows; what can be checked without reading all is checked at the call.
        fingerprint: SHA-256 in hexadecimal over what ``rows`` would read.
    """

    rows: Callable[[SourceSpec, Path], Iterator[Row | Lost]]
    fingerprint: Callable[[SourceSpec], str]


def read(spec: SourceSpec, attrition: Attrition, cache: Path) -> pa.RecordBatchReader:
    """The notes of a source, a stream of ``tables.NOTE`` batches that is read once, in bounded memory.

    ``attrition`` is counted up while the stream is consumed and is whole at its end. Missing files and columns are refused at the call;
    damage further on is raised by the batch that meets it.

    Args:
        spec: the ``[source]`` of a recipe.
        attrition: a fresh count for this step.
        cache: a folder of this program, for what a source has to write (only ``synthetic`` does).

    Raises:
        RecipeError: no source has this name, or its keys do not fit.
        SourceError: the files cannot be read, or more than ``spec.max_bad_fraction`` of their rows.
    """
    rows = _source(spec).rows(spec, cache)
    location = str(spec.path) if spec.path else spec.name
    return pa.RecordBatchReader.from_batches(
        NOTE_SCHEMA, batches(rows, attrition, spec.max_bad_fraction, location)
    )


def fingerprint(spec: SourceSpec) -> str:
    """SHA-256 in hexadecimal over names and bytes of the files that ``read`` would read; for ``synthetic`` over its parameters and version.

    Raises:
        RecipeError: no source has this name, or its keys do not fit.
        SourceError: a file is missing.
    """
    return _source(spec).fingerprint(spec)


def _source(spec: SourceSpec) -> Source:
    if spec.name not in SOURCES:
        near = difflib.get_close_matches(spec.name, SOURCES, n=1, cutoff=0.4)
        hint = (
            f"did you mean {near[0]!r}? " if near else ""
        ) + f"the sources are: {', '.join(SOURCES)}"
        raise RecipeError(f"there is no source {spec.name!r}", location="source.name", hint=hint)
    return SOURCES[spec.name]


def _over(listed: Callable[[SourceSpec], Sequence[Path]]) -> Callable[[SourceSpec], str]:
    """The fingerprint over the files that ``listed`` names: it does not change when their folder moves."""

    def fingerprinted(spec: SourceSpec) -> str:
        digest = hashlib.sha256()
        for path in listed(spec):
            digest.update(f"{path.name}\0{_sha256(path)}\n".encode())
        return digest.hexdigest()

    return fingerprinted


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(
            f"this file cannot be read: {error.strerror}",
            location=str(path),
            hint="check source.path and its rights",
        ) from error


SOURCES: dict[str, Source] = {
    "files": Source(files.rows, _over(files.files)),
    "mimic-iii": Source(mimic.rows_iii, _over(mimic.files_iii)),
    "mimic-iv": Source(mimic.rows_iv, _over(mimic.files_iv)),
    "synthetic": Source(synthetic.read_synthetic_notes, synthetic.fingerprint_synthetic_source),
}
