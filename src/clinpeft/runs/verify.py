"""Whether the files of a run are still those that it finished with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clinpeft.core.errors import RefusedError
from clinpeft.runs.store import Run
from clinpeft.runs.manifest import iterate_hashed_files, compute_file_sha256
from clinpeft.core.files import write_file_atomically

PURGED_FILE = "purged.json"
MODEL_FILES = ("adapter", "adapters", "model", "tokenizer", "head.safetensors", "head.json", "encoder.json", "probe.safetensors")
"""Of a run folder, what a model that answers is put together from."""

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
"""State -> whether a run in it is not what it says. ``absent``: it is not here any more, and cannot be compared; ``unknown``: nobody wrote down what
it was; ``other``: it differs and may, such as the code."""


@dataclass(frozen=True)
class ProvenanceCheck:
    """One thing that a run stands on, compared with what was written down of it.

    Attributes:
        item: a file of the run, ``base``, ``source`` ...
        state: how it compares.
        detail: what was found, for a reader; no path of this machine.
    """

    item: str
    state: CheckState
    detail: str = ""

    @property
    def fails(self) -> bool:
        """Whether the run is not what it says."""
        return IS_FAILING_STATE[self.state]


def check_run_files(run: Run) -> list[ProvenanceCheck]:
    """Every file of a finished run against the hash that ``run.json`` holds of it, in order of paths."""
    if not run.record.files:
        return [ProvenanceCheck("files", "unknown", "the run was made by a version that kept no hashes of its files, or has not finished")]
    found = {path.relative_to(run.folder).as_posix(): path for path in iterate_hashed_files(run.folder)}
    purged = read_purged_files(run.folder)
    return [_compare_file(name, run.record.files.get(name), found.get(name), purged) for name in sorted(run.record.files.keys() | found.keys())]


def _compare_file(name: str, expected_sha256: str | None, path: Path | None, purged_files: Mapping[str, str]) -> ProvenanceCheck:
    if expected_sha256 is None:
        return ProvenanceCheck(name, "added", "it was not there when the run finished")
    if path is None:
        return (
            ProvenanceCheck(name, "purged", f"on {purged_files[name]}") if name in purged_files else ProvenanceCheck(name, "missing", f"sha256 {expected_sha256[:12]} when the run finished")
        )
    now = compute_file_sha256(path)
    return ProvenanceCheck(name, "same", f"sha256 {now[:12]}") if now == expected_sha256 else ProvenanceCheck(name, "changed", f"sha256 {now[:12]}, and was {expected_sha256[:12]}")


def check_model_files(run: Run) -> None:
    """Stop before a model is put together from files that are not those of the run.

    Raises:
        RefusedError: a file of adapter, head, tokenizer or encoder was changed, taken away or added.
    """
    wrong = [check for check in _iterate_model_file_checks(run) if check.fails]
    if wrong:
        said = ", ".join(f"{check.item} ({check.state})" for check in wrong[:3])
        hint = f"see all with: clinpeft verify {run.id}; copy the run's folder again from where it was trained"
        raise RefusedError(f"{len(wrong)} files are not those that run {run.id} finished with: {said}", location=str(run.folder), hint=hint)


def _iterate_model_file_checks(run: Run) -> Iterator[ProvenanceCheck]:
    if run.record.files:
        found = {path.relative_to(run.folder).as_posix(): path for path in iterate_hashed_files(run.folder)}
        for name in sorted(run.record.files.keys() | found.keys()):
            if name.partition("/")[0] in MODEL_FILES:
                yield _compare_file(name, run.record.files.get(name), found.get(name), {})


def read_purged_files(folder: Path) -> dict[str, str]:
    """File of a run -> the day on which it was purged."""
    try:
        found = json.loads((folder / PURGED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(day) for name, day in found.items()} if isinstance(found, dict) else {}


def record_purged_files(folder: Path, names: list[str], day: str) -> None:
    """Write down in a run's folder which of its files are gone, so that they are not missed."""
    known = read_purged_files(folder) | dict.fromkeys(names, day)
    write_file_atomically(folder / PURGED_FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")
