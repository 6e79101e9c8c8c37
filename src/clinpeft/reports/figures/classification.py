"""Figures of answers to a question: calibration, what acting on them is worth, how probabilities
are spread, subgroups, rare labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    HELD_OUT_SPLIT,
    SUBGROUP_SEPARATOR,
    MetricKey,
    find_main_metric,
    read_estimates,
)
from clinpeft.reports.figures.panels import (
    LINE_STYLES,
    ROW_ID_PREFIX,
    ClassificationPanel,
    CurvePoints,
    choose_curve_classes,
    create_panel_axes,
    format_class_group,
    set_tooltip,
)
from clinpeft.reports.figures.style import (
    BLACK,
    BLUE,
    GRAY,
    PUBLISHED_LABEL,
    PUBLISHED_MARKER,
    VERMILION,
    add_legend,
    check_plot_data,
    compute_bars_height,
    create_figure,
    set_log_axis,
    set_y_names,
)
from clinpeft.reports.formats import format_count
from clinpeft.reports.tables import Estimate
from clinpeft.runs import RELEASE_SMALLEST_CELL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_forest_plot(
    names: Sequence[str],
    estimates: Sequence[Estimate],
    published_values: Sequence[float | None],
    baseline: Estimate | None,
    metric: str,
) -> Figure:
    """The main metric of every row with its interval, the published value below, and the baseline
    to beat as a line with its band.

    Args:
        names, estimates, published_values: of the rows, from top to bottom.
        baseline: of TF-IDF with logistic regression.
        metric: its name, for the axis.
    """
    check_plot_data(estimates, "a main metric")
    figure, (axes,) = create_figure(compute_bars_height(len(names)))
    places = set_y_names(axes, list(names))
    if baseline is not None and baseline.value is not None:
        set_tooltip(
            axes.axvline(
                baseline.value, color=VERMILION, linestyle="--", linewidth=1.2, label="TF-IDF"
            ),
            f"TF-IDF: {_format_estimate(baseline)}",
        )
        if baseline.low is not None and baseline.high is not None:
            axes.axvspan(baseline.low, baseline.high, color=VERMILION, alpha=0.1, linewidth=0)
    for location, name, known, printed in zip(
        places, names, estimates, published_values, strict=True
    ):
        _draw_interval_point(axes, location, name, known)
        if printed is not None:
            (diamond,) = axes.plot(
                [printed], [location + 0.3], label=PUBLISHED_LABEL, **PUBLISHED_MARKER
            )
            set_tooltip(diamond, f"{name}, published: {printed:.4f}")
    axes.set_xlabel(f"{metric}, held out")
    add_legend(figure, axes)
    return figure


def _draw_interval_point(
    axes: Axes, location: float, name: str, estimate: Estimate, color: str = BLUE
) -> None:
    """A point with its interval."""
    if estimate.value is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [location, location], color=color, linewidth=1.6)
    (point,) = axes.plot(
        [estimate.value], [location], marker="o", markersize=6, color=color, linestyle="none"
    )
    set_tooltip(point, f"{name}: {_format_estimate(estimate)}")


def _format_estimate(estimate: Estimate) -> str:
    interval = (
        ""
        if estimate.low is None or estimate.high is None
        else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    )
    return "unknown" if estimate.value is None else f"{estimate.value:.3f}{interval}"


def draw_calibration(panels: Sequence[ClassificationPanel]) -> Figure:
    """Share observed against probability predicted, in bins of equal count with intervals, and the
    smooth curve through them."""
    panels = [panel for panel in panels if panel.read_curves("calibration")]
    check_plot_data(panels, "a calibration curve")
    figure, axes = create_panel_axes(panels, 2.3, "predicted", "observed")
    ends = [
        row[name]
        for panel in panels
        for rows in panel.read_curves("calibration").values()
        for row in rows
        for name in ("x", "y", "high")
    ]
    most = min(1.0, 1.05 * max(end for end in ends if end is not None))
    for axis, panel in zip(axes, panels, strict=True):
        axis.plot(
            [0, most], [0, most], color=GRAY, linewidth=0.9, linestyle=(0, (1, 2)), label="perfect"
        )
        bins, smooth = panel.read_curves("calibration"), panel.read_curves("calibration_smooth")
        for at, one in enumerate(choose_curve_classes(bins)):
            _draw_calibration_curve(
                axis,
                panel.name,
                one,
                bins.get(format_class_group(CLASSIFIER_GROUP, one), []),
                smooth.get(format_class_group(CLASSIFIER_GROUP, one), []),
                LINE_STYLES[at][0],
            )
        axis.set_xlim(0, most)
        axis.set_ylim(0, most)
    add_legend(figure, axes[0], columns=2 if len(axes) == 1 else 4)
    return figure


def _draw_calibration_curve(
    axis: Axes,
    row_name: str,
    class_name: str,
    bin_points: CurvePoints,
    smooth_points: CurvePoints,
    color: str,
) -> None:
    if smooth_points:
        x = [point["x"] for point in smooth_points]
        axis.plot(x, [point["y"] for point in smooth_points], color=color, linewidth=1.2)
        if all(point["low"] is not None and point["high"] is not None for point in smooth_points):
            axis.fill_between(
                x,
                [point["low"] for point in smooth_points],
                [point["high"] for point in smooth_points],
                color=color,
                alpha=0.14,
                linewidth=0,
            )
    for at, point in enumerate(bin_points):
        if point["low"] is not None and point["high"] is not None:
            axis.plot([point["x"]] * 2, [point["low"], point["high"]], color=color, linewidth=0.9)
        word: dict[str, Any] = {"label": class_name or "bins of equal count"} if at == 0 else {}
        (dot,) = axis.plot(
            [point["x"]],
            [point["y"]],
            marker="o",
            markersize=4,
            color=color,
            linestyle="none",
            **word,
        )
        set_tooltip(
            dot,
            (
                f"{row_name}{f', {class_name}' if class_name else ''}: predicted "
                f"{point['x']:.3f}, observed {point['y']:.3f}, {format_count(point['n'])} "
                "answers"
            ),
        )


def draw_decision_curves(panels: Sequence[ClassificationPanel]) -> Figure:
    """Net benefit against the probability from which one acts: a line a row, acting on everybody,
    and on nobody; a panel a class."""
    panels = [panel for panel in panels if panel.read_curves("net_benefit")]
    check_plot_data(panels, "a decision curve")
    first = panels[0].read_curves("net_benefit")
    shown = (
        choose_curve_classes(panels[0].read_curves("calibration"))
        or [
            group.removeprefix(CLASSIFIER_GROUP).removeprefix(SUBGROUP_SEPARATOR)
            for group in first
            if group[:5] == CLASSIFIER_GROUP
        ][:1]
    )
    figure, axes = create_figure(3.2, len(shown))
    for axis, one in zip(axes, shown, strict=True):
        for group, style in (("treat all", "--"), ("treat none", ":")):
            points = first.get(format_class_group(group, one), [])
            axis.plot(
                [point["x"] for point in points],
                [point["y"] for point in points],
                color=GRAY,
                linestyle=style,
                linewidth=1,
                label=group,
            )
        for at, panel in enumerate(panels):
            _draw_decision_curve(
                axis,
                panel,
                panel.read_curves("net_benefit").get(format_class_group(CLASSIFIER_GROUP, one), []),
                *LINE_STYLES[at % len(LINE_STYLES)],
            )
        tops = [
            point["y"]
            for panel in panels
            for group, rows in panel.read_curves("net_benefit").items()
            if group[:5] == CLASSIFIER_GROUP
            for point in rows
        ]
        axis.set_ylim(-0.25 * max([*tops, 0.01]), 1.1 * max([*tops, 0.01]))
        axis.set_title(one, loc="left", fontsize=8.5)
        axis.set_xlabel("probability from which one acts")
    axes[0].set_ylabel("net benefit")
    add_legend(figure, axes[0], columns=3)
    return figure


def _draw_decision_curve(
    axis: Axes, panel: ClassificationPanel, points: CurvePoints, color: str, style: str
) -> None:
    x, y = [point["x"] for point in points], [point["y"] for point in points]
    (line,) = axis.plot(x, y, color=color, linestyle=style, linewidth=1.4, label=panel.name)
    line.set_gid(f"{ROW_ID_PREFIX}{panel.name}")
    for point in points[9::10]:
        (dot,) = axis.plot(
            [point["x"]], [point["y"]], marker="o", markersize=3, color=color, linestyle="none"
        )
        interval = _format_estimate(Estimate(point["y"], point["low"], point["high"]))
        set_tooltip(dot, f"{panel.name}: from {point['x']:.2f} on, net benefit {interval}")


def draw_probability_histograms(panels: Sequence[ClassificationPanel]) -> Figure:
    """How the probabilities of those with and without the event are spread: density in bins that at
    least ten answers share."""
    panels = [panel for panel in panels if panel.read_curves("probabilities")]
    check_plot_data(panels, "distributions of probabilities")
    figure, axes = create_panel_axes(panels, 1.9, "predicted probability", "density")
    for axis, panel in zip(axes, panels, strict=True):
        chosen = list(panel.read_curves("probabilities").items())[
            :2
        ]  # of several classes the first, with and without
        for (group, points), colour in zip(chosen, (GRAY, BLUE), strict=False):
            for at, (left, right, share, answers) in enumerate(merge_small_bins(points)):
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
                set_tooltip(
                    bar.patches[0],
                    (
                        f"{panel.name}, {group}: {left:.2f} to {right:.2f}, {share:.1%} of "
                        f"{format_count(answers)}"
                    ),
                )
        axis.set_xlim(0, 1)
    add_legend(figure, axes[0], columns=2)
    return figure


def merge_small_bins(points: CurvePoints) -> list[tuple[float, float, float, int]]:
    """Neighbouring bins of a histogram put together until each holds no answer or at least ten:
    left, right, share, answers of all bins.

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


