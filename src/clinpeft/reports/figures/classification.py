"""Figures of a classifier: main metric, calibration, decision curves, predicted probabilities,
subgroups, rare labels."""

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
    read_subgroup_estimates,
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
    as a line with its band.

    Args:
        names, estimates, published_values: of the rows, from top to bottom.
        baseline: of TF-IDF with logistic regression.
        metric: its name, for the axis.
    """
    check_plot_data(estimates, "a main metric")
    figure, (axes,) = create_figure(compute_bars_height(len(names)))
    positions = set_y_names(axes, list(names))
    if baseline is not None and baseline.value is not None:
        line = axes.axvline(
            baseline.value, color=VERMILION, linestyle="--", linewidth=1.2, label="TF-IDF"
        )
        set_tooltip(line, f"TF-IDF: {_format_estimate(baseline)}")
        if baseline.low is not None and baseline.high is not None:
            axes.axvspan(baseline.low, baseline.high, color=VERMILION, alpha=0.1, linewidth=0)
    # The published value is below the measured one, so that neither covers the other
    rows = zip(positions, names, estimates, published_values, strict=True)
    for position, name, estimate, published in rows:
        _draw_interval_point(axes, position, name, estimate)
        if published is not None:
            (diamond,) = axes.plot(
                [published], [position + 0.3], label=PUBLISHED_LABEL, **PUBLISHED_MARKER
            )
            set_tooltip(diamond, f"{name}, published: {published:.4f}")
    axes.set_xlabel(f"{metric}, held out")
    add_legend(figure, axes)
    return figure


def _draw_interval_point(axes: Axes, position: float, name: str, estimate: Estimate) -> None:
    """A point with its horizontal interval and a tooltip; nothing for an unknown value."""
    if estimate.value is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [position, position], color=BLUE, linewidth=1.6)
    (point,) = axes.plot(
        [estimate.value], [position], marker="o", markersize=6, color=BLUE, linestyle="none"
    )
    set_tooltip(point, f"{name}: {_format_estimate(estimate)}")


def _format_estimate(estimate: Estimate) -> str:
    """``0.812 (0.790 to 0.834)``, as tooltips give it."""
    if estimate.value is None:
        return "unknown"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def draw_calibration(panels: Sequence[ClassificationPanel]) -> Figure:
    """Observed fraction against predicted probability, in bins of equal count with intervals, and
    the smooth curve through them (Van Calster et al. 2016, 10.1016/j.jclinepi.2015.12.005)."""
    panels = [panel for panel in panels if panel.read_curves("calibration")]
    check_plot_data(panels, "a calibration curve")
    figure, axes = create_panel_axes(panels, 2.3, "predicted", "observed")
    # Read once: curves are a file of the run
    bins_by_panel = [panel.read_curves("calibration") for panel in panels]
    points = [point for bins in bins_by_panel for rows in bins.values() for point in rows]
    ends = [point[name] for point in points for name in ("x", "y", "high")]
    # One scale for all panels, down to the probabilities that occur: events are often rare
    limit = min(1.0, 1.05 * max(end for end in ends if end is not None))
    dots = (0, (1, 2))
    for axis, panel, bins in zip(axes, panels, bins_by_panel, strict=True):
        axis.plot(
            [0, limit], [0, limit], color=GRAY, linewidth=0.9, linestyle=dots, label="perfect"
        )
        smooth = panel.read_curves("calibration_smooth")
        for at, class_name in enumerate(choose_curve_classes(bins)):
            group, color = format_class_group(CLASSIFIER_GROUP, class_name), LINE_STYLES[at][0]
            _draw_smooth_calibration(axis, smooth.get(group, []), color)
            _draw_calibration_bins(axis, panel.name, class_name, bins.get(group, []), color)
        axis.set_xlim(0, limit)
        axis.set_ylim(0, limit)
    add_legend(figure, axes[0], columns=2 if len(axes) == 1 else 4)
    return figure


def _draw_smooth_calibration(axis: Axes, points: CurvePoints, color: str) -> None:
    """The smooth curve, with its band if it has one."""
    if not points:
        return
    x = [point["x"] for point in points]
    axis.plot(x, [point["y"] for point in points], color=color, linewidth=1.2)
    low, high = ([point[end] for point in points] for end in ("low", "high"))
    if None not in low and None not in high:
        axis.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)


def _draw_calibration_bins(
    axis: Axes, row_name: str, class_name: str, points: CurvePoints, color: str
) -> None:
    """A dot per bin with its vertical interval and a tooltip."""
    for at, point in enumerate(points):
        if point["low"] is not None and point["high"] is not None:
            axis.plot([point["x"]] * 2, [point["low"], point["high"]], color=color, linewidth=0.9)
        # A label on the first dot alone: the legend has one entry per class
        label: dict[str, Any] = {"label": class_name or "bins of equal count"} if at == 0 else {}
        (dot,) = axis.plot(
            [point["x"]],
            [point["y"]],
            marker="o",
            markersize=4,
            color=color,
            linestyle="none",
            **label,
        )
        of_class = f", {class_name}" if class_name else ""
        set_tooltip(
            dot,
            f"{row_name}{of_class}: predicted {point['x']:.3f}, observed {point['y']:.3f}, "
            f"{format_count(point['n'])} answers",
        )


def draw_decision_curves(panels: Sequence[ClassificationPanel]) -> Figure:
    """Net benefit against the threshold probability (Vickers and Elkin 2006,
    10.1177/0272989X06295361): a line per row, for treating all, and for treating none; a panel per
    class."""
    panels = [panel for panel in panels if panel.read_curves("net_benefit")]
    check_plot_data(panels, "a decision curve")
    curves_by_panel = [panel.read_curves("net_benefit") for panel in panels]
    first = curves_by_panel[0]
    # A multilabel task has hundreds of classes: the most frequent ones stand for all
    classes = choose_curve_classes(panels[0].read_curves("calibration"))
    if not classes:
        groups = [group for group in first if group.startswith(CLASSIFIER_GROUP)]
        classes = [
            group.removeprefix(CLASSIFIER_GROUP).removeprefix(SUBGROUP_SEPARATOR)
            for group in groups[:1]
        ]
    benefits = [
        point["y"]
        for curves in curves_by_panel
        for group, points in curves.items()
        if group.startswith(CLASSIFIER_GROUP)
        for point in points
    ]
    top = max([*benefits, 0.01])
    figure, axes = create_figure(3.2, len(classes))
    for axis, class_name in zip(axes, classes, strict=True):
        for policy, style in (("treat all", "--"), ("treat none", ":")):
            points = first.get(format_class_group(policy, class_name), [])
            x, y = [point["x"] for point in points], [point["y"] for point in points]
            axis.plot(x, y, color=GRAY, linestyle=style, linewidth=1, label=policy)
        for at, (panel, curves) in enumerate(zip(panels, curves_by_panel, strict=True)):
            points = curves.get(format_class_group(CLASSIFIER_GROUP, class_name), [])
            _draw_decision_curve(axis, panel.name, points, *LINE_STYLES[at % len(LINE_STYLES)])
        # Treating all falls far below 0 at high thresholds, where nothing is to be seen
        axis.set_ylim(-0.25 * top, 1.1 * top)
        axis.set_title(class_name, loc="left", fontsize=8.5)
        axis.set_xlabel("probability from which one acts")
    axes[0].set_ylabel("net benefit")
    add_legend(figure, axes[0], columns=3)
    return figure


def _draw_decision_curve(
    axis: Axes, row_name: str, points: CurvePoints, color: str, style: str
) -> None:
    """The curve of one row, with a tooltip at every tenth threshold."""
    x, y = [point["x"] for point in points], [point["y"] for point in points]
    (line,) = axis.plot(x, y, color=color, linestyle=style, linewidth=1.4, label=row_name)
    line.set_gid(f"{ROW_ID_PREFIX}{row_name}")
    # Thresholds are 0.01 apart; a dot on each would hide the line
    for point in points[9::10]:
        (dot,) = axis.plot(
            [point["x"]], [point["y"]], marker="o", markersize=3, color=color, linestyle="none"
        )
        benefit = _format_estimate(Estimate(point["y"], point["low"], point["high"]))
        set_tooltip(dot, f"{row_name}: from {point['x']:.2f} on, net benefit {benefit}")


def draw_probability_histograms(panels: Sequence[ClassificationPanel]) -> Figure:
    """Densities of the predicted probabilities with and without the event, in bins of at least ten
    predictions."""
    panels = [panel for panel in panels if panel.read_curves("probabilities")]
    check_plot_data(panels, "distributions of probabilities")
    figure, axes = create_panel_axes(panels, 1.9, "predicted probability", "density")
    for axis, panel in zip(axes, panels, strict=True):
        # Of several classes the first one, without and with it
        curves = list(panel.read_curves("probabilities").items())[:2]
        for (group, points), color in zip(curves, (GRAY, BLUE), strict=False):
            for at, (left, right, fraction, n) in enumerate(merge_small_bins(points)):
                label = {"label": f"{group}"} if at == 0 else {}
                bar = axis.bar(
                    left,
                    # Density: bins that were merged are wider
                    fraction / (right - left),
                    right - left,
                    align="edge",
                    color=color,
                    alpha=0.5,
                    edgecolor=color,
                    **label,
                )
                set_tooltip(
                    bar.patches[0],
                    f"{panel.name}, {group}: {left:.2f} to {right:.2f}, {fraction:.1%} of "
                    f"{format_count(n)}",
                )
        axis.set_xlim(0, 1)
    add_legend(figure, axes[0], columns=2)
    return figure


def merge_small_bins(points: CurvePoints) -> list[tuple[float, float, float, int]]:
    """Merge neighboring bins of a histogram until each holds no prediction or at least ten.

    Empty bins between large ones stay as they are.

    Args:
        points: center ``x``, fraction of all predictions ``y`` and number of all predictions ``n``
            of each bin, in ascending order and of equal width.

    Returns:
        (left, right, fraction, number of all predictions) of each bin; empty for fewer than ten
        predictions.
    """
    # x is the center of a bin; a single bin is all of 0 to 1
    half = (points[1]["x"] - points[0]["x"]) / 2 if len(points) > 1 else 0.5
    bins: list[tuple[float, float, float, int]] = []
    pending: tuple[float, float, float, int] | None = None  # with fewer than ten so far
    for point in points:
        left, right = point["x"] - half, point["x"] + half
        fraction, n = float(point["y"]), int(point["n"])
        merged = (left, right, fraction, n)
        if pending is not None:
            merged = (pending[0], right, pending[2] + fraction, n)
        # y is a fraction of all n predictions
        count = round(merged[2] * n)
        pending = None if count == 0 or count >= RELEASE_SMALLEST_CELL else merged
        if pending is None:
            bins.append(merged)
    # What is left at the right end goes into the bins before it
    while pending is not None:
        if not bins:
            is_large = round(pending[2] * pending[3]) >= RELEASE_SMALLEST_CELL
            return [pending] if is_large else []
        last = bins.pop()
        merged = (last[0], pending[1], last[2] + pending[2], pending[3])
        pending = merged if round(merged[2] * merged[3]) < RELEASE_SMALLEST_CELL else None
        if pending is None:
            bins.append(merged)
    return bins


def draw_subgroups(panels: Sequence[ClassificationPanel]) -> Figure:
    """The main metric of every subgroup of at least ten people with its interval, and that of all
    people as a line."""
    estimates_by_panel = [read_estimates(panel.run) for panel in panels]
    rows = []
    for panel, estimates in zip(panels, estimates_by_panel, strict=True):
        metric = find_main_metric(estimates, panel.task) or ""
        subgroups = read_subgroup_estimates(panel.run, panel.task, metric, RELEASE_SMALLEST_CELL)
        if subgroups:
            key = MetricKey(metric, HELD_OUT_SPLIT, CLASSIFIER_GROUP, panel.task)
            rows.append((panel, metric, estimates.get(key), subgroups))
    check_plot_data(rows, "subgroups")
    # The same subgroups in all panels, in the order of the first
    names = list(dict.fromkeys(name for *_, subgroups in rows for name in subgroups))
    label = f"{rows[0][1].replace('_', ' ').upper()}, held out"
    figure, axes = create_panel_axes([row[0] for row in rows], 0.5 + 0.2 * len(names), label)
    for axis, (panel, _, overall, subgroups) in zip(axes, rows, strict=True):
        positions = dict(zip(names, set_y_names(axis, names), strict=True))
        if overall is not None and overall.value is not None:
            line = axis.axvline(overall.value, color=BLACK, linewidth=0.9, linestyle="--")
            set_tooltip(line, f"{panel.name}, all: {_format_estimate(overall)}")
        for name, (estimate, people) in subgroups.items():
            text = f"{panel.name}, {name}, {format_count(people)} people"
            _draw_interval_point(axis, positions[name], text, estimate)
        axis.tick_params(axis="y", labelsize=7.5)
    return figure


def draw_label_auroc(panels: Sequence[ClassificationPanel]) -> Figure:
    """AUROC of every label against its frequency in the training split, of labels that at least ten
    stays have in training and held out."""
    rows = []
    for panel in panels:
        table = panel.read_table("labels")
        labels = [
            label
            for label in ([] if table is None else table.to_pylist())
            if label["auroc"] is not None
            and min(label["train_count"] or 0, label["n_positives"] or 0) >= RELEASE_SMALLEST_CELL
        ]
        if labels:
            rows.append((panel, labels))
    check_plot_data(rows, "labels")
    figure, axes = create_panel_axes(
        [panel for panel, _ in rows], 2.2, "stays with the label in training", "AUROC, held out"
    )
    for axis, (panel, labels) in zip(axes, rows, strict=True):
        axis.axhline(0.5, color=GRAY, linewidth=0.8, linestyle=":")  # chance
        for label in labels:
            (dot,) = axis.plot(
                [label["train_count"]],
                [label["auroc"]],
                marker="o",
                markersize=4,
                color=BLUE,
                alpha=0.6,
                linestyle="none",
            )
            auroc = _format_estimate(Estimate(label["auroc"], label["low"], label["high"]))
            count = format_count(label["train_count"])
            set_tooltip(dot, f"{panel.name}, {label['class']}: {auroc}, {count} in training")
    set_log_axis(axes[0], "x")  # of all panels: they share it
    return figure
