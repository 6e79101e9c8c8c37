"""Table 2 of arXiv 2307.03042: how well each adapter models the language of notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clinpeft.reports.facts import (
    HELD_OUT_SPLIT,
    TRAIN_SPLIT,
    CellResult,
    MetricKey,
    compute_tokens_per_second,
    explain_missing_result,
    get_base_model_name,
    get_estimate_value,
    read_estimates,
)
from clinpeft.reports.formats import format_count, format_duration, format_percent
from clinpeft.reports.tables import (
    CellValue,
    ReportColumn,
    ReportTable,
    build_table_from_cells,
    has_cell_values,
)
from clinpeft.runs import Run

_COLUMNS = (
    ReportColumn("method", is_text=True),
    ReportColumn("trained", format_count),
    ReportColumn("share", format_percent),
    ReportColumn("train perplexity"),
    ReportColumn("test perplexity", is_estimate=True),
    ReportColumn("time", format_duration),
    ReportColumn("tokens/s", format_count),
)

# Key of a published value -> its column
_PUBLISHED_COLUMNS = {
    "trained": ReportColumn("published trained", format_count, parent_title="trained"),
    "share": ReportColumn("published share", format_percent, parent_title="share"),
    "train_perplexity": ReportColumn("published train perplexity", parent_title="train perplexity"),
    "test_perplexity": ReportColumn("published test perplexity", parent_title="test perplexity"),
    "time": ReportColumn("published time", format_duration, parent_title="time"),
}


def build_adaptation_table(
    entries: Sequence[CellResult], title: str, notes: Sequence[str] = ()
) -> ReportTable:
    """Table 2 of arXiv 2307.03042: a row per cell with trained parameters, their fraction,
    perplexities and time, beside the published values.

    The baselines are above the cells: the unigram model, where a run measured one, and each base
    model before adaptation. A cell that failed, or has not finished, says so in its row.
    """
    runs = [entry.run for entry in entries if entry.run is not None]
    # Every row is a mapping of column titles, so that columns may be absent
    rows = list(_list_baseline_rows(runs))
    for entry in entries:
        rows.append({"method": entry.name, "remark": explain_missing_result(entry)})
        if entry.run is not None:
            record = entry.run.record
            rows[-1] |= {
                **_read_perplexities(entry.run, "adapted"),
                "trained": record.trained_parameters,
                "share": record.trained_fraction,
                "time": record.training_seconds,
                "tokens/s": compute_tokens_per_second(entry.run),
            }
        for key, column in _PUBLISHED_COLUMNS.items():
            rows[-1][column.title] = entry.published.get(key)
    columns = [*_COLUMNS]
    for key, column in _PUBLISHED_COLUMNS.items():
        if any(key in entry.published for entry in entries):
            columns.append(column)
    # A grid in which every cell finished needs no column for reasons
    if has_cell_values(rows, "remark"):
        columns.append(ReportColumn("remark", is_text=True, parent_title="method"))
    return build_table_from_cells(title, columns, rows, [_describe_perplexity(runs), *notes])


def _read_perplexities(run: Run, group: str) -> dict[str, CellValue]:
    """The perplexities of one state of the model; on the training split without an interval."""
    estimates = read_estimates(run)
    train = estimates.get(MetricKey("perplexity", TRAIN_SPLIT, group))
    test = estimates.get(MetricKey("perplexity", HELD_OUT_SPLIT, group))
    return {"train perplexity": get_estimate_value(train), "test perplexity": test}


def _list_baseline_rows(runs: Sequence[Run]) -> Iterator[dict[str, CellValue]]:
    """One row for each different measurement of the unigram model, then of the bases."""
    for group in ("unigram", "base"):
        rows: dict[tuple[CellValue, ...], dict[str, CellValue]] = {}
        # Backwards, so that of equal measurements the first one remains
        for run in reversed(runs):
            row: dict[str, CellValue] = {"method": "unigram model"}
            if group == "base":
                name = get_base_model_name(run.recipe)
                # Nothing was trained; of a unigram model the number is unknown
                row = {"method": f"{name}, not adapted", "trained": 0, "share": 0.0}
            row |= _read_perplexities(run, group)
            train, test = row["train perplexity"], row["test perplexity"]
            if train is not None or test is not None:
                # Intervals of equal values may differ, since each run resamples on its own
                rows[row["method"], train, get_estimate_value(test)] = row
        yield from reversed(rows.values())


def _describe_perplexity(runs: Sequence[Run]) -> str:
    """How to read the perplexities, with the levels of their intervals."""
    rows = [row for run in runs for row in run.results.to_pylist()]
    # Runs of one grid may differ in the level of their intervals
    levels = sorted({row["level"] for row in rows if row["level"] is not None})
    percents = " and ".join(f"{100 * level:g}" for level in levels)
    interval = f"; in brackets the {percents} % interval, subjects resampled" if levels else ""
    return (
        f"Perplexity per token over all scored tokens; train is split {TRAIN_SPLIT}, test is "
        f"split {HELD_OUT_SPLIT}{interval}."
    )
