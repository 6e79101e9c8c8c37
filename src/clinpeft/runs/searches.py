"""A search: what was proposed, what came of it, and the winner; a copy of what its storage knows, for people and reports.

``<home>/searches/<name>-<id>/search.json``, replaced as one step after every trial.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clinpeft.core.errors import InputError
from clinpeft.core.files import write_file_atomically

SEARCHES_FOLDER, SEARCH_FILE, WINNER_RECIPE_FILE = "searches", "search.json", "winner.toml"
TrialSetting = str | int | float | bool


@dataclass(frozen=True)
class Trial:
    """One proposal, and what came of it.

    Attributes:
        number: from 0, in the order of the proposals.
        state: ``open`` until it is measured; a trial whose process was killed is open too, and is taken up again.
        settings: recipe key -> value.
        value: of the metric on the tuning split; None until it is known.
        run_id: of the run; None until it is known.
        made: whether this trial trained; False where the run was there already; None until it is known.
        repeats: the earlier trial with the same settings, whose run it shares; None where there is none.
        reason: why it failed; else empty.
        seconds: from the proposal's start to its value, in its last attempt.
        where: the machine that worked on it.
    """

    number: int
    state: Literal["open", "finished", "failed"]
    settings: Mapping[str, TrialSetting]
    value: float | None = None
    run_id: str | None = None
    made: bool | None = None
    repeats: int | None = None
    reason: str = ""
    seconds: float | None = None
    where: str = ""


@dataclass(frozen=True)
class SearchRecord:
    """A search's folder, read.

    Attributes:
        folder: where it is; the home of the runs is two above.
        id: 12 hexadecimal characters over what the file asks for.
        name, kind: of the recipe.
        recipe, recipe_sha256: the file as given, and the hash of its bytes.
        updated: ISO time with its zone.
        metric, direction, sampler: as asked.
        wanted: how many trials.
        trials: those there are.
        winner: number of the best finished trial, the first of several; None where there is none.
        held_out: the winner's rows of schema ``tables.RESULT`` on the held-out split, read when all trials had ended; empty before.
        importance: recipe key -> its share of what the trials' values vary by; empty where that cannot be told.
        importance_by: how it was told, or why not.
    """

    folder: Path
    id: str
    name: str
    kind: str
    recipe: str
    recipe_sha256: str
    updated: str
    metric: str
    direction: Literal["maximize", "minimize"]
    sampler: str
    wanted: int
    trials: tuple[Trial, ...] = ()
    winner: int | None = None
    held_out: tuple[Mapping[str, Any], ...] = ()
    importance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    importance_by: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every trial that was wanted has ended."""
        return sum(trial.state != "open" for trial in self.trials) >= self.wanted

    @property
    def best_trial(self) -> Trial | None:
        """The winner."""
        return next((trial for trial in self.trials if trial.number == self.winner), None)


def write_search_record(search: SearchRecord) -> None:
    """Into its folder.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    plain = dataclasses.asdict(search)
    del plain["folder"]
    write_file_atomically(search.folder / SEARCH_FILE, json.dumps({"format": 1, **plain}, indent=1, ensure_ascii=False) + "\n")


def read_search_record(folder: Path) -> SearchRecord:
    """The search in a folder.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / SEARCH_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.pop("format") != 1:
            raise ValueError("its format is of another version")
        trials = tuple(Trial(**trial) for trial in plain.pop("trials"))
        return SearchRecord(folder=folder, trials=trials, **{**plain, "held_out": tuple(plain["held_out"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        hint = "give the command of the search again: it writes the file anew"
        raise InputError(f"this search cannot be read: {type(error).__name__}", location=str(path), hint=hint) from error
