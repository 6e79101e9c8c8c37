"""Figures 2 to 4 and 10 to 12 of the study: what a backbone costs in speed and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clinpeft.reports.encoders import EncoderGrid, EncoderRow
from clinpeft.reports.figures.style import (
    ARCHITECTURE_STYLES,
    BLACK,
    BLUE,
    ERROR_BAR_STYLE,
    GRAY,
    GREEN,
    PUBLISHED_LABEL,
    PUBLISHED_MARKER,
    PUBLISHED_OFFSET,
    SKY_BLUE,
    VERMILION,
    PlotStyle,
    add_legend,
    check_plot_data,
    compute_bars_height,
    compute_error_bars,
    create_figure,
    draw_mark,
    get_plot_style,
    import_matplotlib,
    label_points,
    list_architectures,
    set_log_axis,
    set_log_limits,
    set_y_names,
    to_plot_values,
)
from clinpeft.reports.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEED_LABEL, MEMORY_LABEL = "embeddings per second", "peak memory, GB"

# Tiers of separation in the study: (from, style)
SEPARATION_TIERS = (
    (0.45, PlotStyle("separation 0.45 or more", GREEN, "", "o")),
    (0.25, PlotStyle("0.25 to 0.45", SKY_BLUE, "", "s")),
    (-math.inf, PlotStyle("below 0.25", VERMILION, "", "^")),
)

# Letter of an axis -> what it measures; the more the better
RADAR_AXES = {
    "S": "separation",
    "E": "embeddings per second",
    "M": "1 / memory",
    "P": "1 / parameters",
}

# Error bars behind the marks
_THIN_ERROR_BAR_STYLE = {**ERROR_BAR_STYLE, "zorder": 2, "elinewidth": 0.7, "capsize": 0}

# (row, separation, embeddings per second)
EncoderCost = tuple[EncoderRow, Estimate, float]


def draw_separation_against_speed(grid: EncoderGrid) -> Figure:
    """Figure 2: separation against speed; the larger the mark, the less memory."""
    costs = _list_speeds(grid)
    figure, (axes,) = create_figure(4.6)
    memories = sorted({row.memory_gb for row, _, _ in costs if row.memory_gb})
    smallest = min(memories, default=1.0)
    _set_speed_axes(axes, costs)
    for row, separation, speed in costs:
        # The square root, since readers compare areas
        size = 5 + 9 * math.sqrt(smallest / row.memory_gb) if row.memory_gb else 7.0
        value, error = to_plot_values([separation]), compute_error_bars([separation])
        axes.errorbar([speed], value, yerr=error, **_THIN_ERROR_BAR_STYLE)
        draw_mark(axes, speed, value[0], get_plot_style(row), markersize=size, zorder=3)
    _label_costs(axes, grid, costs, radius=6.5)
    marks = _create_architecture_marks([row for row, _, _ in costs])
    # The smallest and the largest memory explain the sizes
    for memory in dict.fromkeys([*memories[:1], *memories[-1:]]):
        size = 5 + 9 * math.sqrt(smallest / memory)
        marks.append(_create_mark(PlotStyle(f"{memory:.2g} GB", "white", "", "o"), size))
    add_legend(figure, axes, extra_handles=marks)
    return figure


def draw_memory_against_parameters(grid: EncoderGrid) -> Figure:
    """Figure 3: memory against parameters, with that of the weights alone at 2 and at 4 bytes per
    parameter; marks by the study's tiers of separation."""
    rows = [
        (row, parameters / 1e6, memory)
        for row in grid.rows
        if (parameters := row.parameters) and (memory := row.memory_gb)
    ]
    check_plot_data(rows, "parameters and memory in its profile")
    figure, (axes,) = create_figure(4.6)
    set_log_limits(axes, "x", [millions for _, millions, _ in rows], 2.2)
    set_log_limits(axes, "y", [memory for _, _, memory in rows], 2.2)
    set_log_axis(axes, "x")
    set_log_axis(axes, "y")
    # The lines of the weights reach beyond the points, and must not change the limits
    x_limits, y_limits = list(axes.get_xlim()), axes.get_ylim()
    for size, line in ((4, "--"), (2, ":")):
        # Millions of parameters times bytes are megabytes
        gigabytes = [size * millions / 1e3 for millions in x_limits]
        label = f"weights at {size} bytes"
        axes.plot(x_limits, gigabytes, line, color=GRAY, linewidth=1, label=label, zorder=1)
    axes.set_xlim(*x_limits)
    axes.set_ylim(*y_limits)
    for row, millions, memory in rows:
        style = _find_tier_style(grid, row)
        draw_mark(axes, millions, memory, style, markersize=7.5, label=style.name, zorder=3)
        x, y = row.get_published_number("parameters"), row.get_published_number("memory_gb")
        if x is not None and y is not None and y_limits[0] <= y <= y_limits[1]:
            published = {**PUBLISHED_MARKER, "markersize": 4.5, "zorder": 2}
            axes.plot([x * 1e-6], [y], label=PUBLISHED_LABEL, **published)
    label_points(
        axes,
        [(millions, memory) for _, millions, memory in rows],
        [grid.format_row_name(row) for row, _, _ in rows],
    )
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel(MEMORY_LABEL)
    add_legend(figure, axes, columns=3)
    return figure


