"""Notes in files of any layout, by a column map: CSV, TSV, JSON lines (each gzipped or not) and Parquet; one file, or a folder of one format.

``source.columns`` maps our column -> theirs; ``text`` is the only one needed.

- ``subject_id``: a whole number is taken as it is, any other text becomes a stable 63-bit hash (SHA-256). Without a map the subject is the hash
  of the text itself, white space and case levelled, so that identical texts are one subject and can never stand on both sides of a split.
- ``note_id``: without a map (or where it is empty) the file's stem and the row's number, ``notes:17``. An id that repeats, as MTSamples' do,
  keeps its first use; the next are followed by ``#`` and their file and row.
- ``available_at``: an ISO 8601 time; one with an offset is turned into UTC. Empty: unknown. Not a time: an unreadable row, counted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import NOTE_SCHEMA
from clinpeft.data.formats import delimited
from clinpeft.data.formats.delimited import RawRow
from clinpeft.data.formats.rows import RejectedRow, NoteRow
from clinpeft.recipe import SourceSpec

RawRowStream = Iterator[RawRow | RejectedRow]


def read_note_file_rows(spec: SourceSpec, cache: Path) -> Iterator[NoteRow | RejectedRow]:
    """The notes of ``spec.path`` under ``spec.columns``, one row at a time; every file's header is checked before the first row is read.

    Raises:
        RecipeError: no path, no map for ``text``, or a map for a column that notes do not have.
        SourceError: a file that is missing, of no known format, without a mapped column, or damaged.
    """
    del cache
    columns = _check_column_map(spec.columns)
    paths = list_note_files(spec)
    for path in paths:
        _open_file(
            path, columns
        )  # and closed again: a folder may hold more files than may be open at once
    return itertools.chain.from_iterable(_read_file_rows(path, columns) for path in paths)


def list_note_files(spec: SourceSpec) -> list[Path]:
    """The files to read, in order of their names."""
    if spec.path is None:
        raise RecipeError(
            "source.path is missing",
            location="[source]",
            hint='name a file or folder: path = "notes.csv"',
        )
    if not spec.path.is_dir():
        return [spec.path]
    known = [path for path in sorted(spec.path.iterdir()) if path.is_file() and _get_format(path)]
    formats = sorted({_get_format(path) for path in known})
    if len(formats) != 1:
        found = (
            f"files of several formats ({', '.join(formats)})"
            if formats
            else f"no file whose name ends in {', '.join(NOTE_FILE_FORMATS)}"
        )
        raise SourceError(
            f"this folder holds {found}",
            location=str(spec.path),
            hint="give one file, or a folder of files of one format",
        )
    _check_duplicate_files(known)
    return known


def _check_duplicate_files(paths: Sequence[Path]) -> None:
    """``a.csv`` beside ``a.csv.gz`` would give every note twice."""
    stems = [_get_stem(path.name) for path in paths]
    for path, stem in zip(paths, stems, strict=True):
        if stems.count(stem) > 1:
            hint = "keep one of them"
            raise SourceError(
                f"two files are called {stem!r}", location=str(path.parent), hint=hint
            )


def read_column_names(path: Path) -> list[str]:
    """The columns of one file, or of the first of a folder.

    Raises:
        SourceError: the file is missing, empty, damaged or of no known format.
    """
    first = list_note_files(SourceSpec(name="files", path=path))[0]
    _open_file(first, {})  # refuses what has no known format
    return _HEADER_READERS[_get_format(first)](first)


def _check_column_map(columns: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(columns) - set(NOTE_SCHEMA.names))
    if unknown:
        hint = f"the columns of a note are: {', '.join(NOTE_SCHEMA.names)}"
        raise RecipeError(
            f"source.columns maps {unknown[0]!r}, which notes do not have",
            location="[source.columns]",
            hint=hint,
        )
    if "text" not in columns:
        raise RecipeError(
            "source.columns does not map 'text'",
            location="[source.columns]",
            hint='say which column holds the text: text = "note"',
        )
    return dict(columns)


def _get_format(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return next(
        (
            ending
            for ending in NOTE_FILE_FORMATS
            if name.endswith(ending) and not name.startswith(".")
        ),
        "",
    )


def _get_stem(name: str) -> str:
    return name.removesuffix(".gz").rpartition(".")[0]


def _open_file(path: Path, columns: Mapping[str, str]) -> RawRowStream:
    """The rows of one file, their values in the order of ``columns``."""
    if not path.exists():
        raise SourceError(
            "there is no such file or folder", location=str(path), hint="check source.path"
        )
    ending = _get_format(path)
    if not ending:
        hint = f"give a file whose name ends in {', '.join(NOTE_FILE_FORMATS)} (or one of them with .gz)"
        raise SourceError(
            f"the format of {path.name!r} is not known", location=str(path), hint=hint
        )
    return NOTE_FILE_FORMATS[ending](path, columns)


def _describe_columns(columns: Mapping[str, str]) -> dict[str, str]:
    return {theirs: f"{ours!r} of a note (source.columns)" for ours, theirs in columns.items()}


def _read_csv(path: Path, columns: Mapping[str, str], delimiter: str = ",") -> RawRowStream:
    sheet = delimited.open_delimited_table(path, delimiter)
    at = delimited.find_column_positions(
        sheet.header, _describe_columns(columns), str(path), delimiter
    )
    order = [at[theirs] for theirs in columns.values()]
    return (
        row if isinstance(row, RejectedRow) else row._replace(values=[row.values[i] for i in order])
        for row in sheet.rows
    )


def _read_tsv(path: Path, columns: Mapping[str, str]) -> RawRowStream:
    return _read_csv(path, columns, "\t")


def _read_jsonl(path: Path, columns: Mapping[str, str]) -> RawRowStream:
    found = enumerate(delimited.read_text_lines(path), start=1)
    number, line = next(found)
    first = _parse_json_object(line)
    if first is None:
        raise SourceError(
            "the first line is not a JSON object",
            location=f"{path}: row 1",
            hint="write one {...} a line",
        )
    delimited.find_column_positions(list(first), _describe_columns(columns), str(path))
    return _read_json_rows(
        path.name, itertools.chain([(number, line)], found), list(columns.values())
    )


def _read_json_rows(
    name: str, numbered_lines: Iterator[tuple[int, str]], column_names: Sequence[str]
) -> RawRowStream:
    for number, line in numbered_lines:
        location = f"{name}: row {number}"
        found = _parse_json_object(line)
        if found is not None:
            yield RawRow(location, number, [_to_text(found.get(theirs)) for theirs in column_names])
        elif not line.isspace():
            yield RejectedRow("unreadable: not a JSON object", location)


def _parse_json_object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _to_text(value: object) -> str:
    """A value as CSV would have it; null is empty."""
    if value is None:
        return ""
    return (
        value
        if isinstance(value, str)
        else value.isoformat()
        if isinstance(value, datetime)
        else str(value)
    )


def _read_parquet(path: Path, columns: Mapping[str, str]) -> RawRowStream:
    try:
        file = pq.ParquetFile(
            path, buffer_size=1 << 20, pre_buffer=False
        )  # buffered: a row group is never in memory whole
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            "this Parquet file cannot be opened", location=str(path), hint="copy or write it again"
        ) from error
    delimited.find_column_positions(file.schema_arrow.names, _describe_columns(columns), str(path))
    return _read_parquet_rows(path, file, list(columns.values()))


def _read_parquet_rows(
    path: Path, file: pq.ParquetFile, column_names: Sequence[str]
) -> RawRowStream:
    number = 0
    try:
        for batch in file.iter_batches(
            batch_size=1024, columns=list(dict.fromkeys(column_names)), use_threads=False
        ):
            for values in zip(
                *(_decode_column(batch.column(name)) for name in column_names), strict=True
            ):
                number += 1
                yield RawRow(f"{path.name}: row {number}", number, values)
    except (pa.ArrowException, OSError) as error:
        location = f"{path}: after row {number}"
        raise SourceError(
            "this Parquet file is damaged", location=location, hint="copy or write it again"
        ) from error


def _decode_column(column: Any) -> list[str]:
    """Strings by way of bytes: Arrow does not look at what a Parquet file calls UTF-8, and Python would stop at the first wrong byte."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [_to_text(value) for value in column.to_pylist()]
    found = column.cast(pa.large_binary()).to_pylist()
    return ["" if value is None else value.decode("utf-8", "surrogateescape") for value in found]


