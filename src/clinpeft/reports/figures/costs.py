"""The figures about what a backbone costs: 2 to 4 and 10 to 12 of the study."""

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
    get_plot_style,
    import_matplotlib,
    label_points,
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

SEPARATION_TIERS = (
    (0.45, PlotStyle("separation 0.45 or more", GREEN, "", "o")),
    (0.25, PlotStyle("0.25 to 0.45", SKY_BLUE, "", "s")),
    (-math.inf, PlotStyle("below 0.25", VERMILION, "", "^")),
)
"""The study's tiers of separation: from, how drawn."""

EncoderCost = tuple[EncoderRow, Estimate, float]
"""(row, separation, a cost or a speed)."""


def draw_separation_against_speed(grid: EncoderGrid) -> Figure:
    """Separation against speed; the larger the mark, the less memory."""
    found = _list_costs(grid, _get_speed)
    figure, (axes,) = create_figure(4.6)
    least = min((row.memory_gb for row, _, _ in found if row.memory_gb), default=1.0)
    sizes = [
        5 + 9 * math.sqrt(least / row.memory_gb) if row.memory_gb else 7.0 for row, _, _ in found
    ]
    _set_axes_limits(axes, found)
    for (row, known, x), size in zip(found, sizes, strict=True):
        style = get_plot_style(row)
        axes.errorbar(
            [x],
            to_plot_values([known]),
            yerr=compute_error_bars([known]),
            **{**ERROR_BAR_STYLE, "zorder": 2, "elinewidth": 0.7, "capsize": 0},
        )
        axes.plot(
            [x],
            to_plot_values([known]),
            style.marker,
            color=style.color,
            markersize=size,
            markeredgecolor=BLACK,
            markeredgewidth=0.5,
            zorder=3,
        )
    label_points(
        axes,
        [(x, known.value or 0) for _, known, x in found],
        [grid.format_row_name(row) for row, _, _ in found],
        radius=6.5,
    )
    kinds = [
        kind
        for kind in ARCHITECTURE_STYLES
        if any(row.backbone_info.architecture == kind for row, _, _ in found)
    ]
    add_legend(
        figure,
        axes,
        extra_handles=[
            *(_create_legend_mark(ARCHITECTURE_STYLES[kind]) for kind in kinds),
            *_create_size_marks(found, least),
        ],
    )
    return figure


def draw_memory_against_parameters(grid: EncoderGrid) -> Figure:
    """Memory against parameters, with what the weights alone take at 2 and at 4 bytes a parameter;
    marks by the study's tiers of separation."""
    found = [
        (row, parameters, memory)
        for row in grid.rows
        if (parameters := row.parameters) and (memory := row.memory_gb)
    ]
    check_plot_data(found, "parameters and memory in its profile")
    figure, (axes,) = create_figure(4.6)
    millions = [parameters / 1e6 for _, parameters, _ in found]
    set_log_limits(axes, "x", millions, 2.2)
    set_log_limits(axes, "y", [memory for _, _, memory in found], 2.2)
    set_log_axis(axes, "x")
    set_log_axis(axes, "y")
    ends = list(axes.get_xlim())
    limits = axes.get_ylim()
    for bytes_each, line in ((4, "--"), (2, ":")):
        axes.plot(
            ends,
            [bytes_each * end / 1e3 for end in ends],
            line,
            color=GRAY,
            linewidth=1,
            label=f"weights at {bytes_each} bytes",
            zorder=1,
        )
    axes.set_xlim(*ends)
    axes.set_ylim(*limits)
    for (row, _, memory), x in zip(found, millions, strict=True):
        style = _find_tier_style(grid, row)
        axes.plot(
            [x],
            [memory],
            style.marker,
            color=style.color,
            markersize=7.5,
            markeredgecolor=BLACK,
            markeredgewidth=0.5,
            label=style.name,
            zorder=3,
        )
        _draw_published_point(
            axes,
            row.get_published_number("parameters"),
            row.get_published_number("memory_gb"),
            1e-6,
        )
    label_points(
        axes,
        [(x, memory) for x, (_, _, memory) in zip(millions, found, strict=True)],
        [grid.format_row_name(row) for row, _, _ in found],
    )
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel(MEMORY_LABEL)
    add_legend(figure, axes, columns=3)
    return figure