def draw_dimension_against_cost(grid: EncoderGrid) -> Figure:
    """Figure 4: dimension against speed, and against memory."""
    sides: tuple[tuple[str, Callable[[EncoderRow], float | None]], ...] = (
        (SPEED_LABEL, _get_speed),
        (MEMORY_LABEL, lambda row: row.memory_gb),
    )
    rows = [row for row in grid.rows if row.dimension and any(cost(row) for _, cost in sides)]
    check_plot_data(rows, "a dimension with a speed or memory in its profile")
    figure, panels = create_figure(4.4, columns=2)
    for axes, (title, cost) in zip(panels, sides, strict=True):
        points = [(row, row.dimension, y) for row in rows if row.dimension and (y := cost(row))]
        if points:
            set_log_limits(axes, "x", [x for _, x, _ in points], 2.0)
            set_log_limits(axes, "y", [y for _, _, y in points], 2.0)
        for row, x, y in points:
            style = get_plot_style(row)
            draw_mark(axes, x, y, style, label=style.name, zorder=3)
        set_log_axis(axes, "x")
        set_log_axis(axes, "y")
        names = [grid.format_row_name(row) for row, _, _ in points]
        label_points(axes, [(x, y) for _, x, y in points], names)
        axes.set_xlabel("dimension of a vector")
        axes.set_ylabel(title)
    add_legend(figure, panels[0] if panels[0].lines else panels[1])
    return figure


def draw_radar_charts(grid: EncoderGrid) -> Figure:
    """Figure 10: four axes for each backbone, each as a fraction of the best in the grid."""
    rows: list[tuple[EncoderRow, tuple[float, ...]]] = []
    for row in grid.rows:
        separation = grid.get_pair_metric(row, "separation")
        speed, memory, parameters = _get_speed(row), row.memory_gb, row.parameters
        if separation and separation.value is not None and speed and memory and parameters:
            rows.append((row, (separation.value, speed, 1 / memory, 1 / parameters)))
    check_plot_data(rows, "a separation with a speed, memory and parameters in its profile")
    # (rows, 4) -> the best of each axis
    best = [max(values) for values in zip(*(values for _, values in rows), strict=True)]
    columns = min(5, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, panels = create_figure(
        0.7 + 1.75 * lines, columns, lines, subplot_kw={"projection": "polar"}
    )
    for axes in panels[len(rows) :]:
        axes.remove()
    for axes, (row, values) in zip(panels, rows, strict=False):
        # A separation below 0 has no place on a radar
        fractions = [
            max(0.0, value) / top if top > 0 else 0.0
            for value, top in zip(values, best, strict=True)
        ]
        _draw_radar(axes, grid.format_row_name(row), get_plot_style(row), fractions)
    add_legend(
        figure,
        panels[0],
        extra_handles=_create_architecture_marks([row for row, _ in rows]),
        title="; ".join(f"{letter}: {meaning}" for letter, meaning in RADAR_AXES.items()),
    )
    return figure


def _draw_radar(axes: Any, name: str, style: PlotStyle, fractions: Sequence[float]) -> None:
    """The radar of one backbone on polar axes, clockwise from the top."""
    angles = [2 * math.pi * at / len(fractions) for at in range(len(fractions))]
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.fill(
        [*angles, angles[0]],
        [*fractions, fractions[0]],
        facecolor=style.color,
        alpha=0.45,
        hatch=style.hatch,
        edgecolor=style.color,
        linewidth=1.2,
    )
    axes.plot(
        angles,
        fractions,
        style.marker,
        color=style.color,
        markersize=3.5,
        markeredgecolor=BLACK,
        markeredgewidth=0.4,
        clip_on=False,
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5, 1.0], labels=[])
    axes.set_xticks(angles, labels=list(RADAR_AXES), fontsize=8)
    axes.tick_params(axis="x", pad=-2)
    axes.set_title(name, fontsize=8.5, pad=4)


def draw_pareto_frontier(grid: EncoderGrid) -> Figure:
    """Figure 11: the Pareto frontier of separation and speed, the backbones that no other one beats
    in both."""
    costs = _list_speeds(grid)
    frontier = [cost for cost in costs if not any(_dominates(other, cost) for other in costs)]
    # By speed, in the direction in which the steps are drawn
    frontier.sort(key=lambda cost: cost[2])
    others = [cost for cost in costs if cost not in frontier]
    figure, (axes,) = create_figure(4.6)
    _set_speed_axes(axes, costs)
    # From the left edge to the slowest, down to the fastest, and down to the lower edge
    steps = [
        (axes.get_xlim()[0], frontier[0][1].value or 0),
        *((speed, separation.value or 0) for _, separation, speed in frontier),
        (frontier[-1][2], axes.get_ylim()[0]),
    ]
    axes.step(
        *zip(*steps, strict=True),
        where="pre",
        color=BLUE,
        linewidth=1.2,
        label="frontier",
        zorder=1,
    )
    groups = (
        ([cost for cost in costs if cost in frontier], BLUE, "o", "on the frontier"),
        (others, "white", "s", "beaten by another"),
    )
    for group, color, marker, label in groups:
        separations = [separation for _, separation, _ in group]
        speeds = [speed for _, _, speed in group]
        values, errors = to_plot_values(separations), compute_error_bars(separations)
        axes.errorbar(speeds, values, yerr=errors, **_THIN_ERROR_BAR_STYLE)
        axes.plot(
            speeds,
            values,
            marker,
            color=color,
            markeredgecolor=BLACK,
            markersize=7.5,
            label=label,
            zorder=3,
        )
    _label_costs(axes, grid, costs)
    add_legend(figure, axes)
    return figure


