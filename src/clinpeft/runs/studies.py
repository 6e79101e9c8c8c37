"""A study: a grid of runs with what became of each, and the comparisons that its file names; written by several processes, read by anyone.

```
<home>/studies/<name>-<id>/study.json     what is below, replaced as one step
<home>/studies/<name>-<id>/claims/<key>/  held by the process that works on a cell
```
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clinpeft.core.errors import InputError, UsageError
from clinpeft.core.locks import wait_for_folder_lock, is_key_locked
from clinpeft.core.files import write_file_atomically

STUDIES_FOLDER, STUDY_FILE = "studies", "study.json"
CellSetting = str | int | float | bool
CellState = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class StudyCell:
    """One run that a study asks for.

    Attributes:
        key: of the cell in its study: 12 hexadecimal characters over its recipe.
        label: as the grid calls it, such as ``LoRA · task.name=mortality · seed=1``.
        settings: axis of the grid -> its choice here: the name of a table, or the plain value (``{"stack": "LoRA", "seed": 1}``).
        published: column -> value as printed in a paper, where the recipe gives one.
        run_id: of the run, a folder in the home; None until it is known.
        state: ``running`` only while a process holds the cell's claim.
        reason: why it failed or was interrupted; else empty.
        attempts: how often it was begun.
    """

    key: str
    label: str
    settings: Mapping[str, CellSetting]
    published: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)
    run_id: str | None = None
    state: CellState = "waiting"
    reason: str = ""
    attempts: int = 0


@dataclass(frozen=True)
class CellPairComparison:
    """Two cells that differ only in what a comparison names.

    Attributes:
        settings: what both have in common: axis -> choice.
        first, second: labels of the cells.
        first_run, second_run: ids of their runs; None while one is not there.
        results: rows of schema ``tables.RESULT``: second minus first, with paired intervals.
        reason: why there are none; empty where there are.
    """

    settings: Mapping[str, CellSetting]
    first: str
    second: str
    first_run: str | None = None
    second_run: str | None = None
    results: tuple[Mapping[str, Any], ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class StudyComparison:
    """One ``[[compare]]`` of a study: what is set against what, in every pair of cells that share all other settings (task, seed ...).

    Attributes:
        name: as given, or made of the two.
        first, second: axis -> choice.
        pairs: in the order of the cells; empty until they have been compared.
    """

    name: str
    first: Mapping[str, CellSetting]
    second: Mapping[str, CellSetting]
    pairs: tuple[CellPairComparison, ...] = ()


@dataclass(frozen=True)
class StudyRecord:
    """A study's folder, read.

    Attributes:
        folder: where it is; the home of the runs is two above.
        id: 12 hexadecimal characters over what the file asks for.
        name: of the recipe, or of its file.
        kind: of the recipe: ``adapt``, ``classify``, ``embed``.
        recipe: path of the file as it was given.
        recipe_sha256: of that file's bytes when it was last run.
        created, updated: ISO times with their zone.
        cells: in the order of the grid.
        compare: in the order of the file.
    """

    folder: Path
    id: str
    name: str
    kind: str
    recipe: str
    recipe_sha256: str
    created: str
    updated: str
    cells: tuple[StudyCell, ...]
    compare: tuple[StudyComparison, ...] = ()

    @property
    def home(self) -> Path:
        """The folder of all runs, where ``Cell.run_id`` is a folder."""
        return self.folder.parent.parent

    @property
    def is_complete(self) -> bool:
        """Whether every cell has finished."""
        return all(cell.state == "finished" for cell in self.cells)


def get_record_folder(home: Path, name: str, id_: str, parent_name: str = STUDIES_FOLDER) -> Path:
    """Where a study is, or will be; characters that are awkward in a path are replaced in the name."""
    plain = "".join(character if character.isalnum() or character in "-_." else "-" for character in name).strip("-.") or "unnamed"
    return home / parent_name / f"{plain[:60]}-{id_}"


def read_study(folder: Path) -> StudyRecord:
    """The study in a folder; a cell whose process was killed is ``interrupted``.

    Raises:
        InputError: the file is missing or damaged.
    """
    study = _read_study_file(folder)
    return dataclasses.replace(study, cells=tuple(_resolve_cell_state(folder, cell) for cell in study.cells))


def find_study(home: Path, name_or_id: str) -> StudyRecord:
    """The study with this id, else the one of this name that was run last, else the one whose id begins like this.

    Raises:
        UsageError: there is none, with the nearest name; or several ids begin so.
        InputError: its file cannot be read.
    """
    folders = sorted(path.parent for path in (home / STUDIES_FOLDER).glob(f"*/{STUDY_FILE}"))
    studies = [read_study(folder) for folder in folders]
    named = [study for study in studies if name_or_id in (study.name, study.folder.name)]
    meant = [study for study in studies if study.id == name_or_id] or sorted(named, key=lambda study: study.updated)[-1:]
    meant = meant or [study for study in studies if name_or_id and study.id.startswith(name_or_id)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        hint = "give one of the ids: " + ", ".join(study.id for study in meant)
        raise UsageError(f"{len(meant)} studies are meant by {name_or_id!r}", location=str(home / STUDIES_FOLDER), hint=hint)
    near = difflib.get_close_matches(name_or_id, sorted({study.name for study in studies}), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "start one with: clinpeft study run FILE"
    raise UsageError(f"there is no study {name_or_id!r}", location=str(home / STUDIES_FOLDER), hint=hint)


def open_study(study: StudyRecord) -> StudyRecord:
    """The study as it is on disk, written there first if it is new; what is known of its cells and comparisons stays.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
        InputError: the file is there and damaged.
    """
    with wait_for_folder_lock(study.folder):
        if (study.folder / STUDY_FILE).exists():
            known = _read_study_file(study.folder)
            study = dataclasses.replace(known, recipe=study.recipe, recipe_sha256=study.recipe_sha256, updated=study.updated)
        _write_study_file(study)
    return read_study(study.folder)


def update_study(folder: Path, change: Callable[[StudyRecord], StudyRecord]) -> StudyRecord:
    """A change to what is on disk, while no other process changes it.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    with wait_for_folder_lock(folder):
        changed = change(_read_study_file(folder))
        _write_study_file(changed)
    return changed


