"""What of a home is text of notes or comes from single people, and can be removed: listed first, with its bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft.core.errors import RefusedError
from clinpeft.runs.store import Run
from clinpeft.runs.index import list_runs
from clinpeft.core.files import is_folder_locked, build_write_error
from clinpeft.runs.verify import record_purged_files

CACHE_DESCRIPTIONS: dict[str, str] = {
    "corpus": "cleaned text of notes",
    "tokens": "notes as tokens",
    "cohort": "cohorts with the text that is asked",
    "documents": "text that is asked, as tokens",
    "features": "vectors of notes",
    "baselines": "answers of trivial baselines, a row a stay",
    "base": "likelihoods of the bare base, a row a note",
    "predict": "what is left of an interrupted predict",
}
"""First word of a name in the cache -> what is in it."""

ROW_LEVEL_TABLES = ("predictions", "predictions_uncorrected", "meds_evaluation", "likelihoods", "labels")
"""Tables of a run with a row for a stay, a note, or a class of few; further questions end in -<task>."""


@dataclass(frozen=True)
class Removal:
    """One file or folder that can go.

    Attributes:
        path: where it is.
        description: what is in it.
        file_count, size_bytes: how many, how much.
    """

    path: Path
    description: str
    file_count: int
    size_bytes: int


def list_cache_removals(home: Path) -> list[Removal]:
    """All that was derived from notes and can be made again from the source: the cache, and built cohorts.

    Raises:
        RefusedError: a run of this home is being worked on.
    """
    _check_not_running([run for run in list_runs(home).runs if run.record.state == "running" and is_folder_locked(run.folder)])
    cached = [_build_removal(path, CACHE_DESCRIPTIONS.get(path.name.partition("-")[0], "derived from notes or books")) for path in _list_folder(home / "cache")]
    return [*cached, *(_build_removal(path, "a cohort, with the text that is asked") for path in _list_folder(home / "cohorts"))]


def list_run_removals(run: Run, *, include_predictions: bool) -> list[Removal]:
    """What of a run's own folder can go: its checkpoints, and on request the tables that have a row for a stay or a note.

    Raises:
        RefusedError: the run is being worked on.
    """
    if run.record.state == "running":
        _check_not_running([run] if is_folder_locked(run.folder) else [])
    found = [(run.folder / "checkpoints", "checkpoints; the best weights are in the adapter")] if run.record.state == "finished" else []
    if include_predictions:
        tables = [path for path in sorted(run.folder.glob("*.parquet")) if path.stem.partition("-")[0] in ROW_LEVEL_TABLES]
        found += [(path, "a row for a stay or a note") for path in tables]
        found.append((run.folder / "privacy", "probabilities of single stays, for an audit"))
    return [_build_removal(path, what) for path, what in found if path.exists()]


def execute_removals(removals: Sequence[Removal], run: Run | None, day: str) -> int:
    """Remove what was listed; of a run it is written down what is gone. Gives the bytes.

    Bytes are unlinked, not overwritten: what is left on the medium is the affair of the file system and of its encryption.

    Raises:
        StorageError: something cannot be removed; what stands before it in the list is gone.
    """
    for removal in removals:
        try:
            if run is not None:
                record_purged_files(run.folder, [path.relative_to(run.folder).as_posix() for path in _iterate_files(removal.path)], day)
            if removal.path.is_dir() and not removal.path.is_symlink():
                shutil.rmtree(removal.path)
            else:
                removal.path.unlink()
        except OSError as error:
            raise build_write_error(error, removal.path) from error
    return sum(removal.size_bytes for removal in removals)


def _list_folder(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _build_removal(path: Path, description: str) -> Removal:
    sizes = [file.lstat().st_size for file in _iterate_files(path)]
    return Removal(path, description, len(sizes), sum(sizes))


def _iterate_files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from sorted(file for file in path.rglob("*") if file.is_symlink() or file.is_file())
    else:
        yield path


def _check_not_running(runs: Sequence[Run]) -> None:
    if runs:
        named = ", ".join(run.id for run in runs)
        raise RefusedError(f"run {named} is being worked on", location=str(runs[0].folder), hint="wait until it is done, or stop it; then purge")