def draw_speed_per_gigabyte(grid: EncoderGrid) -> Figure:
    """Figure 12: embeddings per second for each GB of memory."""
    rows = [
        (row, speed / memory)
        for row in grid.rows
        if (speed := _get_speed(row)) and (memory := row.memory_gb)
    ]
    check_plot_data(rows, "speed and memory in its profile")
    # Best first
    rows.sort(key=lambda pair: -pair[1])
    figure, (axes,) = create_figure(compute_bars_height(len(rows)))
    positions = set_y_names(axes, [grid.format_row_name(row) for row, _ in rows])
    published = []
    for position, (row, _) in zip(positions, rows, strict=True):
        speed = row.get_published_number("embeddings_per_second")
        memory = row.get_published_number("memory_gb")
        if speed and memory:
            published.append((speed / memory, position + PUBLISHED_OFFSET))
    ratios = [*(ratio for _, ratio in rows), *(ratio for ratio, _ in published)]
    set_log_limits(axes, "x", ratios, 2.0)
    set_log_axis(axes, "x")
    for position, (row, ratio) in zip(positions, rows, strict=True):
        style = get_plot_style(row)
        draw_mark(axes, ratio, position, style, label=style.name)
        axes.annotate(
            f"{ratio:,.3g}" if ratio < 1000 else f"{ratio:,.0f}",
            (ratio, position),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    if published:
        axes.plot(*zip(*published, strict=True), label=PUBLISHED_LABEL, **PUBLISHED_MARKER)
    axes.set_xlabel("embeddings per second for each GB of peak memory (logarithmic)")
    add_legend(figure, axes)
    return figure


def _get_speed(row: EncoderRow) -> float | None:
    return row.get_profile_number("embeddings_per_second")


def _list_speeds(grid: EncoderGrid) -> list[EncoderCost]:
    """The rows with a separation and a speed."""
    costs = [
        (row, separation, speed)
        for row in grid.rows
        if (separation := grid.get_pair_metric(row, "separation")) and (speed := _get_speed(row))
    ]
    check_plot_data(costs, "a separation and a speed in its profile")
    return costs


def _set_speed_axes(axes: Axes, costs: Sequence[EncoderCost]) -> None:
    """Limits and names of the axes of separation against speed."""
    set_log_limits(axes, "x", [speed for _, _, speed in costs], 1.8)
    set_log_axis(axes, "x")
    ends = [
        end
        for _, separation, _ in costs
        for end in (separation.value, separation.low, separation.high)
        if end is not None
    ]
    # A grid of equal separations still gets an axis of some height
    margin = 0.12 * max(max(ends) - min(ends), 0.1)
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.set_xlabel(f"{SPEED_LABEL} (logarithmic)")
    axes.set_ylabel("separation")


def _label_costs(
    axes: Axes, grid: EncoderGrid, costs: Sequence[EncoderCost], radius: float = 6.0
) -> None:
    points = [(speed, separation.value or 0) for _, separation, speed in costs]
    label_points(axes, points, [grid.format_row_name(row) for row, _, _ in costs], radius)


def _create_mark(style: PlotStyle, size: float = 7.0) -> Any:
    """A mark of the legend."""
    import_matplotlib()
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        color=style.color,
        label=style.name,
        marker=style.marker,
        markersize=size,
        markeredgecolor=BLACK,
        markeredgewidth=0.5,
        linestyle="none",
    )


def _create_architecture_marks(rows: Sequence[EncoderRow]) -> list[Any]:
    return [_create_mark(ARCHITECTURE_STYLES[name]) for name in list_architectures(rows)]


def _find_tier_style(grid: EncoderGrid, row: EncoderRow) -> PlotStyle:
    separation = grid.get_pair_metric(row, "separation")
    if separation is None or separation.value is None:
        return ARCHITECTURE_STYLES["unknown"]
    value = separation.value
    return next(style for threshold, style in SEPARATION_TIERS if value >= threshold)


def _dominates(other: EncoderCost, candidate: EncoderCost) -> bool:
    """At least as good in both, and better in one."""
    # (separation, speed), positive where the other one is better
    better = (other[1].value or 0) - (candidate[1].value or 0), other[2] - candidate[2]
    return min(better) >= 0 and max(better) > 0
