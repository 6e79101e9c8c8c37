"""The same question asked of parts of the patients: age bands, sex, race, language, insurance, ward, year, length of the note.

A model that is good on the whole may be bad for some. Of each group there is the main metric and the calibration in the large, and of each column the
largest gap between its groups. The groups of a column share their resamples, which draw subjects from the whole split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clinpeft.core.schemas import Question
from clinpeft.evaluation.bootstrap import Floats
from clinpeft.evaluation.classification.calibration import calibration_board
from clinpeft.evaluation.classification.discrimination import (
    Answers,
    Board,
    Measure,
    answers,
    board,
    scored,
)
from clinpeft.evaluation.classification.ranks import Flags
from clinpeft.recipe import ScoringSpec

AGE_BANDS = ((0.0, "<40"), (40.0, "40–64"), (65.0, "65–79"), (80.0, "80+"))

RESAMPLED_CELLS = 2_000_000_000
"""Stays times classes times resamples of a column's groups; with more, fewer resamples are drawn (1,266 labels of 10,000 stays: 157), which the
definition says. Groups cost as much as the whole, once for every column."""

FEWEST_RESAMPLES = 100

_UNKNOWN = "unknown"
_THIRDS = ("shortest third", "middle third", "longest third")
_WORDS = {
    "age_years": "age",
    "sex": "sex",
    "race": "race",
    "language": "language",
    "insurance": "insurance",
    "admission_type": "admission type",
    "care_unit": "care unit",
    "year_group": "year group",
}
_GAP = "largest difference between groups of {}, never below 0 and above it by chance alone, of: {}"


@dataclass(frozen=True)
class _Group:
    """One group of stays, what is measured on it, and the function that gives it for counts of these stays."""

    name: str
    chosen: Flags
    measured: Board


def subgroup_rows(
    predictions: pa.Table,
    question: Question,
    split: str,
    spec: ScoringSpec,
    rng: np.random.Generator,
    state: str = "model",
) -> list[dict[str, object]]:
    """Main metric and calibration intercept of every group with at least ``spec.smallest_cell`` subjects, and the largest gap of every column.

    Smaller groups of a column are pooled as ``other (k)``, and left out where that is still too small. A column that is unknown for all, or that
    puts all in one group, gives nothing.

    Returns:
        Rows of ``tables.RESULT`` with group ``state · sex F``, and ``<metric>_largest_gap`` with group ``state · sex``.
    """
    found = answers(predictions, question, split)
    asked = predictions.filter(pc.equal(predictions["split"], split))
    rows: list[dict[str, object]] = []
    for word, names in _columns(asked).items():
        rows += _of_column(
            found, word, _groups(names, found, spec.smallest_cell), question, split, spec, rng
        )
    return [{**row, "group": f"{state} · {row['group']}"} for row in rows]


def _columns(asked: pa.Table) -> dict[str, NDArray[np.object_]]:
    """The group of each stay, by column; only columns that are known for some."""
    named = {
        word: _NAMES.get(column, _as_recorded)(asked[column])
        for column, word in _WORDS.items()
        if _known(asked[column])
    }
    if _known(asked["tokens"]):
        named["note"] = _third(asked["tokens"])
    if _known(asked["tokens"]) and _known(asked["tokens_read"]):
        named["note read"] = _read(asked["tokens"], asked["tokens_read"])
    return named


def _groups(names: NDArray[np.object_], found: Answers, smallest: int) -> dict[str, Flags]:
    each = {name: names == name for name in sorted(set(names.tolist()))}
    large = {name: chosen for name, chosen in each.items() if _subjects(found, chosen) >= smallest}
    small = [chosen for name, chosen in each.items() if name not in large]
    pooled = np.logical_or.reduce(small) if small else np.zeros(len(names), np.bool_)
    if small and _subjects(found, pooled) >= smallest:
        large[f"other ({len(small)})"] = pooled
    return {name: chosen for name, chosen in large.items() if not chosen.all()}


def _of_column(
    found: Answers,
    word: str,
    groups: Mapping[str, Flags],
    question: Question,
    split: str,
    spec: ScoringSpec,
    rng: np.random.Generator,
) -> list[dict[str, object]]:
    if not groups:
        return []
    each = [
        _Group(name, chosen, _measured(_part(found, chosen), question, split, spec))
        for name, chosen in groups.items()
    ]
    gap = Measure(
        f"{question.metric}_largest_gap",
        _GAP.format(word, each[0].measured.measures[0].definition.partition(";")[0]),
    )

    def statistics(counts: NDArray[np.int32]) -> Floats:
        values = [one.measured.statistics(counts.T[one.chosen].T) for one in each]
        return np.concatenate([*values, _spread(np.stack([value[0] for value in values]))[None]])

    measures = (*(measure for one in each for measure in one.measured.measures), gap)
    rows = scored(
        found,
        Board(measures, statistics),
        question,
        split,
        affordable(spec, found.scores.size),
        rng,
    )
    owners = [one for one in each for _ in one.measured.measures]
    own = [
        _as_group(row, f"{word} {one.name}", found, one.chosen)
        for row, one in zip(rows, owners, strict=False)
    ]
    if len(each) < 2:
        return own
    return [*own, _as_gap(rows[-1], word, own[:: len(_shown(question))])]


def affordable(spec: ScoringSpec, cells: int) -> ScoringSpec:
    """The spec with as many resamples as ``RESAMPLED_CELLS`` leaves for answers of this many cells (stays times classes)."""
    most = max(RESAMPLED_CELLS // max(cells, 1), FEWEST_RESAMPLES)
    return spec.model_copy(update={"resamples": min(spec.resamples, most)})


def _measured(part: Answers, question: Question, split: str, spec: ScoringSpec) -> Board:
    """The main metric and the calibration intercept, and nothing else."""
    ranking, calibration = (
        board(part, question, split, _without_compat(spec)),
        calibration_board(part, question, split, spec),
    )
    kept = [
        (one, at)
        for one in (ranking, calibration)
        for at, measure in enumerate(one.measures)
        if measure.name in _shown(question)
    ]
    return Board(
        tuple(one.measures[at] for one, at in kept),
        lambda counts: np.stack([one.statistics(counts)[at] for one, at in kept]),
    )


def _without_compat(spec: ScoringSpec) -> ScoringSpec:
    """The same without the paper's own scoring, which no group is asked for."""
    return spec.model_copy(update={"compat": ""})


