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

from clinpeft.core.errors import ClinpeftError, InputError, InterruptedRun, RecipeError, StorageError
from clinpeft.recipe import Recipe, as_toml, validated
from clinpeft.runs.manifest import files_of
from clinpeft.runs.record import Problem, RunRecord, State
from clinpeft.core.files import flush_to_disk, is_locked, locked, replaced, unwritable, write_atomically
from clinpeft.core.schemas import Attrition, LIKELIHOOD, RESULT

RECIPE, RECORD, LOG = "recipe.toml", "run.json", "log.jsonl"
METRICS, ATTRITION, LIKELIHOODS = "metrics.json", "attrition.json", "likelihoods.parquet"

STORED_LIKELIHOOD = LIKELIHOOD.append(pa.field("state", pa.string(), nullable=False))
"""``tables.LIKELIHOOD`` and the model state that the number belongs to: ``base``, ``adapted`` ..."""

_WORD = re.compile(r"[A-Za-z0-9_.:+-]{1,40}")  # what a log may say in letters: no spaces, so no sentence of a note

WHEREABOUTS: dict[str, Any] = {"name": True, "source": {"path"}, "base": {"path"}}
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
    def state(self) -> State:
        """``running`` only while a process holds the run's lock; one that was killed is ``interrupted``."""
        return "interrupted" if self.record.state == "running" and not is_locked(self.folder) else self.record.state

    @property
    def results(self) -> pa.Table:
        """Of schema ``tables.RESULT``; empty for a run without results."""
        path = self.folder / METRICS
        rows = _json(path) if path.exists() else []
        try:
            return pa.Table.from_pylist(rows, schema=RESULT)
        except (AttributeError, TypeError, pa.ArrowException) as error:
            raise _corrupt(path, "not a list of results") from error

    @property
    def attrition(self) -> tuple[Attrition, ...]:
        """What left at which step, for which reason; empty for a run without results."""
        path = self.folder / ATTRITION
        try:
            return tuple(
                Attrition(s["step"], s["entered"], Counter(s["dropped"]), s.get("places", {})) for s in (_json(path) if path.exists() else [])
            )
        except (KeyError, TypeError) as error:
            raise _corrupt(path, "not a list of steps") from error


def identity(recipe: Recipe, source_fingerprint: str, base_sha256: str, code_version: str) -> str:
    """The id of a run: 12 hexadecimal characters of a SHA-256 over what decides its result.

    That is the recipe without its name and without the machine's paths, since the fingerprints of source and base say what lies there; so the
    same question asked on two machines, or twice on one, is one run. An adapter's ``from_run`` should be an id, since a name can come to mean
    another run.
    """
    asked = recipe.model_dump(mode="json", exclude=WHEREABOUTS)
    whole = {"recipe": asked, "source": source_fingerprint, "base": base_sha256, "code": code_version}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@contextlib.contextmanager
def open_run(home: Path, recipe: Recipe, opening: RunRecord) -> Iterator[Run]:
    """The run of ``opening.id`` under ``home``, held against every other process until the block ends.

    A run that has finished is given back as it is: look at ``run.record.state``. One that failed or was interrupted is opened again: its
    ``created`` stays, the rest of its record is ``opening``. How the block ends is not recorded here: call ``record`` or ``fail`` in it.

    Raises:
        RefusedError: another process is working on it.
        InputError: the folder is there and its ``run.json`` cannot be read.
        StorageError: the folder cannot be written.
    """
    folder = home / opening.id
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, folder) from error
    with locked(folder):
        for left in folder.rglob(".*.partial"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        earlier = _record(folder) if (folder / RECORD).exists() else None
        if earlier is not None and earlier.state == "finished":
            yield read(folder)
            return
        record = opening if earlier is None else opening.model_copy(update={"created": earlier.created})
        write_atomically(folder / RECIPE, as_toml(recipe))
        write_atomically(folder / RECORD, _as_json(record))
        yield Run(folder, recipe, record)


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        InputError: a file is missing or damaged, by name.
    """
    record, path = _record(folder), folder / RECIPE
    try:
        return Run(folder, validated(tomllib.loads(_text(path)), str(path)), record)
    except (tomllib.TOMLDecodeError, RecipeError) as error:
        raise _corrupt(path, "not a recipe of this version") from error


def append(run: Run, event: str, **values: float | int | str | None) -> None:
    """One line for ``log.jsonl``: ``append(run, "step", step=10, loss=1.9)``.

    Args:
        run: the run.
        event: what happened, one word.
        values: numbers, and words from short enumerations; an infinite or undefined number is written as a word.

    Raises:
        ValueError: a value that could be a sentence; it is not repeated in the error.
        StorageError: the line could not be written; those before it are intact.
    """
    line = json.dumps({name: _loggable(name, value) for name, value in {"event": event, **values}.items()}) + "\n"
    path = run.folder / LOG
    try:
        with path.open("a+b") as file:
            file.write((_after_a_torn_line(file) + line).encode())
    except OSError as error:
        raise unwritable(error, path) from error


def rewind(run: Run, step: int) -> None:
    """Take back what the log says of later steps than this, and a last line torn by a crash: a run that goes on from a checkpoint takes those steps
    again, and says each of them once.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    path = run.folder / LOG
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith(b"\n") and _stays(line, step)]
    if len(kept) < len(lines):
        write_atomically(path, b"".join(kept))


