"""The tables of a hospital -> stays, intensive care stays, codes and notes under one schema, with DuckDB, in bounded memory.

```
shipped.py      files as they are shipped -> tables of text; damage refused or counted
canonical.py    text of any layout -> the schemas of clinpeft.core.schemas; what contradicts itself is left out and counted
mimic_iii.py · mimic_iv.py · omop.py · plain.py    the layouts, as data
```
A new layout is one file with ``layout(spec)`` and one line in ``LAYOUTS``.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb

from clinpeft.core.errors import RecipeError, SourceError, StorageError
from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.hospital import mimic_iii, mimic_iv, omop, own_files, raw_tables, standard_tables
from clinpeft.data.hospital.raw_tables import RawTable
from clinpeft.data.hospital.standard_tables import HospitalLayout, TablePart
from clinpeft.recipe import SourceSpec

__all__ = ["HOSPITAL_LAYOUTS", "fingerprint_hospital", "open_hospital_database"]

HOSPITAL_LAYOUTS: dict[str, Callable[[SourceSpec], HospitalLayout]] = {
    "mimic-iii": mimic_iii.build_mimic_iii_layout,
    "mimic-iv": mimic_iv.build_mimic_iv_layout,
    "omop": omop.build_omop_layout,
    "files": own_files.build_own_files_layout,
}

CHARTED_TABLES: dict[str, tuple[str, ...]] = {
    "mimic-iii": ("CHARTEVENTS", "PROCEDUREEVENTS_MV"),
    "mimic-iv": ("chartevents", "procedureevents"),
}
"""Tables that a question reads in place from ``Hospital.folder``."""

MAX_WHOLE_HASH_BYTES, HASHED_END_BYTES = 256 * 2**20, 64 * 2**20


def open_hospital_database(
    spec: SourceSpec, folder: Path, memory_gigabytes: float = 2.0, threads: int = 2
) -> HospitalDatabase:
    """Read stays, intensive care stays and codes at once, and get ready to read the notes.

    Args:
        spec: the ``[source]`` of a recipe; ``synthetic`` writes its hospital into ``folder`` first.
        folder: for the database (``hospital.duckdb``, made anew) and what does not fit into memory; it will hold clinical data.
        memory_gigabytes: what DuckDB may use before it goes to disk.
        threads: of DuckDB.

    Returns:
        The open hospital; the caller closes ``connection``.

    Raises:
        RecipeError: no hospital has this name, or its keys do not fit.
        SourceError: a table or column is missing (named, with what it is needed for), or a file is damaged.
        StorageError: ``folder`` cannot be written.
    """
    if spec.name == "synthetic":
        spec = _write_synthetic_source(spec, folder)
    layout, path = _get_layout(spec), _get_source_folder(spec)
    absent = _find_missing_parts(path, layout)
    connection = _create_database(folder, memory_gigabytes, threads)
    reader = _PartReader(connection, path, spec.max_bad_fraction)
    try:
        first, *others = [part for part in layout.parts if part.name != "note"]
        attrition = [*reader.read_part(first, required=True)]
        for part in others:
            attrition += reader.read_part(part)
    except BaseException:
        connection.close()
        raise
    notes = [part for part in layout.parts if part.name == "note"]

    def read_notes(categories: Sequence[str]) -> Attrition:
        return _read_note_parts(reader, notes, tuple(categories))

    return HospitalDatabase(spec.name, path, connection, tuple(attrition), absent, read_notes)


def fingerprint_hospital(spec: SourceSpec) -> str:
    """SHA-256 in hexadecimal over names and bytes of the table files of a hospital: those that ``open_tables`` reads, those that ``read_notes``
    would, and the charted ones that ventilation is derived from. For ``synthetic`` over its parameters and generator.

    It does not change when the folder moves. Of a file of more than ``WHOLE_BYTES`` (the charted events of MIMIC-III have 33 GB) size, beginning and
    end are taken in place of all bytes: a change of a few bytes in its middle that keeps its size goes unseen.

    Raises:
        RecipeError: no hospital has this name, or its keys do not fit.
        SourceError: the folder or the stays are missing, or a file cannot be read.
    """
    if spec.name == "synthetic":
        from clinpeft.data import synthetic  # only here: a real hospital needs none of it

        return synthetic.fingerprint_synthetic_source(spec)
    layout, path = _get_layout(spec), _get_source_folder(spec)
    tables = [
        table for part in layout.parts for table in (*part.required_tables, *part.optional_tables)
    ]
    for table in layout.parts[0].required_tables:
        if raw_tables.find_table_file(path, table.name) is None:
            raise _create_missing_table_error(table, path)
    digest = hashlib.sha256()
    for name in dict.fromkeys(
        [*(table.name for table in tables), *CHARTED_TABLES.get(spec.name, ())]
    ):
        file = raw_tables.find_table_file(path, name)
        if file is not None:
            digest.update(f"{file.name}\0{_hash_table_file(file)}\n".encode())
    return digest.hexdigest()


def _hash_table_file(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            if size <= MAX_WHOLE_HASH_BYTES:
                return hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{size}\0".encode() + opened.read(HASHED_END_BYTES))
            opened.seek(size - HASHED_END_BYTES)
            digest.update(opened.read(HASHED_END_BYTES))
    except OSError as error:
        raise SourceError(
            f"this file cannot be read: {error.strerror}",
            location=str(file),
            hint="check source.path and its rights",
        ) from error
    return f"ends:{digest.hexdigest()}"


def _write_synthetic_source(spec: SourceSpec, folder: Path) -> SourceSpec:
    from clinpeft.data import synthetic  # only here: a real hospital needs none of it

    path = folder / f"synthetic-{spec.shape}-{spec.subjects}-{spec.seed}"
    synthetic.write_synthetic_hospital(path, spec.subjects, spec.seed, spec.shape)
    return spec.model_copy(update={"name": spec.shape, "path": path})


def _get_layout(spec: SourceSpec) -> HospitalLayout:
    if spec.name not in HOSPITAL_LAYOUTS:
        near = difflib.get_close_matches(spec.name, HOSPITAL_LAYOUTS, n=1, cutoff=0.4)
        hint = (
            f"did you mean {near[0]!r}? " if near else ""
        ) + f"the hospitals are: {', '.join(HOSPITAL_LAYOUTS)}, synthetic"
        raise RecipeError(f"there is no hospital {spec.name!r}", location="source.name", hint=hint)
    return HOSPITAL_LAYOUTS[spec.name](spec)


def _get_source_folder(spec: SourceSpec) -> Path:
    if spec.path is None:
        raise RecipeError(
            "source.path is missing",
            location="[source]",
            hint='name the folder of the data set: path = "$MIMIC"',
        )
    return spec.path


def _create_database(
    folder: Path, memory_gigabytes: float, threads: int
) -> duckdb.DuckDBPyConnection:
    settings = {
        "memory_limit": f"{memory_gigabytes:g}GB",
        "temp_directory": str(folder / "spill"),
        "threads": threads,
        "autoinstall_known_extensions": False,  # a closed network: nothing is fetched
        "autoload_known_extensions": False,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hospital.duckdb").unlink(missing_ok=True)
        connection = duckdb.connect(str(folder / "hospital.duckdb"), config=settings)
    except (OSError, duckdb.IOException) as error:
        raise StorageError(
            "the database of the hospital cannot be written",
            location=str(folder),
            hint="check rights and space of this folder",
        ) from error
    connection.execute(standard_tables.CREATE_MACROS_SQL + standard_tables.CREATE_TABLES_SQL)
    return connection


class _PartReader:
    """Reads parts of one data set; a file that several parts share is read once."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, folder: Path, max_bad_fraction: float
    ) -> None:
        self.connection, self.folder, self.max_bad_fraction = connection, folder, max_bad_fraction
        self.file_names: dict[str, str] = {}

    def read_part(self, part: TablePart, required: bool = False) -> Iterator[Attrition]:
        """Counts of its files, then of its rows; nothing when a file is missing and not required."""
        if not required and any(
            raw_tables.find_table_file(self.folder, table.name) is None
            for table in part.required_tables
        ):
            return
        yield from self.read_raw_tables(part)
        yield standard_tables.fill_standard_table(
            self.connection, part, self.file_names[part.required_tables[0].raw_name]
        )

    def read_raw_tables(self, part: TablePart) -> Iterator[Attrition]:
        """Counts of the files of a part that were not read before."""
        for table in part.required_tables:
            yield from self._read_table_file(table, required=True)
        for table in part.optional_tables:
            yield from self._read_table_file(table, required=False)

    def read_notes(self, part: TablePart, categories: tuple[str, ...]) -> Attrition:
        """One file of notes, straight into ``note``."""
        table = part.required_tables[0]
        path = self._require_table_file(table)
        source = raw_tables.build_raw_table_query(path, table)
        with raw_tables.translate_duckdb_errors(path):
            rows = standard_tables.fill_note_table(
                self.connection, part, source, path.name, categories
            )
        total = raw_tables.count_rejected_rows(
            self.connection, path, rows.entered_rows, self.max_bad_fraction
        )
        total.dropped_rows.update(rows.dropped_rows)
        total.locations.update(rows.locations)
        return total

    def _require_table_file(self, table: RawTable) -> Path:
        path = raw_tables.find_table_file(self.folder, table.name)
        if path is None:
            raise _create_missing_table_error(table, self.folder)
        return path

    def _read_table_file(self, table: RawTable, required: bool) -> Iterator[Attrition]:
        if table.raw_name in self.file_names:
            return
        path = (
            self._require_table_file(table)
            if required
            else raw_tables.find_table_file(self.folder, table.name)
        )
        self.file_names[table.raw_name] = path.name if path else ""
        if path is None:
            columns = ", ".join(
                f'NULL::VARCHAR AS "{name}"' for name in (*table.columns, *table.optional_columns)
            )
            self.connection.execute(
                f'CREATE TABLE {table.raw_name} AS SELECT 1::BIGINT AS "row", {columns} LIMIT 0'
            )
            return
        yield raw_tables.read_raw_table(self.connection, path, table, self.max_bad_fraction)


