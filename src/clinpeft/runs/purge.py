"""Removal of what holds text of notes or rows of single patients: listed first, then removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft.core.errors import RefusedError
from clinpeft.core.files import build_write_error, is_folder_locked
from clinpeft.runs.index import find_all_runs
from clinpeft.runs.store import Run
from clinpeft.runs.verify import record_purged_files

CACHE_DESCRIPTIONS: dict[str, str] = {
    "corpus": "cleaned text of notes",
    "tokens": "notes as tokens",
    "cohort": "cohorts with the text of their notes",
    "documents": "text of cohorts, as tokens",
    "features": "vectors of notes",
    "baselines": "predictions of trivial baselines, a row a stay",
    "base": "likelihoods of the base without adapters, a row a note",
    "predict": "partial results of an interrupted predict",
}
"""First word of a name in the cache -> what is in it."""

ROW_LEVEL_TABLES = (
    "predictions",
    "predictions_uncorrected",
    "meds_evaluation",
    "likelihoods",
    "labels",
)
"""Tables of a run with a row for a stay, a note, or a class of few; those of further tasks end in
-<task>."""


@dataclass(frozen=True)
class Removal:
    """One file or folder that can be removed.

    Attributes:
        path: where it is.
        description: what is in it.
        file_count, size_bytes: of all files in it.
    """

    path: Path
    description: str
    file_count: int
    size_bytes: int


def list_cache_removals(home: Path) -> list[Removal]:
    """List what was derived from notes and can be computed again: the cache, and built cohorts.

    Raises:
        RefusedError: a process is working on a run of this home.
    """
    _check_not_running(find_all_runs(home).runs)
    removals = []
    for path in _list_folder(home / "cache"):
        # Names in the cache are <what>-<hash>.
        word = path.name.partition("-")[0]
        description = CACHE_DESCRIPTIONS.get(word, "derived from notes or books")
        removals.append(_build_removal(path, description))
    cohorts = _list_folder(home / "cohorts")
    description = "a cohort, with the text of its notes"
    return removals + [_build_removal(path, description) for path in cohorts]


def list_run_removals(run: Run, *, include_predictions: bool) -> list[Removal]:
    """List what of a run's own folder can be removed.

    Args:
        run: the run.
        include_predictions: also the tables that have a row for a stay or a note; without them
            only checkpoints of a finished run.

    Raises:
        RefusedError: a process is working on the run.
    """
    _check_not_running([run])
    descriptions: dict[Path, str] = {}
    if run.record.state == "finished":
        checkpoints = run.folder / "checkpoints"
        descriptions[checkpoints] = "checkpoints; the best weights are in the adapter"
    if include_predictions:
        for path in sorted(run.folder.glob("*.parquet")):
            # Tables of further tasks end in -<task>.
            if path.stem.partition("-")[0] in ROW_LEVEL_TABLES:
                descriptions[path] = "a row for a stay or a note"
        descriptions[run.folder / "privacy"] = "probabilities of single stays, for an audit"
    return [_build_removal(path, text) for path, text in descriptions.items() if path.exists()]


def execute_removals(removals: Sequence[Removal], run: Run | None, day: str) -> int:
    """Remove what was listed, and record in the run's folder what is gone.

    Bytes are unlinked, not overwritten: what remains on the medium depends on the file system and
    its encryption.

    Returns:
        The number of bytes.

    Raises:
        StorageError: something cannot be removed; what is before it in the list is gone.
    """
    for removal in removals:
        try:
            if run is not None:
                # Recorded first: after a crash a file that still exists is merely compared.
                files = [path.relative_to(run.folder) for path in _iterate_files(removal.path)]
                record_purged_files(run.folder, [path.as_posix() for path in files], day)
            # A link to a folder is removed as a link.
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
    # lstat: a link counts with its own size.
    sizes = [file.lstat().st_size for file in _iterate_files(path)]
    return Removal(path, description, len(sizes), sum(sizes))


def _iterate_files(path: Path) -> Iterator[Path]:
    # A symbolic link is removed itself; what it points to stays.
    if path.is_dir() and not path.is_symlink():
        yield from sorted(file for file in path.rglob("*") if file.is_symlink() or file.is_file())
    else:
        yield path


def _check_not_running(runs: Sequence[Run]) -> None:
    # A record may say running after a crash; the lock decides.
    running = [r for r in runs if r.record.state == "running" and is_folder_locked(r.folder)]
    if running:
        raise RefusedError(
            f"run {', '.join(run.id for run in running)} is being worked on",
            location=str(running[0].folder),
            hint="wait until it has finished, or stop it; then purge",
        )
