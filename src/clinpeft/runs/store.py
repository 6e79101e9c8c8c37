"""The folder of a run: opened, appended to, finished or failed, and read.

A file is always whole: tables and ``run.json`` are replaced as one step, and the log is appended to
line by line. No clock is read here; times are arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from clinpeft.core.errors import (
    ClinpeftError,
    InputError,
    InterruptedRunError,
    RecipeError,
    StorageError,
)
from clinpeft.core.files import (
    build_write_error,
    flush_path_to_disk,
    is_folder_locked,
    lock_folder,
    replace_file_atomically,
    write_file_atomically,
)
from clinpeft.core.schemas import LIKELIHOOD_SCHEMA, METRIC_RESULT_SCHEMA, Attrition
from clinpeft.recipe import Recipe, format_recipe_toml, validate_recipe
from clinpeft.runs.manifest import hash_run_files
from clinpeft.runs.record import (
    RENAMED_FIELDS,
    RUN_RECORD_FORMAT,
    RunFailure,
    RunRecord,
    RunState,
)

RUN_RECIPE_FILE, RUN_RECORD_FILE, RUN_LOG_FILE = "recipe.toml", "run.json", "log.jsonl"
RUN_METRICS_FILE, RUN_ATTRITION_FILE = "metrics.json", "attrition.json"
RUN_LIKELIHOODS_FILE = "likelihoods.parquet"

STORED_LIKELIHOOD_SCHEMA = LIKELIHOOD_SCHEMA.append(pa.field("state", pa.string(), nullable=False))
"""``LIKELIHOOD_SCHEMA`` and the state of the model that scored: ``base``, ``adapted`` ..."""

# Words that a log may hold: without spaces, so that no sentence of a note can be written.
_LOG_WORD_PATTERN = re.compile(r"[A-Za-z0-9_.:+-]{1,40}")
_JSON_LIST_ADAPTER = pydantic.TypeAdapter(list[dict[str, Any]])

RECIPE_LOCATION_FIELDS: dict[str, Any] = {"name": True, "source": {"path"}, "base": {"path"}}
"""Fields of a recipe that say where things are and what they are called, not what they are."""


@dataclass(frozen=True)
class Run:
    """A run folder that was read.

    Attributes:
        folder: its path.
        recipe: as resolved when the run was opened.
        record: ``run.json``.
    """

    folder: Path
    recipe: Recipe
    record: RunRecord

    @property
    def id(self) -> str:
        """12 hexadecimal characters, and the folder's name."""
        return self.record.id

    @property
    def state(self) -> RunState:
        """``running`` only while a process holds the run's lock; a killed run is
        ``interrupted``."""
        if self.record.state == "running" and not is_folder_locked(self.folder):
            return "interrupted"
        return self.record.state

    @property
    def results(self) -> pa.Table:
        """Of schema ``METRIC_RESULT_SCHEMA``; empty for a run without results."""
        path = self.folder / RUN_METRICS_FILE
        try:
            return pa.Table.from_pylist(_read_json_list(path), schema=METRIC_RESULT_SCHEMA)
        except (AttributeError, TypeError, pa.ArrowException) as error:
            raise _build_corrupt_error(path, "not a list of results") from error

    @property
    def attrition(self) -> tuple[Attrition, ...]:
        """Rows dropped at each step, by reason; empty for a run without results."""
        path = self.folder / RUN_ATTRITION_FILE
        try:
            return tuple(Attrition.from_json(step) for step in _read_json_list(path))
        except (KeyError, TypeError, ValueError) as error:
            raise _build_corrupt_error(path, "not a list of steps") from error


