"""Results as they were measured, a row a number: of a whole split, of subgroups, and the calibration curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clinpeft.reports.facts import SUBGROUP, estimate
from clinpeft.reports.formats import count, number, probability
from clinpeft.reports.tables import Column, Table, Value, printed

Row = Mapping[str, Any]  # of tables.RESULT

_WORDS = {"metric": "name", "task": "task", "split": "split", "model": "group"}
_COUNTS = {"n": "n", "subjects": "n_subjects", "events": "n_events"}


def scores_tables(results: pa.Table, curves: pa.Table, title: str) -> tuple[Table, ...]:
    """All that is shown of a set of predictions: the numbers, and where there are any, those of subgroups and the calibration curve."""
    rest = (
        subgroups_table(results, f"{title}: subgroups"),
        calibration_table(curves, f"{title}: calibration"),
    )
    return (scores_table(results, title), *(table for table in rest if table.rows))


def scores_table(results: pa.Table, title: str, smallest_cell: int = 10) -> Table:
    """Every number of whole splits, with its interval and what it counts; beside an AUPRC the prevalence, which is what guessing gives.

    Args:
        results: of schema ``tables.RESULT``; subgroups of a question are left to ``subgroups_table``.
        title: above it.
        smallest_cell: a number that was withheld because fewer subjects than this stand behind it says so, and its counts are not told.
    """
    rows = results.to_pylist()
    return _scores([row for row in rows if not _is_subgroup(row)], title, smallest_cell)


def subgroups_table(results: pa.Table, title: str, smallest_cell: int = 10) -> Table:
    """The subgroups of questions (sex, age band, length of the note ...), which ``scores_table`` leaves out; without rows where there are none."""
    return _scores([row for row in results.to_pylist() if _is_subgroup(row)], title, smallest_cell)


def calibration_table(curves: pa.Table, title: str) -> Table:
    """The calibration curve of schema ``tables.CURVE``, a row a bin: the mean probability that was predicted, and the share in which it came true."""
    points = [point for point in curves.to_pylist() if point["name"] == "calibration"]
    words = [Column(name, is_text=True) for name in ("task", "split", "model")]
    numbers = (
        Column("predicted", number),
        Column("observed", number, is_estimate=True),
        Column("n", count),
    )
    rows = tuple(
        (
            point["task"] or "",
            point["split"],
            point["group"] or "",
            point["x"],
            estimate({**point, "value": point["y"]}),
            point["n"],
        )
        for point in points
    )
    notes = (
        (
            "Predicted: mean of the probabilities in the bin; observed: share of its stays with the event.",
        )
        if rows
        else ()
    )
    return Table(title, (*words, *numbers), rows, notes)


def _scores(rows: Sequence[Row], title: str, smallest_cell: int) -> Table:
    """One row a number; the columns task and prevalence only where a row has one."""
    words = {
        name: field
        for name, field in _WORDS.items()
        if name != "task" or any(row["task"] for row in rows)
    }
    guessed = [_prevalence(row, rows) for row in rows]
    has_prevalence = any(share is not None for share in guessed)
    prevalence = (Column("prevalence"),) if has_prevalence else ()
    numbers = (
        Column("value", number, is_estimate=True),
        *prevalence,
        *(Column(name, count) for name in _COUNTS),
    )
    shown = tuple(
        (
            *(row[field] or "" for field in words.values()),
            _value(row, smallest_cell),
            *((share,) if has_prevalence else ()),
            *_counts(row, smallest_cell),
        )
        for row, share in zip(rows, guessed, strict=True)
    )
    notes = dict.fromkeys(f"{row['name']}: {row['definition'].rstrip('.')}." for row in rows)
    return Table(
        title, (*(Column(name, is_text=True) for name in words), *numbers), shown, tuple(notes)
    )


def _is_subgroup(row: Row) -> bool:
    return row["task"] is not None and SUBGROUP in (row["group"] or "")


def _is_withheld(row: Row, smallest_cell: int) -> bool:
    """A number that is not there because too few people stand behind it; one that no data defines (a class is absent) is something else."""
    return (
        row["value"] is None and row["n_subjects"] is not None and row["n_subjects"] < smallest_cell
    )


def _value(row: Row, smallest_cell: int) -> Value:
    if _is_withheld(row, smallest_cell):
        return f"fewer than {smallest_cell} subjects"
    is_p_value = row["name"].endswith("_p") and row["value"] is not None
    return printed(row["value"], probability) if is_p_value else estimate(row)


def _counts(row: Row, smallest_cell: int) -> tuple[Value, ...]:
    found = tuple(row[field] for field in _COUNTS.values())
    if not _is_withheld(row, smallest_cell):
        return found
    return tuple(f"<{smallest_cell}" if n is not None and n < smallest_cell else n for n in found)


def _prevalence(row: Row, rows: Sequence[Row]) -> float | None:
    """What guessing gives for an AUPRC: as measured of the baseline ``prevalence``, else the share of events where only one event is asked for."""
    if not row["name"].startswith("auprc") or row["name"].endswith("_difference"):
        return None
    _, separator, subgroup = (row["group"] or "").partition(SUBGROUP)
    same = {
        "name": row["name"],
        "task": row["task"],
        "split": row["split"],
        "group": f"prevalence{separator}{subgroup}",
    }
    measured = next(
        (
            other["value"]
            for other in rows
            if all(other[field] == known for field, known in same.items())
        ),
        None,
    )
    is_one_event = (
        row["name"] == "auprc"
        and row["n_events"] is not None
        and row["value"] is not None
        and row["n"]
    )
    return (
        measured if measured is not None else row["n_events"] / row["n"] if is_one_event else None
    )
