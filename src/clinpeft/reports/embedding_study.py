"""Tables 1 to 5 of the study of embeddings (arXiv 2511.19739), with intervals and with the
published values beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from clinpeft.reports.embedding import (
    SEED_SPREAD_TITLE,
    EmbeddingRowCells,
    average_record_field,
    build_embedding_rows_table,
    create_seed_spread_column,
    list_seed_notes,
)
from clinpeft.reports.encoders import (
    ADAPTED_ENCODER,
    CLINICALLY_USEFUL_SEPARATION,
    HELD_OUT_CHAPTERS_TASK,
    STUDY_TASK,
    ZERO_SHOT_ENCODER,
    EncoderGrid,
    EncoderRow,
    build_encoder_grid,
    compute_adaptation_gain,
    find_ablation,
)
from clinpeft.reports.facts import (
    SUBGROUP_SEPARATOR,
    CellResult,
    explain_missing_result,
    get_estimate_value,
)
from clinpeft.reports.formats import format_count, format_number
from clinpeft.reports.tables import ReportColumn, ReportTable, create_text_columns

_TEXT_COLUMNS = create_text_columns("model", "state")
_REMARK_COLUMN = ReportColumn("remark", is_text=True, parent_title="state")


def _format_one_decimal(value: float) -> str:
    return f"{value:,.1f}"


# Column -> (name in the profile, key of the published value, formatter)
_PROFILE_COLUMNS: Mapping[str, tuple[str, str, Callable[[float], str]]] = {
    "embeddings/s": ("embeddings_per_second", "embeddings_per_second", _format_one_decimal),
    "tokens/s": ("tokens_per_second", "", format_count),
    "latency p50, ms": ("latency_ms_p50", "latency_ms", _format_one_decimal),
    "latency p95, ms": ("latency_ms_p95", "latency_ms_p95", _format_one_decimal),
    "memory, GB": ("", "memory_gb", format_number),
    "load, s": ("load_seconds", "", _format_one_decimal),
    "parameters": ("", "parameters", format_count),
    "dimension": ("", "dimension", format_count),
}


def build_embedding_study_tables(
    entries: Sequence[CellResult], licenses: Mapping[str, str] | None = None
) -> tuple[ReportTable, ...]:
    """Tables 1 to 5 of the study from the runs of a grid: separation, efficiency, zero-shot against
    adapted, the ablation if the grid has one, licenses.

    Args:
        entries: cells with their published values (``PUBLISHED_ENCODER_KEYS``).
        licenses: name on the hub -> license, in place of ``BACKBONE_INFO_BY_NAME``.
    """
    grid = build_encoder_grid(entries)
    return (
        build_separation_table(grid),
        build_efficiency_table(grid),
        build_gains_table(grid),
        *([build_ablation_table(grid)] if find_ablation(grid) else []),
        build_licenses_table(grid, licenses or {}),
    )


def _create_published_column(
    title: str, formatter: Callable[[float], str] = format_number
) -> ReportColumn:
    """The published value of a column."""
    return ReportColumn(
        f"published {title}", formatter, parent_title=title, value_prefix="published "
    )


def _list_named_rows(grid: EncoderGrid) -> Iterator[tuple[EncoderRow, EmbeddingRowCells]]:
    """Each row with the cells that every table has."""
    for row in grid.rows:
        remarks = [explain_missing_result(entry) for entry in row.entries]
        remark = "; ".join(text for text in remarks if text)
        yield row, {"model": row.model, "state": row.state, "remark": remark}


def build_separation_table(grid: EncoderGrid) -> ReportTable:
    """Table 1: cosines of similar and different pairs, and how far they are apart."""
    # Column -> metric; the published keys are the titles of the columns
    published = {"similar": "mean_related", "different": "mean_unrelated"}
    published["separation"] = "separation"
    metrics = {**published, "Cohen's d": "cohens_d", "AUROC": "auroc"}
    columns = [*_TEXT_COLUMNS]
    for title in metrics:
        if title == "Cohen's d":
            columns.append(create_seed_spread_column("separation"))
        columns.append(ReportColumn(title, is_estimate=True))
        if title in published:
            columns.append(_create_published_column(title))
    columns.append(_REMARK_COLUMN)
    rows = []
    for row, cells in _list_named_rows(grid):
        for title, metric in metrics.items():
            cells[title] = grid.get_pair_metric(row, metric)
        for title in published:
            cells[f"published {title}"] = row.get_published_number(title)
        cells[SEED_SPREAD_TITLE.format("separation")] = grid.compute_pair_spread(row, "separation")
        rows.append(cells)
    # An unknown separation is not above the threshold
    separations = [get_estimate_value(cells["separation"]) or 0 for cells in rows]
    above = [value for value in separations if value > CLINICALLY_USEFUL_SEPARATION]
    notes = [
        f"Measured on {grid.pairs_description}; separation is the mean cosine of similar less that "
        "of different pairs, and depends on the spread of all cosines, which the AUROC does not.",
        f"Above {CLINICALLY_USEFUL_SEPARATION}, which the study calls clinically useful without "
        f"data for it: {len(above)} of {len(grid.rows)}.",
        "Published intervals were simulated from means and standard deviations; those here "
        "resample pairs or chapters.",
    ]
    if grid.task != STUDY_TASK:
        notes.append(
            "The published values are of 50 hand-written pairs, these are not: compare orders, not "
            "numbers."
        )
    title = "Table 1: separation of the adapted backbones"
    return build_embedding_rows_table(title, columns, rows, [*notes, *list_seed_notes(grid)])


def build_efficiency_table(grid: EncoderGrid) -> ReportTable:
    """Table 2: speed, latency, memory and size."""
    columns = [*_TEXT_COLUMNS]
    for title, (_, _, formatter) in _PROFILE_COLUMNS.items():
        columns += [ReportColumn(title, formatter), _create_published_column(title, formatter)]
    rows = []
    for row, cells in _list_named_rows(grid):
        # These three are derived, the others are numbers of the profile
        cells["memory, GB"] = row.memory_gb
        cells["parameters"] = row.parameters
        cells["dimension"] = row.dimension
        for title, (name, published_key, _) in _PROFILE_COLUMNS.items():
            if name:
                cells[title] = row.get_profile_number(name)
            if published_key:
                cells[f"published {title}"] = row.get_published_number(published_key)
        rows.append(cells)
    notes = [
        "Measured on one machine, by the protocol that the profile of each run states; the "
        "published numbers are of another machine, on texts of unknown length, and their memory "
        "fits float32 only.",
        "GB: 10⁹ bytes at the peak. Published latency is the mean.",
    ]
    title = "Table 2: speed and memory"
    return build_embedding_rows_table(title, [*columns, _REMARK_COLUMN], rows, notes)


def build_gains_table(grid: EncoderGrid) -> ReportTable:
    """Table 3: separation before and after adaptation."""
    columns = [*_TEXT_COLUMNS]
    for title in (ZERO_SHOT_ENCODER, ADAPTED_ENCODER, "difference"):
        columns += [ReportColumn(title, is_estimate=True), _create_published_column(title)]
    mined = "difference of AUROC, mined"
    columns += [ReportColumn(mined, is_estimate=True), _REMARK_COLUMN]
    rows = []
    for row, cells in _list_named_rows(grid):
        cells[ZERO_SHOT_ENCODER] = grid.get_pair_metric(row, "separation", ZERO_SHOT_ENCODER)
        cells[ADAPTED_ENCODER] = grid.get_pair_metric(row, "separation")
        cells["difference"] = grid.compute_gain(row)
        cells[f"published {ZERO_SHOT_ENCODER}"] = row.get_published_number("zero_shot_separation")
        cells[f"published {ADAPTED_ENCODER}"] = row.get_published_number("separation")
        # The study prints percentages; their differences are recomputed from both separations
        cells["published difference"] = row.published_gain
        cells[mined] = compute_adaptation_gain(row, "auroc", HELD_OUT_CHAPTERS_TASK, "mined")
        rows.append(cells)
    notes = [
        f"Separation on {grid.pairs_description}; the difference is adapted less zero-shot on the "
        "same pairs.",
        "No gain is given in percent: a ratio to a zero-shot separation near 0 only says how near "
        "to 0 it is.",
    ]
    return build_embedding_rows_table("Table 3: zero-shot against adapted", columns, rows, notes)


def build_ablation_table(grid: EncoderGrid) -> ReportTable:
    """Table 4: separation by fraction of the pairs, objective and rank."""
    points = find_ablation(grid)
    spread_column = create_seed_spread_column("separation")
    columns = [
        ReportColumn("pairs", "{:.0%}".format),
        ReportColumn("loss", is_text=True),
        ReportColumn("rank", format_count),
        ReportColumn("separation", is_estimate=True),
        _create_published_column("separation"),
        spread_column,
        ReportColumn("AUROC, mined", is_estimate=True),
        ReportColumn("trained", format_count),
    ]
    mined = f"{ADAPTED_ENCODER}{SUBGROUP_SEPARATOR}mined"
    # A row per point of the grid (fraction, objective, rank)
    rows: list[EmbeddingRowCells] = [
        {
            "pairs": point.pairs_fraction,
            "loss": point.objective,
            "rank": point.rank,
            "separation": grid.get_pair_metric(point.row, "separation"),
            "published separation": point.row.get_published_number("separation"),
            spread_column.title: grid.compute_pair_spread(point.row, "separation"),
            "AUROC, mined": point.row.average_metric("auroc", mined, HELD_OUT_CHAPTERS_TASK),
            "trained": average_record_field(point.row, "trained_parameters"),
        }
        for point in points
    ]
    note = (
        f"{points[0].row.model}; separation on {grid.pairs_description}. Pairs: training pairs, as "
        "a share of the most in these runs."
    )
    return build_embedding_rows_table(
        "Table 4: ablation", columns, rows, [note, *list_seed_notes(grid)]
    )


def build_licenses_table(grid: EncoderGrid, licenses: Mapping[str, str]) -> ReportTable:
    """Table 5: license and architecture of each backbone."""
    rows: dict[str, EmbeddingRowCells] = {}
    for row in grid.rows:
        cells: EmbeddingRowCells = {
            "model": row.model,
            "backbone": row.hub_name,
            "architecture": row.backbone_info.architecture,
            "licence": licenses.get(row.hub_name, row.backbone_info.license) or "unknown",
            "note": row.backbone_info.note,
        }
        # A backbone that was adapted in several ways has one license
        rows.setdefault(row.model, cells)
    columns = create_text_columns("model", "backbone", "architecture", "licence", "note")
    note = (
        "Of the weights, as given on their pages; an adapter adds the terms of the books that it "
        "was trained on."
    )
    return build_embedding_rows_table("Table 5: licences", columns, list(rows.values()), [note])
