"""The figures about what was gained: 1, 5 to 9 and 13 of the study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from clinpeft import runs
from clinpeft.core.errors import InputError
from clinpeft.reports.embedding import AblationPoint, find_ablation
from clinpeft.reports.encoders import (
    ADAPTED_ENCODER,
    CLINICALLY_USEFUL_SEPARATION,
    HELD_OUT_CHAPTERS_TASK,
    STUDY_TASK,
    ZERO_SHOT_ENCODER,
    EncoderGrid,
    EncoderRow,
)
from clinpeft.reports.figures.style import (
    ADAPTED_STYLE,
    ARCHITECTURE_STYLES,
    BLACK,
    BLUE,
    ERROR_BAR_STYLE,
    GRAY,
    GREEN,
    ORANGE,
    PUBLISHED_LABEL,
    PUBLISHED_MARKER,
    PUBLISHED_OFFSET,
    SKY_BLUE,
    VERMILION,
    ZERO_SHOT_STYLE,
    add_legend,
    check_plot_data,
    compute_bars_height,
    compute_error_bars,
    create_figure,
    get_plot_style,
    set_y_names,
    to_plot_values,
)
from clinpeft.reports.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEPARATION_LABEL = "separation (difference of mean cosines)"
BAR_HEIGHT = 0.36  # of one of two bars of a backbone, in units of the axis


def draw_separation_ranking(grid: EncoderGrid) -> Figure:
    """Separation of each adapted backbone, best first, with the study's threshold."""
    known = _sort_by_estimate(
        [(row, found) for row in grid.rows if (found := grid.get_pair_metric(row, "separation"))]
    )
    check_plot_data(known, "a separation")
    figure, (axes,) = create_figure(compute_bars_height(len(known)))
    places = set_y_names(axes, [grid.format_row_name(row) for row, _ in known])
    for location, (row, found) in zip(places, known, strict=True):
        style = get_plot_style(row)
        axes.barh(
            location,
            to_plot_values([found]),
            0.62,
            color=style.color,
            hatch=style.hatch,
            edgecolor="white",
            label=style.name,
        )
    _draw_intervals(axes, [found for _, found in known], places)
    _draw_published(
        axes,
        [row.get_published_number("separation") for row, _ in known],
        [location + PUBLISHED_OFFSET for location in places],
    )
    axes.axvline(
        CLINICALLY_USEFUL_SEPARATION,
        color=BLACK,
        linestyle="--",
        linewidth=1,
        label=f"the study's threshold, {CLINICALLY_USEFUL_SEPARATION}",
    )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_xlabel(SEPARATION_LABEL)
    add_legend(figure, axes)
    return figure


def draw_separation_before_after(grid: EncoderGrid) -> Figure:
    """Zero-shot and adapted separation side by side."""
    known = _list_before_and_after(grid)
    figure, (axes,) = create_figure(compute_bars_height(len(known)) + 0.08 * len(known))
    places = set_y_names(axes, [grid.format_row_name(row) for row, _, _ in known])
    befores, afters = [before for _, before, _ in known], [after for _, _, after in known]
    sides = (
        (ZERO_SHOT_STYLE, befores, -BAR_HEIGHT / 2, "zero_shot_separation"),
        (ADAPTED_STYLE, afters, BAR_HEIGHT / 2, "separation"),
    )
    for style, found, shift, key in sides:
        where = [location + shift for location in places]
        edge = BLACK if style is ZERO_SHOT_STYLE else "white"
        axes.barh(
            where,
            to_plot_values(found),
            BAR_HEIGHT,
            color=style.color,
            hatch=style.hatch,
            edgecolor=edge,
            linewidth=0.5,
            label=style.name,
        )
        _draw_intervals(axes, found, where)
        _draw_published(
            axes,
            [row.get_published_number(key) for row, _, _ in known],
            [location + 1.7 * shift for location in places],
        )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_xlabel(SEPARATION_LABEL)
    add_legend(figure, axes)
    return figure


