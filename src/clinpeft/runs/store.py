"""One run: opened, written into, ended, read again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from clinpeft.core.errors import ClinpeftError, InputError, InterruptedRunError, RecipeError, StorageError
from clinpeft.recipe import Recipe, format_recipe_toml, validate_recipe
from clinpeft.runs.manifest import hash_run_files
from clinpeft.runs.record import RunFailure, RunRecord, RunState
from clinpeft.core.files import flush_path_to_disk, is_folder_locked, lock_folder, replace_file_atomically, build_write_error, write_file_atomically
from clinpeft.core.schemas import Attrition, LIKELIHOOD_SCHEMA, METRIC_RESULT_SCHEMA

RUN_RECIPE_FILE, RUN_RECORD_FILE, RUN_LOG_FILE = "recipe.toml", "run.json", "log.jsonl"
RUN_METRICS_FILE, RUN_ATTRITION_FILE, RUN_LIKELIHOODS_FILE = "metrics.json", "attrition.json", "likelihoods.parquet"

STORED_LIKELIHOOD_SCHEMA = LIKELIHOOD_SCHEMA.append(pa.field("state", pa.string(), nullable=False))
"""``tables.LIKELIHOOD`` and the model state that the number belongs to: ``base``, ``adapted`` ..."""

_LOG_WORD_PATTERN = re.compile(r"[A-Za-z0-9_.:+-]{1,40}")  # what a log may say in letters: no spaces, so no sentence of a note

RECIPE_LOCATION_FIELDS: dict[str, Any] = {"name": True, "source": {"path"}, "base": {"path"}}
"""Of a recipe: where things are and what they are called, not what they are."""


@dataclass(frozen=True)
class Run:
    """A run folder, read.

    Attributes:
        folder: where it is.
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
        """``running`` only while a process holds the run's lock; one that was killed is ``interrupted``."""
        return "interrupted" if self.record.state == "running" and not is_folder_locked(self.folder) else self.record.state

    @property
    def results(self) -> pa.Table:
        """Of schema ``tables.RESULT``; empty for a run without results."""
        path = self.folder / RUN_METRICS_FILE
        rows = _read_json(path) if path.exists() else []
        try:
            return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)
        except (AttributeError, TypeError, pa.ArrowException) as error:
            raise _build_corrupt_error(path, "not a list of results") from error

    @property
    def attrition(self) -> tuple[Attrition, ...]:
        """What left at which step, for which reason; empty for a run without results."""
        path = self.folder / RUN_ATTRITION_FILE
        try:
            return tuple(
                Attrition(s["step"], s["entered"], Counter(s["dropped"]), s.get("places", {})) for s in (_read_json(path) if path.exists() else [])
            )
        except (KeyError, TypeError) as error:
            raise _build_corrupt_error(path, "not a list of steps") from error


def compute_run_id(recipe: Recipe, source_fingerprint: str, base_sha256: str, code_version: str) -> str:
    """The id of a run: 12 hexadecimal characters of a SHA-256 over what decides its result.

    That is the recipe without its name and without the machine's paths, since the fingerprints of source and base say what lies there; so the
    same question asked on two machines, or twice on one, is one run. An adapter's ``from_run`` should be an id, since a name can come to mean
    another run.
    """
    asked = recipe.model_dump(mode="json", exclude=RECIPE_LOCATION_FIELDS)
    whole = {"recipe": asked, "source": source_fingerprint, "base": base_sha256, "code": code_version}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@contextlib.contextmanager
