"""The record of a study: a grid of runs with their states, and the comparisons of its file.

```
<home>/studies/<name>-<id>/study.json     the record, replaced as one step
<home>/studies/<name>-<id>/claims/<key>/  locked by the process that works on a cell
```

Several processes write it; any process can read it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from clinpeft.core.errors import InputError, UsageError
from clinpeft.core.files import write_file_atomically
from clinpeft.core.locks import is_key_locked, wait_for_folder_lock

STUDIES_FOLDER, STUDY_FILE = "studies", "study.json"
CellSetting = str | int | float | bool
CellState = Literal["waiting", "running", "finished", "failed", "interrupted"]

# An unknown field means that another version wrote the file.
_STRICT_FIELDS = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class StudyCell:
    """One run of a study.

    Attributes:
        key: of the cell in its study: 12 hexadecimal characters over its recipe.
        label: as the grid names it, such as ``LoRA · task.name=mortality · seed=1``.
        settings: axis of the grid -> its choice here: the name of a table, or the plain value
            (``{"stack": "LoRA", "seed": 1}``).
        published: column -> value as printed in a paper, where the recipe gives one.
        run_id: of the run, a folder in the home; None until it is known.
        state: ``running`` only while a process holds the cell's lock.
        reason: why it failed or was interrupted; else empty.
        attempts: how often it was started.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT_FIELDS

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
        first_run, second_run: ids of their runs; None while one does not exist.
        results: rows of schema ``METRIC_RESULT_SCHEMA``: second minus first, with paired intervals.
        reason: why there are none; empty where there are.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT_FIELDS

    settings: Mapping[str, CellSetting]
    first: str
    second: str
    first_run: str | None = None
    second_run: str | None = None
    results: tuple[Mapping[str, Any], ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class StudyComparison:
    """One ``[[compare]]`` of a study: two choices, in every pair of cells with all other settings
    equal (task, seed ...).

    Attributes:
        name: as given, or composed of the two.
        first, second: axis -> choice.
        pairs: in the order of the cells; empty until they have been compared.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT_FIELDS

    name: str
    first: Mapping[str, CellSetting]
    second: Mapping[str, CellSetting]
    pairs: tuple[CellPairComparison, ...] = ()


@dataclass(frozen=True)
class StudyRecord:
    """A study and the states of its cells.

    Attributes:
        folder: of the study; the home of the runs is two above.
        id: 12 hexadecimal characters over the content of the file.
        name: of the recipe, or of its file.
        kind: of the recipe: ``adapt``, ``classify``, ``embed``.
        recipe: path of the file as it was given.
        recipe_sha256: of that file's bytes when it was last run.
        created, updated: ISO times with their zone.
        cells: in the order of the grid.
        compare: in the order of the file.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT_FIELDS

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
        """The folder of all runs, which holds the folders ``StudyCell.run_id``."""
        return self.folder.parent.parent

    @property
    def is_complete(self) -> bool:
        """Whether every cell has finished."""
        return all(cell.state == "finished" for cell in self.cells)


_STUDY_ADAPTER = pydantic.TypeAdapter(StudyRecord)
_DOCUMENT_ADAPTER = pydantic.TypeAdapter(dict[str, Any])


def get_record_folder(home: Path, name: str, id_: str, parent_name: str = STUDIES_FOLDER) -> Path:
    """The folder of a study or search, whether it exists or not.

    Characters that are awkward in a path are replaced in the name.

    Args:
        home: the folder of all runs.
        name, id_: of the study or search.
        parent_name: ``STUDIES_FOLDER`` or ``SEARCHES_FOLDER``.
    """
    # Letters of other alphabets are kept: isalnum knows them.
    characters = (c if c.isalnum() or c in "-_." else "-" for c in name)
    plain = "".join(characters).strip("-.") or "unnamed"
    return home / parent_name / f"{plain[:60]}-{id_}"


def read_study(folder: Path) -> StudyRecord:
    """Read the study in a folder; a cell whose process was killed is ``interrupted``.

    Raises:
        InputError: the file is missing or damaged.
    """
    study, cells = _read_study_file(folder), []
    for cell in study.cells:
        # A killed process cannot record its end; its lock is gone with it.
        if cell.state == "running" and not is_key_locked(folder, cell.key):
            reason = cell.reason or "the process that worked on it is gone"
            cells.append(dataclasses.replace(cell, state="interrupted", reason=reason))
        else:
            cells.append(cell)
    return dataclasses.replace(study, cells=tuple(cells))


def find_study(home: Path, name_or_id: str) -> StudyRecord:
    """Find the study with this id, else the latest of this name, else whose id begins with it.

    Raises:
        UsageError: there is none, with the nearest name; or several ids begin so.
        InputError: its file cannot be read.
    """
    location = str(home / STUDIES_FOLDER)
    folders = sorted(path.parent for path in (home / STUDIES_FOLDER).glob(f"*/{STUDY_FILE}"))
    studies = [read_study(folder) for folder in folders]
    named = [study for study in studies if name_or_id in (study.name, study.folder.name)]
    # In this order: id, latest of the name, beginning of an id.
    matches = (
        [study for study in studies if study.id == name_or_id]
        or sorted(named, key=lambda study: study.updated)[-1:]
        or [study for study in studies if name_or_id and study.id.startswith(name_or_id)]
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        hint = "give one of the ids: " + ", ".join(study.id for study in matches)
        message = f"{len(matches)} studies match {name_or_id!r}"
        raise UsageError(message, location=location, hint=hint)
    # Only names are suggested: ids are copied, not typed.
    names = sorted({study.name for study in studies})
    nearest = difflib.get_close_matches(name_or_id, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "start one with: clinpeft study run FILE"
    raise UsageError(f"there is no study {name_or_id!r}", location=location, hint=hint)


def open_study(study: StudyRecord) -> StudyRecord:
    """Open the study on disk, written there first if it is new.

    States and comparisons that are on disk stay; path and hash of the recipe are updated.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
        InputError: the file exists and is damaged.
    """
    # Read, changed and written under one lock, so that no change of another process is lost.
    with wait_for_folder_lock(study.folder):
        if (study.folder / STUDY_FILE).exists():
            study = dataclasses.replace(
                _read_study_file(study.folder),
                recipe=study.recipe,
                recipe_sha256=study.recipe_sha256,
                updated=study.updated,
            )
        _write_study_file(study)
    return read_study(study.folder)


def update_study(folder: Path, change: Callable[[StudyRecord], StudyRecord]) -> StudyRecord:
    """Apply a change to the record on disk while no other process changes it.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    with wait_for_folder_lock(folder):
        study = change(_read_study_file(folder))
        _write_study_file(study)
    return study


def update_study_cell(folder: Path, key: str, updated: str, **facts: Any) -> StudyRecord:
    """Set fields of one cell: ``update_study_cell(folder, key, now, state="finished")``."""

    def change(study: StudyRecord) -> StudyRecord:
        cells = tuple(
            dataclasses.replace(cell, **facts) if cell.key == key else cell for cell in study.cells
        )
        return dataclasses.replace(study, cells=cells, updated=updated)

    return update_study(folder, change)


def _write_study_file(study: StudyRecord) -> None:
    # The folder stays out: a home can be moved.
    document = _STUDY_ADAPTER.dump_python(study, mode="json", exclude={"folder"})
    text = json.dumps({"format": 1, **document}, indent=1, ensure_ascii=False) + "\n"
    write_file_atomically(study.folder / STUDY_FILE, text)


def _read_study_file(folder: Path) -> StudyRecord:
    path = folder / STUDY_FILE
    try:
        document = _DOCUMENT_ADAPTER.validate_json(path.read_bytes())
        # The version is checked before the fields: a newer file may have others.
        if document.pop("format", None) != 1:
            raise ValueError("its format is of another version")
        return _STUDY_ADAPTER.validate_python({"folder": folder, **document})
    except (OSError, ValueError) as error:
        raise InputError(
            f"this study cannot be read: {type(error).__name__}",
            location=str(path),
            hint="restore it, or move the folder away and run the study again; "
            "its finished runs are not run again",
        ) from error