def draw_separation_waterfall(grid: EncoderGrid) -> Figure:
    """A waterfall: from the zero-shot separation, by what adapting added, to the adapted one."""
    known = _list_before_and_after(grid)
    figure, (axes,) = create_figure(compute_bars_height(len(known)))
    places = set_y_names(axes, [grid.format_row_name(row) for row, _, _ in known])
    for location, (row, before, after) in zip(places, known, strict=True):
        first, last = to_plot_values([before, after])
        grew = last >= first
        colour, hatch, name = (GREEN, "", "gained") if grew else (VERMILION, "xxx", "lost")
        axes.barh(
            location,
            first,
            0.62,
            color=ZERO_SHOT_STYLE.color,
            edgecolor=BLACK,
            linewidth=0.5,
            label="zero-shot",
        )
        axes.barh(
            location,
            last - first,
            0.62,
            left=first,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=name,
        )
        change = grid.compute_gain(row) or Estimate(last - first)
        end = max(first, last, 0.0 if after.high is None else after.high)
        axes.annotate(
            _format_signed(change),
            (end, location),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    _draw_intervals(axes, [after for _, _, after in known], places)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.12 * (high - low))  # room for the differences
    axes.set_xlabel(f"{SEPARATION_LABEL}; beside the bar: difference")
    add_legend(figure, axes)
    return figure


def draw_separation_gains(grid: EncoderGrid) -> Figure:
    """Gains in order, as differences with intervals and not in percent of something near 0, with
    their median."""
    known = _sort_by_estimate(
        [(row, found) for row in grid.rows if (found := grid.compute_gain(row))]
    )
    check_plot_data(known, "a separation before and after")
    figure, (axes,) = create_figure(compute_bars_height(len(known)))
    places = set_y_names(axes, [grid.format_row_name(row) for row, _ in known])
    for location, (row, found) in zip(places, known, strict=True):
        style = get_plot_style(row)
        error = compute_error_bars([found])
        axes.errorbar(
            to_plot_values([found]),
            [location],
            xerr=error,
            marker=style.marker,
            color=style.color,
            label=style.name,
            **{**ERROR_BAR_STYLE, "ecolor": style.color},
        )
    _draw_published(
        axes,
        [_compute_published_difference(row) for row, _ in known],
        [location + PUBLISHED_OFFSET for location in places],
    )
    middle = statistics.median(to_plot_values([found for _, found in known]))
    axes.axvline(
        middle,
        color=BLACK,
        linestyle=":",
        linewidth=1,
        label=f"median, {_format_signed(Estimate(middle))}",
    )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_xlabel("separation, adapted less zero-shot")
    add_legend(figure, axes)
    return figure


