"""The record of a hyperparameter search: its trials and the winner, for people and reports.

``<home>/searches/<name>-<id>/search.json``, replaced as one step after every trial; a copy of what
the storage of the search holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from clinpeft.core.files import write_file_atomically

SEARCHES_FOLDER, SEARCH_FILE, WINNER_RECIPE_FILE = "searches", "search.json", "winner.toml"
TrialSetting = str | int | float | bool


@dataclass(frozen=True)
class Trial:
    """One trial and its result.

    Attributes:
        number: from 0, in the order of the proposals.
        state: ``open`` until it is evaluated; a trial whose process was killed is open too, and is
            resumed.
        settings: recipe key -> value.
        value: of the metric on the tuning split; None until it is known.
        run_id: of the run; None until it is known.
        newly_trained: whether this trial trained; False where the run existed already; None until
            it is known.
        repeats: the earlier trial with the same settings, whose run it shares; None where there is
            none.
        reason: why it failed; else empty.
        seconds: from the proposal's start to its value, in its last attempt.
        where: the machine that evaluated it.
    """

    number: int
    state: Literal["open", "finished", "failed"]
    settings: Mapping[str, TrialSetting]
    value: float | None = None
    run_id: str | None = None
    # ``made`` is its name in search.json.
    newly_trained: Annotated[
        bool | None, pydantic.Field(validation_alias="made", serialization_alias="made")
    ] = None
    repeats: int | None = None
    reason: str = ""
    seconds: float | None = None
    where: str = ""


@dataclass(frozen=True)
class SearchRecord:
    """A search and its trials.

    Attributes:
        folder: of the search; the home of the runs is two above.
        id: 12 hexadecimal characters over the content of the recipe file.
        name, kind: of the recipe.
        recipe, recipe_sha256: path of the file, and the hash of its bytes.
        updated: ISO time with its zone.
        metric, direction, sampler: as in the recipe.
        wanted: number of trials in the recipe.
        trials: those there are.
        winner: number of the best finished trial, the first of several; None where there is none.
        held_out: the winner's rows of schema ``METRIC_RESULT_SCHEMA`` on the held-out split, read
            when all trials had ended; empty before.
        importance: recipe key -> its share of the variance of the trials' values; empty where that
            cannot be estimated.
        importance_by: the method, or why there is no estimate.
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
        """Whether as many trials as the recipe wants have ended."""
        return sum(trial.state != "open" for trial in self.trials) >= self.wanted

    @property
    def best_trial(self) -> Trial | None:
        """The winner."""
        return next((trial for trial in self.trials if trial.number == self.winner), None)


_SEARCH_ADAPTER = pydantic.TypeAdapter(SearchRecord)


def write_search_record(search: SearchRecord) -> None:
    """Write ``search.json`` in the folder of the search.

    Raises:
        StorageError: nothing could be written; what was there before is intact.
    """
    # The folder stays out: a home can be moved.
    document = _SEARCH_ADAPTER.dump_python(search, mode="json", by_alias=True, exclude={"folder"})
    # json.dumps and not dump_json: floats keep the notation of older files.
    text = json.dumps({"format": 1, **document}, indent=1, ensure_ascii=False) + "\n"
    write_file_atomically(search.folder / SEARCH_FILE, text)
