"""Figures of a run: the rows that each step dropped, loss and metrics during training, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clinpeft.core.schemas import Attrition
from clinpeft.reports.facts import compute_tokens_per_second
from clinpeft.reports.figures.panels import LINE_STYLES, ROW_ID_PREFIX, set_tooltip
from clinpeft.reports.figures.style import (
    BLUE,
    FIGURE_WIDTH_INCHES,
    GRAY,
    add_legend,
    check_plot_data,
    compute_bars_height,
    create_figure,
    set_y_names,
)
from clinpeft.reports.formats import format_count, format_duration, format_suppressed_count
from clinpeft.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CURVE_POINTS = 60
LOSS_SMOOTHING = 0.1  # weight of the newest loss in its exponential running mean
_TRAINING_LOG_FIELDS = {"event", "step", "loss", "learning_rate", "tokens", "seconds"}


@dataclass(frozen=True)
class TrainingCurve:
    """Loss and metrics of a run against the tokens seen.

    Attributes:
        name: of the row.
        smoothed_loss: (tokens, running mean of the loss), thinned.
        tuning_metrics: metric on the tuning split -> (tokens, value).
    """

    name: str
    smoothed_loss: tuple[tuple[float, float], ...]
    tuning_metrics: Mapping[str, tuple[tuple[float, float], ...]]


def read_training_curve(name: str, run: Run) -> TrainingCurve:
    """Read the log of a run; a truncated line is skipped, and of a step that was repeated after a
    restart the last record counts."""
    events: dict[int, dict[str, Any]] = {}
    path = run.folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        # The last line of a killed run may be incomplete
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        is_step = isinstance(event, dict) and event.get("event") == "step"
        if is_step and isinstance(event.get("step"), int):
            events[event["step"]] = event
    losses: list[tuple[float, float]] = []
    metrics: dict[str, list[tuple[float, float]]] = {}
    mean: float | None = None
    for event in events.values():
        tokens, loss = float(event.get("tokens") or 0), event.get("loss")
        if isinstance(loss, int | float):
            # m_t = (1 - a) m_{t-1} + a l_t, from the first loss on
            mean = loss if mean is None else (1 - LOSS_SMOOTHING) * mean + LOSS_SMOOTHING * loss
            losses.append((tokens, float(mean)))
        for key, value in event.items():
            if key not in _TRAINING_LOG_FIELDS and isinstance(value, int | float):
                metrics.setdefault(key, []).append((tokens, float(value)))
    # A page with every step of every run would be megabytes
    interval = max(1, len(losses) // MAX_CURVE_POINTS)
    return TrainingCurve(
        name,
        tuple(losses[::interval]),
        {key: tuple(points) for key, points in metrics.items()},
    )


def draw_learning_curves(curves: Sequence[TrainingCurve]) -> Figure:
    """Left the running mean of the training loss, right a metric on the tuning split, both against
    the tokens seen."""
    curves = [curve for curve in curves if curve.smoothed_loss]
    check_plot_data(curves, "a log of its steps")
    keys = dict.fromkeys(key for curve in curves for key in curve.tuning_metrics)
    # The metric of the task before any loss on the tuning split
    metric = next((key for key in keys if "metric" in key), next(iter(keys), ""))
    figure, axes = create_figure(3.0 + 0.12 * len(curves), 2 if metric else 1)
    for at, curve in enumerate(curves):
        styles = LINE_STYLES[at % len(LINE_STYLES)]
        _draw_curve(axes[0], curve.name, curve.smoothed_loss, *styles)
        if metric and metric in curve.tuning_metrics:
            points = curve.tuning_metrics[metric]
            _draw_curve(axes[1], curve.name, points, *styles, marker_interval=1)
    titles = ("training loss, running mean", metric.replace("_", " "))
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, loc="left")
        axis.set_xlabel("tokens seen")
        axis.ticklabel_format(axis="x", style="plain")
        axis.xaxis.set_major_formatter(_format_thousands)
    add_legend(figure, axes[0], columns=2)
    return figure


def _format_thousands(value: float, _: float) -> str:
    """``20k``, as a formatter of an axis."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _draw_curve(
    axis: Axes,
    name: str,
    points: Sequence[tuple[float, float]],
    color: str,
    style: str,
    marker_interval: int = 10,
) -> None:
    """A line with a tooltip at every ``marker_interval``-th point."""
    (line,) = axis.plot(
        *zip(*points, strict=True), color=color, linestyle=style, linewidth=1.4, label=name
    )
    line.set_gid(f"{ROW_ID_PREFIX}{name}")
    for x, y in points[::marker_interval]:
        (dot,) = axis.plot([x], [y], marker="o", markersize=3, color=color, linestyle="none")
        set_tooltip(dot, f"{name}: {format_count(x)} tokens, {y:.4g}")