def draw_separation_arrows(grid: EncoderGrid) -> Figure:
    """An arrow from before to after for each backbone, and the medians of both."""
    known = _list_before_and_after(grid)
    figure, (axes,) = create_figure(compute_bars_height(len(known)))
    places = set_y_names(axes, [grid.format_row_name(row) for row, _, _ in known])
    firsts, lasts = (
        to_plot_values([before for _, before, _ in known]),
        to_plot_values([after for _, _, after in known]),
    )
    for location, first, last in zip(places, firsts, lasts, strict=True):
        arrow = {
            "arrowstyle": "-|>",
            "color": BLUE if last >= first else VERMILION,
            "linewidth": 1.6,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate(
            "",
            (last, location),
            xytext=(first, location),
            arrowprops={**arrow, "linestyle": "-" if last >= first else "--"},
            zorder=3,
        )
    axes.plot(
        firsts,
        places,
        "o",
        markersize=5.5,
        color=ZERO_SHOT_STYLE.color,
        markeredgecolor=BLACK,
        label="zero-shot",
        zorder=4,
    )
    _draw_intervals(axes, [after for _, _, after in known], places)
    axes.plot(
        lasts, places, "|", markersize=9, color=BLACK, label="adapted, with interval", zorder=4
    )
    _draw_published(
        axes,
        [row.get_published_number("separation") for row, _, _ in known],
        [location + PUBLISHED_OFFSET for location in places],
        "published, adapted",
    )
    for found, style, name in ((firsts, ":", "zero-shot"), (lasts, "--", "adapted")):
        middle = statistics.median(found)
        axes.axvline(
            middle,
            color=GRAY,
            linestyle=style,
            linewidth=1.2,
            label=f"median {name}, {middle:.3f}",
            zorder=1,
        )
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_xlabel(SEPARATION_LABEL)
    add_legend(figure, axes, columns=3)
    return figure


def draw_cosine_distributions(grid: EncoderGrid) -> Figure:
    """Notched boxes of the cosines of related and unrelated pairs, encoders and decoders apart."""
    found = [(row, scores) for row in grid.rows if (scores := _read_cosines(row))]
    check_plot_data(found, "scores of pairs")
    kinds = [
        kind
        for kind in ARCHITECTURE_STYLES
        if any(row.backbone_info.architecture == kind for row, _ in found)
    ]
    groups = [
        [(row, scores) for row, scores in found if row.backbone_info.architecture == kind]
        for kind in kinds
    ]
    ratios = [len(group) + 0.5 for group in groups]
    figure, panels = create_figure(
        1.2 + 0.5 * sum(ratios), rows=len(kinds), sharex=True, gridspec_kw={"height_ratios": ratios}
    )
    for axes, kind, group in zip(panels, kinds, groups, strict=True):
        _draw_cosine_boxes(axes, grid, group)
        axes.set_title(
            f"{ARCHITECTURE_STYLES[kind].name}s"
            if kind in ("encoder", "decoder")
            else ARCHITECTURE_STYLES[kind].name,
            loc="left",
        )
    panels[-1].set_xlabel(
        "cosine; box: quartiles, notch: interval of the median, whiskers: 5th and 95th percentile"
    )
    from matplotlib.patches import Patch

    marks = [
        Patch(facecolor=BLUE, hatch="", edgecolor=BLACK, label="related"),
        Patch(facecolor="#F3D9A4", hatch="///", edgecolor=BLACK, label="unrelated"),
    ]
    add_legend(figure, panels[0], extra_handles=marks)
    return figure


def draw_ablation(grid: EncoderGrid) -> Figure:
    """The ablation: separation against the share of the pairs that were learned from, a line a
    rank, a panel an objective."""
    points = [
        point
        for point in find_ablation(grid)
        if point.pairs_fraction and grid.get_pair_metric(point.row, "separation")
    ]
    check_plot_data(
        points,
        (
            "an ablation: rows on one backbone that differ in the share of pairs, the "
            "objective or the rank"
        ),
    )
    objectives = list(dict.fromkeys(point.objective for point in points))
    ranks = sorted({point.rank or 0 for point in points})
    figure, panels = create_figure(3.6, columns=len(objectives), sharey=True)
    for axes, objective in zip(panels, objectives, strict=True):
        for at, rank in enumerate(ranks):
            _draw_rank_line(
                axes,
                grid,
                [
                    point
                    for point in points
                    if (point.objective, point.rank or 0) == (objective, rank)
                ],
                rank,
                at,
                len(ranks),
            )
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_xticks(sorted({100 * (point.pairs_fraction or 0) for point in points}))
        axes.set_title(objective, loc="left")
        axes.set_xlabel("pairs learned from, %")
    panels[0].set_ylabel("separation")
    add_legend(figure, panels[0])
    return figure


_RANK_STYLES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (VERMILION, "v", ":"),
    (SKY_BLUE, "P", "-"),
    (BLACK, "X", "--"),
)


def _draw_rank_line(
    axes: Axes,
    grid: EncoderGrid,
    points: Sequence[AblationPoint],
    rank: int,
    rank_index: int,
    rank_count: int,
) -> None:
    """One rank; the ranks stand a little beside each other, so that their intervals can be seen."""
    colour, marker, style = _RANK_STYLES[rank_index % len(_RANK_STYLES)]
    found = [known for point in points if (known := grid.get_pair_metric(point.row, "separation"))]
    where = [
        100 * (point.pairs_fraction or 0) + 1.6 * (rank_index - (rank_count - 1) / 2)
        for point in points
    ]
    whisker = {**ERROR_BAR_STYLE, "ecolor": colour, "linestyle": style}
    axes.errorbar(
        where,
        to_plot_values(found),
        yerr=compute_error_bars(found),
        marker=marker,
        markersize=5,
        color=colour,
        label=f"rank {rank}",
        **whisker,
    )
    printed = [
        (x, number)
        for x, point in zip(where, points, strict=True)
        if (number := point.row.get_published_number("separation")) is not None
    ]
    if printed:
        axes.plot(*zip(*printed, strict=True), label=PUBLISHED_LABEL, **PUBLISHED_MARKER)


