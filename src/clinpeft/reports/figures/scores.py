"""The figures about what was gained: 1, 5 to 9 and 13 of the study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from clinpeft import runs
from clinpeft.core.errors import InputError
from clinpeft.reports.embedding import Point, ablated
from clinpeft.reports.encoders import ADAPTED, HELD_OUT, STUDY, THRESHOLD, ZERO_SHOT, Encoder, Grid
from clinpeft.reports.figures.style import (
    AFTER,
    BEFORE,
    BELOW,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LOOKS,
    ORANGE,
    PUBLISHED,
    PUBLISHED_NAME,
    SKY,
    VERMILION,
    WHISKER,
    bars_height,
    legend,
    look,
    names_on_y,
    needed,
    sheet,
    values,
    whiskers,
)
from clinpeft.reports.tables import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEPARATION = "separation (difference of mean cosines)"
HEIGHT = 0.36  # of one of two bars of a backbone, in units of the axis


def figure_1(made: Grid) -> Figure:
    """Separation of each adapted backbone, best first, with the study's threshold."""
    known = _sorted([(row, found) for row in made.rows if (found := made.pairs(row, "separation"))])
    needed(known, "a separation")
    figure, (axes,) = sheet(bars_height(len(known)))
    places = names_on_y(axes, [made.name(row) for row, _ in known])
    for location, (row, found) in zip(places, known, strict=True):
        style = look(row)
        axes.barh(
            location,
            values([found]),
            0.62,
            color=style.colour,
            hatch=style.hatch,
            edgecolor="white",
            label=style.name,
        )
    _intervals(axes, [found for _, found in known], places)
    _published(
        axes,
        [row.printed("separation") for row, _ in known],
        [location + BELOW for location in places],
    )
    axes.axvline(
        THRESHOLD,
        color=BLACK,
        linestyle="--",
        linewidth=1,
        label=f"the study's threshold, {THRESHOLD}",
    )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_xlabel(SEPARATION)
    legend(figure, axes)
    return figure


def figure_5(made: Grid) -> Figure:
    """Zero-shot and adapted separation side by side."""
    known = _both(made)
    figure, (axes,) = sheet(bars_height(len(known)) + 0.08 * len(known))
    places = names_on_y(axes, [made.name(row) for row, _, _ in known])
    befores, afters = [before for _, before, _ in known], [after for _, _, after in known]
    sides = (
        (BEFORE, befores, -HEIGHT / 2, "zero_shot_separation"),
        (AFTER, afters, HEIGHT / 2, "separation"),
    )
    for style, found, shift, key in sides:
        where = [location + shift for location in places]
        edge = BLACK if style is BEFORE else "white"
        axes.barh(
            where,
            values(found),
            HEIGHT,
            color=style.colour,
            hatch=style.hatch,
            edgecolor=edge,
            linewidth=0.5,
            label=style.name,
        )
        _intervals(axes, found, where)
        _published(
            axes,
            [row.printed(key) for row, _, _ in known],
            [location + 1.7 * shift for location in places],
        )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_xlabel(SEPARATION)
    legend(figure, axes)
    return figure


