"""Results as they were measured, a row per number: of a whole split, of subgroups, and the
calibration curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from clinpeft.reports.facts import SUBGROUP_SEPARATOR, to_estimate
from clinpeft.reports.formats import format_count, format_number, format_p_value
from clinpeft.reports.tables import (
    CellValue,
    ReportColumn,
    ReportTable,
    build_table_from_cells,
    create_text_columns,
    format_cell,
)

ScoreRow = Mapping[str, Any]  # a row of METRIC_RESULT_SCHEMA

_TEXT_FIELDS = {"metric": "name", "task": "task", "split": "split", "model": "group"}
_COUNT_FIELDS = {"n": "n", "subjects": "n_subjects", "events": "n_events"}


def build_scores_tables(results: pa.Table, curves: pa.Table, title: str) -> tuple[ReportTable, ...]:
    """All tables of a set of predictions: the numbers, and where there are any, those of subgroups
    and the calibration curve."""
    optional = (
        build_subgroups_table(results, f"{title}: subgroups"),
        build_calibration_table(curves, f"{title}: calibration"),
    )
    return (build_scores_table(results, title), *(table for table in optional if table.rows))


def build_scores_table(results: pa.Table, title: str, smallest_cell: int = 10) -> ReportTable:
    """Every number of whole splits, with its interval and counts; beside an AUPRC the prevalence,
    which is the AUPRC of guessing.

    Args:
        results: of ``METRIC_RESULT_SCHEMA``; subgroups of a task are left to
            ``build_subgroups_table``.
        title: above it.
        smallest_cell: a number that was withheld because it is about fewer subjects says so, and
            its counts are suppressed.
    """
    # Subgroups outnumber the whole splits many times
    rows = [row for row in results.to_pylist() if not _is_subgroup(row)]
    return _build_table(rows, title, smallest_cell)


def build_subgroups_table(results: pa.Table, title: str, smallest_cell: int = 10) -> ReportTable:
    """The subgroups of tasks (sex, age band, length of the note ...), which ``build_scores_table``
    leaves out; without rows where there are none."""
    rows = [row for row in results.to_pylist() if _is_subgroup(row)]
    return _build_table(rows, title, smallest_cell)


def build_calibration_table(curves: pa.Table, title: str) -> ReportTable:
    """The calibration curve of ``CURVE_POINT_SCHEMA``, a row per bin: mean predicted probability
    and observed fraction of events."""
    columns = (
        *create_text_columns("task", "split", "model"),
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
        for point in curves.to_pylist()
        if point["name"] == "calibration"
    )
    note = (
        "Predicted: mean of the probabilities in the bin; observed: share of its stays with the "
        "event."
    )
    return ReportTable(title, columns, rows, (note,) if rows else ())


def _build_table(rows: Sequence[ScoreRow], title: str, smallest_cell: int) -> ReportTable:
    """One row per number; the columns task and prevalence only where a row has one."""
    prevalences = [_find_prevalence(row, rows) for row in rows]
    columns = [
        *create_text_columns(
            *(name for name in _TEXT_FIELDS if name != "task" or any(row["task"] for row in rows))
        ),
        ReportColumn("value", format_number, is_estimate=True),
    ]
    if any(prevalence is not None for prevalence in prevalences):
        columns.append(ReportColumn("prevalence"))
    columns += [ReportColumn(name, format_count) for name in _COUNT_FIELDS]
    cells: list[dict[str, CellValue]] = []
    for row, prevalence in zip(rows, prevalences, strict=True):
        # A number that is absent because it is about too few people; a number that the data do not
        # define (a class is absent) is something else
        is_withheld = (
            row["value"] is None
            and row["n_subjects"] is not None
            and row["n_subjects"] < smallest_cell
        )
        is_p_value = row["name"].endswith("_p") and row["value"] is not None
        # Arrow nulls become empty cells
        texts = {name: row[field] or "" for name, field in _TEXT_FIELDS.items()}
        counts = {name: row[field] for name, field in _COUNT_FIELDS.items()}
        value: CellValue = to_estimate(row)
        if is_withheld:
            value = f"fewer than {smallest_cell} subjects"
            counts = {
                name: f"<{smallest_cell}" if n is not None and n < smallest_cell else n
                for name, n in counts.items()
            }
        elif is_p_value:
            value = format_cell(row["value"], format_p_value)
        cells.append({**texts, "value": value, "prevalence": prevalence, **counts})
    notes = (f"{row['name']}: {row['definition'].rstrip('.')}." for row in rows)
    return build_table_from_cells(title, columns, cells, notes)


def _is_subgroup(row: ScoreRow) -> bool:
    # Numbers without a task are of whole splits, whatever their group is called
    return row["task"] is not None and SUBGROUP_SEPARATOR in (row["group"] or "")


def _find_prevalence(row: ScoreRow, rows: Sequence[ScoreRow]) -> float | None:
    """The AUPRC of guessing: as measured of the baseline ``prevalence``, else the fraction of
    events where the task has one event; None for other metrics."""
    if not row["name"].startswith("auprc") or row["name"].endswith("_difference"):
        return None
    # The prevalence of a subgroup is that of the subgroup, not of the split
    _, separator, subgroup = (row["group"] or "").partition(SUBGROUP_SEPARATOR)
    group = f"prevalence{separator}{subgroup}"
    key = (row["name"], row["task"], row["split"], group)
    for other in rows:
        if (other["name"], other["task"], other["split"], other["group"]) == key:
            if other["value"] is not None:
                return float(other["value"])
            break
    # auprc_macro averages classes of different prevalence, so its events are not one fraction
    if row["name"] != "auprc" or row["n_events"] is None or row["value"] is None or not row["n"]:
        return None
    return float(row["n_events"] / row["n"])