def _draw_cosine_boxes(
    axes: Axes,
    grid: EncoderGrid,
    group: Sequence[tuple[EncoderRow, tuple[list[float], list[float]]]],
) -> None:
    places = set_y_names(axes, [grid.format_row_name(row) for row, _ in group])
    looks: tuple[tuple[float, str, str], ...] = ((-0.2, BLUE, ""), (0.2, "#F3D9A4", "///"))
    for at, (shift, colour, hatch) in enumerate(looks):
        line = {"color": "white" if colour == BLUE else BLACK, "linewidth": 1.4}
        box: dict[str, Any] = {
            "facecolor": colour,
            "hatch": hatch,
            "edgecolor": BLACK,
            "linewidth": 0.7,
        }
        where = [location + shift for location in places]
        axes.boxplot(
            [scores[at] for _, scores in group],
            positions=where,
            widths=0.34,
            orientation="horizontal",
            notch=True,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops=box,
            medianprops=line,
        )


def _read_cosines(row: EncoderRow) -> tuple[list[float], list[float]] | None:
    """Scores of related and of unrelated pairs of the adapted model, all seeds together; None where
    none were kept."""
    tables = [
        table
        for run in row.runs
        if run.state == "finished" and (table := _read_pair_scores(run)) is not None
    ]
    if not tables:
        return None
    scores = pa.concat_tables(tables)
    related = scores.filter(scores["related"])["score"].to_pylist()
    unrelated = scores.filter(pc.invert(scores["related"]))["score"].to_pylist()
    return (related, unrelated) if related and unrelated else None


def _read_pair_scores(run: runs.Run) -> pa.Table | None:
    """Of the study's pairs where they were kept, else of the held-out chapters against random
    pairs."""
    try:
        scores = runs.read_run_table(run, "pair_scores")
    except InputError:
        return None
    scores = scores.filter(pc.equal(scores["state"], ADAPTED_ENCODER))
    for task, stratum in ((STUDY_TASK, "different"), (HELD_OUT_CHAPTERS_TASK, "random")):
        found = scores.filter(pc.equal(scores["task"], task))
        found = found.filter(pc.or_(found["related"], pc.equal(found["stratum"], stratum)))
        if len(found):
            return found.select(["related", "score"])
    return None


def _list_before_and_after(grid: EncoderGrid) -> list[tuple[EncoderRow, Estimate, Estimate]]:
    """Rows with both states, the best adapted first."""
    pairs = [
        (
            row,
            grid.get_pair_metric(row, "separation", ZERO_SHOT_ENCODER),
            grid.get_pair_metric(row, "separation"),
        )
        for row in grid.rows
    ]
    known = [(row, before, after) for row, before, after in pairs if before and after]
    check_plot_data(known, "a separation before and after")
    return sorted(known, key=lambda one: -(one[2].value or 0))


def _sort_by_estimate(rows: list[tuple[EncoderRow, Estimate]]) -> list[tuple[EncoderRow, Estimate]]:
    return sorted(rows, key=lambda one: -(one[1].value or 0))


def _compute_published_difference(row: EncoderRow) -> float | None:
    before, after = (
        row.get_published_number("zero_shot_separation"),
        row.get_published_number("separation"),
    )
    return None if before is None or after is None else after - before


def _format_signed(estimate: Estimate) -> str:
    return "" if estimate.value is None else f"{estimate.value:+.3f}".replace("-", "−")


def _draw_intervals(
    axes: Axes, row_estimates: Sequence[Estimate], positions: Sequence[float]
) -> None:
    """Whiskers of those that have an interval."""
    known = [
        (one, location)
        for one, location in zip(row_estimates, positions, strict=True)
        if one.low is not None and one.high is not None
    ]
    if known:
        estimates = [one for one, _ in known]
        axes.errorbar(
            to_plot_values(estimates),
            [location for _, location in known],
            xerr=compute_error_bars(estimates),
            **ERROR_BAR_STYLE,
        )


def _draw_published(
    axes: Axes,
    published_values: Sequence[float | None],
    positions: Sequence[float],
    name: str = PUBLISHED_LABEL,
) -> None:
    """Hollow marks where something was published."""
    known = [
        (number, location)
        for number, location in zip(published_values, positions, strict=True)
        if number is not None
    ]
    if known:
        axes.plot(*zip(*known, strict=True), label=name, **PUBLISHED_MARKER)
