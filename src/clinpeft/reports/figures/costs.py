"""The figures about what a backbone costs: 2 to 4 and 10 to 12 of the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clinpeft.reports.encoders import Encoder, Grid
from clinpeft.reports.figures.style import (
    BELOW,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LOOKS,
    PUBLISHED,
    PUBLISHED_NAME,
    SKY,
    VERMILION,
    WHISKER,
    Look,
    bars_height,
    beside,
    legend,
    logarithmic,
    look,
    matplotlib,
    names_on_y,
    needed,
    sheet,
    values,
    whiskers,
    widened,
)
from clinpeft.reports.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPEED, MEMORY = "embeddings per second", "peak memory, GB"

TIERS = (
    (0.45, Look("separation 0.45 or more", GREEN, "", "o")),
    (0.25, Look("0.25 to 0.45", SKY, "", "s")),
    (-math.inf, Look("below 0.25", VERMILION, "", "^")),
)
"""The study's tiers of separation: from, how drawn."""

Costed = tuple[Encoder, Estimate, float]
"""(row, separation, a cost or a speed)."""


def figure_2(made: Grid) -> Figure:
    """Separation against speed; the larger the mark, the less memory."""
    found = _costed(made, _speed)
    figure, (axes,) = sheet(4.6)
    least = min((row.memory_gb for row, _, _ in found if row.memory_gb), default=1.0)
    sizes = [
        5 + 9 * math.sqrt(least / row.memory_gb) if row.memory_gb else 7.0 for row, _, _ in found
    ]
    _frame(axes, found)
    for (row, known, x), size in zip(found, sizes, strict=True):
        style = look(row)
        axes.errorbar(
            [x],
            values([known]),
            yerr=whiskers([known]),
            **{**WHISKER, "zorder": 2, "elinewidth": 0.7, "capsize": 0},
        )
        axes.plot(
            [x],
            values([known]),
            style.marker,
            color=style.colour,
            markersize=size,
            markeredgecolor=BLACK,
            markeredgewidth=0.5,
            zorder=3,
        )
    beside(
        axes,
        [(x, known.value or 0) for _, known, x in found],
        [made.name(row) for row, _, _ in found],
        radius=6.5,
    )
    kinds = [kind for kind in LOOKS if any(row.known.architecture == kind for row, _, _ in found)]
    legend(figure, axes, extra=[*(_mark(LOOKS[kind]) for kind in kinds), *_sizes(found, least)])
    return figure


def figure_3(made: Grid) -> Figure:
    """Memory against parameters, with what the weights alone take at 2 and at 4 bytes a parameter; marks by the study's tiers of separation."""
    found = [
        (row, parameters, memory)
        for row in made.rows
        if (parameters := row.parameters) and (memory := row.memory_gb)
    ]
    needed(found, "parameters and memory in its profile")
    figure, (axes,) = sheet(4.6)
    millions = [parameters / 1e6 for _, parameters, _ in found]
    widened(axes, "x", millions, 2.2)
    widened(axes, "y", [memory for _, _, memory in found], 2.2)
    logarithmic(axes, "x")
    logarithmic(axes, "y")
    ends = list(axes.get_xlim())
    limits = axes.get_ylim()
    for bytes_each, line in ((4, "--"), (2, ":")):
        axes.plot(
            ends,
            [bytes_each * end / 1e3 for end in ends],
            line,
            color=GREY,
            linewidth=1,
            label=f"weights at {bytes_each} bytes",
            zorder=1,
        )
    axes.set_xlim(*ends)
    axes.set_ylim(*limits)
    for (row, _, memory), x in zip(found, millions, strict=True):
        style = _tier(made, row)
        axes.plot(
            [x],
            [memory],
            style.marker,
            color=style.colour,
            markersize=7.5,
            markeredgecolor=BLACK,
            markeredgewidth=0.5,
            label=style.name,
            zorder=3,
        )
        _printed(axes, row.printed("parameters"), row.printed("memory_gb"), 1e-6)
    beside(
        axes,
        [(x, memory) for x, (_, _, memory) in zip(millions, found, strict=True)],
        [made.name(row) for row, _, _ in found],
    )
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel(MEMORY)
    legend(figure, axes, columns=3)
    return figure