def _stays(line: bytes, step: int) -> bool:
    try:
        said = json.loads(line)
    except ValueError:
        return False
    return isinstance(said, dict) and not (said.get("event") == "step" and said.get("step", 0) > step)


def settle(run: Run) -> None:
    """The log as it survives a power cut: what it says so far has reached the disk.

    Raises:
        StorageError: the disk takes no more.
    """
    path = run.folder / LOG
    try:
        if path.exists():
            flush_to_disk(path)
    except OSError as error:
        raise unwritable(error, path) from error


def update(run: Run, **facts: Any) -> Run:
    """The run with fields of its ``RunRecord`` set, in memory and in ``run.json``; ``update(run, trained_parameters=8388608)``.

    Raises:
        pydantic.ValidationError: a field that a record does not have, or a value that does not fit.
        StorageError: nothing could be written; what was there before is intact.
    """
    record = RunRecord.model_validate({**dict(run.record), **facts})
    write_atomically(run.folder / RECORD, _as_json(record))
    return dataclasses.replace(run, record=record)


def record(
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
    rows = [{name: _known(value) for name, value in row.items()} for row in results.select(RESULT.names).to_pylist()]
    write_atomically(run.folder / METRICS, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_atomically(run.folder / ATTRITION, json.dumps([step.as_json() for step in attrition], indent=1, ensure_ascii=False) + "\n")
    if likelihoods is not None:
        _write_likelihoods(run.folder / LIKELIHOODS, likelihoods)
    for name, table in (tables or {}).items():
        with replaced(run.folder / f"{name}.parquet") as path:
            pq.write_table(table, path, compression="zstd")
    return update(run, state="finished", finished=finished, error=None, files=files_of(run.folder), **facts)


def _write_likelihoods(target: Path, likelihoods: Mapping[str, pa.Table]) -> None:
    with replaced(target) as path, pq.ParquetWriter(path, STORED_LIKELIHOOD, compression="zstd") as writer:
        for state, table in likelihoods.items():
            writer.write_table(table.append_column(STORED_LIKELIHOOD.field("state"), pa.repeat(state, len(table))).cast(STORED_LIKELIHOOD))


def fail(run: Run, error: BaseException, finished: datetime, **facts: Any) -> Run:
    """The run ended otherwise: ``interrupted`` when it was stopped from outside, else ``failed``, with the reason.

    Of an error from outside the family only the class is written: its message may quote a note. When not even this can be written, the run is
    given back changed in memory alone; the caller has an error to show already.
    """
    stopped = isinstance(error, InterruptedRun | KeyboardInterrupt)
    changes: dict[str, Any] = {**facts, "state": "interrupted" if stopped else "failed", "finished": finished, "error": _problem(error)}
    try:
        return update(run, **changes)
    except StorageError:
        return dataclasses.replace(run, record=run.record.model_copy(update=changes))


def likelihoods(run: Run, state: str) -> pa.Table:
    """What the model in one state thought of each note, of schema ``tables.LIKELIHOOD``; empty for a state that the run did not score.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run.folder / LIKELIHOODS
    try:
        return pq.read_table(path, schema=STORED_LIKELIHOOD, filters=[("state", "=", state)]).select(LIKELIHOOD.names).cast(LIKELIHOOD)
    except FileNotFoundError as error:
        raise InputError(f"run {run.id} has no likelihoods", location=str(path), hint="take a run that has finished") from error
    except (OSError, pa.ArrowException) as error:
        raise _corrupt(path, "not a table of likelihoods") from error


def table(run: Run, name: str) -> pa.Table:
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
        raise _corrupt(path, f"not a table of {name}") from error


def _problem(error: BaseException) -> Problem:
    kind = type(error).__name__
    if isinstance(error, ClinpeftError):
        return Problem(kind=kind, message=error.message, location=error.location, hint=error.hint)
    if isinstance(error, KeyboardInterrupt):
        return Problem(kind=kind, message="stopped by the user", hint="the same command goes on")
    return Problem(
        kind=kind, message=f"an unforeseen {kind}", hint="run the same command again to see where; its message is not kept, it may quote a note"
    )


def _loggable(name: str, value: float | int | str | None) -> float | int | str | None:
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise ValueError(f"log value {name!r} is not one short word: a log holds numbers and short enumerations only")
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON knows no NaN


def _after_a_torn_line(file: Any) -> str:
    """A line end, if the last line has none because the process died in it."""
    if file.seek(0, 2) == 0:
        return ""
    file.seek(-1, 2)
    return "" if file.read(1) == b"\n" else "\n"


def _known(value: object) -> object:
    """None for a number that is none: JSON has no NaN, and null means unknown."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_json(record: RunRecord) -> str:
    return record.model_dump_json(indent=1) + "\n"


def _record(folder: Path) -> RunRecord:
    path = folder / RECORD
    try:
        found = RunRecord.model_validate_json(_text(path))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _corrupt(path, f"{where}: {first['msg']}" if where else first["msg"]) from None
    if found.id != folder.resolve().name:
        raise InputError(f"the record is of run {found.id}", location=str(path), hint=f"give the folder its name back: {found.id}")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise _corrupt(path, "not JSON") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _corrupt(path, "cannot be opened" if isinstance(error, OSError) else "not text") from error


def _corrupt(path: Path, reason: str) -> InputError:
    hint = "restore it, or move the run's folder away and run the recipe again"
    return InputError(f"this file of a run cannot be read: {reason}", location=str(path), hint=hint)