def compute_run_id(
    recipe: Recipe, source_fingerprint: str, base_sha256: str, code_version: str
) -> str:
    """Compute the id of a run from everything that decides its result.

    That is the recipe without its name and without the machine's paths, since the fingerprints of
    source and base say what is there; so the same recipe on two machines, or twice on one, is one
    run. An adapter's ``from_run`` should be an id, since a name can come to mean another run.

    Returns:
        12 hexadecimal characters of a SHA-256.
    """
    # Canonical JSON: sorted keys and no white space, so that the hash depends on the content only.
    content = {
        "recipe": recipe.model_dump(mode="json", exclude=RECIPE_LOCATION_FIELDS),
        "source": source_fingerprint,
        "base": base_sha256,
        "code": code_version,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@contextlib.contextmanager
def open_run_folder(home: Path, recipe: Recipe, new_record: RunRecord) -> Iterator[Run]:
    """Open the run ``new_record.id`` under ``home``, locked until the block ends.

    A run that has finished is returned as it is: check ``run.record.state``. One that failed or was
    interrupted is opened again: its ``created`` stays, the rest of its record is ``new_record``.
        How
    the block ends is not recorded here: call ``finish_run`` or ``fail_run`` in it.

    Raises:
        RefusedError: another process is working on it.
        InputError: the folder exists and its ``run.json`` cannot be read.
        StorageError: the folder cannot be written.
    """
    folder = home / new_record.id
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise build_write_error(error, folder) from error
    with lock_folder(folder):
        for partial in folder.rglob(".*.partial"):  # of a process that was killed while writing
            # The lock is held, so that no other process writes here.
            partial.unlink(missing_ok=True)
        earlier = _read_record(folder) if (folder / RUN_RECORD_FILE).exists() else None
        if earlier is not None and earlier.state == "finished":
            yield read_run(folder)
            return
        record = new_record
        # The first creation time is what runs are ordered by.
        if earlier is not None:
            record = new_record.model_copy(update={"created": earlier.created})
        # The record last: a folder with a record always has a recipe.
        write_file_atomically(folder / RUN_RECIPE_FILE, format_recipe_toml(recipe))
        yield _write_record(Run(folder, recipe, record))


def read_run(folder: Path) -> Run:
    """Read the run in a folder.

    Raises:
        InputError: a file is missing or damaged, or was written by clinpeft 0.6 or older.
    """
    # The record first: its error names the version that wrote the folder.
    record, path = _read_record(folder), folder / RUN_RECIPE_FILE
    try:
        recipe = validate_recipe(tomllib.loads(_read_text(path)), str(path))
    except (tomllib.TOMLDecodeError, RecipeError) as error:
        raise _build_corrupt_error(path, "not a recipe of this version") from error
    return Run(folder, recipe, record)


def append_log_event(run: Run, event: str, **values: float | int | str | None) -> None:
    """Append one line to ``log.jsonl``: ``append_log_event(run, "step", step=10, loss=1.9)``.

    Args:
        run: the run.
        event: what happened, one word.
        values: numbers, and words from short enumerations; an infinite or undefined number is
            written as a word.

    Raises:
        ValueError: a value that could be a sentence; it is not repeated in the error.
        StorageError: the line could not be written; those before it are intact.
    """
    # Checked before anything is written: a log must never hold text of a note.
    line: dict[str, float | int | str | None] = {}
    for name, value in {"event": event, **values}.items():
        if isinstance(value, str) and not _LOG_WORD_PATTERN.fullmatch(value):
            raise ValueError(
                f"log value {name!r} is not one short word: "
                "a log holds numbers and short enumerations only"
            )
        is_infinite = isinstance(value, float) and not math.isfinite(value)
        line[name] = str(value) if is_infinite else value  # JSON has no NaN
    path = run.folder / RUN_LOG_FILE
    try:
        # Opened and closed for each line, so that a crash loses none that was logged.
        with path.open("a+b") as file:
            # End a line that a killed process left without its line end.
            if file.seek(0, 2):
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write((json.dumps(line) + "\n").encode())
    except OSError as error:
        raise build_write_error(error, path) from error


def rewind_log(run: Run, step: int) -> None:
    """Remove the lines of later steps from the log, and a last line torn by a crash.

    A run that resumes from a checkpoint repeats those steps, and logs each of them once.

    Raises:
        StorageError: nothing could be written; the log is as before.
    """
    path = run.folder / RUN_LOG_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    # Lines that are complete and not of a later step.
    current = []
    for line in lines:
        try:
            event = json.loads(line) if line.endswith(b"\n") else None
        # Torn by a crash, or not JSON: the step is repeated and logged again.
        except ValueError:
            event = None
        if isinstance(event, dict):
            is_later = event.get("event") == "step" and event.get("step", 0) > step
            current += [] if is_later else [line]
    if len(current) < len(lines):
        write_file_atomically(path, b"".join(current))


def flush_log(run: Run) -> None:
    """Write the log through to the disk, so that it survives a power cut.

    Raises:
        StorageError: the disk is full.
    """
    path = run.folder / RUN_LOG_FILE
    try:
        if path.exists():
            flush_path_to_disk(path)
    except OSError as error:
        raise build_write_error(error, path) from error


def update_run_record(run: Run, **facts: Any) -> Run:
    """Set fields of the record in ``run.json``: ``update_run_record(run, trained_parameters=42)``.

    Returns:
        The run with the new record.

    Raises:
        pydantic.ValidationError: a field that a record does not have, or a value that does not fit.
        StorageError: nothing could be written; the record is as before.
    """
    # Validated as a whole: model_copy would accept a misspelled field.
    record = RunRecord.model_validate({**dict(run.record), **facts})
    return _write_record(dataclasses.replace(run, record=record))


def finish_run(
    run: Run,
    *,
    results: pa.Table,
    attrition: Sequence[Attrition],
    finished: datetime,
    likelihoods: Mapping[str, pa.Table] | None = None,
    tables: Mapping[str, pa.Table] | None = None,
    **facts: Any,
) -> Run:
    """Write the results of a run, and last of all that it has finished.

    Args:
        run: the run.
        results: of schema ``METRIC_RESULT_SCHEMA``.
        attrition: every step, in order.
        finished: the time.
        likelihoods: state of the model (``base``, ``adapted`` ...) -> table of schema
            ``LIKELIHOOD_SCHEMA``.
        tables: file name without suffix -> table that is written as it is, metadata included:
            predictions, curves, results by label.
        facts: fields of ``RunRecord`` known only now.

    Raises:
        StorageError: nothing more can be written; the run has not finished.
    """
    # Columns in the order of the schema, whatever the table's.
    rows = results.select(METRIC_RESULT_SCHEMA.names).to_pylist()
    for row in rows:
        # JSON has no NaN; null means unknown.
        infinite = [key for key, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        row.update(dict.fromkeys(infinite))
    _write_json(run.folder / RUN_METRICS_FILE, rows)
    _write_json(run.folder / RUN_ATTRITION_FILE, [step.as_json() for step in attrition])
    if likelihoods is not None:
        field = STORED_LIKELIHOOD_SCHEMA.field("state")
        with (
            replace_file_atomically(run.folder / RUN_LIKELIHOODS_FILE) as path,
            pq.ParquetWriter(path, STORED_LIKELIHOOD_SCHEMA, compression="zstd") as writer,
        ):
            for state, table in likelihoods.items():
                stored = table.append_column(field, pa.repeat(state, len(table)))
                writer.write_table(stored.cast(STORED_LIKELIHOOD_SCHEMA))
    for name, table in (tables or {}).items():
        with replace_file_atomically(run.folder / f"{name}.parquet") as path:
            pq.write_table(table, path, compression="zstd")
    # After all tables: the checksums cover what the finished run consists of.
    files = hash_run_files(run.folder)
    return update_run_record(
        run, state="finished", finished=finished, error=None, files=files, **facts
    )


def fail_run(run: Run, error: BaseException, finished: datetime, **facts: Any) -> Run:
    """Record that a run ended with an error: ``interrupted`` when stopped from outside, else
    ``failed``.

    Of an error outside the ``ClinpeftError`` family only the class is written: its message may
    quote a note. When the record cannot be written, the run is returned changed in memory alone;
    the caller already has an error to report.
    """
    # The class name only: the message of a foreign error may quote its input.
    kind = type(error).__name__
    if isinstance(error, ClinpeftError):
        failure = RunFailure(
            kind=kind, message=error.message, location=error.location, hint=error.hint
        )
    elif isinstance(error, KeyboardInterrupt):
        hint = "the same command resumes"
        failure = RunFailure(kind=kind, message="stopped by the user", hint=hint)
    else:
        hint = (
            "run the same command again to see where; "
            "its message is not stored, since it may quote a note"
        )
        failure = RunFailure(kind=kind, message=f"an unforeseen {kind}", hint=hint)
    is_interrupted = isinstance(error, InterruptedRunError | KeyboardInterrupt)
    changes: dict[str, Any] = {
        **facts,
        "state": "interrupted" if is_interrupted else "failed",
        "finished": finished,
        "error": failure,
    }
    try:
        return update_run_record(run, **changes)
    except StorageError:
        return dataclasses.replace(run, record=run.record.model_copy(update=changes))


def read_run_likelihoods(run: Run, state: str) -> pa.Table:
    """Read the likelihoods of each note under one state of the model.

    Returns:
        Of schema ``LIKELIHOOD_SCHEMA``; empty for a state that the run did not score.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run.folder / RUN_LIKELIHOODS_FILE
    try:
        # The filter is applied while reading: other states never enter memory.
        filters = [("state", "=", state)]
        table = pq.read_table(path, schema=STORED_LIKELIHOOD_SCHEMA, filters=filters)
        return table.select(LIKELIHOOD_SCHEMA.names).cast(LIKELIHOOD_SCHEMA)
    except FileNotFoundError as error:
        message, hint = f"run {run.id} has no likelihoods", "take a run that has finished"
        raise InputError(message, location=str(path), hint=hint) from error
    except (OSError, pa.ArrowException) as error:
        raise _build_corrupt_error(path, "not a table of likelihoods") from error


def read_run_table(run: Run, name: str) -> pa.Table:
    """Read a table that ``finish_run`` was given under this name: ``predictions``, ``curves`` ...

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run.folder / f"{name}.parquet"
    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(
            f"run {run.id} has no {name}",
            location=str(path),
            hint="take a run that has finished, of a kind that has them",
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise _build_corrupt_error(path, f"not a table of {name}") from error


def _write_record(run: Run) -> Run:
    write_file_atomically(run.folder / RUN_RECORD_FILE, run.record.model_dump_json(indent=1) + "\n")
    return run


def _read_record(folder: Path) -> RunRecord:
    path = folder / RUN_RECORD_FILE
    text = _read_text(path)
    with contextlib.suppress(ValueError):  # reported below, with the position
        document = json.loads(text)
        if isinstance(document, dict) and document.get("format") == 1:
            names = ", ".join(f"{old} -> {new}" for old, new in RENAMED_FIELDS.items())
            raise InputError(
                "this run was written by clinpeft 0.6 or older: its run.json has format 1, and "
                f"this version reads format {RUN_RECORD_FORMAT}",
                location=str(path),
                hint=f"run its recipe again, or rename in it {names}, and set format to "
                f"{RUN_RECORD_FORMAT}",
            )
    try:
        record = RunRecord.model_validate_json(text)
    except pydantic.ValidationError as error:
        # Without the input: a field of the record may name a patient's folder.
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = f"{field}: {first['msg']}" if field else first["msg"]
        raise _build_corrupt_error(path, reason) from None
    if record.id != folder.resolve().name:
        message = f"the record is of run {record.id}"
        hint = f"rename the folder back to {record.id}"
        raise InputError(message, location=str(path), hint=hint)
    return record


def _read_json_list(path: Path) -> list[dict[str, Any]]:
    """A file that is a list of JSON objects; empty where there is no such file."""
    # A run that has not finished has no results, which is no error.
    if not path.exists():
        return []
    try:
        return _JSON_LIST_ADAPTER.validate_json(_read_text(path))
    except pydantic.ValidationError as error:
        raise _build_corrupt_error(path, "not a JSON list of objects") from error


def _write_json(path: Path, content: object) -> None:
    write_file_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "cannot be opened" if isinstance(error, OSError) else "not text"
        raise _build_corrupt_error(path, reason) from error


def _build_corrupt_error(path: Path, reason: str) -> InputError:
    # The same hint for all files: a run folder is whole or of no use.
    hint = "restore it, or move the run's folder away and run the recipe again"
    return InputError(f"this file of a run cannot be read: {reason}", location=str(path), hint=hint)
