"""The tables of a hospital -> stays, intensive care stays, codes and notes under one schema.

```
raw_tables.py       files of a data set -> tables of text; damage is refused or counted
standard_tables.py  text of any layout -> the schemas of clinpeft.core.schemas
mimic_iii.py, mimic_iv.py, omop.py, own_files.py    the layouts, as data
```
Everything runs in DuckDB and in bounded memory. A new layout is one file with a function of
``SourceSpec`` that returns a ``HospitalLayout``, and one line in ``HOSPITAL_LAYOUTS``.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb

from clinpeft.core.database import OFFLINE_DUCKDB_SETTINGS
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

# Tables that a task reads directly from ``HospitalDatabase.folder``.
CHARTED_TABLES: dict[str, tuple[str, ...]] = {
    "mimic-iii": ("CHARTEVENTS", "PROCEDUREEVENTS_MV"),
    "mimic-iv": ("chartevents", "procedureevents"),
}

# A file of up to 256 MiB is hashed whole; of a larger one 64 MiB at each end.
MAX_WHOLE_HASH_BYTES, HASHED_END_BYTES = 256 * 2**20, 64 * 2**20


def open_hospital_database(
    spec: SourceSpec, folder: Path, memory_gigabytes: float = 2.0, threads: int = 2
) -> HospitalDatabase:
    """Read stays, intensive care stays and codes; notes are read when ``read_notes`` is called.

    Args:
        spec: the ``[source]`` of a recipe; ``synthetic`` writes its hospital into ``folder`` first.
        folder: for the database (``hospital.duckdb``, replaced) and its temporary files; it will
            hold clinical data.
        memory_gigabytes: memory of DuckDB; beyond it, temporary files are used.
        threads: of DuckDB.

    Returns:
        The open hospital; the caller closes ``connection``.

    Raises:
        RecipeError: no layout has this name, or the keys of ``[source]`` do not fit it.
        SourceError: a table or column is missing (the error names it and its purpose), or a file is
            damaged.
        StorageError: ``folder`` cannot be written.
    """
    if spec.name == "synthetic":
        spec = _write_synthetic_source(spec, folder)
    layout, path = _get_layout(spec), _get_source_folder(spec)
    # Before the database is created, so that a wrong folder leaves no file behind.
    missing_tables = _find_missing_parts(path, layout)
    connection = _create_database(folder, memory_gigabytes, threads)
    reader = _PartReader(connection, path, spec.max_bad_fraction)
    try:
        # Notes are large and their categories depend on the task, so that they are read later.
        stay, *others = [part for part in layout.parts if part.name != "note"]
        attrition = [*reader.read_part(stay, required=True)]
        for part in others:
            attrition += reader.read_part(part)
    except BaseException:
        connection.close()
        raise
    notes = [part for part in layout.parts if part.name == "note"]

    def read_notes(categories: Sequence[str]) -> Attrition:
        return reader.read_notes(notes, tuple(categories))

    return HospitalDatabase(
        spec.name, path, connection, tuple(attrition), missing_tables, read_notes
    )


def fingerprint_hospital(spec: SourceSpec) -> str:
    """SHA-256 over names and bytes of the files of a hospital, or the parameters of a synthetic
    one.

    The files are those that ``open_hospital_database`` and ``read_notes`` read, and the charted
    ones that ventilation is derived from. The fingerprint does not change when the folder moves. Of
    a file larger than ``MAX_WHOLE_HASH_BYTES`` (the charted events of MIMIC-III have 33 GB) only
    size, beginning and end are hashed: a change in its middle that keeps its size is not detected.

    Returns:
        64 hexadecimal digits.

    Raises:
        RecipeError: no layout has this name, or the keys of ``[source]`` do not fit it.
        SourceError: the folder or the stays are missing, or a file cannot be read.
    """
    if spec.name == "synthetic":
        from clinpeft.data import synthetic  # imported here only: a real hospital needs none of it

        return synthetic.fingerprint_synthetic_source(spec)
    layout, path = _get_layout(spec), _get_source_folder(spec)
    for table in layout.parts[0].required_tables:
        _require_table_file(table, path)
    names = [
        table.name
        for part in layout.parts
        for table in (*part.required_tables, *part.optional_tables)
    ]
    digest = hashlib.sha256()
    # In a fixed order, each table once: several parts read the same raw table.
    for name in dict.fromkeys([*names, *CHARTED_TABLES.get(spec.name, ())]):
        file = raw_tables.find_table_file(path, name)
        if file is not None:
            digest.update(f"{file.name}\0{_hash_table_file(file)}\n".encode())
    return digest.hexdigest()


def _hash_table_file(file: Path) -> str:
    """SHA-256 of a file; of a large one of size, first and last ``HASHED_END_BYTES``."""
    digest = hashlib.sha256()
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            if size <= MAX_WHOLE_HASH_BYTES:
                return hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{size}\0".encode() + stream.read(HASHED_END_BYTES))
            stream.seek(size - HASHED_END_BYTES)
            digest.update(stream.read(HASHED_END_BYTES))
    except OSError as error:
        raise SourceError(
            f"this file cannot be read: {error.strerror}",
            location=str(file),
            hint="check source.path and its permissions",
        ) from error
    # The prefix keeps a partial hash apart from a hash of the whole file.
    return f"ends:{digest.hexdigest()}"


def _write_synthetic_source(spec: SourceSpec, folder: Path) -> SourceSpec:
    """Write a synthetic hospital, and the specification that reads it like a real one."""
    from clinpeft.data import synthetic  # imported here only: a real hospital needs none of it

    path = folder / f"synthetic-{spec.shape}-{spec.subjects}-{spec.seed}"
    synthetic.write_synthetic_hospital(path, spec.subjects, spec.seed, spec.shape)
    return spec.model_copy(update={"name": spec.shape, "path": path})


def _get_layout(spec: SourceSpec) -> HospitalLayout:
    if spec.name not in HOSPITAL_LAYOUTS:
        near = difflib.get_close_matches(spec.name, HOSPITAL_LAYOUTS, n=1, cutoff=0.4)
        suggestion = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"there is no hospital {spec.name!r}",
            location="source.name",
            hint=f"{suggestion}the hospitals are: {', '.join(HOSPITAL_LAYOUTS)}, synthetic",
        )
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
    """``folder/hospital.duckdb``, empty but for the standard tables."""
    settings = OFFLINE_DUCKDB_SETTINGS | {
        "memory_limit": f"{memory_gigabytes:g}GB",
        "temp_directory": str(folder / "spill"),
        "threads": threads,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A database of an earlier run may have the tables of another hospital.
        (folder / "hospital.duckdb").unlink(missing_ok=True)
        connection = duckdb.connect(str(folder / "hospital.duckdb"), config=settings)
    except (OSError, duckdb.IOException) as error:
        raise StorageError(
            "the database of the hospital cannot be written",
            location=str(folder),
            hint="check permissions and space of this folder",
        ) from error
    connection.execute(standard_tables.CREATE_MACROS_SQL + standard_tables.CREATE_TABLES_SQL)
    return connection


class _PartReader:
    """Reads the parts of one data set; a file that several parts share is read once."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, folder: Path, max_bad_fraction: float
    ) -> None:
        self.connection, self.folder, self.max_bad_fraction = connection, folder, max_bad_fraction
        self.file_names: dict[str, str] = {}  # raw table -> its file, "" where there is none

    def read_part(self, part: TablePart, required: bool = False) -> Iterator[Attrition]:
        """The attrition of the files of a part, then that of its rows.

        A part that is not required and lacks a file has none.
        """
        tables = part.required_tables
        if not required and any(
            raw_tables.find_table_file(self.folder, table.name) is None for table in tables
        ):
            return
        for table in tables:
            yield from self._read_table_file(table, _require_table_file(table, self.folder))
        for table in part.optional_tables:
            path = raw_tables.find_table_file(self.folder, table.name)
            yield from self._read_table_file(table, path)
        yield standard_tables.fill_standard_table(
            self.connection, part, self.file_names[tables[0].raw_name]
        )

    def _read_table_file(self, table: RawTable, path: Path | None) -> Iterator[Attrition]:
        if table.raw_name in self.file_names:
            return
        self.file_names[table.raw_name] = path.name if path else ""
        if path is None:  # an empty table, so that the queries that join it still run
            columns = ", ".join(
                f'NULL::VARCHAR AS "{name}"' for name in (*table.columns, *table.optional_columns)
            )
            self.connection.execute(
                f'CREATE TABLE {table.raw_name} AS SELECT 1::BIGINT AS "row", {columns} LIMIT 0'
            )
            return
        yield raw_tables.read_raw_table(self.connection, path, table, self.max_bad_fraction)

    def read_notes(self, parts: Sequence[TablePart], categories: tuple[str, ...]) -> Attrition:
        """Read the note files that hold one of ``categories`` (all when empty) into ``note``."""
        self.connection.execute(standard_tables.CREATE_NOTE_TABLE_SQL)
        total = Attrition("notes read")
        for part in parts:
            if part.categories and categories and not set(part.categories) & set(categories):
                continue
            table = part.required_tables[0]
            path = _require_table_file(table, self.folder)
            source_query = raw_tables.build_raw_table_query(path, table)
            with raw_tables.translate_duckdb_errors(path):
                inserted = standard_tables.fill_note_table(
                    self.connection, part, source_query, path.name, categories
                )
            rejected = raw_tables.count_rejected_rows(
                self.connection, path, inserted.entered_rows, self.max_bad_fraction
            )
            total.entered_rows += rejected.entered_rows
            for attrition in (rejected, inserted):
                total.dropped_rows.update(attrition.dropped_rows)
                total.locations.update(attrition.locations)
        return total


def _require_table_file(table: RawTable, folder: Path) -> Path:
    path = raw_tables.find_table_file(folder, table.name)
    if path is None:
        purpose = next(iter(table.columns.values()))
        raise SourceError(
            f"there is no table {table.name}, needed for {purpose}",
            location=str(folder),
            hint=f"put {table.name}.csv or .csv.gz there",
        )
    return path


def _find_missing_parts(folder: Path, layout: HospitalLayout) -> dict[str, str]:
    """The parts other than stays without their files, each with the first file that it lacks."""
    missing: dict[str, str] = dict.fromkeys(
        ("icu_stay", "diagnosis", "procedure", "note"), "a table that this layout does not have"
    )
    complete = set()
    # Reversed, so that of several files of notes the first that is missing is named.
    for part in reversed(layout.parts):
        absent = [
            table.name
            for table in part.required_tables
            if raw_tables.find_table_file(folder, table.name) is None
        ]
        if not absent:
            complete.add(part.name)
        elif part.name in missing:  # titles of codes and stays are not reported
            missing[part.name] = f"{absent[0]}.csv or {absent[0]}.csv.gz"
    return {name: file for name, file in missing.items() if name not in complete}
