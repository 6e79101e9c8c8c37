"""Notes in files of any layout, by a column map.

CSV, TSV, JSON lines (each plain or gzipped) and Parquet; one file, or a folder of one format.
``source.columns`` maps our column -> theirs; ``text`` is the only one needed.

- ``subject_id``: a whole number is used as it is, any other text becomes a stable 63-bit hash
  (SHA-256). Unmapped, the subject is the hash of the text itself, white space and case normalized,
  so that identical texts are one subject and never fall on both sides of a split.
- ``note_id``: unmapped (or where it is empty) the file's stem and the row's number, ``notes:17``.
  An id that repeats, as in MTSamples, keeps its first use; the next are followed by ``#`` and their
  file and row.
- ``available_at``: an ISO 8601 time; one with an offset is converted to UTC. Empty: unknown. Not a
  time: an unreadable row, counted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import NOTE_SCHEMA
from clinpeft.data.formats import delimited
from clinpeft.data.formats.delimited import RawRow
from clinpeft.data.formats.rows import NoteRow, RejectedRow
from clinpeft.recipe import SourceSpec

RawRowStream = Iterator[RawRow | RejectedRow]


def read_note_file_rows(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """Yields the notes of ``spec.path`` under ``spec.columns``, one row at a time.

    The header of every file is checked at the call, before the first row is read.

    Args:
        spec: path and column map.
        cache: not used; the signature is that of every note source.

    Raises:
        RecipeError: no path, no map for ``text``, or a map for a column that notes do not have.
        SourceError: a file that is missing, of an unknown format, without a mapped column, or
            damaged.
    """
    del cache
    unknown = sorted(set(spec.columns) - set(NOTE_SCHEMA.names))
    if unknown:
        raise RecipeError(
            f"source.columns maps {unknown[0]!r}, which notes do not have",
            location="[source.columns]",
            hint=f"the columns of a note are: {', '.join(NOTE_SCHEMA.names)}",
        )
    if "text" not in spec.columns:
        raise RecipeError(
            "source.columns does not map 'text'",
            location="[source.columns]",
            hint='say which column holds the text: text = "note"',
        )
    columns = dict(spec.columns)
    paths = list_note_files(spec)
    for path in paths:
        # Checks the header. The file is closed again: a folder may hold more files than a process
        # may have open at once.
        _open_file(path, columns)
    return itertools.chain.from_iterable(_read_file_rows(path, columns) for path in paths)


def list_note_files(spec: SourceSpec) -> list[Path]:
    """Returns the files of a source, ordered by name.

    Raises:
        RecipeError: no path.
        SourceError: a folder that holds no file of a known format, files of several, or a file
            both plain and gzipped.
    """
    if spec.path is None:
        raise RecipeError(
            "source.path is missing",
            location="[source]",
            hint='name a file or folder: path = "notes.csv"',
        )
    # A missing file raises when it is opened, with the same hint as a missing folder.
    if not spec.path.is_dir():
        return [spec.path]
    paths = [path for path in sorted(spec.path.iterdir()) if path.is_file() and _get_format(path)]
    formats = sorted({_get_format(path) for path in paths})
    if len(formats) != 1:
        content = f"no file whose name ends in {', '.join(NOTE_FILE_FORMATS)}"
        if formats:
            content = f"files of several formats ({', '.join(formats)})"
        raise SourceError(
            f"this folder holds {content}",
            location=str(spec.path),
            hint="give one file, or a folder of files of one format",
        )
    # a.csv beside a.csv.gz would give every note twice.
    stems = [_get_stem(path.name) for path in paths]
    for path, stem in zip(paths, stems, strict=True):
        if stems.count(stem) > 1:
            raise SourceError(
                f"two files are called {stem!r}",
                location=str(path.parent),
                hint="keep one of them",
            )
    return paths


def read_column_names(path: Path) -> list[str]:
    """Returns the columns of one file, or of the first file of a folder.

    Raises:
        SourceError: the file is missing, empty, damaged or of an unknown format.
    """
    first = list_note_files(SourceSpec(name="files", path=path))[0]
    _open_file(first, {})  # raises for an unknown format
    return _HEADER_READERS[_get_format(first)](first)


def _get_format(path: Path) -> str:
    """Returns the ending under which a file is registered, without ``.gz``; empty for none."""
    name = path.name.lower().removesuffix(".gz")
    if name.startswith("."):  # hidden files, such as those that macOS puts beside copied ones
        return ""
    return next((ending for ending in NOTE_FILE_FORMATS if name.endswith(ending)), "")


def _get_stem(name: str) -> str:
    return name.removesuffix(".gz").rpartition(".")[0]


def _open_file(path: Path, columns: Mapping[str, str]) -> RawRowStream:
    """Returns the rows of one file, their values in the order of ``columns``."""
    if not path.exists():
        raise SourceError(
            "there is no such file or folder", location=str(path), hint="check source.path"
        )
    ending = _get_format(path)
    if not ending:
        raise SourceError(
            f"the format of {path.name!r} is not supported",
            location=str(path),
            hint=f"give a file whose name ends in {', '.join(NOTE_FILE_FORMATS)} "
            "(or one of them with .gz)",
        )
    return NOTE_FILE_FORMATS[ending](path, columns)


def _describe_columns(columns: Mapping[str, str]) -> dict[str, str]:
    return {theirs: f"{ours!r} of a note (source.columns)" for ours, theirs in columns.items()}


def open_delimited_notes(path: Path, columns: Mapping[str, str], delimiter: str) -> RawRowStream:
    """Opens a delimited file and checks its header.

    Returns:
        Its rows, values in the order of ``columns``.
    """
    table = delimited.open_delimited_table(path, delimiter)
    positions = delimited.find_column_positions(
        table.header, _describe_columns(columns), str(path), delimiter
    )
    # Two of our columns may be mapped to one column of the file.
    order = [positions[theirs] for theirs in columns.values()]
    return (
        row if isinstance(row, RejectedRow) else row._replace(values=[row.values[i] for i in order])
        for row in table.rows
    )


def open_json_notes(path: Path, columns: Mapping[str, str]) -> RawRowStream:
    """Opens a file of JSON lines and checks the keys of its first object.

    Returns:
        Its rows, values in the order of ``columns``.
    """
    lines = delimited.read_text_lines(path)
    first_line = next(lines)
    first_object = _parse_json_object(first_line)
    if first_object is None:
        raise SourceError(
            "the first line is not a JSON object",
            location=f"{path}: row 1",
            hint="write one {...} on each line",
        )
    # Only the first object is checked: later ones may lack a key, whose value is then empty.
    delimited.find_column_positions(list(first_object), _describe_columns(columns), str(path))

    def parse_lines() -> RawRowStream:
        for number, line in enumerate(itertools.chain([first_line], lines), start=1):
            location = f"{path.name}: row {number}"
            record = _parse_json_object(line)
            if record is not None:
                values = [_to_text(record.get(theirs)) for theirs in columns.values()]
                yield RawRow(location, number, values)
            elif not line.isspace():
                yield RejectedRow("unreadable: not a JSON object", location)

    return parse_lines()


def _parse_json_object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # thousands of open brackets exceed Python's stack
        return None
    return value if isinstance(value, dict) else None


def _to_text(value: object) -> str:
    """Formats a value as CSV would hold it; null is empty."""
    if value is None:
        return ""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def open_parquet_notes(path: Path, columns: Mapping[str, str]) -> RawRowStream:
    """Opens a Parquet file and checks its schema.

    Returns:
        Its rows, values in the order of ``columns``.
    """
    try:
        # Buffered, because a row group read ahead would be in memory whole.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            "this Parquet file cannot be opened", location=str(path), hint="copy or write it again"
        ) from error
    delimited.find_column_positions(file.schema_arrow.names, _describe_columns(columns), str(path))
    column_names = list(columns.values())

    def decode_column(column: Any) -> list[str]:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return [_to_text(value) for value in column.to_pylist()]
        # By way of bytes: Arrow does not validate what a Parquet file calls UTF-8, and to_pylist
        # would raise at the first wrong byte instead of rejecting one row.
        values = column.cast(pa.large_binary()).to_pylist()
        return [
            "" if value is None else value.decode("utf-8", "surrogateescape") for value in values
        ]

    def read_rows() -> RawRowStream:
        number = 0
        try:
            for batch in file.iter_batches(
                batch_size=1024, columns=list(dict.fromkeys(column_names)), use_threads=False
            ):
                cells = [decode_column(batch.column(name)) for name in column_names]
                for values in zip(*cells, strict=True):
                    number += 1
                    yield RawRow(f"{path.name}: row {number}", number, values)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                "this Parquet file is damaged",
                location=f"{path}: after row {number}",
                hint="copy or write it again",
            ) from error

    return read_rows()


def _read_file_rows(path: Path, columns: Mapping[str, str]) -> Iterator[NoteRow | RejectedRow]:
    """Yields the rows of one file as notes."""
    names, stem = list(columns), _get_stem(path.name)
    for row in _open_file(path, columns):
        if isinstance(row, RejectedRow):
            yield row
            continue
        cells = dict(zip(names, row.values, strict=True))
        text, subject = cells["text"], cells.get("subject_id")
        if subject is not None and not subject.strip():
            # A mapped subject that is empty must not fall back to the hash of the text: the notes
            # of one person could then fall on both sides of a split.
            yield RejectedRow("unreadable: no subject_id", row.location)
            continue
        try:
            moment = cells.get("available_at", "").strip()
            available_at = datetime.fromisoformat(moment) if moment else None
        except ValueError:
            yield RejectedRow("unreadable: available_at is not an ISO time", row.location)
            continue
        if available_at and available_at.tzinfo:
            available_at = available_at.astimezone(UTC).replace(tzinfo=None)
        stay = cells.get("stay_id", "").strip()
        yield NoteRow(
            note_id=cells.get("note_id", "").strip() or f"{stem}:{row.row_number}",
            subject_id=parse_or_hash_id(subject)
            if subject is not None
            else hash_to_63_bits(" ".join(text.split()).casefold()),
            stay_id=parse_or_hash_id(stay) if stay else None,
            category=cells.get("category", "").strip() or None,
            description=cells.get("description", "").strip() or None,
            available_at=available_at,
            text=text,
            location=row.location,
        )


def parse_or_hash_id(value: str) -> int:
    """Returns a whole number as it is, and the stable 63-bit hash of any other text.

    Leading zeros are dropped.
    """
    value = value.strip()
    digits = value.removeprefix("-")
    # 18 digits always fit into int64; isdigit alone accepts the digits of other scripts.
    if digits.isascii() and digits.isdigit() and len(digits) <= 18:
        return int(value)
    return hash_to_63_bits(value)


def hash_to_63_bits(value: str) -> int:
    """Returns the first 63 bits of the SHA-256 of a text: a non-negative int64."""
    # surrogatepass: a text that was not UTF-8 is hashed here before it is rejected.
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


NOTE_FILE_FORMATS: dict[str, Callable[[Path, Mapping[str, str]], RawRowStream]] = {
    ".csv": partial(open_delimited_notes, delimiter=","),
    ".tsv": partial(open_delimited_notes, delimiter="\t"),
    ".jsonl": open_json_notes,
    ".ndjson": open_json_notes,
    ".parquet": open_parquet_notes,
}
"""File name ending -> reader: (path, our column -> theirs) -> rows in the order of the columns."""

_HEADER_READERS: dict[str, Callable[[Path], list[str]]] = {
    ".csv": lambda path: delimited.open_delimited_table(path, ",").header,
    ".tsv": lambda path: delimited.open_delimited_table(path, "\t").header,
    ".jsonl": lambda path: list(_parse_json_object(next(delimited.read_text_lines(path))) or {}),
    ".ndjson": lambda path: list(_parse_json_object(next(delimited.read_text_lines(path))) or {}),
    ".parquet": lambda path: list(pq.read_schema(path).names),
}
