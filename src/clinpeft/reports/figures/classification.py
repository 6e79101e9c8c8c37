"""Figures of answers to a question: calibration, what acting on them is worth, how probabilities are spread, subgroups, rare labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clinpeft.reports.facts import MODEL, SUBGROUP, TEST, Key, estimates, main_metric
from clinpeft.reports.figures.panels import LINES, ROW, Panel, Points, classes, grid_of, named, told
from clinpeft.reports.figures.style import (
    BLACK,
    BLUE,
    GREY,
    PUBLISHED,
    PUBLISHED_NAME,
    VERMILION,
    bars_height,
    legend,
    logarithmic,
    names_on_y,
    needed,
    sheet,
)
from clinpeft.reports.formats import count
from clinpeft.reports.tables import Estimate
from clinpeft.runs import RELEASE_SMALLEST_CELL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def forest(
    names: Sequence[str],
    found: Sequence[Estimate],
    published: Sequence[float | None],
    beat: Estimate | None,
    metric: str,
) -> Figure:
    """The main metric of every row with its interval, the published value below, and the baseline to beat as a line with its band.

    Args:
        names, found, published: of the rows, from top to bottom.
        beat: of TF-IDF with logistic regression.
        metric: its name, for the axis.
    """
    needed(found, "a main metric")
    figure, (axes,) = sheet(bars_height(len(names)))
    places = names_on_y(axes, list(names))
    if beat is not None and beat.value is not None:
        told(
            axes.axvline(
                beat.value, color=VERMILION, linestyle="--", linewidth=1.2, label="TF-IDF"
            ),
            f"TF-IDF: {_said(beat)}",
        )
        if beat.low is not None and beat.high is not None:
            axes.axvspan(beat.low, beat.high, color=VERMILION, alpha=0.1, linewidth=0)
    for location, name, known, printed in zip(places, names, found, published, strict=True):
        _mark(axes, location, name, known)
        if printed is not None:
            (diamond,) = axes.plot([printed], [location + 0.3], label=PUBLISHED_NAME, **PUBLISHED)
            told(diamond, f"{name}, published: {printed:.4f}")
    axes.set_xlabel(f"{metric}, held out")
    legend(figure, axes)
    return figure


def _mark(axes: Axes, location: float, name: str, known: Estimate, colour: str = BLUE) -> None:
    """A point with its interval."""
    if known.value is None:
        return
    if known.low is not None and known.high is not None:
        axes.plot([known.low, known.high], [location, location], color=colour, linewidth=1.6)
    (point,) = axes.plot(
        [known.value], [location], marker="o", markersize=6, color=colour, linestyle="none"
    )
    told(point, f"{name}: {_said(known)}")


def _said(known: Estimate) -> str:
    interval = (
        "" if known.low is None or known.high is None else f" ({known.low:.3f} to {known.high:.3f})"
    )
    return "unknown" if known.value is None else f"{known.value:.3f}{interval}"


def calibration(panels: Sequence[Panel]) -> Figure:
    """Share observed against probability predicted, in bins of equal count with intervals, and the smooth curve through them."""
    panels = [panel for panel in panels if panel.curve("calibration")]
    needed(panels, "a calibration curve")
    figure, axes = grid_of(panels, 2.3, "predicted", "observed")
    ends = [
        row[name]
        for panel in panels
        for rows in panel.curve("calibration").values()
        for row in rows
        for name in ("x", "y", "high")
    ]
    most = min(1.0, 1.05 * max(end for end in ends if end is not None))
    for axis, panel in zip(axes, panels, strict=True):
        axis.plot(
            [0, most], [0, most], color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="perfect"
        )
        bins, smooth = panel.curve("calibration"), panel.curve("calibration_smooth")
        for at, one in enumerate(classes(bins)):
            _calibrated(
                axis,
                panel.name,
                one,
                bins.get(named(MODEL, one), []),
                smooth.get(named(MODEL, one), []),
                LINES[at][0],
            )
        axis.set_xlim(0, most)
        axis.set_ylim(0, most)
    legend(figure, axes[0], columns=2 if len(axes) == 1 else 4)
    return figure


def _calibrated(axis: Axes, row: str, one: str, bins: Points, smooth: Points, colour: str) -> None:
    if smooth:
        x = [point["x"] for point in smooth]
        axis.plot(x, [point["y"] for point in smooth], color=colour, linewidth=1.2)
        if all(point["low"] is not None and point["high"] is not None for point in smooth):
            axis.fill_between(
                x,
                [point["low"] for point in smooth],
                [point["high"] for point in smooth],
                color=colour,
                alpha=0.14,
                linewidth=0,
            )
    for at, point in enumerate(bins):
        if point["low"] is not None and point["high"] is not None:
            axis.plot([point["x"]] * 2, [point["low"], point["high"]], color=colour, linewidth=0.9)
        word: dict[str, Any] = {"label": one or "bins of equal count"} if at == 0 else {}
        (dot,) = axis.plot(
            [point["x"]],
            [point["y"]],
            marker="o",
            markersize=4,
            color=colour,
            linestyle="none",
            **word,
        )
        told(
            dot,
            f"{row}{f', {one}' if one else ''}: predicted {point['x']:.3f}, observed {point['y']:.3f}, {count(point['n'])} answers",
        )


def decisions(panels: Sequence[Panel]) -> Figure:
    """Net benefit against the probability from which one acts: a line a row, acting on everybody, and on nobody; a panel a class."""
    panels = [panel for panel in panels if panel.curve("net_benefit")]
    needed(panels, "a decision curve")
    first = panels[0].curve("net_benefit")
    shown = (
        classes(panels[0].curve("calibration"))
        or [
            group.removeprefix(MODEL).removeprefix(SUBGROUP)
            for group in first
            if group[:5] == MODEL
        ][:1]
    )
    figure, axes = sheet(3.2, len(shown))
    for axis, one in zip(axes, shown, strict=True):
        for group, style in (("treat all", "--"), ("treat none", ":")):
            points = first.get(named(group, one), [])
            axis.plot(
                [point["x"] for point in points],
                [point["y"] for point in points],
                color=GREY,
                linestyle=style,
                linewidth=1,
                label=group,
            )
        for at, panel in enumerate(panels):
            _acted(
                axis,
                panel,
                panel.curve("net_benefit").get(named(MODEL, one), []),
                *LINES[at % len(LINES)],
            )
        tops = [
            point["y"]
            for panel in panels
            for group, rows in panel.curve("net_benefit").items()
            if group[:5] == MODEL
            for point in rows
        ]
        axis.set_ylim(-0.25 * max([*tops, 0.01]), 1.1 * max([*tops, 0.01]))
        axis.set_title(one, loc="left", fontsize=8.5)
        axis.set_xlabel("probability from which one acts")
    axes[0].set_ylabel("net benefit")
    legend(figure, axes[0], columns=3)
    return figure


def _acted(axis: Axes, panel: Panel, points: Points, colour: str, style: str) -> None:
    x, y = [point["x"] for point in points], [point["y"] for point in points]
    (line,) = axis.plot(x, y, color=colour, linestyle=style, linewidth=1.4, label=panel.name)
    line.set_gid(f"{ROW}{panel.name}")
    for point in points[9::10]:
        (dot,) = axis.plot(
            [point["x"]], [point["y"]], marker="o", markersize=3, color=colour, linestyle="none"
        )
        interval = _said(Estimate(point["y"], point["low"], point["high"]))
        told(dot, f"{panel.name}: from {point['x']:.2f} on, net benefit {interval}")


def distributions(panels: Sequence[Panel]) -> Figure:
    """How the probabilities of those with and without the event are spread: density in bins that at least ten answers share."""
    panels = [panel for panel in panels if panel.curve("probabilities")]
    needed(panels, "distributions of probabilities")
    figure, axes = grid_of(panels, 1.9, "predicted probability", "density")
    for axis, panel in zip(axes, panels, strict=True):
        chosen = list(panel.curve("probabilities").items())[
            :2
        ]  # of several classes the first, with and without
        for (group, points), colour in zip(chosen, (GREY, BLUE), strict=False):
            for at, (left, right, share, answers) in enumerate(joined(points)):
                word = {"label": f"{group}"} if at == 0 else {}
                bar = axis.bar(
                    left,
                    share / (right - left),
                    right - left,
                    align="edge",
                    color=colour,
                    alpha=0.5,
                    edgecolor=colour,
                    **word,
                )
                told(
                    bar.patches[0],
                    f"{panel.name}, {group}: {left:.2f} to {right:.2f}, {share:.1%} of {count(answers)}",
                )
        axis.set_xlim(0, 1)
    legend(figure, axes[0], columns=2)
    return figure


def joined(points: Points) -> list[tuple[float, float, float, int]]:
    """Neighbouring bins of a histogram put together until each holds no answer or at least ten: left, right, share, answers of all bins.

    Empty bins stay as they are where they stand between large ones.
    """
    half = (points[1]["x"] - points[0]["x"]) / 2 if len(points) > 1 else 0.5
    bins: list[tuple[float, float, float, int]] = []
    begun: tuple[float, float, float, int] | None = None
    for point in points:
        left, right, share, answers = (
            point["x"] - half,
            point["x"] + half,
            float(point["y"]),
            int(point["n"]),
        )
        here = (
            (left, right, share, answers)
            if begun is None
            else (begun[0], right, begun[2] + share, answers)
        )
        inside = round(here[2] * answers)
        begun = None if inside == 0 or inside >= RELEASE_SMALLEST_CELL else here
        if begun is None:
            bins.append(here)
    while begun is not None:
        if not bins:
            return [begun] if round(begun[2] * begun[3]) >= RELEASE_SMALLEST_CELL else []
        last = bins.pop()
        here = (last[0], begun[1], last[2] + begun[2], begun[3])
        begun = here if round(here[2] * here[3]) < RELEASE_SMALLEST_CELL else None
        if begun is None:
            bins.append(here)
    return bins


def subgroups(panels: Sequence[Panel]) -> Figure:
    """The main metric of every subgroup with its interval, beside the whole as a line; groups of fewer than ten people are not there."""
    known = [(panel, found) for panel in panels if (found := _groups(panel))]
    needed(known, "subgroups")
    names = list(dict.fromkeys(group for _, found in known for group in found))
    figure, axes = grid_of(
        [panel for panel, _ in known],
        0.5 + 0.2 * len(names),
        f"{_metric(known[0][0]).replace('_', ' ').upper()}, held out",
    )
    for axis, (panel, found) in zip(axes, known, strict=True):
        places = dict(zip(names, names_on_y(axis, names), strict=True))
        whole = _whole(panel)
        if whole is not None and whole.value is not None:
            told(
                axis.axvline(whole.value, color=BLACK, linewidth=0.9, linestyle="--"),
                f"{panel.name}, all: {_said(whole)}",
            )
        for group, (estimate, people) in found.items():
            _mark(axis, places[group], f"{panel.name}, {group}, {count(people)} people", estimate)
        axis.tick_params(axis="y", labelsize=7.5)
    return figure


def _metric(panel: Panel) -> str:
    return main_metric(estimates(panel.run), panel.task) or ""


def _whole(panel: Panel) -> Estimate | None:
    return estimates(panel.run).get(Key(_metric(panel), TEST, MODEL, panel.task))


def _groups(panel: Panel) -> dict[str, tuple[Estimate, int]]:
    """Subgroup -> main metric, people; those that are too small for either are left out."""
    metric, found = _metric(panel), {}
    for row in panel.run.results.to_pylist():
        state, separator, group = (row["group"] or "").partition(SUBGROUP)
        is_asked = (row["name"], row["split"], row["task"], state) == (
            metric,
            TEST,
            panel.task,
            MODEL,
        ) and bool(separator)
        if (
            is_asked
            and row["value"] is not None
            and (row["n_subjects"] or 0) >= RELEASE_SMALLEST_CELL
        ):
            found[group] = (Estimate(row["value"], row["low"], row["high"]), row["n_subjects"])
    return found


def labels(panels: Sequence[Panel]) -> Figure:
    """AUROC of every label against how often it stands in the training split: what becomes of the rare ones."""
    known = [(panel, found) for panel in panels if (found := _labels(panel))]
    needed(known, "labels")
    figure, axes = grid_of(
        [panel for panel, _ in known], 2.2, "stays with the label in training", "AUROC, held out"
    )
    for axis, (panel, found) in zip(axes, known, strict=True):
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        for row in found:
            (dot,) = axis.plot(
                [row["train_count"]],
                [row["auroc"]],
                marker="o",
                markersize=4,
                color=BLUE,
                alpha=0.6,
                linestyle="none",
            )
            interval = _said(Estimate(row["auroc"], row["low"], row["high"]))
            told(
                dot,
                f"{panel.name}, {row['class']}: {interval}, {count(row['train_count'])} in training",
            )
    logarithmic(axes[0], "x")  # of all: they share it
    return figure


def _labels(panel: Panel) -> list[dict[str, Any]]:
    """Labels that at least ten stays have, in training and held out, and ten have not."""
    table = panel.kept("labels")
    rows: list[dict[str, Any]] = [] if table is None else table.to_pylist()
    return [
        row
        for row in rows
        if row["auroc"] is not None
        and min(row["train_count"] or 0, row["n_positives"] or 0) >= RELEASE_SMALLEST_CELL
    ]