def draw_training_cost(names: Sequence[str], runs: Sequence[Run]) -> Figure:
    """Seconds in the training loop, and tokens per second.

    Args:
        names: of the rows, from top to bottom.
        runs: one per row.
    """
    check_plot_data([run for run in runs if run.record.training_seconds], "a time of training")
    figure, axes = create_figure(compute_bars_height(len(names), 1.0), 2, sharey=True)
    positions = set_y_names(axes[0], list(names))
    for position, name, run in zip(positions, names, runs, strict=True):
        if seconds := run.record.training_seconds:
            (bar,) = axes[0].barh(position, seconds, color=BLUE, height=0.6)
            set_tooltip(bar, f"{name}: {format_duration(seconds)} in training")
        if speed := compute_tokens_per_second(run):
            (bar,) = axes[1].barh(position, speed, color=BLUE, height=0.6)
            set_tooltip(bar, f"{name}: {format_count(speed)} tokens a second")
    axes[0].set_xlabel("seconds of training")
    axes[1].set_xlabel("tokens a second")
    for axis in axes:
        axis.xaxis.set_major_formatter(_format_thousands)
    return figure


def draw_attrition_flow(steps: Sequence[Attrition]) -> Figure:
    """A flow chart: rows that entered each step, to the right those that it dropped by reason,
    below those that it kept. Counts below ten are suppressed, and steps that dropped nothing are
    left out."""
    steps = [step for step in steps if step.entered_rows != step.kept_rows]
    check_plot_data(steps, "a step that anything left")
    reasons = [
        [
            f"{format_suppressed_count(n)} {reason}"
            for reason, n in sorted(step.dropped_rows.items(), key=lambda item: -item[1])
            if n
        ]
        for step in steps
    ]
    heights = [max(2, len(texts)) + 1.0 for texts in reasons]  # in lines of text
    figure, (axes,) = create_figure(0.19 * sum(heights) + 0.3)
    axes.set_axis_off()
    axes.set_xlim(0, FIGURE_WIDTH_INCHES)
    axes.set_ylim(sum(heights), -0.3)
    arrow = {"arrowstyle": "-|>", "color": GRAY, "linewidth": 0.9}
    top = 0.0
    for at, (step, texts, height) in enumerate(zip(steps, reasons, heights, strict=True)):
        middle = top + (height - 1) / 2 + 0.2
        counts = [format_suppressed_count(n) for n in (step.entered_rows, step.kept_rows)]
        summary = f"{step.step}\n{counts[0]} entered, {counts[1]} kept"
        # Left what goes on, right what was dropped, an arrow between them
        _draw_text_box(axes, 1.5, middle, summary)
        _draw_text_box(axes, 3.5, middle, "\n".join(texts), "left", "--")
        axes.annotate("", (3.38, middle), (2.85, middle), arrowprops=arrow)
        if at + 1 < len(steps):
            below = top + height + (heights[at + 1] - 1) / 2 + 0.2
            axes.annotate("", (1.5, below - 1.1), (1.5, middle + 1.1), arrowprops=arrow)
        top += height
    return figure


def _draw_text_box(
    axes: Axes, x: float, y: float, text: str, align: str = "center", style: str = "-"
) -> None:
    frame = {
        "boxstyle": "round,pad=0.35",
        "facecolor": "none",
        "edgecolor": GRAY,
        "linewidth": 0.9,
        "linestyle": style,
    }
    axes.text(x, y, text, ha=align, va="center", fontsize=8, bbox=frame, linespacing=1.25)