def open_run_folder(home: Path, recipe: Recipe, new_record: RunRecord) -> Iterator[Run]:
    """The run of ``opening.id`` under ``home``, held against every other process until the block ends.

    A run that has finished is given back as it is: look at ``run.record.state``. One that failed or was interrupted is opened again: its
    ``created`` stays, the rest of its record is ``new_record``. How the block ends is not recorded here: call ``record`` or ``fail`` in it.

    Raises:
        RefusedError: another process is working on it.
        InputError: the folder is there and its ``run.json`` cannot be read.
        StorageError: the folder cannot be written.
    """
    folder = home / new_record.id
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise build_write_error(error, folder) from error
    with lock_folder(folder):
        for left in folder.rglob(".*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        earlier = _read_record(folder) if (folder / RUN_RECORD_FILE).exists() else None
        if earlier is not None and earlier.state == "finished":
            yield read_run(folder)
            return
        record = new_record if earlier is None else new_record.model_copy(update={"created": earlier.created})
        write_file_atomically(folder / RUN_RECIPE_FILE, format_recipe_toml(recipe))
        write_file_atomically(folder / RUN_RECORD_FILE, _record_as_json(record))
        yield Run(folder, recipe, record)


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        InputError: a file is missing or damaged, by name.
    """
    record, path = _read_record(folder), folder / RUN_RECIPE_FILE
    try:
        return Run(folder, validate_recipe(tomllib.loads(_read_text(path)), str(path)), record)
    except (tomllib.TOMLDecodeError, RecipeError) as error:
        raise _build_corrupt_error(path, "not a recipe of this version") from error


def append_log_event(run: Run, event: str, **values: float | int | str | None) -> None:
    """One line for ``log.jsonl``: ``append(run, "step", step=10, loss=1.9)``.

    Args:
        run: the run.
        event: what happened, one word.
        values: numbers, and words from short enumerations; an infinite or undefined number is written as a word.

    Raises:
        ValueError: a value that could be a sentence; it is not repeated in the error.
        StorageError: the line could not be written; those before it are intact.
    """
    line = json.dumps({name: _check_loggable(name, value) for name, value in {"event": event, **values}.items()}) + "\n"
    path = run.folder / RUN_LOG_FILE
    try:
        with path.open("a+b") as file:
            file.write((_complete_torn_line(file) + line).encode())
    except OSError as error:
        raise build_write_error(error, path) from error


def rewind_log(run: Run, step: int) -> None:
    """Take back what the log says of later steps than this, and a last line torn by a crash: a run that goes on from a checkpoint takes those steps
    again, and says each of them once.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    path = run.folder / RUN_LOG_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith(b"\n") and _is_line_current(line, step)]
    if len(kept) < len(lines):
        write_file_atomically(path, b"".join(kept))


def _is_line_current(line: bytes, step: int) -> bool:
    try:
        said = json.loads(line)
    except ValueError:
        return False
    return isinstance(said, dict) and not (said.get("event") == "step" and said.get("step", 0) > step)


def flush_log(run: Run) -> None:
    """The log as it survives a power cut: what it says so far has reached the disk.

    Raises:
        StorageError: the disk takes no more.
    """
    path = run.folder / RUN_LOG_FILE
    try:
        if path.exists():
            flush_path_to_disk(path)
    except OSError as error:
        raise build_write_error(error, path) from error


