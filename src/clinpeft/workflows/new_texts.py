"""Files of new notes or texts, read without losing a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import Attrition
from clinpeft.data import sources
from clinpeft.recipe import SourceSpec

NEW_NOTE_COLUMNS = ("note_id", "subject_id", "stay_id", "text")


def read_new_texts(
    path: Path, columns: Mapping[str, str], cache: Path, message: str, hint: str
) -> Iterator[pa.RecordBatch]:
    """Read a file of texts, all of whose rows have to be readable.

    A row that is lost would leave a note without prediction, or all later vectors in a wrong row.

    Args:
        path: in any format of the source ``files``.
        columns: our column -> theirs, where a column has another name.
        cache: folder that the source may write to.
        message: of the error, after the number of lost rows.
        hint: of the error.

    Returns:
        Batches of schema ``NOTE_SCHEMA``.

    Raises:
        InputError: a row was lost; raised after the last batch.
        SourceError: the file cannot be read.
    """
    present = sources.read_column_names(path)
    mapped = {name: name for name in NEW_NOTE_COLUMNS if name in present} | dict(columns)
    spec = SourceSpec(name="files", path=path, columns=mapped, max_bad_fraction=0.0)
    attrition = Attrition("read")
    yield from sources.read_notes(spec, attrition, cache)
    if attrition.dropped_rows:
        reasons = ", ".join(
            f"{count:,} × {reason}" for reason, count in attrition.dropped_rows.items()
        )
        lost = attrition.entered_rows - attrition.kept_rows
        raise InputError(
            f"{lost:,} of {attrition.entered_rows:,} rows {message}: {reasons}",
            location=str(path),
            hint=hint,
        )


def check_is_new(path: Path, option: str) -> None:
    """Check that a file or folder to be written does not exist.

    Raises:
        RefusedError: it exists.
    """
    if path.exists():
        noun = "file" if path.suffix else "folder"
        raise RefusedError(
            f"{str(path)!r} exists",
            location=option,
            hint=f"name a new {noun}, or remove this one yourself",
        )
