"""The runs of a home: all of them, and the one that an id or name refers to."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from clinpeft.core.errors import InputError, UsageError
from clinpeft.runs.store import RUN_RECORD_FILE, Run, read_run


@dataclass(frozen=True)
class RunListing:
    """The runs of a home, oldest first, and an error for each run folder that cannot be read."""

    runs: tuple[Run, ...]
    errors: tuple[InputError, ...] = ()


def find_all_runs(home: Path) -> RunListing:
    """List every run under ``home``; empty if there is no such folder."""
    runs, errors = [], []
    for folder in _list_run_folders(home):
        try:
            runs.append(read_run(folder))
        # One damaged folder must not hide the others.
        except InputError as error:
            errors.append(error)
    # The id breaks ties, so that the order is the same everywhere.
    runs.sort(key=lambda run: (run.record.created, run.id))
    return RunListing(tuple(runs), tuple(errors))


def find_run(home: Path, id_or_name: str, *, finished_only: bool = False) -> Run:
    """Find the run with this id, else with this name, else whose id begins with it.

    Args:
        home: the folder of all runs.
        id_or_name: id, name, or the beginning of an id.
        finished_only: only among runs that have finished, as for the adapter of a run.

    Raises:
        UsageError: no run matches, with the nearest id or name; or several do, with their ids.
        InputError: the run's folder cannot be read.
    """
    # An exact id is read alone: a damaged folder elsewhere must not matter.
    if id_or_name in (folder.name for folder in _list_run_folders(home)):
        run = read_run(home / id_or_name)
        if finished_only and run.state != "finished":
            raise UsageError(
                f"run {id_or_name} is {run.state}",
                location=str(run.folder),
                hint="run its recipe again; it resumes where it stopped",
            )
        return run
    runs = [run for run in find_all_runs(home).runs if run.state == "finished" or not finished_only]
    # A name wins over the beginning of an id, which is rarely meant by a word.
    matches = [run for run in runs if id_or_name and run.record.name == id_or_name]
    matches = matches or [run for run in runs if id_or_name and run.id.startswith(id_or_name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        hint = "give one of the ids: " + ", ".join(f"{run.id} ({run.state})" for run in matches)
        message = f"{len(matches)} runs match {id_or_name!r}"
        raise UsageError(message, location=str(home), hint=hint)
    names = {run.id for run in runs} | {run.record.name for run in runs if run.record.name}
    nearest = difflib.get_close_matches(id_or_name, sorted(names), n=1, cutoff=0.5)
    if not runs:
        hint = "there are none here yet; give --home, or set CLINPEFT_HOME"
    else:
        hint = f"did you mean {nearest[0]!r}?" if nearest else "list the runs with: clinpeft runs"
    noun = "finished run" if finished_only else "run"
    raise UsageError(f"there is no {noun} {id_or_name!r}", location=str(home), hint=hint)


def _list_run_folders(home: Path) -> list[Path]:
    return sorted(path.parent for path in home.glob(f"*/{RUN_RECORD_FILE}"))
