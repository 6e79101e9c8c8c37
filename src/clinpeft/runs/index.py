"""All runs of a home, and the one that is meant."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from clinpeft.core.errors import InputError, UsageError
from clinpeft.runs.store import RUN_RECORD_FILE, Run, read_run


@dataclass(frozen=True)
class RunListing:
    """The runs of a home, oldest first, and an error for each folder that holds a run and cannot be read."""

    runs: tuple[Run, ...]
    errors: tuple[InputError, ...] = ()


def list_runs(home: Path) -> RunListing:
    """Every run under ``home``; none if there is no such folder."""
    runs, unreadable = [], []
    for folder in _list_run_folders(home):
        try:
            runs.append(read_run(folder))
        except InputError as error:
            unreadable.append(error)
    return RunListing(tuple(sorted(runs, key=lambda run: (run.record.created, run.id))), tuple(unreadable))


def find_run(home: Path, id_or_name: str, *, finished_only: bool = False) -> Run:
    """The run with this id, else with this name, else whose id begins like this.

    Args:
        home: the folder of all runs.
        id_or_name: id, name, or the beginning of an id.
        finished_only: look only among runs that have finished, as for the adapter of a run.

    Raises:
        UsageError: none is meant, with the nearest id or name; or several are, with their ids.
        InputError: the run's folder cannot be read.
    """
    if id_or_name in (folder.name for folder in _list_run_folders(home)):
        exact = read_run(home / id_or_name)
        if finished_only and exact.state != "finished":
            raise UsageError(f"run {id_or_name} is {exact.state}", location=str(exact.folder), hint="run its recipe again; it goes on where it stopped")
        return exact
    runs = [run for run in list_runs(home).runs if run.state == "finished" or not finished_only]
    meant = [run for run in runs if id_or_name and run.record.name == id_or_name] or [run for run in runs if id_or_name and run.id.startswith(id_or_name)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        hint = "give one of the ids: " + ", ".join(f"{run.id} ({run.state})" for run in meant)
        raise UsageError(f"{len(meant)} runs are meant by {id_or_name!r}", location=str(home), hint=hint)
    word = "finished run" if finished_only else "run"
    raise UsageError(f"there is no {word} {id_or_name!r}", location=str(home), hint=_suggest_run(id_or_name, runs))


def _list_run_folders(home: Path) -> list[Path]:
    return sorted(path.parent for path in home.glob(f"*/{RUN_RECORD_FILE}"))


def _suggest_run(id_or_name: str, runs: list[Run]) -> str:
    if not runs:
        return "there are none here yet; give --home, or set CLINPEFT_HOME"
    known = {run.id for run in runs} | {run.record.name for run in runs if run.record.name}
    near = difflib.get_close_matches(id_or_name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "list the runs with: clinpeft runs"