def figure_4(made: Grid) -> Figure:
    """Dimension against speed, and against memory."""
    sides: list[tuple[str, str, Callable[[Encoder], float | None]]] = [
        (SPEED, "embeddings_per_second", _speed),
        (MEMORY, "memory_gb", lambda row: row.memory_gb),
    ]
    found = [row for row in made.rows if row.dimension and any(cost(row) for _, _, cost in sides)]
    needed(found, "a dimension with a speed or memory in its profile")
    figure, panels = sheet(4.4, columns=2)
    for axes, (title, _, cost) in zip(panels, sides, strict=True):
        known = [(row, row.dimension, y) for row in found if row.dimension and (y := cost(row))]
        if known:
            widened(axes, "x", [x for _, x, _ in known], 2.0)
            widened(axes, "y", [y for _, _, y in known], 2.0)
        for row, x, y in known:
            style = look(row)
            axes.plot(
                [x],
                [y],
                style.marker,
                color=style.colour,
                markersize=7,
                markeredgecolor=BLACK,
                markeredgewidth=0.5,
                label=style.name,
                zorder=3,
            )
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        beside(axes, [(x, y) for _, x, y in known], [made.name(row) for row, _, _ in known])
        axes.set_xlabel("dimension of a vector")
        axes.set_ylabel(title)
    legend(figure, panels[0] if panels[0].lines else panels[1])
    return figure


def figure_10(made: Grid) -> Figure:
    """Four axes for each backbone, each as a share of the best of the grid: 1 is the best."""
    found = [(row, known) for row in made.rows if (known := _axes(made, row))]
    needed(found, "a separation with a speed, memory and parameters in its profile")
    best = [max(known[at] for _, known in found) for at in range(len(_SPOKES))]
    columns = min(5, len(found))
    lines = math.ceil(len(found) / columns)
    figure, panels = sheet(0.7 + 1.75 * lines, columns, lines, subplot_kw={"projection": "polar"})
    for axes in panels[len(found) :]:
        axes.remove()
    for axes, (row, known) in zip(panels, found, strict=False):
        _radar(
            axes,
            made.name(row),
            look(row),
            [max(0.0, one) / top if top > 0 else 0.0 for one, top in zip(known, best, strict=True)],
        )
    kinds = [kind for kind in LOOKS if any(row.known.architecture == kind for row, _ in found)]
    letters = "; ".join(f"{letter}: {meaning}" for letter, meaning in _SPOKES.items())
    legend(figure, panels[0], extra=[_mark(LOOKS[kind]) for kind in kinds], title=letters)
    return figure


def figure_11(made: Grid) -> Figure:
    """The Pareto frontier of separation and speed: what no other backbone beats in both."""
    found = _costed(made, _speed)
    front = sorted(
        (one for one in found if not any(_beats(other, one) for other in found)),
        key=lambda one: one[2],
    )
    figure, (axes,) = sheet(4.6)
    _frame(axes, found)
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
            values(estimates),
            yerr=whiskers(estimates),
            **{**WHISKER, "zorder": 2, "elinewidth": 0.7, "capsize": 0},
        )
        axes.plot(
            where,
            values(estimates),
            marker,
            color=colour,
            markeredgecolor=BLACK,
            markersize=7.5,
            label=name,
            zorder=3,
        )
    beside(
        axes,
        [(x, known.value or 0) for _, known, x in found],
        [made.name(row) for row, _, _ in found],
    )
    legend(figure, axes)
    return figure


def figure_12(made: Grid) -> Figure:
    """Embeddings per second for each GB of memory."""
    found = [
        (row, speed / memory)
        for row in made.rows
        if (speed := _speed(row)) and (memory := row.memory_gb)
    ]
    needed(found, "speed and memory in its profile")
    found.sort(key=lambda one: -one[1])
    figure, (axes,) = sheet(bars_height(len(found)))
    places = names_on_y(axes, [made.name(row) for row, _ in found])
    printed = [_per_gigabyte(row) for row, _ in found]
    widened(
        axes, "x", [*(known for _, known in found), *(known for known in printed if known)], 2.0
    )
    logarithmic(axes, "x")
    for location, (row, known) in zip(places, found, strict=True):
        style = look(row)
        axes.plot(
            [known],
            [location],
            style.marker,
            color=style.colour,
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
        (known, location + BELOW) for known, location in zip(printed, places, strict=True) if known
    ]
    if marks:
        axes.plot(*zip(*marks, strict=True), label=PUBLISHED_NAME, **PUBLISHED)
    axes.set_xlabel("embeddings per second for each GB of peak memory (logarithmic)")
    legend(figure, axes)
    return figure