def update_run_record(run: Run, **facts: Any) -> Run:
    """The run with fields of its ``RunRecord`` set, in memory and in ``run.json``; ``update(run, trained_parameters=8388608)``.

    Raises:
        pydantic.ValidationError: a field that a record does not have, or a value that does not fit.
        StorageError: nothing could be written; what was there before is intact.
    """
    record = RunRecord.model_validate({**dict(run.record), **facts})
    write_file_atomically(run.folder / RUN_RECORD_FILE, _record_as_json(record))
    return dataclasses.replace(run, record=record)


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
    """The run ended well: its tables first, and last of all ``run.json``, so that a run that says finished has everything.

    Args:
        run: the run.
        results: of schema ``tables.RESULT``.
        attrition: every step, in order.
        finished: the time.
        likelihoods: model state (``base``, ``adapted`` ...) -> table of schema ``tables.LIKELIHOOD``.
        tables: file name without ending -> what is written as it is, metadata included: predictions, curves, results by label.
        facts: fields of ``RunRecord`` known only now.

    Raises:
        StorageError: nothing more can be written; what was written before is intact, and the run is not finished.
    """
    rows = [{name: _replace_nan_with_none(value) for name, value in row.items()} for row in results.select(METRIC_RESULT_SCHEMA.names).to_pylist()]
    write_file_atomically(run.folder / RUN_METRICS_FILE, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_file_atomically(run.folder / RUN_ATTRITION_FILE, json.dumps([step.as_json() for step in attrition], indent=1, ensure_ascii=False) + "\n")
    if likelihoods is not None:
        _write_likelihoods(run.folder / RUN_LIKELIHOODS_FILE, likelihoods)
    for name, table in (tables or {}).items():
        with replace_file_atomically(run.folder / f"{name}.parquet") as path:
            pq.write_table(table, path, compression="zstd")
    return update_run_record(run, state="finished", finished=finished, error=None, files=hash_run_files(run.folder), **facts)


def _write_likelihoods(target: Path, likelihoods: Mapping[str, pa.Table]) -> None:
    with replace_file_atomically(target) as path, pq.ParquetWriter(path, STORED_LIKELIHOOD_SCHEMA, compression="zstd") as writer:
        for state, table in likelihoods.items():
            writer.write_table(table.append_column(STORED_LIKELIHOOD_SCHEMA.field("state"), pa.repeat(state, len(table))).cast(STORED_LIKELIHOOD_SCHEMA))


def fail_run(run: Run, error: BaseException, finished: datetime, **facts: Any) -> Run:
    """The run ended otherwise: ``interrupted`` when it was stopped from outside, else ``failed``, with the reason.

    Of an error from outside the family only the class is written: its message may quote a note. When not even this can be written, the run is
    given back changed in memory alone; the caller has an error to show already.
    """
    stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
    changes: dict[str, Any] = {**facts, "state": "interrupted" if stopped else "failed", "finished": finished, "error": _build_failure(error)}
    try:
        return update_run_record(run, **changes)
    except StorageError:
        return dataclasses.replace(run, record=run.record.model_copy(update=changes))


def read_run_likelihoods(run: Run, state: str) -> pa.Table:
    """What the model in one state thought of each note, of schema ``tables.LIKELIHOOD``; empty for a state that the run did not score.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run.folder / RUN_LIKELIHOODS_FILE
    try:
        return pq.read_table(path, schema=STORED_LIKELIHOOD_SCHEMA, filters=[("state", "=", state)]).select(LIKELIHOOD_SCHEMA.names).cast(LIKELIHOOD_SCHEMA)
    except FileNotFoundError as error:
        raise InputError(f"run {run.id} has no likelihoods", location=str(path), hint="take a run that has finished") from error
    except (OSError, pa.ArrowException) as error:
        raise _build_corrupt_error(path, "not a table of likelihoods") from error


def read_run_table(run: Run, name: str) -> pa.Table:
    """A table that ``record`` was given under this name: ``predictions``, ``curves`` ...

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run.folder / f"{name}.parquet"
    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"run {run.id} has no {name}", location=str(path), hint="take a run that has finished, of a kind that has them") from error
    except (OSError, pa.ArrowException) as error:
        raise _build_corrupt_error(path, f"not a table of {name}") from error


def _build_failure(error: BaseException) -> RunFailure:
    kind = type(error).__name__
    if isinstance(error, ClinpeftError):
        return RunFailure(kind=kind, message=error.message, location=error.location, hint=error.hint)
    if isinstance(error, KeyboardInterrupt):
        return RunFailure(kind=kind, message="stopped by the user", hint="the same command goes on")
    return RunFailure(
        kind=kind, message=f"an unforeseen {kind}", hint="run the same command again to see where; its message is not kept, it may quote a note"
    )


def _check_loggable(name: str, value: float | int | str | None) -> float | int | str | None:
    if isinstance(value, str) and not _LOG_WORD_PATTERN.fullmatch(value):
        raise ValueError(f"log value {name!r} is not one short word: a log holds numbers and short enumerations only")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON knows no NaN


def _complete_torn_line(file: Any) -> str:
    """A line end, if the last line has none because the process died in it."""
    if file.seek(0, 2) == 0:
        return ""
    file.seek(-1, 2)
    return "" if file.read(1) == b"\n" else "\n"


def _replace_nan_with_none(value: object) -> object:
    """None for a number that is none: JSON has no NaN, and null means unknown."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record_as_json(record: RunRecord) -> str:
    return record.model_dump_json(indent=1) + "\n"


def _read_record(folder: Path) -> RunRecord:
    path = folder / RUN_RECORD_FILE
    try:
        found = RunRecord.model_validate_json(_read_text(path))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _build_corrupt_error(path, f"{where}: {first['msg']}" if where else first["msg"]) from None
    if found.id != folder.resolve().name:
        raise InputError(f"the record is of run {found.id}", location=str(path), hint=f"give the folder its name back: {found.id}")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise _build_corrupt_error(path, "not JSON") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _build_corrupt_error(path, "cannot be opened" if isinstance(error, OSError) else "not text") from error


def _build_corrupt_error(path: Path, reason: str) -> InputError:
    hint = "restore it, or move the run's folder away and run the recipe again"
    return InputError(f"this file of a run cannot be read: {reason}", location=str(path), hint=hint)
