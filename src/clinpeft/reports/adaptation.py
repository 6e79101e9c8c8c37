"""The paper's Table 2: how well each adapter learned the language of notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
from clinpeft.reports.tables import CellValue, ReportColumn, ReportTable
from clinpeft.runs import Run

_MEASUREMENT_COLUMNS = (
    ReportColumn("method", is_text=True),
    ReportColumn("trained", format_count),
    ReportColumn("share", format_percent),
    ReportColumn("train perplexity"),
    ReportColumn("test perplexity", is_estimate=True),
    ReportColumn("time", format_duration),
    ReportColumn("tokens/s", format_count),
)

_PUBLISHED_COLUMNS = {
    "trained": ReportColumn("published trained", format_count, parent_title="trained"),
    "share": ReportColumn("published share", format_percent, parent_title="share"),
    "train_perplexity": ReportColumn("published train perplexity", parent_title="train perplexity"),
    "test_perplexity": ReportColumn("published test perplexity", parent_title="test perplexity"),
    "time": ReportColumn("published time", format_duration, parent_title="time"),
}

_REMARK_COLUMN = ReportColumn("remark", is_text=True, parent_title="method")


def build_adaptation_table(
    entries: Sequence[CellResult], title: str, notes: Sequence[str] = ()
) -> ReportTable:
    """Table 2 of the paper (arXiv 2307.03042): a row a cell with trained parameters, share,
    perplexities and time, beside the published values.

    Above the cells stand what they must beat: the unigram model, where a run measured one, and each
    base model as it comes. A cell that failed, or has not ended, says so in its row.
    """
    runs = [entry.run for entry in entries if entry.run is not None]
    above = _build_baseline_rows(runs, "unigram", None, lambda _: "unigram model")
    above += _build_baseline_rows(
        runs, "base", 0, lambda run: f"{get_base_model_name(run.recipe)}, not adapted"
    )
    published = [
        key for key in _PUBLISHED_COLUMNS if any(key in entry.published for entry in entries)
    ]
    rows = [(*row, *(None for _ in published), "") for row in above]
    rows += [
        (
            *_build_measurement_row(entry),
            *(entry.published.get(key) for key in published),
            explain_missing_result(entry),
        )
        for entry in entries
    ]
    columns = (
        *_MEASUREMENT_COLUMNS,
        *(_PUBLISHED_COLUMNS[key] for key in published),
        _REMARK_COLUMN,
    )
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return ReportTable(title, columns, tuple(rows), (*_describe_perplexity(runs), *notes))


def _build_measurement_row(entry: CellResult) -> tuple[CellValue, ...]:
    if entry.run is None:
        return (entry.name, *(None for _ in _MEASUREMENT_COLUMNS[1:]))
    record, found = entry.run.record, read_estimates(entry.run)
    train, test = (
        found.get(MetricKey("perplexity", TRAIN_SPLIT, "adapted")),
        found.get(MetricKey("perplexity", HELD_OUT_SPLIT, "adapted")),
    )
    return (
        entry.name,
        record.trained_parameters,
        record.trained_fraction,
        get_estimate_value(train),
        test,
        record.training_seconds,
        compute_tokens_per_second(entry.run),
    )


def _build_baseline_rows(
    runs: Sequence[Run],
    group: str,
    trained_parameters: int | None,
    describe_run: Callable[[Run], str],
) -> list[tuple[CellValue, ...]]:
    """One row for each different measurement of a model that was not adapted."""
    rows = []
    for run in runs:
        found = read_estimates(run)
        train, test = (
            found.get(MetricKey("perplexity", TRAIN_SPLIT, group)),
            found.get(MetricKey("perplexity", HELD_OUT_SPLIT, group)),
        )
        if train or test:
            rows.append(
                (
                    describe_run(run),
                    trained_parameters,
                    None if trained_parameters is None else 0.0,
                    get_estimate_value(train),
                    test,
                    None,
                    None,
                )
            )
    shown = {
        (row[0], row[3], get_estimate_value(row[4])): row for row in reversed(rows)
    }  # the first of each; intervals of equal values differ by chance
    return list(reversed(shown.values()))


def _describe_perplexity(runs: Sequence[Run]) -> Iterator[str]:
    """How to read the perplexities, from the rows themselves."""
    levels = sorted(
        {
            row["level"]
            for run in runs
            for row in run.results.to_pylist()
            if row["level"] is not None
        }
    )
    interval = (
        (
            f"; in brackets the {' and '.join(f'{100 * level:g}' for level in levels)} % "
            "interval, subjects resampled"
        )
        if levels
        else ""
    )
    yield (
        f"Perplexity per token over all scored tokens; train is split {TRAIN_SPLIT}, test is "
        f"split {HELD_OUT_SPLIT}{interval}."
    )