def draw_dimension_against_cost(grid: EncoderGrid) -> Figure:
    """Dimension against speed, and against memory."""
    sides: list[tuple[str, str, Callable[[EncoderRow], float | None]]] = [
        (SPEED_LABEL, "embeddings_per_second", _get_speed),
        (MEMORY_LABEL, "memory_gb", lambda row: row.memory_gb),
    ]
    found = [row for row in grid.rows if row.dimension and any(cost(row) for _, _, cost in sides)]
    check_plot_data(found, "a dimension with a speed or memory in its profile")
    figure, panels = create_figure(4.4, columns=2)
    for axes, (title, _, cost) in zip(panels, sides, strict=True):
        known = [(row, row.dimension, y) for row in found if row.dimension and (y := cost(row))]
        if known:
            set_log_limits(axes, "x", [x for _, x, _ in known], 2.0)
            set_log_limits(axes, "y", [y for _, _, y in known], 2.0)
        for row, x, y in known:
            style = get_plot_style(row)
            axes.plot(
                [x],
                [y],
                style.marker,
                color=style.color,
                markersize=7,
                markeredgecolor=BLACK,
                markeredgewidth=0.5,
                label=style.name,
                zorder=3,
            )
        set_log_axis(axes, "x")
        set_log_axis(axes, "y")
        label_points(
            axes, [(x, y) for _, x, y in known], [grid.format_row_name(row) for row, _, _ in known]
        )
        axes.set_xlabel("dimension of a vector")
        axes.set_ylabel(title)
    add_legend(figure, panels[0] if panels[0].lines else panels[1])
    return figure


def draw_radar_charts(grid: EncoderGrid) -> Figure:
    """Four axes for each backbone, each as a share of the best of the grid: 1 is the best."""
    found = [(row, known) for row in grid.rows if (known := _compute_radar_values(grid, row))]
    check_plot_data(found, "a separation with a speed, memory and parameters in its profile")
    best = [max(known[at] for _, known in found) for at in range(len(_RADAR_AXES))]
    columns = min(5, len(found))
    lines = math.ceil(len(found) / columns)
    figure, panels = create_figure(
        0.7 + 1.75 * lines, columns, lines, subplot_kw={"projection": "polar"}
    )
    for axes in panels[len(found) :]:
        axes.remove()
    for axes, (row, known) in zip(panels, found, strict=False):
        _draw_radar(
            axes,
            grid.format_row_name(row),
            get_plot_style(row),
            [max(0.0, one) / top if top > 0 else 0.0 for one, top in zip(known, best, strict=True)],
        )
    kinds = [
        kind
        for kind in ARCHITECTURE_STYLES
        if any(row.backbone_info.architecture == kind for row, _ in found)
    ]
    letters = "; ".join(f"{letter}: {meaning}" for letter, meaning in _RADAR_AXES.items())
    add_legend(
        figure,
        panels[0],
        extra_handles=[_create_legend_mark(ARCHITECTURE_STYLES[kind]) for kind in kinds],
        title=letters,
    )
    return figure


def draw_pareto_frontier(grid: EncoderGrid) -> Figure:
    """The Pareto frontier of separation and speed: what no other backbone beats in both."""
    found = _list_costs(grid, _get_speed)
    front = sorted(
        (one for one in found if not any(_dominates(other, one) for other in found)),
        key=lambda one: one[2],
    )
    figure, (axes,) = create_figure(4.6)
    _set_axes_limits(axes, found)
    steps = [
        (axes.get_xlim()[0], front[0][1].value or 0),
        *((x, known.value or 0) for _, known, x in front),
        (front[-1][2], axes.get_ylim()[0]),
    ]
    axes.step(
        *zip(*steps, strict=True),
        where="pre",
        color=BLUE,
        linewidth=1.2,
        label="frontier",
        zorder=1,
    )
    for is_front, colour, marker, name in (
        (True, BLUE, "o", "on the frontier"),
        (False, "white", "s", "beaten by another"),
    ):
        some = [one for one in found if (one in front) == is_front]
        estimates = [known for _, known, _ in some]
        where = [x for _, _, x in some]
        axes.errorbar(
            where,
            to_plot_values(estimates),
            yerr=compute_error_bars(estimates),
            **{**ERROR_BAR_STYLE, "zorder": 2, "elinewidth": 0.7, "capsize": 0},
        )
        axes.plot(
            where,
            to_plot_values(estimates),
            marker,
            color=colour,
            markeredgecolor=BLACK,
            markersize=7.5,
            label=name,
            zorder=3,
        )
    label_points(
        axes,
        [(x, known.value or 0) for _, known, x in found],
        [grid.format_row_name(row) for row, _, _ in found],
    )
    add_legend(figure, axes)
    return figure


