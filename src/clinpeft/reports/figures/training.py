"""Figures of how a run went: what was read and who left, what was learned at which step, what it
cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
LOSS_SMOOTHING = 0.1  # share of the newest loss in its running mean
_TRAINING_LOG_FIELDS = {"event", "step", "loss", "learning_rate", "tokens", "seconds"}


@dataclass(frozen=True)
class TrainingCurve:
    """What the log of a run says, by the tokens that were seen.

    Attributes:
        name: of the row.
        smoothed_loss: (tokens, running mean of the loss), thinned.
        tuning_metrics: what was measured on the way -> (tokens, value).
    """

    name: str
    smoothed_loss: tuple[tuple[float, float], ...]
    tuning_metrics: Mapping[str, tuple[tuple[float, float], ...]]


def read_training_curve(name: str, run: Run) -> TrainingCurve:
    """The log of a run; a line that is torn is passed over, and of a step that was done again the
    last counts."""
    events = {event["step"]: event for event in _read_step_events(run)}
    steps, mean = [], None
    for event in events.values():
        loss = event.get("loss")
        if isinstance(loss, int | float):
            mean = loss if mean is None else (1 - LOSS_SMOOTHING) * mean + LOSS_SMOOTHING * loss
            steps.append((float(event.get("tokens") or 0), float(mean)))
    measured: dict[str, list[tuple[float, float]]] = {}
    for event in events.values():
        for key, value in event.items():
            if key not in _TRAINING_LOG_FIELDS and isinstance(value, int | float):
                measured.setdefault(key, []).append((float(event.get("tokens") or 0), float(value)))
    thin = max(1, len(steps) // MAX_CURVE_POINTS)
    return TrainingCurve(
        name, tuple(steps[::thin]), {key: tuple(points) for key, points in measured.items()}
    )


def _read_step_events(run: Run) -> Iterator[dict[str, Any]]:
    path = run.folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if (
            isinstance(event, dict)
            and event.get("event") == "step"
            and isinstance(event.get("step"), int)
        ):
            yield event


def draw_learning_curves(curves: Sequence[TrainingCurve]) -> Figure:
    """Left the running mean of the training loss, right what was measured on the tuning split, both
    against the tokens that were seen."""
    curves = [one for one in curves if one.smoothed_loss]
    check_plot_data(curves, "a log of its steps")
    keys = dict.fromkeys(key for one in curves for key in one.tuning_metrics)
    measured = next((key for key in keys if "metric" in key), next(iter(keys), ""))
    figure, axes = create_figure(3.0 + 0.12 * len(curves), 2 if measured else 1)
    for at, one in enumerate(curves):
        colour, style = LINE_STYLES[at % len(LINE_STYLES)]
        _draw_curve(axes[0], one.name, one.smoothed_loss, colour, style)
        if measured and measured in one.tuning_metrics:
            _draw_curve(
                axes[1], one.name, one.tuning_metrics[measured], colour, style, marker_interval=1
            )
    for axis, title in zip(
        axes, ("training loss, running mean", f"{measured.replace('_', ' ')}"), strict=False
    ):
        axis.set_title(title, loc="left")
        axis.set_xlabel("tokens seen")
        axis.ticklabel_format(axis="x", style="plain")
        axis.xaxis.set_major_formatter(_format_thousands)
    add_legend(figure, axes[0], columns=2)
    return figure


def _format_thousands(value: float, _: float) -> str:
    return (
        f"{value / 1e6:g}M"
        if value >= 1e6
        else f"{value / 1e3:g}k"
        if value >= 1e3
        else f"{value:g}"
    )


def _draw_curve(
    axis: Axes,
    name: str,
    points: Sequence[tuple[float, float]],
    color: str,
    style: str,
    marker_interval: int = 10,
) -> None:
    (line,) = axis.plot(
        *zip(*points, strict=True), color=color, linestyle=style, linewidth=1.4, label=name
    )
    line.set_gid(f"{ROW_ID_PREFIX}{name}")
    for x, y in points[::marker_interval]:
        (dot,) = axis.plot([x], [y], marker="o", markersize=3, color=color, linestyle="none")
        set_tooltip(dot, f"{name}: {format_count(x)} tokens, {y:.4g}")


def draw_training_cost(names: Sequence[str], runs: Sequence[Run]) -> Figure:
    """Seconds in the training loop, and tokens a second."""
    check_plot_data([run for run in runs if run.record.training_seconds], "a time of training")
    figure, axes = create_figure(compute_bars_height(len(names), 1.0), 2, sharey=True)
    places = set_y_names(axes[0], list(names))
    for location, name, run in zip(places, names, runs, strict=True):
        for axis, value, word in (
            (axes[0], run.record.training_seconds, "in training"),
            (axes[1], compute_tokens_per_second(run), "tokens a second"),
        ):
            if value:
                (bar,) = axis.barh(location, value, color=BLUE, height=0.6)
                set_tooltip(
                    bar,
                    (
                        f"{name}: "
                        f"{format_duration(value) if axis is axes[0] else format_count(value)} "
                        f"{word}"
                    ),
                )
    axes[0].set_xlabel("seconds of training")
    axes[1].set_xlabel("tokens a second")
    for axis in axes:
        axis.xaxis.set_major_formatter(_format_thousands)
    return figure


def draw_attrition_flow(steps: Sequence[Attrition]) -> Figure:
    """A flow: what entered each step, to the right what left it for which reason, below what was
    kept. Counts under ten are not told, and steps that nothing left are passed over."""
    steps = [step for step in steps if step.entered_rows != step.kept_rows]
    check_plot_data(steps, "a step that anything left")
    lines = [
        [
            f"{format_suppressed_count(n)} {reason}"
            for reason, n in sorted(step.dropped_rows.items(), key=lambda one: -one[1])
            if n
        ]
        for step in steps
    ]
    heights = [max(2, len(texts)) + 1.0 for texts in lines]
    figure, (axes,) = create_figure(0.19 * sum(heights) + 0.3)
    axes.set_axis_off()
    axes.set_xlim(0, FIGURE_WIDTH_INCHES)
    axes.set_ylim(sum(heights), -0.3)
    top = 0.0
    for at, (step, texts, height) in enumerate(zip(steps, lines, heights, strict=True)):
        middle = top + (height - 1) / 2 + 0.2
        _draw_text_box(
            axes,
            1.5,
            middle,
            (
                f"{step.step}\n{format_suppressed_count(step.entered_rows)} entered, "
                f"{format_suppressed_count(step.kept_rows)} kept"
            ),
            GRAY,
        )
        _draw_text_box(axes, 3.5, middle, "\n".join(texts), GRAY, "left", "--")
        axes.annotate(
            "",
            (3.38, middle),
            (2.85, middle),
            arrowprops={"arrowstyle": "-|>", "color": GRAY, "linewidth": 0.9},
        )
        if at + 1 < len(steps):
            below = top + height + (heights[at + 1] - 1) / 2 + 0.2
            axes.annotate(
                "",
                (1.5, below - 1.1),
                (1.5, middle + 1.1),
                arrowprops={"arrowstyle": "-|>", "color": GRAY, "linewidth": 0.9},
            )
        top += height
    return figure


def _draw_text_box(
    axes: Axes, x: float, y: float, text: str, color: str, align: str = "center", style: str = "-"
) -> None:
    frame = {
        "boxstyle": "round,pad=0.35",
        "facecolor": "none",
        "edgecolor": color,
        "linewidth": 0.9,
        "linestyle": style,
    }
    axes.text(x, y, text, ha=align, va="center", fontsize=8, bbox=frame, linespacing=1.25)
