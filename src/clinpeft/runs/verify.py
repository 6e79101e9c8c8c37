"""Verification that the files of a run are still those that it finished with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from clinpeft.core.errors import RefusedError
from clinpeft.core.files import write_file_atomically
from clinpeft.core.hashing import compute_file_sha256
from clinpeft.runs.manifest import iterate_hashed_files
from clinpeft.runs.store import Run

PURGED_FILE = "purged.json"
MODEL_FILES = (
    "adapter",
    "adapters",
    "model",
    "tokenizer",
    "head.safetensors",
    "head.json",
    "encoder.json",
    "probe.safetensors",
)
"""Files and folders of a run from which its model is loaded."""

CheckState = Literal["same", "changed", "missing", "added", "purged", "absent", "unknown", "other"]

IS_FAILING_STATE: dict[CheckState, bool] = {
    "same": False,
    "changed": True,
    "missing": True,
    "added": True,
    "purged": False,
    "absent": False,
    "unknown": False,
    "other": False,
}
"""State -> whether it invalidates a run. ``absent``: the item is no longer on this machine and
cannot be compared; ``unknown``: no checksum was recorded; ``other``: it differs and may, such as
the code."""

_PURGED_ADAPTER = pydantic.TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class ProvenanceCheck:
    """One item that a run depends on, compared with what was recorded.

    Attributes:
        item: a file of the run, ``base``, ``source`` ...
        state: result of the comparison.
        detail: for a reader; no path of this machine.
    """

    item: str
    state: CheckState
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the run is no longer what was recorded."""
        return IS_FAILING_STATE[self.state]


def check_run_files(run: Run) -> list[ProvenanceCheck]:
    """Compare every file of a finished run with its recorded checksum, in order of paths."""
    if not run.record.files:
        reason = (
            "the run was made by a version that recorded no checksums of its files, "
            "or has not finished"
        )
        return [ProvenanceCheck("files", "unknown", reason)]
    return list(_iterate_checks(run, read_purged_files(run.folder)))


def check_model_files(run: Run) -> None:
    """Check the files of a model before it is loaded.

    Raises:
        RefusedError: a file of adapter, head, tokenizer or encoder was changed, removed or added.
    """
    # A purged model file is missing for loading, so that purged files are not excused here.
    checks = _iterate_checks(run, {}, MODEL_FILES) if run.record.files else ()
    failures = [f"{check.item} ({check.state})" for check in checks if check.fails]
    if failures:
        raise RefusedError(
            f"{len(failures)} files are not those that run {run.id} finished with: "
            + ", ".join(failures[:3]),
            location=str(run.folder),
            hint=f"see all with: clinpeft verify {run.id}; "
            "copy the run's folder again from where it was trained",
        )


def read_purged_files(folder: Path) -> dict[str, str]:
    """Read which files of a run were purged: file -> day."""
    try:
        # Unreadable counts as nothing purged: missing files are then reported.
        return _PURGED_ADAPTER.validate_json((folder / PURGED_FILE).read_bytes())
    except (OSError, ValueError):
        return {}


def record_purged_files(folder: Path, names: list[str], day: str) -> None:
    """Record in a run's folder which of its files were purged, so that they are not missing."""
    # Earlier purges stay recorded.
    days = read_purged_files(folder) | dict.fromkeys(names, day)
    write_file_atomically(folder / PURGED_FILE, json.dumps(days, indent=1, sort_keys=True) + "\n")


def _iterate_checks(
    run: Run, purged_files: Mapping[str, str], top_level: Sequence[str] = ()
) -> Iterator[ProvenanceCheck]:
    """Checks of recorded and present files, in order of paths; those below ``top_level``, if
    any."""
    # Files of both sides: an added file is a change too.
    files = iterate_hashed_files(run.folder)
    paths = {path.relative_to(run.folder).as_posix(): path for path in files}
    for name in sorted(run.record.files.keys() | paths.keys()):
        # Loading needs no checksum of tables: large files are skipped.
        if top_level and name.partition("/")[0] not in top_level:
            continue
        expected, path = run.record.files.get(name), paths.get(name)
        if expected is None:
            yield ProvenanceCheck(name, "added", "it was not there when the run finished")
        elif path is None and name in purged_files:
            yield ProvenanceCheck(name, "purged", f"on {purged_files[name]}")
        elif path is None:
            detail = f"sha256 {expected[:12]} when the run finished"
            yield ProvenanceCheck(name, "missing", detail)
        elif (sha256 := compute_file_sha256(path)) == expected:
            yield ProvenanceCheck(name, "same", f"sha256 {expected[:12]}")
        else:
            detail = f"sha256 {sha256[:12]}, and was {expected[:12]}"
            yield ProvenanceCheck(name, "changed", detail)
