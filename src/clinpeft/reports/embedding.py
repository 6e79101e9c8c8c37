"""Tables of embeddings: how a grid of backbones separates and retrieves, and tables 1 to 5 of the
study (arXiv 2511.19739) with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clinpeft.reports.encoders import (
    ADAPTED_ENCODER,
    CLINICALLY_USEFUL_SEPARATION,
    HELD_OUT_CHAPTERS_TASK,
    LEXICAL_CONTROLS,
    RANDOM_WEIGHTS_ENCODER,
    SHUFFLED_PAIRS_ENCODER,
    STUDY_TASK,
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
from clinpeft.reports.formats import format_count, format_duration, format_number, format_percent
from clinpeft.reports.tables import (
    CellValue,
    Estimate,
    ReportColumn,
    ReportTable,
    average_estimates,
)

EmbeddingRowCells = dict[str, CellValue]

DIFFERENCE_TITLE, SEED_SPREAD_TITLE = "{}, adapted less zero-shot", "{}, SD and range over seeds"


@dataclass(frozen=True)
class _MetricColumn:
    """A column: which metric of which task, against which unrelated pairs (empty where there are
    none)."""

    title: str
    metric: str
    task: str
    stratum: str = ""

    def format_group(self, state: str) -> str:
        return f"{state}{SUBGROUP_SEPARATOR}{self.stratum}" if self.stratum else state


def build_embedding_table(
    entries: Sequence[CellResult], title: str, notes: Sequence[str] = ()
) -> ReportTable:
    """A grid in one table: a row a backbone and a state of it, a column a measure on what was held
    out.

    Cells whose names differ only in their seed are one row: the mean is shown, with the mean of
    their intervals, which is sampling error; what the seeds change stands beside. An adapted row
    has the paired difference to its zero-shot row, and never a ratio: a zero-shot separation near 0
    makes any gain look large. Controls stand above: words alone (BM25, TF-IDF), the same backbone
    with random weights, and shuffled pairs, which have to be at chance. A row that is worse than
    zero-shot, or cannot be told from it, says so, as does a cell that failed or has not ended.
    """
    made = build_encoder_grid(entries)
    measures = _list_metric_columns(made)
    rows = list(_build_rows(made, measures))
    notes = [
        *(note for measure in measures if (note := _describe_metric(made, measure))),
        *_list_seed_notes(made),
        *notes,
    ]
    return _build_table(title, list(_list_columns(measures)), rows, notes)


def build_embedding_study_tables(
    entries: Sequence[CellResult], licenses: Mapping[str, str] | None = None
) -> tuple[ReportTable, ...]:
    """Tables 1 to 5 of the study from the runs of a grid, the published values beside: separation,
    efficiency, zero-shot against adapted, the ablation where the grid has one, licences.

    Args:
        entries: cells with what was published for them (``encoders.PUBLISHED``).
        licenses: name on the hub -> licence, in place of ``encoders.KNOWN``.
    """
    made = build_encoder_grid(entries)
    tables = [
        _build_separation_table(made),
        _build_efficiency_table(made),
        _build_gains_table(made),
    ]
    return (
        *tables,
        *([_build_ablation_table(made)] if find_ablation(made) else []),
        _build_licenses_table(made, licenses or {}),
    )


@dataclass(frozen=True)
class AblationPoint:
    """A row of an ablation.

    Attributes:
        pairs_fraction: of the pairs that any row on this backbone learned from; None where the runs
            do not say.
        objective: of training.
        rank: of the low-rank update; None for other adapters.
        row: its numbers.
    """

    pairs_fraction: float | None
    objective: str
    rank: int | None
    row: EncoderRow


def find_ablation(grid: EncoderGrid) -> tuple[AblationPoint, ...]:
    """Rows on one backbone that differ in the share of pairs, the objective or the rank; empty
    where none do. The first such backbone counts."""
    for model in dict.fromkeys(row.model for row in grid.rows):
        points = _build_ablation_points([row for row in grid.rows if row.model == model])
        if len({(point.pairs_fraction, point.objective, point.rank) for point in points}) > 1:
            return tuple(
                sorted(
                    points,
                    key=lambda point: (point.pairs_fraction or 0, point.objective, point.rank or 0),
                )
            )
    return ()


def _build_ablation_points(rows: Sequence[EncoderRow]) -> list[AblationPoint]:
    learned = {
        id(row): max((run.record.counts.get("pairs.train", 0) for run in row.runs), default=0)
        for row in rows
    }
    most = max(learned.values(), default=0)
    points = []
    for row in rows:
        recipe = row.recipe
        if recipe is not None and recipe.adapters:
            rank = next(
                (known for spec in recipe.adapters if (known := getattr(spec, "rank", None))), None
            )
            part = round(learned[id(row)] / most, 2) if most and learned[id(row)] else None
            points.append(AblationPoint(part, recipe.training.objective, rank, row))
    return points


# The main table.


def _list_metric_columns(grid: EncoderGrid) -> list[_MetricColumn]:
    """Pairs in the two hardest strata, separation, and every search, in the order of the
    results."""
    pairs = [
        _MetricColumn(f"AUROC, {stratum}", "auroc", HELD_OUT_CHAPTERS_TASK, stratum)
        for stratum in ("mined", "same chapter")
    ]
    pairs.append(_MetricColumn("separation", "separation", grid.task, grid.stratum))
    searched = dict.fromkeys(
        task
        for row in grid.rows
        for found in row.run_estimates
        for name, _, task in found
        if name == "ndcg_at_10"
    )
    return [*pairs, *(_MetricColumn(f"nDCG@10, {task}", "ndcg_at_10", task) for task in searched)]


def _list_columns(metrics: Sequence[_MetricColumn]) -> Iterator[ReportColumn]:
    yield from (ReportColumn("model", is_text=True), ReportColumn("state", is_text=True))
    for measure in metrics:
        yield ReportColumn(measure.title, is_estimate=True)
        yield ReportColumn(
            DIFFERENCE_TITLE.format(measure.title),
            parent_title=measure.title,
            value_prefix="difference ",
            is_estimate=True,
        )
        yield ReportColumn(
            SEED_SPREAD_TITLE.format(measure.title),
            parent_title=measure.title,
            value_prefix="seeds SD ",
            is_estimate=True,
        )
        if measure.metric == "separation":
            yield ReportColumn(
                "published separation", parent_title=measure.title, value_prefix="published "
            )
    yield from (
        ReportColumn("trained", format_count),
        ReportColumn("share", format_percent),
        ReportColumn("time", format_duration),
    )
    yield ReportColumn("remark", is_text=True, parent_title="state")


def _build_rows(grid: EncoderGrid, metrics: Sequence[_MetricColumn]) -> Iterator[EmbeddingRowCells]:
    yield from (
        _build_control_row("words alone", state, grid.rows, metrics) for state in LEXICAL_CONTROLS
    )
    for model in dict.fromkeys(row.model for row in grid.rows):
        rows = [row for row in grid.rows if row.model == model]
        yield from (
            _build_control_row(model, state, rows, metrics)
            for state in (RANDOM_WEIGHTS_ENCODER, SHUFFLED_PAIRS_ENCODER)
        )
        published = {
            "published separation": next(
                (
                    known
                    for row in rows
                    if (known := row.get_published_number("zero_shot_separation")) is not None
                ),
                None,
            )
        }
        yield _build_control_row(model, ZERO_SHOT_ENCODER, rows, metrics) | published
        yield from (_build_adapted_row(row, metrics) for row in rows)


def _build_control_row(
    model: str, state: str, rows: Sequence[EncoderRow], metrics: Sequence[_MetricColumn]
) -> EmbeddingRowCells:
    """What is the same in every run that measured it: of each number the first that there is."""
    found: EmbeddingRowCells = {"model": model, "state": state}
    for measure in metrics:
        numbers = (
            row.average_metric(measure.metric, measure.format_group(state), measure.task)
            for row in rows
        )
        found[measure.title] = next((known for known in numbers if known), None)
    return found


def _build_adapted_row(row: EncoderRow, metrics: Sequence[_MetricColumn]) -> EmbeddingRowCells:
    found: EmbeddingRowCells = {
        "model": row.model,
        "state": row.state,
        "remark": "; ".join(_list_remarks(row, metrics)),
    }
    for measure in metrics:
        name = (measure.metric, measure.format_group(ADAPTED_ENCODER), measure.task)
        found[measure.title], found[SEED_SPREAD_TITLE.format(measure.title)] = (
            row.average_metric(*name),
            row.compute_metric_spread(*name),
        )
        found[DIFFERENCE_TITLE.format(measure.title)] = compute_adaptation_gain(
            row, measure.metric, measure.task, measure.stratum
        )
    found["published separation"] = row.get_published_number("separation")
    found |= {
        "trained": _average_record_field(row, "trained_parameters"),
        "share": _average_record_field(row, "trained_fraction"),
        "time": _average_record_field(row, "training_seconds"),
    }
    return found


def _average_record_field(row: EncoderRow, field_name: str) -> float | None:
    """A number of the record, the mean over seeds."""
    known = [
        Estimate(float(found))
        for run in row.runs
        if (found := getattr(run.record, field_name)) is not None
    ]
    return get_estimate_value(average_estimates(known))


def _list_remarks(row: EncoderRow, metrics: Sequence[_MetricColumn]) -> Iterator[str]:
    """What did not end well, and where adapting did harm or nothing that could be seen."""
    yield from dict.fromkeys(
        text for entry in row.entries if (text := explain_missing_result(entry))
    )
    gains = {
        measure.title: compute_adaptation_gain(row, measure.metric, measure.task, measure.stratum)
        for measure in metrics
    }
    ends = {title: (known.low, known.high) for title, known in gains.items() if known}
    worse = [title for title, (_, high) in ends.items() if high is not None and high < 0]
    unclear = [
        title
        for title, (low, high) in ends.items()
        if low is not None and high is not None and low <= 0 <= high
    ]
    if worse:
        yield f"worse than zero-shot: {', '.join(worse)}"
    if unclear:
        yield f"not told from zero-shot: {', '.join(unclear)}"


def _describe_metric(grid: EncoderGrid, column: _MetricColumn) -> str:
    """``nDCG@10, other books: n = 812: <its definition>``, from the results themselves."""
    for row in (
        row for encoder in grid.rows for run in encoder.runs for row in run.results.to_pylist()
    ):
        if (row["name"], row["task"]) == (column.metric, column.task) and row["group"] in (
            column.format_group(ADAPTED_ENCODER),
            column.format_group(ZERO_SHOT_ENCODER),
        ):
            level = f", {100 * row['level']:g} % interval in brackets" if row["level"] else ""
            where = f" ({grid.pairs_description})" if column.metric == "separation" else ""
            return (
                f"{column.title}{where}: n = {format_count(row['n'])}{level}; "
                f"{row['definition'].rstrip('.')}."
            )
    return ""


def _list_seed_notes(grid: EncoderGrid) -> Iterator[str]:
    seeds = max((len(row.runs) for row in grid.rows), default=0)
    if seeds > 1:
        interval = (
            "the interval is the mean of theirs (sampling error alone), and what the seeds "
            "change stands beside: standard deviation, range"
        )
        yield f"A value is the mean over up to {seeds} seeds: {interval}."


def _build_table(
    title: str,
    columns: Sequence[ReportColumn],
    rows: Sequence[EmbeddingRowCells],
    notes: Sequence[str],
) -> ReportTable:
    """Without columns and rows that hold nothing."""
    held = [
        row
        for row in rows
        if _is_adapted(row)
        or any(known is not None for name, known in row.items() if name not in ("model", "state"))
    ]
    shown = [
        column for column in columns if any(row.get(column.title) not in (None, "") for row in held)
    ]
    texts = tuple(
        tuple(row.get(column.title, "" if column.is_text else None) for column in shown)
        for row in held
    )
    return ReportTable(title, tuple(shown), texts, tuple(dict.fromkeys(notes)))


def _is_adapted(row: EmbeddingRowCells) -> bool:
    return "remark" in row


# The tables of the study.


def _build_published_column(
    title: str, formatter: Callable[[float], str] = format_number
) -> ReportColumn:
    """The published value of a column."""
    return ReportColumn(
        f"published {title}", formatter, parent_title=title, value_prefix="published "
    )


def _list_named_rows(grid: EncoderGrid) -> list[tuple[EncoderRow, EmbeddingRowCells]]:
    return [
        (
            row,
            {
                "model": row.model,
                "state": row.state,
                "remark": "; ".join(filter(None, map(explain_missing_result, row.entries))),
            },
        )
        for row in grid.rows
    ]


_TEXT_COLUMNS = (ReportColumn("model", is_text=True), ReportColumn("state", is_text=True))
_REMARK_COLUMN = ReportColumn("remark", is_text=True, parent_title="state")


def _build_separation_table(grid: EncoderGrid) -> ReportTable:
    """Table 1."""
    words = {"similar": "mean_related", "different": "mean_unrelated", "separation": "separation"}
    more = {"Cohen's d": "cohens_d", "AUROC": "auroc"}
    columns = [*_TEXT_COLUMNS]
    for title in words:
        columns += [ReportColumn(title, is_estimate=True), _build_published_column(title)]
    columns += [
        ReportColumn(
            SEED_SPREAD_TITLE.format("separation"),
            parent_title="separation",
            value_prefix="seeds SD ",
            is_estimate=True,
        )
    ]
    columns += [*(ReportColumn(title, is_estimate=True) for title in more), _REMARK_COLUMN]
    rows = []
    for row, cells in _list_named_rows(grid):
        cells |= {
            title: grid.get_pair_metric(row, metric) for title, metric in {**words, **more}.items()
        }
        cells |= {f"published {title}": row.get_published_number(title) for title in words}
        cells[SEED_SPREAD_TITLE.format("separation")] = row.compute_metric_spread(
            "separation", f"{ADAPTED_ENCODER}{SUBGROUP_SEPARATOR}{grid.stratum}", grid.task
        )
        rows.append(cells)
    above = [
        row.model
        for row in grid.rows
        if (get_estimate_value(grid.get_pair_metric(row, "separation")) or 0)
        > CLINICALLY_USEFUL_SEPARATION
    ]
    notes = [
        f"Measured on {grid.pairs_description}; separation is the mean cosine of similar "
        "less that of different pairs, and depends on the spread of all cosines, "
        "which the AUROC does not.",
        (
            f"Above {CLINICALLY_USEFUL_SEPARATION}, which the study calls clinically useful "
            f"without data for it: {len(above)} of {len(grid.rows)}."
        ),
        (
            "Published intervals were simulated from means and standard deviations; those here "
            "resample pairs or chapters."
        ),
    ]
    if grid.task != STUDY_TASK:
        notes.append(
            "The published values stand on 50 pairs by hand, and these do not: compare "
            "orders, not numbers."
        )
    return _build_table(
        "Table 1: separation of the adapted backbones",
        columns,
        rows,
        [*notes, *_list_seed_notes(grid)],
    )


_PROFILE_KEYS = {
    "embeddings/s": ("embeddings_per_second", "embeddings_per_second"),
    "tokens/s": ("tokens_per_second", ""),
    "latency p50, ms": ("latency_ms_p50", "latency_ms"),
    "latency p95, ms": ("latency_ms_p95", "latency_ms_p95"),
    "memory, GB": ("", "memory_gb"),
    "load, s": ("load_seconds", ""),
    "parameters": ("", "parameters"),
    "dimension": ("", "dimension"),
}
"""Column -> name in the profile, key of what was published."""


def _format_one_decimal(value: float) -> str:
    return f"{value:,.1f}"


_PROFILE_FORMATTERS = {
    "tokens/s": format_count,
    "parameters": format_count,
    "dimension": format_count,
    "embeddings/s": _format_one_decimal,
    "load, s": _format_one_decimal,
    "memory, GB": format_number,
}


def _build_efficiency_table(grid: EncoderGrid) -> ReportTable:
    """Table 2."""
    columns = [*_TEXT_COLUMNS]
    for title in _PROFILE_KEYS:
        show = _PROFILE_FORMATTERS.get(title, _format_one_decimal)
        columns += [ReportColumn(title, show), _build_published_column(title, show)]
    rows = []
    for row, cells in _list_named_rows(grid):
        cells |= {
            title: row.get_profile_number(name)
            for title, (name, _) in _PROFILE_KEYS.items()
            if name
        }
        cells |= {
            "memory, GB": row.memory_gb,
            "parameters": row.parameters,
            "dimension": row.dimension,
        }
        cells |= {
            f"published {title}": row.get_published_number(key)
            for title, (_, key) in _PROFILE_KEYS.items()
            if key
        }
        rows.append(cells)
    notes = [
        "Measured on one machine, by the protocol that the profile of each run states; the "
        "published numbers are of another machine, on texts of "
        "unknown length, and their memory fits float32 only.",
        "GB: 10⁹ bytes at the peak. Published latency is the mean.",
    ]
    return _build_table("Table 2: speed and memory", [*columns, _REMARK_COLUMN], rows, notes)


def _build_gains_table(grid: EncoderGrid) -> ReportTable:
    """Table 3."""
    columns = [*_TEXT_COLUMNS]
    for title in (ZERO_SHOT_ENCODER, ADAPTED_ENCODER, "difference"):
        columns += [ReportColumn(title, is_estimate=True), _build_published_column(title)]
    mined = "difference of AUROC, mined"
    columns += [ReportColumn(mined, is_estimate=True), _REMARK_COLUMN]
    rows = []
    for row, cells in _list_named_rows(grid):
        before, after = (
            row.get_published_number("zero_shot_separation"),
            row.get_published_number("separation"),
        )
        cells |= {
            ZERO_SHOT_ENCODER: grid.get_pair_metric(row, "separation", ZERO_SHOT_ENCODER),
            ADAPTED_ENCODER: grid.get_pair_metric(row, "separation"),
            "difference": grid.compute_gain(row),
        }
        cells |= {f"published {ZERO_SHOT_ENCODER}": before, f"published {ADAPTED_ENCODER}": after}
        cells |= {
            "published difference": None if before is None or after is None else after - before
        }
        cells |= {mined: compute_adaptation_gain(row, "auroc", HELD_OUT_CHAPTERS_TASK, "mined")}
        rows.append(cells)
    notes = [
        (
            f"Separation on {grid.pairs_description}; the difference is adapted less zero-shot "
            "on the same pairs."
        ),
        (
            "No gain is given in percent: where a zero-shot separation is near 0, a ratio to "
            "it says how near."
        ),
    ]
    return _build_table("Table 3: zero-shot against adapted", columns, rows, notes)


def _build_ablation_table(grid: EncoderGrid) -> ReportTable:
    """Table 4."""
    points = find_ablation(grid)
    columns = [
        ReportColumn("pairs", lambda part: f"{part:.0%}"),
        ReportColumn("loss", is_text=True),
        ReportColumn("rank", format_count),
    ]
    columns += [ReportColumn("separation", is_estimate=True), _build_published_column("separation")]
    columns += [
        ReportColumn(
            SEED_SPREAD_TITLE.format("separation"),
            parent_title="separation",
            value_prefix="seeds SD ",
            is_estimate=True,
        )
    ]
    columns += [
        ReportColumn("AUROC, mined", is_estimate=True),
        ReportColumn("trained", format_count),
    ]
    rows: list[EmbeddingRowCells] = [
        {
            "pairs": point.pairs_fraction,
            "loss": point.objective,
            "rank": point.rank,
            "separation": grid.get_pair_metric(point.row, "separation"),
            "published separation": point.row.get_published_number("separation"),
            SEED_SPREAD_TITLE.format("separation"): point.row.compute_metric_spread(
                "separation", f"{ADAPTED_ENCODER}{SUBGROUP_SEPARATOR}{grid.stratum}", grid.task
            ),
            "AUROC, mined": point.row.average_metric(
                "auroc", f"{ADAPTED_ENCODER}{SUBGROUP_SEPARATOR}mined", HELD_OUT_CHAPTERS_TASK
            ),
            "trained": _average_record_field(point.row, "trained_parameters"),
        }
        for point in points
    ]
    said = (
        f"{points[0].row.model}; separation on {grid.pairs_description}. Pairs: of those that "
        "any of these runs learned from."
    )
    return _build_table("Table 4: ablation", columns, rows, [said, *_list_seed_notes(grid)])


def _build_licenses_table(grid: EncoderGrid, licenses: Mapping[str, str]) -> ReportTable:
    """Table 5."""
    columns = [
        ReportColumn(title, is_text=True)
        for title in ("model", "backbone", "architecture", "licence", "note")
    ]
    rows: dict[str, EmbeddingRowCells] = {}
    for row in grid.rows:
        licence = licenses.get(row.hub_name, row.backbone_info.license) or "unknown"
        known = {
            "backbone": row.hub_name,
            "architecture": row.backbone_info.architecture,
            "licence": licence,
            "note": row.backbone_info.note,
        }
        rows.setdefault(row.model, {"model": row.model, **known})
    notes = [
        (
            "Of the weights, as their pages give it; an adapter adds the terms of the books "
            "that it learned from."
        )
    ]
    return _build_table("Table 5: licences", columns, list(rows.values()), notes)