def draw_speed_per_gigabyte(grid: EncoderGrid) -> Figure:
    """Embeddings per second for each GB of memory."""
    found = [
        (row, speed / memory)
        for row in grid.rows
        if (speed := _get_speed(row)) and (memory := row.memory_gb)
    ]
    check_plot_data(found, "speed and memory in its profile")
    found.sort(key=lambda one: -one[1])
    figure, (axes,) = create_figure(compute_bars_height(len(found)))
    places = set_y_names(axes, [grid.format_row_name(row) for row, _ in found])
    printed = [_compute_published_speed_per_gigabyte(row) for row, _ in found]
    set_log_limits(
        axes, "x", [*(known for _, known in found), *(known for known in printed if known)], 2.0
    )
    set_log_axis(axes, "x")
    for location, (row, known) in zip(places, found, strict=True):
        style = get_plot_style(row)
        axes.plot(
            [known],
            [location],
            style.marker,
            color=style.color,
            markersize=7,
            markeredgecolor=BLACK,
            markeredgewidth=0.5,
            label=style.name,
        )
        axes.annotate(
            f"{known:,.3g}" if known < 1000 else f"{known:,.0f}",
            (known, location),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    marks = [
        (known, location + PUBLISHED_OFFSET)
        for known, location in zip(printed, places, strict=True)
        if known
    ]
    if marks:
        axes.plot(*zip(*marks, strict=True), label=PUBLISHED_LABEL, **PUBLISHED_MARKER)
    axes.set_xlabel("embeddings per second for each GB of peak memory (logarithmic)")
    add_legend(figure, axes)
    return figure


def _get_speed(row: EncoderRow) -> float | None:
    return row.get_profile_number("embeddings_per_second")


def _list_costs(grid: EncoderGrid, cost: Callable[[EncoderRow], float | None]) -> list[EncoderCost]:
    found = [
        (row, known, paid)
        for row in grid.rows
        if (known := grid.get_pair_metric(row, "separation")) and (paid := cost(row))
    ]
    check_plot_data(found, "a separation and a speed in its profile")
    return found


def _set_axes_limits(axes: Axes, costs: Sequence[EncoderCost]) -> None:
    """Limits and names of the axes of separation against speed."""
    set_log_limits(axes, "x", [x for _, _, x in costs], 1.8)
    set_log_axis(axes, "x")
    ends = [
        end
        for _, known, _ in costs
        for end in (known.value, known.low, known.high)
        if end is not None
    ]
    room = 0.12 * max(max(ends) - min(ends), 0.1)
    axes.set_ylim(min(ends) - room, max(ends) + room)
    axes.set_xlabel(f"{SPEED_LABEL} (logarithmic)")
    axes.set_ylabel("separation")


def _create_legend_mark(style: PlotStyle, size: float = 7.0, label: str = "") -> Any:
    import_matplotlib()
    from matplotlib.lines import Line2D

    marks: dict[str, Any] = {
        "marker": style.marker,
        "markersize": size,
        "markeredgecolor": BLACK,
        "markeredgewidth": 0.5,
        "linestyle": "none",
    }
    return Line2D([], [], color=style.color, label=label or style.name, **marks)


def _create_size_marks(costs: Sequence[EncoderCost], smallest_memory_gb: float) -> list[Any]:
    """The smallest and the largest memory, as marks."""
    held = sorted({row.memory_gb for row, _, _ in costs if row.memory_gb})
    plain = PlotStyle("", "white", "", "o")
    return (
        [
            _create_legend_mark(
                plain, 5 + 9 * math.sqrt(smallest_memory_gb / memory), f"{memory:.2g} GB"
            )
            for memory in dict.fromkeys((held[0], held[-1]))
        ]
        if held
        else []
    )


def _find_tier_style(grid: EncoderGrid, row: EncoderRow) -> PlotStyle:
    known = grid.get_pair_metric(row, "separation")
    if known is None or known.value is None:
        return ARCHITECTURE_STYLES["unknown"]
    return next(style for least, style in SEPARATION_TIERS if known.value >= least)


def _draw_published_point(axes: Axes, x: float | None, y: float | None, scale: float) -> None:
    """A published point, where it lies within the axes."""
    low, high = axes.get_ylim()
    if x is not None and y is not None and low <= y <= high:
        axes.plot(
            [x * scale],
            [y],
            label=PUBLISHED_LABEL,
            **{**PUBLISHED_MARKER, "markersize": 4.5, "zorder": 2},
        )


_RADAR_AXES = {
    "S": "separation",
    "E": "embeddings per second",
    "M": "1 / memory",
    "P": "1 / parameters",
}


def _compute_radar_values(grid: EncoderGrid, row: EncoderRow) -> tuple[float, ...] | None:
    """The more the better: separation, embeddings per second, 1 / memory, 1 / parameters."""
    known, speed, memory, parameters = (
        grid.get_pair_metric(row, "separation"),
        _get_speed(row),
        row.memory_gb,
        row.parameters,
    )
    if known is None or known.value is None or not speed or not memory or not parameters:
        return None
    return known.value, speed, 1 / memory, 1 / parameters


def _draw_radar(axes: Any, name: str, style: PlotStyle, fractions: Sequence[float]) -> None:
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
    axes.set_xticks(angles, labels=list(_RADAR_AXES), fontsize=8)
    axes.tick_params(axis="x", pad=-2)
    axes.set_title(name, fontsize=8.5, pad=4)


def _dominates(other: EncoderCost, candidate: EncoderCost) -> bool:
    """At least as good in both, and better in one."""
    better = (other[1].value or 0) - (candidate[1].value or 0), other[2] - candidate[2]
    return min(better) >= 0 and max(better) > 0


def _compute_published_speed_per_gigabyte(row: EncoderRow) -> float | None:
    speed, memory = (
        row.get_published_number("embeddings_per_second"),
        row.get_published_number("memory_gb"),
    )
    return speed / memory if speed and memory else None
