"""All runs of a home, and the one that is meant."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from clinpeft.core.errors import InputError, UsageError
from clinpeft.runs.store import RECORD, Run, read


@dataclass(frozen=True)
class Listing:
    """The runs of a home, oldest first, and an error for each folder that holds a run and cannot be read."""

    runs: tuple[Run, ...]
    unreadable: tuple[InputError, ...] = ()


def list_runs(home: Path) -> Listing:
    """Every run under ``home``; none if there is no such folder."""
    runs, unreadable = [], []
    for folder in _folders(home):
        try:
            runs.append(read(folder))
        except InputError as error:
            unreadable.append(error)
    return Listing(tuple(sorted(runs, key=lambda run: (run.record.created, run.id))), tuple(unreadable))


def find(home: Path, text: str, *, finished: bool = False) -> Run:
    """The run with this id, else with this name, else whose id begins like this.

    Args:
        home: the folder of all runs.
        text: id, name, or the beginning of an id.
        finished: look only among runs that have finished, as for the adapter of a run.

    Raises:
        UsageError: none is meant, with the nearest id or name; or several are, with their ids.
        InputError: the run's folder cannot be read.
    """
    if text in (folder.name for folder in _folders(home)):
        exact = read(home / text)
        if finished and exact.state != "finished":
            raise UsageError(f"run {text} is {exact.state}", location=str(exact.folder), hint="run its recipe again; it goes on where it stopped")
        return exact
    runs = [run for run in list_runs(home).runs if run.state == "finished" or not finished]
    meant = [run for run in runs if text and run.record.name == text] or [run for run in runs if text and run.id.startswith(text)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        hint = "give one of the ids: " + ", ".join(f"{run.id} ({run.state})" for run in meant)
        raise UsageError(f"{len(meant)} runs are meant by {text!r}", location=str(home), hint=hint)
    word = "finished run" if finished else "run"
    raise UsageError(f"there is no {word} {text!r}", location=str(home), hint=_nearest(text, runs))


def _folders(home: Path) -> list[Path]:
    return sorted(path.parent for path in home.glob(f"*/{RECORD}"))


def _nearest(text: str, runs: list[Run]) -> str:
    if not runs:
        return "there are none here yet; give --home, or set CLINPEFT_HOME"
    known = {run.id for run in runs} | {run.record.name for run in runs if run.record.name}
    near = difflib.get_close_matches(text, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "list the runs with: clinpeft runs"