def update_study_cell(folder: Path, key: str, updated: str, **facts: Any) -> StudyRecord:
    """One cell's fields set: ``change_cell(folder, key, now, state="finished", run_id="ab12")``."""

    def change(study: StudyRecord) -> StudyRecord:
        cells = tuple(dataclasses.replace(cell, **facts) if cell.key == key else cell for cell in study.cells)
        return dataclasses.replace(study, cells=cells, updated=updated)

    return update_study(folder, change)


def _resolve_cell_state(folder: Path, cell: StudyCell) -> StudyCell:
    if cell.state != "running" or is_key_locked(folder, cell.key):
        return cell
    return dataclasses.replace(cell, state="interrupted", reason=cell.reason or "the process that worked on it is gone")


def _write_study_file(study: StudyRecord) -> None:
    plain = dataclasses.asdict(study)
    del plain["folder"]
    write_file_atomically(study.folder / STUDY_FILE, json.dumps({"format": 1, **plain}, indent=1, ensure_ascii=False) + "\n")


def _read_study_file(folder: Path) -> StudyRecord:
    path = folder / STUDY_FILE
    hint = "restore it, or move the folder away and run the study again; its runs are kept and not run again"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.pop("format") != 1:
            raise ValueError("its format is of another version")
        cells = tuple(StudyCell(**cell) for cell in plain.pop("cells"))
        compare = tuple(_parse_comparison(entry) for entry in plain.pop("compare"))
        return StudyRecord(folder=folder, cells=cells, compare=compare, **plain)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"this study cannot be read: {type(error).__name__}", location=str(path), hint=hint) from error


def _parse_comparison(plain: Mapping[str, Any]) -> StudyComparison:
    pairs = tuple(CellPairComparison(**{**pair, "results": tuple(pair["results"])}) for pair in plain["pairs"])
    return StudyComparison(**{**plain, "pairs": pairs})