def _speed(row: Encoder) -> float | None:
    return row.profiled("embeddings_per_second")


def _costed(made: Grid, cost: Callable[[Encoder], float | None]) -> list[Costed]:
    found = [
        (row, known, paid)
        for row in made.rows
        if (known := made.pairs(row, "separation")) and (paid := cost(row))
    ]
    needed(found, "a separation and a speed in its profile")
    return found


def _frame(axes: Axes, found: Sequence[Costed]) -> None:
    """Limits and names of the axes of separation against speed."""
    widened(axes, "x", [x for _, _, x in found], 1.8)
    logarithmic(axes, "x")
    ends = [
        end
        for _, known, _ in found
        for end in (known.value, known.low, known.high)
        if end is not None
    ]
    room = 0.12 * max(max(ends) - min(ends), 0.1)
    axes.set_ylim(min(ends) - room, max(ends) + room)
    axes.set_xlabel(f"{SPEED} (logarithmic)")
    axes.set_ylabel("separation")


def _mark(style: Look, size: float = 7.0, label: str = "") -> Any:
    matplotlib()
    from matplotlib.lines import Line2D

    marks: dict[str, Any] = {
        "marker": style.marker,
        "markersize": size,
        "markeredgecolor": BLACK,
        "markeredgewidth": 0.5,
        "linestyle": "none",
    }
    return Line2D([], [], color=style.colour, label=label or style.name, **marks)


def _sizes(found: Sequence[Costed], least: float) -> list[Any]:
    """The smallest and the largest memory, as marks."""
    held = sorted({row.memory_gb for row, _, _ in found if row.memory_gb})
    plain = Look("", "white", "", "o")
    return (
        [
            _mark(plain, 5 + 9 * math.sqrt(least / memory), f"{memory:.2g} GB")
            for memory in dict.fromkeys((held[0], held[-1]))
        ]
        if held
        else []
    )


def _tier(made: Grid, row: Encoder) -> Look:
    known = made.pairs(row, "separation")
    if known is None or known.value is None:
        return LOOKS["unknown"]
    return next(style for least, style in TIERS if known.value >= least)


def _printed(axes: Axes, x: float | None, y: float | None, scale: float) -> None:
    """A published point, where it lies within the axes."""
    low, high = axes.get_ylim()
    if x is not None and y is not None and low <= y <= high:
        axes.plot(
            [x * scale], [y], label=PUBLISHED_NAME, **{**PUBLISHED, "markersize": 4.5, "zorder": 2}
        )


_SPOKES = {
    "S": "separation",
    "E": "embeddings per second",
    "M": "1 / memory",
    "P": "1 / parameters",
}


def _axes(made: Grid, row: Encoder) -> tuple[float, ...] | None:
    """The more the better: separation, embeddings per second, 1 / memory, 1 / parameters."""
    known, speed, memory, parameters = (
        made.pairs(row, "separation"),
        _speed(row),
        row.memory_gb,
        row.parameters,
    )
    if known is None or known.value is None or not speed or not memory or not parameters:
        return None
    return known.value, speed, 1 / memory, 1 / parameters


def _radar(axes: Any, name: str, style: Look, shares: Sequence[float]) -> None:
    angles = [2 * math.pi * at / len(shares) for at in range(len(shares))]
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.fill(
        [*angles, angles[0]],
        [*shares, shares[0]],
        facecolor=style.colour,
        alpha=0.45,
        hatch=style.hatch,
        edgecolor=style.colour,
        linewidth=1.2,
    )
    axes.plot(
        angles,
        shares,
        style.marker,
        color=style.colour,
        markersize=3.5,
        markeredgecolor=BLACK,
        markeredgewidth=0.4,
        clip_on=False,
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0.5, 1.0], labels=[])
    axes.set_xticks(angles, labels=list(_SPOKES), fontsize=8)
    axes.tick_params(axis="x", pad=-2)
    axes.set_title(name, fontsize=8.5, pad=4)


def _beats(other: Costed, one: Costed) -> bool:
    """At least as good in both, and better in one."""
    better = (other[1].value or 0) - (one[1].value or 0), other[2] - one[2]
    return min(better) >= 0 and max(better) > 0


def _per_gigabyte(row: Encoder) -> float | None:
    speed, memory = row.printed("embeddings_per_second"), row.printed("memory_gb")
    return speed / memory if speed and memory else None
