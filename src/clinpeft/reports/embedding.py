"""The main table of embeddings: how each backbone of a grid separates pairs and retrieves passages,
in each of its states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clinpeft.reports.classification import describe_seed_average
from clinpeft.reports.encoders import (
    ADAPTED_ENCODER,
    HELD_OUT_CHAPTERS_TASK,
    LEXICAL_CONTROLS,
    RANDOM_WEIGHTS_ENCODER,
    SHUFFLED_PAIRS_ENCODER,
    ZERO_SHOT_ENCODER,
    EncoderGrid,
    EncoderRow,
    build_encoder_grid,
    compute_adaptation_gain,
)
from clinpeft.reports.facts import (
    SUBGROUP_SEPARATOR,
    CellResult,
    explain_missing_result,
    get_estimate_value,
)
from clinpeft.reports.formats import format_count, format_duration, format_percent
from clinpeft.reports.tables import (
    CellValue,
    Estimate,
    ReportColumn,
    ReportTable,
    average_estimates,
    build_table_from_cells,
    create_text_columns,
    has_cell_values,
)

EmbeddingRowCells = dict[str, CellValue]

DIFFERENCE_TITLE, SEED_SPREAD_TITLE = "{}, adapted less zero-shot", "{}, SD and range over seeds"


@dataclass(frozen=True)
class MetricColumn:
    """A column of the main table.

    Attributes:
        title: its heading.
        metric: name of the metric.
        task: of the metric.
        stratum: of the unrelated pairs; empty for a metric without.
    """

    title: str
    metric: str
    task: str
    stratum: str = ""

    def format_group(self, state: str) -> str:
        """The group of a state in the results."""
        return f"{state}{SUBGROUP_SEPARATOR}{self.stratum}" if self.stratum else state

    def average(self, row: EncoderRow, state: str) -> Estimate | None:
        """The metric of one state of a row, averaged over seeds."""
        return row.average_metric(self.metric, self.format_group(state), self.task)

    def compute_gain(self, row: EncoderRow) -> Estimate | None:
        """Adapted less zero-shot."""
        return compute_adaptation_gain(row, self.metric, self.task, self.stratum)


def build_embedding_table(
    entries: Sequence[CellResult], title: str, notes: Sequence[str] = ()
) -> ReportTable:
    """A grid in one table: a row per backbone and state, a column per metric on held-out data.

    Cells whose names differ only in their seed are one row: the mean is shown, with the mean of
    their intervals, which is sampling error; the spread over seeds is a value of its own. An
    adapted row has the paired difference to its zero-shot row, and never a ratio: a zero-shot
    separation near 0 makes any gain look large. The controls are above: words alone (BM25,
    TF-IDF), the same backbone with random weights, and shuffled pairs, which must be at chance. A
    row that is worse than zero-shot, or cannot be told from it, says so, as does a cell that failed
    or has not finished.
    """
    grid = build_encoder_grid(entries)
    metrics = _list_metrics(grid)
    table_notes = [note for metric in metrics if (note := _describe_metric(grid, metric))]
    table_notes += [*list_seed_notes(grid), *notes]
    return build_embedding_rows_table(
        title, list(_list_columns(metrics)), list(_list_rows(grid, metrics)), table_notes
    )


def build_embedding_rows_table(
    title: str,
    columns: Sequence[ReportColumn],
    rows: Sequence[EmbeddingRowCells],
    notes: Sequence[str],
) -> ReportTable:
    """A table without empty columns, and without controls that no run measured."""
    filled = [
        row
        for row in rows
        # Only rows of cells have a remark: they stay when they have no numbers
        if "remark" in row
        or any(value is not None for name, value in row.items() if name not in ("model", "state"))
    ]
    columns = [column for column in columns if has_cell_values(filled, column.title)]
    return build_table_from_cells(title, columns, filled, notes)


def create_seed_spread_column(title: str) -> ReportColumn:
    """The column with the spread over seeds, which belongs to the column of a title."""
    return ReportColumn(
        SEED_SPREAD_TITLE.format(title),
        parent_title=title,
        value_prefix="seeds SD ",
        is_estimate=True,
    )


def average_record_field(row: EncoderRow, field_name: str) -> float | None:
    """A number of the run record, averaged over seeds; None if no run has it."""
    values = (getattr(run.record, field_name) for run in row.runs)
    # Counts may be integers, and their mean is not
    estimates = [Estimate(float(value)) for value in values if value is not None]
    return get_estimate_value(average_estimates(estimates))


def list_seed_notes(grid: EncoderGrid) -> list[str]:
    """The note about means over seeds, where a row has several."""
    seeds = max((len(row.runs) for row in grid.rows), default=0)
    return [describe_seed_average(seeds)] if seeds > 1 else []


def _list_metrics(grid: EncoderGrid) -> list[MetricColumn]:
    """AUROC in the two hardest strata, separation, and every retrieval set, in the order of the
    results."""
    metrics = [
        MetricColumn(f"AUROC, {stratum}", "auroc", HELD_OUT_CHAPTERS_TASK, stratum)
        for stratum in ("mined", "same chapter")
    ]
    metrics.append(MetricColumn("separation", "separation", grid.task, grid.stratum))
    keys = (key for row in grid.rows for numbers in row.run_estimates for key in numbers)
    # Recipes name their retrieval sets, so these are not known in advance
    retrieval_sets = dict.fromkeys(task for name, _, task in keys if name == "ndcg_at_10")
    metrics += [MetricColumn(f"nDCG@10, {task}", "ndcg_at_10", task) for task in retrieval_sets]
    return metrics


def _list_columns(metrics: Sequence[MetricColumn]) -> Iterator[ReportColumn]:
    yield from create_text_columns("model", "state")
    for metric in metrics:
        yield ReportColumn(metric.title, is_estimate=True)
        yield ReportColumn(
            DIFFERENCE_TITLE.format(metric.title),
            parent_title=metric.title,
            value_prefix="difference ",
            is_estimate=True,
        )
        yield create_seed_spread_column(metric.title)
        if metric.metric == "separation":
            yield ReportColumn(
                "published separation", parent_title=metric.title, value_prefix="published "
            )
    yield ReportColumn("trained", format_count)
    yield ReportColumn("share", format_percent)
    yield ReportColumn("time", format_duration)
    yield ReportColumn("remark", is_text=True, parent_title="state")


def _list_rows(grid: EncoderGrid, metrics: Sequence[MetricColumn]) -> Iterator[EmbeddingRowCells]:
    """Lexical controls; then for each backbone its controls, zero-shot, and its cells."""
    # BM25 and TF-IDF have no backbone: one row each for the whole grid
    for state in LEXICAL_CONTROLS:
        yield _build_control_row("words alone", state, grid.rows, metrics)
    for model in dict.fromkeys(row.model for row in grid.rows):
        rows = [row for row in grid.rows if row.model == model]
        # Shuffled pairs must be at chance, or the evaluation leaks labels
        for state in (RANDOM_WEIGHTS_ENCODER, SHUFFLED_PAIRS_ENCODER):
            yield _build_control_row(model, state, rows, metrics)
        zero_shot = _build_control_row(model, ZERO_SHOT_ENCODER, rows, metrics)
        published = (row.get_published_number("zero_shot_separation") for row in rows)
        zero_shot["published separation"] = next((n for n in published if n is not None), None)
        yield zero_shot
        yield from (_build_adapted_row(row, metrics) for row in rows)


def _build_control_row(
    model: str, state: str, rows: Sequence[EncoderRow], metrics: Sequence[MetricColumn]
) -> EmbeddingRowCells:
    """A state that is the same in every run that measured it: the first value of each metric."""
    cells: EmbeddingRowCells = {"model": model, "state": state}
    for metric in metrics:
        # Every run of a backbone measures the same control; the first value is that of all
        estimates = (metric.average(row, state) for row in rows)
        cells[metric.title] = next((estimate for estimate in estimates if estimate), None)
    return cells


def _build_adapted_row(row: EncoderRow, metrics: Sequence[MetricColumn]) -> EmbeddingRowCells:
    """An adapted backbone: metrics, gains, spread over seeds, cost, and remarks on failures and on
    gains that are negative or not distinguishable from 0."""
    cells: EmbeddingRowCells = {
        "model": row.model,
        "state": row.state,
        "published separation": row.get_published_number("separation"),
        "trained": average_record_field(row, "trained_parameters"),
        "share": average_record_field(row, "trained_fraction"),
        "time": average_record_field(row, "training_seconds"),
    }
    worse, unclear = [], []
    for metric in metrics:
        gain = metric.compute_gain(row)
        cells[metric.title] = metric.average(row, ADAPTED_ENCODER)
        cells[SEED_SPREAD_TITLE.format(metric.title)] = row.compute_metric_spread(
            metric.metric, metric.format_group(ADAPTED_ENCODER), metric.task
        )
        cells[DIFFERENCE_TITLE.format(metric.title)] = gain
        # Decided by the interval of the paired difference; without an interval nothing is said
        if gain is not None and gain.high is not None and gain.high < 0:
            worse.append(metric.title)
        elif gain is not None and gain.low is not None and gain.high is not None and gain.low <= 0:
            unclear.append(metric.title)
    remarks = list(
        dict.fromkeys(text for entry in row.entries if (text := explain_missing_result(entry)))
    )
    if worse:
        remarks.append(f"worse than zero-shot: {', '.join(worse)}")
    if unclear:
        remarks.append(f"not distinguishable from zero-shot: {', '.join(unclear)}")
    cells["remark"] = "; ".join(remarks)
    return cells


def _describe_metric(grid: EncoderGrid, column: MetricColumn) -> str:
    """``nDCG@10, other books: n = 812: <its definition>``, from the first run that measured it."""
    groups = [column.format_group(state) for state in (ADAPTED_ENCODER, ZERO_SHOT_ENCODER)]
    runs = (run for encoder in grid.rows for run in encoder.runs)
    for row in (row for run in runs for row in run.results.to_pylist()):
        # The definition comes from the results, where the metric was computed
        key = (row["name"], row["task"])
        if key == (column.metric, column.task) and row["group"] in groups:
            level = f", {100 * row['level']:g} % interval in brackets" if row["level"] else ""
            pairs = f" ({grid.pairs_description})" if column.metric == "separation" else ""
            return (
                f"{column.title}{pairs}: n = {format_count(row['n'])}{level}; "
                f"{row['definition'].rstrip('.')}."
            )
    return ""
