"""Results as they were measured, a row a number: of a whole split, of subgroups, and the
calibration curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clinpeft.reports.facts import SUBGROUP_SEPARATOR, to_estimate
from clinpeft.reports.formats import format_count, format_number, format_p_value
from clinpeft.reports.tables import CellValue, ReportColumn, ReportTable, format_cell

ScoreRow = Mapping[str, Any]  # of tables.RESULT

_TEXT_COLUMNS = {"metric": "name", "task": "task", "split": "split", "model": "group"}
_COUNT_COLUMNS = {"n": "n", "subjects": "n_subjects", "events": "n_events"}


def build_scores_tables(results: pa.Table, curves: pa.Table, title: str) -> tuple[ReportTable, ...]:
    """All that is shown of a set of predictions: the numbers, and where there are any, those of
    subgroups and the calibration curve."""
    rest = (
        build_subgroups_table(results, f"{title}: subgroups"),
        build_calibration_table(curves, f"{title}: calibration"),
    )
    return (build_scores_table(results, title), *(table for table in rest if table.rows))


def build_scores_table(results: pa.Table, title: str, smallest_cell: int = 10) -> ReportTable:
    """Every number of whole splits, with its interval and what it counts; beside an AUPRC the
    prevalence, which is what guessing gives.

    Args:
        results: of schema ``tables.RESULT``; subgroups of a question are left to
            ``subgroups_table``.
        title: above it.
        smallest_cell: a number that was withheld because fewer subjects than this stand behind it
            says so, and its counts are not told.
    """
    rows = results.to_pylist()
    return _build_scores_table([row for row in rows if not _is_subgroup(row)], title, smallest_cell)


def build_subgroups_table(results: pa.Table, title: str, smallest_cell: int = 10) -> ReportTable:
    """The subgroups of questions (sex, age band, length of the note ...), which ``scores_table``
    leaves out; without rows where there are none."""
    return _build_scores_table(
        [row for row in results.to_pylist() if _is_subgroup(row)], title, smallest_cell
    )


def build_calibration_table(curves: pa.Table, title: str) -> ReportTable:
    """The calibration curve of schema ``tables.CURVE``, a row a bin: the mean probability that was
    predicted, and the share in which it came true."""
    points = [point for point in curves.to_pylist() if point["name"] == "calibration"]
    words = [ReportColumn(name, is_text=True) for name in ("task", "split", "model")]
    numbers = (
        ReportColumn("predicted", format_number),
        ReportColumn("observed", format_number, is_estimate=True),
        ReportColumn("n", format_count),
    )
    rows = tuple(
        (
            point["task"] or "",
            point["split"],
            point["group"] or "",
            point["x"],
            to_estimate({**point, "value": point["y"]}),
            point["n"],
        )
        for point in points
    )
    notes = (
        (
            (
                "Predicted: mean of the probabilities in the bin; observed: share of its stays "
                "with the event."
            ),
        )
        if rows
        else ()
    )
    return ReportTable(title, (*words, *numbers), rows, notes)


def _build_scores_table(rows: Sequence[ScoreRow], title: str, smallest_cell: int) -> ReportTable:
    """One row a number; the columns task and prevalence only where a row has one."""
    words = {
        name: field
        for name, field in _TEXT_COLUMNS.items()
        if name != "task" or any(row["task"] for row in rows)
    }
    guessed = [_find_prevalence(row, rows) for row in rows]
    has_prevalence = any(share is not None for share in guessed)
    prevalence = (ReportColumn("prevalence"),) if has_prevalence else ()
    numbers = (
        ReportColumn("value", format_number, is_estimate=True),
        *prevalence,
        *(ReportColumn(name, format_count) for name in _COUNT_COLUMNS),
    )
    shown = tuple(
        (
            *(row[field] or "" for field in words.values()),
            _format_metric_value(row, smallest_cell),
            *((share,) if has_prevalence else ()),
            *_format_counts(row, smallest_cell),
        )
        for row, share in zip(rows, guessed, strict=True)
    )
    notes = dict.fromkeys(f"{row['name']}: {row['definition'].rstrip('.')}." for row in rows)
    return ReportTable(
        title,
        (*(ReportColumn(name, is_text=True) for name in words), *numbers),
        shown,
        tuple(notes),
    )


def _is_subgroup(row: ScoreRow) -> bool:
    return row["task"] is not None and SUBGROUP_SEPARATOR in (row["group"] or "")


def _is_withheld(row: ScoreRow, smallest_cell: int) -> bool:
    """A number that is not there because too few people stand behind it; one that no data defines
    (a class is absent) is something else."""
    return (
        row["value"] is None and row["n_subjects"] is not None and row["n_subjects"] < smallest_cell
    )


def _format_metric_value(row: ScoreRow, smallest_cell: int) -> CellValue:
    if _is_withheld(row, smallest_cell):
        return f"fewer than {smallest_cell} subjects"
    is_p_value = row["name"].endswith("_p") and row["value"] is not None
    return format_cell(row["value"], format_p_value) if is_p_value else to_estimate(row)


def _format_counts(row: ScoreRow, smallest_cell: int) -> tuple[CellValue, ...]:
    found = tuple(row[field] for field in _COUNT_COLUMNS.values())
    if not _is_withheld(row, smallest_cell):
        return found
    return tuple(f"<{smallest_cell}" if n is not None and n < smallest_cell else n for n in found)


def _find_prevalence(row: ScoreRow, rows: Sequence[ScoreRow]) -> float | None:
    """What guessing gives for an AUPRC: as measured of the baseline ``prevalence``, else the share
    of events where only one event is asked for."""
    if not row["name"].startswith("auprc") or row["name"].endswith("_difference"):
        return None
    _, separator, subgroup = (row["group"] or "").partition(SUBGROUP_SEPARATOR)
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