def _read_file_rows(path: Path, columns: Mapping[str, str]) -> Iterator[NoteRow | RejectedRow]:
    ours, stem = list(columns), _get_stem(path.name)
    for row in _open_file(path, columns):
        yield (
            row
            if isinstance(row, RejectedRow)
            else _build_note_row(dict(zip(ours, row.values, strict=True)), row, stem)
        )


def _build_note_row(cells: Mapping[str, str], row: RawRow, stem: str) -> NoteRow | RejectedRow:
    text, subject, moment = (
        cells["text"],
        cells.get("subject_id"),
        cells.get("available_at", "").strip(),
    )
    if subject is not None and not subject.strip():
        return RejectedRow("unreadable: no subject_id", row.location)
    try:
        available_at = _parse_time(moment) if moment else None
    except ValueError:
        return RejectedRow("unreadable: available_at is not an ISO time", row.location)
    return NoteRow(
        note_id=cells.get("note_id", "").strip() or f"{stem}:{row.row_number}",
        subject_id=parse_or_hash_id(subject)
        if subject is not None
        else hash_to_63_bits(" ".join(text.split()).casefold()),
        stay_id=parse_or_hash_id(cells["stay_id"]) if cells.get("stay_id", "").strip() else None,
        category=cells.get("category", "").strip() or None,
        description=cells.get("description", "").strip() or None,
        available_at=available_at,
        text=text,
        location=row.location,
    )


def parse_or_hash_id(value: str) -> int:
    """A whole number as it is (leading zeros fall away), any other text as a stable 63-bit hash."""
    value = value.strip()
    digits = value.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= 18:
        return int(value)
    return hash_to_63_bits(value)


def hash_to_63_bits(value: str) -> int:
    """The first 63 bits of the SHA-256 of a text: the same on every machine."""
    return (
        int.from_bytes(hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        >> 1
    )


def _parse_time(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


NOTE_FILE_FORMATS: dict[str, Callable[[Path, Mapping[str, str]], RawRowStream]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
"""How the files of each ending are opened: path and columns (ours -> theirs) -> rows in the order of the columns."""

_HEADER_READERS: dict[str, Callable[[Path], list[str]]] = {
    ".csv": lambda path: delimited.open_delimited_table(path, ",").header,
    ".tsv": lambda path: delimited.open_delimited_table(path, "\t").header,
    ".jsonl": lambda path: list(_parse_json_object(next(delimited.read_text_lines(path))) or {}),
    ".ndjson": lambda path: list(_parse_json_object(next(delimited.read_text_lines(path))) or {}),
    ".parquet": lambda path: list(pq.read_schema(path).names),
}
