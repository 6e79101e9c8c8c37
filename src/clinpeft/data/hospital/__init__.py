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
from clinpeft.data.hospital.raw_tables import Shipped
from clinpeft.data.hospital.standard_tables import Layout, Part
from clinpeft.recipe import SourceSpec

__all__ = ["LAYOUTS", "fingerprint", "open_tables"]

LAYOUTS: dict[str, Callable[[SourceSpec], Layout]] = {
    "mimic-iii": mimic_iii.layout,
    "mimic-iv": mimic_iv.layout,
    "omop": omop.layout,
    "files": own_files.layout,
}

CHARTED: dict[str, tuple[str, ...]] = {
    "mimic-iii": ("CHARTEVENTS", "PROCEDUREEVENTS_MV"),
    "mimic-iv": ("chartevents", "procedureevents"),
}
"""Tables that a question reads in place from ``Hospital.folder``."""

WHOLE_BYTES, END_BYTES = 256 * 2**20, 64 * 2**20


def open_tables(
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
        spec = _invented(spec, folder)
    layout, path = _layout(spec), _path(spec)
    absent = _absent(path, layout)
    connection = _database(folder, memory_gigabytes, threads)
    reader = _Reader(connection, path, spec.max_bad_fraction)
    try:
        first, *others = [part for part in layout.parts if part.name != "note"]
        attrition = [*reader.read(first, required=True)]
        for part in others:
            attrition += reader.read(part)
    except BaseException:
        connection.close()
        raise
    notes = [part for part in layout.parts if part.name == "note"]

    def read_notes(categories: Sequence[str]) -> Attrition:
        return _notes(reader, notes, tuple(categories))

    return HospitalDatabase(spec.name, path, connection, tuple(attrition), absent, read_notes)


def fingerprint(spec: SourceSpec) -> str:
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
    layout, path = _layout(spec), _path(spec)
    tables = [table for part in layout.parts for table in (*part.tables, *part.extra)]
    for table in layout.parts[0].tables:
        if raw_tables.find(path, table.name) is None:
            raise _missing(table, path)
    digest = hashlib.sha256()
    for name in dict.fromkeys([*(table.name for table in tables), *CHARTED.get(spec.name, ())]):
        file = raw_tables.find(path, name)
        if file is not None:
            digest.update(f"{file.name}\0{_digest(file)}\n".encode())
    return digest.hexdigest()


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            if size <= WHOLE_BYTES:
                return hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{size}\0".encode() + opened.read(END_BYTES))
            opened.seek(size - END_BYTES)
            digest.update(opened.read(END_BYTES))
    except OSError as error:
        raise SourceError(
            f"this file cannot be read: {error.strerror}",
            location=str(file),
            hint="check source.path and its rights",
        ) from error
    return f"ends:{digest.hexdigest()}"


def _invented(spec: SourceSpec, folder: Path) -> SourceSpec:
    from clinpeft.data import synthetic  # only here: a real hospital needs none of it

    path = folder / f"synthetic-{spec.shape}-{spec.subjects}-{spec.seed}"
    synthetic.write_synthetic_hospital(path, spec.subjects, spec.seed, spec.shape)
    return spec.model_copy(update={"name": spec.shape, "path": path})


def _layout(spec: SourceSpec) -> Layout:
    if spec.name not in LAYOUTS:
        near = difflib.get_close_matches(spec.name, LAYOUTS, n=1, cutoff=0.4)
        hint = (
            f"did you mean {near[0]!r}? " if near else ""
        ) + f"the hospitals are: {', '.join(LAYOUTS)}, synthetic"
        raise RecipeError(f"there is no hospital {spec.name!r}", location="source.name", hint=hint)
    return LAYOUTS[spec.name](spec)


def _path(spec: SourceSpec) -> Path:
    if spec.path is None:
        raise RecipeError(
            "source.path is missing",
            location="[source]",
            hint='name the folder of the data set: path = "$MIMIC"',
        )
    return spec.path


def _database(folder: Path, memory_gigabytes: float, threads: int) -> duckdb.DuckDBPyConnection:
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
    connection.execute(standard_tables.MACROS + standard_tables.TABLES)
    return connection


class _Reader:
    """Reads parts of one data set; a file that several parts share is read once."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, path: Path, max_bad_fraction: float
    ) -> None:
        self.connection, self.path, self.max_bad_fraction = connection, path, max_bad_fraction
        self.files: dict[str, str] = {}

    def read(self, part: Part, required: bool = False) -> Iterator[Attrition]:
        """Counts of its files, then of its rows; nothing when a file is missing and not required."""
        if not required and any(
            raw_tables.find(self.path, table.name) is None for table in part.tables
        ):
            return
        yield from self.raw(part)
        yield standard_tables.fill(self.connection, part, self.files[part.tables[0].raw])

    def raw(self, part: Part) -> Iterator[Attrition]:
        """Counts of the files of a part that were not read before."""
        for table in part.tables:
            yield from self._file(table, required=True)
        for table in part.extra:
            yield from self._file(table, required=False)

    def notes(self, part: Part, categories: tuple[str, ...]) -> Attrition:
        """One file of notes, straight into ``note``."""
        table = part.tables[0]
        path = self._found(table)
        source = raw_tables.query(path, table)
        with raw_tables.guarded(path):
            rows = standard_tables.fill_notes(self.connection, part, source, path.name, categories)
        total = raw_tables.counted(self.connection, path, rows.entered_rows, self.max_bad_fraction)
        total.dropped_rows.update(rows.dropped_rows)
        total.locations.update(rows.locations)
        return total

    def _found(self, table: Shipped) -> Path:
        path = raw_tables.find(self.path, table.name)
        if path is None:
            raise _missing(table, self.path)
        return path

    def _file(self, table: Shipped, required: bool) -> Iterator[Attrition]:
        if table.raw in self.files:
            return
        path = self._found(table) if required else raw_tables.find(self.path, table.name)
        self.files[table.raw] = path.name if path else ""
        if path is None:
            columns = ", ".join(
                f'NULL::VARCHAR AS "{name}"' for name in (*table.columns, *table.optional)
            )
            self.connection.execute(
                f'CREATE TABLE {table.raw} AS SELECT 1::BIGINT AS "row", {columns} LIMIT 0'
            )
            return
        yield raw_tables.read(self.connection, path, table, self.max_bad_fraction)


def _missing(table: Shipped, path: Path) -> SourceError:
    purpose = next(iter(table.columns.values()))
    return SourceError(
        f"there is no table {table.name}, needed for {purpose}",
        location=str(path),
        hint=f"put {table.name}.csv or .csv.gz there",
    )


def _absent(path: Path, layout: Layout) -> dict[str, str]:
    """Of the parts that may be missing, those without their files, each with the first file it would need."""
    missing: dict[str, str] = dict.fromkeys(
        ("icu_stay", "diagnosis", "procedure", "note"), "a table that this layout does not have"
    )
    complete = set()
    for part in reversed(layout.parts):
        lacking = [table.name for table in part.tables if raw_tables.find(path, table.name) is None]
        if lacking and part.name in missing:  # the rest, the titles of codes, is only looked at
            missing[part.name] = f"{lacking[0]}.csv or {lacking[0]}.csv.gz"
        else:
            complete.add(part.name)
    return {name: file for name, file in missing.items() if name not in complete}


def _notes(reader: _Reader, parts: Sequence[Part], categories: tuple[str, ...]) -> Attrition:
    """Read the note files that hold one of ``categories`` (all of them when empty) into ``note``."""
    reader.connection.execute(standard_tables.NOTE_TABLE)
    total = Attrition("notes read")
    for part in parts:
        if part.categories and categories and not set(part.categories) & set(categories):
            continue
        read = reader.notes(part, categories)
        total.entered_rows += read.entered_rows
        total.dropped_rows.update(read.dropped_rows)
        total.locations.update(read.locations)
    return total