def _create_missing_table_error(table: RawTable, folder: Path) -> SourceError:
    purpose = next(iter(table.columns.values()))
    return SourceError(
        f"there is no table {table.name}, needed for {purpose}",
        location=str(folder),
        hint=f"put {table.name}.csv or .csv.gz there",
    )


def _find_missing_parts(folder: Path, layout: HospitalLayout) -> dict[str, str]:
    """Of the parts that may be missing, those without their files, each with the first file it would need."""
    missing: dict[str, str] = dict.fromkeys(
        ("icu_stay", "diagnosis", "procedure", "note"), "a table that this layout does not have"
    )
    complete = set()
    for part in reversed(layout.parts):
        lacking = [
            table.name
            for table in part.required_tables
            if raw_tables.find_table_file(folder, table.name) is None
        ]
        if lacking and part.name in missing:  # the rest, the titles of codes, is only looked at
            missing[part.name] = f"{lacking[0]}.csv or {lacking[0]}.csv.gz"
        else:
            complete.add(part.name)
    return {name: file for name, file in missing.items() if name not in complete}


def _read_note_parts(
    reader: _PartReader, parts: Sequence[TablePart], categories: tuple[str, ...]
) -> Attrition:
    """Read the note files that hold one of ``categories`` (all of them when empty) into ``note``."""
    reader.connection.execute(standard_tables.CREATE_NOTE_TABLE_SQL)
    total = Attrition("notes read")
    for part in parts:
        if part.categories and categories and not set(part.categories) & set(categories):
            continue
        read = reader.read_notes(part, categories)
        total.entered_rows += read.entered_rows
        total.dropped_rows.update(read.dropped_rows)
        total.locations.update(read.locations)
    return total