def draw_subgroups(panels: Sequence[ClassificationPanel]) -> Figure:
    """The main metric of every subgroup with its interval, beside the whole as a line; groups of
    fewer than ten people are not there."""
    known = [(panel, found) for panel in panels if (found := _collect_subgroup_estimates(panel))]
    check_plot_data(known, "subgroups")
    names = list(dict.fromkeys(group for _, found in known for group in found))
    figure, axes = create_panel_axes(
        [panel for panel, _ in known],
        0.5 + 0.2 * len(names),
        f"{_find_panel_metric(known[0][0]).replace('_', ' ').upper()}, held out",
    )
    for axis, (panel, found) in zip(axes, known, strict=True):
        places = dict(zip(names, set_y_names(axis, names), strict=True))
        whole = _find_overall_estimate(panel)
        if whole is not None and whole.value is not None:
            set_tooltip(
                axis.axvline(whole.value, color=BLACK, linewidth=0.9, linestyle="--"),
                f"{panel.name}, all: {_format_estimate(whole)}",
            )
        for group, (estimate, people) in found.items():
            _draw_interval_point(
                axis,
                places[group],
                f"{panel.name}, {group}, {format_count(people)} people",
                estimate,
            )
        axis.tick_params(axis="y", labelsize=7.5)
    return figure