def _shown(question: Question) -> tuple[str, str]:
    return question.metric, "calibration_intercept"


def _as_group(
    row: dict[str, object], group: str, found: Answers, chosen: Flags
) -> dict[str, object]:
    """A row with the counts of its group instead of those of the split; one subject has no interval."""
    subjects = _subjects(found, chosen)
    alone = {"low": None, "high": None, "level": None} if subjects < 2 else {}
    return {**row, "group": group, "n": int(chosen.sum()), "n_subjects": subjects, **alone}


def _as_gap(
    row: dict[str, object], word: str, groups: Sequence[dict[str, Any]]
) -> dict[str, object]:
    """A gap rests on its smallest group, and where that is suppressed so is the gap."""
    events = [one["n_events"] for one in groups if one["n_events"] is not None]
    fewest = {
        "n_subjects": min(one["n_subjects"] for one in groups),
        "n_events": min(events) if events else None,
    }
    return {
        **row,
        "group": word,
        **fewest,
        "definition": f"{row['definition']}; {len(groups)} groups, subjects and events of the smallest",
    }


def _part(found: Answers, chosen: Flags) -> Answers:
    logits = None if found.logits is None else found.logits[chosen]
    return replace(
        found,
        subjects=found.subjects[chosen],
        truth=found.truth[chosen],
        scores=found.scores[chosen],
        logits=logits,
    )


def _subjects(found: Answers, chosen: Flags) -> int:
    return len(np.unique(found.subjects[chosen]))


def _spread(values: Floats) -> Floats:
    """Largest minus smallest of the groups that have a value, at least two, shape (groups, resamples) to (resamples,)."""
    enough = (~np.isnan(values)).sum(axis=0) >= 2
    highest, lowest = (
        np.where(np.isnan(values), -np.inf, values).max(axis=0),
        np.where(np.isnan(values), np.inf, values).min(axis=0),
    )
    return np.where(enough, np.where(enough, highest, 0.0) - np.where(enough, lowest, 0.0), np.nan)


def _known(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count < len(column))


def _as_recorded(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.array(
        [_UNKNOWN if value is None else value for value in column.to_pylist()], dtype=object
    )


def _age(column: pa.ChunkedArray) -> NDArray[np.object_]:
    starts = [start for start, _ in AGE_BANDS]
    named = [
        _UNKNOWN
        if years is None
        else AGE_BANDS[max(int(np.searchsorted(starts, years, "right")) - 1, 0)][1]
        for years in column.to_pylist()
    ]
    return np.array(named, dtype=object)


def _third(column: pa.ChunkedArray) -> NDArray[np.object_]:
    """Thirds of equal count; notes of the same length are together, so that a third may be empty."""
    edges = np.quantile(column.drop_null().to_numpy(), [1 / 3, 2 / 3])
    named = [
        _UNKNOWN if tokens is None else _THIRDS[int(np.searchsorted(edges, tokens, "left"))]
        for tokens in column.to_pylist()
    ]
    return np.array(named, dtype=object)


def _read(tokens: pa.ChunkedArray, read: pa.ChunkedArray) -> NDArray[np.object_]:
    pairs = zip(tokens.to_pylist(), read.to_pylist(), strict=True)
    return np.array(
        [_UNKNOWN if None in pair else "whole" if pair[1] >= pair[0] else "cut" for pair in pairs],
        dtype=object,
    )


_NAMES: dict[str, Callable[[pa.ChunkedArray], NDArray[np.object_]]] = {"age_years": _age}