def figure_6(made: Grid) -> Figure:
    """A waterfall: from the zero-shot separation, by what adapting added, to the adapted one."""
    known = _both(made)
    figure, (axes,) = sheet(bars_height(len(known)))
    places = names_on_y(axes, [made.name(row) for row, _, _ in known])
    for location, (row, before, after) in zip(places, known, strict=True):
        first, last = values([before, after])
        grew = last >= first
        colour, hatch, name = (GREEN, "", "gained") if grew else (VERMILION, "xxx", "lost")
        axes.barh(
            location,
            first,
            0.62,
            color=BEFORE.colour,
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
        change = made.gain(row) or Estimate(last - first)
        end = max(first, last, 0.0 if after.high is None else after.high)
        axes.annotate(
            _signed(change),
            (end, location),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    _intervals(axes, [after for _, _, after in known], places)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.12 * (high - low))  # room for the differences
    axes.set_xlabel(f"{SEPARATION}; beside the bar: difference")
    legend(figure, axes)
    return figure


def figure_7(made: Grid) -> Figure:
    """Gains in order, as differences with intervals and not in percent of something near 0, with their median."""
    known = _sorted([(row, found) for row in made.rows if (found := made.gain(row))])
    needed(known, "a separation before and after")
    figure, (axes,) = sheet(bars_height(len(known)))
    places = names_on_y(axes, [made.name(row) for row, _ in known])
    for location, (row, found) in zip(places, known, strict=True):
        style = look(row)
        error = whiskers([found])
        axes.errorbar(
            values([found]),
            [location],
            xerr=error,
            marker=style.marker,
            color=style.colour,
            label=style.name,
            **{**WHISKER, "ecolor": style.colour},
        )
    _published(
        axes, [_difference(row) for row, _ in known], [location + BELOW for location in places]
    )
    middle = statistics.median(values([found for _, found in known]))
    axes.axvline(
        middle,
        color=BLACK,
        linestyle=":",
        linewidth=1,
        label=f"median, {_signed(Estimate(middle))}",
    )
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_xlabel("separation, adapted less zero-shot")
    legend(figure, axes)
    return figure


def figure_8(made: Grid) -> Figure:
    """An arrow from before to after for each backbone, and the medians of both."""
    known = _both(made)
    figure, (axes,) = sheet(bars_height(len(known)))
    places = names_on_y(axes, [made.name(row) for row, _, _ in known])
    firsts, lasts = (
        values([before for _, before, _ in known]),
        values([after for _, _, after in known]),
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
        color=BEFORE.colour,
        markeredgecolor=BLACK,
        label="zero-shot",
        zorder=4,
    )
    _intervals(axes, [after for _, _, after in known], places)
    axes.plot(
        lasts, places, "|", markersize=9, color=BLACK, label="adapted, with interval", zorder=4
    )
    _published(
        axes,
        [row.printed("separation") for row, _, _ in known],
        [location + BELOW for location in places],
        "published, adapted",
    )
    for found, style, name in ((firsts, ":", "zero-shot"), (lasts, "--", "adapted")):
        middle = statistics.median(found)
        axes.axvline(
            middle,
            color=GREY,
            linestyle=style,
            linewidth=1.2,
            label=f"median {name}, {middle:.3f}",
            zorder=1,
        )
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_xlabel(SEPARATION)
    legend(figure, axes, columns=3)
    return figure


def figure_9(made: Grid) -> Figure:
    """Notched boxes of the cosines of related and unrelated pairs, encoders and decoders apart."""
    found = [(row, scores) for row in made.rows if (scores := _cosines(row))]
    needed(found, "scores of pairs")
    kinds = [kind for kind in LOOKS if any(row.known.architecture == kind for row, _ in found)]
    groups = [
        [(row, scores) for row, scores in found if row.known.architecture == kind] for kind in kinds
    ]
    ratios = [len(group) + 0.5 for group in groups]
    figure, panels = sheet(
        1.2 + 0.5 * sum(ratios), rows=len(kinds), sharex=True, gridspec_kw={"height_ratios": ratios}
    )
    for axes, kind, group in zip(panels, kinds, groups, strict=True):
        _boxes(axes, made, group)
        axes.set_title(
            f"{LOOKS[kind].name}s" if kind in ("encoder", "decoder") else LOOKS[kind].name,
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
    legend(figure, panels[0], extra=marks)
    return figure


def figure_13(made: Grid) -> Figure:
    """The ablation: separation against the share of the pairs that were learned from, a line a rank, a panel an objective."""
    points = [
        point
        for point in ablated(made)
        if point.pairs_share and made.pairs(point.row, "separation")
    ]
    needed(
        points,
        "an ablation: rows on one backbone that differ in the share of pairs, the objective or the rank",
    )
    objectives = list(dict.fromkeys(point.objective for point in points))
    ranks = sorted({point.rank or 0 for point in points})
    figure, panels = sheet(3.6, columns=len(objectives), sharey=True)
    for axes, objective in zip(panels, objectives, strict=True):
        for at, rank in enumerate(ranks):
            _line(
                axes,
                made,
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
        axes.set_xticks(sorted({100 * (point.pairs_share or 0) for point in points}))
        axes.set_title(objective, loc="left")
        axes.set_xlabel("pairs learned from, %")
    panels[0].set_ylabel("separation")
    legend(figure, panels[0])
    return figure


_RANKS = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-."),
    (VERMILION, "v", ":"),
    (SKY, "P", "-"),
    (BLACK, "X", "--"),
)


def _line(axes: Axes, made: Grid, points: Sequence[Point], rank: int, at: int, ranks: int) -> None:
    """One rank; the ranks stand a little beside each other, so that their intervals can be seen."""
    colour, marker, style = _RANKS[at % len(_RANKS)]
    found = [known for point in points if (known := made.pairs(point.row, "separation"))]
    where = [100 * (point.pairs_share or 0) + 1.6 * (at - (ranks - 1) / 2) for point in points]
    whisker = {**WHISKER, "ecolor": colour, "linestyle": style}
    axes.errorbar(
        where,
        values(found),
        yerr=whiskers(found),
        marker=marker,
        markersize=5,
        color=colour,
        label=f"rank {rank}",
        **whisker,
    )
    printed = [
        (x, number)
        for x, point in zip(where, points, strict=True)
        if (number := point.row.printed("separation")) is not None
    ]
    if printed:
        axes.plot(*zip(*printed, strict=True), label=PUBLISHED_NAME, **PUBLISHED)


def _boxes(
    axes: Axes, made: Grid, group: Sequence[tuple[Encoder, tuple[list[float], list[float]]]]
) -> None:
    places = names_on_y(axes, [made.name(row) for row, _ in group])
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


def _cosines(row: Encoder) -> tuple[list[float], list[float]] | None:
    """Scores of related and of unrelated pairs of the adapted model, all seeds together; None where none were kept."""
    tables = [
        table for run in row.runs if run.state == "finished" and (table := _kept(run)) is not None
    ]
    if not tables:
        return None
    scores = pa.concat_tables(tables)
    related = scores.filter(scores["related"])["score"].to_pylist()
    unrelated = scores.filter(pc.invert(scores["related"]))["score"].to_pylist()
    return (related, unrelated) if related and unrelated else None


def _kept(run: runs.Run) -> pa.Table | None:
    """Of the study's pairs where they were kept, else of the held-out chapters against random pairs."""
    try:
        scores = runs.read_run_table(run, "pair_scores")
    except InputError:
        return None
    scores = scores.filter(pc.equal(scores["state"], ADAPTED))
    for task, stratum in ((STUDY, "different"), (HELD_OUT, "random")):
        found = scores.filter(pc.equal(scores["task"], task))
        found = found.filter(pc.or_(found["related"], pc.equal(found["stratum"], stratum)))
        if len(found):
            return found.select(["related", "score"])
    return None


def _both(made: Grid) -> list[tuple[Encoder, Estimate, Estimate]]:
    """Rows with both states, the best adapted first."""
    pairs = [
        (row, made.pairs(row, "separation", ZERO_SHOT), made.pairs(row, "separation"))
        for row in made.rows
    ]
    known = [(row, before, after) for row, before, after in pairs if before and after]
    needed(known, "a separation before and after")
    return sorted(known, key=lambda one: -(one[2].value or 0))


def _sorted(known: list[tuple[Encoder, Estimate]]) -> list[tuple[Encoder, Estimate]]:
    return sorted(known, key=lambda one: -(one[1].value or 0))


def _difference(row: Encoder) -> float | None:
    before, after = row.printed("zero_shot_separation"), row.printed("separation")
    return None if before is None or after is None else after - before


def _signed(known: Estimate) -> str:
    return "" if known.value is None else f"{known.value:+.3f}".replace("-", "−")


def _intervals(axes: Axes, found: Sequence[Estimate], places: Sequence[float]) -> None:
    """Whiskers of those that have an interval."""
    known = [
        (one, location)
        for one, location in zip(found, places, strict=True)
        if one.low is not None and one.high is not None
    ]
    if known:
        estimates = [one for one, _ in known]
        axes.errorbar(
            values(estimates),
            [location for _, location in known],
            xerr=whiskers(estimates),
            **WHISKER,
        )


def _published(
    axes: Axes, printed: Sequence[float | None], places: Sequence[float], name: str = PUBLISHED_NAME
) -> None:
    """Hollow marks where something was published."""
    known = [
        (number, location)
        for number, location in zip(printed, places, strict=True)
        if number is not None
    ]
    if known:
        axes.plot(*zip(*known, strict=True), label=name, **PUBLISHED)