def _find_panel_metric(panel: ClassificationPanel) -> str:
    return find_main_metric(read_estimates(panel.run), panel.task) or ""


def _find_overall_estimate(panel: ClassificationPanel) -> Estimate | None:
    return read_estimates(panel.run).get(
        MetricKey(_find_panel_metric(panel), HELD_OUT_SPLIT, CLASSIFIER_GROUP, panel.task)
    )


def _collect_subgroup_estimates(panel: ClassificationPanel) -> dict[str, tuple[Estimate, int]]:
    """Subgroup -> main metric, people; those that are too small for either are left out."""
    metric, found = _find_panel_metric(panel), {}
    for row in panel.run.results.to_pylist():
        state, separator, group = (row["group"] or "").partition(SUBGROUP_SEPARATOR)
        is_asked = (row["name"], row["split"], row["task"], state) == (
            metric,
            HELD_OUT_SPLIT,
            panel.task,
            CLASSIFIER_GROUP,
        ) and bool(separator)
        if (
            is_asked
            and row["value"] is not None
            and (row["n_subjects"] or 0) >= RELEASE_SMALLEST_CELL
        ):
            found[group] = (Estimate(row["value"], row["low"], row["high"]), row["n_subjects"])
    return found


def draw_label_auroc(panels: Sequence[ClassificationPanel]) -> Figure:
    """AUROC of every label against how often it stands in the training split: what becomes of the
    rare ones."""
    known = [(panel, found) for panel in panels if (found := _list_reportable_labels(panel))]
    check_plot_data(known, "labels")
    figure, axes = create_panel_axes(
        [panel for panel, _ in known], 2.2, "stays with the label in training", "AUROC, held out"
    )
    for axis, (panel, found) in zip(axes, known, strict=True):
        axis.axhline(0.5, color=GRAY, linewidth=0.8, linestyle=":")
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
            interval = _format_estimate(Estimate(row["auroc"], row["low"], row["high"]))
            set_tooltip(
                dot,
                (
                    f"{panel.name}, {row['class']}: {interval}, "
                    f"{format_count(row['train_count'])} in training"
                ),
            )
    set_log_axis(axes[0], "x")  # of all: they share it
    return figure


def _list_reportable_labels(panel: ClassificationPanel) -> list[dict[str, Any]]:
    """Labels that at least ten stays have, in training and held out, and ten have not."""
    table = panel.read_table("labels")
    rows: list[dict[str, Any]] = [] if table is None else table.to_pylist()
    return [
        row
        for row in rows
        if row["auroc"] is not None
        and min(row["train_count"] or 0, row["n_positives"] or 0) >= RELEASE_SMALLEST_CELL
    ]
